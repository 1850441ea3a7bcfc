"""`cdc-archiver shadow`: what we would have done, beside the archiver that is to be replaced."""

from __future__ import annotations

import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from cdc_archiver.commands import options as choose
from cdc_archiver.commands.context import open_context
from cdc_archiver.commands.output import Page, complain, print_json
from cdc_archiver.commands.shadow_comparison import Comparison, Observation, Shadow, Sums
from cdc_archiver.errors import ExitStatus, Misconfigured
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel

HELP: Final = """
Run beside the old archiver, and compare.

Says of each file where we would archive it, or why we would refuse it; and when the archiver that is to be replaced has archived it,
whether it did the same. Writes nothing.

It takes no lock, keeps no history and changes no row. --data-dir is the archive's directory as the rows call it; where that is another
one on this machine, --archive-here says which. Where the directory is here, the files' md5 sums are compared, too.

Examples:

  cdc-archiver shadow --data-dir /data/pysmurf --target pysmurf-monitor

  cdc-archiver shadow --data-dir /data/pysmurf --once --hash --json > comparison.jsonl

Exit status: 0 all agrees; 2 wrong usage; 3 something differs; 4 the database cannot be reached; 130 --once was interrupted.
"""

_INTERRUPTED: Final = 130
_STYLES: Final = {
    Comparison.WOULD_ARCHIVE: "cyan",
    Comparison.WOULD_REFUSE: "yellow",
    Comparison.AGREE: "green",
    Comparison.DIFFER: "bold red",
    Comparison.OLD_FAILED: "yellow",
}


def shadow(
    settings: Settings,
    source: choose.Source = None,
    target: choose.Target = None,
    once: Annotated[bool, typer.Option("--once", help="Compare what is in the table now, and end.")] = False,
    hash_files: Annotated[
        bool | None,
        typer.Option(
            "--hash/--no-hash", help="Read the archived files. Default: yes, where they are here; with --once no."
        ),
    ] = None,
    archive_here: Annotated[
        Path | None, typer.Option("--archive-here", metavar="PATH", help="Where data_dir is on this machine.")
    ] = None,
    as_json: choose.AsJson = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    if settings.data_dir is None:
        raise Misconfigured("there is no data_dir", "--data-dir names the archive's directory as the rows call it")
    here = _archive_here(archive_here or settings.data_dir, wanted=hash_files, once=once)
    page = Page()
    with open_context(settings) as desk:
        run = Shadow(
            desk,
            settings.data_dir,
            here,
            choose.scope(desk, source, target),
            lambda seen: _tell(page, seen, as_json),
            complain,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: run.stop())
        complete = True
        if once:
            complete = run.once()
        else:
            run.follow()
    _sum_up(page, run.sums, hashed=here is not None, as_json=as_json)
    if not complete:
        raise typer.Exit(_INTERRUPTED)
    return ExitStatus.INCOMPLETE if run.sums.differ else ExitStatus.DONE


def _archive_here(directory: Path, *, wanted: bool | None, once: bool) -> Path | None:
    there = os.path.isdir(directory)
    if wanted and not there:
        raise Misconfigured(f"{directory} is not there, so no file can be hashed", "--archive-here, or --no-hash")
    if wanted is None:
        wanted = there and not once
    return directory if wanted else None


def _tell(page: Page, seen: Observation, as_json: bool) -> None:
    if as_json:
        print_json(seen, line=True)
        return
    parts = [f"{seen.id}  {seen.path}"]
    if seen.comparison is Comparison.DIFFER:
        parts.append(f"  ours {seen.ours or 'none'}  theirs {seen.theirs}")
    elif seen.ours:
        parts.append(f" -> {seen.theirs or seen.ours}")
    if seen.detail:
        parts.append(f": {seen.detail}")
    page.line((f"{seen.comparison:14}", _STYLES[seen.comparison]), *parts)


def _sum_up(page: Page, sums: Sums, *, hashed: bool, as_json: bool) -> None:
    if as_json:
        print_json({"sums": {**asdict(sums), "hashed": sums.hashed if hashed else None}}, line=True)
        return
    page.line(
        (f"agree {sums.agree}, ", "bold"),
        (f"differ {sums.differ}", "bold red" if sums.differ else "bold"),
        (f", would refuse {sums.would_refuse}, old failed {sums.old_failed}, waiting {sums.waiting}", "bold"),
    )
    if sums.refused_and_archived:
        page.line(f"of those that differ, {sums.refused_and_archived} would be refused by us")
    page.line(
        f"md5 sums were compared of {sums.hashed} files" if hashed else "no file was read: paths alone were compared"
    )
