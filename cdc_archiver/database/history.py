"""The history, a side table: every attempt, its result, and the source path of each file. Correctness never depends on it."""

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

from cdc_archiver.database import schema
from cdc_archiver.database.connections import error_code
from cdc_archiver.database.side_tables import open_side_table
from cdc_archiver.model import Archived, AttemptFailed, NotRecordable, Refused

NAME: Final = schema.HISTORY
_DETAIL_CHARACTERS: Final = 4000
_WAITED_LIMIT: Final = 2**31 - 1
"""Maximum of the column: 25 days in milliseconds. A source may be down for longer."""
_STATEMENT_LIMIT: Final = 200_000
"""Maximum number of characters of the rows in one INSERT."""
_PRUNE_ROWS: Final = 2000
_PRUNE_ON: Final = 1.0
"""Seconds from one chunk to the next where there is more to delete: enough for 2,000 archived files/s for ever."""
_PRUNE_LOCKED: Final = 60.0
_PRUNE_AGAIN: Final = 3600.0

_LOCKED: Final = frozenset({1205, 1213})
_FORBIDDEN: Final = frozenset({1451, 1644})
"""Forbidden by a foreign key or a trigger that the site added."""
HISTORY_ERRORS: Final = frozenset({1054, 1114, 1142, 1143, 1146, 1264, 1265, 1292, 1364, 1366, 1406})
"""Errors of a statement on the side table that cost no more than the history: no permission, no table, no such column, table full,
value rejected."""

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
        comment="archived, adopted, charged, refused, not_recordable, retried, ignored, restored, requeued",
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
    # Constraints serve as indexes: they are part of CREATE TABLE, whereas an index would need the INDEX privilege as well.
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
    """An outcome to be recorded.

    Attributes:
        source: name of the source.
        waited: seconds between the wake-up and a worker.
    """

    source: str
    outcome: Archived | AttemptFailed | Refused | NotRecordable
    waited: float


