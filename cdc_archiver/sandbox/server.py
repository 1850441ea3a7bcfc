"""What the private servers have in common: a process, a port of its own for all its life, and a `with` block that they run in."""

from __future__ import annotations

import re
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Self

from cdc_archiver.sandbox.errors import SandboxError
from cdc_archiver.sandbox.process import ChildProcess, free_port

_PORT_TRIES: Final = 5
_PORT_TAKEN: Final = re.compile(
    r"Address already in use|Do you already have another .* server running on port", re.IGNORECASE
)


class Server(ABC):
    """Started by entering its `with` block, stopped by leaving it; its directory stays.

    Arguments:
        label: what messages call it.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._port: int | None = None
        self._process: ChildProcess | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it; its directory stays."""
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Run it and wait until it answers; SandboxError, with its last words, where it does not."""

    @abstractmethod
    def stop(self) -> None:
        """End it in good order."""

    def kill(self) -> None:
        """End it at once, and every session that it has, as a power cut does (SIGKILL); its data stays."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> None:
        """Stop it in good order and start it again, on the same port and with the same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it, sessions included: connections stay open and nothing answers, until `resume`."""
        if self._process is not None:
            self._process.send_to_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        if self._process is not None:
            self._process.send_to_all(signal.SIGCONT)

    @property
    def port(self) -> int:
        """Its TCP port on 127.0.0.1, the same for all its life; SandboxError before the first start."""
        if self._port is None:
            raise SandboxError(f"{self._label} was not started yet: it has no port")
        return self._port

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """Its process id; SandboxError where it was never started."""
        if self._process is None:
            raise SandboxError(f"{self._label} was not started")
        return self._process.pid

    def _start_on_a_port(
        self, launch: Callable[[int], ChildProcess], await_ready: Callable[[ChildProcess, int], None]
    ) -> None:
        """Run it on its port, or on a free one where it has none yet.

        Somebody else may take a port between the choice and the bind. Who has a port already keeps it: its clients know it.
        """
        for attempt in range(_PORT_TRIES):
            port = self._port if self._port is not None else free_port()
            process = launch(port)
            try:
                await_ready(process, port)
            except SandboxError:
                process.kill()
                if not _PORT_TAKEN.search(process.log_tail(200)) or attempt == _PORT_TRIES - 1:
                    raise
                continue
            except BaseException:
                process.kill()
                raise
            self._process, self._port = process, port
            return
