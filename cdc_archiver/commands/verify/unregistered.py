"""Finds files of the archive that no row names: left by a crash of another program, or put there by a person."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from cdc_archiver.commands.context import CommandContext
from cdc_archiver.database import schema
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.search import Criteria, RowState, walk
from cdc_archiver.errors import LayoutRefused, Misconfigured
from cdc_archiver.transfer import layout
from cdc_archiver.transfer.archive_marker import FORMER_MARKER
from cdc_archiver.transfer.layout import READERS_NAME, timecode_named
from cdc_archiver.transfer.staging import INCOMING

_OURS: Final = frozenset({INCOMING, FORMER_MARKER})
"""What 0.1.0 keeps in data_dir."""
_LOST_AND_FOUND: Final = "lost+found"
"""At the top of a file system, readable only by root."""
_CHECK_EVERY: Final = 1000

_FileId: TypeAlias = tuple[int, int]
"""Device and inode."""


def require_rows_below(context: CommandContext, data_dir: Path) -> None:
    """Checks that rows name this directory: under another name of it, every file would have no row.

    Raises:
        Misconfigured: no archived row names it: it is another directory, or this is another table.
    """
    archived = Criteria(paths=(f"{data_dir}/*",), states=frozenset({RowState.ARCHIVED}))
    if next(walk(context.database, context.files, archived, limit=1), None) is None:
        raise Misconfigured(
            f"files without a row cannot be found: no archived row of {context.files.name} is below {data_dir}",
            "set --data-dir to the archive's directory as the rows name it: cdc-archiver list --state archived --limit 1",
        )


def find_unregistered(
    context: CommandContext,
    data_dir: Path,
    stopped: Callable[[], bool],
    on_skipped: Callable[[Path, str], None],
    on_progress: Callable[[int], None] = lambda files: None,
) -> list[Path]:
    """The files below data_dir that no row of any table of files names, sorted.

    A pending row counts with its future archived path: the running service places a file before it writes its row. Takes
    about 80 bytes of memory for each row.

    Args:
        stopped: called now and then; True ends the search, with an empty result.
        on_skipped: called for each directory that cannot be read, with the reason.
        on_progress: called with the number of files seen.
    """
    named, _ = _named(context, data_dir, stopped)
    seen = 0
    candidates = []
    for path in _files(data_dir, on_skipped):
        seen += 1
        if seen % _CHECK_EVERY == 0:
            on_progress(seen)
            if stopped():
                return []
        if _digest(str(path)) not in named:
            candidates.append(path)
    on_progress(seen)
    if not candidates:
        return []
    # A file that was archived meanwhile has a row by now.
    named, elsewhere = _named(context, data_dir, stopped)
    return sorted(
        path
        for path in candidates
        if _digest(str(path)) not in named and (file := _file_id(path)) and file not in elsewhere
    )


def _named(context: CommandContext, data_dir: Path, stopped: Callable[[], bool]) -> tuple[set[int], set[_FileId]]:
    """Digests of the paths that rows name, and the files that they name through a link or a second mount of data_dir."""
    names: set[int] = set()
    elsewhere: set[_FileId] = set()
    below = f"{data_dir}/"
    with context.database.connect() as connection:
        older = schema.older_versions(connection, context.database.name, context.files.name)
    tables = [context.files, *(FilesTable(name, 0, context.settings.max_attempts) for name in older)]
    for files in tables:
        for number, row in enumerate(walk(context.database, files, Criteria(), newest_first=False)):
            if number % _CHECK_EVERY == 0 and stopped():
                break
            if row.copied:
                names.add(_digest(row.record.path))
                if not row.record.path.startswith(below) and (file := _file_id(row.record.path)):
                    elsewhere.add(file)
                continue
            try:
                names.add(_digest(f"{data_dir}/{layout.archived_path(row.record, context.settings.oldest_timestamp)}"))
            except LayoutRefused:
                continue
    return names, elsewhere


def _file_id(path: Path | str) -> _FileId | None:
    """The file itself, whatever its path; None if it does not exist."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _files(directory: Path, on_skipped: Callable[[Path, str], None], level: int = 0) -> Iterator[Path]:
    """The files below a directory.

    Args:
        level: of the directory; data_dir is 0, a timecode's directory is 1.
    """
    try:
        with os.scandir(directory) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):  # removed meanwhile
        return
    except OSError as error:
        on_skipped(directory, error.strerror or str(error))
        return
    for entry in listed:
        if _is_no_data(entry, directory, level):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), on_skipped, level + 1)
        else:
            yield Path(entry.path)


def _is_no_data(entry: os.DirEntry[str], directory: Path, level: int) -> bool:
    """Whether an entry of data_dir, or of a timecode's directory, is there for another purpose than files of rows."""
    if level == 1:
        return entry.name == READERS_NAME and timecode_named(directory.name) is not None
    return level == 0 and (
        entry.name in _OURS or (entry.name == _LOST_AND_FOUND and not os.access(entry.path, os.R_OK | os.X_OK))
    )


def _digest(path: str) -> int:
    name = path.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
