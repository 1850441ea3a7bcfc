"""What outcomes say of their source and of the destination, and what of that is news. Behind the dispatcher's lock."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from cdc_archiver.dispatch.health import Health
from cdc_archiver.model import Archived, AttemptFailed, Deferred, Outcome, Oversize, Reason, Refused, Scope

DESTINATION: Final = "destination"

_log = structlog.get_logger(__name__)


class Watch:
    """The destination's state, and what there is to say of it and of the sources.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.destination = Health()
        self._clock = clock
        self._random = random.Random()
        self._news: list[Callable[[], object]] = []

    def note(self, source: str, health: Health, outcome: Outcome, tries: int) -> bool:
        """What an outcome says; whether something works again.

        Args:
            health: the source's.
            tries: how often in a row the file has come to nothing.
        """
        match outcome:
            case Archived(adopted=adopted):
                destination = self.succeeded(self.destination, DESTINATION)
                return (not adopted and self.succeeded(health, source)) or destination
            # Whatever rsync says of a file, its host said it.
            case AttemptFailed() | Oversize() | Refused(reason=Reason.NOT_A_FILE):
                return self.succeeded(health, source)
            case Deferred(reason=reason, detail=detail):
                if reason.scope is Scope.DESTINATION:
                    self.failed(self.destination, DESTINATION, reason, detail)
                elif reason.scope is not Scope.NONE:
                    self.failed(health, source, reason, detail)
                elif (
                    reason is not Reason.STOPPING and tries & (tries - 1) == 0
                ):  # the first time, the second, the fourth …
                    about = {"id": outcome.record.id, "source": source, "reason": reason.value}
                    self._news.append(partial(_log.warning, "deferred", **about, tries=tries, detail=detail))
        return False

    def succeeded(self, health: Health, name: str) -> bool:
        """It works; whether that is news."""
        news = health.succeeded(self._clock())
        if news and health is self.destination:
            self._news.append(partial(_log.info, "destination_up"))
        elif news:
            self._news.append(partial(_log.info, "source_up", source=name))
        return news

    def failed(self, health: Health, name: str, reason: Reason, detail: str) -> None:
        """It does not work."""
        now = self._clock()
        if health.failed(reason, detail, now, self._random.random()):
            what = "destination_down" if health is self.destination else "source_down"
            about = {"source": name, "reason": reason.value, "detail": detail}
            self._news.append(partial(_log.error, what, **about, retry_seconds=round(health.until - now, 1)))

    def take_news(self) -> list[Callable[[], object]]:
        """What there is to say, to be said where nobody waits for it."""
        news, self._news = self._news, []
        return news
