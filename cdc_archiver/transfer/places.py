"""The directories of the archive in which files get their names: made, synced, and what stands in their way."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from cdc_archiver.errors import DestinationUnavailable, LayoutRefused
from cdc_archiver.model import Reason
from cdc_archiver.settings.types import FileModes
from cdc_archiver.transfer import disk_sync
from cdc_archiver.transfer.disk_errors import os_errors_as_unavailable, placement_failure
from cdc_archiver.transfer.other_disks import OtherDisks, PathNotes, disk_of
from cdc_archiver.transfer.staging import NOTES, Archive

OTHER_DISKS: Final = os.path.join(NOTES, "other-disks")
"""The directory in staging that notes which directories of the archive were seen on other disks."""

_log = structlog.get_logger(__name__)


class Places:
    """The directories of the archive, those on other disks than data_dir included.

    Args:
        modes: of archived directories.
    """

    def __init__(self, archive: Archive, modes: FileModes) -> None:
        self.archive = archive
        self._modes = modes
        self._disks = OtherDisks(archive.data_dir, PathNotes(archive.incoming / OTHER_DISKS))
        self._obstacles: dict[str, DestinationUnavailable | None] = {}

    # Disks.

    def other_disk(self, path: str) -> str | None:
        """The directory above a path that is known to be on another disk than data_dir; absolute."""
        return self._disks.known_above(path)

    def disk_is_missing(self, directory: str) -> bool:
        """Whether a directory was on another disk before, and is not now."""
        try:
            self._disks.require_mounted(directory)
        except DestinationUnavailable:
            return True
        return False

    def noted(self) -> list[str]:
        """The directories that were seen on other disks; absolute."""
        return self._disks.noted()

    def is_on_other_disk(self, directory: str) -> bool:
        """Whether a directory exists on another disk than data_dir now."""
        with suppress(OSError):
            return disk_of(directory) != disk_of(self.archive.data_dir)
        return False

    def require_disk(self, directory: str) -> None:
        """Checks that a directory's disk is mounted, see :meth:`OtherDisks.require_mounted`."""
        self._disks.require_mounted(directory)

    def look_at_disk(self, directory: str, descriptor: int | None = None) -> str | None:
        """Finds out whether a directory is on another disk, see :meth:`OtherDisks.look_at`."""
        return self._disks.look_at(directory, descriptor)

    # Directories.

    def obstacle(self, final: str) -> DestinationUnavailable | None:
        """Why no file can be placed there now, as far as that can be seen before a file is fetched.

        Raises:
            DestinationUnavailable: nothing can be placed on data_dir's disk.
        """
        directory = os.path.dirname(final)
        if directory not in self._obstacles:
            try:
                self._obstacles[directory] = self._obstacle_above(Path(directory))
            except OSError as error:
                with os_errors_as_unavailable():
                    failure = placement_failure(final, error, other_disk=self.other_disk(directory))
                self._obstacles[directory] = None if isinstance(failure, LayoutRefused) else failure
        return self._obstacles[directory]

    def _obstacle_above(self, directory: Path) -> DestinationUnavailable | None:
        try:
            self._disks.require_mounted(str(directory))
            if (disk := self.other_disk(str(directory))) is not None:
                self.archive.require_free(Path(disk))
        except DestinationUnavailable as error:
            return DestinationUnavailable(Reason.PLACE_UNUSABLE, error.message, error.hint)
        try:
            there, _ = self._existing(directory)
            descriptor = os.open(there, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # another program is removing it: placement makes it again
            return None
        try:
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=descriptor):
                read_only = os.fstatvfs(descriptor).f_flag & os.ST_RDONLY
                number = errno.EROFS if read_only else errno.EACCES
                raise OSError(number, os.strerror(number), str(there))
        finally:
            os.close(descriptor)
        return None

    def make(self, directory: Path, touched: set[str]) -> None:
        """Makes a directory of the archive, and those above it.

        Args:
            touched: receives the directories to be synced.

        Raises:
            DestinationUnavailable: data_dir is not mounted.
            OSError: something is in the way.
        """
        _, missing = self._existing(directory)
        for new in reversed(missing):
            try:
                new.mkdir(self._modes.directories)
                self._set_mode(new)
            except FileExistsError:  # another worker has created it meanwhile
                if not os.path.isdir(new) and os.lstat(new):
                    raise
            touched.update((str(new), str(new.parent)))

    def sync(self, directories: Iterable[str]) -> dict[str, OSError]:
        """Syncs the names in directories.

        Returns:
            The errors of other disks than data_dir's.

        Raises:
            DestinationUnavailable: data_dir is not mounted.
            OSError: data_dir's disk cannot be synced.
        """
        by_disk: dict[str | None, list[str]] = {}
        for directory in directories:
            by_disk.setdefault(self.other_disk(directory), []).append(directory)
        errors: dict[str, OSError] = {}
        for disk, theirs in by_disk.items():
            try:
                if not disk_sync.sync_directories(theirs):
                    self.archive.require_mounted()  # else another program removed them, and their files
            except OSError as error:
                if disk is None:
                    raise
                errors[disk] = error
        return errors

    def is_trusted(self, directory: Path) -> bool:
        """Whether no directory from data_dir to this one is another user's link; own or root's links may span several disks."""
        for each in (directory, *directory.parents):
            if each == self.archive.data_dir:
                return True
            found = os.lstat(each)
            if stat.S_ISLNK(found.st_mode) and found.st_uid not in (0, os.geteuid()):
                return False
        return False

    def _existing(self, directory: Path) -> tuple[Path, list[Path]]:
        """The deepest directory on the way that exists, and those that are missing, the deepest first."""
        missing: list[Path] = []
        there = directory
        while not os.path.isdir(there):
            if there == self.archive.data_dir:
                raise self.archive.not_mounted("data_dir itself is gone")
            with suppress(FileNotFoundError, NotADirectoryError):
                if not stat.S_ISDIR(os.lstat(there).st_mode) and not os.path.isdir(there):
                    raise FileExistsError(errno.EEXIST, "a file or a dangling link is in the way", str(there))
            missing.append(there)
            there = there.parent
        if not self.is_trusted(there):
            raise OSError(
                errno.ELOOP,
                f"a directory above {directory} is a link that belongs to another user and may lead anywhere",
            )
        return there, missing

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
