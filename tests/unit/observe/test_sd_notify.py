"""Messages to systemd, on a real socket: ready at once, each change, alive only while healthy, stopping."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from notify_socket import NotifySocket
from waiting import eventually

from cdc_archiver.observe.service_status import ServiceState, ServiceStatus
from cdc_archiver.observe.systemd import SystemdNotifier

STATUS = ServiceStatus(
    state=ServiceState.NO_DATABASE,
    why="db:3306\ndoes not answer",
    ready=False,
    healthy=True,
    started=datetime.now(UTC),
    database="db:3306/files",
    table=None,
    history="",
    stream=None,
    sources=(),
    destination=None,
    elsewhere=(),
    last_sweep=None,
    archived=0,
)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path) as heard:
        yield heard


def test_without_a_database_the_service_is_ready_and_alive(manager: NotifySocket) -> None:
    notifier = SystemdNotifier(str(manager.path), lambda: STATUS, watchdog=0.3)
    notifier.start()
    try:
        manager.wait("READY=1")
        manager.wait("STATUS=no database: db:3306 does not answer")
        manager.wait("WATCHDOG=1")
    finally:
        notifier.stop()
        assert notifier.join(10)


def test_a_change_is_sent_once_and_a_failed_service_is_not_alive(manager: NotifySocket) -> None:
    now = STATUS
    notifier = SystemdNotifier(str(manager.path), lambda: now, watchdog=0.15)
    notifier.start()
    try:
        manager.wait("WATCHDOG=1")
        now = replace(STATUS, state=ServiceState.FAILED, why="stream died", healthy=False)
        manager.wait("STATUS=failed: stream died")
        manager.forget()
        # Several of its intervals later.
        assert [manager.listen() for _ in range(5)] == [False] * 5, manager.heard
    finally:
        notifier.stop()
        assert notifier.join(10)


def test_without_a_status_the_watchdog_gets_nothing_and_the_notifier_goes_on(manager: NotifySocket) -> None:
    asked = []

    def failing() -> ServiceStatus:
        asked.append(1)
        if len(asked) < 3:
            raise RuntimeError("no status")
        return STATUS

    notifier = SystemdNotifier(str(manager.path), failing, watchdog=0.15)
    notifier.start()
    try:
        manager.wait("READY=1")
        manager.wait("WATCHDOG=1")
        assert len(asked) >= 3
    finally:
        notifier.stop()
        assert notifier.join(10)
    assert notifier.failure is None


def test_a_stop_is_sent_at_once_and_the_watchdog_is_fed_while_draining(manager: NotifySocket) -> None:
    notifier = SystemdNotifier(str(manager.path), lambda: STATUS, watchdog=0.15)
    notifier.start()
    try:
        manager.wait("WATCHDOG=1")
        manager.forget()
        notifier.announce_stop()
        manager.wait("STOPPING=1")
        manager.heard.clear()
        manager.wait("WATCHDOG=1")
    finally:
        notifier.stop()
        assert notifier.join(10)


def test_an_abstract_socket_is_reached(tmp_path: Path) -> None:
    manager = NotifySocket(tmp_path)
    name = f"@cdc-archiver-test-{os.getpid()}"
    manager._socket.bind("\0" + name[1:])
    manager._socket.settimeout(0.1)
    notifier = SystemdNotifier(name, lambda: STATUS)
    notifier.start()
    manager.wait("READY=1")
    notifier.stop()
    assert notifier.join(10)
    manager._socket.close()


def test_a_manager_that_is_gone_or_does_not_read_ends_nothing(tmp_path: Path, manager: NotifySocket) -> None:
    gone = SystemdNotifier(str(tmp_path / "none"), lambda: STATUS, watchdog=0.03)
    unread = SystemdNotifier(str(manager.path), lambda: STATUS, watchdog=0.003)
    for notifier in (gone, unread):
        notifier.start()
    # A datagram socket's queue takes at most some hundreds.
    eventually(lambda: manager.listen() and len(manager.heard) > 20, "messages have come")
    for notifier in (gone, unread):
        notifier.stop()
        assert notifier.join(10)
        assert notifier.failure is None


def test_the_managers_variables_are_removed_from_the_environment() -> None:
    asked = {
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "WATCHDOG_USEC": "6000000",
        "WATCHDOG_PID": str(os.getpid()),
        "A": "b",
    }
    notifier = SystemdNotifier.from_environment(lambda: STATUS, asked)
    assert notifier is not None
    assert asked == {"A": "b"}
    assert (notifier.watched, notifier.every) == (True, 2.0)


@pytest.mark.parametrize(
    "more",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}],
)
def test_a_watchdog_of_another_process_is_not_fed(more: dict[str, str]) -> None:
    notifier = SystemdNotifier.from_environment(lambda: STATUS, {"NOTIFY_SOCKET": "@x", **more})
    assert notifier is not None
    assert not notifier.watched


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_a_socket_there_is_no_notifier(environment: dict[str, str]) -> None:
    assert SystemdNotifier.from_environment(lambda: STATUS, environment) is None
