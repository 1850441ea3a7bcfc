"""The progress of the stream, for other threads: its position, the ids that it delivered, and those that it missed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from cdc_archiver.database.server_features import Position
from cdc_archiver.events.event_reader import StreamMark
from cdc_archiver.events.interval_set import IntervalSet

_SUSPECTS_LIMIT: Final = 10_000
"""Maximum number of suspects of one sweep's page."""


@dataclass(frozen=True, slots=True)
class _Suspects:
    """Pending rows that the stream should deliver: decided when it has passed ``position``."""

    ids: tuple[int, ...]
    position: Position


class StreamProgress:
    """Written by one thread, read by any. Starts again with each anchor.

    The position changes with each transaction of the server, and is read rarely: so the mark is one reference, written and read
    without the lock, and everything derived from it is computed on demand.
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
            self._suspects.clear()  # covered by the sweep of this anchor

    def deliver(self, ids: Iterable[int]) -> None:
        """These ids were handed over."""
        with self._lock:
            for number in ids:
                self._delivered.add(number)

    def advance(self, mark: StreamMark) -> None:
        """Everything before this mark was handed over."""
        # In this order: a thread that adds suspects reads the mark afterwards, so that one of the two sees what the other wrote.
        self._mark = mark
        if self._suspects:
            with self._lock:
                self._decide_suspects()

    def settle(self, max_id: int) -> None:
        """Every row committed before the anchor, or before the gap, has at most this id."""
        with self._lock:
            self._anchor_max_id = max_id

    def unsettle(self) -> None:
        """An event could not be read: a sweep covers it, as it covers what was written before the anchor."""
        with self._lock:
            self._anchor_max_id = None
            self._suspects.clear()

    def end(self) -> None:
        """The stream is closed."""
        with self._lock:
            self._mark = self._anchor_max_id = None
            self._suspects.clear()  # covered by the sweep of the next anchor

    @property
    def position(self) -> Position | None:
        """The position up to which everything was handed over; None without a stream."""
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
        # The two clocks may differ: an event from the future has age 0.
        return max(0.0, read_at - mark.written_at)

    @property
    def anchor_max_id(self) -> int | None:
        """The highest id that the sweep of the anchor covers; None without a stream and until it is known."""
        with self._lock:
            return self._anchor_max_id

    @property
    def delivered(self) -> IntervalSet:
        """A copy of the ids handed over since the anchor."""
        with self._lock:
            return self._delivered.copy()

    def suspect(self, ids: Iterable[int], position: Position) -> None:
        """Adds rows that a sweep found pending and that the stream has not delivered yet.

        It is decided by what was delivered when the stream first passes the position. Not later: once the sweep has handed them
        on, our own writes make the stream deliver them.

        Args:
            ids: of rows that were visible before ``position`` was taken.
            position: of the server, before the ids were handed on.
        """
        with self._lock:
            if self._mark is not None and self._anchor_max_id is not None:
                self._suspects.append(_Suspects(tuple(islice(ids, _SUSPECTS_LIMIT)), position))
                self._decide_suspects()

    def take_missed(self) -> list[int]:
        """The suspects that the stream has passed without delivering them, since the last call."""
        with self._lock:
            missed, self._missed = self._missed, []
            return missed

    def _decide_suspects(self) -> None:
        reached = self.position
        assert reached is not None
        for group in [group for group in self._suspects if not reached < group.position]:
            self._suspects.remove(group)
            floor = self._anchor_max_id
            if floor is not None:
                self._missed += [id_ for id_ in group.ids if id_ > floor and id_ not in self._delivered]
