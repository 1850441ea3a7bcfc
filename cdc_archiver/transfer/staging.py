"""The archive's disk: stages, verifies, syncs, places and adopts files.

The order makes a crash harmless at every step: sync the staged data, link it to its final name, sync the directories, and only
then update the row. A link never overwrites and is atomic, so no final path ever holds part of a file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from cdc_archiver.errors import DestinationUnavailable, LayoutRefused, Misconfigured
from cdc_archiver.model import Reason
from cdc_archiver.settings.types import FileModes
from cdc_archiver.text import format_size
from cdc_archiver.transfer import disk_sync
from cdc_archiver.transfer.disk_errors import os_errors_as_unavailable, placement_failure
from cdc_archiver.transfer.rsync import PARTIAL

INCOMING: Final = ".incoming"
MARKER: Final = ".cdc_archiver"
"""Archive marker: a file in data_dir that tells the archive from the empty directory that its disk is mounted on."""

_MARKER_TEXT: Final = (
    "This file shows cdc_archiver that the archive's disk is mounted. Without it nothing is written here.\n"
)
_NO_SUCH_GROUP: Final = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP})
"""chown's errors for a group that this user is not in, that the user namespace does not map, or on a disk without groups."""
_MAX_SUFFIX: Final = 9999
_PLACE_TRIES: Final = 20
"""How many times a file's directory is made again where another program removes it before the file is linked."""
_KEEP_PARTIAL_SECONDS: Final = 86400.0
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


