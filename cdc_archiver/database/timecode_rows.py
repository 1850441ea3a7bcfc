"""The rows of the table of files by timecode: where they are, which are undecided, what is archived.

No index of the table knows timecodes. So one pass over the table, in pages, notes in which blocks of ids a timecode has rows;
later passes read what was added. A count of a timecode reads its blocks only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import sqlalchemy as sa

from cdc_archiver.database import schema
from cdc_archiver.database.connections import error_code
from cdc_archiver.database.files_table import FilesTable, Row, escape_like
from cdc_archiver.database.history import HISTORY_ERRORS, TABLE
from cdc_archiver.model import REFUSED_FROM

BLOCK: Final = 1000
"""Ids of one block."""
_BLOCKS_AT_ONCE: Final = 5
_IDS_AT_ONCE: Final = 1000
_EPOCH: Final = datetime(1970, 1, 1)
_LENGTH: Final = 100_000
_ARCHIVED: Final = ("archived", "adopted")


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows of one page that are alike.

    Attributes:
        directory: the name of the timecode's directory that path or ``timestamp`` give; empty where there is none.
        block: of their ids.
        pub_id: empty for rows that are not archived.
    """

    instance_id: str
    directory: str
    block: int
    pub_id: str
    copied: bool


@dataclass(frozen=True, slots=True)
class UndecidedRows:
    """Undecided rows of one timecode and reason.

    Attributes:
        directory: the name of the timecode's directory; empty where ``timestamp`` gives none.
        reason: pending, retried, quarantined or outside_root.
        oldest: the earliest ``timestamp``; None without one.
        oldest_id: of that row.
    """

    directory: str
    reason: str
    rows: int
    oldest: datetime | None
    oldest_id: int


