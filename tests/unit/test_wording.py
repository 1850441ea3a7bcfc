"""The sentences of the status page, state by state."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cdc_archiver.dispatch.queues import SourceState
from cdc_archiver.operations.status import (
    DestinationStatus,
    Elsewhere,
    ServiceState,
    SourceStatus,
    Status,
    StreamStatus,
)
from cdc_archiver.operations.wording import Tone, in_words, of_source

OPEN = StreamStatus(True, "", "binlog.000001:4", 0.0)


def source(name: str = "srv", *, up: bool = True, retry_in: float = 0.0) -> SourceState:
    if up:
        return SourceState(name, True, None, "", 0.0, 0, 0)
    return SourceState(name, False, "host_unreachable", "Connection refused", retry_in, 0, 0)


def status(
    state: ServiceState,
    why: str = "",
    *,
    stream: StreamStatus | None = None,
    sources: tuple[SourceState, ...] = (source(),),
    elsewhere: tuple[Elsewhere, ...] = (),
    destination: DestinationStatus | None = None,
) -> Status:
    return Status(
        state=state,
        why=why,
        ready=True,
        healthy=True,
        started=datetime.now(UTC),
        database="db:3306/files",
        table="pysmurf_files",
        history="kept",
        stream=stream,
        sources=tuple(SourceStatus(each, ("target",), "host", None) for each in sources),
        elsewhere=elsewhere,
        destination=destination,
        last_sweep=None,
        archived=0,
    )


@pytest.mark.parametrize(
    ("given", "tone", "sentence"),
    [
        (status(ServiceState.STREAMING, stream=OPEN), Tone.GOOD, "Streaming, 0 s behind"),
        (
            status(ServiceState.STREAMING, stream=StreamStatus(True, "", "x:4", float("nan"))),
            Tone.GOOD,
            "Streaming",
        ),
        (
            status(ServiceState.STREAMING, stream=OPEN, sources=(source(), source("other", up=False))),
            Tone.WARNING,
            "Streaming, 0 s behind; other: left alone",
        ),
        (
            status(ServiceState.POLLING, stream=StreamStatus(False, "there is no binary log", None, None)),
            Tone.WARNING,
            "Polling every 5 s, because there is no binary log",
        ),
        (
            status(ServiceState.STANDBY, elsewhere=(Elsewhere("a", "storage2"), Elsewhere("b", "storage2"))),
            Tone.IDLE,
            "Standing by for storage2",
        ),
        (status(ServiceState.STARTING), Tone.IDLE, "Starting"),
        (status(ServiceState.NO_DATABASE, "it does not answer"), Tone.BAD, "No database: it does not answer"),
        (status(ServiceState.NO_DESTINATION, "no_space: full"), Tone.BAD, "No destination: no_space: full"),
        (status(ServiceState.FAILED, "the router died"), Tone.BAD, "Failed: the router died"),
    ],
)
def test_the_headline(given: Status, tone: Tone, sentence: str) -> None:
    said = in_words(given, 5.0).headline
    assert (said.tone, said.text) == (tone, sentence)


def test_a_source_is_up_or_left_alone_for_a_while_or_tried_again_now() -> None:
    assert of_source(source()).text == "up"
    assert of_source(source(up=False, retry_in=12)).text == "left alone for 12 s: host_unreachable: Connection refused"
    assert of_source(source(up=False)).text == "tried again now: host_unreachable: Connection refused"
    assert of_source(source(up=False)).tone is Tone.BAD


def test_the_archive_takes_files_or_says_why_not() -> None:
    up = DestinationStatus("/data", True, None, "", 10)
    down = DestinationStatus("/data", False, "no_space", "0 B are free", 0)
    assert in_words(status(ServiceState.STREAMING, destination=up), 5.0).destination is not None
    said = in_words(status(ServiceState.NO_DESTINATION, destination=down), 5.0).destination
    assert said is not None
    assert (said.tone, said.text) == (Tone.BAD, "takes no files: no_space: 0 B are free")
    assert in_words(status(ServiceState.STANDBY), 5.0).destination is None
