"""Files read and hashed as they lie on the disk."""

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


class NoFile(OSError):
    """There is something, and it is no regular file."""


class Stopped(Exception):
    """Somebody asked to stop while a file was being read."""


def hash_file(path: Path | str, stop: threading.Event = _NEVER, *, aside: bool = False) -> tuple[bytes, int]:
    """A file's md5 and its size in bytes, as read.

    Args:
        stop: gives up when it is set.
        aside: leaves the machine's file cache to others: what is read is forgotten again.

    Raises:
        OSError: it cannot be read; NoFile: it is none. A link is no file.
        ValueError: no file can have that name.
        Stopped: by ``stop``.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise NoFile("it is no regular file")
    md5, size = hashlib.md5(usedforsecurity=False), 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while chunk := os.read(descriptor, _READ):
            md5.update(chunk)
            size += len(chunk)
            if stop.is_set():
                raise Stopped
        if aside:
            with contextlib.suppress(OSError):  # a hint
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return md5.digest(), size
