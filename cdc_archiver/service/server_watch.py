"""Whether the address of the database still leads to the server that has our locks; and that server takes writes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

import pymysql
import structlog

from cdc_archiver.database.connections import Database
from cdc_archiver.database.server_identity import ServerIdentity, identify_server
from cdc_archiver.errors import ArchiverError
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.threads import StoppableThread

LOOK: Final = 5.0
"""Seconds between two looks."""
_TRIES: Final = 3
"""Connections in a row that must all meet another server, before we follow them there."""
_SEVERAL_PAUSE: Final = 60.0
"""Seconds to the next look where the address leads to several servers at once."""
_ANSWER_LIMIT: Final = 3.0

_log = structlog.get_logger(__name__)


class ServerWatch(StoppableThread):
    """Asks for the server's identity on new connections, at intervals and when a connection met another server.

    Args:
        lock_server: the server of the connection that has the locks; None without one.
        on_left: called once, with the event and a sentence, when no work can be done with that server any more: the address
            leads to another one (``database_moved``), or it takes no writes (``database_read_only``).
    """

    def __init__(
        self,
        database: Database,
        lock_server: Callable[[], ServerIdentity | None],
        metrics: Metrics,
        on_left: Callable[[ServerWatch, str, str], None],
    ) -> None:
        super().__init__("server-watch")
        self._database = database
        self._lock_server = lock_server
        self._metrics = metrics
        self._on_left = on_left
        self._suspected = threading.Event()
        self._leaving = threading.Lock()
        self._left = False
        self._several_until = float("-inf")

    # Called by any thread that uses the database.

    def heard(self, server: ServerIdentity) -> None:
        """A new connection leads to this server."""
        if self._lock_server() not in (None, server):
            self._suspected.set()

    def read_only(self, message: str) -> None:
        """The server refused a write since it is read-only."""
        self._leave("database_read_only", "read_only", message)

    def interrupt(self) -> None:
        self._suspected.set()

    def work(self) -> None:
        while not self.stopping.is_set():
            if not self._suspected.wait(LOOK) or time.monotonic() >= self._several_until:
                self._suspected.clear()
                self._look()
            else:
                self.stopping.wait(1.0)

    def _look(self) -> None:
        ours = self._lock_server()
        if ours is None or time.monotonic() < self._several_until:
            return
        try:
            met = [self._ask()]
            while met[0] != ours and len(met) < _TRIES and not self.stopping.is_set():
                met.append(self._ask())
        except (ArchiverError, pymysql.MySQLError, OSError):
            return  # whoever works with the database reports it
        if met[0] == ours or self.stopping.is_set():
            return
        others = {server.key: server for server in met}
        if len(others) == 1:
            there = f"its address {self._database.address} leads to {met[0]} now; the locks are with {ours}"
            self._leave("database_moved", "moved", there)
            return
        self._several_until = time.monotonic() + _SEVERAL_PAUSE
        self._metrics.server_changes.labels("several").inc()
        _log.warning(
            "several_database_servers",
            address=self._database.address,
            servers=sorted({str(server) for server in (ours, *met)}),
            again_seconds=_SEVERAL_PAUSE,
        )

    def _leave(self, event: str, reason: str, detail: str) -> None:
        with self._leaving:
            if self._left or self.stopping.is_set():
                return
            self._left = True
        self._metrics.server_changes.labels(reason).inc()
        self._on_left(self, event, detail)

    def _ask(self) -> ServerIdentity:
        limits = dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), _ANSWER_LIMIT)
        with contextlib.closing(self._database.raw_connection(**limits)) as connection:
            return identify_server(connection)
