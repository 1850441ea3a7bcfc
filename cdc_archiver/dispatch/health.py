"""Whether a source, or the destination, is worth a try now. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cdc_archiver.model import Reason, Scope

# First and longest pause in seconds, by whose fault it is; each failure doubles.
_PAUSES: Final = {
    Scope.SOURCE: (1.0, 60.0),
    Scope.CONFIGURATION: (10.0, 120.0),
    Scope.DESTINATION: (2.0, 30.0),
}
_CORRUPTED_PAUSE: Final = 300.0
_NOT_MOUNTED_LONGEST: Final = 15.0
"""Short, since what looks like an unmounted disk may be a handful of files that are gone, and fresh ones wait behind it."""
_PROBE_SECONDS: Final = 15.0
"""After that the others need not wait for the first batch any longer: it may be one huge file."""


@dataclass(slots=True)
class Health:
    """The state of one source or of the destination: up, or paused until a time because of a reason.

    When a pause is over, one batch goes first; the others follow when it brought something. Times are seconds of the
    caller's clock.
    """

    reason: Reason | None = None
    detail: str = ""
    until: float = 0.0
    failures: int = 0
    probing_until: float = 0.0

    @property
    def up(self) -> bool:
        """Whether nothing is known against it."""
        return self.reason is None

    def may_try(self, now: float) -> bool:
        """Whether a batch may start."""
        return self.up or now >= max(self.until, self.probing_until)

    def begin(self, now: float) -> None:
        """A batch starts."""
        if not self.up:
            self.probing_until = now + _PROBE_SECONDS

    def end(self) -> None:
        """A batch has ended, whatever came of it."""
        self.probing_until = 0.0

    def succeeded(self, now: float) -> bool:
        """It gave, or took, a file; or nothing is left that it could be tried with.

        Returns:
            Whether that is news.
        """
        if self.up or (self.reason is Reason.CORRUPTED and now < self.until):
            return False  # where memory or disk lie, the next file's success proves nothing
        self.reason, self.detail, self.until, self.failures, self.probing_until = None, "", 0.0, 0, 0.0
        return True

    def failed(self, reason: Reason, detail: str, now: float, jitter: float) -> bool:
        """A batch met trouble.

        Args:
            jitter: from 0 to 1, random: no two services come back at the same moment.

        Returns:
            Whether that is news: the first time, or another reason.
        """
        news = reason is not self.reason
        neighbours = not self.up and now < self.until
        self.probing_until = 0.0
        if neighbours and not news:
            return False  # a neighbour's batch met the same; it is one failure
        if not neighbours:
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
