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
from cdc_archiver.registrar.spool_reading import (
    SELECT_ENTRIES,
    Entry,
    SpoolFacts,
    connect,
    read_facts,
    size_of,
    to_entry,
)

_FORMAT: Final = 1
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
            self._connection = connect(path, "rwc")
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
        rows = self._rows(f"{SELECT_ENTRIES} WHERE due <= ? ORDER BY due LIMIT ?", now, limit)
        return sorted(map(to_entry, rows), key=lambda entry: entry.number)

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
            to_entry(row)
            for row in self._rows(f"{SELECT_ENTRIES} WHERE number > ? AND state = 'registered' ORDER BY number", number)
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
            return size_of(self._connection)

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
    for attempt in range(5):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:  # perhaps somebody asks just now whether it is in use
            time.sleep(0.05 * attempt)
    os.close(descriptor)
    raise Misconfigured(
        f"another registrar uses the spool {path}", "stop it, or give this one a spool of its own: --spool FILE"
    )


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
