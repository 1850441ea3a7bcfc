"""Files of the archive that no row names: what a crash of another program left, or somebody put there."""

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
from cdc_archiver.transfer.staging import INCOMING, MARKER

_OURS: Final = frozenset({INCOMING, MARKER})
_FILE_SYSTEMS: Final = "lost+found"
"""At the top of a disk, for root alone."""

_FileId: TypeAlias = tuple[int, int]


def require_rows_below(desk: CommandContext, data_dir: Path) -> None:
    """Asks whether this is the directory that rows name: under another name of it, every good file would have no row.

    Raises:
        Misconfigured: it is not, or this is not the table.
    """
    archived = Criteria(paths=(f"{data_dir}/*",), states=frozenset({RowState.ARCHIVED}))
    if next(walk(desk.database, desk.files, archived, limit=1), None) is None:
        raise Misconfigured(
            f"no archived row of {desk.files.name} is below {data_dir}, so nobody can say which files have none",
            "--data-dir is the archive's directory as the rows name it",
        )


def unregistered(
    desk: CommandContext,
    data_dir: Path,
    stopped: Callable[[], bool],
    on_unseen: Callable[[Path, str], None],
    on_progress: Callable[[int], None] = lambda files: None,
) -> list[Path]:
    """The files below data_dir that no row of any table of files names, in order.

    A row that waits names the place that its file will have: the running service places files before it says so. Some 80 bytes
    of memory for each row.

    Args:
        stopped: asked now and then whether to give up.
        on_unseen: told of each directory that cannot be looked into, and why.
        on_progress: told how many files were seen.
    """
    named, _ = _named(desk, data_dir, stopped)
    seen = 0
    candidates = []
    for path in _files(data_dir, on_unseen, top=True):
        seen += 1
        if seen % 1000 == 0:
            on_progress(seen)
            if stopped():
                return []
        if _digest(str(path)) not in named:
            candidates.append(path)
    on_progress(seen)
    if not candidates:
        return []
    # What was archived while we looked has a row by now.
    named, elsewhere = _named(desk, data_dir, stopped)
    return sorted(
        path
        for path in candidates
        if _digest(str(path)) not in named and (file := _file(path)) and file not in elsewhere
    )


def _named(desk: CommandContext, data_dir: Path, stopped: Callable[[], bool]) -> tuple[set[int], set[_FileId]]:
    """What rows name: paths; and the files that they name under another directory's name, a link or a second mount."""
    names: set[int] = set()
    elsewhere: set[_FileId] = set()
    below = f"{data_dir}/"
    with desk.database.connect() as connection:
        older = schema.older_versions(connection, desk.database.name, desk.files.name)
    tables = [desk.files, *(FilesTable(name, 0, desk.settings.max_attempts) for name in older)]
    for files in tables:
        for number, row in enumerate(walk(desk.database, files, Criteria(), newest_first=False)):
            if number % 1000 == 0 and stopped():
                break
            if row.copied:
                names.add(_digest(row.record.path))
                if not row.record.path.startswith(below) and (file := _file(row.record.path)):
                    elsewhere.add(file)
                continue
            try:
                names.add(_digest(f"{data_dir}/{layout.archived_path(row.record)}"))
            except LayoutRefused:
                continue
    return names, elsewhere


def _file(path: Path | str) -> _FileId | None:
    """The file itself, whatever its path is called."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _files(directory: Path, on_unseen: Callable[[Path, str], None], *, top: bool = False) -> Iterator[Path]:
    try:
        with os.scandir(directory) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):  # tidied up while we looked
        return
    except OSError as error:
        on_unseen(directory, error.strerror or str(error))
        return
    for entry in listed:
        if top and (
            entry.name in _OURS or (entry.name == _FILE_SYSTEMS and not os.access(entry.path, os.R_OK | os.X_OK))
        ):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), on_unseen)
        else:
            yield Path(entry.path)


def _digest(path: str) -> int:
    name = path.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
