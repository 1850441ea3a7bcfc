"""`cdc-archiver shadow`: compares the old archiver's results with what this one would have done. Writes nothing."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from cdc_archiver.commands import options
from cdc_archiver.commands.context import CommandContext, open_context
from cdc_archiver.commands.hashing import Stopped, hash_file
from cdc_archiver.commands.output import INTERRUPTED, Printer, print_json, print_to_stderr
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.search import NOT_ARCHIVED, Criteria, RowState, state_of, walk
from cdc_archiver.errors import DatabaseUnavailable, ExitStatus, LayoutRefused, Misconfigured
from cdc_archiver.events.binlog_stream import BinlogStream
from cdc_archiver.events.interval_set import IntervalSet
from cdc_archiver.model import FileRecord
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.transfer import layout

HELP: Final = """
Run alongside the old archiver, and compare.

For each file the command prints where this archiver would archive it, or why it would refuse it. When the old archiver has archived the
file, it prints whether both agree.

It takes no lock, keeps no history and changes no row. --data-dir is the archive's directory as the rows name it; if this machine has it
at another path, add --archive-here. If the directory exists, the files' md5 sums are compared, too.

Examples:

  cdc-archiver shadow --data-dir /data/pysmurf --target pysmurf-monitor

  cdc-archiver shadow --data-dir /data/pysmurf --once --hash --json > comparison.jsonl

