"""Marks of timecodes: holds and hand-overs, as entries that are only added; of each object the newest one counts.

The service copies them to a file in its place for staging. The union of file and table counts: a restored backup of the database
does not forget a mark, and the file does not contradict a command that was typed on another machine.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import sqlalchemy as sa
import structlog

from cdc_archiver.database.connections import error_code
from cdc_archiver.database.history import HISTORY_ERRORS
from cdc_archiver.database.side_tables import MARKS, open_side_table
from cdc_archiver.text import fold_instance_id, to_jsonable

_log = structlog.get_logger(__name__)


class MarkKind(StrEnum):
    """What an entry says of its timecode. The values are stored."""

    HELD = "held"
    UNHELD = "unheld"
    HANDED_OVER = "handed_over"
    TAKEN_BACK = "taken_back"
    LET_IN = "let_in"
    """One file is archived all the same, although its timecode was handed over before."""

    @property
    def subject(self) -> MarkKind:
        """The kind that a later entry of this one's object undoes: a hold, or a hand-over."""
        return {MarkKind.UNHELD: MarkKind.HELD, MarkKind.TAKEN_BACK: MarkKind.HANDED_OVER}.get(self, self)


_Object: TypeAlias = tuple[MarkKind, str, int, int]
"""Subject, folded instance_id, timecode, id of the file or 0."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An entry. Field names are keys of the file and of ``timecodes --json``.

    Attributes:
        instance_id: whose files; empty for those of every source.
        until: when a hold ends by itself; None for never.
        at: when it was made, aware, UTC, by the database's clock.
        number: in the table; 0 for one that is not there yet.
        file_id: of a file that is let in; 0 for the whole timecode.
    """

    kind: MarkKind
    instance_id: str
    timecode: int
    by_whom: str
    reason: str
    until: datetime | None
    at: datetime
    number: int = 0
    file_id: int = 0

    @property
    def about(self) -> _Object:
        """The object, of which the newest entry counts."""
        return self.kind.subject, fold_instance_id(self.instance_id), self.timecode, self.file_id

    def covers(self, instance_id: str) -> bool:
        """Whether it is about a source's files."""
        return not self.instance_id or fold_instance_id(self.instance_id) == fold_instance_id(instance_id)

    @property
    def order(self) -> tuple[datetime, int]:
        """The greater, the newer. Numbers alone do not order: a restored table gives the same ones again."""
        return self.at, self.number


class MarkSet:
    """The marks in force. Immutable.

    Args:
        entries: in any order, the same entry more than once or not.
    """

    def __init__(self, entries: Iterable[Mark] = ()) -> None:
        newest: dict[_Object, Mark] = {}
        for entry in entries:
            known = newest.get(entry.about)
            if known is None or entry.order > known.order:
                newest[entry.about] = entry
        self._newest: Mapping[_Object, Mark] = newest
        self.handed_over_timecodes = frozenset(
            mark.timecode for mark in newest.values() if mark.kind is MarkKind.HANDED_OVER
        )
        """Those that may be handed over, for some source."""

    @property
    def newest(self) -> tuple[Mark, ...]:
        """The newest entry of each object, by age."""
        return tuple(sorted(self._newest.values(), key=lambda mark: mark.order))

    def held(self, instance_id: str, timecode: int, now: datetime) -> Mark | None:
        """The hold on a source's timecode; None where there is none.

        Args:
            now: aware; a hold that ended before does not count.
        """
        return self._in_force(MarkKind.HELD, instance_id, timecode, now)

    def in_force(self, kind: MarkKind, instance_id: str, timecode: int, now: datetime) -> list[Mark]:
        """The marks of a kind that an entry about the same objects would end.

        Args:
            kind: held, or handed over.
            instance_id: empty for those of any source.
            now: aware.
        """
        return [
            mark
            for mark in self._newest.values()
            if mark.kind is kind
            and mark.timecode == timecode
            and (not instance_id or mark.covers(instance_id))
            and self._in_force(kind, mark.instance_id, timecode, now)
        ]

    def handed_over(self, instance_id: str, timecode: int, file_id: int = 0) -> Mark | None:
        """The hand-over of a source's timecode; None where there is none.

        Args:
            file_id: of a file, for which it does not count where the file was let in later.
        """
        mark = self._in_force(MarkKind.HANDED_OVER, instance_id, timecode)
        let_in = (
            self._newest.get((MarkKind.LET_IN, fold_instance_id(instance_id), timecode, file_id)) if file_id else None
        )
        return None if mark and let_in and let_in.order > mark.order else mark

    def _in_force(self, subject: MarkKind, instance_id: str, timecode: int, now: datetime | None = None) -> Mark | None:
        found = [self._newest.get((subject, owner, timecode, 0)) for owner in {"", fold_instance_id(instance_id)}]
        # A hold that has ended is no entry against another hold.
        marks = [mark for mark in found if mark and not (now and mark.until and mark.until <= now)]
        last = max(marks, key=lambda mark: mark.order, default=None)
        return last if last and last.kind is subject else None


