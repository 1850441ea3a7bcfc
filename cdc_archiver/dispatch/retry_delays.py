"""When a file is tried again after a failed attempt. Pure; all times are in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cdc_archiver.dispatch.tracked_files import LastTry
from cdc_archiver.model import FileRecord, Reason

INCONCLUSIVE_DELAYS: Final = (1.0, 5.0, 30.0, 60.0)
"""After a file's n-th inconclusive try in a row; the last one for all further."""
PLACE_DELAYS: Final = (*INCONCLUSIVE_DELAYS, 120.0, 300.0)
"""The same where the file's place cannot be used: it was fetched in vain, and a person must act first."""


def delay_after(delays: Sequence[float], tries: int) -> float:
    """The delay after a file's n-th failed attempt.

    Args:
        delays: of the first, the second …; the last one for all further.
        tries: at least 1.
    """
    return delays[min(tries, len(delays)) - 1]


def inconclusive_delay(reason: Reason, tries: int) -> float:
    """The delay after a file's n-th inconclusive try in a row."""
    return delay_after(PLACE_DELAYS if reason is Reason.PLACE_UNUSABLE else INCONCLUSIVE_DELAYS, tries)


def remaining_delay(delay: float, failed_ago: float | None) -> float:
    """What is left of a delay.

    Args:
        failed_ago: since the last failed attempt, by clocks that may have been changed meanwhile; None where it is not known:
            then the delay starts anew.
    """
    return delay if failed_ago is None else min(delay, max(0.0, delay - failed_ago))


def due(
    record: FileRecord, last_try: LastTry | None, delays: Sequence[float], now: float, failed_ago: float | None
) -> float:
    """The time before which a file is not tried: only a change of what decides about it ends the wait for that.

    Args:
        last_try: in this process; None where none is known.
        delays: as for :func:`delay_after`.
        now: on the clock of ``last_try``.
        failed_ago: as for :func:`remaining_delay`.
    """
    if last_try is not None:
        return last_try.due if last_try.record == record else now
    if not record.attempts:
        return now
    return now + remaining_delay(delay_after(delays, record.attempts), failed_ago)
