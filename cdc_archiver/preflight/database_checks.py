"""Checks the database, its tables and the permissions on them. Changes nothing in it."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterable, Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from cdc_archiver.database import history, schema, side_tables
from cdc_archiver.database.archives import KnownArchive, known_archive
from cdc_archiver.database.connections import Database, error_code
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.server_features import (
    ServerInfo,
    ServerKind,
    format_was_set,
    identify,
    position,
    stream_obstacles,
)
from cdc_archiver.errors import ArchiverError, Misconfigured
from cdc_archiver.preflight.findings import Finding, failure, finding_from_error, ok, run_check, warning
from cdc_archiver.settings import Settings


def database_findings(database: Database, settings: Settings) -> list[Finding]:
    """Checks the database, its tables and the permissions on them."""
    return run_check("database", lambda: _check_database(database, settings))


def _check_database(database: Database, settings: Settings) -> Iterator[Finding]:
    try:
        with database.connect() as connection:
            server = identify(connection)
    except ArchiverError as error:
        yield _connection_finding(database, settings, error)
        return
    yield ok("database", f"{server} at {database.address}, database {database.name}, as {server.account}")
    yield from run_check("database", lambda: _check_writable(database))
    yield from run_check("clock", lambda: _check_clock(database, settings))
    yield from run_check("server_id", lambda: _check_server_id(database, settings, server))
    try:
        with database.connect() as connection:
            name = schema.resolve_table(connection, database.name, settings.table)
    except ArchiverError as error:
        yield _missing_table_finding(database, settings, server, error)
        return
    table = _Table(database, server, name)
    yield from run_check("grants", table.privileges)
    yield from run_check("table", table.columns)
    yield from run_check("table", table.engine)
    yield from run_check("index", table.index)
    yield from run_check("stream", lambda: table.stream(settings))
    yield from run_check("history", table.history)
    yield from run_check("side tables", table.side_tables)
    yield from run_check("table", lambda: table.older_versions(settings))
    yield from run_check("targets", lambda: table.targets(settings))


_PRIVILEGE_DENIED: Final = {1142, 1143}
_NO_SUCH_TABLE: Final = 1146
_DATABASE_DENIED: Final = 1044
_NO_DATABASE: Final = 1049
_INTEGERS: Final = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint"})
_TEXTS: Final = frozenset({"char", "varchar", "tinytext", "text", "mediumtext", "longtext", "binary", "varbinary"})
_SUITABLE_TYPES: Final = {
    "id": _INTEGERS,
    "path": _TEXTS,
    "action": _TEXTS,
    "timestamp": frozenset({"timestamp", "datetime"}),
    "action_timestamp": _INTEGERS | {"double", "float", "decimal"},
    "plot": _INTEGERS | {"bit"},
    "pub_id": _TEXTS,
    "instance_id": _TEXTS,
    "copied": _INTEGERS,
    # It must hold 1000 for refused and 2000 for ignored.
    "failed_copy_attempts": _INTEGERS - {"tinyint"},
    "md5sum": frozenset({"binary", "varbinary"}),
}
"""Suitable types of each column."""


class _Table:
    """Checks of one table of files, each on a connection of its own."""

    def __init__(self, database: Database, server: ServerInfo, name: str) -> None:
        self._database = database
        self._server = server
        self._name = name
        self._full_name = f"`{database.name}`.`{name}`"
        self._innodb_statement = f"ALTER TABLE {self._full_name} ENGINE = InnoDB"

    def privileges(self) -> Iterator[Finding]:
        with self._database.connect() as connection:
            columns = [name for name in schema.USED_COLUMNS if name in self._types(connection)]
            written = [name for name in ("path", "copied", "failed_copy_attempts") if name in columns]
            same = ", ".join(f"`{name}` = `{name}`" for name in written) or "id = id"
            trials = {
                "SELECT": [f"SELECT {_column_list(columns) or 1} FROM {self._full_name} LIMIT 0"],
                # EXPLAIN needs the privileges of the statement and executes nothing.
                "UPDATE": [
                    f"EXPLAIN UPDATE {self._full_name} SET {same} WHERE 1 = 0",
                    f"SELECT 1 FROM {self._full_name} WHERE 1 = 0 FOR UPDATE",
                ],
            }
            missing = [privilege for privilege, statements in trials.items() if not _allowed(connection, statements)]
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
            elif types[column] not in _SUITABLE_TYPES[column]:
                wrong = True
                yield failure(
                    "table",
                    f"the column {column} of the table {self._name} has the unsuitable type {types[column]}",
                    f"ALTER TABLE {self._full_name} MODIFY COLUMN {definition}  -- or set --table to the right table",
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
                f"the table {self._name} uses the engine {engine}, which has no transactions: concurrent writers would collide,"
                " and the stream cannot be followed",
                self._innodb_statement,
            )

    def index(self) -> Iterator[Finding]:
        with self._database.connect() as connection:
            there = schema.has_index(connection, self._database.name, self._name)
        if there:
            yield ok("index", "a sweep reads only the pending rows")
        else:
            yield warning(
                "index",
                f"the index for the sweep is missing: each sweep reads the whole table {self._name}",
                f"{schema.index_statement(self._name)}  -- or: cdc-archiver init-db",
            )

    def stream(self, settings: Settings) -> Iterator[Finding]:
        until_then = f"; until this is fixed the table is polled every {settings.poll_interval:g} s"
        with self._database.connect() as connection:
            obstacles = stream_obstacles(connection, self._server, self._database.name, self._name)
            for obstacle in (obstacle for obstacle in obstacles if obstacle.fix != self._innodb_statement):
                yield warning("stream", obstacle.what + (until_then if obstacle.fatal else ""), obstacle.fix)
            if not obstacles:
                seen = f"new files are seen at once; the binary log is at {position(connection, self._server)}"
                if format_was_set(connection, self._server):
                    seen += (
                        "; binlog_format was set since the server's start, and sessions from before log statements:"
                        " reconnect the writers"
                    )
                yield ok("stream", seen)

    def history(self) -> Iterator[Finding]:
        """Checks the privileges on the history without creating it."""
        missing, absent = self._lacking(history.NAME, "CREATE, SELECT, INSERT, DELETE", "file_id")
        if missing:
            yield warning(
                "history",
                f"{self._server.account} lacks {', '.join(missing)} on the side table {history.NAME}: the history of attempts is "
                "not kept",
                f"GRANT CREATE, SELECT, INSERT, DELETE ON `{self._database.name}`.`{history.NAME}` TO {self._server.account}",
            )
        elif absent:
            yield ok("history", f"the first run will create the side table {history.NAME}")
        else:
            yield ok("history", f"attempts are recorded in {history.NAME}")

    def side_tables(self) -> Iterator[Finding]:
        """Checks the privileges on the other side tables without creating them."""
        statements = dict(
            zip(side_tables.PRIVILEGES, side_tables.grants(self._database.name, self._server.account), strict=True)
        )
        lacking = [
            table.name
            for table in side_tables.ALL
            if self._lacking(table.name, side_tables.PRIVILEGES[table.name], next(iter(table.columns)).name)[0]
        ]
        if lacking:
            yield warning(
                "side tables",
                f"{self._server.account} lacks privileges on {', '.join(lacking)}: files are archived all the same, and what is "
                "kept there is off",
                "; ".join(statements[name] for name in lacking),
            )
        else:
            yield ok("side tables", "archives, timecodes, marks and registrars are kept")

    def _lacking(self, table: str, privileges: str, column: str) -> tuple[list[str], bool]:
        """The privileges that are missing on a side table, and whether the table is."""
        name = f"`{self._database.name}`.`{table}`"
        trials = {
            "SELECT": f"SELECT 1 FROM {name} LIMIT 0",
            "INSERT": f"EXPLAIN INSERT INTO {name} ({column}) SELECT 1 FROM DUAL WHERE 1 = 0",
            "UPDATE": f"EXPLAIN UPDATE {name} SET {column} = {column} WHERE 1 = 0",
            "DELETE": f"EXPLAIN DELETE FROM {name} WHERE 1 = 0",
            # An impossible definition: the server checks the privilege first.
            "CREATE": f"CREATE TABLE {name} (a INT, a INT)",
        }
        with self._database.connect() as connection:
            refusals = {each: _error_number(connection, trials[each]) for each in privileges.split(", ")}
        absent = refusals["SELECT"] == _NO_SUCH_TABLE
        if refusals["SELECT"] == 0:
            del refusals["CREATE"]  # the table exists
        return [privilege for privilege, code in refusals.items() if code in _PRIVILEGE_DENIED], absent

    def targets(self, settings: Settings) -> Iterator[Finding]:
        files = FilesTable(self._name, 0, settings.max_attempts)
        others: dict[str, int] = {}
        # Where the table cannot be read, an earlier finding reports it.
        with contextlib.suppress(Misconfigured), self._database.connect() as connection:
            for source in settings.sources:
                if outside := files.pending_outside(connection, source.target, source.source_root):
                    yield warning(
                        "targets",
                        f"{outside} pending files of the source {source.name} are not below its source root {source.source_root}",
                        "--source-root DIRECTORY  # a directory that contains them all; / for anywhere",
                    )
            others = files.pending_of_others(connection, settings.targets)
        for name, count in sorted(others.items()):
            yield warning(
                "targets",
                f"{count} files of the instance_id {name!r} are pending, but it is not a target of this archiver",
                f"--target {shlex.quote(name)}  # unless another archiver archives them",
            )

    def older_versions(self, settings: Settings) -> Iterator[Finding]:
        with self._database.connect() as connection:
            for name in schema.older_versions(connection, self._database.name, self._name):
                if FilesTable(name, 0, settings.max_attempts).census(connection, settings.targets).pending:
                    yield warning(
                        "table",
                        f"files of these targets are pending in the older table {name}, which this archiver does not read",
                        f"cdc-archiver run --table {name} --reconcile  # with the other settings unchanged",
                    )

    def _types(self, connection: sa.Connection) -> dict[str, str]:
        """Types of the visible columns, by name."""
        rows = connection.execute(
            sa.text(
                "SELECT COLUMN_NAME AS name, DATA_TYPE AS type FROM information_schema.COLUMNS"
                " WHERE TABLE_SCHEMA = :database AND TABLE_NAME = :table"
            ),
            {"database": self._database.name, "table": self._name},
        )
        return {row.name.lower(): row.type.lower() for row in rows}


def _connection_finding(database: Database, settings: Settings, error: ArchiverError) -> Finding:
    code = error_code(error.__cause__) if error.__cause__ is not None else 0
    if code == _NO_DATABASE:
        return failure("database", error.message, f"CREATE DATABASE `{database.name}`  -- or check MYSQL_DATABASE")
    if code == _DATABASE_DENIED:
        # The login works, but not for this database: the server can still tell the name of the account.
        with (
            contextlib.suppress(Exception),
            contextlib.closing(database.raw_connection(database=None)) as raw,
            raw.cursor() as cursor,
        ):
            cursor.execute("SELECT CURRENT_USER()")
            user, _, host = cursor.fetchone()[0].rpartition("@")
            return failure("grants", error.message, _table_grant(settings, f"'{user}'@'{host}'"))
    return finding_from_error("database", error)


def _missing_table_finding(database: Database, settings: Settings, server: ServerInfo, error: ArchiverError) -> Finding:
    name = settings.table or schema.DEFAULT_TABLE
    with contextlib.suppress(ArchiverError), database.connect() as connection:
        # The server hides a table on which the account has no privilege; only a statement tells it from a missing one, and
        # not even that where the account has no privilege at all.
        if not _allowed(connection, [f"SELECT 1 FROM `{database.name}`.`{name}` LIMIT 0"]):
            return failure(
                "grants",
                f"{error.message}, or {server.account} has no privilege on it",
                f"{_table_grant(settings, server.account)}  -- on a new site first: cdc-archiver init-db",
            )
    return finding_from_error("table", error)


def _table_grant(settings: Settings, account: str) -> str:
    # Without --table, the name of the table is only known with the privilege to see it.
    table = f"`{settings.table}`" if settings.table else "*"
    return f"GRANT SELECT, UPDATE ON `{settings.mysql_database}`.{table} TO {account}"


def _check_writable(database: Database) -> Iterator[Finding]:
    with database.connect() as connection:
        read_only = str(connection.exec_driver_sql("SELECT @@global.read_only").scalar()).upper()
    if read_only not in ("0", "OFF"):
        yield failure(
            "database",
            f"the server {database.address} is read-only: results cannot be written back",
            "SET GLOBAL read_only = OFF  -- or set MYSQL_HOST to the primary",
        )


def _check_clock(database: Database, settings: Settings) -> Iterator[Finding]:
    with database.connect() as connection:
        began = time.time()
        zone, system, east, server_time = connection.exec_driver_sql(
            "SELECT @@session.time_zone, @@system_time_zone, TIMESTAMPDIFF(MINUTE, UTC_TIMESTAMP(), NOW()), UNIX_TIMESTAMP(NOW(6))"
        ).one()
        difference = float(server_time) - (began + time.time()) / 2
    origin = "set by --db-time-zone" if settings.db_time_zone else "the server's default"
    offset = f"{'-' if east < 0 else '+'}{abs(east) // 60:02}:{abs(east) % 60:02}"
    yield ok(
        "clock",
        f"the column timestamp is read in the time zone {zone if zone != 'SYSTEM' else system} ({offset}), {origin}",
    )
    if abs(difference) > _MAX_CLOCK_DIFFERENCE_SECONDS:
        yield warning(
            "clock",
            f"the database server's clock is {abs(difference):.0f} s {'ahead of' if difference > 0 else 'behind'} this machine's:"
            " the lag of the stream is shown wrongly",
            "timedatectl set-ntp true  # on both machines",
        )


_MAX_CLOCK_DIFFERENCE_SECONDS: Final = 10.0


def _check_server_id(database: Database, settings: Settings, server: ServerInfo) -> Iterator[Finding]:
    if settings.server_id is None:
        return
    mine = settings.server_id
    with database.connect() as connection:
        if connection.exec_driver_sql("SELECT @@global.server_id").scalar() == mine:
            yield failure(
                "server_id",
                f"server_id {mine} is the database server's own",
                f"--server-id {mine % 4_000_000_000 + 1}  # or omit it: the service then picks a random one",
            )
            return
        old = server.kind is ServerKind.MARIADB or server.version < (8, 0, 22)
        try:
            replicas = connection.exec_driver_sql("SHOW SLAVE HOSTS" if old else "SHOW REPLICAS").all()
        except sa.exc.DBAPIError:
            yield ok("server_id", f"{mine}; this account may not see whether another replica has it")
            return
    if any(int(replica[0]) == mine for replica in replicas):
        # The service's own stream does not register itself, so this is another replica.
        yield failure(
            "server_id",
            f"another replica has server_id {mine}: the server disconnects one of the two",
            "omit --server-id: the service then picks a random one",
        )
    else:
        yield ok("server_id", f"{mine}, not used by any registered replica")


def archive_known_to(database: Database, settings: Settings) -> KnownArchive:
    """What the database knows of the archive; nothing where it does not answer."""
    with contextlib.suppress(Exception), database.connect() as connection:
        table = schema.resolve_table(connection, database.name, settings.table)
        return known_archive(connection, table, settings.targets, settings.data_dir)
    return KnownArchive()


def _allowed(connection: sa.Connection, statements: Iterable[str]) -> bool:
    """Whether the account has the privileges for all statements."""
    return all(_error_number(connection, statement) not in _PRIVILEGE_DENIED for statement in statements)


def _error_number(connection: sa.Connection, statement: str) -> int:
    """The server's error number for a statement that changes nothing; 0 where the server accepts it."""
    try:
        connection.exec_driver_sql(statement).close()
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        return error_code(error)
    return 0


def _column_list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
