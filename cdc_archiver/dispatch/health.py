"""Whether a source, or the destination, is worth a try now; and which changes of that are news. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cdc_archiver.dispatch.decision_types import NOTHING, Decisions, LogEvent, Signal
from cdc_archiver.model import Archived, AttemptFailed, Deferred, Outcome, Oversize, Reason, Refused, Scope

DESTINATION: Final = "destination"

# First and longest pause in seconds, by scope; each failure doubles.
_PAUSES: Final = {
    Scope.SOURCE: (1.0, 60.0),
    Scope.CONFIGURATION: (10.0, 120.0),
    Scope.DESTINATION: (2.0, 30.0),
}
_CORRUPTED_PAUSE: Final = 300.0
_NOT_MOUNTED_LONGEST: Final = 15.0
"""Short, since what looks like an unmounted disk may be a few deleted files, and fresh ones wait behind it."""
_PROBE_SECONDS: Final = 15.0
"""After that the other batches no longer wait for the first one: it may be one huge file."""


@dataclass(slots=True)
class Health:
    """The state of one source or of the destination: up, or paused until a time because of a reason.

    When a pause is over, one batch goes first; the others follow when it succeeded. Times are seconds of the caller's
    clock.
    """

    reason: Reason | None = None
    detail: str = ""
    until: float = 0.0
    failures: int = 0
    probing_until: float = 0.0

    @property
    def up(self) -> bool:
        """Whether no trouble is known."""
        return self.reason is None

    def may_try(self, now: float) -> bool:
        """Whether a batch may start."""
        return self.reason is None or now >= max(self.until, self.probing_until)

    def begin(self, now: float) -> None:
        """A batch starts."""
        if self.reason is not None:
            self.probing_until = now + _PROBE_SECONDS

    def end(self) -> None:
        """A batch has ended, whatever its outcomes."""
        self.probing_until = 0.0

    def succeeded(self, now: float) -> bool:
        """A file came from it, or went to it; or nothing is left to try it with.

        Returns:
            Whether that is news.
        """
        if self.reason is None or (self.reason is Reason.CORRUPTED and now < self.until):
            return False  # with bad memory or a bad disk, the next file's success proves nothing
        self.reason, self.detail, self.until, self.failures, self.probing_until = None, "", 0.0, 0, 0.0
        return True

    def failed(self, reason: Reason, detail: str, now: float, jitter: float) -> bool:
        """A batch failed.

        Args:
            jitter: from 0 to 1, random: no two services come back at the same moment.

        Returns:
            Whether that is news: the first time, or another reason.
        """
        news = reason is not self.reason
        same_outage = not self.up and now < self.until
        self.probing_until = 0.0
        if same_outage and not news:
            return False  # another batch met the same; it is one failure
        if not same_outage:
            self.failures += 1
        first, longest = _PAUSES.get(reason.scope, (1.0, 60.0))
        if reason is Reason.SOURCE_NOT_MOUNTED:
            longest = _NOT_MOUNTED_LONGEST
        pause = min(longest, first * 2 ** min(self.failures - 1, 10))
        if reason is Reason.CORRUPTED:
            pause = _CORRUPTED_PAUSE
        self.reason, self.detail = reason, detail
        self.until = max(self.until, now + pause * (0.75 + 0.5 * jitter))
        return news


@dataclass(slots=True)
class HealthTracker:
    """What outcomes show of their source and of the destination, and which of it is news."""

    destination: Health = field(default_factory=Health)

    def note(self, source: str, health: Health, outcome: Outcome, tries: int, now: float, jitter: float) -> Decisions:
        """Takes note of an outcome.

        Args:
            health: the source's.
            tries: consecutive tries of this file that were inconclusive, this one included.
            jitter: from 0 to 1, random.
        """
        match outcome:
            case Archived(adopted=adopted):
                decisions = self.succeeded(self.destination, DESTINATION, now)
                return decisions if adopted else decisions + self.succeeded(health, source, now)
            # Whatever rsync reports about a file came from the file's host.
            case AttemptFailed() | Oversize() | Refused(reason=Reason.NOT_A_FILE):
                return self.succeeded(health, source, now)
            case Deferred(reason=reason, detail=detail):
                if reason.scope is Scope.DESTINATION:
                    return self.failed(self.destination, DESTINATION, reason, detail, now, jitter)
                if reason.scope is not Scope.NONE:
                    return self.failed(health, source, reason, detail, now, jitter)
                # The first time, the second, the fourth …
                if reason is not Reason.STOPPING and tries & (tries - 1) == 0:
                    about = {"id": outcome.record.id, "source": source, "reason": reason.value}
                    return (LogEvent("warning", "deferred", {**about, "tries": tries, "detail": detail}),)
        return NOTHING

    def destination_failed(self, reason: Reason, detail: str, now: float, jitter: float) -> Decisions:
        """Trouble with the destination was found outside a batch.

        Args:
            jitter: from 0 to 1, random.
        """
        return self.failed(self.destination, DESTINATION, reason, detail, now, jitter)

    def destination_ready(self, now: float) -> Decisions:
        """Outside a batch, the destination was found mounted and with free space: trouble of that kind is over."""
        if self.destination.reason in (Reason.DESTINATION_MISSING, Reason.NO_SPACE):
            return self.succeeded(self.destination, DESTINATION, now)
        return NOTHING

    def succeeded(self, health: Health, name: str, now: float) -> Decisions:
        """A source or the destination works."""
        if not health.succeeded(now):
            return NOTHING
        if health is self.destination:
            return LogEvent("info", "destination_up", {}), Signal.WAKE
        return LogEvent("info", "source_up", {"source": name}), Signal.WAKE

    def failed(self, health: Health, name: str, reason: Reason, detail: str, now: float, jitter: float) -> Decisions:
        """A source or the destination does not work."""
        if not health.failed(reason, detail, now, jitter):
            return NOTHING
        event = "destination_down" if health is self.destination else "source_down"
        about = {"source": name, "reason": reason.value, "detail": detail}
        return (LogEvent("error", event, {**about, "retry_seconds": round(health.until - now, 1)}),)
