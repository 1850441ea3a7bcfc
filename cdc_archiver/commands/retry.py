"""`cdc-archiver retry` and `cdc-archiver ignore`: print the plan, ask, change the attempt counters.

The running service learns of the change through the binary log, and takes the files up at once.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Final

import typer

from cdc_archiver.commands import options
from cdc_archiver.commands.context import CommandContext, open_context, operator_name
from cdc_archiver.commands.marking import count_handed_over, let_in
from cdc_archiver.commands.output import (
    Printer,
    confirm,
    print_json,
    print_to_stderr,
    progress_bar,
)
from cdc_archiver.commands.retry_selection import ChangePlan, Selection, apply_change, plan_change, selected_rows
from cdc_archiver.database.operator_history import IGNORED, RESTORED, RETRIED
from cdc_archiver.database.search import Criteria, RowState
from cdc_archiver.errors import ExitStatus, Misconfigured
from cdc_archiver.model import IGNORED_FROM
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.text import format_file_count

RETRY_HELP: Final = """
Reset the attempt counter of files.

failed_copy_attempts becomes 0, and the running service takes the files up at once.

The command prints what it would do, and asks. It never changes archived and ignored files.

Files of a timecode that was handed over wait all the same. --into-handed-over has those that --id or --path names archived, within
a sweep.

Examples:

  cdc-archiver retry --id 4711

  cdc-archiver retry --all-quarantined --source satp1

  cdc-archiver retry --reason missing --yes

  cdc-archiver retry --path '/data/smurf_data/20260515/*' --dry-run

Exit status: 0 done, or nothing to do; 2 wrong usage; 3 some files could not be changed, or do not exist; 4 the database cannot be
reached.
"""

IGNORE_HELP: Final = """
Mark files that will never come.

They are not tried again and raise no alert. --undo reverts it.

FILE is an id or a path; * and ? in quotes are wildcards, * matches / as well. The history keeps your name and the reason.

Examples:

  cdc-archiver ignore 4711 4712 --reason 'disk of crate 3 died'

  cdc-archiver ignore '/data/smurf_data/20200515/*' --reason 'lost' --yes

  cdc-archiver ignore --undo 4711

