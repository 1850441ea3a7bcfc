"""How the demo speaks: a progress bar on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from cdc_archiver.demo.proof import Check

_LINE_EVERY: Final = 2.0
"""Seconds between two lines of progress in a pipe."""
_FAULTS_SHOWN: Final = 10


class Teller:
    """Says what happens.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._marks = ("✓", "✗") if console.encoding.lower().startswith("utf") else ("ok", "NOT RIGHT:")

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """One line of what happens, with the time since the start."""
        self._print(Text(f"{self.seconds:5.1f} s  ", "dim").append(text, "default"))

    def head(self, text: str) -> None:
        """The headline of a part of the report."""
        self._print(Text(f"\n{text}", "bold"))

    def figure(self, name: str, text: str) -> None:
        """One line of the report."""
        self._print(Text(f"  {name:16}  {text}"))

    def check(self, check: Check) -> None:
        """One line of the proof, and where it does not hold, its faults."""
        right, wrong = self._marks
        mark = Text(f"  {right} ", "green") if check.right else Text(f"  {wrong} ", "bold red")
        self._print(mark.append(check.text, "default"))
        for fault in check.faults[:_FAULTS_SHOWN]:
            self.fault(fault)
        if len(check.faults) > _FAULTS_SHOWN:
            self.fault(f"and {len(check.faults) - _FAULTS_SHOWN:,} more")

    def fault(self, text: str) -> None:
        """What is not right; its further lines, a log's, are kept."""
        self._print(Text("\n".join(f"      {line}" for line in text.splitlines()), "red"))

    def verdict(self, text: str, *, right: bool) -> None:
        """The last line."""
        self._print(Text(f"\n{text}", "bold green" if right else "bold red"))

    @contextmanager
    def progress(self, what: str, files: int, size: int) -> Iterator[Callable[[int, int], None]]:
        """Shows how far something is.

        Args:
            files: how many there are.
            size: bytes of them all.

        Yields:
            to be called, however often, with the files and bytes that are done.
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
