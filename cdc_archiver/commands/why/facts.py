"""`why`: all that can be found out about one file; looks, and changes nothing."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from cdc_archiver.commands.archive_access import ArchiveAway, require_mounted
from cdc_archiver.commands.context import CommandContext
from cdc_archiver.commands.hashing import hash_file
from cdc_archiver.commands.service_client import NoService, ask, status_of, works_on
from cdc_archiver.database import schema
from cdc_archiver.database.files_table import FilesTable, Row
from cdc_archiver.database.operator_history import HistoryEntry
from cdc_archiver.database.search import Criteria, RowState, is_id, state_of, walk
from cdc_archiver.errors import ArchiverError, LayoutRefused
from cdc_archiver.model import FileRecord, Reason
from cdc_archiver.settings import SourceSettings
from cdc_archiver.transfer import layout
from cdc_archiver.transfer.probe import FileState, Probe

MOST_MATCHES: Final = 20
_PROBE_SECONDS: Final = 10.0
_TOLD: Final = frozenset(
    {FileState.OK, FileState.MISSING, FileState.UNREADABLE, FileState.NOT_A_FILE, FileState.ROOT_GONE}
)
"""What is an answer; the others say that there is none."""


class PlaceState(StrEnum):
    """What is to be seen at a file's place in the archive."""

    RIGHT = "right"
    """It is there, with the row's md5."""
    THERE = "there"
    """It is there; too large to hash it unasked."""
    WRONG = "wrong"
    """It is there, with another md5."""
    ABSENT = "absent"
    UNREADABLE = "unreadable"
    NOT_LOOKED = "not looked"


@dataclass(frozen=True, slots=True)
class Place:
    """A file's place in the archive.

    Attributes:
        path: absolute where data_dir is known, else below it; None where the row names none.
        refused, refused_why: the row names no place, and why.
    """

    path: str | None
    state: PlaceState
    note: str = ""
    size: int | None = None
    md5: bytes | None = None
    refused: Reason | None = None
    refused_why: str = ""


@dataclass(frozen=True, slots=True)
class AtSource:
    """The file on its source, as it can be seen now.

    Attributes:
        path: there; None where it is not known.
        state: None where nobody has looked; the note says why.
        outside: the path is not below the source's root, so nobody ever looks.
    """

    path: str | None
    state: FileState | None
    note: str = ""
    outside: bool = False


