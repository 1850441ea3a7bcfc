"""The sweep: reads the ids of pending rows from the table, and offers them to the same sink as the stream's wake-ups.

Sweep and stream are each correct on their own; the stream is fast. A sweep reads ids by state, in pages, and only as many as the queue
has space for: a million pending rows stay in the table, and are read as the queue empties.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

import sqlalchemy as sa
import structlog

from cdc_archiver.database import server_features
from cdc_archiver.database.connections import Database
from cdc_archiver.database.files_table import Census, FilesTable, Pending
from cdc_archiver.database.server_features import Position
from cdc_archiver.errors import DatabaseUnavailable, Misconfigured, StreamUnavailable
from cdc_archiver.events.interval_set import IntervalSet
from cdc_archiver.model import Origin
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.threads import StoppableThread

_PAGE: Final = 1000
_RESWEEP_DELAY: Final = 1.5
"""Seconds from an anchor to its second sweep: a row committed just before the anchor may have been invisible at first."""
_TICK: Final = 1.0
_SHORTEST_GAP: Final = 0.1
_LONGEST_GAP: Final = 5.0
"""Limits, in seconds, of the time between two sweeps, however often they are requested: twice the duration of the last sweep."""
_LONGEST_PAUSE: Final = 30.0
_CENSUS_EVERY: Final = 10.0
"""Seconds between two counts while a long backlog is read in parts: counting a million rows takes most of a second."""

_log = structlog.get_logger(__name__)


class WakeupSink(Protocol):
    """Receives the ids; implemented by the dispatcher. It knows the space in its queues, and what it had to drop."""

    def offer(self, ids: Iterable[int], origin: Origin, *, fresh: bool) -> set[int]: ...
    def notice(self, rows: Sequence[Pending]) -> None: ...
    def room(self, source: str) -> int: ...
    def request_refill(self, source: str) -> None: ...
    def was_dropped(self, id_: int) -> bool: ...
    def is_awaited(self, id_: int) -> bool: ...
    def forget_dropped(self) -> None: ...


class StreamView(Protocol):
    """The state of the stream that a sweep reads."""

    @property
    def position(self) -> Position | None: ...
    @property
    def anchor_max_id(self) -> int | None: ...
    @property
    def delivered(self) -> IntervalSet: ...
    def suspect(self, ids: Iterable[int], position: Position) -> None: ...
    def take_missed(self) -> list[int]: ...


class NoStream:
    """Stands for the stream of a reconciliation, which has none: nothing was or will be delivered."""

    position: Position | None = None
    anchor_max_id: int | None = None
    delivered = IntervalSet()

    def suspect(self, ids: Iterable[int], position: Position) -> None:
        pass

    def take_missed(self) -> list[int]:
        return []


class Sweeper(StoppableThread):
    """Sweeps at the start, on request, and at the interval of the mode.

    Args:
        sink: receives the ids.
        stream: whose deliveries are compared with the table.
        housekeeping: called after a count, with its connection.
        on_database: is told whether the database answers, and the error.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        files: FilesTable,
        sink: WakeupSink,
        stream: StreamView,
        metrics: Metrics,
        housekeeping: Callable[[sa.Connection], None] = lambda connection: None,
        on_database: Callable[[bool, str], None] = lambda up, why: None,
    ) -> None:
        super().__init__("sweeper")
        self._settings = settings
        self._database = database
        self._files = files
        self._sink = sink
        self._stream = stream
        self._metrics = metrics
        self._housekeeping = housekeeping
        self._on_database = on_database
        self._wanted = threading.Event()
        self._second_look_at = float("inf")
        self._looking = threading.Lock()
        self._fresh_above: int | None = None
        self._sources = settings.sources
        self._cursors: dict[str, int] = {}
        # Rows registered before a source became ours are backlog, whatever the stream delivered of them.
        self._backlog_up_to = dict.fromkeys((source.name for source in settings.sources), 0)
        self._delivered = IntervalSet()
        self._census_at = float("-inf")
        self.census: dict[str, Census] = {}
        self.last_sweep: datetime | None = None
        self.exhausted = threading.Event()
        """Set when a sweep has offered every pending row."""

    def request(self) -> None:
        """Requests a sweep now. Never waits."""
        self._wanted.set()

    def anchored(self) -> None:
        """The stream has a new anchor: sweeps now, and again a little later, for the rows committed before the anchor."""
        with self._looking:
            self._second_look_at = min(self._second_look_at, time.monotonic() + _RESWEEP_DELAY)
        self.request()

    def set_sources(self, sources: tuple[SourceSettings, ...]) -> None:
        """Replaces the sources, and requests a sweep."""
        gone = {source.name for source in self._sources} - {source.name for source in sources}
        with self._looking:
            self._sources = sources
            for name in gone:
                self._forget(name)
        self.request()

    def interrupt(self) -> None:
        self._wanted.set()

    def work(self) -> None:
        pause = 0.2
        next_sweep = time.monotonic()
        while not self.stopping.is_set():
            now = time.monotonic()
            due = min(next_sweep, self._second_look_at)
            if now < due and not self._wanted.wait(min(_TICK, due - now)):
                self._count_missed()
                continue
            self._wanted.clear()
            if self.stopping.is_set():
                return
            with self._looking:
                if time.monotonic() >= self._second_look_at:
                    self._second_look_at = float("inf")
            began = time.monotonic()
            try:
                self.sweep()
            except (DatabaseUnavailable, Misconfigured) as error:
                self._on_database(False, str(error))
                next_sweep = time.monotonic() + pause
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            self._on_database(True, "")
            self.stopping.wait(min(_LONGEST_GAP, max(_SHORTEST_GAP, 2 * (time.monotonic() - began))))
            pause = 0.2
            streaming = self._stream.position is not None
            next_sweep = time.monotonic() + (
                self._settings.sweep_interval
                if streaming
                else min(self._settings.poll_interval, self._settings.sweep_interval)
            )

    def sweep(self) -> None:
        """Offers pending rows while the queue has space, and counts the rows by state.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        began = time.monotonic()
        complete = True
        found: Counter[str] = Counter()
        self._delivered = self._stream.delivered
        with self._database.connect() as connection:
            top = self._files.max_id(connection)
            fresh_above = top if self._fresh_above is None else self._fresh_above
            for source in self._sources:
                self._backlog_up_to.setdefault(source.name, top)
                # Rows added since the last sweep first, then older ones, from the id at which the queue was full.
                newest = self._offer(connection, source, fresh_above, top, found, fresh=True)
                start = self._cursors.get(source.name, 0)
                stopped_at = self._offer(connection, source, start, fresh_above, found, fresh=False)
                self._cursors[source.name] = stopped_at or 0
                # A pass that began in the middle has not seen rows below its start that became pending meanwhile.
                complete &= newest is None and stopped_at is None and start == 0
                if stopped_at is None and start > 0:
                    self._wanted.set()
            self._fresh_above = top
        for why, count in found.items():
            self._metrics.sweep_found.labels(why).inc(count)
        if found:
            _log.info("sweep_found", **dict(found))
        self._metrics.sweep_duration.observe(time.monotonic() - began)
        self._metrics.last_sweep.set_to_current_time()
        self.last_sweep = datetime.now(UTC)
        if complete:
            self._sink.forget_dropped()
            self.exhausted.set()
        self._count_missed()
        if complete or began - self._census_at > _CENSUS_EVERY:
            self._census_at = began
            self._count_and_prune()

    def _count_and_prune(self) -> None:
        """Counts the rows and runs the housekeeping. An error is raised, and does not undo the sweep."""
        with self._database.connect() as connection:
            self._take_census(connection)
            self._housekeeping(connection)

    def _offer(
        self,
        connection: sa.Connection,
        source: SourceSettings,
        after: int,
        until: int,
        found: Counter[str],
        *,
        fresh: bool,
    ) -> int | None:
        """Offers one source's pending rows in a range of ids.

        Args:
            after: ids above this one.
            until: ids up to and including this one.
            found: counts the offered rows by the reason why a sweep found them.
            fresh: whether the rows were added since the last sweep.

        Returns:
            The last offered id where the queue had no space for more; None if all rows were offered.
        """
        while not self.stopping.is_set():
            room = self._sink.room(source.name)
            if room == 0:
                self._sink.request_refill(source.name)
                return after
            page = self._files.pending(connection, source.target, after, until, min(room, _PAGE))
            self._sink.notice(page)
            why = {pending.id: self._classify(source.name, pending) for pending in page}
            # Taken before the rows are handed on: our own writes to them are behind this position.
            position = self._position(connection) if "" in why.values() else None
            offered = self._sink.offer(why, Origin.SWEEP, fresh=fresh)
            found.update(why[id_] for id_ in offered if why[id_])
            if position is not None:
                self._stream.suspect(sorted(id_ for id_ in offered if not why[id_]), position)
            if len(page) < min(room, _PAGE):
                return None
            after = page[-1].id
        return after

    def _classify(self, source: str, pending: Pending) -> str:
        """Why a sweep finds this row; empty where the progress of the stream will decide."""
        if self._sink.was_dropped(pending.id):
            return "overflow"
        if self._sink.is_awaited(pending.id):
            return "late_commit"
        if pending.attempts:
            return "retry"
        anchor = self._stream.anchor_max_id
        if anchor is None or pending.id <= max(anchor, self._backlog_up_to.get(source, 0)):
            return "backlog"
        return "requeued" if pending.id in self._delivered else ""

    def _position(self, connection: sa.Connection) -> Position | None:
        """The server's position; None where it cannot be read, or is behind the stream: then the log was reset, which the stream will
        notice."""
        reached = self._stream.position
        try:
            position = server_features.position(connection, server_features.identify(connection))
        except StreamUnavailable:
            return None
        return None if reached is not None and position < reached else position

    def _count_missed(self) -> None:
        """Counts the rows that the stream has passed without delivering them. Those delivered since were only found by the sweep first."""
        if missed := self._stream.take_missed():
            self._metrics.sweep_found.labels("stream_missed").inc(len(missed))
            _log.error("stream_missed", files=len(missed), ids=missed[:20])

    def _take_census(self, connection: sa.Connection) -> None:
        now = datetime.now(UTC)
        for source in self._sources:
            census = self._files.census(connection, source.target)
            with self._looking:
                if source not in self._sources:
                    continue  # removed during the count
                self.census[source.name] = census
                self._metrics.activity.table_counted(source.name)
                self._metrics.pending.labels(source.name).set(census.pending)
                self._metrics.quarantined.labels(source.name).set(census.quarantined)
                self._metrics.refused.labels(source.name).set(census.refused)
                self._metrics.ignored.labels(source.name).set(census.ignored)
                oldest = census.oldest_pending
                age = max(0.0, (now - oldest).total_seconds()) if oldest else 0.0
                self._metrics.oldest_pending.labels(source.name).set(age)

    def _forget(self, source: str) -> None:
        self._cursors.pop(source, None)
        self._backlog_up_to.pop(source, None)
        self.census.pop(source, None)
