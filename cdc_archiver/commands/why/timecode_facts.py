"""What is known of the timecode of one file: its state, its marks, its registrars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cdc_archiver.commands import marking
from cdc_archiver.commands.context import CommandContext
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.marks import Mark, MarkKind
from cdc_archiver.database.operator_history import LATE, HistoryEntry
from cdc_archiver.database.registrars import Registrar, read_reports
from cdc_archiver.database.timecode_search import find_timecodes
from cdc_archiver.errors import Misconfigured
from cdc_archiver.timespec import format_time
from cdc_archiver.transfer.layout import timecode_of


@dataclass(frozen=True, slots=True)
class TimecodeOfFile:
    """The timecode of a file. Field names are keys of ``--json``.

    Attributes:
        state: empty if it is not known; ``note`` tells the reason.
        late: the file was archived after readers were told of the timecode.
        held, handed_over: the marks in force for this file.
    """

    timecode: int
    state: str
    note: str
    generation: int
    told_by: str
    completed_at: datetime | None
    late: bool
    held: Mark | None
    handed_over: Mark | None
    registrars: tuple[Registrar, ...]


def timecode_of_file(context: CommandContext, row: Row, attempts: Sequence[HistoryEntry]) -> TimecodeOfFile | None:
    """The timecode of a row's file; None if it has none.

    Args:
        attempts: the file's history.
    """
    record = row.record
    timecode = timecode_of(record, record.path if row.copied else None)
    if timecode is None:
        return None
    note, entry = "", None
    with context.database.connect() as connection:
        try:
            with marking.side_table_errors("timecodes"):
                stored = find_timecodes(connection, context.files.name, [timecode], [record.instance_id])
            entry = next(iter(stored), None)
            note = "" if entry else "no service has entered it yet"
        except Misconfigured as error:
            note = error.message
        marks = marking.usable_marks(context, connection)
        reports = read_reports(connection, [record.instance_id])
    return TimecodeOfFile(
        timecode=timecode,
        state=entry.state.value if entry else "",
        note=note,
        generation=entry.generation if entry else 0,
        told_by=entry.told_by if entry else "",
        completed_at=entry.completed_at if entry else None,
        late=any(attempt.result == LATE for attempt in attempts),
        held=marks.held(record.instance_id, timecode, datetime.now(UTC)),
        handed_over=marks.handed_over(record.instance_id, timecode, record.id),
        registrars=tuple(reports.registrars),
    )


def mark_text(mark: Mark) -> str:
    """A mark for a person: who, when, until when, why."""
    end = f", until {format_time(mark.until)}" if mark.until else ""
    preposition = "to" if mark.kind is MarkKind.HANDED_OVER else "by"
    return f"{preposition} {mark.by_whom}, {format_time(mark.at)}{end}: {mark.reason}"


def registrar_text(registrar: Registrar) -> str:
    """A registrar for a person: how far it has come."""
    if registrar.finished:
        return f"{registrar.registrar_id} was stopped, with nothing left to register"
    heard = f"last heard {format_time(registrar.heard)}" if registrar.heard else "never heard"
    known = f"has registered up to {format_time(registrar.watermark)}" if registrar.watermark else "has no watermark"
    return f"{registrar.registrar_id} {known}, {heard}"


def timecode_text(found: TimecodeOfFile) -> str:
    """The timecode for a person, on one line."""
    told = ", told to nobody" if found.told_by in ("before", "no_stream") else ""
    parts = [f"{found.state}{told}" if found.state else f"state not known: {found.note}"]
    if found.late:
        parts.append("this file came late")
    if found.held:
        parts.append(f"held {mark_text(found.held)}")
    if found.handed_over:
        parts.append(f"handed over {mark_text(found.handed_over)}")
    parts += [f"registrar {registrar_text(each)}" for each in found.registrars]
    return f"{found.timecode}, {'; '.join(parts)}"
