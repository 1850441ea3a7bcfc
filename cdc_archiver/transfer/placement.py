"""Verifies, syncs, places and adopts the archive's files.

The order makes a crash harmless at every step: sync the staged data, link it to its final name, sync the directories, and only
then update the row. A link never overwrites and is atomic, so no final path ever holds part of a file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from cdc_archiver.errors import DestinationUnavailable, LayoutRefused
from cdc_archiver.model import Reason
from cdc_archiver.settings.types import FileModes
from cdc_archiver.transfer import disk_sync
from cdc_archiver.transfer.disk_errors import os_errors_as_unavailable, placement_failure
from cdc_archiver.transfer.staging import Archive

_NO_SUCH_GROUP: Final = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP})
"""chown's errors for a group that this user is not in, that the user namespace does not map, or on a disk without groups."""
_MAX_SUFFIX: Final = 9999
_PLACE_TRIES: Final = 20
"""How many times a file's directory is made again where another program removes it before the file is linked."""
_READ_BYTES: Final = 1 << 20

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Staged:
    """A file in staging, to be placed.

    Attributes:
        staged: its path in staging.
        final: its path in the archive, absolute and normalised.
        md5: the expected md5.
        stat_result: status of the staged file, where it is known.
    """

    staged: str
    final: str
    md5: bytes
    stat_result: os.stat_result | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A file of the archive, synced to the disk.

    Attributes:
        path: absolute.
        size: bytes.
        adopted: it was in the archive before.
    """

    path: str
    size: int
    adopted: bool


class Placer:
    """Puts staged files into an archive. Safe to share between threads.

    Args:
        modes: of archived files and directories.
    """

    def __init__(self, archive: Archive, modes: FileModes) -> None:
        self._archive = archive
        self._modes = modes

    def find(self, final: str, md5: bytes) -> Placed | None:
        """The first file along ``name``, ``name.1``, ``name.2`` … that has this md5, made durable; None if none has.

        Raises:
            DestinationUnavailable: the disk cannot be synced.
        """
        for candidate in _candidate_paths(final):
            try:
                found = os.lstat(candidate)
                usable = (
                    stat.S_ISREG(found.st_mode)
                    and self._is_trusted_path(Path(candidate).parent)
                    and _has_md5(candidate, found.st_size, md5)
                )
            except OSError:  # missing; or placement will report an error of the name or the directory
                return None
            if usable:
                with os_errors_as_unavailable(), suppress(FileNotFoundError):  # another program has just removed it
                    disk_sync.sync_file(candidate)
                    self._sync_directories({os.path.dirname(candidate)})
                    return Placed(candidate, found.st_size, adopted=True)
        return None

    def verify(self, file: Staged, cancel: threading.Event) -> bool:
        """Compares the md5 of a staged file with the md5 received.

        Args:
            cancel: set it to give up: a large file takes minutes.

        Returns:
            Whether the file was read to its end.

        Raises:
            DestinationUnavailable: the md5 differs: this machine changed the file.
        """
        with os_errors_as_unavailable():
            seen = _md5_of(file.staged, file.stat_result.st_size if file.stat_result else _READ_BYTES, cancel)
        if seen is not None and seen != file.md5:
            raise DestinationUnavailable(
                Reason.CORRUPTED,
                f"{file.staged} arrived with md5 {file.md5.hex()} but this machine's disk returns {seen.hex()}",
                "check the storage node's memory and disks",
            )
        return seen is not None

    def place(self, files: Sequence[Staged]) -> list[Placed | LayoutRefused | DestinationUnavailable]:
        """Places staged files: syncs them and links them to their final paths.

        Returns:
            For each file in turn the placed file; or why its path is impossible; or why only its directory cannot be used.

        Raises:
            DestinationUnavailable: the disk cannot be written to; the next try adopts files that are linked already.
        """
        self._archive.require_mounted()
        results: list[Placed | LayoutRefused | DestinationUnavailable] = []
        touched: set[str] = set()
        groups: dict[str, int | None] = {}
        with os_errors_as_unavailable():
            disk_sync.sync_files([file.staged for file in files])
            for file in files:
                try:
                    results.append(self._place_one(file, groups, touched))
                except OSError as error:
                    results.append(placement_failure(file.final, error))
            self._sync_directories(touched)
            for staged in {file.staged for file in files}:  # two rows may share one
                with suppress(FileNotFoundError):
                    os.unlink(staged)
        return results

    def _place_one(self, file: Staged, groups: dict[str, int | None], touched: set[str]) -> Placed:
        """Links a file in its directory, which another program may remove at any moment: then it is made again.

        Args:
            groups: of each directory that is known to exist, the group that it prescribes.
            touched: receives the directories to be synced.
        """
        directory = os.path.dirname(file.final)
        for tries_left in reversed(range(_PLACE_TRIES)):
            try:
                if directory not in groups:
                    self._make_directory(Path(directory), touched)
                    groups[directory] = _prescribed_group(directory)
                placed = self._link(file, groups[directory])
                break
            except FileNotFoundError:
                if not tries_left or not os.path.lexists(file.staged):
                    raise
                groups.pop(directory, None)
                self._archive.require_mounted()
        touched.add(directory)
        return placed

    def _sync_directories(self, directories: Iterable[str]) -> None:
        if not disk_sync.sync_directories(directories):
            self._archive.require_mounted()  # else another program removed them, and their files

    def _link(self, file: Staged, group: int | None) -> Placed:
        found = file.stat_result or os.lstat(file.staged)
        size = found.st_size
        if group is not None and group != found.st_gid:
            _set_group(file.staged, group)
        for candidate in _candidate_paths(file.final):
            try:
                os.link(file.staged, candidate, follow_symlinks=False)
            except FileExistsError:
                there = os.lstat(candidate)
                if stat.S_ISREG(there.st_mode) and _has_md5(candidate, there.st_size, file.md5):
                    disk_sync.sync_file(candidate)
                    return Placed(candidate, size, adopted=True)
            else:
                return Placed(candidate, size, adopted=False)
        raise OSError(errno.ENAMETOOLONG, f"{_MAX_SUFFIX} files of that name exist already")

    def _make_directory(self, directory: Path, touched: set[str]) -> None:
        missing: list[Path] = []
        there = directory
        while not os.path.isdir(there):
            if there == self._archive.data_dir:
                raise self._archive.not_mounted("data_dir itself is gone")
            missing.append(there)
            there = there.parent
        if not self._is_trusted_path(there):
            raise OSError(
                errno.ELOOP,
                f"a directory above {directory} is a link that belongs to another user and may lead anywhere",
            )
        for new in reversed(missing):
            try:
                new.mkdir(self._modes.directories)
                self._set_mode(new)
            except FileExistsError:  # another worker has created it meanwhile
                if not os.path.isdir(new) and os.lstat(new):
                    raise
            touched.update((str(new), str(new.parent)))

    def _set_mode(self, directory: Path) -> None:
        """Sets the mode regardless of the umask, and keeps setgid where the directory above passes it on."""
        made = stat.S_IMODE(os.stat(directory).st_mode)
        wanted = self._modes.directories | made & stat.S_ISGID
        if made == wanted:
            return
        try:
            directory.chmod(wanted)
        except PermissionError:  # systemd's RestrictSUIDSGID forbids setgid even where it is set already
            directory.chmod(self._modes.directories)
            _log.warning("directory_without_setgid", path=str(directory), mode=oct(wanted))

    def _is_trusted_path(self, directory: Path) -> bool:
        """Whether no directory from data_dir to this one is another user's link; own or root's links may span several disks."""
        for each in (directory, *directory.parents):
            if each == self._archive.data_dir:
                return True
            found = os.lstat(each)
            if stat.S_ISLNK(found.st_mode) and found.st_uid not in (0, os.geteuid()):
                return False
        return False


def _set_group(file: str, group: int) -> None:
    """Sets a file's group; where the system refuses it, the file keeps its group: that must not stop archiving."""
    try:
        os.chown(file, -1, group)
    except OSError as error:
        if error.errno not in _NO_SUCH_GROUP:
            raise


