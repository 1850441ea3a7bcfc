"""Reads events one by one from mysql-replication's stream, opened at a position; translates its errors to ours."""

from __future__ import annotations

import logging
import re
import struct
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

# It recommends FULL metadata, in several lines, at each connect; connections are logged by us.
logging.getLogger("pymysqlreplication").setLevel(logging.ERROR)

_LIBRARY: Final[Any] = binlogstream.BinLogStreamReader

# No QueryEvent: on MySQL 9.7 it raises before the position has advanced; statements are seen by LoggedStatements. XidEvents of
# other tables advance the position.
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

# Events without rows for which mysql-replication has no class: ignorable, GTIDs anonymous and tagged, the two of group
# replication, another heartbeat; MariaDB's compressed statement. Any other unknown event may have contained rows: 40 is MySQL's
# compressed transaction, 0xA6 and its neighbours are MariaDB's compressed rows, 26 reports that the log is incomplete.
_WITHOUT_ROWS: Final = frozenset({0x1C, 0x22, 0x24, 0x25, 0x29, 0x2A, 0xA5})

# Types of the events that contain a statement, QUERY and EXECUTE_LOAD_QUERY, and the size of what is before their status variables.
_STATEMENT_HEADERS: Final = {2: 13, 18: 26}
_EVENT_HEADER: Final = 20
"""Bytes of a packet before the part of its type: one of the protocol, 19 of every event."""
_STATEMENT_BYTES: Final = 4096
"""Length up to which a statement is searched for the table's name: an INSERT may have megabytes."""

_SILENT_HEARTBEATS: Final = 3.5
"""Heartbeat intervals of silence after which the link counts as dead."""
_CONNECT_TIMEOUT: Final = 10
_UNREADABLE_LIMIT: Final = 20
"""Consecutive events that cannot be decoded after which the whole connection is no longer trusted."""

_POSITION_LOST: Final = 1236
_SAME_SERVER_ID: Final = 4052
_SHUTDOWN: Final = frozenset({1053, 1077})
_KILLED: Final = frozenset({1317, 1927, 3169})


@dataclass(frozen=True, slots=True)
class ChangedRows:
    """Rows of our table that were written or changed.

    Attributes:
        doubt: why the ids may be wrong; almost always empty.
    """

    ids: list[int]
    doubt: str = ""


class StreamMark(NamedTuple):
    """A position between two transactions: everything before it has been returned.

    There is one for each transaction of the server, of any table, so it contains only values at hand; the rest is computed on
    demand.

    Attributes:
        file: of the log.
        offset: in the file, in bytes.
        written_at: the newest time of a mark, in seconds since the epoch by the server's clock; 0 before the first.
        heard_at: when it was read, in seconds of the monotonic clock.
        idle: whether it is a heartbeat: the server had nothing to send.
    """

    file: str
    offset: int
    written_at: int
    heard_at: float
    idle: bool


@dataclass(frozen=True, slots=True)
class UnreadableEvent:
    """An event that could not be read, and may have contained rows."""

    why: str


StreamItem: TypeAlias = ChangedRows | StreamMark | UnreadableEvent


class LoggedStatements:
    """Recognizes events with a statement that changes the table: the log has its text in place of rows. Pure.

    A session logs statements although ``binlog_format`` is ROW if it has another value itself, like a session opened before the
    variable was set.

    Args:
        schema: the database of the table.
        table: its name.
    """

    def __init__(self, schema: str, table: str) -> None:
        self._schema = schema.encode().lower()
        in_schema, name = (re.escape(name.encode()) for name in (schema, table))
        self._change = re.compile(
            rb"(?>\s|/\*.*?\*/|--\s[^\n]*|\#[^\n]*)*+"
            rb"(?:INSERT|REPLACE|UPDATE|LOAD|WITH|SET)\b.*?"
            rb"(?:(?<![\w$])(" + in_schema + rb")`?\s*\.\s*`?)?(?<![\w$])" + name + rb"(?![\w$])",
            re.IGNORECASE | re.DOTALL,
        )

    def writer(self, packet: bytes) -> int | None:
        """The id of the connection that wrote such a statement; None for every other event.

        Args:
            packet: as the server sends it.
        """
        header = _STATEMENT_HEADERS.get(packet[5]) if len(packet) > _EVENT_HEADER + 13 else None
        if header is None:
            return None
        connection, _, schema_bytes, _, variables = struct.unpack_from("<IIBHH", packet, _EVENT_HEADER)
        begin = _EVENT_HEADER + header + variables
        end = begin + schema_bytes
        change = self._change.match(packet[end + 1 : end + _STATEMENT_BYTES])
        if change is None or not (change[1] or packet[begin:end].lower() == self._schema):
            return None
        return int(connection)


