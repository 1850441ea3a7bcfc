"""The side tables: what the service keeps alongside the table of files. ``copied = 1`` never waits for one of them.

Times are DATETIME in UTC from the server's ``UTC_TIMESTAMP()``: with NOW() and TIMESTAMP, a value of an hour ago looks fresh in the
hour that a change of the clock doubles.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from cdc_archiver.database.connections import error_code

_METADATA: Final = sa.MetaData()
_text = sa.Text().with_variant(mysql.TEXT(charset="utf8mb4"), "mysql", "mariadb")
_DENIED: Final = (1044, 1142, 1143)
_READ_ONLY: Final = (1290, 1792, 1836)
_HISTORY_PRIVILEGES: Final = "CREATE, SELECT, INSERT, DELETE"


def _time(name: str, **more: Any) -> sa.Column[Any]:
    return sa.Column(name, mysql.DATETIME(fsp=3), comment="UTC", **more)


def _table(name: str, *items: sa.schema.SchemaItem) -> sa.Table:
    engine: dict[str, Any] = dict.fromkeys(("mysql_engine", "mariadb_engine"), "InnoDB")
    charset: dict[str, Any] = dict.fromkeys(("mysql_charset", "mariadb_charset"), "utf8mb4")
    return sa.Table(name, _METADATA, *items, **engine, **charset)


ARCHIVES: Final = _table(
    "cdc_archiver_archives",
    sa.Column("file_table", sa.String(64), primary_key=True),
    sa.Column("instance_id", sa.String(64), primary_key=True),
    sa.Column("archive_id", sa.String(64), nullable=False, comment="the archive marker's"),
    sa.Column("data_dir", _text, nullable=False),
    sa.Column("data_dir_inode", mysql.BIGINT(unsigned=True)),
    sa.Column("staging_place", _text, comment="the directory in use"),
    _time("changed_at"),
)
"""Which archive the files of an instance_id go to: :mod:`cdc_archiver.database.archives`."""

TIMECODES: Final = _table(
    "cdc_archiver_timecodes",
    sa.Column("file_table", sa.String(64), primary_key=True),
    sa.Column("instance_id", sa.String(64), primary_key=True),
    sa.Column("timecode", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(16), nullable=False, comment="open, blocked, complete, reopened"),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("files", sa.BigInteger),
    sa.Column("bytes", sa.BigInteger),
    sa.Column("ignored", sa.BigInteger),
    sa.Column("refused", sa.BigInteger),
    sa.Column("undecided", sa.BigInteger),
    sa.Column("late", sa.BigInteger),
    sa.Column("reasons", _text, comment="JSON: what is undecided, by reason"),
    sa.Column("digest", sa.BINARY(32), comment="SHA-256 of the sorted distinct lines: path below data_dir, tab, md5"),
    sa.Column("told_max_id", sa.BigInteger, comment="MAX(id) when it was told"),
    sa.Column("told_by", sa.String(64), comment="before: it ended before the first start, and nobody was told"),
    sa.Column("marker_path", _text),
    sa.Column("marker_bytes", _text),
    _time("changed_at"),
    _time("completed_at"),
)
"""State of each timecode of an instance_id: :mod:`cdc_archiver.database.timecodes_table`."""

MARKS: Final = _table(
    "cdc_archiver_marks",
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=True),
    sa.Column("file_table", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False, comment="held, unheld, handed_over, taken_back, let_in"),
    sa.Column("instance_id", sa.String(64), nullable=False, comment="empty: of every source"),
    sa.Column("timecode", sa.Integer, nullable=False),
    sa.Column("file_id", sa.BigInteger, comment="let_in: the file that is archived all the same"),
    sa.Column("by_whom", sa.String(255), nullable=False),
    sa.Column("reason", _text, nullable=False),
    _time("until"),
    _time("at", nullable=False),
    sa.UniqueConstraint("file_table", "timecode", "number", name="of_timecode"),
)
"""Numbered entries of holds and hand-overs; the newest of an object counts: :mod:`cdc_archiver.database.marks`."""

REGISTRARS: Final = _table(
    "cdc_archiver_registrars",
    sa.Column("instance_id", sa.String(64), primary_key=True),
    sa.Column("registrar_id", sa.String(64), primary_key=True),
    _time("heard"),
    _time("watermark"),
    sa.Column("waiting", sa.BigInteger),
    sa.Column("lost", sa.BigInteger),
    sa.Column("gaps", sa.BigInteger),
    sa.Column("stopped", mysql.TINYINT(1), comment="1: stopped cleanly, with an empty spool"),
    _time("retired_at"),
    sa.Column("retired_reason", _text),
)
"""The registrars of an instance_id, and how far each has come: :mod:`cdc_archiver.database.registrars`."""

REGISTRAR_LOSSES: Final = _table(
    "cdc_archiver_registrar_losses",
    sa.Column("instance_id", sa.String(64), primary_key=True),
    sa.Column("registrar_id", sa.String(64), primary_key=True),
    sa.Column("timecode", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("lost", sa.BigInteger, nullable=False, comment="announced files of this time that never came"),
    sa.Column("gaps", sa.BigInteger, nullable=False, comment="announcements of this time that never came"),
    _time("accepted_at"),
    sa.Column("accepted_reason", _text),
)
"""The timecodes in which a registrar lacks files, and which a person has accepted."""

REGISTERED: Final = _table(
    "cdc_archiver_registered",
    sa.Column("registrar_id", sa.String(64), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False, comment="of the spool"),
    sa.Column("file_id", sa.BigInteger, nullable=False),
    sa.Column("source_path", _text, nullable=False),
    sa.Column("md5sum", sa.BINARY(16), nullable=False),
    _time("at"),
    sa.UniqueConstraint("file_id", "registrar_id", "number", name="of_file"),
)
"""Receipts of the registrar, written in the row's transaction."""