def _prescribed_group(directory: str) -> int | None:
    """The group that a setgid directory prescribes: files are linked there, not created, so they do not inherit it."""
    found = os.stat(directory)
    return found.st_gid if found.st_mode & stat.S_ISGID else None


def _candidate_paths(final: str) -> Iterator[str]:
    yield final
    for number in range(1, _MAX_SUFFIX + 1):
        yield f"{final}.{number}"


def _md5_of(path: str, size: int, cancel: threading.Event | None = None) -> bytes | None:
    """The md5 of a file; None where cancelled.

    Args:
        size: expected bytes; a wrong size costs another read. Each system call releases the interpreter's lock and may wait to
            get it back; with the size a small file takes one read.
    """
    md5 = hashlib.md5(usedforsecurity=False)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        left = size
        while cancel is None or not cancel.is_set():
            # Ask for one byte more than expected: where it does not come, this was the end.
            asked = left + 1 if 0 <= left < _READ_BYTES else _READ_BYTES
            chunk = os.read(descriptor, asked)
            md5.update(chunk)
            left -= len(chunk)
            if not chunk or (left == 0 and len(chunk) < asked):
                return md5.digest()
    finally:
        os.close(descriptor)
    return None


def _has_md5(path: str, size: int, md5: bytes) -> bool:
    """Whether a file of the archive has this md5; False where it cannot be read.

    Raises:
        FileNotFoundError: another program has just removed it.
    """
    try:
        return _md5_of(path, size) == md5
    except FileNotFoundError:
        raise
    except OSError:
        return False
