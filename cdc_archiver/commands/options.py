"""Flags that several commands share, and the file selections that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, TypeAlias

import typer

from cdc_archiver.commands.context import CommandContext
from cdc_archiver.database.search import Criteria, is_id
from cdc_archiver.errors import Misconfigured
from cdc_archiver.model import Reason, Scope
from cdc_archiver.timespec import parse_time

Source: TypeAlias = Annotated[
    list[str] | None, typer.Option("--source", metavar="NAME", help="Files of this source's targets; may be repeated.")
]
Target: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="Files with this instance_id; may be repeated. Default: the configured targets, else all.",
    ),
]
Since: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="Registered at or after this time: 2h, '3d ago', 2026-05-15 (the column timestamp, UTC).",
    ),
]
Until: TypeAlias = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Registered before this time.")]
Reasons: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--reason", metavar="REASON", help="Files whose last attempt failed for this reason; needs the history."
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="For scripts.")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", "-n", help="Only print what would be done.")]


def selected_targets(
    context: CommandContext, source: Sequence[str] | None, target: Sequence[str] | None
) -> tuple[str, ...]:
    """The targets that ``--source`` and ``--target`` select."""
    return context.targets(tuple(source or ()), tuple(target or ()))


def times(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """``--since`` and ``--until``; None for one that was not given."""
    now = datetime.now(UTC)
    return (parse_time(since, now) if since else None, parse_time(until, now) if until else None)


def criteria_of(arguments: Sequence[str]) -> Criteria:
    """The files that a command's arguments name, by id or by path."""
    ids = tuple(int(argument) for argument in arguments if is_id(argument))
    return Criteria(ids=ids, paths=tuple(argument for argument in arguments if not is_id(argument)))


_IN_HISTORY: Final = (Scope.FILE, Scope.ROW)


def require_reasons(reasons: Sequence[str]) -> None:
    """Checks the values of ``--reason``.

    Raises:
        Misconfigured: one is not a reason for which a file fails or is refused.
    """
    known = [reason.value for reason in Reason if reason.scope in _IN_HISTORY or reason is Reason.NOT_RECORDABLE]
    for reason in reasons:
        if reason not in known:
            raise Misconfigured(f"unknown reason: {reason!r}", f"use one of {', '.join(known)}")
