"""The history as operators use it: looks up attempts, failures and former paths, and records the operators' own actions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from cdc_archiver.database.connections import error_code
from cdc_archiver.database.files_table import escape_like
from cdc_archiver.database.history import HISTORY_ERRORS, NAME, TABLE, to_stored_text
from cdc_archiver.model import Archived, FileRecord

_ENTRIES_LIMIT: Final = 1000
_ARCHIVED: Final = ("archived", "adopted")
_FAILED: Final = ("charged", "refused", "not_recordable")
_DETAIL_CHARACTERS: Final = 2000

IGNORED: Final = "ignored"
RESTORED: Final = "restored"
RETRIED: Final = "retried"
REQUEUED: Final = "requeued"
LATE: Final = "late"
NOT_RECORDABLE: Final = "not_recordable"


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """An entry of the history.

    Attributes:
        at: aware, UTC.
        result: archived, adopted, charged, refused, not_recordable; for an operator's action: retried, ignored, restored,
            requeued; late.
        detail: rsync's message, or the operator's.
        md5_seen: of the bytes that arrived, where it differs from the row's.
    """

    at: datetime
    file_id: int
    source: str
    result: str
    reason: str | None
    detail: str
    source_path: str
    archived_path: str | None
    size: int | None
    md5_row: bytes | None
    md5_seen: bytes | None


@dataclass(frozen=True, slots=True)
class LateFile:
    """A file that was archived after readers were told of its timecode. Field names are keys of ``timecodes --json``.

    Attributes:
        at: when that was noticed; aware, UTC.
        path: in the archive, at that time.
    """

    id: int
    at: datetime
    path: str


class OperatorHistory:
    """The history of one table of files, for operators. Each method takes the connection that it uses.

    Args:
        file_table: name of the table of files.
    """

    def __init__(self, file_table: str) -> None:
        self._file_table = file_table
        self._ours = TABLE.c.file_table == file_table

    def of_file(self, connection: sa.Connection, id_: int) -> list[HistoryEntry]:
        """The newest 1,000 entries of a file, oldest first."""
        entries = (
            sa.select(TABLE).where(self._ours, TABLE.c.file_id == id_).order_by(TABLE.c.id.desc()).limit(_ENTRIES_LIMIT)
        )
        return [_entry(row) for row in connection.execute(entries)][::-1]

    def last_failures(self, connection: sa.Connection, ids: Sequence[int]) -> dict[int, HistoryEntry]:
        """The last failed attempt of each file that has one."""
        return self._last(connection, ids, _FAILED)

    def not_recordable(self, connection: sa.Connection, ids: Sequence[int]) -> dict[int, HistoryEntry]:
        """Of these pending files, those whose result the database refuses to record, each with that entry: nothing else was
        recorded of them since."""
        last = self._last(connection, ids, (NOT_RECORDABLE, "charged", *_ARCHIVED, RETRIED, RESTORED, REQUEUED))
        return {id_: entry for id_, entry in last.items() if entry.result == NOT_RECORDABLE}

    def last_archived(self, connection: sa.Connection, ids: Sequence[int]) -> dict[int, HistoryEntry]:
        """The last entry of each file that records its archiving, and with it the source path."""
        return self._last(connection, ids, _ARCHIVED)

    def find(self, connection: sa.Connection, path: str, *, part: bool, limit: int) -> list[int]:
        """The ids of files with a source path or archived path, newest first.

        Args:
            part: whether ``path`` may be a part of it.
            limit: maximum number of ids.
        """
        stored = to_stored_text(path)
        columns = (TABLE.c.source_path, TABLE.c.archived_path)
        wanted = [
            column.like(f"%{escape_like(stored)}%", escape="!") if part else column == stored for column in columns
        ]
        ids = sa.select(TABLE.c.file_id).where(self._ours, sa.or_(*wanted)).group_by(TABLE.c.file_id)
        return [int(id_) for id_ in connection.execute(ids.order_by(TABLE.c.file_id.desc()).limit(limit)).scalars()]

    def record_late(self, connection: sa.Connection, file: Archived, timecode: int) -> None:
        """Adds an entry for a file that was archived after readers were told of its timecode."""
        entry = {
            "at": datetime.now(UTC).replace(tzinfo=None),
            "file_table": self._file_table,
            "file_id": file.record.id,
            "instance_id": file.record.instance_id,
            "source": "",
            "result": LATE,
            "reason": str(timecode),
            "source_path": to_stored_text(file.record.path),
            "archived_path": to_stored_text(file.path),
            "md5_row": file.record.md5sum,
        }
        connection.execute(sa.insert(TABLE), entry)

    def late_files(self, connection: sa.Connection, instance_id: str, timecode: int, since: datetime) -> list[LateFile]:
        """The late files of a timecode, oldest first.

        Args:
            since: none was noticed before; aware.
        """
        entries = sa.select(TABLE).where(
            self._ours,
            TABLE.c.at >= since.astimezone(UTC).replace(tzinfo=None),
            TABLE.c.result == LATE,
            TABLE.c.instance_id == instance_id,
            TABLE.c.reason == str(timecode),
        )
        return [
            LateFile(entry.file_id, entry.at, entry.archived_path or "")
            for entry in map(_entry, connection.execute(entries.order_by(TABLE.c.id).limit(_ENTRIES_LIMIT)))
        ]

    def archived_since(self, connection: sa.Connection, since: datetime, targets: Sequence[str]) -> tuple[int, int]:
        """The number of files archived since a time, and their size in bytes.

        Args:
            targets: only of these; empty for all.
        """
        done = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(TABLE.c.size), 0)).where(
            self._ours,
            TABLE.c.at >= since.astimezone(UTC).replace(tzinfo=None),
            TABLE.c.result.in_(_ARCHIVED),
            *([TABLE.c.instance_id.in_(targets)] if targets else []),
        )
        files, size = connection.execute(done).one()
        return int(files), int(size)

    def source_paths(self, connection: sa.Connection, below: str, after: int, limit: int) -> list[tuple[int, str]]:
        """The source paths of archived files, each with the id of its entry.

        Args:
            below: only paths below this directory.
            after: only entries with a higher id.
            limit: maximum number of entries.
        """
        entries = sa.select(TABLE.c.id, TABLE.c.source_path).where(
            self._ours,
            TABLE.c.id > after,
            TABLE.c.result.in_(_ARCHIVED),
            TABLE.c.source_path.like(escape_like(to_stored_text(below.rstrip("/"))) + "/%", escape="!"),
        )
        return [
            (int(id_), _from_stored_text(path))
            for id_, path in connection.execute(entries.order_by(TABLE.c.id).limit(limit))
        ]

    def record_operator_action(
        self, connection: sa.Connection, records: Sequence[FileRecord], result: str, detail: str
    ) -> None:
        """Adds an entry for an operator's action on each file, within the caller's transaction.

        Args:
            result: one of retried, ignored, restored, requeued.
            detail: who, and why.
        """
        now = datetime.now(UTC).replace(tzinfo=None)
        entries: list[dict[str, Any]] = [
            {
                "at": now,
                "file_table": self._file_table,
                "file_id": record.id,
                "instance_id": record.instance_id,
                "source": "",
                "result": result,
                "detail": to_stored_text(detail[:_DETAIL_CHARACTERS]),
                "source_path": to_stored_text(record.path),
                "md5_row": record.md5sum,
            }
            for record in records
        ]
        if entries:
            connection.execute(sa.insert(TABLE), entries)

    def _last(self, connection: sa.Connection, ids: Sequence[int], results: Sequence[str]) -> dict[int, HistoryEntry]:
        newest = (
            sa.select(sa.func.max(TABLE.c.id))
            .where(self._ours, TABLE.c.file_id.in_(ids), TABLE.c.result.in_(results))
            .group_by(TABLE.c.file_id)
        )
        newest_ids = list(connection.execute(newest).scalars()) if ids else []
        entries = connection.execute(sa.select(TABLE).where(TABLE.c.id.in_(newest_ids))) if newest_ids else ()
        return {row.file_id: _entry(row) for row in entries}


def why_not_readable(connection: sa.Connection) -> str:
    """The reason why the history cannot be read, one sentence; empty where it can be read."""
    try:
        connection.execute(sa.select(TABLE).limit(1))
    except sa.exc.DBAPIError as error:
        if error_code(error) not in HISTORY_ERRORS:
            raise
        return f"the history {NAME} cannot be read: {error.orig.args[-1] if error.orig and error.orig.args else error}"
    return ""


def _from_stored_text(stored: str) -> str:
    """The path that the history stores, with the bytes that are not UTF-8 restored: the inverse of :func:`to_stored_text`."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda match: chr(0xDC00 + int(match[1], 16)), stored)


def _entry(row: Any) -> HistoryEntry:
    return HistoryEntry(
        at=row.at.replace(tzinfo=UTC),
        file_id=row.file_id,
        source=row.source,
        result=row.result,
        reason=row.reason,
        detail=row.detail or "",
        source_path=_from_stored_text(row.source_path),
        archived_path=None if row.archived_path is None else _from_stored_text(row.archived_path),
        size=row.size,
        md5_row=row.md5_row,
        md5_seen=row.md5_seen,
    )
