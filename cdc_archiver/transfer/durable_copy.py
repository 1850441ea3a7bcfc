"""Copies a staged file into the directory where it gets its name: complete and on the disk before it has one.

The copy is an unnamed file (O_TMPFILE) of that directory, so its group comes from there and nothing is left of it after a crash.
A file system without such files (NFS, FUSE, an older overlay) has it in a hidden directory next to the final one instead.
The order is the caller's: fill, sync, link, then sync the directory. A name that exists is never replaced.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from cdc_archiver.errors import DestinationUnavailable
from cdc_archiver.model import Reason

_COPY_BYTES: Final = 1 << 20
_NO_UNNAMED_FILES: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS})
_LINK_REFUSED: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
_RENAME_REFUSED: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
_RENAME_NOREPLACE: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


class DurableCopy:
    """A copy of a staged file that has no final name yet. A context manager: at its end an unlinked copy is gone.

    Args:
        staged: the file to copy.
        directory: where the copy gets its name; it exists.
        hidden: directory for the copy, made and removed again, where the file system has no unnamed files.
        key: the copy's name there.
        before_hidden: called before that directory is used.

    Raises:
        FileNotFoundError: another program has removed the directory.
        OSError: the copy cannot be created.
    """

    def __init__(
        self, staged: str, directory: str, hidden: str, key: str, before_hidden: Callable[[], None] = lambda: None
    ) -> None:
        self._staged = staged
        self._before_hidden = before_hidden
        self.size = 0
        """Bytes copied."""
        self._hidden = hidden
        self._key = key
        self._hidden_descriptor: int | None = None
        self.directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        """Descriptor of the directory."""
        try:
            self.descriptor = self._open()
        except BaseException:
            self._close_directories()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
        self._close_directories()

    def fill(self, md5: bytes, cancel: threading.Event) -> None:
        """Copies content, mode and time of modification.

        Args:
            md5: the expected one.
            cancel: set it to give up.

        Raises:
            DestinationUnavailable: the md5 differs, or the copy was given up.
            OSError: a file cannot be read or written.
        """
        self._md5, self._cancel, self.size = md5, cancel, 0
        seen = hashlib.md5(usedforsecurity=False)
        source = os.open(self._staged, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            while chunk := os.read(source, _COPY_BYTES):
                if cancel.is_set():
                    raise DestinationUnavailable(Reason.STOPPING, "the service is stopping")
                seen.update(chunk)
                self.size += len(chunk)
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(self.descriptor, rest) :]
            found = os.fstat(source)
        finally:
            os.close(source)
        if seen.digest() != md5:
            raise DestinationUnavailable(
                Reason.CORRUPTED,
                f"{self._staged} arrived with md5 {md5.hex()} but this machine's disk returns {seen.hexdigest()}",
                "check the storage node's memory and disks",
            )
        os.fchmod(self.descriptor, stat.S_IMODE(found.st_mode))
        os.utime(self.descriptor, ns=(found.st_atime_ns, found.st_mtime_ns))

    def link(self, final: str) -> None:
        """Gives the copy its name, after its data has been synced.

        Raises:
            FileExistsError: another file has that name.
            FileNotFoundError: another program has removed the directory.
            DestinationUnavailable: the file system can neither link nor rename without replacing.
        """
        name = os.path.basename(final)
        try:
            # With a directory's descriptor Python calls linkat, which follows the link in /proc to the file without a name.
            os.link(f"/proc/self/fd/{self.descriptor}", name, dst_dir_fd=self.directory)
        except OSError as error:
            if error.errno not in _LINK_REFUSED:
                raise
            self._rename(name)

    def _open(self) -> int:
        try:
            return os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=self.directory)
        except OSError as error:
            if error.errno not in _NO_UNNAMED_FILES:
                raise
        return self._open_hidden()

    def _open_hidden(self) -> int:
        self._before_hidden()
        with suppress(FileExistsError):
            os.mkdir(self._hidden, 0o700)
        self._hidden_descriptor = os.open(self._hidden, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with suppress(FileNotFoundError):  # left by a crash
            os.unlink(self._key, dir_fd=self._hidden_descriptor)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self._key, flags, 0o600, dir_fd=self._hidden_descriptor)

    def _rename(self, name: str) -> None:
        if self._hidden_descriptor is None:  # what has no name cannot be renamed
            hidden = self._open_hidden()
            os.close(self.descriptor)
            self.descriptor = hidden
            self.fill(self._md5, self._cancel)
            os.fsync(self.descriptor)
        assert self._hidden_descriptor is not None
        try:
            _rename_without_replacing(self._hidden_descriptor, self._key, self.directory, name)
        except OSError as error:
            if error.errno not in _RENAME_REFUSED:
                raise
            raise DestinationUnavailable(
                Reason.DESTINATION_UNWRITABLE,
                f"the file system of {self._hidden} can neither link a file nor rename it without replacing another",
                "keep the archive on a file system that has hard links: ext4, xfs, zfs, nfs",
            ) from error

    def _close_directories(self) -> None:
        if self._hidden_descriptor is not None:
            with suppress(OSError):
                os.unlink(self._key, dir_fd=self._hidden_descriptor)
            os.close(self._hidden_descriptor)
            with suppress(OSError):  # another copy's, or removed with its timecode
                os.rmdir(self._hidden)
        os.close(self.directory)


def clear_hidden(hidden: str, suffix: str) -> None:
    """Removes what crashed copies left in a hidden directory.

    Args:
        suffix: with which their keys end.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        directory = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        for key in os.listdir(directory):
            if key.endswith(suffix):
                os.unlink(key, dir_fd=directory)
    finally:
        os.close(directory)
    with suppress(OSError):  # another service's copies are there
        os.rmdir(hidden)


def can_link(source: Path, place: Path) -> bool | None:
    """Whether files of one directory can be linked in another; tried without a name in the first, not even for a moment.

    Returns:
        None where that file system has no unnamed files, so that it cannot be told.

    Raises:
        OSError: a directory cannot be written to.
    """
    try:
        unnamed = os.open(source, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_UNNAMED_FILES:
            raise
        return None
    name = f".link-{secrets.token_hex(8)}"
    directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(f"/proc/self/fd/{unnamed}", name, dst_dir_fd=directory)
        os.unlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in _LINK_REFUSED | {errno.EXDEV}:
            raise
        return False
    finally:
        os.close(unnamed)
        os.close(directory)
    return True


def _rename_without_replacing(from_directory: int, key: str, to_directory: int, name: str) -> None:
    renameat2 = getattr(_libc, "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(from_directory, os.fsencode(key), to_directory, os.fsencode(name), _RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
