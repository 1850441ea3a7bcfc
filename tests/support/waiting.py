"""Waits with a deadline, and the threads and processes that are left behind."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

PATIENCE = 30.0
"""Seconds; a limit for a busy machine that a passing test does not reach."""

_T = TypeVar("_T")


def eventually_or_not(question: Callable[[], object], within: float) -> bool:
    """Calls until the answer is true; whether it was, within so many seconds."""
    deadline = time.monotonic() + within
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def eventually(question: Callable[[], _T | None], what: str, within: float = PATIENCE) -> _T:
    """Calls until the answer is true, and returns it; fails after so many seconds."""
    deadline = time.monotonic() + within
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.02)
    return answer


def threads_since(before: Collection[threading.Thread]) -> list[str]:
    """The names of new threads, except the one with which the sandbox starts its children."""
    new = [thread for thread in threading.enumerate() if thread not in before]
    return [thread.name for thread in new if thread.name != "sandbox-spawner"]


def processes_of(directory: Path) -> list[str]:
    """The command lines that contain a directory: rsync on both sides, ssh, an archiver."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(directory) in words:
                    found.append(words)
    return found
