"""Patient waits, and what may be left behind: threads and processes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

PATIENCE = 30.0
"""Seconds: a bound for a busy machine; no test waits that long where all is well."""

_T = TypeVar("_T")


def eventually_or_not(question: Callable[[], object], within: float) -> bool:
    """Asks until the answer is true; whether it was, within so many seconds."""
    deadline = time.monotonic() + within
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def eventually(question: Callable[[], _T | None], what: str, within: float = PATIENCE) -> _T:
    """Asks until the answer is true, and returns it; fails after some seconds."""
    deadline = time.monotonic() + within
    while not (answer := question()):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.02)
    return answer


def threads_since(before: Collection[threading.Thread]) -> list[str]:
    """Threads that were not there before; the sandbox keeps one for all its children."""
    new = [thread for thread in threading.enumerate() if thread not in before]
    return [thread.name for thread in new if thread.name != "sandbox-spawner"]


def processes_of(directory: Path) -> list[str]:
    """The command lines that name a directory: rsync on both sides, ssh, an archiver."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(directory) in words:
                    found.append(words)
    return found
