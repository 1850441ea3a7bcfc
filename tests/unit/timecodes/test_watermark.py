"""How far a source has come, and what bounds it; what registrars have to do with it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from cdc_archiver.database.registrars import SILENT_AFTER, Registrar, RegistrarReports
from cdc_archiver.timecodes.watermark import OldestRow, watermark

NOW = datetime(2026, 12, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
NONE = (False, None)


@pytest.mark.parametrize(
    ("oldest", "registrar", "held", "until", "bound_by"),
    [
        pytest.param(None, NONE, [], NOW, "sweep", id="nothing is undecided"),
        pytest.param(NOW - HOUR, NONE, [], NOW - HOUR - timedelta(seconds=1), "row", id="an undecided row"),
        pytest.param(NOW + HOUR, NONE, [], NOW, "row", id="a row ahead of the clock"),
        pytest.param(None, (True, NOW - HOUR), [], NOW - HOUR, "registrar", id="a registrar is behind"),
        pytest.param(None, (True, NOW + HOUR), [], NOW, "sweep", id="a registrar is ahead"),
        pytest.param(None, (True, None), [], None, "registrar", id="a registrar knows nothing"),
        pytest.param(NOW - HOUR, NONE, [NOW, NOW - 2 * HOUR], NOW - 2 * HOUR, "hold", id="a hold"),
    ],
)
def test_the_earliest_bound_counts(
    oldest: datetime | None,
    registrar: tuple[bool, datetime | None],
    held: list[datetime],
    until: datetime | None,
    bound_by: str,
) -> None:
    row = OldestRow(oldest, 7, "/data/a") if oldest else None
    found = watermark("srv", NOW, row, registrar, held)
    assert (found.finalized_until, found.bound_by) == (until, bound_by)
    assert (found.oldest_id, found.oldest_path) == ((7, "/data/a") if oldest else (None, ""))


def registrar(
    name: str = "r", *, until: datetime | None = NOW, heard: datetime | None = NOW, finished: bool = False
) -> Registrar:
    return Registrar("monitor", name, heard, until, finished)


@pytest.mark.parametrize(
    ("registrars", "losses", "expected"),
    [
        ([], {}, {}),
        ([registrar()], {}, {}),
        ([registrar(until=NOW - HOUR)], {}, {"registrar_behind": 1}),
        ([registrar(until=None)], {}, {"registrar_behind": 1}),
        ([registrar(until=NOW - HOUR, heard=NOW - SILENT_AFTER - timedelta(seconds=1))], {}, {"registrar_silent": 1}),
        ([registrar(until=NOW - HOUR, heard=None)], {}, {"registrar_silent": 1}),
        ([registrar(until=NOW - HOUR, heard=None, finished=True)], {}, {}),
        ([registrar(), registrar("s", until=None)], {}, {"registrar_behind": 1}),
        ([registrar()], {("monitor", 17645): (2, 1)}, {"registrar_lost": 2, "registrar_gaps": 1}),
        ([registrar()], {("monitor", 17644): (2, 1)}, {}),
    ],
)
def test_registrars_agree_or_say_why_not(
    registrars: list[Registrar], losses: dict[tuple[str, int], tuple[int, int]], expected: dict[str, int]
) -> None:
    assert RegistrarReports(registrars, losses).reasons("Monitor ", 17645, NOW, NOW) == expected


def test_the_slowest_registrar_bounds() -> None:
    assert RegistrarReports().bound("monitor") == NONE
    assert RegistrarReports([registrar(finished=True)]).bound("monitor") == NONE
    both = RegistrarReports([registrar(), registrar("s", until=NOW - HOUR)])
    assert both.bound("monitor") == (True, NOW - HOUR)
    assert RegistrarReports([*both.registrars, registrar("t", until=None)]).bound("monitor") == (True, None)
