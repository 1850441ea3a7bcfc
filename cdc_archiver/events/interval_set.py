"""A compact set of row ids, stored as ranges because ids come almost in order. Pure."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

_RANGES: Final = 10_000
"""Limit of ranges, about 700 kB. Reached only when ids are missing from the stream in ten thousand separate places."""


class IntervalSet:
    """Integers, stored as sorted ranges that neither overlap nor touch.

    Past the limit the two lowest ranges are joined, gap included. So the set contains every number that was added, and is exact
    above its lowest range; within that range it may contain numbers that were never added. The lowest are the oldest ids, which are
    no longer looked up.

    Args:
        limit: maximum number of ranges.
    """

    def __init__(self, limit: int = _RANGES) -> None:
        if limit < 1:
            raise ValueError(f"invalid limit of an interval set: {limit}")
        self._limit = limit
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def add(self, number: int) -> None:
        """Adds one number."""
        firsts, lasts = self._firsts, self._lasts
        index = bisect_right(firsts, number)  # the first range that begins above the number
        if index and number <= lasts[index - 1]:
            return
        joins_lower = index > 0 and number == lasts[index - 1] + 1
        joins_upper = index < len(firsts) and number == firsts[index] - 1
        if joins_lower and joins_upper:
            lasts[index - 1] = lasts.pop(index)
            del firsts[index]
        elif joins_lower:
            lasts[index - 1] = number
        elif joins_upper:
            firsts[index] = number
        else:
            firsts.insert(index, number)
            lasts.insert(index, number)
            if len(firsts) > self._limit:
                del firsts[1]
                del lasts[0]

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self._firsts, number)
        return index > 0 and number <= self._lasts[index - 1]

    def copy(self) -> IntervalSet:
        """An independent set of the same numbers."""
        twin = IntervalSet(self._limit)
        twin._firsts, twin._lasts = self._firsts[:], self._lasts[:]
        return twin

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """First and last number of each range, ascending."""
        return tuple(zip(self._firsts, self._lasts, strict=True))
