"""What differs between MySQL and MariaDB: who answers, where its binary log ends, what stands in a stream's way."""

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
"""The server's error where a global privilege is missing."""

_NO_BINARY_LOG: Final = 1381

_MAY_ASK_POSITION: Final = {"REPLICATION CLIENT", "BINLOG MONITOR", "SUPER", "ALL PRIVILEGES"}
"""MariaDB 10.5 renamed REPLICATION CLIENT to BINLOG MONITOR, and still takes the old name in a GRANT."""
_MAY_READ_STREAM: Final = {"REPLICATION SLAVE", "REPLICATION REPLICA", "ALL PRIVILEGES"}

_INTEGERS: Final = {"tinyint", "smallint", "mediumint", "int", "bigint"}


class ServerKind(StrEnum):
    """Which of the two it is."""

    MYSQL = "mysql"
    MARIADB = "mariadb"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Who answers, and who we are to it.

    Attributes:
        version: three numbers, zeros where it says fewer.
        text: the version as the server says it.
        account: ours, quoted as a GRANT takes it.
    """

    kind: ServerKind
    version: tuple[int, int, int]
    text: str
    account: str

    def __str__(self) -> str:
        return f"{'MariaDB' if self.kind is ServerKind.MARIADB else 'MySQL'} {'.'.join(map(str, self.version))}"

    @property
    def stream_grant(self) -> str:
        """The statement that lets us read the stream. Both kinds take it, of every version."""
        return f"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {self.account}"


@total_ordering
@dataclass(frozen=True, slots=True)
class Position:
    """A place in the binary log; later ones are greater.

    Attributes:
        file: its name ends with a number that grows, beyond six digits one day.
        offset: bytes.
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
    """What stands in the stream's way.

    Attributes:
        what: a sentence for a person, without its full stop.
        fix: the statement, or the change of the server's configuration, that fixes it.
        fatal: no stream can be had, or none that carries our rows.
    """

    what: str
    fix: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.what} ({self.fix})"


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """Where the primary key is, as information_schema has it now.

    Attributes:
        schema: the database, spelled as events spell it.
        table: likewise.
        ordinal: of the column in a row, from 0.
        columns: how many columns a row has.
    """

    schema: str
    table: str
    name: str
    ordinal: int
    columns: int


def identify(connection: sa.Connection) -> ServerInfo:
    """Asks the server who it is."""
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
    """Where the binary log ends now.

    Raises:
        StreamUnavailable: there is no binary log, or we may not ask.
    """
    row = _log_status(connection, server)
    if row is None:
        obstacle = _log_is_off(server)
        raise StreamUnavailable(obstacle.what, obstacle.fix)
    return Position(row[0], int(row[1]))


def stream_obstacles(connection: sa.Connection, server: ServerInfo, database: str, table: str) -> list[Obstacle]:
    """Everything that can be seen to stand in the stream's way; empty where nothing does.

    A grant is called missing only where that is sure: where roles are in play, the attempt has to tell.

    Args:
        database: where the table is.
        table: the files table.
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
        # Of which the grants have told, or could not.
        return obstacles
    if status is not None:
        obstacles += _filter_obstacles(status[2] or "", status[3] or "", database)
    return obstacles


def key_column(connection: sa.Connection, database: str, table: str) -> KeyColumn:
    """Where the table's primary key is.

    Raises:
        Misconfigured: there is no such table, or its key is not one integer column.
    """
    columns = connection.execute(
        sa.text(
            "SELECT TABLE_SCHEMA AS in_schema, TABLE_NAME AS in_table, COLUMN_NAME AS name, COLUMN_KEY AS role,"
            " DATA_TYPE AS type"
            " FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = :database AND TABLE_NAME = :table"
            " ORDER BY ORDINAL_POSITION"
        ),
        {"database": database, "table": table},
    ).all()
    if not columns:
        raise Misconfigured(
            f"the table {database}.{table} is not there, or not for us to see", "see `cdc-archiver check`"
        )
    keys = [(ordinal, column) for ordinal, column in enumerate(columns) if column.role == "PRI"]
    if len(keys) != 1 or keys[0][1].type.lower() not in _INTEGERS:
        raise Misconfigured(
            f"the primary key of {database}.{table} is not one integer column",
            "the table is not what a pysmurf monitor makes: see `cdc-archiver check`",
        )
    ordinal, column = keys[0]
    return KeyColumn(column.in_schema, column.in_table, column.name, ordinal, len(columns))


def _log_status(connection: sa.Connection, server: ServerInfo) -> tuple[str, int, str | None, str | None] | None:
    """File, offset, databases that are logged, databases that are not; None where there is no binary log."""
    try:
        row = connection.exec_driver_sql(_status_statement(server)).first()
    except sa.exc.DBAPIError as error:
        if error_code(error) == NO_GRANT:
            raise StreamUnavailable(
                f"{server.account} may not ask where the binary log ends", server.stream_grant
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
                f"binlog_format is {log_format}: statements are logged where rows are needed;"
                " connections that are open keep it when it is changed",
                "SET GLOBAL binlog_format = 'ROW'",
            )
        )
    # Both leave out whole rows of what mysql-replication shows, the one without a word.
    for name in ("binlog_transaction_compression", "log_bin_compress"):
        if variables.get(name) in ("ON", "1"):
            obstacles.append(Obstacle(f"{name} is ON: compressed rows cannot be read", f"SET GLOBAL {name} = OFF"))
    if variables.get("binlog_storage_engine") == "INNODB":
        obstacles.append(
            Obstacle(
                "binlog_storage_engine is innodb: such a log has no files and offsets to read from",
                "take binlog_storage_engine out of the server's configuration, and restart it",
            )
        )
    return obstacles


def _grants(connection: sa.Connection) -> set[str] | None:
    """Our global privileges; None where roles make that unsure."""
    privileges: set[str] = set()
    roles = False
    for (line,) in connection.exec_driver_sql("SHOW GRANTS"):
        if match := re.match(r"GRANT (.+?) ON (\S+) TO ", line):
            if match[2] == "*.*":
                privileges.update(privilege.strip().upper() for privilege in match[1].split(","))
        elif line.startswith("GRANT "):
            roles = True
    if roles and not (privileges & _MAY_ASK_POSITION and privileges & _MAY_READ_STREAM):
        return None
    return privileges


def _grant_obstacles(privileges: set[str] | None, server: ServerInfo) -> list[Obstacle]:
    if privileges is None:
        return []
    needs = (("REPLICATION SLAVE", _MAY_READ_STREAM), ("REPLICATION CLIENT", _MAY_ASK_POSITION))
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
            f"the table {database}.{table} is stored by {engine}, whose writes have no end of transaction in the log",
            f"ALTER TABLE `{database}`.`{table}` ENGINE = InnoDB",
        )
    ]


def _filter_obstacles(only: str, without: str, database: str) -> list[Obstacle]:
    if only and database not in only.split(","):
        return [
            Obstacle(
                f"binlog_do_db lets only {only} into the binary log",
                f"add binlog_do_db={database} to the server's configuration, and restart it",
            )
        ]
    if not only and database in without.split(","):
        return [
            Obstacle(
                f"binlog_ignore_db keeps {database} out of the binary log",
                f"take binlog_ignore_db={database} out of the server's configuration, and restart it",
            )
        ]
    return []


def _quoted(name: str) -> str:
    return "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"
