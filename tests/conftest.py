"""Fixtures that all tests share: servers, each started on first use, and sites on them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from private_database import PrivateDatabase, new_private_database
from private_site import PrivateSite, new_private_site
from stream_scenario import QUICK_TIMING

from cdc_archiver.events import binlog_stream
from cdc_archiver.sandbox import DatabaseServer, MariaDb, MySql, SandboxError, SshServer, ensure_tools, open_database
from cdc_archiver.sandbox.packages import Tool, find

pytest_plugins = ["healthy_site"]


@pytest.fixture(scope="session", autouse=True)
def logs_go_to_stderr() -> None:
    """A service in a thread logs while a test captures the output of a command: keep the two apart."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


@contextmanager
def needed() -> Iterator[None]:
    """If a server is not available, the test fails in CI and is skipped elsewhere, with the reason."""
    try:
        yield
    except SandboxError as error:
        if os.environ.get("CI"):
            pytest.fail(f"the sandbox is not available: {error}", pytrace=False)
        pytest.skip(f"the sandbox is not available: {error}")


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDb]:
    server = MariaDb(tmp_path_factory.mktemp("mariadb"))
    with needed():
        server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def mysql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MySql]:
    server = MySql(tmp_path_factory.mktemp("mysql"))
    with needed():
        server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session", params=["mariadb", "mysql"])
def database_server(request: pytest.FixtureRequest) -> DatabaseServer:
    """Either server, for tests that must pass on both."""
    server: Any = request.getfixturevalue(request.param)
    assert isinstance(server, DatabaseServer)
    return server


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    server = SshServer(tmp_path_factory.mktemp("sshd"))
    with needed():
        ensure_tools()
        server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def promtool() -> Tool:
    """Prometheus's tool, and Prometheus with it."""
    with needed():
        tool = find("promtool")
        find("prometheus")
    return tool


@pytest.fixture
def stage(mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    """A site on MariaDB, for tests that do not depend on the database server."""
    with new_private_site(mariadb, ssh_server, tmp_path) as made:
        yield made


@pytest.fixture
def either_stage(database_server: DatabaseServer, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    """A site on each database server in turn."""
    with new_private_site(database_server, ssh_server, tmp_path) as made:
        yield made


@pytest.fixture(scope="session", params=["mariadb", "mysql"])
def doomed_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer]:
    """A server of each kind, for tests that break it; they restore it or leave it stopped."""
    server = open_database(request.param, tmp_path_factory.mktemp(f"doomed-{request.param}"))
    with needed():
        server.start()
    yield server
    server.kill()


@pytest.fixture
def doomed_stage(doomed_server: DatabaseServer, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    """A site on a server that may be broken."""
    doomed_server.start()
    with new_private_site(doomed_server, ssh_server, tmp_path) as made:
        yield made
        doomed_server.start()


@pytest.fixture
def world(database_server: DatabaseServer) -> Iterator[PrivateDatabase]:
    """A database with the table of files, on each database server in turn."""
    with new_private_database(database_server) as made:
        yield made


@pytest.fixture
def doomed(doomed_server: DatabaseServer) -> Iterator[PrivateDatabase]:
    """A database with the table of files, on a server that may be stopped, killed or reset."""
    doomed_server.start()
    with new_private_database(doomed_server) as made:
        yield made
        doomed_server.start()


@pytest.fixture
def quick_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams with short waits."""
    monkeypatch.setattr(binlog_stream, "StreamTiming", lambda: QUICK_TIMING)
