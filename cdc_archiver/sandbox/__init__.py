"""Private MariaDB, MySQL, sshd and Prometheus for the demo, the tests and the benchmarks; no other harness exists."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Self

from cdc_archiver.sandbox.child_process import ChildProcess, SandboxError, free_port
from cdc_archiver.sandbox.database_servers import DatabaseServer, Kind, MariaDb, MySql, open_database
from cdc_archiver.sandbox.packages import ensure_tools, path_with_tools
from cdc_archiver.sandbox.prometheus import PrometheusServer
from cdc_archiver.sandbox.sshd import NO_PROGRAMS, SshServer

__all__ = [
    "NO_PROGRAMS",
    "ChildProcess",
    "DatabaseServer",
    "Kind",
    "MariaDb",
    "MySql",
    "PrometheusServer",
    "Sandbox",
    "SandboxError",
    "SshServer",
    "ensure_tools",
    "free_port",
    "open_database",
]


class Sandbox:
    """A database and an ssh server in one directory, started together, and removed at the end of the `with` block."""

    directory: Path
    """The directory of both servers; set, like them, at the start of the block."""
    database: DatabaseServer
    ssh: SshServer

    def __init__(self, kind: Kind = "mariadb", directory: Path | None = None, *, options: Sequence[str] = ()) -> None:
        """Describe the sandbox; entering it starts the servers.

        Arguments:
            kind: the database, `mariadb` or `mysql`.
            directory: for both servers; it stays afterwards. None: a temporary one, which is removed.
            options: further options of the database server.
        """
        self.kind: Kind = kind
        self._given_directory = directory
        self._options = tuple(options)

    def __enter__(self) -> Self:
        """Start both servers; SandboxError if one is not available, and then neither is left running."""
        given = self._given_directory
        self.directory = Path(tempfile.mkdtemp(prefix="cdc-sandbox-")) if given is None else given.absolute()
        self.database = open_database(self.kind, self.directory / "database", options=self._options)
        self.ssh = SshServer(self.directory / "ssh")
        starts: list[Future[None]] = []
        try:
            # Downloads happen here, not in the pool: Ctrl-C reaches only this thread.
            self.database.prepare()
            self.ssh.prepare()
            with ThreadPoolExecutor(max_workers=2) as pool:
                starts += [pool.submit(self.database.start), pool.submit(self.ssh.start)]
            for start in starts:
                start.result()
        except BaseException:
            wait(starts)  # after an interrupt the starts still run: wait, so that both servers can be stopped
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop both servers and remove a temporary directory."""
        self.close()

    def close(self) -> None:
        """Stop both servers and remove a temporary directory."""
        temporary = self._given_directory is None
        try:
            self.ssh.stop()
            if temporary:
                self.database.kill()  # its data is not read again
            self.database.stop()
        finally:
            if temporary:
                shutil.rmtree(self.directory, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """This process's environment with a PATH that has `rsync` and `ssh`."""
        return {**os.environ, "PATH": path_with_tools(os.environ.get("PATH", ""))}
