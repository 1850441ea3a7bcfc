"""Threads that cause faults: each causes one fault after the other, at random, and ends it again; together they cause all kinds."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

import pymysql
from archive_places import marker_of
from files_table import TABLE
from private_site import TARGET
from publisher import DISK

from cdc_archiver.database.source_locks import lock_name
from cdc_archiver.sandbox import ChildProcess, SandboxError
from soak.site import SoakSite, children_of, send

BALLAST = "ballast"
"""The file with which a fault fills the archive's disk."""
_ENOUGH = 15.0
"""Seconds that some services get to archive a file."""


class FaultThread(threading.Thread):
    """Causes one fault after the other until the time of faults is over; at its end nothing is broken.

    Args:
        gap: mean seconds between two faults.
    """

    def __init__(self, name: str, site: SoakSite, chance: random.Random, gap: float) -> None:
        super().__init__(name=f"faults-{name}", daemon=True)
        self.site = site
        self.chance = chance
        self.gap = gap
        self.now = ""
        """The current fault."""
        self.failure: BaseException | None = None

    def faults(self) -> Sequence[tuple[float, Callable[[], None]]]:
        """The faults, with their relative frequency."""
        raise NotImplementedError

    def between(self) -> None:
        """Called between two faults."""

    def rest(self) -> bool:
        """Waits for the next fault; whether the time of faults is over."""
        return self.site.faults_over.wait(min(self.chance.expovariate(1 / self.gap), 4 * self.gap))

    def run(self) -> None:
        try:
            weights, faults = zip(*self.faults(), strict=True)
            while not self.rest():
                self.between()
                (fault,) = self.chance.choices(faults, weights)
                self.now = fault.__name__
                began = time.time()
                # Faults of other threads interfere: a stopped database takes no statement.
                with contextlib.suppress(pymysql.MySQLError, OSError, subprocess.TimeoutExpired):
                    fault()
                    self.site.counts[fault.__name__] += 1
                    self.site.note(began, time.time(), fault.__name__)
                self.now = ""
        except BaseException as error:
            self.failure = error
            self.site.faults_over.set()

    def wait(self, least: float, most: float) -> None:
        """Waits while the fault lasts."""
        self.site.faults_over.wait(self.chance.uniform(least, most))


class DatabaseFaults(FaultThread):
    """Faults of the database server and of the connection to it."""

    def faults(self) -> Sequence[tuple[float, Callable[[], None]]]:
        return [
            (3, self.database_restarted),
            (4, self.database_killed),
            (3, self.database_frozen),
            (8, self.stream_killed),
            (6, self.connections_killed),
            (5, self.lock_killed),
            (8, self.database_wire_cut),
            (4, self.database_wire_cut_in_mid_answer),
            (3, self.database_wire_frozen),
            (3, self.database_wire_refused),
            (4, self.database_wire_slow),
            (5, self.logs_flushed),
            (4, self.logs_purged),
            (3, self.logs_reset),
            (3, self.rows_locked),
        ]

    def database_restarted(self) -> None:
        self.site.database.stop()
        self.wait(0, 2)
        self.site.database.start()

    def database_killed(self) -> None:
        self.site.database.kill()
        self.wait(0, 2)
        self.site.database.start()

    def database_frozen(self) -> None:
        self.site.database.pause()
        try:
            self.wait(0.5, 8)
        finally:
            self.site.database.resume()

    def stream_killed(self) -> None:
        self._kill("COMMAND LIKE 'Binlog Dump%%'")

    def connections_killed(self) -> None:
        self._kill("TRUE")

    def lock_killed(self) -> None:
        name = lock_name(self.site.stage.database, TABLE, TARGET)
        for (session,) in self.site.database.execute("SELECT IS_USED_LOCK(%s)", [name]):
            if session is not None:
                self.site.database.execute(f"KILL {session}")

    def database_wire_cut(self) -> None:
        self.site.database_wire.cut()

    def database_wire_cut_in_mid_answer(self) -> None:
        self.site.database_wire.cut_after(self.chance.randint(1, 3000))
        self.wait(0, 2)

    def database_wire_frozen(self) -> None:
        self.site.database_wire.freeze()
        try:
            self.wait(0.5, 10)
        finally:
            self.site.database_wire.thaw(forget=self.chance.random() < 0.5)

    def database_wire_refused(self) -> None:
        self.site.database_wire.refuse()
        try:
            self.wait(0.5, 6)
        finally:
            self.site.database_wire.accept()

    def database_wire_slow(self) -> None:
        wire = self.site.database_wire
        wire.delay, wire.rate = self.chance.choice([(0.05, 0.0), (0.0, 20_000.0), (0.02, 100_000.0)])
        try:
            self.wait(1, 8)
        finally:
            wire.delay, wire.rate = 0.0, 0.0

    def logs_flushed(self) -> None:
        self.site.database.execute("FLUSH BINARY LOGS")

    def logs_purged(self) -> None:
        self.site.database.execute("FLUSH BINARY LOGS")
        self.site.database.execute("PURGE BINARY LOGS BEFORE NOW() + INTERVAL 1 DAY")

    def logs_reset(self) -> None:
        mysql = self.site.database.kind == "mysql"
        self.site.database.execute("RESET BINARY LOGS AND GTIDS" if mysql else "RESET MASTER")

    def rows_locked(self) -> None:
        """A user leaves a transaction open that has locked rows."""
        with contextlib.closing(self.site.stage.connect(autocommit=False)) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT id FROM {TABLE} WHERE copied = 0 ORDER BY id LIMIT 20 FOR UPDATE")
            self.wait(1, 6)
            connection.rollback()

    def _kill(self, which: str) -> None:
        sessions = self.site.database.execute(
            f"SELECT ID FROM information_schema.PROCESSLIST WHERE USER = %s AND {which}", [self.site.stage.user]
        )
        for (session,) in sessions:
            with contextlib.suppress(pymysql.MySQLError):  # it has just ended
                self.site.database.execute(f"KILL {session}")


