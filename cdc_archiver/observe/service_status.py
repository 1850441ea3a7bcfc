"""The service's status: the answer of `/readyz` and `/api/status`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from cdc_archiver import __version__
from cdc_archiver.database.files_table import Census
from cdc_archiver.dispatch.queues import SourceState


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
class ServiceStatus:
    """The status. Field names are keys of `/api/status`.

    Attributes:
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
    version: str = __version__


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
