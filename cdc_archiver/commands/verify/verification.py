"""Reads archived files and compares them with their rows. Can be stopped at any time, and continued."""

from __future__ import annotations

import copy
import os
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from cdc_archiver.commands.archive_access import (
    ArchiveUnavailable,
    is_still_mounted,
    require_directory,
    require_mounted,
)
from cdc_archiver.commands.context import CommandContext
from cdc_archiver.commands.hashing import NotARegularFile, Stopped, hash_file
from cdc_archiver.commands.marking import usable_marks
from cdc_archiver.commands.verify.requeue import Requeue
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.search import Criteria, walk
from cdc_archiver.errors import Misconfigured
from cdc_archiver.model import FileRecord, Reason
from cdc_archiver.transfer.layout import timecode_of

_FILES_PER_JOB: Final = 4
"""Files under way for each job: enough that no job waits, few enough that little is read twice after a stop."""
_REQUEUE_BATCH: Final = 100
"""Files to look for on their source together: each look is a login."""
_REQUEUE_DELAY: Final = 15.0
"""Seconds that a file waits for others of its batch: a continued run reads these seconds' files again."""
_PAGE: Final = 500
_TICK: Final = 0.5


class FileVerdict(StrEnum):
    """The result for one file. The values are values of ``--json`` and labels of a metric."""

    OK = "ok"
    MISSING = "missing"
    CHANGED = "changed"
    UNREADABLE = "unreadable"
    ELSEWHERE = "elsewhere"
    """The row's path is not below data_dir: a file of another archive, which is not read."""
    HANDED_OVER = "handed_over"
    """Somebody downstream took the file's timecode over and may have removed it: it is not read."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that is not as its row says. Field names are keys of ``--json``.

    Attributes:
        requeued: whether it was requeued.
        requeue_note: if requested and not done, the reason.
    """

    id: int
    path: str
    verdict: FileVerdict
    detail: str
    requeued: bool = False
    requeue_note: str = ""


@dataclass(slots=True)
class VerificationProgress:
    """The progress of a run. Field names are keys of ``--json`` and of the state file.

    Attributes:
        total: files to read.
        after: all files up to this id are done.
        moved_on: rows that were changed while their file was read.
        size: bytes read.
    """

    total: int = 0
    after: int = 0
    verdicts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys((verdict.value for verdict in FileVerdict), 0)
    )
    moved_on: int = 0
    requeued: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        for verdict in FileVerdict:  # the state file of an earlier version has fewer
            self.verdicts.setdefault(verdict.value, 0)

    @property
    def done(self) -> int:
        """Files that have a verdict, or changed meanwhile."""
        return sum(self.verdicts.values()) + self.moved_on

    @property
    def wrong(self) -> int:
        """Files with a problem."""
        right = (FileVerdict.OK, FileVerdict.HANDED_OVER)
        return sum(count for verdict, count in self.verdicts.items() if verdict not in right)


@dataclass(slots=True)
class VerificationPlan:
    """What to read.

    Attributes:
        sample: the ids of a random sample, ascending; None for all files that match the criteria.
        progress: the last one with no problem left to report or requeue: a continued run starts there.
    """

    criteria: Criteria
    sample: tuple[int, ...] | None
    progress: VerificationProgress


def draw_sample(context: CommandContext, criteria: Criteria, sample: str) -> tuple[int, ...] | None:
    """The ids of a random sample; None for all files.

    Args:
        sample: a number of files, or a percentage (``1%``); empty for all.

    Raises:
        Misconfigured: it is neither.
    """
    if not sample:
        return None
    conditions = criteria.conditions(context.files)
    try:
        percentage = float(sample[:-1]) if sample.endswith("%") else None
        size = int(sample) if percentage is None else 0
    except ValueError:
        percentage, size = None, 0
    if not (size > 0 if percentage is None else 0 < percentage <= 100):
        raise Misconfigured(f"invalid sample: {sample!r}", "use a number of files or a percentage: 1000, 0.5%")
    with context.database.connect() as connection:
        if percentage is not None:
            size = max(1, round(context.files.count(connection, *conditions) * percentage / 100))
        return tuple(sorted(context.files.sample(connection, *conditions, size=size)))


class _NotBelowDataDir(Exception):
    """A row's path is not below data_dir."""


class _HandedOver(Exception):
    """A row's timecode was handed over."""


