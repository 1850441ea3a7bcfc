"""The benchmark, on sizes that say nothing of speed: every case measures what it says, and what is measured is told and kept."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import plots
from benchmarks.cases import CASES
from benchmarks.figures import Aim, Measurement, judge, percentile
from cdc_archiver.sandbox import SshServer

ROOT = Path(__file__).parents[2]
RUNS = {
    "files": ("mariadb", ("idle", "burst", "transfer")),
    "rows": ("mariadb", ("stream", "sweep")),
}
"""A case of each kind; `make bench` has all of them. Several runs, so that they go side by side."""


@pytest.fixture
def place() -> Iterator[Path]:
    """The benchmark's TMPDIR; a short one: archived paths have to fit into their column."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        yield Path(folder)


def bench(place: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--results", str(place / "results"), *arguments],
        check=False,
        cwd=ROOT,
        # What a developer's shell has set is no setting of the benchmark's service.
        env={**os.environ, "TMPDIR": str(place), "CDC_ARCHIVER_TABLE": "of_a_site", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=570,
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("database", "cases"),
    [RUNS["files"], pytest.param(*RUNS["rows"], marks=pytest.mark.long)],
    ids=RUNS.keys(),
)
def test_each_case_measures_all_that_its_aims_speak_of(
    request: pytest.FixtureRequest, ssh_server: SshServer, place: Path, database: str, cases: tuple[str, ...]
) -> None:
    request.getfixturevalue(database)  # skips where it is not to be had
    done = bench(place, "--db", database, "--scale", "smoke", "--cases", ",".join(cases))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((place / "results/results.json").read_text())
    assert {"processors", "file_system", "rsync", "python"} <= found["environment"].keys()
    assert database in found["environment"]["database"]
    assert {case["name"] for case in found["cases"]} == set(cases)
    for case in found["cases"]:
        kind = next(kind for kind in CASES if kind.name == case["name"])
        assert case["failure"] == ""
        assert [aim["sentence"] for aim in case["aims"]] == [aim.sentence for aim in kind.aims]
        assert all(value for one in case["measurements"] for value in one["figures"].values())
        assert any(kind.plot in one["figures"] for one in case["measurements"])
        # Each is told, with its verdict.
        assert all(aim.sentence in done.stdout for aim in kind.aims)
    # Nothing is left behind but the results.
    assert [path.name for path in place.iterdir()] == ["results"]
    if plots.available():
        for name in ("aims", *cases):
            assert (place / f"results/{name}.png").read_bytes().startswith(b"\x89PNG")
            assert ElementTree.parse(place / f"results/{name}.svg").getroot().tag.endswith("svg")


def test_an_unknown_case_is_wrong_usage(place: Path) -> None:
    done = bench(place, "--cases", "idle,fast")
    assert done.returncode == 2
    assert "there is no case fast" in done.stderr


# How values become a verdict.


def measured(way: str, round_: int, *values: float) -> Measurement:
    return Measurement(way, round_, {"ms": values})


def test_a_ratio_is_taken_round_by_round_so_that_a_slow_minute_counts_for_both() -> None:
    # The machine was ten times slower in the last round: for both ways.
    rounds = [(10.0, 10.0), (12.0, 10.0), (130.0, 100.0)]
    both = [one for n, (a, b) in enumerate(rounds) for one in (measured("ours", n, a), measured("rsync", n, b))]
    aim = Aim("", "ms", "rsync", at_most=1.25)
    verdict = judge(aim, both)
    assert verdict is not None
    assert (verdict.value, verdict.met) == (1.2, True)
    assert list(verdict.rounds) == pytest.approx([1.0, 1.2, 1.3])


def test_late_values_are_those_of_all_rounds_against_the_opponents_median() -> None:
    ours = [measured("ours", n, *([10.0] * 99), late) for n, late in enumerate((10.0, 60.0, 80.0))]
    theirs = [measured("rsync", n, 10.0, 20.0, 30.0) for n in range(3)]
    verdict = judge(Aim("", "ms", "rsync", part=99, at_most=3.0), [*ours, *theirs])
    assert verdict is not None
    assert verdict.value == 0.5  # the 297th of 300 is still a 10
    assert percentile([*([10.0] * 290), *([60.0] * 10)], 99) == 60.0


@pytest.mark.parametrize(
    ("at_least", "at_most", "met"), [(2.0, None, True), (2.1, None, False), (None, 1.9, False), (None, 2.0, True)]
)
def test_a_limit_is_met_at_its_very_value(at_least: float | None, at_most: float | None, met: bool) -> None:
    verdict = judge(Aim("", "ms", at_least=at_least, at_most=at_most), [measured("ours", 0, 2.0)])
    assert verdict is not None
    assert verdict.met is met


def test_what_was_not_measured_has_no_verdict() -> None:
    assert judge(Aim("", "ms", "rsync", at_most=1.0), [measured("ours", 0, 1.0)]) is None
