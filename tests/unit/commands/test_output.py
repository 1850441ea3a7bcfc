"""Printed values are escaped, a pipe gets plain text; and the times that an operator types."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cdc_archiver.commands.output import Printer
from cdc_archiver.database.search import RowState
from cdc_archiver.errors import Misconfigured
from cdc_archiver.text import escape_unprintable, format_size, to_jsonable
from cdc_archiver.timespec import format_duration, parse_time

NOW = datetime(2026, 5, 15, 12, 30, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode [red].npy", "plain ünïcode [red].npy"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\x1b[31m\x07\x00", r"\x1b[31m\x07\x00"),
        ("right\u202eto left", r"right\u202eto left"),
        ("\udcff\u2028\x9b", r"\udcff\u2028\x9b"),
    ],
)
def test_unprintable_characters_are_escaped(text: str, shown: str) -> None:
    assert escape_unprintable(text) == shown


def test_a_pipe_gets_fields_without_colours_or_titles(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    assert printer.table(("A", "B"), [["1", ("red\t", "bold red")], ["2", "x" * 300]]) == 2
    printer.line(("[bold]", "bold"), " :smile: ", "x" * 300)
    assert capsys.readouterr().out == f"1\tred\\t\n2\t{'x' * 300}\n[bold] :smile: {'x' * 300}\n"


def test_json_has_times_md5_sums_and_states_as_text() -> None:
    value = {"at": NOW, "md5": b"\xab\x01", "state": RowState.PENDING, "all": (1, None, frozenset({"x"}))}
    assert to_jsonable(value) == {
        "at": "2026-05-15T12:30:15+00:00",
        "md5": "ab01",
        "state": "pending",
        "all": [1, None, ["x"]],
    }


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("90s", datetime(2026, 5, 15, 12, 28, 45, tzinfo=UTC)),
        ("2h", datetime(2026, 5, 15, 10, 30, 15, tzinfo=UTC)),
        ("3d ago", datetime(2026, 5, 12, 12, 30, 15, tzinfo=UTC)),
        ("1.5 h", datetime(2026, 5, 15, 11, 0, 15, tzinfo=UTC)),
        ("today", datetime(2026, 5, 15, tzinfo=UTC)),
        ("2026-05-01", datetime(2026, 5, 1, tzinfo=UTC)),
        ("2026-05-01T02:00+02:00", datetime(2026, 5, 1, tzinfo=UTC)),
    ],
)
def test_times_as_they_are_typed(text: str, meant: datetime) -> None:
    assert parse_time(text, NOW) == meant


@pytest.mark.parametrize("text", ["", "soon", "3 parsecs", "2026-13-01", "9999999999d", "-2h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(Misconfigured, match="invalid time"):
        parse_time(text, NOW)


def test_sizes_and_durations_for_people() -> None:
    assert [format_size(size) for size in (0, 999, 1500, 2.5e9, 3e15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 GB",
        "3000.0 TB",
    ]
    assert [format_duration(seconds) for seconds in (5, 119, 180, 7200, 3 * 86400)] == [
        "5 s",
        "119 s",
        "3 min",
        "2 h",
        "3 days",
    ]
