"""Connections to the database, and its errors in our words."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import pymysql
import sqlalchemy as sa
from pymysql.connections import Connection as RawConnection
from sqlalchemy import event
from sqlalchemy.pool import QueuePool

from cdc_archiver.errors import DatabaseUnavailable, Misconfigured, RowLocked, StatementRefused
from cdc_archiver.settings import Settings

CONNECT_TIMEOUT: Final = 10
"""Seconds."""
ANSWER_TIMEOUT: Final = 60
"""Seconds that one statement may stay without an answer: a half-open connection is noticed by it."""
PING_TIMEOUT: Final = 4
"""Seconds after which a connection that was idle is taken for dead, and all others of its pool with it."""

# The server answered, and its answer is about what we asked or who we are: waiting does not help.
_ASK_A_PERSON: Final = {
    1044: "grant the user access to the database",
    1045: "check MYSQL_USER and MYSQL_PASSWORD (or MYSQL_PASSWORD_FILE)",
    1049: "check MYSQL_DATABASE",
    1054: "the table is not what a pysmurf monitor makes: see `cdc-archiver check`",
    1142: "`cdc-archiver check` names the GRANT that `run` needs; `init-db` needs CREATE and INDEX",
    1143: "`cdc-archiver check` names the GRANT that `run` needs; `init-db` needs CREATE and INDEX",
    1146: "the table is gone: see `cdc-archiver check`, or `cdc-archiver init-db` to create it",
    1227: "grant the user what `cdc-archiver check` names",
    1298: "check --db-time-zone; a zone's name needs the server's time zone tables, +00:00 does not",
    1698: "check MYSQL_USER and MYSQL_PASSWORD (or MYSQL_PASSWORD_FILE)",
    3118: "the account is locked: unlock it",
}


_LOCKED: Final = {1205, 1213}
_REFUSED: Final = {1048, 1062, 1264, 1265, 1292, 1364, 1366, 1406, 1442, 1644, 3819, 4025}
_LOCK_WAIT: Final = 5
"""Seconds that a write waits for a row that somebody else's transaction holds."""
_GROUP_CONCAT_MOST: Final = 1_000_000
"""MariaDB's default, in bytes; MySQL's, 1,024, would cut the digests of a write-back's rows short."""


class SharedContextConnection(RawConnection):
    """PyMySQL's, but that the TLS context of connections for which no TLS is set is made once.

    It is made for each connection otherwise, and reads the system's certificates, which it does not use: 24 to 35 ms of CPU,
    most of what a connection costs.
    """

    _context: ClassVar[ssl.SSLContext | None] = None

    def _create_ssl_ctx(self, options: Any) -> ssl.SSLContext:
        make: Callable[[Any], ssl.SSLContext] = super()._create_ssl_ctx  # type: ignore[misc]
        if options:
            return make(options)
        if SharedContextConnection._context is None:  # two at the same time make two, and one of them is kept
            SharedContextConnection._context = make(options)
        return SharedContextConnection._context


