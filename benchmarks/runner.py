"""The run: each case prepared, its ways taking turns round by round, its aims judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.cases import Case
from benchmarks.figures import Aim, Measurement, Verdict, judge
from benchmarks.ground import Ground
from benchmarks.scale import Scale


@dataclass(frozen=True)
class Result:
    """What came of a case.

    Attributes:
        failure: why it was not measured to its end; empty almost always.
        seconds: that it took, preparations included.
    """

    name: str
    title: str
    plot: str
    aims: Sequence[Aim]
    measurements: Sequence[Measurement]
    seconds: float
    failure: str = ""
    verdicts: Sequence[Verdict] = field(default_factory=tuple)


def run(
    cases: Sequence[type[Case]], ground: Ground, scale: Scale, console: Console, tell: Callable[[Result], None]
) -> list[Result]:
    """Measures cases one after the other.

    Args:
        tell: called with each result as soon as it is there.
    """
    results = []
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task("", total=len(cases))
        for number, kind in enumerate(cases):

            def show(what: str, done: float, number: int = number, name: str = kind.name) -> None:
                progress.update(task, description=f"{name}: {what}", completed=number + done)

            results.append(_measure(kind(ground, scale), scale.rounds, show))
            tell(results[-1])
    return results


def _measure(case: Case, rounds: int, show: Callable[[str, float], None]) -> Result:
    began = time.monotonic()
    measurements: list[Measurement] = []
    failure = ""
    try:
        show("preparing", 0.0)
        case.ground.settle()
        case.prepare()
        ways = list(case.ways().items())
        for number in range(rounds):
            # Who goes first changes from round to round: whoever follows finds what the other has left behind.
            for turn, (name, way) in enumerate(ways if number % 2 == 0 else ways[::-1]):
                show(f"round {number + 1} of {rounds}, {name}", (number + turn / len(ways)) / rounds)
                case.ground.settle()
                measurements.append(Measurement(name, number, way()))
    except Exception as error:  # one case that fails is said so, and costs no other
        failure = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
    finally:
        try:
            case.close()
        except Exception as error:
            failure = failure or f"{type(error).__name__}: {error}"
    verdicts = [verdict for aim in case.aims if (verdict := judge(aim, measurements)) is not None]
    return Result(
        case.name, case.title, case.plot, case.aims, measurements, time.monotonic() - began, failure, verdicts
    )
