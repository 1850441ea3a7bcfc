"""Fail-overs that leave the old server and its connections alive: read-only servers, an address that leads elsewhere, a balancer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, Self

import pytest
from files_table import CREATE_TABLE, TABLE
from private_site import HISTORY, PrivateSite, SourceFile, insert
from proxy import Proxy
from services import PASSWORD, Service
from waiting import PATIENCE, eventually, eventually_or_not

from cdc_archiver.sandbox import DatabaseServer


@contextlib.contextmanager
def read_only(server: DatabaseServer) -> Iterator[None]:
    server.execute("SET GLOBAL read_only = ON")
    try:
        yield
    finally:
        server.execute("SET GLOBAL read_only = OFF")


class OtherServer:
    """A second server with the same database, table and account as a site's."""

    def __init__(self, server: DatabaseServer, stage: PrivateSite) -> None:
        self._server = server
        self._stage = stage
        self.port = server.port

    def __enter__(self) -> Self:
        self._server.execute(f"CREATE DATABASE {self._stage.database}")
        self._server.create_archiver_user(self._stage.user, PASSWORD, self._stage.database, history=HISTORY)
        self.sql(CREATE_TABLE)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.execute(f"DROP DATABASE {self._stage.database}")
        self._server.execute(f"DROP USER '{self._stage.user}'@'%'")

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with (
            contextlib.closing(self._server.connect(database=self._stage.database)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)
            return list(cursor.fetchall())

    def register(self, file: SourceFile) -> int:
        with (
            contextlib.closing(self._server.connect(database=self._stage.database)) as connection,
            connection.cursor() as cursor,
        ):
            return insert(cursor, [self._stage.values(file)])

    def wait_archived(self, id_: int, within: float = 30.0) -> None:
        done = lambda: self.sql(f"SELECT copied FROM {TABLE} WHERE id = {id_}") == [(1,)]
        eventually(done, f"row {id_} of the other server is archived", within)


@pytest.fixture
def other(request: pytest.FixtureRequest, doomed_stage: PrivateSite) -> Iterator[OtherServer]:
    kind = "mysql" if "MySql" in type(doomed_stage.server).__name__ else "mariadb"
    with OtherServer(request.getfixturevalue(kind), doomed_stage) as server:
        yield server


def changes(service: Service, reason: str) -> float:
    return service.metric("database_server_changes_total", reason=reason)


def sessions(server: PrivateSite | OtherServer, user: str) -> list[tuple[Any, ...]]:
    """The account's sessions at a server."""
    return server.sql(
        f"SELECT id, command, time, state, info FROM information_schema.processlist WHERE user = '{user}'"
    )


def wait_left(server: PrivateSite | OtherServer, user: str) -> None:
    """Waits until the account has no session at a server."""
    if not eventually_or_not(lambda: not sessions(server, user), PATIENCE):
        raise AssertionError(f"connections are left: {sessions(server, user)}")


@pytest.mark.usefixtures("quick_stream")
def test_a_server_that_is_read_only_is_waited_for(doomed_stage: PrivateSite) -> None:
    stage = doomed_stage
    # Given a server that is read-only when the service starts,
    with read_only(stage.server):
        starting = stage.service(until="no database")
        starting.__enter__()
        assert "read-only" in starting.get("/readyz")[1]
        assert "GRANT" not in starting.get("/readyz")[1]
    with contextlib.ExitStack() as stack:
        stack.push(starting)
        service = starting
        # when it takes writes, all goes on;
        service.wait_state("streaming")
        stage.wait_archived(*stage.register(stage.file("first.npy")))
        # when it becomes read-only, with all connections alive,
        with read_only(stage.server):
            ids = stage.register(*stage.files(3))
            service.wait_state("no database")
            # then nothing but a question now and then is left of us there,
            eventually(lambda: len(sessions(stage, stage.user)) <= 1, "all connections are closed")
            assert service.get("/healthz")[0] == 200
            assert changes(service, "read_only") == 1
            eventually(lambda: len(sessions(stage, stage.user)) == 1, "it asks")
            eventually(lambda: not sessions(stage, stage.user), "it waits")
        # and what waited is archived, and recorded, without a failed attempt.
        stage.wait_archived(*ids, within=15.0)
        service.wait_state("streaming")
        assert changes(service, "read_only") == 1
    assert stage.count("failed_copy_attempts <> 0") == 0
    assert len(stage.archived_files()) == 4


@pytest.mark.usefixtures("quick_stream")
def test_who_follows_the_address_to_another_server_works_or_stands_by_there(
    doomed_stage: PrivateSite, other: OtherServer
) -> None:
    stage = doomed_stage
    with (
        Proxy(stage.server.port) as wire,
        stage.service(mysql_port=wire.port) as service,
    ):
        stage.wait_archived(*stage.register(stage.file("old.npy")))
        # Given an address that leads to another server from now on, while the old one lives,
        wire.target = other.port
        id_ = other.register(stage.file("new.npy"))
        # then files of that one are archived, and lock, stream and history are there.
        other.wait_archived(id_, within=15.0)
        eventually(lambda: changes(service, "moved") == 1, "it says that it moved")
        service.wait_state("streaming")
        wait_left(stage, stage.user)
        assert other.sql(f"SELECT result FROM {HISTORY} WHERE file_id = {id_}") == [("archived",)]
        other.wait_archived(other.register(stage.file("streamed.npy")))
        # And given a second archiver at the old server, when this one is led back to it,
        elsewhere = stage.directory / "archive-of-the-second"
        elsewhere.mkdir()
        with stage.service(data_dir=elsewhere):
            wire.target = stage.server.port
            # then it leaves the other one, and stands by for the second,
            service.wait_state("standby", within=15.0)
            wait_left(other, stage.user)
            stage.wait_archived(*stage.register(stage.file("second.npy")))
        # and takes over when that one ends.
        service.wait_state("streaming", within=15.0)
        stage.wait_archived(*stage.register(stage.file("last.npy")))
        assert changes(service, "moved") == 2
        # A standby follows the address, too, and a primary that takes no writes is left at once.
        with read_only(stage.server):
            stage.register(stage.file("left-behind.npy"))
            eventually(lambda: changes(service, "read_only") == 1, "it leaves the read-only server")
            wire.target = other.port
            service.wait_state("streaming", within=15.0)
            other.wait_archived(other.register(stage.file("at-last.npy")))
    assert stage.count("failed_copy_attempts <> 0") == 0


class Balancer(Proxy):
    """Leads each connection to another server than the one before."""

    def __init__(self, *targets: int) -> None:
        self._targets = itertools.cycle(targets)
        super().__init__(0)

    @property
    def target(self) -> int:
        return next(self._targets)

    @target.setter
    def target(self, _: int) -> None:
        pass


@pytest.mark.usefixtures("quick_stream")
def test_behind_a_balancer_the_service_polls_and_names_the_servers(
    doomed_stage: PrivateSite, other: OtherServer
) -> None:
    stage = doomed_stage
    file = stage.file("anywhere.npy")
    with (
        Balancer(stage.server.port, other.port) as wire,
        stage.service(mysql_port=wire.port, poll_interval=0.5, until=None) as service,
    ):
        eventually(lambda: changes(service, "several") == 1, "it has met several servers")
        service.wait_state("polling")
        body = service.get("/readyz")[1]
        assert "leads to several servers" in body
        # It archives, by polling, and neither leaves nor asks in a loop.
        stage.register(file)
        other.register(file)
        eventually(lambda: stage.place(file).exists(), "it is archived")
        made = wire.connections
        sweeps = service.metric("sweep_duration_seconds_count")
        eventually(lambda: service.metric("sweep_duration_seconds_count") >= sweeps + 6, "it polls")
        assert wire.connections - made < 12
        assert changes(service, "moved") == 0
        keeper = service.archiver._keeper
        assert keeper is not None
        assert keeper.losses == 0
