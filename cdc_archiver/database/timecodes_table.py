"""The side table of timecodes: what was found of each, and the transactions that complete and re-open one."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from cdc_archiver.database.connections import error_code
from cdc_archiver.database.history import HISTORY_ERRORS
from cdc_archiver.database.side_tables import TIMECODES, open_side_table, why_off

_LOCK_WAIT: Final = 1
"""Seconds that a re-opening may hold up the write-back of a file."""
_USUAL_LOCK_WAIT: Final = 5
_DEADLOCK: Final = 1213


class TimecodeState(StrEnum):
    """The state of a timecode. The values are stored, and part of the JSON answers."""

    OPEN = "open"
    """It has not ended, or its grace is not over, or no full sweep has been made since."""
    BLOCKED = "blocked"
    """It is over, and something of it is undecided, or somebody else is behind."""
    COMPLETE = "complete"
    """Each row is archived, refused or ignored."""
    REOPENED = "reopened"
    """It was complete, and a row of it is undecided or was archived since."""


BEFORE: Final = "before"
"""``told_by`` of a timecode that ended before the first start: nobody is told."""


@dataclass(frozen=True, slots=True)
class StoredTimecode:
    """A row of the side table.

    Attributes:
        size: of its files in bytes, as far as the history knows them.
        digest: SHA-256 of the sorted distinct lines; None while they were not read.
        told_max_id: MAX(id) of the table of files when it became complete; None before the first time.
        marker_path, marker_bytes: of its timecode marker, one path for each line, the documents one after the other.
        changed_at: of its state or content; aware, by the database's clock.
    """

    instance_id: str
    timecode: int
    state: TimecodeState = TimecodeState.OPEN
    generation: int = 0
    files: int = 0
    size: int = 0
    ignored: int = 0
    refused: int = 0
    undecided: int = 0
    late: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    digest: bytes | None = None
    told_max_id: int | None = None
    told_by: str = ""
    marker_path: str = ""
    marker_bytes: str = ""
    changed_at: datetime | None = None
    completed_at: datetime | None = None


class TimecodesTable:
    """The side table, for one table of files. Each method takes the connection that it works on.

    Args:
        file_table: name of the table of files.
    """

    def __init__(self, file_table: str) -> None:
        self._file_table = file_table
        self._ours = TIMECODES.c.file_table == file_table

    def why_not_usable(self, connection: sa.Connection) -> str:
        """Creates the table where it is missing; the reason why it cannot be used, with the fix, or an empty text."""
        if why := open_side_table(connection, TIMECODES):
            return why
        try:
            connection.execute(sa.update(TIMECODES).values(state=TIMECODES.c.state).where(sa.false()))
        except sa.exc.DBAPIError as error:
            if error_code(error) not in HISTORY_ERRORS:
                raise
            return why_off(connection, TIMECODES, error)
        return ""

    def load(self, connection: sa.Connection, instance_ids: Collection[str]) -> list[StoredTimecode]:
        """All timecodes of some instance_ids."""
        found = sa.select(TIMECODES).where(self._ours, TIMECODES.c.instance_id.in_(instance_ids))
        return [stored_timecode(row) for row in connection.execute(found.order_by(TIMECODES.c.timecode))]

    def enter(self, connection: sa.Connection, timecodes: Sequence[StoredTimecode]) -> None:
        """Adds timecodes; those that are there already stay as they are."""
        rows = [
            {
                "file_table": self._file_table,
                "instance_id": entry.instance_id,
                "timecode": entry.timecode,
                **_values(entry),
            }
            for entry in timecodes
        ]
        if rows:
            connection.execute(sa.insert(TIMECODES).prefix_with("IGNORE"), rows)

    def lock(self, connection: sa.Connection, instance_id: str, timecode: int) -> StoredTimecode | None:
        """Locks the row until the end of the transaction; None where there is none."""
        row = connection.execute(
            sa.select(TIMECODES).where(self._is(instance_id, timecode)).with_for_update()
        ).one_or_none()
        return None if row is None else stored_timecode(row)

    def save(self, connection: sa.Connection, entry: StoredTimecode) -> None:
        """Writes all that is known of a timecode, within the caller's transaction, which has locked its row."""
        connection.execute(
            sa.update(TIMECODES).where(self._is(entry.instance_id, entry.timecode)).values(**_values(entry))
        )

    def reopen(self, connection: sa.Connection, timecodes: Collection[tuple[str, int]]) -> str:
        """Re-opens those that are complete, within the transaction that writes ``copied = 1`` to rows of theirs.

        A failure costs no more than this statement: the transaction goes on.

        Args:
            timecodes: pairs of instance_id and timecode.

        Returns:
            The reason why it failed; empty where it did not.
        """
        change = (
            sa.update(TIMECODES)
            .where(
                self._ours,
                sa.tuple_(TIMECODES.c.instance_id, TIMECODES.c.timecode).in_(timecodes),
                TIMECODES.c.state == TimecodeState.COMPLETE.value,
            )
            .values(state=TimecodeState.REOPENED.value, changed_at=sa.func.utc_timestamp(3))
        )
        connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {_LOCK_WAIT}")
        connection.exec_driver_sql("SAVEPOINT before_reopening")
        failure = ""
        try:
            connection.execute(change)
        except sa.exc.DBAPIError as error:
            if error.connection_invalidated or error_code(error) == _DEADLOCK:
                raise
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT before_reopening")
            failure = str(error.orig)
        connection.exec_driver_sql(f"SET SESSION innodb_lock_wait_timeout = {_USUAL_LOCK_WAIT}")
        return failure

    def _is(self, instance_id: str, timecode: int) -> sa.ColumnElement[bool]:
        return sa.and_(self._ours, TIMECODES.c.instance_id == instance_id, TIMECODES.c.timecode == timecode)


