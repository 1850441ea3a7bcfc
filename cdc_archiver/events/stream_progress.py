"""How far the stream is, for other threads to ask: its position, what it delivered, what it therefore missed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from cdc_archiver.database.server_features import Position
from cdc_archiver.events.interval_set import IntervalSet
from cdc_archiver.events.reader import StreamMark

_SUSPECTS_MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Suspects:
    """Pending rows that the stream should have told of, and may yet: they are judged when it has passed ``position``."""

    ids: tuple[int, ...]
    position: Position


class StreamProgress:
    """One thread writes, any may ask. Begins anew with each anchor.

    How far the stream is changes with each transaction of the server, and hardly anybody asks: so that is one reference, written and
    read without the lock. What is made of it is made for those who ask.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mark: StreamMark | None = None
        self._anchor_max_id: int | None = None
        self._delivered = IntervalSet()
        self._suspects: list[_Suspects] = []
        self._missed: list[int] = []

    def begin(self, position: Position) -> None:
        """The stream is open at this position."""
        with self._lock:
            self._mark = StreamMark(position.file, position.offset, 0, 0.0, idle=True)
            self._anchor_max_id = None
            self._delivered = IntervalSet()
            self._suspects.clear()  # this anchor answers for them

    def deliver(self, ids: Iterable[int]) -> None:
        """These ids were handed over."""
        with self._lock:
            for number in ids:
                self._delivered.add(number)

    def advance(self, mark: StreamMark) -> None:
        """Everything before this mark was handed over."""
        # In this order: whoever adds suspects looks at the mark after that, so that one of us sees what the other wrote.
        self._mark = mark
        if self._suspects:
            with self._lock:
                self._judge()

    def settle(self, max_id: int) -> None:
        """Every row that was committed before the anchor, or before the gap, has this id or a lower one."""
        with self._lock:
            self._anchor_max_id = max_id

    def unsettle(self) -> None:
        """Something went by that could not be read: a sweep answers for it, as it does for what was before the anchor."""
        with self._lock:
            self._anchor_max_id = None
            self._suspects.clear()

    def end(self) -> None:
        """The stream is closed."""
        with self._lock:
            self._mark = self._anchor_max_id = None
            self._suspects.clear()  # the next anchor answers for them

    @property
    def position(self) -> Position | None:
        """Everything before it was handed over; None without a stream."""
        mark = self._mark
        return None if mark is None else Position(mark.file, mark.offset)

    @property
    def lag(self) -> float:
        """Age of the newest event when it was read, in seconds; 0 while the server is idle, NaN without a stream."""
        mark = self._mark
        if mark is None:
            return math.nan
        if mark.idle or not mark.written_at:
            return 0.0
        read_at = time.time() - (time.monotonic() - mark.heard_at)
        # The two clocks may disagree: an event from the future is no less than fresh.
        return max(0.0, read_at - mark.written_at)

    @property
    def anchor_max_id(self) -> int | None:
        """The highest id that the anchor's sweep answers for; None without a stream and until it is known."""
        with self._lock:
            return self._anchor_max_id

    @property
    def delivered(self) -> IntervalSet:
        """The ids that were handed over since the anchor: a copy."""
        with self._lock:
            return self._delivered.copy()

    def suspect(self, ids: Iterable[int], position: Position) -> None:
        """A sweep has found these pending, and the stream has not told of them yet.

        They are judged by what was delivered when the stream first passes the position. Not later: once the sweep has handed
        them on, the stream tells of them because we write to them ourselves.

        Args:
            ids: of rows that were visible before ``position`` was taken.
            position: of the server, before anybody was told of the ids.
        """
        with self._lock:
            if self._mark is not None and self._anchor_max_id is not None:
                self._suspects.append(_Suspects(tuple(islice(ids, _SUSPECTS_MOST)), position))
                self._judge()

    def take_missed(self) -> list[int]:
        """The suspects that the stream has passed without a word since this was asked last."""
        with self._lock:
            missed, self._missed = self._missed, []
            return missed

    def _judge(self) -> None:
        reached = self.position
        assert reached is not None
        for group in [group for group in self._suspects if not reached < group.position]:
            self._suspects.remove(group)
            floor = self._anchor_max_id
            if floor is not None:
                self._missed += [id_ for id_ in group.ids if id_ > floor and id_ not in self._delivered]
