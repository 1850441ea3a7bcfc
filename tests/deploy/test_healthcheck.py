"""The container's health check, asked of a server that answers, refuses, hangs, or is not there."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from deploy_files import DEPLOY

from cdc_archiver.observe.http import HttpQueries, HttpServer
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.sandbox import free_port


def check(host: str, port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", DEPLOY / "container/healthcheck.py"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "CDC_ARCHIVER_HTTP_HOST": host, "CDC_ARCHIVER_HTTP_PORT": str(port)},
    )


@contextlib.contextmanager
def answering(status: int) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()
            self.wfile.write(b"streaming\n")

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "health"), [(200, 0), (500, 1), (503, 1)])
def test_health_is_what_healthz_says(status: int, health: int) -> None:
    with answering(status) as port:
        done = check("127.0.0.1", port)
    assert (done.returncode, done.stdout) == (health, f"{status} streaming\n")


@pytest.mark.parametrize("host", ["", "0.0.0.0"])
def test_a_service_that_listens_everywhere_is_asked_here(host: str) -> None:
    with answering(200) as port:
        assert check(host, port).returncode == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_service_on_all_addresses_is_reached_by_the_old_and_the_new(host: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    server = HttpServer("::", 0, HttpQueries(Metrics(), _not_asked, _not_asked, _not_asked, _not_asked))
    thread = threading.Thread(target=server.work, daemon=True)
    thread.start()
    try:
        with contextlib.closing(http.client.HTTPConnection(host, server.port, timeout=30)) as connection:
            connection.request("GET", "/metrics")
            assert connection.getresponse().status == 200
    finally:
        server.interrupt()
        thread.join()


def _not_asked(*_: object) -> Any:
    raise AssertionError("nobody asks this here")


def test_no_answer_is_unhealthy() -> None:
    done = check("127.0.0.1", free_port())
    assert done.returncode == 1
    assert "no answer" in done.stdout


def test_one_who_says_nothing_or_nonsense_has_no_health() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert check("127.0.0.1", silent.getsockname()[1]).returncode == 1

    with socket.create_server(("127.0.0.1", 0)) as confused:

        def babble() -> None:
            connection, _ = confused.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"5.5.5-10.11 MariaDB\n")

        thread = threading.Thread(target=babble, daemon=True)
        thread.start()
        done = check("127.0.0.1", confused.getsockname()[1])
        thread.join()
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
