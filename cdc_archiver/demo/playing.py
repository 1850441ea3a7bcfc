"""One run of the demo on servers that are up: furnished, written, observed, proved."""

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

from cdc_archiver.commands.init_db import init_db
from cdc_archiver.database import history, schema
from cdc_archiver.demo.figures import tell_figures
from cdc_archiver.demo.observing import Planned, Session, Written, write
from cdc_archiver.demo.proof import Check, prove
from cdc_archiver.demo.registry import TARGET, Monitor, Registered, Watcher
from cdc_archiver.demo.service import Reading, Service, clean, site_environment
from cdc_archiver.demo.telling import Teller
from cdc_archiver.errors import ArchiverError
from cdc_archiver.sandbox import Sandbox
from cdc_archiver.sandbox.child_process import SandboxError
from cdc_archiver.settings import Settings, load
from cdc_archiver.settings.types import FileModes

_TABLE: Final = schema.DEFAULT_TABLE
_CHMOD: Final = "D750,F640"
"""Not the default, and not what the files have at their source: so it shows that the modes are set."""
_SWEEP_INTERVAL: Final = 3
"""Seconds; shorter than by default, so that sweeps run beside the stream and would find what it lacks."""
_DRAIN_TIMEOUT: Final = 10
_BURST_EVERY: Final = 1.0
"""Seconds from one burst to the next, unless it is archived sooner."""
_IDLE: Final = (0.05, 0.2)
"""Seconds between two files that come alone: at random, so that they keep no step with anybody's timer."""
_PATIENCE: Final = 60.0
"""Seconds without any file archived after which the demo has failed, beside what the largest may take."""
_SLOWEST: Final = 5e6
"""Bytes per second that the slowest disk takes."""
_COUNT_EVERY: Final = 0.2
_COUNTED_WITHIN: Final = 5.0
"""Seconds after a write-back until the metrics count it, at the most."""


