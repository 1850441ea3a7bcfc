"""Which names appear in a directory, however short: readers of an archive see them."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Final

_IN_MOVED_TO: Final = 0x80
_IN_CREATE: Final = 0x100
_IN_Q_OVERFLOW: Final = 0x4000
_IN_ONLYDIR: Final = 0x1000000
_HEADER: Final = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """Watches one directory from its construction on. The kernel keeps what happens until it is read."""

    def __init__(self, directory: Path) -> None:
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._descriptor >= 0, os.strerror(ctypes.get_errno())
        mask = _IN_CREATE | _IN_MOVED_TO | _IN_ONLYDIR
        watched = _libc.inotify_add_watch(self._descriptor, os.fsencode(directory), mask)
        assert watched >= 0, os.strerror(ctypes.get_errno())

    def names(self) -> list[str]:
        """The names that have appeared since the last call."""
        found: list[str] = []
        while True:
            try:
                events = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                return found
            while events:
                _, mask, _, length = _HEADER.unpack_from(events)
                assert not mask & _IN_Q_OVERFLOW, "too much happened in the directory"
                found.append(os.fsdecode(events[_HEADER.size : _HEADER.size + length].rstrip(b"\0")))
                events = events[_HEADER.size + length :]

    def close(self) -> None:
        """Ends the watch."""
        os.close(self._descriptor)
