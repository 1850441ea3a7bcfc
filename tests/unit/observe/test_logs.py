"""Lines of the log: many at once, and each whole."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import structlog

from cdc_archiver.observe.logs import buffered_logs, set_up_logs
from cdc_archiver.settings.types import LogFormat, LogLevel


@pytest.fixture(autouse=True)
def json_lines(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    before = structlog.get_config()
    set_up_logs(LogFormat.JSON, LogLevel.INFO)
    yield
    structlog.configure(**before)


def events(text: str) -> list[str]:
    return [json.loads(line)["event"] for line in text.splitlines()]


def test_buffered_lines_are_written_in_their_order_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger()
    log.info("before", path="/data/a\nb")
    with buffered_logs():
        log.info("first")
        log.warning("second")
        log.debug("too little to say")
        assert events(capsys.readouterr().err) == ["before"]
    log.info("after")
    assert events(capsys.readouterr().err) == ["first", "second", "after"]


def test_another_threads_lines_do_not_wait(capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger()
    with buffered_logs():
        log.info("ours")
        other = threading.Thread(target=lambda: log.info("theirs"))
        other.start()
        other.join()
        assert events(capsys.readouterr().err) == ["theirs"]
    assert events(capsys.readouterr().err) == ["ours"]


def test_lines_do_not_mix_in_a_pipe_that_is_read_slowly() -> None:
    """Where Python does not buffer, as in a container, what is longer than a pipe goes into it in pieces."""
    program = """if True:
        import threading, structlog
        from cdc_archiver.settings.types import LogFormat, LogLevel
        from cdc_archiver.observe.logs import buffered_logs, set_up_logs

        set_up_logs(LogFormat.JSON, LogLevel.INFO)

        def many():
            with buffered_logs():
                for _ in range(2000):
                    structlog.get_logger().info("one of many", path="x" * 200)

        def others():
            for _ in range(2000):
                structlog.get_logger().info("another")

        threads = [threading.Thread(target=each) for each in (many, others, others)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr is not None
        read = b""
        while chunk := os.read(process.stderr.fileno(), 4096):
            read += chunk
    assert Counter(events(read.decode())) == {"one of many": 2000, "another": 4000}


def test_what_was_buffered_before_an_error_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(KeyError), buffered_logs():
        structlog.get_logger().info("before the error", what=object())
        raise KeyError
    assert events(capsys.readouterr().err) == ["before the error"]
