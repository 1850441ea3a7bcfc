"""The baselines that copy: plain rsync, the agent that polls, and the way of suprsync."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shlex
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.testbed import PASSWORD, TABLE, BenchmarkSite, Registered, SourceFile, fsync, sync_file_system
from cdc_archiver.sandbox import SandboxError
from cdc_archiver.transfer.ssh import ControlMaster, clean_environment, remote_shell

MD5: Final = "--checksum-choice=md5"
"""The sum that a row has; rsync's own choice is a much faster one."""


class BareRsync:
    """rsync itself, over the same ssh, from the same sshd, to the same disk.

    Args:
        site: the source to copy from is its.
    """

    def __init__(self, site: BenchmarkSite) -> None:
        self._source = site.settings().sources[0]
        self._environment = clean_environment(site.testbed.environment)
        self._host = site.ssh.host
        self._master: ControlMaster | None = None
        self._control_path: Path | None = None

    @contextmanager
    def warm(self) -> Iterator[None]:
        """Inside the block it uses an open connection."""
        master = ControlMaster(self._source)
        before = os.environ.get("PATH")
        os.environ["PATH"] = self._environment["PATH"]  # with ssh on it; the master uses this process's environment
        try:
            self._control_path = master.ensure()
            if self._control_path is None:
                raise SandboxError(f"no warm connection: {master.output}")
            self._master = master
            yield
        finally:
            self._control_path = self._master = None
            master.close()
            os.environ["PATH"] = before or ""

    def copy(self, what: str | Path, to: Path, *options: str) -> None:
        """``rsync -a`` of a file or a directory."""
        shell = remote_shell(self._source, self._control_path)
        command = ["rsync", "-a", *options, "-e", shell, "--", f"{self._host}:{what}", f"{to}"]
        done = subprocess.run(
            command, check=False, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise SandboxError(f"rsync ended with {done.returncode}: {done.stderr.strip()}")

    def one(self, file: Path, to: Path) -> float:
        """Copies one file and makes it durable; seconds."""
        with self._timed() as seconds:
            self.copy(file, to)
            fsync(to / file.name)
        return seconds()

    def tree(self, directory: Path, to: Path, *options: str) -> float:
        """Copies a directory's files, then one sync; seconds."""
        with self._timed() as seconds:
            self.copy(f"{directory}/", to, *options)
            sync_file_system(to)
        return seconds()

    def equal_work(self, directory: Path, to: Path) -> float:
        """Copies a directory's files with md5 in transfer, then one md5sum of all copies, then one sync; seconds."""
        with self._timed() as seconds:
            self.copy(f"{directory}/", to, MD5)
            subprocess.run(["md5sum", *map(str, to.iterdir())], check=True, stdout=subprocess.DEVNULL)
            sync_file_system(to)
        return seconds()

    @contextmanager
    def _timed(self) -> Iterator[Callable[[], float]]:
        """Times the block, and checks before and after it that a warm connection still exists: without one, ssh logs in
        again silently."""
        self._require_warm()
        took: list[float] = []
        began = time.monotonic()
        yield lambda: took[0]
        took.append(time.monotonic() - began)
        self._require_warm()

    def _require_warm(self) -> None:
        if self._master is not None and self._master.ensure() != self._control_path:
            raise SandboxError(f"the warm connection has ended: {self._master.output}")


def cpu_of_children() -> float:
    """Processor time of the ended children of this process, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class BatchAgent:
    """The way of socs' suprsync: for each batch one rsync over a new connection, one md5sum over another, and its books in SQLite.

    Args:
        site: a site without a service.
    """

    _BATCH: Final = 100
    """Files; suprsync takes at most so many at once by default."""

    def __init__(self, site: BenchmarkSite) -> None:
        self._site = site
        self._source = site.settings().sources[0]
        self._bare = BareRsync(site)

    def archive(self, files: Sequence[SourceFile], to: Path) -> float:
        """Copies and verifies files of one directory; seconds, from the moment at which they are in its books."""
        with contextlib.closing(sqlite3.connect(to.with_suffix(".db"))) as books:
            books.execute("CREATE TABLE files (name TEXT PRIMARY KEY, md5 TEXT, copied REAL)")
            books.executemany("INSERT INTO files VALUES (?, ?, NULL)", [(f.path.name, f.md5.hex()) for f in files])
            books.commit()
            directory = files[0].path.parent
            began = time.monotonic()
            while batch := dict(
                books.execute("SELECT name, md5 FROM files WHERE copied IS NULL LIMIT ?", (self._BATCH,)).fetchall()
            ):
                listed = to.with_suffix(".list")
                listed.write_text("\n".join(batch))
                self._bare.copy(f"{directory}/", to, f"--files-from={listed}")
                for name, md5 in self._sums(directory, batch).items():
                    if batch[name] != md5:
                        raise SandboxError(f"{name} has another md5")
                    books.execute("UPDATE files SET copied = ? WHERE name = ?", (time.time(), name))
                books.commit()
            sync_file_system(to)
            return time.monotonic() - began

    def _sums(self, directory: Path, names: Iterable[str]) -> dict[str, str]:
        """The md5 of each file, as the other side computes it."""
        shell = shlex.split(remote_shell(self._source, None))
        command = [*shell, self._site.ssh.host, f"cd {shlex.quote(str(directory))} && md5sum {shlex.join(names)}"]
        environment = clean_environment(self._site.testbed.environment)
        done = subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
        return {name: md5 for md5, name in (line.split() for line in done.stdout.decode().splitlines())}


class PollingAgent:
    """One poll of the polling agent: it selects the pending rows and runs one rsync for each, each with its own connection.

    Args:
        site: a site without a service.
    """

    def __init__(self, site: BenchmarkSite) -> None:
        self._site = site
        self._bare = BareRsync(site)

    def archive(self, rows: Registered) -> float:
        """Archives what is pending; seconds from the poll that finds it, without the wait for that poll."""
        site = self._site
        connection: Any = site.testbed.server.connect(
            user=site.user, password=PASSWORD, database=site.database, autocommit=False
        )
        try:
            began = time.monotonic()
            with connection.cursor() as cursor:
                cursor.execute(
                    f"SELECT * FROM {TABLE} WHERE copied = 0 AND failed_copy_attempts < 5 AND instance_id IN %s",
                    (site.targets,),
                )
                names = [column[0] for column in cursor.description]
                for values in cursor.fetchall():
                    row = dict(zip(names, values, strict=True))
                    path = Path(row["path"])
                    place = site.data_dir / "15895" / row["pub_id"] / f"{rows.stamp}_{row['action']}" / "outputs"
                    place.mkdir(parents=True, exist_ok=True)
                    self._bare.copy(path, place / path.name)
                    if hashlib.md5((place / path.name).read_bytes()).digest() != row["md5sum"]:
                        raise SandboxError(f"{path} arrived with another md5")
                    cursor.execute(
                        f"UPDATE {TABLE} SET path = %s, copied = 1 WHERE id = %s", (str(place / path.name), row["id"])
                    )
            connection.commit()
            return time.monotonic() - began
        finally:
            connection.close()
