"""What the database has to be and to allow. Nothing here changes anything in it."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterable, Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from cdc_archiver.database import history, schema
from cdc_archiver.database.connections import Database, error_code
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.server_features import ServerInfo, ServerKind, identify, position, stream_obstacles
from cdc_archiver.errors import ArchiverError, Misconfigured
from cdc_archiver.preflight.findings import Finding, failure, from_error, guarded, ok, warning
from cdc_archiver.settings import Settings


def database_findings(database: Database, settings: Settings) -> list[Finding]:
    """What the database has to be and to allow."""
    return guarded("database", lambda: _database(database, settings))


def _database(database: Database, settings: Settings) -> Iterator[Finding]:
    try:
        with database.connect() as connection:
            server = identify(connection)
    except ArchiverError as error:
        yield _no_connection(database, settings, error)
        return
    yield ok("database", f"{server} at {database.address}, database {database.name}, as {server.account}")
    yield from guarded("database", lambda: _writable(database))
    yield from guarded("clock", lambda: _clock(database, settings))
    yield from guarded("server_id", lambda: _server_id(database, settings, server))
    try:
        with database.connect() as connection:
            name = schema.resolve_table(connection, database.name, settings.table)
    except ArchiverError as error:
        yield _no_table(database, settings, server, error)
        return
    table = _Table(database, server, name)
    yield from guarded("grants", table.rights)
    yield from guarded("table", table.columns)
    yield from guarded("table", table.engine)
    yield from guarded("index", table.index)
    yield from guarded("stream", lambda: table.stream(settings))
    yield from guarded("history", table.side_table)
    yield from guarded("table", lambda: table.older_versions(settings))
    yield from guarded("targets", lambda: table.targets(settings))


_NO_RIGHT: Final = {1142, 1143}
_NO_SUCH_TABLE: Final = 1146
_NO_DATABASE_RIGHT: Final = 1044
_NO_DATABASE: Final = 1049
_INTEGERS: Final = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint"})
_TEXTS: Final = frozenset({"char", "varchar", "tinytext", "text", "mediumtext", "longtext", "binary", "varbinary"})
_FIT: Final = {
    "id": _INTEGERS,
    "path": _TEXTS,
    "action": _TEXTS,
    "timestamp": frozenset({"timestamp", "datetime"}),
    "action_timestamp": _INTEGERS | {"double", "float", "decimal"},
    "plot": _INTEGERS | {"bit"},
    "pub_id": _TEXTS,
    "instance_id": _TEXTS,
    "copied": _INTEGERS,
    # It has to hold 1000 for refused and 2000 for ignored.
    "failed_copy_attempts": _INTEGERS - {"tinyint"},
    "md5sum": frozenset({"binary", "varbinary"}),
}
"""Types of a column that mean what we take it for."""


class _Table:
    """The questions about one table of files, each on a connection of its own."""

    def __init__(self, database: Database, server: ServerInfo, name: str) -> None:
        self._database = database
        self._server = server
        self._name = name
        self._full_name = f"`{database.name}`.`{name}`"
        self._to_innodb = f"ALTER TABLE {self._full_name} ENGINE = InnoDB"

    def rights(self) -> Iterator[Finding]:
        with self._database.connect() as connection:
            columns = [name for name in schema.USED_COLUMNS if name in self._types(connection)]
            written = [name for name in ("path", "copied", "failed_copy_attempts") if name in columns]
            same = ", ".join(f"`{name}` = `{name}`" for name in written) or "id = id"
            tried = {
                "SELECT": [f"SELECT {_listed(columns) or 1} FROM {self._full_name} LIMIT 0"],
                # EXPLAIN asks for the rights of the statement, and does nothing.
                "UPDATE": [
                    f"EXPLAIN UPDATE {self._full_name} SET {same} WHERE 1 = 0",
                    f"SELECT 1 FROM {self._full_name} WHERE 1 = 0 FOR UPDATE",
                ],
            }
            missing = [right for right, statements in tried.items() if not _allowed(connection, statements)]
        if missing:
            yield failure(
                "grants",
                f"{self._server.account} lacks {' and '.join(missing)} on the table {self._name}",
                f"GRANT SELECT, UPDATE ON {self._full_name} TO {self._server.account}",
            )
        else:
            yield ok("grants", f"SELECT and UPDATE on the table {self._name}")

    def columns(self) -> Iterator[Finding]:
        with self._database.connect() as connection:
            types = self._types(connection)
        model = schema.files_table(self._name)
        dialect = mysql.dialect()
        wrong = False
        for column in schema.USED_COLUMNS:
            definition = str(sa.schema.CreateColumn(model.c[column]).compile(dialect=dialect))
            if column not in types:
                wrong = True
                key = " PRIMARY KEY" if model.c[column].primary_key else ""
                yield failure(
                    "table",
                    f"the table {self._name} has no column {column}",
                    f"ALTER TABLE {self._full_name} ADD COLUMN {definition}{key}",
                )
            elif types[column] not in _FIT[column]:
                wrong = True
                yield failure(
                    "table",
                    f"the column {column} of the table {self._name} is a {types[column]}",
                    f"ALTER TABLE {self._full_name} MODIFY COLUMN {definition}  -- or name the right table with --table",
                )
        if not wrong:
            yield ok("table", f"{self._name} has all columns")

    def engine(self) -> Iterator[Finding]:
        query = sa.text("SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = :d AND TABLE_NAME = :t")
        with self._database.connect() as connection:
            engine = connection.execute(query, {"d": self._database.name, "t": self._name}).scalar()
        if engine is not None and engine.lower() != "innodb":
            yield failure(
                "table",
                f"the table {self._name} is stored by {engine}, which has no transactions: two writers cannot be kept"
                " apart, and the stream cannot be followed",
                self._to_innodb,
            )

    def index(self) -> Iterator[Finding]:
        with self._database.connect() as connection:
            there = schema.has_index(connection, self._database.name, self._name)
        if there:
            yield ok("index", "a sweep reads the pending rows alone")
        else:
            yield warning(
                "index",
                f"no index helps the sweep: each one reads the whole table {self._name}",
                f"{schema.index_statement(self._name)}  -- or: cdc-archiver init-db",
            )

    def stream(self, settings: Settings) -> Iterator[Finding]:
        until_then = f"; until that is fixed the table is polled every {settings.poll_interval:g} s"
        with self._database.connect() as connection:
            obstacles = stream_obstacles(connection, self._server, self._database.name, self._name)
            for obstacle in (obstacle for obstacle in obstacles if obstacle.fix != self._to_innodb):
                yield warning("stream", obstacle.what + (until_then if obstacle.fatal else ""), obstacle.fix)
            if not obstacles:
                yield ok(
                    "stream", f"new files are seen at once; the binary log is at {position(connection, self._server)}"
                )

    def side_table(self) -> Iterator[Finding]:
        """Asks for the side table's rights without making it: nothing here changes anything."""
        name = f"`{self._database.name}`.`{history.NAME}`"
        grant = f"GRANT CREATE, SELECT, INSERT, DELETE ON {name} TO {self._server.account}"
        tried = {
            "SELECT": f"SELECT 1 FROM {name} LIMIT 0",
            "INSERT": f"EXPLAIN INSERT INTO {name} (file_id) SELECT 1 FROM DUAL WHERE 1 = 0",
            "DELETE": f"EXPLAIN DELETE FROM {name} WHERE 1 = 0",
            # A definition that cannot be: the right is asked for first.
            "CREATE": f"CREATE TABLE {name} (a INT, a INT)",
        }
        with self._database.connect() as connection:
            refusals = {right: _refusal(connection, statement) for right, statement in tried.items()}
        absent = refusals["SELECT"] == _NO_SUCH_TABLE
        if refusals["SELECT"] == 0:
            del refusals["CREATE"]  # it is there: nobody has to make it
        if missing := [right for right, code in refusals.items() if code in _NO_RIGHT]:
            lacks = ", ".join(missing)
            yield warning(
                "history",
                f"{self._server.account} lacks {lacks} on the side table {history.NAME}: past tries are not kept",
                grant,
            )
        elif absent:
            yield ok("history", f"the side table {history.NAME} will be made at the first run")
        else:
            yield ok("history", f"what is tried is kept in {history.NAME}")

    def targets(self, settings: Settings) -> Iterator[Finding]:
        files = FilesTable(self._name, 0, settings.max_attempts)
        others: dict[str, int] = {}
        # Where the table cannot be read, the findings above have said so.
        with contextlib.suppress(Misconfigured), self._database.connect() as connection:
            for source in settings.sources:
                if outside := files.pending_outside(connection, source.target, source.source_root):
                    yield warning(
                        "targets",
                        f"{outside} files of the source {source.name} wait that are not below its source root "
                        f"{source.source_root}",
                        "--source-root DIRECTORY  # that they all lie below; / for anywhere",
                    )
            others = files.pending_of_others(connection, settings.targets)
        for name, count in sorted(others.items()):
            yield warning(
                "targets",
                f"{count} files of the instance_id {name!r} wait, and this archiver is not asked to archive them",
                f"--target {shlex.quote(name)}  # unless another archiver has them",
            )

    def older_versions(self, settings: Settings) -> Iterator[Finding]:
        with self._database.connect() as connection:
            for name in schema.older_versions(connection, self._database.name, self._name):
                if FilesTable(name, 0, settings.max_attempts).census(connection, settings.targets).pending:
                    yield warning(
                        "table",
                        f"files of these targets wait in the table {name}, which nobody works on",
                        f"cdc-archiver run --table {name} --reconcile  # with the other settings as they are",
                    )

    def _types(self, connection: sa.Connection) -> dict[str, str]:
        """Types of the columns that we may see, by name."""
        rows = connection.execute(
            sa.text(
                "SELECT COLUMN_NAME AS name, DATA_TYPE AS type FROM information_schema.COLUMNS"
                " WHERE TABLE_SCHEMA = :database AND TABLE_NAME = :table"
            ),
            {"database": self._database.name, "table": self._name},
        )
        return {row.name.lower(): row.type.lower() for row in rows}


