"""`cdc-archiver verify`: flags, state file, printing."""

from __future__ import annotations

import json
import os
import shlex
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from cdc_archiver.commands import options
from cdc_archiver.commands.archive_access import require_directory
from cdc_archiver.commands.context import CommandContext, open_context
from cdc_archiver.commands.output import (
    INTERRUPTED,
    Printer,
    print_json,
    print_to_stderr,
    progress_bar,
)
from cdc_archiver.commands.verify.requeue import Requeue
from cdc_archiver.commands.verify.unregistered import find_unregistered, require_rows_below
from cdc_archiver.commands.verify.verification import (
    FileVerdict,
    Problem,
    Verification,
    VerificationPlan,
    VerificationProgress,
    draw_sample,
)
from cdc_archiver.database.search import Criteria, RowState
from cdc_archiver.errors import ExitStatus, Misconfigured
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.text import format_file_count, format_size

HELP: Final = """
Compare archived files with their rows.

Reads the files again, and prints those that are missing, changed or unreadable. A file is elsewhere if its row's path is not below
--data-dir.

The running service goes on meanwhile, and nothing is changed. --requeue has missing and changed files archived again, if the history
knows their path on the source and the source still has them. A damaged file stays in its place, and the new one becomes name.1.
Unreadable files are never requeued.

Files of timecodes that were handed over are counted apart: they are neither read nor requeued, wherever they are now.

FILE is an id or an archived path; * and ? in quotes are wildcards. Without FILE, all files are read.

Examples:

  cdc-archiver verify --data-dir /data/pysmurf --since 1d

  cdc-archiver verify --requeue 4711

  cdc-archiver verify --sample 1% --metrics-file /var/lib/node_exporter/verify.prom

  cdc-archiver verify --jobs 4 --state /var/tmp/verify.state --requeue

  cdc-archiver verify --unregistered --json | jq 'select(.verdict == "unregistered").path'

--json prints one object a line for each file with a problem, then one with the sums.

Exit status: 0 no problem; 2 wrong usage; 3 some files have a problem; 4 the database or the archive's disk cannot be reached;
130 interrupted: with --state, the next run continues.
"""

_SAVE_INTERVAL: Final = 5.0
_STYLES: Final = {
    FileVerdict.MISSING: "bold red",
    FileVerdict.CHANGED: "bold red",
    FileVerdict.UNREADABLE: "red",
    FileVerdict.ELSEWHERE: "yellow",
}


@dataclass
class _StateFile:
    """The file from which an interrupted run continues.

    Attributes:
        path: None to keep no state.
        run_parameters: what must be the same in both runs.
    """

    path: Path | None
    run_parameters: dict[str, Any]
    plan: VerificationPlan
    saved_at: float = 0.0

    def save(self, *, now: bool = False, complete: bool = False) -> None:
        """Writes the plan's progress.

        Args:
            now: even if it was saved a moment ago.
        """
        if self.path is None or (not now and time.monotonic() - self.saved_at < _SAVE_INTERVAL):
            return
        self.saved_at = time.monotonic()
        criteria = self.plan.criteria
        values = {
            "kind": self.run_parameters,
            "complete": complete,
            "since": criteria.since.isoformat() if criteria.since else None,
            "until": criteria.until.isoformat() if criteria.until else None,
            "sample": self.plan.sample,
            "tally": asdict(self.plan.progress),
        }
        _write_atomically(self.path, json.dumps(values) + "\n")


