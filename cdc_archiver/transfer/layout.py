"""Where a row's file is archived, and what it is called on its source. Pure.

The archived path is the polling agent's, to the letter, because an archive of years was written that way: five digits
of the column ``timestamp``, ``pub_id``, ``<action_timestamp>_<action>``, ``plots`` or ``outputs``, the name.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
from datetime import datetime
from typing import Final

from cdc_archiver.errors import LayoutRefused
from cdc_archiver.model import FileRecord, Reason

COMPONENT_BYTES = 255
"""The longest name that Linux file systems take, in bytes."""

SUFFIX_ROOM = 5
"""Characters kept free in the column for a ``.1`` … ``.9999`` that placement may have to append."""

_SURELY_FITS: Final = COMPONENT_BYTES // 4
"""Characters; none has more than four bytes."""

_NOT_NORMAL: Final = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")
"""A part that is empty, ``.`` or ``..``."""


def archived_path(record: FileRecord) -> str:
    """The record's place below data_dir, relative.

    Raises:
        LayoutRefused: a value is missing that the path needs, or would lead out of its place.
    """
    name = _file_name(record)
    if record.pub_id is None:
        raise LayoutRefused(Reason.NO_PUB_ID, "the row has no pub_id")
    if record.timestamp is None:
        raise LayoutRefused(Reason.NO_TIMESTAMP, "the row has no timestamp")
    action = f"{_action_time(record, name)}_{record.action}"
    return f"{_directory(record.timestamp, record.pub_id, action)}/{'plots' if record.plot else 'outputs'}/{name}"


def source_entry(record: FileRecord, root: str) -> str:
    """The record's file on its source, relative to ``root``: what rsync is asked for, and the path below staging.

    Args:
        root: absolute directory that every file of this source lies below; ``/`` for anywhere. A relative ``path`` in the
            row is taken as below it.

    Raises:
        LayoutRefused: the path is empty or has a NUL, or lies outside the root.
    """
    if not record.path or "\0" in record.path:
        raise LayoutRefused(Reason.BAD_PATH, f"the row's path {record.path!r} is empty or has a NUL in it")
    root = _normal_root(root)
    relative = record.path.removeprefix(root)
    if relative == record.path or _NOT_NORMAL.search(relative):  # almost never
        root = root.rstrip("/") or "/"
        absolute = posixpath.normpath("/" + posixpath.join(root, record.path).lstrip("/"))
        relative = posixpath.relpath(absolute, root)
    if relative == "." or relative.split("/", 1)[0] == "..":
        words = f"the row's path {record.path!r} is not below the source root {root}"
        if ".." in record.path.split("/"):
            raise LayoutRefused(Reason.BAD_PATH, words)
        # A mistyped root would refuse everything for good: the row is left as it is.
        raise LayoutRefused(Reason.OUTSIDE_ROOT, f"{words}: is --source-root right?")
    parts = relative.split("/")
    if max(map(len, parts)) > _SURELY_FITS and any(map(_is_too_long, parts)):
        raise LayoutRefused(Reason.BAD_PATH, f"the row's path has a part of over {COMPONENT_BYTES} bytes")
    return relative


def require_fit(path: str, column_characters: int) -> None:
    """Refuses an archived path that the row could not hold.

    Args:
        path: absolute.
        column_characters: the width of the column ``path``, in characters (VARCHAR counts characters, not bytes).

    Raises:
        LayoutRefused: too long, a numbered suffix included.
    """
    if len(path) + SUFFIX_ROOM > column_characters:
        raise LayoutRefused(
            Reason.PATH_TOO_LONG,
            f"the archived path would have {len(path)} characters (and {SUFFIX_ROOM} are kept for a suffix); "
            f"the column holds {column_characters}",
        )


def _file_name(record: FileRecord) -> str:
    name = posixpath.basename(record.path)
    if name in ("", ".", "..") or "\0" in name:
        raise LayoutRefused(Reason.BAD_NAME, f"the row's path {record.path!r} does not end in a file's name")
    if _is_too_long(name):
        raise LayoutRefused(Reason.BAD_NAME, f"the file's name has over {COMPONENT_BYTES} bytes")
    return name


@functools.lru_cache(maxsize=256)
def _directory(timestamp: datetime, pub_id: str, action: str) -> str:
    """What the files of one action have in common."""
    pub_id = _component(pub_id, "pub_id", Reason.BAD_PUB_ID)
    action = _component(action, "action", Reason.BAD_ACTION)
    return f"{str(timestamp.timestamp())[:5]}/{pub_id}/{action}"


@functools.lru_cache(maxsize=64)
def _normal_root(root: str) -> str:
    """Ended by a slash."""
    return posixpath.join(posixpath.normpath("/" + root.lstrip("/")), "")


def _is_too_long(name: str) -> bool:
    return len(name) > _SURELY_FITS and len(os.fsencode(name)) > COMPONENT_BYTES


def _component(value: str, column: str, reason: Reason) -> str:
    if value in ("", ".", "..") or "/" in value:
        raise LayoutRefused(reason, f"{column}: {value!r} is no directory's name")
    if any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in value):
        raise LayoutRefused(reason, f"{column}: {value!r} has a control character")
    if _is_too_long(value):
        raise LayoutRefused(reason, f"{column}: the directory's name has over {COMPONENT_BYTES} bytes")
    return value


def _action_time(record: FileRecord, name: str) -> int:
    if record.action_timestamp is not None:
        return record.action_timestamp
    try:
        return int(os.path.splitext(name)[0].split("_")[0])
    except ValueError:
        assert record.timestamp is not None
        return int(record.timestamp.timestamp())
