"""`register`: files by hand, as a monitor would have registered them. Runs where the files are."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from cdc_archiver.database.search import Criteria, walk
from cdc_archiver.errors import LayoutRefused, Misconfigured
from cdc_archiver.model import FileRecord
from cdc_archiver.operations.desk import Desk
from cdc_archiver.operations.hashing import hash_file
from cdc_archiver.transfer import layout

_CHUNK: Final = 200
_PAGE: Final = 5000


class Fate(StrEnum):
    """What became of one file."""

    REGISTERED = "registered"
    KNOWN = "known"
    """It is registered, or archived, already."""
    UNUSABLE = "unusable"
    """It cannot be read, is being written, or its row would be refused."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the operator says of the files, which is not in them.

    Attributes:
        timestamp, action_timestamp: None for each file's time of change.
        plot: None to go by the name: ``.png`` is one.
    """

    target: str
    action: str
    pub_id: str
    timestamp: datetime | None = None
    action_timestamp: int | None = None
    plot: bool | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    """One file, and what became of it.

    Attributes:
        place: where it will be archived, below data_dir; empty where it will not.
        note: why not.
    """

    path: str
    fate: Fate
    place: str = ""
    md5: bytes = b""
    size: int = 0
    note: str = ""


def register(desk: Desk, paths: Iterable[Path], given: Given, *, dry_run: bool) -> Iterator[Registered]:
    """Registers files, and those below folders; links are not followed.

    Raises:
        Misconfigured: a path is not there, or we may not INSERT.
    """
    found = [file for path in paths for file in _below(path)]
    known = _known(desk, found)
    width = desk.files.path_width
    with desk.database.connect() as connection:
        columns = {str(column["name"]) for column in sa.inspect(connection).get_columns(desk.files.name)}
    waiting: list[tuple[dict[str, Any], Registered]] = []
    for path in found:
        if path in known:
            yield Registered(path, Fate.KNOWN)
            continue
        try:
            row, done = _row(desk, path, given, width, with_format="format" in columns)
        except (OSError, ValueError) as error:
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            yield Registered(path, Fate.UNUSABLE, note=words)
            continue
        except LayoutRefused as refusal:
            yield Registered(path, Fate.UNUSABLE, note=refusal.message)
            continue
        waiting.append((row, done))
        if len(waiting) >= _CHUNK:
            yield from _write(desk, waiting, dry_run=dry_run)
            waiting = []
    yield from _write(desk, waiting, dry_run=dry_run)


def _below(path: Path) -> Iterator[str]:
    text = os.path.abspath(path)
    try:
        mode = os.lstat(text).st_mode
    except (OSError, ValueError) as error:
        raise Misconfigured(
            f"{text} is not there: {error}", "register runs on the machine that has the files"
        ) from error
    if not stat.S_ISDIR(mode):
        yield text
        return
    for folder, folders, names in os.walk(text):
        folders.sort()
        for name in sorted(names):
            file = os.path.join(folder, name)
            if stat.S_ISREG(os.lstat(file).st_mode):
                yield file


def _known(desk: Desk, paths: list[str]) -> set[str]:
    """Which of the paths are in the table; or in the history, once they are archived and the row has another path."""
    if not paths:
        return set()
    wanted = set(paths)
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    pattern = above.rstrip("/") + "/*" if len(paths) > 1 else paths[0]
    # A name with a * or ? makes a pattern that finds more than itself; what is not wanted is dropped.
    criteria = Criteria(paths=(pattern,))
    known = {row.record.path for row in walk(desk.database, desk.files, criteria) if row.record.path in wanted}
    if desk.history is None:
        return known
    after = 0
    while True:
        with desk.database.connect() as connection:
            page = desk.history.source_paths(connection, above, after, _PAGE)
        known.update(path for _, path in page if path in wanted)
        if len(page) < _PAGE:
            return known
        after = page[-1][0]


def _row(desk: Desk, path: str, given: Given, width: int, *, with_format: bool) -> tuple[dict[str, Any], Registered]:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError("its name is no UTF-8") from None
    if len(path) > width:
        raise ValueError(f"its path has {len(path)} characters, the column takes {width}")
    before = os.lstat(path)
    md5, size = hash_file(path)
    after = os.lstat(path)
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise ValueError("it is being written just now")
    changed = datetime.fromtimestamp(int(before.st_mtime), UTC)
    timestamp = given.timestamp or changed
    record = FileRecord(
        id=0,
        path=path,
        md5sum=md5,
        timestamp=timestamp.replace(microsecond=0),
        action=given.action,
        action_timestamp=given.action_timestamp if given.action_timestamp is not None else int(before.st_mtime),
        plot=path.lower().endswith(".png") if given.plot is None else given.plot,
        pub_id=given.pub_id,
        instance_id=given.target,
        failed_copy_attempts=0,
    )
    place = str(layout.archived_path(record))
    source = desk.source_of(given.target)
    if source is not None:
        layout.source_entry(record, source.source_root)
    values = {
        "path": path,
        "action": record.action,
        "timestamp": timestamp.replace(tzinfo=None, microsecond=0),
        "action_timestamp": record.action_timestamp,
        "plot": int(record.plot),
        "pub_id": record.pub_id,
        "instance_id": record.instance_id,
        "copied": 0,
        "failed_copy_attempts": 0,
        "md5sum": md5,
    }
    if with_format:
        values["format"] = os.path.splitext(path)[1][1:][:32]
    return values, Registered(path, Fate.REGISTERED, place, md5, size)


def _write(desk: Desk, waiting: list[tuple[dict[str, Any], Registered]], *, dry_run: bool) -> Iterator[Registered]:
    if waiting and not dry_run:
        try:
            with desk.database.transaction() as connection:
                desk.files.register(connection, [row for row, _ in waiting])
        except Misconfigured as error:
            raise Misconfigured(
                error.message,
                f"GRANT INSERT ON {desk.database.name}.{desk.files.name} TO '{desk.settings.mysql_user}'@'%'",
            ) from error
    yield from (done for _, done in waiting)
