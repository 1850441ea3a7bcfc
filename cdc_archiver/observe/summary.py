"""The status page's headline and sentences for a status. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

from cdc_archiver.database.timecodes_table import TimecodeState
from cdc_archiver.dispatch.queues import SourceState
from cdc_archiver.observe.service_status import KnownTimecodes, ServiceState, ServiceStatus
from cdc_archiver.text import format_file_count
from cdc_archiver.timespec import format_duration


class Severity(StrEnum):
    """The colour and symbol of a sentence. The values are part of `/api/status`."""

    GOOD = "good"
    WARNING = "warning"
    """It works, but needs attention."""
    BAD = "bad"
    IDLE = "idle"
    """Neither good nor bad: it starts, stops, or is on standby."""


@dataclass(frozen=True, slots=True)
class Headline:
    """A sentence without its full stop, and its severity. Field names are keys of `/api/status`."""

    tone: Severity
    text: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The sentences for a status. Field names are keys of `/api/status`.

    Attributes:
        sources: by name.
        destination: None while this service does not use it.
    """

    headline: Headline
    sources: dict[str, Headline]
    destination: Headline | None


def summarize(status: ServiceStatus, poll_interval: float) -> Summary:
    """The sentences for a status.

    Args:
        poll_interval: seconds between sweeps without a stream.
    """
    destination = None
    if status.destination is not None:
        archive = status.destination
        down = f"takes no files: {archive.reason}: {archive.detail}"
        destination = Headline(Severity.GOOD, "takes files") if archive.up else Headline(Severity.BAD, down)
    sources = {each.state.name: source_headline(each.state) for each in status.sources}
    return Summary(_headline(status, poll_interval), sources, destination)


def source_headline(state: SourceState) -> Headline:
    """The sentence for a source."""
    if state.up:
        return Headline(Severity.GOOD, "up")
    why = f"{state.reason}: {state.detail}"
    if state.retry_in > 0:
        return Headline(Severity.BAD, f"down, tried again in {format_duration(state.retry_in)}: {why}")
    return Headline(Severity.BAD, f"down, being tried again: {why}")


def _headline(status: ServiceStatus, poll_interval: float) -> Headline:
    down = [each.state.name for each in status.sources if not each.state.up]
    quarantined = sum(each.files.quarantined for each in status.sources if each.files is not None)
    retried = sum(each.files for each in status.retried)
    known = status.timecodes or KnownTimecodes()
    blocked = sum(each.state is TimecodeState.BLOCKED for each in known.timecodes)
    troubles = [
        f"down: {', '.join(down)}" if down else "",
        f"{format_file_count(retried)} tried again after a failure" if retried else "",
        f"{quarantined} quarantined" if quarantined else "",
        f"{blocked} {'timecode' if blocked == 1 else 'timecodes'} blocked" if blocked else "",
        "clocks apart" if known.not_completing_because else "",
    ]
    trouble = "".join(f"; {each}" for each in troubles if each)
    severity = Severity.WARNING if trouble else Severity.GOOD
    match status.state:
        case ServiceState.STREAMING:
            lag = status.stream.lag if status.stream else None
            behind = "" if lag is None or not isfinite(lag) else f", {format_duration(lag)} behind"
            return Headline(severity, f"Streaming{behind}{trouble}")
        case ServiceState.POLLING:
            because = f", because {why}" if status.stream and (why := status.stream.why) else ""
            return Headline(Severity.WARNING, f"Polling every {poll_interval:g} s{because}{trouble}")
        case ServiceState.STANDBY:
            holders = "; ".join(sorted({each.holder for each in status.elsewhere}))
            return Headline(Severity.IDLE, f"On standby for {holders or 'another archiver'}")
        case ServiceState.STARTING | ServiceState.STOPPING:
            return Headline(Severity.IDLE, _sentence(status))
        case _:
            return Headline(Severity.BAD, _sentence(status))


def _sentence(status: ServiceStatus) -> str:
    state = status.state.value.capitalize()
    return f"{state}: {status.why}" if status.why else state
