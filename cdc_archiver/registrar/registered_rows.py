"""Rows of announced files, each with its receipt, in one short transaction; and what the receipts say afterwards.

A COMMIT whose answer was lost is settled by the receipt's key alone, never by a look for the path: the archiver overwrites that within
milliseconds, and a COMMIT may arrive after the look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from cdc_archiver.database import schema, side_tables
from cdc_archiver.database.connections import Database, error_code
from cdc_archiver.errors import ArchiverError, Misconfigured, StatementRefused
from cdc_archiver.registrar.messages import Announcement
from cdc_archiver.settings import Settings

_SESSION: Final = "SET SESSION wait_timeout = 60"
"""A session whose client died without a word holds its receipts' keys no longer than this."""
_RECEIPTS: Final = side_tables.REGISTERED
_OWN: Final = (side_tables.REGISTERED, side_tables.REGISTRARS, side_tables.REGISTRAR_LOSSES)
DUPLICATE: Final = 1062
"""The server's error number."""
_PAGE: Final = 500
_PRUNED_AT_ONCE: Final = 2000


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row to be written, and its receipt.

    Attributes:
        number: of the spool.
        path: on the source.
    """

    number: int
    path: str
    md5: bytes
    announcement: Announcement


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was registered under a number."""

    file_id: int
    path: str
    md5: bytes


class DatabaseRestored(ArchiverError):
    """The database lacks receipts that it had: it is a backup's. What is missing has to be registered again."""


class RowDiffers(StatementRefused):
    """The server stored another value than the row's, and it was rolled back."""


