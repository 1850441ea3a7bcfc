"""Runs a command on a terminal: what it prints, and answers typed to it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from private_site import Done, PrivateSite
from services import COMMAND
from waiting import PATIENCE, eventually

_CTRL_CS = 3
_CTRL_C_EVERY = 5.0


class Terminal:
    """``cdc-archiver`` on a terminal of its own. It is killed at the end of the ``with`` block."""

    def __init__(self, stage: PrivateSite, arguments: Sequence[str]) -> None:
        self.seen = ""
        self._ours, theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self._process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=stage.environment() | {"TERM": "xterm-256color", "COLUMNS": "200"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def wait_for(self, text: str) -> str:
        """Waits until it has printed a text; returns all that it printed."""
        eventually(lambda: text in self._read(), f"{text!r} is printed, and not {self.seen!r}")
        return self.seen

    def type(self, text: str) -> None:
        """Types a line."""
        os.write(self._ours, text.encode() + b"\n")

    def interrupt(self) -> Done:
        """Presses Ctrl-C, and again after some seconds, as a person does; returns its end.

        A signal that arrives at the very moment a read begins does not end that read.
        """
        for _ in range(_CTRL_CS):
            self._process.send_signal(signal.SIGINT)
            with suppress(AssertionError):
                return self.end(_CTRL_C_EVERY)
        return self.end()

    def end(self, within: float = PATIENCE) -> Done:
        """Waits for its end."""
        eventually(lambda: [self._read(), self._process.poll() is not None][1], "it ends", within)
        self._read()
        return Done(self._process.returncode, self.seen, "")

    def _read(self) -> str:
        with suppress(BlockingIOError, OSError):  # nothing yet; or, at its end, EIO
            while chunk := os.read(self._ours, 65536):
                self.seen += chunk.decode()
        return self.seen
