"""`cdc-archiver list`: rows of the table, newest first."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Final

import typer

from cdc_archiver.commands import options as choose
from cdc_archiver.commands.context import CommandContext, open_context
from cdc_archiver.commands.list_query import Listed, deferred, listed
from cdc_archiver.commands.output import STATE_STYLES, Page, complain, print_json
from cdc_archiver.commands.retry_selection import require_reasons
from cdc_archiver.database.search import NOT_ARCHIVED, Criteria, RowState
from cdc_archiver.errors import ExitStatus
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.timespec import format_time

HELP: Final = """
List files, newest first.

By default those that are not archived.

On a terminal in columns; in a pipe without titles, with tabs between id, state, attempts, target, timestamp, reason and path; with
--json one object a line.

Examples:

  cdc-archiver list

  cdc-archiver list --state quarantined --since 2d

  cdc-archiver list --reason missing --json | jq .path

  cdc-archiver list --state archived --pub-id crate1slot2 --limit 20

Exit status: 0 done; 2 wrong usage; 4 the database cannot be reached, or for `deferred` the service.
"""


class Shown(StrEnum):
    """What may be asked for: the states of rows, and two kinds of pending ones."""

    PENDING = "pending"
    CHARGED = "charged"
    DEFERRED = "deferred"
    QUARANTINED = "quarantined"
    REFUSED = "refused"
    IGNORED = "ignored"
    ARCHIVED = "archived"
    ALL = "all"


_State = Annotated[
    Shown | None,
    typer.Option(
        "--state",
        help="pending: waiting; charged: pending ones with failed attempts; deferred: pending ones whose source or disk the "
        "running service says is in trouble (both are listed as pending); the others as they say.",
    ),
]


def list_files(
    settings: Settings,
    state: _State = None,
    source: choose.Source = None,
    target: choose.Target = None,
    action: Annotated[list[str] | None, typer.Option("--action", metavar="NAME", help="Of this action.")] = None,
    pub_id: Annotated[list[str] | None, typer.Option("--pub-id", metavar="NAME", help="Of this pub_id.")] = None,
    path: Annotated[
        list[str] | None,
        typer.Option("--path", metavar="PATH", help="With this path, or with * and ? these; * matches / as well."),
    ] = None,
    since: choose.Since = None,
    until: choose.Until = None,
    reason: choose.Reasons = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="So many at the most.")] = None,
    as_json: choose.AsJson = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    require_reasons(tuple(reason or ()))
    begin, end = choose.times(since, until)
    with open_context(settings) as desk:
        criteria = Criteria(
            paths=tuple(path or ()),
            targets=choose.scope(desk, source, target),
            actions=tuple(action or ()),
            pub_ids=tuple(pub_id or ()),
            since=begin,
            until=end,
        )
        rows = listed(desk, _of_state(desk, criteria, state), tuple(reason or ()), limit)
        if as_json:
            for row in rows:
                print_json(_as_object(row), line=True)
            return ExitStatus.DONE
        count = Page().table(("ID", "STATE", "ATTEMPTS", "TARGET", "TIMESTAMP", "REASON", "PATH"), map(_cells, rows))
        if not count:
            complain("no such file")
    return ExitStatus.DONE


def _of_state(desk: CommandContext, criteria: Criteria, state: Shown | None) -> Criteria:
    match state:
        case None:
            return replace(criteria, states=NOT_ARCHIVED)
        case Shown.ALL:
            return criteria
        case Shown.CHARGED:
            return replace(criteria, states=frozenset({RowState.PENDING}), has_failed_attempts=True)
        case Shown.DEFERRED:
            return deferred(desk, criteria)
        case _:
            return replace(criteria, states=frozenset({RowState(state.value)}))


def _cells(found: Listed) -> list[str | tuple[str, str]]:
    record = found.row.record
    return [
        str(record.id),
        (found.state.value, STATE_STYLES[found.state]),
        str(record.failed_copy_attempts or 0),
        record.instance_id,
        format_time(record.timestamp) if record.timestamp else "-",
        (found.last.reason if found.last and found.last.reason else "-"),
        record.path,
    ]


def _as_object(found: Listed) -> dict[str, object]:
    record = found.row.record
    return {
        "id": record.id,
        "state": found.state,
        "attempts": record.failed_copy_attempts,
        "source": found.source,
        "target": record.instance_id,
        "timestamp": record.timestamp,
        "action": record.action,
        "action_timestamp": record.action_timestamp,
        "pub_id": record.pub_id,
        "plot": record.plot,
        "md5": record.md5sum,
        "reason": found.last.reason if found.last else None,
        "detail": found.last.detail if found.last else None,
        "path": record.path,
    }
