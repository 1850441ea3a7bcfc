"""`run --reconcile`: sweeps once, copies what was missed, and says what is still not right."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from cdc_archiver.database.files_table import Census
from cdc_archiver.database.lock import TargetLocks
from cdc_archiver.errors import ArchiverError, ExitStatus, Misconfigured
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import Settings
from cdc_archiver.shift import Shift
from cdc_archiver.site import Site, explore
from cdc_archiver.threads import Part
from cdc_archiver.transfer.staging import Archive

_TICK: Final = 0.1
_WATCH_EVERY: Final = 1.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
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
        return ExitStatus.NOT_RIGHT if left else ExitStatus.DONE


class Reconciliation:
    """One run.

    Args:
        settings: with a data_dir and at least one source.
        wait: seconds to watch a service that holds the targets; None for as long as it takes.
        on_progress: called a few times a second.
    """

    def __init__(
        self,
        settings: Settings,
        wait: float | None = None,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        if settings.data_dir is None:
            raise Misconfigured("there is no data_dir", "--data-dir /data/… or CDC_ARCHIVER_DATA_DIR")
        if not settings.sources:
            raise Misconfigured("there is no target", "--target, or [[sources]] in the file of --config")
        self._settings = settings
        self._wait = wait
        self._on_progress = on_progress
        self._archive = Archive(settings.data_dir, settings.modes, settings.min_free)
        self._archive.require_folder()
        self._metrics = Metrics()
        self._targets = [target for source in settings.sources for target in source.target]
        self._stopping = threading.Event()
        self._dead: list[Part] = []

    def stop(self) -> None:
        """Asks it to end early; may be called from a signal handler."""
        self._stopping.set()

    def run(self) -> Result:
        """Does it.

        Raises:
            DatabaseUnavailable: it does not answer.
            Misconfigured: a person must mend something first.
            LockLost: another archiver took over.
        """
        site = explore(self._settings)
        locks = TargetLocks(site.database, site.files.name, self._targets)
        if not locks.acquire():
            _log.info("watching", holder=locks.holder())
            return self._watch(site)
        try:
            return self._reconcile(site, locks)
        finally:
            locks.release()

    def _reconcile(self, site: Site, locks: TargetLocks) -> Result:
        pending = self._census(site).pending
        shift = Shift(
            self._settings, site, self._archive, self._metrics, self._dead.append, lambda up, why: None, stream=False
        )
        shift.start()
        try:
            checked = time.monotonic()
            while not self._stopping.is_set() and not self._is_done(shift):
                self._say(max(pending, self._done()))
                if time.monotonic() - checked > locks.timing.check_interval:
                    checked = time.monotonic()
                    locks.check()
                self._stopping.wait(_TICK)
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
            trouble=(*down, *(() if up else (f"{reason}: {detail}",))),
            unreachable=bool(down) and left.pending > 0,
            watched=False,
        )

    def _is_done(self, shift: Shift) -> bool:
        for part in self._dead:
            if part.failure is not None and not part.stopping.is_set():
                raise ArchiverError(f"the thread {part.name} died of {part.failure!r}", "this is a bug: report it")
        dispatcher = shift.dispatcher
        return (shift.sweeper.exhausted.is_set() and dispatcher.idle) or (dispatcher.stuck and not dispatcher.idle)

    def _watch(self, site: Site) -> Result:
        began = time.monotonic()
        first = left = self._census(site)
        while left.pending and not self._stopping.wait(_WATCH_EVERY):
            if self._wait is not None and time.monotonic() - began > self._wait:
                break
            left = self._census(site)
            self._on_progress(Progress(first.pending, max(0, first.pending - left.pending), 0))
        archived = max(0, first.pending - left.pending)
        return Result(archived=archived, left=left, trouble=(), unreachable=False, watched=True)

    def _census(self, site: Site) -> Census:
        with site.database.connect() as connection:
            return site.files.census(connection, self._targets)

    def _say(self, total: int) -> None:
        self._on_progress(Progress(total, self._done(), round(self._metrics.total("copied_bytes_total"))))

    def _done(self) -> int:
        return self._archived() + self._count("charged") + self._count("refused")

    def _archived(self) -> int:
        return self._count("archived") + self._count("adopted")

    def _count(self, result: str) -> int:
        return round(self._metrics.total("copies_total", result=result))
