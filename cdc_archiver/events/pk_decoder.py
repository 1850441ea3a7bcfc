"""Primary keys out of the row images of rows events. The other columns are stepped over, not decoded.

Decoding rows takes nine tenths of the stream's CPU time, and the stream sees three images of each file: the INSERT's and the two of
our own write-back. MySQL's manual of its source, ``binary_log::Rows_event``, gives the layout of an image: a bit for each column that
it has, set where that is NULL, then the columns that are not NULL, each with a length that its type fixes or that it begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from pymysqlreplication.constants import FIELD_TYPE
from pymysqlreplication.row_event import PartialUpdateRowsEvent, UpdateRowsEvent

from cdc_archiver.database.server_features import KeyColumn
from cdc_archiver.errors import Misconfigured

_KEY_BYTES: Final = MappingProxyType(
    {FIELD_TYPE.TINY: 1, FIELD_TYPE.SHORT: 2, FIELD_TYPE.INT24: 3, FIELD_TYPE.LONG: 4, FIELD_TYPE.LONGLONG: 8}
)
"""Integer types, and their sizes in bytes."""

_FIXED: Final = {
    **_KEY_BYTES,
    FIELD_TYPE.FLOAT: 4,
    FIELD_TYPE.DOUBLE: 8,
    FIELD_TYPE.YEAR: 1,
    FIELD_TYPE.DATE: 3,
    # Of a table older than fractions of a second. With a fraction, which MariaDB may store and the event does not tell, the value
    # is longer, and the rows do not end where the event does. Old TIME and DATETIME could compensate each other: not listed.
    FIELD_TYPE.TIMESTAMP: 4,
}
_WITH_FRACTION: Final = {FIELD_TYPE.TIME2: 3, FIELD_TYPE.TIMESTAMP2: 4, FIELD_TYPE.DATETIME2: 5}
_WITH_LENGTH: Final = frozenset({FIELD_TYPE.BLOB, FIELD_TYPE.JSON, FIELD_TYPE.GEOMETRY})
_DECIMAL_BYTES: Final = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)
"""Bytes of a number of decimal digits; at most nine digits are packed together."""
_PLANS_LIMIT: Final = 1000
"""Combinations of NULL columns that one layout remembers."""
_LAYOUTS_LIMIT: Final = 100
"""Combinations of columns that are remembered for one definition of the table: MINIMAL images may have any columns."""
_BEFORE_BODY: Final = 20
"""Bytes of a packet before an event's body: the OK byte and the event's header."""

_Skip: TypeAlias = tuple[int, int]
"""Bytes to step over, then the size of a length field, after which as many bytes as it says are stepped over."""


class UndecodableEvent(Exception):
    """The keys of a rows event cannot be decoded; the text says why."""


@dataclass(frozen=True, slots=True)
class _SkipPlan:
    """How to step through an image in which certain columns are NULL.

    Attributes:
        to_key: skips before the key; all skips of the image where it has no key.
        gap: bytes between these skips and the key; None where the image has no key.
        from_key: skips behind the key.
        rest: bytes behind the last skip.
    """

    to_key: Sequence[_Skip]
    gap: int | None
    from_key: Sequence[_Skip]
    rest: int


class _ImageLayout:
    """The layout of one image of a row.

    Args:
        skips: of all columns of the table: see :func:`_skip_of`.
        present: which of them the image has, a bit for each.
        ordinal: the key's index among all columns.
        size: bytes of the key.
    """

    def __init__(self, skips: Sequence[_Skip], present: bytes, ordinal: int, size: int) -> None:
        columns = [number for number in range(len(skips)) if present[number // 8] >> number % 8 & 1]
        self.has_key = ordinal in columns
        self._skips = [skips[number] for number in columns]
        self._key = columns.index(ordinal) if self.has_key else None
        self._size = size
        self._null_bytes = (len(columns) + 7) // 8
        self._plans: dict[bytes, _SkipPlan] = {}

    def read(self, data: bytes, at: int) -> tuple[int | None, int]:
        """Reads the image that begins at an offset.

        Returns:
            The key, None where the image has none, and the offset of the image's end.

        Raises:
            IndexError: the data ends before the image. This may go unnoticed; the returned end is then beyond the data.
        """
        nulls = data[at : at + self._null_bytes]
        plan = self._plans.get(nulls) or self._make_plan(nulls)
        at += self._null_bytes
        key = None
        for fixed, length in plan.to_key:
            at += fixed
            at += length + (data[at] if length == 1 else int.from_bytes(data[at : at + length], "little"))
        if plan.gap is not None:
            at += plan.gap + self._size
            # An AUTO_INCREMENT key is never negative; only FULL metadata tells whether it is signed.
            key = int.from_bytes(data[at - self._size : at], "little")
        for fixed, length in plan.from_key:
            at += fixed
            at += length + (data[at] if length == 1 else int.from_bytes(data[at : at + length], "little"))
        return key, at + plan.rest

    def _make_plan(self, nulls: bytes) -> _SkipPlan:
        to_key: list[_Skip] = []
        gap = None
        skips: list[_Skip] = []
        skipped = 0
        for number, (fixed, length) in enumerate(self._skips):
            if nulls[number // 8] >> number % 8 & 1:
                continue
            if number == self._key:
                to_key, gap, skips, skipped = skips, skipped, [], 0
                continue
            skipped += fixed
            if length:
                skips.append((skipped, length))
                skipped = 0
        plan = _SkipPlan(to_key, gap, skips, skipped) if gap is not None else _SkipPlan(skips, None, (), skipped)
        if len(self._plans) >= _PLANS_LIMIT:
            self._plans.clear()
        self._plans[nulls] = plan
        return plan


class RowsLayout:
    """The layout of the rows of one kind of event, for one definition of the table.

    Args:
        columns: mysql-replication's, of the definition.
        present: for each image of a row, which of the columns it has: one image for an INSERT, two for an UPDATE.
        ordinal: the key's index among ``columns``.
    """

    def __init__(self, columns: Sequence[Any], present: Sequence[bytes], ordinal: int) -> None:
        size = _KEY_BYTES[columns[ordinal].type]
        skips = [skip for column in columns if (skip := _skip_of(column)) is not None]
        known = len(skips) == len(columns)
        self._images = [_ImageLayout(skips, bits, ordinal, size) for bits in present] if known else []
        # Without a key in any image, a row might have no bytes at all.
        self._readable = any(image.has_key for image in self._images)

    def keys(self, data: bytes) -> list[int] | None:
        """The keys of an event's rows in the event's order, unsigned; of an UPDATE the key after it, where the event has that.

        Args:
            data: the images, one behind the other, to the event's end.

        Returns:
            None where the layout does not fit, and no key that was read can be trusted: a column's type is unknown, a row has no
            key, or the last image does not end where the event does.
        """
        if not self._readable:
            return None
        keys: list[int] = []
        at, end = 0, len(data)
        images = self._images
        try:
            while at < end:
                found = None
                for image in images:
                    key, at = image.read(data, at)
                    if key is not None:
                        found = key
                if found is None:
                    return None
                keys.append(found)
        except IndexError:
            return None
        return keys if at == end else None


def _skip_of(column: Any) -> _Skip | None:
    """How to step over a column; None for an unknown type.

    One such column makes the whole table unreadable: mysql-replication does not know it either, and has read its description as that
    of the next column.
    """
    kind = column.type
    if kind in _FIXED:
        return _FIXED[kind], 0
    if kind in _WITH_FRACTION:
        return _WITH_FRACTION[kind] + (int(column.fsp) + 1) // 2, 0
    if kind in _WITH_LENGTH:
        return 0, int(column.length_size)
    if kind in (FIELD_TYPE.VARCHAR, FIELD_TYPE.STRING):
        return 0, 2 if column.max_length > 255 else 1
    if kind in (FIELD_TYPE.ENUM, FIELD_TYPE.SET):
        return int(column.size), 0
    if kind == FIELD_TYPE.BIT:
        return int(column.bytes), 0
    if kind == FIELD_TYPE.NEWDECIMAL:
        return _decimal_bytes(column.precision - column.decimals) + _decimal_bytes(column.decimals), 0
    return None


def _decimal_bytes(digits: int) -> int:
    """Bytes of the digits of a DECIMAL before or behind its point."""
    return digits // 9 * 4 + _DECIMAL_BYTES[digits % 9]


@dataclass(frozen=True, slots=True)
class _KeyLocation:
    """Where the key is in one definition of the table, or why that is unknown."""

    ordinal: int = 0
    why_not: str = ""


class PrimaryKeyDecoder:
    """Decodes the primary keys of one table's rows events, and nothing else: neither names nor other values can be trusted.

    With ``binlog_row_metadata = FULL`` the event names its key. Otherwise information_schema is asked for the key's column, once for
    each table id: the server assigns a new one to each definition of the table, which reveals an ALTER. information_schema
    describes the table as it is now, and the event may be older.

    Args:
        look_up_key: asks information_schema.
    """

    def __init__(self, look_up_key: Callable[[], KeyColumn]) -> None:
        self._look_up_key = look_up_key
        self._table_id: int | None = None
        self._location = _KeyLocation()
        self._doubt = ""
        self._columns: Any = None
        self._layouts: dict[tuple[int, bytes, bytes], RowsLayout] = {}

    def ids(self, event: Any) -> list[int]:
        """The keys, one for each row, in the event's order.

        Args:
            event: mysql-replication's WriteRowsEvent or UpdateRowsEvent.

        Raises:
            UndecodableEvent: the keys cannot be decoded.
        """
        try:
            ordinal = self._key_ordinal(event)
            if (keys := self._read_keys(event, ordinal)) is not None:
                return keys
            return self._decode_rows(event, ordinal)
        except UndecodableEvent:
            raise
        except Exception as error:
            # Whatever the decoder fails on, this event must not stop the ones behind it.
            raise UndecodableEvent(f"{type(error).__name__} while a row was decoded: {error}") from error

    def take_doubt(self) -> str:
        """Why the keys read last may be wrong: once for each definition of the table; empty where there is no doubt."""
        doubt, self._doubt = self._doubt, ""
        return doubt

    def _read_keys(self, event: Any, ordinal: int) -> list[int] | None:
        """The keys without the rest of the rows; None where that does not work."""
        # A partial update has fragments of JSON as columns; an incomplete event must not be read.
        if isinstance(event, PartialUpdateRowsEvent) or not event.complete:
            return None
        columns = event.columns
        if columns is not self._columns:  # another definition, or the same one described again
            self._columns = columns
            self._layouts.clear()
        before = event.columns_present_bitmap
        after = event.columns_present_bitmap2 if isinstance(event, UpdateRowsEvent) else b""
        layout = self._layouts.get((ordinal, before, after))
        if layout is None:
            if event.number_of_columns != len(columns):
                return None
            if len(self._layouts) >= _LAYOUTS_LIMIT:
                self._layouts.clear()
            layout = RowsLayout(columns, (before, after) if after else (before,), ordinal)
            self._layouts[ordinal, before, after] = layout
        # Read past the library's cursor, which stays at the first row: the library may still be asked for the rows.
        packet = event.packet
        body = packet.get_all_data()[_BEFORE_BODY + packet.read_bytes : _BEFORE_BODY + event.event_size]
        return layout.keys(body) if body else None  # empty: the library was asked for the rows already

    def _decode_rows(self, event: Any, ordinal: int) -> list[int]:
        """The keys out of whole rows, as the library decodes them."""
        column = event.columns[ordinal]
        name = column.name or f"UNKNOWN_COL{ordinal}"
        # A MINIMAL row image has the key in the row before an UPDATE and leaves it out of the row after.
        if isinstance(event, UpdateRowsEvent):
            values = [
                row["before_values"][name] if row["after_values"][name] is None else row["after_values"][name]
                for row in event.rows
            ]
        else:
            values = [row["values"][name] for row in event.rows]
        if event.packet.read_bytes != event.event_size:
            raise UndecodableEvent("its rows do not end where the event does")
        for index, value in enumerate(values):
            if not isinstance(value, int):
                raise UndecodableEvent(f"a row has {value!r} where its primary key should be")
            if value < 0:
                # Without FULL metadata an unsigned key loses its sign; an AUTO_INCREMENT key is never negative.
                values[index] = value + (1 << 8 * _KEY_BYTES[column.type])
        return values

    def _key_ordinal(self, event: Any) -> int:
        """The index of the key's column, which is an integer."""
        columns = event.columns
        name = event.primary_key
        if name and isinstance(name, str):
            ordinal = next(number for number, column in enumerate(columns) if column.name == name)
        else:
            ordinal = self._looked_up_ordinal(event)
        kind = columns[ordinal].type
        if kind not in _KEY_BYTES:
            raise UndecodableEvent(f"the primary key of its rows is not an integer (type {kind})")
        return ordinal

    def _looked_up_ordinal(self, event: Any) -> int:
        if event.table_id != self._table_id:
            self._location = self._locate_key(event)
            self._table_id = event.table_id
        if self._location.why_not:
            raise UndecodableEvent(self._location.why_not)
        return self._location.ordinal

    def _locate_key(self, event: Any) -> _KeyLocation:
        try:
            key = self._look_up_key()
        except Misconfigured as error:
            return _KeyLocation(why_not=str(error))
        columns = event.columns
        if key.ordinal >= len(columns) or columns[key.ordinal].type not in _KEY_BYTES:
            return _KeyLocation(
                why_not="the table was altered since, and the column of its primary key then is unknown"
            )
        if key.columns != len(columns):
            # One sweep settles it: events of this definition are older than the ALTER, which is older than this look-up.
            # Or nothing is wrong, and the table has hidden columns.
            self._doubt = (
                f"a row has {len(columns)} columns and the table now {key.columns}: the table was altered meanwhile"
            )
        return _KeyLocation(ordinal=key.ordinal)
