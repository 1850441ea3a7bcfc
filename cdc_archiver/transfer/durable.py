"""What is on the disk when a call returns: files, and the directories that name them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]

SYNC_EACH: Final = 16
"""Files or directories up to which each is synced by itself. Beyond, one syncfs: beside a busy writer that took 90 ms where an
fsync took 0.6."""

_libc = ctypes.CDLL(None, use_errno=True)


def sync_files(paths: Sequence[StrPath]) -> None:
    """Their data; all in one file system."""
    if len(paths) > SYNC_EACH:
        _sync_file_system(os.path.dirname(paths[0]))
    else:
        for path in paths:
            sync_file(path)


def sync_directories(directories: Iterable[StrPath]) -> None:
    """The names in them; all in one file system."""
    listed = list(directories)
    if len(listed) > SYNC_EACH:
        _sync_file_system(listed[0])
    else:
        for directory in listed:
            _with_descriptor(directory, os.O_DIRECTORY, os.fsync)


def sync_file(path: StrPath) -> None:
    """The data of one."""
    _with_descriptor(path, os.O_NOFOLLOW, os.fsync)


def _sync_file_system(directory: StrPath) -> None:
    _with_descriptor(directory, os.O_DIRECTORY, _syncfs)


def _syncfs(descriptor: int) -> None:
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _with_descriptor(path: StrPath, flags: int, act: Callable[[int], None]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        act(descriptor)
    finally:
        os.close(descriptor)
