"""The registrar from its start to its exit status: listens, registers, reports, drains and stops."""

from __future__ import annotations

import os
import queue
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

import structlog

from cdc_archiver import __version__
from cdc_archiver.database.connections import Database
from cdc_archiver.errors import ArchiverError, ExitStatus, Misconfigured
from cdc_archiver.observe.registrar_metrics import RegistrarMetrics
from cdc_archiver.registrar.listener import Listener
from cdc_archiver.registrar.registration import Registration
from cdc_archiver.registrar.spool import Spool
from cdc_archiver.registrar.spool_reading import SpoolFacts
from cdc_archiver.registrar.watermark_report import WatermarkReporter
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.threads import StoppableThread

_WAKE: Final = 0.5
"""Seconds after which a signal is heeded that interrupted no wait."""
_CONTAINER_FILES: Final = ("/.dockerenv", "/run/.containerenv")

_log = structlog.get_logger(__name__)


class RegistrarState(StrEnum):
    """The registrar's state. The values are part of the HTTP interface."""

    REGISTERING = "registering"
    NO_DATABASE = "no database"
    NO_SPOOL = "no spool"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RegistrarStatus:
    """The status. Field names are keys of `/api/status`.

    Attributes:
        why: the reason for the state; may be empty.
        spool: None where it cannot be read.
    """

    state: RegistrarState
    why: str
    ready: bool
    healthy: bool
    started: datetime
    target: str
    port: int
    spool: SpoolFacts | None
    version: str = __version__


class RegistrarService:
    """The registrar.

    Args:
        settings: with one target and a source root.

    Raises:
        Misconfigured: a setting is missing, the spool is in use, or the address is taken.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        source = source_of(settings)
        (self._target,) = source.target
        self.metrics = RegistrarMetrics()
        self._events: queue.SimpleQueue[StoppableThread | None] = queue.SimpleQueue()
        self._started = datetime.now(UTC)
        self._stopping = False
        self._failed = ""
        self._spool = Spool(spool_path(settings), settings.spool_max, settings.spool_keep)
        try:
            self._database = Database(settings)
            self._registration = Registration(settings, source, self._spool, self._database, self.metrics)
            self._listener = Listener(
                settings.udp_host,
                settings.udp_port,
                settings.forward,
                self._spool,
                self.metrics,
                self._registration.wake,
            )
        except BaseException:
            self._spool.close()
            raise
        self._reporter = WatermarkReporter(self._target, self._spool, self._listener, self._database, self.metrics)
        self.metrics.receive_buffer.set(self._listener.buffer)
        self.metrics.spool_limit.set(settings.spool_max)
        self.metrics.database_up.set_function(lambda: float(not self._database_trouble()))

    @property
    def port(self) -> int:
        """The UDP port on which it listens."""
        return self._listener.port

    def stop(self) -> None:
        """Asks it to end; may be called from a signal handler, and so takes no lock."""
        self._events.put(None)

    def thread_ended(self, thread: StoppableThread) -> None:
        """To be called when a thread that serves it has ended."""
        if thread.failure is not None:
            self._events.put(thread)

    def close(self) -> None:
        """Closes what was opened, where it does not run."""
        self._listener.close()
        self._database.close()
        self._spool.close()

    def run(self, on_stop: Callable[[], None] = lambda: None) -> ExitStatus:
        """Runs until :meth:`stop`.

        Args:
            on_stop: called when it begins to stop.

        Raises:
            ArchiverError: a thread crashed.
        """
        host = self._settings.udp_host
        threads = (self._listener, self._registration, self._reporter)
        for thread in threads:
            thread.on_end = self.thread_ended
            thread.start()
        _log.info(
            "receiving",
            address=f"udp://{f'[{host}]' if ':' in host else host}:{self.port}",
            spool=str(self._spool.path),
            registrar=self._spool.registrar_id,
        )
        try:
            while True:
                try:
                    ended = self._events.get(timeout=_WAKE)
                except queue.Empty:
                    continue
                if ended is None:
                    return ExitStatus.DONE
                if not ended.stopping.is_set():
                    self._raise(ended)
        finally:
            self._stopping = True
            on_stop()
            # In this order: what arrived is in the spool before it is registered for the last time, and that before the last report.
            for thread in threads:
                thread.stop()
                thread.join(self._settings.drain_timeout + 5.0)
            self.close()
            _log.info("stopped")

    def status(self) -> RegistrarStatus:
        """The current status. Never waits for the database."""
        try:
            facts = self._spool.facts()
        except sqlite3.Error:
            facts = None
        state, why = RegistrarState.REGISTERING, ""
        if self._failed:
            state, why = RegistrarState.FAILED, self._failed
        elif self._stopping:
            state = RegistrarState.STOPPING
        elif self._listener.trouble or facts is None:
            state, why = RegistrarState.NO_SPOOL, self._listener.trouble
        elif trouble := self._database_trouble():
            state, why = RegistrarState.NO_DATABASE, trouble
        ready = state is RegistrarState.REGISTERING
        healthy = state is not RegistrarState.FAILED
        return RegistrarStatus(state, why, ready, healthy, self._started, self._target, self.port, facts)

    def _database_trouble(self) -> str:
        # While no file is announced, only the reports ask the database.
        return self._registration.trouble or self._reporter.trouble

    def _raise(self, ended: StoppableThread) -> None:
        failure = ended.failure
        self._failed = f"{ended.name} died: {failure!r}"
        if isinstance(failure, ArchiverError):
            raise failure
        _log.error("thread_crashed", part=ended.name, exc_info=failure)
        raise ArchiverError(f"the thread {ended.name} died of {failure!r}", "report this bug, with the log")


def source_of(settings: Settings) -> SourceSettings:
    """The one source whose files are registered, with one target, which is the ``instance_id`` of the rows.

    Raises:
        Misconfigured: there is none, there are several, or it has no source root.
    """
    if len(settings.targets) != 1:
        several = ", ".join(settings.targets)
        raise Misconfigured(
            f"a registrar has one target, not {len(settings.targets)} ({several})" if several else "no target is set",
            "--target NAME  # the instance_id of the rows; a registrar for each",
        )
    (source,) = settings.sources
    if source.source_root == "/":
        raise Misconfigured("source_root is not set", "--source-root DIRECTORY  # the one that contains all files")
    return source


def spool_path(settings: Settings) -> Path:
    """The spool's place: the setting, below systemd's StateDirectory, or below the user's state directory.

    Raises:
        Misconfigured: there is none that outlives this container.
    """
    if settings.spool is not None:
        return settings.spool
    if state := os.environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(state) / "registrar.spool"
    if in_container():
        raise Misconfigured(
            "the registrar runs in a container, and its spool must outlive it", "--spool FILE, on a volume of its own"
        )
    state_home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state_home) / "cdc_archiver" / "registrar.spool"


def in_container() -> bool:
    """Whether this process runs in a container."""
    return "container" in os.environ or any(map(os.path.exists, _CONTAINER_FILES))
