"""Files of the archive that no row names: what a crash of another program left, or somebody put there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from cdc_archiver.database import schema
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.search import Criteria, walk
from cdc_archiver.errors import LayoutRefused
from cdc_archiver.operations.desk import Desk
from cdc_archiver.transfer import layout
from cdc_archiver.transfer.staging import INCOMING, MARKER

_OURS: Final = frozenset({INCOMING, MARKER})


def unregistered(
    desk: Desk, data_dir: Path, stopped: Callable[[], bool], on_progress: Callable[[int], None] = lambda files: None
) -> list[Path]:
    """The files below data_dir that no row of any table of files names, in order.

    A row that waits names the place that its file will have: the running service places files before it says so. Some 80 bytes
    of memory for each row.

    Args:
        stopped: asked now and then whether to give up.
        on_progress: told how many files were seen.
    """
    named = _named(desk, data_dir, stopped)
    seen = 0
    candidates = []
    for path in _files(data_dir, top=True):
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
    named = _named(desk, data_dir, stopped)
    return sorted(path for path in candidates if _digest(str(path)) not in named and os.path.lexists(path))


def _named(desk: Desk, data_dir: Path, stopped: Callable[[], bool]) -> set[int]:
    names: set[int] = set()
    with desk.database.connect() as connection:
        older = schema.older_versions(connection, desk.database.name, desk.files.name)
    tables = [desk.files, *(FilesTable(name, 0, desk.settings.max_attempts) for name in older)]
    for files in tables:
        for number, row in enumerate(walk(desk.database, files, Criteria(), newest_first=False)):
            if number % 1000 == 0 and stopped():
                break
            if row.copied:
                names.add(_digest(row.record.path))
                continue
            try:
                names.add(_digest(f"{data_dir}/{layout.archived_path(row.record)}"))
            except LayoutRefused:
                continue
    return names


def _files(folder: Path, *, top: bool = False) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:  # tidied up while we looked
        return
    for entry in listed:
        if top and entry.name in _OURS:
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path))
        else:
            yield Path(entry.path)


def _digest(path: str) -> int:
    name = path.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