class RegisteredRows:
    """The table of files and the receipts, as found at a connection.

    Args:
        registrar_id: of the spool.

    Raises:
        DatabaseUnavailable: the database does not answer.
        Misconfigured: a table is missing, or not as it has to be.
    """

    def __init__(self, database: Database, settings: Settings, target: str, registrar_id: str) -> None:
        self._database = database
        self._registrar_id = registrar_id
        self._constant = {"instance_id": target, "site": settings.site or None, "copied": 0, "failed_copy_attempts": 0}
        with database.connect() as connection:
            self.table = schema.resolve_table(connection, database.name, settings.table)
            schema.require_columns(connection, database.name, self.table)
            self._widths = _columns(connection, database.name, self.table)
            there = set(sa.inspect(connection).get_table_names())
        if missing := [table.name for table in _OWN if table.name not in there]:
            raise Misconfigured(f"the database has no table {', '.join(missing)}", "cdc-archiver init-db")

    def refusal(self, row: NewRow) -> str:
        """Why a row cannot be written, by the widths of the columns; empty where it can."""
        for name, value in self._values(row).items():
            width = self._widths[name]
            if width is not None and isinstance(value, str) and len(value) > width:
                return f"{name} has {len(value)} characters, the column holds {width}"
        return ""

    def write(self, rows: Sequence[NewRow], highest: int) -> list[int]:
        """Writes rows and receipts in one transaction, read back; returns the rows' ids.

        Args:
            highest: number of the highest receipt that the database must have.

        Raises:
            DatabaseRestored: it does not have that receipt.
            DatabaseUnavailable: it does not answer; whether the rows are there is unknown.
            RowLocked: another session holds a receipt's key, or the table.
            StatementRefused: the server rejects a row, or stored it otherwise.
            Misconfigured: a person must fix something.
        """
        values = [self._values(row) for row in rows]
        with self._database.transaction() as connection:
            connection.exec_driver_sql(_SESSION)
            if self._highest(connection) < highest:
                raise DatabaseRestored(f"the database has no receipt {highest}")
            ids = self._insert(connection, values)
            self._read_back(connection, values, ids)
            self._insert_receipts(
                connection, {row.number: Receipt(id_, row.path, row.md5) for row, id_ in zip(rows, ids, strict=True)}
            )
        return ids

    def receipts(self, numbers: Sequence[int]) -> dict[int, Receipt]:
        """The receipts of these numbers, in a snapshot of its own."""
        query = sa.select(_RECEIPTS.c.number, _RECEIPTS.c.file_id, _RECEIPTS.c.source_path, _RECEIPTS.c.md5sum).where(
            _RECEIPTS.c.registrar_id == self._registrar_id, _RECEIPTS.c.number.in_(numbers)
        )
        with self._database.connect() as connection:
            return {row.number: Receipt(row.file_id, row.source_path, row.md5sum) for row in connection.execute(query)}

    def highest(self) -> int:
        """Number of the highest receipt; 0 without one."""
        with self._database.connect() as connection:
            return self._highest(connection)

    def restore_receipts(self, registered: Mapping[int, Receipt]) -> set[int]:
        """Writes missing receipts anew where their rows are there; returns the numbers of those.

        Args:
            registered: what the spool knows, by number.
        """
        table = schema.files_table(self.table)
        found: set[int] = set()
        listed = list(registered.items())
        for start in range(0, len(listed), _PAGE):
            page = dict(listed[start : start + _PAGE])
            ids = [receipt.file_id for receipt in page.values()]
            rows = sa.select(table.c.id, table.c.md5sum, table.c.instance_id).where(table.c.id.in_(ids))
            with self._database.transaction() as connection:
                there = {
                    (row.id, row.md5sum)
                    for row in connection.execute(rows)
                    if row.instance_id == self._constant["instance_id"]
                }
                kept = {number: each for number, each in page.items() if (each.file_id, each.md5) in there}
                if kept:
                    self._insert_receipts(connection, kept)
            found |= kept.keys()
        return found

    def prune(self, below: int) -> None:
        """Deletes some receipts with lower numbers: nobody asks for them any more."""
        if below <= 1:
            return
        old = sa.delete(_RECEIPTS).where(_RECEIPTS.c.registrar_id == self._registrar_id, _RECEIPTS.c.number < below)
        with self._database.transaction() as connection:
            connection.execute(old.with_dialect_options(mysql_limit=_PRUNED_AT_ONCE, mariadb_limit=_PRUNED_AT_ONCE))

    def _values(self, row: NewRow) -> dict[str, Any]:
        """Values by column, for the columns that the table has."""
        announced = row.announcement
        values = {
            **self._constant,
            "path": row.path,
            "action": announced.action,
            # As text: FROM_UNIXTIME is an hour early in the hour that a change of the clock doubles.
            "timestamp": datetime.fromtimestamp(announced.at, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            "action_timestamp": announced.action_timestamp,
            "format": announced.format,
            "plot": int(announced.plot),
            "pub_id": announced.pub_id,
            "script_id": announced.script_id,
            "md5sum": row.md5,
            "pysmurf_version": announced.pysmurf_version,
        }
        return {name: value for name, value in values.items() if name in self._widths}

    def _highest(self, connection: sa.Connection) -> int:
        query = sa.select(sa.func.max(_RECEIPTS.c.number)).where(_RECEIPTS.c.registrar_id == self._registrar_id)
        return int(connection.execute(query).scalar() or 0)

    def _insert(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        names = ", ".join(f"`{name}`" for name in rows[0])
        one = f"({', '.join(['%s'] * len(rows[0]))})"
        result = connection.exec_driver_sql(
            f"INSERT INTO {self._quoted} ({names}) VALUES {', '.join([one] * len(rows))}",
            tuple(value for row in rows for value in row.values()),
        )
        # The ids of one INSERT follow one another; what is read back shows that they did.
        step = connection.exec_driver_sql("SELECT @@auto_increment_increment").scalar_one() if len(rows) > 1 else 1
        return [result.lastrowid + number * int(step) for number in range(len(rows))]

    def _read_back(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]], ids: Sequence[int]) -> None:
        names = list(rows[0])
        listed = ", ".join(f"`{name}`" for name in names)
        found = connection.exec_driver_sql(
            f"SELECT id, {listed} FROM {self._quoted} WHERE id IN ({', '.join(map(str, ids))})"
        )
        seen = {row[0]: row[1:] for row in found}
        for id_, meant in zip(ids, rows, strict=True):
            for name, stored in zip(names, seen.get(id_, [None] * len(names)), strict=True):
                if not _is_same(meant[name], stored):
                    raise RowDiffers(f"the database stores {stored!r} as {name} for {meant[name]!r}")

    def _insert_receipts(self, connection: sa.Connection, receipts: Mapping[int, Receipt]) -> None:
        rows = ", ".join(["(%s, %s, %s, %s, %s, UTC_TIMESTAMP(3))"] * len(receipts))
        values = [(self._registrar_id, number, each.file_id, each.path, each.md5) for number, each in receipts.items()]
        connection.exec_driver_sql(
            f"INSERT INTO {_RECEIPTS.name} (registrar_id, number, file_id, source_path, md5sum, at) VALUES {rows}",
            tuple(value for row in values for value in row),
        )

    @property
    def _quoted(self) -> str:
        # Doubled, since the driver takes a single % for a placeholder.
        return "`" + self.table.replace("`", "``").replace("%", "%%") + "`"


def is_duplicate(refusal: StatementRefused) -> bool:
    """Whether a unique key refused it."""
    return refusal.__cause__ is not None and error_code(refusal.__cause__) == DUPLICATE


def _columns(connection: sa.Connection, database: str, table: str) -> dict[str, int | None]:
    """Width in characters of each column, by name; None for one that is no text."""
    rows = connection.execute(
        sa.text(
            "SELECT column_name AS name, character_maximum_length AS width FROM information_schema.columns "
            "WHERE table_schema = :database AND table_name = :table"
        ),
        {"database": database, "table": table},
    )
    return {row.name.lower(): row.width for row in rows}


def _is_same(meant: object, stored: object) -> bool:
    """Whether a column has the value that was meant, whatever its type."""
    if isinstance(stored, datetime):
        return str(stored) == meant
    if isinstance(stored, bytes) and isinstance(meant, str):  # VARBINARY
        return stored == meant.encode()
    if isinstance(stored, bytes) and isinstance(meant, int):  # BIT
        return int.from_bytes(stored, "big") == meant
    return stored == meant
