"""`cdc-archiver timecodes`: flags, reading, printing."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from cdc_archiver.commands import marking, options
from cdc_archiver.commands.context import CommandContext, open_context
from cdc_archiver.commands.output import Cell, Printer, print_json, print_to_stderr
from cdc_archiver.commands.timecodes import overview
from cdc_archiver.commands.timecodes.md5_list import md5_lines
from cdc_archiver.commands.why.timecode_facts import mark_text, registrar_text
from cdc_archiver.database import registrars
from cdc_archiver.database.marks import Mark, MarkSet
from cdc_archiver.database.operator_history import LateFile
from cdc_archiver.database.registrars import Registrar
from cdc_archiver.database.timecode_search import find_timecodes, targets_with_losses
from cdc_archiver.database.timecodes_table import StoredTimecode, TimecodeState, utc_now
from cdc_archiver.errors import ExitStatus, Misconfigured
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.text import format_size, to_jsonable
from cdc_archiver.timecodes.decision import end_of, start_of
from cdc_archiver.timecodes.status_types import TimecodeStatus, status_of
from cdc_archiver.timespec import format_time

HELP: Final = """
Tell which timecodes are complete.

Without N: the newest of each source, and each older one that is blocked or re-opened, with what is undecided and the command that
helps. With N: all about one, with its late files.

--md5 prints the files of one as `md5sum -c` takes them, in data_dir: those of the rows, of files only.

--accept-missing and --retire-registrar are the ways out where a registrar lost files or is gone: the timecode no longer waits.

Examples:

  cdc-archiver timecodes

  cdc-archiver timecodes 17788 --json

  cdc-archiver timecodes 17788 --md5 | (cd /data/pysmurf && md5sum --quiet -c)

  cdc-archiver timecodes 17788 --accept-missing --reason 'crate 3 wrote none of them'

  cdc-archiver timecodes --retire-registrar 5f2c --reason 'smurf-srv was replaced'

