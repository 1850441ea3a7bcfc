"""The archive's directory and its staging: is its disk mounted and writable, has it room, and where do files arrive."""

from __future__ import annotations

import errno
import math
import os
import shlex
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from cdc_archiver.database.archives import ArchiveEntry, KnownArchive
from cdc_archiver.errors import DestinationUnavailable, Misconfigured
from cdc_archiver.model import Reason
from cdc_archiver.text import format_size
from cdc_archiver.transfer import disk_sync
from cdc_archiver.transfer.archive_marker import (
    FORMER_MARKER,
    ArchiveMarker,
    find_marker,
    is_there,
    make_marker,
    write_marker,
)
from cdc_archiver.transfer.disk_errors import os_errors_as_unavailable
from cdc_archiver.transfer.layout import timecode_named
from cdc_archiver.transfer.staging_claims import StagingClaims, entries_of, prune
from cdc_archiver.transfer.staging_place import (
    StagingPlace,
    choose_place,
    place_below,
    sibling_of,
    sibling_staging,
    state_directory,
)

INCOMING: Final = ".incoming"
"""A hidden directory, next to an action's or, by 0.1.0, in data_dir."""
NOTES: Final = ".notes"
"""A directory in staging for what is to outlive a process, such as which directories of the archive are on other disks."""
_KEEP_PARTIAL_SECONDS: Final = 86400.0
_STALE: Final = frozenset({errno.ENOTCONN, errno.EIO, errno.ESTALE, errno.ENODEV})
"""Errors of a mount whose server or device is gone: it has to be unmounted before it can be mounted."""

_log = structlog.get_logger(__name__)


