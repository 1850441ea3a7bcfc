"""mysql-replication's reader, opened at a position and read one event after the other; its endings in our words."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import pymysql
from pymysqlreplication import binlogstream
from pymysqlreplication.event import (
    FormatDescriptionEvent,
    HeartbeatLogEvent,
    NotImplementedEvent,
    RotateEvent,
    XAPrepareEvent,
    XidEvent,
)
from pymysqlreplication.row_event import PartialUpdateRowsEvent, RowsEvent, UpdateRowsEvent, WriteRowsEvent

from cdc_archiver.database.connections import error_code, translate_error
from cdc_archiver.database.server_features import NO_GRANT, KeyColumn, Position, ServerInfo
from cdc_archiver.errors import Misconfigured, StreamLost, StreamUnavailable
from cdc_archiver.events.interruptible import InterruptibleConnections
from cdc_archiver.events.pk_decoder import PrimaryKeyDecoder, UndecodableEvent

# It advises FULL metadata, in several lines, at each connect; what it tells of connections we tell ourselves.
logging.getLogger("pymysqlreplication").setLevel(logging.ERROR)

_LIBRARY: Final[Any] = binlogstream.BinLogStreamReader

# No QueryEvent: on MySQL 9.7 it raises before the position has moved. XidEvents of other tables move the position.
_EVENTS: Final = (
    WriteRowsEvent,
    UpdateRowsEvent,
    PartialUpdateRowsEvent,
    XidEvent,
    XAPrepareEvent,
    RotateEvent,
    FormatDescriptionEvent,
    HeartbeatLogEvent,
    NotImplementedEvent,
)

_MARKS: Final = (XidEvent, XAPrepareEvent, RotateEvent, HeartbeatLogEvent)

# Events that mysql-replication has no class for, and that carry no row: ignorable, GTIDs anonymous and tagged, the two of
# group replication, another heartbeat; MariaDB's compressed statement. Whatever else we do not know may have been rows: 40 is
# MySQL's compressed transaction, 0xA6 and its neighbours are MariaDB's compressed rows, 26 says that the log is incomplete.
_WITHOUT_ROWS: Final = frozenset({0x1C, 0x22, 0x24, 0x25, 0x29, 0x2A, 0xA5})

_SILENCE: Final = 3.5
"""Heartbeats without a word after which the link is taken for dead."""
_CONNECT_TIMEOUT: Final = 10
_HOPELESS: Final = 20
"""Events in a row that cannot be decoded after which the whole connection is not believed any more."""

_POSITION_LOST: Final = 1236
_SAME_SERVER_ID: Final = 4052
_SHUTDOWN: Final = frozenset({1053, 1077})
_KILLED: Final = frozenset({1317, 1927, 3169})


@dataclass(frozen=True, slots=True)
class ChangedRows:
    """Rows of our table.

    Attributes:
        doubt: why the ids may be wrong; empty almost always.
    """

    ids: list[int]
    doubt: str = ""


class StreamMark(NamedTuple):
    """No transaction is under way: everything before this place has been returned.

    There is one for each transaction of the server, whoever it is of, so it is made of what is at hand; whoever wants to know more
    computes it.

    Attributes:
        file: of the log.
        offset: in it.
        written_at: the newest time of a mark: seconds since the epoch by the server's clock; 0 before there was one.
        heard_at: when it was read: seconds of the monotonic clock.
        idle: the server had nothing to send for a while.
    """

    file: str
    offset: int
    written_at: int
    heard_at: float
    idle: bool


@dataclass(frozen=True, slots=True)
class UnreadableEvent:
    """Something that may have been rows, and could not be read."""

    why: str


StreamItem: TypeAlias = ChangedRows | StreamMark | UnreadableEvent


class BinlogReader:
    """One connection's stream. It never reconnects.

    Args:
        connections: what the connections are made on; the caller hangs up.
        settings: PyMySQL's connection settings; not kept, not changed.
        server: as it was identified.
        key: table and key as they are now.
        ask_key: looks them up again.
        server_id: ours, among the server's replicas.
        heartbeat: seconds after which a server with nothing to say says so.

    Attributes:
        heard_at: when an event came last: seconds of the monotonic clock.
    """

    def __init__(
        self,
        connections: InterruptibleConnections,
        settings: Mapping[str, Any],
        *,
        server: ServerInfo,
        start: Position,
        key: KeyColumn,
        ask_key: Callable[[], KeyColumn],
        server_id: int,
        heartbeat: float,
    ) -> None:
        self._connections = connections
        self._server = server
        self._keys = PrimaryKeyDecoder(ask_key)
        self._silence = heartbeat * _SILENCE
        self._unreadable = 0
        self._opened = False
        self._stream_dialled = False
        self._checksum: int | None = None
        self._written_at = 0
        self.heard_at = time.monotonic()
        self._address = f"{settings['host']}:{settings['port']}"
        self._reader = _LIBRARY(
            # A dict of its own: the library changes it.
            connection_settings={**settings, "read_timeout": self._silence, "connect_timeout": _CONNECT_TIMEOUT},
            server_id=server_id,
            pymysql_wrapper=self._connect,
            # With is_mariadb the position would be ignored; without resume_stream the offset.
            is_mariadb=False,
            resume_stream=True,
            log_file=start.file,
            log_pos=start.offset,
            blocking=True,
            slave_heartbeat=heartbeat,
            only_events=list(_EVENTS),
            filter_non_implemented_events=False,
            only_schemas=[key.schema],
            only_tables=[key.table],
            # A table's description is read once for each table id, and an ALTER makes a new id; to read it again with each
            # transaction is half of the library's work.
            freeze_schema=True,
            # The other columns are not looked at, and an md5 is no UTF-8.
            ignore_decode_errors=True,
            # It would log the settings, password included.
            enable_logging=False,
        )

    def open(self) -> None:
        """Connects, and waits for the first event: the server's word that it has the position.

        Raises:
            StreamLost: it has not, or the connection broke.
            StreamUnavailable: it does not let us.
        """
        event = self._fetch()
        if not isinstance(event, RotateEvent):
            raise StreamLost(f"the stream begins with {type(event).__name__}, not with its file's name", "decode")
        self._opened = True

    def next(self) -> StreamItem:
        """Waits for what comes next, which on a healthy link takes no longer than a heartbeat or two.

        Raises:
            StreamLost: the stream has ended.
            StreamUnavailable: likewise, and it cannot be had again as things are.
        """
        reader = self._reader
        while True:
            try:
                event = self._fetch()
            except UndecodableEvent as error:
                return UnreadableEvent(str(error))
            if isinstance(event, _MARKS):  # first of all: most of what a busy server writes is not ours
                self._written_at = event.timestamp or self._written_at
                idle = event.__class__ is HeartbeatLogEvent
                return StreamMark(reader.log_file, reader.log_pos, self._written_at, self.heard_at, idle)
            if isinstance(event, RowsEvent):
                try:
                    ids = self._keys.ids(event)
                except UndecodableEvent as error:
                    return UnreadableEvent(str(error))
                return ChangedRows(ids, self._keys.take_doubt())
            if isinstance(event, FormatDescriptionEvent):
                self._require_format(event)
            elif event.event_type not in _WITHOUT_ROWS:
                return UnreadableEvent(f"an event of type {event.event_type} that may hold compressed rows")

    def _require_format(self, event: Any) -> None:
        """The library asks for binlog_checksum once, at its connect; with another it would cut four bytes off each event."""
        if self._checksum is None:
            self._checksum = event.checksum_algorithm
        elif event.checksum_algorithm != self._checksum:
            raise StreamLost(f"the server {self._address} changed binlog_checksum", "decode")

    def _fetch(self) -> Any:
        try:
            event = self._reader.fetchone()
        except (StreamLost, StreamUnavailable):
            raise
        except (pymysql.MySQLError, OSError) as error:
            raise self._ending(error) from error
        except Exception as error:
            # The packet has been read, so the next call goes on behind it; but only while there is a connection.
            if not self._opened:
                raise StreamLost(f"the stream cannot be opened: {type(error).__name__}: {error}", "decode") from error
            why = f"{type(error).__name__} while an event was decoded: {error}"
            self.heard_at = time.monotonic()
            self._unreadable += 1
            if self._unreadable >= _HOPELESS:
                raise StreamLost(f"{_HOPELESS} events in a row could not be read: {why}", "decode") from error
            raise UndecodableEvent(why) from error
        self._unreadable = 0
        if event is None:
            raise StreamLost(f"the server {self._address} ended the stream: it shuts down", "shutdown")
        self.heard_at = time.monotonic()
        return event

    def _connect(self, **settings: Any) -> Any:
        """What the library calls to connect: once for the stream, once for its questions about tables."""
        if "db" in settings:
            settings["database"] = settings.pop("db")
        elif self._stream_dialled:
            # It lost the connection and would go on by itself, past our checks and metrics.
            silent = time.monotonic() - self.heard_at
            if silent >= self._silence:
                raise StreamLost(f"nothing was heard of the server {self._address} for {silent:.1f} s", "stalled")
            raise StreamLost(f"the connection to the server {self._address} broke", "link")
        else:
            self._stream_dialled = True
        connection = self._connections.connect(settings)
        self.heard_at = time.monotonic()
        return connection

    def _ending(self, error: Exception) -> StreamLost | StreamUnavailable:
        code = error_code(error)
        words = error.args[1] if code and len(error.args) > 1 else str(error)
        message = f"the server {self._address} says: {words}"
        if code == NO_GRANT:
            return StreamUnavailable(message, self._server.stream_grant)
        if code == _SAME_SERVER_ID or re.search("same server_(uuid|id)", str(words)):
            return StreamLost(message, "server_id")
        if code == _POSITION_LOST:
            return StreamLost(message, "position")
        if code in _SHUTDOWN:
            return StreamLost(message, "shutdown")
        if code in _KILLED:
            return StreamLost(message, "killed")
        translated = translate_error(error, self._address)
        if isinstance(translated, Misconfigured):
            return StreamUnavailable(translated.message, translated.hint)
        return StreamLost(translated.message, "link")
