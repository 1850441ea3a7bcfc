"""`cdc-archiver hand-over`: somebody downstream took timecodes over and may remove them; nothing is archived into them any more."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from cdc_archiver.commands import marking, options
from cdc_archiver.commands.archive_access import ArchiveUnavailable, require_mounted
from cdc_archiver.commands.context import CommandContext, open_context
from cdc_archiver.commands.output import Printer, print_to_stderr
from cdc_archiver.database.marks import Mark, MarkKind
from cdc_archiver.database.timecode_search import archived_timecodes, find_timecodes
from cdc_archiver.database.timecodes_table import TimecodeState, utc_now
from cdc_archiver.errors import ExitStatus, Misconfigured
from cdc_archiver.model import Reason
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.text import format_size
from cdc_archiver.timecodes.decision import end_of
from cdc_archiver.timespec import format_time, parse_time
from cdc_archiver.transfer.other_disks import PathNotes
from cdc_archiver.transfer.places import OTHER_DISKS

HELP: Final = """
Mark timecodes as taken over.

Somebody downstream has them, and may remove their directories. verify counts their files apart, and --requeue leaves them alone. A
new row of such a timecode waits, and status names it: archive it all the same with retry --into-handed-over, or ignore it.

--missing finds complete timecodes whose directory is gone. It prints them, and marks them only with --yes. It never takes a link
that leads nowhere for a missing directory, nor one of another disk, and does nothing without the archive marker.

Examples:

  cdc-archiver hand-over 17788 17789 --by librarian --reason 'books 17788, 17789 have off-site copies'

  cdc-archiver hand-over --missing --older-than 30d --by librarian --yes

  cdc-archiver hand-over --undo 17788

