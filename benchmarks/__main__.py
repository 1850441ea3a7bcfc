"""`python -m benchmarks`: measures, prints tables, writes JSON, draws. `make bench` calls it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import plots
from benchmarks.cases import CASES, Case
from benchmarks.ground import Ground
from benchmarks.report import describe, tell_aims, tell_case, write_json
from benchmarks.runner import Result, run
from benchmarks.scale import FULL, SHORT, SMOKE
from cdc_archiver.sandbox import Sandbox, SandboxError

_SCALES = {scale.name: scale for scale in (SMOKE, SHORT, FULL)}
_WIDTH = 150
"""Of tables in a pipe, where there is nothing to fit into."""
_SERVER_OPTIONS = ("--innodb-buffer-pool-size=512M",)
"""A site's server has some memory; the sandbox's own default is a test's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; its exit status: 0 when all was measured, whatever came out; 1 when a case failed; 2 wrong usage."""
    given = _parser().parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    results_folder: Path = given.results
    results_folder.mkdir(parents=True, exist_ok=True)
    scale = _SCALES[given.scale]
    results: list[Result] = []

    def tell(result: Result) -> None:
        results.append(result)
        tell_case(console, result)
        write_json(results_folder, environment, results)  # what is measured is kept, however the run ends

    try:
        with Sandbox(given.db, options=_SERVER_OPTIONS) as sandbox:
            ground = Ground(sandbox)
            environment = describe(ground, scale)
            machine = (
                f"{environment['database']}; {environment['processors']} × {environment['processor']}; "
                f"{environment['file_system'].partition(' ')[0]}; {scale.name} run, {scale.rounds} rounds"
            )
            console.print(machine, markup=False, highlight=False)
            run(_chosen(given.cases), ground, scale, console, tell)
    except SandboxError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    tell_aims(console, results)
    if plots.available():
        plots.draw(results_folder, results, machine)
    else:
        console.print("no pictures: matplotlib is not installed (make bench does that)", style="dim")
    console.print(f"written to {results_folder}/", markup=False, highlight=False)
    return int(any(result.failure for result in results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--db", choices=["mariadb", "mysql"], default="mariadb")
    parser.add_argument("--scale", choices=list(_SCALES), default=SHORT.name, help="how much is measured")
    parser.add_argument("--results", type=Path, default=Path("bench-results"), metavar="FOLDER")
    parser.add_argument(
        "--cases",
        type=_names,
        default=[],
        metavar="NAME,…",
        help=f"of {', '.join(case.name for case in CASES)}; all where none is named",
    )
    return parser


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := set(names) - {case.name for case in CASES}:
        raise argparse.ArgumentTypeError(f"there is no case {', '.join(sorted(unknown))}")
    return names


def _chosen(names: Sequence[str]) -> list[type[Case]]:
    return [case for case in CASES if not names or case.name in names]


if __name__ == "__main__":
    sys.exit(main())
