"""Computes the archived path of a row's file and its path on the source. Pure.

The archived path is exactly the polling agent's, because years of the archive were written that way: five digits of the
column ``timestamp``, ``pub_id``, ``<action_timestamp>_<action>``, ``plots`` or ``outputs``, the name.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
from datetime import UTC, datetime
from typing import Final

from cdc_archiver.errors import LayoutRefused
from cdc_archiver.model import OLDEST_TIMESTAMP, FileRecord, Reason
from cdc_archiver.timespec import format_time

COMPONENT_BYTES = 255
"""The longest name that Linux file systems take, in bytes."""

SUFFIX_LENGTH = 5
"""Characters reserved in the column for a ``.1`` … ``.9999`` that placement may append."""

_SURELY_FITS: Final = COMPONENT_BYTES // 4
"""Characters; each has at most four bytes."""

_NOT_NORMAL: Final = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")
"""A path component that is empty, ``.`` or ``..``."""

_TIMECODES_END: Final = datetime(2286, 11, 20, 17, 46, 40, tzinfo=UTC)
"""10^10 s since the epoch: from here on the seconds have eleven digits, and the first five repeat those of an earlier time."""

_LEVELS: Final = 5
"""Components of an archived path below data_dir."""

_TIMECODE: Final = re.compile(r"[1-9][0-9]{4}")

READERS_NAME: Final = "suprsync"
"""Readers take this directory of a timecode for markers, not for data."""


def archived_path(record: FileRecord, oldest: datetime = OLDEST_TIMESTAMP) -> str:
    """The archived path of a record, relative to data_dir.

    Args:
        oldest: the earliest ``timestamp`` that is not refused.

    Raises:
        LayoutRefused: a value that the path needs is missing, or would lead outside its directory.
    """
    name = _file_name(record)
    if record.pub_id is None:
        raise LayoutRefused(Reason.NO_PUB_ID, "the row has no pub_id")
    if record.timestamp is None:
        raise LayoutRefused(Reason.NO_TIMESTAMP, "the row has no timestamp")
    action = f"{_action_time(record, name)}_{record.action}"
    return (
        f"{_action_directory(record.timestamp, oldest, record.pub_id, action)}/"
        f"{'plots' if record.plot else 'outputs'}/{name}"
    )


def timecode_of(record: FileRecord, archived: str | None) -> int | None:
    """The timecode that a row belongs to: of its archived path where there is one, otherwise of the place that the layout gives.

    Args:
        archived: the archived path, absolute; None for a row that is not archived.

    Returns:
        None for a row that belongs to no timecode: without a ``timestamp``, with one that five digits cannot tell, or archived at a
        path of another form.
    """
    when = record.timestamp
    if when is not None and not OLDEST_TIMESTAMP <= when < _TIMECODES_END:
        return None
    if archived is not None:
        parts = archived.rsplit("/", _LEVELS)
        return timecode_named(parts[1]) if len(parts) > _LEVELS else None
    return None if when is None else timecode_named(_timecode_directory(when))


def below_data_dir(archived: str) -> str:
    """An archived path relative to its data_dir, wherever that was at the time."""
    return "/".join(archived.rsplit("/", _LEVELS)[1:])


def timecode_named(directory: str) -> int | None:
    """The timecode whose directory has this name; None if none has."""
    return int(directory) if _TIMECODE.fullmatch(directory) else None


def source_entry(record: FileRecord, root: str) -> str:
    """The record's file on its source, relative to ``root``: the name for rsync and the path below staging.

    Args:
        root: absolute directory that contains every file of this source; ``/`` for anywhere. A relative ``path`` in the row
            is relative to it.

    Raises:
        LayoutRefused: the path is empty, has a NUL or lies outside the root.
    """
    if not record.path or "\0" in record.path:
        raise LayoutRefused(Reason.BAD_PATH, f"the row's path {record.path!r} is empty or contains a NUL")
    root = _normal_root(root)
    relative = record.path.removeprefix(root)
    if relative == record.path or _NOT_NORMAL.search(relative):  # almost never
        root = root.rstrip("/") or "/"
        absolute = posixpath.normpath("/" + posixpath.join(root, record.path).lstrip("/"))
        relative = posixpath.relpath(absolute, root)
    if relative == "." or relative.split("/", 1)[0] == "..":
        message = f"the row's path {record.path!r} is not below the source root {root}"
        if ".." in record.path.split("/"):
            raise LayoutRefused(Reason.BAD_PATH, message)
        # A mistyped root would refuse every row for good: the row is left unchanged.
        raise LayoutRefused(Reason.OUTSIDE_ROOT, f"{message}: check --source-root")
    parts = relative.split("/")
    if max(map(len, parts)) > _SURELY_FITS and any(map(_is_too_long, parts)):
        raise LayoutRefused(Reason.BAD_PATH, f"the row's path has a component of more than {COMPONENT_BYTES} bytes")
    return relative


def require_fit(path: str, column_characters: int) -> None:
    """Refuses an archived path that does not fit in the row.

    Args:
        path: absolute.
        column_characters: the width of the column ``path``, in characters (VARCHAR counts characters, not bytes).

    Raises:
        LayoutRefused: too long, a numbered suffix included.
    """
    if len(path) + SUFFIX_LENGTH > column_characters:
        raise LayoutRefused(
            Reason.PATH_TOO_LONG,
            f"the archived path would have {len(path)} characters (and {SUFFIX_LENGTH} are reserved for a suffix); "
            f"the column holds {column_characters}",
        )


def _file_name(record: FileRecord) -> str:
    name = posixpath.basename(record.path)
    if name in ("", ".", "..") or "\0" in name:
        raise LayoutRefused(Reason.BAD_NAME, f"the row's path {record.path!r} does not end in a file name")
    if _is_too_long(name):
        raise LayoutRefused(Reason.BAD_NAME, f"the file name has more than {COMPONENT_BYTES} bytes")
    return name


@functools.lru_cache(maxsize=256)
def _action_directory(timestamp: datetime, oldest: datetime, pub_id: str, action: str) -> str:
    """The part of the path that the files of one action share."""
    if not oldest <= timestamp < _TIMECODES_END:
        raise LayoutRefused(
            Reason.BAD_TIMESTAMP,
            f"the row's timestamp {format_time(timestamp)} is not from {format_time(oldest)} (--oldest-timestamp) to "
            "2286-11-20 17:46:39Z: its first five digits would name a wrong time, or none",
        )
    if pub_id == READERS_NAME:
        raise LayoutRefused(Reason.BAD_PUB_ID, f"pub_id: {pub_id!r} is the directory of the timecodes' markers")
    pub_id = _directory_name(pub_id, "pub_id", Reason.BAD_PUB_ID)
    action = _directory_name(action, "action", Reason.BAD_ACTION)
    return f"{_timecode_directory(timestamp)}/{pub_id}/{action}"


def _timecode_directory(timestamp: datetime) -> str:
    return str(timestamp.timestamp())[:5]


@functools.lru_cache(maxsize=64)
def _normal_root(root: str) -> str:
    """The root, normalised and ended by a slash."""
    return posixpath.join(posixpath.normpath("/" + root.lstrip("/")), "")


def _is_too_long(name: str) -> bool:
    return len(name) > _SURELY_FITS and len(os.fsencode(name)) > COMPONENT_BYTES


def _directory_name(value: str, column: str, reason: Reason) -> str:
    if value in ("", ".", "..") or "/" in value:
        raise LayoutRefused(reason, f"{column}: invalid directory name: {value!r}")
    if any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in value):
        raise LayoutRefused(reason, f"{column}: {value!r} contains a control character")
    if _is_too_long(value):
        raise LayoutRefused(reason, f"{column}: the directory name has more than {COMPONENT_BYTES} bytes")
    return value


def _action_time(record: FileRecord, name: str) -> int:
    if record.action_timestamp is not None:
        return record.action_timestamp
    try:
        return int(os.path.splitext(name)[0].split("_")[0])
    except ValueError:
        assert record.timestamp is not None
        return int(record.timestamp.timestamp())