class Archive:
    """data_dir and the place for staging. Safe to share between threads.

    Args:
        data_dir: the archive's directory, absolute.
        min_free: bytes of free space below which no file is accepted.
        staging_dir: directory for staging; None: next to data_dir, else in the state directory.
        state_dir: the state directory; None: the usual one.
    """

    def __init__(
        self, data_dir: Path, min_free: int, *, staging_dir: Path | None = None, state_dir: Path | None = None
    ) -> None:
        self.data_dir = data_dir
        self._min_free = min_free
        self._staging_dir = staging_dir
        self._state_dir = state_dir
        self._known = KnownArchive()
        self._seen_inode = 0
        self._own_ids: set[str] = set()
        self._lock = threading.RLock()
        self._claims = StagingClaims()
        self.place: StagingPlace | None = None
        """The place for staging; None until it is known."""
        self.marker: ArchiveMarker | None = None
        """The archive's marker; None until it is known."""
        self.last_free_bytes: int | None = None
        self.last_free_inodes: int | None = None
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

    def expect(self, known: KnownArchive) -> None:
        """Takes over what the database knows; :meth:`require_ready` compares it with the disk."""
        with self._lock:
            if known != self._known:
                self._known = known
                self.marker = None

    def prepare(self, known: KnownArchive | None = None, *, renew: bool = False) -> None:
        """Finds marker and place for staging, or makes those of a new archive: at a start, and whenever the disk comes back.

        Args:
            known: what the database knows; None: as before.
            renew: whether a marker that cannot be read is replaced.

        Raises:
            DestinationUnavailable: data_dir cannot be written to, its disk is not mounted, or another archive is there.
        """
        with self._lock:
            if known is not None:
                self._known = known
            self.marker = None
            inode = self._inode()
            marker = self.recognise(renew=renew)
            place = choose_place(self.data_dir, self._staging_dir, state_directory(self._state_dir))
            with os_errors_as_unavailable():
                if marker is None:
                    marker = make_marker(self.data_dir, place.root, is_sibling=place.is_sibling)
            self._claims.move_to(place.staging)
            self.place, self.marker, self._seen_inode = place, marker, inode
            self._own_ids = {marker.id}

    def recognise(self, *, renew: bool = False) -> ArchiveMarker | None:
        """The marker, if this is the archive that the database knows; None for a new archive.

        Raises:
            DestinationUnavailable: it is not, or that cannot be seen.
        """
        inode = self._inode()
        with self._looking():
            bases = filter(None, (self._staging_dir, state_directory(self._state_dir)))
            marker = find_marker(
                self.data_dir, sibling_of(self.data_dir), [place_below(base, self.data_dir) for base in bases]
            )
            if marker is not None and not marker.id:
                if renew:
                    return None
                raise DestinationUnavailable(
                    Reason.DESTINATION_MISSING,
                    f"{self.data_dir} has a marker that cannot be read ({marker.where}), so it may be any archive",
                    "cdc-archiver mark-archive  # if this is the archive",
                )
            # Without a side table this process knows which archive it has written to.
            ids, has_files = self._known.ids or self._own_ids, self._known.has_files
            if marker is None and ids:
                raise self.not_mounted(f"the database knows an archive with the id {min(ids)}, and no marker is there")
            if marker is not None and ids - {marker.id}:
                raise DestinationUnavailable(
                    Reason.DESTINATION_MISSING,
                    f"{self.data_dir} is another archive: its id is {marker.id} ({marker.where}), and the files so far have "
                    f"gone to {min(ids - {marker.id})}",
                    "mount the right disk; or, if files shall go to this archive from now on: cdc-archiver mark-archive",
                )
            if has_files and (marker is None or marker.inode != inode) and not self._has_timecode():
                raise self.not_mounted("the database knows files there, and it has no directory of a timecode")
        return marker

    def _inode(self) -> int:
        try:
            found = os.stat(self.data_dir)
        except FileNotFoundError:
            found = None
        except OSError as error:
            if error.errno not in _STALE | {errno.EACCES, errno.ELOOP, errno.ENOTDIR}:
                raise
            with self._looking():
                raise
        if found is None or not stat.S_ISDIR(found.st_mode):
            raise DestinationUnavailable(
                Reason.DESTINATION_MISSING,
                f"data_dir {self.data_dir} does not exist, or cannot be entered",
                f"mount it, or create it: mkdir -p {shlex.quote(str(self.data_dir))}",
            )
        return found.st_ino

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """A block that looks at marker and data_dir: what cannot be looked at is not gone."""
        try:
            yield
        except OSError as error:
            quoted = shlex.quote(str(self.data_dir))
            stale = error.errno in _STALE
            raise DestinationUnavailable(
                Reason.DESTINATION_UNWRITABLE,
                f"data_dir {self.data_dir} or its marker cannot be looked at: {error.strerror} "
                f"({errno.errorcode.get(error.errno or 0, '?')})",
                f"umount -l {quoted} && mount {quoted}"
                if stale
                else f"namei -l {quoted}  # shows which directory is closed",
            ) from error

    def _has_timecode(self) -> bool:
        with os.scandir(self.data_dir) as entries:
            return any(timecode_named(entry.name) is not None for entry in entries)

    def has_former_marker(self) -> bool:
        """Whether data_dir has the marker of 0.1.0."""
        return os.path.lexists(self.data_dir / FORMER_MARKER)

    @property
    def incoming(self) -> Path:
        """The staging directory; before it is known, the one next to data_dir."""
        return self.place.staging if self.place else sibling_staging(self.data_dir)

    @property
    def links(self) -> bool:
        """Whether files in staging can be linked into data_dir."""
        return self.place.links if self.place else True

    def renew_marker(self) -> None:
        """Writes the marker anew, with its id, for data_dir as it is now.

        Raises:
            DestinationUnavailable: it cannot be written.
        """
        assert self.marker is not None
        assert self.place is not None
        with os_errors_as_unavailable():
            self.marker = write_marker(self.data_dir, self.place.root, self.marker.id, is_sibling=self.place.is_sibling)

    def as_entry(self) -> ArchiveEntry:
        """The archive, as the database shall know it."""
        assert self.marker is not None
        return ArchiveEntry(self.marker.id, str(self.data_dir), self._seen_inode, str(self.incoming))

    def has_former_layout(self) -> bool:
        """Whether data_dir has what 0.1.0 kept there."""
        return any(os.path.lexists(self.data_dir / name) for name in (FORMER_MARKER, INCOMING))

    def remove_former_layout(self, sources: Sequence[str]) -> None:
        """Removes what 0.1.0 kept in data_dir, the marker last; the new marker is there already.

        Args:
            sources: whose directories in staging are in use by nobody else; others' are removed when they are a day old.
        """
        incoming, before = self.data_dir / INCOMING, time.time() - _KEEP_PARTIAL_SECONDS
        with os_errors_as_unavailable(), suppress(FileNotFoundError):
            for directory in entries_of(incoming) if not incoming.is_symlink() else ():
                if directory.is_dir(follow_symlinks=False):
                    if prune(directory, before if directory.name not in sources else math.inf, keep_young_files=True):
                        os.rmdir(directory.path)
                elif directory.stat(follow_symlinks=False).st_mtime < before:
                    os.unlink(directory.path)
            try:
                incoming.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                _log.warning("former_staging_stays", path=str(incoming), detail=str(error))
                return
            (self.data_dir / FORMER_MARKER).unlink()
            disk_sync.sync_directories({self.data_dir})
            _log.info("archive_moved", marker=self.marker.where if self.marker else "", staging=str(self.incoming))

    def free_bytes(self) -> int:
        """Free space of data_dir that this user can write, in bytes.

        Raises:
            DestinationUnavailable: it cannot be read.
        """
        with os_errors_as_unavailable():
            found = os.statvfs(self.data_dir)
        self.last_free_bytes = found.f_bavail * found.f_frsize
        self.last_free_inodes = found.f_favail if found.f_files else None  # btrfs has no fixed number
        return self.last_free_bytes

    def require_ready(self) -> None:
        """Checks, before anything is written, that the disk is mounted and has enough free space.

        Raises:
            DestinationUnavailable: not mounted, or too full.
        """
        if self.marker is None:
            self.prepare()
        self.require_mounted()
        free = self.free_bytes()
        if self.last_free_inodes == 0:
            raise DestinationUnavailable(
                Reason.NO_SPACE,
                f"the file system of {self.data_dir} has no free inodes, and {format_size(free)} of space",
                f"df -i {shlex.quote(str(self.data_dir))}  # delete files there, or make it anew with more inodes",
            )
        self._require_free(self.data_dir, free)
        self.require_free(self.incoming)

    def require_free(self, directory: Path) -> None:
        """Checks that a directory's disk has enough free space: each disk that a batch writes to.

        Raises:
            DestinationUnavailable: it is too full, or that cannot be read.
        """
        self._require_free(directory, _free_bytes(directory))

    def _require_free(self, directory: Path, free: int) -> None:
        if free < self._min_free:
            raise DestinationUnavailable(
                Reason.NO_SPACE,
                f"{directory} has {format_size(free)} free, less than --min-free ({format_size(self._min_free)})",
                "make room on that disk; --min-free is the guard that keeps it from being full",
            )

    def require_mounted(self) -> None:
        """Checks that data_dir and its marker are those that were found.

        Raises:
            DestinationUnavailable: the disk is not mounted, or another one is.
        """
        marker = self.marker
        if marker is None:
            raise self.not_mounted("its marker has not been seen")
        with self._looking():
            same = self._inode() == self._seen_inode and is_there(marker, self.data_dir)
        if not same:
            self.marker = None
            raise self.not_mounted(f"its marker ({marker.where}) was there before")

    def staging_directory(self, source: str, worker: str) -> Path:
        """The staging directory of one worker, created where it is missing.

        Args:
            source: the name of the source's directory in staging.

        Raises:
            DestinationUnavailable: it cannot be created.
        """
        self.require_mounted()
        with os_errors_as_unavailable():
            directory = self._claims.claim(self.incoming, source) / worker
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory

    def release_staging(self, source: str) -> None:
        """Lets another process use a source's directory in staging: none of its copies is under way."""
        self._claims.release(source)

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
        if self.place is None:
            return
        with os_errors_as_unavailable():
            directory = self._claims.claim(self.incoming, source)
            prune(directory.joinpath(*worker), time.time() - _KEEP_PARTIAL_SECONDS)

    def clear_abandoned(self) -> None:
        """Removes files in staging that are older than a day: those of sources that are no longer configured.

        Raises:
            DestinationUnavailable: it cannot be removed.
        """
        if self.place is None:
            return
        before = time.time() - _KEEP_PARTIAL_SECONDS
        with os_errors_as_unavailable():
            for directory in entries_of(self.incoming):
                if directory.name != NOTES and directory.is_dir(follow_symlinks=False):
                    self._claims.prune_unclaimed(Path(directory.path), before)

    def not_mounted(self, why: str) -> DestinationUnavailable:
        """The error that the archive's disk is not mounted.

        Args:
            why: what shows it, as a clause.
        """
        return DestinationUnavailable(
            Reason.DESTINATION_MISSING,
            f"{self.data_dir} is not the archive: {why}: the disk is not mounted",
            f"mount {shlex.quote(str(self.data_dir))}  # or, if this is the archive, new or restored: cdc-archiver mark-archive",
        )


def _free_bytes(directory: Path) -> int:
    with os_errors_as_unavailable():
        found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize
