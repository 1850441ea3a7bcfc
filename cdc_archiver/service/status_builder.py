"""The service's status as operators see it, put together from its parts. Waits for nothing."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from cdc_archiver.observe.activity import Activity
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.observe.service_status import (
    DestinationStatus,
    HeldByOther,
    ServiceState,
    ServiceStatus,
    SourceStatus,
    StreamStatus,
    is_ready,
    overall_state,
)
from cdc_archiver.service.bootstrap import ResolvedTables
from cdc_archiver.service.pipeline import Pipeline
from cdc_archiver.settings import Settings
from cdc_archiver.transfer.staging import Archive

_log = structlog.get_logger(__name__)


class DatabaseErrors:
    """The threads that the database does not answer. It is up when it answers all of them. Safe to share between threads."""

    def __init__(self) -> None:
        self._errors: dict[str, str] = {}
        self._lock = threading.Lock()

    def report(self, thread: str, up: bool, error: str) -> None:
        """Notes whether the database answers a thread, and logs when it is down or up again."""
        with self._lock:
            before = bool(self._errors)
            if up:
                self._errors.pop(thread, None)
            else:
                self._errors[thread] = error or "it does not answer"
            after = bool(self._errors)
        if before and not after:
            _log.info("database_up")
        elif after and not before:
            _log.error("database_down", detail=error)

    def keep(self, thread: str) -> None:
        """Forgets the errors of all threads but one."""
        with self._lock:
            self._errors = {name: error for name, error in self._errors.items() if name == thread}

    def texts(self) -> list[str]:
        """One sentence for each thread that the database does not answer."""
        return list(self._errors.values())


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The parts of a service at one moment.

    Attributes:
        tables, pipeline: None while there are none.
        holders: the sources that another archiver holds.
        failure: why the service ends; empty while it does not.
        database_errors: one sentence for each part that the database does not answer.
    """

    settings: Settings
    started: datetime
    archive: Archive
    metrics: Metrics
    tables: ResolvedTables | None
    pipeline: Pipeline | None
    holders: Mapping[str, str]
    failure: str
    stopping: bool
    database_errors: Sequence[str]


def build_status(now: Snapshot) -> ServiceStatus:
    """The status of a service."""
    pipeline, tables = now.pipeline, now.tables
    state, why = _state(now)
    return ServiceStatus(
        state=state,
        why=why,
        ready=is_ready(state),
        healthy=state is not ServiceState.FAILED,
        started=now.started,
        database=f"{_address(now.settings)}/{now.settings.mysql_database}",
        table=tables.files.name if tables else None,
        history=(tables.history.unavailable or "kept") if tables else "",
        stream=_stream(pipeline, now.metrics) if pipeline else None,
        sources=_sources(pipeline, now.metrics.activity) if pipeline else (),
        elsewhere=tuple(HeldByOther(name, holder) for name, holder in now.holders.items()),
        destination=_destination(pipeline, now.archive) if pipeline else None,
        last_sweep=pipeline.sweeper.last_sweep if pipeline else None,
        attention=pipeline.table_watch.attention if pipeline else (),
        archived=round(sum(now.metrics.total("copies_total", result=result) for result in ("archived", "adopted"))),
    )


def _state(now: Snapshot) -> tuple[ServiceState, str]:
    if now.failure:
        return ServiceState.FAILED, now.failure
    if now.stopping:
        return ServiceState.STOPPING, ""
    if now.database_errors:
        return ServiceState.NO_DATABASE, now.database_errors[0]
    if (pipeline := now.pipeline) is not None:
        return overall_state(
            streaming=pipeline.stream is not None and pipeline.stream.position is not None,
            stream_why=pipeline.why_no_stream,
            sources=tuple(pipeline.dispatcher.states()),
            destination=pipeline.dispatcher.destination,
        )
    if holders := sorted(set(now.holders.values())):
        return ServiceState.STANDBY, f"another archiver has these targets: {'; '.join(holders)}"
    return ServiceState.STARTING, "" if now.tables else f"waiting for the database {_address(now.settings)}"


def _address(settings: Settings) -> str:
    return f"{settings.mysql_host}:{settings.mysql_port}"


def _stream(pipeline: Pipeline, metrics: Metrics) -> StreamStatus | None:
    if pipeline.stream is None:
        return None
    position = pipeline.stream.position
    return StreamStatus(
        connected=position is not None,
        why=pipeline.why_no_stream,
        position=str(position) if position else None,
        lag=metrics.total("stream_lag_seconds") if position else None,
    )


def _sources(pipeline: Pipeline, activity: Activity) -> tuple[SourceStatus, ...]:
    options = pipeline.sources
    found = []
    for state in pipeline.dispatcher.states():
        if state.name not in options:
            continue
        given_up, files = activity.given_up(state.name), pipeline.sweeper.census.get(state.name)
        if files is not None:
            files = replace(
                files,
                pending=max(0, files.pending - given_up.quarantined_since - given_up.refused_since),
                quarantined=files.quarantined + given_up.quarantined_since,
                refused=files.refused + given_up.refused_since,
            )
        source = options[state.name]
        handed_over = pipeline.handed_over.get(state.name, {})
        found.append(SourceStatus(state, source.target, source.host, files, handed_over, given_up.quarantined))
    return tuple(found)


def _destination(pipeline: Pipeline, archive: Archive) -> DestinationStatus:
    up, reason, detail = pipeline.dispatcher.destination
    return DestinationStatus(str(archive.data_dir), up, reason, detail, archive.last_free_bytes)