class Archive:
    """data_dir. Safe to share between threads.

    Args:
        data_dir: the archive's directory, absolute.
        modes: of archived files and directories.
        min_free: bytes of free space below which no file is accepted.
    """

    def __init__(self, data_dir: Path, modes: FileModes, min_free: int) -> None:
        self.data_dir = data_dir
        self._modes = modes
        self._min_free = min_free
        self._prepared = False
        self._expect_marker = False
        self.last_free_bytes: int | None = None
        """Free space when it was last read: reading this never waits for a disk that hangs."""

    def require_directory(self) -> None:
        """Checks that data_dir can be an archive's directory.

        Raises:
            Misconfigured: it is not a directory, or its path is not absolute.
        """
        if not self.data_dir.is_absolute():
            raise Misconfigured(f"data_dir {self.data_dir} is not an absolute path", "--data-dir /data/…")
        if os.path.exists(self.data_dir) and not os.path.isdir(self.data_dir):
            raise Misconfigured(
                f"data_dir {self.data_dir} is not a directory", "set --data-dir to the archive's directory"
            )

    def prepare(self, *, expect_marker: bool) -> None:
        """Creates marker and staging directory, at the start of a service and until that succeeds.

        Args:
            expect_marker: whether the history has archived files here, so that a missing marker means a missing disk.

        Raises:
            DestinationUnavailable: data_dir cannot be written to, or its disk is not mounted.
        """
        self._expect_marker = expect_marker
        if not os.path.isdir(self.data_dir):
            raise DestinationUnavailable(
                Reason.DESTINATION_MISSING,
                f"data_dir {self.data_dir} does not exist, or cannot be entered",
                f"mount it, or create it: mkdir -p {shlex.quote(str(self.data_dir))}",
            )
        marked = os.path.lexists(self._marker)
        if expect_marker and not marked:
            raise self._not_mounted("the history has archived files there")
        with os_errors_as_unavailable():
            if not marked:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                with os.fdopen(os.open(self._marker, flags, 0o644), "w") as marker:
                    marker.write(_MARKER_TEXT)
            self.incoming.mkdir(mode=0o700, exist_ok=True)
            if not stat.S_ISDIR(os.lstat(self.incoming).st_mode):
                raise DestinationUnavailable(
                    Reason.DESTINATION_UNWRITABLE,
                    f"{self.incoming} is a link: clearing it would delete files elsewhere",
                    f"rm {shlex.quote(str(self.incoming))}",
                )
            os.chmod(self.incoming, 0o700)
        self._prepared = True

    @property
    def incoming(self) -> Path:
        """The staging directory."""
        return self.data_dir / INCOMING

    def free_bytes(self) -> int:
        """Free space that this user can write, in bytes.

        Raises:
            DestinationUnavailable: it cannot be read.
        """
        with os_errors_as_unavailable():
            found = os.statvfs(self.data_dir)
        self.last_free_bytes = found.f_bavail * found.f_frsize
        return self.last_free_bytes

    def require_ready(self) -> None:
        """Checks, before anything is written, that the disk is mounted and has enough free space.

        Raises:
            DestinationUnavailable: not mounted, or too full.
        """
        if not self._prepared:
            self.prepare(expect_marker=self._expect_marker)
        self._require_mounted()
        free = self.free_bytes()
        if free < self._min_free:
            raise DestinationUnavailable(
                Reason.NO_SPACE,
                f"{self.data_dir} has {format_size(free)} free, less than --min-free ({format_size(self._min_free)})",
                "free space on that disk, or lower --min-free",
            )

    def _require_mounted(self) -> None:
        if not os.path.exists(self._marker):
            raise self._not_mounted("it existed before")

    def staging_directory(self, source: str, worker: str) -> Path:
        """The staging directory of one worker, created where it is missing.

        Args:
            source: the name of the source's directory in staging.

        Raises:
            DestinationUnavailable: it cannot be created.
        """
        self._require_mounted()
        directory = self.incoming / source / worker
        with os_errors_as_unavailable():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory

    def make_staged_directory(self, staging: Path, below: bytes) -> None:
        """Creates a directory in a worker's staging directory, for rsync to write to.

        Raises:
            DestinationUnavailable: it cannot be created.
        """
        with os_errors_as_unavailable():
            os.makedirs(staging / os.fsdecode(below), mode=0o700, exist_ok=True)

    def clear_staging(self, source: str, *worker: str) -> None:
        """Removes what a batch, or a service that died, left in staging; keeps parts of files for a day.

        Args:
            source: the name of the source's directory in staging.
            worker: clear only this worker's directory.

        Raises:
            DestinationUnavailable: it cannot be removed.
        """
        with os_errors_as_unavailable():
            _prune(self.incoming.joinpath(source, *worker), time.time() - _KEEP_PARTIAL_SECONDS)

    def clear_abandoned(self) -> None:
        """Removes files in staging that are older than a day: those of sources that are no longer configured.

        Raises:
            DestinationUnavailable: it cannot be removed.
        """
        with os_errors_as_unavailable():
            _prune(self.incoming, time.time() - _KEEP_PARTIAL_SECONDS, keep_young_files=True)

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
        self._require_mounted()
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
                self._require_mounted()
        touched.add(directory)
        return placed

    def _sync_directories(self, directories: Iterable[str]) -> None:
        if not disk_sync.sync_directories(directories):
            self._require_mounted()  # else another program removed them, and their files

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
            if there == self.data_dir:
                raise self._not_mounted("data_dir itself is gone")
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
            if each == self.data_dir:
                return True
            found = os.lstat(each)
            if stat.S_ISLNK(found.st_mode) and found.st_uid not in (0, os.geteuid()):
                return False
        return False

    @property
    def _marker(self) -> Path:
        return self.data_dir / MARKER

    def _not_mounted(self, why: str) -> DestinationUnavailable:
        return DestinationUnavailable(
            Reason.DESTINATION_MISSING,
            f"{self._marker} is missing, and {why}: the archive's disk is not mounted",
            f"mount the disk; if it is mounted and only this file is gone: touch {shlex.quote(str(self._marker))}",
        )


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


def _prune(directory: os.PathLike[str], before: float, *, keep_young_files: bool = False) -> bool:
    """Empties a directory, except for parts of files that are young; returns whether it is empty now.

    Args:
        before: seconds since the epoch: files modified later are young.
        keep_young_files: keep young complete files as well.
    """
    empty = True
    for entry in _entries(directory):
        if entry.is_dir(follow_symlinks=False):
            if _prune(entry, before, keep_young_files=keep_young_files or entry.name == PARTIAL):
                os.rmdir(entry.path)
            else:
                empty = False
        elif keep_young_files and entry.stat(follow_symlinks=False).st_mtime >= before:
            empty = False
        else:
            os.unlink(entry.path)
    return empty


def _entries(directory: os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except PermissionError:  # a directory that rsync made with the source's mode
        os.chmod(directory, 0o700)
        with os.scandir(directory) as entries:
            return list(entries)
