"""The side table: what was tried, what came of it, where a file came from. Convenience, never needed to be correct."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import mysql

from cdc_archiver.database.connections import error_code
from cdc_archiver.model import Archived, AttemptFailed, Refused

NAME: Final = "cdc_archiver_history"
_DETAIL_CHARACTERS: Final = 4000
_WAITED_MOST: Final = 2**31 - 1
"""What the column holds: 25 days in milliseconds. A source may be away for longer."""
_STATEMENT_MOST: Final = 200_000
"""Characters of the rows that one statement inserts."""
_PRUNE_ROWS: Final = 2000
_PRUNE_ON: Final = 1.0
"""Seconds from one portion to the next where there is more to delete: 2,000 files/s can be archived for ever."""
_PRUNE_LOCKED: Final = 60.0
_PRUNE_AGAIN: Final = 3600.0

_LOCKED: Final = frozenset({1205, 1213})
_FORBIDDEN: Final = frozenset({1451, 1644})
"""By a foreign key, or a trigger, of the site's own."""
HISTORY_ERRORS: Final = frozenset({1054, 1114, 1142, 1143, 1146, 1264, 1265, 1292, 1364, 1366, 1406})
"""What a statement on the side table may say without more being lost than a convenience: no right, no table, no such column,
full, a value that it does not take."""

_log = structlog.get_logger(__name__)

_text = sa.Text().with_variant(mysql.TEXT(charset="utf8mb4"), "mysql", "mariadb")

TABLE: Final = sa.Table(
    NAME,
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=True),
    sa.Column("at", mysql.DATETIME(fsp=3), nullable=False, comment="UTC"),
    sa.Column("file_table", sa.String(64), nullable=False),
    sa.Column("file_id", sa.BigInteger, nullable=False),
    sa.Column("instance_id", sa.String(64), nullable=False),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column(
        "result",
        sa.String(16),
        nullable=False,
        comment="archived, adopted, charged, refused, retried, ignored, restored, requeued",
    ),
    sa.Column("reason", sa.String(32)),
    sa.Column("detail", _text),
    sa.Column("source_path", _text, nullable=False),
    sa.Column("archived_path", _text),
    sa.Column("size", sa.BigInteger, comment="bytes"),
    sa.Column("md5_row", sa.BINARY(16)),
    sa.Column("md5_seen", sa.BINARY(16)),
    sa.Column("waited_ms", sa.Integer, comment="from the wake-up to a worker"),
    sa.Column("transferred_ms", sa.Integer),
    sa.Column("verified_ms", sa.Integer),
    sa.Column("placed_ms", sa.Integer),
    # Indexes in the guise of constraints: these are part of CREATE TABLE, an index would need the INDEX right as well.
    sa.UniqueConstraint("file_table", "file_id", "id", name="of_file"),
    sa.UniqueConstraint("at", "id", name="at_time"),
    mysql_engine="InnoDB",
    mysql_charset="utf8mb4",
    mariadb_engine="InnoDB",
    mariadb_charset="utf8mb4",
)


_PLAIN: Final = re.compile(r"[A-Za-z0-9/_.:-]*")
_Value: TypeAlias = str | bytes | int | None
_WRITTEN: Final = (
    *("at", "file_table", "file_id", "instance_id", "source", "source_path", "md5_row", "waited_ms"),
    *("result", "reason", "detail", "md5_seen"),
    *("archived_path", "size", "transferred_ms", "verified_ms", "placed_ms"),
)


@dataclass(frozen=True, slots=True)
class OutcomeEntry:
    """One thing that happened to one file.

    Attributes:
        waited: seconds between the wake-up and a worker.
    """

    source: str
    outcome: Archived | AttemptFailed | Refused
    waited: float


