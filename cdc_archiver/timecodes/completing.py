"""Completes a timecode: counts it, asks once more in the transaction, and has it told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import sqlalchemy as sa
import structlog

from cdc_archiver.database.connections import Database, error_code
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.history import HISTORY_ERRORS
from cdc_archiver.database.operator_history import OperatorHistory
from cdc_archiver.database.timecode_rows import TimecodeRows
from cdc_archiver.database.timecodes_table import BEFORE, StoredTimecode, utc_now
from cdc_archiver.model import Archived
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import SourceSettings
from cdc_archiver.timecodes.decision import Rules, TimecodeCount, completed
from cdc_archiver.timecodes.known_timecodes import TargetTimecodes, TimecodeStore
from cdc_archiver.timecodes.reopening import Reopening
from cdc_archiver.timecodes.status_types import MarksView, NoticeKind, TimecodeNotice
from cdc_archiver.timecodes.teller import Teller
from cdc_archiver.timecodes.timecode_index import TimecodeIndex, count_rows

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the work on timecodes is done with.

    Attributes:
        history_kept: whether the history has all that was archived.
        source_up: whether a source delivers files, by its name.
        clock: this machine's, aware.
        deliver: receives each notice.
        stopping: is set when it is time to end.
    """

    database: Database
    files: FilesTable
    rows: TimecodeRows
    store: TimecodeStore
    index: TimecodeIndex
    reopening: Reopening
    teller: Teller
    marks: MarksView
    deliver: Callable[[TimecodeNotice], None]
    metrics: Metrics
    rules: Rules
    history_kept: Callable[[], bool]
    source_up: Callable[[str], bool]
    clock: Callable[[], datetime]
    stopping: threading.Event


class Completion:
    """Completes and tells timecodes of one source, and tells what came late.

    Args:
        connection: for reading.
    """

    def __init__(self, parts: Parts, connection: sa.Connection, source: SourceSettings) -> None:
        self._parts = parts
        self._connection = connection
        self._source = source

    def complete(self, target: TargetTimecodes, entry: StoredTimecode, max_id: int, until: datetime) -> None:
        """Makes a timecode complete, unless something of it is undecided after all, or was archived meanwhile.

        Args:
            max_id: of the table of files, at the beginning of the look.
            until: the watermark of the source.

        Raises:
            DestinationUnavailable: it is to be told, and the archive cannot be used.
        """
        parts, timecode = self._parts, entry.timecode
        key = target.key, timecode
        number = parts.reopening.begin_completing(key)
        parts.index.add_places(parts.reopening.take_places())
        count = self.count(target, timecode)
        if count.undecided:
            return
        after = completed(entry, count, max_id, utc_now(self._connection))
        if is_new := after.generation != entry.generation:
            after = parts.teller.plan(self._source, after, self.streams(timecode), until, parts.clock())

        def still_decided(writing: sa.Connection) -> bool:
            # In this order: a file whose row is still undecided in this snapshot has changed the number, or will be late.
            undecided = parts.rows.has_undecided(writing, target.name, timecode)
            return not undecided and parts.reopening.number(key) == number

        if not parts.store.save(target, entry, after, still_decided):
            return
        alarmed = timecode in target.alarmed
        target.alarmed.discard(timecode)
        target.changed.discard(timecode)
        _log.info(
            "timecode_complete",
            source=self._source.name,
            timecode=timecode,
            generation=after.generation,
            files=after.files,
            told_by=after.told_by,
        )
        if not is_new:
            return
        if entry.completed_at is not None and not alarmed:
            self.tell_late(target, after, ())
            target.alarmed.discard(timecode)
        if after.told_by != BEFORE:
            self.notify(NoticeKind.COMPLETE, after)

    def tell(self, target: TargetTimecodes, entry: StoredTimecode, until: datetime) -> None:
        """Makes the markers of a complete timecode; of one that nobody was to be told of, it plans them first.

        Raises:
            DestinationUnavailable: the archive cannot be used.
        """
        parts = self._parts
        if entry.told_by or not entry.marker_path:
            counted = entry if entry.digest is not None else with_count(entry, self.count(target, entry.timecode))
            streams = self.streams(entry.timecode)
            planned = parts.teller.plan(self._source, replace(counted, told_by=""), streams, until, parts.clock())
            if planned.told_by == entry.told_by or not parts.store.save(target, entry, planned):
                return
            if entry.told_by == BEFORE:
                self.notify(NoticeKind.COMPLETE, planned)
            entry = planned
        while entry.told_by == "" and not parts.stopping.is_set():
            after = parts.teller.make(entry)
            if not parts.store.save(target, entry, after):
                return
            entry = after

    def tell_late(self, target: TargetTimecodes, entry: StoredTimecode, files: Sequence[Archived]) -> None:
        """Tells of late files.

        Args:
            files: empty where it is not known which one it is.
        """
        number = max(1, len(files))
        if not self._parts.store.save(target, entry, replace(entry, late=entry.late + number)):
            return
        target.alarmed.add(entry.timecode)
        self._parts.metrics.late_files.labels(self._source.name).inc(number)
        detail = "it was archived after its timecode was complete: what readers made of that timecode lacks it"
        for file in files:
            if self._parts.history_kept():
                self._record_late(entry, file)
        known: list[tuple[str, int | None]] = [(file.path, file.record.id) for file in files]
        for path, id_ in known or [("", None)]:
            _log.warning(
                "late_file", source=self._source.name, timecode=entry.timecode, id=id_, path=path, detail=detail
            )
            self.notify(NoticeKind.LATE_FILE, target.entries[entry.timecode], detail, path=path, file_id=id_)

    def _record_late(self, entry: StoredTimecode, file: Archived) -> None:
        """Notes in the history that a file came late, for ``why`` and ``timecodes N``."""
        try:
            OperatorHistory(self._parts.files.name).record_late(self._connection, file, entry.timecode)
        except sa.exc.DBAPIError as error:
            if error_code(error) not in HISTORY_ERRORS:
                raise
            _log.warning("late_file_not_recorded", id=file.record.id, detail=str(error.orig))

    def notify(
        self, kind: NoticeKind, entry: StoredTimecode, detail: str = "", *, path: str = "", file_id: int | None = None
    ) -> None:
        """Tells whoever wants to know."""
        about = (self._source.name, entry.instance_id, entry.timecode, entry.generation, entry.files, entry.size)
        try:
            self._parts.deliver(TimecodeNotice(kind, *about, path, file_id, detail))
        except Exception as error:  # who is told must not hold up what is told
            _log.error("notice_not_delivered", kind=kind.value, timecode=entry.timecode, exc_info=error)

    def streams(self, timecode: int) -> tuple[str, ...]:
        """The streams of the source."""
        return self._source.streams or self._parts.index.streams(self._source.target, timecode)

    def count(self, target: TargetTimecodes, timecode: int) -> TimecodeCount:
        """Counts the rows of a timecode."""
        blocks = self._parts.index.blocks(target.name, timecode)
        count, ids = count_rows(self._parts.rows.rows(self._connection, target.name, blocks), timecode)
        return (
            replace(count, size=self._parts.rows.size(self._connection, ids)) if self._parts.history_kept() else count
        )


def with_count(entry: StoredTimecode, count: TimecodeCount) -> StoredTimecode:
    """A timecode that was entered without a count, with one."""
    return replace(
        entry, files=count.files, size=count.size, ignored=count.ignored, refused=count.refused, digest=count.digest
    )
