"""What is printed of timecodes: which ones, what holds them up, and lists for md5sum."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from cdc_archiver.commands.timecodes import overview
from cdc_archiver.commands.timecodes.md5_list import format_lines
from cdc_archiver.database.timecodes_table import TimecodeState
from cdc_archiver.timecodes.status_types import REASON_FIXES, TimecodeStatus

NOON = datetime(2026, 5, 15, 12, tzinfo=UTC)


def status(timecode: int, state: TimecodeState = TimecodeState.COMPLETE, **more: Any) -> TimecodeStatus:
    return TimecodeStatus("srv", more.pop("target", "a"), timecode, state, **more)


def test_the_newest_of_each_target_and_those_that_need_a_look() -> None:
    blocked, reopened = (status(17000, state) for state in (TimecodeState.BLOCKED, TimecodeState.REOPENED))
    listed = [status(17000 + day) for day in range(1, 6)]
    other = status(16000, target="b")
    shown = overview.newest([blocked, *listed, other], 2)
    assert [(each.instance_id, each.timecode) for each in shown] == [
        ("a", 17005),
        ("a", 17004),
        ("a", 17000),
        ("b", 16000),
    ]
    assert overview.newest([reopened], 0) == [reopened]
    assert overview.newest(listed, 0) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"files": 1}, "Timecode 17788 of a is complete, with 1 file."),
        ({"state": TimecodeState.OPEN}, "is open: its time, the grace after it or the sweep after that is not over."),
        (
            {"state": TimecodeState.BLOCKED, "reasons": {"source_down": 1, "pending": 7}},
            "is blocked: 7 pending, source is down.",
        ),
        ({"state": TimecodeState.REOPENED}, "was complete, and is open again."),
        ({"state": TimecodeState.OPEN, "held": True, "held_reason": "ann: clock"}, "not become complete (ann: clock)."),
        ({"files": 2, "handed_over": True}, "with 2 files; handed over, so new files of it wait."),
    ],
)
def test_the_state_in_one_sentence(more: dict[str, Any], said: str) -> None:
    sentence = overview.sentence(status(17788, **more))
    assert sentence.startswith("Timecode 17788 of a ")
    assert sentence.endswith(said)


def test_each_reason_has_a_command_that_helps_with_its_timecode() -> None:
    found = overview.fixes(status(17788, TimecodeState.BLOCKED, reasons=dict.fromkeys(REASON_FIXES, 1)))
    assert len(found) == len(set(REASON_FIXES.values()))
    assert "cdc-archiver timecodes 17788 --accept-missing --reason TEXT" in found
    assert not any("{" in fix for fix in found)


@pytest.mark.parametrize(
    ("told_by", "said"),
    [
        ("marker", "2026-05-15 12:00:00Z by marker"),
        ("status", "2026-05-15 12:00:00Z by status"),
        ("before", "nobody: before the first start"),
        ("no_stream", "nobody: no stream is known"),
        ("", ""),
    ],
)
def test_when_readers_were_told(told_by: str, said: str) -> None:
    assert overview.told_text(status(17788, told_by=told_by, completed_at=NOON)) == said


def test_lines_for_md5sum_are_sorted_once_escaped_and_without_markers() -> None:
    md5, other = bytes(16), bytes([255]) * 16
    files = [
        ("17788/s/b", md5),
        ("17788/s/a\\b", md5),
        ("17788/s/a\nb\r", md5),
        ("17788/suprsync/smurf/x.yaml", md5),
        ("17788/s/b", md5),
        ("17788/s/b", other),
        ("17788/s/suprsync/c", md5),
    ]
    zeros, ones = "0" * 32, "f" * 32
    assert format_lines(files, 17788) == [
        f"\\{zeros}  17788/s/a\\nb\\r",
        f"\\{zeros}  17788/s/a\\\\b",
        f"{zeros}  17788/s/b",
        f"{ones}  17788/s/b",
        f"{zeros}  17788/s/suprsync/c",
    ]
