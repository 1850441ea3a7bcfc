"""What the scheduler decides: frozen values that the dispatcher carries out. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, TypeAlias

from cdc_archiver.dispatch.tracked_files import OfferResult
from cdc_archiver.model import Archived, AttemptFailed, Deferred, Refused


class Signal(Enum):
    """Decisions that need no further information."""

    WAKE = "wake"
    """The router or a worker that waits may have something to do now."""
    WANT_SWEEP = "want sweep"
    """Ids were dropped, or a queue is to be refilled."""


@dataclass(frozen=True, slots=True)
class CountOutcome:
    """Count what became of a file.

    Attributes:
        latency: seconds since the event that announced an archived file; None where there was none.
    """

    source: str
    outcome: Archived | AttemptFailed | Refused | Deferred
    latency: float | None = None


@dataclass(frozen=True, slots=True)
class CountStreamEvents:
    """Count ids that the stream announced."""

    result: OfferResult
    count: int


@dataclass(frozen=True, slots=True)
class ForgetFailure:
    """A file is pending no longer: the status page no longer shows it as failing."""

    id: int


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Write an event to the log."""

    level: Literal["info", "warning", "error"]
    event: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class NoBatch:
    """Nothing is handed out now.

    Attributes:
        until: the time to ask again, unless a wake-up comes first.
    """

    until: float


Decision: TypeAlias = Signal | CountOutcome | CountStreamEvents | ForgetFailure | LogEvent
Decisions: TypeAlias = tuple[Decision, ...]

NOTHING: Final[Decisions] = ()
WAKE: Final[Decisions] = (Signal.WAKE,)
WANT_SWEEP: Final[Decisions] = (Signal.WANT_SWEEP,)
"""Tuples made once: most events of a busy service lead to one of these."""
