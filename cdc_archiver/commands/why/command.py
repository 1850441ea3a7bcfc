"""`cdc-archiver why`: why is this file not here?"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from cdc_archiver.commands.context import open_context
from cdc_archiver.commands.output import STATE_STYLES, Page, complain, print_json, size_words
from cdc_archiver.commands.why import lookup as inquiry
from cdc_archiver.commands.why.diagnosis import Diagnosis, at_source_words, diagnose, reason_words
from cdc_archiver.commands.why.facts import (
    MOST_MATCHES,
    AtSource,
    Facts,
    OlderRow,
    PlaceState,
    find,
    look,
    older_rows,
    seen_at_sources,
)
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.operator_history import HistoryEntry
from cdc_archiver.database.search import is_id, state_of
from cdc_archiver.errors import ExitStatus
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.timespec import format_time

HELP: Final = """
Say why a file is not here.

Looks at the row, the archive, the history, the source and the running service.

FILE is an id, a path on the source, an archived path, or a part of one. Where several match, they are listed.

Examples:

  cdc-archiver why 4711

  cdc-archiver why /data/smurf_data/20260515/crate1slot2/1589517264/outputs/1589517300_iv.npy

  cdc-archiver why 1589517300_iv.npy --json

It needs the database alone; what else it can look at, it does: the archive with --data-dir, the source with --host and --target,
and says what it could not.

Exit status: 0 told; 2 several files match; 3 no row names it; 4 the database cannot be reached.
"""


def why(
    settings: Settings,
    file: Annotated[str, typer.Argument(metavar="FILE", help="An id, a path, or a part of a path.")],
    hash_all: Annotated[bool, typer.Option("--hash", help="Hash the archived file however large it is.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    now = datetime.now(UTC)
    with open_context(settings) as desk:
        rows = find(desk, file)
        if not rows:
            return _nobody(desk.files.name, file, older_rows(desk, file), seen_at_sources(desk, file), as_json=as_json)
        if len(rows) > 1:
            return _which(rows, file, settings.max_attempts, as_json=as_json)
        facts = look(desk, rows[0], hash_all=hash_all)
    told = diagnose(facts, now)
    if as_json:
        print_json(inquiry.told(facts, told))
    else:
        _print(Page(), facts, told)
    return ExitStatus.DONE


def _nobody(table: str, wanted: str, older: list[OlderRow], seen: list[AtSource], *, as_json: bool) -> ExitStatus:
    if as_json:
        print_json(inquiry.nobody(table, wanted, older, seen))
        return ExitStatus.INCOMPLETE
    page = Page()
    page.line(inquiry.nobody_words(table, wanted, older))
    for each in seen:
        page.line(f"on the source: {each.path}: {each.state.value if each.state else each.note}")
    if older:
        page.line(f"to look at it there: cdc-archiver why {older[0].id} --table {older[0].table}")
    elif not is_id(wanted):
        page.line("if it should be: `cdc-archiver register` does it by hand, where the file is")
    return ExitStatus.INCOMPLETE


def _which(rows: list[Row], wanted: str, max_attempts: int, *, as_json: bool) -> ExitStatus:
    shown, more = rows[:MOST_MATCHES], len(rows) > MOST_MATCHES
    listed = [(row, state_of(row, max_attempts)) for row in shown]
    if as_json:
        print_json(inquiry.which(rows, max_attempts))
    else:
        Page().table(
            ("ID", "STATE", "PATH"),
            ((str(row.record.id), (state, STATE_STYLES[state]), row.record.path) for row, state in listed),
        )
    many = f"more than {MOST_MATCHES}" if more else str(len(shown))
    complain(f"{many} files match {wanted!r}: which one? Say its id: cdc-archiver why {shown[0].record.id}")
    return ExitStatus.USAGE


def _print(page: Page, facts: Facts, told: Diagnosis) -> None:
    record = facts.record
    page.line((told.sentence, "bold"))
    page.line()
    time = format_time(record.timestamp) if record.timestamp else "none"
    attempts = "none" if record.failed_copy_attempts is None else str(record.failed_copy_attempts)
    page.facts(
        [
            ("row", f"{record.id} of {facts.table}"),
            ("state", (f"{facts.state}", STATE_STYLES[facts.state])),
            ("path", record.path),
            ("target", f"{record.instance_id}{f' of the source {facts.source}' if facts.source else ''}"),
            ("registered", f"timestamp {time}, action {record.action}, pub_id {record.pub_id}"),
            ("failed attempts", f"{attempts} (given up at {facts.max_attempts})"),
            ("md5 of the row", record.md5sum.hex() or "none"),
            ("in the archive", _place(facts)),
            *([("md5 there", facts.place.md5.hex())] if facts.place.md5 else []),
            ("on the source", _source(facts)),
            ("the service", _service(facts)),
        ]
    )
    page.line()
    if facts.no_history:
        page.line(f"What was tried is not known: {facts.no_history}")
    elif not facts.attempts:
        page.line("The history has nothing about it.")
    else:
        page.line(f"What was tried ({len(facts.attempts)}):")
        for attempt in facts.attempts:
            _print_attempt(page, attempt)
    page.line()
    page.line(("next  ", "dim"), told.following)
    for when, command in told.advice:
        page.line(("do    ", "dim"), f"{when}: ", (command, "bold"))


def _place(facts: Facts) -> str:
    place = facts.place
    if place.path is None:
        return f"nowhere: {place.refused_why}"
    size = f", {size_words(place.size)} ({place.size} bytes)" if place.size is not None else ""
    words = {
        PlaceState.RIGHT: "is there, with the row's md5",
        PlaceState.THERE: "is there",
        PlaceState.WRONG: "is there, and is not the row's file",
        PlaceState.ABSENT: "is not there",
        PlaceState.UNREADABLE: "is there, and cannot be read",
        PlaceState.NOT_LOOKED: "was not looked at",
    }[place.state]
    note = f" ({place.note})" if place.note else ""
    refused = f"; {place.refused_why}" if place.refused else ""
    return f"{place.path} {words}{size}{note}{refused}"


def _source(facts: Facts) -> str:
    seen = facts.at_source
    if seen.path is None:
        return f"not looked at: {seen.note}"
    if seen.state is None:
        return f"{seen.path} was not looked at: {seen.note}"
    return f"{seen.path}: {at_source_words(facts)}"


def _service(facts: Facts) -> str:
    service = facts.service
    if not service.answered:
        return f"not asked: {service.note}"
    hand = service.in_hand
    if hand is None:
        return f"{service.state}; it does not have this file in hand"
    again = f", again in {hand['retry_in']:.0f} s" if hand.get("retry_in") is not None else ""
    return f"{service.state}; it has this file in hand: {hand['state']}{again}, told of it by the {hand['origin']}"


def _print_attempt(page: Page, attempt: HistoryEntry) -> None:
    words = [attempt.result]
    if attempt.reason:
        words.append(f"{attempt.reason} ({reason_words(attempt.reason)})")
    if attempt.archived_path:
        words.append(f"from {attempt.source_path} to {attempt.archived_path}")
    page.line(f"  {format_time(attempt.at)}  {', '.join(words)}")
    if attempt.detail:
        page.line(f"      {attempt.detail}")
    if attempt.md5_seen:
        registered = attempt.md5_row.hex() if attempt.md5_row else "none"
        page.line(f"      md5 registered {registered}, md5 of what arrived {attempt.md5_seen.hex()}")