class SourceFaults(FaultThread):
    """Faults of the readout server, its sshd, its disk and the connection to it."""

    def faults(self) -> Sequence[tuple[float, Callable[[], None]]]:
        return [
            (4, self.sshd_stopped),
            (4, self.sshd_killed),
            (3, self.sshd_frozen),
            (1, self.host_key_changed),
            (1, self.key_revoked),
            (6, self.ssh_wire_cut),
            (6, self.ssh_wire_cut_in_mid_file),
            (2, self.ssh_wire_frozen),
            (3, self.ssh_wire_refused),
            (4, self.ssh_wire_slow),
            (8, self.sources_unmounted),
        ]

    def sshd_stopped(self) -> None:
        self.site.ssh.stop()
        self.wait(0.2, 5)
        self.site.ssh.start()

    def sshd_killed(self) -> None:
        self.site.ssh.kill()
        self.wait(0, 3)
        self.site.ssh.start()

    def sshd_frozen(self) -> None:
        self.site.ssh.pause()
        try:
            self.wait(0.5, 8)
        finally:
            self.site.ssh.resume()

    def host_key_changed(self) -> None:
        self.site.ssh.change_host_key()
        self.wait(1, 4)
        self.site.trust_host_key()

    def key_revoked(self) -> None:
        self.site.ssh.revoke()
        self.site.ssh.restart()
        self.wait(1, 4)
        self.site.ssh.authorize()

    def ssh_wire_cut(self) -> None:
        self.site.ssh_wire.cut()

    def ssh_wire_cut_in_mid_file(self) -> None:
        self.site.ssh_wire.cut_after(self.chance.choice([1_000, 50_000, 1_000_000, 40_000_000]))
        self.wait(0, 3)

    def ssh_wire_frozen(self) -> None:
        self.site.ssh_wire.freeze()
        try:
            self.wait(0.5, 8)
        finally:
            self.site.ssh_wire.thaw(forget=self.chance.random() < 0.5)

    def ssh_wire_refused(self) -> None:
        self.site.ssh_wire.refuse()
        try:
            self.wait(0.5, 5)
        finally:
            self.site.ssh_wire.accept()

    def ssh_wire_slow(self) -> None:
        wire = self.site.ssh_wire
        wire.delay, wire.rate = self.chance.choice([(0.03, 0.0), (0.0, 1e6), (0.01, 1e7)])
        try:
            self.wait(1, 8)
        finally:
            wire.delay, wire.rate = 0.0, 0.0

    def sources_unmounted(self) -> None:
        """The source root becomes an empty directory, also for processes that use it."""
        disk, away = self.site.stage.sources / DISK, self.site.stage.directory / "away"
        with self.site.sources_held:
            disk.rename(away)
            try:
                self.wait(0.1, 6)
            finally:
                away.rename(disk)


class ArchiveFaults(FaultThread):
    """Faults of the archive's disk."""

    def faults(self) -> Sequence[tuple[float, Callable[[], None]]]:
        full = [(4.0, self.archive_full)] if self.site.disk else []
        return [(4, self.marker_gone), *full]

    def marker_gone(self) -> None:
        marker = marker_of(self.site.stage.data_dir)
        away = marker.with_name(f"{marker.name}.away")
        marker.rename(away)
        try:
            self.wait(0.5, 6)
        finally:
            away.rename(marker)

    def archive_full(self) -> None:
        """Fills the disk to the last byte."""
        assert self.site.disk is not None
        ballast = self.site.disk / BALLAST
        try:
            with ballast.open("wb", buffering=0) as file:
                for _ in range(3):
                    free = os.statvfs(file.fileno())
                    with contextlib.suppress(OSError):
                        size = ballast.stat().st_size
                        os.posix_fallocate(file.fileno(), size, int(free.f_bavail * free.f_frsize * 0.9) or 1)
                file.seek(0, os.SEEK_END)
                until = time.monotonic() + self.chance.uniform(1, 6)
                # What other processes free meanwhile is filled as well.
                while time.monotonic() < until and not self.site.faults_over.wait(0.05):
                    with contextlib.suppress(OSError):
                        while file.write(bytes(1 << 20)) and not self.site.faults_over.is_set():
                            pass
                    with contextlib.suppress(OSError):
                        file.write(bytes(4096))
        finally:
            ballast.unlink(missing_ok=True)


