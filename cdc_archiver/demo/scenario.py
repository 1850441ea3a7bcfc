"""One run of the demo on running servers: set up, write files, register them while the service runs, check the result."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import pymysql
import sqlalchemy as sa
from rich.filesize import decimal

from cdc_archiver.commands.init_db import create_missing
from cdc_archiver.database import history, schema, side_tables
from cdc_archiver.demo.checks import Check, check_archive
from cdc_archiver.demo.instrument import TARGET, CopyWatcher, Instrument, RegisteredFile
from cdc_archiver.demo.report import Reporter, report_figures
from cdc_archiver.demo.service_process import MetricsSnapshot, ServiceProcess, settings_environment, without_settings
from cdc_archiver.demo.session import PlannedFile, Session, WrittenFile, write
from cdc_archiver.errors import ArchiverError
from cdc_archiver.sandbox import Sandbox, SandboxError
from cdc_archiver.settings import Settings, load
from cdc_archiver.settings.types import FileModes

_TABLE: Final = schema.DEFAULT_TABLE
_CHMOD: Final = "D750,F640"
"""Neither the default nor the modes at the source, so that a wrong mode shows."""
_SWEEP_INTERVAL: Final = 3
"""Seconds; shorter than the default, so that sweeps run during the demo and find what the stream would miss."""
_DRAIN_TIMEOUT: Final = 10
_BURST_EVERY: Final = 1.0
"""Seconds from one burst to the next; less if it is archived earlier."""
_IDLE: Final = (0.05, 0.2)
"""Seconds between two single files: random, so that they do not synchronise with a timer."""
_PATIENCE: Final = 60.0
"""Seconds without an archived file after which the demo fails, plus the time for the largest file."""
_SLOWEST: Final = 5e6
"""Bytes per second of the slowest expected disk."""
_COUNT_EVERY: Final = 0.2
_COUNTED_WITHIN: Final = 5.0
"""Most seconds from a write-back until the metrics count it."""


class Scenario:
    """One run of the demo.

    Args:
        sandbox: with running servers and an otherwise empty directory.
        session: the files.
        reporter: prints progress and figures.
    """

    def __init__(self, sandbox: Sandbox, session: Session, reporter: Reporter) -> None:
        self._sandbox = sandbox
        self._session = session
        self._reporter = reporter
        self._readout = sandbox.directory / "readout"
        self._archive = sandbox.directory / "archive"
        self._password = secrets.token_hex(16)
        self._files = len(session.files)
        self._bytes = sum(file.size for file in session.files)
        self._patience = _PATIENCE + session.largest.size / _SLOWEST
        self._registered: dict[PlannedFile, RegisteredFile] = {}

    def run(self) -> Iterator[Check]:
        """Runs it, once.

        Yields:
            The checks, each as soon as its result is known.

        Raises:
            SandboxError: it could not be completed; the message ends with an excerpt of the service's log.
        """
        server, ssh = self._sandbox.database, self._sandbox.ssh
        service: ServiceProcess | None = None
        try:
            version = server.execute("SELECT VERSION()")[0][0]
            self._reporter.say(f"{server.kind} {version} on 127.0.0.1:{server.port}, sshd on 127.0.0.1:{ssh.port}")
            environment = self._set_up()
            written = self._write()
            flags = ("--data-dir", str(self._archive), "--host", ssh.host, "--target", TARGET)
            service = ServiceProcess(flags, environment, self._sandbox.directory)
            yield from self._observe_and_check(service, written, load(environment=environment))
        except (SandboxError, ArchiverError, sa.exc.SQLAlchemyError, pymysql.err.MySQLError, OSError) as error:
            what = str(getattr(error, "orig", error))  # without SQLAlchemy's text, which is for programmers
            log = service.log_excerpt() if service else ""
            raise SandboxError(f"{what}\nthe service's log ends with:\n{log}" if log else what) from error
        finally:
            if service is not None:
                service.kill()

    def _observe_and_check(
        self, service: ServiceProcess, written: dict[PlannedFile, WrittenFile], settings: Settings
    ) -> Iterator[Check]:
        connect = partial(self._sandbox.database.connect, "monitor", self._password, "files", autocommit=False)
        engine = sa.create_engine("mysql+pymysql://", creator=connect)
        instrument = Instrument(engine, _TABLE)
        try:
            with CopyWatcher(engine, _TABLE) as watcher:
                self._observe(instrument, watcher, service, written)
                snapshot = self._settled(service)
                checks = self._check_files(instrument, settings.modes)
                report_figures(self._reporter, self._session, self._registered, watcher, snapshot, settings)
        finally:
            engine.dispose()
        self._reporter.head("checks")
        yield from checks
        yield _check_metrics(snapshot, self._files)
        yield _check_stop(service)
        yield _check_reconciliation(service)

    def _set_up(self) -> dict[str, str]:
        """Creates database, accounts, table and directories, as a site's administrator does.

        Returns:
            The environment of the service, with its settings.
        """
        server, ssh, directory = self._sandbox.database, self._sandbox.ssh, self._sandbox.directory
        where = {"mysql_host": "127.0.0.1", "mysql_port": server.port}
        server.execute("CREATE DATABASE files")
        for user, grants in (("admin", "ALL"), ("monitor", "SELECT, INSERT")):
            server.execute(f"CREATE USER {user}@'%%' IDENTIFIED BY %s", (self._password,))
            server.execute(f"GRANT {grants} ON files.* TO {user}@'%'")
        for line in create_missing(
            load({**where, "mysql_user": "admin", "mysql_password": self._password}, environment={})
        ):
            self._reporter.say(f"init-db: {line.removeprefix('-- ')}")
        server.create_archiver_user(
            "archiver",
            self._password,
            "files",
            table=_TABLE,
            history=history.NAME,
            side_tables=side_tables.PRIVILEGES,
        )
        secret = directory / "password"
        secret.touch(mode=0o600)
        secret.write_text(self._password)
        for made in (self._readout, self._archive, directory / "run"):
            made.mkdir(mode=0o700)
        return {
            **without_settings(self._sandbox.environment()),
            # For its sockets: removed with this directory even if the service is killed.
            "XDG_RUNTIME_DIR": str(directory / "run"),
            **settings_environment(
                **where,
                mysql_user="archiver",
                mysql_password_file=secret,
                user=ssh.user,
                ssh_port=ssh.port,
                ssh_key=ssh.key,
                known_hosts=ssh.known_hosts,
                ssh_config="/dev/null",
                chmod=_CHMOD,
                min_free=0,
                sweep_interval=_SWEEP_INTERVAL,
                drain_timeout=_DRAIN_TIMEOUT,
                http_port=0,
                log_format="json",
            ),
        }

    def _write(self) -> dict[PlannedFile, WrittenFile]:
        written: dict[PlannedFile, WrittenFile] = {}
        size = 0
        with self._reporter.progress("written", self._files, self._bytes) as show:
            for planned in self._session.files:
                written[planned] = write(planned, self._readout)
                size += planned.size
                show(len(written), size)
        self._reporter.say(f"the instrument wrote {self._files:,} files, {decimal(size)}")
        return written

    def _observe(
        self,
        instrument: Instrument,
        watcher: CopyWatcher,
        service: ServiceProcess,
        written: dict[PlannedFile, WrittenFile],
    ) -> None:
        session = self._session

        def register(*files: PlannedFile) -> None:
            rows = instrument.register([written[file] for file in files])
            watcher.expect(rows, time.monotonic())
            self._registered.update((row.file.planned, row) for row in rows)

        register(*session.early)
        self._reporter.say(
            f"registered {len(session.early)} files before the service starts: its sweep has to find them"
        )
        service.start()
        self._reporter.say(f"cdc-archiver run: streaming, http://127.0.0.1:{service.port}/metrics")
        with self._reporter.progress("archived", self._files, self._bytes) as show:

            def follow(seconds: float = float("inf")) -> None:
                self._follow(watcher, service, seconds, show)

            follow()
            for file in session.single:
                register(file)
                follow()
                time.sleep(random.uniform(*_IDLE))
            self._reporter.say(
                f"registered {len(session.single)} files one at a time; next: the largest file, and bursts at the same time"
            )
            register(session.largest)
            for burst in session.bursts:
                register(*burst)
                follow(_BURST_EVERY)
            follow()
        self._reporter.say("all files are archived")

    def _follow(
        self, watcher: CopyWatcher, service: ServiceProcess, seconds: float, show: Callable[[int, int], None]
    ) -> None:
        """Waits until all registered files are archived, at most so many seconds."""
        began = moved = time.monotonic()
        before = watcher.progress
        while watcher.waiting and time.monotonic() - began < seconds:
            service.require_running()
            watcher.wait(0.1)
            now = watcher.progress
            show(*now)
            if now != before:
                before, moved = now, time.monotonic()
            elif time.monotonic() - moved > self._patience:
                raise SandboxError(f"no file was archived for {self._patience:.0f} s; {self._left()}")
        show(*watcher.progress)

    def _left(self) -> str:
        """The rows that are not archived, with the last history entry of some."""
        rows = self._sandbox.database.execute(
            f"SELECT f.path, f.failed_copy_attempts, (SELECT CONCAT(h.reason, ', ', h.detail) FROM {history.NAME} h "
            f"WHERE h.file_id = f.id ORDER BY h.id DESC LIMIT 1) FROM {_TABLE} f WHERE f.copied = 0 ORDER BY f.id",
            database="files",
        )
        some = "\n".join(
            f"{path}: {attempts} failed attempts; {last or 'no history'}" for path, attempts, last in rows[:5]
        )
        return f"{len(rows)} files are not archived:\n{some}"

    def _settled(self, service: ServiceProcess) -> MetricsSnapshot:
        """The metrics, once they count all archived files and the stream delivers no further events."""
        deadline = time.monotonic() + _COUNTED_WITHIN
        events = -1.0
        while True:
            snapshot = service.metrics()
            before, events = events, snapshot.total("stream_events_total")
            if (_archived(snapshot) >= self._files and events == before) or time.monotonic() > deadline:
                return snapshot
            time.sleep(_COUNT_EVERY)

    def _check_files(self, instrument: Instrument, modes: FileModes) -> list[Check]:
        rows = list(self._registered.values())
        count = size = 0
        with self._reporter.progress("hashed", 2 * self._files, 2 * self._bytes) as show:

            def hashed(length: int) -> None:
                nonlocal count, size
                count, size = count + 1, size + length
                show(count, size)

            return check_archive(rows, instrument.rows(), self._archive, modes, self._readout, hashed)


def _archived(snapshot: MetricsSnapshot) -> int:
    return round(sum(snapshot.total("copies_total", result=result) for result in ("archived", "adopted")))


def _check_metrics(snapshot: MetricsSnapshot, files: int) -> Check:
    wanted = {"stream_missed": 0, "charged": 0, "refused": 0, "archived": files}
    found = {
        "stream_missed": round(snapshot.total("sweep_found_total", why="stream_missed")),
        "charged": round(snapshot.total("copies_total", result="charged")),
        "refused": round(snapshot.total("copies_total", result="refused")),
        "archived": _archived(snapshot),
    }
    return Check(
        "the service's metrics agree: " + ", ".join(f"{count:,} {name}" for name, count in wanted.items()),
        tuple(f"{name} is {found[name]:,}" for name in wanted if found[name] != wanted[name]),
    )


def _check_stop(service: ServiceProcess) -> Check:
    status, seconds = service.stop(_DRAIN_TIMEOUT + 10.0)
    problems = [f"its exit status was {status}"] if status != 0 else []
    if seconds > _DRAIN_TIMEOUT:
        problems.append(f"it took {seconds:.1f} s, more than drain_timeout ({_DRAIN_TIMEOUT} s)")
    return Check(f"SIGTERM stops the service in {seconds:.1f} s, with exit status 0", tuple(problems))


def _check_reconciliation(service: ServiceProcess) -> Check:
    status, summary = service.reconcile(_PATIENCE)
    passed = status == 0 and summary.startswith("archived 0; left: 0 pending, 0 quarantined, 0 refused")
    return Check(
        "run --reconcile finds no file to archive, and ends with exit status 0",
        () if passed else (f"its exit status was {status}, its last line: {summary}",),
    )
