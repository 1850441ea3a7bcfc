"""The demo's instrument: registers files as the observatory's monitor does, and watches until their rows say copied."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

import sqlalchemy as sa

from cdc_archiver.database import schema
from cdc_archiver.demo.session import WrittenFile

TARGET: Final = "pysmurf-monitor"
"""The monitor's instance_id."""

LOOK_EVERY: Final = 0.005
"""Seconds between two queries for the rows that are not copied yet."""

_MOST: Final = 1000
"""Most rows of one query; the oldest first."""


@dataclass(frozen=True, slots=True)
class RegisteredFile:
    """A file and its row as it was inserted.

    Attributes:
        values: by column, without id.
    """

    id: int
    file: WrittenFile
    values: Mapping[str, Any]


class Instrument:
    """Registers files as the Simons Observatory's pysmurf monitor does (socs, ``agents/pysmurf_monitor``).

    Args:
        engine: of an account that may INSERT.
        table: the table of files.
    """

    def __init__(self, engine: sa.Engine, table: str) -> None:
        self._engine = engine
        self._table = schema.files_table(table)

    def register(self, files: Sequence[WrittenFile]) -> list[RegisteredFile]:
        """Inserts a row for each file, one statement each, in one transaction, which is committed on return."""
        registered = []
        with self._engine.begin() as connection:
            for file in files:
                values = row_values(file)
                result = connection.execute(sa.insert(self._table).values(values))
                registered.append(RegisteredFile(int(result.lastrowid), file, values))
        return registered

    def rows(self) -> dict[int, Mapping[str, Any]]:
        """All current rows, by id."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(self._table)).mappings()
            return {row["id"]: dict(row) for row in rows}


class CopyWatcher:
    """Queries the rows every :data:`LOOK_EVERY` seconds, and notes when each is first seen copied.

    Args:
        engine: of an account that may SELECT.
        table: the table of files.
    """

    def __init__(self, engine: sa.Engine, table: str) -> None:
        self._engine = engine
        self._table = schema.files_table(table)
        self._changed = threading.Condition()
        self._committed: dict[int, float] = {}
        self._seen: dict[int, float] = {}
        self._seen_bytes = 0
        self._waiting: dict[int, RegisteredFile] = {}
        self._failure: Exception | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def expect(self, rows: Sequence[RegisteredFile], committed: float) -> None:
        """Watches further rows.

        Args:
            committed: time at which their COMMIT returned, on the monotonic clock.
        """
        with self._changed:
            for row in rows:
                self._committed[row.id] = committed
                self._waiting[row.id] = row

    def wait(self, seconds: float) -> None:
        """Waits until a row is seen copied, at most so many seconds.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: a query failed.
        """
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if self._waiting:
                self._changed.wait(seconds)

    @property
    def waiting(self) -> int:
        """Number of rows not seen copied yet."""
        with self._changed:
            return len(self._waiting)

    @property
    def progress(self) -> tuple[int, int]:
        """Number of rows seen copied, and the bytes of their files."""
        with self._changed:
            return len(self._seen), self._seen_bytes

    def committed(self, row: RegisteredFile) -> float:
        """Time of its COMMIT, on the monotonic clock."""
        with self._changed:
            return self._committed[row.id]

    def seen(self, row: RegisteredFile) -> float:
        """Time at which it was first seen copied, on the monotonic clock; KeyError if it was not."""
        with self._changed:
            return self._seen[row.id]

    def latency(self, row: RegisteredFile) -> float:
        """Seconds from the return of its COMMIT until it was first seen copied; KeyError if it was not."""
        return self.seen(row) - self.committed(row)

    def _run(self) -> None:
        try:
            with self._engine.connect() as plain:
                # Autocommit: within one transaction the server would repeat what was first read.
                connection = plain.execution_options(isolation_level="AUTOCOMMIT")
                while not self._stopping.wait(LOOK_EVERY):
                    self._look(connection)
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _look(self, connection: sa.Connection) -> None:
        with self._changed:
            asked = list(self._waiting)[:_MOST]
        if not asked:
            return
        table = self._table
        copied = connection.execute(sa.select(table.c.id).where(table.c.id.in_(asked), table.c.copied == 1))
        ids = copied.scalars().all()
        now = time.monotonic()
        with self._changed:
            for id_ in ids:
                self._seen[id_] = now
                self._seen_bytes += self._waiting.pop(id_).file.planned.size
            if ids:
                self._changed.notify_all()


def row_values(file: WrittenFile) -> dict[str, Any]:
    """The values that the monitor writes into a file's row, by column."""
    planned = file.planned
    return {
        "path": str(file.path),
        "action": planned.action,
        # Naive, in UTC: the monitor writes datetime.utcfromtimestamp().
        "timestamp": datetime.fromtimestamp(planned.timestamp, UTC).replace(tzinfo=None),
        "action_timestamp": planned.action_timestamp,
        "format": planned.format,
        "plot": int(planned.plot),
        "site": "observatory",
        "pub_id": planned.pub_id,
        "script_id": None,
        "instance_id": TARGET,
        "copied": 0,
        "failed_copy_attempts": 0,
        "md5sum": file.md5,
        "pysmurf_version": "5.0.0",
        "socs_version": "0.1.0",
    }
