"""`register`: files by hand, as a monitor would have registered them. Runs where the files are."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from cdc_archiver.commands.context import CommandContext
from cdc_archiver.commands.hashing import hash_file
from cdc_archiver.database.connections import error_code
from cdc_archiver.database.search import Criteria, walk
from cdc_archiver.errors import LayoutRefused, Misconfigured, StatementRefused
from cdc_archiver.model import FileRecord
from cdc_archiver.transfer import layout

_CHUNK: Final = 200
_PAGE: Final = 5000
_NO_RIGHT: Final = (1142, 1143)
"""The server's numbers for a right on the table, or on a column, that is not there."""


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


def register(desk: CommandContext, paths: Iterable[Path], given: Given, *, dry_run: bool) -> Iterator[Registered]:
    """Registers files, and those below directories; links are not followed.

    Raises:
        Misconfigured: a path is not there, or we may not INSERT.
    """
    unusable: list[Registered] = []
    found = list(dict.fromkeys(file for path in paths for file in _below(path, unusable)))
    yield from unusable
    known = _Known(desk, found)
    known.look()
    width = desk.files.path_width
    with desk.database.connect() as connection:
        columns = {str(column["name"]) for column in sa.inspect(connection).get_columns(desk.files.name)}
    waiting: list[tuple[dict[str, Any], Registered]] = []
    for path in found:
        if path in known.paths:
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
            yield from _write(desk, waiting, known, dry_run=dry_run)
            waiting = []
    yield from _write(desk, waiting, known, dry_run=dry_run)


def _below(path: Path, unusable: list[Registered]) -> Iterator[str]:
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

    def not_seen(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            unusable.append(Registered(str(error.filename), Fate.UNUSABLE, note=error.strerror or str(error)))

    for directory, directories, names in os.walk(text, onerror=not_seen):
        directories.sort()
        for name in sorted(names):
            file = os.path.join(directory, name)
            try:
                if stat.S_ISREG(os.lstat(file).st_mode):
                    yield file
            except OSError as error:  # a temporary file, gone by now
                not_seen(error)


class _Known:
    """Which of the paths are in the table; or in the history, once they are archived and the row has another path."""

    def __init__(self, desk: CommandContext, wanted: list[str]) -> None:
        self._desk = desk
        self._wanted = set(wanted)
        self._above = os.path.commonpath([os.path.dirname(path) for path in wanted]) if wanted else ""
        # A name with a * or ? makes a pattern that finds more than itself; what is not wanted is dropped.
        self._pattern = self._above.rstrip("/") + "/*" if len(wanted) > 1 else "".join(wanted)
        self._newest: int | None = None
        self._line = 0
        self.paths: set[str] = set()

    def look(self) -> None:
        """Looks; again, at what has come since: to read many files takes hours."""
        if not self._wanted:
            return
        desk, before = self._desk, self._newest
        with desk.database.connect() as connection:
            self._newest = desk.files.max_id(connection)
        # What came since is one range of the primary key; to find a path, the whole table is read.
        criteria = Criteria(paths=(self._pattern,)) if before is None else Criteria()
        rows = walk(desk.database, desk.files, criteria, newest_first=False, after=before)
        self.paths.update(row.record.path for row in rows if row.record.path in self._wanted)
        while desk.history is not None:
            with desk.database.connect() as connection:
                page = desk.history.source_paths(connection, self._above, self._line, _PAGE)
            self.paths.update(path for _, path in page if path in self._wanted)
            self._line = page[-1][0] if page else self._line
            if len(page) < _PAGE:
                return


def _row(
    desk: CommandContext, path: str, given: Given, width: int, *, with_format: bool
) -> tuple[dict[str, Any], Registered]:
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


def _write(
    desk: CommandContext, waiting: list[tuple[dict[str, Any], Registered]], known: _Known, *, dry_run: bool
) -> Iterator[Registered]:
    if not waiting:
        return
    if not dry_run:
        known.look()
    archived = _archived(desk, [done for _, done in waiting], str(waiting[0][0]["instance_id"]))
    new = []
    for row, done in waiting:
        if done.path in known.paths or done.path in archived:
            note = f"archived as {archived[done.path]}" if done.path in archived else ""
            yield Registered(done.path, Fate.KNOWN, note=note)
        else:
            new.append((row, done))
    if dry_run or not new:
        yield from (done for _, done in new)
        return
    try:
        _insert(desk, [row for row, _ in new])
    except StatementRefused:  # one of them: its neighbours are registered, each by itself
        yield from (_insert_one(desk, *single) for single in new)
    else:
        yield from (done for _, done in new)


def _archived(desk: CommandContext, files: list[Registered], target: str) -> dict[str, str]:
    """Where files are archived that nobody's history tells of: by an archiver before us, or longer ago than the history is kept. Such
    a row has the file's md5 and its name, with a number where that was taken."""
    by_md5: dict[bytes, list[str]] = {}
    for file in files:
        by_md5.setdefault(file.md5, []).append(file.path)
    column, after, found = desk.files.column, 0, {}
    conditions = (column("copied") != 0, column("instance_id") == target, column("md5sum").in_(by_md5))
    while True:
        with desk.database.connect() as connection:
            page = desk.files.rows(connection, *conditions, column("id") > after, newest_first=False, limit=_PAGE)
        for row in page:
            name = os.path.basename(row.record.path)
            for path in by_md5.get(row.record.md5sum, ()):
                if re.fullmatch(re.escape(os.path.basename(path)) + r"(\.[1-9]\d*)?", name):
                    found[path] = row.record.path
        if len(page) < _PAGE:
            return found
        after = page[-1].record.id


def _insert_one(desk: CommandContext, row: dict[str, Any], done: Registered) -> Registered:
    try:
        _insert(desk, [row])
    except StatementRefused as refusal:
        return replace(done, fate=Fate.UNUSABLE, place="", note=refusal.message)
    return done


def _insert(desk: CommandContext, rows: list[dict[str, Any]]) -> None:
    try:
        with desk.database.transaction() as connection:
            desk.files.register(connection, rows)
    except Misconfigured as error:
        if error_code(error.__cause__ or error) not in _NO_RIGHT:
            raise
        raise Misconfigured(
            error.message,
            f"GRANT INSERT ON {desk.database.name}.{desk.files.name} TO '{desk.settings.mysql_user}'@'%'",
        ) from error
