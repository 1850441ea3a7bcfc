"""Tells systemd that the service is ready, its status, that it is alive, that it stops: one datagram each, sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, MutableMapping
from typing import Final, Protocol, Self

import structlog

from cdc_archiver.threads import StoppableThread

_INTERVAL: Final = 5.0
"""Seconds between two reports; fewer if the watchdog asks for it."""

_log = structlog.get_logger(__name__)


class ReportedStatus(Protocol):
    """What the manager is told of a program."""

    @property
    def state(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def healthy(self) -> bool: ...


class SystemdNotifier(StoppableThread):
    """Reports the status to the service manager for as long as the service runs.

    Ready means that the service serves. It waits for a database that is down at boot; the manager must not restart it over and
    over for that. The watchdog gets a message while `/healthz` would be 200, and so while the service drains, too.

    Args:
        address: of the manager's socket; a leading `@` means the abstract namespace.
        status: called for each report.
        watchdog: seconds without a message after which the manager kills the service; None if it does not.

    Attributes:
        every: seconds between two reports.
        watched: whether the manager has a watchdog.
    """

    def __init__(self, address: str, status: Callable[[], ReportedStatus], watchdog: float | None = None) -> None:
        super().__init__("notify")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = status
        self.every = _INTERVAL if watchdog is None else min(_INTERVAL, watchdog / 3)
        self.watched = watchdog is not None

    @classmethod
    def from_environment(
        cls, status: Callable[[], ReportedStatus], environment: MutableMapping[str, str] = os.environ
    ) -> Self | None:
        """The notifier that the manager asks for; None without such a manager.

        Args:
            environment: the manager's variables are removed from it, since they are not meant for child processes.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        meant_for = environment.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return None
        watched = microseconds.isdecimal() and int(microseconds) > 0 and meant_for in ("", str(os.getpid()))
        return cls(address, status, int(microseconds) / 1e6 if watched else None)

    def work(self) -> None:
        self._send("READY=1")
        reported = ""
        while not self.stopping.is_set():
            reported = self._report(reported)
            self.stopping.wait(self.every)

    def announce_stop(self) -> None:
        """Tells the manager that the service ends; the reports go on until :meth:`stop`."""
        self._send("STOPPING=1", "STATUS=stopping")

    def _report(self, reported: str) -> str:
        """Sends the status if it has changed, and the watchdog's message.

        Args:
            reported: the status that was sent last.

        Returns:
            The status now.
        """
        try:
            now = self._status()
        except Exception:
            # The watchdog gets no message now, and decides.
            _log.exception("status_failed")
            return reported
        text = (f"{now.state}: {now.why}" if now.why else str(now.state)).replace("\n", " ")
        if lines := [
            *([f"STATUS={text}"] if text != reported else []),
            *(["WATCHDOG=1"] if self.watched and now.healthy else []),
        ]:
            self._send(*lines)
        return text

    def _send(self, *lines: str) -> None:
        # A manager that is gone is no error here; one with a watchdog draws its own conclusion.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            datagrams.setblocking(False)  # a manager that does not read must not block the service
            datagrams.sendto("\n".join(lines).encode(), self._address)
