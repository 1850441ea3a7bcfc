"""How results are shown: colours and columns on a terminal, plain text in a pipe, JSON for scripts; a name never does harm."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, Final, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from cdc_archiver.database.search import RowState
from cdc_archiver.errors import Misconfigured
from cdc_archiver.text import escape_unprintable, to_jsonable

_MEASURED: Final = 200
_WIDEST: Final = 60
_INTERRUPTED: Final = 130

STATE_STYLES: Final = {
    RowState.PENDING: "cyan",
    RowState.QUARANTINED: "bold red",
    RowState.REFUSED: "red",
    RowState.IGNORED: "dim",
    RowState.ARCHIVED: "green",
}


def size_words(size: float) -> str:
    """A size for a person, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def files_words(count: int) -> str:
    """So many files."""
    return "1 file" if count == 1 else f"{count} files"


def print_json(value: Any, *, line: bool = False) -> None:
    """A result for a script, in ASCII.

    Args:
        line: on one line, as one of many.
    """
    print(json.dumps(to_jsonable(value), indent=None if line else 2), flush=line)


class Page:
    """Standard output. Nothing that is printed is markup; all of it is escaped, but for our own line ends."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False)

    @property
    def is_terminal(self) -> bool:
        """Whether a person is looking."""
        return self.console.is_terminal

    def line(self, *parts: str | tuple[str, str]) -> None:
        """One line. A part may have a style, for a terminal."""
        text = Text()
        for part in parts:
            words, style = (part, "") if isinstance(part, str) else part
            text.append(escape_unprintable(words), style or None)
        self.console.print(text, soft_wrap=True)

    def facts(self, pairs: Iterable[tuple[str, str | tuple[str, str]]]) -> None:
        """Names and values, one a line."""
        listed = list(pairs)
        width = max((len(name) for name, _ in listed), default=0)
        for name, value in listed:
            self.line((f"{name:{width}}  ", "dim"), value)

    def table(self, titles: Sequence[str], rows: Iterable[Sequence[str | tuple[str, str]]]) -> int:
        """Rows as they come: in columns under titles on a terminal; in a pipe without titles, fields between tabs.

        Returns:
            How many.
        """
        return self._columns(titles, iter(rows)) if self.is_terminal else self._fields(rows)

    def _fields(self, rows: Iterable[Sequence[str | tuple[str, str]]]) -> int:
        count = 0
        for row in rows:
            print("\t".join(escape_unprintable(_words(cell)) for cell in row))
            count += 1
        return count

    def _columns(self, titles: Sequence[str], rows: Iterator[Sequence[str | tuple[str, str]]]) -> int:
        # What is wide further down is not cut, and stands out by a little: it was not worth to wait for.
        head = list(islice(rows, _MEASURED))
        widths = [
            min(_WIDEST, max(len(escape_unprintable(_words(cell))) for cell in column))
            for column in zip(titles, *head, strict=True)
        ]
        if not head:
            return 0
        count = 0
        for row in chain([[(title, "bold") for title in titles]], head, rows):
            text = Text()
            for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
                words, style = (cell, "") if isinstance(cell, str) else cell
                last = number == len(widths) - 1
                text.append(
                    escape_unprintable(words) if last else f"{escape_unprintable(words):{width}}  ", style or None
                )
            self.console.print(text, soft_wrap=True)
            count += 1
        return count - 1


class Show(Protocol):
    """Takes how far it is."""

    def __call__(self, done: int, *, total: int | None = None, beside: str = "") -> None:
        """Draws it.

        Args:
            done: files.
            total: of how many, where that has changed.
            beside: what is said besides: a size, a rate.
        """


@contextmanager
def counting(what: str, total: int | None) -> Iterator[Show]:
    """A bar for what takes a while, on a terminal.

    Args:
        total: files; None where it is not known.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[beside]}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=total, beside="")

        def show(done: int, *, total: int | None = None, beside: str = "") -> None:
            bar.update(task, completed=done, total=total, beside=beside)

        yield show


def complain(words: str) -> None:
    """A line on standard error."""
    print(f"cdc-archiver: {escape_unprintable(words)}", file=sys.stderr)


def confirmed(question: str, *, yes: bool) -> bool:
    """Asks on a terminal.

    Args:
        yes: it was answered on the command line.

    Raises:
        Misconfigured: nobody can be asked.
    """
    if yes:
        return True
    if not (sys.stdin is not None and sys.stdin.isatty()):
        raise Misconfigured("nobody can be asked here, so nothing was changed", "--yes does it, --dry-run only says it")
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:  # Ctrl-C, Ctrl-D
        complain("nothing was changed")
        raise typer.Exit(_INTERRUPTED) from None


def _words(cell: str | tuple[str, str]) -> str:
    return cell if isinstance(cell, str) else cell[0]
