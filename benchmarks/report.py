"""The report: a table of aims, a table of figures, and everything as JSON."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.measurements import OURS, Measurement, human, pooled, summary
from benchmarks.runner import Result
from benchmarks.scale import Scale
from benchmarks.testbed import Testbed
from cdc_archiver import __version__

_QUIET: Final = 0.1
"""Processors that others may keep busy in a run that counts as undisturbed."""


def describe(testbed: Testbed, scale: Scale, options: Sequence[str]) -> dict[str, Any]:
    """The machine and the versions of the programs.

    Args:
        options: of the database server.
    """
    path = testbed.environment.get("PATH")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "scale": scale.name,
        "rounds": scale.rounds,
        "cdc_archiver": __version__,
        "revision": _first_line_of("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
        "processors": os.cpu_count(),
        "processor": _processor(),
        "memory_gb": round(memory / 1e9, 1),
        "kernel": platform.release(),
        "load_at_start": os.getloadavg()[0],
        "file_system": file_system(testbed.directory),
        "database": f"{testbed.sandbox.kind} {testbed.server.execute('SELECT VERSION()')[0][0]}",
        "database_options": list(options),
        "rsync": _first_line_of(shutil.which("rsync", path=path) or "rsync", "--version")
        .partition("protocol")[0]
        .strip(),
        "ssh": _first_line_of(shutil.which("ssh", path=path) or "ssh", "-V"),
        "python": sys.version.split()[0],
        "mysql_replication": version("mysql-replication"),
        "pymysql": version("PyMySQL"),
    }


def file_system(directory: Path) -> str:
    """The type, the device and the options of the file system that a directory is on."""
    return _first_line_of("findmnt", "-no", "FSTYPE,SOURCE,OPTIONS", "-T", str(directory))


def write_json(directory: Path, environment: dict[str, Any], results: Sequence[Result], seconds: float) -> None:
    """Writes all of it to a directory, every single measurement included; atomically.

    Args:
        seconds: duration of the run so far.
    """
    path = directory / "results.json"
    unfinished = path.with_suffix(".unfinished")
    others = others_processors(results)
    found = {
        "environment": {**environment, "others_processors": round(others, 3), "busy": others > _QUIET},
        "seconds": round(seconds, 1),
        "cases": [_case_as_json(result) for result in results],
    }
    unfinished.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    unfinished.rename(path)


def print_case(console: Console, result: Result) -> None:
    """Prints a case's figures by contender."""
    table = Table(title=f"{result.name}: {result.title} ({result.seconds:.0f} s)", title_justify="left", box=None)
    for heading in ("", "figure", "median", "quarters", "p99", "values"):
        table.add_column(heading, justify="left" if heading in ("", "figure") else "right")
    for contender in contenders_of(result.measurements):
        shown = contender
        for figure in figures_of(result.measurements, contender):
            values = summary(pooled(result.measurements, contender, figure))
            late = human(figure, values.late) if values.count >= 100 else ""
            quarters = f"{human(figure, values.low)} … {human(figure, values.high)}"
            table.add_row(shown, figure, human(figure, values.middle), quarters, late, f"{values.count:,}")
            shown = ""
    console.print(table)
    if result.failure:
        console.print(f"  FAILED: {result.failure}", style="bold red", markup=False)


def print_aims(console: Console, results: Sequence[Result]) -> None:
    """Prints every aim, with its ratio and its verdict."""
    table = Table(title="aims", title_justify="left")
    for heading in ("case", "aim", "limit", "measured", "95 %", "rounds", ""):
        table.add_column(heading, justify="left" if heading in ("case", "aim", "") else "right")
    for result in results:
        verdicts = {verdict.aim: verdict for verdict in result.verdicts}
        for aim in result.aims:
            if (verdict := verdicts.get(aim)) is None:
                word = "FAILED" if result.failure else "not measured"
                table.add_row(result.name, aim.sentence, aim.limit, "-", "-", "-", word, style="red")
                continue
            spread = f"{min(verdict.rounds):.2f} … {max(verdict.rounds):.2f}"
            interval = "{:.2f} … {:.2f}".format(*verdict.interval) if aim.to and aim.part == 50 else ""
            word, style = ("met", "green") if verdict.met else ("MISSED", "bold red")
            if interval and not verdict.certain:
                word, style = f"{word}, uncertain", "yellow"
            if result.failure:
                word, style = "FAILED", "bold red"
            verdict_parts = [word, *([] if result.at_aimed_size else [f"at {result.size}"])]
            sentence = "\n".join(filter(None, (aim.sentence, verdict.note)))
            table.add_row(
                result.name,
                sentence,
                aim.limit,
                f"{verdict.value:.2f}",
                interval,
                spread,
                " ".join(verdict_parts),
                style=style,
            )
    console.print(table)
    if (others := others_processors(results)) > _QUIET:
        console.print(
            f"the machine was busy: others kept {others:.1f} of {os.cpu_count()} processors busy (median of all turns); "
            "its figures are for comparison within this run only",
            style="bold red",
        )
    if not all(result.at_aimed_size for result in results):
        console.print("“at …”: the aim is defined for another size; make bench FULL=1 measures it", style="dim")


def others_processors(results: Sequence[Result]) -> float:
    """Processors that programs other than the run's kept busy, the median of all turns."""
    turns = [one.others for result in results for one in result.measurements]
    return median(turns) if turns else 0.0


def contenders_of(measurements: Sequence[Measurement]) -> list[str]:
    """The contenders, ours first."""
    names = list(dict.fromkeys(one.contender for one in measurements))
    return sorted(names, key=lambda name: name != OURS)


def figures_of(measurements: Sequence[Measurement], contender: str) -> list[str]:
    """The names of a contender's figures."""
    return list(dict.fromkeys(name for one in measurements if one.contender == contender for name in one.figures))


def _case_as_json(result: Result) -> dict[str, Any]:
    verdicts = {verdict.aim: verdict for verdict in result.verdicts}
    return {
        "name": result.name,
        "title": result.title,
        "size": result.size,
        "at_aimed_size": result.at_aimed_size,
        "seconds": round(result.seconds, 1),
        "failure": result.failure,
        "aims": [
            {
                "sentence": aim.sentence,
                "limit": aim.limit,
                "value": verdict.value if verdict else None,
                "rounds": list(verdict.rounds) if verdict else [],
                "interval": list(verdict.interval) if verdict else [],
                "met": verdict.met if verdict and not result.failure else None,
                "note": verdict.note if verdict else "",
            }
            for aim in result.aims
            for verdict in [verdicts.get(aim)]
        ],
        "summaries": {
            contender: {
                figure: summary(pooled(result.measurements, contender, figure)).as_dict()
                for figure in figures_of(result.measurements, contender)
            }
            for contender in contenders_of(result.measurements)
        },
        "measurements": [
            {
                "way": one.contender,
                "round": one.round,
                "turn": one.turn,
                "others_processors": round(one.others, 3),
                "figures": {name: list(values) for name, values in one.figures.items()},
            }
            for one in result.measurements
        ],
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line_of(*command: str) -> str:
    """The first line that a program prints; ``unknown`` if it cannot be run."""
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0].strip() if lines else "unknown"
