"""What the commands about marks share: flags, the marks that count here, and adding entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeAlias

import sqlalchemy as sa
import typer

from cdc_archiver.commands.context import CommandContext, operator_name
from cdc_archiver.database.archives import known_archive
from cdc_archiver.database.connections import error_code
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.history import HISTORY_ERRORS
from cdc_archiver.database.marks import Mark, MarkKind, MarkSet, add_marks, file_of, read_file, read_table
from cdc_archiver.database.timecode_search import targets_with_timecodes
from cdc_archiver.errors import Misconfigured
from cdc_archiver.text import fold_instance_id
from cdc_archiver.transfer.layout import timecode_of
from cdc_archiver.transfer.staging import NOTES
from cdc_archiver.transfer.staging_place import sibling_staging

LOWEST, HIGHEST = 10_000, 99_999

Targets: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--target", metavar="NAME", help="Only for files with this instance_id; may be repeated. Default: all."
    ),
]
By: TypeAlias = Annotated[str, typer.Option("--by", metavar="NAME", help="Who wants it. Default: your login name.")]
Reason: TypeAlias = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for later readers.")]


def who(by: str) -> str:
    """The name for an entry: the given one, else the login name and host."""
    return by.strip() or operator_name()


def require_reason(verb: str, reason: str) -> str:
    """The reason that was given.

    Raises:
        Misconfigured: none was given.
    """
    if not reason.strip():
        raise Misconfigured(f"{verb} needs a reason", "add --reason TEXT")
    return reason.strip()


def objects(timecodes: Sequence[int], targets: Sequence[str]) -> list[tuple[str, int]]:
    """What entries are about: each timecode of each target; of every source where no target is named.

    Raises:
        Misconfigured: a timecode has not five digits.
    """
    for timecode in timecodes:
        if not LOWEST <= timecode <= HIGHEST:
            raise Misconfigured(
                f"{timecode} is no timecode", "name the five digits of a directory of the archive, such as 17788"
            )
    return [(target, timecode) for timecode in dict.fromkeys(timecodes) for target in dict.fromkeys(targets or [""])]


def of_whom(instance_id: str) -> str:
    """The owner of an entry, for a person."""
    return f"of {instance_id}" if instance_id else "of every source"


def known_marks(context: CommandContext, connection: sa.Connection) -> MarkSet:
    """The marks that count: of the table and, where data_dir is set, of the file that the service keeps.

    Raises:
        Misconfigured: the table cannot be read.
    """
    with side_table_errors("marks"):
        entries = read_table(connection, context.files.name)
    return MarkSet([*entries, *_marks_of_file(context)])


def usable_marks(context: CommandContext, connection: sa.Connection) -> MarkSet:
    """The marks that count, as far as they can be read: for a command that works without them, too."""
    try:
        return known_marks(context, connection)
    except Misconfigured:
        return MarkSet(_marks_of_file(context))


def require_known(context: CommandContext, targets: Sequence[str]) -> None:
    """Refuses a mark of a target that nobody has: a mistyped one would hold nothing.

    Raises:
        Misconfigured: the target is neither configured nor has it timecodes.
    """
    if not targets:
        return
    with context.database.connect() as connection, side_table_errors("timecodes"):
        known = targets_with_timecodes(connection, context.files.name)
    if set(context.settings.targets) != set(targets):  # else they may be configured by the very flag that is examined
        known += context.settings.targets
    folded = set(map(fold_instance_id, known))
    for target in targets:
        if known and fold_instance_id(target) not in folded:
            raise Misconfigured(f"unknown target: {target!r}", f"use one of {', '.join(dict.fromkeys(known))}")


def record_marks(context: CommandContext, marks: Sequence[Mark]) -> None:
    """Adds entries.

    Raises:
        Misconfigured: the table cannot be written.
    """
    with context.database.transaction() as connection, side_table_errors("marks"):
        add_marks(connection, context.files.name, marks)


def count_handed_over(context: CommandContext, rows: Iterable[Row]) -> int:
    """How many pending files wait because their timecode was handed over."""
    with context.database.connect() as connection:
        marks = usable_marks(context, connection)
    if not marks.handed_over_timecodes:
        return 0
    return sum(
        timecode is not None and marks.handed_over(row.record.instance_id, timecode, row.record.id) is not None
        for row in rows
        for timecode in [timecode_of(row.record, None)]
    )


def let_in(context: CommandContext, rows: Iterable[Row], reason: str) -> None:
    """Has pending files archived although their timecode was handed over.

    Raises:
        Misconfigured: the table cannot be written.
    """
    now = datetime.now(UTC)
    by = operator_name()
    record_marks(
        context,
        [
            Mark(MarkKind.LET_IN, row.record.instance_id, timecode, by, reason, None, now, file_id=row.record.id)
            for row in rows
            if (timecode := timecode_of(row.record, None)) is not None
        ],
    )


def end_marks(
    context: CommandContext, kind: MarkKind, objects: Sequence[tuple[str, int]], by: str, reason: str
) -> tuple[list[Mark], list[Mark]]:
    """Adds entries that end marks.

    Args:
        kind: unheld, or taken back.

    Returns:
        The entries that were added, and those that were not, since nothing was marked.
    """
    now = datetime.now(UTC)
    with context.database.connect() as connection:
        known = known_marks(context, connection)
    marks = [Mark(kind, instance_id, number, who(by), reason.strip(), None, now) for instance_id, number in objects]
    ended = [mark for mark in marks if known.in_force(kind.subject, mark.instance_id, mark.timecode, now)]
    record_marks(context, ended)
    return ended, [mark for mark in marks if mark not in ended]


@contextmanager
def side_table_errors(subject: str) -> Iterator[None]:
    """Says of a side table that is missing or forbidden how to turn it on.

    Args:
        subject: what cannot be had without it.

    Raises:
        Misconfigured: a statement of the block found no table, column or grant.
    """
    try:
        yield
    except sa.exc.DBAPIError as error:
        if error_code(error) not in HISTORY_ERRORS:
            raise
        why = error.orig.args[-1] if error.orig and error.orig.args else error
        raise Misconfigured(
            f"the side table of {subject} cannot be used: {why}",
            "cdc-archiver init-db creates it; cdc-archiver check prints the GRANT",
        ) from error


def staging_places(context: CommandContext) -> set[Path]:
    """The places for staging that services of this archive use; none where data_dir is not set."""
    data_dir = context.settings.data_dir
    if data_dir is None:
        return set()
    with context.database.connect() as connection:
        entries = known_archive(connection, context.files.name, context.settings.targets, data_dir).entries
    return {Path(entry.staging) for entry in entries.values() if entry.staging} or {sibling_staging(data_dir)}


def _marks_of_file(context: CommandContext) -> Sequence[Mark]:
    return [
        mark
        for place in staging_places(context)
        for mark in read_file(file_of(place / NOTES, context.database.name, context.files.name))
    ]
