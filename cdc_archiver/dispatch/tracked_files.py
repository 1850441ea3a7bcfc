"""Which ids are tracked, and in which state. Pure: no threads, no clock of its own, no I/O.

An id that is not in this table is not tracked by this process. The database still has its row, and a sweep offers it again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cdc_archiver.model import FileRecord, Origin

_OWN_WRITE_SECONDS: Final = 60.0
"""How long the stream may take to report a write of this process."""
_OWN_WRITES_LIMIT: Final = 20_000
_WAITING_LIMIT: Final = 50_000
_REREAD_DELAYS: Final = tuple(min(0.005 * 2**reads, 5.0) for reads in range(21))
"""Seconds until the next read of a row that does not show yet what its event announced: for a minute in all."""
_QUICK_READS: Final = 8
"""Reads of the first second. Most changes are visible after milliseconds; later come a replica's acknowledgement, which
semi-synchronous replication waits for, and XA COMMIT."""
_LATE_LIMIT: Final = 10_000
"""Waiting ids above which no row is read again after the first second."""


class TrackedState(StrEnum):
    """Where a tracked id is."""

    OFFERED = "offered"
    """On its way to the router, which reads its row."""
    QUEUED = "queued"
    """Its row was read; it waits for a worker."""
    IN_FLIGHT = "in_flight"
    """With a worker, or on its way back to the table."""
    WAITING = "waiting"
    """It waits for its next attempt."""
    NOT_RECORDABLE = "not_recordable"
    """The database refused its write-backs; it is tracked no longer."""


class OfferResult(StrEnum):
    """What became of an offered id. The values are labels of a metric."""

    OFFERED = "offered"
    DUPLICATE = "known"
    """It is tracked already."""
    OWN_WRITE = "echo"
    """The stream reports a write of this process."""
    DROPPED = "dropped"
    """There is no room for it. The scheduler's answer, never this table's."""


@dataclass(frozen=True, slots=True)
class LastTry:
    """The last try of a file.

    Attributes:
        record: as the row is after it.
        due: when the next one is, unless the row changes in what decides about the file.
    """

    record: FileRecord
    due: float


@dataclass(slots=True)
class TrackedFile:
    """What is known of a tracked id. Times are seconds of the caller's clock.

    Attributes:
        origin: what announced it: a sweep, or, once the stream has announced it, the stream.
        woken_at: when it was announced.
        fresh: it goes before the backlog.
        taken_at: when a worker took it.
        due: when the next attempt is, while it waits.
        inconclusive_tries: consecutive tries that neither archived the file nor told anything about it.
        refused_writes: consecutive write-backs of it that the database refused.
        stale_reads: how often its row was read and did not show what its event announced.
        last_try: in this process, and while it is tracked; None before.
        touched: its row was changed while it was tracked, so what was read of it may be old.
        withheld: it waits because its timecode was handed over.
    """

    state: TrackedState
    origin: Origin
    woken_at: float
    fresh: bool
    taken_at: float = 0.0
    due: float = 0.0
    inconclusive_tries: int = 0
    refused_writes: int = 0
    stale_reads: int = 0
    last_try: LastTry | None = None
    touched: bool = False
    withheld: bool = False


@dataclass(frozen=True, slots=True)
class FileStatus:
    """A tracked id, as an operator sees it.

    Attributes:
        known_for: seconds since it was announced.
        retry_in: seconds until the next attempt, while it waits for that; else None.
    """

    state: TrackedState
    origin: Origin
    known_for: float
    retry_in: float | None


class TrackedFiles:
    """The tracked ids. Times are seconds of one clock, the caller's."""

    def __init__(self) -> None:
        self._files: dict[int, TrackedFile] = {}
        self._waiting: list[tuple[float, int]] = []
        self._own_writes: dict[int, tuple[int, float]] = {}
        self._counts = dict.fromkeys(TrackedState, 0)

    def __contains__(self, id_: int) -> bool:
        return id_ in self._files

    def __getitem__(self, id_: int) -> TrackedFile:
        return self._files[id_]

    def __iter__(self) -> Iterator[int]:
        return iter(self._files)

    def file_status(self, id_: int, now: float) -> FileStatus | None:
        """The status of an id, for an operator; None if it is not tracked, or its row shows no reason for that.

        The only method that needs no lock: a change meanwhile makes the answer a moment old, nothing worse.
        """
        file = self._files.get(id_)
        if file is None or file.stale_reads:
            return None
        retry_in = max(0.0, file.due - now) if file.state is TrackedState.WAITING else None
        return FileStatus(file.state, file.origin, max(0.0, now - file.woken_at), retry_in)

    def count(self, state: TrackedState) -> int:
        """How many ids are in this state."""
        return self._counts[state]

    def offer(self, id_: int, origin: Origin, now: float, *, fresh: bool) -> OfferResult:
        """Tracks an id, unless it is tracked already. A wait for a change that is visible now is over."""
        if origin is Origin.STREAM and self._is_own_write(id_, now):
            return OfferResult.OWN_WRITE
        file = self._files.get(id_)
        if file is None:
            self._files[id_] = TrackedFile(TrackedState.OFFERED, origin, now, fresh)
            self._counts[TrackedState.OFFERED] += 1
            return OfferResult.OFFERED
        awaited = self.is_awaited(id_)
        if origin is Origin.STREAM:
            file.origin = origin  # what is read of it from now on may be older than what was announced
            file.stale_reads = 0
        elif not awaited:
            return OfferResult.DUPLICATE
        if file.state is TrackedState.WAITING:  # its row was changed, so the wait is over
            self._move(file, TrackedState.OFFERED)
            file.fresh = True
            return OfferResult.OFFERED
        file.touched = True
        return OfferResult.DUPLICATE

    def is_awaited(self, id_: int) -> bool:
        """Whether it waits for its row to show what its event announced."""
        file = self._files.get(id_)
        return file is not None and file.state is TrackedState.WAITING and file.stale_reads > 0

    def reading(self, id_: int) -> None:
        """Its row is about to be read: a change from now on may be newer than what is read."""
        self._files[id_].touched = False

    def queued(self, id_: int) -> None:
        """Its row was read, or a worker gave it to another lane; it waits for a worker."""
        self._move(self._files[id_], TrackedState.QUEUED)

    def taken(self, id_: int, now: float) -> bool:
        """A worker wants it.

        Returns:
            Whether the worker may have it: not if the row was changed since it was read. Then the id is offered again.
        """
        file = self._files[id_]
        if file.touched:
            file.touched = False
            self._move(file, TrackedState.OFFERED)
            return False
        file.taken_at = now
        self._move(file, TrackedState.IN_FLIGHT)
        return True

    def wait(self, record: FileRecord, due: float) -> None:
        """It was tried, and is tried again at a time, or as soon as its row is not this record any more.

        Args:
            record: as the row is after the try.
        """
        file = self._files[record.id]
        file.last_try = LastTry(record, due)
        file.stale_reads = 0
        self.retry(record.id, due)

    def end_wait_if_changed(self, id_: int, attempts: int) -> bool:
        """A sweep read its row. Ends its wait for the next try if somebody has changed the attempt counter.

        Returns:
            Whether it is offered now.
        """
        file = self._files.get(id_)
        if file is None or file.state is not TrackedState.WAITING or file.last_try is None:
            return False
        if file.last_try.record.attempts == attempts:
            return False
        self._move(file, TrackedState.OFFERED)
        file.fresh = True
        return True

    def retry(self, id_: int, due: float) -> None:
        """It is tried again at a time; at once if its row was changed meanwhile."""
        file = self._files[id_]
        if self._counts[TrackedState.WAITING] >= _WAITING_LIMIT:
            self.drop(id_)  # the database remembers it
            return
        file.due = 0.0 if file.touched else due
        file.touched = False
        self._move(file, TrackedState.WAITING)
        heapq.heappush(self._waiting, (file.due, id_))

    def withhold(self, id_: int, due: float) -> None:
        """Its row was read, and it waits for a decision about its timecode; at a time it is read again."""
        self._files[id_].stale_reads = 0
        self.retry(id_, due)
        if id_ in self._files:
            self._files[id_].withheld = True

    def recheck(self) -> list[int]:
        """A decision about timecodes was made: those that are withheld are offered again, and those in the queue are read again
        before a worker has them.

        Returns:
            The ids that are offered.
        """
        offered = []
        for id_, file in self._files.items():
            if file.state is TrackedState.QUEUED:
                file.touched = True
            elif file.state is TrackedState.WAITING and file.withheld:
                self._move(file, TrackedState.OFFERED)
                offered.append(id_)
        return offered

    def read_again(self, id_: int, now: float) -> bool:
        """Its row is read once more after a while, since a change becomes visible some time after its event.

        Returns:
            Whether it is read again; not after a minute, nor after a second while very many ids wait: then it is left to
            the sweep.
        """
        file = self._files[id_]
        file.stale_reads += 1
        many = self._counts[TrackedState.WAITING] >= _LATE_LIMIT
        if file.stale_reads > (_QUICK_READS if many else len(_REREAD_DELAYS)):
            return False
        self.retry(id_, now + _REREAD_DELAYS[file.stale_reads - 1])
        return True

    def finished(self, id_: int) -> bool:
        """It is tracked no longer, unless its row was changed meanwhile.

        Returns:
            Whether it is offered again.
        """
        file = self._files.get(id_)
        if file is None:
            return False
        if file.touched:
            file.touched = False
            self._move(file, TrackedState.OFFERED)
            return True
        self.drop(id_)
        return False

    def drop(self, id_: int) -> None:
        """Forgets it, whatever its state."""
        file = self._files.pop(id_, None)
        if file is not None:
            self._counts[file.state] -= 1

    def due(self, now: float) -> list[int]:
        """The ids whose wait is over; they are offered now."""
        ids = []
        while self._waiting and self._waiting[0][0] <= now:
            due, id_ = heapq.heappop(self._waiting)
            file = self._files.get(id_)
            # An element left over from an earlier wait of the same id has another time, or the id waits no longer.
            if file is not None and file.state is TrackedState.WAITING and file.due == due:
                self._move(file, TrackedState.OFFERED)
                ids.append(id_)
        return ids

    def next_due(self) -> float | None:
        """When the next wait is over, or None."""
        return self._waiting[0][0] if self._waiting else None

    def expect_own_writes(self, ids: Iterable[int], now: float) -> None:
        """This process is about to write these rows; the stream will report that, which is no news."""
        for id_ in ids:
            self._own_writes[id_] = (self._own_writes.pop(id_, (0, 0.0))[0] + 1, now + _OWN_WRITE_SECONDS)
            if len(self._own_writes) > _OWN_WRITES_LIMIT:  # without a stream no report comes: the oldest is forgotten
                del self._own_writes[next(iter(self._own_writes))]

    def cancel_own_writes(self, ids: Iterable[int]) -> None:
        """These rows were not written after all."""
        for id_ in ids:
            count, until = self._own_writes.pop(id_, (0, 0.0))
            if count > 1:
                self._own_writes[id_] = (count - 1, until)

    def forget_own_writes(self) -> None:
        """The stream was cut: it will not report what was written before."""
        self._own_writes.clear()

    @property
    def expected_own_writes(self) -> int:
        """How many rows' own writes the stream is expected to report."""
        return len(self._own_writes)

    def _is_own_write(self, id_: int, now: float) -> bool:
        expected = self._own_writes.get(id_)
        if expected is None:
            return False
        self.cancel_own_writes([id_])
        return expected[1] >= now

    def _move(self, file: TrackedFile, state: TrackedState) -> None:
        self._counts[file.state] -= 1
        self._counts[state] += 1
        file.state = state
        file.withheld = False
