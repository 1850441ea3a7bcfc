"""`python -m benchmarks`: measures, prints tables, writes JSON and plots. `make bench` calls it."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks import plots
from benchmarks.cases import CASES, Case
from benchmarks.other_build import build
from benchmarks.report import describe, file_system, print_aims, print_case, write_json
from benchmarks.runner import INTERRUPTED, Result, run
from benchmarks.scale import FULL, GB, SHORT, SMOKE, Scale
from benchmarks.testbed import Testbed
from cdc_archiver.sandbox import Sandbox, SandboxError

_SCALES = {scale.name: scale for scale in (SMOKE, SHORT, FULL)}
_WIDTH = 150
"""Of tables in a pipe, which has no width of its own."""
_SERVER_OPTIONS = ("--innodb-buffer-pool-size=512M",)
"""A site's server has more memory than the sandbox's default, which is for tests."""
_INTERRUPTED_STATUS = 130
_AGAINST_ROUNDS = 12
"""Enough for an interval that does not depend on the two extreme rounds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        Its exit status: 0 all was measured, aims met or not; 1 a case failed; 2 wrong usage, or too little space; 130
        interrupted.
    """
    given = _parser().parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    scale = _SCALES[given.scale]
    if given.directory is not None:
        tempfile.tempdir = str(given.directory.absolute())
    place = Path(tempfile.gettempdir())
    if not place.is_dir() or (free := shutil.disk_usage(place).free) < scale.space_bytes:
        has = f"has {free / GB:.1f} GB" if place.is_dir() else "is not a directory"
        print(
            f"benchmarks: a {scale.name} run needs {scale.space_bytes / GB:.0f} GB, and {place} {has}: --directory, or TMPDIR",
            file=sys.stderr,
        )
        return 2
    if file_system(place).startswith(("tmpfs", "ramfs")):
        console.print(f"{place} is in memory, where durability costs nothing: use --directory", style="bold red")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)
    scale = replace(scale, rounds=given.rounds or (_AGAINST_ROUNDS if given.against else scale.rounds))
    directory = _results_directory(given.results, scale)
    return _run(given.db, _chosen(given.cases, given.against), scale, directory, console, given.against)


def _run(kind: str, cases: Sequence[type[Case]], scale: Scale, directory: Path, console: Console, revision: str) -> int:
    began = time.monotonic()
    results: list[Result] = []
    subtitle = ""
    status = 0
    try:
        against = build(revision) if revision else None
        with Sandbox("mysql" if kind == "mysql" else "mariadb", options=_SERVER_OPTIONS) as sandbox:
            testbed = Testbed(sandbox)
            environment = describe(testbed, scale, _SERVER_OPTIONS)
            environment["against"] = against.revision if against else None
            subtitle = (
                f"{environment['database']}; {environment['processors']} × {environment['processor']}; "
                f"{environment['file_system'].partition(' ')[0]}; {scale.name} run, {scale.rounds} rounds"
                f"{f', against {against.revision}' if against else ''}"
            )
            console.print(subtitle, markup=False, highlight=False)
            if (load := environment["load_at_start"]) > 1.0:
                console.print(f"the machine is busy: its load is {load:.1f}", style="bold red")

            def on_result(result: Result, complete: bool) -> None:
                write_json(directory, environment, [*results, result], time.monotonic() - began)
                if complete:
                    results.append(result)
                    print_case(console, result)

            run(cases, testbed, scale, console, directory, on_result, against)
            console.print("removing files", style="dim")  # up to a minute
    except SandboxError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        status = _INTERRUPTED_STATUS
    if results:
        print_aims(console, results)
        _draw(directory, results, subtitle, console)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    console.print(f"took {minutes} min {seconds} s; written to {directory}/", markup=False, highlight=False)
    if any(result.failure == INTERRUPTED for result in results):
        return _INTERRUPTED_STATUS
    return status or int(any(result.failure for result in results))


def _draw(directory: Path, results: Sequence[Result], subtitle: str, console: Console) -> None:
    try:
        plots.draw(directory, results, subtitle)
    except ImportError:
        console.print("no plots: matplotlib is not installed (make bench installs it)", style="dim")
    except Exception as error:  # the tables of half an hour are printed all the same
        console.print(f"no plots: {type(error).__name__}: {error}", style="bold red", markup=False)


def _interrupt(_number: int, _frame: object) -> None:
    """Ctrl-C, SIGHUP, SIGTERM: prints what was measured and removes all files; further signals are ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _results_directory(parent: Path, scale: Scale) -> Path:
    """A new directory, so that no run overwrites earlier results; the link ``latest`` leads to it."""
    name = f"{scale.name}-{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}"
    directory = parent / name
    directory.mkdir(parents=True)
    latest = parent / "latest"
    latest.unlink(missing_ok=True)
    os.symlink(name, latest)
    return directory


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--db", choices=["mariadb", "mysql"], default="mariadb")
    parser.add_argument(
        "--scale", choices=list(_SCALES), default=SHORT.name, help="sizes of the cases (default: short)"
    )
    parser.add_argument("--results", type=Path, default=Path("bench-results"), metavar="DIRECTORY")
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIRECTORY",
        help="directory on the disk to measure (default: the temporary directory)",
    )
    parser.add_argument(
        "--cases",
        type=_names,
        default=[],
        metavar="NAME,…",
        help=f"of {', '.join(case.name for case in CASES)}; default: all",
    )
    parser.add_argument(
        "--against",
        default="",
        metavar="REVISION",
        help="let the service of another revision take turns, and compare the two",
    )
    parser.add_argument(
        "--rounds",
        type=_even,
        metavar="NUMBER",
        help=f"turns of each contender, an even number (default: the scale's, or {_AGAINST_ROUNDS} with --against)",
    )
    return parser


def _even(text: str) -> int:
    if not text.isdecimal() or not (rounds := int(text)) or rounds % 2:
        raise argparse.ArgumentTypeError(f"invalid number of rounds: {text!r}: use an even number")
    return rounds


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := set(names) - {case.name for case in CASES}:
        raise argparse.ArgumentTypeError(f"unknown case: {', '.join(sorted(unknown))}")
    return names


def _chosen(names: Sequence[str], against: str) -> list[type[Case]]:
    """The cases that were named; without names all, or those that another build can take part in."""
    return [case for case in CASES if (case.name in names if names else not against or case.against)]


if __name__ == "__main__":
    sys.exit(main())
