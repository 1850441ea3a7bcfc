"""`cdc-archiver retry` and `cdc-archiver ignore`: said first, asked, done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Final

import typer

from cdc_archiver.commands import ignore_selection as ignoring
from cdc_archiver.commands import options as choose
from cdc_archiver.commands import retry_selection as retrying
from cdc_archiver.commands.context import CommandContext, open_context
from cdc_archiver.commands.output import Page, complain, confirmed, counting, files_words, print_json
from cdc_archiver.commands.selection import ChangePlan, Selection, plan
from cdc_archiver.database.search import Criteria, RowState
from cdc_archiver.errors import ExitStatus, Misconfigured
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel

RETRY_HELP: Final = """
Give files their tries back.

failed_copy_attempts is 0 again, and the running service takes them up at once.

Says first what it would do, and asks. Archived and ignored files are never touched.

Examples:

  cdc-archiver retry --id 4711

  cdc-archiver retry --all-quarantined --source satp1

  cdc-archiver retry --reason missing --yes

  cdc-archiver retry --path '/data/smurf_data/20260515/*' --dry-run

Exit status: 0 done, or nothing to do; 2 wrong usage; 3 some could not be changed, or are not there; 4 the database cannot be
reached.
"""

IGNORE_HELP: Final = """
Say of files that they will never come.

They are tried no more, and are no alarm. --undo takes it back.

FILE is an id or a path, which may have * and ? in quotes; * matches / as well. Who and why is kept in the history.

Examples:

  cdc-archiver ignore 4711 4712 --reason 'disk of crate 3 died'

  cdc-archiver ignore '/data/smurf_data/20200515/*' --reason 'lost' --yes

  cdc-archiver ignore --undo 4711

Exit status: 0 done, or nothing to do; 2 wrong usage; 3 some could not be changed, or are not there; 4 the database cannot be
reached.
"""

_WHY_LEFT: Final = {
    RowState.ARCHIVED: "archived already",
    RowState.PENDING: "waiting already",
    RowState.QUARANTINED: "not ignored",
    RowState.REFUSED: "refused: name them one by one, when their rows are right",
    RowState.IGNORED: "ignored: `cdc-archiver ignore --undo` first",
}


def retry(
    settings: Settings,
    ids: Annotated[list[int] | None, typer.Option("--id", metavar="ID", help="This file; may be repeated.")] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(
            "--path", metavar="PATH", help="This path, or with * and ? these (* matches / as well); may be repeated."
        ),
    ] = None,
    reason: choose.Reasons = None,
    source: choose.Source = None,
    target: choose.Target = None,
    all_quarantined: Annotated[
        bool, typer.Option("--all-quarantined", help="Quarantined files alone, and all of them.")
    ] = False,
    yes: choose.Yes = False,
    dry_run: choose.DryRun = False,
    as_json: choose.AsJson = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    with open_context(settings) as desk:
        named = bool(ids or path)
        targets = () if named and not (source or target) else choose.scope(desk, source, target)
        criteria = Criteria(ids=tuple(ids or ()), paths=tuple(path or ()), targets=targets)
        said = bool(ids or path or reason or source or target)
        selected = retrying.selection(
            criteria, tuple(reason or ()), all_quarantined=all_quarantined, anything_said=said
        )
        return _carry_out(
            desk,
            selected,
            "retry",
            "retried",
            lambda shown, show: retrying.retry(desk, shown, show),
            yes=yes,
            dry_run=dry_run,
            as_json=as_json,
        )


def ignore(
    settings: Settings,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE...", help="Ids or paths.", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for whoever asks later.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Ignore them no more: they are tried again.")] = False,
    yes: choose.Yes = False,
    dry_run: choose.DryRun = False,
    as_json: choose.AsJson = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    with open_context(settings) as desk:
        selected = ignoring.selection(choose.files_named(files or ()), undo=undo)
        verb, done = ("restore", "restored") if undo else ("ignore", "ignored")
        return _carry_out(
            desk,
            selected,
            verb,
            done,
            lambda shown, show: ignoring.ignore(desk, shown, reason, undo=undo, on_progress=show),
            yes=yes,
            dry_run=dry_run,
            as_json=as_json,
        )


def _carry_out(
    desk: CommandContext,
    selected: Selection,
    verb: str,
    done: str,
    act: Callable[[Selection, Callable[[int], None]], ChangePlan],
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> ExitStatus:
    page = Page()
    planned = plan(desk, selected)
    if not as_json:
        _say_plan(page, desk, planned, verb)
    result = ChangePlan()
    if planned.files and not dry_run:
        if as_json and not yes:
            raise Misconfigured(
                "with --json nobody is asked, so nothing was changed", "--yes does it, --dry-run only says it"
            )
        if not confirmed(f"{verb} {files_words(planned.files)}?", yes=yes):
            complain("nothing was changed")
            return ExitStatus.DONE
        with counting(verb, planned.files) as show:
            result = act(replace(selected, newest=planned.newest), show)
    unchanged = result.moved_on + result.locked
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "would_change": planned.files,
                "changed": result.files,
                "ids": [row.record.id for row in (result.examples or planned.examples)],
                "left_alone": _counts(planned.left_alone),
                "unknown_ids": planned.unknown,
                "unknown_paths": planned.unknown_paths,
                "moved_on": result.moved_on,
                "locked": result.locked,
                "no_note": result.no_note,
            }
        )
    elif planned.files and not dry_run:
        page.line((f"{done} {files_words(result.files)}", "bold"))
    if result.no_note:
        complain(f"the history has no note of it: {result.no_note}")
    if result.moved_on:
        complain(f"{files_words(result.moved_on)} changed meanwhile and stayed as they were: ask again")
    if result.locked:
        complain(f"{files_words(result.locked)} could not be changed: somebody's open transaction holds their rows")
    if planned.unknown:
        complain(f"no row has the id {', '.join(map(str, planned.unknown))} (`cdc-archiver list` shows them)")
    for path in planned.unknown_paths:
        complain(f"no row has the path {path} (`cdc-archiver why` finds what was archived from there)")
    unknown = planned.unknown or planned.unknown_paths
    return ExitStatus.INCOMPLETE if unchanged or unknown else ExitStatus.DONE


def _say_plan(page: Page, desk: CommandContext, planned: ChangePlan, verb: str) -> None:
    if planned.files:
        kinds = ", ".join(f"{count} {state}" for state, count in planned.states.items())
        page.line((f"to {verb}: {files_words(planned.files)}", "bold"), f" ({kinds})")
        for row in planned.examples:
            page.line(f"  {row.record.id}  {row.record.path}")
        if planned.files > len(planned.examples):
            page.line(f"  … and {planned.files - len(planned.examples)} more")
    else:
        page.line(f"nothing to {verb}")
    for state, count in planned.left_alone.items():
        why = "ignored already" if verb == "ignore" and state is RowState.IGNORED else _WHY_LEFT[state]
        if verb == "restore" and state is not RowState.ARCHIVED:
            why = "not ignored"
        page.line(f"left alone: {files_words(count)}, {why}")


def _counts(states: Counter[RowState]) -> dict[str, int]:
    return {state.value: count for state, count in states.items()}
