"""The last hour for the status page: rates and latencies by the minute, newest files, failing files; in memory, bounded."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from cdc_archiver.model import Archived, AttemptFailed, Deferred, Reason, Refused

MINUTES: Final = 60
NEWEST: Final = 50
FAILING_LIMIT: Final = 5000
"""Maximum number of failing files; beyond it, those with the oldest failures are forgotten."""
_DETAIL_CHARACTERS: Final = 500

# Latencies are kept as counts in classes, each 10 % wider than the one before, so that a minute with a million files takes no
# more memory than one with a hundred. A quantile is accurate to 5 %.
_SHORTEST: Final = 0.001
_GROWTH: Final = math.log(1.1)
_CLASSES: Final = 240


@dataclass(frozen=True, slots=True)
class Minute:
    """The numbers of one minute.

    Attributes:
        at: its start, UTC.
        files: archived files, including adopted ones.
        size: bytes copied, without adopted files.
        failed: attempts that did not archive the file.
        p50, p99: quantiles of the seconds from a file's event to the write-back; None where no file had an event.
    """

    at: datetime
    files: int
    size: int
    failed: int
    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file that was archived.

    Attributes:
        path: in the archive.
        latency: seconds from its event to the write-back; None where a sweep found it.
    """

    id: int
    at: datetime
    source: str
    path: str
    size: int
    adopted: bool
    latency: float | None


class FailureState(StrEnum):
    """What becomes of a file whose last attempt failed. The values are part of the status page's API."""

    RETRIED = "retried"
    """It waits for another attempt."""
    QUARANTINED = "quarantined"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Failure:
    """The last attempt of a file, which failed."""

    id: int
    at: datetime
    source: str
    path: str
    reason: str
    detail: str
    state: FailureState


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """The files whose last attempt failed for one reason.

    Attributes:
        fault: the reason's scope; named as the JSON key of the status page's API.
        files: their number.
        newest: the newest of these failures.
    """

    reason: str
    fault: str
    files: int
    newest: Failure


