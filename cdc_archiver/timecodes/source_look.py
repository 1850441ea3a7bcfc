"""One full look at the rows of a source, and what follows from it for each of its timecodes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import sqlalchemy as sa
import structlog

from cdc_archiver.database import schema
from cdc_archiver.database.registrars import RegistrarReports, read_reports
from cdc_archiver.database.timecode_rows import UndecidedRows
from cdc_archiver.database.timecodes_table import BEFORE, StoredTimecode, TimecodeState, utc_now
from cdc_archiver.errors import DestinationUnavailable, RowLocked
from cdc_archiver.model import Archived
from cdc_archiver.settings import SourceSettings
from cdc_archiver.timecodes.completing import Completion, Parts, with_count
from cdc_archiver.timecodes.decision import (
    Look,
    TimecodeFacts,
    decide,
    end_of,
    first_state,
    may_be_late,
    missing_timecodes,
    start_of,
)
from cdc_archiver.timecodes.known_timecodes import TargetTimecodes
from cdc_archiver.timecodes.late_files import is_late
from cdc_archiver.timecodes.reopening import NotedFile
from cdc_archiver.timecodes.status_types import NoticeKind, SourceWatermark
from cdc_archiver.timecodes.teller import NO_STREAM
from cdc_archiver.timecodes.timecode_index import digest_of
from cdc_archiver.timecodes.watermark import OldestRow, watermark
from cdc_archiver.transfer.layout import timecode_named

_SPARE: Final = 0.5
"""Seconds of a look for counts that nothing waits for."""

_TELLINGS: Final = 10
"""Timecodes that are told in one look: those of years must not hold up the others."""

_log = structlog.get_logger(__name__)


class SourceLook:
    """A look at one source.

    Args:
        connection: for reading.
        targets: what is known of its instance_ids.
        look: begins now.
    """

    def __init__(
        self,
        parts: Parts,
        connection: sa.Connection,
        source: SourceSettings,
        targets: Sequence[TargetTimecodes],
        look: Look,
    ) -> None:
        self._parts = parts
        self._connection = connection
        self._source = source
        self._targets = targets
        self._look = look
        self._completion = Completion(parts, connection, source)
        self._max_id = 0
        self._reports = RegistrarReports()
        self._tellings = 0
        self._may_tell = True
        self._elsewhere: dict[tuple[str, tuple[str, ...]], dict[int, int]] = {}
        self.watermark = SourceWatermark(source.name)
        self.has_more = False
        """Whether more is to be told than in one look."""

    def run(self, noted: list[NotedFile]) -> None:
        """Looks, and does what is decided.

        Args:
            noted: files of this source that were archived in timecodes that had been complete; emptied of those that were judged.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        self._parts.teller.begin_look()
        self._note_archived(noted)
        self._max_id = self._parts.rows.max_id(self._connection)
        self._reports = read_reports(self._connection, self._source.target)
        silent = self._reports.silent(utc_now(self._connection))
        self.watermark = replace(self._watermark(self._note_undecided()), silent_registrars=silent)
        for target in self._targets:
            try:
                self._enter(target)
            except DestinationUnavailable as error:  # others report it
                _log.debug("timecodes_not_entered", detail=str(error))
                continue
            for timecode in sorted(target.entries):
                if self._parts.stopping.is_set():
                    return
                if self._is_settled(target, timecode):
                    continue
                try:
                    self._decide(target, timecode)
                except RowLocked as error:  # the others go on
                    _log.debug("timecode_locked", timecode=timecode, detail=str(error))
                except DestinationUnavailable as error:  # what needs no marker goes on
                    _log.debug("timecode_not_told", timecode=timecode, detail=str(error))
                    self._tellings, self._may_tell = _TELLINGS, False

    def use_spare_time(self) -> bool:
        """Counts what was entered uncounted, and compares files with rows after a start: a few timecodes in each look.

        Returns:
            Whether nothing is left to do.
        """
        began = time.monotonic()
        for target in self._targets:
            for listed in (target.compared, target.uncounted):
                while listed and not self._parts.stopping.is_set():
                    if time.monotonic() - began > _SPARE:
                        return False
                    if not self._agrees(target, listed.pop()):
                        return False
        return True

    def _agrees(self, target: TargetTimecodes, timecode: int) -> bool:
        """Whether a complete timecode is what its rows say; counts one that was entered uncounted."""
        entry = target.entries.get(timecode)
        if entry is None or entry.state is not TimecodeState.COMPLETE or timecode in target.changed:
            return True
        count = self._completion.count(target, timecode)
        if entry.digest is None:
            if not count.undecided:
                self._parts.store.save(target, entry, with_count(entry, count))
        elif entry.digest != count.digest:
            target.changed.add(timecode)
            return False
        return True

    def _note_archived(self, noted: list[NotedFile]) -> None:
        """Tells of the late ones among files that were archived in timecodes that had been complete."""
        targets = {target.key: target for target in self._targets}
        again = Counter(file.outcome.record.id for file in noted)
        late: dict[tuple[str, int], list[NotedFile]] = {}
        for file in tuple(noted):
            again[file.outcome.record.id] -= 1
            target = targets[file.key[0]]
            entry = target.entries.get(file.key[1])
            if entry is not None and may_be_late(entry):
                target.changed.add(entry.timecode)
                if self._is_late(target, entry, file.outcome, again[file.outcome.record.id]):
                    late.setdefault(file.key, []).append(file)
                    continue
            noted.remove(file)
        for (name, timecode), files in late.items():
            target = targets[name]
            try:
                self._completion.tell_late(target, target.entries[timecode], [file.outcome for file in files])
            except RowLocked as error:  # at the next look
                _log.debug("timecode_locked", timecode=timecode, detail=str(error))
                continue
            for file in files:
                noted.remove(file)

    def _is_late(self, target: TargetTimecodes, entry: StoredTimecode, archived: Archived, again: int) -> bool:
        blocks = self._parts.index.blocks(target.name, entry.timecode)
        kept = self._parts.history_kept()
        return is_late(self._connection, self._parts.rows, entry, archived, again, blocks, history_kept=kept)

    def _note_undecided(self) -> UndecidedRows | None:
        """Notes the undecided rows of each timecode; returns those with the oldest one."""
        oldest: UndecidedRows | None = None
        down = not self._parts.source_up(self._source.name)
        for target in self._targets:
            target.undecided = {}
            for rows in self._parts.rows.undecided(self._connection, target.name, self._source.source_root):
                timecode = timecode_named(rows.directory)
                if timecode is None or rows.oldest is None:
                    continue
                reason = rows.reason
                if reason in ("pending", "retried"):
                    reason = "source_down" if down else reason
                    reason = "handed_over" if self._parts.marks.handed_over(target.name, timecode) else reason
                target.undecided.setdefault(timecode, Counter())[reason] += rows.rows
                if oldest is None or (oldest.oldest is not None and rows.oldest < oldest.oldest):
                    oldest = rows
        return oldest

    def _watermark(self, oldest: UndecidedRows | None) -> SourceWatermark:
        bounds = [until for bounded, until in map(self._reports.bound, self._source.target) if bounded]
        lowest = None if None in bounds else min((until for until in bounds if until is not None), default=None)
        held_from = [
            start_of(timecode)
            for target in self._targets
            for timecode, entry in target.entries.items()
            if entry.state is not TimecodeState.COMPLETE and self._parts.marks.held(target.name, timecode)
        ]
        row = None
        if oldest is not None and oldest.oldest is not None:
            path = self._parts.rows.path_of(self._connection, oldest.oldest_id)
            row = OldestRow(oldest.oldest, oldest.oldest_id, path)
        return watermark(self._source.name, self._look.began, row, (bool(bounds), lowest), held_from)

    def _enter(self, target: TargetTimecodes) -> None:
        """Enters the timecodes that have no entry yet."""
        present = self._parts.index.timecodes(target.name) | target.undecided.keys()
        new = missing_timecodes(target.entries.keys(), present, self._look.began)
        if not new or not (target.entries or self._look.clocks_agree):
            return
        if target.entries:
            self._parts.store.enter(target, [StoredTimecode(target.name, timecode) for timecode in new])
            return
        entries = [
            first_state(target.name, timecode, self._facts(target, timecode), self._look, self._parts.rules)
            for timecode in new
        ]
        empty = digest_of(())
        entries = [
            replace(
                entry,
                digest=None if self._parts.index.blocks(target.name, entry.timecode) else empty,
                told_max_id=self._max_id,
            )
            for entry in entries
        ]
        self._parts.store.enter(
            target, self._parts.teller.told_on_disk(self._source, entries, self._completion.streams)
        )
        before = sum(entry.told_by == BEFORE for entry in entries)
        _log.info(
            "timecodes_entered", source=self._source.name, instance_id=target.name, timecodes=len(new), before=before
        )

    def _facts(self, target: TargetTimecodes, timecode: int) -> TimecodeFacts:
        return TimecodeFacts(
            undecided=dict(target.undecided.get(timecode, {})),
            held=self._parts.marks.held(target.name, timecode) is not None,
            changed=timecode in target.changed,
        )

    def _is_settled(self, target: TargetTimecodes, timecode: int) -> bool:
        """Whether nothing can come of a decision: almost all timecodes of years are complete and unchanged."""
        entry = target.entries[timecode]
        return (
            entry.state is TimecodeState.COMPLETE
            and timecode not in target.undecided
            and timecode not in target.changed
            and not self._parts.teller.has_to_tell(self._source, entry)
        )

    def _decide(self, target: TargetTimecodes, timecode: int) -> None:
        entry, facts = target.entries[timecode], self._facts(target, timecode)
        state = decide(entry, facts, self._look, self._parts.rules)
        if state is TimecodeState.BLOCKED or (state is TimecodeState.COMPLETE and entry.state is not state):
            others = self._reports.reasons(target.name, timecode, end_of(timecode), utc_now(self._connection))
            if state is TimecodeState.COMPLETE and (rows := self._rows_elsewhere(target, timecode)):
                others["other_rows_of_stream"] = rows
            facts = replace(facts, others=others)
            state = decide(entry, facts, self._look, self._parts.rules)
        if state is not TimecodeState.COMPLETE:
            self._note_state(target, entry, facts, state)
            return
        if entry.state is not state:
            self._completion.complete(target, entry, self._max_id, self._until)
        known = target.entries.get(timecode)
        if known is None or not self._parts.teller.has_to_tell(self._source, known):
            return
        if known.told_by == NO_STREAM and not self._completion.streams(timecode):
            return
        if self._tellings >= _TELLINGS:
            self.has_more = self._may_tell
            return
        self._tellings += 1
        self._completion.tell(target, known, self._until)

    def _note_state(
        self, target: TargetTimecodes, entry: StoredTimecode, facts: TimecodeFacts, state: TimecodeState
    ) -> None:
        reasons = dict(facts.undecided) | (dict(facts.others) if state is TimecodeState.BLOCKED else {})
        after = replace(entry, state=state, reasons=reasons, undecided=sum(facts.undecided.values()))
        if state is TimecodeState.OPEN is entry.state:
            target.changed.discard(entry.timecode)
            target.entries[entry.timecode] = after  # its numbers change all the time, and are not worth a write
            return
        if after == entry and not facts.changed:
            return
        after = replace(after, changed_at=utc_now(self._connection))
        if not self._parts.store.save(target, entry, after):
            return
        target.changed.discard(entry.timecode)
        if state is not entry.state and state is not TimecodeState.OPEN:
            kind = NoticeKind.BLOCKED if state is TimecodeState.BLOCKED else NoticeKind.REOPENED
            text = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
            event = f"timecode_{kind.value}"
            _log.warning(event, source=self._source.name, timecode=entry.timecode, detail=text or "a file was archived")
            self._completion.notify(kind, after, text)

    def _rows_elsewhere(self, target: TargetTimecodes, timecode: int) -> int:
        """Number of undecided rows of the source's streams and this timecode in other tables of files, or of other instance_ids."""
        streams = self._completion.streams(timecode) if self._source.finalize_as else ()
        if not streams:
            return 0
        key = target.name, streams
        if key not in self._elsewhere:
            files, database = self._parts.files, self._parts.database
            tables = [files.name, *schema.older_versions(self._connection, database.name, files.name)]
            rows = self._parts.rows.undecided_of_streams(self._connection, tables, streams, target.name)
            self._elsewhere[key] = rows
        return self._elsewhere[key].get(timecode, 0)

    @property
    def _until(self) -> datetime:
        found = self.watermark.finalized_until
        return found if found is not None else start_of(0)
