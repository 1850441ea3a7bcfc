"""The rows: which wait, what they say, and the two writes that an outcome makes of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from cdc_archiver.database import schema
from cdc_archiver.model import IGNORED_FROM, REFUSED_FROM, FileRecord

_NO_CHANGE: Final = frozenset({"id", "failed_copy_attempts"})
"""Columns that make a row no other file when they change: somebody may have charged it meanwhile."""
_CHUNK: Final = 200
"""Rows that one UPDATE names: its CASE is searched row by row, so its cost grows with the square."""


@dataclass(frozen=True, slots=True)
class Row:
    """A record, and whether the row is done."""

    record: FileRecord
    copied: bool


@dataclass(frozen=True, slots=True, order=True)
class Pending:
    """A row that waits, and how often it was charged."""

    id: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Census:
    """How many rows of some targets are in which state.

    Attributes:
        oldest_pending: of the pending row with the lowest id; None where nothing is pending or the row has no time.
    """

    pending: int = 0
    quarantined: int = 0
    refused: int = 0
    ignored: int = 0
    oldest_pending: datetime | None = None


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of a write-back, by id.

    Attributes:
        changed: rows that this write changed.
        already: rows that said the same before: an earlier write whose acknowledgement was lost, or an equal of ours.
    """

    changed: set[int]
    already: set[int]


