"""`cdc-archiver why`: flags and printing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from cdc_archiver.commands.context import open_context
from cdc_archiver.commands.local_registrar import announcement_text, announcements
from cdc_archiver.commands.output import STATE_STYLES, Printer, print_json, print_to_stderr
from cdc_archiver.commands.why import json_answer
from cdc_archiver.commands.why.diagnosis import Diagnosis, at_source_text, diagnose, reason_text
from cdc_archiver.commands.why.facts import (
    MAX_MATCHES,
    FileFacts,
    OlderRow,
    PlaceState,
    SourceObservation,
    find_rows,
    gather_facts,
    observe_at_sources,
    older_rows,
)
from cdc_archiver.commands.why.timecode_facts import timecode_text
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.operator_history import LATE, HistoryEntry
from cdc_archiver.database.search import is_id, state_of
from cdc_archiver.errors import ExitStatus
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.text import format_size
from cdc_archiver.timespec import format_time

HELP: Final = """
Explain why a file is not in the archive.

Reads the row, the archive, the history, the source and the running service.

FILE is an id, a path on the source, an archived path, or a part of a path. If several files match, they are listed.

Examples:

  cdc-archiver why 4711

  cdc-archiver why /data/smurf_data/20260515/crate1slot2/1589517264/outputs/1589517300_iv.npy

  cdc-archiver why 1589517300_iv.npy --json

Only the database is required. The archive is read with --data-dir, the source with --host and --target; the output names what could
not be read.

