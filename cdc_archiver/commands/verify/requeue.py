"""Archived files that are not right are archived anew, where their source still has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from cdc_archiver.commands.context import CommandContext, require_history, who_we_are
from cdc_archiver.commands.why.facts import source_files
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.operator_history import REQUEUED
from cdc_archiver.errors import Misconfigured, RowLocked
from cdc_archiver.settings import SourceSettings
from cdc_archiver.transfer.probe import FileState

_WORDS: Final = {
    FileState.MISSING: "its source does not have it any more",
    FileState.UNREADABLE: "its source has it, and the account may not read it",
    FileState.NOT_A_FILE: "what its source has there is no regular file",
    FileState.ROOT_GONE: "the source's root is missing or empty: its disk is not mounted",
}


class Requeue:
    """Makes rows pending again: ``path`` is the file on its source, ``copied`` is 0; the running service takes it from there.

    Raises:
        Misconfigured: there is no history, which alone knows where files came from; or no source is configured.
    """

    def __init__(self, desk: CommandContext) -> None:
        self._desk = desk
        self._history = require_history(desk, "--requeue")
        if not desk.settings.sources:
            raise Misconfigured(
                "--requeue wants to ask the sources", "--host and --target, or [[sources]] in the file of --config"
            )

    def ask_again(self, rows: Sequence[Row]) -> dict[int, str]:
        """Has files archived anew.

        Returns:
            For each row why not; empty where it was done.
        """
        notes: dict[int, str] = {}
        origins = self._origins(rows, notes)
        by_source: dict[str, tuple[SourceSettings, list[Row]]] = {}
        for row in rows:
            if row.record.id in origins:
                source = self._desk.source_of(row.record.instance_id)
                if source is None:
                    notes[row.record.id] = f"its target {row.record.instance_id!r} is none of the configured ones"
                else:
                    by_source.setdefault(source.name, (source, []))[1].append(row)
        for source, theirs in by_source.values():
            seen = source_files(source, [origins[row.record.id] for row in theirs])
            there = []
            for row in theirs:
                state, words = seen[origins[row.record.id]]
                if state is FileState.OK:
                    there.append(row)
                else:
                    notes[row.record.id] = _WORDS.get(state, words) if state else words
            notes.update(self._write(there, origins))
        return notes

    def _origins(self, rows: Sequence[Row], notes: dict[int, str]) -> dict[int, str]:
        data_dir = f"{self._desk.settings.data_dir}/"
        with self._desk.database.connect() as connection:
            last = self._history.last_archived(connection, [row.record.id for row in rows])
        origins = {}
        for row in rows:
            known = last.get(row.record.id)
            if not row.record.path.startswith(data_dir):
                notes[row.record.id] = f"its path is not below {data_dir}: is --data-dir the directory that rows name?"
            elif known is None or known.archived_path != row.record.path:
                notes[row.record.id] = "the history does not know where it came from"
            else:
                origins[row.record.id] = known.source_path
        return origins

    def _write(self, rows: Sequence[Row], origins: dict[int, str]) -> dict[int, str]:
        if not rows:
            return {}
        desk = self._desk
        try:
            with desk.database.transaction() as connection:
                written = desk.files.requeue(connection, {row.record: origins[row.record.id] for row in rows})
                moved = [
                    replace(row.record, path=origins[row.record.id]) for row in rows if row.record.id in written.changed
                ]
                desk.note(connection, moved, REQUEUED, f"by {who_we_are()}: verify --requeue")
        except RowLocked as error:
            return {row.record.id: str(error) for row in rows}
        return {row.record.id: "" if row.record.id in written.changed else "its row changed meanwhile" for row in rows}