class History:
    """The history of one table of files, for the service: written and pruned.

    Args:
        file_table: name of the table of files.
        retention: seconds for which entries are kept; 0 for ever.
    """

    def __init__(self, file_table: str, retention: float) -> None:
        self._file_table = file_table
        self._retention = retention
        self._prune_from = 0.0
        self._behind = False
        self._pruning = threading.Lock()
        self.unavailable = ""
        """Why it is not kept now; empty where it is."""

    def open(self, connection: sa.Connection) -> None:
        """Makes it ready, or logs why it is not: asked at the start, and with each sweep until it is ready."""
        before, self.unavailable = self.unavailable, open_history(connection)
        if self.unavailable and self.unavailable != before:
            _log.warning("no_history", detail=self.unavailable)
        elif before and not self.unavailable:
            _log.info("history_ready")

    def write(self, connection: sa.Connection, entries: Sequence[OutcomeEntry]) -> None:
        """Appends entries, within the caller's transaction."""
        now = datetime.now(UTC).replace(tzinfo=None).isoformat(" ")
        literal = _Literals(connection)
        rows = [f"({', '.join(map(literal, self._values(entry, now)))})" for entry in entries]
        for chunk in _chunks(rows):
            # The driver takes a single % for a placeholder, even in a statement without parameters.
            values = ", ".join(chunk).replace("%", "%%")
            connection.exec_driver_sql(f"INSERT INTO {NAME} ({', '.join(_WRITTEN)}) VALUES {values}")

    def seconds_since_failure(self, connection: sa.Connection, ids: Sequence[int]) -> dict[int, float]:
        """Seconds since the last failed attempt of each of these files, by this machine's clock and the one that wrote the
        entry: negative where one of them was changed. Without a history, none is known."""
        last = sa.select(TABLE.c.file_id, sa.func.max(TABLE.c.at)).where(
            TABLE.c.file_table == self._file_table, TABLE.c.file_id.in_(ids), TABLE.c.result == "charged"
        )
        try:
            found = connection.execute(last.group_by(TABLE.c.file_id)).all()
        except sa.exc.DBAPIError as error:
            if error_code(error) not in HISTORY_ERRORS:
                raise
            return {}
        now = datetime.now(UTC).replace(tzinfo=None)
        return {id_: (now - at).total_seconds() for id_, at in found}

    def retried(self, connection: sa.Connection, ids: Sequence[int]) -> set[int]:
        """Of these files, those whose newest entry is an operator's `retry`."""
        newest = sa.select(sa.func.max(TABLE.c.id)).where(
            TABLE.c.file_table == self._file_table, TABLE.c.file_id.in_(ids)
        )
        try:
            found = connection.execute(newest.group_by(TABLE.c.file_id)).scalars().all()
            wanted = sa.select(TABLE.c.file_id).where(TABLE.c.id.in_(found), TABLE.c.result == "retried")
            return set(connection.execute(wanted).scalars()) if found else set()
        except sa.exc.DBAPIError as error:
            if error_code(error) not in HISTORY_ERRORS:
                raise
            return set()

    def prune(self, connection: sa.Connection) -> int:
        """Deletes at most 2,000 entries past the retention. A failure is logged.

        Returns:
            The number of deleted entries.
        """
        if not self._retention or time.monotonic() < self._prune_from or not self._pruning.acquire(blocking=False):
            return 0
        try:
            return self._prune(connection)
        finally:
            self._pruning.release()

    @property
    def prune_in(self) -> float | None:
        """Seconds until the next chunk is due to be deleted; None where no entry past the retention was left."""
        return max(0.0, self._prune_from - time.monotonic()) if self._behind else None

    def _prune(self, connection: sa.Connection) -> int:
        began = time.monotonic()
        before = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=self._retention)
        old = sa.delete(TABLE).where(TABLE.c.at < before)
        self._behind = False  # after a failure, a sweep starts again
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
        """Whether the history has a file archived below this directory (a prefix of the path that ends in a slash)."""
        query = sa.select(sa.literal(1)).where(
            TABLE.c.file_table == self._file_table,
            TABLE.c.archived_path.startswith(below, autoescape=True),
        )
        return connection.execute(query.limit(1)).first() is not None

    def _values(self, entry: OutcomeEntry, now: str) -> tuple[_Value, ...]:
        """The values of ``_WRITTEN``, in their order."""
        outcome = entry.outcome
        record = outcome.record
        about = (now, self._file_table, record.id, record.instance_id, entry.source, to_stored_text(record.path))
        waited = min(round(entry.waited * 1000), _WAITED_LIMIT)
        match outcome:
            case Archived(path=path, size=size, adopted=adopted, steps=steps):
                times = (round(step * 1000) for step in (steps.transferred, steps.verified, steps.placed))
                result = "adopted" if adopted else "archived"
                return (*about, record.md5sum, waited, result, None, None, None, to_stored_text(path), size, *times)
            case AttemptFailed(reason=reason, detail=detail, md5_seen=md5_seen):
                failed = ("charged", reason.value, to_stored_text(detail[:_DETAIL_CHARACTERS]), md5_seen)
            case Refused(reason=reason, detail=detail):
                failed = ("refused", reason.value, to_stored_text(detail[:_DETAIL_CHARACTERS]), None)
            case NotRecordable(reason=reason, path=path, detail=detail):
                refusal = (reason.value, reason.value, to_stored_text(detail[:_DETAIL_CHARACTERS]), None)
                return (*about, record.md5sum, waited, *refusal, to_stored_text(path) or None, *(None,) * 4)
        return (*about, record.md5sum, waited, *failed, *(None,) * 5)


class _Literals:
    """Values as SQL literals, by the driver's rules. Escaping takes half of the time for a row, and half of a row's values equal those
    of the row before, so literals are cached."""

    def __init__(self, connection: sa.Connection) -> None:
        cursor: Any = connection.connection.cursor()
        self._escape: Callable[[str, tuple[_Value]], str] = cursor.mogrify
        self._known: dict[_Value, str] = {None: "NULL"}

    def __call__(self, value: _Value) -> str:
        if isinstance(value, int):
            return str(value)
        known = self._known.get(value)
        if known is None:
            # Almost every path has nothing to escape.
            plain = isinstance(value, str) and _PLAIN.fullmatch(value)
            known = self._known[value] = f"'{value!s}'" if plain else self._escape("%s", (value,))
        return known


def _chunks(rows: Sequence[str]) -> Iterator[list[str]]:
    """Splits rows into chunks that fit in one statement even with the smallest ``max_allowed_packet`` that was ever a default, 1 MB."""
    chunk: list[str] = []
    size = 0
    for row in rows:
        if chunk and size + len(row) > _STATEMENT_LIMIT:
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += len(row)
    if chunk:
        yield chunk


def to_stored_text(text: str) -> str:
    """A text as the history stores it: bytes of a name that are not UTF-8 as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def open_history(connection: sa.Connection) -> str:
    """Makes the history ready, as :func:`~cdc_archiver.database.side_tables.open_side_table` does."""
    return open_side_table(connection, TABLE)