Exit status: 0 done, or nothing to do; 2 wrong usage; 3 some files could not be changed, or do not exist; 4 the database cannot be
reached.
"""

_RETRIED: Final = frozenset({RowState.QUARANTINED, RowState.PENDING})
_IGNORABLE: Final = frozenset({RowState.PENDING, RowState.QUARANTINED, RowState.REFUSED})
_WHY_LEFT_ALONE: Final = {
    RowState.ARCHIVED: "already archived",
    RowState.PENDING: "already pending",
    RowState.QUARANTINED: "not ignored",
    RowState.REFUSED: "refused: correct their rows, then name each by --id",
    RowState.IGNORED: "ignored: run `cdc-archiver ignore --undo` first",
}


def retry(
    settings: Settings,
    ids: Annotated[list[int] | None, typer.Option("--id", metavar="ID", help="This file; may be repeated.")] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(
            "--path",
            metavar="PATH",
            help="Files with this path; * and ? are wildcards, * matches / as well; may be repeated.",
        ),
    ] = None,
    reason: options.Reasons = None,
    source: options.Source = None,
    target: options.Target = None,
    all_quarantined: Annotated[
        bool, typer.Option("--all-quarantined", help="All quarantined files, no others.")
    ] = False,
    into_handed_over: Annotated[
        bool, typer.Option("--into-handed-over", help="Archive them although their timecode was handed over.")
    ] = False,
    yes: options.Yes = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    with open_context(settings) as context:
        named = bool(ids or path)
        targets = () if named and not (source or target) else options.selected_targets(context, source, target)
        criteria = Criteria(ids=tuple(ids or ()), paths=tuple(path or ()), targets=targets)
        has_filter = bool(ids or path or reason or source or target)
        selection = _retry_selection(
            criteria, tuple(reason or ()), all_quarantined=all_quarantined, has_filter=has_filter
        )
        if into_handed_over:
            if not named:
                raise Misconfigured("--into-handed-over needs single files", "name them with --id or --path")
            selection = replace(selection, failed_only=False)  # those that wait have not failed
        return _carry_out(
            context,
            selection,
            "retry",
            "retried",
            lambda confirmed, show: _reset(context, confirmed, show, into_handed_over=into_handed_over),
            yes=yes,
            dry_run=dry_run,
            as_json=as_json,
        )


def ignore(
    settings: Settings,
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE...", help="Ids or paths.", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="The reason, for later readers.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="No longer ignore the files: they are tried again.")] = False,
    yes: options.Yes = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    with open_context(settings) as context:
        selection = _ignore_selection(options.criteria_of(files or ()), undo=undo)
        verb, past, attempts, result = (
            ("restore", "restored", 0, RESTORED) if undo else ("ignore", "ignored", IGNORED_FROM, IGNORED)
        )
        note = ": ".join(part for part in (f"by {operator_name()}", reason.strip()) if part)
        return _carry_out(
            context,
            selection,
            verb,
            past,
            lambda confirmed, show: apply_change(context, confirmed, attempts, result, note, show),
            yes=yes,
            dry_run=dry_run,
            as_json=as_json,
        )


def _reset(
    context: CommandContext, selection: Selection, show: Callable[[int], None], *, into_handed_over: bool
) -> ChangePlan:
    """Resets the counters.

    Args:
        into_handed_over: the files are archived although their timecode was handed over.
    """
    note = f"by {operator_name()}"
    if into_handed_over:
        let_in(context, selected_rows(context, selection), "retry --into-handed-over")
        note += ": --into-handed-over"
    elif waiting := count_handed_over(context, selected_rows(context, selection)):
        print_to_stderr(
            f"{format_file_count(waiting)} of timecodes that were handed over will wait; to have them archived all the same: "
            "add --into-handed-over, with --id or --path"
        )
    return apply_change(context, selection, 0, RETRIED, note, show)


def _retry_selection(
    criteria: Criteria, reasons: tuple[str, ...], *, all_quarantined: bool, has_filter: bool
) -> Selection:
    """The files that `retry` selects: those with failed attempts; refused ones only if named by id, path or reason.

    Args:
        all_quarantined: only quarantined files.
        has_filter: whether any filter was given; without one, nothing is retried.

    Raises:
        Misconfigured: no filter was given, or a reason is unknown.
    """
    options.require_reasons(reasons)
    if not (has_filter or all_quarantined):
        raise Misconfigured(
            "retry needs a selection of files",
            "add --id, --path, --reason, --source, --target or --all-quarantined",
        )
    if all_quarantined:
        states = frozenset({RowState.QUARANTINED})
    elif criteria.names_files or reasons:
        states = _RETRIED | {RowState.REFUSED}
    else:
        states = _RETRIED
    return Selection(criteria, states, reasons, failed_only=True)


def _ignore_selection(criteria: Criteria, *, undo: bool) -> Selection:
    """The files that `ignore` selects.

    Raises:
        Misconfigured: no file was named.
    """
    if not criteria.names_files:
        raise Misconfigured(
            "ignore needs a selection of files", "name an id or a path; * and ? in quotes are wildcards in a path"
        )
    return Selection(criteria, frozenset({RowState.IGNORED}) if undo else _IGNORABLE)


def _carry_out(
    context: CommandContext,
    selection: Selection,
    verb: str,
    past: str,
    change: Callable[[Selection, Callable[[int], None]], ChangePlan],
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> ExitStatus:
    printer = Printer()
    plan = plan_change(context, selection)
    if not as_json:
        _print_plan(printer, plan, verb)
    result = ChangePlan()
    if plan.files and not dry_run:
        if as_json and not yes:
            raise Misconfigured(
                "nothing was changed: --json asks for no confirmation",
                "add --yes to change them, --dry-run to only list them",
            )
        if not confirm(f"{verb} {format_file_count(plan.files)}?", yes=yes):
            print_to_stderr("nothing was changed")
            return ExitStatus.DONE
        with progress_bar(verb, plan.files) as show:
            result = change(replace(selection, newest=plan.newest), show)
    if as_json:
        print_json(_as_object(plan, result, dry_run=dry_run))
    elif plan.files and not dry_run:
        printer.line((f"{past} {format_file_count(result.files)}", "bold"))
    if result.no_note:
        print_to_stderr(f"the history has no note of this change: {result.no_note}")
    if result.moved_on:
        print_to_stderr(
            f"{format_file_count(result.moved_on)} left unchanged: the rows changed meanwhile; run the command again"
        )
    if result.locked:
        print_to_stderr(
            f"{format_file_count(result.locked)} could not be changed: another open transaction has locked the rows; "
            "end it (SHOW PROCESSLIST), then run the command again"
        )
    if plan.unknown:
        print_to_stderr(f"no row has the id {', '.join(map(str, plan.unknown))}; cdc-archiver list prints the ids")
    for path in plan.unknown_paths:
        print_to_stderr(f"no row has the path {path}; if it is archived: cdc-archiver why {shlex.quote(path)}")
    incomplete = result.moved_on or result.locked or plan.unknown or plan.unknown_paths
    return ExitStatus.INCOMPLETE if incomplete else ExitStatus.DONE


def _as_object(plan: ChangePlan, result: ChangePlan, *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "would_change": plan.files,
        "changed": result.files,
        "ids": [row.record.id for row in (result.examples or plan.examples)],
        "left_alone": _by_name(plan.left_alone),
        "unknown_ids": plan.unknown,
        "unknown_paths": plan.unknown_paths,
        "moved_on": result.moved_on,
        "locked": result.locked,
        "no_note": result.no_note,
    }


def _print_plan(printer: Printer, plan: ChangePlan, verb: str) -> None:
    if plan.files:
        kinds = ", ".join(f"{count} {state}" for state, count in plan.states.items())
        printer.line((f"to {verb}: {format_file_count(plan.files)}", "bold"), f" ({kinds})")
        for row in plan.examples:
            printer.line(f"  {row.record.id}  {row.record.path}")
        if plan.files > len(plan.examples):
            printer.line(f"  … and {plan.files - len(plan.examples)} more")
    else:
        printer.line(f"nothing to {verb}")
    for state, count in plan.left_alone.items():
        why = "already ignored" if verb == "ignore" and state is RowState.IGNORED else _WHY_LEFT_ALONE[state]
        if verb == "restore" and state is not RowState.ARCHIVED:
            why = "not ignored"
        printer.line(f"left unchanged: {format_file_count(count)}, {why}")


def _by_name(states: Counter[RowState]) -> dict[str, int]:
    return {state.value: count for state, count in states.items()}
