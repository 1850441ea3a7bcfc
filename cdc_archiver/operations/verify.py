"""`verify`: archived files are read again and compared with their rows; can be stopped at any time, and goes on from there."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from cdc_archiver.database.files_table import Row
from cdc_archiver.database.search import Criteria, walk
from cdc_archiver.errors import DestinationUnavailable, ExitStatus, Misconfigured
from cdc_archiver.model import Reason
from cdc_archiver.operations.desk import Desk
from cdc_archiver.operations.hashing import NoFile, Stopped, hash_file
from cdc_archiver.operations.requeue import Requeue
from cdc_archiver.transfer.staging import MARKER

_AHEAD: Final = 4
"""Files in hand for each job: enough that none waits, few enough that little is done twice after a stop."""
_REQUEUE_AT: Final = 100
"""Files that are asked for on their source together: each question is a login."""
_PAGE: Final = 500


class Verdict(StrEnum):
    """What came of one file."""

    OK = "ok"
    MISSING = "missing"
    CHANGED = "changed"
    UNREADABLE = "unreadable"


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


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be read.

    Attributes:
        sample: the ids drawn by lot, ascending; None for all that the criteria mean.
    """

    criteria: Criteria
    sample: tuple[int, ...] | None
    tally: Tally


def draw(desk: Desk, criteria: Criteria, sample: str) -> tuple[int, ...] | None:
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


def require_mounted(data_dir: Path | None) -> bool:
    """Asks whether the archive is here: on a bare mount point every file is missing.

    Returns:
        Whether its marker file is there, too.

    Raises:
        Misconfigured: data_dir is not known.
        ArchiveAway: it is not there, or empty and without its marker.
    """
    if data_dir is None:
        raise Misconfigured("there is no data_dir", "--data-dir /data/… or CDC_ARCHIVER_DATA_DIR")
    try:
        names = set(os.listdir(data_dir))
    except OSError as error:
        raise ArchiveAway(
            Reason.DESTINATION_MISSING, f"data_dir {data_dir} cannot be read: {error.strerror}", "is its disk mounted?"
        ) from error
    if not names:
        raise ArchiveAway(Reason.DESTINATION_MISSING, f"data_dir {data_dir} is empty", "is its disk mounted?")
    return MARKER in names


class ArchiveAway(DestinationUnavailable):
    """The archive's disk is not here: nothing can be said of its files."""

    exit_status = ExitStatus.UNREACHABLE


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
        desk: Desk,
        plan: Plan,
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
        self._marked = require_mounted(desk.settings.data_dir)
        self._wrong: list[tuple[Row, Problem]] = []
        self.tally = plan.tally

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
        waiting: deque[tuple[Row, Future[tuple[bytes, int]]]] = deque()
        with ThreadPoolExecutor(self._jobs, "verify") as pool:
            try:
                for row in self._rows():
                    waiting.append((row, pool.submit(hash_file, row.record.path, self._stop, aside=True)))
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
        self._settle()
        self._on_progress(self.tally)
        return not self._stop.is_set()

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
                self._wrong.append((row, Problem(row.record.id, row.record.path, verdict, detail)))
                if self._requeue is None or len(self._wrong) >= _REQUEUE_AT:
                    self._settle()
        self.tally.after = row.record.id
        self._on_progress(self.tally)

    def _verdict(self, row: Row, future: Future[tuple[bytes, int]]) -> tuple[Verdict, str, int]:
        md5 = row.record.md5sum
        try:
            seen, size = future.result()
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
        if require_mounted(self._desk.settings.data_dir) is not self._marked:
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
        """Says what is wrong, and has it archived anew where that is wanted."""
        wrong, self._wrong = self._wrong, []
        notes = self._requeue.ask_again([row for row, _ in wrong]) if self._requeue and wrong else {}
        for row, problem in wrong:
            note = notes.get(row.record.id)
            if note is None:
                self._on_problem(problem)
                continue
            self.tally.requeued += note == ""
            self._on_problem(Problem(problem.id, problem.path, problem.verdict, problem.detail, note == "", note))
