"""What becomes of a timecode: facts in, the next state out. Pure.

A *full look* at the table asks for every undecided row of an instance_id, up to a MAX(id) taken at its beginning, whether or not the
queues have room. It is what a sweep is for the queues.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from cdc_archiver.database.timecodes_table import BEFORE, StoredTimecode, TimecodeState

LENGTH: Final = 100_000
"""Seconds of a timecode."""
CLOCK_LIMIT: Final = timedelta(minutes=5)
"""Difference of two clocks from which nothing becomes complete."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings of the decision.

    Attributes:
        grace: from a timecode's end until it may become complete.
        reopen_after: without a change, until one that was re-opened may.
    """

    grace: timedelta
    reopen_after: timedelta


@dataclass(frozen=True, slots=True)
class Look:
    """A full look at the rows of an instance_id that has ended.

    Attributes:
        began: when, by the earlier one of the two clocks; aware.
        clocks_agree: whether the clocks of database and machine are less than five minutes apart.
    """

    began: datetime
    clocks_agree: bool = True


@dataclass(frozen=True, slots=True)
class TimecodeFacts:
    """What a full look found of a timecode.

    Attributes:
        undecided: numbers of rows, by reason.
        others: who else is behind, by reason: registrars, rows of the same streams elsewhere.
        held: somebody wants it not to become complete.
        changed: a row of it was archived since it became complete, or since it was found changed last.
    """

    undecided: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)
    held: bool = False
    changed: bool = False


@dataclass(frozen=True, slots=True)
class TimecodeCount:
    """What the rows of a timecode add up to.

    Attributes:
        files: distinct archived ones.
        size: of these in bytes, as far as the history knows them.
        digest: SHA-256 of the sorted distinct lines ``path below data_dir``, tab, md5 in hexadecimal.
    """

    files: int
    size: int
    ignored: int
    refused: int
    undecided: int
    digest: bytes


def start_of(timecode: int) -> datetime:
    """The first moment of a timecode."""
    return datetime.fromtimestamp(timecode * LENGTH, UTC)


def end_of(timecode: int) -> datetime:
    """The first moment after a timecode."""
    return start_of(timecode + 1)


def at_time(now: datetime) -> int:
    """The timecode of a moment."""
    return int(now.timestamp() // LENGTH)


def earlier_clock(database: datetime, machine: datetime) -> Look:
    """A look that begins now: at the earlier one of two clocks."""
    return Look(min(database, machine), abs(database - machine) <= CLOCK_LIMIT)


def is_over(timecode: int, look: Look, rules: Rules) -> bool:
    """Whether a look began after a timecode's end and grace."""
    return look.began >= end_of(timecode) + rules.grace


def decide(stored: StoredTimecode, facts: TimecodeFacts, look: Look, rules: Rules) -> TimecodeState:
    """The state of a timecode after a look.

    Returns:
        ``COMPLETE`` for one that is not complete yet: it may be, once it is counted and asked for once more.
    """
    state = stored.state
    undecided = any(facts.undecided.values())
    if state is TimecodeState.COMPLETE:
        return TimecodeState.REOPENED if undecided or facts.changed else state
    if state is TimecodeState.OPEN and not is_over(stored.timecode, look, rules):
        return state
    if state is TimecodeState.REOPENED:
        quiet = not facts.changed and facts.undecided == stored.reasons
        if not quiet or look.began < (stored.changed_at or look.began) + rules.reopen_after:
            return state
    if undecided or any(facts.others.values()):
        return TimecodeState.BLOCKED
    if facts.held:
        # A hold is a mark alongside the state; it is no trouble that somebody has to look at.
        return TimecodeState.OPEN if stored.generation == 0 else TimecodeState.REOPENED
    return TimecodeState.COMPLETE if look.clocks_agree else state


def first_state(instance_id: str, timecode: int, facts: TimecodeFacts, look: Look, rules: Rules) -> StoredTimecode:
    """A timecode that is entered at the first start, or when the side table is built anew."""
    entry = StoredTimecode(
        instance_id,
        timecode,
        undecided=sum(facts.undecided.values()),
        reasons=dict(facts.undecided),
        changed_at=look.began,
    )
    if not is_over(timecode, look, rules):
        return entry
    if entry.undecided:
        return replace(entry, state=TimecodeState.BLOCKED, told_by=BEFORE)
    return replace(entry, state=TimecodeState.COMPLETE, generation=1, told_by=BEFORE, completed_at=look.began)


def completed(stored: StoredTimecode, count: TimecodeCount, max_id: int, at: datetime) -> StoredTimecode:
    """A timecode as it is when it becomes complete: as the same generation where the content is the same.

    Args:
        max_id: of the table of files.
        at: by the database's clock.
    """
    same = stored.generation > 0 and stored.digest in (None, count.digest)
    return replace(
        stored,
        state=TimecodeState.COMPLETE,
        generation=stored.generation if same else stored.generation + 1,
        files=count.files,
        size=count.size,
        ignored=count.ignored,
        refused=count.refused,
        undecided=0,
        reasons={},
        digest=count.digest,
        told_max_id=max_id,
        told_by=stored.told_by if same or stored.told_by == BEFORE else "",
        changed_at=at,
        completed_at=at,
    )


def may_be_late(stored: StoredTimecode) -> bool:
    """Whether a file that is archived in this timecode now is late, unless it was archived there before."""
    return stored.completed_at is not None


def missing_timecodes(known: Collection[int], present: Collection[int], now: datetime) -> list[int]:
    """The timecodes that have no entry yet: those that have rows, and each from the newest entry up to now.

    Args:
        known: have an entry.
        present: have rows.
    """
    current = at_time(now)
    found = set(present) - set(known)
    # A row ahead of the clock is no reason to take the time in between for over.
    up_to_now = [timecode for timecode in (*known, *present) if timecode <= current]
    if up_to_now:
        # Without an entry nothing is known yet: then all from the first row on, else none before the newest entry.
        first = max((each for each in known if each <= current), default=min(up_to_now))
        found.update(timecode for timecode in range(first, current + 1) if timecode not in known)
    return sorted(found)
