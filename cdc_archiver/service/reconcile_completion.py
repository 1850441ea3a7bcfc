"""`run --reconcile`: when a run that sweeps once is over, how far it is, and its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from cdc_archiver.database.files_table import Census
from cdc_archiver.errors import ExitStatus
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.service.bootstrap import ResolvedTables
from cdc_archiver.service.pipeline import Pipeline

_WATCH_INTERVAL: Final = 1.0
"""Seconds between two looks at the table while another archiver works."""
_PATIENCE: Final = 15.0
"""Seconds without progress after which a source or destination that is down is no longer waited for."""

_LOCK_LIMIT: Final = 10.0
"""Seconds, at least, for a first answer whether the locks are free."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReconcileProgress:
    """Progress so far.

    Attributes:
        total: files that were pending at the start, or came since.
        done: of these, archived, failed once or refused by now.
        size: bytes archived.
    """

    total: int
    done: int
    size: int


@dataclass(frozen=True, slots=True)
class ReconcileResult:
    """Result of a run.

    Attributes:
        archived: files archived in this run, adopted ones among them.
        left: rows that are still not archived.
        problems: what kept sources or the destination from archiving; empty where nothing did.
        unreachable: files are left and a source is down.
        watched: a running service did the work; this run only watched it.
    """

    archived: int
    left: Census
    problems: tuple[str, ...]
    unreachable: bool
    watched: bool

    @property
    def status(self) -> ExitStatus:
        """The exit status. Ignored files are not counted as left."""
        if self.unreachable:
            return ExitStatus.UNREACHABLE
        left = self.left.pending + self.left.quarantined + self.left.refused
        return ExitStatus.INCOMPLETE if left else ExitStatus.DONE


class ReconcileCompletion:
    """End condition of a supervisor without a stream. Used once, by the supervisor's thread.

    Args:
        wait: seconds to watch a service that holds the targets.
        on_progress: called a few times a second.
    """

    def __init__(
        self,
        wait: float = 600.0,
        on_progress: Callable[[ReconcileProgress], None] = lambda progress: None,
    ) -> None:
        self._wait = wait
        self._on_progress = on_progress
        self._archived_by_other = 0
        self._watching = False
        self._began = self._looked = float("-inf")
        self._moved = 0.0
        self._done_before = 0
        self.result: ReconcileResult | None = None
        """Set when the run has ended without an error."""

    def begin(self, tables: ResolvedTables, targets: Sequence[str], metrics: Metrics) -> None:
        """Counts the files that are pending at the start.

        Args:
            metrics: count what the pipeline does.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        self._tables, self._targets, self._metrics = tables, targets, metrics
        self._first = self._left = self._census()
        self._began = time.monotonic()

    def is_over(self, pipeline: Pipeline | None, holders: Mapping[str, str]) -> bool:
        """Whether the run is over: asked several times a second.

        Args:
            pipeline: where this process holds the locks.
            holders: the sources that another archiver holds.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        now = time.monotonic()
        if pipeline is None:
            return self._is_watched_enough(holders, now)
        if not self._moved:
            self._moved = now
            if self._watching:
                _log.info("taking_over")
        self._report(max(self._first.pending - self._archived_by_other, self._done()))
        # A source or the destination that is down is waited for, a file's own next attempt is not.
        if pipeline.sweeper.exhausted.is_set() and pipeline.dispatcher.idle and _is_up(pipeline):
            return True
        if self._done() != self._done_before or _is_up(pipeline):
            self._done_before, self._moved = self._done(), now
        return now - self._moved > _PATIENCE

    def finish(self, pipeline: Pipeline | None) -> ReconcileResult:
        """Makes the result, when all has stopped.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        if pipeline is None:
            self.result = ReconcileResult(
                self._archived_by_other, self._left, (), unreachable=False, watched=self._watching
            )
            return self.result
        left = self._census()
        self._report(max(self._first.pending - self._archived_by_other, self._done()))
        down = [
            f"{state.name}: {state.reason}: {state.detail}" for state in pipeline.dispatcher.states() if not state.up
        ]
        up, reason, detail = pipeline.dispatcher.destination
        self.result = ReconcileResult(
            archived=self._archived() + self._archived_by_other,
            left=left,
            problems=(*down, *(() if up else (f"{reason}: {detail}",))) if left.pending else (),
            unreachable=bool(down) and left.pending > 0,
            watched=False,
        )
        return self.result

    def _is_watched_enough(self, holders: Mapping[str, str], now: float) -> bool:
        """Watches another archiver: nothing is pending any more, or the time is over."""
        if not holders and not self._watching:  # the locks are free, or nobody is known to hold them
            return now - self._began > max(self._wait, _LOCK_LIMIT)
        if not self._watching:
            self._watching = True
            _log.info("watching", holder="; ".join(sorted(set(holders.values()))))
        if now - self._looked >= _WATCH_INTERVAL:
            self._looked, self._left = now, self._census()
            self._archived_by_other = max(0, self._first.pending - self._left.pending)
            self._on_progress(ReconcileProgress(self._first.pending, self._archived_by_other, 0))
        return not self._left.pending or now - self._began > self._wait

    def _census(self) -> Census:
        with self._tables.database.connect() as connection:
            return self._tables.files.census(connection, self._targets)

    def _report(self, total: int) -> None:
        self._on_progress(ReconcileProgress(total, self._done(), round(self._metrics.total("copied_bytes_total"))))

    def _done(self) -> int:
        return self._archived() + self._count("charged") + self._count("refused")

    def _archived(self) -> int:
        return self._count("archived") + self._count("adopted")

    def _count(self, result: str) -> int:
        return round(self._metrics.total("copies_total", result=result))


def _is_up(pipeline: Pipeline) -> bool:
    return pipeline.dispatcher.destination[0] and all(state.up for state in pipeline.dispatcher.states())