class BinlogReader:
    """The stream of one connection. It never reconnects.

    Args:
        connections: opens the connections; the caller closes them.
        settings: PyMySQL's connection settings; neither kept nor changed.
        server: as identified.
        start: position of the first event.
        key: table and key as they are now.
        look_up_key: looks them up again.
        server_id: ours, among the server's replicas.
        heartbeat: interval of an idle server's heartbeats, in seconds.

    Attributes:
        heard_at: when the last event was read, in seconds of the monotonic clock.
    """

    def __init__(
        self,
        connections: InterruptibleConnections,
        settings: Mapping[str, Any],
        *,
        server: ServerInfo,
        start: Position,
        key: KeyColumn,
        look_up_key: Callable[[], KeyColumn],
        server_id: int,
        heartbeat: float,
    ) -> None:
        self._connections = connections
        self._server = server
        self._keys = PrimaryKeyDecoder(look_up_key)
        self._table = key.table
        self._statements = LoggedStatements(key.schema, key.table)
        self._silence = heartbeat * _SILENT_HEARTBEATS
        self._unreadable = 0
        self._opened = False
        self._stream_connected = False
        self._checksum: int | None = None
        self._written_at = 0
        self.heard_at = time.monotonic()
        self._address = f"{settings['host']}:{settings['port']}"
        self._reader = _LIBRARY(
            # A dict of its own: the library changes it.
            connection_settings={**settings, "read_timeout": self._silence, "connect_timeout": _CONNECT_TIMEOUT},
            server_id=server_id,
            pymysql_wrapper=self._connect,
            # With is_mariadb the position would be ignored, without resume_stream the offset.
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
            # A table's description is read once for each table id, and an ALTER makes a new id; reading it for each transaction would
            # be half of the library's work.
            freeze_schema=True,
            # The other columns are not used, and an md5 is not valid UTF-8.
            ignore_decode_errors=True,
            # It would log the settings, password included.
            enable_logging=False,
        )

    def open(self) -> None:
        """Connects, and waits for the first event, which confirms that the server has the position.

        Raises:
            StreamLost: it does not have it, or the connection broke.
            StreamUnavailable: it denies access.
        """
        event = self._fetch()
        if not isinstance(event, RotateEvent):
            raise StreamLost(f"the stream begins with {type(event).__name__}, not with its file's name", "decode")
        self._opened = True
        self._watch_packets()

    def next(self) -> StreamItem:
        """Waits for the next item, on a healthy link for at most one or two heartbeats.

        Raises:
            StreamLost: the stream ended.
            StreamUnavailable: the stream ended, and no other is possible in the current state.
        """
        reader = self._reader
        while True:
            try:
                event = self._fetch()
            except UndecodableEvent as error:
                return UnreadableEvent(str(error))
            if isinstance(event, _MARKS):  # first, since most of a busy server's transactions are of other tables
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
        """Notices a change of binlog_checksum: the library reads it once, at its connect, and would then cut four bytes too many or too
        few off each event."""
        if self._checksum is None:
            self._checksum = event.checksum_algorithm
        elif event.checksum_algorithm != self._checksum:
            raise StreamLost(f"the server {self._address} changed binlog_checksum", "decode")

    def _watch_packets(self) -> None:
        """Looks at each packet before the library does, which skips statements unseen, and would fail to decode them."""
        connection = self._reader._stream_connection
        read = connection._read_packet

        def read_packet() -> Any:
            packet = read()
            writer = self._statements.writer(packet.get_all_data())
            if writer is not None:
                self.heard_at = time.monotonic()
                raise UndecodableEvent(
                    f"a session still logs statements: reconnect the writer, connection {writer} of the server;"
                    f" the log has its statement on {self._table}, not the rows"
                )
            return packet

        connection._read_packet = read_packet

    def _fetch(self) -> Any:
        try:
            event = self._reader.fetchone()
        except (StreamLost, StreamUnavailable, UndecodableEvent):
            raise
        except (pymysql.MySQLError, OSError) as error:
            raise self._translate(error) from error
        except Exception as error:
            # The packet has been read, so the next call continues behind it; but only on an open connection.
            if not self._opened:
                raise StreamLost(f"the stream cannot be opened: {type(error).__name__}: {error}", "decode") from error
            why = f"{type(error).__name__} while an event was decoded: {error}"
            self.heard_at = time.monotonic()
            self._unreadable += 1
            if self._unreadable >= _UNREADABLE_LIMIT:
                raise StreamLost(f"{_UNREADABLE_LIMIT} events in a row could not be read: {why}", "decode") from error
            raise UndecodableEvent(why) from error
        self._unreadable = 0
        if event is None:
            raise StreamLost(f"the server {self._address} ended the stream: it is shutting down", "shutdown")
        self.heard_at = time.monotonic()
        return event

    def _connect(self, **settings: Any) -> Any:
        """Called by the library to connect: once for the stream, once for its queries about tables."""
        if "db" in settings:
            settings["database"] = settings.pop("db")
        elif self._stream_connected:
            # The library lost the connection and would reconnect on its own, past our checks and metrics.
            silent = time.monotonic() - self.heard_at
            if silent >= self._silence:
                raise StreamLost(f"the server {self._address} has been silent for {silent:.1f} s", "stalled")
            raise StreamLost(f"the connection to the server {self._address} broke", "link")
        else:
            self._stream_connected = True
        connection = self._connections.connect(settings)
        self.heard_at = time.monotonic()
        return connection

    def _translate(self, error: Exception) -> StreamLost | StreamUnavailable:
        code = error_code(error)
        text = error.args[1] if code and len(error.args) > 1 else str(error)
        message = f"the server {self._address} says: {text}"
        if code == NO_GRANT:
            return StreamUnavailable(message, self._server.stream_grant)
        if code == _SAME_SERVER_ID or re.search("same server_(uuid|id)", str(text)):
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
