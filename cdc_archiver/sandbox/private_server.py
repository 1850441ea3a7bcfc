"""The base of the private servers: one process, one port that stays the same, and a `with` block for its lifetime."""

from __future__ import annotations

import re
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Self

from cdc_archiver.sandbox.child_process import ChildProcess, SandboxError, free_port

_POLL: Final = 0.02
"""Seconds between two looks at a server that starts."""
_PORT_TRIES: Final = 5
_PORT_TAKEN: Final = re.compile(
    r"Address already in use|Do you already have another .* server running on port", re.IGNORECASE
)


class PrivateServer(ABC):
    """Started by entering its `with` block, stopped by leaving it; its directory stays.

    Arguments:
        label: its name in messages.
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
        """Run it and wait until it answers; SandboxError, with the end of its log, if it does not."""

    @abstractmethod
    def stop(self) -> None:
        """Shut it down."""

    def kill(self) -> None:
        """End it and its sessions at once, as a power cut does (SIGKILL); its data stays."""
        if self._process is not None:
            self._process.kill()

    def restart(self) -> None:
        """Stop it and start it again, on the same port and with the same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Pause it and its sessions: connections stay open and nothing answers, until `resume`."""
        if self._process is not None:
            self._process.send_to_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server continue."""
        if self._process is not None:
            self._process.send_to_all(signal.SIGCONT)

    @property
    def port(self) -> int:
        """Its TCP port on 127.0.0.1, the same for its lifetime; SandboxError before the first start."""
        if self._port is None:
            raise SandboxError(f"{self._label} was not started yet: it has no port")
        return self._port

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """Its process id; SandboxError before the first start."""
        if self._process is None:
            raise SandboxError(f"{self._label} was not started")
        return self._process.pid

    def _start_on_a_port(
        self, launch: Callable[[int], ChildProcess], await_ready: Callable[[ChildProcess, int], None]
    ) -> None:
        """Run it on its port; before the first start, on a free one.

        Another process may take a free port before the server binds it: then the next one is tried. A server that has a port
        keeps it, because its clients know it.
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

    def _await(self, process: ChildProcess, missing: Callable[[], str], timeout: float) -> None:
        """Wait until a process answers; SandboxError, with the end of its log, if it ends or takes longer than `timeout` seconds.

        Arguments:
            missing: says what it still lacks; an empty text once it answers.
        """
        deadline = time.monotonic() + timeout
        while True:
            lacking = missing()
            log = f"its log {process.log} ends with:\n"
            # An answer counts only while the process lives: it may be that of another process, which took the port.
            if process.wait(_POLL):
                status = process.returncode
                raise SandboxError(f"{self._label} ended at its start with status {status}; {log}{process.log_tail()}")
            if not lacking:
                return
            if time.monotonic() > deadline:
                late = f"{self._label} did not answer within {timeout:.0f} s ({lacking})"
                raise SandboxError(f"{late}; {log}{process.log_tail()}")