def verify(
    settings: Settings,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE...", help="Ids or archived paths.", show_default=False)
    ] = None,
    since: options.Since = None,
    until: options.Until = None,
    source: options.Source = None,
    target: options.Target = None,
    sample: Annotated[
        str, typer.Option("--sample", metavar="N|N%", help="Read a random sample: a number of files, or a percentage.")
    ] = "",
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="Files to read at the same time.")] = 2,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="FILE", help="Save the progress here, and continue from it.")
    ] = None,
    requeue: Annotated[bool, typer.Option("--requeue", help="Have missing and changed files archived again.")] = False,
    no_row: Annotated[
        bool,
        typer.Option("--unregistered", help="Also find files of the archive without a row; reads all its directories."),
    ] = False,
    metrics_file: Annotated[
        Path | None,
        typer.Option("--metrics-file", metavar="FILE", help="Write the sums for node_exporter's textfile collector."),
    ] = None,
    as_json: options.AsJson = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    require_directory(settings.data_dir)
    with open_context(settings) as context:
        if no_row:
            assert settings.data_dir is not None
            require_rows_below(context, settings.data_dir)
        requeuer = Requeue(context) if requeue else None
        named = options.criteria_of(files or ())
        targets = () if files and not (source or target) else options.selected_targets(context, source, target)
        state_file = _open_state(context, state, since, until, replace(named, targets=targets), sample, as_json=as_json)
        if files and not state_file.plan.progress.total:
            raise Misconfigured(
                f"no archived file matches {' or '.join(files)}", f"cdc-archiver why {shlex.quote(files[0])}"
            )
        printer = Printer()
        with progress_bar("verify", state_file.plan.progress.total) as show:
            began, size_before = time.monotonic(), state_file.plan.progress.size

            def on_progress(progress: VerificationProgress) -> None:
                rate = (progress.size - size_before) / max(0.001, time.monotonic() - began)
                show(progress.done, total=max(progress.total, progress.done), extra=f"{format_size(rate)}/s")
                state_file.save()

            def on_problem(problem: Problem) -> None:
                _print_problem(printer, problem, as_json)

            run = Verification(context, state_file.plan, jobs, requeuer, on_problem, on_progress)
            signals = _stop_on_signals(run.stop)
            try:
                complete = run.run()
            finally:
                state_file.save(now=True)
        unregistered: list[Path] = []
        skipped: list[Path] = []

        def on_skipped(directory: Path, reason: str) -> None:
            skipped.append(directory)
            print_to_stderr(f"skipped directory {directory}: {reason}")

        if no_row and complete:
            assert settings.data_dir is not None
            with progress_bar("files without a row", None) as count:
                unregistered = find_unregistered(context, settings.data_dir, lambda: bool(signals), on_skipped, count)
            complete = not signals
            for path in unregistered:
                _print_unregistered(printer, path, as_json)
    if complete:
        state_file.save(now=True, complete=True)
    progress = run.progress
    if metrics_file:
        _write_atomically(metrics_file, _metrics(progress, len(unregistered) if no_row else None, complete=complete))
    _print_totals(printer, progress, unregistered if no_row else None, len(skipped), complete=complete, as_json=as_json)
    if not complete:
        advice = "run the same command to continue" if state else "add --state FILE to be able to continue a run"
        print_to_stderr(f"interrupted; {advice}")
        raise typer.Exit(INTERRUPTED)
    return ExitStatus.INCOMPLETE if progress.wrong or unregistered or skipped else ExitStatus.DONE


def _open_state(
    context: CommandContext,
    path: Path | None,
    since: str | None,
    until: str | None,
    named: Criteria,
    sample: str,
    *,
    as_json: bool,
) -> _StateFile:
    """The plan: of an interrupted run, if the state file has one, or a new one."""
    run_parameters = {
        "command": "verify",
        "database": f"{context.database.address}/{context.database.name}",
        "table": context.files.name,
        "data_dir": str(context.settings.data_dir),
        "targets": sorted(named.targets),
        "files": [*named.ids, *named.paths],
        "since": since,
        "until": until,
        "sample": sample,
    }
    before = _read_state(path, run_parameters) if path else None
    archived = frozenset({RowState.ARCHIVED})
    if before is not None:
        try:
            begin, end = (datetime.fromisoformat(before[key]) if before[key] else None for key in ("since", "until"))
            drawn = before["sample"]
            progress = VerificationProgress(**before["tally"])
        except (KeyError, TypeError, ValueError) as error:
            raise Misconfigured(
                f"the state file {path} is of another version", f"rm {shlex.quote(str(path))}  # to start again"
            ) from error
        criteria = replace(named, states=archived, since=begin, until=end)
        if not as_json:
            print_to_stderr(
                f"continuing after file {progress.after}: {format_file_count(progress.done)} of {progress.total} are done"
            )
        plan = VerificationPlan(criteria, tuple(drawn) if drawn is not None else None, progress)
        return _StateFile(path, run_parameters, plan)
    begin, end = options.times(since, until)
    criteria = replace(named, states=archived, since=begin, until=end)
    ids = draw_sample(context, criteria, sample)
    if ids is None:
        with context.database.connect() as connection:
            total = context.files.count(connection, *criteria.conditions(context.files))
    else:
        total = len(ids)
    plan = VerificationPlan(criteria, ids, VerificationProgress(total=total))
    state_file = _StateFile(path, run_parameters, plan)
    state_file.save(now=True)
    return state_file


