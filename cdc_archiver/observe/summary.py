"""How things are, in words for a person: the sentences of the status page. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

from cdc_archiver.dispatch.queues import SourceState
from cdc_archiver.observe.service_status import ServiceState, ServiceStatus
from cdc_archiver.timespec import format_duration


class Severity(StrEnum):
    """How it is meant."""

    GOOD = "good"
    WARNING = "warning"
    """It works, and somebody should look."""
    BAD = "bad"
    IDLE = "idle"
    """Neither: it starts, stops, or another works."""


@dataclass(frozen=True, slots=True)
class Headline:
    """A sentence, without its full stop."""

    tone: Severity
    text: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What is said of a status.

    Attributes:
        sources: by name.
        destination: None while it is nobody's concern.
    """

    headline: Headline
    sources: dict[str, Headline]
    destination: Headline | None


def summarize(status: ServiceStatus, poll_interval: float) -> Summary:
    """A status in words.

    Args:
        poll_interval: seconds between sweeps where there is no stream.
    """
    destination = None
    if status.destination is not None:
        where = status.destination
        trouble = f"takes no files: {where.reason}: {where.detail}"
        destination = Headline(Severity.GOOD, "takes files") if where.up else Headline(Severity.BAD, trouble)
    sources = {each.state.name: of_source(each.state) for each in status.sources}
    return Summary(_headline(status, poll_interval), sources, destination)


def of_source(state: SourceState) -> Headline:
    """A source."""
    if state.up:
        return Headline(Severity.GOOD, "up")
    why = f"{state.reason}: {state.detail}"
    if state.retry_in > 0:
        return Headline(Severity.BAD, f"left alone for {format_duration(state.retry_in)}: {why}")
    return Headline(Severity.BAD, f"tried again now: {why}")


def _headline(status: ServiceStatus, poll_interval: float) -> Headline:
    down = [each.state.name for each in status.sources if not each.state.up]
    aside = f"; {', '.join(down)}: left alone" if down else ""
    tone = Severity.WARNING if down else Severity.GOOD
    match status.state:
        case ServiceState.STREAMING:
            lag = status.stream.lag if status.stream else None
            behind = "" if lag is None or not isfinite(lag) else f", {format_duration(lag)} behind"
            return Headline(tone, f"Streaming{behind}{aside}")
        case ServiceState.POLLING:
            because = f", because {why}" if status.stream and (why := status.stream.why) else ""
            return Headline(Severity.WARNING, f"Polling every {poll_interval:g} s{because}{aside}")
        case ServiceState.STANDBY:
            holders = "; ".join(sorted({each.holder for each in status.elsewhere}))
            return Headline(Severity.IDLE, f"Standing by for {holders or 'another archiver'}")
        case ServiceState.STARTING | ServiceState.STOPPING:
            return Headline(Severity.IDLE, _sentence(status))
        case _:
            return Headline(Severity.BAD, _sentence(status))


def _sentence(status: ServiceStatus) -> str:
    state = status.state.value.capitalize()
    return f"{state}: {status.why}" if status.why else state
