"""The queues and the state of one source. Plain values, owned by the scheduler."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from cdc_archiver.dispatch.health import Health
from cdc_archiver.model import FileRecord, Lane, Reason
from cdc_archiver.transfer.source_mount_heuristic import UnmountedDiskDetector

_BULK_FILES: Final = 8
"""Files of a bulk batch: few, so that several bulk workers share them."""


@dataclass(slots=True)
class Queue:
    """The records that wait in one lane of a source."""

    fresh: deque[FileRecord] = field(default_factory=deque)
    backlog: deque[FileRecord] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.fresh) + len(self.backlog)

    def push(self, record: FileRecord, *, fresh: bool) -> None:
        """Adds a record at the end of its part."""
        (self.fresh if fresh else self.backlog).append(record)

    def pop(self) -> FileRecord:
        """The next record: fresh ones first."""
        return (self.fresh or self.backlog).popleft()


@dataclass(frozen=True, slots=True)
class SourceState:
    """A source as an operator sees it.

    Attributes:
        reason, detail: why it is paused; None and empty while it is up.
        retry_in: seconds until it is tried again.
        not_recordable: files whose result the database refuses to record.
    """

    name: str
    up: bool
    reason: str | None
    detail: str
    retry_in: float
    queued: int
    in_flight: int
    not_recordable: int = 0


@dataclass(slots=True)
class SourceQueues:
    """The queues and the state of one source.

    Attributes:
        batch_files: the most files of one rsync.
        retired: nothing of it is handed out any more.
        in_flight: files with a worker or on their way back to the table.
        needs_refill: a sweep left rows behind because the queue was full, or an id was dropped.
        unmounted_disk: watches its recently missing files.
    """

    name: str
    batch_files: int
    retired: bool = False
    health: Health = field(default_factory=Health)
    lanes: dict[Lane, Queue] = field(default_factory=lambda: {lane: Queue() for lane in Lane})
    in_flight: int = 0
    needs_refill: bool = False
    unmounted_disk: UnmountedDiskDetector = field(default_factory=UnmountedDiskDetector)

    def __len__(self) -> int:
        return sum(len(queue) for queue in self.lanes.values())

    def __bool__(self) -> bool:
        return True  # it exists, whether anything waits or not

    def batch_limit(self, lane: Lane) -> int:
        """The most files of one batch: half as many after each link that was lost or stalled in a row, since one of the files
        may be the cause."""
        limit = self.batch_files if lane is Lane.SMALL else min(self.batch_files, _BULK_FILES)
        if self.health.reason in (Reason.LINK_LOST, Reason.STALLED):
            limit >>= self.health.failures
        return max(1, limit)

    def take_refill_request(self, below: int) -> bool:
        """Whether a refill is needed and fewer than ``below`` records wait; true once for each need."""
        wanted = self.needs_refill and len(self) < below
        if wanted:
            self.needs_refill = False
        return wanted

    def clear(self) -> list[FileRecord]:
        """Takes out all records that wait."""
        return [queue.pop() for queue in self.lanes.values() for _ in range(len(queue))]

    def up(self) -> float:
        """1 or 0, for a metric."""
        return float(self.health.up)

    def snapshot(self, now: float, not_recordable: int) -> SourceState:
        """Its current state, for an operator.

        Args:
            now: seconds of the clock that its health uses.
            not_recordable: files that are set aside.
        """
        return SourceState(
            name=self.name,
            up=self.health.up,
            reason=self.health.reason.value if self.health.reason else None,
            detail=self.health.detail,
            retry_in=max(0.0, self.health.until - now),
            queued=len(self),
            in_flight=self.in_flight,
            not_recordable=not_recordable,
        )
