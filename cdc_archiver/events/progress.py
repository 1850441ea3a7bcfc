"""How far the stream is, for other threads to ask: its position, what it delivered, what it therefore missed."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from cdc_archiver.database.server import Position
from cdc_archiver.events.delivered import IntervalSet


class Progress:
    """One thread writes, any may ask. Begins anew with each anchor."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._position: Position | None = None
        self._anchor_max_id: int | None = None
        self._delivered = IntervalSet()

    def begin(self, position: Position) -> None:
        """The stream is open at this position."""
        with self._lock:
            self._position = position
            self._anchor_max_id = None
            self._delivered = IntervalSet()

    def deliver(self, ids: Iterable[int]) -> None:
        """These ids were handed over."""
        with self._lock:
            for number in ids:
                self._delivered.add(number)

    def advance(self, position: Position) -> None:
        """Everything before this position was handed over."""
        with self._lock:
            self._position = position

    def settle(self, max_id: int) -> None:
        """Every row that was committed before the anchor has this id or a lower one."""
        with self._lock:
            self._anchor_max_id = max_id

    def end(self) -> None:
        """The stream is closed."""
        with self._lock:
            self._position = self._anchor_max_id = None

    @property
    def position(self) -> Position | None:
        """Everything before it was handed over; None without a stream."""
        with self._lock:
            return self._position

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

    def passed(self, position: Position) -> bool:
        """Whether everything before this position was handed over."""
        with self._lock:
            return self._has_passed(position)

    def missed(self, ids: Iterable[int], position: Position) -> list[int]:
        """Which of these ids the stream ought to have delivered, and has not.

        One question, not three, because an anchor between two of them would make a miss of everything.

        Args:
            ids: of rows that were visible before ``position`` was taken.
            position: of the server.

        Returns:
            Nothing where the stream has not come so far yet: ask :meth:`passed`.
        """
        with self._lock:
            if self._anchor_max_id is None or not self._has_passed(position):
                return []
            floor = self._anchor_max_id
            return [number for number in ids if number > floor and number not in self._delivered]

    def _has_passed(self, position: Position) -> bool:
        return self._position is not None and not self._position < position
