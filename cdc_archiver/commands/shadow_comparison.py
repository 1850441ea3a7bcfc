"""`shadow`: beside the archiver that is to be replaced, says of each file what we would have done, and compares. Writes nothing."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from cdc_archiver.commands.context import CommandContext
from cdc_archiver.commands.hashing import Stopped, hash_file
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.search import NOT_ARCHIVED, Criteria, RowState, state_of, walk
from cdc_archiver.errors import DatabaseUnavailable, LayoutRefused
from cdc_archiver.events.binlog import BinlogStream
from cdc_archiver.events.interval_set import IntervalSet
from cdc_archiver.model import FileRecord
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.transfer import layout

_TICK: Final = 0.2
_PAGE: Final = 500
_SETTLE: Final = 1.5
"""Seconds after which a row that was committed before the stream's begin is surely visible."""


class Comparison(StrEnum):
    """What we say of a file."""

    WOULD_ARCHIVE = "would archive"
    WOULD_REFUSE = "would refuse"
    """We would, and the old archiver has not archived it (yet)."""
    AGREE = "agree"
    DIFFER = "differ"
    OLD_FAILED = "old failed"


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that is said of one file.

    Attributes:
        ours: where we would have archived it, below data_dir; empty where we would refuse it.
        theirs: where the old archiver did; None while it has not.
    """

    id: int
    comparison: Comparison
    path: str
    ours: str
    theirs: str | None
    detail: str = ""


@dataclass(slots=True)
class Sums:
    """All of it.

    Attributes:
        waiting: files that the old archiver has not decided yet.
        refused_and_archived: of those that differ, the ones that we would have refused.
    """

    agree: int = 0
    differ: int = 0
    would_refuse: int = 0
    old_failed: int = 0
    waiting: int = 0
    refused_and_archived: int = 0
    hashed: int = 0


@dataclass(slots=True)
class _Seen:
    """A file that waits for the old archiver: its row before that one changed it."""

    record: FileRecord
    said: set[Comparison] = field(default_factory=set)


class Shadow:
    """One run.

    Args:
        data_dir: the archive's directory, as rows call it.
        archive_here: the same directory on this machine; None: no file is looked at.
        targets: whose files; empty for all.
        tell: told of each observation.
        say: told, in words, how the table is followed.
    """

    def __init__(
        self,
        desk: CommandContext,
        data_dir: Path,
        archive_here: Path | None,
        targets: Sequence[str],
        tell: Callable[[Observation], None],
        say: Callable[[str], None] = lambda words: None,
    ) -> None:
        self._desk = desk
        self._data_dir = str(data_dir).rstrip("/")
        self._archive_here = archive_here
        self._targets = tuple(targets)
        self._folded = {target.casefold().rstrip() for target in targets}
        self._tell = tell
        self._say = say
        self._stop = threading.Event()
        self._ids: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._sweep_wanted = threading.Event()
        self._waiting: dict[int, _Seen] = {}
        self._compared = IntervalSet()
        self.sums = Sums()

    def stop(self) -> None:
        """Asks it to end; may be called from a signal handler."""
        self._stop.set()

    def once(self) -> bool:
        """Compares what is in the table now.

        Returns:
            Whether all of it; False after a stop.
        """
        rows = walk(self._desk.database, self._desk.files, Criteria(targets=self._targets), newest_first=False)
        with contextlib.suppress(Stopped):
            for row in rows:
                if self._stop.is_set():
                    break
                self._judge(row)
        self._count_waiting()
        return not self._stop.is_set()

    def follow(self) -> None:
        """Compares what comes from now on, until it is stopped."""
        with self._desk.database.connect() as connection:
            newest = self._desk.files.max_id(connection)
        # A server_id of its own: a set one is the service's.
        stream = BinlogStream(self._desk.database, self._desk.files.name, self, Metrics())
        stream.start()
        try:
            with contextlib.suppress(Stopped):
                self._follow(newest)
        finally:
            stream.stop()
            stream.join(5.0)
            self._count_waiting()

    def _follow(self, newest: int) -> None:
        sweep_at = second_look_at = 0.0
        while not self._stop.is_set():
            now = time.monotonic()
            if self._sweep_wanted.is_set():
                self._sweep_wanted.clear()
                sweep_at, second_look_at = now, now + _SETTLE
            try:
                if now >= sweep_at or (second_look_at and now >= second_look_at):
                    second_look_at = 0.0 if now >= second_look_at else second_look_at
                    newest = self._sweep(newest)
                    sweep_at = now + self._desk.settings.poll_interval
                self._take_ids()
            except DatabaseUnavailable as error:
                self._say(str(error))
                sweep_at = now + self._desk.settings.poll_interval
                self._stop.wait(1.0)

    def _take_ids(self) -> None:
        """What the stream tells, all that is there."""
        ids: list[int] = []
        try:
            ids.append(self._ids.get(timeout=_TICK))
            while len(ids) < _PAGE:
                ids.append(self._ids.get_nowait())
        except queue.Empty:
            pass
        if ids:
            with self._desk.database.connect() as connection:
                rows = self._desk.files.load(connection, ids)
            for id_ in dict.fromkeys(ids):
                if id_ in rows and self._is_ours(rows[id_].record):
                    self._judge(rows[id_])

    def _sweep(self, newest: int) -> int:
        """What waits, what we wait for, and what has come and gone since the last sweep."""
        desk = self._desk
        for row in walk(desk.database, desk.files, Criteria(targets=self._targets), newest_first=False, after=newest):
            newest = row.record.id
            self._judge(row)
        waiting = Criteria(targets=self._targets, states=NOT_ARCHIVED)
        for row in walk(desk.database, desk.files, waiting, newest_first=False):
            if self._stop.is_set():
                return newest
            self._judge(row)
        ids = list(self._waiting)
        for start in range(0, len(ids), _PAGE):
            with desk.database.connect() as connection:
                rows = desk.files.load(connection, ids[start : start + _PAGE])
            for row in rows.values():
                self._judge(row)
        return newest

    def _is_ours(self, record: FileRecord) -> bool:
        return not self._folded or record.instance_id.casefold().rstrip() in self._folded

    def _judge(self, row: Row) -> None:
        id_ = row.record.id
        seen = self._waiting.get(id_)
        if row.copied:
            if seen is not None or id_ not in self._compared:
                self._compare(row, seen.record if seen else row.record)
            self._waiting.pop(id_, None)  # not before: whoever stops it while a file is read has not compared it
            return
        if seen is None or _identity(seen.record) != _identity(row.record):
            seen = self._waiting[id_] = _Seen(row.record)
        ours, refusal = self._ours(row.record)
        self._say_once(seen, Comparison.WOULD_REFUSE if refusal else Comparison.WOULD_ARCHIVE, ours, refusal)
        if state_of(row, self._desk.settings.max_attempts) in (RowState.QUARANTINED, RowState.REFUSED):
            words = f"it was given up after {row.record.attempts} attempts"
            self._say_once(seen, Comparison.OLD_FAILED, ours, words)

    def _say_once(self, seen: _Seen, comparison: Comparison, ours: str, detail: str) -> None:
        if comparison in seen.said:
            return
        seen.said.add(comparison)
        if comparison is Comparison.OLD_FAILED:
            self.sums.old_failed += 1
        elif comparison is Comparison.WOULD_REFUSE:
            self.sums.would_refuse += 1
        self._tell(Observation(seen.record.id, comparison, seen.record.path, ours, None, detail))

    def _compare(self, row: Row, before: FileRecord) -> None:
        theirs = row.record.path
        ours, refusal = self._ours(before)
        detail = refusal and f"we would refuse it: {refusal}"
        if not detail and not self._is_place(theirs, ours):
            detail = "another path"
        if not detail:
            detail = self._content(row.record)
        self._compared.add(row.record.id)
        if refusal:
            self.sums.refused_and_archived += 1
        if detail:
            self.sums.differ += 1
        else:
            self.sums.agree += 1
        self._tell(
            Observation(
                row.record.id, Comparison.DIFFER if detail else Comparison.AGREE, before.path, ours, theirs, detail
            )
        )

    def _ours(self, record: FileRecord) -> tuple[str, str]:
        """Our place, or why there is none."""
        try:
            ours = f"{self._data_dir}/{layout.archived_path(record)}"
            layout.require_fit(ours, self._desk.files.path_width)
        except LayoutRefused as refusal:
            return "", refusal.message
        if len(record.md5sum) != 16:
            return "", "the row has no md5sum of 16 bytes"
        return ours, ""

    def _is_place(self, theirs: str, ours: str) -> bool:
        """A number at the end is for a name that was taken: whose turn it was is no difference."""
        return re.fullmatch(re.escape(ours) + r"(\.[1-9]\d*)?", theirs) is not None

    def _content(self, record: FileRecord) -> str:
        """What is wrong with the old archiver's file; empty where it is right, or nobody looks.

        Raises:
            Stopped: somebody asked to stop meanwhile.
        """
        if self._archive_here is None:
            return ""
        place = self._archive_here / record.path.removeprefix(self._data_dir).lstrip("/")
        try:
            md5, _ = hash_file(place, self._stop)
        except (OSError, ValueError) as error:
            return f"its file cannot be read: {getattr(error, 'strerror', None) or error}"
        self.sums.hashed += 1
        return "" if md5 == record.md5sum else f"its file has the md5 {md5.hex()}, the row says {record.md5sum.hex()}"

    def _count_waiting(self) -> None:
        decided = (Comparison.OLD_FAILED, Comparison.WOULD_REFUSE)
        self.sums.waiting = sum(not seen.said.intersection(decided) for seen in self._waiting.values())

    # What the stream tells, in its own thread: none of it waits.

    def on_ids(self, ids: Sequence[int]) -> None:
        for id_ in ids:
            self._ids.put(id_)

    def on_anchor(self) -> None:
        self._say("following the binary log")
        self._sweep_wanted.set()

    def on_gap(self, why: str) -> None:
        self._sweep_wanted.set()

    def on_lost(self, reason: str) -> None:
        self._say(f"the stream ended ({reason}), and is opened again")
        self._sweep_wanted.set()

    def on_unavailable(self, why: str) -> None:
        self._say(f"no stream, so the table is polled: {why}")
        self._sweep_wanted.set()


def _identity(record: FileRecord) -> tuple[object, ...]:
    return (
        record.path,
        record.md5sum,
        record.timestamp,
        record.action,
        record.action_timestamp,
        record.pub_id,
        record.plot,
    )