def _read_state(path: Path, run_parameters: dict[str, Any]) -> dict[str, Any] | None:
    """The state of an interrupted run; None if there was no run, or it completed.

    Args:
        run_parameters: what must be the same in both runs.

    Raises:
        Misconfigured: the file cannot be read, or belongs to another run.
    """
    start_again = f"rm {shlex.quote(str(path))}  # to start again"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Misconfigured(f"the state file {path} cannot be read: {error}", start_again) from error
    if not isinstance(found, dict) or "kind" not in found:
        raise Misconfigured(f"{path} is not a state file of verify", "name another file in --state")
    if found.get("complete"):
        return None
    if found["kind"] != run_parameters:
        differs = [key for key in run_parameters if found["kind"].get(key) != run_parameters[key]]
        raise Misconfigured(
            f"the state file {path} is of a run with other values: {', '.join(differs) or 'command'}",
            f"use the flags of that run, or {start_again}",
        )
    return found


def _write_atomically(path: Path, text: str) -> None:
    """Writes a file; no reader ever sees a part of it.

    Raises:
        Misconfigured: it cannot be written.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise Misconfigured(f"{path} cannot be written: {error}", "name a file in a directory that you own") from error


def _stop_on_signals(stop: Callable[[], None]) -> list[int]:
    """Lets SIGTERM or SIGINT end the run in good order. The list holds the signal from then on."""
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        if received:  # the reader of a disk that hangs never ends
            os._exit(INTERRUPTED)
        received.append(number)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return received


def _print_problem(printer: Printer, problem: Problem, as_json: bool) -> None:
    if as_json:
        print_json(problem, line=True)
        return
    requeued = "; requeued" if problem.requeued else f"; not requeued: {problem.requeue_note}"
    printer.line(
        (f"{problem.verdict:11}", _STYLES[problem.verdict]),
        f"{problem.id}  {problem.path}: {problem.detail}",
        requeued if problem.requeued or problem.requeue_note else "",
    )


def _print_unregistered(printer: Printer, path: Path, as_json: bool) -> None:
    if as_json:
        print_json({"id": None, "path": path, "verdict": "unregistered"}, line=True)
    else:
        printer.line(("unregistered ", "yellow"), f"{path}: no row names it")


def _print_totals(
    printer: Printer,
    progress: VerificationProgress,
    unregistered: Sequence[Path] | None,
    skipped: int,
    *,
    complete: bool,
    as_json: bool,
) -> None:
    if as_json:
        count = None if unregistered is None else len(unregistered)
        sums = {**asdict(progress), "unregistered": count, "folders_not_seen": skipped, "complete": complete}
        print_json({"sums": sums}, line=True)
        return
    shown = [FileVerdict.MISSING, FileVerdict.CHANGED, FileVerdict.UNREADABLE]
    shown += [FileVerdict.ELSEWHERE] if progress.verdicts[FileVerdict.ELSEWHERE] else []
    kinds = ", ".join(f"{progress.verdicts[kind]} {kind}" for kind in shown)
    more = f", {len(unregistered)} unregistered" if unregistered is not None else ""
    more += f", {skipped} skipped directories" if skipped else ""
    requeued = f"; {progress.requeued} requeued" if progress.requeued else ""
    moved_on = f"; {format_file_count(progress.moved_on)} changed meanwhile" if progress.moved_on else ""
    handed_over = progress.verdicts[FileVerdict.HANDED_OVER]
    apart = f"; {format_file_count(handed_over)} handed over" if handed_over else ""
    right = progress.verdicts[FileVerdict.OK]
    printer.line(
        (f"verified {format_file_count(progress.done)}, {format_size(progress.size)}: {right} right, ", "bold"),
        (kinds + more, "bold red" if progress.wrong or unregistered or skipped else "bold"),
        requeued + moved_on + apart,
    )


def _metrics(progress: VerificationProgress, unregistered: int | None, *, complete: bool) -> str:
    registry = CollectorRegistry()
    files = Gauge("cdc_archiver_verify_files", "Files of the last verify, by result.", ["result"], registry=registry)
    for verdict in FileVerdict:
        files.labels(verdict.value).set(progress.verdicts[verdict])
    if unregistered is not None:
        files.labels("unregistered").set(unregistered)
    for name, text, value in (
        ("bytes", "Bytes that the last verify read.", progress.size),
        ("complete", "Whether the last verify completed.", complete),
        ("timestamp_seconds", "Time at which the last verify ended.", time.time()),
    ):
        Gauge(f"cdc_archiver_verify_{name}", text, registry=registry).set(value)
    return generate_latest(registry).decode()
