"""The service: builds the parts, starts them, watches them, drains and stops them."""

from __future__ import annotations

import math
import queue
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from cdc_archiver.database.lock import LockKeeper, TargetLocks
from cdc_archiver.dispatch.ledger import Whereabouts
from cdc_archiver.errors import ArchiverError, DatabaseUnavailable, ExitStatus
from cdc_archiver.observe.http import HttpServer
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.operations.status import (
    DestinationStatus,
    ServiceState,
    SourceStatus,
    Status,
    StreamStatus,
    is_ready,
    overall,
)
from cdc_archiver.preflight import Status as Answer
from cdc_archiver.preflight import run_checks
from cdc_archiver.settings import Settings
from cdc_archiver.shift import Shift
from cdc_archiver.site import Exploration, Site, archive_of
from cdc_archiver.threads import Part

_LONGEST_PAUSE: Final = 10.0
_TICK: Final = 0.1
_PATIENCE: Final = 10.0
"""Seconds after which a database that says nothing is said to say nothing."""

_log = structlog.get_logger(__name__)


class Archiver:
    """The service from its start to its exit status.

    Args:
        settings: with a data_dir and at least one source.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._archive = archive_of(settings)
        self._data_dir = self._archive.data_dir
        self.metrics = Metrics()
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._started = datetime.now(UTC)
        self._site: Site | None = None
        self._shift: Shift | None = None
        self._keeper: LockKeeper | None = None
        self._failed = ""
        self._complaints: dict[str, str] = {}
        self._complaining = threading.Lock()
        self._holder = ""
        self.http: HttpServer | None = None
        self.metrics.destination_up.set_function(self._destination_up)
        self.metrics.destination_free.set_function(self._free_bytes)

    def stop(self) -> None:
        """Asks it to end; may be called from a signal handler, and so takes no lock."""
        self._events.put(_Event("stop"))

    def run(self) -> ExitStatus:
        """Serves until :meth:`stop`.

        Raises:
            ArchiverError: with what a person has to mend, or the part that died.
        """
        self.http = HttpServer(
            self._settings.http_host, self._settings.http_port, self.metrics, self.status, self.whereabouts
        )
        self.http.on_end = self._ended
        self.http.start()
        _log.info("listening", address=f"http://{self._settings.http_host}:{self.http.port}")
        try:
            # Beside the work, since a host that is down takes its time to be found so.
            threading.Thread(target=self._preflight, name="preflight", daemon=True).start()
            while (site := self._explore_until_answered()) is not None and self._serve(site):
                _log.warning("table_changed", was=site.files.name)
        finally:
            self._stopping.set()
            self._end_work()
            self.http.stop()
            self.http.join(3.0)
            _log.info("stopped")
        return ExitStatus.DONE

    def status(self) -> Status:
        """How things are now. Never waits for the database."""
        site, shift = self._site, self._shift
        state, why = self._state(shift)
        sources: tuple[SourceStatus, ...] = ()
        destination = None
        stream = None
        if shift is not None:
            options = {source.name: source for source in self._settings.sources}
            sources = tuple(
                SourceStatus(
                    state=source,
                    targets=options[source.name].target,
                    host=options[source.name].host,
                    files=shift.sweeper.census.get(source.name),
                )
                for source in shift.dispatcher.states()
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
        return Status(
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
            destination=destination,
            last_sweep=shift.sweeper.last_sweep if shift else None,
            archived=round(
                sum(self.metrics.total("copies_total", result=result) for result in ("archived", "adopted"))
            ),
        )

    def whereabouts(self, id_: int) -> Whereabouts | None:
        """Where a file is on its way through the house; None if it is not. Waits for nothing."""
        shift = self._shift
        return None if shift is None else shift.dispatcher.ledger.whereabouts(id_, time.monotonic())

    def _state(self, shift: Shift | None) -> tuple[ServiceState, str]:
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
        if self._holder:
            return ServiceState.STANDBY, f"another archiver has these targets: {self._holder}"
        address = f"{self._settings.mysql_host}:{self._settings.mysql_port}"
        return ServiceState.STARTING, f"waiting for the database {address}" if self._site is None else ""

    # Neither asks the disk: one that hangs must not hang the answer that would say so.

    def _destination_up(self) -> float:
        shift = self._shift
        return math.nan if shift is None else float(shift.dispatcher.destination[0])

    def _free_bytes(self) -> float:
        free = self._archive.last_free_bytes
        return math.nan if free is None else float(free)

    def _explore_until_answered(self) -> Site | None:
        """Asks the database until it answers; None if we were asked to stop meanwhile."""
        pause = 0.5
        self._site = None
        while True:
            answer = Exploration(self._settings)
            asked = time.monotonic()
            while not answer.ready:
                if self._is_asked_to_stop(_TICK):
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
            return self._events.get(timeout=wait).what == "stop"
        except queue.Empty:
            return False

    def _preflight(self) -> None:
        """Says at the start what `check` would find wrong."""
        for finding in run_checks(self._settings).findings:
            if finding.rsync is not None:
                self.metrics.rsync_info.labels(*finding.rsync).set(1)
            if finding.status is not Answer.OK and not self._stopping.is_set():
                say = _log.warning if finding.status is Answer.WARNING else _log.error
                say("preflight", subject=finding.subject, detail=finding.text, mend=finding.mend)

    def _serve(self, site: Site) -> bool:
        """Works as long as nothing changes; returns whether the table has to be looked for anew."""
        targets = self._settings.targets
        self._keeper = LockKeeper(
            TargetLocks(site.database, site.files.name, targets),
            on_acquired=self._lock_acquired,
            on_lost=self._lock_lost,
            on_waiting=self._standing_by,
            on_unreachable=partial(self._set_database, "lock", False),
        )
        self._keeper.on_end = self._ended
        self._keeper.start()
        while True:
            event = self._events.get()
            match event.what:
                case "stop":
                    return False
                case "table":
                    self._end_work()
                    return True
                case "acquired" if self._shift is None and self._keeper.held:
                    _log.info("lock_acquired", targets=targets)
                    shift = self._shift = Shift(
                        self._settings,
                        site,
                        self._archive,
                        self.metrics,
                        on_end=self._ended,
                        on_database=self._set_database,
                        on_other_table=lambda: self._events.put(_Event("table")),
                        stream=True,
                    )
                    shift.start()
                case "lost" if self._shift is not None:
                    _log.error("lock_lost", detail=event.why)
                    self._end_shift(drain=0.0)
                case "ended" if event.part is not None and not event.part.stopping.is_set():
                    failure = event.part.failure
                    self._failed = f"{event.part.name} died: {failure!r}"
                    if isinstance(failure, ArchiverError):
                        raise failure
                    _log.error("part_died", part=event.part.name, exc_info=failure)
                    raise ArchiverError(f"the thread {event.part.name} died of {failure!r}", "this is a bug: report it")

    def _end_shift(self, drain: float) -> None:
        shift, self._shift = self._shift, None
        self.metrics.set_mode("")
        if shift is not None:
            shift.stop(drain)
        self.metrics.forget_sources()
        # Its parts complain no more; who keeps the lock speaks for itself.
        self._complaints = {who: why for who, why in self._complaints.items() if who == "lock"}

    def _end_work(self) -> None:
        self._end_shift(self._settings.drain_timeout)
        if self._keeper is not None:
            self._keeper.stop()
            self._keeper.join(2.0)

    def _ended(self, part: Part) -> None:
        if part.failure is not None:
            self._events.put(_Event("ended", part=part))

    # What the keeper of the lock tells, in its thread.

    def _lock_acquired(self) -> None:
        self._set_database("lock", True, "")
        self._holder = ""
        self._events.put(_Event("acquired"))

    def _lock_lost(self, why: str) -> None:
        if self._shift is not None:
            self._shift.cancel()
        self._events.put(_Event("lost", why))

    def _standing_by(self, holder: str) -> None:
        self._set_database("lock", True, "")
        self._holder = holder
        self.metrics.set_mode("standby")
        _log.info("standby", holder=holder)

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
