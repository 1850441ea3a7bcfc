"""The archive marker: a random id by which an archive is known, so that neither the bare directory that its disk is mounted on nor
another archive is taken for it.

It lies where files are staged next to data_dir; else in an extended attribute of data_dir; else, where there are none, in the state
directory, for one directory by its inode. Device numbers are no identity: they change at a reboot.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cdc_archiver.transfer import disk_sync

MARKER: Final = "archive-marker"
"""The marker's file in a staging place."""
FORMER_MARKER: Final = ".cdc_archiver"
"""The marker of 0.1.0, a file in data_dir without an id."""
ATTRIBUTE: Final = "user.cdc_archiver"
_NO_ATTRIBUTE: Final = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT})
_NO_ATTRIBUTES: Final = frozenset({errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EDQUOT})
"""setxattr's errors for a file system without attributes, or a directory of another owner."""


@dataclass(frozen=True, slots=True)
class ArchiveMarker:
    """A marker that was found.

    Attributes:
        id: random, of the archive; empty where the marker cannot be read.
        inode: data_dir's when the marker was made.
        where: for a person: the file, or the attribute.
        path: the marker's file; None for an attribute.
    """

    id: str
    inode: int
    where: str
    path: Path | None = None


def find_marker(data_dir: Path, sibling: Path, places: Iterable[Path]) -> ArchiveMarker | None:
    """The marker of an archive, wherever it is.

    Args:
        sibling: the staging place next to data_dir.
        places: the archive's places elsewhere, where a marker counts for this very directory only.

    Raises:
        OSError: one cannot be looked at, which does not say that it is gone.
    """
    found = _in_file(sibling / MARKER) or _in_attribute(data_dir)
    return found or next(filter(None, (_in_place(data_dir, place / MARKER) for place in places)), None)


def make_marker(data_dir: Path, place: Path, *, is_sibling: bool) -> ArchiveMarker:
    """Makes the marker of a new archive, durably.

    Args:
        place: the staging place in use.
        is_sibling: whether that is next to data_dir, on its disk.

    Raises:
        OSError: it cannot be written.
    """
    return write_marker(data_dir, place, secrets.token_hex(16), is_sibling=is_sibling)


def write_marker(data_dir: Path, place: Path, id_: str, *, is_sibling: bool) -> ArchiveMarker:
    """Like :func:`make_marker`, with an id that is known."""
    inode = os.stat(data_dir).st_ino
    content: dict[str, object] = {"id": id_, "inode": inode}
    if not is_sibling:
        try:
            os.setxattr(data_dir, ATTRIBUTE, json.dumps(content).encode())
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTES:
                raise
            content["file_system"] = os.statvfs(data_dir).f_fsid
        else:
            disk_sync.sync_directories({data_dir})
            return ArchiveMarker(id_, inode, _attribute_of(data_dir))
    path = place / MARKER
    new = path.with_name(f".{MARKER}-{secrets.token_hex(4)}")
    with open(new, "x", encoding="ascii") as file:
        json.dump({**content, "about": "cdc_archiver writes to this archive only while it finds this file"}, file)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    new.rename(path)
    disk_sync.sync_directories({place, place.parent})
    return ArchiveMarker(id_, inode, str(path), path)


def is_there(marker: ArchiveMarker, data_dir: Path) -> bool:
    """Whether a marker that was found is still there.

    Raises:
        OSError: it cannot be looked at.
    """
    if marker.path is None:
        return _in_attribute(data_dir) is not None
    try:
        os.stat(marker.path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _in_file(path: Path) -> ArchiveMarker | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with open(descriptor, "rb") as file:
        return _parsed(file.read(4096), str(path), path)


def _in_attribute(data_dir: Path) -> ArchiveMarker | None:
    try:
        content = os.getxattr(data_dir, ATTRIBUTE)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTE:
            return None
        raise
    return _parsed(content, _attribute_of(data_dir), None)


def _in_place(data_dir: Path, path: Path) -> ArchiveMarker | None:
    found = None
    with suppress(PermissionError):  # the service's, and this is another user's command
        found = _in_file(path)
    if found is None:
        return None
    with suppress(OSError):
        content = json.loads(path.read_bytes())
        there = content.get("file_system"), os.statvfs(data_dir).f_fsid
        if found.inode == os.stat(data_dir).st_ino and (0 in there or None in there or there[0] == there[1]):
            return found
    return None


def _parsed(content: bytes, where: str, path: Path | None) -> ArchiveMarker:
    """A marker's content; without an id where it cannot be read."""
    try:
        values = json.loads(content)
        return ArchiveMarker(str(values["id"]), int(values["inode"]), where, path)
    except (ValueError, KeyError, TypeError):
        return ArchiveMarker("", 0, where, path)


def _attribute_of(data_dir: Path) -> str:
    return f"the attribute {ATTRIBUTE} of {data_dir}"