def _no_connection(database: Database, settings: Settings, error: ArchiverError) -> Finding:
    code = error_code(error.__cause__) if error.__cause__ is not None else 0
    if code == _NO_DATABASE:
        return failure("database", error.message, f"CREATE DATABASE `{database.name}`  -- or check MYSQL_DATABASE")
    if code == _NO_DATABASE_RIGHT:
        # The server lets us in, and not into this database: it can still tell who we are to it.
        with (
            contextlib.suppress(Exception),
            contextlib.closing(database.raw_connection(database=None)) as raw,
            raw.cursor() as cursor,
        ):
            cursor.execute("SELECT CURRENT_USER()")
            user, _, host = cursor.fetchone()[0].rpartition("@")
            return failure("grants", error.message, _table_grant(settings, f"'{user}'@'{host}'"))
    return from_error("database", error)


def _no_table(database: Database, settings: Settings, server: ServerInfo, error: ArchiverError) -> Finding:
    name = settings.table or schema.DEFAULT_TABLE
    with contextlib.suppress(ArchiverError), database.connect() as connection:
        # A table on which we have no right at all is not shown to us; only an attempt tells it from one that is not there,
        # and not even that where we have no right on anything.
        if not _allowed(connection, [f"SELECT 1 FROM `{database.name}`.`{name}` LIMIT 0"]):
            return failure(
                "grants",
                f"{error.message}, or {server.account} has no right on it",
                f"{_table_grant(settings, server.account)}  -- on a new site first: cdc-archiver init-db",
            )
    return from_error("table", error)


