"""The spool: announcements on disk, from the datagram to the row and for some time after. One process at a time works on it.

SQLite in WAL mode with ``synchronous=FULL``: what is committed survives a power cut. Nothing but SQLite ever opens the database file in
this process, since that would drop SQLite's locks. After any error the whole transaction is made anew: SQLite ends it by itself where
the disk is full, with the statements before the error undone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cdc_archiver.errors import Misconfigured
from cdc_archiver.registrar.messages import Announcement, Message, timecode_of

_FORMAT: Final = 1
_BUSY: Final = 10.0
"""Seconds to wait for another process, such as `monitor --retry-lost`."""
_SCHEMA: Final = """
CREATE TABLE registrar (id TEXT NOT NULL, made REAL NOT NULL);
CREATE TABLE announced (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    state TEXT NOT NULL,        -- waiting, registered, known, lost, refused
    received REAL NOT NULL,
    at INTEGER NOT NULL,        -- the row's timestamp
    due REAL,                   -- when it is looked at next, NULL for never again
    path TEXT NOT NULL,
    announcement TEXT NOT NULL,
    changed REAL NOT NULL,      -- when its state changed
    identity BLOB, md5 BLOB, file_id INTEGER, signature TEXT, reason TEXT
);
CREATE INDEX due ON announced (due) WHERE due IS NOT NULL;
CREATE INDEX unregistered ON announced (state, at) WHERE state IN ('waiting', 'lost', 'refused');
CREATE INDEX identity ON announced (identity) WHERE identity IS NOT NULL;
CREATE TABLE publishers (
    id TEXT NOT NULL, address TEXT NOT NULL, port INTEGER NOT NULL, seq_no INTEGER NOT NULL, sent REAL NOT NULL,
    heard REAL NOT NULL,
    PRIMARY KEY (id, address, port)
);
CREATE TABLE losses (timecode INTEGER PRIMARY KEY, lost INTEGER NOT NULL, gaps INTEGER NOT NULL);
"""
_PRUNED_AT_ONCE: Final = 2000
_REORDERED: Final = 64
"""A sequence number that is lower by at most this many came late; by more, it is a new publisher's."""
_MOST_TIMECODES: Final = 366
"""Of one gap: a year, in case that a clock was wrong."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message, and where it came from."""

    message: Message
    address: str
    port: int


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


_ENTRY: Final = "SELECT number, state, received, announcement, file_id, signature, reason, path, md5 FROM announced"


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


