"""`run --reconcile`: sweeps once, copies what was missed, and says what is still not right."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import pymysql
import structlog

from cdc_archiver.database.files_table import Census
from cdc_archiver.database.source_locks import SourceLocks
from cdc_archiver.errors import ArchiverError, DatabaseUnavailable, ExitStatus, LockLost
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.service.bootstrap import Bootstrap, ResolvedTables, archive_of
from cdc_archiver.service.pipeline import Pipeline
from cdc_archiver.settings import Settings
from cdc_archiver.threads import StoppableThread

_TICK: Final = 0.1
_WATCH_EVERY: Final = 1.0
_PATIENCE: Final = 15.0
"""Seconds that nothing may move, for trouble of a host or the disk, before it is given up."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReconcileProgress:
    """How far it is.

    Attributes:
        total: files that were pending at the start, or came since.
        done: of these, archived, charged or refused by now.
        size: bytes archived.
    """

    total: int
    done: int
    size: int


@dataclass(frozen=True, slots=True)
class Result:
    """How it ended.

    Attributes:
        archived: files archived in this run, adopted ones among them.
        left: rows that are still not archived.
        trouble: what kept sources or the destination from it; empty where nothing did.
        watched: whether a running service did the work, and this run only watched.
    """

    archived: int
    left: Census
    trouble: tuple[str, ...]
    unreachable: bool
    watched: bool

    @property
    def status(self) -> ExitStatus:
        """The exit status: ignored files are as right as they will ever be."""
        if self.unreachable:
            return ExitStatus.UNREACHABLE
        left = self.left.pending + self.left.quarantined + self.left.refused
        return ExitStatus.INCOMPLETE if left else ExitStatus.DONE


class Reconciliation:
    """One run.

    Args:
        settings: with a data_dir and at least one source.
        wait: seconds to watch a service that holds the targets.
        on_progress: called a few times a second.
    """

    def __init__(
        self,
        settings: Settings,
        wait: float = 600.0,
        on_progress: Callable[[ReconcileProgress], None] = lambda progress: None,
    ) -> None:
        self._archive = archive_of(settings)
        self._settings = settings
        self._wait = wait
        self._on_progress = on_progress
        self._metrics = Metrics()
        self._stops: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopped = False
        self._dead: list[StoppableThread] = []

    def stop(self) -> None:
        """Asks it to end early; may be called from a signal handler, and so takes no lock."""
        self._stops.put(None)

    def run(self) -> Result:
        """Does it.

        Raises:
            DatabaseUnavailable: it does not answer.
            Misconfigured: a person must fix something first.
            LockLost: another archiver took over.
        """
        exploration = Bootstrap(self._settings)
        while not exploration.ready:
            if self._stops_within(_TICK):
                exploration.abandon()
                raise DatabaseUnavailable("stopped while the database was waited for")
        site = exploration.result()
        try:
            return self._work_or_watch(site)
        finally:
            site.database.close()

    def _work_or_watch(self, site: ResolvedTables) -> Result:
        targets = {source.name: source.target for source in self._settings.sources}
        locks = SourceLocks(site.database, site.files.name, targets)
        watched = 0
        if not locks.acquire_all():
            holders = {locks.holder(source) for source in locks.sources} - {None}
            locks.close()
            _log.info("watching", holder="; ".join(map(str, sorted(map(str, holders)))))
            left, watched = self._watch(site, locks)
            if not locks.held:
                return Result(archived=watched, left=left, trouble=(), unreachable=False, watched=True)
        try:
            result = self._reconcile(site, locks)
        finally:
            locks.close()
        return replace(result, archived=result.archived + watched)

    def _stops_within(self, seconds: float) -> bool:
        try:
            self._stops.get(timeout=seconds)
        except queue.Empty:
            return self._stopped
        self._stopped = True
        return True

    def _reconcile(self, site: ResolvedTables, locks: SourceLocks) -> Result:
        pending = self._census(site).pending
        shift = Pipeline(self._settings, site, self._archive, self._metrics, on_end=self._dead.append, stream=False)
        shift.start()
        try:
            checked = moved = time.monotonic()
            done = 0
            while not self._stops_within(_TICK):
                now = time.monotonic()
                self._say(max(pending, self._done()))
                if self._is_done(shift):
                    break
                if self._done() != done or _is_well(shift):
                    done, moved = self._done(), now
                elif now - moved > _PATIENCE:
                    break
                if now - checked > locks.timing.check_interval:
                    checked = now
                    locks.check()
        except LockLost as lost:
            shift.cancel()
            if isinstance(lost.__cause__, pymysql.MySQLError | OSError):
                raise DatabaseUnavailable(str(lost)) from lost
            raise
        except ArchiverError:
            shift.cancel()
            raise
        finally:
            shift.stop(self._settings.drain_timeout)
        left = self._census(site)
        self._say(max(pending, self._done()))
        down = [f"{state.name}: {state.reason}: {state.detail}" for state in shift.dispatcher.states() if not state.up]
        up, reason, detail = shift.dispatcher.destination
        return Result(
            archived=self._archived(),
            left=left,
            trouble=(*down, *(() if up else (f"{reason}: {detail}",))) if left.pending else (),
            unreachable=bool(down) and left.pending > 0,
            watched=False,
        )

    def _is_done(self, shift: Pipeline) -> bool:
        for part in self._dead:
            if part.failure is not None and not part.stopping.is_set():
                raise ArchiverError(f"the thread {part.name} died of {part.failure!r}", "this is a bug: report it")
        if not shift.sweeper.exhausted.is_set() or not shift.dispatcher.idle:
            return False
        # What waits for a host that is down, or for a disk, is given some patience; a file's own next try is not.
        return _is_well(shift)

    def _watch(self, site: ResolvedTables, locks: SourceLocks) -> tuple[Census, int]:
        """Looks on while another archives; returns what is left, and how many it archived. Takes over when it is gone."""
        began = time.monotonic()
        first = left = self._census(site)
        while left.pending and not self._stops_within(_WATCH_EVERY):
            if time.monotonic() - began > self._wait:
                break
            if locks.acquire_all():
                _log.info("taking_over")
                break
            left = self._census(site)
            self._on_progress(ReconcileProgress(first.pending, max(0, first.pending - left.pending), 0))
        return left, max(0, first.pending - left.pending)

    def _census(self, site: ResolvedTables) -> Census:
        with site.database.connect() as connection:
            return site.files.census(connection, self._settings.targets)

    def _say(self, total: int) -> None:
        self._on_progress(ReconcileProgress(total, self._done(), round(self._metrics.total("copied_bytes_total"))))

    def _done(self) -> int:
        return self._archived() + self._count("charged") + self._count("refused")

    def _archived(self) -> int:
        return self._count("archived") + self._count("adopted")

    def _count(self, result: str) -> int:
        return round(self._metrics.total("copies_total", result=result))


def _is_well(shift: Pipeline) -> bool:
    return shift.dispatcher.destination[0] and all(state.up for state in shift.dispatcher.states())
