"""Faults of the database server and of the wire to it: what the whole service makes of them, and what it says meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from private_site import HISTORY, PrivateSite, insert, new_private_site
from proxy import Proxy
from pymysqlreplication import binlogstream
from pymysqlreplication.event import XidEvent
from services import PASSWORD
from stream_scenario import (
    FORGET_THE_LOG,
    LINK_OR_LOCK,
    QUICK_LOCK_TIMING,
    TIMING_WITHOUT_CHECKS,
    StreamScenario,
    connections_of,
    copy_site,
    kill_connections,
)
from waiting import eventually

from cdc_archiver.database import source_locks
from cdc_archiver.errors import ExitStatus, ServerIdTaken
from cdc_archiver.events import binlog_stream
from cdc_archiver.events.interruptible import InterruptibleConnections
from cdc_archiver.sandbox import DatabaseServer, SshServer

pytestmark = pytest.mark.usefixtures("quick_stream")


@pytest.fixture
def stage(doomed_stage: PrivateSite) -> PrivateSite:
    return doomed_stage


@pytest.fixture
def wire(stage: PrivateSite) -> Iterator[Proxy]:
    """The way to the database for whoever takes its port."""
    with Proxy(stage.server.port) as proxy:
        yield proxy


@pytest.fixture
def quick_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock asks more often whether it is held."""
    monkeypatch.setattr(source_locks, "LockTiming", lambda: QUICK_LOCK_TIMING)


