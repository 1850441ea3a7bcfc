"""`cdc-archiver verify`: is what was archived still what was registered?"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from cdc_archiver.commands import options as choose
from cdc_archiver.commands.archive_access import require_directory
from cdc_archiver.commands.context import CommandContext, open_context
from cdc_archiver.commands.output import Page, complain, counting, files_words, print_json, size_words
from cdc_archiver.commands.verify.progress_file import read_progress, write_whole
from cdc_archiver.commands.verify.requeue import Requeue
from cdc_archiver.commands.verify.unregistered import require_rows_below, unregistered
from cdc_archiver.commands.verify.verification import Problem, Tally, Verdict, Verification, VerificationPlan, draw
from cdc_archiver.database.search import Criteria, RowState
from cdc_archiver.errors import ExitStatus, Misconfigured
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel

HELP: Final = """
Read archived files again.

Compares them with their rows: missing, changed, unreadable; elsewhere are rows whose place is not below --data-dir.

Works beside the running service, and changes nothing; with --requeue it has missing and changed files archived anew, where the
history knows where they came from and their source still has them. A damaged file stays where it is, and the new one becomes name.1.
What cannot be read is left as it is.

FILE is an id or an archived path, which may have * and ? in quotes; with none, all are read.

Examples:

  cdc-archiver verify --data-dir /data/pysmurf --since 1d

  cdc-archiver verify --requeue 4711

  cdc-archiver verify --sample 1% --metrics-file /var/lib/node_exporter/verify.prom

  cdc-archiver verify --jobs 4 --state /var/tmp/verify.state --requeue

  cdc-archiver verify --unregistered --json | jq 'select(.verdict == "unregistered").path'

With --json one object a line for each file that is not right, and a last one with the sums.