class Database:
    """The database that one archiver works with. Safe to share between threads.

    Args:
        settings: where it is and who we are.
        answer_timeout: seconds that one statement may stay without an answer; None for as long as it takes.
    """

    def __init__(self, settings: Settings, answer_timeout: float | None = ANSWER_TIMEOUT) -> None:
        self._settings = settings
        self._answer_timeout = answer_timeout
        self.name = settings.mysql_database
        self.address = f"{settings.mysql_host}:{settings.mysql_port}"
        self._reading = self._engine(autocommit=True)
        # Of its own, since a connection that changes its mode costs two statements at each turn. REPEATABLE READ, the
        # servers' default: READ COMMITTED cannot write under STATEMENT format.
        self._writing = self._engine(autocommit=False)

    def raw_connection(self, **options: Any) -> RawConnection[Any]:
        """A PyMySQL connection of its own, outside the pool: for the lock.

        Args:
            options: PyMySQL's, over ours.
        """
        return SharedContextConnection(**{**self.connection_settings(), **options})

    def connection_settings(self) -> dict[str, Any]:
        """PyMySQL's arguments, the password among them: a new dict each time, and never to be logged."""
        settings = self._settings
        arguments: dict[str, Any] = {
            "host": settings.mysql_host,
            "port": settings.mysql_port,
            "user": settings.mysql_user,
            # As bytes: PyMySQL would take a text for Latin-1.
            "password": settings.password.encode("utf-8", "surrogateescape"),
            "database": settings.mysql_database,
            "charset": "utf8mb4",
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": self._answer_timeout,
            "write_timeout": self._answer_timeout,
            "autocommit": True,
        }
        if settings.mysql_ssl_ca or settings.mysql_ssl_cert:
            try:
                context = ssl.create_default_context(cafile=settings.mysql_ssl_ca)
                if settings.mysql_ssl_cert:
                    # An encrypted key would make OpenSSL ask at a terminal.
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
        """A connection where each statement is its own transaction: what is read is what is there now.

        Raises:
            DatabaseUnavailable: it does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        with self._translated_errors(), self._reading.connect() as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A connection with one transaction, committed at the end. Keep it short.

        Raises:
            DatabaseUnavailable: it does not answer; whether a commit arrived is unknown.
            Misconfigured: it answers, and a person must fix something.
        """
        with self._translated_errors(), self._writing.begin() as connection:
            yield connection

    def close(self) -> None:
        """Closes what is idle."""
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
            with connection.cursor() as cursor:
                cursor.execute(
                    "SET SESSION innodb_lock_wait_timeout = %s, SESSION group_concat_max_len = %s",
                    (_LOCK_WAIT, _GROUP_CONCAT_MOST),
                )
                if self._settings.db_time_zone:
                    cursor.execute("SET SESSION time_zone = %s", (self._settings.db_time_zone,))

        # SQLAlchemy's own `pool_pre_ping` waits for as long as a statement may take: a link that fell silent while the
        # connection was idle would hang whoever takes it for a minute.
        @event.listens_for(engine, "checkout")
        def _ask_whether_it_lives(connection: Any, record: Any, _proxy: Any) -> None:
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
            raise DatabaseUnavailable(f"the database {self.address} keeps all our connections busy") from error
        except (sa.exc.DBAPIError, pymysql.MySQLError, OSError, UnicodeError) as error:
            raise translate_error(error, self.address) from error
        except sa.exc.InvalidRequestError as error:
            if "connection is closed" not in str(error):
                raise
            # The pool tried twice, and each time the connection was dead when it was handed out.
            raise DatabaseUnavailable(f"the database {self.address} takes connections and does not answer") from error


def error_code(error: BaseException) -> int:
    """The server's error number, 0 where there is none."""
    original = getattr(error, "orig", None) or error
    code = original.args[0] if isinstance(original, pymysql.MySQLError) and original.args else 0
    return code if isinstance(code, int) else 0


def translate_error(error: BaseException, address: str) -> DatabaseUnavailable | Misconfigured | StatementRefused:
    """A driver's error as ours.

    Args:
        error: PyMySQL's, SQLAlchemy's or the socket's.
        address: host and port, for the sentence.
    """
    code = error_code(error)
    original = getattr(error, "orig", None) or error
    words = original.args[1] if code and len(original.args) > 1 else original
    if code in _ASK_A_PERSON:
        return Misconfigured(f"the database {address} says: {words}", _ASK_A_PERSON[code])
    if code in _LOCKED:
        return RowLocked(f"the database {address}: {words}", "which transaction is open there?")
    if code in _REFUSED or isinstance(original, pymysql.DataError | pymysql.IntegrityError | UnicodeError):
        return StatementRefused(f"the database {address} does not take it: {words}", "compare the column with `check`")
    return DatabaseUnavailable(
        f"the database {address} cannot be used: {words}",
        "is it running, and are MYSQL_HOST and MYSQL_PORT right?" if code in (2002, 2003, 0) else "",
    )
