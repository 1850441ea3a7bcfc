"""What systemd is told: ready, how things are, still alive, stopping. One datagram each, sd_notify(3); elsewhere, nothing."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, MutableMapping
from typing import Final, Self

import structlog

from cdc_archiver.observe.service_status import ServiceStatus
from cdc_archiver.threads import StoppableThread

_LOOK_EVERY: Final = 5.0
"""Seconds between two looks at the status; fewer where the watchdog wants to hear more often."""

_log = structlog.get_logger(__name__)


class Notifier(StoppableThread):
    """Tells the service manager how the service is, for as long as it runs.

    Ready means that it serves: a database that is away at boot is waited for by the service itself, and must not make the
    manager start it over and over. The watchdog hears of it while `/healthz` would be 200, and so while it drains, too.

    Args:
        address: of the manager's socket; `@` begins one in the abstract namespace.
        status: asked at each look.
        watchdog: seconds without a word after which the manager kills the service; None: it does not.

    Attributes:
        every: seconds between two looks at the status.
        watched: whether the manager has a watchdog.
    """

    def __init__(self, address: str, status: Callable[[], ServiceStatus], watchdog: float | None = None) -> None:
        super().__init__("notify")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = status
        self.every = _LOOK_EVERY if watchdog is None else min(_LOOK_EVERY, watchdog / 3)
        self.watched = watchdog is not None

    @classmethod
    def from_environment(
        cls, status: Callable[[], ServiceStatus], environment: MutableMapping[str, str] = os.environ
    ) -> Self | None:
        """The notifier that the manager asks for; None where nobody does.

        Args:
            environment: what is read is taken out of it, since it is not meant for our children.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        meant_for = environment.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return None
        watched = microseconds.isdecimal() and int(microseconds) > 0 and meant_for in ("", str(os.getpid()))
        return cls(address, status, int(microseconds) / 1e6 if watched else None)

    def work(self) -> None:
        self._tell("READY=1")
        said = ""
        while not self.stopping.is_set():
            said = self._look(said)
            self.stopping.wait(self.every)

    def announce_stop(self) -> None:
        """Tells the manager that the service ends; the looks go on until :meth:`stop`."""
        self._tell("STOPPING=1", "STATUS=stopping")

    def _look(self, said: str) -> str:
        try:
            now = self._status()
        except Exception:
            # Whether it can say how it is, is for the watchdog to judge: it hears nothing now.
            _log.exception("status_failed")
            return said
        words = (f"{now.state}: {now.why}" if now.why else str(now.state)).replace("\n", " ")
        if lines := [
            *([f"STATUS={words}"] if words != said else []),
            *(["WATCHDOG=1"] if self.watched and now.healthy else []),
        ]:
            self._tell(*lines)
        return words

    def _tell(self, *lines: str) -> None:
        # Nobody to tell it to is no fault of ours; who has asked for a watchdog draws the conclusion.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as words:
            words.setblocking(False)  # a manager that does not read must not hold us up
            words.sendto("\n".join(lines).encode(), self._address)
