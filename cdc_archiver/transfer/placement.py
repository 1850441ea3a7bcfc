"""Verifies, syncs, places and adopts the archive's files.

The order makes a crash harmless at every step: sync the staged data, link it to its final name, sync the directories, and only
then update the row. A link never overwrites and is atomic, so no final path ever holds part of a file. Where links from staging
do not reach, a complete and synced copy is linked.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import structlog

from cdc_archiver.errors import DestinationUnavailable, LayoutRefused
from cdc_archiver.model import Reason
from cdc_archiver.settings.types import FileModes
from cdc_archiver.transfer import disk_sync
from cdc_archiver.transfer.disk_errors import os_errors_as_unavailable, placement_failure
from cdc_archiver.transfer.durable_copy import DurableCopy, can_link, clear_hidden
from cdc_archiver.transfer.other_disks import PathNotes, disk_of
from cdc_archiver.transfer.places import Places
from cdc_archiver.transfer.staging import INCOMING, NOTES, Archive

_NO_SUCH_GROUP: Final = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP})
"""chown's errors for a group that this user is not in, that the user namespace does not map, or on a disk without groups."""
_MAX_SUFFIX: Final = 9999
_PLACE_TRIES: Final = 20
"""How many times a file's directory is made again where another program removes it before the file is linked."""
_READ_BYTES: Final = 1 << 20
_COPIES_AT_ONCE: Final = 32
"""Copies that are synced together: two open descriptors each."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Staged:
    """A file in staging, to be placed.

    Attributes:
        staged: its path in staging.
        final: its path in the archive, absolute and normalised.
        md5: the expected md5.
        stat_result: status of the staged file, where it is known.
        id: of its row, or its timecode for a marker.
        stream: of a timecode marker: below its directory a copy waits for its name, since readers take what lies alongside a
            marker for one; empty for a file, which has a stream's directory of its own.
    """

    staged: str
    final: str
    md5: bytes
    stat_result: os.stat_result | None = None
    id: int = 0
    stream: str = ""


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


Placement: TypeAlias = Placed | LayoutRefused | DestinationUnavailable
"""A placed file; or why its path is impossible; or why only its directory cannot be used."""


class Placer:
    """Puts staged files into an archive: a batch's, since what it has seen of other disks is not looked at again.

    Args:
        modes: of archived files and directories.
        owner: a name that only the files' source has: ``staging_name``.
        links: whether files in staging are linked into data_dir, or copied; None: as their places allow.
    """

    def __init__(self, archive: Archive, modes: FileModes, *, owner: str = "", links: bool | None = None) -> None:
        self._archive = archive
        self._owner = owner
        self._links = archive.links if links is None else links
        self.places = Places(archive, modes)
        self._copies = PathNotes(archive.incoming / NOTES / f"copies-{owner}")

    def find(self, final: str, md5: bytes) -> Placed | None:
        """The first file along ``name``, ``name.1``, ``name.2`` … that has this md5, made durable; None if none has.

        Raises:
            DestinationUnavailable: the disk cannot be synced.
        """
        directory = os.path.dirname(final)
        if self.places.disk_is_missing(directory):
            return None
        for candidate in _candidate_paths(final):
            try:
                found = os.lstat(candidate)
                usable = (
                    stat.S_ISREG(found.st_mode)
                    and self.places.is_trusted(Path(directory))
                    and _has_md5(candidate, found.st_size, md5)
                )
            except OSError:  # missing; or placement will report an error of the name or the directory
                return None
            if usable:
                with os_errors_as_unavailable(), suppress(FileNotFoundError):  # another program has just removed it
                    try:
                        disk_sync.sync_file(candidate)
                        failed = bool(self.places.sync({directory}))
                    except OSError:
                        if self.places.other_disk(directory) is None:
                            raise
                        failed = True
                    # Placement will report an error of another disk, as one of this file alone.
                    return None if failed else Placed(candidate, found.st_size, adopted=True)
        return None

    def verify(self, file: Staged, cancel: threading.Event) -> bool:
        """Compares the md5 of a staged file with the md5 received; a copy does so itself.

        Args:
            cancel: set it to give up: a large file takes minutes.

        Returns:
            Whether the file was read to its end.

        Raises:
            DestinationUnavailable: the md5 differs: this machine changed the file.
        """
        if not self._links:
            return not cancel.is_set()
        with os_errors_as_unavailable():
            seen = _md5_of(file.staged, file.stat_result.st_size if file.stat_result else _READ_BYTES, cancel)
        if seen is not None and seen != file.md5:
            raise DestinationUnavailable(
                Reason.CORRUPTED,
                f"{file.staged} arrived with md5 {file.md5.hex()} but this machine's disk returns {seen.hex()}",
                "check the storage node's memory and disks",
            )
        return seen is not None

    def place(self, files: Sequence[Staged], cancel: threading.Event | None = None) -> list[Placement]:
        """Places staged files: syncs them and links them to their final paths, or links durable copies of them.

        Args:
            cancel: set it to give up: the copy of a large file takes minutes.

        Returns:
            For each file in turn what became of it.

        Raises:
            DestinationUnavailable: the disk cannot be written to; the next try adopts files that are linked already.
        """
        self._archive.require_mounted()
        results: dict[int, Placement] = {}
        touched: set[str] = set()
        with os_errors_as_unavailable():
            self._link_files(files, results, touched)
            to_copy = [number for number in range(len(files)) if number not in results]
            for start in range(0, len(to_copy), _COPIES_AT_ONCE):
                chunk = {number: files[number] for number in to_copy[start : start + _COPIES_AT_ONCE]}
                self._copy_files(chunk, results, touched, cancel or threading.Event())
            for disk, error in self.places.sync(touched).items():
                for number, file in enumerate(files):
                    if self.places.other_disk(file.final) == disk:
                        results[number] = placement_failure(file.final, error, other_disk=disk)
            for staged in {file.staged for file in files}:  # two rows may share one
                with suppress(FileNotFoundError):
                    os.unlink(staged)
        return [results[number] for number in range(len(files))]

    # By links from staging.

    def _link_files(self, files: Sequence[Staged], results: dict[int, Placement], touched: set[str]) -> None:
        """Links the files that links reach; the others have no result afterwards.

        Args:
            touched: receives the directories to be synced.
        """
        linkable = {
            number: file
            for number, file in enumerate(files)
            if self._links and self.places.other_disk(file.final) is None
        }
        disk_sync.sync_files([file.staged for file in linkable.values()])
        groups: dict[str, int | None] = {}
        for number, file in linkable.items():
            try:
                results[number] = self._link_file(file, groups, touched)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    self._require_links(file.final)
                else:
                    results[number] = placement_failure(file.final, error)

    def _link_file(self, file: Staged, groups: dict[str, int | None], touched: set[str]) -> Placed:
        """Links a file in its directory, which another program may remove at any moment: then it is made again.

        Args:
            groups: of each directory that is known to exist, the group that it prescribes.
            touched: receives the directories to be synced.
        """
        directory = os.path.dirname(file.final)
        for tries_left in reversed(range(_PLACE_TRIES)):
            try:
                if directory not in groups:
                    self.places.make(Path(directory), touched)
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

    def _link(self, file: Staged, group: int | None) -> Placed:
        found = file.stat_result or os.lstat(file.staged)
        if group is not None and group != found.st_gid:
            _set_group(file.staged, group)
        return _give_name(file, found.st_size, lambda name: os.link(file.staged, name, follow_symlinks=False))

    def _require_links(self, final: str) -> None:
        """A link did not reach a directory: that one is on another disk, or staging has become so.

        Raises:
            DestinationUnavailable: links no longer lead from staging into data_dir.
        """
        with suppress(FileNotFoundError):  # removed by another program: the copy makes it again, and looks
            if self.places.look_at_disk(os.path.dirname(final)) is not None:
                return
        data_dir, staging = self._archive.data_dir, self._archive.incoming
        reached = can_link(data_dir, staging)
        if reached is False or (reached is None and disk_of(data_dir) != disk_of(staging)):
            raise DestinationUnavailable(
                Reason.DESTINATION_MISSING,
                f"files in {staging} can no longer be linked into {data_dir}: one of them is on another disk than before",
                f"findmnt -T {shlex.quote(str(data_dir))} -T {shlex.quote(str(staging))}  # and mount what is missing",
            )

    # By durable copies.

    def _copy_files(
        self, files: Mapping[int, Staged], results: dict[int, Placement], touched: set[str], cancel: threading.Event
    ) -> None:
        """Copies files into their directories, syncs the copies together, then gives them their names."""
        with ExitStack() as stack:
            copies: dict[int, DurableCopy | None] = {}
            for number, file in files.items():
                try:
                    if placed := self.find(file.final, file.md5):
                        results[number] = placed
                    else:
                        copies[number] = stack.enter_context(self._new_copy(file, touched, cancel))
                except FileNotFoundError:
                    copies[number] = None
                except (OSError, DestinationUnavailable) as error:
                    results[number] = self._copy_failure(file, error)
            disk_sync.sync_descriptors([copy.descriptor for copy in copies.values() if copy])
            for number, copy in copies.items():
                try:
                    results[number] = self._name_copy(files[number], copy, touched, cancel)
                except (OSError, DestinationUnavailable) as error:
                    results[number] = self._copy_failure(files[number], error)

    def _name_copy(self, file: Staged, copy: DurableCopy | None, touched: set[str], cancel: threading.Event) -> Placed:
        """Gives a synced copy its name. If another program has removed the directory, it is made again, and so is the copy."""
        for tries_left in reversed(range(_PLACE_TRIES)):
            try:
                if copy is not None:
                    return _give_name(file, copy.size, copy.link)
                with self._new_copy(file, touched, cancel) as again:
                    disk_sync.sync_descriptors([again.descriptor])
                    return _give_name(file, again.size, again.link)
            except FileNotFoundError:
                if not tries_left or not os.path.lexists(file.staged):
                    raise
                copy = None
                self._archive.require_mounted()
        raise AssertionError("the last try raises")

    def _new_copy(self, file: Staged, touched: set[str], cancel: threading.Event) -> DurableCopy:
        """A complete copy in its directory, without a name; not synced."""
        directory = os.path.dirname(file.final)
        self.places.require_disk(directory)
        self.places.make(Path(directory), touched)
        above = self._copies_above(file)

        def use_hidden() -> None:
            self._copies.add(above)
            self.places.make(self._archive.data_dir / above, touched)

        copy = DurableCopy(
            file.staged,
            directory,
            os.path.join(self._archive.data_dir, above, INCOMING),
            f"{file.id}-{self._owner}",
            before_hidden=use_hidden,
        )
        try:
            self.places.look_at_disk(directory, copy.directory)
            group = _prescribed_group(directory)
            if group is not None and group != os.fstat(copy.descriptor).st_gid:
                _set_group(copy.descriptor, group)
            copy.fill(file.md5, cancel)
        except BaseException:
            copy.__exit__()
            raise
        touched.add(directory)
        return copy

    def _copies_above(self, file: Staged) -> str:
        """The directory that may have a hidden one for copies: of a timecode's stream, relative to data_dir."""
        parts = os.path.relpath(os.path.dirname(file.final), self._archive.data_dir).split(os.sep)
        return os.path.join(parts[0], file.stream) if file.stream else os.path.join(*parts[:2])

    def _copy_failure(self, file: Staged, error: OSError | DestinationUnavailable) -> Placement:
        """The failure of one file; raises the error where it concerns data_dir's whole disk."""
        disk = self.places.other_disk(file.final)
        if isinstance(error, OSError):
            return placement_failure(file.final, error, other_disk=disk)
        if error.reason is not Reason.DESTINATION_UNWRITABLE:
            return error
        if disk is None:
            raise error
        return DestinationUnavailable(Reason.PLACE_UNUSABLE, error.message, error.hint)

    def clear_copies(self) -> None:
        """Removes what crashed copies of this owner left in hidden directories; none is under way now."""
        for above in self._copies.paths():
            directory = os.path.join(self._archive.data_dir, above)
            if self.places.disk_is_missing(directory):
                continue
            try:
                clear_hidden(os.path.join(directory, INCOMING), f"-{self._owner}")
                self._copies.remove(above)
            except OSError as error:
                _log.warning("copies_not_cleared", path=directory, detail=str(error))


def _give_name(file: Staged, size: int, link: Callable[[str], None]) -> Placed:
    """Links a file to the first free path along ``name``, ``name.1``, ``name.2`` …, or adopts one that has its md5."""
    for candidate in _candidate_paths(file.final):
        try:
            link(candidate)
        except FileExistsError:
            there = os.lstat(candidate)
            if stat.S_ISREG(there.st_mode) and _has_md5(candidate, there.st_size, file.md5):
                disk_sync.sync_file(candidate)
                return Placed(candidate, size, adopted=True)
        else:
            return Placed(candidate, size, adopted=False)
    raise OSError(errno.ENAMETOOLONG, f"{_MAX_SUFFIX} files of that name exist already")


def _set_group(file: str | int, group: int) -> None:
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