@pytest.fixture
def stream_wire(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A wire that the stream alone goes over, and its questions beside it."""
    with Proxy(stage.server.port) as proxy:
        connect = InterruptibleConnections.connect
        monkeypatch.setattr(
            InterruptibleConnections, "connect", lambda line, settings: connect(line, {**settings, "port": proxy.port})
        )
        yield proxy


# The server goes.


@pytest.mark.parametrize("end", ["is shut down", "dies"])
def test_a_server_that_goes_and_comes_back(stage: PrivateSite, end: str) -> None:
    with stage.service() as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream(3)
        # Given files that are written while the server is away,
        stage.close()
        stage.server.stop() if end == "is shut down" else stage.server.kill()
        story.has_no_database(str(stage.server.port))
        files = story.new_files(2)
        # when it is back and they are registered at once,
        stage.server.start()
        story.remember(stage.register(*files), files)
        # then they are archived, whoever tells of them, and what follows comes by the stream.
        story.streams()
        story.arrives_by_stream()
        story.ends_well()
        # A MySQL that shuts down may take the lock from us before it ends the stream, which then is no loss any more.
        assert story.reconnects() in ({"shutdown": 1}, {"link": 1}, {})


def test_a_killed_dump_thread_costs_one_reconnect(stage: PrivateSite) -> None:
    with stage.service() as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # Given a connection that an administrator kills while files are registered,
        story.register()
        assert kill_connections(stage, "Binlog Dump") == 1
        story.register()
        # then one reconnect is counted, the lock is kept, and nothing else happens.
        eventually(story.reconnects, "the end of the stream is counted")
        story.streams()
        story.arrives_by_stream()
        story.ends_well()
        assert story.reconnects() in ({"killed": 1}, {"link": 1})
        assert len(connections_of(stage, "Binlog Dump")) == 1


def test_a_changed_password_is_reported_and_the_old_one_used_again(stage: PrivateSite, quick_lock: None) -> None:
    with stage.service() as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # Given a password that somebody changes, after which every connection is closed,
        stage.sql(f"ALTER USER '{stage.user}'@'%%' IDENTIFIED BY 'another'", ())
        assert kill_connections(stage) >= 2
        # then the service lives, and says what it needs,
        story.has_no_database("Access denied")
        assert "MYSQL_PASSWORD" in service.get("/readyz")[1]
        assert PASSWORD not in service.get("/readyz")[1]
        story.register()
        # and goes on by itself when it is let in again.
        stage.sql(f"ALTER USER '{stage.user}'@'%%' IDENTIFIED BY %s", (PASSWORD,))
        story.streams()
        story.arrives_by_stream()
        story.ends_well()


def test_another_server_behind_the_same_address(
    request: pytest.FixtureRequest, doomed_server: DatabaseServer, ssh_server: SshServer, tmp_path: Path
) -> None:
    # Given a server, and one with a copy of its database and a log that has only begun,
    first: DatabaseServer = request.getfixturevalue(doomed_server.kind)
    second = doomed_server
    second.start()
    second.execute(FORGET_THE_LOG[second.kind])
    first.execute("FLUSH BINARY LOGS")
    with (
        new_private_site(first, ssh_server, tmp_path) as stage,
        Proxy(first.port) as proxy,
        stage.service(mysql_port=proxy.port) as service,
    ):
        story = StreamScenario(stage, service)
        story.arrives_by_stream(2)
        copy_site(stage, second, PASSWORD, HISTORY)
        stage.close()
        stage.server = second
        try:
            # when that one takes the other's place, with a row already that the first never had,
            story.register()
            connections = proxy.connections
            proxy.target = second.port
            proxy.cut()
            # then the service finds its way: no place of the one log is looked for in the other.
            eventually(lambda: proxy.connections > connections, "it connects anew")
            story.arrives_by_stream()
            story.streams()
            story.ends_well()
            assert story.reconnects() in (*LINK_OR_LOCK, {"unavailable": 1}), "or a look met the other server first"
            assert service.status()["stream"]["position"].rpartition(".")[2].startswith("000001:")
        finally:
            stage.close()
            second.execute(f"DROP DATABASE {stage.database}")
            second.execute(f"DROP USER '{stage.user}'@'%%'", ())


# The wire.


def test_a_half_open_wire_is_noticed(stage: PrivateSite, wire: Proxy, quick_lock: None) -> None:
    with stage.service(mysql_port=wire.port) as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # Given a wire on which nothing arrives and nothing ends,
        wire.freeze()
        story.register()
        # then the service says that it has no database, although no connection broke,
        story.has_no_database()
        # and does not wait for the old connections when new ones can be made.
        wire.thaw()
        story.streams()
        story.arrives_by_stream()
        story.ends_well()


def test_what_is_written_between_two_streams_is_swept_for_when_the_next_one_begins(
    stage: PrivateSite, stream_wire: Proxy
) -> None:
    # Given a service that would sweep a minute later,
    with stage.service(poll_interval=60) as service:
        service.wait_settled()
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # and a stream that is broken and cannot be had again,
        stream_wire.refuse()
        story.polls("cannot be used")
        assert story.reconnects() == {"link": 1}
        # when files are registered, then they are archived as soon as there is a stream, which tells nothing of them but that we
        # wrote to them.
        told = service.metric("stream_events_total", outcome="offered")
        ids = story.register(2)
        stream_wire.accept()
        stage.wait_archived(*ids)
        story.streams()
        assert service.metric("stream_events_total", outcome="offered") == told
        story.arrives_by_stream()
        story.ends_well()
        assert story.reconnects() == {"link": 1}


def test_a_stream_that_falls_silent_is_closed_and_the_table_is_swept(
    stage: PrivateSite, stream_wire: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binlog_stream, "StreamTiming", lambda: TIMING_WITHOUT_CHECKS)
    monkeypatch.setattr(binlog_stream, "_ANSWER_TIMEOUT", 3)
    # Given a service whose stream goes over a wire of its own,
    with stage.service() as service:
        service.wait_settled()
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # when that wire is dead without a word,
        stream_wire.freeze()
        ids = story.register()
        # then heartbeats are missed, and the sweep archives while there is no stream.
        story.polls("stalled")
        stage.wait_archived(*ids)
        assert story.reconnects() == {"stalled": 1}
        stream_wire.thaw()
        story.streams()
        story.arrives_by_stream()
        story.ends_well()
        assert story.reconnects() == {"stalled": 1}


def test_a_wire_that_is_cut_in_the_middle_of_a_transaction(stage: PrivateSite, wire: Proxy) -> None:
    with stage.service(mysql_port=wire.port) as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # Given a transaction of thousands of rows, of which three are ours,
        ours, foreign = story.new_files(3), stage.file("foreign.npy")
        rows = [stage.values(foreign, instance_id="somebody-elses") for _ in range(4000)]
        places = (0, 2000, 3999)
        for place, file in zip(places, ours, strict=True):
            rows[place] = stage.values(file)
        # when the wire breaks while it is read,
        connections = wire.connections
        wire.cut_after(300_000)
        with contextlib.closing(stage.connect()) as connection, connection.cursor() as cursor:
            first = insert(cursor, rows)
        story.remember([first + place for place in places], ours)
        eventually(lambda: wire.connections > connections, "it connects anew")
        # then none of them is lost.
        story.arrives_by_stream()
        story.streams()
        story.ends_well()
        assert story.reconnects() in LINK_OR_LOCK
        assert stage.count("copied = 0") == 4000 - 3


def test_a_slow_wire_costs_time_and_nothing_else(stage: PrivateSite, wire: Proxy) -> None:
    # Given a wire as to another continent, from the first connection on,
    wire.delay, wire.rate = 0.02, 100_000
    with stage.service(mysql_port=wire.port) as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # when much goes on in the table,
        foreign = stage.file("foreign.npy")
        stage.register(*[foreign] * 200, instance_id="somebody-elses")
        story.arrives_by_stream(10)
        # then nothing is taken for dead.
        story.streams()
        story.ends_well()
        assert story.reconnects() == {}


# Other replicas.


@contextlib.contextmanager
def other_replica(stage: PrivateSite, server_id: int) -> Iterator[Any]:
    """Another program reads the log under this server_id."""
    library: Any = binlogstream.BinLogStreamReader
    reader = library(
        connection_settings={"host": "127.0.0.1", "port": stage.server.port, "user": stage.user, "password": PASSWORD},
        server_id=server_id,
        only_events=[XidEvent],
        pymysql_wrapper=lambda db=None, **settings: pymysql.connect(database=db, **settings),
        enable_logging=False,
    )
    try:
        reader.fetchone()
        yield reader
    finally:
        reader.close()


def test_another_replica_with_our_random_server_id(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binlog_stream, "_SERVER_IDS", (4711, 4711))
    with stage.service() as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # Given another replica that drew the same number,
        monkeypatch.setattr(binlog_stream, "_SERVER_IDS", (4712, 4712))
        with other_replica(stage, 4711):
            story.register()
            # then the service draws another one.
            eventually(story.reconnects, "the end of the stream is counted")
            story.streams()
            story.arrives_by_stream()
        story.ends_well()
        assert story.reconnects() == {"server_id": 1}


def test_another_replica_with_the_server_id_that_the_operator_set(stage: PrivateSite) -> None:
    # Given an operator who gave two replicas one number,
    with stage.service(server_id=4711) as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        ids = story.register()
        with other_replica(stage, 4711):
            # then the service does not fight over it: it ends and says what to change,
            failure = service.failure()
        assert isinstance(failure, ServerIdTaken)
        assert failure.exit_status is ExitStatus.USAGE
        assert "4711" in str(failure)
        assert "--server-id" in str(failure)
    stage.services.clear()
    # and the next one archives what is left.
    with stage.service() as service:
        stage.wait_archived(*ids)
        StreamScenario(stage, service, story.files).ends_well()
