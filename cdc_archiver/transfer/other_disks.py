"""Directories of the archive on another disk than data_dir: a mount, or a link that leads to one.

Files cannot be linked there, so they are copied. Each such directory is noted durably: once its disk is not mounted, the bare
mount point must not be taken for it.
"""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from cdc_archiver.errors import DestinationUnavailable
from cdc_archiver.model import Reason
from cdc_archiver.transfer import disk_sync


class Disk(NamedTuple):
    """A mounted file system, as this process sees it now. Both numbers change at a reboot, and the second at each mount."""

    device: int
    mount: int


def disk_of(directory: str | int | os.PathLike[str]) -> Disk:
    """The disk of a directory, given by its path or a descriptor.

    Raises:
        OSError: there is none: missing, or a dangling link.
    """
    if isinstance(directory, int):
        with open(f"/proc/self/fdinfo/{directory}") as lines:
            mount = next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))
        return Disk(os.fstat(directory).st_dev, mount)
    # The dot makes an automounter mount it.
    descriptor = os.open(os.path.join(directory, "."), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return disk_of(descriptor)
    finally:
        os.close(descriptor)


class PathNotes:
    """Paths below data_dir that outlive the process: an empty directory for each, in a directory of staging."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def paths(self) -> list[str]:
        """The noted paths, relative to data_dir, sorted."""
        try:
            return sorted(os.fsdecode(unquote_to_bytes(name)) for name in os.listdir(self._directory))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def note_of(self, path: str) -> Path:
        """The directory that notes a path."""
        return self._directory / quote(os.fsencode(path), safe="")

    def add(self, path: str) -> None:
        """Notes a path, durably.

        Raises:
            OSError: that is impossible.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.note_of(path).mkdir(mode=0o700)
        disk_sync.sync_directories({self._directory, self._directory.parent})

    def remove(self, path: str) -> None:
        """Forgets a path."""
        with suppress(FileNotFoundError):
            self.note_of(path).rmdir()


class OtherDisks:
    """The directories below data_dir that were seen on another disk.

    Args:
        data_dir: the archive's directory.
        notes: which they are.
    """

    def __init__(self, data_dir: Path, notes: PathNotes) -> None:
        self._data_dir = os.fspath(data_dir)
        self._notes = notes
        self._known = notes.paths()

    def noted(self) -> list[str]:
        """The noted directories; absolute."""
        return [os.path.join(self._data_dir, path) for path in self._known]

    def known_above(self, directory: str) -> str | None:
        """The noted directory that a directory is, or lies in; absolute."""
        for path in self._known:
            known = os.path.join(self._data_dir, path)
            if directory == known or directory.startswith(f"{known}/"):
                return known
        return None

    def require_mounted(self, directory: str) -> None:
        """Checks that a directory is on another disk still, where it was before.

        Raises:
            DestinationUnavailable: it is on data_dir's own disk, or nowhere.
        """
        known = self.known_above(directory)
        if known is None:
            return
        with suppress(OSError):
            if disk_of(known) != disk_of(self._data_dir):
                return
        raise self._not_mounted(known)

    def look_at(self, directory: str, descriptor: int | None = None) -> str | None:
        """Finds out whether an existing directory is on another disk, and notes that.

        Args:
            descriptor: of the directory, where it is open.

        Returns:
            The topmost directory below data_dir that is on another disk; None where none is.

        Raises:
            DestinationUnavailable: it is on data_dir's own disk, and was on another before.
            OSError: it is gone, or it cannot be noted.
        """
        own = disk_of(self._data_dir)
        known = self.known_above(directory)
        if disk_of(directory if descriptor is None else descriptor) == own:
            if known is not None:
                raise self._not_mounted(known)
            return None
        if known is not None:
            return known
        path = self._data_dir
        for part in os.path.relpath(directory, self._data_dir).split(os.sep):
            path = os.path.join(path, part)
            if disk_of(path) != own:
                relative = os.path.relpath(path, self._data_dir)
                self._notes.add(relative)
                self._known.append(relative)
                return path
        return None

    def _not_mounted(self, known: str) -> DestinationUnavailable:
        note = self._notes.note_of(os.path.relpath(known, self._data_dir))
        return DestinationUnavailable(
            Reason.PLACE_UNUSABLE,
            f"{known} was on a disk of its own, which is not mounted there now",
            f"mount {shlex.quote(known)}; if its files lie in data_dir itself now: rmdir {shlex.quote(str(note))}",
        )
