"""Everything that runs while we hold our targets' lock: built, wired, started and stopped together."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import sqlalchemy as sa
import structlog

from cdc_archiver.database import schema
from cdc_archiver.database.recorder import Recorder
from cdc_archiver.dispatch.dispatcher import Dispatcher
from cdc_archiver.dispatch.router import Router
from cdc_archiver.dispatch.targets import Targets
from cdc_archiver.dispatch.worker import Worker
from cdc_archiver.errors import DestinationUnavailable, Misconfigured
from cdc_archiver.events.binlog import BinlogStream
from cdc_archiver.events.sweep import NoStream, Sweeper
from cdc_archiver.model import Lane, Origin
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import Settings
from cdc_archiver.site import Site
from cdc_archiver.threads import Part
from cdc_archiver.transfer.copier import Copier
from cdc_archiver.transfer.staging import Archive

_KILL_SECONDS: Final = 8.0
"""After the drain: for rsyncs to be killed and what is known to be written back."""

_BREATH: Final = 0.3
"""Seconds that workers with nothing in hand are given to notice a stop."""
_SAY_AGAIN: Final = 60.0
"""Seconds after which trouble that goes on is logged once more, summed up."""

_log = structlog.get_logger(__name__)


class Shift:
    """Everything that runs while we hold our targets' lock. Started once, stopped once.

    Args:
        stream: whether to follow the binary log; a reconciliation does not.
        on_end: called by a part's thread when it ends.
        on_database: told by whom it was asked, whether the database answers, and why not.
        on_other_table: called when a newer table of files has appeared.
    """

    def __init__(
        self,
        settings: Settings,
        site: Site,
        archive: Archive,
        metrics: Metrics,
        *,
        on_end: Callable[[Part], None],
        on_database: Callable[[str, bool, str], None] = lambda who, up, why: None,
        on_other_table: Callable[[], None] = lambda: None,
        stream: bool,
    ) -> None:
        self._settings = settings
        self._site = site
        self._archive = archive
        self._metrics = metrics
        self._on_other_table = on_other_table
        self._cancel = threading.Event()
        self._gaps = 0
        self._gaps_said_at = float("-inf")
        self.dispatcher = Dispatcher(settings, metrics, want_sweep=self._want_sweep)
        self._copier = Copier(settings, archive, site.files.path_width, self._cancel)
        self._recorder = Recorder(
            site.database,
            site.files,
            site.history,
            self.dispatcher,
            _KILL_SECONDS / 2,
            partial(on_database, "recorder"),
        )
        self.stream: BinlogStream | None = None
        self.why_no_stream = "the stream is being opened" if stream else "a reconciliation follows no stream"
        if stream:
            self.stream = BinlogStream(site.database, site.files.name, self, metrics, server_id=settings.server_id)
        self.sweeper = Sweeper(
            settings,
            site.database,
            site.files,
            self.dispatcher,
            self.stream or NoStream(),
            metrics,
            self._housekeeping,
            partial(on_database, "sweeper"),
        )
        self._router = Router(
            site.database, site.files, Targets(settings.sources), self.dispatcher, partial(on_database, "router")
        )
        self._workers = [
            Worker(source, lane, number, self.dispatcher, self._copier, self._recorder, metrics)
            for source in settings.sources
            for lane, count in ((Lane.SMALL, source.workers), (Lane.BULK, source.bulk_workers))
            for number in range(count)
        ]
        self._readers: list[Part] = [self.sweeper, self._router, *([self.stream] if self.stream else [])]
        for part in self._parts:
            part.on_end = on_end

    @property
    def _parts(self) -> list[Part]:
        return [self._recorder, *self._workers, *self._readers]

    def start(self) -> None:
        """Starts the threads."""
        try:
            self._archive.prepare(known=self._site.known)
            for source in self._settings.sources:
                self._archive.clear_staging(source.staging_name)
            self._archive.clear_abandoned()
        except DestinationUnavailable as trouble:
            self.dispatcher.destination_failed(trouble.reason, str(trouble))
        self._metrics.set_mode("polling")
        for part in self._parts:
            part.start()

    def stop(self, drain: float) -> None:
        """Reads nothing more, lets copies finish, kills what is left, writes back what is known.

        Args:
            drain: seconds that copies may take.
        """
        for part in self._readers:
            part.stop()
        self.dispatcher.close()
        for worker in self._workers:
            worker.stop()
        if not _join(self._workers, max(drain, _BREATH)):
            _log.warning("killing_copies", after_seconds=drain)
        self._cancel.set()
        self._copier.close()  # a worker may wait for a connection to come about
        _join(self._workers, _KILL_SECONDS)
        self._recorder.stop()
        self._recorder.join(_KILL_SECONDS)
        _join(self._readers, 1.0)

    def cancel(self) -> None:
        """Copies and writes nothing more: another may hold our targets by now. Returns at once; :meth:`stop` comes next."""
        self._recorder.discard()
        self.dispatcher.close()
        self._cancel.set()

    # What the stream tells, in its own thread: none of it waits.

    def on_ids(self, ids: Sequence[int]) -> None:
        self.dispatcher.offer(ids, Origin.STREAM, fresh=True)

    def on_anchor(self) -> None:
        self.why_no_stream = ""
        self._metrics.set_mode("stream")
        self.sweeper.anchored()
        _log.info("streaming", position=str(self.stream.position if self.stream else ""))

    def on_gap(self, why: str) -> None:
        # One for each transaction, where a client compresses its own: said now and then, swept for always.
        self._gaps += 1
        if time.monotonic() >= self._gaps_said_at + _SAY_AGAIN:
            _log.warning("stream_gap", detail=why, gaps=self._gaps)
            self._gaps, self._gaps_said_at = 0, time.monotonic()
        self.sweeper.anchored()

    def on_lost(self, reason: str) -> None:
        self.why_no_stream = f"the stream ended ({reason}) and is being opened again"
        self._metrics.set_mode("polling")
        self.dispatcher.forget_echoes()
        self.sweeper.request()
        _log.warning("stream_lost", reason=reason)

    def on_unavailable(self, why: str) -> None:
        self.why_no_stream = why
        self._metrics.set_mode("polling")
        self.sweeper.request()
        _log.warning("polling", detail=why, sweep_seconds=self._settings.poll_interval)

    def _want_sweep(self) -> None:
        self.sweeper.request()

    def _housekeeping(self, connection: sa.Connection) -> None:
        """Beside a sweep: convenience, and nothing of it fails the sweep."""
        if self._site.history is not None:
            self._site.history.prune(connection)
        with contextlib.suppress(Misconfigured):  # gone for a moment: the sweep's own statements say so
            if (
                schema.resolve_table(connection, self._site.database.name, self._settings.table)
                != self._site.files.name
            ):
                self._on_other_table()
        pending = {name: census.pending for name, census in self.sweeper.census.items()}
        for source, files in pending.items():
            if not files:
                self.dispatcher.nothing_pending(source)
        if not any(pending.values()):
            self.dispatcher.nothing_pending(None)
        try:
            self._archive.require_ready()
        except DestinationUnavailable as trouble:
            self.dispatcher.destination_failed(trouble.reason, str(trouble))
        else:
            self.dispatcher.destination_ready()


def _join(parts: Sequence[Part], seconds: float) -> bool:
    """Waits for all of them together; returns whether all have ended."""
    deadline = time.monotonic() + seconds
    ended = [part.join(max(0.0, deadline - time.monotonic())) for part in parts]  # each gets its turn
    return all(ended)