class Play:
    """One run. To be iterated over once.

    Args:
        sandbox: its servers up, its directory otherwise empty.
        session: what is observed.
        teller: told the progress and the figures.
    """

    def __init__(self, sandbox: Sandbox, session: Session, teller: Teller) -> None:
        self._sandbox = sandbox
        self._session = session
        self._teller = teller
        self._readout = sandbox.directory / "readout"
        self._archive = sandbox.directory / "archive"
        self._password = secrets.token_hex(16)
        self._files = len(session.files)
        self._bytes = sum(file.size for file in session.files)
        self._patience = _PATIENCE + session.largest.size / _SLOWEST
        self._registered: dict[Planned, Registered] = {}

    def run(self) -> Iterator[Check]:
        """Plays it.

        Yields:
            The lines of the proof, each as soon as it is known.

        Raises:
            SandboxError: it could not be played to its end; the message ends with the service's last words.
        """
        server, ssh = self._sandbox.database, self._sandbox.ssh
        service: Service | None = None
        try:
            version = server.execute("SELECT VERSION()")[0][0]
            self._teller.say(f"{server.kind} {version} on 127.0.0.1:{server.port}, sshd on 127.0.0.1:{ssh.port}")
            environment = self._furnish()
            written = self._write()
            flags = ("--data-dir", str(self._archive), "--host", ssh.host, "--target", TARGET)
            service = Service(flags, environment, self._sandbox.directory)
            yield from self._observe_and_prove(service, written, load(environment=environment))
        except (SandboxError, ArchiverError, sa.exc.SQLAlchemyError, pymysql.err.MySQLError, OSError) as error:
            what = str(getattr(error, "orig", error))  # SQLAlchemy's own words around it are for programmers
            words = service.last_words() if service else ""
            raise SandboxError(f"{what}\nthe service's last words:\n{words}" if words else what) from error
        finally:
            if service is not None:
                service.kill()

    def _observe_and_prove(
        self, service: Service, written: dict[Planned, Written], settings: Settings
    ) -> Iterator[Check]:
        connect = partial(self._sandbox.database.connect, "monitor", self._password, "files", autocommit=False)
        engine = sa.create_engine("mysql+pymysql://", creator=connect)
        monitor = Monitor(engine, _TABLE)
        try:
            with Watcher(engine, _TABLE) as watcher:
                self._observe(monitor, watcher, service, written)
                reading = self._settled(service)
                checks = self._prove_files(monitor, settings.modes)
                tell_figures(self._teller, self._session, self._registered, watcher, reading, settings)
        finally:
            engine.dispose()
        self._teller.head("proof")
        yield from checks
        yield _prove_metrics(reading, self._files)
        yield _prove_stop(service)
        yield _prove_reconciliation(service)

    def _furnish(self) -> dict[str, str]:
        """Makes database, accounts, table and directories, as a site's administrator does.

        Returns:
            The service's environment, with its settings.
        """
        server, ssh, directory = self._sandbox.database, self._sandbox.ssh, self._sandbox.directory
        where = {"mysql_host": "127.0.0.1", "mysql_port": server.port}
        server.execute("CREATE DATABASE files")
        for user, grants in (("admin", "ALL"), ("monitor", "SELECT, INSERT")):
            server.execute(f"CREATE USER {user}@'%%' IDENTIFIED BY %s", (self._password,))
            server.execute(f"GRANT {grants} ON files.* TO {user}@'%'")
        for line in init_db(load({**where, "mysql_user": "admin", "mysql_password": self._password}, environment={})):
            self._teller.say(f"init-db: {line.removeprefix('-- ')}")
        server.create_archiver_user("archiver", self._password, "files", table=_TABLE, history=history.NAME)
        secret = directory / "password"
        secret.touch(mode=0o600)
        secret.write_text(self._password)
        for made in (self._readout, self._archive, directory / "run"):
            made.mkdir(mode=0o700)
        return {
            **clean(self._sandbox.environment()),
            "XDG_RUNTIME_DIR": str(directory / "run"),  # its sockets: here they are cleared away even if it is killed
            **site_environment(
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

    def _write(self) -> dict[Planned, Written]:
        written: dict[Planned, Written] = {}
        size = 0
        with self._teller.progress("written", self._files, self._bytes) as show:
            for planned in self._session.files:
                written[planned] = write(planned, self._readout)
                size += planned.size
                show(len(written), size)
        self._teller.say(f"the instrument has written {self._files:,} files, {decimal(size)}")
        return written

    def _observe(self, monitor: Monitor, watcher: Watcher, service: Service, written: dict[Planned, Written]) -> None:
        session = self._session

        def register(*files: Planned) -> None:
            rows = monitor.register([written[file] for file in files])
            watcher.expect(rows, time.monotonic())
            self._registered.update((row.file.planned, row) for row in rows)

        register(*session.early)
        self._teller.say(f"{len(session.early)} files are registered before the service starts, for its sweep to find")
        service.start()
        self._teller.say(f"cdc-archiver run: streaming, http://127.0.0.1:{service.port}/metrics")
        with self._teller.progress("archived", self._files, self._bytes) as show:

            def follow(seconds: float = float("inf")) -> None:
                self._follow(watcher, service, seconds, show)

            follow()
            for file in session.alone:
                register(file)
                follow()
                time.sleep(random.uniform(*_IDLE))
            self._teller.say(f"{len(session.alone)} files came one at a time; now the largest, and bursts beside it")
            register(session.largest)
            for burst in session.bursts:
                register(*burst)
                follow(_BURST_EVERY)
            follow()
        self._teller.say("all rows are copied")

    def _follow(self, watcher: Watcher, service: Service, seconds: float, show: Callable[[int, int], None]) -> None:
        """Waits until all that is registered is archived, or these seconds have passed."""
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
                raise SandboxError(f"{self._patience:.0f} s without any file archived; {self._left()}")
        show(*watcher.progress)

    def _left(self) -> str:
        """The rows that are not archived, and what the history says of some."""
        rows = self._sandbox.database.execute(
            f"SELECT f.path, f.failed_copy_attempts, (SELECT CONCAT(h.reason, ', ', h.detail) FROM {history.NAME} h "
            f"WHERE h.file_id = f.id ORDER BY h.id DESC LIMIT 1) FROM {_TABLE} f WHERE f.copied = 0 ORDER BY f.id",
            database="files",
        )
        some = "\n".join(f"{path}: {attempts} attempts; {last or 'no history'}" for path, attempts, last in rows[:5])
        return f"{len(rows)} are left:\n{some}"

    def _settled(self, service: Service) -> Reading:
        """The metrics, when they have counted all that the rows say, and nothing more comes from the stream."""
        deadline = time.monotonic() + _COUNTED_WITHIN
        told = -1.0
        while True:
            reading = service.metrics()
            before, told = told, reading.total("stream_events_total")
            if (_archived(reading) >= self._files and told == before) or time.monotonic() > deadline:
                return reading
            time.sleep(_COUNT_EVERY)

    def _prove_files(self, monitor: Monitor, modes: FileModes) -> list[Check]:
        rows = list(self._registered.values())
        count = size = 0
        with self._teller.progress("hashed", 2 * self._files, 2 * self._bytes) as show:

            def hashed(length: int) -> None:
                nonlocal count, size
                count, size = count + 1, size + length
                show(count, size)

            return prove(rows, monitor.rows(), self._archive, modes, self._readout, hashed)


def _archived(reading: Reading) -> int:
    return round(sum(reading.total("copies_total", result=result) for result in ("archived", "adopted")))


def _prove_metrics(reading: Reading, files: int) -> Check:
    wanted = {"stream_missed": 0, "charged": 0, "refused": 0, "archived": files}
    found = {
        "stream_missed": round(reading.total("sweep_found_total", why="stream_missed")),
        "charged": round(reading.total("copies_total", result="charged")),
        "refused": round(reading.total("copies_total", result="refused")),
        "archived": _archived(reading),
    }
    return Check(
        "the service's metrics say so too: " + ", ".join(f"{count:,} {name}" for name, count in wanted.items()),
        tuple(f"{name} is {found[name]:,}" for name in wanted if found[name] != wanted[name]),
    )


def _prove_stop(service: Service) -> Check:
    status, seconds = service.stop(_DRAIN_TIMEOUT + 10.0)
    faults = [f"its status was {status}"] if status != 0 else []
    if seconds > _DRAIN_TIMEOUT:
        faults.append(f"it took {seconds:.1f} s, with {_DRAIN_TIMEOUT} s to drain")
    return Check(f"SIGTERM ends the service in {seconds:.1f} s, with status 0", tuple(faults))


def _prove_reconciliation(service: Service) -> Check:
    status, words = service.reconcile(_PATIENCE)
    right = status == 0 and words.startswith("archived 0; left: 0 pending, 0 quarantined, 0 refused")
    return Check(
        "run --reconcile finds nothing left to do, and ends with status 0",
        () if right else (f"its status was {status}, its last words: {words}",),
    )
