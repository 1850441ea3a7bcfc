"""The archive's disk: staged, hashed, durable, placed, adopted.

The order is what makes a crash harmless at every step: the staged data is synced, then linked to its final name, then
the directories are synced, and only then may the row say so. A link never overwrites and is all or nothing, so no final
path ever holds part of a file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from cdc_archiver.errors import DestinationUnavailable, LayoutRefused, Misconfigured
from cdc_archiver.model import Reason
from cdc_archiver.settings.types import FileModes
from cdc_archiver.transfer import durable
from cdc_archiver.transfer.rsync import PARTIAL

INCOMING: Final = ".incoming"
MARKER: Final = ".cdc_archiver"
"""A file in data_dir that says that this is the archive and not the empty directory that it is mounted on."""

_MARKER_TEXT: Final = (
    "This file shows cdc_archiver that the archive's disk is mounted. Without it nothing is written here.\n"
)
_NO_SUCH_GROUP: Final = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP})
"""What chown says of a group that is none of ours, that has no number in this user namespace, or on a disk without groups."""
_SUFFIXES: Final = 9999
_KEPT: Final = 86400.0
_READ: Final = 1 << 20

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Staged:
    """A file that rsync has brought, to be placed.

    Attributes:
        staged: where it is.
        final: where it belongs, absolute and normal.
        md5: what it must have.
        found: what was seen of it, if anybody has looked.
    """

    staged: str
    final: str
    md5: bytes
    found: os.stat_result | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a file is now, durable.

    Attributes:
        size: bytes.
        adopted: the archive had it already.
    """

    path: str
    size: int
    adopted: bool


