"""Private MariaDB and MySQL servers on loopback: started in a directory of their own, stopped, killed, asked, granted."""

import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
import time
import weakref
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pymysql
from pymysql.connections import Connection

from cdc_archiver.sandbox.errors import SandboxError
from cdc_archiver.sandbox.packages import Tool, cache_directory, find, workshop
from cdc_archiver.sandbox.process import ChildProcess, free_port
from cdc_archiver.sandbox.server import Server

Kind = Literal["mariadb", "mysql"]

_START_LIMIT = 60.0
"""Seconds a server may take to its first answer; crash recovery included."""

_SOCKET_LIMIT = 100
"""Bytes of a path that a Unix socket surely takes (the kernel's limit is 107)."""


class DatabaseServer(Server):
    """One private server with row binlog on and, but for what costs time or memory, its own defaults.

    The administrator is `root` without a password, by way of a Unix socket in the server's directory, which only this
    account may enter; every other user comes over TCP. So nobody else on the machine has a way in.
    """

    kind: ClassVar[Kind]

    def __init__(self, directory: Path, *, options: Sequence[str] = ()) -> None:
        """Describe the server; `start` runs it.

        Arguments:
            directory: its own directory, made where it is absent; a server's data found there is used again.
            options: further server options, which win over the ones here: `--binlog-row-metadata=FULL`,
                `--skip-log-bin`, `--server-id=7`.
        """
        super().__init__(self.kind)
        self.directory = directory.absolute()
        self.options = tuple(options)
        self.data = self.directory / "data"
        self.log = self.directory / f"{self.kind}.log"
        self._socket_directory: Path | None = None

    @property
    def socket(self) -> Path:
        """Its Unix socket."""
        path = self.directory / "server.sock"
        if len(os.fsencode(path)) <= _SOCKET_LIMIT:
            return path
        if self._socket_directory is None:
            self._socket_directory = Path(tempfile.mkdtemp(prefix="cdc-socket-"))
            weakref.finalize(self, shutil.rmtree, self._socket_directory, ignore_errors=True)
        return self._socket_directory / "server.sock"

    def prepare(self) -> None:
        """Get its program and a data directory, which may take a download; `start` does it otherwise."""
        program = self._program()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)  # the administrator's socket is in it, and asks for no password
        if not self.data.exists():
            unfinished = self.directory / "data.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(_template(self, program), unfinished, symlinks=True)
            unfinished.rename(self.data)

    def start(self, timeout: float = _START_LIMIT) -> None:
        """Run it and wait, at most `timeout` seconds, until it answers; SandboxError, with its last words, if not."""
        if self.running:
            return
        self.prepare()
        program = self._program()
        self._start_on_a_port(
            lambda port: self._launch(program, port), lambda process, _: self._await_answer(process, timeout)
        )

    def stop(self, timeout: float = 60.0) -> None:
        """Shut it down in good order (SIGTERM); what has not ended after `timeout` seconds is killed."""
        if self._process is not None:
            self._process.stop(timeout)

    def wait_ready(self, timeout: float = _START_LIMIT) -> None:
        """Wait until it answers; SandboxError where it has not after `timeout` seconds, or has ended."""
        if self._process is None:
            raise SandboxError(f"{self.kind} was not started")
        self._await_answer(self._process, timeout)

    def connect(
        self, user: str = "root", password: str = "", database: str | None = None, **options: Any
    ) -> "Connection[Any]":
        """A PyMySQL connection in autocommit mode; `root` comes by the socket, everybody else by TCP.

        Arguments:
            user: the account.
            password: its password.
            database: the schema to use.
            options: further arguments of `pymysql.connect`, which win over the ones here.

        Raises:
            pymysql.err.MySQLError: as PyMySQL raises it.
        """
        # PyMySQL makes a TLS context for each connection, 34 ms of CPU, also where a socket needs none.
        way: dict[str, Any] = (
            {"unix_socket": str(self.socket), "ssl_disabled": True}
            if user == "root"
            else {"host": "127.0.0.1", "port": self.port}
        )
        given = {"user": user, "password": password, "database": database, "autocommit": True, "charset": "utf8mb4"}
        return pymysql.connect(**{**given, **way, "connect_timeout": 10, **options})

    def execute(
        self, sql: str, arguments: Sequence[object] | None = None, database: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement as the administrator, on a connection of its own, and return its rows."""
        with contextlib.closing(self.connect(database=database)) as connection, connection.cursor() as cursor:
            cursor.execute(sql, arguments)
            return list(cursor.fetchall())

    def create_archiver_user(
        self, user: str, password: str, database: str, *, table: str | None = None, history: str | None = None
    ) -> None:
        """Make an account with what the archiver needs and nothing more; its earlier grants are lost.

        Arguments:
            user: the account, for any host.
            password: its password.
            database: the schema of the files table.
            table: the files table, which must exist then; None grants on every table of the schema.
            history: the side table, which need not exist; None grants nothing on it.

        Raises:
            pymysql.err.MySQLError: the table does not exist, for one.
        """
        account = f"{_quoted(user)}@'%'"
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP USER IF EXISTS {account}")
            cursor.execute(f"CREATE USER {account.replace('%', '%%')} IDENTIFIED BY %s", (password,))
            cursor.execute(f"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {account}")
            scope = f"{_quoted(database)}.{_quoted(table) if table else '*'}"
            cursor.execute(f"GRANT SELECT, UPDATE ON {scope} TO {account}")
            if history:
                side = f"{_quoted(database)}.{_quoted(history)}"
                cursor.execute(f"GRANT CREATE, SELECT, INSERT, DELETE ON {side} TO {account}")

    @abstractmethod
    def _program(self) -> Tool:
        """The server's program."""

    @abstractmethod
    def _initialise(self, program: Tool, data: Path) -> None:
        """Make a fresh data directory, with an administrator who has no password."""

    @abstractmethod
    def _own_options(self, program: Tool) -> list[str]:
        """The options that only this kind of server has."""

    @abstractmethod
    def _tidy(self, connection: "Connection[Any]") -> None:
        """Take out of a fresh data directory the accounts that would let others in."""

    def _base_options(self, program: Tool, data: Path) -> list[str]:
        options = [
            "--no-defaults",
            f"--datadir={data}",
            *_as_this_user(),
            "--innodb-buffer-pool-size=64M",
            *self._own_options(program),
        ]
        if program.private:
            options[1:1] = [f"--basedir={program.root}/usr", f"--lc-messages-dir={program.root}/usr/share/mysql"]
        return options

    def _launch(self, program: Tool, port: int, *more: str) -> ChildProcess:
        command = program.command(
            *self._base_options(program, self.data),
            f"--socket={self.socket}",
            f"--port={port}",
            "--bind-address=127.0.0.1",
            f"--pid-file={self.directory / 'server.pid'}",
            f"--tmpdir={self.directory}",
            "--skip-name-resolve",
            "--server-id=1",
            f"--log-bin={self.data / 'binlog'}",
            *self.options,
            *more,
        )
        process = ChildProcess(self.kind, command, self.log, program.environ())
        process.start()
        return process

    def _await_answer(self, process: ChildProcess, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                # Looked at with a bare socket first: PyMySQL leaves the one it could not connect to be collected.
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(self.socket))
                self.connect(connect_timeout=5).close()
                return
            except (OSError, pymysql.err.MySQLError) as error:
                if process.wait(0.02):
                    raise SandboxError(
                        f"{self.kind} ended at its start with status {process.returncode}; its log {self.log} ends with:\n"
                        f"{process.log_tail()}"
                    ) from error
                if time.monotonic() > deadline:
                    raise SandboxError(
                        f"{self.kind} did not answer within {timeout:.0f} s ({error}); its log {self.log} ends with:\n"
                        f"{process.log_tail()}"
                    ) from error


class MariaDb(DatabaseServer):
    """A private MariaDB server."""

    kind = "mariadb"

    def _program(self) -> Tool:
        return find("mariadbd")

    def _initialise(self, program: Tool, data: Path) -> None:
        script = find("mariadb-install-db")
        place = [f"--basedir={script.root}/usr"] if script.private else []
        script.run(
            "--no-defaults",
            *place,
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--force",  # it would refuse where the machine cannot resolve its own name
            *_as_this_user(),
            "--innodb-log-file-size=16M",
        )

    def _own_options(self, program: Tool) -> list[str]:
        return ["--binlog-format=ROW", "--innodb-log-file-size=16M"]

    def _tidy(self, connection: "Connection[Any]") -> None:
        with connection.cursor() as cursor:
            # The anonymous users shadow user@'%' on localhost.
            cursor.execute("DELETE FROM mysql.global_priv WHERE User = '' OR (User = 'root' AND Host <> 'localhost')")
            cursor.execute("FLUSH PRIVILEGES")


class MySql(DatabaseServer):
    """A private MySQL server."""

    kind = "mysql"

    def _program(self) -> Tool:
        return find("mysqld")

    def _initialise(self, program: Tool, data: Path) -> None:
        program.run(*self._base_options(program, data), "--initialize-insecure")

    def _own_options(self, program: Tool) -> list[str]:
        return ["--mysqlx=OFF", "--secure-file-priv=", "--performance-schema=OFF", "--innodb-redo-log-capacity=16M"]

    def _tidy(self, connection: "Connection[Any]") -> None:
        """Nothing: a fresh MySQL has no account but the administrator's, on localhost."""


def open_database(kind: Kind, directory: Path, *, options: Sequence[str] = ()) -> DatabaseServer:
    """A server of that kind in `directory`, not started yet; `options` as for `DatabaseServer`."""
    return {"mariadb": MariaDb, "mysql": MySql}[kind](directory, options=options)


def _template(server: DatabaseServer, program: Tool) -> Path:
    """A prepared data directory of this version of the server, made at its first use and kept in the cache."""
    made_of = f"1 {program.run('--version')} {server._own_options(program)}"
    name = f"{server.kind}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    template = cache_directory() / "templates" / name
    if template.exists():
        return template
    with workshop("templates") as scratch:
        if template.exists():  # somebody else made it while this process waited
            return template
        template.parent.mkdir(exist_ok=True)
        # A first run writes keys and undo logs that every start would write again, so it is part of the template.
        maker = type(server)(scratch)
        maker._initialise(program, maker.data)
        process = maker._launch(program, free_port(), "--skip-log-bin", "--skip-networking")
        try:
            maker._await_answer(process, _START_LIMIT)
            with contextlib.closing(maker.connect()) as connection:
                maker._tidy(connection)
            process.stop(60.0)
        finally:
            process.kill()
        if process.returncode != 0:  # killed, its files would need a recovery at every start
            raise SandboxError(f"{server.kind} did not shut down in good order after its first run")
        # Two servers with one uuid take each other for a replication loop.
        (maker.data / "auto.cnf").unlink(missing_ok=True)
        maker.data.rename(template)
    return template


def _as_this_user() -> list[str]:
    """Both servers refuse to run as root unless they are told to."""
    return ["--user=root"] if os.geteuid() == 0 else []


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
