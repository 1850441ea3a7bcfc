"""Which directories in staging this process uses: a lock on each, so that no two processes use one, or clear another's."""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from cdc_archiver.transfer.rsync import PARTIAL

_NAMES: Final = 100


class StagingClaims:
    """The claimed directories of one process. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: dict[str, tuple[Path, int]] = {}
        self._place: Path | None = None

    def move_to(self, place: Path) -> None:
        """Gives up all claims where the place for staging is another one than before."""
        with self._lock:
            if place != self._place:
                self._place = place
                for source in list(self._claims):
                    self._release(source)

    def claim(self, place: Path, source: str) -> Path:
        """The directory of a source, which this process holds from now on; with a number while another process has the usual one.

        Raises:
            OSError: it cannot be made.
        """
        with self._lock:
            if source not in self._claims:
                for number in range(_NAMES):
                    directory = place / (f"{source}~{number}" if number else source)
                    if (descriptor := _lock_directory(directory)) is not None:
                        self._claims[source] = directory, descriptor
                        break
                else:
                    raise OSError(f"{_NAMES} other processes use {place / source}")
            return self._claims[source][0]

    def release(self, source: str) -> None:
        """Gives up the claim to a source's directory."""
        with self._lock:
            self._release(source)

    def prune_unclaimed(self, directory: Path, before: float) -> None:
        """Removes what is older from a directory, and the directory if it is empty then, unless a process uses it."""
        with self._lock:
            if any(directory == claimed for claimed, _ in self._claims.values()):
                return
            if (descriptor := _lock_directory(directory)) is None:
                return
            try:
                if prune(directory, before, keep_young_files=True):
                    directory.rmdir()
            finally:
                os.close(descriptor)

    def _release(self, source: str) -> None:
        if (claim := self._claims.pop(source, None)) is not None:
            os.close(claim[1])


def _lock_directory(directory: Path) -> int | None:
    """A descriptor that holds the lock of a directory, made where it is missing; None if another process has it."""
    while True:
        directory.mkdir(mode=0o700, exist_ok=True)
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # a file system without locks
            return descriptor
        with suppress(FileNotFoundError):
            if os.stat(directory).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)  # removed before it was locked


def prune(directory: os.PathLike[str], before: float, *, keep_young_files: bool = False) -> bool:
    """Empties a directory, except for parts of files that are young; returns whether it is empty now.

    Args:
        before: seconds since the epoch: files modified later are young.
        keep_young_files: keep young complete files as well.
    """
    empty = True
    for entry in entries_of(directory):
        if entry.is_dir(follow_symlinks=False):
            if prune(entry, before, keep_young_files=keep_young_files or entry.name == PARTIAL):
                os.rmdir(entry.path)
            else:
                empty = False
        elif keep_young_files and entry.stat(follow_symlinks=False).st_mtime >= before:
            empty = False
        else:
            os.unlink(entry.path)
    return empty


def entries_of(directory: os.PathLike[str]) -> list[os.DirEntry[str]]:
    """The entries of a directory of staging; none if it does not exist."""
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except PermissionError:  # a directory that rsync made with the source's mode
        os.chmod(directory, 0o700)
        with os.scandir(directory) as entries:
            return list(entries)
