"""What differs between MySQL and MariaDB: version and account, the end of the binary log, obstacles to a stream."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import total_ordering
from typing import Final

import sqlalchemy as sa

from cdc_archiver.database.connections import error_code
from cdc_archiver.errors import Misconfigured, StreamUnavailable

NO_GRANT: Final = 1227
"""The server's error number for a missing global privilege."""

_NO_BINARY_LOG: Final = 1381

_POSITION_PRIVILEGES: Final = {"REPLICATION CLIENT", "BINLOG MONITOR", "SUPER", "ALL PRIVILEGES"}
"""MariaDB 10.5 renamed REPLICATION CLIENT to BINLOG MONITOR, and still accepts the old name in a GRANT."""
_STREAM_PRIVILEGES: Final = {"REPLICATION SLAVE", "REPLICATION REPLICA", "ALL PRIVILEGES"}

_INTEGERS: Final = {"tinyint", "smallint", "mediumint", "int", "bigint"}


class ServerKind(StrEnum):
    """MySQL or MariaDB."""

    MYSQL = "mysql"
    MARIADB = "mariadb"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The server's kind and version, and our account.

    Attributes:
        version: three numbers, zeros where the server gives fewer.
        text: the version as the server gives it.
        account: ours, quoted for a GRANT.
    """

    kind: ServerKind
    version: tuple[int, int, int]
    text: str
    account: str

    def __str__(self) -> str:
        return f"{'MariaDB' if self.kind is ServerKind.MARIADB else 'MySQL'} {'.'.join(map(str, self.version))}"

    @property
    def stream_grant(self) -> str:
        """The statement that permits us to read the stream, valid in every version of both kinds."""
        return f"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {self.account}"


@total_ordering
@dataclass(frozen=True, slots=True)
class Position:
    """A position in the binary log; later positions are greater.

    Attributes:
        file: name of a log file; it ends with a growing number of six digits or more.
        offset: in bytes.
    """

    file: str
    offset: int

    def __str__(self) -> str:
        return f"{self.file}:{self.offset}"

    def __lt__(self, other: Position) -> bool:
        return (self._number, self.offset) < (other._number, other.offset)

    @property
    def _number(self) -> int:
        return int(self.file.rpartition(".")[2])


@dataclass(frozen=True, slots=True)
class Obstacle:
    """An obstacle to a stream.

    Attributes:
        what: a sentence for a person, without a full stop.
        fix: a statement, or a change of the server's configuration.
        fatal: whether it prevents a stream that contains our rows.
    """

    what: str
    fix: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.what}; fix: {self.fix}"


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """The primary key's column, as information_schema describes it now.

    Attributes:
        schema: the database, spelled as in events.
        table: the table, spelled as in events.
        name: of the column.
        ordinal: index of the column in a row, from 0.
        columns: number of columns of a row.
    """

    schema: str
    table: str
    name: str
    ordinal: int
    columns: int


def identify(connection: sa.Connection) -> ServerInfo:
    """Asks the server for its kind and version, and for our account."""
    text, account = connection.exec_driver_sql("SELECT VERSION(), CURRENT_USER()").one()
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    version = (int(numbers[1]), int(numbers[2]), int(numbers[3] or 0)) if numbers else (0, 0, 0)
    user, _, host = account.rpartition("@")
    return ServerInfo(
        kind=ServerKind.MARIADB if "mariadb" in text.lower() else ServerKind.MYSQL,
        version=version,
        text=text,
        account=f"{_quoted(user)}@{_quoted(host)}",
    )


def position(connection: sa.Connection, server: ServerInfo) -> Position:
    """The end of the binary log now.

    Raises:
        StreamUnavailable: there is no binary log, or our account may not ask for its end.
    """
    row = _log_status(connection, server)
    if row is None:
        obstacle = _log_is_off(server)
        raise StreamUnavailable(obstacle.what, obstacle.fix)
    return Position(row[0], int(row[1]))


def stream_obstacles(connection: sa.Connection, server: ServerInfo, database: str, table: str) -> list[Obstacle]:
    """All visible obstacles to a stream.

    A grant is reported as missing only where that is certain: with roles, only an attempt to stream can tell.

    Args:
        database: that holds the table.
        table: of files.
    """
    variables = _variables(connection)
    if variables.get("log_bin") == "OFF":
        return [_log_is_off(server)]
    obstacles = _settings_obstacles(variables)
    obstacles += _grant_obstacles(_grants(connection), server)
    obstacles += _engine_obstacles(connection, database, table)
    try:
        status = _log_status(connection, server)
    except StreamUnavailable:
        # The obstacles have the missing grant, unless roles hide it.
        return obstacles
    if status is not None:
        obstacles += _filter_obstacles(status[2] or "", status[3] or "", database)
    return obstacles


def format_was_set(connection: sa.Connection, server: ServerInfo) -> bool:
    """Whether binlog_format was set since the server's start: sessions from before keep the format that they had.

    False on MySQL, which shows this only to accounts with other privileges, and whose default is ROW.
    """
    if server.kind is not ServerKind.MARIADB:
        return False
    query = "SELECT GLOBAL_VALUE_ORIGIN FROM information_schema.SYSTEM_VARIABLES WHERE VARIABLE_NAME = 'BINLOG_FORMAT'"
    return connection.exec_driver_sql(query).scalar() == "SQL"


def key_column(connection: sa.Connection, database: str, table: str) -> KeyColumn:
    """The column of the table's primary key.

    Raises:
        Misconfigured: there is no such table, or its key is not a single integer column.
    """
    columns = connection.execute(
        sa.text(
            "SELECT TABLE_SCHEMA AS in_schema, TABLE_NAME AS in_table, COLUMN_NAME AS name, COLUMN_KEY AS role,"
            " DATA_TYPE AS type, GENERATION_EXPRESSION AS expression"
            " FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = :database AND TABLE_NAME = :table"
            " ORDER BY ORDINAL_POSITION"
        ),
        {"database": database, "table": table},
    ).all()
    if not columns:
        raise Misconfigured(
            f"the table {database}.{table} does not exist, or this user may not see it",
            "`cdc-archiver check` names the cause",
        )
    # MariaDB adds the end of a row's validity to the key of a table WITH SYSTEM VERSIONING.
    keys = [
        (ordinal, column)
        for ordinal, column in enumerate(columns)
        if column.role == "PRI" and column.expression != "ROW END"
    ]
    if len(keys) != 1 or keys[0][1].type.lower() not in _INTEGERS:
        raise Misconfigured(
            f"the primary key of {database}.{table} is not a single integer column",
            "`cdc-archiver check` names each column that differs from the table of a pysmurf monitor",
        )
    ordinal, column = keys[0]
    return KeyColumn(column.in_schema, column.in_table, column.name, ordinal, len(columns))


def _log_status(connection: sa.Connection, server: ServerInfo) -> tuple[str, int, str | None, str | None] | None:
    """File, offset, logged databases, ignored databases; None where there is no binary log."""
    try:
        row = connection.exec_driver_sql(_status_statement(server)).first()
    except sa.exc.DBAPIError as error:
        if error_code(error) == NO_GRANT:
            raise StreamUnavailable(
                f"{server.account} may not read the position of the binary log", server.stream_grant
            ) from error
        if error_code(error) == _NO_BINARY_LOG:
            return None
        raise
    return None if row is None else (row[0], row[1], row[2], row[3])


def _status_statement(server: ServerInfo) -> str:
    if server.kind is ServerKind.MARIADB and server.version >= (10, 5, 2):
        return "SHOW BINLOG STATUS"
    if server.kind is ServerKind.MYSQL and server.version >= (8, 2, 0):
        return "SHOW BINARY LOG STATUS"
    return "SHOW MASTER STATUS"


def _variables(connection: sa.Connection) -> dict[str, str]:
    rows = connection.exec_driver_sql(
        "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('log_bin', 'binlog_format', 'binlog_transaction_compression',"
        " 'log_bin_compress', 'binlog_storage_engine')"
    )
    return {name.lower(): value.upper() for name, value in rows}


def _log_is_off(server: ServerInfo) -> Obstacle:
    return Obstacle(
        f"the server ({server}) writes no binary log",
        "set log_bin and binlog_format=ROW in its configuration, and restart it",
    )


def _settings_obstacles(variables: dict[str, str]) -> list[Obstacle]:
    obstacles = []
    if (log_format := variables.get("binlog_format", "ROW")) != "ROW":
        obstacles.append(
            Obstacle(
                f"binlog_format is {log_format}: the log contains statements, and rows are needed;"
                " open connections keep the old format after a change, so reconnect the writers",
                "SET GLOBAL binlog_format = 'ROW'",
            )
        )
    # mysql-replication leaves out whole rows under both, under one of them silently.
    for name in ("binlog_transaction_compression", "log_bin_compress"):
        if variables.get(name) in ("ON", "1"):
            obstacles.append(Obstacle(f"{name} is ON: compressed rows cannot be read", f"SET GLOBAL {name} = OFF"))
    if variables.get("binlog_storage_engine") == "INNODB":
        obstacles.append(
            Obstacle(
                "binlog_storage_engine is innodb: such a log has no files and offsets",
                "remove binlog_storage_engine from the server's configuration, and restart it",
            )
        )
    return obstacles


def _grants(connection: sa.Connection) -> set[str] | None:
    """Our global privileges; None where roles make them uncertain."""
    privileges: set[str] = set()
    roles = False
    for (grant,) in connection.exec_driver_sql("SHOW GRANTS"):
        if match := re.match(r"GRANT (.+?) ON (\S+) TO ", grant):
            if match[2] == "*.*":
                privileges.update(privilege.strip().upper() for privilege in match[1].split(","))
        elif grant.startswith("GRANT "):
            roles = True
    if roles and not (privileges & _POSITION_PRIVILEGES and privileges & _STREAM_PRIVILEGES):
        return None
    return privileges


def _grant_obstacles(privileges: set[str] | None, server: ServerInfo) -> list[Obstacle]:
    if privileges is None:
        return []
    needs = (("REPLICATION SLAVE", _STREAM_PRIVILEGES), ("REPLICATION CLIENT", _POSITION_PRIVILEGES))
    missing = [name for name, enough in needs if not privileges & enough]
    if not missing:
        return []
    names = " and ".join(missing)
    return [
        Obstacle(f"{server.account} lacks {names}", f"GRANT {', '.join(missing)} ON *.* TO {server.account}"),
    ]


def _engine_obstacles(connection: sa.Connection, database: str, table: str) -> list[Obstacle]:
    engine = connection.execute(
        sa.text("SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = :database AND TABLE_NAME = :table"),
        {"database": database, "table": table},
    ).scalar()
    if engine is None or engine.upper() == "INNODB":
        return []
    return [
        Obstacle(
            f"the table {database}.{table} uses the storage engine {engine}, whose writes have no end of transaction in the log",
            f"ALTER TABLE `{database}`.`{table}` ENGINE = InnoDB",
        )
    ]


def _filter_obstacles(only: str, ignored: str, database: str) -> list[Obstacle]:
    if only and database not in only.split(","):
        return [
            Obstacle(
                f"binlog_do_db limits the binary log to {only}",
                f"add binlog_do_db={database} to the server's configuration, and restart it",
            )
        ]
    if not only and database in ignored.split(","):
        return [
            Obstacle(
                f"binlog_ignore_db excludes {database} from the binary log",
                f"remove binlog_ignore_db={database} from the server's configuration, and restart it",
            )
        ]
    return []


def _quoted(name: str) -> str:
    return "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"
