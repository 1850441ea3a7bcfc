"""A service manager's ear: the socket that sd_notify(3) tells things."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from typing import Self

from waiting import PATIENCE


class NotifySocket:
    """Hears what a service says, as systemd does."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self.heard: list[str] = []
        """Each line of each datagram, in order."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def __enter__(self) -> Self:
        self._socket.bind(str(self.path))
        self._socket.settimeout(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait(self, line: str, within: float = PATIENCE) -> None:
        """Waits until it has heard a line that begins like this, after those that it was waited for already."""
        deadline = time.monotonic() + within
        while not any(heard.startswith(line) for heard in self.heard):
            assert time.monotonic() < deadline, f"never heard {line!r}, but {self.heard}"
            self.listen()

    def listen(self) -> bool:
        """Takes one datagram, or none after 0.1 s; whether there was one."""
        try:
            self.heard += self._socket.recv(65536).decode().split("\n")
        except TimeoutError:
            return False
        return True

    def forget(self) -> None:
        """Begins anew with what comes from now on."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(65536)
        self._socket.settimeout(0.1)
        self.heard.clear()
