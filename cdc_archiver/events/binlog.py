"""The stream: takes the binary log's wake-ups to their listener, and sees to it that there is a stream wherever there can be."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pymysql
import sqlalchemy as sa
import structlog
from sqlalchemy.pool import NullPool

from cdc_archiver.database import server as servers
from cdc_archiver.database.connections import Database, in_our_words
from cdc_archiver.database.server import KeyColumn, Position, Server
from cdc_archiver.errors import DatabaseUnavailable, Misconfigured, ServerIdTaken, StreamLost, StreamUnavailable
from cdc_archiver.events.interruptible import InterruptibleConnections
from cdc_archiver.events.interval_set import IntervalSet
from cdc_archiver.events.listener import StreamListener
from cdc_archiver.events.progress import StreamProgress
from cdc_archiver.events.reader import Mark, Reader, Rows
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.threads import Part

_CHUNK: Final = 10_000
"""Ids of one transaction that are kept before they are handed over."""
_ANSWER_TIMEOUT: Final = 10
"""Seconds for our questions beside the stream: well below the net_write_timeout (60 s) after which it would be dropped."""
_SERVER_IDS: Final = (2**31, 2**32 - 1)
"""Where a random server_id comes from: people number their replicas from 1."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
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


class Wait:
    """How long to wait before the next attempt: longer each time, and never quite as long as somebody else.

    Args:
        first: seconds, at the most, of the first wait.
        last: seconds, at the most, of any.
        chance: where the jitter comes from: a wait is between half of its length and all of it.
    """

    def __init__(self, first: float, last: float, chance: random.Random) -> None:
        self._first, self._last, self._chance = first, last, chance
        self._now = first

    def next(self) -> float:
        """Seconds to wait now."""
        now, self._now = self._now, min(self._now * 2, self._last)
        return now * self._chance.uniform(0.5, 1.0)

    def reset(self) -> None:
        """All is well: the next wait is a first one."""
        self._now = self._first