class Marks:
    """The marks of a table of files, as a running service keeps them. Any thread may ask; one refreshes.

    Args:
        database: name of the database.
        file_table: name of the table of files.
        directory: of notes in the place for staging, asked each time; None while there is none.
        on_change: called, without waiting, when other marks are in force than before.
    """

    def __init__(
        self,
        database: str,
        file_table: str,
        directory: Callable[[], Path | None],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_change = on_change
        self._database = database
        self._file_table = file_table
        self._directory = directory
        self._in_table: Sequence[Mark] = ()
        self._set = MarkSet()
        self._logged = ""
        self._is_read = False
        self._refreshing = threading.Lock()
        self.unavailable = "the table of marks was not read yet"
        """The reason why the side table is off, with the fix; empty while it is in use."""

    def held(self, instance_id: str, timecode: int) -> Mark | None:
        """The hold on a source's timecode; None where there is none."""
        return self._set.held(instance_id, timecode, datetime.now(UTC))

    def handed_over(self, instance_id: str, timecode: int, file_id: int = 0) -> Mark | None:
        """The hand-over of a source's timecode, see :meth:`MarkSet.handed_over`; None where there is none."""
        return self._set.handed_over(instance_id, timecode, file_id)

    def require_read(self, connection: sa.Connection) -> None:
        """Reads the marks if they were not read yet."""
        if not self._is_read:
            self.refresh(connection)

    @property
    def current(self) -> MarkSet:
        """All of them, as of the last refresh."""
        return self._set

    def refresh(self, connection: sa.Connection) -> None:
        """Reads table and file, and adds to each what only the other has.

        A mark that was read once is not forgotten because the table cannot be read.
        """
        with self._refreshing:
            self._read_table(connection)
            before, path = self._set, self._path()
            in_file = read_file(path) if path else ()
            self._is_read = True
            # The marks of before are in the file, too, unless that is out of reach.
            self._set = MarkSet([*self._in_table, *in_file, *before.newest])
            if not self.unavailable:
                self._restore(connection)
            if path is not None and set(map(_essence, self._set.newest)) != set(map(_essence, in_file)):
                self._write_file(path)
            is_changed = set(map(_essence, before.newest)) != set(map(_essence, self._set.newest))
        if is_changed:
            self._on_change()

    def _path(self) -> Path | None:
        directory = self._directory()
        return None if directory is None else file_of(directory, self._database, self._file_table)

    def _read_table(self, connection: sa.Connection) -> None:
        if self.unavailable:
            self.unavailable = open_side_table(connection, MARKS)
        if not self.unavailable:
            try:
                self._in_table = read_table(connection, self._file_table)
            except sa.exc.DBAPIError as error:
                if error_code(error) not in HISTORY_ERRORS:
                    raise
                self.unavailable = str(error.orig)
        self._log_once("marks_off", self.unavailable)

    def _restore(self, connection: sa.Connection) -> None:
        """Adds to the table what it lacks: it is a restored backup."""
        in_table = {mark.about: mark for mark in MarkSet(self._in_table).newest}
        lacking = [mark for mark in self._set.newest if mark.about not in in_table or in_table[mark.about].at < mark.at]
        if not lacking:
            return
        try:
            connection.execute(sa.insert(MARKS), [_values(self._file_table, mark) for mark in lacking])
        except sa.exc.DBAPIError as error:
            if error_code(error) not in HISTORY_ERRORS:
                raise
            self._log_once("marks_not_restored", str(error.orig))
            return
        _log.warning(
            "marks_restored",
            marks=len(lacking),
            detail="the file alongside the archive has marks that the table has not: the database was restored from a backup",
        )

    def _write_file(self, path: Path) -> None:
        text = json.dumps({"marks": to_jsonable(self._set.newest)}, indent=1) + "\n"
        temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            self._log_once("marks_not_copied", f"{path}: {error.strerror or error}")

    def _log_once(self, event: str, detail: str) -> None:
        if detail and detail != self._logged:
            _log.warning(event, detail=detail)
            self._logged = detail


def file_of(directory: Path, database: str, file_table: str) -> Path:
    """The file of the marks in a directory."""
    return directory / f"marks-{quote(database, safe='')}-{quote(file_table, safe='')}.json"


def read_file(path: Path) -> tuple[Mark, ...]:
    """The marks of a file; none where it does not exist or cannot be used, which is logged."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["marks"]
        return tuple(_of_file(entry) for entry in entries)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError) as error:
        _log.warning("marks_file_unusable", path=str(path), detail=str(error))
        return ()


def read_table(connection: sa.Connection, file_table: str) -> tuple[Mark, ...]:
    """All entries of the table, by number. Those of a kind that only a later version knows are passed over."""
    entries = sa.select(MARKS).where(MARKS.c.file_table == file_table).order_by(MARKS.c.number)
    return tuple(_of_row(row) for row in connection.execute(entries) if row.kind in set(MarkKind))


def add_marks(connection: sa.Connection, file_table: str, marks: Sequence[Mark]) -> None:
    """Adds entries, within the caller's transaction: newer than all others, even if the database's clock was set back.

    Args:
        marks: their ``at`` and ``number`` are set here.
    """
    newest = sa.select(sa.func.max(MARKS.c.at)).where(MARKS.c.file_table == file_table).scalar_subquery()
    now, last = connection.execute(sa.select(sa.func.utc_timestamp(3), newest)).one()
    at = _aware(now if last is None else max(now, last + timedelta(milliseconds=1)))
    if marks:
        connection.execute(sa.insert(MARKS), [_values(file_table, replace(mark, at=at)) for mark in marks])


def _values(file_table: str, mark: Mark) -> dict[str, Any]:
    return {
        "file_table": file_table,
        "kind": mark.kind.value,
        "instance_id": mark.instance_id,
        "timecode": mark.timecode,
        "file_id": mark.file_id or None,
        "by_whom": mark.by_whom[:255],
        "reason": mark.reason,
        "until": mark.until.astimezone(UTC).replace(tzinfo=None) if mark.until else None,
        "at": mark.at.replace(tzinfo=None),
    }


def _of_file(entry: dict[str, Any]) -> Mark:
    until = entry["until"]
    return Mark(
        MarkKind(entry["kind"]),
        str(entry["instance_id"]),
        int(entry["timecode"]),
        str(entry["by_whom"]),
        str(entry["reason"]),
        datetime.fromisoformat(until).astimezone(UTC) if until else None,
        datetime.fromisoformat(entry["at"]).astimezone(UTC),
        int(entry["number"]),
        int(entry["file_id"]),
    )


def _of_row(row: Any) -> Mark:
    return Mark(
        MarkKind(row.kind),
        row.instance_id,
        row.timecode,
        row.by_whom,
        row.reason,
        None if row.until is None else _aware(row.until),
        _aware(row.at),
        row.number,
        row.file_id or 0,
    )


def _essence(mark: Mark) -> tuple[_Object, MarkKind, datetime]:
    """What tells two entries apart, whatever their numbers: a restored one has a new number."""
    return mark.about, mark.kind, mark.at


def _aware(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC)
