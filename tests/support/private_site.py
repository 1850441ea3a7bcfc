"""A private site on the real servers, for acceptance tests: database, archiver's account, source files, archive."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pymysql
import pytest
import structlog
from files_table import CREATE_TABLE, TABLE
from services import COMMAND, PASSWORD, Program, Service
from waiting import PATIENCE, eventually, eventually_or_not, processes_of, threads_since

from cdc_archiver import cli
from cdc_archiver.database import side_tables
from cdc_archiver.database.operator_history import LATE
from cdc_archiver.sandbox import DatabaseServer, SshServer
from cdc_archiver.settings import Settings, load

HISTORY = "cdc_archiver_history"
TARGET = "pysmurf-monitor"

_numbers = itertools.count(1)


@dataclass(frozen=True)
class SourceFile:
    """A file that an instrument has written."""

    path: Path
    content: bytes

    @property
    def md5(self) -> bytes:
        return hashlib.md5(self.content).digest()


@dataclass(frozen=True)
class Row:
    """The columns of a row that the archiver may change."""

    path: str
    copied: int | None
    attempts: int | None


@dataclass(frozen=True)
class Done:
    """The exit status and the output of a command."""

    returncode: int
    stdout: str
    stderr: str


class PrivateSite:
    """One site: a database with the table of files, the archiver's account, a directory of source files, an archive."""

    def __init__(self, server: DatabaseServer, ssh: SshServer, directory: Path, runtime: Path) -> None:
        number = next(_numbers)
        self.server = server
        self.ssh = ssh
        self.directory = directory
        self.runtime = runtime
        self.database = f"site_{number}"
        self.user = f"archiver_{number}"
        self.sources = directory / "readout"
        self.data_dir = directory / "archive"
        self.services: list[Service] = []
        self._administrator: Any = None

    def build(self, *, table: bool = True) -> None:
        """Creates it."""
        self.sources.mkdir()
        self.data_dir.mkdir()
        self.server.execute(f"CREATE DATABASE {self.database}")
        self.server.create_archiver_user(
            self.user, PASSWORD, self.database, history=HISTORY, side_tables=side_tables.PRIVILEGES
        )
        if table:
            self.sql(CREATE_TABLE)

    def close(self) -> None:
        """Closes the administrator's connection."""
        connection, self._administrator = self._administrator, None
        if connection is not None and connection.open:
            connection.close()

    # The instrument.

    def file(self, name: str, content: bytes | None = None, *, size: int = 2000) -> SourceFile:
        """Writes a file on the readout server."""
        path = self.sources / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = os.urandom(size) if content is None else content
        path.write_bytes(content)
        return SourceFile(path, content)

    def files(self, count: int, *, size: int = 2000, prefix: str = "f") -> list[SourceFile]:
        """Writes several files on the readout server."""
        return [self.file(f"{prefix}{number:04}.npy", size=size) for number in range(count)]

    def values(self, file: SourceFile, **columns: Any) -> dict[str, Any]:
        """The values of a row as the monitor registers a file, changed by these columns."""
        return {
            "path": str(file.path),
            "action": "take_iv",
            "timestamp": "2020-05-15 04:34:24",
            "action_timestamp": 1589517264,
            "plot": 0,
            "pub_id": "crate1slot2",
            "instance_id": TARGET,
            "copied": 0,
            "failed_copy_attempts": 0,
            "md5sum": file.md5,
            **columns,
        }

    def register(self, *files: SourceFile, **columns: Any) -> list[int]:
        """Registers files in one INSERT; their ids."""
        rows = [self.values(file, **columns) for file in files]
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            first = insert(cursor, rows)
        return list(range(first, first + len(rows)))

    def place(self, file: SourceFile, *, plot: bool = False) -> Path:
        """The path in the archive of a file that was registered with the usual values."""
        directory = "plots" if plot else "outputs"
        return self.data_dir / "15895" / "crate1slot2" / "1589517264_take_iv" / directory / file.path.name

    # The table.

    def connect(self, **options: Any) -> Any:
        """An administrator's connection to the site's database."""
        return self.server.connect(database=self.database, **options)

    def sql(self, statement: str, arguments: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        """Runs one statement as an administrator."""
        if self._administrator is None:
            self._administrator = self.connect()
        try:
            with self._administrator.cursor() as cursor:
                cursor.execute(statement, arguments)
                return list(cursor.fetchall())
        except (pymysql.OperationalError, pymysql.InterfaceError):
            self.close()  # the server may be restarted before the next statement
            raise

    def row(self, id_: int) -> Row:
        return self.rows([id_])[0]

    def rows(self, ids: Sequence[int]) -> list[Row]:
        listed = ", ".join(map(str, ids))
        found = self.sql(
            f"SELECT id, path, copied, failed_copy_attempts FROM {TABLE} WHERE id IN ({listed}) ORDER BY id"
        )
        return [Row(path, copied, attempts) for _, path, copied, attempts in found]

    def count(self, condition: str) -> int:
        return int(self.sql(f"SELECT COUNT(*) FROM {TABLE} WHERE {condition}")[0][0])

    def history(self, id_: int, *, late: bool = False) -> list[dict[str, Any]]:
        """The history of a file, oldest entry first.

        Arguments:
            late: with the entry that its timecode was complete already, which depends on how often the service looks.
        """
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {HISTORY} WHERE file_id = %s ORDER BY id", (id_,))
            names = [column[0] for column in cursor.description]
            entries = [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]
        return [entry for entry in entries if late or entry["result"] != LATE]

    def wait_archived(self, *ids: int, within: float = PATIENCE) -> list[Row]:
        """Waits until the rows have copied = 1."""
        if not eventually_or_not(
            lambda: self._none_failed() and all(row.copied == 1 for row in self.rows(ids)), within
        ):
            late = [row for row in self.rows(ids) if row.copied != 1]
            raise AssertionError(f"{len(late)} of {len(ids)} files not archived within {within} s: {late[:5]}")
        return self.rows(ids)

    def wait_attempts(self, id_: int, attempts: int, within: float = PATIENCE) -> Row:
        """Waits until a row has at least so many failed attempts."""
        failed = lambda: self._none_failed() and (self.row(id_).attempts or 0) >= attempts
        eventually(failed, f"row {id_} has {attempts} attempts", within)
        return self.row(id_)

    # The archive.

    def archived_files(self) -> list[Path]:
        """Every file below data_dir except the archiver's own."""
        # Staging changes meanwhile.
        years = [directory for directory in self.data_dir.glob("*") if not directory.name.startswith(".")]
        return sorted(path for directory in years for path in (directory, *directory.rglob("*")) if path.is_file())

    # The archiver.

    def settings(self, **changes: Any) -> Settings:
        """Settings as an operator would choose them; ``host=""`` for a local copy."""
        return load(self._database_options() | self.options(changes), environment={})

    def service(self, *, until: str | None = "streaming", preflight: bool = False, **changes: Any) -> Service:
        """The service in a thread of this process.

        Arguments:
            until: the state to wait for; None: no wait.
            preflight: whether it runs the checks of `check` at its start; most tests need not spend that login.
        """
        self.services.append(Service(self.settings(**changes), until))
        if not preflight:
            self.services[-1].archiver._preflight = lambda: None  # type: ignore[method-assign]
        return self.services[-1]

    def program(
        self, *, until: str | None = "streaming", interpreter: Sequence[str] = COMMAND, **changes: Any
    ) -> Program:
        """The service as a process: ``cdc-archiver run``.

        Arguments:
            interpreter: the command to run in place of ``cdc-archiver``.
        """
        log = self.directory / f"program-{next(_numbers)}.log"
        return Program([*interpreter, "run", *self.flags(**changes)], self.environment(), log, until)

    def command(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Done:
        """Runs ``cdc-archiver`` with these arguments to its end, in this process, which saves the start of Python."""
        return run_here(arguments, self.environment() | dict(environment or {}))

    def process(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Done:
        """Runs ``cdc-archiver`` with these arguments to its end, as a shell does."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            check=False,
            env=self.environment() | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def flags(self, **changes: Any) -> list[str]:
        """The settings as flags; None removes one."""
        flags: list[str] = []
        for name, value in self.options(changes).items():
            flag = f"--{name.replace('_', '-')}"
            for single in value if isinstance(value, tuple) else (value,):
                flags += [flag, str(single)]
        return flags

    def environment(self) -> dict[str, str]:
        """The address of the database, without settings of a developer's shell."""
        kept = {
            name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "LANG", "TMPDIR") if name in os.environ
        }
        variables = {name.upper(): str(value) for name, value in self._database_options().items()}
        return kept | variables | {"XDG_RUNTIME_DIR": str(self.runtime)}

    def _none_failed(self) -> bool:
        """Fails if a service has died: waiting for its work would be useless."""
        for service in self.services:
            if isinstance(service.ended, Exception):
                raise service.ended
        return True

    def options(self, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Settings of this site except the database's, changed by these; None removes one."""
        changes = changes or {}
        options: dict[str, Any] = {
            "data_dir": self.data_dir,
            "target": (TARGET,),
            **self.ssh.settings,
            "http_port": 0,
            "min_free": 0,
            "state_dir": self.directory / "state",
        }
        if changes.get("host", "there") == "":
            for name in self.ssh.settings:
                del options[name]
            changes = {name: value for name, value in changes.items() if name != "host"}
        return {name: value for name, value in (options | dict(changes)).items() if value is not None}

    def _database_options(self) -> dict[str, Any]:
        return {
            "mysql_host": "127.0.0.1",
            "mysql_port": self.server.port,
            "mysql_database": self.database,
            "mysql_user": self.user,
            "mysql_password": PASSWORD,
        }


@contextlib.contextmanager
def new_private_site(
    server: DatabaseServer, ssh: SshServer, directory: Path, *, table: bool = True
) -> Iterator[PrivateSite]:
    """A site on these servers, removed afterwards; fails if a process or a thread of it is left."""
    threads = set(threading.enumerate())
    runtime = Path(tempfile.mkdtemp(prefix="cdc-stage-", dir="/tmp"))  # short: it holds an ssh socket
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    stage = PrivateSite(server, ssh, directory, runtime)
    try:
        stage.build(table=table)
        yield stage
    finally:
        ssh.resume()
        ssh.start()
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
        shutil.rmtree(runtime, ignore_errors=True)
        stage.close()
        if server.running:
            server.execute(f"DROP DATABASE {stage.database}")
            server.execute(f"DROP USER IF EXISTS '{stage.user}'@'%'")
    assert eventually_or_not(lambda: not processes_of(directory), 10.0), (
        f"processes are left: {processes_of(directory)}"
    )
    assert eventually_or_not(lambda: not threads_since(threads), 10.0), f"threads are left: {threads_since(threads)}"


def run_here(arguments: Sequence[str], environment: Mapping[str, str]) -> Done:
    """Runs ``cdc-archiver`` with these arguments in this process, and restores the process afterwards."""
    stdout, stderr = io.StringIO(), io.StringIO()
    logs, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with (
            mock.patch.dict(os.environ, environment, clear=True),
            mock.patch.object(sys, "argv", ["cdc-archiver", *arguments]),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            pytest.raises(SystemExit) as ended,
        ):
            cli.main()
    finally:
        structlog.configure(**logs)
        root.handlers[:] = handlers
        root.setLevel(level)
        for number, handler in signals.items():
            signal.signal(number, handler)
    return Done(int(ended.value.code or 0), stdout.getvalue(), stderr.getvalue())


def insert(cursor: Any, rows: Sequence[Mapping[str, Any]], verb: str = "INSERT", end: str = "") -> int:
    """One INSERT (or REPLACE) of several rows with the same columns; the first id.

    Arguments:
        end: SQL after the values.
    """
    columns = list(rows[0])
    one = f"({', '.join(['%s'] * len(columns))})"
    names = ", ".join(f"`{name}`" for name in columns)
    cursor.execute(
        f"{verb} INTO {TABLE} ({names}) VALUES {', '.join([one] * len(rows))} {end}",
        [row[name] for row in rows for name in columns],
    )
    return int(cursor.lastrowid)
