"""The binlog stream: passes the binary log's wake-ups to a listener, and opens a new stream whenever one ends."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from cdc_archiver.database.server_identity import ServerIdentity, identify_server
from cdc_archiver.errors import (
    DatabaseUnavailable,
    Misconfigured,
    ServerIdTaken,
    ServersDiffer,
    StreamLost,
    StreamUnavailable,
)
from cdc_archiver.events.event_reader import BinlogReader, ChangedRows, StreamMark
from cdc_archiver.events.interruptible import InterruptibleConnections
from cdc_archiver.events.interval_set import IntervalSet
from cdc_archiver.events.stream_progress import StreamProgress
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.threads import StoppableThread

_CHUNK: Final = 10_000
"""Number of ids of one transaction from which they are handed over before its end."""
_ANSWER_TIMEOUT: Final = 10
"""Seconds for a query alongside the stream: well below the net_write_timeout (60 s) after which the stream is disconnected."""
_DIFFERING_TRIES: Final = 3
"""Connections in a row to another server than that of the locks, after which a stream is tried more seldom."""
_DIFFERING_PAUSE: Final = 60.0
"""Seconds."""
_SERVER_IDS: Final = (2**31, 2**32 - 1)
"""Range of random server_ids: operators number their replicas from 1."""

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
        """An event could not be read, or has no rows but a statement: sweep soon. The stream goes on."""

    def on_lost(self, reason: str, detail: str) -> None:
        """The stream ended, and a new one is being opened. ``on_anchor`` or ``on_unavailable`` follows.

        Args:
            detail: the message of the server or the socket.
            reason: a value of the label of the metric ``stream_reconnects_total``.
        """

    def on_unavailable(self, why: str) -> None:
        """No stream is possible now: poll. Called once for each reason; ``on_anchor`` follows when a stream is open again.

        Args:
            why: for a person: what is wrong, and the fix.
        """


@dataclass(frozen=True, slots=True)
class StreamTiming:
    """Times of the stream, in seconds.

    Attributes:
        heartbeat: interval of an idle server's heartbeats; after 3.5 intervals of silence the connection counts as dead.
        first_retry: wait before the first new attempt after a connection broke; doubled each time.
        last_retry: maximum of that wait.
        first_ask: wait before the first new attempt where no stream was possible; doubled each time.
        last_ask: maximum of that wait.
        settle: time after which a row committed before the anchor is certainly visible.
        look: interval of checks whether a stream is still possible and at the right position.
    """

    heartbeat: float = 2.0
    first_retry: float = 0.1
    last_retry: float = 10.0
    first_ask: float = 5.0
    last_ask: float = 30.0
    settle: float = 1.0
    look: float = 30.0


class Backoff:
    """Waits before new attempts, which grow exponentially with jitter.

    Args:
        first: maximum of the first wait, in seconds.
        last: maximum of any wait, in seconds.
        rng: source of the jitter: a wait lasts between half of its maximum and the maximum.
    """

    def __init__(self, first: float, last: float, rng: random.Random) -> None:
        self._first, self._last, self._rng = first, last, rng
        self._maximum = first

    def next(self) -> float:
        """Seconds of the next wait."""
        maximum, self._maximum = self._maximum, min(self._maximum * 2, self._last)
        return maximum * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """An attempt succeeded: the next wait is a first one."""
        self._maximum = self._first


class BinlogStream(StoppableThread):
    """Reads the binary log while the service runs, or reports why it cannot.

    It anchors: takes the server's position, opens the stream there, tells the listener to sweep. After any end of the stream it
    anchors again; no position is kept. The only expected error that ends the thread is ``ServerIdTaken``.

    Args:
        database: that holds the table.
        table: of files.
        listener: receives wake-ups and state; :class:`StreamListener` has its restrictions.
        metrics: of the service.
        server_id: ours, among the server's replicas; None for a random one at each connect.
        timing: waits and intervals.
        rng: source of server_ids and jitter.
        lock_server: the server that has the locks; None where it is not known. A stream of another one is none.
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
        lock_server: Callable[[], ServerIdentity | None] = lambda: None,
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
        self._reported = ""
        self._lock_server = lock_server
        self._differing = 0
        self._connections = InterruptibleConnections(self._require_lock_server)
        self._engine = sa.create_engine(
            "mysql+pymysql://", creator=self._connect, isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        for reason in ("shutdown", "link", "position", "stalled", "killed", "decode", "server_id", "unavailable"):
            metrics.stream_reconnects.labels(reason)
        progress = self._progress  # a reference to `self` would keep the whole stream alive
        metrics.stream_lag.set_function(lambda: progress.lag)

    @property
    def position(self) -> Position | None:
        """The position up to which everything was handed over; None without a stream."""
        return self._progress.position

    @property
    def anchor_max_id(self) -> int | None:
        """The highest id that the sweep of the anchor covers; None until it is known, about a second after the anchor."""
        return self._progress.anchor_max_id

    @property
    def delivered(self) -> IntervalSet:
        """A copy of the ids handed over since the anchor."""
        return self._progress.delivered

    def suspect(self, ids: Iterable[int], position: Position) -> None:
        """See :meth:`StreamProgress.suspect`."""
        self._progress.suspect(ids, position)

    def take_missed(self) -> list[int]:
        """See :meth:`StreamProgress.take_missed`."""
        return self._progress.take_missed()

    def interrupt(self) -> None:
        """Ends any wait for the database."""
        self._connections.interrupt()

    def work(self) -> None:
        """Streams; where no stream is possible, waits and tries again.

        Raises:
            ServerIdTaken: another replica uses the server_id that the operator set.
        """
        try:
            while not self.stopping.is_set():
                self.stopping.wait(self._stream_until_it_ends())
        finally:
            self._engine.dispose()

    def _stream_until_it_ends(self) -> float:
        """Runs one stream from its anchor to its end.

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
            if self.stopping.is_set():
                return 0.0
            if self._anchored:
                self._report_lost("unavailable", str(error))
            self._report_unavailable(str(error))
            if not isinstance(error, ServersDiffer):
                return self._ask_again.next()
            self._differing += 1
            return self._retry.next() if self._differing < _DIFFERING_TRIES else _DIFFERING_PAUSE
        except DatabaseUnavailable as error:
            if not self.stopping.is_set():
                self._report_unavailable(str(error))
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
                f"another replica of the database uses the server_id {self._server_id}: {lost}",
                "set --server-id to an unused one, or omit it for a random one",
            ) from lost
        if self._anchored:
            self._report_lost(lost.reason, str(lost))
        else:
            self._report_unavailable(str(lost))
        return self._retry.next()

    def _report_lost(self, reason: str, detail: str) -> None:
        self._metrics.stream_reconnects.labels(reason).inc()
        self._reported = ""
        self._listener.on_lost(reason, detail)

    def _report_unavailable(self, why: str) -> None:
        if why != self._reported:
            self._reported = why
            self._ask_again.reset()
            self._listener.on_unavailable(why)

    def _stream(self) -> None:
        with self._query_connection() as connection:
            server = server_features.identify(connection)
            self._require_no_obstacle(connection, server)
            key = server_features.key_column(connection, self._database.name, self._table)
            # The position is taken before the sweep: rows written from here on are in the stream, rows written before are in the sweep
            # that follows.
            start = server_features.position(connection, server)
        reader = BinlogReader(
            self._connections,
            self._database.connection_settings(),
            server=server,
            start=start,
            key=key,
            look_up_key=self._look_up_key,
            server_id=self._server_id or self._rng.randint(*_SERVER_IDS),
            heartbeat=self._timing.heartbeat,
        )
        reader.open()
        # A session keeps the binlog_format that it began with: one of ours from before a change would log its write-backs as
        # statements, which are gaps.
        self._database.close()
        self._anchored = True
        self._reported = ""
        self._progress.begin(start)
        self._metrics.stream_connected.set(1)
        self._listener.on_anchor()
        self._follow(reader, server, key)

    def _follow(self, reader: BinlogReader, server: ServerInfo, key: KeyColumn) -> None:
        """Reads until the stream ends.

        The loop does as little as possible for transactions of other tables, which may be very many.
        """
        collected: list[int] = []
        is_first_mark = True
        checks = self._periodic_checks(server)
        check_due = next(checks)
        while not self.stopping.is_set():
            item = reader.next()
            if isinstance(item, StreamMark):
                if collected:
                    self._hand_over(collected)
                    collected = []
                self._progress.advance(item)
                if is_first_mark:
                    is_first_mark = False
                    self._retry.reset()
                    self._ask_again.reset()
            elif isinstance(item, ChangedRows):
                collected += item.ids
                if item.doubt:
                    self._report_gap(item.doubt)
                    check_due = min(check_due, time.monotonic() + self._timing.settle)
                if len(collected) >= _CHUNK:
                    self._hand_over(collected)
                    collected = []
            else:
                self._report_gap(item.why)
                check_due = min(check_due, time.monotonic() + self._timing.settle)
            if reader.heard_at >= check_due:
                check_due = next(checks)

    def _hand_over(self, ids: list[int]) -> None:
        # Once for each row of a transaction: an UPDATE of a table WITH SYSTEM VERSIONING is also the INSERT of a history row, and only
        # one of the two would pass as the report of our own write.
        ids = list(dict.fromkeys(ids))
        self._listener.on_ids(ids)
        self._progress.deliver(ids)

    def _report_gap(self, why: str) -> None:
        if self.stopping.is_set():
            return  # an interruption may have caused it
        self._metrics.stream_events.labels("unreadable").inc()
        self._progress.unsettle()
        self._listener.on_gap(why)

    def _periodic_checks(self, server: ServerInfo) -> Iterator[float]:
        """Checks the table and the server between reads; yields when the next check is due, in monotonic seconds."""
        yield time.monotonic() + self._timing.settle
        while True:
            try:
                with self._query_connection() as connection:
                    # Looked up again: the table may have been altered, or be gone, which raises.
                    key = server_features.key_column(connection, self._database.name, self._table)
                    if self._progress.anchor_max_id is None:
                        self._progress.settle(_max_id(connection, key))
                    self._require_no_obstacle(connection, server)
                    self._require_position(connection, server)
                self._differing = 0
            except DatabaseUnavailable as error:
                # Whether the server is gone is for the stream itself to notice.
                _log.debug("stream_check_failed", detail=str(error))
            settled = self._progress.anchor_max_id is not None
            yield time.monotonic() + (self._timing.look if settled else self._timing.settle)

    def _require_no_obstacle(self, connection: sa.Connection, server: ServerInfo) -> None:
        obstacles = server_features.stream_obstacles(connection, server, self._database.name, self._table)
        if fatal := [str(obstacle) for obstacle in obstacles if obstacle.fatal]:
            raise StreamUnavailable("; ".join(fatal))

    def _require_position(self, connection: sa.Connection, server: ServerInfo) -> None:
        """Notices a reset of the log: it ends before the position that was read.

        The server reports a reset only to a reader that has to open the next file. A reader in the first file receives heartbeats and
        no new rows, until the new first file is longer than the old one.
        """
        reached = self._progress.position
        end = server_features.position(connection, server)
        if reached is not None and end < reached:
            raise StreamLost(f"the log was reset: it ends at {end}, and was read up to {reached}", "position")

    def _require_lock_server(self, connection: pymysql.Connection) -> None:
        """Requires that a connection leads to the server that has the locks, and that the writes therefore go to.

        Raises:
            ServersDiffer: it leads to another one.
        """
        expected = self._lock_server()
        if expected is not None and (met := identify_server(connection)) != expected:
            raise ServersDiffer(
                f"the address {self._database.address} leads to several servers: the locks are with {expected}, the stream "
                f"would be of {met}",
                "set MYSQL_HOST to one server, or to an address that leads to one at a time; a stream is tried each minute",
            )

    def _look_up_key(self) -> KeyColumn:
        with self._query_connection() as connection:
            return server_features.key_column(connection, self._database.name, self._table)

    @contextmanager
    def _query_connection(self) -> Iterator[sa.Connection]:
        """A connection alongside the stream, which a stop interrupts too."""
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