class Verification:
    """One run.

    Args:
        plan: what to read, and what an earlier run has done.
        jobs: files to read at the same time.
        requeue: None to requeue nothing.
        on_problem: called with each file that has a problem.
        on_progress: called after each file.

    Raises:
        ArchiveUnavailable: the archive's disk is not mounted.
    """

    def __init__(
        self,
        context: CommandContext,
        plan: VerificationPlan,
        jobs: int,
        requeue: Requeue | None,
        on_problem: Callable[[Problem], None],
        on_progress: Callable[[VerificationProgress], None] = lambda progress: None,
    ) -> None:
        self._context = context
        self._plan = plan
        self._jobs = jobs
        self._requeue = requeue
        self._on_problem = on_problem
        self._on_progress = on_progress
        self._stop = threading.Event()
        self._marked = require_mounted(context)
        with context.database.connect() as connection:
            self._marks = usable_marks(context, connection)
        self._unreported: list[tuple[Row, Problem]] = []
        self._report_at = 0.0
        self.progress = copy.deepcopy(plan.progress)

    def stop(self) -> None:
        """Requests the end; may be called from a signal handler."""
        self._stop.set()

    def run(self) -> bool:
        """Reads the files.

        Returns:
            Whether all of them; False after a stop.

        Raises:
            ArchiveUnavailable: the archive's disk was unmounted.
        """
        try:
            self._read()
            self._report()
        except BaseException:
            # A continued run finds these again, by VerificationPlan.progress; but there may be none.
            for _, problem in self._unreported:
                self._on_problem(replace(problem, requeue_note="the run ended before that"))
            raise
        self._on_progress(self.progress)
        return not self._stop.is_set()

    def _read(self) -> None:
        waiting: deque[tuple[Row, Future[tuple[bytes, int]]]] = deque()
        with ThreadPoolExecutor(self._jobs, "verify") as pool:
            try:
                for row in self._rows():
                    waiting.append((row, pool.submit(self._hash, row.record)))
                    if len(waiting) >= self._jobs * _FILES_PER_JOB:
                        self._judge(*waiting.popleft())
                    if self._stop.is_set():
                        break
                while waiting:
                    self._judge(*waiting.popleft())
            except Stopped:
                pass
            finally:
                self._stop_reading(waiting)

    def _hash(self, record: FileRecord) -> tuple[bytes, int]:
        path = record.path
        timecode = timecode_of(record, record.path) if self._marks.handed_over_timecodes else None
        if timecode is not None and self._marks.handed_over(record.instance_id, timecode, record.id):
            raise _HandedOver
        below = os.path.join(os.path.normpath(self._context.settings.data_dir or "/"), "")
        if not os.path.normpath(path).startswith(below):
            raise _NotBelowDataDir
        return hash_file(path, self._stop, drop_cache=True)

    def _stop_reading(self, waiting: deque[tuple[Row, Future[tuple[bytes, int]]]]) -> None:
        if waiting:
            self._stop.set()
        for _, future in waiting:
            future.cancel()

    def _rows(self) -> Iterator[Row]:
        context, plan = self._context, self._plan
        if plan.sample is None:
            after = self.progress.after
            yield from walk(context.database, context.files, plan.criteria, newest_first=False, after=after)
            return
        left = [id_ for id_ in plan.sample if id_ > self.progress.after]
        for start in range(0, len(left), _PAGE):
            with context.database.connect() as connection:
                rows = context.files.load(connection, left[start : start + _PAGE])
            yield from (rows[id_] for id_ in sorted(rows) if rows[id_].copied)

    def _judge(self, row: Row, future: Future[tuple[bytes, int]]) -> None:
        verdict, detail, size = self._verdict(row, future)
        right = verdict in (FileVerdict.OK, FileVerdict.HANDED_OVER)
        if not right and self._has_changed(row):
            self.progress.moved_on += 1
        else:
            self.progress.verdicts[verdict] += 1
            self.progress.size += size
            if not right:
                self._report_at = self._report_at if self._unreported else time.monotonic() + _REQUEUE_DELAY
                self._unreported.append((row, Problem(row.record.id, row.record.path, verdict, detail)))
        self.progress.after = row.record.id
        if self._requeue is None or len(self._unreported) >= _REQUEUE_BATCH or time.monotonic() > self._report_at:
            self._report()
        self._on_progress(self.progress)

    def _verdict(self, row: Row, future: Future[tuple[bytes, int]]) -> tuple[FileVerdict, str, int]:
        """The verdict, its detail, and the bytes read."""
        md5 = row.record.md5sum
        try:
            seen, size = _result(future)
        except _HandedOver:
            return FileVerdict.HANDED_OVER, "", 0
        except _NotBelowDataDir:
            data_dir = self._context.settings.data_dir
            return FileVerdict.ELSEWHERE, f"it is not below {data_dir}: set --data-dir as the rows name it", 0
        except (FileNotFoundError, NotADirectoryError):
            self._require_still_mounted()
            return FileVerdict.MISSING, "it does not exist", 0
        except NotARegularFile as error:
            return FileVerdict.CHANGED, str(error), 0
        except OSError as error:
            return FileVerdict.UNREADABLE, error.strerror or str(error), 0
        except ValueError:
            return FileVerdict.MISSING, "no file can have that name", 0
        if seen == md5:
            return FileVerdict.OK, "", size
        return FileVerdict.CHANGED, f"its md5 is {seen.hex()}, in the row {md5.hex() or 'none'}", size

    def _require_still_mounted(self) -> None:
        data_dir = self._context.settings.data_dir
        require_directory(data_dir)
        if self._marked and not is_still_mounted(self._context.settings):
            raise ArchiveUnavailable(
                Reason.DESTINATION_MISSING,
                f"data_dir {data_dir} lost its marker or its files during the run: its disk was unmounted",
                f"mount {shlex.quote(str(data_dir))}  # then run the same command",
            )

    def _has_changed(self, row: Row) -> bool:
        with self._context.database.connect() as connection:
            now = self._context.files.load(connection, [row.record.id]).get(row.record.id)
        return now != row

    def _report(self) -> None:
        """Requeues the files with a problem, if requested, and reports them.

        Unreadable files are not requeued: such a file may be intact, and only its row names it.
        """
        candidates = [row for row, problem in self._unreported if problem.verdict is not FileVerdict.UNREADABLE]
        notes = self._requeue.requeue(candidates) if self._requeue and candidates else {}
        problems, self._unreported = self._unreported, []
        for row, problem in problems:
            note = notes.get(row.record.id)
            if note is None:
                unread = "it cannot be read here; fix that first" if self._requeue else ""
                self._on_problem(replace(problem, requeue_note=unread))
                continue
            self.progress.requeued += note == ""
            self._on_problem(replace(problem, requeued=note == "", requeue_note=note))
        self._plan.progress = copy.deepcopy(self.progress)


def _result(future: Future[tuple[bytes, int]]) -> tuple[bytes, int]:
    """What a file's reader returns. Each wait is short: Python handles a signal between two of them."""
    while not wait([future], _TICK).done:
        pass
    return future.result()