class FilesTable:
    """The table of files. Each method takes the connection that it works on.

    Each write sets ``timestamp`` to itself: where a server made the column with explicit_defaults_for_timestamp=OFF, the
    default of old ones, an UPDATE that does not name it sets it to now, and with it the file's place in the archive.

    Args:
        name: of the table.
        path_width: of the column ``path``, in characters.
        max_attempts: charged attempts from which a row is quarantined.
    """

    def __init__(self, name: str, path_width: int, max_attempts: int) -> None:
        self.name = name
        self.path_width = path_width
        self.max_attempts = max_attempts
        self._table = schema.files_table(name)
        # Doubled, since the driver takes a single % for the place of a value.
        self._quoted = "`" + name.replace("`", "``").replace("%", "%%") + "`"
        # All that a row is to us, exactly and in one value, whatever the columns' types, character sets and collations.
        image = [
            f"IFNULL(HEX(CAST(`{name}` AS BINARY)), '-')" for name in schema.USED_COLUMNS if name not in _NO_CHANGE
        ]
        self._image = f"CONCAT_WS(',', {', '.join(image)})"
        self._columns = [self._table.c[column] for column in schema.USED_COLUMNS]

    def load(self, connection: sa.Connection, ids: Sequence[int], *, image: bool = False) -> dict[int, Row]:
        """The rows with these ids; those that are not there, or not visible yet, are left out.

        Args:
            image: with what a write-back compares: for records that are to be archived.
        """
        return self._by_id(connection, ids, self._image if image else "''") if ids else {}

    def pending(
        self, connection: sa.Connection, targets: Sequence[str], after: int, until: int, limit: int
    ) -> list[Pending]:
        """Pending rows of these targets, by ascending id.

        Args:
            after: ids above this one.
            until: up to and with this one.
            limit: that many at the most.
        """
        table = self._table
        # One branch for each value, so that each is one range of the index; `copied = 0 OR copied IS NULL` is none.
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
        """How many rows wait that are of none of these targets, by instance_id."""
        table = self._table
        waiting = sa.select(table.c.instance_id, sa.func.count()).where(
            sa.func.coalesce(table.c.copied, 0) == 0,
            self._attempts() < self.max_attempts,
            table.c.instance_id.not_in(targets),
        )
        return {_text(name) or "": count for name, count in connection.execute(waiting.group_by(table.c.instance_id))}

    def pending_outside(self, connection: sa.Connection, targets: Sequence[str], root: str) -> int:
        """How many rows of these targets wait whose path is absolute and not below a directory."""
        table = self._table
        prefix = root.rstrip("/") + "/"
        waiting = sa.select(sa.func.count()).where(
            sa.func.coalesce(table.c.copied, 0) == 0,
            self._attempts() < self.max_attempts,
            table.c.instance_id.in_(targets),
            table.c.path.startswith("/"),
            table.c.path.not_like(escaped(prefix) + "%", escape="!"),
        )
        return int(connection.execute(waiting).scalar_one())

    def max_id(self, connection: sa.Connection) -> int:
        """The highest id that is visible; 0 in an empty table."""
        return int(connection.execute(sa.select(sa.func.max(self._table.c.id))).scalar() or 0)

    def mark_copied(self, connection: sa.Connection, places: Mapping[FileRecord, str]) -> WriteResult:
        """Says of each record that it is archived at its place, unless the row has moved on since it was read.

        Args:
            places: archived path, by record.
        """
        changed: set[int] = set()
        already: set[int] = set()
        for chunk in _chunks(places):
            unmoved = {record.id for record in chunk}
            if not self._lock_same(connection, chunk):
                rows = self._lock(connection, chunk)
                unmoved = {record.id for record in chunk if _is_unmoved(rows.get(record.id), record)}
                already |= {record.id for record in chunk if _says_so(rows.get(record.id), record, places[record])}
            if unmoved:
                paths = {record.id: _storable(places[record]) for record in chunk if record.id in unmoved}
                self._set(connection, "path", paths, copied=1)
            changed |= unmoved
        return WriteResult(changed, already)

    def count_failed_attempt(self, connection: sa.Connection, records: Sequence[FileRecord]) -> WriteResult:
        """Counts one failed attempt for each record, unless the row has moved on since it was read."""
        return self.set_attempts(connection, {record: record.attempts + 1 for record in records})

    def refuse(self, connection: sa.Connection, records: Sequence[FileRecord]) -> WriteResult:
        """Takes impossible rows out of the queue, unless they have moved on since they were read."""
        return self.set_attempts(connection, dict.fromkeys(records, REFUSED_FROM))

    def requeue(self, connection: sa.Connection, sources: Mapping[FileRecord, str]) -> WriteResult:
        """Makes archived rows pending again, unless they have moved on since they were read.

        Args:
            sources: the file on its source, by record.
        """
        changed: set[int] = set()
        for chunk in _chunks(sources):
            rows = self._lock(connection, chunk)
            unmoved = {
                record.id: _storable(sources[record])
                for record in chunk
                if rows.get(record.id) == Row(record, copied=True)
            }
            if unmoved:
                self._set(connection, "path", unmoved, copied=0, failed_copy_attempts=0)
            changed.update(unmoved)
        return WriteResult(changed, already=set())

    def register(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Inserts rows, as a monitor does it.

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
            limit: that many at the most.
        """
        id_ = self._table.c.id
        found = sa.select(*self._columns).where(*conditions).order_by(id_.desc() if newest_first else id_)
        return [_row(*row) for row in connection.execute(found.limit(limit))]

    def count(self, connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> int:
        """How many rows meet all conditions."""
        return int(
            connection.execute(sa.select(sa.func.count()).select_from(self._table).where(*conditions)).scalar_one()
        )

    def sample(self, connection: sa.Connection, *conditions: sa.ColumnElement[bool], size: int) -> list[int]:
        """The ids of some rows that meet all conditions, drawn by lot.

        Args:
            size: that many at the most.
        """
        drawn = sa.select(self._table.c.id).where(*conditions).order_by(sa.func.rand()).limit(size)
        return [int(id_) for id_ in connection.execute(drawn).scalars()]

    def set_attempts(self, connection: sa.Connection, attempts: Mapping[FileRecord, int]) -> WriteResult:
        """Sets the counter as an operator wants it, unless a row has moved on since it was read; archived rows stay as they are.

        Args:
            attempts: what ``failed_copy_attempts`` becomes, by record.
        """
        changed: set[int] = set()
        for chunk in _chunks(attempts):
            rows = self._lock(connection, chunk)
            unmoved = {
                record.id: attempts[record]
                for record in chunk
                if (row := rows.get(record.id)) is not None and row == Row(record, copied=False)
            }
            if unmoved:
                self._set(connection, "failed_copy_attempts", unmoved)
            changed.update(unmoved)
        return WriteResult(changed, already=set())

    def _set(
        self, connection: sa.Connection, column: str, values: Mapping[int, str | bytes | int], **same: int
    ) -> None:
        """Writes one column of each row, by id, and these others, which are the same for all.

        By hand: an expression for each row, built and compiled anew each time, cost more than the rest of a write-back.
        """
        of_each = " ".join([f"WHEN {id_:d} THEN %s" for id_ in values])
        of_all = "".join([f", `{name}` = {value:d}" for name, value in same.items()])
        connection.exec_driver_sql(
            f"UPDATE {self._quoted} SET `{column}` = CASE `id` {of_each} END{of_all}, `timestamp` = `timestamp` "
            f"WHERE `id` IN ({_listed(values)})",
            tuple(values.values()),
        )

    def _lock_same(self, connection: sa.Connection, records: Sequence[FileRecord]) -> bool:
        """Locks the records' rows, and asks whether all are pending and byte for byte what was read, as they almost always are:
        to read them whole once more cost more than the rest of a write-back."""
        images = {record.id: record.image for record in records}
        ((digest,),) = connection.exec_driver_sql(
            f"SELECT SHA2(GROUP_CONCAT(SHA2({self._image}, 256) ORDER BY `id` SEPARATOR ''), 256) FROM {self._quoted} "
            f"WHERE `id` IN ({_listed(images)}) AND COALESCE(`copied`, 0) = 0 FOR UPDATE"
        )
        return bool(digest == _digest("".join([_digest(images[id_]) for id_ in sorted(images)])))

    def _lock(self, connection: sa.Connection, records: Sequence[FileRecord]) -> dict[int, Row]:
        """Locks the records' rows and reads them: what a compare-and-set compares.

        All of a row counts, the md5 and what decides the place among it: a file that was registered anew while its old version
        was copied is another file. The comparison is made here and not in the UPDATE: exact, whatever a column's character set
        and collation, and it says which rows it was.
        """
        return self._by_id(connection, [record.id for record in records], how="FOR UPDATE")

    def _by_id(self, connection: sa.Connection, ids: Sequence[int], image: str = "''", how: str = "") -> dict[int, Row]:
        columns = ", ".join(f"`{name}`" for name in schema.USED_COLUMNS)
        rows = connection.exec_driver_sql(
            f"SELECT {columns}, {image} FROM {self._quoted} WHERE `id` IN ({_listed(ids)}) {how}"
        )
        return {row[0]: _row(*row) for row in rows}

    def _attempts(self) -> sa.ColumnElement[int]:
        return sa.func.coalesce(self._table.c.failed_copy_attempts, 0)


def _chunks(records: Mapping[FileRecord, Any]) -> list[list[FileRecord]]:
    listed = list(records)
    return [listed[start : start + _CHUNK] for start in range(0, len(listed), _CHUNK)]


def _is_unmoved(row: Row | None, record: FileRecord) -> bool:
    """Whether a row waits, and is what was read. Somebody may have charged it meanwhile; that makes it no other file."""
    if row is None or row.copied:
        return False
    return replace(row.record, failed_copy_attempts=record.failed_copy_attempts) == record


def _says_so(row: Row | None, record: FileRecord, place: str) -> bool:
    """Whether a row says already that this file is archived at this place."""
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
    image: str = "",
) -> Row:
    """The values of ``schema.USED_COLUMNS``, in their order, as a row of ours, whatever the columns' types and NULLs: what cannot
    be is refused later, with its reason."""
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
        image=image,
    )
    return Row(record, _truth(copied))


def escaped(text: str) -> str:
    """A text as a pattern of LIKE with ``!`` as its escape, that matches it alone."""
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")


def _storable(path: str) -> str | bytes:
    """A path whose bytes are no UTF-8 can only have come from a column of bytes, and goes back as such."""
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
    """The column's naive value, which its writers mean as UTC. MySQL's zero date comes as text: no time."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else None
