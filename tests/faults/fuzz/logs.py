"""Names and details in a line of the log."""

from __future__ import annotations

import io
import json
import random
from typing import Any
from unittest import mock

import structlog

from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings.types import LogFormat, LogLevel
from fuzz.corpus import a_text


def make_log(rng: random.Random) -> tuple[LogFormat, dict[str, Any]]:
    values = {name: a_text(rng) for name in rng.sample(("path", "detail", "reason", "source", "fix"), 2)}
    return rng.choice(list(LogFormat)), {**values, "targets": [a_text(rng)], "id": rng.randrange(9)}


def check_log(given: tuple[LogFormat, dict[str, Any]]) -> None:
    log_format, values = given
    written = io.StringIO()
    with mock.patch("sys.stderr", written):
        set_up_logs(log_format, LogLevel.DEBUG)
        structlog.get_logger().info("attempt_failed", **values)
    text = written.getvalue()
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1, "a log line is one line"
    assert not any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in text[:-1])
    text.encode("utf-8")
    if log_format is LogFormat.JSON:
        assert json.loads(text)["event"] == "attempt_failed"
