"""What is known of timecodes, as frozen values: for the status, the commands and those who are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from cdc_archiver.database.timecodes_table import StoredTimecode, TimecodeState


@dataclass(frozen=True, slots=True)
class TimecodeStatus:
    """A timecode of an instance_id. Field names are keys of the JSON answers.

    Attributes:
        timecode: five digits.
        generation: how often it was complete with other content; 0 before the first time.
        files, bytes: of what is archived; bytes are 0 where the history does not know them; both 0 before the first count.
        undecided: rows that are neither archived, refused nor ignored.
        reasons: what holds it up, by reason: a number of rows or, for reasons that are no rows, 1 (``REASON_FIXES``).
        late: late files, of all generations.
        digest: hexadecimal SHA-256 of the sorted distinct lines ``path below data_dir``, tab, md5; empty before the first count.
        told_by: ``before`` (it ended before the first start; told to nobody), ``marker``, ``status`` (no marker is configured),
            ``no_stream`` (no stream of the source is known); empty while it is not told.
        completed_at: aware; None before the first time.
        marker_path: of the timecode marker; empty without one; one path for each line where there are two.
        held: somebody wants it not to become complete; the reason is ``held_reason``.
        handed_over: somebody downstream took it over.
    """

    source: str
    instance_id: str
    timecode: int
    state: TimecodeState
    generation: int = 0
    files: int = 0
    bytes: int = 0
    ignored: int = 0
    refused: int = 0
    undecided: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    late: int = 0
    digest: str = ""
    told_by: str = ""
    completed_at: datetime | None = None
    marker_path: str = ""
    held: bool = False
    held_reason: str = ""
    handed_over: bool = False


def status_of(
    source: str, entry: StoredTimecode, *, held_reason: str = "", handed_over: bool = False
) -> TimecodeStatus:
    """A stored timecode as others see it.

    Args:
        held_reason: who holds it and why; empty where nobody does.
    """
    return TimecodeStatus(
        source=source,
        instance_id=entry.instance_id,
        timecode=entry.timecode,
        state=entry.state,
        generation=entry.generation,
        files=entry.files,
        bytes=entry.size,
        ignored=entry.ignored,
        refused=entry.refused,
        undecided=entry.undecided,
        reasons=dict(sorted(entry.reasons.items())),
        late=entry.late,
        digest=entry.digest.hex() if entry.digest else "",
        told_by=entry.told_by,
        completed_at=entry.completed_at,
        marker_path=entry.marker_path,
        held=bool(held_reason),
        held_reason=held_reason,
        handed_over=handed_over,
    )


@dataclass(frozen=True, slots=True)
class SourceWatermark:
    """How far a source has come: everything dated before ``finalized_until`` is archived or decided.

    Attributes:
        finalized_until: aware; None before the first look at the table.
        oldest_id, oldest_path: of the oldest undecided row; None and empty where nothing is undecided.
        bound_by: ``row``, ``registrar``, ``hold``, or ``sweep`` where nothing is undecided.
        silent_registrars: registrars of the source that have not reported for a while.
    """

    source: str
    finalized_until: datetime | None = None
    oldest_id: int | None = None
    oldest_path: str = ""
    bound_by: str = "sweep"
    silent_registrars: int = 0


class NoticeKind(StrEnum):
    """What somebody is told of a timecode. The values are part of the interface of notices."""

    COMPLETE = "complete"
    REOPENED = "reopened"
    BLOCKED = "blocked"
    LATE_FILE = "late_file"


@dataclass(frozen=True, slots=True)
class TimecodeNotice:
    """Something that happened to a timecode, delivered at most once.

    Attributes:
        path: of a late file in the archive; empty where it is not known which file it is.
        file_id: of a late file; None where it is not known.
        detail: one sentence for a person.
    """

    kind: NoticeKind
    source: str
    instance_id: str
    timecode: int
    generation: int = 0
    files: int = 0
    bytes: int = 0
    path: str = ""
    file_id: int | None = None
    detail: str = ""


REASON_FIXES: Mapping[str, str] = {
    "pending": "cdc-archiver list --state pending",
    "retried": "cdc-archiver list --state charged",
    "quarantined": "cdc-archiver retry --all-quarantined",
    "outside_root": "set --source-root to a directory that contains the files",
    "source_down": "cdc-archiver status",
    "handed_over": "cdc-archiver retry --id ID --into-handed-over, or: cdc-archiver hand-over --undo {timecode}",
    "other_rows_of_stream": "archive the other rows of these streams: cdc-archiver check names their table or instance_id",
    "registrar_behind": "wait: the registrar has not come to the timecode's end",
    "registrar_silent": "start the registrar, or: cdc-archiver timecodes --retire-registrar ID --reason TEXT",
    "registrar_lost": "cdc-archiver timecodes {timecode} --accept-missing --reason TEXT",
    "registrar_gaps": "cdc-archiver timecodes {timecode} --accept-missing --reason TEXT",
}
"""The command that helps, by the reason why a timecode is blocked; ``{timecode}`` stands for its number."""


class MarkEntry(Protocol):
    """An entry of somebody who held a timecode, or took it over."""

    @property
    def by_whom(self) -> str: ...
    @property
    def reason(self) -> str: ...


class MarksView(Protocol):
    """The marks in force; implemented by :mod:`cdc_archiver.database.marks`."""

    def held(self, instance_id: str, timecode: int) -> MarkEntry | None: ...
    def handed_over(self, instance_id: str, timecode: int) -> MarkEntry | None: ...


class NoMarks:
    """Stands for marks where there are none."""

    def held(self, instance_id: str, timecode: int) -> MarkEntry | None:
        return None

    def handed_over(self, instance_id: str, timecode: int) -> MarkEntry | None:
        return None
