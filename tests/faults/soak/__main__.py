"""``python -m soak --minutes 20 --db mariadb``: all faults at once, at random, then the audit; exit status 0 if it is clean."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import rich.progress
from rich.console import Console

from cdc_archiver.sandbox import SandboxError
from soak.run import SoakPlan, SoakProgress, SoakReport, soak

_SAY_EVERY = 15.0
"""Seconds between two lines of progress in a pipe."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="duration of the faults (default: 20)")
    parser.add_argument("--db", choices=("mariadb", "mysql"), default="mariadb")
    parser.add_argument("--seed", type=int, help="for the order of the faults (default: a random one)")
    parser.add_argument(
        "--directory", type=Path, help="for all files (default: a new one below the temporary directory)"
    )
    given = parser.parse_args(arguments)
    seed = random.randrange(1_000_000) if given.seed is None else given.seed
    directory = given.directory or Path(tempfile.mkdtemp(prefix="cdc-soak-"))
    plan = SoakPlan(given.db, given.minutes * 60, seed)
    print(f"{plan.kind}, seed {seed}, {given.minutes:g} minutes, in {directory}", flush=True)
    try:
        with _shown(plan) as on_progress:
            report = soak(plan, directory, on_progress)
    except SandboxError as error:
        print(f"the sandbox is not available: {error}", file=sys.stderr)
        return 4
    except BaseException:
        print(f"not completed; its files are in {directory}", file=sys.stderr)
        raise
    print(report)
    if not report.clean:
        _complain(report, directory)
        return 1
    if given.directory is None:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


def _complain(report: SoakReport, directory: Path) -> None:
    for name, found in {**report.audit.wrong, "unforeseen": report.unforeseen}.items():
        for line in found[:10]:
            print(f"{name}: {line}")
    print(f"NOT CLEAN: logs, rows and history are in {directory}; repeat with --seed {report.plan.seed}")


@contextmanager
def _shown(plan: SoakPlan) -> Iterator[Callable[[SoakProgress], None]]:
    """A bar on a terminal, a line now and then in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        said = -_SAY_EVERY

        def on_progress(now: SoakProgress) -> None:
            nonlocal said
            if now.seconds - said >= _SAY_EVERY or now.seconds < said:
                said = now.seconds
                print(f"{plan.kind} {now.seconds:5.0f} s  {_progress_text(now)}", flush=True)

        yield on_progress
        return
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(plan.kind, total=plan.seconds)
        yield lambda now: bar.update(task, completed=now.seconds, description=f"{plan.kind} {_progress_text(now)}")


def _progress_text(now: SoakProgress) -> str:
    return (
        f"registered {now.registered}, archived {now.archived}, faults {now.faults} ({now.kills} kills); "
        f"now: {now.now or 'none'}"
    )


if __name__ == "__main__":
    sys.exit(main())
