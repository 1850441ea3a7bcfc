"""Gathers all facts about one file: row, archive, history, source, service. Changes nothing."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from cdc_archiver.commands.archive_access import ArchiveUnavailable, require_mounted
from cdc_archiver.commands.context import CommandContext
from cdc_archiver.commands.hashing import hash_file
from cdc_archiver.commands.service_client import (
    ServiceUnavailable,
    describe_other_table,
    fetch_status,
    get_json,
)
from cdc_archiver.commands.why.timecode_facts import TimecodeOfFile, timecode_of_file
from cdc_archiver.database import schema
from cdc_archiver.database.files_table import FilesTable, Row
from cdc_archiver.database.operator_history import HistoryEntry
from cdc_archiver.database.search import Criteria, RowState, is_id, state_of, walk
from cdc_archiver.errors import ArchiverError, LayoutRefused
from cdc_archiver.model import FileRecord, Reason
from cdc_archiver.settings import SourceSettings
from cdc_archiver.transfer import layout
from cdc_archiver.transfer.probe import Probe
from cdc_archiver.transfer.source_files import FileState, foreign_link_text

MAX_MATCHES: Final = 20
_PROBE_SECONDS: Final = 10.0
_CONCLUSIVE: Final = frozenset(
    {FileState.OK, FileState.MISSING, FileState.UNREADABLE, FileState.NOT_A_FILE, FileState.ROOT_GONE}
)
"""States that a probe has seen; the others say that it could not look."""


class PlaceState(StrEnum):
    """The state of a file's place in the archive. The values are values of ``--json``."""

    RIGHT = "right"
    """The file exists, with the row's md5."""
    THERE = "there"
    """The file exists; it was not hashed."""
    WRONG = "wrong"
    """A file with another md5 exists, or no regular file."""
    ABSENT = "absent"
    UNREADABLE = "unreadable"
    NOT_LOOKED = "not looked"


@dataclass(frozen=True, slots=True)
class ArchivePlace:
    """A file's place in the archive. Field names are keys of ``--json``, in all classes here.

    Attributes:
        path: absolute if data_dir is known, else below it; None if the row would be refused.
        size: bytes.
        refused, refused_why: the reason for which the row would be refused.
    """

    path: str | None
    state: PlaceState
    note: str = ""
    size: int | None = None
    md5: bytes | None = None
    refused: Reason | None = None
    refused_why: str = ""


@dataclass(frozen=True, slots=True)
class SourceObservation:
    """The file on its source, as it is now.

    Attributes:
        path: on the source; None if it is not known.
        state: None if the source could not be examined; ``note`` tells the reason.
        note: with a state, what else concerns the file there.
        outside: the path is not below the source root, so no service reads it.
    """

    path: str | None
    state: FileState | None
    note: str = ""
    outside: bool = False


@dataclass(frozen=True, slots=True)
class ServiceObservation:
    """The running service's view of the file.

    Attributes:
        answered: whether a service answers that works on this table; if not, ``note`` tells the reason.
        nobodys: the reason why this service will never take the file up; empty if it may.
        source: its state of the file's source; None if it has no such source.
        in_hand: the file's state in its pipeline; None if it is not there.
    """

    answered: bool
    note: str = ""
    state: str = ""
    why: str = ""
    nobodys: str = ""
    source: dict[str, Any] | None = None
    destination: dict[str, Any] | None = None
    in_hand: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class FileFacts:
    """All facts about one file.

    Attributes:
        source: the name of its source; None if no configured source has its target.
        targets: the configured targets.
        no_history: the reason why the history could not be read; empty if it was.
        timecode: None if the row belongs to none.
    """

    record: FileRecord
    state: RowState
    max_attempts: int
    table: str
    source: str | None
    targets: tuple[str, ...]
    place: ArchivePlace
    at_source: SourceObservation
    service: ServiceObservation
    attempts: tuple[HistoryEntry, ...]
    no_history: str
    timecode: TimecodeOfFile | None


@dataclass(frozen=True, slots=True)
class OlderRow:
    """A row of an older table of files, which no service works on."""

    table: str
    id: int


def find_rows(context: CommandContext, wanted: str) -> list[Row]:
    """The rows that an id, a path or a part of a path may mean, newest first; at most one more than are shown."""
    limit = MAX_MATCHES + 1
    with context.database.connect() as connection:
        if is_id(wanted) and (found := list(context.files.load(connection, [int(wanted)]).values())):
            return found
        for part in (False, True):
            criteria = Criteria(part=wanted) if part else Criteria(paths=(wanted,))
            conditions = criteria.conditions(context.files)
            rows = {}
            for row in context.files.rows(connection, *conditions, newest_first=True, limit=limit):
                # A path with * is a pattern only if no file has that name.
                if part or row.record.path == wanted or ("*" in wanted or "?" in wanted):
                    rows[row.record.id] = row
            if context.history is not None:
                ids = context.history.find(connection, wanted, part=part, limit=limit)
                rows.update(context.files.load(connection, [id_ for id_ in ids if id_ not in rows]))
            if exact := [row for row in rows.values() if row.record.path == wanted]:
                rows = {row.record.id: row for row in exact}
            if rows:
                return sorted(rows.values(), key=lambda row: -row.record.id)[:limit]
    return []


