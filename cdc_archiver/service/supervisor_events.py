"""What the supervisor's loop waits for: requests of the operator, and what its threads report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from cdc_archiver.errors import ArchiverError
from cdc_archiver.service.pipeline import Pipeline
from cdc_archiver.threads import StoppableThread


class EventKind(Enum):
    """The kinds of events."""

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
class SupervisorEvent:
    """An event.

    Attributes:
        name: of the line in the log.
        why: a sentence, or the name of a source.
        part: the thread that it concerns.
        losses: as the lock keeper counted when the locks of these sources were acquired.
    """

    kind: EventKind
    why: str = ""
    name: str = ""
    part: StoppableThread | None = None
    sources: tuple[str, ...] = ()
    losses: int = 0
    pipeline: Pipeline | None = None
    error: ArchiverError | None = None