class ServiceFaults(FaultThread):
    """Faults of the service: killed, stopped, paused, replaced by another, and always started again."""

    def __init__(self, name: str, site: SoakSite, chance: random.Random, gap: float) -> None:
        super().__init__(name, site, chance, gap)
        self._number = 0
        self.service = self.start_one()

    def faults(self) -> Sequence[tuple[float, Callable[[], None]]]:
        return [
            (120, self.service_killed),
            (6, self.service_stopped),
            (5, self.service_relieved),
            (3, self.service_frozen),
            (3, self.reconcile_beside),
            (3, self.reconcile_killed),
        ]

    def rest(self) -> bool:
        """Often too short for the service to archive a file; but sometimes it gets the time, however busy the machine is."""
        if self.chance.random() < 0.7:
            return self.site.faults_over.wait(self.chance.expovariate(1 / self.gap))
        until = time.monotonic() + _ENOUGH
        while time.monotonic() < until and not self.site.faults_over.is_set() and not self._has_archived():
            self.site.faults_over.wait(0.2)
        return self.site.faults_over.wait(self.chance.uniform(0, 2 * self.gap))

    def _has_archived(self) -> bool:
        return re.search(r'"(archived|adopted)"', self.service.log.read_text(errors="replace")) is not None

    def start_one(self, *more: str) -> ChildProcess:
        """Starts a service with its own log."""
        self._number += 1
        process = self.site.process(f"{self._number:04}", *more)
        process.start()
        return process

    def between(self) -> None:
        if not self.service.running:
            self.site.unforeseen.append(f"{self.service.log.name}: it died with status {self.service.returncode}")
            self.service = self.start_one()

    def service_killed(self) -> None:
        _kill(self.service)
        self.service = self.start_one()

    def service_stopped(self) -> None:
        self.service.send(signal.SIGTERM)
        self.site.require_end(self.service)
        self.service = self.start_one()

    def service_relieved(self) -> None:
        """A second service stands by, and the first one ends."""
        second = self.start_one()
        self.wait(1, 8)
        if self.chance.random() < 0.5:
            _kill(self.service)
        else:
            self.service.send(signal.SIGTERM)
            self.site.require_end(self.service)
        self.service = second

    def service_frozen(self) -> None:
        """Sometimes long enough for the second service to take over; then two run for a moment."""
        second = self.start_one()
        self.service.send(signal.SIGSTOP)
        try:
            self.wait(1, 25)
        finally:
            self.service.send(signal.SIGCONT)
        self.wait(0, 3)
        _kill(self.service)
        self.service = second

    def reconcile_beside(self) -> None:
        process = self.start_one("--reconcile", "--wait", "3")
        if not process.wait(self.chance.uniform(1, 20)):
            _kill(process)

    def reconcile_killed(self) -> None:
        """Only a reconciliation runs, and is killed; then a service starts."""
        _kill(self.service)
        process = self.start_one("--reconcile")
        process.wait(self.chance.uniform(0.5, 8))
        _kill(process)
        self.service = self.start_one()


class ChildProcessFaults(FaultThread):
    """Faults of the processes that the service starts, here and on the source."""

    def __init__(self, site: SoakSite, chance: random.Random, gap: float, services: ServiceFaults) -> None:
        super().__init__("children", site, chance, gap)
        self._services = services

    def faults(self) -> Sequence[tuple[float, Callable[[], None]]]:
        return [
            (4, self.rsync_killed),
            (3, self.ssh_killed),
            (4, self.remote_rsync_killed),
            (2, self.remote_rsync_frozen),
        ]

    def rsync_killed(self) -> None:
        self._kill(self._services.service.pid, r"(^|/)rsync --files-from")

    def ssh_killed(self) -> None:
        """Kills connections and masters."""
        self._kill(self._services.service.pid, r"(^|/)ssh ")

    def remote_rsync_killed(self) -> None:
        self._kill(self.site.ssh.pid, r"(^|/)rsync --server")

    def remote_rsync_frozen(self) -> None:
        frozen = children_of(self.site.ssh.pid, r"(^|/)rsync --server")
        if not frozen:
            raise OSError("no such process")
        for pid in frozen:
            send(pid, signal.SIGSTOP)
        try:
            self.wait(0.5, 10)
        finally:
            for pid in frozen:
                send(pid, signal.SIGCONT)

    def _kill(self, parent: int, pattern: str) -> None:
        until = time.monotonic() + 2.0
        while not (found := children_of(parent, pattern)):
            if time.monotonic() > until or self.site.faults_over.wait(0.05):
                raise OSError("no such process")
        send(self.chance.choice(found), signal.SIGKILL)


def _kill(process: ChildProcess) -> None:
    """SIGKILL, without its children: they have to notice its end."""
    process.send(signal.SIGKILL)
    if not process.wait(30.0):
        raise SandboxError(f"process {process.pid} survives SIGKILL")
