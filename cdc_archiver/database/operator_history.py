"""The history as people read it: what was tried, why it failed, where a file came from; and the notes that they leave there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from cdc_archiver.database.connections import error_code
from cdc_archiver.database.files_table import escape_like
from cdc_archiver.database.history import HISTORY_ERRORS, NAME, TABLE
from cdc_archiver.model import FileRecord

_MOST: Final = 1000
_ARCHIVED: Final = ("archived", "adopted")
_FAILED: Final = ("charged", "refused")
_NOTE_CHARACTERS: Final = 2000

IGNORED: Final = "ignored"
RESTORED: Final = "restored"
RETRIED: Final = "retried"
REQUEUED: Final = "requeued"


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A line of the history.

    Attributes:
        at: aware, UTC.
        result: archived, adopted, charged, refused; or, of an operator, retried, ignored, restored, requeued.
        detail: rsync's words, or the operator's.
        md5_seen: what arrived instead of the row's.
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


class OperatorHistory:
    """The history of one table of files, to read. Each method takes the connection that it works on.

    Args:
        file_table: the table of files.
    """

    def __init__(self, file_table: str) -> None:
        self._file_table = file_table
        self._ours = TABLE.c.file_table == file_table

    def of_file(self, connection: sa.Connection, id_: int) -> list[HistoryEntry]:
        """All that was tried with a file, oldest first."""
        lines = sa.select(TABLE).where(self._ours, TABLE.c.file_id == id_).order_by(TABLE.c.id.desc()).limit(_MOST)
        return [_attempt(row) for row in connection.execute(lines)][::-1]

    def last_failures(self, connection: sa.Connection, ids: Sequence[int]) -> dict[int, HistoryEntry]:
        """Of each file the last try that failed, where it is known."""
        return self._last(connection, ids, _FAILED)

    def last_archived(self, connection: sa.Connection, ids: Sequence[int]) -> dict[int, HistoryEntry]:
        """Of each file when it was archived last, and with it where it came from, where it is known."""
        return self._last(connection, ids, _ARCHIVED)

    def find(self, connection: sa.Connection, path: str, *, part: bool, limit: int) -> list[int]:
        """The ids of files that came from a path, or went there; newest first.

        Args:
            part: the path may be a part of it.
        """
        kept = _as_kept(path)
        columns = (TABLE.c.source_path, TABLE.c.archived_path)
        wanted = [column.like(f"%{escape_like(kept)}%", escape="!") if part else column == kept for column in columns]
        ids = sa.select(TABLE.c.file_id).where(self._ours, sa.or_(*wanted)).group_by(TABLE.c.file_id)
        return [int(id_) for id_ in connection.execute(ids.order_by(TABLE.c.file_id.desc()).limit(limit)).scalars()]

    def archived_since(self, connection: sa.Connection, since: datetime, targets: Sequence[str]) -> tuple[int, int]:
        """How many files were archived since then, and their bytes.

        Args:
            targets: of these alone; empty for all.
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
        """Where archived files came from, by the line's number in the history.

        Args:
            below: a directory.
            after: lines beyond this one.
        """
        lines = sa.select(TABLE.c.id, TABLE.c.source_path).where(
            self._ours,
            TABLE.c.id > after,
            TABLE.c.result.in_(_ARCHIVED),
            TABLE.c.source_path.like(escape_like(_as_kept(below.rstrip("/"))) + "/%", escape="!"),
        )
        return [(int(id_), as_path(path)) for id_, path in connection.execute(lines.order_by(TABLE.c.id).limit(limit))]

    def record_operator_action(
        self, connection: sa.Connection, records: Sequence[FileRecord], result: str, words: str
    ) -> None:
        """Keeps what an operator did to files, as part of the caller's transaction.

        Args:
            result: one of retried, ignored, restored, requeued.
            words: who, and why.
        """
        now = datetime.now(UTC).replace(tzinfo=None)
        lines: list[dict[str, Any]] = [
            {
                "at": now,
                "file_table": self._file_table,
                "file_id": record.id,
                "instance_id": record.instance_id,
                "source": "",
                "result": result,
                "detail": _as_kept(words[:_NOTE_CHARACTERS]),
                "source_path": _as_kept(record.path),
                "md5_row": record.md5sum,
            }
            for record in records
        ]
        if lines:
            connection.execute(sa.insert(TABLE), lines)

    def _last(self, connection: sa.Connection, ids: Sequence[int], results: Sequence[str]) -> dict[int, HistoryEntry]:
        newest = (
            sa.select(sa.func.max(TABLE.c.id))
            .where(self._ours, TABLE.c.file_id.in_(ids), TABLE.c.result.in_(results))
            .group_by(TABLE.c.file_id)
        )
        numbers = list(connection.execute(newest).scalars()) if ids else []
        lines = connection.execute(sa.select(TABLE).where(TABLE.c.id.in_(numbers))) if numbers else ()
        return {row.file_id: _attempt(row) for row in lines}


def why_not_readable(connection: sa.Connection) -> str:
    """Why the history cannot be read: one sentence; empty where it can."""
    try:
        connection.execute(sa.select(TABLE).limit(1))
    except sa.exc.DBAPIError as error:
        if error_code(error) not in HISTORY_ERRORS:
            raise
        return f"the history {NAME} cannot be read: {error.orig.args[-1] if error.orig and error.orig.args else error}"
    return ""


def as_path(kept: str) -> str:
    """A path as the history keeps it, with the bytes that are no UTF-8 again what they were."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda match: chr(0xDC00 + int(match[1], 16)), kept)


def _as_kept(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _attempt(row: Any) -> HistoryEntry:
    return HistoryEntry(
        at=row.at.replace(tzinfo=UTC),
        file_id=row.file_id,
        source=row.source,
        result=row.result,
        reason=row.reason,
        detail=row.detail or "",
        source_path=as_path(row.source_path),
        archived_path=None if row.archived_path is None else as_path(row.archived_path),
        size=row.size,
        md5_row=row.md5_row,
        md5_seen=row.md5_seen,
    )
