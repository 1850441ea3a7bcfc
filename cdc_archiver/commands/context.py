"""What every command needs: the database, the table of files, the history."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from cdc_archiver.database import schema
from cdc_archiver.database.connections import Database, error_code
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.history import HISTORY_ERRORS
from cdc_archiver.database.operator_history import OperatorHistory, why_not_readable
from cdc_archiver.dispatch.router import Targets
from cdc_archiver.errors import Misconfigured
from cdc_archiver.model import FileRecord
from cdc_archiver.settings import Settings, SourceSettings

_ANSWER_TIMEOUT: Final = 900.0
"""Seconds for one answer: to find a part of a path, a server reads the whole table; a person may press Ctrl-C."""


@dataclass(frozen=True)
class CommandContext:
    """The database as a command uses it.

    Attributes:
        history: None if it cannot be read; ``no_history`` then tells the reason.
    """

    settings: Settings
    database: Database
    files: FilesTable
    history: OperatorHistory | None
    no_history: str

    def source_of(self, instance_id: str) -> SourceSettings | None:
        """The configured source with this target; None if there is none."""
        name = Targets(self.settings.sources).source_of(instance_id)
        return next((source for source in self.settings.sources if source.name == name), None)

    def targets(self, sources: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
        """The selected targets: the named ones; without any, all configured ones; empty for all targets of the table.

        Args:
            sources: names of sources, each for all of its targets.

        Raises:
            Misconfigured: no source has such a name.
        """
        configured = {source.name: source.target for source in self.settings.sources}
        for name in sources:
            if name not in configured:
                raise Misconfigured(
                    f"unknown source: {name!r}",
                    f"use one of {', '.join(configured)}"
                    if configured
                    else "no source is configured: add --config FILE or --target NAME",
                )
        named = [target for name in sources for target in configured[name]] + list(targets)
        return tuple(dict.fromkeys(named)) or tuple(self.settings.targets)

    def note(self, connection: sa.Connection, records: Sequence[FileRecord], result: str, text: str) -> str:
        """Writes an operator's change to the history, if there is one.

        Returns:
            The reason why it was not written; empty if it was.
        """
        if self.history is None:
            return self.no_history
        try:
            self.history.record_operator_action(connection, records, result, text)
        except sa.exc.DBAPIError as error:
            if error_code(error) not in HISTORY_ERRORS:
                raise
            reason = error.orig.args[-1] if error.orig and error.orig.args else error
            return f"the history cannot be written: {reason}"
        return ""


@contextmanager
def open_context(settings: Settings, answer_timeout: float = _ANSWER_TIMEOUT) -> Iterator[CommandContext]:
    """Connects to the database and finds table and history.

    Args:
        answer_timeout: seconds that one answer may take.

    Raises:
        DatabaseUnavailable: the database does not answer.
        Misconfigured: the table does not exist, cannot be read or lacks a column.
    """
    database = Database(settings, answer_timeout=answer_timeout)
    try:
        with database.connect() as connection:
            name = schema.resolve_table(connection, database.name, settings.table)
            schema.require_columns(connection, database.name, name)
            files = FilesTable(name, schema.path_width(connection, database.name, name), settings.max_attempts)
            files.rows(connection, newest_first=True, limit=1)  # fails without the privilege to read
            no_history = why_not_readable(connection)
        yield CommandContext(settings, database, files, None if no_history else OperatorHistory(name), no_history)
    finally:
        database.close()


def require_history(context: CommandContext, feature: str) -> OperatorHistory:
    """The history, for a feature that needs it.

    Args:
        feature: the subject of the error's sentence.

    Raises:
        Misconfigured: there is no history.
    """
    if context.history is None:
        raise Misconfigured(
            f"{feature} needs the history, and {context.no_history}",
            "cdc-archiver init-db creates it; cdc-archiver check prints the GRANT",
        )
    return context.history


def operator_name() -> str:
    """Login name and host of the operator, for the history."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a uid without an account
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"
