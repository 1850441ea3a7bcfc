"""States of files on a source, asked in the same way on this machine and over SFTP."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Protocol


class FileState(StrEnum):
    """State of a file on its source."""

    OK = "ok"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    NOT_A_FILE = "not_a_file"
    ROOT_GONE = "root_gone"
    """The source root is missing or empty: its disk is not mounted."""
    CANNOT_TELL = "cannot_tell"
    UNREACHABLE = "unreachable"
    """The source could not be reached for the check; a later check may succeed."""


class Files(Protocol):
    """How files are looked at. Each method raises OSError."""

    def lstat(self, path: bytes) -> int:
        """Its mode."""

    def try_open(self, path: bytes) -> None:
        """Opens it for reading, and closes it."""

    def link_owner(self, path: bytes) -> int | None:
        """The uid of a link's owner; None for anything else."""

    def has_entries(self, path: bytes) -> bool:
        """Whether a directory is not empty."""


class LocalFiles:
    """Files of this machine."""

    def lstat(self, path: bytes) -> int:
        return os.lstat(path).st_mode

    def try_open(self, path: bytes) -> None:
        os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK))

    def link_owner(self, path: bytes) -> int | None:
        found = os.lstat(path)
        return found.st_uid if stat.S_ISLNK(found.st_mode) else None

    def has_entries(self, path: bytes) -> bool:
        with os.scandir(path) as entries:
            return any(True for _ in entries)


def file_states(files: Files, root: str, paths: Sequence[str]) -> Iterator[tuple[str, FileState]]:
    """The state of each file, one by one; of all at once where the source root is gone.

    Args:
        paths: absolute.
    """
    if root_state(files, root) in (FileState.MISSING, FileState.NOT_A_FILE, FileState.ROOT_GONE):
        yield from ((path, FileState.ROOT_GONE) for path in paths)
        return
    for path in paths:
        # No file name has a NUL, and sshd closes the connection over one.
        yield path, FileState.MISSING if "\0" in path else _file_state(files, _path_bytes(path))


def first_foreign_link(files: Files, directories: Sequence[str], login: int) -> str | None:
    """The first of the directories that is a link of a user other than root and the login."""
    owners = ((directory, files.link_owner(_path_bytes(directory))) for directory in directories)
    return next((directory for directory, owner in owners if owner not in (None, 0, login)), None)


def foreign_link_text(link: str) -> str:
    """What such a link does, and the fix."""
    return (
        f"{link} is a directory link of a user other than root and the login: rsync 3.5 and later does not follow it; "
        f"fix: chown -h root {shlex.quote(link)}"
    )


def _file_state(files: Files, path: bytes) -> FileState:
    def query() -> FileState:
        if not stat.S_ISREG(files.lstat(path)):
            return FileState.NOT_A_FILE
        files.try_open(path)
        return FileState.OK

    return _state_of(query)


def root_state(files: Files, root: str) -> FileState:
    """The state of a directory: ROOT_GONE where it is empty."""
    path = _path_bytes(root)

    def query() -> FileState:
        # With a trailing slash a link to a directory is followed.
        if not stat.S_ISDIR(files.lstat(path.rstrip(b"/") + b"/")):
            return FileState.NOT_A_FILE
        return FileState.OK if files.has_entries(path) else FileState.ROOT_GONE

    return _state_of(query)


def _state_of(query: Callable[[], FileState]) -> FileState:
    try:
        return query()
    except OSError as error:
        match error.errno:
            case errno.ENOENT | errno.ENOTDIR | errno.ENAMETOOLONG:
                return FileState.MISSING
            case errno.EACCES | errno.EPERM | errno.EIO:
                return FileState.UNREADABLE
            case _:
                return FileState.CANNOT_TELL


def _path_bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")
