"""The demo's audit: what the rows say, what lies in the archive and what lay on the source, each against the others."""

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

from cdc_archiver.demo.registry import Registered
from cdc_archiver.model import FileRecord
from cdc_archiver.settings.types import FileModes
from cdc_archiver.transfer import layout
from cdc_archiver.transfer.staging import INCOMING, MARKER

_HASHERS: Final = min(4, os.cpu_count() or 1)
_WRITTEN_BACK: Final = ("path", "copied")
"""The columns that archiving changes; of all others the proof is that it does not."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the proof.

    Attributes:
        text: what was asked, as a statement.
        faults: where it does not hold, each with the file that it is about.
    """

    text: str
    faults: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        """Whether it holds."""
        return not self.faults


def prove(
    registered: Sequence[Registered],
    rows: Mapping[int, Mapping[str, Any]],
    data_dir: Path,
    modes: FileModes,
    source: Path,
    on_hashed: Callable[[int], None] = lambda size: None,
) -> list[Check]:
    """Asks everything that can be asked of rows and files.

    Args:
        registered: all files, as they were written and registered.
        rows: the whole table as it is now, by id.
        data_dir: the archive.
        modes: what its files and directories should have.
        source: the directory of the instrument, with nothing but its files.
        on_hashed: called with the bytes of each file hashed; two for each registered one.
    """
    count = f"{len(registered):,}"
    archived = {row.id: Path(rows[row.id]["path"]) for row in registered if row.id in rows}
    return [
        Check(
            f"{count} rows say copied = 1, and nothing in them has changed but path and copied",
            tuple(_row_faults(registered, rows)),
        ),
        Check(
            f"{count} paths are what the layout makes of the rows as registered; of one name: {_same_names(registered)}",
            tuple(_path_faults(registered, archived, data_dir)),
        ),
        Check(
            f"{count} archived files, hashed again, have the md5 that was registered",
            tuple(_content_faults(registered, archived, on_hashed)),
        ),
        Check(
            f"files have mode {modes.files:o} and directories {modes.directories:o}, as configured",
            tuple(_mode_faults(data_dir, modes)),
        ),
        Check(
            f"the archive holds no file that no row names, and nothing is left in {INCOMING}",
            tuple(_stray_faults(set(archived.values()), data_dir)),
        ),
        Check(
            f"{count} files at the source are as they were written, and there is no other",
            tuple(_source_faults(registered, source, on_hashed)),
        ),
    ]


def _row_faults(registered: Sequence[Registered], rows: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    for row in registered:
        now = rows.get(row.id)
        if now is None:
            yield f"row {row.id} ({row.file.path}) is gone"
            continue
        if now["copied"] != 1:
            yield f"row {row.id} ({row.file.path}) has copied = {now['copied']}"
        for column, before in row.values.items():
            if column not in _WRITTEN_BACK and now[column] != before:
                yield f"row {row.id} ({row.file.path}): {column} was {before!r} and is {now[column]!r}"
    for id_ in sorted(rows.keys() - {row.id for row in registered}):
        yield f"row {id_} ({rows[id_]['path']}) was registered by nobody"


def _path_faults(registered: Sequence[Registered], archived: Mapping[int, Path], data_dir: Path) -> Iterator[str]:
    for place, same in _by_place(registered).items():
        # Those of one place come in any order; together they have name, name.1 … without a gap.
        first = data_dir / place
        wanted = {first, *(first.with_name(f"{first.name}.{number}") for number in range(1, len(same)))}
        for row in same:
            path = archived.get(row.id)
            if path in wanted:
                wanted.remove(path)
            elif path is not None:
                yield f"row {row.id}: its path is {path}, and should be {' or '.join(map(str, sorted(wanted)))}"


def _content_faults(
    registered: Sequence[Registered], archived: Mapping[int, Path], on_hashed: Callable[[int], None]
) -> Iterator[str]:
    there = [(row, archived[row.id]) for row in registered if row.id in archived]
    for (row, path), seen in zip(there, _hash([path for _, path in there], on_hashed), strict=True):
        if isinstance(seen, OSError):
            yield f"{path} cannot be read: {seen.strerror}"
        elif seen != row.file.md5:
            yield f"{path} has md5 {seen.hex()}; {row.file.md5.hex()} was registered"


def _mode_faults(data_dir: Path, modes: FileModes) -> Iterator[str]:
    for path in _tree(data_dir):
        found = path.lstat().st_mode
        wanted = modes.directories if stat.S_ISDIR(found) else modes.files
        if stat.S_IMODE(found) != wanted:
            yield f"{path} has mode {stat.S_IMODE(found):o}, and should have {wanted:o}"


def _stray_faults(named: set[Path], data_dir: Path) -> Iterator[str]:
    for path in _tree(data_dir):
        # A directory may be there for others; anything else has a row, and is a file: no link, no socket.
        kind = path.lstat().st_mode
        if not stat.S_ISDIR(kind) and (path not in named or not stat.S_ISREG(kind)):
            yield f"{path} is in the archive, and no row names it as a file"
    # The workers' directories stay, empty.
    for path in (data_dir / INCOMING).rglob("*"):
        if not path.is_dir() or path.is_symlink():
            yield f"{path} was left behind"


def _source_faults(registered: Sequence[Registered], source: Path, on_hashed: Callable[[int], None]) -> Iterator[str]:
    hashes = _hash([row.file.path for row in registered], on_hashed)
    for row, seen in zip(registered, hashes, strict=True):
        path = row.file.path
        if isinstance(seen, OSError):
            yield f"{path} cannot be read any more: {seen.strerror}"
        elif seen != row.file.md5 or path.stat().st_mtime_ns != row.file.modified:
            yield f"{path} has changed at the source"
    known = {row.file.path for row in registered}
    for path in source.rglob("*"):
        if path not in known and not path.is_dir():
            yield f"{path} has appeared at the source"


def _by_place(registered: Sequence[Registered]) -> dict[Path, list[Registered]]:
    places = defaultdict(list)
    for row in registered:
        places[Path(layout.archived_path(_as_registered(row)))].append(row)
    return places


def _same_names(registered: Sequence[Registered]) -> str:
    return f"{sum(len(rows) - 1 for rows in _by_place(registered).values())} got .1"


def _as_registered(row: Registered) -> FileRecord:
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
    """All that is below data_dir but for what is the archiver's own."""
    for top in sorted(data_dir.iterdir()):
        if top.name not in (INCOMING, MARKER):
            yield top
            yield from top.rglob("*")


def _hash(paths: Sequence[Path], on_hashed: Callable[[int], None]) -> Iterator[bytes | OSError]:
    with ThreadPoolExecutor(max_workers=_HASHERS) as pool:
        for path, seen in zip(paths, pool.map(_md5_of, paths), strict=True):
            yield seen
            if isinstance(seen, bytes):
                on_hashed(path.stat().st_size)


def _md5_of(path: Path) -> bytes | OSError:
    """Read anew, by none of the archiver's own code."""
    try:
        if path.is_symlink():
            return OSError(0, "it is a link")
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    except OSError as error:
        return error
