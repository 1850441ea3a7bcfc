"""A directory for the sockets of ControlMasters: short of path, for us alone, and gone with the process that made it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

CONTROL_PATH_BYTES: Final = 90
"""The longest ControlPath. ssh binds ``<path>.<16 letters>`` first, and a socket's address has 108 bytes with its final
zero; OpenSSH 9.2 took 90 and refused 91."""

_PREFIX: Final = "cdcssh-"


class SocketDirectory:
    """A new directory that only we may enter, with a path short enough for a socket's.

    It is locked as long as its process lives, so that what a killed one left behind is known for it, and removed here.

    Args:
        path: it; locked already.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def make(cls) -> SocketDirectory | None:
        """One, in the runtime directory of this account or in ``/tmp``; None where neither can be had."""
        for place in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.getuid()}", "/tmp"):
            if place.startswith("/"):
                with contextlib.suppress(OSError):
                    _clear_abandoned(Path(place))
                    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
                    descriptor = _lock(path)
                    if descriptor is not None and len(os.fsencode(path)) <= CONTROL_PATH_BYTES - len("/99999999"):
                        return cls(path, descriptor)
                    _remove(path, descriptor)
        return None

    def remove(self) -> None:
        """It is needed no more. May be called often."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            _remove(self.path, descriptor)


def _lock(path: Path) -> int | None:
    """A descriptor of the directory with the lock; None where another holds it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(path: Path, descriptor: int | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if descriptor is not None:
        os.close(descriptor)


def _clear_abandoned(place: Path) -> None:
    for path in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.geteuid() and (descriptor := _lock(path)) is not None:
                _remove(path, descriptor)