def _table_grant(settings: Settings, account: str) -> str:
    # Without a name, which table it is can only be seen with the right to see it.
    table = f"`{settings.table}`" if settings.table else "*"
    return f"GRANT SELECT, UPDATE ON `{settings.mysql_database}`.{table} TO {account}"


def _writable(database: Database) -> Iterator[Finding]:
    with database.connect() as connection:
        read_only = str(connection.exec_driver_sql("SELECT @@global.read_only").scalar()).upper()
    if read_only not in ("0", "OFF"):
        yield failure(
            "database",
            f"the server {database.address} is read-only: what is archived cannot be written back",
            "SET GLOBAL read_only = OFF  -- or name the primary with MYSQL_HOST",
        )


def _clock(database: Database, settings: Settings) -> Iterator[Finding]:
    with database.connect() as connection:
        began = time.time()
        zone, system, east, server_time = connection.exec_driver_sql(
            "SELECT @@session.time_zone, @@system_time_zone, TIMESTAMPDIFF(MINUTE, UTC_TIMESTAMP(), NOW()), UNIX_TIMESTAMP(NOW(6))"
        ).one()
        apart = float(server_time) - (began + time.time()) / 2
    whose = "as --db-time-zone says" if settings.db_time_zone else "the server's own"
    offset = f"{'-' if east < 0 else '+'}{abs(east) // 60:02}:{abs(east) % 60:02}"
    yield ok(
        "clock", f"the column timestamp is read in the zone {zone if zone != 'SYSTEM' else system} ({offset}), {whose}"
    )
    if abs(apart) > _CLOCKS_APART:
        yield warning(
            "clock",
            f"the database server's clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} this machine's:"
            " the stream's lag is shown wrongly",
            "timedatectl set-ntp true  # on both machines",
        )


