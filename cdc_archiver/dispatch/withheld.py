"""Rows of timecodes that were handed over: they wait for a person's decision. Events of the scheduler, pure like it."""

from __future__ import annotations

from typing import Final

from cdc_archiver.dispatch.decision_types import NOTHING, WAKE, WANT_SWEEP, Decisions
from cdc_archiver.dispatch.scheduler import REFILL_BELOW, Scheduler

_DELAY: Final = 3600.0
"""Seconds until a row that is withheld is read again, should no decision come."""


def withhold(scheduler: Scheduler, source: str, id_: int, now: float) -> Decisions:
    """A row was read and is pending, and its timecode was handed over."""
    scheduler.tracked.withhold(id_, now + _DELAY)
    queues = scheduler.sources.get(source)
    return WANT_SWEEP if queues and queues.take_refill_request(REFILL_BELOW) else NOTHING


def recheck(scheduler: Scheduler) -> Decisions:
    """Other timecodes are handed over than before: rows that wait are read again before they are copied."""
    for id_ in scheduler.tracked.recheck():
        scheduler.inboxes.add(id_, fresh=scheduler.tracked[id_].fresh)
    return WAKE
