"""The site of a soak: servers, proxies to both, the archive's own disk if possible, and the service's logs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from audit import ExpectedFiles
from private_site import PrivateSite, new_private_site
from proxy import Proxy
from services import COMMAND, PASSWORD

from cdc_archiver.sandbox import ChildProcess, DatabaseServer, Kind, SshServer, ensure_tools, open_database

_DISK_BYTES = 20 * 2**30
"""Of the archive's disk, a sparse file."""
_END_SECONDS = 60.0


@dataclass
class SoakSite:
    """Everything that faults are applied to."""

    stage: PrivateSite
    database: DatabaseServer
    ssh: SshServer
    database_wire: Proxy
    ssh_wire: Proxy
    disk: Path | None
    """The archive's own file system, if it has one."""
    expected_files: ExpectedFiles = field(default_factory=ExpectedFiles)
    sources_held: threading.RLock = field(default_factory=threading.RLock)
    """Held while files on the source are written or moved away."""
    faults_over: threading.Event = field(default_factory=threading.Event)
    """Set when the time of faults is over: all waits end."""
    counts: Counter[str] = field(default_factory=Counter)
    """Faults so far, by name."""
    unforeseen: list[str] = field(default_factory=list)
    """What no fault excuses: the service died, or ended with a wrong exit status."""

    @property
    def known_hosts(self) -> Path:
        return self.stage.directory / "known_hosts"

    @property
    def logs(self) -> Path:
        return self.stage.directory / "logs"

    def trust_host_key(self) -> None:
        """As an operator does after a change of the host key."""
        self.ssh.trust_host_key()
        text = self.ssh.known_hosts.read_text().replace(f":{self.ssh.port} ", f":{self.ssh_wire.port} ")
        fresh = self.known_hosts.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.known_hosts)

    def flags(self) -> list[str]:
        """The service's settings: the usual ones with shorter timeouts."""
        return self.stage.flags(
            mysql_port=self.database_wire.port,
            ssh_port=self.ssh_wire.port,
            known_hosts=self.known_hosts,
            source_root=self.stage.sources,
            log_format="json",
            io_timeout="10s",
            stall_timeout="15s",
        )

    def process(self, name: str, *more: str) -> ChildProcess:
        """A ``cdc-archiver run`` with its own log, not started yet."""
        self.logs.mkdir(exist_ok=True)
        command = [*COMMAND, "run", *self.flags(), *more]
        return ChildProcess("cdc-archiver", command, self.logs / f"{name}.log", self.stage.environment())

    def require_end(self, process: ChildProcess) -> None:
        """Records a service that does not end after SIGTERM, or ends with a wrong status."""
        # Before the service has installed its handlers, SIGTERM ends the process as usual.
        began = "listening" in process.log.read_text(errors="replace")
        statuses = (0,) if began else (0, -signal.SIGTERM)
        if not process.wait(_END_SECONDS):
            self.unforeseen.append(f"{process.log.name}: it has not ended {_END_SECONDS} s after SIGTERM")
            process.kill()
        elif process.returncode not in statuses:
            self.unforeseen.append(f"{process.log.name}: it ended with status {process.returncode}")

    def note(self, began: float, ended: float, fault: str) -> None:
        """Logs a fault, with times like those of the services' logs."""
        at = datetime.fromtimestamp(began, UTC).isoformat(timespec="milliseconds")
        with (self.stage.directory / "faults.log").open("a") as file:
            file.write(f"{at} {ended - began:6.1f} s  {fault}\n")

    def read_logs(self) -> None:
        """Records log lines that no service may write."""
        for log in sorted(self.logs.glob("*.log")):
            for line in log.read_text(errors="replace").splitlines():
                try:
                    event = json.loads(line).get("event")
                except ValueError:
                    event = "traceback" if "Traceback" in line else None
                if event in ("thread_crashed", "stream_missed", "traceback") or PASSWORD in line:
                    self.unforeseen.append(f"{log.name}: {line[:300]}")


@contextlib.contextmanager
def open_soak_site(kind: Kind, directory: Path, *, own_disk: bool) -> Iterator[SoakSite]:
    """Servers, proxies, site and disk; removed afterwards, except for the files of the directory."""
    ensure_tools()
    database, ssh = open_database(kind, directory / "database"), SshServer(directory / "ssh")
    place = directory / "site"
    place.mkdir(parents=True)
    try:
        database.start()
        ssh.start()
        with contextlib.ExitStack() as stack:
            stage = stack.enter_context(new_private_site(database, ssh, place))
            database_wire, ssh_wire = (stack.enter_context(Proxy(server.port)) for server in (database, ssh))
            disk = stack.enter_context(_own_disk(directory, place / "disk")) if own_disk else None
            if disk is not None:
                stage.data_dir = disk / "archive"
                stage.data_dir.mkdir()
            site = SoakSite(stage, database, ssh, database_wire, ssh_wire, disk)
            site.trust_host_key()
            yield site
            # The site's clean-up looks for processes that name its directory.
            database.resume()
            ssh.resume()
    finally:
        database.resume()
        database.kill()
        ssh.resume()
        ssh.kill()


@contextlib.contextmanager
def _own_disk(directory: Path, mount: Path) -> Iterator[Path | None]:
    """A file system only for the archive, which can be filled; None if this user may not mount."""
    image = directory / "disk.ext4"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(_DISK_BYTES)
    made = _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image)) and _run("mount", "-o", "loop", str(image), str(mount))
    if not made:
        image.unlink()
        mount.rmdir()
        yield None
        return
    (mount / "lost+found").rmdir()
    try:
        yield mount
    finally:
        _run("umount", "--lazy", str(mount))
        image.unlink()


def _run(*command: str) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def children_of(parent: int, pattern: str) -> list[int]:
    """The descendants of a process whose command line matches."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
                parents[int(entry)] = int(fields[1])
    found = []
    for pid in parents:
        above, steps = pid, 0
        while above in parents and above != parent and steps < 50:
            above, steps = parents[above], steps + 1
        if above == parent and pid != parent and re.search(pattern, command_line(pid)):
            found.append(pid)
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