class History:
    """The side table of one table of files.

    Args:
        file_table: the table of files that the entries are about.
        retention: seconds that entries are kept; 0 for ever.
    """

    def __init__(self, file_table: str, retention: float) -> None:
        self._file_table = file_table
        self._retention = retention
        self._prune_from = 0.0
        self._behind = False
        self._pruning = threading.Lock()

    def write(self, connection: sa.Connection, entries: Sequence[OutcomeEntry]) -> None:
        """Appends entries, as part of the caller's transaction."""
        now = datetime.now(UTC).replace(tzinfo=None).isoformat(" ")
        literal = _Literals(connection)
        rows = [f"({', '.join(map(literal, self._values(entry, now)))})" for entry in entries]
        for portion in _portions(rows):
            # Without values of its own, a statement's single % would still be taken for the place of one.
            values = ", ".join(portion).replace("%", "%%")
            connection.exec_driver_sql(f"INSERT INTO {NAME} ({', '.join(_WRITTEN)}) VALUES {values}")

    def prune(self, connection: sa.Connection) -> int:
        """Deletes entries past the retention, two thousand at the most. What keeps it from doing so is logged.

        Returns:
            How many.
        """
        if not self._retention or time.monotonic() < self._prune_from or not self._pruning.acquire(blocking=False):
            return 0
        try:
            return self._prune(connection)
        finally:
            self._pruning.release()

    @property
    def prune_in(self) -> float | None:
        """Seconds until the next portion is to be deleted; None where none was left over that is past the retention."""
        return max(0.0, self._prune_from - time.monotonic()) if self._behind else None

    def _prune(self, connection: sa.Connection) -> int:
        began = time.monotonic()
        before = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=self._retention)
        old = sa.delete(TABLE).where(TABLE.c.at < before)
        self._behind = False  # where this fails, a sweep begins anew
        try:
            deleted = connection.execute(
                old.with_dialect_options(mysql_limit=_PRUNE_ROWS, mariadb_limit=_PRUNE_ROWS)
            ).rowcount
        except sa.exc.DBAPIError as error:
            code = error_code(error)
            if code not in HISTORY_ERRORS | _LOCKED | _FORBIDDEN:
                raise
            again = _PRUNE_LOCKED if code in _LOCKED else _PRUNE_AGAIN
            self._prune_from = time.monotonic() + again
            _log.warning("history_not_pruned", detail=str(error.orig), again_seconds=again)
            return 0
        if deleted >= _PRUNE_ROWS:
            self._prune_from = began + _PRUNE_ON
            self._behind = True
        return deleted

    def knows_archived(self, connection: sa.Connection, below: str) -> bool:
        """Whether any file was ever archived below this directory (a prefix of the path, ending in a slash)."""
        query = sa.select(sa.literal(1)).where(
            TABLE.c.file_table == self._file_table,
            TABLE.c.archived_path.startswith(below, autoescape=True),
        )
        return connection.execute(query.limit(1)).first() is not None

    def _values(self, entry: OutcomeEntry, now: str) -> tuple[_Value, ...]:
        """The values of ``_WRITTEN``, in their order."""
        outcome = entry.outcome
        record = outcome.record
        about = (now, self._file_table, record.id, record.instance_id, entry.source, _storable(record.path))
        waited = min(round(entry.waited * 1000), _WAITED_MOST)
        match outcome:
            case Archived(path=path, size=size, adopted=adopted, steps=steps):
                times = (round(step * 1000) for step in (steps.transferred, steps.verified, steps.placed))
                result = "adopted" if adopted else "archived"
                return (*about, record.md5sum, waited, result, None, None, None, _storable(path), size, *times)
            case AttemptFailed(reason=reason, detail=detail, md5_seen=md5_seen):
                failed = ("charged", reason.value, _storable(detail[:_DETAIL_CHARACTERS]), md5_seen)
            case Refused(reason=reason, detail=detail):
                failed = ("refused", reason.value, _storable(detail[:_DETAIL_CHARACTERS]), None)
        return (*about, record.md5sum, waited, *failed, *(None,) * 5)


class _Literals:
    """Values as SQL, by the driver's own rules. Escaping is half of what a row costs, and half of its values are those of the
    row before."""

    def __init__(self, connection: sa.Connection) -> None:
        cursor: Any = connection.connection.cursor()
        self._escape: Callable[[str, tuple[_Value]], str] = cursor.mogrify
        self._known: dict[_Value, str] = {None: "NULL"}

    def __call__(self, value: _Value) -> str:
        if isinstance(value, int):
            return str(value)
        known = self._known.get(value)
        if known is None:
            # What has nothing to escape, as almost every path.
            plain = isinstance(value, str) and _PLAIN.fullmatch(value)
            known = self._known[value] = f"'{value!s}'" if plain else self._escape("%s", (value,))
        return known


def _portions(rows: Sequence[str]) -> Iterator[list[str]]:
    """Rows in portions that a server takes as one statement, even with the smallest ``max_allowed_packet`` that was ever a
    default, 1 MB."""
    portion: list[str] = []
    size = 0
    for row in rows:
        if portion and size + len(row) > _STATEMENT_MOST:
            yield portion
            portion, size = [], 0
        portion.append(row)
        size += len(row)
    if portion:
        yield portion


def _storable(text: str) -> str:
    """Bytes of a name that are no UTF-8 are written as escapes: the column takes text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def open_history(connection: sa.Connection) -> str:
    """Makes the side table ready, creating it where the grants allow.

    Returns:
        Nothing when it is ready, else why there is none: one sentence.
    """
    try:
        TABLE.create(connection, checkfirst=True)
        connection.execute(sa.select(TABLE.c.id).limit(1))
        # An INSERT that inserts nothing asks for the right to insert and leaves no trace.
        columns = [column for column in TABLE.c if column.name != "id"]
        connection.execute(sa.insert(TABLE).from_select(columns, sa.select(*columns).where(sa.false())))
    except sa.exc.DBAPIError as error:
        return str(error.orig.args[-1] if error.orig and error.orig.args else error)
    return ""
