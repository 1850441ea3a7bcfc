"""What the acceptance tests share: a site of their own on the real servers, the service in a thread or as a program, a patient wait."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from unittest import mock

import pymysql
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from cdc_archiver import cli
from cdc_archiver.archiver import Archiver
from cdc_archiver.errors import ExitStatus
from cdc_archiver.sandbox import ChildProcess, DatabaseServer, SshServer
from cdc_archiver.settings import Settings, load

TABLE = "pysmurf_files"
HISTORY = "cdc_archiver_history"
CREATE_TABLE = f"""
CREATE TABLE {TABLE} (
    id INT AUTO_INCREMENT PRIMARY KEY, path VARCHAR(260) NOT NULL, action VARCHAR(32), timestamp TIMESTAMP NULL,
    action_timestamp INT, format VARCHAR(32), plot TINYINT(1), site VARCHAR(32), pub_id VARCHAR(32), script_id VARCHAR(32),
    instance_id VARCHAR(32), copied TINYINT(1), failed_copy_attempts INT, md5sum BINARY(16) NOT NULL,
    pysmurf_version VARCHAR(64), socs_version VARCHAR(64)
)
"""
"""As the monitors of the Simons Observatory make it, and not as we would."""
PASSWORD = "tr0ub4dor-and-3"
TARGET = "pysmurf-monitor"
PATIENCE = 30.0
"""Seconds: a bound for a busy machine; no test waits that long where all is well."""

COMMAND = (sys.executable, "-m", "cdc_archiver")

_T = TypeVar("_T")
_numbers = itertools.count(1)


@dataclass(frozen=True)
class SourceFile:
    """A file as an instrument writes it."""

    path: Path
    content: bytes

    @property
    def md5(self) -> bytes:
        return hashlib.md5(self.content).digest()


@dataclass(frozen=True)
class Row:
    """What the archiver may change of a row."""

    path: str
    copied: int | None
    attempts: int | None


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Stage:
    """One site: a database with the table of files, an archiver's account, a folder of files, an archive."""

    def __init__(self, server: DatabaseServer, ssh: SshServer, folder: Path, runtime: Path) -> None:
        number = next(_numbers)
        self.server = server
        self.ssh = ssh
        self.folder = folder
        self.runtime = runtime
        self.database = f"site_{number}"
        self.user = f"archiver_{number}"
        self.sources = folder / "readout"
        self.data_dir = folder / "archive"
        self.services: list[Service] = []
        self._administrator: Any = None

    def build(self, *, table: bool = True) -> None:
        """Makes it."""
        self.sources.mkdir()
        self.data_dir.mkdir()
        self.server.execute(f"CREATE DATABASE {self.database}")
        self.server.create_archiver_user(self.user, PASSWORD, self.database, history=HISTORY)
        if table:
            self.sql(CREATE_TABLE)

    def close(self) -> None:
        """Hangs up."""
        connection, self._administrator = self._administrator, None
        if connection is not None and connection.open:
            connection.close()

    # The instrument's side.

    def file(self, name: str, content: bytes | None = None, *, size: int = 2000) -> SourceFile:
        """Writes a file on the readout server."""
        path = self.sources / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = os.urandom(size) if content is None else content
        path.write_bytes(content)
        return SourceFile(path, content)

    def files(self, count: int, *, size: int = 2000, prefix: str = "f") -> list[SourceFile]:
        """Writes several."""
        return [self.file(f"{prefix}{number:04}.npy", size=size) for number in range(count)]

    def values(self, file: SourceFile, **columns: Any) -> dict[str, Any]:
        """A row as the monitor registers a file, but for these columns."""
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
        """Where a file belongs that was registered like any other."""
        folder = "plots" if plot else "outputs"
        return self.data_dir / "15895" / "crate1slot2" / "1589517264_take_iv" / folder / file.path.name

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
            self.close()  # the server may be started anew before the next question
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

    def history(self, id_: int) -> list[dict[str, Any]]:
        """What the history says of a file, oldest first."""
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {HISTORY} WHERE file_id = %s ORDER BY id", (id_,))
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]

    def wait_archived(self, *ids: int, within: float = PATIENCE) -> list[Row]:
        """Waits until the rows say that their files are archived."""
        if not eventually_or_not(
            lambda: self._none_failed() and all(row.copied == 1 for row in self.rows(ids)), within
        ):
            late = [row for row in self.rows(ids) if row.copied != 1]
            raise AssertionError(f"{len(late)} of {len(ids)} files not archived within {within} s: {late[:5]}")
        return self.rows(ids)

    def wait_attempts(self, id_: int, attempts: int, within: float = PATIENCE) -> Row:
        """Waits until a row was charged so many times, or says what it says instead."""
        charged = lambda: self._none_failed() and (self.row(id_).attempts or 0) >= attempts
        eventually(charged, f"row {id_} has {attempts} attempts", within)
        return self.row(id_)

    # The archive.

    def archived_files(self) -> list[Path]:
        """Every file below data_dir but the archiver's own."""
        # Staging comes and goes while we look.
        years = [folder for folder in self.data_dir.glob("*") if not folder.name.startswith(".")]
        return sorted(path for folder in years for path in (folder, *folder.rglob("*")) if path.is_file())

    # The archiver.

    def settings(self, **changes: Any) -> Settings:
        """As an operator sets it up; ``host=""`` for a local copy."""
        return load(self._database_options() | self.options(changes), environment={})

    def service(self, *, until: str | None = "streaming", preflight: bool = False, **changes: Any) -> Service:
        """The service in a thread of this process.

        Arguments:
            until: the state that it is waited for; None for none.
            preflight: whether it says at the start what `check` would; a login of its own, which most tests do not look at.
        """
        self.services.append(Service(self.settings(**changes), until))
        if not preflight:
            self.services[-1].archiver._preflight = lambda: None  # type: ignore[method-assign]
        return self.services[-1]

    def program(
        self, *, until: str | None = "streaming", interpreter: Sequence[str] = COMMAND, **changes: Any
    ) -> Program:
        """The service as a program of its own: ``cdc-archiver run``.

        Arguments:
            interpreter: what is run in place of ``cdc-archiver``.
        """
        log = self.folder / f"program-{next(_numbers)}.log"
        return Program([*interpreter, "run", *self.flags(**changes)], self.environment(), log, until)

    def command(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Done:
        """Runs ``cdc-archiver`` with these arguments to its end, in this process: only the start of Python is saved."""
        return run_here(arguments, self.environment() | dict(environment or {}))

    def process(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Done:
        """Runs ``cdc-archiver`` with these arguments to its end, as a shell does it."""
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
        """The settings as flags; None leaves one out."""
        words: list[str] = []
        for name, value in self.options(changes).items():
            flag = f"--{name.replace('_', '-')}"
            for single in value if isinstance(value, tuple) else (value,):
                words += [flag, str(single)]
        return words

    def environment(self) -> dict[str, str]:
        """Where the database is, and nothing that a developer's shell has set."""
        kept = {
            name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "LANG", "TMPDIR") if name in os.environ
        }
        variables = {name.upper(): str(value) for name, value in self._database_options().items()}
        return kept | variables | {"XDG_RUNTIME_DIR": str(self.runtime)}

    def _none_failed(self) -> bool:
        """Nobody waits for the work of a service that has died."""
        for service in self.services:
            if isinstance(service.ended, Exception):
                raise service.ended
        return True

    def options(self, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Settings of this site but the database's, and these changes; None leaves one out."""
        changes = changes or {}
        options: dict[str, Any] = {
            "data_dir": self.data_dir,
            "target": (TARGET,),
            "host": self.ssh.host,
            "user": self.ssh.user,
            "ssh_port": self.ssh.port,
            "ssh_key": self.ssh.key,
            "known_hosts": self.ssh.known_hosts,
            "ssh_config": "/dev/null",
            "http_port": 0,
            "min_free": 0,
        }
        if changes.get("host", "there") == "":
            for name in ("host", "user", "ssh_port", "ssh_key", "known_hosts", "ssh_config"):
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
def new_stage(server: DatabaseServer, ssh: SshServer, folder: Path, *, table: bool = True) -> Iterator[Stage]:
    """A stage on these servers, which are as they were afterwards; fails where a process or a thread of it is left."""
    threads = set(threading.enumerate())
    runtime = Path(tempfile.mkdtemp(prefix="cdc-stage-", dir="/tmp"))  # short: an ssh socket goes into it
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    stage = Stage(server, ssh, folder, runtime)
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
    assert eventually_or_not(lambda: not processes_of(folder), 10.0), f"processes are left: {processes_of(folder)}"
    assert eventually_or_not(lambda: not threads_since(threads), 10.0), f"threads are left: {threads_since(threads)}"


class Served:
    """A service to ask over HTTP."""

    port = 0

    def get(self, path: str) -> tuple[int, str]:
        """Status and body."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def status(self) -> dict[str, Any]:
        """What /api/status says."""
        answer: dict[str, Any] = json.loads(self.get("/api/status")[1])
        return answer

    def state(self) -> str:
        """What /readyz says, in one or two words."""
        return self.get("/readyz")[1].partition(":")[0].strip()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; without the prefix."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == f"cdc_archiver_{name}" and labels.items() <= sample.labels.items()
        )

    def wait_metric(self, value: float, name: str, **labels: str) -> None:
        """Waits until a metric has a value: a row is seen to be archived before the metrics count it."""
        if not eventually_or_not(lambda: self.metric(name, **labels) == value, PATIENCE):
            raise AssertionError(f"{name} {labels} is not {value}, but {self.metric(name, **labels)}")

    def wait_state(self, state: str, within: float = PATIENCE) -> None:
        """Waits until /readyz says so."""
        if not eventually_or_not(lambda: self.state() == state, within):
            raise AssertionError(f"not {state!r} within {within} s, but {self.get('/readyz')}")

    def wait_settled(self) -> None:
        """Waits until the sweeps of the start are done, of which the last is 1.5 s after the stream's begin: what comes from
        now on comes by the stream."""
        self.wait_state("streaming")
        began = time.time()
        last_look = lambda: self.metric("last_sweep_timestamp_seconds") > began + 1 or time.time() > began + 3
        eventually(last_look, "the second look of the start is done")


class Service(Served):
    """The service in a thread. It ends with the ``with`` block, and must end well there unless :meth:`failure` was asked."""

    def __init__(self, settings: Settings, until: str | None) -> None:
        self.archiver = Archiver(settings)
        self._until = until
        self.ended: ExitStatus | Exception | None = None
        self.looked = False
        self._thread = threading.Thread(target=self._run, name="acceptance-service", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            eventually(lambda: self.archiver.http is not None or self.ended, "the HTTP server is there")
            if self.archiver.http is not None:
                self.port = self.archiver.http.port
            if self._until is not None:
                self.wait_state(self._until)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if kind is None and not self.looked:
            assert self.ended is ExitStatus.DONE, f"the service ended with {self.ended!r}"

    def stop(self) -> None:
        """As SIGTERM does it."""
        self.archiver.stop()
        self._thread.join(60.0)
        assert not self._thread.is_alive(), "the service did not end within 60 s"

    def failure(self) -> Exception:
        """What it died of by itself."""
        self._thread.join(PATIENCE)
        self.looked = True
        assert isinstance(self.ended, Exception), f"the service did not fail: {self.ended!r}"
        return self.ended

    def _run(self) -> None:
        try:
            self.ended = self.archiver.run()
        except Exception as error:
            self.ended = error


class Program(Served):
    """``cdc-archiver`` as a process of its own. It is killed at the end of the ``with`` block, and has written no secret there."""

    may_trace = False
    """Whether a traceback may be in its log: where a bug is part of the test."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, until: str | None) -> None:
        self._process = ChildProcess("cdc-archiver", command, log, environment)
        self._until = until

    def __enter__(self) -> Self:
        self._process.start()
        try:
            self.port = int(eventually(self._listens_at, "it says where it listens, or ends"))
            if self._until is not None:
                self.wait_state(self._until)
        except BaseException as error:
            self._process.kill()
            error.add_note(f"the program said:\n{self.said}")
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._process.kill()
        if kind is None:
            assert PASSWORD not in self.said
            assert self.may_trace or "Traceback" not in self.said, self.said

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def said(self) -> str:
        """All that it wrote, without colours."""
        return self._process.log_tail(10_000)

    def signal(self, number: signal.Signals) -> None:
        self._process.send(number)

    def wait(self, within: float = PATIENCE) -> int:
        """Waits for its end; its exit status."""
        assert self._process.wait(within), f"it has not ended after {within} s; it said:\n{self.said}"
        assert self._process.returncode is not None
        return self._process.returncode

    def kill(self) -> None:
        """SIGKILL, to it alone."""
        self._process.send(signal.SIGKILL)
        self._process.wait(PATIENCE)

    def _listens_at(self) -> str:
        assert self._process.running, f"it ended with status {self._process.returncode}; it said:\n{self.said}"
        match = re.search(r"address\W+http://[^:]+:(\d+)", self.said)
        return match[1] if match else ""


def run_here(arguments: Sequence[str], environment: Mapping[str, str]) -> Done:
    """What ``cdc-archiver`` does when it is typed; afterwards this process is as it was."""
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
    """One INSERT (or REPLACE) of several rows that have the same columns; the first id.

    Arguments:
        end: what follows the values.
    """
    columns = list(rows[0])
    one = f"({', '.join(['%s'] * len(columns))})"
    names = ", ".join(f"`{name}`" for name in columns)
    cursor.execute(
        f"{verb} INTO {TABLE} ({names}) VALUES {', '.join([one] * len(rows))} {end}",
        [row[name] for row in rows for name in columns],
    )
    return int(cursor.lastrowid)


def eventually_or_not(question: Callable[[], object], within: float) -> bool:
    """Asks until the answer is true; whether it was, within so many seconds."""
    deadline = time.monotonic() + within
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def eventually(question: Callable[[], _T | None], what: str, within: float = PATIENCE) -> _T:
    """Asks until the answer is true, and returns it; fails after some seconds."""
    deadline = time.monotonic() + within
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.02)
    return answer


def threads_since(before: Collection[threading.Thread]) -> list[str]:
    """Threads that were not there before; the sandbox keeps one for all its children."""
    new = [thread for thread in threading.enumerate() if thread not in before]
    return [thread.name for thread in new if thread.name != "sandbox-spawner"]


def processes_of(folder: Path) -> list[str]:
    """The command lines that name a folder: rsync on both sides, ssh, an archiver."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(folder) in words:
                    found.append(words)
    return found