Exit status: 0 done; 2 several files match; 3 no row matches; 4 the database cannot be reached.
"""


def why(
    settings: Settings,
    file: Annotated[str, typer.Argument(metavar="FILE", help="An id, a path, or a part of a path.")],
    hash_all: Annotated[bool, typer.Option("--hash", help="Hash the archived file whatever its size.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    now = datetime.now(UTC)
    with open_context(settings) as context:
        rows = find_rows(context, file)
        if not rows:
            older, observations = older_rows(context, file), observe_at_sources(context, file)
            return _print_no_match(context.files.name, file, older, observations, settings, as_json=as_json)
        if len(rows) > 1:
            return _print_several_matches(rows, file, settings.max_attempts, as_json=as_json)
        facts = gather_facts(context, rows[0], hash_all=hash_all)
    diagnosis = diagnose(facts, now)
    if as_json:
        print_json(json_answer.one_match(facts, diagnosis))
    else:
        _print(Printer(), facts, diagnosis)
        _print_announcements(Printer(), settings, str(facts.record.id))
    return ExitStatus.DONE


def _print_announcements(printer: Printer, settings: Settings, wanted: str) -> None:
    """Prints what the registrar on this machine knows of a file."""
    for entry in announcements(settings, wanted):
        printer.line(f"in the registrar: {announcement_text(entry)}")


def _print_no_match(
    table: str,
    wanted: str,
    older: Sequence[OlderRow],
    observations: Sequence[SourceObservation],
    settings: Settings,
    *,
    as_json: bool,
) -> ExitStatus:
    if as_json:
        known = [announcement_text(entry) for entry in announcements(settings, wanted)]
        print_json(json_answer.no_match(table, wanted, older, observations) | ({"registrar": known} if known else {}))
        return ExitStatus.INCOMPLETE
    printer = Printer()
    printer.line(json_answer.no_match_text(table, wanted, older))
    for each in observations:
        printer.line(f"on the source: {each.path}: {each.state.value if each.state else each.note}")
    _print_announcements(printer, settings, wanted)
    if older:
        printer.line(f"to examine the older row: cdc-archiver why {older[0].id} --table {older[0].table}")
    elif not is_id(wanted):
        printer.line("to register it by hand, on the machine that has the file: cdc-archiver register")
    return ExitStatus.INCOMPLETE


def _print_several_matches(rows: list[Row], wanted: str, max_attempts: int, *, as_json: bool) -> ExitStatus:
    shown, more = rows[:MAX_MATCHES], len(rows) > MAX_MATCHES
    with_state = [(row, state_of(row, max_attempts)) for row in shown]
    if as_json:
        print_json(json_answer.several_matches(rows, max_attempts))
    else:
        Printer().table(
            ("ID", "STATE", "PATH"),
            ((str(row.record.id), (state, STATE_STYLES[state]), row.record.path) for row, state in with_state),
        )
    count = f"more than {MAX_MATCHES}" if more else str(len(shown))
    print_to_stderr(f"{count} files match {wanted!r}; give the id of one: cdc-archiver why {shown[0].record.id}")
    return ExitStatus.USAGE


def _print(printer: Printer, facts: FileFacts, diagnosis: Diagnosis) -> None:
    record = facts.record
    printer.line((diagnosis.sentence, "bold"))
    printer.line()
    time = format_time(record.timestamp) if record.timestamp else "none"
    attempts = "none" if record.failed_copy_attempts is None else str(record.failed_copy_attempts)
    printer.facts(
        [
            ("row", f"{record.id} of {facts.table}"),
            ("state", (f"{facts.state}", STATE_STYLES[facts.state])),
            ("path", record.path),
            ("target", f"{record.instance_id}{f' of the source {facts.source}' if facts.source else ''}"),
            ("registered", f"timestamp {time}, action {record.action}, pub_id {record.pub_id}"),
            ("failed attempts", f"{attempts} (quarantined at {facts.max_attempts})"),
            ("md5 of the row", record.md5sum.hex() or "none"),
            ("in the archive", _place(facts)),
            *([("md5 there", facts.place.md5.hex())] if facts.place.md5 else []),
            ("on the source", _source(facts)),
            ("in the service", _service(facts)),
            *([("timecode", timecode_text(facts.timecode))] if facts.timecode else []),
        ]
    )
    printer.line()
    if facts.no_history:
        printer.line(f"Attempts are not known: {facts.no_history}")
    elif not facts.attempts:
        printer.line("The history has no entry for it.")
    else:
        printer.line(f"History ({len(facts.attempts)}):")
        for attempt in facts.attempts:
            _print_attempt(printer, attempt)
    printer.line()
    printer.line(("next  ", "dim"), diagnosis.following)
    for when, command in diagnosis.advice:
        printer.line(("do    ", "dim"), f"{when}: ", (command, "bold"))


def _place(facts: FileFacts) -> str:
    place = facts.place
    if place.path is None:
        return f"no place: {place.refused_why}"
    size = f", {format_size(place.size)} ({place.size} bytes)" if place.size is not None else ""
    text = {
        PlaceState.RIGHT: "exists, with the row's md5",
        PlaceState.THERE: "exists",
        PlaceState.WRONG: "exists, but is not the row's file",
        PlaceState.ABSENT: "does not exist",
        PlaceState.UNREADABLE: "exists, but cannot be read",
        PlaceState.NOT_LOOKED: "was not examined",
    }[place.state]
    note = f" ({place.note})" if place.note else ""
    refused = f"; {place.refused_why}" if place.refused else ""
    return f"{place.path} {text}{size}{note}{refused}"


def _source(facts: FileFacts) -> str:
    observation = facts.at_source
    if observation.path is None:
        return f"not examined: {observation.note}"
    if observation.state is None:
        return f"{observation.path} was not examined: {observation.note}"
    return f"{observation.path}: {at_source_text(facts)}"


def _service(facts: FileFacts) -> str:
    service = facts.service
    if not service.answered:
        return f"not asked: {service.note}"
    in_hand = service.in_hand
    if in_hand is None:
        return f"{service.state}; this file is not in flight"
    retry = f", next attempt in {in_hand['retry_in']:.0f} s" if in_hand.get("retry_in") is not None else ""
    return f"{service.state}; this file is in flight: {in_hand['state']}{retry}, found by the {in_hand['origin']}"


def _print_attempt(printer: Printer, attempt: HistoryEntry) -> None:
    parts = [attempt.result]
    if attempt.result == LATE:
        parts = [f"late: archived after readers were told of timecode {attempt.reason}"]
    elif attempt.reason:
        parts.append(f"{attempt.reason} ({reason_text(attempt.reason)})")
    if attempt.archived_path:
        parts.append(f"from {attempt.source_path} to {attempt.archived_path}")
    printer.line(f"  {format_time(attempt.at)}  {', '.join(parts)}")
    if attempt.detail:
        printer.line(f"      {attempt.detail}")
    if attempt.md5_seen:
        registered = attempt.md5_row.hex() if attempt.md5_row else "none"
        printer.line(f"      md5 registered {registered}, md5 of what arrived {attempt.md5_seen.hex()}")
