"""An instrument that writes files, registers them with every kind of SQL statement, and records what it did."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pymysql
from audit import ExpectedFile, ExpectedFiles, ExpectedResult, RegistrationState
from files_table import TABLE
from private_site import PrivateSite, insert

DISK = "disk"
"""The only directory below the site's sources: moving it away removes all files at once."""
_EPOCH = 1_589_517_264
_ACTIONS = ("take_iv", "take_noise", "take_bias_steps", "tracking")
_SLOTS = ("crate1slot2", "crate1slot3", "crate1slot4")
_FILES_OF_ACTION = 60
_KEPT = 2000


@dataclass(frozen=True)
class Entry:
    """A file and the row that registers it."""

    expected: ExpectedFile
    row: dict[str, Any]


@dataclass
class _Late:
    """A transaction that is committed after later ones."""

    connection: Any
    entries: Sequence[Entry]
    due: float


class Publisher(threading.Thread):
    """Publishes until it is stopped. Errors of the database do not stop it, as with an instrument.

    Args:
        stage: the site.
        expected_files: updated before and after each INSERT.
        chance: decides what comes next.
        disk: held while files are written or moved away.
        pause: mean seconds between two actions.
        huge: size of the largest files in bytes; 0: none.
        most_waiting: most pending rows, so that the run comes to an end.
    """

    def __init__(
        self,
        stage: PrivateSite,
        expected_files: ExpectedFiles,
        chance: random.Random,
        disk: threading.RLock,
        *,
        pause: float = 0.4,
        huge: int = 100_000_000,
        most_waiting: int = 3000,
    ) -> None:
        super().__init__(name="publisher", daemon=True)
        self._stage = stage
        self._expected_files = expected_files
        self._chance = chance
        self._disk = disk
        self._pause = pause
        self._huge = huge
        self._most_waiting = most_waiting
        self._stop_asked = threading.Event()
        self._connection: Any = None
        self._late: list[_Late] = []
        self._known: list[tuple[int, Entry]] = []
        self._files = 0
        self._directory = ""
        self._place: tuple[str, dict[str, Any]] = ("", {})
        self.counts: Counter[str] = Counter()
        """Successful actions, by name."""
        self.size = 0
        """Bytes written so far."""
        self.failure: BaseException | None = None
        self._kinds: list[tuple[float, Callable[[], None]]] = [
            (40, self.single),
            (12, self.several),
            (3, self.burst),
            (8, self.transaction),
            (5, self.rolled_back),
            (6, self.late),
            (4, self.replaced),
            (4, self.on_duplicate_key),
            (4, self.loaded),
            (4, self.twice),
            (4, self.same_name),
            (3, self.missing),
            (2, self.changed),
            (2, self.directory),
            (3, self.with_nulls),
            (4, self.put_back),
            (0.7 if huge else 0, self.huge),
        ]

    def stop(self) -> None:
        """Stops it; late transactions are committed."""
        self._stop_asked.set()

    def run(self) -> None:
        try:
            while not self._stop_asked.wait(self._chance.expovariate(1 / self._pause)):
                weights, actions = zip(*self._kinds, strict=True)
                (action,) = self._chance.choices(actions, weights)
                if self._try(action):
                    self.counts[action.__name__] += 1
                self._try(self._commit_late)
                if self._chance.random() < 0.1:
                    self._try(self._wait_for_archiver)
            for late in self._late:
                late.due = 0.0
            self._try(self._commit_late)
        except BaseException as error:
            self.failure = error
        finally:
            self._hang_up()
            for late in self._late:
                late.connection.close()

    # The kinds of registration.

    def single(self) -> None:
        self._insert(self._write(1))

    def several(self) -> None:
        self._insert(self._write(self._chance.randint(2, 20)))

    def burst(self) -> None:
        """Hundreds of small files, in many transactions, as fast as possible."""
        entries = self._write(self._chance.randint(100, 400), largest=20_000)
        for start in range(0, len(entries), 10):
            self._insert(entries[start : start + 10])

    def transaction(self) -> None:
        """Several rows, committed together."""
        entries = self._write(self._chance.randint(2, 12))
        with self._transaction(entries) as cursor:
            for entry in entries:
                insert(cursor, [entry.row])

    def rolled_back(self) -> None:
        """These must never be archived."""
        entries = self._write(self._chance.randint(1, 5))
        self._expected_files.plan(entry.expected for entry in entries)
        self._expected_files.set([entry.expected for entry in entries], RegistrationState.WITHDRAWN)
        connection = self._connected()
        connection.begin()
        try:
            with connection.cursor() as cursor:
                insert(cursor, [entry.row for entry in entries])
            self._stop_asked.wait(self._chance.uniform(0, 0.2))
        finally:
            connection.rollback()

    def late(self) -> None:
        """Committed later: rows with lower ids appear after rows with higher ones."""
        entries = self._write(self._chance.randint(1, 5))
        self._expected_files.plan(entry.expected for entry in entries)
        connection = self._stage.connect(autocommit=False)
        self._late.append(_Late(connection, entries, time.monotonic() + self._chance.uniform(0.2, 5)))
        with connection.cursor() as cursor:
            insert(cursor, [entry.row for entry in entries])

    def replaced(self) -> None:
        """REPLACE: an existing row becomes another file's."""
        self._supersede("REPLACE", "")

    def on_duplicate_key(self) -> None:
        """INSERT … ON DUPLICATE KEY UPDATE, likewise."""
        columns = ("path", "md5sum", "copied", "failed_copy_attempts", "action_timestamp", "action", "pub_id", "plot")
        updates = ", ".join(f"{column} = VALUES({column})" for column in (*columns, "timestamp"))
        self._supersede("INSERT", f"ON DUPLICATE KEY UPDATE {updates}")

    def loaded(self) -> None:
        """LOAD DATA."""
        entries = self._write(self._chance.randint(5, 60), largest=20_000)
        columns = [column for column in entries[0].row if column != "md5sum"]
        table = self._stage.directory / f"load-{self._files}.tsv"
        lines = ["\t".join([str(e.row[c]) for c in columns] + [e.expected.md5.hex()]) for e in entries]
        table.write_text("\n".join(lines) + "\n")
        names = ", ".join(f"`{column}`" for column in columns)
        try:
            with self._transaction(entries) as cursor:
                cursor.execute(
                    f"LOAD DATA INFILE %s INTO TABLE {TABLE} ({names}, @md5) SET md5sum = UNHEX(@md5)", (str(table),)
                )
        finally:
            table.unlink()

    def twice(self) -> None:
        """One file with two rows."""
        (entry,) = self._write(1)
        self._insert([entry])
        self._insert([entry])

    def same_name(self) -> None:
        """Several files of one name, from one action, with different contents."""
        (first,) = self._write(1)
        others = [self._write(1, name=Path(first.row["path"]).name)[0] for _ in range(self._chance.randint(1, 3))]
        self._insert([first, *others])

    def with_nulls(self) -> None:
        """Rows of a writer that leaves columns NULL."""
        self._insert(self._write(1), copied=None, failed_copy_attempts=None)

    def huge(self) -> None:
        """For the bulk lane."""
        self._insert(self._write(1, size=self._chance.randint(70 * self._huge // 100, self._huge)))

    def missing(self) -> None:
        """Registered, but removed."""
        self._bad(ExpectedResult.MISSING, lambda path: path.unlink())

    def changed(self) -> None:
        """Registered, and changed afterwards."""
        self._bad(ExpectedResult.CHANGED, lambda path: path.write_bytes(os.urandom(300)))

    def directory(self) -> None:
        """A directory is registered."""

        def make_directory(path: Path) -> None:
            path.unlink()
            path.mkdir()

        self._bad(ExpectedResult.NOT_A_FILE, make_directory)

    def put_back(self) -> None:
        """An operator requeues archived files."""
        for id_, entry in self._chance.sample(self._known, min(len(self._known), self._chance.randint(1, 10))):
            self._expected_files.handle(id_)
            with self._connected().cursor() as cursor:
                cursor.execute(
                    f"UPDATE {TABLE} SET copied = 0, path = %s WHERE id = %s AND md5sum = %s",
                    (entry.row["path"], id_, entry.expected.md5),
                )

    # Implementation.

    def _try(self, action: Callable[[], None]) -> bool:
        """Performs an action; whether the database accepted it."""
        try:
            action()
        except (pymysql.MySQLError, OSError):  # no connection, or lost in the middle: no commit, or an unknown one
            self._hang_up()
            self._stop_asked.wait(0.3)
            return False
        return True

    def _write(
        self, count: int, *, size: int | None = None, largest: int = 5_000_000, name: str | None = None
    ) -> list[Entry]:
        with self._disk:
            return [self._write_one(size or self._size(largest), name) for _ in range(count)]

    def _size(self, largest: int) -> int:
        """From 100 bytes on; small sizes are more frequent."""
        top = largest if self._chance.random() < 0.05 else min(largest, 100_000)
        return int(100 * (top / 100) ** self._chance.random())

    def _write_one(self, size: int, name: str | None) -> Entry:
        if name is None and self._files % _FILES_OF_ACTION == 0:
            self._begin_action()
        self._files += 1
        prefix, values = self._place
        plot = self._chance.random() < 0.2 if name is None else name.endswith(".png")
        name = name or f"{self._files:06}{'.png' if plot else '.npy'}"
        # Files of one name come from different directories.
        file = self._stage.file(f"{DISK}/{self._directory}/{self._files}/{name}", os.urandom(size))
        self.size += size
        expected = ExpectedFile(file.md5, f"{prefix}/{'plots' if plot else 'outputs'}/{name}", size)
        return Entry(expected, self._stage.values(file, **values, plot=int(plot)))

    def _begin_action(self) -> None:
        number = self._files // _FILES_OF_ACTION
        begun, slot, action = _EPOCH + 7 * number, self._chance.choice(_SLOTS), self._chance.choice(_ACTIONS)
        # The column differs from the action's time, and runs through the first five digits.
        written = begun + 20_000 * number
        text = datetime.fromtimestamp(written, UTC).strftime("%Y-%m-%d %H:%M:%S")
        values = {"pub_id": slot, "action": action, "action_timestamp": begun, "timestamp": text}
        self._directory = f"{begun}/{slot}"
        self._place = (f"{str(written)[:5]}/{slot}/{begun}_{action}", values)

    def _insert(self, entries: Sequence[Entry], **columns: Any) -> None:
        """One INSERT."""
        self._expected_files.plan(entry.expected for entry in entries)
        with self._connected().cursor() as cursor:
            first = insert(cursor, [{**entry.row, **columns} for entry in entries])
        self._registered(entries, first)

    def _registered(self, entries: Sequence[Entry], first: int | None) -> None:
        self._expected_files.set([entry.expected for entry in entries], RegistrationState.REGISTERED)
        if first is not None:
            self._known += [(first + number, entry) for number, entry in enumerate(entries)]
            if len(self._known) > _KEPT:
                del self._known[: self._chance.randint(0, _KEPT // 2)]

    @contextlib.contextmanager
    def _transaction(self, entries: Sequence[Entry]) -> Iterator[Any]:
        self._expected_files.plan(entry.expected for entry in entries)
        connection = self._connected()
        connection.begin()
        with connection.cursor() as cursor:
            yield cursor
        connection.commit()
        self._registered(entries, None)

    def _commit_late(self) -> None:
        for late in [late for late in self._late if late.due <= time.monotonic()]:
            self._late.remove(late)
            with contextlib.closing(late.connection):
                late.connection.commit()
                self._registered(late.entries, None)

    def _supersede(self, verb: str, end: str) -> None:
        if not self._known:
            return
        id_, old = self._known.pop(self._chance.randrange(len(self._known)))
        self._expected_files.handle(id_)
        (entry,) = self._write(1)
        self._expected_files.plan([entry.expected])
        # From the statement on, whatever its answer: at the end the row itself shows which of the two it is.
        self._expected_files.set([old.expected], RegistrationState.SUPERSEDED)
        with self._connected().cursor() as cursor:
            insert(cursor, [{"id": id_, **entry.row}], verb, end)
        self._registered([entry], None)

    def _bad(self, fate: ExpectedResult, spoil: Callable[[Path], object]) -> None:
        with self._disk:
            (good,) = self._write(1)
            spoil(Path(good.row["path"]))
        expected = ExpectedFile(good.expected.md5, good.expected.place, good.expected.size, fate)
        self._expected_files.plan([expected])
        with self._connected().cursor() as cursor:
            insert(cursor, [good.row])
        self._expected_files.set([expected], RegistrationState.REGISTERED)

    def _wait_for_archiver(self) -> None:
        while not self._stop_asked.is_set():
            with self._connected().cursor() as cursor:
                cursor.execute(f"SELECT COUNT(*) FROM {TABLE} WHERE COALESCE(copied, 0) = 0")
                if cursor.fetchone()[0] < self._most_waiting:
                    return
            self._stop_asked.wait(0.5)

    def _connected(self) -> Any:
        if self._connection is None:
            # A frozen server answers in the end, or is killed.
            self._connection = self._stage.connect(read_timeout=60)
        return self._connection

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and connection.open:
            with contextlib.suppress(pymysql.MySQLError, OSError):
                connection.close()
