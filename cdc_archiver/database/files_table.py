"""The table of files: reads and counts rows, and writes outcomes back to them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from cdc_archiver.database import schema
from cdc_archiver.model import IGNORED_FROM, REFUSED_FROM, FileRecord

_NO_CHANGE: Final = frozenset({"id", "failed_copy_attempts"})
"""Columns whose change does not make the row another file: a failed attempt may have been counted meanwhile."""
_EPOCH: Final = datetime(1970, 1, 1)
_CHUNK: Final = 200
"""Maximum number of rows of one UPDATE: its CASE is searched for each row, so the cost grows with the square."""


@dataclass(frozen=True, slots=True)
class Row:
    """A record, and whether the row is copied."""

    record: FileRecord
    copied: bool


@dataclass(frozen=True, slots=True, order=True)
class Pending:
    """A pending row, and its failed attempts."""

    id: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Census:
    """Numbers of rows of some targets, by state.

    Attributes:
        oldest_pending: timestamp of the pending row with the lowest id; None where nothing is pending or the row has none.
    """

    pending: int = 0
    quarantined: int = 0
    refused: int = 0
    ignored: int = 0
    oldest_pending: datetime | None = None


@dataclass(frozen=True, slots=True)
class WriteResult:
    """The result of a write-back, as ids.

    Attributes:
        changed: rows that this write changed.
        already: rows that had the new values before: by an earlier write whose acknowledgement was lost, or by another archiver.
    """

    changed: set[int]
    already: set[int]


class FilesTable:
    """The table of files. Each method takes the connection that it works on.

    Each write sets ``timestamp`` to itself: in a table created with explicit_defaults_for_timestamp=OFF, the default of old servers,
    an UPDATE without the column sets it to the current time, which would change the file's path in the archive.

    Args:
        name: of the table.
        path_width: of the column ``path``, in characters.
        max_attempts: failed attempts from which a row is quarantined.
    """

    def __init__(self, name: str, path_width: int, max_attempts: int) -> None:
        self.name = name
        self.path_width = path_width
        self.max_attempts = max_attempts
        self._table = schema.files_table(name)
        # Doubled, since the driver takes a single % for a placeholder.
        self._quoted = "`" + name.replace("`", "``").replace("%", "%%") + "`"
        # All columns in use, exactly and as one value, whatever their types, character sets and collations.
        columns = [
            f"IFNULL(HEX(CAST(`{name}` AS BINARY)), '-')" for name in schema.USED_COLUMNS if name not in _NO_CHANGE
        ]
        self._row_image = f"CONCAT_WS(',', {', '.join(columns)})"
        self._columns = [self._table.c[column] for column in schema.USED_COLUMNS]

    def load(self, connection: sa.Connection, ids: Sequence[int], *, row_image: bool = False) -> dict[int, Row]:
        """The rows with these ids, without those that do not exist or are not visible yet.

        Args:
            row_image: whether the records include the image that a write-back compares: for records to be archived.
        """
        return self._by_id(connection, ids, self._row_image if row_image else "''") if ids else {}

    def pending(
        self, connection: sa.Connection, targets: Sequence[str], after: int, until: int, limit: int
    ) -> list[Pending]:
        """Pending rows of these targets, by ascending id.

        Args:
            after: ids above this one.
            until: ids up to and including this one.
            limit: maximum number of rows.
        """
        table = self._table
        # A query for each value, so that each reads one range of the index; `copied = 0 OR copied IS NULL` does not use it.
        pages = [
            sa.select(table.c.id, self._attempts())
            .where(
                copied,
                table.c.instance_id == target,
                table.c.id > after,
                table.c.id <= until,
                self._attempts() < self.max_attempts,
            )
            .order_by(table.c.id)
            .limit(limit)
            for target in targets
            for copied in (table.c.copied == 0, table.c.copied.is_(None))
        ]
        found = [Pending(id_, attempts) for page in pages for id_, attempts in connection.execute(page)]
        return sorted(found)[:limit]

    def census(self, connection: sa.Connection, targets: Sequence[str]) -> Census:
        """Counts the rows of these targets that are not archived."""
        table = self._table
        attempts = self._attempts()
        states = (
            attempts < self.max_attempts,
            sa.and_(attempts >= self.max_attempts, attempts < REFUSED_FROM),
            sa.and_(attempts >= REFUSED_FROM, attempts < IGNORED_FROM),
            attempts >= IGNORED_FROM,
        )
        counts = sa.select(
            *(sa.func.count(sa.case((state, 1))) for state in states),
            sa.func.min(sa.case((attempts < self.max_attempts, table.c.id))),
        )
        totals = [0, 0, 0, 0]
        lowest: int | None = None
        for target in targets:
            for copied in (table.c.copied == 0, table.c.copied.is_(None)):
                *numbers, first = connection.execute(counts.where(copied, table.c.instance_id == target)).one()
                totals = [total + number for total, number in zip(totals, numbers, strict=True)]
                lowest = min((value for value in (lowest, first) if value is not None), default=None)
        oldest = None
        if lowest is not None:
            oldest = connection.execute(sa.select(table.c.timestamp).where(table.c.id == lowest)).scalar()
        pending, quarantined, refused, ignored = totals
        return Census(pending, quarantined, refused, ignored, _utc(oldest))

    def pending_of_others(self, connection: sa.Connection, targets: Sequence[str]) -> dict[str, int]:
        """Numbers of pending rows of other targets than these, by instance_id."""
        table = self._table
        found: Counter[str] = Counter()
        for copied in (table.c.copied == 0, table.c.copied.is_(None)):  # each reads a range of the index
            waiting = sa.select(table.c.instance_id, sa.func.count()).where(
                copied, self._attempts() < self.max_attempts, table.c.instance_id.not_in(targets)
            )
            found.update(
                {_text(name) or "": count for name, count in connection.execute(waiting.group_by(table.c.instance_id))}
            )
        return dict(found)

    def pending_outside(self, connection: sa.Connection, targets: Sequence[str], root: str) -> int:
        """Number of pending rows of these targets with an absolute path outside a directory."""
        table = self._table
        prefix = root.rstrip("/") + "/"
        waiting = sa.select(sa.func.count()).where(
            sa.func.coalesce(table.c.copied, 0) == 0,
            self._attempts() < self.max_attempts,
            table.c.instance_id.in_(targets),
            table.c.path.startswith("/"),
            table.c.path.not_like(escape_like(prefix) + "%", escape="!"),
        )
        return int(connection.execute(waiting).scalar_one())

    def require_writable(self, connection: sa.Connection) -> None:
        """Requires that the server takes our writes. Changes nothing.

        Raises:
            ReadOnlyServer: it does not, by way of :meth:`Database.connect`.
        """
        connection.exec_driver_sql(f"UPDATE {self._quoted} SET `copied` = `copied` WHERE 1 = 0")

    def pending_in_timecodes(
        self, connection: sa.Connection, targets: Sequence[str], timecodes: Collection[int]
    ) -> dict[int, int]:
        """Numbers of pending rows of these targets, by timecode, of those timecodes that have some."""
        if not timecodes:
            return {}
        table = self._table
        # Like every reader of this column: its text is taken for UTC.
        timecode = sa.func.timestampdiff(sa.literal_column("SECOND"), _EPOCH, table.c.timestamp).op("DIV")(100_000)
        begin = _EPOCH + timedelta(seconds=min(timecodes) * 100_000)
        end = _EPOCH + timedelta(seconds=(max(timecodes) + 1) * 100_000)
        found: Counter[int] = Counter()
        for target in targets:
            for copied in (table.c.copied == 0, table.c.copied.is_(None)):
                counts = sa.select(timecode, sa.func.count()).where(
                    copied,
                    table.c.instance_id == target,
                    self._attempts() < self.max_attempts,
                    table.c.timestamp >= begin,
                    table.c.timestamp < end,
                )
                found.update({int(number): count for number, count in connection.execute(counts.group_by(timecode))})
        return {number: count for number, count in sorted(found.items()) if number in timecodes}

    def max_id(self, connection: sa.Connection) -> int:
        """The highest id that is visible; 0 in an empty table."""
        return int(connection.execute(sa.select(sa.func.max(self._table.c.id))).scalar() or 0)

    def mark_copied(self, connection: sa.Connection, places: Mapping[FileRecord, str]) -> WriteResult:
        """Marks each record as archived at its path, unless the row changed since it was read.

        Args:
            places: archived path, by record.
        """
        changed: set[int] = set()
        already: set[int] = set()
        for chunk in _chunks(places):
            unchanged = {record.id for record in chunk}
            if not self._lock_if_unchanged(connection, chunk):
                rows = self._lock(connection, chunk)
                unchanged = {record.id for record in chunk if _is_unchanged(rows.get(record.id), record)}
                already |= {
                    record.id for record in chunk if _is_marked_already(rows.get(record.id), record, places[record])
                }
            if unchanged:
                paths = {record.id: _storable(places[record]) for record in chunk if record.id in unchanged}
                self._set(connection, "path", paths, copied=1)
            changed |= unchanged
        return WriteResult(changed, already)

    def count_failed_attempt(self, connection: sa.Connection, records: Sequence[FileRecord]) -> WriteResult:
        """Counts one failed attempt for each record, unless the row changed since it was read."""
        return self.set_attempts(connection, {record: record.attempts + 1 for record in records})

    def refuse(self, connection: sa.Connection, records: Sequence[FileRecord]) -> WriteResult:
        """Marks impossible rows as refused, unless they changed since they were read."""
        return self.set_attempts(connection, dict.fromkeys(records, REFUSED_FROM))

    def requeue(self, connection: sa.Connection, sources: Mapping[FileRecord, str]) -> WriteResult:
        """Makes archived rows pending again, unless they changed since they were read.

        Args:
            sources: path of the file on its source, by record.
        """
        changed: set[int] = set()
        for chunk in _chunks(sources):
            rows = self._lock(connection, chunk)
            unchanged = {
                record.id: _storable(sources[record])
                for record in chunk
                if rows.get(record.id) == Row(record, copied=True)
            }
            if unchanged:
                self._set(connection, "path", unchanged, copied=0, failed_copy_attempts=0)
            changed.update(unchanged)
        return WriteResult(changed, already=set())

    def register(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Inserts rows, as a monitor does.

        Args:
            rows: values by column, the same columns in each.
        """
        connection.execute(sa.insert(self._table).values([dict(row) for row in rows]))

    def column(self, name: str) -> sa.Column[Any]:
        """A column, for a condition of :meth:`rows`."""
        return self._table.c[name]

    def rows(
        self, connection: sa.Connection, *conditions: sa.ColumnElement[bool], newest_first: bool, limit: int
    ) -> list[Row]:
        """Rows that meet all conditions, by id.

        Args:
            limit: maximum number of rows.
        """
        id_ = self._table.c.id
        found = sa.select(*self._columns).where(*conditions).order_by(id_.desc() if newest_first else id_)
        return [_row(*row) for row in connection.execute(found.limit(limit))]

    def count(self, connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> int:
        """Number of rows that meet all conditions."""
        return int(
            connection.execute(sa.select(sa.func.count()).select_from(self._table).where(*conditions)).scalar_one()
        )

    def sample(self, connection: sa.Connection, *conditions: sa.ColumnElement[bool], size: int) -> list[int]:
        """The ids of a random sample of the rows that meet all conditions.

        Args:
            size: maximum number of rows.
        """
        drawn = sa.select(self._table.c.id).where(*conditions).order_by(sa.func.rand()).limit(size)
        return [int(id_) for id_ in connection.execute(drawn).scalars()]

    def set_attempts(self, connection: sa.Connection, attempts: Mapping[FileRecord, int]) -> WriteResult:
        """Sets the attempt counter, unless a row changed since it was read; archived rows stay unchanged.

        Args:
            attempts: new values of ``failed_copy_attempts``, by record.
        """
        changed: set[int] = set()
        for chunk in _chunks(attempts):
            rows = self._lock(connection, chunk)
            unchanged = {
                record.id: attempts[record]
                for record in chunk
                if (row := rows.get(record.id)) is not None and row == Row(record, copied=False)
            }
            # A counter that has its value is not written: a trigger may refuse any UPDATE.
            new = {id_: value for id_, value in unchanged.items() if rows[id_].record.failed_copy_attempts != value}
            if new:
                self._set(connection, "failed_copy_attempts", new)
            changed.update(unchanged)
        return WriteResult(changed, already=set())

    def _set(
        self, connection: sa.Connection, column: str, values: Mapping[int, str | bytes | int], **same: int
    ) -> None:
        """Writes one column of each row, by id, and further columns with one value for all rows.

        In plain SQL: SQLAlchemy's expression for each row, built and compiled each time, took longer than the rest of a write-back.
        """
        of_each = " ".join([f"WHEN {id_:d} THEN %s" for id_ in values])
        of_all = "".join([f", `{name}` = {value:d}" for name, value in same.items()])
        connection.exec_driver_sql(
            f"UPDATE {self._quoted} SET `{column}` = CASE `id` {of_each} END{of_all}, `timestamp` = `timestamp` "
            f"WHERE `id` IN ({_listed(values)})",
            tuple(values.values()),
        )

    def _lock_if_unchanged(self, connection: sa.Connection, records: Sequence[FileRecord]) -> bool:
        """Locks the records' rows; returns whether all are pending and byte for byte as read, which they almost always are.

        The server returns one digest: reading the whole rows again took longer than the rest of a write-back.
        """
        images = {record.id: record.row_image for record in records}
        ((digest,),) = connection.exec_driver_sql(
            f"SELECT SHA2(GROUP_CONCAT(SHA2({self._row_image}, 256) ORDER BY `id` SEPARATOR ''), 256) FROM {self._quoted} "
            f"WHERE `id` IN ({_listed(images)}) AND COALESCE(`copied`, 0) = 0 FOR UPDATE"
        )
        return bool(digest == _digest("".join([_digest(images[id_]) for id_ in sorted(images)])))

    def _lock(self, connection: sa.Connection, records: Sequence[FileRecord]) -> dict[int, Row]:
        """Locks the records' rows and reads them, for a compare-and-set.

        All columns in use are compared, the md5 and those that determine the archived path included: a file registered again while
        its old version was copied is another file. The comparison is made in Python, not in the UPDATE: it is exact, whatever a
        column's character set and collation, and tells which rows differ.
        """
        return self._by_id(connection, [record.id for record in records], how="FOR UPDATE")

    def _by_id(
        self, connection: sa.Connection, ids: Sequence[int], row_image: str = "''", how: str = ""
    ) -> dict[int, Row]:
        columns = ", ".join(f"`{name}`" for name in schema.USED_COLUMNS)
        rows = connection.exec_driver_sql(
            f"SELECT {columns}, {row_image} FROM {self._quoted} WHERE `id` IN ({_listed(ids)}) {how}"
        )
        return {row[0]: _row(*row) for row in rows}

    def _attempts(self) -> sa.ColumnElement[int]:
        return sa.func.coalesce(self._table.c.failed_copy_attempts, 0)


def _chunks(records: Mapping[FileRecord, Any]) -> list[list[FileRecord]]:
    listed = list(records)
    return [listed[start : start + _CHUNK] for start in range(0, len(listed), _CHUNK)]


def _is_unchanged(row: Row | None, record: FileRecord) -> bool:
    """Whether a row is pending and as read. A failed attempt counted meanwhile does not make it another file."""
    if row is None or row.copied:
        return False
    return replace(row.record, failed_copy_attempts=record.failed_copy_attempts) == record


def _is_marked_already(row: Row | None, record: FileRecord, place: str) -> bool:
    """Whether a row is already marked as archived at this path."""
    if row is None or not row.copied or row.record.path != place:
        return False
    return replace(row.record, path=record.path, failed_copy_attempts=record.failed_copy_attempts) == record


def _digest(text: str) -> str:
    """SHA2(text, 256): MySQL has no MD5 since 9.6."""
    return hashlib.sha256(text.encode()).hexdigest()


def _listed(ids: Iterable[int]) -> str:
    return ", ".join([f"{id_:d}" for id_ in ids])


def _row(
    id_: int,
    path: Any,
    action: Any,
    timestamp: Any,
    action_timestamp: Any,
    plot: Any,
    pub_id: Any,
    instance_id: Any,
    copied: Any,
    attempts: int | None,
    md5sum: Any,
    row_image: str = "",
) -> Row:
    """Converts the values of ``schema.USED_COLUMNS``, in their order, whatever the columns' types and NULLs. Impossible values are
    refused later, with a reason."""
    record = FileRecord(
        id=id_,
        path=_text(path) or "",
        md5sum=md5sum if isinstance(md5sum, bytes) else b"",
        timestamp=_utc(timestamp),
        action=_text(action),
        action_timestamp=None if action_timestamp is None else int(action_timestamp),
        plot=_truth(plot),
        pub_id=_text(pub_id),
        instance_id=_text(instance_id) or "",
        failed_copy_attempts=attempts,
        row_image=row_image,
    )
    return Row(record, _truth(copied))


def escape_like(text: str) -> str:
    """A pattern of LIKE, with ``!`` as its escape character, that matches only this text."""
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")


def _storable(path: str) -> str | bytes:
    """A path with invalid UTF-8 can only come from a binary column, and is written back as bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def _text(value: object) -> str | None:
    if isinstance(value, bytes):  # VARBINARY
        return value.decode("utf-8", "surrogateescape")
    return None if value is None else str(value)


def _truth(value: object) -> bool:
    return any(value) if isinstance(value, bytes) else bool(value)  # BIT(1) comes as a byte


def _utc(value: object) -> datetime | None:
    """The column's naive value as UTC, which its writers mean. MySQL's zero date is returned as text, and becomes None."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else None
