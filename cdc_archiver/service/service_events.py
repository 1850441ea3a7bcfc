"""What happens to the service, for its one loop: handed from signal handlers and other threads through a queue."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from cdc_archiver.errors import ArchiverError
from cdc_archiver.service.pipeline import Pipeline
from cdc_archiver.threads import StoppableThread


class EventKind(Enum):
    """What happened."""

    TICK = auto()
    STOP = auto()
    RELOAD = auto()
    ACQUIRED = auto()
    LOST = auto()
    REQUESTED = auto()
    """Another archiver requests a source."""
    YIELDED = auto()
    """No copy of a yielded source is under way."""
    OTHER_TABLE = auto()
    """A newer table of files has appeared."""
    SERVER_LEFT = auto()
    """The database's address leads to another server, or the server takes no writes."""
    THREAD_ENDED = auto()
    ERROR = auto()
    """Ends a reconciliation."""


@dataclass(frozen=True, slots=True)
class ServiceEvent:
    """One event, with what its kind needs."""

    kind: EventKind
    why: str = ""
    name: str = ""
    part: StoppableThread | None = None
    sources: tuple[str, ...] = ()
    losses: int = 0
    pipeline: Pipeline | None = None
    error: ArchiverError | None = None