def gather_facts(context: CommandContext, row: Row, *, hash_all: bool = False) -> FileFacts:
    """All facts about one row.

    Args:
        hash_all: hash the archived file whatever its size.
    """
    record = row.record
    attempts: list[HistoryEntry] = []
    no_history = context.no_history
    if context.history is not None:
        try:
            with context.database.connect() as connection:
                attempts = context.history.of_file(connection, record.id)
        except sa.exc.DBAPIError as error:
            no_history = str(error.orig)
    source = context.source_of(record.instance_id)
    max_size = None if hash_all else context.settings.small_limit
    return FileFacts(
        record=record,
        state=state_of(row, context.settings.max_attempts),
        max_attempts=context.settings.max_attempts,
        table=context.files.name,
        source=source.name if source else None,
        targets=tuple(context.settings.targets),
        place=_archive_place(context, row, max_size),
        at_source=_source_observation(source, row, attempts, no_history, configured=bool(context.settings.sources)),
        service=_service_observation(context, record),
        attempts=tuple(attempts),
        no_history=no_history,
        timecode=timecode_of_file(context, row, attempts),
    )


def older_rows(context: CommandContext, path: str) -> list[OlderRow]:
    """Rows with exactly this path in the older tables of files, one of each table."""
    if not posixpath.isabs(path):
        return []
    found = []
    with context.database.connect() as connection:
        for name in schema.older_versions(connection, context.database.name, context.files.name):
            older = FilesTable(name, 0, context.settings.max_attempts)
            rows = walk(context.database, older, Criteria(paths=(path,)), limit=1)
            found += [OlderRow(name, row.record.id) for row in rows if row.record.path == path]
    return found


def observe_at_sources(context: CommandContext, path: str) -> list[SourceObservation]:
    """A file that no row names, as each source has it."""
    if not posixpath.isabs(path):
        return []
    return [_observe_at_source(source, path) for source in context.settings.sources]


def _archive_place(context: CommandContext, row: Row, max_size: int | None) -> ArchivePlace:
    record, data_dir = row.record, context.settings.data_dir
    if row.copied:
        return _examine_place(context, Path(record.path), record.md5sum, max_size)
    try:
        relative = layout.archived_path(record, context.settings.oldest_timestamp)
        path = str(data_dir / relative) if data_dir else str(relative)
        layout.require_fit(path, context.files.path_width)
    except LayoutRefused as refusal:
        return ArchivePlace(None, PlaceState.NOT_LOOKED, "", refused=refusal.reason, refused_why=refusal.message)
    if len(record.md5sum) != 16:
        why = "the row has no md5sum of 16 bytes"
        return ArchivePlace(path, PlaceState.NOT_LOOKED, refused=Reason.NO_MD5, refused_why=why)
    if data_dir is None:
        return ArchivePlace(path, PlaceState.NOT_LOOKED, "data_dir is not set here: add --data-dir")
    return _examine_place(context, Path(path), record.md5sum, max_size)


def _examine_place(context: CommandContext, path: Path, md5: bytes, max_size: int | None) -> ArchivePlace:
    """Looks at a place in the archive.

    Args:
        max_size: bytes up to which the file is hashed; None for any size.
    """
    text = str(path)
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            return ArchivePlace(text, PlaceState.WRONG, "it is not a regular file")
        if max_size is not None and found.st_size > max_size:
            return ArchivePlace(text, PlaceState.THERE, "not hashed: add --hash", size=found.st_size)
        seen, _ = hash_file(path)
    except (FileNotFoundError, NotADirectoryError):
        why_not_known = _why_absence_is_not_known(context, path)
        if why_not_known:
            return ArchivePlace(text, PlaceState.NOT_LOOKED, why_not_known)
        return ArchivePlace(text, PlaceState.ABSENT)
    except OSError as error:
        return ArchivePlace(text, PlaceState.UNREADABLE, error.strerror or str(error))
    except ValueError:  # a NUL in the path
        return ArchivePlace(text, PlaceState.ABSENT, "no file can have that name")
    return ArchivePlace(text, PlaceState.RIGHT if seen == md5 else PlaceState.WRONG, size=found.st_size, md5=seen)