class TimecodeRows:
    """Questions to the table of files. Each method takes the connection that it works on.

    Args:
        files: the table of files.
    """

    def __init__(self, files: FilesTable) -> None:
        self._files = files
        self._table = schema.files_table(files.name)
        table = self._table.c
        self._attempts = sa.func.coalesce(table.failed_copy_attempts, 0)
        self._copied = sa.func.coalesce(table.copied, 0) != 0

    def groups(
        self, connection: sa.Connection, targets: Sequence[str], after: int, limit: int
    ) -> tuple[int, bool, list[RowGroup]]:
        """One page of the table: which timecodes have rows in it.

        Args:
            after: ids above this one.
            limit: maximum number of rows in the page.

        Returns:
            The page's highest id, or ``after`` where there is none; whether the page is full; the groups of these targets.
        """
        table = self._table.c
        page = sa.select(table.id).where(table.id > after).order_by(table.id).limit(limit).subquery()
        last, rows = connection.execute(sa.select(sa.func.max(page.c.id), sa.func.count())).one()
        if not rows:
            return after, False, []
        bucket = _seconds(table.timestamp).op("DIV")(_LENGTH)
        first = sa.func.substring_index(sa.func.substring_index(table.path, "/", -5), "/", 1)
        # Of an archived row with an early time, the directory would name a later one.
        directory = sa.case((sa.not_(self._copied), bucket), (bucket < 10_000, None), else_=first)
        columns = (
            table.instance_id,
            directory.label("directory"),
            table.id.op("DIV")(BLOCK).label("block"),
            sa.case((self._copied, table.pub_id), else_=None).label("stream"),
            self._copied.label("is_copied"),
        )
        groups = (
            sa.select(*columns)
            .where(table.instance_id.in_(targets), table.id > after, table.id <= last)
            .group_by(*(sa.text(str(position)) for position in range(1, len(columns) + 1)))
        )
        return (
            int(last),
            rows >= limit,
            [
                RowGroup(_text(instance_id), _text(name), int(block), _text(stream), bool(copied))
                for instance_id, name, block, stream, copied in connection.execute(groups)
            ],
        )

    def undecided(self, connection: sa.Connection, target: str, root: str) -> list[UndecidedRows]:
        """All undecided rows of a target, grouped.

        Args:
            root: the source root.
        """
        table = self._table.c
        seconds = _seconds(table.timestamp)
        prefix = escape_like(root.rstrip("/") + "/") + "%"
        reason = sa.case(
            (self._attempts >= self._files.max_attempts, "quarantined"),
            (sa.and_(table.path.startswith("/"), table.path.not_like(prefix, escape="!")), "outside_root"),
            (self._attempts > 0, "retried"),
            else_="pending",
        )
        bucket = seconds.op("DIV")(_LENGTH)
        # The earliest time, and the id that has it, as one text.
        oldest = sa.func.min(sa.func.concat(sa.func.lpad(seconds + 10**11, 12, "0"), ":", table.id))
        found = []
        for condition in self._undecided(target):
            groups = sa.select(
                bucket.label("bucket"), reason.label("reason"), sa.func.count(), oldest, sa.func.min(table.id)
            )
            for name, why, rows, first, lowest in connection.execute(
                groups.where(condition).group_by(sa.text("bucket"), sa.text("reason"))
            ):
                when, id_ = None, int(lowest)
                if first is not None:
                    stamp, _, text = _text(first).partition(":")
                    when, id_ = (_EPOCH + timedelta(seconds=int(stamp) - 10**11)).replace(tzinfo=UTC), int(text)
                found.append(UndecidedRows(_text(name), _text(why), int(rows), when, id_))
        return found

    def has_undecided(self, connection: sa.Connection, target: str, timecode: int) -> bool:
        """Whether a timecode of a target has an undecided row, in a fresh snapshot."""
        bucket = _seconds(self._table.c.timestamp).op("DIV")(_LENGTH)
        return any(
            connection.execute(sa.select(sa.literal(1)).where(condition, bucket == timecode).limit(1)).first()
            for condition in self._undecided(target)
        )

    def undecided_of_streams(
        self, connection: sa.Connection, tables: Sequence[str], streams: Collection[str], target: str
    ) -> dict[int, int]:
        """Undecided rows of some streams under any instance_id but one, in several tables of files, by timecode.

        Args:
            tables: their names; one that cannot be read has none.
            streams: pub_ids.
            target: the instance_id in this table of files whose rows are counted elsewhere.
        """
        found: Counter[int] = Counter()
        for name in tables:
            table = schema.files_table(name).c
            bucket = _seconds(table.timestamp).op("DIV")(_LENGTH)
            others = [sa.func.coalesce(table.instance_id, "") != target] if name == self._files.name else []
            attempts = sa.func.coalesce(table.failed_copy_attempts, 0)
            for copied in (table.copied == 0, table.copied.is_(None)):
                rows = (
                    sa.select(bucket.label("bucket"), sa.func.count())
                    .where(copied, attempts < REFUSED_FROM, table.pub_id.in_(streams), *others)
                    .group_by(sa.text("bucket"))
                )
                try:
                    found.update({int(at): count for at, count in connection.execute(rows) if at is not None})
                except sa.exc.DBAPIError as error:
                    if name == self._files.name or error_code(error) not in HISTORY_ERRORS:
                        raise
        return found

    def rows(self, connection: sa.Connection, target: str, blocks: Collection[int]) -> Iterator[Row]:
        """All rows of a target with an id in these blocks, by id."""
        ordered = sorted(blocks)
        for start in range(0, len(ordered), _BLOCKS_AT_ONCE):
            some = ordered[start : start + _BLOCKS_AT_ONCE]
            id_, owner = self._files.column("id"), self._files.column("instance_id")
            within = sa.or_(*(id_.between(block * BLOCK, block * BLOCK + BLOCK - 1) for block in some))
            yield from self._files.rows(
                connection, within, owner == target, newest_first=False, limit=_BLOCKS_AT_ONCE * BLOCK
            )

    def size(self, connection: sa.Connection, ids: Sequence[int]) -> int:
        """The bytes of archived files, by the history; 0 for those that it does not know."""
        total = 0
        for start in range(0, len(ids), _IDS_AT_ONCE):
            newest = (
                sa.select(sa.func.max(TABLE.c.id).label("id"))
                .where(
                    TABLE.c.file_table == self._files.name,
                    TABLE.c.file_id.in_(ids[start : start + _IDS_AT_ONCE]),
                    TABLE.c.result.in_(_ARCHIVED),
                )
                .group_by(TABLE.c.file_id)
                .subquery()
            )
            sizes = sa.select(sa.func.coalesce(sa.func.sum(TABLE.c.size), 0)).join(newest, newest.c.id == TABLE.c.id)
            total += int(connection.execute(sizes).scalar_one())
        return total

    def times_archived(self, connection: sa.Connection, id_: int, path: str, md5: bytes) -> int:
        """How often the history says that a row was archived at this path with this md5."""
        times = sa.select(sa.func.count()).where(
            TABLE.c.file_table == self._files.name,
            TABLE.c.file_id == id_,
            TABLE.c.result.in_(_ARCHIVED),
            TABLE.c.archived_path == path,
            TABLE.c.md5_row == md5,
        )
        return int(connection.execute(times).scalar_one())

    def max_id(self, connection: sa.Connection) -> int:
        """The highest id that is visible; 0 in an empty table."""
        return self._files.max_id(connection)

    def path_of(self, connection: sa.Connection, id_: int) -> str:
        """The path of a row; empty where there is no such row."""
        row = self._files.load(connection, [id_]).get(id_)
        return row.record.path if row else ""

    def _undecided(self, target: str) -> tuple[sa.ColumnElement[bool], ...]:
        """A condition for each range of the index for sweeps."""
        table = self._table.c
        return tuple(
            sa.and_(copied, table.instance_id == target, self._attempts < REFUSED_FROM)
            for copied in (table.copied == 0, table.copied.is_(None))
        )


def _seconds(column: sa.ColumnElement[datetime]) -> sa.ColumnElement[int]:
    """Seconds since the epoch of a column that is read as UTC."""
    return sa.func.timestampdiff(
        sa.text("SECOND"), sa.literal_column("'1970-01-01 00:00:00'"), column, type_=sa.BigInteger
    )


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None else str(value)
