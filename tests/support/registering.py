"""A registrar under test, and the publisher whose messages it gets."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from files_table import TABLE
from private_database import PASSWORD, PrivateDatabase
from waiting import PATIENCE, eventually

from cdc_archiver.database import schema, side_tables
from cdc_archiver.errors import ExitStatus
from cdc_archiver.registrar.lifecycle import RegistrarService
from cdc_archiver.settings import Settings, load

TARGET = "pysmurf-monitor"
AT = 1589517264
"""The usual timestamp."""


def message(path: str | Path, seq_no: int = 0, *, publisher: str = "crate1slot2", **payload: Any) -> dict[str, Any]:
    """A message of type data_file as pysmurf's Publisher makes it, with the payload changed by these values."""
    return {
        "host": "smurf-srv",
        "id": publisher,
        "script": "take_iv.py",
        "time": AT + 0.25,
        "seq_no": seq_no,
        "type": "data_file",
        "payload": {
            "path": str(path),
            "type": "iv",
            "format": "npy",
            "timestamp": AT + 0.75,
            "action": "take_iv",
            "action_ts": str(AT),
            "plot": False,
            "pysmurf_version": "11.4.4",
        }
        | payload,
    }


class FakePublisher:
    """Sends messages as pysmurf's Publisher does: from one socket, numbered from 0."""

    def __init__(self, port: int, publisher: str = "crate1slot2") -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._address = ("127.0.0.1", port)
        self.publisher = publisher
        self.numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def announce(self, *paths: str | Path, **payload: Any) -> None:
        for path in paths:
            self.send(message(path, next(self.numbers), publisher=self.publisher, **payload))

    def send(self, content: dict[str, Any] | bytes) -> None:
        self._socket.sendto(content if isinstance(content, bytes) else json.dumps(content).encode(), self._address)


class RegistrarSite:
    """A database with all tables, a registrar's account and a directory of files."""

    def __init__(self, world: PrivateDatabase, directory: Path) -> None:
        self.world = world
        self.sources = directory / "readout"
        self.sources.mkdir()
        self.spool = directory / "state" / "registrar.spool"
        self.user = f"{world.user}_m"
        for table in side_tables.ALL:
            # A service at the same site may have made it.
            world.sql(schema.table_statement(table).replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS", 1))
        account = f"'{self.user}'@'%'"
        world.sql(f"DROP USER IF EXISTS {account}", f"CREATE USER {account} IDENTIFIED BY '{PASSWORD}'")
        world.sql(f"GRANT SELECT, INSERT ON {world.name}.{TABLE} TO {account}")
        for table in (side_tables.REGISTERED, side_tables.REGISTRARS, side_tables.REGISTRAR_LOSSES):
            world.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {world.name}.{table.name} TO {account}")

    def file(self, name: str, size: int = 500) -> Path:
        path = self.sources / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
        return path

    def settings(self, **changes: Any) -> Settings:
        flags = {
            "mysql_host": "127.0.0.1",
            "mysql_port": self.world.server.port,
            "mysql_database": self.world.name,
            "mysql_user": self.user,
            "mysql_password": PASSWORD,
            "target": (TARGET,),
            "source_root": str(self.sources),
            "spool": self.spool,
            "udp_port": 0,
            "http_port": 0,
            "settle": 0.02,
            "drain_timeout": 5,
            **changes,
        }
        return load({name: value for name, value in flags.items() if value is not None}, environment={})

    def flags(self, **changes: Any) -> list[str]:
        """The settings as flags, without the database's password."""
        flags = []
        settings = self.settings(**changes)
        for name in ("mysql_host", "mysql_port", "mysql_database", "mysql_user", "source_root", "spool", "udp_port"):
            flags += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
        return [*flags, "--target", TARGET, "--http-port", "0", "--settle", str(settings.settle)]

    def environment(self) -> dict[str, str]:
        """Of a process of the registrar."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return kept | {"MYSQL_PASSWORD": PASSWORD, "PYTHONPATH": os.pathsep.join(sys.path)}

    def rows(self, columns: str = "path, md5sum") -> list[tuple[Any, ...]]:
        return self.world.sql(f"SELECT {columns} FROM {TABLE} ORDER BY id")

    def wait_rows(self, count: int, within: float = PATIENCE) -> list[tuple[Any, ...]]:
        """Waits for so many rows."""
        eventually(lambda: len(self.rows()) >= count, f"{count} rows, not {len(self.rows())}", within)
        return self.rows()

    def receipts(self) -> int:
        return int(self.world.sql(f"SELECT COUNT(*) FROM {side_tables.REGISTERED.name}")[0][0])

    @contextlib.contextmanager
    def running(self, **changes: Any) -> Iterator[Registering]:
        """A registrar in a thread, stopped as by SIGTERM at the end."""
        with Registering(self.settings(**changes)) as made:
            yield made

    def close(self) -> None:
        if self.world.server.running:
            self.world.sql(f"DROP USER IF EXISTS '{self.user}'@'%'")


class Registering:
    """A registrar in a thread of this process."""

    def __init__(self, settings: Settings) -> None:
        self.registrar = RegistrarService(settings)
        self.port = self.registrar.port
        self.ended: ExitStatus | Exception | None = None
        self._thread = threading.Thread(target=self._run, name="registrar-under-test", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if kind is None:
            assert self.ended is ExitStatus.DONE, f"the registrar ended with {self.ended!r}"

    def stop(self) -> None:
        self.registrar.stop()
        self._thread.join(60.0)
        assert not self._thread.is_alive()

    def publisher(self, name: str = "crate1slot2") -> FakePublisher:
        return FakePublisher(self.port, name)

    def facts(self) -> Any:
        status = self.registrar.status()
        assert status.spool is not None
        return status.spool

    def count(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        return sum(
            sample.value
            for metric in self.registrar.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == f"cdc_archiver_registrar_{name}" and labels.items() <= sample.labels.items()
        )

    def wait_count(self, value: float, name: str, **labels: str) -> None:
        eventually(
            lambda: self.count(name, **labels) >= value, f"{name} {labels} is {value}, not {self.count(name, **labels)}"
        )

    def _run(self) -> None:
        try:
            self.ended = self.registrar.run()
        except Exception as error:
            self.ended = error