Exit status: 0 done; 2 wrong usage, or the side table is missing; 3 done, but a timecode is not complete or, with --undo, was not
handed over; 4 the database or the archive's disk cannot be reached.
"""

_WHY_MISSING: Final = "its directory is gone"


def hand_over(
    settings: Settings,
    timecodes: Annotated[
        list[int] | None, typer.Argument(metavar="N...", help="Five digits each.", show_default=False)
    ] = None,
    by: Annotated[str, typer.Option("--by", metavar="NAME", help="Who took them over.")] = "",
    reason: marking.Reason = "",
    undo: Annotated[bool, typer.Option("--undo", help="They are no longer handed over.")] = False,
    missing: Annotated[bool, typer.Option("--missing", help="Those whose directory is gone.")] = False,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="With --missing: ended before that.")
    ] = "14d",
    target: marking.Targets = None,
    yes: options.Yes = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    if missing == bool(timecodes) or (missing and undo):
        raise Misconfigured("hand-over needs timecodes", "name them: hand-over 17788, or let --missing find them")
    if not (by.strip() or undo or (missing and not yes)):
        raise Misconfigured("hand-over needs the name of who took the timecodes over", "add --by NAME")
    if not (undo or missing):
        reason = marking.require_reason("hand-over", reason)
    with open_context(settings) as context:
        marking.require_known(context, target or ())
        if missing:
            return _mark_missing(context, by, reason or _WHY_MISSING, older_than, target or (), yes=yes)
        objects = marking.objects(timecodes or (), target or ())
        if undo:
            return _undo(context, objects, by, reason)
        return _mark(context, objects, by, reason)


def _mark(context: CommandContext, objects: Sequence[tuple[str, int]], by: str, reason: str) -> ExitStatus:
    with context.database.connect() as connection, marking.side_table_errors("timecodes"):
        now = min(utc_now(connection), datetime.now(UTC))
        stored = find_timecodes(connection, context.files.name, [number for _, number in objects])
    for _, number in objects:
        if end_of(number) > now:
            raise Misconfigured(
                f"timecode {number} lasts until {format_time(end_of(number))}: new files of it would wait",
                "hand it over when it is complete: cdc-archiver timecodes",
            )
    marks = [Mark(MarkKind.HANDED_OVER, id_, number, by, reason, None, now) for id_, number in objects]
    marking.record_marks(context, marks)
    for mark in marks:
        Printer().line((f"handed over: timecode {mark.timecode} {marking.of_whom(mark.instance_id)}, to {by}", "bold"))
    unfinished = [
        entry
        for entry in stored
        if entry.state is not TimecodeState.COMPLETE
        and any(mark.timecode == entry.timecode and mark.covers(entry.instance_id) for mark in marks)
    ]
    for entry in unfinished:
        print_to_stderr(
            f"timecode {entry.timecode} of {entry.instance_id} is {entry.state}, not complete: what is still to come waits; "
            f"see: cdc-archiver timecodes {entry.timecode}"
        )
    return ExitStatus.INCOMPLETE if unfinished else ExitStatus.DONE


def _undo(context: CommandContext, objects: Sequence[tuple[str, int]], by: str, reason: str) -> ExitStatus:
    ended, idle = marking.end_marks(context, MarkKind.TAKEN_BACK, objects, by, reason)
    for mark in ended:
        Printer().line((f"no longer handed over: timecode {mark.timecode} {marking.of_whom(mark.instance_id)}", "bold"))
    for mark in idle:
        print_to_stderr(f"timecode {mark.timecode} {marking.of_whom(mark.instance_id)} is not handed over")
    return ExitStatus.INCOMPLETE if idle else ExitStatus.DONE


def _mark_missing(
    context: CommandContext, by: str, reason: str, older_than: str, targets: Sequence[str], *, yes: bool
) -> ExitStatus:
    data_dir = context.settings.data_dir
    if not require_mounted(context) or data_dir is None:
        raise ArchiveUnavailable(
            Reason.DESTINATION_MISSING,
            f"data_dir {data_dir} has no archive marker, so a missing directory proves nothing",
            "mount the archive's disk; the first run of the service makes the marker",
        )
    with context.database.connect() as connection, marking.side_table_errors("timecodes"):
        now = min(utc_now(connection), datetime.now(UTC))
        before = parse_time(older_than, now)
        elsewhere = _on_other_disks(context)
        marks = marking.known_marks(context, connection)
        stored = find_timecodes(connection, context.files.name, targets=targets)
        candidates = [
            entry
            for entry in stored
            if entry.state is TimecodeState.COMPLETE
            and entry.files
            and end_of(entry.timecode) <= before
            and not marks.handed_over(entry.instance_id, entry.timecode)
            and str(entry.timecode) not in elsewhere
            and _is_gone(data_dir, entry.timecode)
        ]
    ours: frozenset[tuple[str, str]] = frozenset()
    if candidates:
        with context.database.connect() as connection:
            ours = archived_timecodes(connection, context.files, data_dir)
    found = [entry for entry in candidates if (entry.instance_id, str(entry.timecode)) in ours]
    printer = Printer()
    printer.table(
        ("TIMECODE", "TARGET", "FILES", "SIZE", "ENDED"),
        (
            (
                str(entry.timecode),
                entry.instance_id,
                str(entry.files),
                format_size(entry.size),
                format_time(end_of(entry.timecode)),
            )
            for entry in found
        ),
    )
    if not found:
        print_to_stderr("no complete timecode lacks its directory")
        return ExitStatus.DONE
    if not yes:
        print_to_stderr(f"{len(found)} timecodes lack their directory; nothing was marked: add --by NAME --yes")
        return ExitStatus.DONE
    marking.record_marks(
        context,
        [Mark(MarkKind.HANDED_OVER, entry.instance_id, entry.timecode, by, reason, None, now) for entry in found],
    )
    printer.line((f"handed over: {len(found)} timecodes, to {by}", "bold"))
    return ExitStatus.DONE


def _on_other_disks(context: CommandContext) -> set[str]:
    """The names of timecodes' directories that were seen on other disks, wholly or in part: their disk may not be mounted now."""
    noted = [path for place in marking.staging_places(context) for path in PathNotes(place / OTHER_DISKS).paths()]
    return {path.split("/")[0] for path in noted}


def _is_gone(data_dir: Path, timecode: int) -> bool:
    """Whether nothing has the name of the timecode's directory; a link that leads nowhere is something."""
    try:
        os.lstat(data_dir / str(timecode))
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
