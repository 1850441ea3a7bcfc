"""A private database with the table of files and the archiver's account, for tests of parts of the service."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from files_table import CREATE_TABLE, TABLE

from cdc_archiver.database.connections import Database
from cdc_archiver.sandbox import DatabaseServer
from cdc_archiver.settings import load

PASSWORD = "correct-horse-7"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class PrivateDatabase:
    """A database with a table of files, and an account with the privileges that the archiver needs."""

    server: DatabaseServer
    name: str
    user: str

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """Runs statements as root in one session; the rows of the last one."""
        return as_root(self.server, *statements, database=self.name)

    def insert(self, *paths: str, md5: str = "0x00112233445566778899AABBCCDDEEFF", before: str = "DO 0") -> list[int]:
        """Inserts a row for each path, in one statement; their ids."""
        rows = ", ".join(f"('{path}', {md5})" for path in paths or ("/data/a.dat",))
        statement = f"INSERT INTO {TABLE} (path, md5sum) VALUES {rows}"
        first = int(self.sql(before, statement, "SELECT LAST_INSERT_ID()")[0][0])
        return list(range(first, first + max(1, len(paths))))

    def database(self, *, port: int | None = None, password: str = PASSWORD, user: str = "") -> Database:
        """The archiver's connections to it, over another port if a proxy is used."""
        flags = {
            "mysql_host": "127.0.0.1",
            "mysql_port": port or self.server.port,
            "mysql_database": self.name,
            "mysql_user": user or self.user,
            "mysql_password": password,
        }
        return Database(load(flags=flags, environment={}))

    @contextlib.contextmanager
    def connection(self, user: str = "") -> Iterator[sa.Connection]:
        """A connection of the archiver's account, or of another one."""
        database = self.database(user=user)
        try:
            with database.connect() as connection:
                yield connection
        finally:
            database.close()

    @contextlib.contextmanager
    def globally(self, variable: str, value: str) -> Iterator[None]:
        """Sets a global variable inside the block."""
        before = self.sql(f"SELECT @@GLOBAL.{variable}")[0][0]
        self.sql(f"SET GLOBAL {variable} = {value}")
        try:
            yield
        finally:
            self.sql(f"SET GLOBAL {variable} = {before!r}")


def as_root(server: DatabaseServer, *statements: str, database: str | None = None) -> list[tuple[Any, ...]]:
    """Runs statements in one session; the rows of the last one."""
    rows: list[tuple[Any, ...]] = []
    # Without TLS: PyMySQL needs more time for its context than for most statements.
    with contextlib.closing(server.connect(database=database, ssl_disabled=True)) as connection:
        for statement in statements:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                rows = list(cursor.fetchall())
    return rows


@contextlib.contextmanager
def new_private_database(server: DatabaseServer) -> Iterator[PrivateDatabase]:
    """A database on this server, dropped at the end."""
    number = next(_numbers)
    world = PrivateDatabase(server, f"files_{number}", f"archiver_{number}")
    account = f"'{world.user}'@'%'"
    as_root(
        server,
        f"CREATE DATABASE {world.name}",
        f"USE {world.name}",
        CREATE_TABLE,
        f"CREATE USER {account} IDENTIFIED BY '{PASSWORD}'",
        f"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {account}",
        f"GRANT SELECT, UPDATE ON {world.name}.* TO {account}",
    )
    try:
        yield world
    finally:
        if server.running:
            as_root(server, f"DROP DATABASE {world.name}", f"DROP USER IF EXISTS {account}")
