"""Private MariaDB and MySQL servers on loopback, each in a directory of its own."""

import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pymysql
from pymysql.connections import Connection

from cdc_archiver.sandbox.child_process import ChildProcess, SandboxError, free_port
from cdc_archiver.sandbox.packages import Tool, cache_directory, find, workshop
from cdc_archiver.sandbox.private_server import PrivateServer

Kind = Literal["mariadb", "mysql"]

_START_LIMIT = 60.0
"""Seconds that a server may take to its first answer, crash recovery included."""

_SOCKET_LIMIT = 100
"""Bytes of a path that every Unix socket accepts (the kernel's limit is 107)."""


class DatabaseServer(PrivateServer):
    """One private server with the row binlog on and, except for what costs time or memory, its own defaults.

    The administrator is `root` without a password, by way of a Unix socket in the server's directory, which only this
    account may enter; every other user connects over TCP. No other account of the machine can log in.
    """

    kind: ClassVar[Kind]

    def __init__(self, directory: Path, *, options: Sequence[str] = ()) -> None:
        """Describe the server; `start` runs it.

        Arguments:
            directory: its own directory, made if it is absent; data of an earlier server there is used again.
            options: further server options, which override the ones here: `--binlog-row-metadata=FULL`,
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
        """Get its program and a data directory, which may take a download; `start` does the same."""
        program = self._program()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)  # the administrator's socket is in it, and asks for no password
        if not self.data.exists():
            unfinished = self.directory / "data.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.copytree(_template(self, program), unfinished, symlinks=True)
            unfinished.rename(self.data)

    def start(self, timeout: float = _START_LIMIT) -> None:
        """Run it and wait, at most `timeout` seconds, until it answers; SandboxError, with the end of its log, if it does not."""
        if self.running:
            return
        self.prepare()
        program = self._program()
        self._start_on_a_port(
            lambda port: self._launch(program, port), lambda process, _: self._await(process, self._missing, timeout)
        )

    def stop(self, timeout: float = 60.0) -> None:
        """Shut it down (SIGTERM); what has not ended after `timeout` seconds is killed."""
        if self._process is not None:
            self._process.stop(timeout)

    def connect(
        self, user: str = "root", password: str = "", database: str | None = None, **options: Any
    ) -> "Connection[Any]":
        """A PyMySQL connection in autocommit mode; `root` connects by the socket, every other user by TCP.

        Arguments:
            user: the account.
            password: its password.
            database: the schema to use.
            options: further arguments of `pymysql.connect`, which override the ones here.

        Raises:
            pymysql.err.MySQLError: as PyMySQL raises it.
        """
        # PyMySQL makes a TLS context for each connection (34 ms of processor time), also for a socket, which needs none.
        address: dict[str, Any] = (
            {"unix_socket": str(self.socket), "ssl_disabled": True}
            if user == "root"
            else {"host": "127.0.0.1", "port": self.port}
        )
        given = {"user": user, "password": password, "database": database, "autocommit": True, "charset": "utf8mb4"}
        return pymysql.connect(**{**given, **address, "connect_timeout": 10, **options})

    def execute(
        self, sql: str, arguments: Sequence[object] | None = None, database: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement as the administrator, on a new connection; its rows."""
        with contextlib.closing(self.connect(database=database)) as connection, connection.cursor() as cursor:
            cursor.execute(sql, arguments)
            return list(cursor.fetchall())

    def create_archiver_user(
        self,
        user: str,
        password: str,
        database: str,
        *,
        table: str | None = None,
        history: str | None = None,
        side_tables: Mapping[str, str] | None = None,
    ) -> None:
        """Make an account with the privileges that the archiver needs and no others; its earlier grants are lost.

        Arguments:
            user: the account, for any host.
            password: its password.
            database: the schema of the files table.
            table: the files table, which must exist; None grants on every table of the schema.
            history: the side table, which need not exist; None grants nothing on it.
            side_tables: privileges on further side tables, by name.

        Raises:
            pymysql.err.MySQLError: as PyMySQL raises it, for example because the table does not exist.
        """
        account = f"{_quoted(user)}@'%'"
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP USER IF EXISTS {account}")
            cursor.execute(f"CREATE USER {account.replace('%', '%%')} IDENTIFIED BY %s", (password,))
            cursor.execute(f"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {account}")
            scope = f"{_quoted(database)}.{_quoted(table) if table else '*'}"
            cursor.execute(f"GRANT SELECT, UPDATE ON {scope} TO {account}")
            privileges = {history: "CREATE, SELECT, INSERT, DELETE"} if history else {}
            for side, granted in {**privileges, **(side_tables or {})}.items():
                cursor.execute(f"GRANT {granted} ON {_quoted(database)}.{_quoted(side)} TO {account}")

    @abstractmethod
    def _program(self) -> Tool:
        """The server's program."""

    @abstractmethod
    def _initialise(self, program: Tool, data: Path) -> None:
        """Make a new data directory, with an administrator without a password."""

    @abstractmethod
    def _own_options(self, program: Tool) -> list[str]:
        """The options that only this kind of server has."""

    @abstractmethod
    def _tidy(self, connection: "Connection[Any]") -> None:
        """Remove from a new data directory the accounts with which others could log in."""

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

    def _missing(self) -> str:
        try:
            # First with a plain socket: PyMySQL leaves a socket that it could not connect to the garbage collector.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
            self.connect(connect_timeout=5).close()
        except (OSError, pymysql.err.MySQLError) as error:
            return str(error)
        return ""


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
            "--force",  # otherwise it refuses on a machine that cannot resolve its own name
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
        """Nothing to remove: a new MySQL has no account but the administrator's, on localhost."""


def open_database(kind: Kind, directory: Path, *, options: Sequence[str] = ()) -> DatabaseServer:
    """A server of that kind in `directory`, not started yet; `options` as for `DatabaseServer`."""
    return {"mariadb": MariaDb, "mysql": MySql}[kind](directory, options=options)


def _template(server: DatabaseServer, program: Tool) -> Path:
    """A prepared data directory for this version of the server, made at its first use and kept in the cache."""
    made_of = f"1 {program.run('--version')} {server._own_options(program)}"
    name = f"{server.kind}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    template = cache_directory() / "templates" / name
    if template.exists():
        return template
    with workshop("templates") as scratch:
        if template.exists():  # another process made it meanwhile
            return template
        template.parent.mkdir(exist_ok=True)
        # The first run writes keys and undo logs: in the template, so that later starts do not write them again.
        maker = type(server)(scratch)
        maker._initialise(program, maker.data)
        process = maker._launch(program, free_port(), "--skip-log-bin", "--skip-networking")
        try:
            maker._await(process, maker._missing, _START_LIMIT)
            with contextlib.closing(maker.connect()) as connection:
                maker._tidy(connection)
            process.stop(60.0)
        finally:
            process.kill()
        if process.returncode != 0:  # a killed server's files need a recovery at every start
            raise SandboxError(f"{server.kind} did not shut down cleanly after its first run")
        # Two servers with one uuid would see a replication loop.
        (maker.data / "auto.cnf").unlink(missing_ok=True)
        maker.data.rename(template)
    return template


def _as_this_user() -> list[str]:
    """Both servers refuse to run as root without this option."""
    return ["--user=root"] if os.geteuid() == 0 else []


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