_CLOCKS_APART: Final = 10.0


def _server_id(database: Database, settings: Settings, server: ServerInfo) -> Iterator[Finding]:
    if settings.server_id is None:
        return
    mine = settings.server_id
    with database.connect() as connection:
        if connection.exec_driver_sql("SELECT @@global.server_id").scalar() == mine:
            yield failure(
                "server_id",
                f"server_id {mine} is the database server's own",
                f"--server-id {mine % 4_000_000_000 + 1}  # or leave it out: a random one is taken then",
            )
            return
        old = server.kind is ServerKind.MARIADB or server.version < (8, 0, 22)
        try:
            replicas = connection.exec_driver_sql("SHOW SLAVE HOSTS" if old else "SHOW REPLICAS").all()
        except sa.exc.DBAPIError:
            yield ok("server_id", f"{mine}; whether another replica has it, this user may not see")
            return
    if any(int(replica[0]) == mine for replica in replicas):
        # Our own stream does not register itself, so this is somebody else.
        yield failure(
            "server_id",
            f"another replica has server_id {mine}: the server throws out one for the other",
            "leave --server-id out: a random one is taken then",
        )
    else:
        yield ok("server_id", f"{mine}, which no replica that registered has")


def knows_archived(database: Database, settings: Settings) -> bool:
    """Whether the history has files in data_dir; unknown is no."""
    with contextlib.suppress(Exception), database.connect() as connection:
        table = schema.resolve_table(connection, database.name, settings.table)
        return history.History(table, 0.0).knows_archived(connection, f"{settings.data_dir}/")
    return False


def _allowed(connection: sa.Connection, statements: Iterable[str]) -> bool:
    """Whether we have the rights for all of them."""
    return all(_refusal(connection, statement) not in _NO_RIGHT for statement in statements)


def _refusal(connection: sa.Connection, statement: str) -> int:
    """The server's error number for a statement that changes nothing; 0 where it takes it."""
    try:
        connection.exec_driver_sql(statement).close()
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        return error_code(error)
    return 0


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
