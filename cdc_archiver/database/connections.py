"""Connections to the database, and its errors translated to ours."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Final, Protocol

import pymysql
import sqlalchemy as sa
from pymysql.connections import Connection as RawConnection
from sqlalchemy import event
from sqlalchemy.pool import QueuePool

from cdc_archiver.database import schema
from cdc_archiver.database.server_identity import ServerIdentity, identify_server
from cdc_archiver.errors import (
    ArchiverError,
    DatabaseUnavailable,
    Misconfigured,
    ReadOnlyServer,
    RowLocked,
    StatementRefused,
)
from cdc_archiver.settings import Settings

CONNECT_TIMEOUT: Final = 10
"""Seconds."""
ANSWER_TIMEOUT: Final = 60
"""Seconds that a statement may take to answer: detects a half-open connection."""
PING_TIMEOUT: Final = 4
"""Seconds without an answer after which an idle connection counts as dead, and with it all others of its pool."""

# The fix by the server's error number: errors of the request or the account, where waiting does not help.
_FIXES: Final = {
    1044: "grant the user access to the database",
    1045: "check MYSQL_USER and MYSQL_PASSWORD (or MYSQL_PASSWORD_FILE)",
    1049: "check MYSQL_DATABASE",
    1054: "`cdc-archiver check` names each column that differs from the table of a pysmurf monitor",
    1142: "`cdc-archiver check` names the GRANT that `run` needs; `init-db` needs CREATE and INDEX",
    1143: "`cdc-archiver check` names the GRANT that `run` needs; `init-db` needs CREATE and INDEX",
    1050: "this user may not see the table: grant it SELECT and UPDATE",
    1146: "if the table was renamed, rename it back or set --table; if it was dropped, restore it; see `cdc-archiver check`",
    1227: "run the GRANT that `cdc-archiver check` names",
    1298: "check --db-time-zone; the name of a zone needs the server's time zone tables, +00:00 does not",
    1698: "check MYSQL_USER and MYSQL_PASSWORD (or MYSQL_PASSWORD_FILE)",
    3118: "the account is locked: unlock it",
}


_NO_SUCH_TABLE: Final = 1146
_READ_ONLY: Final = {1290, 1792, 1836}
_LOCKED: Final = {1205, 1213}
_REFUSED: Final = {1048, 1062, 1264, 1265, 1292, 1364, 1366, 1406, 1442, 1644, 3819, 4025}
_LOCK_WAIT: Final = 5
"""Seconds that a write waits for a row locked by another transaction."""
_GROUP_CONCAT_BYTES: Final = 1_000_000
"""MariaDB's default; MySQL's default, 1,024, would truncate the digests of a write-back's rows."""
_ISOLATION: Final = "SET SESSION TRANSACTION ISOLATION LEVEL"
"""Of every session of ours, since the server's default may show rows that are never committed, or lock all rows that are read."""


class DatabaseObserver(Protocol):
    """Is told what connections meet, by the thread that uses them."""

    def heard(self, server: ServerIdentity) -> None:
        """A new connection leads to this server."""

    def read_only(self, message: str) -> None:
        """The server refused a write since it is read-only."""


class SharedContextConnection(RawConnection):
    """PyMySQL's connection, with one TLS context shared by all connections without TLS settings.

    PyMySQL makes a context for each connection, and reads the system's certificates, which it does not use: 24 to 35 ms of CPU,
    most of the cost of a connection.
    """

    _context: ClassVar[ssl.SSLContext | None] = None

    def _create_ssl_ctx(self, options: Any) -> ssl.SSLContext:
        make: Callable[[Any], ssl.SSLContext] = super()._create_ssl_ctx  # type: ignore[misc]
        if options:
            return make(options)
        if SharedContextConnection._context is None:  # two threads at once make two, of which one is kept
            SharedContextConnection._context = make(options)
        return SharedContextConnection._context


