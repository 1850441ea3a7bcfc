"""The watermark of a source: everything dated before it is archived or decided. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cdc_archiver.timecodes.status_types import SourceWatermark


@dataclass(frozen=True, slots=True)
class OldestRow:
    """The oldest undecided row that belongs to a timecode."""

    timestamp: datetime
    id: int
    path: str


def watermark(
    source: str,
    look_began: datetime,
    oldest: OldestRow | None,
    registrar: tuple[bool, datetime | None],
    held_from: Sequence[datetime],
) -> SourceWatermark:
    """How far a source has come.

    Args:
        look_began: when the last full look at its rows began.
        oldest: undecided row; None where nothing is undecided.
        registrar: whether one bounds what is known, and up to where; None: nothing is known.
        held_from: the beginnings of the timecodes that are held and were not told.
    """
    until, bound_by = look_began, "sweep"
    if oldest is not None:
        until, bound_by = min(until, oldest.timestamp - timedelta(seconds=1)), "row"
    bounded, known = registrar
    id_, path = (oldest.id, oldest.path) if oldest else (None, "")
    if bounded and known is None:
        return SourceWatermark(source, None, id_, path, "registrar")
    if known is not None and known < until:
        until, bound_by = known, "registrar"
    if held_from and min(held_from) < until:
        until, bound_by = min(held_from), "hold"
    return SourceWatermark(source, until, id_, path, bound_by)
