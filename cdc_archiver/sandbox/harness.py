"""The whole stage: a database and an ssh server in one temporary directory, started together and cleared away together."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Self

from cdc_archiver.sandbox.database import DatabaseServer, Kind, open_database
from cdc_archiver.sandbox.packages import path_with_tools
from cdc_archiver.sandbox.sshd import SshServer


class Sandbox:
    """A database and an ssh server, running inside a `with` block and gone after it, however it ends."""

    directory: Path
    """Where everything lives; there from the start of the block, like the two servers."""
    database: DatabaseServer
    ssh: SshServer

    def __init__(self, kind: Kind = "mariadb", directory: Path | None = None, *, options: Sequence[str] = ()) -> None:
        """Describe the stage; entering it starts the servers.

        Arguments:
            kind: the database, `mariadb` or `mysql`.
            directory: where everything is to live; it stays afterwards. None makes a temporary directory, which does not.
            options: further options of the database server.
        """
        self.kind: Kind = kind
        self._given_directory = directory
        self._options = tuple(options)

    def __enter__(self) -> Self:
        """Start both servers; SandboxError where one cannot be had, and then neither is left running."""
        given = self._given_directory
        self.directory = Path(tempfile.mkdtemp(prefix="cdc-sandbox-")) if given is None else given.absolute()
        self.database = open_database(self.kind, self.directory / "database", options=self._options)
        self.ssh = SshServer(self.directory / "ssh")
        starts: list[Future[None]] = []
        try:
            # Downloads happen here and not in the pool: Ctrl-C reaches this thread.
            self.database.prepare()
            self.ssh.prepare()
            with ThreadPoolExecutor(max_workers=2) as pool:
                starts += [pool.submit(self.database.start), pool.submit(self.ssh.start)]
            for start in starts:
                start.result()
        except BaseException:
            wait(starts)  # an interrupt may have come before they were up, and what comes up later has to go as well
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop both servers and remove a temporary directory."""
        self.close()

    def close(self) -> None:
        """Stop both servers and remove the directory, where it is a temporary one."""
        temporary = self._given_directory is None
        try:
            self.ssh.stop()
            if temporary:
                self.database.kill()  # nobody will read its data again
            self.database.stop()
        finally:
            if temporary:
                shutil.rmtree(self.directory, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """This process's environment with a PATH on which `rsync` and `ssh` are found."""
        return {**os.environ, "PATH": path_with_tools(os.environ.get("PATH", ""))}
