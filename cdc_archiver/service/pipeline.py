"""Everything that runs while we hold the lock of a source: built, wired, started and stopped together; sources come and go."""

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
from cdc_archiver.dispatch.router import Router, Targets
from cdc_archiver.errors import DestinationUnavailable, Misconfigured
from cdc_archiver.events.binlog import BinlogStream
from cdc_archiver.events.sweep import NoStream, Sweeper
from cdc_archiver.model import Origin
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.service.bootstrap import ResolvedTables
from cdc_archiver.service.worker_pool import WorkerPool
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.threads import Part, join_all
from cdc_archiver.transfer.staging import Archive

_KILL_SECONDS: Final = 8.0
"""After the drain: for rsyncs to be killed and what is known to be written back."""

_BREATH: Final = 0.3
"""Seconds that workers with nothing in hand are given to notice a stop."""
_SAY_AGAIN: Final = 60.0
"""Seconds after which trouble that goes on is logged once more, summed up."""

_log = structlog.get_logger(__name__)


class Pipeline:
    """Everything that runs while we hold the lock of a source. Started once, stopped once.

    Args:
        settings: with the sources that we hold at first; for others, :meth:`add` and :meth:`remove`.
        stream: whether to follow the binary log; a reconciliation does not.
        on_end: called by a part's thread when it ends.
        on_database: told by whom it was asked, whether the database answers, and why not.
        on_other_table: called when a newer table of files has appeared.
    """

    def __init__(
        self,
        settings: Settings,
        site: ResolvedTables,
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
        self._on_end = on_end
        self._gaps = 0
        self._gaps_said_at = float("-inf")
        self.dispatcher = Dispatcher(settings, metrics, want_sweep=self._want_sweep)
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
        self._targets = Targets(settings.sources)
        self._router = Router(site.database, site.files, self._targets, self.dispatcher, partial(on_database, "router"))
        self._crews = {source.name: self._new_crew(source) for source in settings.sources}
        self._readers: list[Part] = [self.sweeper, self._router, *([self.stream] if self.stream else [])]
        for part in (self._recorder, *self._readers):
            part.on_end = on_end
        self._stopping = threading.Event()
        self._changing = threading.Lock()
        self._leaving: dict[str, threading.Thread] = {}

    @property
    def sources(self) -> dict[str, SourceSettings]:
        """Those that are ours, by name, the ones that are on their way out among them."""
        return {name: crew.source for name, crew in self._crews.items()}

    @property
    def leaving(self) -> frozenset[str]:
        """Those on their way out."""
        return frozenset(self._leaving)

    def _new_crew(self, source: SourceSettings) -> WorkerPool:
        return WorkerPool(
            self._settings,
            source,
            self._archive,
            self._site.files.path_width,
            self.dispatcher,
            self._recorder,
            self._metrics,
            self._on_end,
        )

    def start(self) -> None:
        """Starts the threads."""
        try:
            self._archive.prepare(known=self._site.known)
            self._archive.clear_abandoned()
        except DestinationUnavailable as trouble:
            self.dispatcher.destination_failed(trouble.reason, str(trouble))
        self._metrics.set_mode("polling")
        self._recorder.start()
        for crew in self._crews.values():
            self._begin(crew)
        for part in self._readers:
            part.start()

    def _begin(self, crew: WorkerPool) -> None:
        try:
            self._archive.clear_staging(crew.source.staging_name)
        except DestinationUnavailable as trouble:
            self.dispatcher.destination_failed(trouble.reason, str(trouble))
        crew.start()

    def add(self, source: SourceSettings) -> None:
        """One more source is ours: what is pending of it is swept up at once."""
        self.dispatcher.add_source(source)
        crew = self._new_crew(source)
        self._begin(crew)
        with self._changing:
            self._crews = {**self._crews, source.name: crew}
            self._tell_sources()

    def remove(self, source: str, drain: float, on_left: Callable[[str], None]) -> None:
        """A source is ours no longer: nothing new is begun, what is under way may come to its end. Returns at once.

        Args:
            drain: seconds that copies may take.
            on_left: called, in a thread of its own, when nothing of it is under way any more and all is written back; not
                if the shift has been stopped meanwhile.
        """
        crew = self._crews[source]
        with self._changing:
            self._leaving[source] = threading.Thread(
                target=self._see_off, args=(crew, drain, on_left), name=f"leaving-{source}", daemon=True
            )
            self._tell_sources()
        self.dispatcher.retire_source(source)
        crew.stop()
        self._leaving[source].start()

    def _see_off(self, crew: WorkerPool, drain: float, on_left: Callable[[str], None]) -> None:
        name = crew.source.name
        if not join_all(crew.workers, max(drain, _BREATH)):
            _log.warning("killing_copies", source=name, after_seconds=drain)
        crew.close()
        # It stays ours until all of it is over: what still writes must not do so beside another.
        while not (join_all(crew.workers, _KILL_SECONDS) and self.dispatcher.forget_source(name, _KILL_SECONDS)):
            if self._stopping.is_set():
                return
            _log.warning(
                "source_lingers", source=name, detail="copies that were given up, or their write-back, take long"
            )
        with self._changing:
            self._crews = {other: kept for other, kept in self._crews.items() if other != name}
            del self._leaving[name]
        if not self._stopping.is_set():
            on_left(name)

    def _tell_sources(self) -> None:
        sources = tuple(crew.source for name, crew in self._crews.items() if name not in self._leaving)
        self._targets.set(sources)
        self.sweeper.set_sources(sources)

    def stop(self, drain: float) -> None:
        """Reads nothing more, lets copies finish, kills what is left, writes back what is known.

        Args:
            drain: seconds that copies may take.
        """
        self._stopping.set()
        for part in self._readers:
            part.stop()
        self.dispatcher.close()
        crews = tuple(self._crews.values())
        workers = [worker for crew in crews for worker in crew.workers]
        for crew in crews:
            crew.stop()
        if not join_all(workers, max(drain, _BREATH)):
            _log.warning("killing_copies", after_seconds=drain)
        for crew in crews:
            crew.kill()
        for crew in crews:
            crew.close()
        killed = time.monotonic()
        join_all(workers, _KILL_SECONDS)
        for thread in tuple(self._leaving.values()):
            thread.join(max(0.1, killed + _KILL_SECONDS - time.monotonic()))
        self._recorder.stop()
        self._recorder.join(_KILL_SECONDS)
        join_all(self._readers, 1.0)

    def cancel(self) -> None:
        """Copies and writes nothing more: another may hold our sources by now. Returns at once; :meth:`stop` comes next."""
        self._stopping.set()
        self._recorder.discard()
        self.dispatcher.close()
        for crew in tuple(self._crews.values()):
            crew.stop()
            crew.kill()
        for part in self._readers:
            part.stop()

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
        self.dispatcher.forget_own_writes()
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
        pending = {name: census.pending for name, census in dict(self.sweeper.census).items()}
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
