"""Which ids are in hand, and in which state. Pure: no threads, no clock of its own, no I/O.

An id that is not in the ledger is nobody's concern here; the table still has it, and a sweep offers it again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cdc_archiver.model import Origin

_ECHO_SECONDS: Final = 60.0
_ECHOES_MOST: Final = 20_000
_WAITING_MOST: Final = 50_000
_LOOK_DELAYS: Final = (0.005, 0.02, 0.1, 0.5)
"""Seconds until the next look at a row that does not show yet what its event told of."""


class State(StrEnum):
    """Where an id is."""

    OFFERED = "offered"
    """On its way to the router, which reads its row."""
    QUEUED = "queued"
    IN_FLIGHT = "in_flight"
    """With a worker, or on its way back to the table."""
    WAITING = "waiting"
    """For its next try."""


class OfferResult(StrEnum):
    """What the ledger says to an id that it is offered. The words are labels of a metric."""

    OFFERED = "offered"
    KNOWN = "known"
    ECHO = "echo"


@dataclass(slots=True)
class Entry:
    """What is known of an id in hand.

    Attributes:
        origin: what told us of it: a sweep, or, from then on, the stream.
        woken_at: when, by the caller's clock, in seconds.
        fresh: goes before the backlog.
        taken_at: when a worker took it.
        due: when it is tried again, while it waits.
        blank_tries: tries in a row that came to nothing and said nothing.
        looks: how often its row was read without finding what its event told of.
        again: its row was touched while it was in hand, so what we read of it may be old.
    """

    state: State
    origin: Origin
    woken_at: float
    fresh: bool
    taken_at: float = 0.0
    due: float = 0.0
    blank_tries: int = 0
    looks: int = 0
    again: bool = False


@dataclass(frozen=True, slots=True)
class FileStatus:
    """An id in hand, as an operator sees it.

    Attributes:
        known_for: seconds since we were told of it.
        retry_in: seconds until it is tried again, while it waits for that.
    """

    state: State
    origin: Origin
    known_for: float
    retry_in: float | None


class InFlightTable:
    """The ids in hand. Times are seconds of one clock, the caller's."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._waiting: list[tuple[float, int]] = []
        self._echoes: dict[int, tuple[int, float]] = {}
        self._counts = dict.fromkeys(State, 0)

    def __contains__(self, id_: int) -> bool:
        return id_ in self._entries

    def __getitem__(self, id_: int) -> Entry:
        return self._entries[id_]

    def whereabouts(self, id_: int, now: float) -> FileStatus | None:
        """Where an id is, for an operator; None if nobody has it in hand.

        The one look that needs no lock: what changes meanwhile makes it a moment old, no more.

        Args:
            now: seconds of the caller's clock.
        """
        entry = self._entries.get(id_)
        if entry is None:
            return None
        retry_in = max(0.0, entry.due - now) if entry.state is State.WAITING else None
        return FileStatus(entry.state, entry.origin, max(0.0, now - entry.woken_at), retry_in)

    def count(self, state: State) -> int:
        """How many ids are in this state."""
        return self._counts[state]

    def offer(self, id_: int, origin: Origin, now: float, *, fresh: bool) -> OfferResult:
        """Takes an id in hand, unless it is there already."""
        if origin is Origin.STREAM and self._is_echo(id_, now):
            return OfferResult.ECHO
        entry = self._entries.get(id_)
        if entry is None:
            self._entries[id_] = Entry(State.OFFERED, origin, now, fresh)
            self._counts[State.OFFERED] += 1
            return OfferResult.OFFERED
        if origin is Origin.STREAM:
            entry.origin = origin  # what is read of it from now on may be older than what we were told
            entry.looks = 0
            if entry.state is State.WAITING:  # somebody touched the row: its wait is over
                self._move(id_, State.OFFERED)
                entry.fresh = True
                return OfferResult.OFFERED
            entry.again = True
        return OfferResult.KNOWN

    def reading(self, id_: int) -> None:
        """Its row is about to be read: a touch from now on may be newer than what is read."""
        self._entries[id_].again = False

    def queued(self, id_: int) -> None:
        """Its row was read and waits for a worker."""
        self._move(id_, State.QUEUED)

    def taken(self, id_: int, now: float) -> bool:
        """A worker wants it.

        Returns:
            Whether it may have it: not if the row was touched since it was read. Then the id is offered again.
        """
        entry = self._entries[id_]
        if entry.again:
            entry.again = False
            self._move(id_, State.OFFERED)
            return False
        entry.taken_at = now
        self._move(id_, State.IN_FLIGHT)
        return True

    def requeued(self, id_: int) -> None:
        """It goes from one queue to another as it is."""
        self._move(id_, State.QUEUED)

    def retry(self, id_: int, due: float) -> None:
        """It is tried again at a time; at once if its row was touched meanwhile."""
        entry = self._entries[id_]
        if self._counts[State.WAITING] >= _WAITING_MOST:
            self.drop(id_)  # the table remembers it
            return
        entry.due = 0.0 if entry.again else due
        entry.again = False
        self._move(id_, State.WAITING)
        heapq.heappush(self._waiting, (entry.due, id_))

    def look_again(self, id_: int, now: float) -> bool:
        """Its row is read once more in a moment, since a change is visible some milliseconds after its event.

        Returns:
            Whether it is; not after some looks: then it is the sweep's.
        """
        entry = self._entries[id_]
        entry.looks += 1
        if entry.looks > len(_LOOK_DELAYS):
            return False
        self.retry(id_, now + _LOOK_DELAYS[entry.looks - 1])
        return True

    def finished(self, id_: int) -> bool:
        """It is out of our hands, unless its row was touched meanwhile.

        Returns:
            Whether it is offered again.
        """
        entry = self._entries.get(id_)
        if entry is None:
            return False
        if entry.again:
            entry.again = False
            self._move(id_, State.OFFERED)
            return True
        self.drop(id_)
        return False

    def drop(self, id_: int) -> None:
        """Forgets it, whatever its state."""
        entry = self._entries.pop(id_, None)
        if entry is not None:
            self._counts[entry.state] -= 1

    def due(self, now: float) -> list[int]:
        """The ids whose wait is over; they are offered now."""
        ids = []
        while self._waiting and self._waiting[0][0] <= now:
            due, id_ = heapq.heappop(self._waiting)
            entry = self._entries.get(id_)
            # Entries left over from an earlier wait of the same id say nothing.
            if entry is not None and entry.state is State.WAITING and entry.due == due:
                self._move(id_, State.OFFERED)
                ids.append(id_)
        return ids

    def next_due(self) -> float | None:
        """When the next wait is over, or None."""
        return self._waiting[0][0] if self._waiting else None

    def expect_echoes(self, ids: Iterable[int], now: float) -> None:
        """We are about to write these rows, and the stream will tell us so: that is no news."""
        for id_ in ids:
            self._echoes[id_] = (self._echoes.pop(id_, (0, 0.0))[0] + 1, now + _ECHO_SECONDS)
            if len(self._echoes) > _ECHOES_MOST:  # without a stream none comes: the oldest is forgotten
                del self._echoes[next(iter(self._echoes))]

    def cancel_echoes(self, ids: Iterable[int]) -> None:
        """These rows were not written after all."""
        for id_ in ids:
            count, until = self._echoes.pop(id_, (0, 0.0))
            if count > 1:
                self._echoes[id_] = (count - 1, until)

    def forget_echoes(self) -> None:
        """The stream was cut: no echo comes any more."""
        self._echoes.clear()

    @property
    def expected_echoes(self) -> int:
        """How many rows' echoes are expected."""
        return len(self._echoes)

    def _is_echo(self, id_: int, now: float) -> bool:
        echo = self._echoes.get(id_)
        if echo is None:
            return False
        self.cancel_echoes([id_])
        return echo[1] >= now

    def _move(self, id_: int, state: State) -> None:
        entry = self._entries[id_]
        self._counts[entry.state] -= 1
        self._counts[state] += 1
        entry.state = state