class BinlogStream(Part):
    """Reads the binary log for as long as the service runs, or says why it cannot.

    It anchors: takes the server's position, opens the stream there, tells the listener to sweep. Whatever ends the stream, it
    anchors anew; no position is kept. It dies of one thing only that can be foreseen: ``ServerIdTaken``.

    Args:
        database: where the table is.
        table: the files table.
        listener: is told of everything; see :class:`StreamListener` for what it must not do.
        metrics: of the service.
        server_id: ours, among the server's replicas; None: a random one at each connect.
        pace: how long it waits for what.
        chance: where server_ids and jitter come from.
    """

    def __init__(
        self,
        database: Database,
        table: str,
        listener: StreamListener,
        metrics: Metrics,
        *,
        server_id: int | None = None,
        pace: Pace | None = None,
        chance: random.Random | None = None,
    ) -> None:
        super().__init__("binlog")
        self._database = database
        self._table = table
        self._listener = listener
        self._metrics = metrics
        self._server_id = server_id
        self._pace = pace or Pace()
        self._chance = chance or random.Random()
        self._retry = Wait(self._pace.first_retry, self._pace.last_retry, self._chance)
        self._ask_again = Wait(self._pace.first_ask, self._pace.last_ask, self._chance)
        self._progress = StreamProgress()
        self._anchored = False
        self._told = ""
        self._line = InterruptibleConnections()
        self._engine = sa.create_engine(
            "mysql+pymysql://", creator=self._dial, isolation_level="AUTOCOMMIT", poolclass=NullPool
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
        self._line.cut()

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
            self._line.hang_up()
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
            server = servers.identify(connection)
            self._require_way(connection, server)
            key = servers.key_column(connection, self._database.name, self._table)
            # The position before all else: what is written from here on is in the stream, what was written before is in
            # the sweep that follows.
            start = servers.position(connection, server)
        reader = Reader(
            self._line,
            self._database.connection_settings(),
            server=server,
            start=start,
            key=key,
            ask_key=self._ask_key,
            server_id=self._server_id or self._chance.randint(*_SERVER_IDS),
            heartbeat=self._pace.heartbeat,
        )
        reader.open()
        self._anchored = True
        self._told = ""
        self._progress.begin(start)
        self._metrics.stream_connected.set(1)
        self._listener.on_anchor()
        self._follow(reader, server, key)

    def _follow(self, reader: Reader, server: Server, key: KeyColumn) -> None:
        """Reads until the stream ends.

        What is done here for a transaction of other tables is done as often as the server writes, so it is next to nothing.
        """
        collected: list[int] = []
        well = False
        chores = self._chores(server)
        chore_due = next(chores)
        while not self.stopping.is_set():
            seen = reader.next()
            if isinstance(seen, Mark):
                if collected:
                    self._hand_over(collected)
                    collected = []
                self._progress.advance(seen)
                if not well:
                    well = True
                    self._retry.reset()
                    self._ask_again.reset()
            elif isinstance(seen, Rows):
                collected += seen.ids
                if seen.doubt:
                    self._report_gap(seen.doubt)
                    chore_due = min(chore_due, time.monotonic() + self._pace.settle)
                if len(collected) >= _CHUNK:
                    self._hand_over(collected)
                    collected = []
            else:
                self._report_gap(seen.why)
                chore_due = min(chore_due, time.monotonic() + self._pace.settle)
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

    def _chores(self, server: Server) -> Iterator[float]:
        """What is to be done now and then beside the reading; yields when (monotonic seconds) the next thing is due."""
        yield time.monotonic() + self._pace.settle
        while True:
            try:
                with self._questions() as connection:
                    # Asked anew: the table may have been altered, or be gone, which it says.
                    key = servers.key_column(connection, self._database.name, self._table)
                    if self._progress.anchor_max_id is None:
                        self._progress.settle(_max_id(connection, key))
                    self._require_way(connection, server)
                    self._require_position(connection, server)
            except DatabaseUnavailable as error:
                # The stream knows best whether the server is gone.
                _log.debug("stream_look_failed", detail=str(error))
            settled = self._progress.anchor_max_id is not None
            yield time.monotonic() + (self._pace.look if settled else self._pace.settle)

    def _require_way(self, connection: sa.Connection, server: Server) -> None:
        obstacles = servers.stream_obstacles(connection, server, self._database.name, self._table)
        if fatal := [str(obstacle) for obstacle in obstacles if obstacle.fatal]:
            raise StreamUnavailable("; ".join(fatal))

    def _require_position(self, connection: sa.Connection, server: Server) -> None:
        """A server whose log ends before what we have read was reset.

        It says so only to a reader that has to open the next file. One that is in the first file gets heartbeats and none of the
        new rows, until the new first file is longer than the old one was.
        """
        reached = self._progress.position
        end = servers.position(connection, server)
        if reached is not None and end < reached:
            raise StreamLost(f"we have read up to {reached}, and the log ends at {end}: it was reset", "position")

    def _ask_key(self) -> KeyColumn:
        with self._questions() as connection:
            return servers.key_column(connection, self._database.name, self._table)

    @contextmanager
    def _questions(self) -> Iterator[sa.Connection]:
        """A connection beside the stream, on the same line: a stop cuts it too."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except (sa.exc.DBAPIError, pymysql.MySQLError, OSError) as error:
            raise in_our_words(error, self._database.address) from error

    def _dial(self) -> pymysql.Connection:
        timeouts = dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), _ANSWER_TIMEOUT)
        return self._line.connect({**self._database.connection_settings(), **timeouts})


def _max_id(connection: sa.Connection, key: KeyColumn) -> int:
    table = sa.table(key.table, sa.column(key.name), schema=key.schema)
    return connection.execute(sa.select(sa.func.max(table.c[key.name]))).scalar() or 0
