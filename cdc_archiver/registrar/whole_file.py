"""Whether an announced file is whole: it is there, nobody writes to it, it has been still for a while; and its md5."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import math
import os
import posixpath
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

_LOCAL: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "tmpfs", "overlay"})
"""File systems on which a lease speaks for every writer, and whose times are this machine's. Elsewhere it says nothing."""
_SCAN_AGE: Final = 0.25
"""Seconds for which a list of open files is used."""
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})


@dataclass(frozen=True, slots=True)
class WholeFile:
    """A file that is whole.

    Attributes:
        path: as it goes into the row.
        signature: changes whenever the content does.
    """

    path: str
    md5: bytes
    signature: str


@dataclass(frozen=True, slots=True)
class NotThere:
    """There is no such file, or it cannot be read."""

    detail: str


@dataclass(frozen=True, slots=True)
class NotWhole:
    """It is there, and may still be written."""

    detail: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """No row of it could be archived."""

    detail: str


Look: TypeAlias = WholeFile | NotThere | NotWhole | Unusable


class FileLooker:
    """Looks at announced files.

    Args:
        root: directory that contains every file, absolute.
        settle: seconds for which size and modification time must have been still.
    """

    def __init__(self, root: str, settle: float) -> None:
        self._root = posixpath.normpath("/" + root.lstrip("/"))
        self._settle = settle
        self._seen: dict[int, tuple[str, float]] = {}
        """Signature by number, and when it was first seen."""
        self._local: dict[int, bool] = {}
        """By device."""
        self._written: tuple[float, set[tuple[int, int]]] = (-math.inf, set())

    def look(self, number: int, path: str) -> Look:
        """Looks at an announced file.

        Args:
            number: of the announcement.
            path: as announced.
        """
        found = self._find(number, path)
        if not isinstance(found, NotWhole):
            self._seen.pop(number, None)
        return found

    def signature(self, path: str) -> str:
        """The signature of a file now; empty where there is none."""
        try:
            return _signature(os.stat(path, follow_symlinks=False))
        except (OSError, ValueError):
            return ""

    def _find(self, number: int, announced: str) -> Look:
        if not announced.startswith("/"):
            return Unusable("the path is not absolute")
        path = announced
        if not os.path.lexists(path) and os.path.lexists(f"{path}.npy"):
            path = f"{path}.npy"  # numpy adds the ending, and the message does not have it
        try:
            stored = self._below_root(path)
            if stored is None:
                return Unusable(f"{path} is not below the source root {self._root}; fix: --source-root")
            descriptor = os.open(stored, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                return Unusable("it is a symbolic link" if error.errno == errno.ELOOP else "its name is too long")
            return NotThere("no such file" if error.errno in _ABSENT else error.strerror or str(error))
        except ValueError as error:  # a NUL, a lone surrogate
            return Unusable(str(error))
        try:
            return self._examine(number, stored, descriptor)
        except OSError as error:
            return NotThere(error.strerror or str(error))
        finally:
            os.close(descriptor)

    def _examine(self, number: int, path: str, descriptor: int) -> Look:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return Unusable(f"{path} is not a regular file")
        signature = _signature(status)
        local = self._is_local(status.st_dev)
        before, since = self._seen.get(number, ("", 0.0))
        if before != signature:
            since = time.monotonic()
            self._seen[number] = (signature, since)
        # On a local file system its times tell how long it has been still; elsewhere only our own looks do.
        still = local and time.time() - max(status.st_mtime, status.st_ctime) >= self._settle
        if not still and time.monotonic() - since < self._settle:
            return NotWhole("it changed a moment ago")
        leased = _try_lease(descriptor) if local else None
        if leased is False or (leased is None and (status.st_dev, status.st_ino) in self._written_by_us()):
            return NotWhole("a program has it open for writing")
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
        if self.signature(path) != signature:
            return NotWhole("it changed while it was read")
        return WholeFile(path, md5, signature)

    def _below_root(self, path: str) -> str | None:
        """The path as it goes into the row: below the root as it is written, and after links are resolved; None outside."""
        real_root = os.path.realpath(self._root)
        directory, name = posixpath.split(path)
        real = posixpath.join(os.path.realpath(directory), name)
        if name in ("", ".", "..") or not _is_below(real, real_root):
            return None
        if posixpath.normpath(path) == path and _is_below(path, self._root):
            return path
        return posixpath.join(self._root, posixpath.relpath(real, real_root))

    def _written_by_us(self) -> set[tuple[int, int]]:
        scanned, found = self._written
        if time.monotonic() - scanned > _SCAN_AGE:
            found = _files_written_by_us()
            self._written = (time.monotonic(), found)
        return found

    def _is_local(self, device: int) -> bool:
        if device not in self._local:
            self._local[device] = kind_of(device) in _LOCAL
        return self._local[device]


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")


def _signature(status: os.stat_result) -> str:
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def kind_of(device: int) -> str:
    """The type of the file system on a device, as a file's status names it."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split(" ", 1)[0]
    return "unknown"


def _try_lease(descriptor: int) -> bool | None:
    """Whether nobody has the file open for writing; None where a lease does not tell, as on another user's file.

    The lease is given back at once, since it holds up a writer's open.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def _files_written_by_us() -> set[tuple[int, int]]:
    """Device and inode of each file that a process of this user has open for writing."""
    found = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            names = os.listdir(process / "fd") if process.stat().st_uid == os.geteuid() else []
        except OSError:  # it has ended
            continue
        for name in names:
            with contextlib.suppress(OSError):  # it has closed the file
                opened = os.stat(process / "fd" / name)
                flags = re.search(r"^flags:\s*([0-7]+)", (process / "fdinfo" / name).read_text(), re.MULTILINE)
                if stat.S_ISREG(opened.st_mode) and flags and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY:
                    found.add((opened.st_dev, opened.st_ino))
    return found
