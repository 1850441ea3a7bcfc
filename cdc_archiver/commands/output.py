"""Prints results: colours and columns on a terminal, plain text in a pipe, JSON for scripts. All values are escaped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, Final, Protocol, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from cdc_archiver.database.search import RowState
from cdc_archiver.errors import Misconfigured
from cdc_archiver.text import escape_unprintable, to_jsonable

_MEASURED_ROWS: Final = 200
_MAX_WIDTH: Final = 60
INTERRUPTED: Final = 130
"""Exit status of a process that Ctrl-C ended."""

Cell: TypeAlias = str | tuple[str, str]
"""A text, or a text with its style."""

STATE_STYLES: Final = {
    RowState.PENDING: "cyan",
    RowState.QUARANTINED: "bold red",
    RowState.REFUSED: "red",
    RowState.IGNORED: "dim",
    RowState.ARCHIVED: "green",
}


def print_json(value: Any, *, line: bool = False) -> None:
    """Prints a result for a script, in ASCII.

    Args:
        line: on one line, as one of many.
    """
    print(json.dumps(to_jsonable(value), indent=None if line else 2), flush=line)


def print_to_stderr(message: str) -> None:
    """Prints a line on standard error."""
    print(f"cdc-archiver: {escape_unprintable(message)}", file=sys.stderr)


class Printer:
    """Prints on standard output. No value is taken for markup, and each is escaped."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False)

    @property
    def is_terminal(self) -> bool:
        """Whether standard output is a terminal."""
        return self.console.is_terminal

    def line(self, *parts: Cell) -> None:
        """Prints one line. Styles show on a terminal only."""
        self.console.print(styled_text(parts), soft_wrap=True)

    def facts(self, pairs: Iterable[tuple[str, Cell]]) -> None:
        """Prints names and values, one pair a line."""
        listed = list(pairs)
        width = max((len(name) for name, _ in listed), default=0)
        for name, value in listed:
            self.line((f"{name:{width}}  ", "dim"), value)

    def table(self, titles: Sequence[str], rows: Iterable[Sequence[Cell]]) -> int:
        """Prints rows as they come: on a terminal in columns with titles; in a pipe, fields between tabs.

        Returns:
            The number of rows.
        """
        return self._columns(titles, iter(rows)) if self.is_terminal else self._fields(rows)

    def _fields(self, rows: Iterable[Sequence[Cell]]) -> int:
        count = 0
        for row in rows:
            print("\t".join(escape_unprintable(_text_and_style(cell)[0]) for cell in row))
            count += 1
        return count

    def _columns(self, titles: Sequence[str], rows: Iterator[Sequence[Cell]]) -> int:
        # The first rows decide the widths, so that printing starts at once; a wider value further down is not cut.
        head = list(islice(rows, _MEASURED_ROWS))
        widths = [
            min(_MAX_WIDTH, max(len(escape_unprintable(_text_and_style(cell)[0])) for cell in column))
            for column in zip(titles, *head, strict=True)
        ]
        if not head:
            return 0
        count = 0
        for row in chain([[(title, "bold") for title in titles]], head, rows):
            line = Text()
            for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
                text, style = _text_and_style(cell)
                last = number == len(widths) - 1
                line.append(
                    escape_unprintable(text) if last else f"{escape_unprintable(text):{width}}  ", style or None
                )
            self.console.print(line, soft_wrap=True)
            count += 1
        return count - 1


def styled_text(parts: Iterable[Cell], **options: Any) -> Text:
    """A line of escaped parts.

    Args:
        options: of :class:`rich.text.Text`.
    """
    line = Text(**options)
    for part in parts:
        text, style = _text_and_style(part)
        line.append(escape_unprintable(text), style or None)
    return line


class ShowProgress(Protocol):
    """Draws a progress bar's new state."""

    def __call__(self, done: int, *, total: int | None = None, extra: str = "") -> None:
        """Draws it.

        Args:
            done: files.
            total: files, if their number has changed.
            extra: a further value: a size, a rate.
        """


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[ShowProgress]:
    """A bar on a terminal for a long task.

    Args:
        total: files; None if it is not known.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[extra]}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(description, total=total, extra="")

        def show(done: int, *, total: int | None = None, extra: str = "") -> None:
            bar.update(task, completed=done, total=total, extra=extra)

        yield show


def confirm(question: str, *, yes: bool) -> bool:
    """Asks for a confirmation on the terminal.

    Args:
        yes: it was given on the command line.

    Raises:
        Misconfigured: standard input is not a terminal.
    """
    if yes:
        return True
    if not (sys.stdin is not None and sys.stdin.isatty()):
        raise Misconfigured(
            "nothing was changed: standard input is not a terminal, so no confirmation is possible",
            "add --yes to change them, --dry-run to only list them",
        )
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:  # Ctrl-C, Ctrl-D
        print_to_stderr("nothing was changed")
        raise typer.Exit(INTERRUPTED) from None


def _text_and_style(cell: Cell) -> tuple[str, str]:
    return (cell, "") if isinstance(cell, str) else cell
