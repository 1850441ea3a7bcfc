"""Without a stream the service reports the cause and polls; it streams again when the cause is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import pytest
from private_site import PrivateSite
from stream_scenario import StreamScenario
from structlog.testing import capture_logs
from waiting import eventually

pytestmark = pytest.mark.usefixtures("quick_stream")


@pytest.fixture
def stage(doomed_stage: PrivateSite) -> PrivateSite:
    return doomed_stage


@contextlib.contextmanager
def no_log(stage: PrivateSite) -> Iterator[None]:
    """A server that writes no binary log until it is restarted."""

    def restart(*options: str) -> None:
        # Without its log a server cannot tell which commits to keep: all of them are in its tables first. A shutdown would do, and
        # takes MySQL ten seconds for the connections of the service.
        stage.sql("FLUSH ENGINE LOGS")
        stage.close()
        stage.server.kill()
        stage.server.options = options
        stage.server.start()

    restart("--skip-log-bin")
    try:
        yield
    finally:
        restart()


@contextlib.contextmanager
def no_grant(stage: PrivateSite) -> Iterator[None]:
    """An account that may read the table and not the stream."""
    stage.sql(f"REVOKE REPLICATION SLAVE ON *.* FROM '{stage.user}'@'%%'", ())
    yield
    stage.sql(f"GRANT REPLICATION SLAVE ON *.* TO '{stage.user}'@'%%'", ())


@contextlib.contextmanager
def globally(stage: PrivateSite, variable: str, value: str) -> Iterator[None]:
    [(before,)] = stage.sql(f"SELECT @@GLOBAL.{variable}")
    stage.sql(f"SET GLOBAL {variable} = {value}")
    try:
        yield
    finally:
        stage.sql(f"SET GLOBAL {variable} = %s", (before,))


def compression(stage: PrivateSite) -> contextlib.AbstractContextManager[None]:
    return globally(stage, COMPRESSION[stage.server.kind], "1")


def statements(stage: PrivateSite) -> contextlib.AbstractContextManager[None]:
    return globally(stage, "binlog_format", "'STATEMENT'")


COMPRESSION = {"mysql": "binlog_transaction_compression", "mariadb": "log_bin_compress"}

CAUSES = {
    "no binary log": (no_log, "writes no binary log", "set log_bin"),
    "no grant": (no_grant, "lacks REPLICATION SLAVE", "GRANT REPLICATION SLAVE ON *.* TO"),
    "compression": (compression, "compressed rows cannot be read", "= OFF"),
    "statements": (statements, "binlog_format is STATEMENT", "SET GLOBAL binlog_format = 'ROW'"),
}
"""Causes that prevent the stream, by name: how to make and end each, its message, its fix."""

Cause = Callable[[PrivateSite], contextlib.AbstractContextManager[None]]


@pytest.mark.parametrize(("cause", "why", "fix"), CAUSES.values(), ids=CAUSES)
def test_no_stream_from_the_start(stage: PrivateSite, cause: Cause, why: str, fix: str) -> None:
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(capture_logs())
        degraded = stack.enter_context(contextlib.ExitStack())
        degraded.enter_context(cause(stage))
        service = stack.enter_context(stage.service(until=None, poll_interval=0.5))
        scenario = StreamScenario(stage, service)
        # Given a cause that prevents the stream, then the service reports it with its fix,
        scenario.polls(why)
        assert fix in service.get("/readyz")[1]
        eventually(lambda: polling_lines(lines, why), f"the log says {why!r}")
        assert fix in polling_lines(lines, why)[0]["detail"]
        # sweeps again and again, and archives what it finds.
        for _ in range(3):
            swept = service.metric("sweep_duration_seconds_count")
            stage.wait_archived(*scenario.register())
            eventually(lambda swept=swept: service.metric("sweep_duration_seconds_count") > swept, "the next sweep")  # type: ignore[misc]
        assert len(polling_lines(lines, why)) == 1, "a cause is logged once"
        scenario.polls(why)
        assert scenario.reconnects() == {}
        # When the cause is gone, then it streams again automatically.
        degraded.close()
        scenario.streams()
        scenario.arrives_by_stream(2)
        assert [line for line in lines if line["event"] == "streaming"], "the log reports the stream"
        scenario.ends_well()
        assert scenario.reconnects() == {}


@pytest.mark.parametrize(("cause", "why", "fix"), CAUSES.values(), ids=CAUSES)
def test_a_stream_that_is_lost_and_resumed(stage: PrivateSite, cause: Cause, why: str, fix: str) -> None:
    with capture_logs() as lines, stage.service(poll_interval=0.5) as service:
        scenario = StreamScenario(stage, service)
        scenario.arrives_by_stream()
        # Given a service that streams, when a cause prevents the stream,
        with cause(stage):
            # then it notices and reports it, and archives by the sweep;
            scenario.polls(why)
            assert fix in service.get("/readyz")[1]
            eventually(lambda: polling_lines(lines, why), f"the log says {why!r}")
            stage.wait_archived(*scenario.register(2))
        # and streams again when the cause is gone.
        scenario.streams()
        scenario.arrives_by_stream()
        scenario.ends_well()
        # A server that went down has other reasons.
        assert cause is no_log or scenario.reconnects() == {"unavailable": 1}


def polling_lines(lines: list[MutableMapping[str, Any]], why: str) -> list[MutableMapping[str, Any]]:
    """Log lines that report polling for this cause."""
    return [line for line in lines if line["event"] == "polling" and why in line["detail"]]
