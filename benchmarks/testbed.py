"""The testbed of a benchmark: the sandbox's servers, files of an instrument, and sites whose rows can be watched."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.scale import MB
from cdc_archiver.database import history, schema
from cdc_archiver.demo.service_process import settings_environment, without_settings
from cdc_archiver.sandbox import Sandbox, SandboxError, SshServer
from cdc_archiver.settings import Settings, load

TABLE: Final = schema.DEFAULT_TABLE
TARGET: Final = "pysmurf-monitor"
USER: Final = "archiver"
PASSWORD: Final = "benchmark"
PATIENCE: Final = 120.0
"""Seconds without progress after which a case fails."""

_LARGE: Final = MB
"""Files of at least so many bytes are removed at once."""
_LOOK_EVERY: Final = 0.001
_LOOK_AT_MANY_EVERY: Final = 0.01
"""The baselines run without such queries."""
_ROWS_AT_ONCE: Final = 1000
_FIRST_STAMP: Final = 1_589_517_264
_COLUMNS: Final = (
    "path, action, timestamp, action_timestamp, plot, pub_id, instance_id, copied, failed_copy_attempts, md5sum"
)

_libc = ctypes.CDLL(None, use_errno=True)
_stamps = itertools.count(_FIRST_STAMP)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file on the readout server."""

    path: Path
    size: int
    md5: bytes


@dataclass(frozen=True, slots=True)
class Registered:
    """Rows of one transaction.

    Attributes:
        stamp: their action_timestamp, unique for each transaction; part of the path in the archive.
        ids: ascending.
        committed: time at which COMMIT returned, on the monotonic clock.
    """

    stamp: int
    ids: range
    committed: float


class Testbed:
    """The servers of one run, and a directory for all files.

    Args:
        sandbox: running.
    """

    __test__: Final = False
    """pytest takes a class whose name begins with Test for tests."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.server = sandbox.database
        self.directory = sandbox.directory / "benchmark"
        self.directory.mkdir()
        self.environment = without_settings(sandbox.environment())
        self._files = self.directory / "readout"
        self._aside = self.directory / "attic"
        self._aside.mkdir()
        self._numbers = itertools.count(1)
        self._aside_numbers = itertools.count(1)
        self._made: dict[tuple[str, int, int], list[SourceFile]] = {}

    def files(self, name: str, count: int, size: int) -> list[SourceFile]:
        """Files in their own directory on the readout server, in its page cache; made once."""
        key = (name, count, size)
        if key not in self._made:
            directory = self._files / f"{name}-{count}x{size}"
            directory.mkdir(parents=True)
            self._made[key] = [_write(directory / f"f{number:06}.npy", size) for number in range(count)]
        return self._made[key]

    def forget(self, files: Sequence[SourceFile]) -> None:
        """Puts aside files that are not needed any more."""
        if not any(made is files for made in self._made.values()):
            return  # another build's case, which uses the same files, has done so
        self._made = {key: made for key, made in self._made.items() if made is not files}
        for directory in {file.path.parent for file in files}:
            self.put_aside(directory)

    def put_aside(self, directory: Path) -> None:
        """Moves a directory aside. Its few large files are removed to free their space; the small ones stay until the end.

        ext4 does not reuse a deleted file's inode for one to five minutes (``recently_deleted`` in the kernel's
        fs/ext4/ialloc.c), and looks at each of those inodes for every new file. Deleting thousands of files would make the
        creation of the next ones several times slower.

        Args:
            directory: below the testbed's.
        """
        for place, _, names in os.walk(directory):
            for path in (Path(place, name) for name in names):
                if path.lstat().st_size >= _LARGE:
                    path.unlink()
        directory.rename(self._aside / str(next(self._aside_numbers)))

    def site(self, *, targets: Sequence[str] = (TARGET,), ssh: SshServer | None = None) -> BenchmarkSite:
        """A new site: a database with an empty table of files, its index, an archiver's account, an empty archive."""
        number = next(self._numbers)
        return BenchmarkSite(
            self, f"site_{number}", self.directory / f"site-{number}", tuple(targets), ssh or self.sandbox.ssh
        )

    def settle(self) -> None:
        """Flushes everything to the disk, so that the next measurement does not pay for earlier writes."""
        sync_file_system(self.directory)


