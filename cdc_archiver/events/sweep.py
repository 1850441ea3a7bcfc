"""The reconciliation: what the table says is pending, handed to the same door as the stream's wake-ups.

Either alone is correct; the stream makes it fast. A sweep reads ids by state, in pages, and only as many as there is room
for: a million pending rows stay in the table, and are fetched as the queue empties.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final, Protocol

import sqlalchemy as sa
import structlog

from cdc_archiver.database import server
from cdc_archiver.database.connections import Database
from cdc_archiver.database.files_table import Census, FilesTable, Pending
from cdc_archiver.database.server import Position
from cdc_archiver.errors import DatabaseUnavailable, Misconfigured, StreamUnavailable
from cdc_archiver.events.interval_set import IntervalSet
from cdc_archiver.model import Origin
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.threads import Part

_PAGE: Final = 1000
_SECOND_LOOK: Final = 1.5
"""Seconds after an anchor when it is swept once more: a row committed just before it may have been invisible."""
_TICK: Final = 1.0
_BREATH: Final = 0.1
_LONGEST_BREATH: Final = 5.0
"""Seconds between two sweeps, however often they are asked for; and twice as long as one took, where it reads a large table."""
_LONGEST_PAUSE: Final = 30.0
_CENSUS_EVERY: Final = 10.0
"""Seconds between counts while a long backlog is fetched piece by piece: counting a million rows takes most of one."""

_log = structlog.get_logger(__name__)


class WakeupSink(Protocol):
    """Where ids are handed in: the dispatcher's. It says how much there is room for, and what it had to drop."""

    def offer(self, ids: Iterable[int], origin: Origin, *, fresh: bool) -> set[int]: ...
    def room(self, source: str) -> int: ...
    def request_refill(self, source: str) -> None: ...
    def was_dropped(self, id_: int) -> bool: ...
    def forget_dropped(self) -> None: ...


class StreamView(Protocol):
    """What a sweep wants to know of the stream."""

    @property
    def position(self) -> Position | None: ...
    @property
    def anchor_max_id(self) -> int | None: ...
    @property
    def delivered(self) -> IntervalSet: ...
    def suspect(self, ids: Iterable[int], position: Position) -> None: ...
    def take_missed(self) -> list[int]: ...


class NoStream:
    """For `run --reconcile`: nothing was or will be delivered."""

    position: Position | None = None
    anchor_max_id: int | None = None
    delivered = IntervalSet()

    def suspect(self, ids: Iterable[int], position: Position) -> None:
        pass

    def take_missed(self) -> list[int]:
        return []


