"""The keys in the row images of an event, and nothing else of them: the other columns are stepped over, not decoded.

To decode a row is nine tenths of what the stream costs, and of each file it sees three images: the INSERT's and the two of our own
write-back. How an image is laid out is told by MySQL's manual of its source, `binary_log::Rows_event`: a bit for each column that it
has, set where that is NULL, and then the columns that are not, each with a length that its type fixes or that it begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from pymysqlreplication.constants import FIELD_TYPE

KEY_BYTES: Final = MappingProxyType(
    {FIELD_TYPE.TINY: 1, FIELD_TYPE.SHORT: 2, FIELD_TYPE.INT24: 3, FIELD_TYPE.LONG: 4, FIELD_TYPE.LONGLONG: 8}
)
"""Integers, and their bytes."""

_FIXED: Final = {
    **KEY_BYTES,
    FIELD_TYPE.FLOAT: 4,
    FIELD_TYPE.DOUBLE: 8,
    FIELD_TYPE.YEAR: 1,
    FIELD_TYPE.DATE: 3,
    # Of a table that is older than fractions of a second. With a fraction, which MariaDB could give it and the event does not tell, it
    # would be longer, and the rows not end where they should. TIME and DATETIME of old could make up for each other: not here.
    FIELD_TYPE.TIMESTAMP: 4,
}
_WITH_FRACTION: Final = {FIELD_TYPE.TIME2: 3, FIELD_TYPE.TIMESTAMP2: 4, FIELD_TYPE.DATETIME2: 5}
_WITH_LENGTH: Final = frozenset({FIELD_TYPE.BLOB, FIELD_TYPE.JSON, FIELD_TYPE.GEOMETRY})
_DECIMAL_BYTES: Final = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)
"""Of so many digits; nine of them are the most that are packed together."""
_WAYS_MOST: Final = 1000
"""Combinations of NULL columns that are remembered."""

_Run: TypeAlias = tuple[int, int]
"""Bytes to step over, and then bytes of a length, and as many bytes as it says."""


@dataclass(frozen=True, slots=True)
class _Way:
    """Through an image that has certain columns NULL.

    Attributes:
        to_key: what is before the key; all of the image where it has none.
        gap: bytes between that and the key; None where the image has no key.
        from_key: what is behind it.
        rest: bytes behind that.
    """

    to_key: Sequence[_Run]
    gap: int | None
    from_key: Sequence[_Run]
    rest: int


class _Image:
    """How the images of one kind are laid out.

    Args:
        steps: of all columns of the table: see :func:`_step`.
        present: which of them an image has, a bit for each.
        ordinal: the key's place among all columns.
        size: bytes of the key.
    """

    def __init__(self, steps: Sequence[_Run], present: bytes, ordinal: int, size: int) -> None:
        there = [number for number in range(len(steps)) if present[number // 8] >> number % 8 & 1]
        self.has_key = ordinal in there
        self._steps = [steps[number] for number in there]
        self._key = there.index(ordinal) if self.has_key else None
        self._size = size
        self._null_bytes = (len(there) + 7) // 8
        self._ways: dict[bytes, _Way] = {}

    def read(self, data: bytes, at: int) -> tuple[int | None, int]:
        """The key of the image that begins at a place, and where it ends; None where it has no key.

        Raises:
            IndexError: the data ends before the image does. It does not have to be noticed here: the end then is beyond the data.
        """
        nulls = data[at : at + self._null_bytes]
        way = self._ways.get(nulls) or self._find_way(nulls)
        at += self._null_bytes
        key = None
        for fixed, length in way.to_key:
            at += fixed
            at += length + (data[at] if length == 1 else int.from_bytes(data[at : at + length], "little"))
        if way.gap is not None:
            at += way.gap + self._size
            # A key that counts up is never negative; whether it is signed, the event tells with FULL metadata only.
            key = int.from_bytes(data[at - self._size : at], "little")
        for fixed, length in way.from_key:
            at += fixed
            at += length + (data[at] if length == 1 else int.from_bytes(data[at : at + length], "little"))
        return key, at + way.rest

    def _find_way(self, nulls: bytes) -> _Way:
        to_key: list[_Run] = []
        gap = None
        runs: list[_Run] = []
        skipped = 0
        for number, (fixed, length) in enumerate(self._steps):
            if nulls[number // 8] >> number % 8 & 1:
                continue
            if number == self._key:
                to_key, gap, runs, skipped = runs, skipped, [], 0
                continue
            skipped += fixed
            if length:
                runs.append((skipped, length))
                skipped = 0
        way = _Way(to_key, gap, runs, skipped) if gap is not None else _Way(runs, None, (), skipped)
        if len(self._ways) >= _WAYS_MOST:
            self._ways.clear()
        self._ways[nulls] = way
        return way


class Images:
    """How the rows of one kind of events on one definition of the table are laid out.

    Args:
        columns: mysql-replication's, of the definition.
        present: for each image of a row, which of the columns it has: one image for an INSERT, two for an UPDATE.
        ordinal: the key's place among ``columns``.
    """

    def __init__(self, columns: Sequence[Any], present: Sequence[bytes], ordinal: int) -> None:
        size = KEY_BYTES[columns[ordinal].type]
        steps = [step for column in columns if (step := _step(column)) is not None]
        self._images = [_Image(steps, bits, ordinal, size) for bits in present] if len(steps) == len(columns) else []
        # Without a key in any image, a row might have no bytes at all.
        self._readable = any(image.has_key for image in self._images)

    def keys(self, data: bytes) -> list[int] | None:
        """The keys of an event's rows, in its order, the one after an UPDATE where that has it; unsigned.

        Args:
            data: the images, one behind the other, to the event's end.

        Returns:
            None where they are not what we take them for, and nothing that was read of them can be believed: there is a type that we
            do not know, a row has no key, or the last image does not end where the event does.
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


def _step(column: Any) -> _Run | None:
    """How a column is stepped over; None where we do not know its type.

    One such column spoils them all: mysql-replication does not know it either, and has taken what describes it for the description
    of the next.
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
        return _digits(column.precision - column.decimals) + _digits(column.decimals), 0
    return None


def _digits(count: int) -> int:
    """Bytes of so many digits of a DECIMAL, before its point or behind it."""
    return count // 9 * 4 + _DECIMAL_BYTES[count % 9]
