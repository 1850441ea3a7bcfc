"""The stream on real servers: how it stops, and what it says on the way."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time

import pymysql
import pytest
import structlog
from private_database import PASSWORD, PrivateDatabase, new_private_database
from stream_scenario import TIMING_WITHOUT_CHECKS
from stream_under_test import StreamUnderTest, kill_dump_thread, streaming
from waiting import eventually

from cdc_archiver.events.binlog_stream import StreamTiming
from cdc_archiver.events.interruptible import Interrupted, InterruptibleConnections
from cdc_archiver.sandbox import DatabaseServer


def ends_within_a_second(running: StreamUnderTest) -> None:
    before = time.monotonic()
    running.stream.stop()
    assert running.stream.join(5)
    assert time.monotonic() - before < 1.0
    assert running.stream.failure is None


def test_it_stops_at_once_while_it_waits_for_events(world: PrivateDatabase) -> None:
    with streaming(world, StreamTiming(heartbeat=60.0)) as running:
        ends_within_a_second(running)
    assert [call[0] for call in running.heard.calls] == ["anchor"], "a stop is no loss"


def test_it_stops_at_once_while_it_waits_to_ask_again(world: PrivateDatabase) -> None:
    with world.globally("binlog_format", "'STATEMENT'"), streaming(world, StreamTiming(), anchored=False) as running:
        running.heard.await_one("unavailable")
        ends_within_a_second(running)


@pytest.mark.parametrize("mute", ["the handshake", "the connection"])
def test_it_stops_at_once_while_it_connects(mariadb: DatabaseServer, mute: str) -> None:
    with new_private_database(mariadb) as world, contextlib.ExitStack() as stack:
        # Nobody accepts: a connection shakes hands with the kernel and hears no more; beyond the backlog not even that.
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        if mute == "the connection":
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(port.getsockname())
        database = world.database(port=port.getsockname()[1])
        with streaming(world, anchored=False, database=database) as running:
            eventually(lambda: any(running.stream._connections._twins), "it connects")
            ends_within_a_second(running)


def test_connections_are_interrupted_under_tls_too(mysql: DatabaseServer) -> None:
    """PyMySQL wraps the socket, which would leave us with a dead one; the twin lives."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with new_private_database(mysql) as world:
        connections = InterruptibleConnections()
        settings = {**world.database().connection_settings(), "ssl": context, "read_timeout": 30}
        connection = connections.connect(settings)
        ended = threading.Event()

        def wait_for_an_answer() -> None:
            with contextlib.suppress(pymysql.MySQLError), connection.cursor() as cursor:
                cursor.execute("SELECT SLEEP(20)")
            ended.set()

        with connection.cursor() as cursor:
            cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_version'")
            assert "TLS" in str(cursor.fetchone())
        waiter = threading.Thread(target=wait_for_an_answer)
        waiter.start()
        eventually(lambda: "SLEEP" in str(world.sql("SHOW PROCESSLIST")), "the question is asked")
        connections.interrupt()
        assert ended.wait(1)
        waiter.join()
        with pytest.raises(Interrupted):
            connections.connect(settings)
        connections.close_all()


def test_an_interruption_before_the_connect_wakes_the_thread_that_connects() -> None:
    """The stop may come between the socket's making and its connect."""
    connections = InterruptibleConnections()
    with socket.create_server(("127.0.0.1", 0)) as mute:

        def interrupt_at_once(sock: socket.socket) -> socket.socket:
            twin = add_twin(sock)
            connections.interrupt()
            return twin

        add_twin, connections._add_twin = connections._add_twin, interrupt_at_once  # type: ignore[method-assign]
        before = time.monotonic()
        with pytest.raises((pymysql.MySQLError, OSError)):
            connections.connect(
                {"host": "127.0.0.1", "port": mute.getsockname()[1], "connect_timeout": 30, "read_timeout": 30}
            )
        assert time.monotonic() - before < 1
    connections.close_all()


def test_no_log_line_has_the_password(
    world: PrivateDatabase, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """mysql-replication 1.0.17 logs its settings, password included, unless it is kept from it."""
    library = logging.getLogger("pymysqlreplication")
    level = library.level
    caplog.set_level(logging.DEBUG)
    library.setLevel(logging.DEBUG)
    ours = structlog.get_config()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory())  # to what is captured here
    try:
        with streaming(world, TIMING_WITHOUT_CHECKS) as running:
            running.heard.await_ids(world.insert("/a"))
            kill_dump_thread(world)
            running.heard.await_anchors(2)
            world.sql(f"ALTER USER '{world.user}'@'%' IDENTIFIED BY 'changed'")
            kill_dump_thread(world)
            said = running.heard.await_one("unavailable", "Access denied")
    finally:
        library.setLevel(level)
        structlog.configure(**ours)
    printed = capsys.readouterr()
    everything = f"{caplog.text}\n{printed.out}\n{printed.err}\n{said}"
    assert "BINLOG_ROW_METADATA" in caplog.text, "the library's own words are among what was looked at"
    assert "binlog" in everything or said
    assert PASSWORD not in everything