ALL: Final = (ARCHIVES, TIMECODES, MARKS, REGISTRARS, REGISTRAR_LOSSES, REGISTERED)


PRIVILEGES: Final = {table.name: "CREATE, SELECT, INSERT, UPDATE" for table in ALL}
"""What the archiver's account needs on each of them."""


def grants(database: str, account: str) -> list[str]:
    """The statement for each side table that gives the archiver's account what it needs.

    Args:
        database: name of the database.
        account: quoted, as in ``'archiver'@'%'``.
    """
    return [f"GRANT {privileges} ON `{database}`.{name} TO {account}" for name, privileges in PRIVILEGES.items()]


def open_side_table(connection: sa.Connection, table: sa.Table) -> str:
    """Creates a side table where it is missing and the grants allow it, and tests access to it.

    Returns:
        An empty text where it can be written, else the reason why not, with the fix.
    """
    try:
        table.create(connection, checkfirst=True)
        connection.execute(sa.select(*table.c).limit(1))
        # An INSERT of no rows tests the INSERT privilege and leaves no trace.
        columns = [column for column in table.c if not (column.primary_key and column.autoincrement is True)]
        connection.execute(sa.insert(table).from_select(columns, sa.select(*columns).where(sa.false())))
    except sa.exc.DBAPIError as error:
        return why_off(connection, table, error)
    return ""


def why_off(connection: sa.Connection, table: sa.Table, error: sa.exc.DBAPIError) -> str:
    """Why a side table cannot be used, with the statement that turns its part on, where one does."""
    reason = str(error.orig.args[-1] if error.orig and error.orig.args else error)
    if error_code(error) in _DENIED:
        database, account = connection.exec_driver_sql("SELECT DATABASE(), CURRENT_USER()").one()
        user, _, host = account.rpartition("@")
        privileges = PRIVILEGES.get(table.name, _HISTORY_PRIVILEGES)
        fix = f"GRANT {privileges} ON `{database}`.{table.name} TO '{user}'@'{host}';  -- each sweep tries again"
    elif error_code(error) in _READ_ONLY:
        fix = "end the read-only mode, or set MYSQL_HOST to the primary; each sweep tries again"
    else:
        return reason
    return f"{reason}; fix: {fix}"
