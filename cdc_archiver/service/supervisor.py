"""The service: builds the parts, starts them, watches them, drains and stops them."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import structlog

from cdc_archiver.commands.context import open_context
from cdc_archiver.commands.why.lookup import inquire
from cdc_archiver.database.source_locks import SourceLocks
from cdc_archiver.dispatch.in_flight import FileStatus
from cdc_archiver.errors import ArchiverError, DatabaseUnavailable, ExitStatus
from cdc_archiver.observe.http import HttpServer, Views
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.observe.service_status import (
    DestinationStatus,
    HeldByOther,
    ServiceState,
    ServiceStatus,
    SourceStatus,
    StreamStatus,
    is_ready,
    overall,
)
from cdc_archiver.observe.summary import summarize
from cdc_archiver.observe.systemd import Notifier
from cdc_archiver.preflight import CheckStatus, run_checks
from cdc_archiver.service.bootstrap import Bootstrap, ResolvedTables, archive_of
from cdc_archiver.service.lock_keeper import LockKeeper
from cdc_archiver.service.pipeline import Pipeline
from cdc_archiver.settings import Settings, SourceOptions, SourceSettings
from cdc_archiver.threads import Part

_LONGEST_PAUSE: Final = 10.0
_TICK: Final = 0.1
_WAKE: Final = 0.5
"""Seconds after which a signal is heeded that interrupted no wait."""
_PATIENCE: Final = 10.0
"""Seconds after which a database that says nothing is said to say nothing."""
_ANSWER: Final = 20.0
"""Seconds that one statement may take for somebody who searches on the status page."""

_log = structlog.get_logger(__name__)


class Supervisor:
    """The service from its start to its exit status.

    Args:
        settings: with a data_dir and at least one source.
        load_again: reads the settings anew, for :meth:`reload`.
    """

    def __init__(self, settings: Settings, load_again: Callable[[], Settings] | None = None) -> None:
        self._settings = settings
        self._load_again = load_again or (lambda: settings)
        self._archive = archive_of(settings)
        self._data_dir = self._archive.data_dir
        self.metrics = Metrics()
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._started = datetime.now(UTC)
        self._site: ResolvedTables | None = None
        self._shift: Pipeline | None = None
        self._working: Pipeline | None = None
        """The shift, also while it is being ended: what a lost lock must stop."""
        self._keeper: LockKeeper | None = None
        self._failed = ""
        self._complaints: dict[str, str] = {}
        self._complaining = threading.Lock()
        self._elsewhere: dict[str, str] = {}
        self._taken_at = 0
        self._giving_back: set[str] = set()
        self.http: HttpServer | None = None
        self.metrics.destination_up.set_function(self._destination_up)
        self.metrics.destination_free.set_function(self._free_bytes)

    def stop(self) -> None:
        """Asks it to end; may be called from a signal handler, and so takes no lock."""
        self._events.put(_Event("stop"))

    def reload(self) -> None:
        """Asks it to read its sources anew; may be called from a signal handler, and so takes no lock."""
        self._events.put(_Event("reload"))

    def run(self) -> ExitStatus:
        """Serves until :meth:`stop`.

        Raises:
            ArchiverError: with what a person has to fix, or the part that died.
        """
        words = partial(summarize, poll_interval=self._settings.poll_interval)
        views = Views(self.metrics, self.status, words, self.file_status, self.why)
        self.http = HttpServer(self._settings.http_host, self._settings.http_port, views)
        self.http.on_end = self._ended
        self.http.start()
        host = self._settings.http_host
        _log.info("listening", address=f"http://{f'[{host}]' if ':' in host else host}:{self.http.port}")
        notifier = Notifier.from_environment(self.status)
        if notifier is not None:
            notifier.on_end = self._ended
            notifier.start()
        try:
            # Beside the work, since a host that is down takes its time to be found so.
            threading.Thread(target=self._preflight, name="preflight", daemon=True).start()
            while (site := self._explore_until_answered()) is not None and self._serve(site):
                _log.warning("table_changed", was=site.files.name)
                site.database.close()
        finally:
            self._stopping.set()
            if notifier is not None:
                notifier.announce_stop()
            self._end_work()
            if self._site is not None:
                self._site.database.close()
            if notifier is not None:
                notifier.stop()  # last of the work: the watchdog watches the draining, too
                notifier.join(3.0)
            self.http.stop()
            self.http.join(3.0)
            _log.info("stopped")
        return ExitStatus.DONE

    def status(self) -> ServiceStatus:
        """How things are now. Never waits for the database."""
        site, shift = self._site, self._shift
        state, why = self._state(shift)
        sources: tuple[SourceStatus, ...] = ()
        destination = None
        stream = None
        if shift is not None:
            options = shift.sources
            sources = tuple(
                SourceStatus(
                    state=source,
                    targets=options[source.name].target,
                    host=options[source.name].host,
                    files=shift.sweeper.census.get(source.name),
                )
                for source in shift.dispatcher.states()
                if source.name in options
            )
            up, reason, detail = shift.dispatcher.destination
            free = self._archive.last_free_bytes
            destination = DestinationStatus(str(self._data_dir), up, reason, detail, free)
            if shift.stream is not None:
                position = shift.stream.position
                stream = StreamStatus(
                    connected=position is not None,
                    why=shift.why_no_stream,
                    position=str(position) if position else None,
                    lag=self.metrics.total("stream_lag_seconds") if position else None,
                )
        return ServiceStatus(
            state=state,
            why=why,
            ready=is_ready(state),
            healthy=state is not ServiceState.FAILED,
            started=self._started,
            database=f"{self._settings.mysql_host}:{self._settings.mysql_port}/{self._settings.mysql_database}",
            table=site.files.name if site else None,
            history=(site.no_history or "kept") if site else "",
            stream=stream,
            sources=sources,
            elsewhere=tuple(HeldByOther(name, holder) for name, holder in self._elsewhere.items()),
            destination=destination,
            last_sweep=shift.sweeper.last_sweep if shift else None,
            archived=round(
                sum(self.metrics.total("copies_total", result=result) for result in ("archived", "adopted"))
            ),
        )

    def file_status(self, id_: int) -> FileStatus | None:
        """Where a file is on its way through the house; None if it is not. Waits for nothing."""
        shift = self._shift
        return None if shift is None else shift.dispatcher.file_status(id_)

    def why(self, wanted: str) -> dict[str, Any]:
        """What `why --json` says of a file; asks database, archive and source, by connections of its own.

        Args:
            wanted: an id, a path or a part of one.

        Raises:
            ArchiverError: it cannot be told.
        """
        port = self.http.port if self.http is not None else 0
        with open_context(self._settings.model_copy(update={"http_port": port}), _ANSWER) as desk:
            return inquire(desk, wanted, datetime.now(UTC))

    def _state(self, shift: Pipeline | None) -> tuple[ServiceState, str]:
        if self._failed:
            return ServiceState.FAILED, self._failed
        if self._stopping.is_set():
            return ServiceState.STOPPING, ""
        if complaints := list(self._complaints.values()):
            return ServiceState.NO_DATABASE, complaints[0]
        if shift is not None:
            streaming = shift.stream is not None and shift.stream.position is not None
            return overall(
                streaming=streaming,
                stream_why=shift.why_no_stream,
                sources=tuple(shift.dispatcher.states()),
                destination=shift.dispatcher.destination,
            )
        if holders := sorted(set(self._elsewhere.values())):
            return ServiceState.STANDBY, f"another archiver has these targets: {'; '.join(holders)}"
        address = f"{self._settings.mysql_host}:{self._settings.mysql_port}"
        return ServiceState.STARTING, f"waiting for the database {address}" if self._site is None else ""

    # Neither asks the disk: one that hangs must not hang the answer that would say so.

    def _destination_up(self) -> float:
        shift = self._shift
        return math.nan if shift is None else float(shift.dispatcher.destination[0])

    def _free_bytes(self) -> float:
        free = self._archive.last_free_bytes
        return math.nan if free is None else float(free)

    def _explore_until_answered(self) -> ResolvedTables | None:
        """Asks the database until it answers; None if we were asked to stop meanwhile."""
        pause = 0.5
        self._site = None
        while True:
            answer = Bootstrap(self._settings)
            asked = time.monotonic()
            while not answer.ready:
                if self._is_asked_to_stop(_TICK):
                    answer.abandon()
                    return None
                if time.monotonic() - asked > _PATIENCE:
                    self._set_database("start", False, "it accepts connections and says nothing")
            try:
                self._site = answer.result()
            except DatabaseUnavailable as error:
                self._set_database("start", False, str(error))
                if self._is_asked_to_stop(pause):
                    return None
                pause = min(_LONGEST_PAUSE, pause * 2)
            else:
                self._set_database("start", True, "")
                return self._site

    def _is_asked_to_stop(self, wait: float) -> bool:
        try:
            event = self._events.get(timeout=wait)
        except queue.Empty:
            return False
        if event.what == "reload":
            self._reload()
        return event.what == "stop"

    def _next_event(self) -> _Event:
        # Python's signal handlers run in this thread, at its next bytecode: a signal that comes on the way into a wait, or in
        # another thread, does not end the wait.
        while True:
            with contextlib.suppress(queue.Empty):
                return self._events.get(timeout=_WAKE)

    def _preflight(self) -> None:
        """Says at the start what `check` would find wrong."""
        for finding in run_checks(self._settings).findings:
            if finding.rsync is not None:
                self.metrics.rsync_info.labels(*finding.rsync).set(1)
            if finding.status is not CheckStatus.OK and not self._stopping.is_set():
                say = _log.warning if finding.status is CheckStatus.WARNING else _log.error
                say("preflight", subject=finding.subject, detail=finding.text, fix=finding.fix)

    def _serve(self, site: ResolvedTables) -> bool:
        """Works as long as nothing changes; returns whether the table has to be looked for anew."""
        locks = SourceLocks(site.database, site.files.name, self._targets())
        self._keeper = LockKeeper(locks, self, self._settings.max_sources)
        self._keeper.on_end = self._ended
        self._keeper.start()
        while True:
            event = self._next_event()
            match event.what:
                case "stop":
                    return False
                case "table":
                    self._end_work()
                    return True
                case "acquired" if event.losses == self._keeper.losses:
                    self._take_up(site, event.sources, event.losses)
                case "lost" if self._shift is not None:
                    _log.error("lock_lost", detail=event.why)
                    site.database.close()  # what ended the lock's connection may have ended the idle ones in silence
                    self._end_shift(drain=0.0)
                case "wanted":
                    _log.info("giving_back", source=event.why)
                    self._giving_back.add(event.why)
                    self._see_off(event.why)
                case "left" if event.shift is self._shift:
                    self._let_go(event.why)
                case "reload":
                    self._reload()
                case "ended" if event.part is not None and self._is_unexpected(event.part):
                    failure = event.part.failure
                    self._failed = f"{event.part.name} died: {failure!r}"
                    if isinstance(failure, ArchiverError):
                        raise failure
                    _log.error("part_died", part=event.part.name, exc_info=failure)
                    raise ArchiverError(f"the thread {event.part.name} died of {failure!r}", "this is a bug: report it")

    def _is_unexpected(self, part: Part) -> bool:
        """Whether a part's death is news: it was not asked to stop, or its source cannot be let go without it."""
        leaving = self._shift.leaving if self._shift is not None else ()
        return not part.stopping.is_set() or part.name.partition("/")[0] in leaving

    # The sources: which are ours changes while we work.

    def _described(self) -> dict[str, SourceSettings]:
        return {source.name: source for source in self._settings.sources}

    def _targets(self) -> dict[str, tuple[str, ...]]:
        return {source.name: source.target for source in self._settings.sources}

    def _take_up(self, site: ResolvedTables, names: Sequence[str], losses: int) -> None:
        """We hold the locks of these sources."""
        assert self._keeper is not None
        described = self._described()
        sources = []
        for name in names:
            if name not in described or not self._keeper.covers(name, described[name].target):
                self._keeper.release(name, losses)  # the configuration was read anew since it was taken
            elif self._shift is None or name not in self._shift.sources:
                sources.append(described[name])
        if not sources:
            return
        _log.info("lock_acquired", targets=[target for source in sources for target in source.target])
        if self._shift is not None:
            for source in sources:
                self._shift.add(source)
            return
        shift = Pipeline(
            self._settings.model_copy(update={"sources": tuple(sources)}),
            site,
            self._archive,
            self.metrics,
            on_end=self._ended,
            on_database=lambda who, up, why: self._set_database(who, up, why) if self._shift is shift else None,
            on_other_table=lambda: self._events.put(_Event("table")),
            stream=True,
        )
        self._shift = self._working = shift
        self._taken_at = losses
        if self._keeper.losses != losses:
            shift.cancel()  # lost meanwhile: the event that says so comes next
        shift.start()

    def _see_off(self, name: str) -> None:
        """A source is to be ours no longer, or no longer as it is."""
        shift = self._shift
        if shift is not None and name in shift.sources and name not in shift.leaving:
            left = lambda source: self._events.put(_Event("left", source, shift=shift))
            shift.remove(name, self._settings.drain_timeout, left)

    def _let_go(self, name: str) -> None:
        """Nothing of a source is under way any more."""
        assert self._shift is not None
        assert self._keeper is not None
        source = self._described().get(name)
        if name not in self._giving_back and source is not None and self._keeper.covers(name, source.target):
            self._shift.add(source)  # only its options have changed: nobody else is to have it meanwhile
            return
        _log.info("source_left", source=name)
        self._giving_back.discard(name)
        held = self._keeper.held
        self._keeper.release(name, self._taken_at)
        if not self._shift.sources and held == (name,):
            self._end_shift(drain=0.0)

    def _reload(self) -> None:
        """Takes over what the configuration says of the sources now."""
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
                self._see_off(name)

    def _end_shift(self, drain: float) -> None:
        shift, self._shift = self._shift, None
        self.metrics.set_mode("")
        if shift is not None:
            shift.stop(drain)
        self._working = None
        self._giving_back.clear()
        self.metrics.forget_sources()
        # Its parts complain no more; who keeps the lock speaks for itself.
        with self._complaining:
            self._complaints = {who: why for who, why in self._complaints.items() if who == "lock"}

    def _end_work(self) -> None:
        self._end_shift(self._settings.drain_timeout)
        if self._keeper is not None:
            self._keeper.stop()
            self._keeper.join(2.0)

    def _ended(self, part: Part) -> None:
        if part.failure is not None:
            self._events.put(_Event("ended", part=part))

    # What the keeper of the locks tells, in its thread.

    def on_acquired(self, sources: Sequence[str], losses: int) -> None:
        self._set_database("lock", True, "")
        self._events.put(_Event("acquired", sources=tuple(sources), losses=losses))

    def on_lost(self, why: str) -> None:
        if (shift := self._working) is not None:
            shift.cancel()
        self._events.put(_Event("lost", why))

    def on_wanted(self, source: str) -> None:
        self._events.put(_Event("wanted", source))

    def on_elsewhere(self, holders: Mapping[str, str]) -> None:
        self._elsewhere = dict(holders)
        if holders and self._shift is None and not (self._keeper and self._keeper.held):
            self.metrics.set_mode("standby")
            _log.info("standby", holder="; ".join(sorted(set(holders.values()))))
        elif holders:
            _log.info("elsewhere", holders=dict(holders))

    def on_unreachable(self, why: str) -> None:
        self._set_database("lock", False, why)

    def on_reachable(self) -> None:
        self._set_database("lock", True, "")

    def _set_database(self, who: str, up: bool, why: str) -> None:
        """Each part that asks the database says for itself whether it answers: one that is content excuses no other."""
        with self._complaining:
            before = bool(self._complaints)
            if up:
                self._complaints.pop(who, None)
            else:
                self._complaints[who] = why or "it does not answer"
            after = bool(self._complaints)
        if before and not after:
            _log.info("database_up")
        elif after and not before:
            _log.error("database_down", detail=why)


@dataclass(frozen=True, slots=True)
class _Event:
    what: str
    why: str = ""
    part: Part | None = None
    sources: tuple[str, ...] = ()
    losses: int = 0
    shift: Pipeline | None = None
