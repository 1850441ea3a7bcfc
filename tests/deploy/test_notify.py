"""The example program for notices: what it sends, and where."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from deploy_files import ROOT

NOTICE = {"kind": "daily", "service": "storage", "text": "streaming;\n5 files archived"}


@contextmanager
def web_server() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    posted: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", posted
        server.shutdown()


def passed_on(notice: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    program: list[str | Path] = [sys.executable, ROOT / "deploy/notify/notice.py", *flags]
    return subprocess.run(program, input=json.dumps(notice), capture_output=True, text=True, timeout=60, check=False)


def test_each_notice_is_posted_and_only_the_daily_one_pings() -> None:
    with web_server() as (url, posted):
        for kind in ("daily", "late_file"):
            done = passed_on({**NOTICE, "kind": kind}, "--webhook", f"{url}/hook", "--ping", f"{url}/ping")
            assert done.returncode == 0, done.stderr
    assert [path for path, _ in posted] == ["/ping", "/hook", "/hook"]
    assert json.loads(posted[0][1]) == NOTICE
    assert json.loads(posted[1][1]) == {"text": "cdc_archiver on storage: streaming; 5 files archived"}


@pytest.mark.parametrize(
    "flags", [("--mail", "a@example.org", "--smtp", "127.0.0.1:1"), ("--ping", "http://127.0.0.1:1/")]
)
def test_what_cannot_be_sent_is_a_failure(flags: tuple[str, ...]) -> None:
    assert passed_on(NOTICE, *flags).returncode != 0