class Spool:
    """The spool of one registrar. Safe to share between threads.

    Args:
        path: of the database file; ``PATH.lock`` is locked beside it.
        limit: bytes; messages that do not fit are lost, and named.
        keep: seconds for which a decided announcement is remembered.

    Raises:
        Misconfigured: another registrar uses it, or it cannot be used.
    """

    def __init__(self, path: Path, limit: int, keep: float) -> None:
        self.path = path
        self._limit = limit
        self._keep = keep
        self._mutex = threading.Lock()
        self._lock = _lock_file(path)
        try:
            self._connection = _connect(path, "rwc")
            self.registrar_id = self._prepare()
        except (sqlite3.Error, OSError) as error:
            os.close(self._lock)
            raise Misconfigured(
                f"the spool {path} cannot be used: {error}",
                f"mv {path} {path}.bad  # and {path}-wal; a new one is made; or name another one: --spool FILE",
            ) from error
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Closes it, and lets another registrar have it."""
        with self._mutex:
            self._connection.close()
            os.close(self._lock)

    def store(self, received: Sequence[Received], now: float) -> tuple[int, list[Announcement]]:
        """Makes messages durable, in one commit.

        Args:
            now: seconds since the epoch.

        Returns:
            The number of messages that are missing before these, and the announcements for which there was no room.

        Raises:
            sqlite3.Error: nothing was stored; call it again.
        """
        gaps, homeless = 0, []
        full = self.size() >= self._limit and not (self.prune(now) and self.size() < self._limit)
        with self._writing() as run:
            for each in received:
                gaps += self._follow(run, each, now)
                content = each.message.content
                if not isinstance(content, Announcement):
                    continue
                if full:
                    homeless.append(content)
                    _add_loss(run, timecode_of(content.at), lost=1)
                else:
                    _insert(run, content, now, now)
        return gaps, homeless

    def due(self, now: float, limit: int) -> list[Entry]:
        """The announcements to look at now, by number."""
        rows = self._rows(f"{_ENTRY} WHERE due <= ? ORDER BY due LIMIT ?", now, limit)
        return sorted(map(_entry, rows), key=lambda entry: entry.number)

    def next_due(self) -> float | None:
        """When the next announcement is due; None where none is."""
        found: float | None = self._value("SELECT MIN(due) FROM announced WHERE due IS NOT NULL")
        return found

    def registered_as(self, identities: Collection[bytes]) -> dict[bytes, int]:
        """The rows of announcements that are registered already, by :func:`identity`."""
        found: dict[bytes, int] = {}
        for one in identities:
            for (file_id,) in self._rows(
                "SELECT file_id FROM announced WHERE identity = ? AND state = 'registered' LIMIT 1", one
            ):
                found[one] = file_id
        return found

    def decide(self, changes: Sequence[Mapping[str, Any]], now: float) -> None:
        """Changes announcements, in one commit.

        Args:
            changes: values by column, with ``number``.
        """
        if not changes:
            return
        with self._writing() as run:
            for change in changes:
                values = {name: value for name, value in change.items() if name != "number"}
                if "state" in values:
                    values["changed"] = now
                names = ", ".join(f"{name} = ?" for name in values)
                run(f"UPDATE announced SET {names} WHERE number = ?", *values.values(), change["number"])

    def announce_again(self, entries: Sequence[Entry], now: float) -> None:
        """Files whose content changed after they were registered are announced anew; each is looked at no more under its number."""
        with self._writing() as run:
            for entry in entries:
                run("UPDATE announced SET due = NULL WHERE number = ?", entry.number)
                _insert(run, entry.announcement, entry.received, now)

    def renumber(self, entries: Sequence[Entry], above: int, now: float) -> None:
        """Gives announcements other numbers: another file is registered under each of these in the database."""
        with self._writing() as run:
            run("UPDATE sqlite_sequence SET seq = MAX(seq, ?) WHERE name = 'announced'", above)
            for entry in entries:
                run("DELETE FROM announced WHERE number = ?", entry.number)
                _insert(run, entry.announcement, entry.received, now)

    def registered_above(self, number: int) -> list[Entry]:
        """The registered announcements with a higher number."""
        return [
            _entry(row)
            for row in self._rows(f"{_ENTRY} WHERE number > ? AND state = 'registered' ORDER BY number", number)
        ]

    def last_number(self) -> int:
        """The highest number that was ever given."""
        return int(self._value("SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence WHERE name = 'announced'"))

    def forgotten_until(self, now: float) -> int:
        """The number below which every announcement is decided, and was before ``keep``."""
        first = self._value(
            "SELECT MIN(number) FROM announced WHERE changed >= ? OR state IN ('waiting', 'lost', 'refused')",
            now - self._keep,
        )
        return int(self.last_number() + 1 if first is None else first)

    def facts(self) -> SpoolFacts:
        """What the spool has now."""
        with self._mutex:
            return read_facts(self._connection)

    def losses(self) -> dict[int, tuple[int, int]]:
        """Lost files and gaps, by timecode."""
        found = {row[0]: (row[1], row[2]) for row in self._rows("SELECT timecode, lost, gaps FROM losses")}
        for timecode, lost in self._rows(
            "SELECT at / 100000, COUNT(*) FROM announced WHERE state = 'lost' GROUP BY at / 100000"
        ):
            before = found.get(timecode, (0, 0))
            found[timecode] = (before[0] + lost, before[1])
        return found

    def size(self) -> int:
        """Bytes in use."""
        with self._mutex:
            return _size(self._connection)

    def prune(self, now: float) -> int:
        """Forgets some of what was decided before ``keep``; returns its number. Lost files stay counted."""
        old = (
            "SELECT number FROM announced WHERE changed < ? AND state <> 'waiting' ORDER BY number "
            f"LIMIT {_PRUNED_AT_ONCE}"
        )
        before = now - self._keep
        with self._writing() as run:
            for timecode, lost in run(
                f"SELECT at / 100000, COUNT(*) FROM announced WHERE state = 'lost' AND number IN ({old}) GROUP BY 1",
                before,
            ).fetchall():
                _add_loss(run, timecode, lost=lost)
            run("DELETE FROM publishers WHERE heard < ?", before)
            return run(f"DELETE FROM announced WHERE number IN ({old})", before).rowcount

    def _prepare(self) -> str:
        """Makes the tables of a new spool; returns the registrar's id."""
        with self._writing() as run:
            version = run("PRAGMA user_version").fetchone()[0]
            if version not in (0, _FORMAT):
                raise Misconfigured(
                    f"the spool {self.path} has the format {version}, of a later version",
                    "run that version, or name another spool: --spool FILE",
                )
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    run(statement)
                run("INSERT INTO registrar (id, made) VALUES (?, ?)", secrets.token_hex(16), time.time())
                run(f"PRAGMA user_version = {_FORMAT}")
            return str(run("SELECT id FROM registrar").fetchone()[0])

    def _follow(self, run: _Run, received: Received, now: float) -> int:
        """Follows a publisher's sequence; returns how many messages are missing before this one."""
        sender, sent = received.message.sender, received.message.sent
        if sender is None:
            return 0
        key = (sender.publisher, received.address, received.port)
        known = run("SELECT seq_no, sent FROM publishers WHERE id = ? AND address = ? AND port = ?", *key).fetchone()
        last, before = known or (-1, None)
        if known and last - _REORDERED <= sender.seq_no <= last and sender.seq_no > 0:
            return 0  # it came late; the gap stays counted
        missing = sender.seq_no - (last + 1 if sender.seq_no > last else 0)
        when = now if sent is None or not 0 < sent < 2**32 else min(sent, now)
        run(
            "INSERT INTO publishers (id, address, port, seq_no, sent, heard) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (id, address, port) DO UPDATE SET seq_no = excluded.seq_no, sent = excluded.sent, heard = excluded.heard",
            *(*key, sender.seq_no, when, now),
        )
        if missing and sender.announces_files:
            last_code = timecode_of(when)
            first_code = last_code if before is None else min(timecode_of(before), last_code)
            for timecode in range(max(first_code, last_code - _MOST_TIMECODES), last_code + 1):
                _add_loss(run, timecode, gaps=missing)
        return missing

    @contextmanager
    def _writing(self) -> Iterator[_Run]:
        """A transaction, durable at the end of the block."""
        with self._mutex:
            connection = self._connection
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield lambda statement, *values: connection.execute(statement, values)
                if not connection.in_transaction:
                    raise sqlite3.OperationalError("SQLite has ended the transaction")
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                raise

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with self._mutex:
            return self._connection.execute(statement, values).fetchall()

    def _value(self, statement: str, *values: Any) -> Any:
        return self._rows(statement, *values)[0][0]


