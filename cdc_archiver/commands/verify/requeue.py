"""Requeues archived files with a problem, if their source still has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cdc_archiver.commands.context import CommandContext, operator_name, require_history
from cdc_archiver.commands.why.facts import probe_files
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.operator_history import REQUEUED
from cdc_archiver.errors import Misconfigured, RowLocked
from cdc_archiver.settings import SourceSettings
from cdc_archiver.transfer.source_files import FileState

_AT_SOURCE: Final = {
    FileState.MISSING: "its source no longer has it",
    FileState.UNREADABLE: "its source has it, but the account has no permission to read it",
    FileState.NOT_A_FILE: "on its source it is not a regular file",
    FileState.ROOT_GONE: "the source's root is missing or empty: its disk is not mounted",
}


class Requeue:
    """Makes rows pending again: ``path`` is the file on its source, ``copied`` is 0. The running service then archives it.

    Raises:
        Misconfigured: there is no history, which alone knows the paths on the sources; or no source is configured.
    """

    def __init__(self, context: CommandContext) -> None:
        self._context = context
        self._history = require_history(context, "--requeue")
        if not context.settings.sources:
            raise Misconfigured(
                "--requeue needs a configured source", "add --host and --target, or --config with [[sources]]"
            )

    def requeue(self, rows: Sequence[Row]) -> dict[int, str]:
        """Requeues files.

        Returns:
            By id, the reason why a file was not requeued; empty if it was.
        """
        notes: dict[int, str] = {}
        origins = self._origins(rows, notes)
        by_source: dict[str, tuple[SourceSettings, list[Row]]] = {}
        for row in rows:
            if row.record.id in origins:
                source = self._context.source_of(row.record.instance_id)
                if source is None:
                    notes[row.record.id] = f"its target {row.record.instance_id!r} is not configured"
                else:
                    by_source.setdefault(source.name, (source, []))[1].append(row)
        for source, theirs in by_source.values():
            seen = probe_files(source, [origins[row.record.id] for row in theirs])
            available = []
            for row in theirs:
                state, note = seen[origins[row.record.id]]
                if state is FileState.OK:
                    available.append(row)
                else:
                    notes[row.record.id] = _AT_SOURCE.get(state, note) if state else note
            notes.update(self._write(available, origins))
        return notes

    def _origins(self, rows: Sequence[Row], notes: dict[int, str]) -> dict[int, str]:
        """The files' paths on their sources, by id; for the others, a note."""
        data_dir = f"{self._context.settings.data_dir}/"
        with self._context.database.connect() as connection:
            last = self._history.last_archived(connection, [row.record.id for row in rows])
        origins = {}
        for row in rows:
            known = last.get(row.record.id)
            if not row.record.path.startswith(data_dir):
                notes[row.record.id] = f"its path is not below {data_dir}: set --data-dir as the rows name it"
            elif known is None or known.archived_path != row.record.path:
                notes[row.record.id] = "the history does not know its path on the source"
            else:
                origins[row.record.id] = known.source_path
        return origins

    def _write(self, rows: Sequence[Row], origins: dict[int, str]) -> dict[int, str]:
        if not rows:
            return {}
        context = self._context
        try:
            with context.database.transaction() as connection:
                written = context.files.requeue(connection, {row.record: origins[row.record.id] for row in rows})
                changed = [
                    replace(row.record, path=origins[row.record.id]) for row in rows if row.record.id in written.changed
                ]
                context.note(connection, changed, REQUEUED, f"by {operator_name()}: verify --requeue")
        except RowLocked as error:
            return {row.record.id: str(error) for row in rows}
        return {row.record.id: "" if row.record.id in written.changed else "its row changed meanwhile" for row in rows}
