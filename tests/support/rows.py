"""Rows of the table of files, as a monitor writes them, for tests of what reads and writes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from files_table import TABLE
from private_database import PrivateDatabase

from cdc_archiver.database import history
from cdc_archiver.database.connections import Database
from cdc_archiver.database.files_table import FilesTable

COLUMNS = {
    "path": "/data/a.npy",
    "action": "take_iv",
    "timestamp": "2020-05-15 04:34:24",
    "action_timestamp": 1589517260,
    "plot": 0,
    "pub_id": "crate1slot2",
    "instance_id": "m",
    "copied": 0,
    "failed_copy_attempts": 0,
    "md5sum": bytes(range(16)),
}


def register(world: PrivateDatabase, *rows: dict[str, Any]) -> list[int]:
    """Inserts rows in one transaction, with default values changed by the given ones; their ids."""
    ids = []
    with contextlib.closing(world.server.connect(database=world.name, autocommit=False)) as connection:
        with connection.cursor() as cursor:
            for changes in rows:
                values = {**COLUMNS, **changes}
                names, marks = ", ".join(f"`{name}`" for name in values), ", ".join(["%s"] * len(values))
                cursor.execute(f"INSERT INTO {TABLE} ({names}) VALUES ({marks})", list(values.values()))
                ids.append(int(cursor.lastrowid or 0))
        connection.commit()
    return ids


def states(world: PrivateDatabase) -> dict[int, tuple[Any, ...]]:
    """Path, copied and failed_copy_attempts of each row, by id."""
    rows = world.sql(f"SELECT id, path, copied, failed_copy_attempts FROM {TABLE} ORDER BY id")
    return {row[0]: row[1:] for row in rows}


def allow_history(world: PrivateDatabase) -> None:
    """Grants the archiver's account its privileges on the side table."""
    privileges = "CREATE, SELECT, INSERT, DELETE"
    world.server.execute(f"GRANT {privileges} ON {world.name}.{history.NAME} TO '{world.user}'@'%%'".replace("%%", "%"))


@contextlib.contextmanager
def database_of(world: PrivateDatabase) -> Iterator[Database]:
    """The archiver's connections to a database, closed at the end."""
    database = world.database()
    try:
        yield database
    finally:
        database.close()


def files_table(max_attempts: int = 5) -> FilesTable:
    return FilesTable(TABLE, 260, max_attempts)
