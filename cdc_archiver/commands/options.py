"""The flags with which an operator says which files he means, and what they make of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, TypeAlias

import typer

from cdc_archiver.commands.context import CommandContext
from cdc_archiver.database.search import Criteria, is_id
from cdc_archiver.timespec import parse_time

Source: TypeAlias = Annotated[
    list[str] | None, typer.Option("--source", metavar="NAME", help="Of this source's targets; may be repeated.")
]
Target: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--target", metavar="NAME", help="Of this instance_id; may be repeated. Default: those configured, else all."
    ),
]
Since: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="TIME", help="Registered since: 2h, '3d ago', 2026-05-15 (the column timestamp, UTC)."
    ),
]
Until: TypeAlias = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Registered before.")]
Reasons: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--reason", metavar="REASON", help="Whose last try failed for this reason; needs the history."),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="For scripts.")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")]


def scope(desk: CommandContext, source: Sequence[str] | None, target: Sequence[str] | None) -> tuple[str, ...]:
    """The targets that are meant."""
    return desk.targets(tuple(source or ()), tuple(target or ()))


def times(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Two times, or None where one was not given."""
    now = datetime.now(UTC)
    return (parse_time(since, now) if since else None, parse_time(until, now) if until else None)


def files_named(words: Sequence[str]) -> Criteria:
    """Files by id or by path, as they are typed behind a command."""
    ids = tuple(int(word) for word in words if is_id(word))
    return Criteria(ids=ids, paths=tuple(word for word in words if not is_id(word)))
