"""Reads and hashes local files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import threading
from pathlib import Path
from typing import Final

_READ: Final = 1 << 20
_NEVER: Final = threading.Event()


class NotARegularFile(OSError):
    """The path exists and is a directory, a link, a pipe or the like."""


class Stopped(Exception):
    """A stop was requested while a file was being read."""


def hash_file(path: Path | str, stop: threading.Event = _NEVER, *, drop_cache: bool = False) -> tuple[bytes, int]:
    """A file's md5 and its size in bytes, as read.

    Args:
        stop: gives up when it is set.
        drop_cache: drops what was read from the machine's file cache, which others need.

    Raises:
        OSError: the file cannot be read; NotARegularFile for a link, too.
        ValueError: the path holds a NUL, which no file name can.
        Stopped: ``stop`` was set.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise NotARegularFile("it is not a regular file")
    md5, size = hashlib.md5(usedforsecurity=False), 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while chunk := os.read(descriptor, _READ):
            md5.update(chunk)
            size += len(chunk)
            if stop.is_set():
                raise Stopped
        if drop_cache:
            with contextlib.suppress(OSError):  # a hint
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return md5.digest(), size
