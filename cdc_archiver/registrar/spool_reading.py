"""What a spool has, for its registrar and for questions beside it: `status`, `why`, `check`, `monitor --retry-lost`."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cdc_archiver.registrar.messages import Announcement

_BUSY: Final = 10.0
"""Seconds to wait for another process."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An announcement in the spool.

    Attributes:
        number: of the spool, unique for ever.
        state: waiting, registered, known (the same announcement is registered already), lost, refused.
        received: seconds since the epoch.
        signature: of the file as it was registered.
    """

    number: int
    state: str
    received: float
    announcement: Announcement
    file_id: int | None = None
    signature: str | None = None
    reason: str | None = None
    path: str = ""
    md5: bytes = b""


SELECT_ENTRIES: Final = (
    "SELECT number, state, received, announcement, file_id, signature, reason, path, md5 FROM announced"
)


@dataclass(frozen=True, slots=True)
class SpoolFacts:
    """What the spool has now.

    Attributes:
        oldest: when the oldest waiting announcement was received, seconds since the epoch; None without one.
        bound: every announcement of an earlier time is decided; None without a waiting one.
        lost: announced files that never came, those included that the spool had no room for.
        gaps: messages that are missing in the publishers' sequences.
        size: bytes in use.
    """

    registrar_id: str
    waiting: int
    oldest: float | None
    bound: float | None
    lost: int
    refused: int
    gaps: int
    size: int


@contextmanager
def open_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """A spool for questions, beside its registrar.

    Raises:
        sqlite3.Error: it cannot be read; while no registrar runs, this user must be able to write to it.
    """
    connection = connect(path, "ro")
    try:
        connection.execute("SELECT id FROM registrar")
    except sqlite3.OperationalError:  # SQLite removes its files of the WAL at a clean stop, and makes none in this mode
        connection.close()
        connection = connect(path, "rw")
        connection.execute("PRAGMA query_only = ON")
    try:
        yield connection
    finally:
        connection.close()


def read_facts(connection: sqlite3.Connection) -> SpoolFacts:
    """What a spool has now."""

    def one(statement: str) -> Any:
        return connection.execute(statement).fetchone()

    counts = dict(
        connection.execute(
            "SELECT state, COUNT(*) FROM announced WHERE state IN ('waiting', 'lost', 'refused') GROUP BY state"
        )
    )
    oldest, earliest = one("SELECT MIN(received), MIN(at) FROM announced WHERE state = 'waiting'")
    lost, gaps = one("SELECT COALESCE(SUM(lost), 0), COALESCE(SUM(gaps), 0) FROM losses")
    return SpoolFacts(
        registrar_id=one("SELECT id FROM registrar")[0],
        waiting=counts.get("waiting", 0),
        oldest=oldest,
        bound=None if oldest is None else min(oldest, earliest),
        lost=counts.get("lost", 0) + lost,
        refused=counts.get("refused", 0),
        gaps=gaps,
        size=size_of(connection),
    )


def is_in_use(path: Path) -> bool:
    """Whether a registrar has the spool now."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def retry_undecided(path: Path, now: float) -> int:
    """Has every lost or refused announcement looked at now, by the registrar that runs or the next one; returns their number.

    Raises:
        sqlite3.Error: the spool cannot be written.
    """
    connection = connect(path, "rw")
    try:
        connection.execute("PRAGMA synchronous = FULL")
        changed = connection.execute("UPDATE announced SET due = ? WHERE state IN ('lost', 'refused')", (now,))
        return changed.rowcount
    finally:
        connection.close()


def count_received(connection: sqlite3.Connection) -> tuple[int, int]:
    """How many announcements a spool has had, and how many of those that it remembers are registered."""
    (received,) = connection.execute(
        "SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence WHERE name = 'announced'"
    ).fetchone()
    (registered,) = connection.execute("SELECT COUNT(*) FROM announced WHERE state = 'registered'").fetchone()
    return received, registered


def find_in_spool(path: Path, wanted: str, limit: int = 20) -> list[Entry]:
    """The newest announcements of a path, of a part of one, or of the id of a row.

    Raises:
        sqlite3.Error: the spool cannot be read.
    """
    with open_to_read(path) as connection:
        rows = connection.execute(
            f"{SELECT_ENTRIES} WHERE instr(path, ?) > 0 OR file_id = ? ORDER BY number DESC LIMIT ?",
            (wanted, int(wanted) if wanted.isdecimal() and len(wanted) < 19 else -1, limit),
        )
        return [to_entry(row) for row in rows]


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection to a spool in SQLite's mode ``ro``, ``rw`` or ``rwc``."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY,
        isolation_level=None,
        check_same_thread=False,
    )
    if mode == "rwc":
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 16777216")
    return connection


def size_of(connection: sqlite3.Connection) -> int:
    """Bytes in use."""
    pages, free, bytes_each = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * bytes_each)


def to_entry(row: Sequence[Any]) -> Entry:
    """An entry of a row of ``SELECT_ENTRIES``."""
    number, state, received, text, file_id, signature, reason, path, md5 = row
    announcement = Announcement(**json.loads(text))
    return Entry(number, state, received, announcement, file_id, signature, reason, path, md5 or b"")
