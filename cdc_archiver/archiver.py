"""The service: builds the parts, starts them, watches them, drains and stops them."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from cdc_archiver.database.lock import LockKeeper, TargetLocks
from cdc_archiver.errors import ArchiverError, DatabaseUnavailable, DestinationUnavailable, ExitStatus, Misconfigured
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
from cdc_archiver.site import Site, explore
from cdc_archiver.threads import Part
from cdc_archiver.transfer.staging import Archive

_LONGEST_PAUSE: Final = 10.0

_log = structlog.get_logger(__name__)


class Archiver:
    """The service from its start to its exit status.

    Args:
        settings: with a data_dir and at least one source.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.data_dir is None:
            raise Misconfigured("there is no data_dir", "--data-dir /data/… or CDC_ARCHIVER_DATA_DIR")
        if not settings.sources:
            raise Misconfigured("there is no target", "--target, or [[sources]] in the file of --config")
        self._settings = settings
        self._data_dir = settings.data_dir
        self.metrics = Metrics()
        self._archive = Archive(settings.data_dir, settings.modes, settings.min_free)
        self._archive.require_folder()
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._started = datetime.now(UTC)
        self._site: Site | None = None
        self._shift: Shift | None = None
        self._keeper: LockKeeper | None = None
        self._failed = ""
        self._no_database = ""
        self._holder = ""
        self.http: HttpServer | None = None
        self.metrics.destination_up.set_function(self._destination_up)
        self.metrics.destination_free.set_function(lambda: float(self._free_bytes() or 0))

    def stop(self) -> None:
        """Asks it to end; may be called from a signal handler."""
        self._stopping.set()
        self._events.put(_Event("stop"))

    def run(self) -> ExitStatus:
        """Serves until :meth:`stop`.

        Raises:
            ArchiverError: with what a person has to mend, or the part that died.
        """
        self.http = HttpServer(self._settings.http_host, self._settings.http_port, self.metrics, self.status)
        self.http.on_end = self._ended
        self.http.start()
        _log.info("listening", address=f"http://{self._settings.http_host}:{self.http.port}")
        try:
            site = self._explore_until_answered()
            if site is not None:
                # Beside the work, since a host that is down takes its time to be found so.
                threading.Thread(target=self._preflight, name="preflight", daemon=True).start()
                self._serve(site)
        finally:
            self._stopping.set()
            if self._shift is not None:
                self._shift.stop(self._settings.drain_timeout)
            if self._keeper is not None:
                self._keeper.stop()
                self._keeper.join(2.0)
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
            destination = DestinationStatus(str(self._data_dir), up, reason, detail, self._free_bytes())
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

    def _state(self, shift: Shift | None) -> tuple[ServiceState, str]:
        if self._failed:
            return ServiceState.FAILED, self._failed
        if self._stopping.is_set():
            return ServiceState.STOPPING, ""
        if self._no_database:
            return ServiceState.NO_DATABASE, self._no_database
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
        return ServiceState.STARTING, ""

    def _destination_up(self) -> float:
        shift = self._shift
        return float(self._data_dir.is_dir() if shift is None else shift.dispatcher.destination[0])

    def _free_bytes(self) -> int | None:
        try:
            return self._archive.free_bytes()
        except DestinationUnavailable:
            return None

    def _explore_until_answered(self) -> Site | None:
        pause = 0.5
        while not self._stopping.is_set():
            try:
                self._site = explore(self._settings)
            except DatabaseUnavailable as error:
                self._set_database(False, str(error))
                self._stopping.wait(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
            else:
                self._set_database(True, "")
                return self._site
        return None

    def _preflight(self) -> None:
        """Says at the start what `check` would find wrong."""
        for finding in run_checks(self._settings).findings:
            if finding.rsync is not None:
                self.metrics.rsync_info.labels(*finding.rsync).set(1)
            if finding.status is not Answer.OK and not self._stopping.is_set():
                say = _log.warning if finding.status is Answer.WARNING else _log.error
                say("preflight", subject=finding.subject, detail=finding.text, mend=finding.mend)

    def _serve(self, site: Site) -> None:
        targets = [target for source in self._settings.sources for target in source.target]
        self._keeper = LockKeeper(
            TargetLocks(site.database, site.files.name, targets),
            on_acquired=self._lock_acquired,
            on_lost=self._lock_lost,
            on_waiting=self._standing_by,
            on_unreachable=partial(self._set_database, False),
        )
        self._keeper.on_end = self._ended
        self._keeper.start()
        while True:
            event = self._events.get()
            match event.what:
                case "stop":
                    return
                case "acquired" if self._shift is None:
                    _log.info("lock_acquired", targets=targets)
                    shift = self._shift = Shift(
                        self._settings, site, self._archive, self.metrics, self._ended, self._set_database, stream=True
                    )
                    shift.start()
                case "lost" if self._shift is not None:
                    _log.error("lock_lost", detail=event.why)
                    shift, self._shift = self._shift, None
                    self.metrics.set_mode("")
                    shift.stop(drain=0.0)
                    self.metrics.forget_sources()
                case "ended" if event.part is not None and not event.part.stopping.is_set():
                    failure = event.part.failure
                    self._failed = f"{event.part.name} died: {failure!r}"
                    if isinstance(failure, ArchiverError):
                        raise failure
                    _log.error("part_died", part=event.part.name, exc_info=failure)
                    raise ArchiverError(f"the thread {event.part.name} died of {failure!r}", "this is a bug: report it")

    def _ended(self, part: Part) -> None:
        if part.failure is not None:
            self._events.put(_Event("ended", part=part))

    # What the keeper of the lock tells, in its thread.

    def _lock_acquired(self) -> None:
        self._set_database(True, "")
        self._holder = ""
        self._events.put(_Event("acquired"))

    def _lock_lost(self, why: str) -> None:
        if self._shift is not None:
            self._shift.cancel()
        self._events.put(_Event("lost", why))

    def _standing_by(self, holder: str) -> None:
        self._set_database(True, "")
        self._holder = holder
        self.metrics.set_mode("standby")
        _log.info("standby", holder=holder)

    def _set_database(self, up: bool, why: str) -> None:
        before, self._no_database = self._no_database, "" if up else why or "it does not answer"
        if up and before:
            _log.info("database_up")
        elif not up and not before:
            _log.error("database_down", detail=why)


@dataclass(frozen=True, slots=True)
class _Event:
    what: str
    why: str = ""
    part: Part | None = None