def _why_absence_is_not_known(context: CommandContext, path: Path) -> str:
    """The reason why a file that does not exist here may exist in the archive; empty if it is missing there."""
    data_dir = context.settings.data_dir
    if data_dir is None:
        if os.path.isdir(path.parent):
            return ""
        return "its directory does not exist on this machine; with --data-dir the file counts as missing"
    if not str(path).startswith(f"{data_dir}/"):
        return f"it is not below --data-dir, {data_dir}; it may be on another node"
    try:
        require_mounted(context)
    except ArchiveUnavailable as error:
        return str(error)
    return ""


def _source_observation(
    source: SourceSettings | None, row: Row, attempts: Sequence[HistoryEntry], no_history: str, *, configured: bool
) -> SourceObservation:
    path: str | None = row.record.path
    if row.copied:
        origins = [each.source_path for each in attempts if each.archived_path == row.record.path]
        path = origins[-1] if origins else None
    if path is None:
        return SourceObservation(None, None, no_history or "the history does not know its path on the source")
    if source is None:
        note = (
            "its instance_id is not a configured target"
            if configured
            else "no source is configured: add --host and --target"
        )
        return SourceObservation(path, None, note)
    observation = _observe_at_source(source, path)
    if row.copied or observation.state is not FileState.OK:
        return observation
    link = Probe(source, limit=_PROBE_SECONDS).foreign_link(observation.path or path)
    return replace(observation, note=foreign_link_text(link)) if link else observation


def _observe_at_source(source: SourceSettings, path: str) -> SourceObservation:
    try:
        path = posixpath.join("/", source.source_root, layout.source_entry(_record_with(path), source.source_root))
    except LayoutRefused as refusal:
        return SourceObservation(path, None, refusal.message, outside=refusal.reason is Reason.OUTSIDE_ROOT)
    state, note = probe_files(source, [path])[path]
    return SourceObservation(path, state, note)


def probe_files(source: SourceSettings, paths: Sequence[str]) -> dict[str, tuple[FileState | None, str]]:
    """The states of files on their source. A state is None if the source could not be examined, with the reason.

    Args:
        paths: absolute.
    """
    if source.restricted_key:
        note = f"the key for {source.name} is restricted to rsync, so the file cannot be examined"
        return dict.fromkeys(paths, (None, note))
    probe = Probe(source, limit=_PROBE_SECONDS)
    states = probe.diagnose(paths)
    note = ""
    if not _CONCLUSIVE.issuperset(states.values()):
        try:
            note = probe.inspect().unknown_because
        except ArchiverError as error:
            note = str(error)
        note = note or f"{source.name} does not answer"
    return {path: (state, "") if state in _CONCLUSIVE else (None, note) for path, state in states.items()}


def _record_with(path: str) -> FileRecord:
    """A record with only a path."""
    return FileRecord(0, path, b"", None, None, None, False, None, "", None)


def _service_observation(context: CommandContext, record: FileRecord) -> ServiceObservation:
    try:
        status = fetch_status(context.settings)
        if other := describe_other_table(context.settings, status, context.files.name):
            return ServiceObservation(False, f"the service works on {other}")
        folded = record.instance_id.casefold().rstrip()  # as the service compares them
        all_targets = [target for each in status["sources"] for target in each.get("targets", ())]
        sources = [
            each for each in status["sources"] if folded in {target.casefold().rstrip() for target in each["targets"]}
        ]
        answer = get_json(context.settings, f"/api/file/{record.id}")
        return ServiceObservation(
            answered=True,
            state=str(status["state"]),
            why=str(status.get("why") or ""),
            nobodys=_why_not_taken_up(context, record, status, all_targets) if all_targets and not sources else "",
            source=sources[0].get("state") if sources else None,
            destination=status.get("destination"),
            in_hand=answer.get("in_hand"),
        )
    except ServiceUnavailable as error:
        return ServiceObservation(False, str(error))


def _why_not_taken_up(
    context: CommandContext, record: FileRecord, status: dict[str, Any], targets: Sequence[str]
) -> str:
    """The reason why the service will not take a file up whose target it does not have.

    Args:
        targets: those of the service.
    """
    source = context.source_of(record.instance_id)
    elsewhere = {str(each["name"]): str(each["holder"]) for each in status.get("elsewhere", ())}
    if source is not None and source.name in elsewhere:
        return f"another archiver holds its source {source.name}: {elsewhere[source.name]}"
    sentence = f"the service does not have its target {record.instance_id!r} (it has {', '.join(targets)})"
    others = "; ".join(f"{name}: {holder}" for name, holder in elsewhere.items())
    return sentence + (f"; other sources are held by another archiver: {others}" if others else "")
