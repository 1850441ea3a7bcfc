"""`cdc-archiver hold` and `cdc-archiver unhold`: a held timecode does not become complete, and its files are not released."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from cdc_archiver.commands import marking
from cdc_archiver.commands.context import CommandContext, open_context
from cdc_archiver.commands.output import Printer, print_to_stderr
from cdc_archiver.database.marks import Mark, MarkKind
from cdc_archiver.database.timecode_search import TOLD, find_timecodes
from cdc_archiver.errors import ExitStatus
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.timespec import format_time, parse_end

HOLD_HELP: Final = """
Keep timecodes from becoming complete.

Readers are not told of a held timecode, and its files stay on their source. Files are archived as always. A running service heeds it
within a sweep.

A hold on a timecode that readers were told of cannot take that back. It is recorded all the same.

Examples:

  cdc-archiver hold --timecode 17788 --reason 'clock of crate 3 was wrong; rows are being corrected'

  cdc-archiver hold --timecode 17788 --target pysmurf-monitor --reason 'disk at the vendor' --until 14d

Exit status: 0 done; 2 wrong usage, or the side table is missing; 3 done, but readers were told before; 4 the database cannot be
reached.
"""

UNHOLD_HELP: Final = """
End holds of timecodes.

Each is complete as soon as all of it is archived or decided, and its time is over.

Example:

  cdc-archiver unhold --timecode 17788

Exit status: 0 done; 2 wrong usage, or the side table is missing; 3 a timecode was not held; 4 the database cannot be reached.
"""


Timecodes = Annotated[
    list[int], typer.Option("--timecode", metavar="N", help="Five digits; may be repeated.", show_default=False)
]


def hold(
    settings: Settings,
    timecode: Timecodes,
    reason: marking.Reason = "",
    by: marking.By = "",
    until: Annotated[
        str,
        typer.Option("--until", metavar="TIME", help="End of the hold: 12h or 14d from now, 2026-05-15T04:30 (UTC)."),
    ] = "",
    target: marking.Targets = None,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    reason = marking.require_reason("hold", reason)
    now = datetime.now(UTC)
    end = parse_end(until, now) if until else None
    marks = [
        Mark(MarkKind.HELD, instance_id, number, marking.who(by), reason, end, now)
        for instance_id, number in marking.objects(timecode, target or ())
    ]
    with open_context(settings) as context:
        marking.require_known(context, target or ())
        marking.record_marks(context, marks)
        printer = Printer()
        for mark in marks:
            ends = f" until {format_time(end)}" if end else ""
            printer.line((f"held: timecode {mark.timecode} {marking.of_whom(mark.instance_id)}{ends}", "bold"))
        told = _told(context, marks)
    for instance_id, number in told:
        print_to_stderr(
            f"readers were told before that timecode {number} of {instance_id} is complete: the hold cannot take that back; "
            "it keeps the files on their source"
        )
    return ExitStatus.INCOMPLETE if told else ExitStatus.DONE


def unhold(
    settings: Settings,
    timecode: Timecodes,
    reason: marking.Reason = "",
    by: marking.By = "",
    target: marking.Targets = None,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    objects = marking.objects(timecode, target or ())
    with open_context(settings) as context:
        marking.require_known(context, target or ())
        ended, idle = marking.end_marks(context, MarkKind.UNHELD, objects, by, reason)
    for mark in ended:
        Printer().line((f"no longer held: timecode {mark.timecode} {marking.of_whom(mark.instance_id)}", "bold"))
    for mark in idle:
        print_to_stderr(f"timecode {mark.timecode} {marking.of_whom(mark.instance_id)} is not held")
    return ExitStatus.INCOMPLETE if idle else ExitStatus.DONE


def _told(context: CommandContext, marks: list[Mark]) -> list[tuple[str, int]]:
    """The timecodes of these marks that readers were told of, with their instance_id."""
    with context.database.connect() as connection, marking.side_table_errors("timecodes"):
        stored = find_timecodes(connection, context.files.name, [mark.timecode for mark in marks])
    return [
        (entry.instance_id, entry.timecode)
        for entry in stored
        if entry.told_by in TOLD
        and any(mark.timecode == entry.timecode and mark.covers(entry.instance_id) for mark in marks)
    ]
