"""The service's status: the answer of `/readyz` and `/api/status`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from cdc_archiver import __version__
from cdc_archiver.database.files_table import Census
from cdc_archiver.database.timecodes_table import TimecodeState
from cdc_archiver.dispatch.queues import SourceState
from cdc_archiver.timecodes.status_types import SourceWatermark, TimecodeStatus


class ServiceState(StrEnum):
    """The service's state. The values are part of the HTTP interface."""

    STARTING = "starting"
    STREAMING = "streaming"
    POLLING = "polling"
    STANDBY = "standby"
    NO_DATABASE = "no database"
    NO_SOURCE = "no source"
    NO_DESTINATION = "no destination"
    STOPPING = "stopping"
    FAILED = "failed"


_MAX_URGENT: Final = 50
_READY = {ServiceState.STREAMING, ServiceState.POLLING, ServiceState.STANDBY}


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """The binlog stream.

    Attributes:
        why: the reason why there is no stream; empty while there is one.
        position: the position up to which it was read, file and offset.
        lag: seconds; None without a stream.
    """

    connected: bool
    why: str
    position: str | None
    lag: float | None


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A source, its queue and its rows as counted last.

    Attributes:
        handed_over: numbers of pending rows of timecodes that were handed over, by timecode: they wait.
        files: with those that were given up since that count; None before the first.
        quarantined: files that this process has quarantined.
    """

    state: SourceState
    targets: tuple[str, ...]
    host: str
    files: Census | None
    handed_over: Mapping[int, int] = field(default_factory=dict)
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class HeldByOther:
    """A source that another archiver holds.

    Attributes:
        holder: that archiver, described for a person.
    """

    name: str
    holder: str


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """The archive at data_dir."""

    path: str
    up: bool
    reason: str | None
    detail: str
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class KnownTimecodes:
    """What is known of timecodes. Field names are keys of `/api/timecodes`.

    Attributes:
        off_because: why nothing is known of them now, with the fix; empty where they are kept.
        not_completing_because: why none becomes complete, with the fix; empty where they may.
        clock_difference: seconds that the database's clock is ahead of this machine's; None before the first look.
        watermarks: of each source.
        timecodes: some or all of the sources that are held.
    """

    off_because: str = ""
    not_completing_because: str = ""
    clock_difference: float | None = None
    watermarks: tuple[SourceWatermark, ...] = ()
    timecodes: tuple[TimecodeStatus, ...] = ()

    def newest(self, limit: int) -> KnownTimecodes:
        """The newest of each instance_id, newest first, and before them those that somebody has to look at, oldest first."""
        urgent = [each for each in self.timecodes if each.state in (TimecodeState.BLOCKED, TimecodeState.REOPENED)]
        count: Counter[str] = Counter()
        rest = []
        for each in sorted(self.timecodes, key=lambda each: -each.timecode):
            count[each.instance_id] += 1
            if count[each.instance_id] <= limit and each not in urgent:
                rest.append(each)
        urgent.sort(key=lambda each: each.timecode)
        return replace(self, timecodes=(*urgent[:_MAX_URGENT], *rest))


@dataclass(frozen=True, slots=True)
class RetriedFiles:
    """Files whose last attempt failed for one reason, and that wait for another.

    Attributes:
        scope: the reason's; its value in JSON.
        retry_in: seconds until the first of them is tried again; None while one is being tried, or the source is down.
    """

    source: str
    reason: str
    scope: str
    files: int
    retry_in: float | None


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The status. Field names are keys of `/api/status`.

    Attributes:
        marks: ``kept``, or why holds and hand-overs are not, with the fix.
        timecodes: of those that somebody has to look at; None while no source is held.
        as_of: the time of table, sources, destination, sweep and retried files, while the database is away; else None.
        why: the reason for the state, or what it waits for; may be empty.
        attention: sentences about pending rows that nobody archives, each with its fix.
        archived: files archived by this process, including adopted ones.
    """

    state: ServiceState
    why: str
    ready: bool
    healthy: bool
    started: datetime
    database: str
    table: str | None
    history: str
    stream: StreamStatus | None
    sources: tuple[SourceStatus, ...]
    elsewhere: tuple[HeldByOther, ...]
    destination: DestinationStatus | None
    last_sweep: datetime | None
    archived: int
    attention: tuple[str, ...] = ()
    retried: tuple[RetriedFiles, ...] = ()
    marks: str = ""
    timecodes: KnownTimecodes | None = None
    as_of: datetime | None = None
    version: str = __version__


def with_last_known(status: ServiceStatus, last: ServiceStatus | None, at: datetime | None) -> ServiceStatus:
    """The status of a service that holds nothing now, with what it knew while it did.

    Args:
        last: the last status with sources, of the time ``at``; None where there is none.
    """
    away = status.state in (ServiceState.NO_DATABASE, ServiceState.STARTING, ServiceState.STOPPING)
    if last is None or not away or status.sources:
        return status
    return replace(
        status,
        table=last.table,
        history=last.history,
        sources=last.sources,
        destination=last.destination,
        last_sweep=last.last_sweep,
        retried=last.retried,
        marks=last.marks,
        timecodes=last.timecodes,
        as_of=at,
    )


def is_ready(state: ServiceState) -> bool:
    """Whether files are archived in this state, by this service or, on standby, by the other one."""
    return state in _READY


def overall_state(
    *, streaming: bool, stream_why: str, sources: tuple[SourceState, ...], destination: tuple[bool, str | None, str]
) -> tuple[ServiceState, str]:
    """The state of a service that holds its targets, and the reason.

    Args:
        stream_why: the reason why there is no stream.
        destination: up, reason, detail.
    """
    up, reason, detail = destination
    if not up:
        return ServiceState.NO_DESTINATION, f"{reason}: {detail}"
    down = [source for source in sources if not source.up]
    reasons = " | ".join(f"{source.name}: {source.reason}: {source.detail}" for source in down)
    if down and len(down) == len(sources):
        return ServiceState.NO_SOURCE, reasons
    if streaming:
        return ServiceState.STREAMING, reasons
    return ServiceState.POLLING, " | ".join(part for part in (stream_why, reasons) if part)
