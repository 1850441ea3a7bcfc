"""Those who tell the outside how the service is, for as long as it runs: HTTP server, systemd, the operator's program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from cdc_archiver.observe.http import HttpQueries, HttpServer
from cdc_archiver.observe.notice_rules import Notice
from cdc_archiver.observe.notifier import Notifier
from cdc_archiver.observe.systemd import SystemdNotifier
from cdc_archiver.settings import Settings
from cdc_archiver.threads import StoppableThread, join_all

_JOIN: Final = 3.0

_log = structlog.get_logger(__name__)


class FrontEnds:
    """Started before the work, stopped after it.

    Args:
        queries: what they tell, and ask.
        on_end: called by a part's thread when it ends.

    Raises:
        Misconfigured: the HTTP server cannot listen.
    """

    def __init__(self, settings: Settings, queries: HttpQueries, on_end: Callable[[StoppableThread], None]) -> None:
        self._host = settings.http_host
        self.http = HttpServer(settings.http_host, settings.http_port, queries)
        self._systemd = SystemdNotifier.from_environment(queries.status)
        self._notifier: Notifier | None = None
        if settings.notify_command:
            self._notifier = Notifier(settings.notify_command, settings.notify_after, queries.status, queries.metrics)
        for part in self._parts:
            part.on_end = on_end

    @property
    def _parts(self) -> tuple[StoppableThread, ...]:
        return tuple(part for part in (self.http, self._systemd, self._notifier) if part is not None)

    def start(self) -> None:
        """Starts the threads."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        _log.info("listening", address=f"http://{host}:{self.http.port}")
        for part in self._parts:
            part.start()

    def tell(self, notice: Notice) -> None:
        """Has the operator's program told, where there is one. Never waits."""
        if self._notifier is not None:
            self._notifier.tell(notice)

    def announce_stop(self) -> None:
        """Tells systemd that the service ends; its watchdog watches the drain, too."""
        if self._systemd is not None:
            self._systemd.announce_stop()

    def stop(self) -> None:
        """Stops the threads."""
        for part in self._parts:
            part.stop()
        join_all(self._parts, _JOIN)