Exit status: 0 all agree; 2 wrong usage; 3 something differs; 4 the database cannot be reached; 130 --once was interrupted.
"""

_TICK: Final = 0.2
_PAGE: Final = 500
_SETTLE: Final = 1.5
"""Seconds after which a row that was committed before the stream began is certainly visible."""


class Comparison(StrEnum):
    """The result for a file. The values are values of ``--json``."""

    WOULD_ARCHIVE = "would archive"
    WOULD_REFUSE = "would refuse"
    """This archiver would refuse it, and the old one has not archived it (yet)."""
    AGREE = "agree"
    DIFFER = "differ"
    OLD_FAILED = "old failed"


_STYLES: Final = {
    Comparison.WOULD_ARCHIVE: "cyan",
    Comparison.WOULD_REFUSE: "yellow",
    Comparison.AGREE: "green",
    Comparison.DIFFER: "bold red",
    Comparison.OLD_FAILED: "yellow",
}


@dataclass(frozen=True, slots=True)
class Observation:
    """One result for one file. Field names are keys of ``--json``.

    Attributes:
        ours: this archiver's archived path; empty if it would refuse the file.
        theirs: the old archiver's; None if it has not archived the file.
    """

    id: int
    comparison: Comparison
    path: str
    ours: str
    theirs: str | None
    detail: str = ""


@dataclass(slots=True)
class ShadowTotals:
    """Numbers of files. Field names are keys of ``--json``.

    Attributes:
        waiting: the old archiver has not decided yet.
        refused_and_archived: of those that differ, the ones that this archiver would have refused.
    """

    agree: int = 0
    differ: int = 0
    would_refuse: int = 0
    old_failed: int = 0
    waiting: int = 0
    refused_and_archived: int = 0
    hashed: int = 0


@dataclass(slots=True)
class _AwaitedFile:
    """A file that the old archiver has not archived yet: its row before that change, and what was reported of it."""

    record: FileRecord
    reported: set[Comparison] = field(default_factory=set)


def shadow(
    settings: Settings,
    source: options.Source = None,
    target: options.Target = None,
    once: Annotated[bool, typer.Option("--once", help="Compare the table's present content, then exit.")] = False,
    hash_files: Annotated[
        bool | None,
        typer.Option(
            "--hash/--no-hash", help="Read the archived files. Default: yes if they exist here; no with --once."
        ),
    ] = None,
    archive_here: Annotated[
        Path | None, typer.Option("--archive-here", metavar="PATH", help="The path of data_dir on this machine.")
    ] = None,
    as_json: options.AsJson = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    if settings.data_dir is None:
        raise Misconfigured("data_dir is not set", "add --data-dir with the archive's directory as the rows name it")
    here = _archive_here(archive_here or settings.data_dir, requested=hash_files, once=once)
    printer = Printer()
    with open_context(settings) as context:
        run = ShadowRun(
            context,
            settings.data_dir,
            here,
            options.selected_targets(context, source, target),
            lambda observation: _print_observation(printer, observation, as_json),
            print_to_stderr,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: run.stop())
        complete = True
        if once:
            complete = run.once()
        else:
            run.follow()
    _print_totals(printer, run.totals, hashed=here is not None, as_json=as_json)
    if not complete:
        raise typer.Exit(INTERRUPTED)
    return ExitStatus.INCOMPLETE if run.totals.differ else ExitStatus.DONE


def _archive_here(directory: Path, *, requested: bool | None, once: bool) -> Path | None:
    """The directory to read files from; None to read none."""
    exists = os.path.isdir(directory)
    if requested and not exists:
        raise Misconfigured(
            f"no file can be hashed: {directory} does not exist", "add --archive-here PATH, or --no-hash"
        )
    if requested is None:
        requested = exists and not once
    return directory if requested else None


def _print_observation(printer: Printer, observation: Observation, as_json: bool) -> None:
    if as_json:
        print_json(observation, line=True)
        return
    parts = [f"{observation.id}  {observation.path}"]
    if observation.comparison is Comparison.DIFFER:
        parts.append(f"  ours {observation.ours or 'none'}  theirs {observation.theirs}")
    elif observation.ours:
        parts.append(f" -> {observation.theirs or observation.ours}")
    if observation.detail:
        parts.append(f": {observation.detail}")
    printer.line((f"{observation.comparison:14}", _STYLES[observation.comparison]), *parts)


def _print_totals(printer: Printer, totals: ShadowTotals, *, hashed: bool, as_json: bool) -> None:
    if as_json:
        print_json({"sums": {**asdict(totals), "hashed": totals.hashed if hashed else None}}, line=True)
        return
    printer.line(
        (f"agree {totals.agree}, ", "bold"),
        (f"differ {totals.differ}", "bold red" if totals.differ else "bold"),
        (f", would refuse {totals.would_refuse}, old failed {totals.old_failed}, waiting {totals.waiting}", "bold"),
    )
    if totals.refused_and_archived:
        printer.line(f"of those that differ, this archiver would refuse {totals.refused_and_archived}")
    printer.line(
        f"compared the md5 sums of {totals.hashed} files" if hashed else "read no file: compared only the paths"
    )


class ShadowRun:
    """One run.

    Args:
        data_dir: the archive's directory, as rows name it.
        archive_here: the same directory on this machine; None to read no files.
        targets: only files of these; empty for all.
        on_observation: called with each result.
        on_message: called with a sentence when the way of following the table changes.
    """

    def __init__(
        self,
        context: CommandContext,
        data_dir: Path,
        archive_here: Path | None,
        targets: Sequence[str],
        on_observation: Callable[[Observation], None],
        on_message: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._context = context
        self._data_dir = str(data_dir).rstrip("/")
        self._archive_here = archive_here
        self._targets = tuple(targets)
        self._folded = {target.casefold().rstrip() for target in targets}
        self._on_observation = on_observation
        self._on_message = on_message
        self._stop = threading.Event()
        self._ids: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._sweep_wanted = threading.Event()
        self._awaited: dict[int, _AwaitedFile] = {}
        self._compared = IntervalSet()
        self.totals = ShadowTotals()

    def stop(self) -> None:
        """Requests the end; may be called from a signal handler."""
        self._stop.set()

    def once(self) -> bool:
        """Compares the table's present content.

        Returns:
            Whether all of it; False after a stop.
        """
        context = self._context
        rows = walk(context.database, context.files, Criteria(targets=self._targets), newest_first=False)
        with contextlib.suppress(Stopped):
            for row in rows:
                if self._stop.is_set():
                    break
                self._observe(row)
        self._count_waiting()
        return not self._stop.is_set()

    def follow(self) -> None:
        """Compares all changes from now on, until :meth:`stop`."""
        with self._context.database.connect() as connection:
            newest = self._context.files.max_id(connection)
        # With a random server_id: a configured one belongs to the service.
        stream = BinlogStream(self._context.database, self._context.files.name, self, Metrics())
        stream.start()
        try:
            with contextlib.suppress(Stopped):
                self._follow(newest)
        finally:
            stream.stop()
            stream.join(5.0)
            self._count_waiting()

    def _follow(self, newest: int) -> None:
        sweep_at = second_look_at = 0.0
        while not self._stop.is_set():
            now = time.monotonic()
            if self._sweep_wanted.is_set():
                self._sweep_wanted.clear()
                sweep_at, second_look_at = now, now + _SETTLE
            try:
                if now >= sweep_at or (second_look_at and now >= second_look_at):
                    second_look_at = 0.0 if now >= second_look_at else second_look_at
                    newest = self._sweep(newest)
                    sweep_at = now + self._context.settings.poll_interval
                self._take_ids()
            except DatabaseUnavailable as error:
                self._on_message(str(error))
                sweep_at = now + self._context.settings.poll_interval
                self._stop.wait(1.0)

    def _take_ids(self) -> None:
        """Reads the rows whose ids the stream has delivered."""
        ids: list[int] = []
        try:
            ids.append(self._ids.get(timeout=_TICK))
            while len(ids) < _PAGE:
                ids.append(self._ids.get_nowait())
        except queue.Empty:
            pass
        if ids:
            with self._context.database.connect() as connection:
                rows = self._context.files.load(connection, ids)
            for id_ in dict.fromkeys(ids):
                if id_ in rows and self._is_selected(rows[id_].record):
                    self._observe(rows[id_])

    def _sweep(self, newest: int) -> int:
        """Reads new rows, pending rows and awaited ones; returns the highest id."""
        context = self._context
        new = Criteria(targets=self._targets)
        for row in walk(context.database, context.files, new, newest_first=False, after=newest):
            newest = row.record.id
            self._observe(row)
        pending = Criteria(targets=self._targets, states=NOT_ARCHIVED)
        for row in walk(context.database, context.files, pending, newest_first=False):
            if self._stop.is_set():
                return newest
            self._observe(row)
        ids = list(self._awaited)
        for start in range(0, len(ids), _PAGE):
            with context.database.connect() as connection:
                rows = context.files.load(connection, ids[start : start + _PAGE])
            for row in rows.values():
                self._observe(row)
        return newest

    def _is_selected(self, record: FileRecord) -> bool:
        return not self._folded or record.instance_id.casefold().rstrip() in self._folded

    def _observe(self, row: Row) -> None:
        id_ = row.record.id
        awaited = self._awaited.get(id_)
        if row.copied:
            if awaited is not None or id_ not in self._compared:
                self._compare(row, awaited.record if awaited else row.record)
            self._awaited.pop(id_, None)  # not before: a stop while the file is read leaves it uncompared
            return
        if awaited is None or _identity(awaited.record) != _identity(row.record):
            awaited = self._awaited[id_] = _AwaitedFile(row.record)
        ours, refusal = self._our_path(row.record)
        self._report_once(awaited, Comparison.WOULD_REFUSE if refusal else Comparison.WOULD_ARCHIVE, ours, refusal)
        if state_of(row, self._context.settings.max_attempts) in (RowState.QUARANTINED, RowState.REFUSED):
            detail = f"given up after {row.record.attempts} attempts"
            self._report_once(awaited, Comparison.OLD_FAILED, ours, detail)

    def _report_once(self, awaited: _AwaitedFile, comparison: Comparison, ours: str, detail: str) -> None:
        if comparison in awaited.reported:
            return
        awaited.reported.add(comparison)
        if comparison is Comparison.OLD_FAILED:
            self.totals.old_failed += 1
        elif comparison is Comparison.WOULD_REFUSE:
            self.totals.would_refuse += 1
        self._on_observation(Observation(awaited.record.id, comparison, awaited.record.path, ours, None, detail))

    def _compare(self, row: Row, before: FileRecord) -> None:
        theirs = row.record.path
        ours, refusal = self._our_path(before)
        detail = refusal and f"this archiver would refuse it: {refusal}"
        if not detail and not _is_same_place(theirs, ours):
            detail = "another path"
        if not detail:
            detail = self._content_difference(row.record)
        self._compared.add(row.record.id)
        if refusal:
            self.totals.refused_and_archived += 1
        if detail:
            self.totals.differ += 1
        else:
            self.totals.agree += 1
        comparison = Comparison.DIFFER if detail else Comparison.AGREE
        self._on_observation(Observation(row.record.id, comparison, before.path, ours, theirs, detail))

    def _our_path(self, record: FileRecord) -> tuple[str, str]:
        """This archiver's path, or the reason why it would refuse the file."""
        try:
            ours = f"{self._data_dir}/{layout.archived_path(record, self._context.settings.oldest_timestamp)}"
            layout.require_fit(ours, self._context.files.path_width)
        except LayoutRefused as refusal:
            return "", refusal.message
        if len(record.md5sum) != 16:
            return "", "the row has no md5sum of 16 bytes"
        return ours, ""

    def _content_difference(self, record: FileRecord) -> str:
        """The problem with the old archiver's file; empty if there is none, or if files are not read.

        Raises:
            Stopped: a stop was requested meanwhile.
        """
        if self._archive_here is None:
            return ""
        place = self._archive_here / record.path.removeprefix(self._data_dir).lstrip("/")
        try:
            md5, _ = hash_file(place, self._stop)
        except (OSError, ValueError) as error:
            return f"its file cannot be read: {getattr(error, 'strerror', None) or error}"
        self.totals.hashed += 1
        if md5 == record.md5sum:
            return ""
        return f"its file has the md5 {md5.hex()}, its row {record.md5sum.hex()}"

    def _count_waiting(self) -> None:
        decided = (Comparison.OLD_FAILED, Comparison.WOULD_REFUSE)
        self.totals.waiting = sum(not awaited.reported.intersection(decided) for awaited in self._awaited.values())

    # The sink of the binlog stream: these run in the stream's thread, and none blocks.

    def on_ids(self, ids: Sequence[int]) -> None:
        for id_ in ids:
            self._ids.put(id_)

    def on_anchor(self) -> None:
        self._on_message("following the binary log")
        self._sweep_wanted.set()

    def on_gap(self, why: str) -> None:
        self._sweep_wanted.set()

    def on_lost(self, reason: str, detail: str) -> None:
        self._on_message(f"the stream ended ({reason}) and is reopened")
        self._sweep_wanted.set()

    def on_unavailable(self, why: str) -> None:
        self._on_message(f"polling the table, because there is no stream: {why}")
        self._sweep_wanted.set()


def _is_same_place(theirs: str, ours: str) -> bool:
    """Whether two paths differ at most in the numeric suffix of a taken name, which depends on who came first."""
    return re.fullmatch(re.escape(ours) + r"(\.[1-9]\d*)?", theirs) is not None


def _identity(record: FileRecord) -> tuple[object, ...]:
    return (
        record.path,
        record.md5sum,
        record.timestamp,
        record.action,
        record.action_timestamp,
        record.pub_id,
        record.plot,
    )
