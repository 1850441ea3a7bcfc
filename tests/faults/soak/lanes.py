"""Lanes of faults: each does one fault after the other, at random, and fixes it again; several lanes at once do all kinds at once."""

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
from audit import BALLAST
from files_table import TABLE
from private_site import TARGET
from publisher import DISK

from cdc_archiver.database.source_locks import lock_name
from cdc_archiver.sandbox import ChildProcess, SandboxError
from cdc_archiver.transfer.staging import MARKER
from soak.site import Site, children_of, send

_ENOUGH = 15.0
"""Seconds that a service is given to archive something, of those that are given any."""


class Lane(threading.Thread):
    """One fault after the other until the time of faults is over; what it broke is fixed when it has ended.

    Args:
        gap: mean seconds between two faults.
    """

    def __init__(self, name: str, site: Site, chance: random.Random, gap: float) -> None:
        super().__init__(name=f"faults-{name}", daemon=True)
        self.site = site
        self.chance = chance
        self.gap = gap
        self.now = ""
        """The fault that is there now."""
        self.failure: BaseException | None = None

    def ways(self) -> Sequence[tuple[float, Callable[[], None]]]:
        """The faults, and how often each is to come among them."""
        raise NotImplementedError

    def between(self) -> None:
        """What is looked after between two faults."""

    def rest(self) -> bool:
        """Waits for the next fault; returns whether the time of faults is over."""
        return self.site.over.wait(min(self.chance.expovariate(1 / self.gap), 4 * self.gap))

    def run(self) -> None:
        try:
            weights, ways = zip(*self.ways(), strict=True)
            while not self.rest():
                self.between()
                (way,) = self.chance.choices(ways, weights)
                self.now = way.__name__
                began = time.time()
                # Other lanes' faults meet this one: a database that is away takes no statement.
                with contextlib.suppress(pymysql.MySQLError, OSError, subprocess.TimeoutExpired):
                    way()
                    self.site.counts[way.__name__] += 1
                    self.site.note(began, time.time(), way.__name__)
                self.now = ""
        except BaseException as error:
            self.failure = error
            self.site.over.set()

    def wait(self, least: float, most: float) -> None:
        """The fault lasts."""
        self.site.over.wait(self.chance.uniform(least, most))


class DatabaseLane(Lane):
    """The database server and the wire to it."""

    def ways(self) -> Sequence[tuple[float, Callable[[], None]]]:
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
        """Somebody looks at rows in a transaction and goes to lunch."""
        with contextlib.closing(self.site.stage.connect(autocommit=False)) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT id FROM {TABLE} WHERE copied = 0 ORDER BY id LIMIT 20 FOR UPDATE")
            self.wait(1, 6)
            connection.rollback()

    def _kill(self, which: str) -> None:
        sessions = self.site.database.execute(
            f"SELECT ID FROM information_schema.PROCESSLIST WHERE USER = %s AND {which}", [self.site.stage.user]
        )
        for (session,) in sessions:
            with contextlib.suppress(pymysql.MySQLError):  # it has just gone by itself
                self.site.database.execute(f"KILL {session}")


class SourceLane(Lane):
    """The readout server, its sshd, its disk and the wire to it."""

    def ways(self) -> Sequence[tuple[float, Callable[[], None]]]:
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
        """All at once the root is an empty directory, for those that are at work in it, too."""
        disk, away = self.site.stage.sources / DISK, self.site.stage.directory / "away"
        with self.site.sources_held:
            disk.rename(away)
            try:
                self.wait(0.1, 6)
            finally:
                away.rename(disk)