class Sweeper(Part):
    """Sweeps: at the start, when asked, and at the interval of the mode.

    Args:
        door: where the ids go.
        stream: asked what it has delivered.
        housekeeping: called after a count, with its connection.
        on_database: told whether the database answers.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        files: FilesTable,
        door: WakeupSink,
        stream: StreamView,
        metrics: Metrics,
        housekeeping: Callable[[sa.Connection], None] = lambda connection: None,
        on_database: Callable[[bool, str], None] = lambda up, why: None,
    ) -> None:
        super().__init__("sweeper")
        self._settings = settings
        self._database = database
        self._files = files
        self._door = door
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
        # What was registered before a source became ours is backlog, whatever the stream told of it.
        self._begins = dict.fromkeys((source.name for source in settings.sources), 0)
        self._delivered = IntervalSet()
        self._census_at = float("-inf")
        self.census: dict[str, Census] = {}
        self.last_sweep: datetime | None = None
        self.exhausted = threading.Event()
        """Set when a sweep has offered every pending row there was."""

    def request(self) -> None:
        """Asks for a sweep now. Never waits."""
        self._wanted.set()

    def anchored(self) -> None:
        """The stream has a new anchor: whatever was committed before it is for a sweep, at once and a little later."""
        with self._looking:
            self._second_look_at = min(self._second_look_at, time.monotonic() + _SECOND_LOOK)
        self.request()

    def set_sources(self, sources: tuple[SourceSettings, ...]) -> None:
        """Other sources from now on: swept at once."""
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
            self.stopping.wait(min(_LONGEST_BREATH, max(_BREATH, 2 * (time.monotonic() - began))))
            pause = 0.2
            streaming = self._stream.position is not None
            next_sweep = time.monotonic() + (
                self._settings.sweep_interval
                if streaming
                else min(self._settings.poll_interval, self._settings.sweep_interval)
            )

    def sweep(self) -> None:
        """Offers what is pending, as far as there is room, and counts the rows by state.

        Raises:
            DatabaseUnavailable: it does not answer.
            Misconfigured: it does, and a person must fix something.
        """
        began = time.monotonic()
        complete = True
        found: Counter[str] = Counter()
        self._delivered = self._stream.delivered
        with self._database.connect() as connection:
            top = self._files.max_id(connection)
            fresh_above = top if self._fresh_above is None else self._fresh_above
            for source in self._sources:
                self._begins.setdefault(source.name, top)
                # What came since the last sweep goes first. Then the older ones, on from where there was no more room.
                newest = self._offer(connection, source, fresh_above, top, found, fresh=True)
                start = self._cursors.get(source.name, 0)
                stopped_at = self._offer(connection, source, start, fresh_above, found, fresh=False)
                self._cursors[source.name] = stopped_at or 0
                # A round that began in the middle has not seen what became pending below its start meanwhile.
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
            self._door.forget_dropped()
            self.exhausted.set()
        self._count_missed()
        if complete or began - self._census_at > _CENSUS_EVERY:
            self._census_at = began
            self._look_around()

    def _look_around(self) -> None:
        """Counts and tidies up: what comes of it is told, and undoes no sweep."""
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

        Returns:
            The last id that was offered where there was no room for more; None if all were.
        """
        while not self.stopping.is_set():
            room = self._door.room(source.name)
            if room == 0:
                self._door.request_refill(source.name)
                return after
            page = self._files.pending(connection, source.target, after, until, min(room, _PAGE))
            why = {pending.id: self._why(source.name, pending) for pending in page}
            # Asked before anybody is told of them: what we do to them ourselves is beyond it.
            place = self._position(connection) if "" in why.values() else None
            offered = self._door.offer(why, Origin.SWEEP, fresh=fresh)
            found.update(why[id_] for id_ in offered if why[id_])
            if place is not None:
                self._stream.suspect(sorted(id_ for id_ in offered if not why[id_]), place)
            if len(page) < min(room, _PAGE):
                return None
            after = page[-1].id
        return after

    def _why(self, source: str, pending: Pending) -> str:
        """Why a sweep finds this row; empty where only the stream's further way will tell."""
        if self._door.was_dropped(pending.id):
            return "overflow"
        if pending.attempts:
            return "retry"
        anchor = self._stream.anchor_max_id
        if anchor is None or pending.id <= max(anchor, self._begins.get(source, 0)):
            return "backlog"
        return "requeued" if pending.id in self._delivered else ""

    def _position(self, connection: sa.Connection) -> Position | None:
        """Where the server is; None where that cannot be asked, or is behind the stream: then its log was reset, and the stream
        will find out."""
        reached = self._stream.position
        try:
            place = server.position(connection, server.identify(connection))
        except StreamUnavailable:
            return None
        return None if reached is not None and place < reached else place

    def _count_missed(self) -> None:
        """Those that the stream has told of by now were only fast; those that it has passed without a word were missed."""
        if missed := self._stream.take_missed():
            self._metrics.sweep_found.labels("stream_missed").inc(len(missed))
            _log.error("stream_missed", files=len(missed), ids=missed[:20])

    def _take_census(self, connection: sa.Connection) -> None:
        now = datetime.now(UTC)
        for source in self._sources:
            census = self._files.census(connection, source.target)
            with self._looking:
                if source not in self._sources:
                    continue  # it went away while we counted
                self.census[source.name] = census
                self._metrics.pending.labels(source.name).set(census.pending)
                self._metrics.quarantined.labels(source.name).set(census.quarantined)
                self._metrics.refused.labels(source.name).set(census.refused)
                self._metrics.ignored.labels(source.name).set(census.ignored)
                oldest = census.oldest_pending
                age = max(0.0, (now - oldest).total_seconds()) if oldest else 0.0
                self._metrics.oldest_pending.labels(source.name).set(age)

    def _forget(self, source: str) -> None:
        self._cursors.pop(source, None)
        self._begins.pop(source, None)
        self.census.pop(source, None)