@dataclass(frozen=True, slots=True)
class InService:
    """What the running service says.

    Attributes:
        answered: whether one answers that works on this table; the note says why not.
        nobodys: why it will never take the file up; empty where it may.
        source: its state of the file's source, None where it has no such source.
        in_hand: where the file is on its way through it, None where it is not.
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
class Facts:
    """All that is known of one file.

    Attributes:
        source: the name of its source; None where its instance_id is none of the configured targets.
        targets: those that are configured.
        no_history: why there are no attempts to tell of; empty where the history was read.
    """

    record: FileRecord
    state: RowState
    max_attempts: int
    table: str
    source: str | None
    targets: tuple[str, ...]
    place: Place
    at_source: AtSource
    service: InService
    attempts: tuple[HistoryEntry, ...]
    no_history: str


def find(desk: CommandContext, wanted: str) -> list[Row]:
    """The rows that an id, a path or a part of one may mean, newest first; one more than are shown, where there are more."""
    most = MOST_MATCHES + 1
    with desk.database.connect() as connection:
        if is_id(wanted) and (found := list(desk.files.load(connection, [int(wanted)]).values())):
            return found
        for part in (False, True):
            criteria = Criteria(part=wanted) if part else Criteria(paths=(wanted,))
            rows = {}
            for row in desk.files.rows(connection, *criteria.conditions(desk.files), newest_first=True, limit=most):
                # A path with * is a pattern only where no file is called so.
                if part or row.record.path == wanted or ("*" in wanted or "?" in wanted):
                    rows[row.record.id] = row
            if desk.history is not None:
                ids = desk.history.find(connection, wanted, part=part, limit=most)
                rows.update(desk.files.load(connection, [id_ for id_ in ids if id_ not in rows]))
            if exact := [row for row in rows.values() if row.record.path == wanted]:
                rows = {row.record.id: row for row in exact}
            if rows:
                return sorted(rows.values(), key=lambda row: -row.record.id)[:most]
    return []


def look(desk: CommandContext, row: Row, *, hash_all: bool = False) -> Facts:
    """Everything about one row.

    Args:
        hash_all: hash the archived file however large it is.
    """
    record = row.record
    attempts: list[HistoryEntry] = []
    no_history = desk.no_history
    if desk.history is not None:
        try:
            with desk.database.connect() as connection:
                attempts = desk.history.of_file(connection, record.id)
        except sa.exc.DBAPIError as error:
            no_history = str(error.orig)
    source = desk.source_of(record.instance_id)
    state = state_of(row, desk.settings.max_attempts)
    most = None if hash_all else desk.settings.small_limit
    return Facts(
        record=record,
        state=state,
        max_attempts=desk.settings.max_attempts,
        table=desk.files.name,
        source=source.name if source else None,
        targets=tuple(desk.settings.targets),
        place=_place(desk, row, most),
        at_source=_at_source(source, row, attempts, no_history, configured=bool(desk.settings.sources)),
        service=_service(desk, record),
        attempts=tuple(attempts),
        no_history=no_history,
    )


@dataclass(frozen=True, slots=True)
class OlderRow:
    """A row of a table that nobody works on any more."""

    table: str
    id: int


def older_rows(desk: CommandContext, path: str) -> list[OlderRow]:
    """Rows of exactly this path in the older tables of files, one of each table."""
    if not posixpath.isabs(path):
        return []
    found = []
    with desk.database.connect() as connection:
        for name in schema.older_versions(connection, desk.database.name, desk.files.name):
            older = FilesTable(name, 0, desk.settings.max_attempts)
            rows = walk(desk.database, older, Criteria(paths=(path,)), limit=1)
            found += [OlderRow(name, row.record.id) for row in rows if row.record.path == path]
    return found


def seen_at_sources(desk: CommandContext, path: str) -> list[AtSource]:
    """Whether a file that no row names is on any source."""
    if not posixpath.isabs(path):
        return []
    return [_seen(source, path) for source in desk.settings.sources]


def _place(desk: CommandContext, row: Row, most: int | None) -> Place:
    record, data_dir = row.record, desk.settings.data_dir
    if row.copied:
        return _look_at(desk, Path(record.path), record.md5sum, most)
    try:
        relative = layout.archived_path(record)
        path = str(data_dir / relative) if data_dir else str(relative)
        layout.require_fit(path, desk.files.path_width)
    except LayoutRefused as refusal:
        return Place(None, PlaceState.NOT_LOOKED, "", refused=refusal.reason, refused_why=refusal.message)
    if len(record.md5sum) != 16:
        return Place(
            path, PlaceState.NOT_LOOKED, refused=Reason.NO_MD5, refused_why="the row has no md5sum of 16 bytes"
        )
    if data_dir is None:
        return Place(path, PlaceState.NOT_LOOKED, "the archive's directory is not known here: --data-dir")
    return _look_at(desk, Path(path), record.md5sum, most)


def _look_at(desk: CommandContext, path: Path, md5: bytes, most: int | None) -> Place:
    text, data_dir = str(path), desk.settings.data_dir
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            return Place(text, PlaceState.WRONG, "it is there, and no regular file")
        if most is not None and found.st_size > most:
            return Place(text, PlaceState.THERE, "not hashed: --hash does it", size=found.st_size)
        seen, _ = hash_file(path)
    except (FileNotFoundError, NotADirectoryError):
        if data_dir is not None:
            if not text.startswith(f"{data_dir}/"):
                return Place(
                    text, PlaceState.NOT_LOOKED, f"it is not below --data-dir, {data_dir}: is it another node's?"
                )
            try:
                require_mounted(desk)
            except ArchiveAway as error:
                return Place(text, PlaceState.NOT_LOOKED, str(error))
        elif not os.path.isdir(path.parent):
            return Place(
                text,
                PlaceState.NOT_LOOKED,
                "its directory is not on this machine; with --data-dir it counts as missing",
            )
        return Place(text, PlaceState.ABSENT)
    except OSError as error:
        return Place(text, PlaceState.UNREADABLE, error.strerror or str(error))
    except ValueError:  # a NUL in the path
        return Place(text, PlaceState.ABSENT, "no file can have that name")
    return Place(text, PlaceState.RIGHT if seen == md5 else PlaceState.WRONG, size=found.st_size, md5=seen)


def _at_source(
    source: SourceSettings | None, row: Row, attempts: Sequence[HistoryEntry], no_history: str, *, configured: bool
) -> AtSource:
    path: str | None = row.record.path
    if row.copied:
        origins = [each.source_path for each in attempts if each.archived_path == row.record.path]
        path = origins[-1] if origins else None
    if path is None:
        return AtSource(None, None, no_history or "where it came from is not in the history")
    if source is None:
        words = (
            "its instance_id is none of the configured targets"
            if configured
            else "no source is given: --host and --target"
        )
        return AtSource(path, None, words)
    return _seen(source, path)


def _seen(source: SourceSettings, path: str) -> AtSource:
    try:
        path = posixpath.join("/", source.source_root, layout.source_entry(_record_of(path), source.source_root))
    except LayoutRefused as refusal:
        return AtSource(path, None, refusal.message, outside=refusal.reason is Reason.OUTSIDE_ROOT)
    state, words = source_files(source, [path])[path]
    return AtSource(path, state, words)


def source_files(source: SourceSettings, paths: Sequence[str]) -> dict[str, tuple[FileState | None, str]]:
    """What can be seen of files on their source; None where nobody can look, and why.

    Args:
        paths: absolute.
    """
    if source.restricted_key:
        return dict.fromkeys(paths, (None, f"the key for {source.name} is restricted to rsync, so nobody can look"))
    probe = Probe(source, limit=_PROBE_SECONDS)
    states = probe.diagnose(paths)
    words = ""
    if not _TOLD.issuperset(states.values()):
        try:
            words = probe.look().unknown
        except ArchiverError as error:
            words = str(error)
        words = words or f"{source.name} gives no answer"
    return {path: (state, "") if state in _TOLD else (None, words) for path, state in states.items()}


def _record_of(path: str) -> FileRecord:
    """A record with nothing but a path."""
    return FileRecord(0, path, b"", None, None, None, False, None, "", None)


def _service(desk: CommandContext, record: FileRecord) -> InService:
    try:
        status = status_of(desk.settings)
        if other := works_on(desk.settings, status, desk.files.name):
            return InService(False, f"the service that answers works on {other}")
        folded = record.instance_id.casefold().rstrip()  # as the service compares them
        theirs = [target for each in status["sources"] for target in each.get("targets", ())]
        sources = [
            each for each in status["sources"] if folded in {target.casefold().rstrip() for target in each["targets"]}
        ]
        answer = ask(desk.settings, f"/api/file/{record.id}")
        return InService(
            answered=True,
            state=str(status["state"]),
            why=str(status.get("why") or ""),
            nobodys=_nobodys(desk, record, status, theirs) if theirs and not sources else "",
            source=sources[0].get("state") if sources else None,
            destination=status.get("destination"),
            in_hand=answer.get("in_hand"),
        )
    except NoService as error:
        return InService(False, str(error))


def _nobodys(desk: CommandContext, record: FileRecord, status: dict[str, Any], theirs: Sequence[str]) -> str:
    """Why a service has nothing to do with a file."""
    source = desk.source_of(record.instance_id)
    elsewhere = {str(each["name"]): str(each["holder"]) for each in status.get("elsewhere", ())}
    if source is not None and source.name in elsewhere:
        return f"another archiver has its source {source.name}: {elsewhere[source.name]}"
    words = f"the service that answers does not have its target {record.instance_id!r} (it has {', '.join(theirs)})"
    others = "; ".join(f"{name}: {holder}" for name, holder in elsewhere.items())
    return words + (f"; of other sources another archiver has {others}" if others else "")
