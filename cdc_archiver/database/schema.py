"""The schema of the table of files: which table it is, its columns, its creation at a new site, and the index for sweeps."""

from __future__ import annotations

import re
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateTable

from cdc_archiver.errors import Misconfigured, NoSuchTable

DEFAULT_TABLE: Final = "pysmurf_files"
HISTORY: Final = "cdc_archiver_history"
"""The side table's name."""
INDEX: Final = "cdc_archiver_pending"
"""The index with which a sweep's cost depends only on the number of pending rows."""

_NO_TABLE_HINT: Final = (
    "check MYSQL_DATABASE and --table; a table without GRANT SELECT, UPDATE for this user is invisible too; a new site "
    "creates it with `cdc-archiver init-db`"
)
_OTHER_TABLE_HINT: Final = (
    "if the table of files has another name now, set --table to it, or rename it back; a table without GRANT SELECT, UPDATE for this "
    "user is invisible"
)
_TABLE_TYPES: Final = frozenset({"BASE TABLE", "SYSTEM VERSIONED"})
"""The second one is MariaDB's, for a table WITH SYSTEM VERSIONING."""
_INDEX_COLUMNS: Final = ("copied", "instance_id", "id", "failed_copy_attempts")
_VERSIONED: Final = re.compile(rf"{DEFAULT_TABLE}_v(\d+)")


def files_table(name: str) -> sa.Table:
    """The table of files, as its writers create it (``pysmurf_files_v1`` of the Simons Observatory's socs).

    Args:
        name: of the table at this site.
    """
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("path", sa.String(260), nullable=False),
        sa.Column("action", sa.String(32)),
        sa.Column("timestamp", mysql.TIMESTAMP, nullable=True),
        sa.Column("action_timestamp", sa.Integer),
        sa.Column("format", sa.String(32)),
        sa.Column("plot", mysql.TINYINT(1)),
        sa.Column("site", sa.String(32)),
        sa.Column("pub_id", sa.String(32)),
        sa.Column("script_id", sa.String(32)),
        sa.Column("instance_id", sa.String(32)),
        sa.Column("copied", mysql.TINYINT(1)),
        sa.Column("failed_copy_attempts", sa.Integer),
        sa.Column("md5sum", sa.BINARY(16), nullable=False),
        sa.Column("pysmurf_version", sa.String(64)),
        sa.Column("socs_version", sa.String(64)),
        mysql_engine="InnoDB",
    )


USED_COLUMNS: Final = (
    "id",
    "path",
    "action",
    "timestamp",
    "action_timestamp",
    "plot",
    "pub_id",
    "instance_id",
    "copied",
    "failed_copy_attempts",
    "md5sum",
)
"""The columns in use, without which nothing can be archived."""


def resolve_table(connection: sa.Connection, database: str, wanted: str = "") -> str:
    """The name of the table of files.

    Args:
        database: to search.
        wanted: the operator's choice; empty: ``pysmurf_files`` or, where that is not a table, the newest
            ``pysmurf_files_v<N>``.

    Raises:
        NoSuchTable: there is none, or none that this user may see.
        Misconfigured: it is a view.
    """
    kinds = _tables(connection, database)
    versions = {int(match[1]): name for name, kind in kinds.items() if (match := _versioned(name, kind))}
    name = wanted or DEFAULT_TABLE
    if kinds.get(name) in _TABLE_TYPES:
        return name
    if versions and not wanted:
        return versions[max(versions)]
    if name in kinds:
        raise Misconfigured(f"{name} is a view; the binary log names its base table", "set --table to the base table")
    missing = f"there is no table {name}{'' if wanted else f' (nor {name}_v<N>)'} in the database {database}"
    if others := traces(connection, database):
        raise NoSuchTable(f"{missing}; it has {', '.join(others)}", _OTHER_TABLE_HINT)
    raise NoSuchTable(missing, _NO_TABLE_HINT)


