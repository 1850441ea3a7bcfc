"""Keeps the state of timecodes, in a thread of its own, after each sweep and alongside the copying: looks, decides, completes.

Runs while this service holds the lock of a source, and writes for that source only. No copy and no write-back waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import sqlalchemy as sa
import structlog

from cdc_archiver.database.connections import Database
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.timecode_rows import TimecodeRows
from cdc_archiver.database.timecodes_table import StoredTimecode, TimecodesTable, TimecodeState, utc_now
from cdc_archiver.errors import ArchiverError, Misconfigured
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.text import fold_instance_id
from cdc_archiver.threads import StoppableThread
from cdc_archiver.timecodes.completing import Parts
from cdc_archiver.timecodes.decision import (
    Look,
    Rules,
    earlier_clock,
    may_be_late,
)
from cdc_archiver.timecodes.known_timecodes import TargetTimecodes, TimecodeStore
from cdc_archiver.timecodes.reopening import Reopening
from cdc_archiver.timecodes.source_look import SourceLook
from cdc_archiver.timecodes.status_types import (
    MarksView,
    NoMarks,
    SourceWatermark,
    TimecodeNotice,
    TimecodeStatus,
    status_of,
)
from cdc_archiver.timecodes.superseded import SupersededFiles
from cdc_archiver.timecodes.teller import Teller
from cdc_archiver.timecodes.timecode_index import TimecodeIndex
from cdc_archiver.transfer.staging import Archive

_PAGE: Final = 20_000
"""Rows of the table that one statement reads for the index."""
_OVERLAP: Final = 2000
"""Ids that are read again: a lower one may be committed after a higher one."""
_LONGEST_WAIT: Final = 60.0
_REST: Final = 3.0
"""Times the duration of a look, until the next one."""

_log = structlog.get_logger(__name__)


class TimecodeKeeper(StoppableThread):
    """The thread.

    Args:
        history_kept: whether the history has all that was archived.
        source_up: whether a source delivers files, by its name.
        marks: holds and hand-overs.
        deliver: receives each notice, in this thread.
        on_look: called after each look, in this thread.
        clock: this machine's, aware.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        files: FilesTable,
        archive: Archive,
        metrics: Metrics,
        *,
        history_kept: Callable[[], bool] = lambda: True,
        source_up: Callable[[str], bool] = lambda source: True,
        marks: MarksView | None = None,
        deliver: Callable[[TimecodeNotice], None] = lambda notice: None,
        on_look: Callable[[], None] = lambda: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__("timecodes")
        self._database = database
        self._table = TimecodesTable(files.name)
        self._superseded = SupersededFiles(database, files)
        self._wanted = threading.Event()
        self._changing = threading.Lock()
        self._sources: tuple[SourceSettings, ...] = settings.sources
        self._targets: dict[str, TargetTimecodes] = {}
        self._indexed: frozenset[str] = frozenset()
        self._indexed_to = 0
        self._watermarks: dict[str, SourceWatermark] = {}
        self._failure = ""
        self._on_look = on_look
        self._is_off_logged = False
        self._has_swept = False
        self.reopening = Reopening(self._table, self._look_again)
        """Is to be told of each write-back."""
        self.off_because = "the side table of timecodes was not read yet"
        """Why nothing is known of timecodes now, with the fix; empty where they are kept."""
        self.not_completing_because = ""
        """Why no timecode becomes complete, although they are kept: the clocks differ; empty where they may."""
        self.clock_difference: float | None = None
        """Seconds that the database's clock is ahead of this machine's; None before the first look."""

        self._parts = Parts(
            database=database,
            files=files,
            rows=TimecodeRows(files),
            store=TimecodeStore(database, self._table),
            index=TimecodeIndex(),
            reopening=self.reopening,
            teller=Teller(archive, settings),
            marks=marks or NoMarks(),
            deliver=deliver,
            metrics=metrics,
            rules=Rules(timedelta(seconds=settings.timecode_grace), timedelta(seconds=settings.reopen_after)),
            history_kept=history_kept,
            source_up=source_up,
            clock=clock,
            stopping=self.stopping,
        )

    # From any thread; none of these waits for the database.

    def request(self) -> None:
        """A sweep has ended, and the marks were read: asks for a look now. Never waits."""
        self._has_swept = True
        self._wanted.set()

    def _look_again(self) -> None:
        if self._has_swept:
            self._wanted.set()

    def set_sources(self, sources: tuple[SourceSettings, ...]) -> None:
        """Replaces the sources that this service holds."""
        with self._changing:
            self._sources = sources
        self._look_again()

    def statuses(self) -> tuple[TimecodeStatus, ...]:
        """All timecodes of the sources that are held, as of the last look, by source, instance_id and number."""
        with self._changing:
            sources = self._sources
        return tuple(
            self._status(source, name, entry)
            for source in sources
            for name in source.target
            if (target := self._targets.get(fold_instance_id(name)))
            for entry in sorted(target.entries.copy().values(), key=lambda entry: entry.timecode)
        )

    def watermarks(self) -> tuple[SourceWatermark, ...]:
        """The watermark of each source that is held, as of the last look."""
        return tuple(self._watermarks.copy().values())

    def interrupt(self) -> None:
        self._wanted.set()

    def work(self) -> None:
        while not self.stopping.is_set():
            if not self._wanted.wait(_LONGEST_WAIT):
                continue  # without a sweep there is nothing to look at
            self._wanted.clear()
            if self.stopping.is_set():
                return
            began = time.monotonic()
            try:
                self.look()
            except Misconfigured as error:
                self._turn_off(str(error))
            except ArchiverError as error:  # the database is down, which others report; or the destination, likewise
                _log.debug("timecodes_not_looked_at", detail=str(error))
            except Exception as error:
                # No file is to wait for this part.
                if repr(error) != self._failure:
                    self._failure = repr(error)
                    _log.error("timecodes_failed", exc_info=error)
                self.off_because = f"internal error: {error!r}; fix: report this bug, with the log"
            self._on_look()
            self.stopping.wait(min(_LONGEST_WAIT, _REST * (time.monotonic() - began)))

    def look(self) -> None:
        """Looks at all sources once, and does what is decided.

        Raises:
            ArchiverError: the database does not answer.
        """
        with self._changing:
            sources = self._sources
        with self._database.connect() as connection:
            if not self._is_on(connection):
                return
            self._forget_others(sources)
            if not self._read_index(connection, sources):
                return
            self._parts.index.add_places(self.reopening.take_places())
            for name in (name for source in sources for name in source.target):
                if fold_instance_id(name) not in self._targets:
                    self._targets[fold_instance_id(name)] = self._parts.store.load(connection, name)
            self._publish_keys()
            for source in sources:
                self._superseded.ignore(source.target)
                self._look_at(connection, source)

    def _look_at(self, connection: sa.Connection, source: SourceSettings) -> None:
        if self.stopping.is_set():
            return
        database_now = utc_now(connection)
        look = earlier_clock(database_now, self._parts.clock())
        self._note_clocks(look, database_now)
        targets = [self._targets[fold_instance_id(name)] for name in source.target]
        noted = self.reopening.take_noted({target.key for target in targets})
        work = SourceLook(self._parts, connection, source, targets, look)
        began = time.monotonic()
        try:
            work.run(noted)
        finally:
            self._parts.metrics.timecode_look_duration.observe(time.monotonic() - began)
            self.reopening.put_back(noted)
            self._publish_keys()
        self._watermarks[source.name] = work.watermark
        if not work.use_spare_time() or work.has_more:
            self._look_again()

    def _note_clocks(self, look: Look, database_now: datetime) -> None:
        self.clock_difference = (database_now - self._parts.clock()).total_seconds()
        apart = abs(self.clock_difference) / 60
        why = (
            ""
            if look.clocks_agree
            else f"the clocks of the database and of this machine are {apart:.0f} min apart, so no timecode becomes complete; "
            "fix: timedatectl set-ntp true  # on both machines"
        )
        if why and not self.not_completing_because:
            _log.warning("clocks_differ", detail=why)
        self.not_completing_because = why

    # The table, and what is remembered of it.

    def _is_on(self, connection: sa.Connection) -> bool:
        if self.off_because:
            if why := self._table.why_not_usable(connection):
                self._turn_off(why)
            else:
                self.off_because = ""
                self.reopening.is_on = True
                if self._is_off_logged:
                    _log.info("timecodes_on")
                self._is_off_logged = False
        return not self.off_because

    def _turn_off(self, why: str) -> None:
        if why != self.off_because or not self._is_off_logged:
            _log.warning("timecodes_off", detail=why)
        self.off_because = why
        self.reopening.is_on = False
        self._is_off_logged = True

    def _forget_others(self, sources: Sequence[SourceSettings]) -> None:
        held = {fold_instance_id(target) for source in sources for target in source.target}
        self._targets = {name: target for name, target in self._targets.items() if name in held}
        names = {source.name for source in sources}
        self._watermarks = {name: value for name, value in self._watermarks.items() if name in names}

    def _read_index(self, connection: sa.Connection, sources: Sequence[SourceSettings]) -> bool:
        """Reads on where the last pass ended, or all where there are new targets; returns whether the end was reached."""
        targets = [target for source in sources for target in source.target]
        if not self._indexed >= frozenset(targets):
            self._indexed, self._indexed_to = frozenset(targets), 0
        after = max(0, self._indexed_to - _OVERLAP)
        while not self.stopping.is_set():
            began = time.monotonic()
            after, full, groups = self._parts.rows.groups(connection, targets, after, _PAGE)
            self._parts.index.add(groups)
            self._indexed_to = max(self._indexed_to, after)
            if not full:
                return True
            self.stopping.wait(time.monotonic() - began)  # half of the time is the others'
        return False

    def _publish_keys(self) -> None:
        entries = [(name, entry) for name, target in self._targets.items() for entry in target.entries.values()]
        self.reopening.publish(
            self._targets.keys(),
            {(name, entry.timecode) for name, entry in entries if entry.state is TimecodeState.COMPLETE},
            {(name, entry.timecode) for name, entry in entries if may_be_late(entry)},
        )

    def _status(self, source: SourceSettings, name: str, entry: StoredTimecode) -> TimecodeStatus:
        held = self._parts.marks.held(name, entry.timecode)
        return status_of(
            source.name,
            entry,
            held_reason=f"{held.by_whom}: {held.reason}" if held else "",
            handed_over=self._parts.marks.handed_over(name, entry.timecode) is not None,
        )