class BenchmarkSite:
    """One database, one archive."""

    def __init__(
        self, testbed: Testbed, database: str, directory: Path, targets: tuple[str, ...], ssh: SshServer
    ) -> None:
        self.testbed = testbed
        self.database = database
        self.directory = directory
        self.data_dir = directory / "archive"
        self.targets = targets
        self.ssh = ssh
        self.data_dir.mkdir(parents=True)
        server = testbed.server
        server.execute(f"CREATE DATABASE {database}")
        self._connection: Any = server.connect(database=database)
        self.sql(schema.table_statement(schema.files_table(TABLE)))
        self.sql(schema.index_statement(TABLE))
        self.sql(schema.table_statement(history.TABLE))
        server.create_archiver_user(self.user, PASSWORD, database, history=history.NAME)

    @property
    def user(self) -> str:
        """The archiver's account."""
        return f"{USER}_{self.database}"

    def close(self) -> None:
        """Closes the connection, drops the database and puts its files aside."""
        self._connection.close()
        self.testbed.server.execute(f"DROP DATABASE {self.database}")
        self.testbed.put_aside(self.directory)
        self.testbed.settle()

    # Settings.

    def settings(self) -> Settings:
        """The settings of the service."""
        return load({name: value for name, value in self.options().items() if value is not None}, environment={})

    def options(self) -> dict[str, Any]:
        """Settings by name."""
        return {
            "mysql_host": "127.0.0.1",
            "mysql_port": self.testbed.server.port,
            "mysql_database": self.database,
            "mysql_user": self.user,
            "mysql_password": PASSWORD,
            "data_dir": self.data_dir,
            "target": self.targets,
            **self.ssh.settings,
            "min_free": 0,
            "http_port": 0,
        }

    def environment(self, options: Mapping[str, object]) -> dict[str, str]:
        """The environment of a program that uses this site.

        Args:
            options: settings that override the site's; None removes one.
        """
        chosen = {"log_format": "json", **self.options(), **options}
        settings = {
            name: ",".join(value) if isinstance(value, tuple) else value
            for name, value in chosen.items()
            if value is not None
        }
        return {**self.testbed.environment, **settings_environment(**settings)}

    # The table.

    def sql(self, statement: str, arguments: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Runs one statement as an administrator."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, arguments)
            return list(cursor.fetchall())

    def register(
        self, files: Sequence[SourceFile], *, target: str = "", columns: Mapping[str, object] | None = None
    ) -> Registered:
        """Registers files in one transaction, as a monitor does.

        Args:
            columns: values that override the usual ones.
        """
        stamp = next(_stamps)
        usual = {"action": "bench", "plot": 0, "pub_id": "crate1slot2", "copied": 0, **(columns or {})}
        place = f"({', '.join(['%s'] * 10)})"
        first = 0
        with self._connection.cursor() as cursor:
            cursor.execute("BEGIN")
            for start in range(0, len(files), _ROWS_AT_ONCE):
                part = files[start : start + _ROWS_AT_ONCE]
                values: list[object] = []
                for file in part:
                    values += [str(file.path), usual["action"], "2020-05-15 04:34:24", stamp, usual["plot"]]
                    values += [usual["pub_id"], target or self.targets[0], usual["copied"], 0, file.md5]
                cursor.execute(f"INSERT INTO {TABLE} ({_COLUMNS}) VALUES {', '.join([place] * len(part))}", values)
                first = first or cursor.lastrowid
            self._connection.commit()
        return Registered(stamp, range(first, first + len(files)), time.monotonic())

    def wait_copied(self, rows: Registered) -> dict[int, float]:
        """Waits for a few rows, with frequent queries; the time at which each was first seen copied, on the monotonic clock."""
        seen: dict[int, float] = {}
        waiting = set(rows.ids)
        last = time.monotonic()
        while waiting:
            found = self.copied_among(waiting)
            now = time.monotonic()
            if found:
                last = now
                seen.update(dict.fromkeys(found, now))
                waiting -= found
            elif now - last > PATIENCE:
                raise SandboxError(f"{len(waiting)} of {len(rows.ids)} files were not archived in {PATIENCE:.0f} s")
            else:
                time.sleep(_LOOK_EVERY)
        return seen

    def copied_among(self, ids: Collection[int]) -> set[int]:
        """The rows among these that have copied = 1."""
        listed = ", ".join(map(str, ids))
        return {id_ for (id_,) in self.sql(f"SELECT id FROM {TABLE} WHERE id IN ({listed}) AND copied = 1")}

    def wait_none_pending(self, rows: Registered, progress: Callable[[], object] = lambda: None) -> float:
        """Waits until no row is pending; the time at which this was seen, on the monotonic clock.

        Args:
            rows: what was registered last. While its last row is pending, only that row is queried: the index of what
                is pending is full of outdated entries, and a hundred queries of it a second are a load for a busy
                server.
            progress: returns a value that changes as long as files are archived.
        """
        last, before = time.monotonic(), object()  # called late: not part of the timed work
        condition = " OR ".join(["(copied = 0 AND instance_id = %s)"] * len(self.targets))
        while self.sql(f"SELECT 1 FROM {TABLE} WHERE id = {rows.ids[-1]} AND copied = 0") or self.sql(
            f"SELECT 1 FROM {TABLE} WHERE {condition} LIMIT 1", self.targets
        ):
            now = time.monotonic()
            if now - last > PATIENCE / 2:
                if (after := progress()) == before:
                    raise SandboxError(f"nothing was archived for {PATIENCE / 2:.0f} s")
                last, before = now, after
            time.sleep(_LOOK_AT_MANY_EVERY)
        return time.monotonic()

    def require_archived(self, rows: Registered, files: Sequence[SourceFile]) -> None:
        """Checks that the rows tell the truth: a figure is only valid if the work was done."""
        ((said,),) = self.sql(
            f"SELECT COUNT(*) FROM {TABLE} WHERE id BETWEEN %s AND %s AND copied = 1", (rows.ids[0], rows.ids[-1])
        )
        sizes = sorted(path.stat().st_size for path in self.data_dir.glob(f"*/*/{rows.stamp}_*/*/*"))
        if said != len(files) or sizes != sorted(file.size for file in files):
            raise SandboxError(f"of {len(files)} files {said} are said to be archived, and {len(sizes)} are")

    def empty(self) -> None:
        """Puts aside what was archived, so that the next round finds an empty destination."""
        for directory in self.data_dir.iterdir():
            if directory.is_dir() and not directory.name.startswith("."):
                self.testbed.put_aside(directory)
        self.testbed.settle()


def sync_file_system(directory: Path) -> None:
    """``sync -f``: everything of a directory's file system is durable when it returns."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), f"syncfs {directory}")
    finally:
        os.close(descriptor)


def fsync(path: Path) -> None:
    """One file or directory is durable when it returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, size: int) -> SourceFile:
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("wb") as file:
        for start in range(0, size, 1 << 24):
            chunk = os.urandom(min(1 << 24, size - start))
            md5.update(chunk)
            file.write(chunk)
    return SourceFile(path, size, md5.digest())
