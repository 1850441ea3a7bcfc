"""Each rule of the table of states."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cdc_archiver.database.timecodes_table import BEFORE, StoredTimecode, TimecodeState
from cdc_archiver.timecodes.decision import (
    Look,
    Rules,
    TimecodeCount,
    TimecodeFacts,
    at_time,
    completed,
    decide,
    earlier_clock,
    end_of,
    first_state,
    may_be_late,
    missing_timecodes,
    start_of,
)

RULES = Rules(grace=timedelta(hours=6), reopen_after=timedelta(hours=1))
TIMECODE = 17645
OVER = end_of(TIMECODE) + RULES.grace
OPEN = StoredTimecode("m", TIMECODE)
BLOCKED = replace(OPEN, state=TimecodeState.BLOCKED, reasons={"quarantined": 1})
COMPLETE = replace(
    OPEN,
    state=TimecodeState.COMPLETE,
    generation=1,
    digest=b"1" * 32,
    told_max_id=7,
    told_by="marker",
    completed_at=OVER,
)
REOPENED = replace(COMPLETE, state=TimecodeState.REOPENED, changed_at=OVER, reasons={"pending": 1})
NOTHING = TimecodeFacts()
PENDING = TimecodeFacts(undecided={"pending": 1})
QUARANTINED = TimecodeFacts(undecided={"quarantined": 1})
SECOND = timedelta(seconds=1)


def look(at: datetime, *, clocks_agree: bool = True) -> Look:
    return Look(at, clocks_agree)


@pytest.mark.parametrize(
    ("stored", "facts", "at", "expected"),
    [
        pytest.param(OPEN, NOTHING, OVER - SECOND, TimecodeState.OPEN, id="its grace is not over"),
        pytest.param(OPEN, PENDING, OVER - SECOND, TimecodeState.OPEN, id="its grace is not over, something waits"),
        pytest.param(OPEN, NOTHING, OVER, TimecodeState.COMPLETE, id="all decided"),
        pytest.param(OPEN, PENDING, OVER, TimecodeState.BLOCKED, id="something is undecided"),
        pytest.param(
            OPEN, TimecodeFacts(others={"registrar_behind": 1}), OVER, TimecodeState.BLOCKED, id="a registrar is behind"
        ),
        pytest.param(OPEN, TimecodeFacts(held=True), OVER, TimecodeState.OPEN, id="held"),
        pytest.param(BLOCKED, QUARANTINED, OVER, TimecodeState.BLOCKED, id="still undecided"),
        pytest.param(BLOCKED, NOTHING, OVER, TimecodeState.COMPLETE, id="decided at last"),
        pytest.param(BLOCKED, TimecodeFacts(held=True), OVER, TimecodeState.OPEN, id="decided, but held"),
        pytest.param(COMPLETE, NOTHING, OVER, TimecodeState.COMPLETE, id="stays complete"),
        pytest.param(COMPLETE, TimecodeFacts(held=True), OVER, TimecodeState.COMPLETE, id="a hold comes too late"),
        pytest.param(COMPLETE, PENDING, OVER, TimecodeState.REOPENED, id="a new row"),
        pytest.param(COMPLETE, TimecodeFacts(changed=True), OVER, TimecodeState.REOPENED, id="a file was archived"),
        pytest.param(REOPENED, PENDING, OVER + RULES.reopen_after - SECOND, TimecodeState.REOPENED, id="not yet"),
        pytest.param(REOPENED, NOTHING, OVER + RULES.reopen_after, TimecodeState.REOPENED, id="changed right now"),
        pytest.param(REOPENED, PENDING, OVER + RULES.reopen_after, TimecodeState.BLOCKED, id="quiet, but undecided"),
        pytest.param(
            replace(REOPENED, reasons={}), NOTHING, OVER + RULES.reopen_after, TimecodeState.COMPLETE, id="quiet, decided"
        ),
        pytest.param(
            replace(REOPENED, reasons={}),
            TimecodeFacts(changed=True),
            OVER + RULES.reopen_after,
            TimecodeState.REOPENED,
            id="another file was archived",
        ),
        pytest.param(
            replace(REOPENED, reasons={}),
            TimecodeFacts(held=True),
            OVER + RULES.reopen_after,
            TimecodeState.REOPENED,
            id="re-opened and held",
        ),
    ],
)  # fmt: skip
def test_each_rule(stored: StoredTimecode, facts: TimecodeFacts, at: datetime, expected: TimecodeState) -> None:
    assert decide(stored, facts, look(at), RULES) is expected


@pytest.mark.parametrize("stored", [OPEN, BLOCKED, replace(REOPENED, reasons={})])
def test_nothing_becomes_complete_while_the_clocks_differ(stored: StoredTimecode) -> None:
    at = OVER + RULES.reopen_after
    assert decide(stored, NOTHING, look(at, clocks_agree=False), RULES) is stored.state
    assert decide(stored, NOTHING, look(at), RULES) is TimecodeState.COMPLETE


def test_the_earlier_clock_counts() -> None:
    now = datetime(2026, 12, 1, tzinfo=UTC)
    ahead = now + timedelta(minutes=5)
    assert earlier_clock(now, ahead) == earlier_clock(ahead, now) == Look(now, clocks_agree=True)
    assert not earlier_clock(now, ahead + SECOND).clocks_agree


def test_a_timecode_lasts_100_000_seconds() -> None:
    assert at_time(start_of(TIMECODE)) == TIMECODE
    assert at_time(end_of(TIMECODE) - SECOND) == TIMECODE
    assert at_time(end_of(TIMECODE)) == TIMECODE + 1
    assert start_of(15895) == datetime(2020, 5, 14, 23, 46, 40, tzinfo=UTC)


def count(digest: bytes) -> TimecodeCount:
    return TimecodeCount(files=2, size=20, ignored=1, refused=3, undecided=0, digest=digest)


def test_another_content_is_another_generation_and_is_told_anew() -> None:
    first = completed(OPEN, count(b"1" * 32), 7, OVER)
    assert (first.generation, first.told_by, first.told_max_id) == (1, "", 7)
    assert (first.files, first.size, first.ignored, first.refused, first.undecided) == (2, 20, 1, 3, 0)
    again = completed(REOPENED, count(b"1" * 32), 8, OVER)
    assert (again.generation, again.told_by, again.state) == (1, "marker", TimecodeState.COMPLETE)
    other = completed(REOPENED, count(b"2" * 32), 8, OVER)
    assert (other.generation, other.told_by) == (2, "")


def test_what_ended_before_the_first_start_is_told_to_nobody() -> None:
    over = look(OVER)
    done = first_state("m", TIMECODE, NOTHING, over, RULES)
    assert (done.state, done.generation, done.told_by) == (TimecodeState.COMPLETE, 1, BEFORE)
    assert may_be_late(done)
    blocked = first_state("m", TIMECODE, QUARANTINED, over, RULES)
    assert (blocked.state, blocked.told_by) == (TimecodeState.BLOCKED, BEFORE)
    assert not may_be_late(blocked)
    later = completed(blocked, count(b"1" * 32), 7, OVER)
    assert (later.state, later.told_by) == (TimecodeState.COMPLETE, BEFORE)
    assert first_state("m", TIMECODE, NOTHING, look(OVER - SECOND), RULES) == replace(OPEN, changed_at=OVER - SECOND)


def test_timecodes_without_rows_count_from_the_first_row_on() -> None:
    now = start_of(TIMECODE)
    assert missing_timecodes((), (), now) == []
    assert missing_timecodes((), {TIMECODE - 3}, now) == [TIMECODE - 3, TIMECODE - 2, TIMECODE - 1, TIMECODE]
    # Later, a row of an earlier time invents none in between,
    assert missing_timecodes({TIMECODE - 1}, {TIMECODE - 9}, now) == [TIMECODE - 9, TIMECODE]
    # and one ahead of the clock ends nothing.
    assert missing_timecodes((), {TIMECODE + 9}, now) == [TIMECODE + 9]
    assert missing_timecodes({TIMECODE + 9}, {TIMECODE + 9, TIMECODE}, now) == [TIMECODE]
