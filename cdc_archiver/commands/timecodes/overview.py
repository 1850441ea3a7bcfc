"""What an operator is shown of timecodes: the newest of each source, and what helps those that are held up. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from cdc_archiver.commands.output import Cell
from cdc_archiver.database.timecode_search import TOLD
from cdc_archiver.database.timecodes_table import TimecodeState
from cdc_archiver.text import format_file_count
from cdc_archiver.timecodes.status_types import REASON_FIXES, TimecodeStatus
from cdc_archiver.timespec import format_time

TITLES: Final = ("TIMECODE", "TARGET", "STATE", "GENERATION", "FILES", "GB", "UNDECIDED", "MARKS", "TOLD", "FIX")
STYLES: Final = {
    TimecodeState.OPEN: "cyan",
    TimecodeState.BLOCKED: "bold red",
    TimecodeState.COMPLETE: "green",
    TimecodeState.REOPENED: "yellow",
}
_WORDS: Final = {
    "registrar_behind": "registrar is behind",
    "registrar_silent": "registrar is silent",
    "registrar_lost": "lost by the registrar",
    "registrar_gaps": "missed by the registrar",
    "source_down": "source is down",
    "other_rows_of_stream": "rows of its streams elsewhere",
    "outside_root": "outside the source root",
}
_BARE: Final = frozenset({"registrar_behind", "registrar_silent", "source_down"})
"""Reasons that are no number of files."""


def newest(timecodes: Iterable[TimecodeStatus], limit: int) -> list[TimecodeStatus]:
    """The newest timecodes of each target, and each older one that somebody has to look at; newest first."""
    of_target: defaultdict[str, list[TimecodeStatus]] = defaultdict(list)
    for each in sorted(timecodes, key=lambda each: -each.timecode):
        of_target[each.instance_id].append(each)
    shown = [
        each
        for listed in of_target.values()
        for number, each in enumerate(listed)
        if number < limit or each.state in (TimecodeState.BLOCKED, TimecodeState.REOPENED)
    ]
    return sorted(shown, key=lambda each: (-each.timecode, each.instance_id))


def row(status: TimecodeStatus) -> Sequence[Cell]:
    """One row of the table, under ``TITLES``."""
    return (
        str(status.timecode),
        status.instance_id,
        (status.state.value, STYLES[status.state]),
        str(status.generation),
        str(status.files),
        f"{status.bytes / 1e9:.1f}",
        reasons_text(status.reasons),
        ", ".join(word for word, on in (("held", status.held), ("handed over", status.handed_over)) if on),
        told_text(status),
        "; ".join(fixes(status)),
    )


def reasons_text(reasons: Mapping[str, int]) -> str:
    """What is undecided, by reason: ``3 quarantined, source is down``."""
    return ", ".join(
        _WORDS[reason] if reason in _BARE else f"{count} {_WORDS.get(reason, reason)}"
        for reason, count in sorted(reasons.items())
    )


def fixes(status: TimecodeStatus) -> list[str]:
    """The commands that help, one for each reason."""
    found = [
        REASON_FIXES[reason].format(timecode=status.timecode)
        for reason in sorted(status.reasons)
        if reason in REASON_FIXES
    ]
    return list(dict.fromkeys(found))


def told_text(status: TimecodeStatus) -> str:
    """When readers were told, and by what."""
    if status.told_by in TOLD and status.completed_at:
        return f"{format_time(status.completed_at)} by {status.told_by}"
    return {"before": "nobody: before the first start", "no_stream": "nobody: no stream is known"}.get(
        status.told_by, ""
    )


def sentence(status: TimecodeStatus) -> str:
    """The state of a timecode in one sentence."""
    match status.state:
        case TimecodeState.COMPLETE:
            text = f"is complete, with {format_file_count(status.files)}"
        case TimecodeState.BLOCKED:
            text = f"is blocked: {reasons_text(status.reasons) or 'nothing is counted yet'}"
        case TimecodeState.REOPENED:
            undecided = f": {reasons_text(status.reasons)}" if status.reasons else ""
            text = f"was complete, and is open again{undecided}"
        case _:
            text = "is open: its time, the grace after it or the sweep after that is not over"
    held = f"; held, so it does not become complete ({status.held_reason})" if status.held else ""
    handed_over = "; handed over, so new files of it wait" if status.handed_over else ""
    return f"Timecode {status.timecode} of {status.instance_id} {text}{held}{handed_over}."