@dataclass(frozen=True, slots=True)
class ActivitySnapshot:
    """The activity at one time. Its fields are the JSON keys of the status page's API.

    Attributes:
        minutes: oldest first, the current one last; none before the start of the service.
        newest: archived files, newest first.
        failing: by reason, the most frequent first.
        failing_since: since when all failing files are known: the start, or the last time that another archiver had the sources.
        forgotten: number of failing files beyond the limit.
    """

    at: datetime
    minutes: tuple[Minute, ...]
    newest: tuple[ArchivedFile, ...]
    failing: tuple[FailureGroup, ...]
    forgotten: int
    failing_since: datetime


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Files that this process has given up.

    Attributes:
        quarantined: since its start.
        quarantined_since, refused_since: since the last count of the table.
    """

    quarantined: int = 0
    quarantined_since: int = 0
    refused_since: int = 0


@dataclass(slots=True)
class _MinuteCounts:
    number: int
    files: int = 0
    size: int = 0
    failed: int = 0
    latencies: Counter[int] = field(default_factory=Counter)

    def add(self, other: _MinuteCounts) -> None:
        """Takes over the counts of another minute."""
        self.files += other.files
        self.size += other.size
        self.failed += other.failed
        self.latencies += other.latencies

    def summary(self) -> Minute:
        return Minute(
            datetime.fromtimestamp(self.number * 60, UTC),
            self.files,
            self.size,
            self.failed,
            _quantile(self.latencies, 0.5),
            _quantile(self.latencies, 0.99),
        )


class Activity:
    """Collects outcomes from any thread, for the status page.

    Args:
        clock: seconds since the epoch.

    Attributes:
        max_attempts: failed attempts after which a file is quarantined.
        on_retried: called with source, reason and number of its files that wait for another attempt, when that changes.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began = int(clock() // 60)
        self._buckets: deque[_MinuteCounts] = deque(maxlen=MINUTES)
        self._newest: deque[tuple[float, str, Archived, float | None]] = deque(maxlen=NEWEST)
        self._failing: OrderedDict[int, Failure] = OrderedDict()
        self._failing_since = clock()
        self._retried: Counter[tuple[str, str]] = Counter()
        self.on_retried: Callable[[str, str, int], None] = lambda source, reason, files: None
        self._forgotten = 0
        self._given_up: dict[str, GivenUp] = {}
        self.max_attempts = sys.maxsize

    def record_outcome(
        self, source: str, outcome: Archived | AttemptFailed | Refused | Deferred, latency: float | None
    ) -> None:
        """Counts the outcome of a file.

        Args:
            latency: seconds from the file's event; None without one.
        """
        now = self._clock()
        id_ = outcome.record.id
        with self._lock:
            bucket = self._bucket(now)
            if isinstance(outcome, Archived):
                self._forget_failure(id_)
                bucket.files += 1
                bucket.size += 0 if outcome.adopted else outcome.size
                if latency is not None:
                    bucket.latencies[_class_of(latency)] += 1
                self._newest.appendleft((now, source, outcome, latency))
            elif outcome.reason is not Reason.STOPPING:
                bucket.failed += 1
                at, detail = datetime.fromtimestamp(now, UTC), outcome.detail[:_DETAIL_CHARACTERS]
                state = self._state_after(outcome)
                self._count_given_up(source, state)
                path, reason = outcome.record.path, outcome.reason.value
                self._forget_failure(id_)
                self._failing[id_] = Failure(id_, at, source, path, reason, detail, state)
                if state is FailureState.RETRIED:
                    self._count_retried(source, reason, 1)
                if len(self._failing) > FAILING_LIMIT:
                    self._forget_failure(next(iter(self._failing)))
                    self._forgotten += 1

    def dismiss(self, id_: int) -> None:
        """Removes a file that is no longer pending: another archiver archived it, or an operator marked it as ignored."""
        with self._lock:
            self._forget_failure(id_)

    def given_up(self, source: str) -> GivenUp:
        """The files of a source that this process has given up."""
        with self._lock:
            return self._given_up.get(source, GivenUp())

    def table_counted(self, source: str) -> None:
        """The rows of a source were counted: those given up so far are in that count."""
        with self._lock:
            if source in self._given_up:
                self._given_up[source] = GivenUp(self._given_up[source].quarantined)

    def retried(self) -> list[Failure]:
        """The files that wait for another attempt."""
        with self._lock:
            return [failure for failure in self._failing.values() if failure.state is FailureState.RETRIED]

    def _forget_failure(self, id_: int) -> None:
        failure = self._failing.pop(id_, None)
        if failure is not None and failure.state is FailureState.RETRIED:
            self._count_retried(failure.source, failure.reason, -1)

    def _count_retried(self, source: str, reason: str, change: int) -> None:
        self._retried[source, reason] += change
        self.on_retried(source, reason, self._retried[source, reason])

    def _state_after(self, outcome: AttemptFailed | Refused | Deferred) -> FailureState:
        if isinstance(outcome, Refused):
            return FailureState.REFUSED
        quarantined = isinstance(outcome, AttemptFailed) and outcome.record.attempts + 1 >= self.max_attempts
        return FailureState.QUARANTINED if quarantined else FailureState.RETRIED

    def _count_given_up(self, source: str, state: FailureState) -> None:
        before = self._given_up.get(source, GivenUp())
        quarantined, refused = state is FailureState.QUARANTINED, state is FailureState.REFUSED
        if quarantined or refused:
            self._given_up[source] = GivenUp(
                before.quarantined + quarantined, before.quarantined_since + quarantined, before.refused_since + refused
            )

    def forget(self, source: str | None = None) -> None:
        """Removes the failing files of a source that this archiver no longer holds.

        Args:
            source: its name; None for all sources.
        """
        with self._lock:
            ids = [id_ for id_, each in self._failing.items() if source in (None, each.source)]
            for id_ in ids:
                self._forget_failure(id_)
            if not self._failing:
                self._forgotten = 0
            if ids or source is None:
                self._failing_since = self._clock()

    def snapshot(self) -> ActivitySnapshot:
        """The activity now."""
        now = self._clock()
        with self._lock:
            self._bucket(now)
            current = self._buckets[-1].number
            by_number = {bucket.number: bucket for bucket in self._buckets}
            first = max(current - MINUTES + 1, min(self._began, self._buckets[0].number))
            buckets = [by_number.get(number) or _MinuteCounts(number) for number in range(first, current + 1)]
            minutes = tuple(bucket.summary() for bucket in buckets)
            newest = tuple(_archived_file(*each) for each in self._newest)
            counts = Counter(failure.reason for failure in self._failing.values())
            last = {failure.reason: failure for failure in self._failing.values()}
            forgotten = self._forgotten
            since = datetime.fromtimestamp(self._failing_since, UTC)
        failing = tuple(
            FailureGroup(reason, Reason(reason).scope.value, files, last[reason])
            for reason, files in counts.most_common()
        )
        return ActivitySnapshot(datetime.fromtimestamp(now, UTC), minutes, newest, failing, forgotten, since)

    def _bucket(self, now: float) -> _MinuteCounts:
        number = int(now // 60)
        if not self._buckets or self._buckets[-1].number < number:
            self._buckets.append(_MinuteCounts(number))
        # After the clock was set back, no minute lies in the future: the current one takes over what those counted.
        while self._buckets[-1].number > number:
            ahead = self._buckets.pop()
            if not self._buckets or self._buckets[-1].number < number:
                self._buckets.append(_MinuteCounts(number))
            self._buckets[-1].add(ahead)
        return self._buckets[-1]


def _archived_file(now: float, source: str, outcome: Archived, latency: float | None) -> ArchivedFile:
    at = datetime.fromtimestamp(now, UTC)
    return ArchivedFile(outcome.record.id, at, source, outcome.path, outcome.size, outcome.adopted, latency)


def _class_of(seconds: float) -> int:
    return min(_CLASSES, max(0, math.ceil(math.log(max(seconds, _SHORTEST) / _SHORTEST) / _GROWTH)))


def _quantile(latencies: Counter[int], share: float) -> float | None:
    wanted = math.ceil(share * latencies.total())
    for class_ in sorted(latencies):
        wanted -= latencies[class_]
        if wanted <= 0:
            return _SHORTEST * math.exp(_GROWTH * (class_ - 0.5))
    return None
