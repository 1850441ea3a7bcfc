"""`cdc-archiver register`: files by hand."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from cdc_archiver.commands import options as choose
from cdc_archiver.commands.context import CommandContext, open_context
from cdc_archiver.commands.output import Page, complain, files_words, print_json
from cdc_archiver.commands.register_files import Fate, Given, Registered, register
from cdc_archiver.errors import ExitStatus, Misconfigured
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.timespec import parse_time

HELP: Final = """
Register files by hand.

Files, or all files below a directory, as the monitor would have done it: their paths, md5 sums and times are theirs, the rest is said
with flags.

It runs on the machine that has the files, since it reads them, and needs the right to INSERT into the table. What is registered or
archived already is left alone: archived files are recognised by the history, or by an archived row of the target with the same name
and md5.

Examples:

  cdc-archiver register /data/smurf_data/20260515 --action take_iv --pub-id crate1slot2 --target pysmurf-monitor --dry-run

  cdc-archiver register a.npy b.png --action take_iv --pub-id crate1slot2 --timestamp 2026-05-15T04:30

Exit status: 0 done; 2 wrong usage; 3 some files could not be registered; 4 the database cannot be reached.
"""

_STYLES: Final = {Fate.REGISTERED: "green", Fate.KNOWN: "dim", Fate.UNUSABLE: "bold red"}


def register_files(
    settings: Settings,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files, and directories with files.")],
    action: Annotated[str, typer.Option("--action", metavar="NAME", help="The action that they belong to.")],
    pub_id: Annotated[str, typer.Option("--pub-id", metavar="NAME", help="Who published them.")],
    target: Annotated[
        str, typer.Option("--target", metavar="NAME", help="Their instance_id. Default: the one that is configured.")
    ] = "",
    timestamp: Annotated[
        str,
        typer.Option("--timestamp", metavar="TIME", help="When they were registered. Default: when each was changed."),
    ] = "",
    action_timestamp: Annotated[
        str,
        typer.Option("--action-timestamp", metavar="TIME", help="When the action was. Default: when each was changed."),
    ] = "",
    plot: Annotated[
        bool | None, typer.Option("--plot/--no-plot", help="They are plots. Default: those whose name ends in .png.")
    ] = None,
    dry_run: choose.DryRun = False,
    as_json: choose.AsJson = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    at, of_action = _time(timestamp), _time(action_timestamp)
    fates: Counter[Fate] = Counter()
    page = Page()
    with open_context(settings) as desk:
        given = Given(
            target=target or _only_target(desk),
            action=action,
            pub_id=pub_id,
            timestamp=at,
            action_timestamp=int(of_action.timestamp()) if of_action else None,
            plot=plot,
        )
        if desk.history is None:
            complain(f"what is archived already is not recognised: {desk.no_history}")
        for done in register(desk, paths, given, dry_run=dry_run):
            fates[done.fate] += 1
            if as_json:
                print_json(done, line=True)
            else:
                _tell(page, done, dry_run=dry_run)
    if not as_json:
        verb = "would register" if dry_run else "registered"
        page.line(
            (f"{verb} {files_words(fates[Fate.REGISTERED])}", "bold"),
            f", {fates[Fate.KNOWN]} known already, {fates[Fate.UNUSABLE]} unusable",
        )
    return ExitStatus.INCOMPLETE if fates[Fate.UNUSABLE] else ExitStatus.DONE


def _only_target(desk: CommandContext) -> str:
    targets = desk.settings.targets
    if len(targets) != 1:
        raise Misconfigured(
            "whose files are these?", f"--target, one of {', '.join(targets)}" if targets else "--target NAME"
        )
    return targets[0]


def _time(text: str) -> datetime | None:
    """Seconds since the epoch, or as everywhere."""
    if not text:
        return None
    if text.isascii() and text.isdigit():
        try:
            return datetime.fromtimestamp(int(text), UTC)
        except (OverflowError, ValueError, OSError):
            raise Misconfigured(f"{text} is no time", "seconds since 1970, or 2026-05-15T04:30") from None
    return parse_time(text, datetime.now(UTC))


def _tell(page: Page, done: Registered, *, dry_run: bool) -> None:
    word = "would" if dry_run and done.fate is Fate.REGISTERED else done.fate.value
    more = {
        Fate.REGISTERED: f" -> {done.place}",
        Fate.KNOWN: f": {done.note}" if done.note else "",
        Fate.UNUSABLE: f": {done.note}",
    }[done.fate]
    page.line((f"{word:11}", _STYLES[done.fate]), f"{done.path}{more}")