Exit status: 0 done; 2 wrong usage, or the side table is missing; 3 nothing is known of such a timecode, or with --md5 it is not
complete; 4 the database cannot be reached.
"""

_SHOWN: Final = 10
"""Timecodes of each target: eleven days."""


@dataclass(frozen=True, slots=True)
class _Details:
    """All about one timecode of a target."""

    status: TimecodeStatus
    stored: StoredTimecode
    held: Mark | None
    handed_over: Mark | None
    late: Sequence[LateFile]
    registrars: Sequence[Registrar]


def timecodes(
    settings: Settings,
    timecode: Annotated[int | None, typer.Argument(metavar="N", help="Five digits.", show_default=False)] = None,
    target: options.Target = None,
    source: options.Source = None,
    md5: Annotated[bool, typer.Option("--md5", help="Print the files of N for md5sum -c.")] = False,
    accept_missing: Annotated[
        bool, typer.Option("--accept-missing", help="N need not wait for what registrars lost in it.")
    ] = False,
    retire_registrar: Annotated[
        str, typer.Option("--retire-registrar", metavar="ID", help="This registrar is gone for good.")
    ] = "",
    reason: marking.Reason = "",
    as_json: options.AsJson = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    if (md5 or accept_missing) and timecode is None:
        raise Misconfigured("--md5 and --accept-missing need a timecode", "cdc-archiver timecodes N --md5")
    if timecode is not None:
        marking.objects([timecode], ())
    with open_context(settings) as context:
        targets = options.selected_targets(context, source, target)
        if retire_registrar:
            return _retire(context, retire_registrar, marking.require_reason("--retire-registrar", reason))
        if timecode is None:
            return _print_newest(context, targets, as_json=as_json)
        if accept_missing:
            return _accept(context, timecode, targets, marking.require_reason("--accept-missing", reason))
        if md5:
            return _print_md5(context, timecode, targets)
        return _print_one(context, timecode, targets, as_json=as_json)


def _print_newest(context: CommandContext, targets: Sequence[str], *, as_json: bool) -> ExitStatus:
    found, marks = _read(context, None, targets)
    statuses = overview.newest([_status(context, entry, marks) for entry in found], _SHOWN)
    if as_json:
        print_json(statuses)
    else:
        Printer().table(overview.TITLES, map(overview.row, statuses))
    if not statuses:
        print_to_stderr(
            f"no timecode of {', '.join(targets) or context.files.name} is known: a running service enters them after its "
            "first sweep; see: cdc-archiver status"
        )
    return ExitStatus.DONE if statuses else ExitStatus.INCOMPLETE


def _print_one(context: CommandContext, timecode: int, targets: Sequence[str], *, as_json: bool) -> ExitStatus:
    found, marks = _read(context, timecode, targets)
    details = [_details(context, entry, marks) for entry in found]
    if as_json:
        print_json([_as_object(each) for each in details])
    for number, each in enumerate(details if not as_json else ()):
        if number:
            print()
        _print_details(Printer(), each)
    if not details:
        print_to_stderr(
            f"nothing is known of timecode {timecode}, which lasts from {format_time(start_of(timecode))} to "
            f"{format_time(end_of(timecode))}; those that are known: cdc-archiver timecodes"
        )
    return ExitStatus.DONE if details else ExitStatus.INCOMPLETE


def _print_md5(context: CommandContext, timecode: int, targets: Sequence[str]) -> ExitStatus:
    data_dir = context.settings.data_dir
    if data_dir is None:
        raise Misconfigured("data_dir is not set", "--data-dir /data/… or CDC_ARCHIVER_DATA_DIR, as the rows name it")
    lines = md5_lines(context, data_dir, timecode, targets)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that is not UTF-8 leaves with its own bytes
        sys.stdout.reconfigure(errors="surrogateescape")
    for line in lines:
        print(line)
    unfinished = [
        f"{entry.instance_id} is {entry.state}"
        for entry in _read(context, timecode, targets)[0]
        if entry.state is not TimecodeState.COMPLETE
    ]
    if not lines:
        print_to_stderr(f"no archived row is below {data_dir}/{timecode}: is --data-dir as the rows name it?")
    if unfinished:
        print_to_stderr(f"timecode {timecode} is not complete, more files may come: {', '.join(unfinished)}")
    return ExitStatus.INCOMPLETE if unfinished or not lines else ExitStatus.DONE


def _accept(context: CommandContext, timecode: int, targets: Sequence[str], reason: str) -> ExitStatus:
    with context.database.transaction() as connection, marking.side_table_errors("registrars"):
        named = targets or targets_with_losses(connection, timecode)
        accepted = (
            registrars.accept_missing(connection, named, timecode, f"{marking.who('')}: {reason}") if named else 0
        )
    if not accepted:
        print_to_stderr(f"no registrar reports files that are missing in timecode {timecode}, or all are accepted")
        return ExitStatus.INCOMPLETE
    Printer().line((f"accepted: timecode {timecode} no longer waits for what {accepted} registrars lost", "bold"))
    return ExitStatus.DONE


def _retire(context: CommandContext, registrar_id: str, reason: str) -> ExitStatus:
    with context.database.transaction() as connection, marking.side_table_errors("registrars"):
        retired = registrars.retire(connection, registrar_id, f"{marking.who('')}: {reason}")
    if not retired:
        print_to_stderr(f"no registrar in use has the id {registrar_id}; cdc-archiver timecodes N names them")
        return ExitStatus.INCOMPLETE
    Printer().line((f"retired: no timecode waits for registrar {registrar_id} any more", "bold"))
    return ExitStatus.DONE


def _read(
    context: CommandContext, timecode: int | None, targets: Sequence[str]
) -> tuple[list[StoredTimecode], MarkSet]:
    with context.database.connect() as connection:
        with marking.side_table_errors("timecodes"):
            numbers = None if timecode is None else [timecode]
            found = find_timecodes(connection, context.files.name, numbers, targets)
        return found, marking.usable_marks(context, connection)


def _status(context: CommandContext, entry: StoredTimecode, marks: MarkSet) -> TimecodeStatus:
    source = context.source_of(entry.instance_id)
    held = marks.held(entry.instance_id, entry.timecode, datetime.now(UTC))
    return status_of(
        source.name if source else "",
        entry,
        held_reason=f"{held.by_whom}: {held.reason}" if held else "",
        handed_over=marks.handed_over(entry.instance_id, entry.timecode) is not None,
    )


def _details(context: CommandContext, entry: StoredTimecode, marks: MarkSet) -> _Details:
    with context.database.connect() as connection:
        late: Sequence[LateFile] = ()
        if entry.late and context.history is not None:
            end = end_of(entry.timecode)
            late = context.history.late_files(connection, entry.instance_id, entry.timecode, end)
        reports = registrars.read_reports(connection, [entry.instance_id])
        now = utc_now(connection)
    return _Details(
        _status(context, entry, marks),
        entry,
        marks.held(entry.instance_id, entry.timecode, now),
        marks.handed_over(entry.instance_id, entry.timecode),
        late,
        reports.registrars,
    )


def _as_object(details: _Details) -> dict[str, Any]:
    return {
        **to_jsonable(details.status),
        "begins": start_of(details.stored.timecode).isoformat(),
        "ends": end_of(details.stored.timecode).isoformat(),
        "hold": to_jsonable(details.held),
        "hand_over": to_jsonable(details.handed_over),
        "late_files": to_jsonable(details.late),
        "registrars": to_jsonable(details.registrars),
    }


def _print_details(printer: Printer, details: _Details) -> None:
    status = details.status
    printer.line((overview.sentence(status), "bold"))
    printer.line()
    facts: list[tuple[str, Cell]] = [
        ("lasts", f"{format_time(start_of(status.timecode))} to {format_time(end_of(status.timecode))}"),
        ("state", (status.state.value, overview.STYLES[status.state])),
        ("generation", str(status.generation)),
        ("archived", f"{status.files} files, {format_size(status.bytes)}"),
        ("decided", f"{status.ignored} ignored, {status.refused} refused"),
        ("undecided", overview.reasons_text(status.reasons) or "nothing"),
        ("digest", status.digest or "none yet"),
        ("readers told", overview.told_text(status) or "not yet"),
        *(("timecode marker", path) for path in status.marker_path.splitlines()),
        ("held", mark_text(details.held) if details.held else "no"),
        ("handed over", mark_text(details.handed_over) if details.handed_over else "no"),
        ("late files", str(status.late)),
        *(("registrar", registrar_text(each)) for each in details.registrars),
    ]
    printer.facts(facts)
    for file in details.late:
        printer.line(f"late  {format_time(file.at)}  {file.id}  {file.path}")
    for fix in overview.fixes(status):
        printer.line(("fix   ", "dim"), (fix, "bold"))