class ArchiveLane(Lane):
    """The archive's disk."""

    def ways(self) -> Sequence[tuple[float, Callable[[], None]]]:
        full = [(4.0, self.archive_full)] if self.site.disk else []
        return [(4, self.marker_gone), *full]

    def marker_gone(self) -> None:
        marker = self.site.stage.data_dir / MARKER
        away = marker.with_name(f"{MARKER}.away")
        marker.rename(away)
        try:
            self.wait(0.5, 6)
        finally:
            away.rename(marker)

    def archive_full(self) -> None:
        """To the last byte."""
        ballast = self.site.stage.data_dir / BALLAST
        try:
            with ballast.open("wb", buffering=0) as file:
                for _ in range(3):
                    free = os.statvfs(file.fileno())
                    with contextlib.suppress(OSError):
                        size = ballast.stat().st_size
                        os.posix_fallocate(file.fileno(), size, int(free.f_bavail * free.f_frsize * 0.9) or 1)
                file.seek(0, os.SEEK_END)
                until = time.monotonic() + self.chance.uniform(1, 6)
                # Others, who had space for a moment, give some back: it is taken too.
                while time.monotonic() < until and not self.site.over.wait(0.05):
                    with contextlib.suppress(OSError):
                        while file.write(bytes(1 << 20)) and not self.site.over.is_set():
                            pass
                    with contextlib.suppress(OSError):
                        file.write(bytes(4096))
        finally:
            ballast.unlink(missing_ok=True)


class ServiceLane(Lane):
    """The service itself: killed, stopped, frozen, relieved by another, and always started again."""

    def __init__(self, name: str, site: Site, chance: random.Random, gap: float) -> None:
        super().__init__(name, site, chance, gap)
        self._number = 0
        self.service = self.start_one()

    def ways(self) -> Sequence[tuple[float, Callable[[], None]]]:
        return [
            (120, self.service_killed),
            (6, self.service_stopped),
            (5, self.service_relieved),
            (3, self.service_frozen),
            (3, self.reconcile_beside),
            (3, self.reconcile_killed),
        ]

    def rest(self) -> bool:
        """Often too short for a service to come to anything; but now and then it has to bring the work forward, however busy
        the machine is."""
        if self.chance.random() < 0.7:
            return self.site.over.wait(self.chance.expovariate(1 / self.gap))
        until = time.monotonic() + _ENOUGH
        while time.monotonic() < until and not self.site.over.is_set() and not self._has_archived():
            self.site.over.wait(0.2)
        return self.site.over.wait(self.chance.uniform(0, 2 * self.gap))

    def _has_archived(self) -> bool:
        return re.search(r'"(archived|adopted)"', self.service.log.read_text(errors="replace")) is not None

    def start_one(self, *more: str) -> ChildProcess:
        """A service; its log says which one."""
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
        """A second one stands by, and the first goes."""
        second = self.start_one()
        self.wait(1, 8)
        if self.chance.random() < 0.5:
            _kill(self.service)
        else:
            self.service.send(signal.SIGTERM)
            self.site.require_end(self.service)
        self.service = second

    def service_frozen(self) -> None:
        """Long enough, now and then, that the second one takes over; then there are two for a moment."""
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
        """It alone works, and is killed; then the service goes on."""
        _kill(self.service)
        process = self.start_one("--reconcile")
        process.wait(self.chance.uniform(0.5, 8))
        _kill(process)
        self.service = self.start_one()


class ChildrenLane(Lane):
    """What the service starts, here and on the source."""

    def __init__(self, site: Site, chance: random.Random, gap: float, services: ServiceLane) -> None:
        super().__init__("children", site, chance, gap)
        self._services = services

    def ways(self) -> Sequence[tuple[float, Callable[[], None]]]:
        return [
            (4, self.rsync_killed),
            (3, self.ssh_killed),
            (4, self.remote_rsync_killed),
            (2, self.remote_rsync_frozen),
        ]

    def rsync_killed(self) -> None:
        self._kill(self._services.service.pid, r"(^|/)rsync --files-from")

    def ssh_killed(self) -> None:
        """Connections and masters alike."""
        self._kill(self._services.service.pid, r"(^|/)ssh ")

    def remote_rsync_killed(self) -> None:
        self._kill(self.site.ssh.pid, r"(^|/)rsync --server")

    def remote_rsync_frozen(self) -> None:
        frozen = children_of(self.site.ssh.pid, r"(^|/)rsync --server")
        if not frozen:
            raise OSError("there is none just now")
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
            if time.monotonic() > until or self.site.over.wait(0.05):
                raise OSError("there is none just now")
        send(self.chance.choice(found), signal.SIGKILL)


def _kill(process: ChildProcess) -> None:
    """SIGKILL, to it alone: what it has started has to notice by itself."""
    process.send(signal.SIGKILL)
    if not process.wait(30.0):
        raise SandboxError(f"process {process.pid} survives SIGKILL")
