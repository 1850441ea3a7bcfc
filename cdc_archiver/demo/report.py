"""The demo's output: a progress bar on a terminal, a line every few seconds in a pipe; checks; the figures of the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from cdc_archiver.demo.checks import Check
from cdc_archiver.demo.instrument import LOOK_EVERY, CopyWatcher, RegisteredFile
from cdc_archiver.demo.service_process import MetricsSnapshot
from cdc_archiver.demo.session import PlannedFile, Session
from cdc_archiver.settings import Settings

_LINE_EVERY: Final = 2.0
"""Seconds between two lines of progress in a pipe."""
_PROBLEMS_SHOWN: Final = 10


class Reporter:
    """Prints events, checks and figures.

    Args:
        console: the output.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._marks = ("✓", "✗") if console.encoding.lower().startswith("utf") else ("ok", "FAILED:")

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """One line about an event, with the time since the start."""
        self._print(Text(f"{self.seconds:5.1f} s  ", "dim").append(text, "default"))

    def head(self, text: str) -> None:
        """The heading of a section."""
        self._print(Text(f"\n{text}", "bold"))

    def figure(self, name: str, text: str) -> None:
        """One figure."""
        self._print(Text(f"  {name:16}  {text}"))

    def check(self, check: Check) -> None:
        """One check, and its problems if it failed."""
        passed, failed = self._marks
        mark = Text(f"  {passed} ", "green") if check.passed else Text(f"  {failed} ", "bold red")
        self._print(mark.append(check.text, "default"))
        for problem in check.problems[:_PROBLEMS_SHOWN]:
            self.problem(problem)
        if len(check.problems) > _PROBLEMS_SHOWN:
            self.problem(f"and {len(check.problems) - _PROBLEMS_SHOWN:,} more")

    def problem(self, text: str) -> None:
        """One problem; of several lines, such as a log's, all are printed."""
        self._print(Text("\n".join(f"      {line}" for line in text.splitlines()), "red"))

    def verdict(self, text: str, *, passed: bool) -> None:
        """The last line."""
        self._print(Text(f"\n{text}", "bold green" if passed else "bold red"))

    @contextmanager
    def progress(self, what: str, files: int, size: int) -> Iterator[Callable[[int, int], None]]:
        """Shows the progress of a step.

        Args:
            files: number of files.
            size: bytes of all files together.

        Yields:
            a function to call, any number of times, with the files and bytes done so far.
        """
        if self._console.is_terminal:
            yield from self._bar(what, files, size)
        else:
            yield from self._lines(what, files, size)

    def _bar(self, what: str, files: int, size: int) -> Iterator[Callable[[int, int], None]]:
        columns = (TextColumn("         {task.description}"), BarColumn(), TextColumn("{task.fields[files]}"))
        with Progress(
            *columns, DownloadColumn(), TransferSpeedColumn(), console=self._console, transient=True
        ) as progress:
            task = progress.add_task(what, total=size, files=f"0/{files}")

            def show(done: int, bytes_done: int) -> None:
                progress.update(task, completed=bytes_done, files=f"{done}/{files}")

            yield show

    def _lines(self, what: str, files: int, size: int) -> Iterator[Callable[[int, int], None]]:
        said_at = time.monotonic()

        def show(done: int, bytes_done: int) -> None:
            nonlocal said_at
            if time.monotonic() - said_at >= _LINE_EVERY:
                said_at = time.monotonic()
                self.say(f"{what}: {done:,} of {files:,} files, {decimal(bytes_done)} of {decimal(size)}")

        yield show

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def report_figures(
    reporter: Reporter,
    session: Session,
    rows: Mapping[PlannedFile, RegisteredFile],
    watcher: CopyWatcher,
    snapshot: MetricsSnapshot,
    settings: Settings,
) -> None:
    """Prints quantity, rate and latency, and what the service counted itself.

    Args:
        rows: the rows of all files.
        watcher: has seen all of them copied.
        snapshot: the service's metrics at the end.
        settings: of the service.
    """
    largest = rows[session.largest]
    began, ended = watcher.committed(largest), watcher.seen(largest)
    loaded = [largest, *(rows[file] for burst in session.bursts for file in burst)]
    seconds = max(watcher.seen(row) for row in loaded) - began
    sizes = sorted(file.size for file in session.files)
    size = sum(row.file.planned.size for row in loaded)
    single = [watcher.latency(rows[file]) for file in session.single]
    reporter.head("report")
    reporter.figure(
        "files", f"{len(sizes):,}, of {sizes[0]} bytes to {decimal(sizes[-1])}; {decimal(sum(sizes))} in total"
    )
    reporter.figure(
        "under load",
        f"{len(loaded):,} files, {decimal(size)} in {seconds:.1f} s: "
        f"{len(loaded) / seconds:.0f} files/s, {decimal(round(size / seconds))}/s",
    )
    reporter.figure("latency, single", percentiles(single))
    reporter.figure("latency, all", percentiles([*single, *map(watcher.latency, loaded)]))
    reporter.figure("", f"from COMMIT to copied = 1, polled every {LOOK_EVERY * 1000:.0f} ms")
    if session.largest.size > settings.small_limit:
        meanwhile = sum(watcher.seen(row) < ended for row in loaded)
        reporter.figure(
            "largest file", f"took {ended - began:.1f} s; {meanwhile:,} smaller files were archived meanwhile"
        )
    sweeps = snapshot.total("sweep_duration_seconds_count")
    reporter.figure("sweeps", f"{sweeps:.0f}; found: {_counts(snapshot, 'why', 'sweep_found_total')}")
    reporter.figure("stream", f"events: {_counts(snapshot, 'outcome', 'stream_events_total')}")


def percentiles(latencies: Sequence[float]) -> str:
    """Median and 99th percentile; both are measured values (nearest rank).

    Args:
        latencies: in seconds; at least one.
    """
    ordered = sorted(latencies)
    middle, late = (ordered[-(-len(ordered) * part // 100) - 1] for part in (50, 99))
    return f"p50 {_duration(middle)}, p99 {_duration(late)} ({len(ordered):,} files)"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _counts(snapshot: MetricsSnapshot, label: str, name: str) -> str:
    return ", ".join(f"{count:,} {value}" for value, count in snapshot.by(label, name).items())
