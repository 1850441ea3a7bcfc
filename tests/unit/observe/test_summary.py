"""The sentences of the status page, state by state."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cdc_archiver.database.timecodes_table import TimecodeState
from cdc_archiver.dispatch.queues import SourceState
from cdc_archiver.observe.service_status import (
    DestinationStatus,
    HeldByOther,
    KnownTimecodes,
    RetriedFiles,
    ServiceState,
    ServiceStatus,
    SourceStatus,
    StreamStatus,
)
from cdc_archiver.observe.summary import Severity, source_headline, summarize
from cdc_archiver.timecodes.status_types import TimecodeStatus

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
    elsewhere: tuple[HeldByOther, ...] = (),
    destination: DestinationStatus | None = None,
) -> ServiceStatus:
    return ServiceStatus(
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
    ("given", "severity", "sentence"),
    [
        (status(ServiceState.STREAMING, stream=OPEN), Severity.GOOD, "Streaming, 0 s behind"),
        (
            status(ServiceState.STREAMING, stream=StreamStatus(True, "", "x:4", float("nan"))),
            Severity.GOOD,
            "Streaming",
        ),
        (
            status(ServiceState.STREAMING, stream=OPEN, sources=(source(), source("other", up=False))),
            Severity.WARNING,
            "Streaming, 0 s behind; down: other",
        ),
        (
            status(ServiceState.POLLING, stream=StreamStatus(False, "there is no binary log", None, None)),
            Severity.WARNING,
            "Polling every 5 s, because there is no binary log",
        ),
        (
            status(ServiceState.STANDBY, elsewhere=(HeldByOther("a", "storage2"), HeldByOther("b", "storage2"))),
            Severity.IDLE,
            "On standby for storage2",
        ),
        (
            replace(
                status(ServiceState.STREAMING, stream=OPEN), retried=(RetriedFiles("srv", "missing", "file", 2, 4.0),)
            ),
            Severity.WARNING,
            "Streaming, 0 s behind; 2 files tried again after a failure",
        ),
        (
            replace(
                status(ServiceState.STREAMING, stream=OPEN),
                timecodes=KnownTimecodes(timecodes=(TimecodeStatus("srv", "a", 15800, TimecodeState.BLOCKED),)),
            ),
            Severity.WARNING,
            "Streaming, 0 s behind; 1 timecode blocked",
        ),
        (status(ServiceState.STARTING), Severity.IDLE, "Starting"),
        (status(ServiceState.NO_DATABASE, "it does not answer"), Severity.BAD, "No database: it does not answer"),
        (status(ServiceState.NO_DESTINATION, "no_space: full"), Severity.BAD, "No destination: no_space: full"),
        (status(ServiceState.FAILED, "the router died"), Severity.BAD, "Failed: the router died"),
    ],
)
def test_the_headline(given: ServiceStatus, severity: Severity, sentence: str) -> None:
    headline = summarize(given, 5.0).headline
    assert (headline.tone, headline.text) == (severity, sentence)


def test_a_source_is_up_or_paused_or_being_tried_again() -> None:
    assert source_headline(source()).text == "up"
    assert (
        source_headline(source(up=False, retry_in=12)).text
        == "down, tried again in 12 s: host_unreachable: Connection refused"
    )
    assert source_headline(source(up=False)).text == "down, being tried again: host_unreachable: Connection refused"
    assert source_headline(source(up=False)).tone is Severity.BAD


def test_the_archive_takes_files_or_says_why_not() -> None:
    up = DestinationStatus("/data", True, None, "", 10)
    down = DestinationStatus("/data", False, "no_space", "0 B are free", 0)
    assert summarize(status(ServiceState.STREAMING, destination=up), 5.0).destination is not None
    found = summarize(status(ServiceState.NO_DESTINATION, destination=down), 5.0).destination
    assert found is not None
    assert (found.tone, found.text) == (Severity.BAD, "takes no files: no_space: 0 B are free")
    assert summarize(status(ServiceState.STANDBY), 5.0).destination is None
