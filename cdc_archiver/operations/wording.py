"""How things are, in words for a person: the sentences of the status page. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

from cdc_archiver.dispatch.queues import SourceState
from cdc_archiver.operations.moments import span
from cdc_archiver.operations.status import ServiceState, Status


class Tone(StrEnum):
    """How it is meant."""

    GOOD = "good"
    WARNING = "warning"
    """It works, and somebody should look."""
    BAD = "bad"
    IDLE = "idle"
    """Neither: it starts, stops, or another works."""


@dataclass(frozen=True, slots=True)
class Said:
    """A sentence, without its full stop."""

    tone: Tone
    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """What is said of a status.

    Attributes:
        sources: by name.
        destination: None while it is nobody's concern.
    """

    headline: Said
    sources: dict[str, Said]
    destination: Said | None


def in_words(status: Status, poll_interval: float) -> Words:
    """A status in words.

    Args:
        poll_interval: seconds between sweeps where there is no stream.
    """
    destination = None
    if status.destination is not None:
        where = status.destination
        trouble = f"takes no files: {where.reason}: {where.detail}"
        destination = Said(Tone.GOOD, "takes files") if where.up else Said(Tone.BAD, trouble)
    sources = {each.state.name: of_source(each.state) for each in status.sources}
    return Words(_headline(status, poll_interval), sources, destination)


def of_source(state: SourceState) -> Said:
    """A source."""
    if state.up:
        return Said(Tone.GOOD, "up")
    why = f"{state.reason}: {state.detail}"
    if state.retry_in > 0:
        return Said(Tone.BAD, f"left alone for {span(state.retry_in)}: {why}")
    return Said(Tone.BAD, f"tried again now: {why}")


def _headline(status: Status, poll_interval: float) -> Said:
    down = [each.state.name for each in status.sources if not each.state.up]
    aside = f"; {', '.join(down)}: left alone" if down else ""
    tone = Tone.WARNING if down else Tone.GOOD
    match status.state:
        case ServiceState.STREAMING:
            lag = status.stream.lag if status.stream else None
            behind = "" if lag is None or not isfinite(lag) else f", {span(lag)} behind"
            return Said(tone, f"Streaming{behind}{aside}")
        case ServiceState.POLLING:
            because = f", because {why}" if status.stream and (why := status.stream.why) else ""
            return Said(Tone.WARNING, f"Polling every {poll_interval:g} s{because}{aside}")
        case ServiceState.STANDBY:
            holders = "; ".join(sorted({each.holder for each in status.elsewhere}))
            return Said(Tone.IDLE, f"Standing by for {holders or 'another archiver'}")
        case ServiceState.STARTING | ServiceState.STOPPING:
            return Said(Tone.IDLE, _sentence(status))
        case _:
            return Said(Tone.BAD, _sentence(status))


def _sentence(status: Status) -> str:
    state = status.state.value.capitalize()
    return f"{state}: {status.why}" if status.why else state
