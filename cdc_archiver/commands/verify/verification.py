"""`verify`: archived files are read again and compared with their rows; can be stopped at any time, and goes on from there."""

from __future__ import annotations

import copy
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from cdc_archiver.commands.archive_access import ArchiveAway, require_directory, require_mounted
from cdc_archiver.commands.context import CommandContext
from cdc_archiver.commands.hashing import NoFile, Stopped, hash_file
from cdc_archiver.commands.verify.requeue import Requeue
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.search import Criteria, walk
from cdc_archiver.errors import Misconfigured
from cdc_archiver.model import Reason

_AHEAD: Final = 4
"""Files in hand for each job: enough that none waits, few enough that little is done twice after a stop."""
_REQUEUE_AT: Final = 100
"""Files that are asked for on their source together: each question is a login."""
_REQUEUE_AFTER: Final = 15.0
"""Seconds that a file waits for others to be asked for with: a run that goes on reads these seconds' files again."""
_PAGE: Final = 500
_TICK: Final = 0.5


class Verdict(StrEnum):
    """What came of one file."""

    OK = "ok"
    MISSING = "missing"
    CHANGED = "changed"
    UNREADABLE = "unreadable"
    ELSEWHERE = "elsewhere"
    """The row names a place that is not below data_dir: another archive's file, and not read."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that is not right.

    Attributes:
        requeued: whether it is archived anew; why not, in ``requeue_note``, where that was asked for.
    """

    id: int
    path: str
    verdict: Verdict
    detail: str
    requeued: bool = False
    requeue_note: str = ""


@dataclass(slots=True)
class Tally:
    """How far it is.

    Attributes:
        total: files that are to be read.
        after: all files up to this id are done.
        moved_on: rows that were made pending, or archived anew, while their file was read.
    """

    total: int = 0
    after: int = 0
    verdicts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((verdict.value for verdict in Verdict), 0))
    moved_on: int = 0
    requeued: int = 0
    size: int = 0

    @property
    def done(self) -> int:
        """Files that were read, or found not to be there."""
        return sum(self.verdicts.values()) + self.moved_on

    @property
    def wrong(self) -> int:
        """Files that are not right."""
        return sum(count for verdict, count in self.verdicts.items() if verdict != Verdict.OK)


@dataclass(slots=True)
class VerificationPlan:
    """What is to be read.

    Attributes:
        sample: the ids drawn by lot, ascending; None for all that the criteria mean.
        tally: how far a run has come with nothing left to say or to do for the files before: where another goes on.
    """

    criteria: Criteria
    sample: tuple[int, ...] | None
    tally: Tally


def draw(desk: CommandContext, criteria: Criteria, sample: str) -> tuple[int, ...] | None:
    """The ids of a sample.

    Args:
        sample: a number of files, or a share of them (``1%``); empty for all.

    Raises:
        Misconfigured: it is neither.
    """
    if not sample:
        return None
    conditions = criteria.conditions(desk.files)
    try:
        share = float(sample[:-1]) if sample.endswith("%") else None
        size = int(sample) if share is None else 0
    except ValueError:
        share, size = None, 0
    if not (size > 0 if share is None else 0 < share <= 100):
        raise Misconfigured(f"{sample!r} is no sample", "say a number of files, or a share: 1000, 0.5%")
    with desk.database.connect() as connection:
        if share is not None:
            size = max(1, round(desk.files.count(connection, *conditions) * share / 100))
        return tuple(sorted(desk.files.sample(connection, *conditions, size=size)))


class _NotBelow(Exception):
    """A row's path is not below data_dir."""


