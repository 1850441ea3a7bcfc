"""The service's status as operators see it, put together from its parts. Waits for nothing."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from cdc_archiver import __version__
from cdc_archiver.model import Reason
from cdc_archiver.observe.activity import Activity
from cdc_archiver.observe.metrics import TIMECODE_STATES, Metrics
from cdc_archiver.observe.service_status import (
    DestinationStatus,
    HeldByOther,
    KnownTimecodes,
    RetriedFiles,
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
        retried=_retried(pipeline, now.metrics.activity) if pipeline else (),
        marks=(pipeline.marks.unavailable or "kept") if pipeline else "",
        timecodes=known_timecodes(pipeline).newest(0) if pipeline else None,
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


def log_start(settings: Settings) -> None:
    """Logs what starts: the version, and the settings that decide what it does."""
    _log.info(
        "starting",
        version=__version__,
        sources={source.name: {"host": source.host, "target": source.target} for source in settings.sources},
        data_dir=str(settings.data_dir),
        database=f"{_address(settings)}/{settings.mysql_database}",
    )


def log_stop(metrics: Metrics, started: datetime, failure: str) -> None:
    """Logs why the service ends, and what it did.

    Args:
        failure: empty where it was asked to end.
    """
    results = ("archived", "adopted", "charged", "refused")
    _log.info(
        "stopped",
        reason=failure or "asked to",
        ran_seconds=round((datetime.now(UTC) - started).total_seconds()),
        **{result: round(metrics.total("copies_total", result=result)) for result in results},
    )


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
                quarantined=files.quarantined + given_up.quarantined_since,
                refused=files.refused + given_up.refused_since,
            )
        source = options[state.name]
        handed_over = pipeline.handed_over.get(state.name, {})
        found.append(SourceStatus(state, source.target, source.host, files, handed_over, given_up.quarantined))
    return tuple(found)


def known_timecodes(pipeline: Pipeline | None) -> KnownTimecodes:
    """All that is known of timecodes."""
    if pipeline is None:
        return KnownTimecodes(off_because="this service holds no source now")
    keeper = pipeline.timecodes
    return KnownTimecodes(
        keeper.off_because,
        keeper.not_completing_because,
        keeper.clock_difference,
        keeper.watermarks(),
        keeper.statuses(),
    )


def publish_timecodes(pipeline: Pipeline, metrics: Metrics, now: datetime) -> None:
    """Sets the metrics of timecodes, and of parts that are off.

    Args:
        now: aware.
    """
    known = known_timecodes(pipeline)
    counts = Counter((each.source, each.state.value) for each in known.timecodes)
    for source in pipeline.sources:
        for state in TIMECODE_STATES:
            metrics.timecodes.labels(source, state).set(counts[source, state])
    for mark in known.watermarks:
        until = mark.finalized_until
        held_up = mark.bound_by == "row" and until is not None
        metrics.finalized_until.labels(mark.source).set(math.nan if until is None else until.timestamp())
        metrics.watermark_row_age.labels(mark.source).set((now - until).total_seconds() if until and held_up else 0)
        metrics.registrars_silent.labels(mark.source).set(mark.silent_registrars)
    difference = known.clock_difference
    metrics.clock_difference.set(math.nan if difference is None else difference)
    metrics.part_off.labels("history").set(bool(pipeline.history_off_because))
    metrics.part_off.labels("timecodes").set(bool(known.off_because))
    metrics.part_off.labels("marks").set(bool(pipeline.marks.unavailable))


def _retried(pipeline: Pipeline, activity: Activity) -> tuple[RetriedFiles, ...]:
    files: Counter[tuple[str, str]] = Counter()
    next_in: dict[tuple[str, str], float] = {}
    for failure in activity.retried():
        key = (failure.source, failure.reason)
        files[key] += 1
        status = pipeline.dispatcher.file_status(failure.id)
        if status is not None and status.retry_in is not None:
            next_in[key] = min(status.retry_in, next_in.get(key, status.retry_in))
    return tuple(
        RetriedFiles(source, reason, Reason(reason).scope.value, count, next_in.get((source, reason)))
        for (source, reason), count in files.most_common()
    )


def _destination(pipeline: Pipeline, archive: Archive) -> DestinationStatus:
    up, reason, detail = pipeline.dispatcher.destination
    return DestinationStatus(str(archive.data_dir), up, reason, detail, archive.last_free_bytes)
