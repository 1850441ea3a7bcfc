"""All threads that run while this service holds the lock of a source: started and stopped together; sources come and go."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import sqlalchemy as sa
import structlog

from cdc_archiver.database import schema
from cdc_archiver.database.archives import enter_archive, ignore_side_table_errors, known_archive, others_hold_locks
from cdc_archiver.database.marks import Marks
from cdc_archiver.database.recorder import Recorder
from cdc_archiver.database.server_identity import ServerIdentity
from cdc_archiver.dispatch.dispatcher import Dispatcher
from cdc_archiver.dispatch.router import Router, Targets
from cdc_archiver.errors import DestinationUnavailable, Misconfigured
from cdc_archiver.events.binlog_stream import BinlogStream
from cdc_archiver.events.sweep import NoStream, Sweeper
from cdc_archiver.model import FileRecord, Origin
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.service.bootstrap import ResolvedTables
from cdc_archiver.service.table_watch import TableWatch
from cdc_archiver.service.worker_pool import WorkerPool
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.threads import StoppableThread, join_all
from cdc_archiver.timecodes.keeper import TimecodeKeeper
from cdc_archiver.timecodes.status_types import TimecodeNotice
from cdc_archiver.transfer.placement import Placer
from cdc_archiver.transfer.staging import NOTES, Archive
from cdc_archiver.transfer.staging_place import StagingPlace

_KILL_SECONDS: Final = 8.0
"""After the drain: for rsyncs to be killed and what is known to be written back."""

_NOTICE: Final = 0.3
"""Seconds for idle workers to notice a stop."""
_REVIEWED: Final = 1000
"""Rows of one question about files that were set aside."""
_LOG_AGAIN: Final = 60.0
"""Seconds after which an ongoing problem is logged again, summed up."""

_log = structlog.get_logger(__name__)


class Pipeline:
    """All threads that run while this service holds the lock of a source. Started once, stopped once.

    Args:
        settings: with the sources that are held at first; for others, :meth:`add` and :meth:`remove`.
        stream: whether to follow the binary log.
        configured: the settings with all sources, held here or not.
        lock_server: the server that has the locks, which the stream must be of.
        on_end: called by a part's thread when it ends.
        on_database: called with the part that asked the database, whether it answers, and why not.
        on_other_table: called when a newer table of files has appeared.
        on_notice: called with what happens to timecodes.
        on_look: called with this after each look at them.
    """

    def __init__(
        self,
        settings: Settings,
        tables: ResolvedTables,
        archive: Archive,
        metrics: Metrics,
        *,
        on_end: Callable[[StoppableThread], None],
        on_database: Callable[[str, bool, str], None] = lambda who, up, why: None,
        on_other_table: Callable[[], None] = lambda: None,
        on_notice: Callable[[TimecodeNotice], None] = lambda notice: None,
        on_look: Callable[[Pipeline], None] = lambda pipeline: None,
        stream: bool,
        configured: Settings | None = None,
        lock_server: Callable[[], ServerIdentity | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._tables = tables
        self._archive = archive
        self._metrics = metrics
        self._on_other_table = on_other_table
        self._on_end = on_end
        self._gaps = 0
        self._gaps_logged_at = float("-inf")
        self.dispatcher = Dispatcher(settings, metrics, want_sweep=self._want_sweep)
        self.marks = Marks(
            tables.database.name, tables.files.name, lambda: archive.incoming / NOTES, on_change=self.dispatcher.recheck
        )
        self.timecodes = TimecodeKeeper(
            settings,
            tables.database,
            tables.files,
            archive,
            metrics,
            history_kept=lambda: not tables.history.unavailable,
            source_up=self.dispatcher.is_up,
            deliver=on_notice,
            on_look=lambda: None if self._stopping.is_set() else on_look(self),
            marks=self.marks,
        )
        self._recorder = Recorder(
            tables.database,
            tables.files,
            tables.history,
            self.dispatcher,
            _KILL_SECONDS / 2,
            partial(on_database, "recorder"),
            self.timecodes.reopening,
        )
        self.stream: BinlogStream | None = None
        self.why_no_stream = "the stream is being opened" if stream else "a reconciliation follows no stream"
        if stream:
            self.stream = BinlogStream(
                tables.database, tables.files.name, self, metrics, server_id=settings.server_id, lock_server=lock_server
            )
        self.sweeper = Sweeper(
            settings,
            tables.database,
            tables.files,
            self.dispatcher,
            self.stream or NoStream(),
            metrics,
            self._housekeeping,
            partial(on_database, "sweeper"),
        )
        self.table_watch = TableWatch(configured or settings, tables, metrics)
        self._targets = Targets(settings.sources)
        # Whoever starts a reconciliation wants each file tried.
        at_once = lambda connection, ids: dict.fromkeys(ids, math.inf)
        self._router = Router(
            tables.database,
            tables.files,
            self._targets,
            self.dispatcher,
            tables.history.seconds_since_failure if stream else at_once,
            partial(on_database, "router"),
            self.marks,
        )
        self._pools = {source.name: self._new_pool(source) for source in settings.sources}
        self._readers: list[StoppableThread] = [
            self.sweeper,
            self._router,
            self.timecodes,
            *([self.stream] if self.stream else []),
        ]
        for part in (self._recorder, *self._readers):
            part.on_end = on_end
        self.handed_over: dict[str, dict[int, int]] = {}
        """Numbers of pending rows of timecodes that were handed over, by source and timecode."""
        self._stopping = threading.Event()
        self._place: StagingPlace | None = None
        """The place for staging, as logged."""
        self._changing = threading.Lock()
        self._yielding: dict[str, threading.Thread] = {}

    @property
    def sources(self) -> dict[str, SourceSettings]:
        """The sources that are held, by name, including those that are being yielded."""
        return {name: pool.source for name, pool in self._pools.items()}

    @property
    def yielding(self) -> frozenset[str]:
        """The sources that are being yielded."""
        return frozenset(self._yielding)

    @property
    def history_off_because(self) -> str:
        """Why the history is not kept; empty where it is."""
        return self._tables.history.unavailable

    def _new_pool(self, source: SourceSettings) -> WorkerPool:
        return WorkerPool(
            self._settings,
            source,
            self._archive,
            self._tables.files.path_width,
            self.dispatcher,
            self._recorder,
            self._metrics,
            self._on_end,
        )

    def start(self) -> None:
        """Starts the threads."""
        try:
            self._archive.prepare(self._tables.known)
            self._log_place()
            self._archive.clear_abandoned()
        except DestinationUnavailable as trouble:
            self.dispatcher.destination_failed(trouble.reason, str(trouble))
        self._metrics.set_mode("polling")
        self._recorder.start()
        for pool in self._pools.values():
            self._begin(pool)
        for part in self._readers:
            part.start()

    def _begin(self, pool: WorkerPool) -> None:
        try:
            self._archive.clear_staging(pool.source.staging_name)
            Placer(self._archive, self._settings.modes, owner=pool.source.staging_name).clear_copies()
        except DestinationUnavailable as trouble:
            self.dispatcher.destination_failed(trouble.reason, str(trouble))
        pool.start()

    def add(self, source: SourceSettings) -> None:
        """Adds a source. Its pending files are swept at once."""
        self.dispatcher.add_source(source)
        pool = self._new_pool(source)
        self._begin(pool)
        with self._changing:
            self._pools = {**self._pools, source.name: pool}
            self._announce_sources()

    def remove(self, source: str, drain: float, on_yielded: Callable[[str], None]) -> None:
        """Yields a source: no new copy starts, copies under way may end. Returns at once.

        Args:
            drain: seconds that copies may take.
            on_yielded: called in a thread of its own when no copy is under way and all is written back; not if the pipeline has
                been stopped meanwhile.
        """
        pool = self._pools[source]
        with self._changing:
            self._yielding[source] = threading.Thread(
                target=self._drain_source, args=(pool, drain, on_yielded), name=f"yielding-{source}", daemon=True
            )
            self._announce_sources()
        self.dispatcher.retire_source(source)
        pool.stop()
        self._yielding[source].start()

    def _drain_source(self, pool: WorkerPool, drain: float, on_yielded: Callable[[str], None]) -> None:
        name = pool.source.name
        if not join_all(pool.workers, max(drain, _NOTICE)):
            _log.warning("killing_copies", source=name, after_seconds=drain)
        pool.close()
        # The source stays held until all has ended: what still writes must not do so alongside another service.
        while not (join_all(pool.workers, _KILL_SECONDS) and self.dispatcher.forget_source(name, _KILL_SECONDS)):
            if self._stopping.is_set():
                return
            _log.warning(
                "source_lingers", source=name, detail="copies that were given up, or their write-back, take long"
            )
        self._archive.release_staging(pool.source.staging_name)
        with self._changing:
            self._pools = {other: kept for other, kept in self._pools.items() if other != name}
            del self._yielding[name]
        if not self._stopping.is_set():
            on_yielded(name)

    def _announce_sources(self) -> None:
        sources = tuple(pool.source for name, pool in self._pools.items() if name not in self._yielding)
        self._targets.set(sources)
        self.sweeper.set_sources(sources)
        self.timecodes.set_sources(sources)

    def stop(self, drain: float) -> None:
        """Stops the readers, lets copies finish, kills those that are left, writes back what is known.

        Args:
            drain: seconds that copies may take.
        """
        self._stopping.set()
        for part in self._readers:
            part.stop()
        self.dispatcher.close()
        pools = tuple(self._pools.values())
        workers = [worker for pool in pools for worker in pool.workers]
        for pool in pools:
            pool.stop()
        if not join_all(workers, max(drain, _NOTICE)):
            _log.warning("killing_copies", after_seconds=drain)
        for pool in pools:
            pool.kill()
        for pool in pools:
            pool.close()
        killed = time.monotonic()
        if join_all(workers, _KILL_SECONDS):
            for pool in pools:
                self._archive.release_staging(pool.source.staging_name)
        for thread in tuple(self._yielding.values()):
            thread.join(max(0.1, killed + _KILL_SECONDS - time.monotonic()))
        self._recorder.stop()
        self._recorder.join(_KILL_SECONDS)
        join_all(self._readers, 1.0)

    def cancel(self) -> None:
        """Stops copying and writing: another service may hold the sources by now. Returns at once; :meth:`stop` comes next."""
        self._stopping.set()
        self._recorder.discard()
        self.dispatcher.close()
        for pool in tuple(self._pools.values()):
            pool.stop()
            pool.kill()
        for part in self._readers:
            part.stop()

    # Called by the stream, in its own thread: none of them waits.

    def on_ids(self, ids: Sequence[int]) -> None:
        self.dispatcher.offer(ids, Origin.STREAM, fresh=True)

    def on_anchor(self) -> None:
        self.why_no_stream = ""
        self._metrics.set_mode("stream")
        self.sweeper.anchored()
        _log.info("streaming", position=str(self.stream.position if self.stream else ""))

    def on_gap(self, why: str) -> None:
        # One for each transaction, where a client compresses its own: logged now and then, swept for always.
        self._gaps += 1
        if time.monotonic() >= self._gaps_logged_at + _LOG_AGAIN:
            _log.warning("stream_gap", detail=why, gaps=self._gaps)
            self._gaps, self._gaps_logged_at = 0, time.monotonic()
        self.sweeper.anchored()

    def on_lost(self, reason: str, detail: str) -> None:
        self.why_no_stream = f"the stream ended ({reason}) and is being opened again"
        self._metrics.set_mode("polling")
        self.dispatcher.forget_own_writes()
        self.sweeper.request()
        _log.warning("stream_lost", reason=reason, detail=detail)

    def on_unavailable(self, why: str) -> None:
        self.why_no_stream = why
        self._metrics.set_mode("polling")
        self.sweeper.request()
        _log.warning("polling", detail=why, sweep_seconds=self._settings.poll_interval)

    def _want_sweep(self) -> None:
        self.sweeper.request()

    def _housekeeping(self, connection: sa.Connection) -> None:
        """Runs with each sweep. Nothing in it fails the sweep."""
        if self._tables.history.unavailable:
            self._tables.history.open(connection)
        else:
            self._tables.history.prune(connection)
        self.marks.refresh(connection)
        self.timecodes.request()  # it heeds the marks as they are now
        self._count_handed_over(connection)
        with contextlib.suppress(Misconfigured):  # gone for a moment: the sweep's own statements report it
            if (
                schema.resolve_table(connection, self._tables.database.name, self._settings.table)
                != self._tables.files.name
            ):
                self._on_other_table()
        self._review_not_recordable(connection)
        self.table_watch.look(connection)
        pending = {name: census.pending for name, census in dict(self.sweeper.census).items()}
        for source, files in pending.items():
            if not files:
                self.dispatcher.nothing_pending(source)
        if not any(pending.values()):
            self.dispatcher.nothing_pending(None)
        try:
            self._keep_archive(connection)
        except DestinationUnavailable as trouble:
            self.dispatcher.destination_failed(trouble.reason, str(trouble))
        else:
            self.dispatcher.destination_ready()

    def _log_place(self) -> None:
        place = self._archive.place
        if place is not None and place != self._place:
            self._place = place
            _log.info("staging", directory=str(place.staging), why=place.why, cost=place.cost)

    def _keep_archive(self, connection: sa.Connection) -> None:
        """Compares the archive with what the database knows, and enters there what is new.

        Raises:
            DestinationUnavailable: nothing can be written to it.
        """
        name = self._tables.files.name
        targets = [target for source in self.sources.values() for target in source.target]
        known = known_archive(connection, name, targets, self._archive.data_dir)
        self._archive.expect(known)
        self._archive.require_ready()
        self._log_place()
        entry = self._archive.as_entry()
        if new := [target for target in targets if known.entries.get(target) != entry]:
            with ignore_side_table_errors():
                enter_archive(connection, name, new, entry)
        # What 0.1.0 kept in data_dir; not while another service works on this table, which may be of that version.
        if self._archive.has_former_layout() and not others_hold_locks(
            connection, self._tables.database.name, name, targets
        ):
            self._archive.remove_former_layout([source.staging_name for source in self.sources.values()])

    def _count_handed_over(self, connection: sa.Connection) -> None:
        """Counts the rows that wait because their timecode was handed over; names those of a source when there are more."""
        marks = self.marks.current
        counted = {}
        for name, source in self.sources.items():
            waiting: Counter[int] = Counter()
            for target in source.target:
                timecodes = {n for n in marks.handed_over_timecodes if marks.handed_over(target, n)}
                waiting.update(self._tables.files.pending_in_timecodes(connection, [target], timecodes))
            counted[name] = dict(waiting)
            self._metrics.handed_over.labels(name).set(waiting.total())
            if waiting.total() > sum(self.handed_over.get(name, {}).values()):
                _log.warning(
                    "files_for_handed_over_timecodes",
                    source=name,
                    files=waiting.total(),
                    timecodes=sorted(waiting)[:20],
                    detail="they wait, since somebody took these timecodes over; archive them all the same: "
                    "cdc-archiver retry --id ID --into-handed-over; or: cdc-archiver ignore ID",
                )
        self.handed_over = counted

    def _review_not_recordable(self, connection: sa.Connection) -> None:
        """Lets a file go that was set aside, if its row has changed, or an operator wants another try."""
        ids = self.dispatcher.not_recordable
        if not ids:
            return
        pending: dict[int, FileRecord] = {}
        for start in range(0, len(ids), _REVIEWED):
            chunk = ids[start : start + _REVIEWED]
            retried = self._tables.history.retried(connection, chunk)
            rows = self._tables.files.load(connection, chunk)
            pending |= {id_: row.record for id_, row in rows.items() if not row.copied and id_ not in retried}
        self.dispatcher.review_not_recordable(pending)
        if len(pending) < len(ids):
            self.sweeper.request()
