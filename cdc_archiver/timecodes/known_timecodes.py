"""What is known of timecodes: in memory, and in the side table, where another process or a write-back may have written since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import sqlalchemy as sa

from cdc_archiver.database.connections import Database
from cdc_archiver.database.timecodes_table import StoredTimecode, TimecodesTable, TimecodeState
from cdc_archiver.text import fold_instance_id

_COMPARED: Final = 30
"""Timecodes that have files and are compared with their rows at each start."""

Check = Callable[[sa.Connection], bool]


@dataclass
class TargetTimecodes:
    """What is known of the timecodes of an instance_id.

    Attributes:
        entries: as in the side table.
        uncounted: complete ones that were entered without a count.
        compared: those that are still to be compared with their files.
        changed: those in which something was archived since they were looked at.
        alarmed: those of which somebody has heard, since they were complete, that a file came late.
        undecided: by timecode and reason, as of the last look.
    """

    name: str
    entries: dict[int, StoredTimecode]
    uncounted: list[int] = field(default_factory=list)
    compared: list[int] = field(default_factory=list)
    changed: set[int] = field(default_factory=set)
    alarmed: set[int] = field(default_factory=set)
    undecided: dict[int, Counter[str]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The instance_id as the database compares it."""
        return fold_instance_id(self.name)


class TimecodeStore:
    """Reads and writes what is known. For one thread."""

    def __init__(self, database: Database, table: TimecodesTable) -> None:
        self._database = database
        self._table = table

    def load(self, connection: sa.Connection, name: str) -> TargetTimecodes:
        """What the side table has of an instance_id."""
        entries = {entry.timecode: entry for entry in self._table.load(connection, [name])}
        complete = [each for each in sorted(entries) if entries[each].state is TimecodeState.COMPLETE]
        return TargetTimecodes(
            name,
            entries,
            uncounted=[each for each in complete if entries[each].digest is None],
            compared=[each for each in complete if entries[each].files and entries[each].digest][-_COMPARED:],
            alarmed={each for each, entry in entries.items() if entry.late and each not in complete},
        )

    def enter(self, target: TargetTimecodes, entries: Sequence[StoredTimecode]) -> None:
        """Adds timecodes, all or none; what another process has added meanwhile stays."""
        with self._database.transaction() as writing:
            self._table.enter(writing, entries)
            loaded = self._table.load(writing, [target.name])
        added = {entry.timecode: entry for entry in loaded if entry.timecode not in target.entries}
        target.entries |= added
        target.uncounted += [
            each for each, entry in added.items() if entry.state is TimecodeState.COMPLETE and entry.digest is None
        ]

    def save(
        self, target: TargetTimecodes, entry: StoredTimecode, after: StoredTimecode, check: Check | None = None
    ) -> bool:
        """Writes a timecode, unless somebody else has changed it since.

        Args:
            entry: as known so far.
            after: as it is to be.
            check: asked in the transaction, with the row locked; where it says no, nothing is written.

        Returns:
            Whether it was written; else what is known is what the side table has.
        """
        with self._database.transaction() as writing:
            current = self._table.lock(writing, target.name, entry.timecode)
            # The write-back of a file may have re-opened it.
            reopened = entry.state is TimecodeState.COMPLETE
            states = (entry.state, TimecodeState.REOPENED) if reopened else (entry.state,)
            if current is None or current.generation != entry.generation or current.state not in states:
                if current is None:
                    del target.entries[entry.timecode]
                else:
                    target.entries[entry.timecode] = current
                return False
            if check is not None and not check(writing):
                return False
            if reopened and after.state is TimecodeState.COMPLETE:
                after = replace(after, state=current.state, changed_at=current.changed_at)
            self._table.save(writing, after)
        target.entries[entry.timecode] = after
        return True
