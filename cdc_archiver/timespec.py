"""Times as operators write and read them: ``2h``, ``3d ago``, ``2026-05-15``. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from cdc_archiver.errors import Misconfigured

_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)(?:\s+ago)?")


def parse_time(text: str, now: datetime) -> datetime:
    """Parses a point in time: an age (``2h``, ``3d ago``), ``now``, ``today``, ``yesterday``, or ISO 8601, in UTC where it names no zone.

    Args:
        now: aware.

    Raises:
        Misconfigured: the text has no such format.
    """
    wanted = text.strip().lower()
    try:
        if ago := _AGO.fullmatch(wanted):
            return now - timedelta(seconds=float(ago[1]) * _UNITS[ago[2]])
        if wanted in ("now", "today", "yesterday"):
            midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
            return {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}[wanted]
        found = datetime.fromisoformat(text.strip())
        return (found.replace(tzinfo=UTC) if found.tzinfo is None else found).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Misconfigured(f"invalid time: {text!r}", "use 2h, '3d ago', 2026-05-15 or 2026-05-15T04:30") from None


def parse_end(text: str, now: datetime) -> datetime:
    """Parses a point in time to come: a duration from now (``2h``, ``3d``), or ISO 8601, in UTC where it names no zone.

    Args:
        now: aware.

    Raises:
        Misconfigured: the text has no such format, or the time is past.
    """
    duration = _AGO.fullmatch(text.strip().lower())
    end = now + (now - parse_time(text, now)) if duration else parse_time(text, now)
    if end <= now:
        raise Misconfigured(f"the time {text!r} is past", "use a time to come: 2h, 3d, 2026-05-15T04:30")
    return end


def format_duration(seconds: float) -> str:
    """A duration for a person, in one unit: ``12 s``, ``3 min``, ``5 h``, ``2 days``."""
    for limit, unit, symbol in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {symbol}"
    return f"{seconds / 86400:.0f} days"


def format_age(then: datetime, now: datetime) -> str:
    """The age of an event for a person: ``5 h ago``."""
    return f"{format_duration(max(0.0, (now - then).total_seconds()))} ago"


def format_time(when: datetime) -> str:
    """A time for a person: in UTC, to the second."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
