"""One source's queues and what is known of it. Plain state, behind the dispatcher's lock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from cdc_archiver.dispatch.health import Health
from cdc_archiver.model import FileRecord, Lane
from cdc_archiver.transfer.mount_heuristic import MissingFiles

_BULK_FILES: Final = 8
"""Files of a bulk batch: few, so that several bulk workers share them."""


@dataclass(slots=True)
class Queue:
    """What waits in one lane of a source."""

    fresh: deque[FileRecord] = field(default_factory=deque)
    backlog: deque[FileRecord] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.fresh) + len(self.backlog)

    def push(self, record: FileRecord, *, fresh: bool) -> None:
        """Adds a record at the end of its part."""
        (self.fresh if fresh else self.backlog).append(record)

    def pop(self) -> FileRecord:
        """The next one: fresh ones first."""
        return (self.fresh or self.backlog).popleft()


@dataclass(frozen=True, slots=True)
class SourceState:
    """A source as an operator sees it.

    Attributes:
        reason, detail: why it is left alone; None and empty while it is up.
        retry_in: seconds until it is tried again.
    """

    name: str
    up: bool
    reason: str | None
    detail: str
    retry_in: float
    queued: int
    in_flight: int


@dataclass(slots=True)
class SourceQueues:
    """One source's queues and state.

    Attributes:
        batch_files: files that one rsync takes at the most.
        retired: nothing of it is handed out any more.
        starved: a sweep left rows behind for want of room, or an id was dropped: it wants to be refilled.
        absences: its missing files of late.
    """

    name: str
    batch_files: int
    retired: bool = False
    health: Health = field(default_factory=Health)
    lanes: dict[Lane, Queue] = field(default_factory=lambda: {lane: Queue() for lane in Lane})
    in_flight: int = 0
    starved: bool = False
    absences: MissingFiles = field(default_factory=MissingFiles)

    def __len__(self) -> int:
        return sum(len(queue) for queue in self.lanes.values())

    def __bool__(self) -> bool:
        return True  # empty or not, it is there

    def most(self, lane: Lane) -> int:
        """Files of one batch at the most."""
        return self.batch_files if lane is Lane.SMALL else min(self.batch_files, _BULK_FILES)

    def wants_refill(self, below: int) -> bool:
        """Whether a sweep left rows behind and there is room for them now: said once."""
        wants = self.starved and len(self) < below
        if wants:
            self.starved = False
        return wants

    def clear(self) -> list[FileRecord]:
        """Takes out all that waits."""
        return [queue.pop() for queue in self.lanes.values() for _ in range(len(queue))]

    def up(self) -> float:
        """1 or 0, for a metric."""
        return float(self.health.up)

    def seen_at(self, now: float) -> SourceState:
        """How it is, for an operator.

        Args:
            now: seconds of the clock that its health goes by.
        """
        return SourceState(
            name=self.name,
            up=self.health.up,
            reason=self.health.reason.value if self.health.reason else None,
            detail=self.health.detail,
            retry_in=max(0.0, self.health.until - now),
            queued=len(self),
            in_flight=self.in_flight,
        )
