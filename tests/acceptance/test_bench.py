"""The benchmark, with sizes too small for speed: every case measures its figures, which are printed and stored."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest

from benchmarks.cases import CASES
from benchmarks.cases.sources import growth
from benchmarks.cases.tables import grow
from benchmarks.measurements import Aim, Measurement, Verdict, confidence_interval, judge, percentile
from benchmarks.scale import GB, MB
from benchmarks.testbed import TABLE, Testbed
from cdc_archiver.database.schema import INDEX
from cdc_archiver.sandbox import Kind, Sandbox, SshServer

ROOT = Path(__file__).parents[2]
RUNS = {
    "files": ("mariadb", ("idle", "burst", "dust", "large", "transfer", "many", "night")),
    "rows": (
        "mysql",
        ("stream", "paced", "unrelated", "sweep", "timecodes", "pending", "rest", "sources", "files", "bytes"),
    ),
}
"""Two runs, so that they can run in parallel."""


@pytest.fixture
def place() -> Iterator[Path]:
    """The benchmark's TMPDIR; short, because archived paths must fit into their column."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as directory:
        yield Path(directory)


def start_bench(place: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "--results", str(place / "results"), *arguments],
        cwd=ROOT,
        # Settings of a developer's shell must not reach the benchmark's service.
        env={**os.environ, "TMPDIR": str(place), "CDC_ARCHIVER_TABLE": "of_a_site", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def bench(place: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    with start_bench(place, *arguments) as running:
        try:
            out, error = running.communicate(timeout=570)
        finally:
            running.kill()
    return subprocess.CompletedProcess(running.args, running.returncode, out, error)


def test_every_case_is_run() -> None:
    assert sorted(name for _, names in RUNS.values() for name in names) == sorted(case.name for case in CASES)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("database", "cases"), RUNS.values(), ids=RUNS.keys())
def test_each_case_measures_the_figures_of_its_aims(
    request: pytest.FixtureRequest, ssh_server: SshServer, place: Path, database: str, cases: tuple[str, ...]
) -> None:
    request.getfixturevalue(database)  # skips if it is not available
    done = bench(place, "--db", database, "--scale", "smoke", "--cases", ",".join(cases))
    assert done.returncode == 0, done.stdout + done.stderr
    results = place / "results/latest"
    found: dict[str, Any] = json.loads((results / "results.json").read_text())
    assert found["environment"]["database"].startswith(database)
    assert found["seconds"] > 0
    assert [case["name"] for case in found["cases"]] == list(cases)
    for case, kind in zip(found["cases"], [kind for kind in CASES if kind.name in cases], strict=True):
        assert not case["failure"]
        # Every aim has a verdict: its figures were measured for the service and for the baseline.
        assert [aim["sentence"] for aim in case["aims"]] == [aim.sentence for aim in kind.aims]
        assert all(aim["met"] is not None for aim in case["aims"])
        assert all(value for one in case["measurements"] for value in one["figures"].values())
        assert any(kind.plot in one["figures"] for one in case["measurements"])
        # Each is printed, with its limit.
        assert all(aim.limit in done.stdout for aim in kind.aims)
    # Only the results are left behind.
    assert [path.name for path in place.iterdir()] == ["results"]
    for name in ("aims", *cases):
        assert (results / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(results / f"{name}.svg").getroot().tag.endswith("svg")


def test_an_interrupted_run_reports_what_it_has_measured(ssh_server: SshServer, mariadb: object, place: Path) -> None:
    running = start_bench(place, "--scale", "short", "--cases", "idle,burst")
    try:
        deadline = time.monotonic() + 120
        while not list(place.glob("results/*/results.json")):  # the first of six rounds is over
            assert time.monotonic() < deadline
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        out, error = running.communicate(timeout=60)
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == 130, out + error
    assert "Traceback" not in error
    assert "interrupted" in out
    cases = json.loads((place / "results/latest/results.json").read_text())["cases"]
    assert cases[0]["measurements"]
    assert cases[-1]["failure"] == "interrupted"
    assert all(aim["met"] is None for aim in cases[-1]["aims"])
    assert (place / "results/latest/idle.png").exists()
    assert [path.name for path in place.iterdir()] == ["results"]


def test_an_unknown_case_is_wrong_usage(place: Path) -> None:
    done = bench(place, "--cases", "idle,fast")
    assert done.returncode == 2
    assert "unknown case: fast" in done.stderr


# The testbed.


def test_put_aside_keeps_small_files_so_that_ext4_has_no_recently_deleted_inodes(tmp_path: Path) -> None:
    testbed = Testbed(cast("Sandbox", SimpleNamespace(directory=tmp_path, database=None, environment=dict)))
    kept = set()
    for _ in range(2):  # the second has the same name
        turn = testbed.directory / "turn"
        (turn / "outputs").mkdir(parents=True)
        for name, size in {"dust": 500, "outputs/small": 20_000, "outputs/large": GB // 100}.items():
            with (turn / name).open("wb") as file:
                file.truncate(size)
            if size < MB:
                kept.add((turn / name).stat().st_ino)
        testbed.put_aside(turn)
        assert not turn.exists()
    assert {path.stat().st_ino for path in testbed.directory.rglob("*") if path.is_file()} == kept


@pytest.mark.parametrize("database", ["mariadb", "mysql"])
def test_a_table_grows_to_its_size_action_by_action(
    request: pytest.FixtureRequest, ssh_server: SshServer, place: Path, database: Kind
) -> None:
    request.getfixturevalue(database)  # skips if it is not available
    with Sandbox(database, place / "sandbox") as sandbox:
        testbed = Testbed(sandbox)
        site = testbed.site()
        files = testbed.files("rows", 100, 10)
        site.register(files, columns={"copied": 1})
        logged = sandbox.database.execute("SHOW BINARY LOGS")
        medians: list[str] = []
        grow(site, 1050, medians.append)
        actions = site.sql(
            "SELECT COUNT(*), COUNT(DISTINCT path), MIN(copied), MAX(id) - MIN(id) "
            f"FROM {TABLE} GROUP BY action_timestamp ORDER BY MIN(id)"
        )
        # Rows of one action are adjacent, as a monitor registers them.
        assert actions == [(100, 100, 1, 99)] * 10 + [(50, 50, 1, 49)]
        assert [
            column
            for (*_, column) in site.sql(
                "SELECT seq_in_index, column_name FROM information_schema.statistics WHERE table_schema = DATABASE() "
                "AND index_name = %s ORDER BY seq_in_index",
                (INDEX,),
            )
        ][:3] == ["copied", "instance_id", "id"]
        assert site.sql("SHOW TABLES LIKE 'template'") == []
        assert sandbox.database.execute("SHOW BINARY LOGS") == logged  # no reader needs all that
        assert medians[0] == "100 of 1,050 rows"
        site.close()


# How values become a verdict.


def measured(contender: str, round_: int, *values: float) -> Measurement:
    return Measurement(contender, round_, {"ms": values})


def test_a_ratio_is_taken_round_by_round_so_that_a_slow_minute_counts_for_both() -> None:
    # The machine was ten times slower in the last round, for both contenders.
    rounds = [(10.0, 10.0), (12.0, 10.0), (130.0, 100.0)]
    both = [one for n, (a, b) in enumerate(rounds) for one in (measured("ours", n, a), measured("rsync", n, b))]
    aim = Aim("", "ms", "rsync", at_most=1.25)
    verdict = judge(aim, both)
    assert verdict is not None
    assert (verdict.value, verdict.met) == (1.2, True)
    assert list(verdict.rounds) == pytest.approx([1.0, 1.2, 1.3])


def test_late_percentiles_are_taken_over_all_rounds_against_the_baselines_median() -> None:
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


def test_an_absolute_limit_must_be_met_in_every_round() -> None:
    rounds = [measured("ours", n, value) for n, value in enumerate((1.0, 1.0, 9.0))]
    verdict = judge(Aim("", "ms", at_most=2.0), rounds)
    assert verdict is not None
    assert (verdict.value, verdict.met) == (9.0, False)


@pytest.mark.parametrize(
    ("rounds", "interval"),
    [
        ([1.0, 2.0], (1.0, 2.0)),
        ([3.0, 1.0, 2.0, 9.0, 4.0, 5.0], (1.0, 9.0)),
        # Of nine values, the second and the eighth: outside of them lies the median in 3.9 % of all cases.
        ([float(value) for value in range(9)], (1.0, 7.0)),
        ([float(value) for value in range(12)], (2.0, 9.0)),
    ],
)
def test_the_interval_of_a_median_depends_on_no_extreme_round(
    rounds: list[float], interval: tuple[float, float]
) -> None:
    assert confidence_interval(rounds) == interval


def test_a_verdict_is_certain_where_the_whole_interval_is_on_one_side() -> None:
    aim = Aim("", "ms", "rsync", at_most=1.0)
    assert Verdict(aim, 0.8, [0.7, 0.8, 0.9]).certain
    assert not Verdict(aim, 0.9, [0.7, 0.9, 1.1]).certain


@pytest.mark.long
@pytest.mark.timeout(900)
def test_another_revision_takes_turns(ssh_server: SshServer, mariadb: object, place: Path) -> None:
    done = bench(place, "--scale", "smoke", "--cases", "burst,large", "--against", "HEAD", "--rounds", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((place / "results/latest/results.json").read_text())
    assert found["environment"]["against"]
    for case in found["cases"]:
        assert {one["way"] for one in case["measurements"]} >= {"ours", "other build"}
        (rate,) = [aim for aim in case["aims"] if aim["sentence"] == "rate against the other build"]
        assert len(rate["rounds"]) == 2


def sources(rates: dict[str, float], processors: dict[str, float]) -> list[Measurement]:
    return [
        Measurement(contender, 0, {"rate": [rate], "processors_percent": [processors.get(contender, 10.0)]})
        for contender, rate in rates.items()
    ]


@pytest.mark.parametrize(
    ("rates", "processors", "met"),
    [
        ({"1 source": 100.0, "2 sources": 180.0, "4 sources": 300.0}, {}, True),
        # No growth, and nothing is busy.
        ({"1 source": 100.0, "2 sources": 180.0, "4 sources": 182.0}, {"2 sources": 50.0}, False),
        # No growth, but the processors are busy: the machine's limit.
        ({"1 source": 100.0, "2 sources": 180.0, "4 sources": 170.0}, {"2 sources": 97.0}, True),
        # Later utilisation does not explain earlier missing growth.
        ({"1 source": 100.0, "2 sources": 100.0, "4 sources": 300.0}, {"2 sources": 97.0}, False),
    ],
)
def test_sources_scale_until_the_machine_is_busy(
    rates: dict[str, float], processors: dict[str, float], met: bool
) -> None:
    verdict = growth(Aim("", "", at_least=1.0), (1, 2, 4), sources(rates, processors))
    assert verdict is not None
    assert verdict.met is met
    assert "processors" in verdict.note
