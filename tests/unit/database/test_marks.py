"""Marks of timecodes: which of several entries counts, and what the file remembers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cdc_archiver.database.marks import Mark, MarkKind, MarkSet, file_of, read_file

NOON = datetime(2026, 5, 15, 12, tzinfo=UTC)
HELD, UNHELD, GIVEN, BACK, LET_IN = (
    MarkKind.HELD,
    MarkKind.UNHELD,
    MarkKind.HANDED_OVER,
    MarkKind.TAKEN_BACK,
    MarkKind.LET_IN,
)


def mark(
    kind: MarkKind, minute: int, source: str = "", *, timecode: int = 17000, until: int | None = None, file_id: int = 0
) -> Mark:
    """An entry of a minute past noon, the number of the table too.

    Args:
        until: minutes past noon.
    """
    ends = None if until is None else NOON + timedelta(minutes=until)
    return Mark(kind, source, timecode, "ann", "why", ends, NOON + timedelta(minutes=minute), minute, file_id)


@pytest.mark.parametrize(
    ("entries", "held"),
    [
        ([], set()),
        ([mark(HELD, 1)], {"a", "b"}),
        ([mark(HELD, 1), mark(UNHELD, 2)], set()),
        ([mark(HELD, 1), mark(UNHELD, 2), mark(HELD, 3)], {"a", "b"}),
        ([mark(HELD, 1, "a")], {"a"}),
        ([mark(HELD, 1, "A ")], {"a"}),
        # What was said later of every source counts for each, and what was said later of one counts for that.
        ([mark(HELD, 1), mark(UNHELD, 2, "a")], {"b"}),
        ([mark(HELD, 1, "a"), mark(UNHELD, 2)], set()),
        ([mark(UNHELD, 1), mark(HELD, 2, "a")], {"a"}),
        # A hold that has ended says nothing against another one; a new end takes the place of the old one.
        ([mark(HELD, 1, until=9)], set()),
        ([mark(HELD, 1, until=11)], {"a", "b"}),
        ([mark(HELD, 1, "a"), mark(HELD, 2, until=9)], {"a"}),
        ([mark(HELD, 1), mark(HELD, 2, until=9)], set()),
        # Another timecode and a hand-over are other matters.
        ([mark(HELD, 1, timecode=17001)], set()),
        ([mark(HELD, 1), mark(BACK, 2), mark(GIVEN, 3)], {"a", "b"}),
    ],
)
def test_what_is_held_ten_minutes_past_noon(entries: list[Mark], held: set[str]) -> None:
    now = NOON + timedelta(minutes=10)
    for order in permutations(entries):
        marks = MarkSet(order)
        assert {source for source in "ab" if marks.held(source, 17000, now)} == held


def test_a_file_that_was_let_in_is_not_handed_over_until_its_timecode_is_again() -> None:
    entries = [mark(GIVEN, 1), mark(LET_IN, 2, "a", file_id=7)]
    marks = MarkSet(entries)
    assert marks.handed_over("a", 17000, 8)
    assert marks.handed_over("b", 17000, 7)
    assert marks.handed_over("a", 17000)
    assert not marks.handed_over("a", 17000, 7)
    assert MarkSet([*entries, mark(GIVEN, 3)]).handed_over("a", 17000, 7)
    assert not MarkSet([*entries, mark(BACK, 3)]).handed_over("b", 17000)


def test_a_restored_table_is_older_than_the_file_and_a_command_after_that_is_newer() -> None:
    """The table gives its numbers again: number 2 of the file was made before number 2 of the table."""
    in_file = [mark(GIVEN, 1), mark(GIVEN, 2, timecode=17001), mark(GIVEN, 3, timecode=17002)]
    in_table = [mark(GIVEN, 1), Mark(BACK, "", 17001, "bob", "", None, NOON + timedelta(minutes=5), 2)]
    marks = MarkSet([*in_table, *in_file])
    assert marks.handed_over_timecodes == {17000, 17002}
    assert [each.timecode for each in marks.newest] == [17000, 17002, 17001]


def test_a_file_that_is_no_list_of_marks_is_named_and_not_believed(tmp_path: Path) -> None:
    path = file_of(tmp_path, "files", "pysmurf/files")
    assert path.parent == tmp_path
    assert read_file(path) == ()
    for text in ("", "[]", '{"marks": [{"kind": "held"}]}', '{"marks": [{"kind": "odd"}]}'):
        path.write_text(text)
        with capture_logs() as logs:
            assert read_file(path) == ()
        assert [(log["event"], log["path"]) for log in logs] == [("marks_file_unusable", str(path))]