def similar_tables(connection: sa.Connection, database: str) -> list[str]:
    """Each table and view that is named ``pysmurf_files…`` or has a column of the table of files, for a message."""
    rows = connection.execute(
        sa.text(
            "SELECT table_name AS name, table_type AS type FROM information_schema.tables WHERE table_schema = :database"
            " AND (table_name LIKE :pattern ESCAPE '!' OR table_name IN (SELECT table_name FROM information_schema.columns"
            " WHERE table_schema = :database AND column_name = 'failed_copy_attempts')) ORDER BY table_name"
        ),
        {"database": database, "pattern": f"{DEFAULT_TABLE.replace('_', '!_')}%"},
    )
    return [f"the {'table' if row.type in _TABLE_TYPES else row.type.lower()} {row.name}" for row in rows]


def traces(connection: sa.Connection, database: str) -> list[str]:
    """What shows that there is or was a table of files, for a message: similar tables, and what the history knows."""
    try:
        known = connection.exec_driver_sql(f"SELECT DISTINCT file_table FROM {HISTORY}").scalars().all()
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        known = []  # there is no history, or none that this user may read
    return [*similar_tables(connection, database), *(f"a history of the table {name}" for name in sorted(known))]


def require_columns(connection: sa.Connection, database: str, table: str) -> None:
    """Requires the columns in use.

    Raises:
        Misconfigured: a column is missing.
    """
    rows = connection.execute(
        sa.text(
            "SELECT column_name AS name FROM information_schema.columns "
            "WHERE table_schema = :database AND table_name = :table"
        ),
        {"database": database, "table": table},
    )
    present = {row.name.lower() for row in rows}
    if missing := [column for column in USED_COLUMNS if column not in present]:
        raise Misconfigured(
            f"the table {table} has no column {', '.join(missing)}",
            "check --table and MYSQL_DATABASE: this may not be the table of files; `cdc-archiver check` names each column",
        )


def older_versions(connection: sa.Connection, database: str, current: str) -> list[str]:
    """Tables of files other than the current one: their pending rows are not archived, which is reported."""
    kinds = _tables(connection, database)
    return sorted(
        name
        for name, kind in kinds.items()
        if name != current and (_versioned(name, kind) or (name == DEFAULT_TABLE and kind in _TABLE_TYPES))
    )


def has_index(connection: sa.Connection, database: str, table: str) -> bool:
    """Whether an index of any name begins with the columns that a sweep needs."""
    rows = connection.execute(
        sa.text(
            "SELECT index_name AS name, column_name AS col FROM information_schema.statistics "
            "WHERE table_schema = :database AND table_name = :table ORDER BY index_name, seq_in_index"
        ),
        {"database": database, "table": table},
    )
    indexes: dict[str, list[str]] = {}
    for name, column in rows:
        indexes.setdefault(name, []).append((column or "").lower())  # MySQL: NULL for an expression
    return any(tuple(columns[:3]) == _INDEX_COLUMNS[:3] for columns in indexes.values())


def table_statement(table: sa.Table) -> str:
    """The statement that creates a table, to be shown or executed."""
    return str(CreateTable(table).compile(dialect=mysql.dialect())).strip()


def index_statement(table: str) -> str:
    """The statement that creates the index, to be shown or executed."""
    columns = ", ".join(f"`{column}`" for column in _INDEX_COLUMNS)
    return f"CREATE INDEX `{INDEX}` ON `{table}` ({columns})"


def path_width(connection: sa.Connection, database: str, table: str) -> int:
    """Width of the column ``path``, in characters.

    Raises:
        Misconfigured: there is no such text column.
    """
    width = connection.execute(
        sa.text(
            "SELECT character_maximum_length FROM information_schema.columns "
            "WHERE table_schema = :database AND table_name = :table AND column_name = 'path'"
        ),
        {"database": database, "table": table},
    ).scalar()
    if width is None:
        raise Misconfigured(f"the table {table} has no text column path", "`cdc-archiver check` names each column")
    return int(width)


def _tables(connection: sa.Connection, database: str) -> dict[str, str]:
    rows = connection.execute(
        sa.text(
            "SELECT table_name AS name, table_type AS type FROM information_schema.tables WHERE table_schema = :database"
        ),
        {"database": database},
    )
    return {row.name: row.type for row in rows}


def _versioned(name: str, kind: str) -> re.Match[str] | None:
    return _VERSIONED.fullmatch(name) if kind in _TABLE_TYPES else None