class Archive:
    """data_dir. Safe to share between threads.

    Args:
        data_dir: the archive's directory, absolute.
        modes: of what is archived.
        min_free: bytes of free space below which nothing is taken.
    """

    def __init__(self, data_dir: Path, modes: FileModes, min_free: int) -> None:
        self.data_dir = data_dir
        self._modes = modes
        self._min_free = min_free
        self._prepared = False
        self._known = False
        self.last_free_bytes: int | None = None
        """As it was last asked: a look that never waits for a disk that hangs."""

    def require_directory(self) -> None:
        """Asks whether data_dir can be an archive's directory at all.

        Raises:
            Misconfigured: it is something else, or no absolute path.
        """
        if not self.data_dir.is_absolute():
            raise Misconfigured(f"data_dir {self.data_dir} is no absolute path", "--data-dir /data/…")
        if os.path.exists(self.data_dir) and not os.path.isdir(self.data_dir):
            raise Misconfigured(
                f"data_dir {self.data_dir} is not a directory", "--data-dir names the archive's directory"
            )

    def prepare(self, *, known: bool) -> None:
        """Makes the directory ready, at the start of a service and as long as that did not succeed.

        Args:
            known: whether the history has archived files here, so that a missing marker means a missing disk.

        Raises:
            DestinationUnavailable: it cannot be written to, or its disk is not mounted.
        """
        self._known = known
        if not os.path.isdir(self.data_dir):
            raise DestinationUnavailable(
                Reason.DESTINATION_MISSING,
                f"data_dir {self.data_dir} is not there, or cannot be entered",
                f"mount it, or make it: mkdir -p {self.data_dir}",
            )
        marked = os.path.lexists(self._marker)
        if known and not marked:
            raise self._not_mounted("the history knows archived files there")
        with _as_destination_trouble():
            if not marked:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                with os.fdopen(os.open(self._marker, flags, 0o644), "w") as marker:
                    marker.write(_MARKER_TEXT)
            self.incoming.mkdir(mode=0o700, exist_ok=True)
            if not stat.S_ISDIR(os.lstat(self.incoming).st_mode):
                raise DestinationUnavailable(
                    Reason.DESTINATION_UNWRITABLE,
                    f"{self.incoming} is a link: what it leads to would be cleared away",
                    f"remove it: ls -ld {self.incoming}",
                )
            os.chmod(self.incoming, 0o700)
        self._prepared = True

    @property
    def incoming(self) -> Path:
        """Where files are staged."""
        return self.data_dir / INCOMING

    def free_bytes(self) -> int:
        """Free space for us, in bytes.

        Raises:
            DestinationUnavailable: it cannot be told.
        """
        with _as_destination_trouble():
            found = os.statvfs(self.data_dir)
        self.last_free_bytes = found.f_bavail * found.f_frsize
        return self.last_free_bytes

    def require_ready(self) -> None:
        """Asks, before anything is written, whether the disk is there and has room.

        Raises:
            DestinationUnavailable: not mounted, or too full.
        """
        if not self._prepared:
            self.prepare(known=self._known)
        self._require_mounted()
        free = self.free_bytes()
        if free < self._min_free:
            raise DestinationUnavailable(
                Reason.NO_SPACE,
                f"{self.data_dir} has {free / 2**30:.2f} GiB left, less than the {self._min_free / 2**30:.2f} to keep free",
                "make room, or lower --min-free",
            )

    def _require_mounted(self) -> None:
        if not os.path.exists(self._marker):
            raise self._not_mounted("it was there before")

    def staging_directory(self, source: str, worker: str) -> Path:
        """The directory of one worker, made if need be.

        Args:
            source: the name of the source's directory in staging.

        Raises:
            DestinationUnavailable: it cannot be made.
        """
        self._require_mounted()
        directory = self.incoming / source / worker
        with _as_destination_trouble():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory

    def make_staged_directory(self, staging: Path, below: bytes) -> None:
        """Makes a directory in a worker's staging directory, for rsync to write to.

        Raises:
            DestinationUnavailable: it cannot be made.
        """
        with _as_destination_trouble():
            os.makedirs(staging / os.fsdecode(below), mode=0o700, exist_ok=True)

    def clear_staging(self, source: str, *worker: str) -> None:
        """Removes what a batch, or a service that died, left in staging; parts of files are kept for a day.

        Args:
            source: the name of the source's directory in staging.
            worker: of one worker alone.

        Raises:
            DestinationUnavailable: it cannot be removed.
        """
        with _as_destination_trouble():
            _prune(self.incoming.joinpath(source, *worker), time.time() - _KEPT)

    def clear_abandoned(self) -> None:
        """Removes what nobody has touched in staging for a day: of sources that are configured no more.

        Raises:
            DestinationUnavailable: it cannot be removed.
        """
        with _as_destination_trouble():
            _prune(self.incoming, time.time() - _KEPT, whole=True)

    def find(self, final: str, md5: bytes) -> Placed | None:
        """The first file along ``name``, ``name.1``, ``name.2`` … that has this md5, made durable; None if none has.

        Raises:
            DestinationUnavailable: the disk cannot be synced.
        """
        for candidate in _names(final):
            try:
                found = os.lstat(candidate)
            except OSError:  # not there; or a name, or a directory, that placement will say more of
                return None
            if (
                stat.S_ISREG(found.st_mode)
                and self._is_own_way(Path(candidate).parent)
                and _has_md5(candidate, found.st_size, md5)
            ):
                with _as_destination_trouble():
                    durable.sync_file(candidate)
                    durable.sync_directories({os.path.dirname(candidate)})
                return Placed(candidate, found.st_size, adopted=True)
        return None

    def verify(self, file: Staged, cancel: threading.Event) -> bool:
        """Hashes a staged file.

        Args:
            cancel: set from elsewhere to give it up: a large file takes minutes.

        Returns:
            Whether it was hashed to its end.

        Raises:
            DestinationUnavailable: it is not what was received: this machine changed it.
        """
        try:
            seen = _md5_of(file.staged, file.found.st_size if file.found else _READ, cancel)
        except OSError as error:
            raise _destination_trouble(error) from error
        if seen is not None and seen != file.md5:
            raise DestinationUnavailable(
                Reason.CORRUPTED,
                f"{file.staged} arrived with md5 {file.md5.hex()} and reads as {seen.hex()} from this machine's disk",
                "check the storage node's memory and disks",
            )
        return seen is not None

    def place(self, files: Sequence[Staged]) -> list[Placed | LayoutRefused | DestinationUnavailable]:
        """Makes staged files durable at their final paths.

        Returns:
            For each file in turn its place; or why its path cannot be; or what is wrong with that place alone.

        Raises:
            DestinationUnavailable: the disk cannot take them; what was linked before is adopted the next time.
        """
        self._require_mounted()
        results: list[Placed | LayoutRefused | DestinationUnavailable] = []
        touched: set[Path] = set()
        placed_in: set[str] = set()
        groups: dict[str, int | None] = {}
        with _as_destination_trouble():
            durable.sync_files([file.staged for file in files])
            for file in files:
                directory = os.path.dirname(file.final)
                try:
                    if directory not in groups:
                        self._make_directory(Path(directory), touched)
                        groups[directory] = _group_for(directory)
                    placed = self._link(file, groups[directory])
                except OSError as error:
                    results.append(_refusal(file.final, error))
                else:
                    placed_in.add(directory)
                    results.append(placed)
            durable.sync_directories(touched.union(map(Path, placed_in)))
            for staged in {file.staged for file in files}:  # two rows may share one
                with suppress(FileNotFoundError):
                    os.unlink(staged)
        return results

    def _link(self, file: Staged, group: int | None) -> Placed:
        found = file.found or os.lstat(file.staged)
        size = found.st_size
        if group is not None and group != found.st_gid:
            _give_to(file.staged, group)
        for candidate in _names(file.final):
            try:
                os.link(file.staged, candidate, follow_symlinks=False)
            except FileExistsError:
                there = os.lstat(candidate)
                if stat.S_ISREG(there.st_mode) and _has_md5(candidate, there.st_size, file.md5):
                    durable.sync_file(candidate)
                    return Placed(candidate, size, adopted=True)
            else:
                return Placed(candidate, size, adopted=False)
        raise OSError(errno.ENAMETOOLONG, f"there are {_SUFFIXES} files of that name")

    def _make_directory(self, directory: Path, touched: set[Path]) -> None:
        missing: list[Path] = []
        there = directory
        while not os.path.isdir(there):
            if there == self.data_dir:
                raise self._not_mounted("data_dir itself is gone")
            missing.append(there)
            there = there.parent
        if not self._is_own_way(there):
            raise OSError(
                errno.ELOOP, f"on the way to {directory} is a link of somebody else's, which leads where he likes"
            )
        for new in reversed(missing):
            try:
                new.mkdir(self._modes.directories)
                self._set_mode(new)
            except FileExistsError:  # another worker made it just now
                if not os.path.isdir(new):
                    raise
            touched.update((new, new.parent))

    def _set_mode(self, directory: Path) -> None:
        """Whatever the umask; and where the directory above hands on its group, this one does so too."""
        made = stat.S_IMODE(os.stat(directory).st_mode)
        wanted = self._modes.directories | made & stat.S_ISGID
        if made == wanted:
            return
        try:
            directory.chmod(wanted)
        except PermissionError:  # systemd's RestrictSUIDSGID forbids that bit even where it is set already
            directory.chmod(self._modes.directories)
            _log.warning("directory_without_setgid", path=str(directory), mode=oct(wanted))

    def _is_own_way(self, directory: Path) -> bool:
        """Whether no directory between data_dir and this one is somebody else's link: one of ours, or root's, may spread an
        archive over disks."""
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
            f"{self._marker} is not there, and {why}: the archive's disk is not mounted",
            f"mount it; if it is mounted, and only this file is gone: touch {self._marker}",
        )


