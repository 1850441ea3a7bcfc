"""The binlog stream: passes the binary log's wake-ups to a listener, and opens a new stream whenever one ends."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import pymysql
import sqlalchemy as sa
import structlog
from sqlalchemy.pool import NullPool

from cdc_archiver.database import server_features
from cdc_archiver.database.connections import Database, translate_error
from cdc_archiver.database.server_features import KeyColumn, Position, ServerInfo
from cdc_archiver.errors import DatabaseUnavailable, Misconfigured, ServerIdTaken, StreamLost, StreamUnavailable
from cdc_archiver.events.interruptible import InterruptibleConnections
from cdc_archiver.events.interval_set import IntervalSet
from cdc_archiver.events.reader import BinlogReader, ChangedRows, StreamMark
from cdc_archiver.events.stream_progress import StreamProgress
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.threads import StoppableThread

_CHUNK: Final = 10_000
"""Ids of one transaction that are kept before they are handed over."""
_ANSWER_TIMEOUT: Final = 10
"""Seconds for our questions beside the stream: well below the net_write_timeout (60 s) after which it would be dropped."""
_SERVER_IDS: Final = (2**31, 2**32 - 1)
"""Where a random server_id comes from: people number their replicas from 1."""

_log = structlog.get_logger(__name__)


class StreamListener(Protocol):
    """Receives the wake-ups of a stream, and the changes of its state.

    Every call comes from the stream's own thread, and **none may block**: no SQL, no wait for space in a queue. During a call
    nothing is read, and the server disconnects a reader that pauses for longer than its ``net_write_timeout``. Where a queue is
    full, drop the ids and request a sweep.

    A row becomes visible some milliseconds after its event, so a row that cannot be read yet is not gone. A sweep after
    ``on_anchor`` or ``on_gap`` is sure to find the last rows only when it is repeated about a second later.
    """

    def on_ids(self, ids: Sequence[int]) -> None:
        """Rows were written or changed.

        Called at the end of a transaction, and within a large one for each 10,000 ids. An id may come twice, and may belong to a
        row that never becomes visible (XA).

        Args:
            ids: the rows' primary keys, in the order of the log.
        """

    def on_anchor(self) -> None:
        """The stream is open and does not contain what was written before: sweep now, and again a second later."""

    def on_gap(self, why: str) -> None:
        """An event could not be read: sweep soon. The stream goes on."""

    def on_lost(self, reason: str) -> None:
        """The stream ended, and a new one is being opened. ``on_anchor`` or ``on_unavailable`` follows.

        Args:
            reason: a value of the label of the metric ``stream_reconnects_total``.
        """

    def on_unavailable(self, why: str) -> None:
        """No stream is possible now: poll. Called once for each reason; ``on_anchor`` follows when a stream is open again.

        Args:
            why: for a person: what is wrong, and the fix.
        """


@dataclass(frozen=True, slots=True)
class StreamTiming:
    """How long the stream waits for what, in seconds.

    Attributes:
        heartbeat: after which an idle server says that it is there; three and a half without a word end the connection.
        first_retry: before the first new attempt when a connection broke; doubled each time.
        last_retry: what that grows to.
        first_ask: before we ask again whether a stream can be had that could not; doubled each time.
        last_ask: what that grows to.
        settle: after which a row that was committed before the anchor is surely visible.
        look: between two looks whether the stream is still what it should be.
    """

    heartbeat: float = 2.0
    first_retry: float = 0.1
    last_retry: float = 10.0
    first_ask: float = 5.0
    last_ask: float = 30.0
    settle: float = 1.0
    look: float = 30.0


class Backoff:
    """How long to wait before the next attempt: longer each time, and never quite as long as somebody else.

    Args:
        first: seconds, at the most, of the first wait.
        last: seconds, at the most, of any.
        rng: where the jitter comes from: a wait is between half of its length and all of it.
    """

    def __init__(self, first: float, last: float, rng: random.Random) -> None:
        self._first, self._last, self._rng = first, last, rng
        self._now = first

    def next(self) -> float:
        """Seconds to wait now."""
        now, self._now = self._now, min(self._now * 2, self._last)
        return now * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """All is well: the next wait is a first one."""
        self._now = self._first


class BinlogStream(StoppableThread):
    """Reads the binary log for as long as the service runs, or says why it cannot.

    It anchors: takes the server's position, opens the stream there, tells the listener to sweep. Whatever ends the stream, it
    anchors anew; no position is kept. It dies of one thing only that can be foreseen: ``ServerIdTaken``.

    Args:
        database: where the table is.
        table: the files table.
        listener: is told of everything; see :class:`StreamListener` for what it must not do.
        metrics: of the service.
        server_id: ours, among the server's replicas; None: a random one at each connect.
        timing: how long it waits for what.
        rng: where server_ids and jitter come from.
    """

    def __init__(
        self,
        database: Database,
        table: str,
        listener: StreamListener,
        metrics: Metrics,
        *,
        server_id: int | None = None,
        timing: StreamTiming | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__("binlog")
        self._database = database
        self._table = table
        self._listener = listener
        self._metrics = metrics
        self._server_id = server_id
        self._timing = timing or StreamTiming()
        self._rng = rng or random.Random()
        self._retry = Backoff(self._timing.first_retry, self._timing.last_retry, self._rng)
        self._ask_again = Backoff(self._timing.first_ask, self._timing.last_ask, self._rng)
        self._progress = StreamProgress()
        self._anchored = False
        self._told = ""
        self._connections = InterruptibleConnections()
        self._engine = sa.create_engine(
            "mysql+pymysql://", creator=self._connect, isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        for reason in ("shutdown", "link", "position", "stalled", "killed", "decode", "server_id", "unavailable"):
            metrics.stream_reconnects.labels(reason)
        progress = self._progress  # and not all of a stream, which has its day
        metrics.stream_lag.set_function(lambda: progress.lag)

    @property
    def position(self) -> Position | None:
        """Everything before it was handed over; None without a stream."""
        return self._progress.position

    @property
    def anchor_max_id(self) -> int | None:
        """The highest id that the anchor's sweep answers for; None until it is known, about a second after the anchor."""
        return self._progress.anchor_max_id

    @property
    def delivered(self) -> IntervalSet:
        """The ids that were handed over since the anchor: a copy."""
        return self._progress.delivered

    def suspect(self, ids: Iterable[int], position: Position) -> None:
        """See :meth:`StreamProgress.suspect`."""
        self._progress.suspect(ids, position)

    def take_missed(self) -> list[int]:
        """See :meth:`StreamProgress.take_missed`."""
        return self._progress.take_missed()

    def interrupt(self) -> None:
        """Wakes it from whatever it waits for of the database."""
        self._connections.interrupt()

    def work(self) -> None:
        """Streams; where there is no stream, waits and tries again.

        Raises:
            ServerIdTaken: another replica has the server_id that the operator set.
        """
        try:
            while not self.stopping.is_set():
                self.stopping.wait(self._stream_until_it_ends())
        finally:
            self._engine.dispose()

    def _stream_until_it_ends(self) -> float:
        """One stream from its anchor to its end.

        Returns:
            Seconds to wait before the next.
        """
        try:
            self._stream()
        except StreamLost as lost:
            if self.stopping.is_set():
                return 0.0
            return self._recover(lost)
        except (StreamUnavailable, Misconfigured) as error:
            if self._anchored:
                self._lose("unavailable", str(error))
            self._say_unavailable(str(error))
            return self._ask_again.next()
        except DatabaseUnavailable as error:
            if not self.stopping.is_set():
                self._say_unavailable(str(error))
            return self._retry.next()
        finally:
            self._anchored = False
            self._progress.end()
            self._metrics.stream_connected.set(0)
            self._connections.close_all()
        return 0.0

    def _recover(self, lost: StreamLost) -> float:
        if lost.reason == "server_id" and self._server_id is not None:
            raise ServerIdTaken(
                f"another replica of the database has our server_id {self._server_id}: {lost}",
                "set --server-id to one that nobody has, or leave it out for a random one",
            ) from lost
        if self._anchored:
            self._lose(lost.reason, str(lost))
        else:
            self._say_unavailable(str(lost))
        return self._retry.next()

    def _lose(self, reason: str, detail: str) -> None:
        # The listener says the word; only here is known what the server or the socket said.
        _log.info("stream_ended", reason=reason, detail=detail)
        self._metrics.stream_reconnects.labels(reason).inc()
        self._told = ""
        self._listener.on_lost(reason)

    def _say_unavailable(self, why: str) -> None:
        if why != self._told:
            self._told = why
            self._ask_again.reset()
            self._listener.on_unavailable(why)

    def _stream(self) -> None:
        with self._questions() as connection:
            server = server_features.identify(connection)
            self._require_way(connection, server)
            key = server_features.key_column(connection, self._database.name, self._table)
            # The position before all else: what is written from here on is in the stream, what was written before is in
            # the sweep that follows.
            start = server_features.position(connection, server)
        reader = BinlogReader(
            self._connections,
            self._database.connection_settings(),
            server=server,
            start=start,
            key=key,
            ask_key=self._ask_key,
            server_id=self._server_id or self._rng.randint(*_SERVER_IDS),
            heartbeat=self._timing.heartbeat,
        )
        reader.open()
        self._anchored = True
        self._told = ""
        self._progress.begin(start)
        self._metrics.stream_connected.set(1)
        self._listener.on_anchor()
        self._follow(reader, server, key)

    def _follow(self, reader: BinlogReader, server: ServerInfo, key: KeyColumn) -> None:
        """Reads until the stream ends.

        What is done here for a transaction of other tables is done as often as the server writes, so it is next to nothing.
        """
        collected: list[int] = []
        well = False
        chores = self._chores(server)
        chore_due = next(chores)
        while not self.stopping.is_set():
            item = reader.next()
            if isinstance(item, StreamMark):
                if collected:
                    self._hand_over(collected)
                    collected = []
                self._progress.advance(item)
                if not well:
                    well = True
                    self._retry.reset()
                    self._ask_again.reset()
            elif isinstance(item, ChangedRows):
                collected += item.ids
                if item.doubt:
                    self._report_gap(item.doubt)
                    chore_due = min(chore_due, time.monotonic() + self._timing.settle)
                if len(collected) >= _CHUNK:
                    self._hand_over(collected)
                    collected = []
            else:
                self._report_gap(item.why)
                chore_due = min(chore_due, time.monotonic() + self._timing.settle)
            if reader.heard_at >= chore_due:
                chore_due = next(chores)

    def _hand_over(self, ids: list[int]) -> None:
        self._listener.on_ids(ids)
        self._progress.deliver(ids)

    def _report_gap(self, why: str) -> None:
        if self.stopping.is_set():
            return  # our own doing
        self._metrics.stream_events.labels("unreadable").inc()
        self._progress.unsettle()
        self._listener.on_gap(why)

    def _chores(self, server: ServerInfo) -> Iterator[float]:
        """What is to be done now and then beside the reading; yields when (monotonic seconds) the next thing is due."""
        yield time.monotonic() + self._timing.settle
        while True:
            try:
                with self._questions() as connection:
                    # Asked anew: the table may have been altered, or be gone, which it says.
                    key = server_features.key_column(connection, self._database.name, self._table)
                    if self._progress.anchor_max_id is None:
                        self._progress.settle(_max_id(connection, key))
                    self._require_way(connection, server)
                    self._require_position(connection, server)
            except DatabaseUnavailable as error:
                # The stream knows best whether the server is gone.
                _log.debug("stream_look_failed", detail=str(error))
            settled = self._progress.anchor_max_id is not None
            yield time.monotonic() + (self._timing.look if settled else self._timing.settle)

    def _require_way(self, connection: sa.Connection, server: ServerInfo) -> None:
        obstacles = server_features.stream_obstacles(connection, server, self._database.name, self._table)
        if fatal := [str(obstacle) for obstacle in obstacles if obstacle.fatal]:
            raise StreamUnavailable("; ".join(fatal))

    def _require_position(self, connection: sa.Connection, server: ServerInfo) -> None:
        """A server whose log ends before what we have read was reset.

        It says so only to a reader that has to open the next file. One that is in the first file gets heartbeats and none of the
        new rows, until the new first file is longer than the old one was.
        """
        reached = self._progress.position
        end = server_features.position(connection, server)
        if reached is not None and end < reached:
            raise StreamLost(f"we have read up to {reached}, and the log ends at {end}: it was reset", "position")

    def _ask_key(self) -> KeyColumn:
        with self._questions() as connection:
            return server_features.key_column(connection, self._database.name, self._table)

    @contextmanager
    def _questions(self) -> Iterator[sa.Connection]:
        """A connection beside the stream, on the same line: a stop cuts it too."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except (sa.exc.DBAPIError, pymysql.MySQLError, OSError) as error:
            raise translate_error(error, self._database.address) from error

    def _connect(self) -> pymysql.Connection:
        timeouts = dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), _ANSWER_TIMEOUT)
        return self._connections.connect({**self._database.connection_settings(), **timeouts})


def _max_id(connection: sa.Connection, key: KeyColumn) -> int:
    table = sa.table(key.table, sa.column(key.name), schema=key.schema)
    return connection.execute(sa.select(sa.func.max(table.c[key.name]))).scalar() or 0
