"""The demo's checks: rows, files in the archive and files at the source, each compared with the others."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, Final

from cdc_archiver.demo.instrument import RegisteredFile
from cdc_archiver.model import FileRecord
from cdc_archiver.settings.types import FileModes
from cdc_archiver.transfer import layout
from cdc_archiver.transfer.staging_place import sibling_staging

_HASHERS: Final = min(4, os.cpu_count() or 1)
_WRITTEN_BACK: Final = ("path", "copied")
"""The columns that archiving may change; all others are checked to be unchanged."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        text: the statement that was checked.
        problems: where it is wrong, each with the file concerned.
    """

    text: str
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the statement is true."""
        return not self.problems


def check_archive(
    registered: Sequence[RegisteredFile],
    rows: Mapping[int, Mapping[str, Any]],
    data_dir: Path,
    modes: FileModes,
    source: Path,
    on_hashed: Callable[[int], None] = lambda size: None,
) -> list[Check]:
    """Checks all rows and all files.

    Args:
        registered: all files, as they were written and registered.
        rows: the whole table, by id.
        data_dir: the archive.
        modes: the expected modes of its files and directories.
        source: the instrument's directory, which holds only its files.
        on_hashed: called with the size of each hashed file; twice for each registered one.
    """
    count = f"{len(registered):,}"
    archived = {row.id: Path(rows[row.id]["path"]) for row in registered if row.id in rows}
    return [
        Check(
            f"{count} rows have copied = 1, and only their path and copied have changed",
            tuple(_row_problems(registered, rows)),
        ),
        Check(
            f"{count} paths follow from the registered rows; of files with one name, {_same_names(registered)}",
            tuple(_path_problems(registered, archived, data_dir)),
        ),
        Check(
            f"{count} archived files have the registered md5, computed again",
            tuple(_content_problems(registered, archived, on_hashed)),
        ),
        Check(
            f"files have mode {modes.files:o} and directories {modes.directories:o}, as configured",
            tuple(_mode_problems(data_dir, modes)),
        ),
        Check(
            "every file in the archive has a row, and no file is left in staging",
            tuple(_stray_problems(set(archived.values()), data_dir)),
        ),
        Check(
            f"{count} files at the source are unchanged, and no other file is there",
            tuple(_source_problems(registered, source, on_hashed)),
        ),
    ]


def _row_problems(registered: Sequence[RegisteredFile], rows: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    for row in registered:
        now = rows.get(row.id)
        if now is None:
            yield f"row {row.id} ({row.file.path}) is missing"
            continue
        if now["copied"] != 1:
            yield f"row {row.id} ({row.file.path}) has copied = {now['copied']}"
        for column, before in row.values.items():
            if column not in _WRITTEN_BACK and now[column] != before:
                yield f"row {row.id} ({row.file.path}): {column} was {before!r} and is {now[column]!r}"
    for id_ in sorted(rows.keys() - {row.id for row in registered}):
        yield f"row {id_} ({rows[id_]['path']}) was not registered by the demo"


def _path_problems(registered: Sequence[RegisteredFile], archived: Mapping[int, Path], data_dir: Path) -> Iterator[str]:
    for place, same in _by_place(registered).items():
        # Files of one path come in any order; together they have name, name.1 … without a gap.
        first = data_dir / place
        wanted = {first, *(first.with_name(f"{first.name}.{number}") for number in range(1, len(same)))}
        for row in same:
            path = archived.get(row.id)
            if path in wanted:
                wanted.remove(path)
            elif path is not None:
                yield f"row {row.id}: its path is {path}, expected {' or '.join(map(str, sorted(wanted)))}"


def _content_problems(
    registered: Sequence[RegisteredFile], archived: Mapping[int, Path], on_hashed: Callable[[int], None]
) -> Iterator[str]:
    there = [(row, archived[row.id]) for row in registered if row.id in archived]
    for (row, path), seen in zip(there, _hash([path for _, path in there], on_hashed), strict=True):
        if isinstance(seen, OSError):
            yield f"{path} cannot be read: {seen.strerror}"
        elif seen != row.file.md5:
            yield f"{path} has md5 {seen.hex()}; registered: {row.file.md5.hex()}"


def _mode_problems(data_dir: Path, modes: FileModes) -> Iterator[str]:
    for path in _tree(data_dir):
        found = path.lstat().st_mode
        wanted = modes.directories if stat.S_ISDIR(found) else modes.files
        if stat.S_IMODE(found) != wanted:
            yield f"{path} has mode {stat.S_IMODE(found):o}, expected {wanted:o}"


def _stray_problems(named: set[Path], data_dir: Path) -> Iterator[str]:
    for path in _tree(data_dir):
        # A directory may be another file's; everything else must have a row and be a regular file, no link or socket.
        kind = path.lstat().st_mode
        if not stat.S_ISDIR(kind) and (path not in named or not stat.S_ISREG(kind)):
            yield f"{path} is in the archive, but is not a file with a row"
    # The workers' directories stay; they must be empty.
    for path in sibling_staging(data_dir).rglob("*"):
        if not path.is_dir() or path.is_symlink():
            yield f"{path} was left behind"


def _source_problems(
    registered: Sequence[RegisteredFile], source: Path, on_hashed: Callable[[int], None]
) -> Iterator[str]:
    hashes = _hash([row.file.path for row in registered], on_hashed)
    for row, seen in zip(registered, hashes, strict=True):
        path = row.file.path
        if isinstance(seen, OSError):
            yield f"{path} cannot be read: {seen.strerror}"
        elif seen != row.file.md5 or path.stat().st_mtime_ns != row.file.modified:
            yield f"{path} has changed at the source"
    known = {row.file.path for row in registered}
    for path in source.rglob("*"):
        if path not in known and not path.is_dir():
            yield f"{path} is at the source, but was not written by the demo"


def _by_place(registered: Sequence[RegisteredFile]) -> dict[Path, list[RegisteredFile]]:
    places = defaultdict(list)
    for row in registered:
        places[Path(layout.archived_path(_as_registered(row)))].append(row)
    return places


def _same_names(registered: Sequence[RegisteredFile]) -> str:
    return f"{sum(len(rows) - 1 for rows in _by_place(registered).values())} got .1"


def _as_registered(row: RegisteredFile) -> FileRecord:
    values = row.values
    return FileRecord(
        id=row.id,
        path=values["path"],
        md5sum=values["md5sum"],
        timestamp=values["timestamp"].replace(tzinfo=UTC),
        action=values["action"],
        action_timestamp=values["action_timestamp"],
        plot=bool(values["plot"]),
        pub_id=values["pub_id"],
        instance_id=values["instance_id"],
        failed_copy_attempts=values["failed_copy_attempts"],
    )


def _tree(data_dir: Path) -> Iterator[Path]:
    yield from data_dir.rglob("*")


def _hash(paths: Sequence[Path], on_hashed: Callable[[int], None]) -> Iterator[bytes | OSError]:
    with ThreadPoolExecutor(max_workers=_HASHERS) as pool:
        for path, seen in zip(paths, pool.map(_md5_of, paths), strict=True):
            yield seen
            if isinstance(seen, bytes):
                on_hashed(path.stat().st_size)


def _md5_of(path: Path) -> bytes | OSError:
    """Computed without the archiver's code."""
    try:
        if path.is_symlink():
            return OSError(0, "it is a symbolic link")
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    except OSError as error:
        return error