def _give_to(file: str, group: int) -> None:
    """Gives a file to a group; where that cannot be, the file stays as it is made here: no reason to archive nothing."""
    try:
        os.chown(file, -1, group)
    except OSError as error:
        if error.errno not in _NO_SUCH_GROUP:
            raise


def _group_for(directory: str) -> int | None:
    """The group that files get in this directory, where it says so itself (setgid): they are linked, and not made, there."""
    found = os.stat(directory)
    return found.st_gid if found.st_mode & stat.S_ISGID else None


def _names(final: str) -> Iterator[str]:
    yield final
    for number in range(1, _SUFFIXES + 1):
        yield f"{final}.{number}"


def _md5_of(path: str, size: int, cancel: threading.Event | None = None) -> bytes | None:
    """None where it was given up.

    Args:
        size: bytes that it should have: each system call hands the interpreter's lock over and may wait to have it back, and with
            this a small file is read by one. A wrong one costs another.
    """
    md5 = hashlib.md5(usedforsecurity=False)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        left = size
        while cancel is None or not cancel.is_set():
            # One byte more than there should be: where it does not come, this was the end.
            asked = left + 1 if 0 <= left < _READ else _READ
            chunk = os.read(descriptor, asked)
            md5.update(chunk)
            left -= len(chunk)
            if not chunk or (left == 0 and len(chunk) < asked):
                return md5.digest()
    finally:
        os.close(descriptor)
    return None


def _has_md5(path: str, size: int, md5: bytes) -> bool:
    """Whether a file of the archive has this md5; one that cannot be read has not."""
    try:
        return _md5_of(path, size) == md5
    except OSError:
        return False


def _refusal(final: str, error: OSError) -> LayoutRefused | DestinationUnavailable:
    """What an error at one final path means.

    Raises:
        OSError: it means the whole disk.
    """
    match error.errno:
        case errno.ENAMETOOLONG:
            return LayoutRefused(Reason.BAD_NAME, f"{final}: {error.strerror}")
        case errno.ENOSPC | errno.EDQUOT | errno.EROFS:
            raise error
        case _:
            trouble = DestinationUnavailable(
                Reason.PLACE_UNUSABLE,
                f"the file cannot be placed: {error}",
                "who owns that directory, and what is in its way?",
            )
            trouble.__cause__ = error
            return trouble


def _prune(directory: os.PathLike[str], before: float, *, whole: bool = False) -> bool:
    """Removes what lies below, but for parts of files that are younger; returns whether the directory is empty now.

    Args:
        whole: keeps young whole files as well.
    """
    empty = True
    for entry in _entries(directory):
        if entry.is_dir(follow_symlinks=False):
            if _prune(entry, before, whole=whole or entry.name == PARTIAL):
                os.rmdir(entry.path)
            else:
                empty = False
        elif whole and entry.stat(follow_symlinks=False).st_mtime >= before:
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
    except PermissionError:  # a directory that came with its source's mode
        os.chmod(directory, 0o700)
        with os.scandir(directory) as entries:
            return list(entries)


@contextmanager
def _as_destination_trouble() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _destination_trouble(error) from error


def _destination_trouble(error: OSError) -> DestinationUnavailable:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DestinationUnavailable(
        Reason.NO_SPACE if full else Reason.DESTINATION_UNWRITABLE,
        f"the archive's disk: {error}",
        "make room" if full else "is it mounted, writable for this user, and healthy?",
    )
