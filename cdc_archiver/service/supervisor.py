"""The service from start to end: finds the tables, keeps the locks, runs the pipeline, drains and stops.

One loop serves both ways to run it: until a stop, with a stream; or, with a :class:`ReconcileCompletion`, without a stream until
that says that the run is over.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Literal

import pymysql
import structlog

from cdc_archiver.commands.context import open_context
from cdc_archiver.commands.why.json_answer import look_up
from cdc_archiver.database.source_locks import SourceLocks
from cdc_archiver.dispatch.tracked_files import FileStatus
from cdc_archiver.errors import ArchiverError, DatabaseUnavailable, ExitStatus, LockLost
from cdc_archiver.observe.http import HttpQueries, HttpServer
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.observe.notice_rules import notice_of_timecode
from cdc_archiver.observe.service_status import ServiceStatus, with_last_known
from cdc_archiver.observe.summary import summarize
from cdc_archiver.preflight import CheckStatus, run_checks
from cdc_archiver.service import status_builder
from cdc_archiver.service.bootstrap import Bootstrap, ResolvedTables, archive_of
from cdc_archiver.service.front_ends import FrontEnds
from cdc_archiver.service.lock_keeper import LockKeeper
from cdc_archiver.service.pipeline import Pipeline
from cdc_archiver.service.reconcile_completion import ReconcileCompletion
from cdc_archiver.service.server_watch import ServerWatch
from cdc_archiver.service.service_events import EventKind, ServiceEvent
from cdc_archiver.settings import Settings, SourceOptions, SourceSettings
from cdc_archiver.threads import StoppableThread

_LONGEST_PAUSE: Final = 5.0
_TICK: Final = 0.1
_WAKE: Final = 0.5
"""Seconds after which a signal is heeded that interrupted no wait."""
_SILENCE_LIMIT: Final = 10.0
"""Seconds without an answer after which the database is reported to be down."""
_QUERY_LIMIT: Final = 20.0
"""Seconds that one statement may take for a search on the status page."""

_log = structlog.get_logger(__name__)


class Supervisor:
    """The service from its start to its exit status.

    Args:
        settings: with a data_dir and at least one source.
        load_again: reads the settings again, for :meth:`reload`.
        reconciliation: decides when the run is over. With it there is no stream, no HTTP server and no standby: the
            locks of all sources are taken together, and any error of the database ends the run.

    Raises:
        Misconfigured: the settings name no directory or no source.
    """

    def __init__(
        self,
        settings: Settings,
        load_again: Callable[[], Settings] | None = None,
        reconciliation: ReconcileCompletion | None = None,
    ) -> None:
        self._settings = settings
        self._load_again = load_again or (lambda: settings)
        self._reconciliation = reconciliation
        self._archive = archive_of(settings)
        self.metrics = Metrics()
        self._events: queue.SimpleQueue[ServiceEvent] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._started = datetime.now(UTC)
        self._tables: ResolvedTables | None = None
        self._pipeline: Pipeline | None = None
        self._active_pipeline: Pipeline | None = None
        """The pipeline, also while it is being stopped: a lost lock must cancel it."""
        self._keeper: LockKeeper | None = None
        self._watch: ServerWatch | None = None
        self._failed = ""
        self._last_known: tuple[ServiceStatus, datetime] | tuple[None, None] = (None, None)
        self._database_errors = status_builder.DatabaseErrors()
        self._holders: dict[str, str] = {}
        self._losses_at_start = 0
        self._yielding: set[str] = set()
        self.http: HttpServer | None = None
        self._front_ends: FrontEnds | None = None
        self.metrics.destination_up.set_function(self._destination_up)
        self.metrics.destination_free.set_function(partial(self._last_free, "bytes"))
        self.metrics.destination_free_inodes.set_function(partial(self._last_free, "inodes"))

    def stop(self) -> None:
        """Asks it to end; may be called from a signal handler, and so takes no lock."""
        self._events.put(ServiceEvent(EventKind.STOP))

    def reload(self) -> None:
        """Asks it to read its sources again; may be called from a signal handler, and so takes no lock."""
        self._events.put(ServiceEvent(EventKind.RELOAD))

    def run(self) -> ExitStatus:
        """Runs until :meth:`stop`, or until its reconciliation is over.

        Raises:
            ArchiverError: with what a person has to fix, or the thread that crashed.
        """
        if self._reconciliation is not None:
            return self._run_once(self._reconciliation)
        queries = HttpQueries(
            self.metrics,
            self.status,
            partial(summarize, poll_interval=self._settings.poll_interval),
            self.file_status,
            self.why,
            lambda: status_builder.known_timecodes(self._pipeline),
        )
        self._front_ends = front_ends = FrontEnds(self._settings, queries, self._ended)
        self.http = front_ends.http
        front_ends.start()
        status_builder.log_start(self._settings)
        try:
            # In a thread of its own: to find that a host is down takes time.
            threading.Thread(target=self._preflight, name="preflight", daemon=True).start()
            while (tables := self._bootstrap_until_answered()) is not None and self._serve(tables):
                tables.database.close()
        finally:
            self._stopping.set()
            front_ends.announce_stop()
            self._end_work()
            if self._tables is not None:
                self._tables.database.close()
            front_ends.stop()  # after the work: the watchdog watches the drain, too
            status_builder.log_stop(self.metrics, self._started, self._failed)
        return ExitStatus.DONE

    def _run_once(self, reconciliation: ReconcileCompletion) -> ExitStatus:
        try:
            tables = self._bootstrap_until_answered()
            if tables is None:
                raise DatabaseUnavailable("stopped while the database was waited for")
            self._serve(tables)
            pipeline = self._pipeline
            self._end_pipeline(self._settings.drain_timeout)
            return reconciliation.finish(
                pipeline
            ).status  # with the locks held: nobody archives what is counted as left
        finally:
            self._end_work()
            if self._tables is not None:
                self._tables.database.close()

    def status(self) -> ServiceStatus:
        """The current status; while the database is away, with what was known before. Never waits for the database."""
        status = status_builder.build_status(
            status_builder.Snapshot(
                settings=self._settings,
                started=self._started,
                archive=self._archive,
                metrics=self.metrics,
                tables=self._tables,
                pipeline=self._pipeline,
                holders=self._holders,
                failure=self._failed,
                stopping=self._stopping.is_set(),
                database_errors=self._database_errors.texts(),
            )
        )
        return with_last_known(status, *self._last_known)

    def file_status(self, id_: int) -> FileStatus | None:
        """Where a file is on its way through the service; None if it is not. Waits for nothing."""
        pipeline = self._pipeline
        return None if pipeline is None else pipeline.dispatcher.file_status(id_)

    def why(self, wanted: str) -> dict[str, Any]:
        """What `why --json` says of a file; asks database, archive and source, by connections of its own.

        Args:
            wanted: an id, a path or a part of one.

        Raises:
            ArchiverError: it cannot be told.
        """
        port = self.http.port if self.http is not None else 0
        with open_context(self._settings.model_copy(update={"http_port": port}), _QUERY_LIMIT) as context:
            return look_up(context, wanted, datetime.now(UTC))

    # Neither asks the disk: a disk that hangs must not hang the answer that reports it.

    def _destination_up(self) -> float:
        pipeline = self._pipeline
        return math.nan if pipeline is None else float(pipeline.dispatcher.destination[0])

    def _last_free(self, what: Literal["bytes", "inodes"]) -> float:
        free = self._archive.last_free_bytes if what == "bytes" else self._archive.last_free_inodes
        return math.nan if free is None else float(free)

    def _bootstrap_until_answered(self) -> ResolvedTables | None:
        """Asks the database until it answers; None after a request to stop.

        Raises:
            DatabaseUnavailable: in a reconciliation, the database does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        pause = 0.5
        self._tables = None
        while True:
            bootstrap = Bootstrap(self._settings)
            asked = time.monotonic()
            while not bootstrap.ready:
                if self._is_asked_to_stop(_TICK):
                    bootstrap.abandon()
                    return None
                if time.monotonic() - asked > _SILENCE_LIMIT:
                    self._database_errors.report("start", False, "it accepts connections and sends no answer")
            try:
                self._tables = bootstrap.result()
            except DatabaseUnavailable as error:
                if self._reconciliation is not None:
                    raise
                self._database_errors.report("start", False, str(error))
                if self._is_asked_to_stop(pause):
                    return None
                pause = min(_LONGEST_PAUSE, pause * 2)
            else:
                self._database_errors.report("start", True, "")
                _log.info(
                    "table_found", table=self._tables.files.name, history=self._tables.history.unavailable or "kept"
                )
                return self._tables

    def _is_asked_to_stop(self, wait: float) -> bool:
        try:
            event = self._events.get(timeout=wait)
        except queue.Empty:
            return False
        if event.kind is EventKind.RELOAD:
            self._reload()
        return event.kind is EventKind.STOP

    def _next_event(self) -> ServiceEvent:
        # Python's signal handlers run in this thread, at its next bytecode: a signal that arrives on the way into a wait, or
        # in another thread, does not end the wait.
        try:
            return self._events.get(timeout=_TICK if self._reconciliation is not None else _WAKE)
        except queue.Empty:
            return ServiceEvent(EventKind.TICK)

    def _preflight(self) -> None:
        """Logs at the start what `check` finds."""
        for finding in run_checks(self._settings).findings:
            if finding.rsync is not None:
                self.metrics.rsync_info.labels(*finding.rsync).set(1)
            if finding.status is not CheckStatus.OK and not self._stopping.is_set():
                say = _log.warning if finding.status is CheckStatus.WARNING else _log.error
                say("preflight", subject=finding.subject, detail=finding.text, fix=finding.fix)

    def _serve(self, tables: ResolvedTables) -> bool:
        """Works as long as nothing changes; returns whether the table has to be looked for again."""
        locks = SourceLocks(tables.database, tables.files.name, self._targets())
        if self._reconciliation is not None:
            self._reconciliation.begin(tables, self._settings.targets, self.metrics)
            self._keeper = LockKeeper(locks, self, all_or_none=True)
        else:
            self._keeper = LockKeeper(locks, self, share=self._settings.max_sources)
            self._watch = ServerWatch(
                tables.database, partial(getattr, locks, "server"), self.metrics, self.on_server_left
            )
            tables.database.observer = self._watch
            self._watch.on_end = self._ended
            self._watch.start()
        self._keeper.on_end = self._ended
        self._keeper.start()
        while True:
            event = self._next_event()
            match event.kind:
                case EventKind.TICK:
                    if self._reconciliation and self._reconciliation.is_over(self._pipeline, self._holders):
                        return False
                case EventKind.STOP:
                    return False
                case EventKind.ERROR if self._reconciliation is not None and event.error is not None:
                    raise event.error
                case EventKind.OTHER_TABLE if self._reconciliation is None:
                    _log.warning("table_changed", was=tables.files.name)
                    self._end_work()
                    return True
                case EventKind.SERVER_LEFT if event.part is self._watch:
                    _log.error(event.name, detail=event.why)
                    tables.database.close()
                    self._end_work(drain=0.0)
                    return True
                case EventKind.ACQUIRED if event.losses == self._keeper.losses:
                    self._start_sources(tables, event.sources, event.losses)
                case EventKind.LOST if self._pipeline is not None:
                    _log.error("lock_lost", detail=event.why)
                    tables.database.close()  # what ended the lock's connection may have ended the idle ones in silence
                    self._end_pipeline(drain=0.0)
                case EventKind.REQUESTED:
                    _log.info("yielding_source", source=event.why)
                    self._yielding.add(event.why)
                    self._yield_source(event.why)
                case EventKind.YIELDED if event.pipeline is self._pipeline:
                    self._release_source(event.why)
                case EventKind.RELOAD:
                    self._reload()
                case EventKind.THREAD_ENDED if event.part is not None and self._is_unexpected(event.part):
                    failure = event.part.failure
                    self._failed = f"{event.part.name} died: {failure!r}"
                    if isinstance(failure, ArchiverError):
                        raise failure
                    _log.error("thread_crashed", part=event.part.name, exc_info=failure)
                    raise ArchiverError(
                        f"the thread {event.part.name} died of {failure!r}", "report this bug, with the log"
                    )

    def _is_unexpected(self, part: StoppableThread) -> bool:
        """Whether a part's death is news: it was not asked to stop, or its source cannot be let go without it."""
        yielding = self._pipeline.yielding if self._pipeline is not None else ()
        return not part.stopping.is_set() or part.name.partition("/")[0] in yielding

    # The sources that are held change while the service works.

    def _described(self) -> dict[str, SourceSettings]:
        return {source.name: source for source in self._settings.sources}

    def _targets(self) -> dict[str, tuple[str, ...]]:
        return {source.name: source.target for source in self._settings.sources}

    def _start_sources(self, tables: ResolvedTables, names: Sequence[str], losses: int) -> None:
        """The locks of these sources are held: their files are archived from now on."""
        assert self._keeper is not None
        described = self._described()
        sources = []
        for name in names:
            if name not in described or not self._keeper.covers(name, described[name].target):
                self._keeper.release(name, losses)  # the configuration was read again since
            elif self._pipeline is None or name not in self._pipeline.sources:
                sources.append(described[name])
        if not sources:
            return
        keeper = self._keeper
        _log.info("lock_acquired", targets=[target for source in sources for target in source.target])
        if self._pipeline is not None:
            for source in sources:
                self._pipeline.add(source)
            return
        self.metrics.activity.forget()  # what failed before may have been archived or given up since
        pipeline = Pipeline(
            self._settings.model_copy(update={"sources": tuple(sources)}),
            tables,
            self._archive,
            self.metrics,
            on_end=self._ended,
            on_database=lambda who, up, why: (
                self._database_errors.report(who, up, why) if self._pipeline is pipeline else None
            ),
            on_other_table=lambda: self._events.put(ServiceEvent(EventKind.OTHER_TABLE)),
            on_notice=lambda notice: self._front_ends.tell(notice_of_timecode(notice)) if self._front_ends else None,
            on_look=lambda pipeline: status_builder.publish_timecodes(pipeline, self.metrics, datetime.now(UTC)),
            stream=self._reconciliation is None,
            configured=self._settings,
            lock_server=lambda: keeper.server,
        )
        self._pipeline = self._active_pipeline = pipeline
        self._losses_at_start = losses
        if self._keeper.losses != losses:
            pipeline.cancel()  # lost meanwhile: the event that says so comes next
        pipeline.start()

    def _yield_source(self, name: str) -> None:
        """Yields a source, or restarts it with other options."""
        pipeline = self._pipeline
        if pipeline is not None and name in pipeline.sources and name not in pipeline.yielding:
            left = lambda source: self._events.put(ServiceEvent(EventKind.YIELDED, source, pipeline=pipeline))
            pipeline.remove(name, self._settings.drain_timeout, left)

    def _release_source(self, name: str) -> None:
        """Releases a yielded source of which no copy is under way."""
        assert self._pipeline is not None
        assert self._keeper is not None
        source = self._described().get(name)
        if name not in self._yielding and source is not None and self._keeper.covers(name, source.target):
            self._pipeline.add(source)  # only its options have changed, so it stays held
            return
        _log.info("source_yielded", source=name)
        self._yielding.discard(name)
        held = self._keeper.held
        self._keeper.release(name, self._losses_at_start)
        if not self._pipeline.sources and held == (name,):
            self._end_pipeline(drain=0.0)

    def _reload(self) -> None:
        """Takes over the sources of the configuration as it is now."""
        try:
            new = self._load_again()
            archive_of(new)
        except ArchiverError as error:
            _log.error("not_reloaded", detail=str(error))
            return
        of_sources = {"sources", *SourceOptions.model_fields}
        others = [name for name in type(new).model_fields if name not in of_sources]
        if changed := [name for name in others if getattr(new, name) != getattr(self._settings, name)]:
            _log.warning("restart_needed", settings=changed)
        before = self._described()
        self._settings = self._settings.model_copy(update={"sources": new.sources})
        after = self._described()
        _log.info(
            "reloaded",
            new=sorted(after.keys() - before.keys()),
            gone=sorted(before.keys() - after.keys()),
            changed=sorted(name for name in after.keys() & before.keys() if after[name] != before[name]),
        )
        if self._keeper is not None:
            self._keeper.describe(self._targets())
        for name, source in before.items():
            if after.get(name) != source:
                self._yield_source(name)

    def _end_pipeline(self, drain: float) -> None:
        if self._pipeline is not None:
            self._last_known = (self.status(), datetime.now(UTC))
        pipeline, self._pipeline = self._pipeline, None
        self.metrics.set_mode("")
        if pipeline is not None:
            pipeline.stop(drain)
        self._active_pipeline = None
        self._yielding.clear()
        self.metrics.forget_sources()
        self._database_errors.keep("lock")  # its threads report no more; the lock keeper reports its own

    def _end_work(self, drain: float | None = None) -> None:
        if self._watch is not None:
            self._watch.stop()
        self._end_pipeline(self._settings.drain_timeout if drain is None else drain)
        if self._keeper is not None:
            self._keeper.stop()
            self._keeper.join(2.0)
            self._holders = {}

    def _ended(self, part: StoppableThread) -> None:
        if part.failure is not None:
            self._events.put(ServiceEvent(EventKind.THREAD_ENDED, part=part))

    def on_server_left(self, watch: ServerWatch, name: str, why: str) -> None:
        """Called by any thread that uses the database: nothing can be done with this server any more."""
        pipeline = self._active_pipeline
        self._events.put(ServiceEvent(EventKind.SERVER_LEFT, why, name, part=watch))
        if pipeline is not None:
            pipeline.cancel()

    # Called by the lock keeper, in its thread.

    def on_acquired(self, sources: Sequence[str], losses: int) -> None:
        self._database_errors.report("lock", True, "")
        self._events.put(ServiceEvent(EventKind.ACQUIRED, sources=tuple(sources), losses=losses))

    def on_lost(self, lost: LockLost) -> None:
        pipeline = self._active_pipeline
        if self._reconciliation is None:
            self._events.put(ServiceEvent(EventKind.LOST, str(lost)))
        elif isinstance(lost.__cause__, pymysql.MySQLError | OSError):
            self._events.put(ServiceEvent(EventKind.ERROR, error=DatabaseUnavailable(str(lost))))
        else:
            self._events.put(ServiceEvent(EventKind.ERROR, error=lost))
        if pipeline is not None:  # after the event: a reconciliation must not take the end of the copies for its own
            pipeline.cancel()

    def on_requested(self, source: str) -> None:
        self._events.put(ServiceEvent(EventKind.REQUESTED, source))

    def on_held_by_other(self, holders: Mapping[str, str]) -> None:
        self._holders = dict(holders)
        for source in holders:
            self.metrics.activity.forget(source)
        if self._reconciliation is not None:
            return  # it logs for itself
        if holders and self._pipeline is None and not (self._keeper and self._keeper.held):
            self.metrics.set_mode("standby")
            _log.info("standby", holder="; ".join(sorted(set(holders.values()))))
        elif holders:
            _log.info("held_by_other", holders=dict(holders))

    def on_unreachable(self, error: ArchiverError) -> None:
        self._database_errors.report("lock", False, str(error))
        self._events.put(ServiceEvent(EventKind.ERROR, error=error))

    def on_reachable(self) -> None:
        self._database_errors.report("lock", True, "")
