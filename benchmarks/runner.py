"""Runs the cases: prepares each, lets its contenders take case_run in rounds, judges its aims."""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.cases import Case
from benchmarks.measurements import AGAINST, OURS, Aim, Measurement, Verdict, judge
from benchmarks.other_build import OtherBuild
from benchmarks.proc_stats import busy_processors, cpu_seconds_of_all
from benchmarks.scale import Scale
from benchmarks.testbed import Testbed

INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Result:
    """The result of a case.

    Attributes:
        size: of this run, as a short text.
        at_aimed_size: whether it is the size for which the aims are defined.
        seconds: duration, preparation included.
        failure: why it was not completed, starting with the error; normally empty.
    """

    name: str
    title: str
    plot: str
    size: str
    at_aimed_size: bool
    aims: Sequence[Aim]
    measurements: Sequence[Measurement]
    seconds: float
    failure: str = ""
    verdicts: Sequence[Verdict] = field(default_factory=tuple)


def run(
    cases: Sequence[type[Case]],
    testbed: Testbed,
    scale: Scale,
    console: Console,
    evidence: Path,
    on_result: Callable[[Result, bool], None],
    against: OtherBuild | None = None,
) -> None:
    """Measures cases one after the other, until an interruption.

    Args:
        evidence: directory for the logs of a failed case.
        against: another build, which takes turns with this one.
        on_result: called with the result of a case so far after each round, and, with True, at its end.
    """
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task("", total=len(cases))
        for number, kind in enumerate(cases):

            def show(what: str, done: float, number: int = number, name: str = kind.name) -> None:
                progress.update(task, description=f"{name}: {what}", completed=number + done)

            case_run = _CaseRun(
                kind(testbed, scale), show, kind(testbed, scale, against) if against and kind.against else None
            )
            case_run.measure(evidence, lambda case_run=case_run: on_result(case_run.result(), False))  # type: ignore[misc]
            on_result(case_run.result(), True)
            if case_run.failure == INTERRUPTED:
                return


class _CaseRun:
    """One case, from its preparation to its end.

    Args:
        other: the same case with another build.
    """

    def __init__(self, case: Case, show: Callable[[str, float], None], other: Case | None = None) -> None:
        self._case = case
        self._other = other
        self._show = show
        self._began = time.monotonic()
        self._measurements: list[Measurement] = []
        self.failure = ""

    def result(self) -> Result:
        """The result so far."""
        case = self._case
        return Result(
            case.name,
            case.title,
            case.plot,
            case.size,
            case.at_aimed_size,
            [*case.aims, *(case.against if self._other else ())],
            tuple(self._measurements),
            time.monotonic() - self._began,
            self.failure,
            [
                *case.verdicts(self._measurements),
                *(verdict for aim in case.against if (verdict := judge(aim, self._measurements)) is not None),
            ],
        )

    def measure(self, evidence: Path, after_round: Callable[[], None]) -> None:
        """Measures all rounds. A failure is recorded and does not affect other cases."""
        try:
            self._rounds(after_round)
        except KeyboardInterrupt:
            self.failure = INTERRUPTED
        except Exception as error:
            kept = _keep_logs(self._case.testbed, evidence / f"failed-{self._case.name}")
            self.failure = f"{type(error).__name__}: {error}\nlogs: {kept}\n{traceback.format_exc()}"
        finally:
            self._close()

    def _rounds(self, after_round: Callable[[], None]) -> None:
        case, rounds = self._case, self._case.rounds
        self._show("preparing", 0.0)
        case.testbed.settle()
        case.report_progress = lambda text: self._show(f"preparing, {text}", 0.0)
        case.prepare()
        contenders = list(case.contenders().items())
        if self._other is not None:
            self._show("preparing the other build", 0.0)
            self._other.prepare()
            contenders.append((AGAINST, self._other.contenders()[OURS]))
        for number in range(rounds):
            case.begin_round()
            # The first contender changes from round to round: the next one runs on what it left behind.
            first = number % len(contenders)
            for turn, (name, contender) in enumerate(contenders[first:] + contenders[:first]):
                self._show(f"round {number + 1} of {rounds}, {name}", (number + turn / len(contenders)) / rounds)
                case.testbed.settle()
                with _others_processors() as others:
                    figures = contender()
                self._measurements.append(Measurement(name, number, figures, turn, others()))
            after_round()

    def _close(self) -> None:
        for case in filter(None, (self._case, self._other)):
            try:
                case.close()
            except Exception as error:
                self.failure = self.failure or f"{type(error).__name__}: {error}"


@contextmanager
def _others_processors() -> Iterator[Callable[[], float]]:
    """Measures how many processors were busy in the block with the work of programs that are not this run's."""
    result: list[float] = []
    began, (busy, _), own = time.monotonic(), busy_processors(), cpu_seconds_of_all(os.getpid())
    yield lambda: result[0]
    busy, own = busy_processors()[0] - busy, cpu_seconds_of_all(os.getpid()) - own
    result.append(max(0.0, busy - own) / (time.monotonic() - began))


def _keep_logs(testbed: Testbed, directory: Path) -> Path:
    """Copies the logs of a case's services and of the servers, whose directories are removed with the case."""
    directory.mkdir(parents=True, exist_ok=True)
    for log in [*testbed.sandbox.directory.glob("*/*.log"), *testbed.directory.glob("site-*/program-*/*.log")]:
        shutil.copyfile(log, directory / f"{log.parent.name}-{log.name}")
    return directory
