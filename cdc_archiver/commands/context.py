"""What every operator's command needs: the database, the table, the history; opened to look, and to write only what was asked for."""

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
from cdc_archiver.database.attempts import Attempts, why_not_readable
from cdc_archiver.database.connections import Database, error_code
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.history import HISTORY_ERRORS
from cdc_archiver.dispatch.router import Targets
from cdc_archiver.errors import Misconfigured
from cdc_archiver.model import FileRecord
from cdc_archiver.settings import Settings, SourceSettings

PATIENCE: Final = 900.0
"""Seconds for one answer: to find a part of a path, a server reads the whole table; a person may press Ctrl-C."""


@dataclass(frozen=True)
class CommandContext:
    """The database, seen by an operator.

    Attributes:
        history: None where it cannot be read, ``no_history`` says why.
    """

    settings: Settings
    database: Database
    files: FilesTable
    history: Attempts | None
    no_history: str

    def source_of(self, instance_id: str) -> SourceSettings | None:
        """The configured source whose target this is; None where it is none of ours."""
        name = Targets(self.settings.sources).source_of(instance_id)
        return next((source for source in self.settings.sources if source.name == name), None)

    def targets(self, sources: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
        """The targets that are meant: those that were named; else all that are configured; else, with none, all there are.

        Args:
            sources: names of sources, which stand for their targets.

        Raises:
            Misconfigured: there is no source of such a name.
        """
        configured = {source.name: source.target for source in self.settings.sources}
        for name in sources:
            if name not in configured:
                raise Misconfigured(
                    f"there is no source {name!r}",
                    f"there is {', '.join(configured)}"
                    if configured
                    else "no source is configured: --config, or --target",
                )
        named = [target for name in sources for target in configured[name]] + list(targets)
        return tuple(dict.fromkeys(named)) or tuple(self.settings.targets)

    def note(self, connection: sa.Connection, records: Sequence[FileRecord], result: str, words: str) -> str:
        """Keeps a note in the history, where there is one.

        Returns:
            Why it was not kept; empty where it was.
        """
        if self.history is None:
            return self.no_history
        try:
            self.history.note(connection, records, result, words)
        except sa.exc.DBAPIError as error:
            if error_code(error) not in HISTORY_ERRORS:
                raise
            return f"the history does not take it: {error.orig.args[-1] if error.orig and error.orig.args else error}"
        return ""


@contextmanager
def open_context(settings: Settings, patience: float = PATIENCE) -> Iterator[CommandContext]:
    """Looks for table and history.

    Args:
        patience: seconds that one answer may take.

    Raises:
        DatabaseUnavailable: it does not answer.
        Misconfigured: there is no such table, or not as it has to be.
    """
    database = Database(settings, answer_timeout=patience)
    try:
        with database.connect() as connection:
            name = schema.resolve_table(connection, database.name, settings.table)
            schema.require_columns(connection, database.name, name)
            files = FilesTable(name, schema.path_width(connection, database.name, name), settings.max_attempts)
            files.rows(connection, newest_first=True, limit=1)  # may we read it?
            no_history = why_not_readable(connection)
        yield CommandContext(settings, database, files, None if no_history else Attempts(name), no_history)
    finally:
        database.close()


def require_history(desk: CommandContext, what: str) -> Attempts:
    """The history, for what cannot be had without.

    Args:
        what: that is; the beginning of the sentence.

    Raises:
        Misconfigured: there is none.
    """
    if desk.history is None:
        raise Misconfigured(
            f"{what} needs the history, and {desk.no_history}",
            "`cdc-archiver init-db` makes it; `cdc-archiver check` names the GRANT",
        )
    return desk.history


def who_we_are() -> str:
    """The operator: login name and machine."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a uid without an account
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"