def utc_now(connection: sa.Connection) -> datetime:
    """The database's clock, aware."""
    now: datetime = connection.exec_driver_sql("SELECT UTC_TIMESTAMP(3)").scalar_one()
    return now.replace(tzinfo=UTC)


def _values(entry: StoredTimecode) -> dict[str, Any]:
    return {
        "state": entry.state.value,
        "generation": entry.generation,
        "files": entry.files,
        "bytes": entry.size,
        "ignored": entry.ignored,
        "refused": entry.refused,
        "undecided": entry.undecided,
        "late": entry.late,
        "reasons": json.dumps(dict(entry.reasons), sort_keys=True) if entry.reasons else None,
        "digest": entry.digest,
        "told_max_id": entry.told_max_id,
        "told_by": entry.told_by or None,
        "marker_path": entry.marker_path or None,
        "marker_bytes": entry.marker_bytes or None,
        "changed_at": _naive(entry.changed_at),
        "completed_at": _naive(entry.completed_at),
    }


def stored_timecode(row: Any) -> StoredTimecode:
    """A row of the side table."""
    return StoredTimecode(
        instance_id=row.instance_id,
        timecode=row.timecode,
        state=TimecodeState(row.state),
        generation=row.generation,
        files=row.files or 0,
        size=row.bytes or 0,
        ignored=row.ignored or 0,
        refused=row.refused or 0,
        undecided=row.undecided or 0,
        late=row.late or 0,
        reasons=json.loads(row.reasons) if row.reasons else {},
        digest=row.digest,
        told_max_id=row.told_max_id,
        told_by=row.told_by or "",
        marker_path=row.marker_path or "",
        marker_bytes=row.marker_bytes or "",
        changed_at=_aware(row.changed_at),
        completed_at=_aware(row.completed_at),
    )


def _naive(value: datetime | None) -> datetime | None:
    return None if value is None else value.astimezone(UTC).replace(tzinfo=None)


def _aware(value: datetime | None) -> datetime | None:
    return None if value is None else value.replace(tzinfo=UTC)
