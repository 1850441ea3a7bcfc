"""The archive's directory and its staging: is its disk mounted and writable, has it room, and where do files arrive."""

from __future__ import annotations

import os
import shlex
import stat
import time
from pathlib import Path
from typing import Final

from cdc_archiver.errors import DestinationUnavailable, Misconfigured
from cdc_archiver.model import Reason
from cdc_archiver.text import format_size
from cdc_archiver.transfer.disk_errors import os_errors_as_unavailable
from cdc_archiver.transfer.rsync import PARTIAL

INCOMING: Final = ".incoming"
MARKER: Final = ".cdc_archiver"
"""Archive marker: a file in data_dir that tells the archive from the empty directory that its disk is mounted on."""

_MARKER_TEXT: Final = (
    "This file shows cdc_archiver that the archive's disk is mounted. Without it nothing is written here.\n"
)
_KEEP_PARTIAL_SECONDS: Final = 86400.0


class Archive:
    """data_dir. Safe to share between threads.

    Args:
        data_dir: the archive's directory, absolute.
        min_free: bytes of free space below which no file is accepted.
    """

    def __init__(self, data_dir: Path, min_free: int) -> None:
        self.data_dir = data_dir
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
            raise self.not_mounted("the history has archived files there")
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
        self.require_mounted()
        free = self.free_bytes()
        if free < self._min_free:
            raise DestinationUnavailable(
                Reason.NO_SPACE,
                f"{self.data_dir} has {format_size(free)} free, less than --min-free ({format_size(self._min_free)})",
                "free space on that disk, or lower --min-free",
            )

    def require_mounted(self) -> None:
        """Checks that the marker is there, which existed before.

        Raises:
            DestinationUnavailable: the disk is not mounted.
        """
        if not os.path.exists(self._marker):
            raise self.not_mounted("it existed before")

    def staging_directory(self, source: str, worker: str) -> Path:
        """The staging directory of one worker, created where it is missing.

        Args:
            source: the name of the source's directory in staging.

        Raises:
            DestinationUnavailable: it cannot be created.
        """
        self.require_mounted()
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

    @property
    def _marker(self) -> Path:
        return self.data_dir / MARKER

    def not_mounted(self, why: str) -> DestinationUnavailable:
        """The error that the archive's disk is not mounted.

        Args:
            why: what shows it, as the end of a sentence.
        """
        return DestinationUnavailable(
            Reason.DESTINATION_MISSING,
            f"{self._marker} is missing, and {why}: the archive's disk is not mounted",
            f"mount the disk; if it is mounted and only this file is gone: touch {shlex.quote(str(self._marker))}",
        )


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