class Database:
    """The database of one archiver. Safe to share between threads.

    Args:
        settings: its address and account.
        answer_timeout: seconds that a statement may take to answer; None for no limit.
    """

    def __init__(self, settings: Settings, answer_timeout: float | None = ANSWER_TIMEOUT) -> None:
        self._settings = settings
        self._answer_timeout = answer_timeout
        self.observer: DatabaseObserver | None = None
        self._generation = 0
        self.name = settings.mysql_database
        self.address = f"{settings.mysql_host}:{settings.mysql_port}"
        self._reading = self._engine(autocommit=True)
        # A separate pool, since a change of a connection's mode costs two statements each time.
        self._writing = self._engine(autocommit=False)

    def raw_connection(self, **options: Any) -> RawConnection[Any]:
        """A PyMySQL connection outside the pools: for the locks.

        Args:
            options: PyMySQL's; they override :meth:`connection_settings`.
        """
        return SharedContextConnection(**{**self.connection_settings(), **options})

    def connection_settings(self) -> dict[str, Any]:
        """PyMySQL's arguments, including the password: a new dict each time, never to be logged."""
        settings = self._settings
        arguments: dict[str, Any] = {
            "host": settings.mysql_host,
            "port": settings.mysql_port,
            "user": settings.mysql_user,
            # As bytes: PyMySQL would encode a text as Latin-1.
            "password": settings.password.encode("utf-8", "surrogateescape"),
            "database": settings.mysql_database,
            "charset": "utf8mb4",
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": self._answer_timeout,
            "write_timeout": self._answer_timeout,
            "autocommit": True,
            "init_command": f"{_ISOLATION} READ COMMITTED",
        }
        if settings.mysql_ssl_ca or settings.mysql_ssl_cert:
            try:
                context = ssl.create_default_context(cafile=settings.mysql_ssl_ca)
                if settings.mysql_ssl_cert:
                    # With an encrypted key, OpenSSL would prompt on a terminal.
                    context.load_cert_chain(settings.mysql_ssl_cert, settings.mysql_ssl_key, password=lambda: b"")
            except (OSError, ssl.SSLError) as error:
                raise Misconfigured(
                    f"the TLS files of the database connection cannot be used: {error}",
                    "check MYSQL_SSL_CA, MYSQL_SSL_CERT and MYSQL_SSL_KEY",
                ) from error
            arguments["ssl"] = context
        return arguments

    @contextmanager
    def connect(self) -> Iterator[sa.Connection]:
        """A connection where each statement is a transaction: it reads the current rows.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        with self._translated_errors(), self._reading.connect() as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A connection with one transaction, committed at the end. Keep it short.

        Raises:
            DatabaseUnavailable: the database does not answer; whether a commit arrived is unknown.
            Misconfigured: it answers, and a person must fix something.
        """
        with self._translated_errors(), self._writing.begin() as connection:
            yield connection

    def close(self) -> None:
        """Closes the idle connections now, and those in use when they are given back."""
        self._generation += 1
        self._reading.dispose()
        self._writing.dispose()

    def _engine(self, *, autocommit: bool) -> sa.Engine:
        engine = sa.create_engine(
            "mysql+pymysql://",
            creator=lambda: self.raw_connection(autocommit=autocommit),
            **({"isolation_level": "AUTOCOMMIT"} if autocommit else {}),
            poolclass=QueuePool,
            pool_size=4,
            max_overflow=8,
            pool_timeout=30,
            pool_recycle=600,
        )

        @event.listens_for(engine, "connect")
        def _set_session(connection: Any, record: Any) -> None:
            record.info["fresh"] = True
            record.info["generation"] = self._generation
            with connection.cursor() as cursor:
                # MariaDB's EMPTY_STRING_IS_NULL would make NULL of each '' in our statements; it would do so here as well.
                cursor.execute(
                    "SET SESSION innodb_lock_wait_timeout = %s, SESSION group_concat_max_len = %s,"
                    " SESSION sql_mode = REPLACE(@@sql_mode, 'EMPTY_STRING_IS_NULL', ',')",
                    (_LOCK_WAIT, _GROUP_CONCAT_BYTES),
                )
                # InnoDB cannot write in STATEMENT format at READ COMMITTED.
                if cursor.execute(
                    "SHOW SESSION VARIABLES WHERE Variable_name = 'binlog_format' AND Value = 'STATEMENT'"
                ):
                    cursor.execute(f"{_ISOLATION} REPEATABLE READ")
                if self._settings.db_time_zone:
                    cursor.execute("SET SESSION time_zone = %s", (self._settings.db_time_zone,))
            if self.observer is not None:
                self.observer.heard(identify_server(connection))

        # A disposed pool keeps what is given back to it later.
        @event.listens_for(engine, "checkin")
        def _close_old(connection: Any, record: Any) -> None:
            if connection is not None and record.info.get("generation") != self._generation:
                record.invalidate()

        # SQLAlchemy's `pool_pre_ping` waits for as long as a statement may take: a link that fell silent while the connection was
        # idle would block its next user for a minute.
        @event.listens_for(engine, "checkout")
        def _ping(connection: Any, record: Any, _proxy: Any) -> None:
            if record.info.pop("fresh", False):
                return
            limit, connection._read_timeout = connection._read_timeout, PING_TIMEOUT
            try:
                connection.ping(reconnect=False)
            except (pymysql.MySQLError, OSError) as error:
                raise sa.exc.InvalidatePoolError from error
            finally:
                connection._read_timeout = limit

        return engine

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.TimeoutError as error:
            raise DatabaseUnavailable(f"all connections to the database {self.address} are busy") from error
        except (sa.exc.DBAPIError, pymysql.MySQLError, OSError, UnicodeError) as error:
            if error_code(error) == _NO_SUCH_TABLE:
                raise self._missing_table(error) from error
            translated = translate_error(error, self.address)
            if isinstance(translated, ReadOnlyServer) and self.observer is not None:
                self.observer.read_only(translated.message)
            raise translated from error
        except sa.exc.InvalidRequestError as error:
            if "connection is closed" not in str(error):
                raise
            # The pool tried twice, and both times the new connection was dead at check-out.
            raise DatabaseUnavailable(
                f"the database {self.address} accepts connections and does not answer",
                "look at the server's log and load",
            ) from error

    def _missing_table(self, error: BaseException) -> ArchiverError:
        """The error of a statement for lack of a table, which names what else there is, or the trigger as the cause."""
        translated = translate_error(error, self.address)
        name = re.search(r"'(?:[^']*\.)?([^'.]+)'", translated.message)
        statement = getattr(error, "statement", None)
        if name and statement and not re.search(rf"(?<!\w){re.escape(name[1])}(?!\w)", statement, re.IGNORECASE):
            return Misconfigured(
                f"{translated.message}; a trigger names it", "create that table, or drop the trigger: SHOW TRIGGERS"
            )
        others: list[str] = []
        with suppress(sa.exc.SQLAlchemyError, pymysql.MySQLError, OSError), self._reading.connect() as connection:
            others = schema.similar_tables(connection, self.name)
        there = f"; the database {self.name} has {', '.join(others)}" if others else ""
        return Misconfigured(translated.message + there, translated.hint)


def error_code(error: BaseException) -> int:
    """The server's error number; 0 where there is none."""
    original = getattr(error, "orig", None) or error
    code = original.args[0] if isinstance(original, pymysql.MySQLError) and original.args else 0
    return code if isinstance(code, int) else 0


def translate_error(error: BaseException, address: str) -> DatabaseUnavailable | Misconfigured | StatementRefused:
    """Translates a driver's error to ours.

    Args:
        error: of PyMySQL, SQLAlchemy or the socket.
        address: host and port, for the message.
    """
    code = error_code(error)
    original = getattr(error, "orig", None) or error
    message = original.args[1] if code and len(original.args) > 1 else original
    if code in _FIXES:
        return Misconfigured(f"the database {address} says: {message}", _FIXES[code])
    if code in _READ_ONLY:
        return ReadOnlyServer(
            f"the database {address} is read-only: {message}",
            "set MYSQL_HOST to the primary, or wait for the end of its maintenance (SELECT @@read_only); the service asks "
            "again by itself",
        )
    if code in _LOCKED:
        return RowLocked(f"the database {address}: {message}", "find the open transaction that holds the row")
    if code in _REFUSED or isinstance(original, pymysql.DataError | pymysql.IntegrityError | UnicodeError):
        return StatementRefused(
            f"the database {address} rejects the value: {message}", "compare the column with `cdc-archiver check`"
        )
    return DatabaseUnavailable(
        f"the database {address} cannot be used: {message}",
        "check that it is running, and the settings mysql_host and mysql_port" if code in (2002, 2003, 0) else "",
    )