_Run = Callable[..., sqlite3.Cursor]


def identity(announcement: Announcement, path: str, md5: bytes) -> bytes:
    """A digest of what makes two announcements the same."""
    parts = [path, md5.hex(), announcement.action, announcement.action_timestamp, announcement.pub_id]
    return hashlib.sha256(json.dumps(parts).encode()).digest()[:16]


@contextmanager
def open_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """A spool for questions, beside its registrar.

    Raises:
        sqlite3.Error: it cannot be read; while no registrar runs, this user must be able to write to it.
    """
    connection = _connect(path, "ro")
    try:
        connection.execute("SELECT id FROM registrar")
    except sqlite3.OperationalError:  # SQLite removes its files of the WAL at a clean stop, and makes none in this mode
        connection.close()
        connection = _connect(path, "rw")
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
        size=_size(connection),
    )


def retry_undecided(path: Path, now: float) -> int:
    """Has every lost or refused announcement looked at now, by the registrar that runs or the next one; returns their number.

    Raises:
        sqlite3.Error: the spool cannot be written.
    """
    connection = _connect(path, "rw")
    try:
        connection.execute("PRAGMA synchronous = FULL")
        changed = connection.execute("UPDATE announced SET due = ? WHERE state IN ('lost', 'refused')", (now,))
        return changed.rowcount
    finally:
        connection.close()


def find_in_spool(path: Path, wanted: str, limit: int = 20) -> list[Entry]:
    """The newest announcements of a path, or of paths that end in a name.

    Raises:
        sqlite3.Error: the spool cannot be read.
    """
    with open_to_read(path) as connection:
        rows = connection.execute(f"{_ENTRY} WHERE instr(path, ?) > 0 ORDER BY number DESC LIMIT ?", (wanted, limit))
        return [_entry(row) for row in rows]


def _connect(path: Path, mode: str) -> sqlite3.Connection:
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


def _lock_file(path: Path) -> int:
    name = f"{path}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Misconfigured(
            f"the spool's lock {name} cannot be made: {error}",
            "--spool FILE, in a directory that this user may write to",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise Misconfigured(
            f"another registrar uses the spool {path}", "stop it, or give this one a spool of its own: --spool FILE"
        ) from error
    return descriptor


def _size(connection: sqlite3.Connection) -> int:
    pages, free, bytes_each = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * bytes_each)


def _insert(run: _Run, announcement: Announcement, received: float, now: float) -> None:
    text = json.dumps(asdict(announcement), separators=(",", ":"))
    run(
        "INSERT INTO announced (state, received, at, due, path, announcement, changed) VALUES ('waiting', ?, ?, ?, ?, ?, ?)",
        *(received, announcement.at, now, announcement.path, text, now),
    )


def _add_loss(run: _Run, timecode: int, *, lost: int = 0, gaps: int = 0) -> None:
    run(
        "INSERT INTO losses (timecode, lost, gaps) VALUES (?, ?, ?) "
        "ON CONFLICT (timecode) DO UPDATE SET lost = lost + excluded.lost, gaps = gaps + excluded.gaps",
        *(timecode, lost, gaps),
    )


def _entry(row: Sequence[Any]) -> Entry:
    number, state, received, text, file_id, signature, reason, path, md5 = row
    announcement = Announcement(**json.loads(text))
    return Entry(number, state, received, announcement, file_id, signature, reason, path, md5 or b"")
