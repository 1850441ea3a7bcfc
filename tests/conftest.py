"""Servers that tests share, each started when the first test asks for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cdc_archiver.sandbox import DatabaseServer, MariaDb, MySql, SandboxError, SshServer, ensure_tools
from cdc_archiver.sandbox.packages import Tool, find


@contextmanager
def needed() -> Iterator[None]:
    """Where a server cannot be had, CI fails and a developer's machine skips, with the reason."""
    try:
        yield
    except SandboxError as error:
        if os.environ.get("CI"):
            pytest.fail(f"the sandbox is not to be had: {error}", pytrace=False)
        pytest.skip(f"the sandbox is not to be had: {error}")


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
    """Prometheus's own tool, and with it Prometheus."""
    with needed():
        tool = find("promtool")
        find("prometheus")
    return tool
