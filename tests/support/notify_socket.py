"""The socket of a service manager, which receives the messages of sd_notify(3)."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from typing import Self

from waiting import PATIENCE


class NotifySocket:
    """Receives a service's messages, as systemd does."""

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
        """Waits until a received line begins with this text."""
        deadline = time.monotonic() + within
        while not any(heard.startswith(line) for heard in self.heard):
            assert time.monotonic() < deadline, f"never heard {line!r}, but {self.heard}"
            self.listen()

    def listen(self) -> bool:
        """Receives one datagram within 0.1 s; whether there was one."""
        try:
            self.heard += self._socket.recv(65536).decode().split("\n")
        except TimeoutError:
            return False
        return True

    def forget(self) -> None:
        """Discards everything received so far."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(65536)
        self._socket.settimeout(0.1)
        self.heard.clear()