Exit status: 0 all is right; 2 wrong usage; 3 something is not right; 4 the database, or the archive's disk, cannot be reached;
130 it was interrupted: with --state, the next run goes on.
"""

_SAVE_EVERY: Final = 5.0
_INTERRUPTED: Final = 130
_STYLES: Final = {
    Verdict.MISSING: "bold red",
    Verdict.CHANGED: "bold red",
    Verdict.UNREADABLE: "red",
    Verdict.ELSEWHERE: "yellow",
}


@dataclass
class _State:
    """The file that an interrupted run goes on from."""

    path: Path | None
    kind: dict[str, Any]
    plan: VerificationPlan
    saved_at: float = 0.0

    def save(self, *, now: bool = False, complete: bool = False) -> None:
        if self.path is None or (not now and time.monotonic() - self.saved_at < _SAVE_EVERY):
            return
        self.saved_at = time.monotonic()
        criteria = self.plan.criteria
        values = {
            "kind": self.kind,
            "complete": complete,
            "since": criteria.since.isoformat() if criteria.since else None,
            "until": criteria.until.isoformat() if criteria.until else None,
            "sample": self.plan.sample,
            "tally": asdict(self.plan.tally),
        }
        write_whole(self.path, json.dumps(values) + "\n")


def verify(
    settings: Settings,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE...", help="Ids or archived paths.", show_default=False)
    ] = None,
    since: choose.Since = None,
    until: choose.Until = None,
    source: choose.Source = None,
    target: choose.Target = None,
    sample: Annotated[
        str, typer.Option("--sample", metavar="N|N%", help="Some files, drawn by lot: a number, or a share.")
    ] = "",
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="Files that are read at a time.")] = 2,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="FILE", help="Keep here how far it is, and go on from there.")
    ] = None,
    requeue: Annotated[bool, typer.Option("--requeue", help="Have missing and changed files archived anew.")] = False,
    no_row: Annotated[
        bool,
        typer.Option("--unregistered", help="Look for files of the archive that no row names, too: walks all of it."),
    ] = False,
    metrics_file: Annotated[
        Path | None,
        typer.Option("--metrics-file", metavar="FILE", help="Write the sums for node_exporter's textfile collector."),
    ] = None,
    as_json: choose.AsJson = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    require_directory(settings.data_dir)
    with open_context(settings) as desk:
        if no_row:
            assert settings.data_dir is not None
            require_rows_below(desk, settings.data_dir)
        again = Requeue(desk) if requeue else None
        named = choose.files_named(files or ())
        targets = () if files and not (source or target) else choose.scope(desk, source, target)
        kept = _state(desk, state, since, until, replace(named, targets=targets), sample, as_json=as_json)
        if files and not kept.plan.tally.total:
            raise Misconfigured(f"no archived file is {' or '.join(files)}", "`cdc-archiver why FILE` says what it is")
        page = Page()
        with counting("verify", kept.plan.tally.total) as show:
            began, before = time.monotonic(), kept.plan.tally.size

            def on_progress(tally: Tally) -> None:
                rate = (tally.size - before) / max(0.001, time.monotonic() - began)
                show(tally.done, total=max(tally.total, tally.done), beside=f"{size_words(rate)}/s")
                kept.save()

            run = Verification(desk, kept.plan, jobs, again, lambda problem: _tell(page, problem, as_json), on_progress)
            stopped = _on_signals(run.stop)
            try:
                complete = run.run()
            finally:
                kept.save(now=True)
        strangers: list[Path] = []
        unseen: list[Path] = []

        def on_unseen(directory: Path, words: str) -> None:
            unseen.append(directory)
            complain(f"{directory} was not looked into: {words}")

        if no_row and complete:
            assert settings.data_dir is not None
            with counting("look for files without a row", None) as count:
                strangers = unregistered(desk, settings.data_dir, lambda: bool(stopped), on_unseen, count)
            complete = not stopped
            for path in strangers:
                _tell_stranger(page, path, as_json)
    if complete:
        kept.save(now=True, complete=True)
    tally = run.tally
    if metrics_file:
        write_whole(metrics_file, _metrics(tally, len(strangers) if no_row else None, complete=complete))
    _sum_up(page, tally, strangers if no_row else None, len(unseen), complete=complete, as_json=as_json)
    if not complete:
        complain(f"interrupted; {'the next run with this --state goes on' if state else 'with --state it could go on'}")
        raise typer.Exit(_INTERRUPTED)
    return ExitStatus.INCOMPLETE if tally.wrong or strangers or unseen else ExitStatus.DONE


def _state(
    desk: CommandContext,
    path: Path | None,
    since: str | None,
    until: str | None,
    named: Criteria,
    sample: str,
    *,
    as_json: bool,
) -> _State:
    kind = {
        "command": "verify",
        "database": f"{desk.database.address}/{desk.database.name}",
        "table": desk.files.name,
        "data_dir": str(desk.settings.data_dir),
        "targets": sorted(named.targets),
        "files": [*named.ids, *named.paths],
        "since": since,
        "until": until,
        "sample": sample,
    }
    before = read_progress(path, kind) if path else None
    archived = frozenset({RowState.ARCHIVED})
    if before is not None:
        try:
            begin, end = (datetime.fromisoformat(before[key]) if before[key] else None for key in ("since", "until"))
            drawn = before["sample"]
            tally = Tally(**before["tally"])
        except (KeyError, TypeError, ValueError) as error:
            raise Misconfigured(f"the state {path} is of another version", "remove it to begin anew") from error
        criteria = replace(named, states=archived, since=begin, until=end)
        if not as_json:
            complain(f"going on behind the file {tally.after}: {files_words(tally.done)} of {tally.total} are done")
        return _State(path, kind, VerificationPlan(criteria, tuple(drawn) if drawn is not None else None, tally))
    begin, end = choose.times(since, until)
    criteria = replace(named, states=archived, since=begin, until=end)
    ids = draw(desk, criteria, sample)
    if ids is None:
        with desk.database.connect() as connection:
            total = desk.files.count(connection, *criteria.conditions(desk.files))
    else:
        total = len(ids)
    kept = _State(path, kind, VerificationPlan(criteria, ids, Tally(total=total)))
    kept.save(now=True)
    return kept


def _on_signals(stop: Callable[[], None]) -> list[int]:
    """Has an interruption end the run in good order; the list has the signal then."""
    seen: list[int] = []

    def handle(number: int, _frame: object) -> None:
        if seen:  # a disk that hangs holds the reader for ever
            os._exit(_INTERRUPTED)
        seen.append(number)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return seen


def _tell(page: Page, problem: Problem, as_json: bool) -> None:
    if as_json:
        print_json(problem, line=True)
        return
    again = "; it is archived anew" if problem.requeued else f"; not archived anew: {problem.requeue_note}"
    page.line(
        (f"{problem.verdict:11}", _STYLES[problem.verdict]),
        f"{problem.id}  {problem.path}: {problem.detail}",
        again if problem.requeued or problem.requeue_note else "",
    )


def _tell_stranger(page: Page, path: Path, as_json: bool) -> None:
    if as_json:
        print_json({"id": None, "path": path, "verdict": "unregistered"}, line=True)
    else:
        page.line(("unregistered ", "yellow"), f"{path}: no row names it")


def _sum_up(
    page: Page, tally: Tally, strangers: list[Path] | None, unseen: int, *, complete: bool, as_json: bool
) -> None:
    if as_json:
        unnamed = None if strangers is None else len(strangers)
        sums = {**asdict(tally), "unregistered": unnamed, "folders_not_seen": unseen, "complete": complete}
        print_json({"sums": sums}, line=True)
        return
    shown = [Verdict.MISSING, Verdict.CHANGED, Verdict.UNREADABLE]
    shown += [Verdict.ELSEWHERE] if tally.verdicts[Verdict.ELSEWHERE] else []
    kinds = ", ".join(f"{tally.verdicts[kind]} {kind}" for kind in shown)
    more = f", {len(strangers)} unregistered" if strangers is not None else ""
    more += f", {unseen} directories not looked into" if unseen else ""
    again = f"; {tally.requeued} are archived anew" if tally.requeued else ""
    moved = f"; {files_words(tally.moved_on)} changed meanwhile" if tally.moved_on else ""
    page.line(
        (f"verified {files_words(tally.done)}, {size_words(tally.size)}: {tally.verdicts[Verdict.OK]} right, ", "bold"),
        (kinds + more, "bold red" if tally.wrong or strangers or unseen else "bold"),
        again + moved,
    )


def _metrics(tally: Tally, strangers: int | None, *, complete: bool) -> str:
    registry = CollectorRegistry()
    files = Gauge("cdc_archiver_verify_files", "Files of the last verify, by result.", ["result"], registry=registry)
    for verdict in Verdict:
        files.labels(verdict.value).set(tally.verdicts[verdict])
    if strangers is not None:
        files.labels("unregistered").set(strangers)
    for name, text, value in (
        ("bytes", "Bytes that the last verify read.", tally.size),
        ("complete", "Whether it came to its end.", complete),
        ("timestamp_seconds", "When it ended.", time.time()),
    ):
        Gauge(f"cdc_archiver_verify_{name}", text, registry=registry).set(value)
    return generate_latest(registry).decode()
