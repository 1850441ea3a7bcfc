"""`cdc-archiver list`: rows of the table, newest first, read in chunks so that memory stays constant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import Annotated, Final

import typer

from cdc_archiver.commands import options
from cdc_archiver.commands.context import CommandContext, open_context, require_history
from cdc_archiver.commands.output import STATE_STYLES, Cell, Printer, print_json, print_to_stderr
from cdc_archiver.commands.service_client import ServiceUnavailable, address, describe_other_table, fetch_status
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.operator_history import HistoryEntry
from cdc_archiver.database.search import NOT_ARCHIVED, Criteria, RowState, state_of, walk
from cdc_archiver.errors import ExitStatus
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.timespec import format_time

HELP: Final = """
List files, newest first.

By default files that are not archived.

A terminal gets columns; a pipe gets no titles, and tabs between id, state, attempts, target, timestamp, reason and path; --json
prints one object a line.

Examples:

  cdc-archiver list

  cdc-archiver list --state quarantined --since 2d

  cdc-archiver list --reason missing --json | jq .path

  cdc-archiver list --state archived --pub-id crate1slot2 --limit 20

Exit status: 0 done; 2 wrong usage; 4 the database cannot be reached, or for `deferred` the service.
"""

_CHUNK: Final = 500
_NO_TARGET: Final = ("\0",)
"""Matches no row: no instance_id holds a NUL."""


class StateFilter(StrEnum):
    """The values of ``--state``: the states of rows, two kinds of pending ones, and all."""

    PENDING = "pending"
    CHARGED = "charged"
    DEFERRED = "deferred"
    QUARANTINED = "quarantined"
    REFUSED = "refused"
    IGNORED = "ignored"
    ARCHIVED = "archived"
    ALL = "all"


_State = Annotated[
    StateFilter | None,
    typer.Option(
        "--state",
        help="pending: waiting; charged: pending with failed attempts; deferred: pending, and their source or the archive's disk is "
        "down, as the running service reports (`pending` lists these two as well); the others are the states themselves; all: any "
        "state.",
    ),
]


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A row, and its last failed attempt, if that is known."""

    row: Row
    state: RowState
    source: str | None
    last: HistoryEntry | None


def list_files(
    settings: Settings,
    state: _State = None,
    source: options.Source = None,
    target: options.Target = None,
    action: Annotated[
        list[str] | None, typer.Option("--action", metavar="NAME", help="Files of this action; may be repeated.")
    ] = None,
    pub_id: Annotated[
        list[str] | None, typer.Option("--pub-id", metavar="NAME", help="Files of this pub_id; may be repeated.")
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(
            "--path", metavar="PATH", help="Files with this path; * and ? are wildcards, * matches / as well."
        ),
    ] = None,
    since: options.Since = None,
    until: options.Until = None,
    reason: options.Reasons = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many files.")] = None,
    as_json: options.AsJson = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    options.require_reasons(reason or ())
    begin, end = options.times(since, until)
    with open_context(settings) as context:
        criteria = Criteria(
            paths=tuple(path or ()),
            targets=options.selected_targets(context, source, target),
            actions=tuple(action or ()),
            pub_ids=tuple(pub_id or ()),
            since=begin,
            until=end,
        )
        files = find_files(context, _with_state(context, criteria, state), reason or (), limit)
        if as_json:
            for file in files:
                print_json(_as_object(file), line=True)
            return ExitStatus.DONE
        titles = ("ID", "STATE", "ATTEMPTS", "TARGET", "TIMESTAMP", "REASON", "PATH")
        count = Printer().table(titles, map(_cells, files))
        if not count:
            print_to_stderr("no such file")
    return ExitStatus.DONE


def find_files(
    context: CommandContext, criteria: Criteria, reasons: Sequence[str], limit: int | None
) -> Iterator[ListedFile]:
    """The matching files, newest first.

    Args:
        reasons: of the last failed attempt; empty for any.
        limit: at most this many.

    Raises:
        Misconfigured: reasons are given, and there is no history.
    """
    if reasons:
        require_history(context, "--reason")
    rows = walk(context.database, context.files, criteria, limit=None if reasons else limit)
    count = 0
    while chunk := list(islice(rows, _CHUNK)):
        last = _last_failures(context, chunk)
        for row in chunk:
            failure = last.get(row.record.id)
            if reasons and (failure is None or failure.reason not in reasons):
                continue
            source = context.source_of(row.record.instance_id)
            state = state_of(row, context.settings.max_attempts)
            yield ListedFile(row, state, source.name if source else None, failure)
            count += 1
            if count == limit:
                return


def _with_state(context: CommandContext, criteria: Criteria, state: StateFilter | None) -> Criteria:
    match state:
        case None:
            return replace(criteria, states=NOT_ARCHIVED)
        case StateFilter.ALL:
            return criteria
        case StateFilter.CHARGED:
            return replace(criteria, states=frozenset({RowState.PENDING}), has_failed_attempts=True)
        case StateFilter.DEFERRED:
            return _deferred(context, criteria)
        case _:
            return replace(criteria, states=frozenset({RowState(state.value)}))


def _deferred(context: CommandContext, criteria: Criteria) -> Criteria:
    """Pending files that wait for their source or for the archive's disk. Only the running service knows these.

    Raises:
        ServiceUnavailable: no service answers that works on this table.
    """
    status = fetch_status(context.settings)
    if other := describe_other_table(context.settings, status, context.files.name):
        raise ServiceUnavailable(
            f"deferred files are not known: the service at {address(context.settings)} works on {other}",
            "set --http-host and --http-port to the address of this table's service",
        )
    destination = status.get("destination") or {}
    everything_waits = not destination.get("up", True)
    down = [
        target
        for source in status["sources"]
        if everything_waits or not source["state"]["up"]
        for target in source["targets"]
    ]
    selected = [target for target in down if not criteria.targets or target in criteria.targets]
    return replace(criteria, targets=tuple(selected) or _NO_TARGET, states=frozenset({RowState.PENDING}))


def _last_failures(context: CommandContext, rows: list[Row]) -> dict[int, HistoryEntry]:
    ids = [row.record.id for row in rows if row.record.attempts and not row.copied]
    if context.history is None or not ids:
        return {}
    with context.database.connect() as connection:
        return context.history.last_failures(connection, ids)


def _cells(file: ListedFile) -> list[Cell]:
    record = file.row.record
    return [
        str(record.id),
        (file.state.value, STATE_STYLES[file.state]),
        str(record.failed_copy_attempts or 0),
        record.instance_id,
        format_time(record.timestamp) if record.timestamp else "-",
        (file.last.reason if file.last and file.last.reason else "-"),
        record.path,
    ]


def _as_object(file: ListedFile) -> dict[str, object]:
    record = file.row.record
    return {
        "id": record.id,
        "state": file.state,
        "attempts": record.failed_copy_attempts,
        "source": file.source,
        "target": record.instance_id,
        "timestamp": record.timestamp,
        "action": record.action,
        "action_timestamp": record.action_timestamp,
        "pub_id": record.pub_id,
        "plot": record.plot,
        "md5": record.md5sum,
        "reason": file.last.reason if file.last else None,
        "detail": file.last.detail if file.last else None,
        "path": record.path,
    }