class Verification:
    """One run.

    Args:
        plan: what to read, and what was read before.
        jobs: files that are read at a time.
        requeue: None to leave files as they are.
        on_problem: told of each file that is not right.
        on_progress: told how far it is, a few times a second.
    """

    def __init__(
        self,
        desk: CommandContext,
        plan: VerificationPlan,
        jobs: int,
        requeue: Requeue | None,
        on_problem: Callable[[Problem], None],
        on_progress: Callable[[Tally], None] = lambda tally: None,
    ) -> None:
        self._desk = desk
        self._plan = plan
        self._jobs = jobs
        self._requeue = requeue
        self._on_problem = on_problem
        self._on_progress = on_progress
        self._stop = threading.Event()
        self._marked = require_mounted(desk)
        self._wrong: list[tuple[Row, Problem]] = []
        self._settle_at = 0.0
        self.tally = copy.deepcopy(plan.tally)

    def stop(self) -> None:
        """Asks it to end; may be called from a signal handler."""
        self._stop.set()

    def run(self) -> bool:
        """Reads the files.

        Returns:
            Whether all of them; False after a stop.

        Raises:
            ArchiveAway: the archive's disk went away.
        """
        try:
            self._read()
            self._settle()
        except BaseException:
            # Whoever goes on finds them again, by VerificationPlan.tally; nobody may.
            for _, problem in self._wrong:
                self._on_problem(replace(problem, requeue_note="the run ended before that was done"))
            raise
        self._on_progress(self.tally)
        return not self._stop.is_set()

    def _read(self) -> None:
        waiting: deque[tuple[Row, Future[tuple[bytes, int]]]] = deque()
        with ThreadPoolExecutor(self._jobs, "verify") as pool:
            try:
                for row in self._rows():
                    waiting.append((row, pool.submit(self._hash, row.record.path)))
                    if len(waiting) >= self._jobs * _AHEAD:
                        self._judge(*waiting.popleft())
                    if self._stop.is_set():
                        break
                while waiting:
                    self._judge(*waiting.popleft())
            except Stopped:
                pass
            finally:
                self._stop_reading(waiting)

    def _hash(self, path: str) -> tuple[bytes, int]:
        below = os.path.join(os.path.normpath(self._desk.settings.data_dir or "/"), "")
        if not os.path.normpath(path).startswith(below):
            raise _NotBelow
        return hash_file(path, self._stop, aside=True)

    def _stop_reading(self, waiting: deque[tuple[Row, Future[tuple[bytes, int]]]]) -> None:
        if waiting:
            self._stop.set()
        for _, future in waiting:
            future.cancel()

    def _rows(self) -> Iterator[Row]:
        desk, plan = self._desk, self._plan
        if plan.sample is None:
            yield from walk(desk.database, desk.files, plan.criteria, newest_first=False, after=self.tally.after)
            return
        left = [id_ for id_ in plan.sample if id_ > self.tally.after]
        for start in range(0, len(left), _PAGE):
            with desk.database.connect() as connection:
                rows = desk.files.load(connection, left[start : start + _PAGE])
            yield from (rows[id_] for id_ in sorted(rows) if rows[id_].copied)

    def _judge(self, row: Row, future: Future[tuple[bytes, int]]) -> None:
        verdict, detail, size = self._verdict(row, future)
        if verdict is not Verdict.OK and self._moved_on(row):
            self.tally.moved_on += 1
        else:
            self.tally.verdicts[verdict] += 1
            self.tally.size += size
            if verdict is not Verdict.OK:
                self._settle_at = self._settle_at if self._wrong else time.monotonic() + _REQUEUE_AFTER
                self._wrong.append((row, Problem(row.record.id, row.record.path, verdict, detail)))
        self.tally.after = row.record.id
        if self._requeue is None or len(self._wrong) >= _REQUEUE_AT or time.monotonic() > self._settle_at:
            self._settle()
        self._on_progress(self.tally)

    def _verdict(self, row: Row, future: Future[tuple[bytes, int]]) -> tuple[Verdict, str, int]:
        md5 = row.record.md5sum
        try:
            seen, size = _result(future)
        except _NotBelow:
            data_dir = self._desk.settings.data_dir
            return Verdict.ELSEWHERE, f"it is not below {data_dir}: is --data-dir the directory that rows name?", 0
        except (FileNotFoundError, NotADirectoryError):
            self._require_still_mounted()
            return Verdict.MISSING, "it is not there", 0
        except NoFile as error:
            return Verdict.CHANGED, str(error), 0
        except OSError as error:
            return Verdict.UNREADABLE, error.strerror or str(error), 0
        except ValueError:
            return Verdict.MISSING, "no file can have that name", 0
        if seen == md5:
            return Verdict.OK, "", size
        return Verdict.CHANGED, f"md5 {seen.hex()}, the row says {md5.hex() or 'none'}", size

    def _require_still_mounted(self) -> None:
        if not require_directory(self._desk.settings.data_dir) and self._marked:
            raise ArchiveAway(
                Reason.DESTINATION_MISSING,
                f"{self._desk.settings.data_dir} has lost its marker file while it was read: its disk was unmounted",
                "mount it, and go on",
            )

    def _moved_on(self, row: Row) -> bool:
        with self._desk.database.connect() as connection:
            now = self._desk.files.load(connection, [row.record.id]).get(row.record.id)
        return now != row

    def _settle(self) -> None:
        """Says what is wrong, and has it archived anew where that is wanted. What cannot be read here may be as good as ever: its row
        is all that names it."""
        again = [row for row, problem in self._wrong if problem.verdict is not Verdict.UNREADABLE]
        notes = self._requeue.ask_again(again) if self._requeue and again else {}
        wrong, self._wrong = self._wrong, []
        for row, problem in wrong:
            note = notes.get(row.record.id)
            if note is None:
                unread = "it cannot be read here: fix that first" if self._requeue else ""
                self._on_problem(replace(problem, requeue_note=unread))
                continue
            self.tally.requeued += note == ""
            self._on_problem(replace(problem, requeued=note == "", requeue_note=note))
        self._plan.tally = copy.deepcopy(self.tally)


def _result(future: Future[tuple[bytes, int]]) -> tuple[bytes, int]:
    """What a file's reader says. No wait is without an end: a signal that came to another thread is heeded between two."""
    while not wait([future], _TICK).done:
        pass
    return future.result()
