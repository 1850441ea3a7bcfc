"""The operator's program: what it is given, and what happens when it fails, hangs or floods its output."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog
from service_statuses import status
from waiting import eventually

from cdc_archiver.observe import notifier as under_test
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.observe.notice_rules import Notice
from cdc_archiver.observe.notifier import Notifier
from cdc_archiver.observe.service_status import ServiceStatus


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


StartNotifier = Callable[..., Notifier]


@pytest.fixture
def start(metrics: Metrics, idle_status: ServiceStatus) -> Iterator[StartNotifier]:
    with ExitStack() as running:

        def started(script: str, **limits: float) -> Notifier:
            command = f"sh -c {shlex.quote(script)}"
            made = Notifier(command, 600.0, lambda: idle_status, metrics, **limits)
            made.start()
            running.callback(made.join, 10.0)
            running.callback(made.stop)
            return made

        yield started


@pytest.fixture
def idle_status() -> ServiceStatus:
    return status()


def result(metrics: Metrics, name: str) -> float:
    return metrics.total("notices_total", result=name)


def zombies() -> list[str]:
    """Child processes that have ended and were not waited for."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text().rpartition(") ")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state == "Z":
            found.append(entry.parent.name)
    return found


def test_it_is_given_one_json_object_and_no_secret(
    start: StartNotifier, metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYSQL_PASSWORD", "hunter2")
    notifier = start(f"cat >{tmp_path}/given; env >{tmp_path}/environment")
    notifier.tell(Notice("late_file", "a late file: caf\xe9\n", {"timecode": 15895, "path": "x" * 100_000}))
    eventually(lambda: result(metrics, "delivered") == 1, "it is told")
    (line,) = (tmp_path / "given").read_text().splitlines()
    given: dict[str, Any] = json.loads(line)
    assert list(given) == ["kind", "at", "service", "text", "timecode", "path"]
    assert (given["kind"], given["text"], given["timecode"]) == ("late_file", "a late file: caf\xe9\n", 15895)
    assert len(given["path"]) < 10_000
    assert "hunter2" not in (tmp_path / "environment").read_text()


def test_a_program_that_fails_is_counted_and_logged_with_what_it_said(start: StartNotifier, metrics: Metrics) -> None:
    with structlog.testing.capture_logs() as logs:
        notifier = start("exec <&-; echo 'no such mailbox' >&2; exit 3")
        notifier.tell(Notice("daily", "x"))
        eventually(lambda: result(metrics, "failed") == 1, "it is counted")
        eventually(lambda: logs, "it is logged")
    (entry,) = logs
    assert (entry["event"], entry["detail"], entry["output"]) == (
        "notify_command_failed",
        "exit status 3",
        "no such mailbox",
    )


def test_a_program_that_is_not_there_is_counted(metrics: Metrics, idle_status: ServiceStatus) -> None:
    notifier = Notifier("/no/such/program", 600.0, lambda: idle_status, metrics)
    notifier.start()
    notifier.tell(Notice("daily", "x"))
    eventually(lambda: result(metrics, "failed") == 1, "it is counted")
    notifier.stop()
    assert notifier.join(5.0)


def test_a_program_that_hangs_is_killed_with_its_children_and_the_next_notice_is_told(
    start: StartNotifier, metrics: Metrics, tmp_path: Path
) -> None:
    hangs = f"if mkdir {tmp_path}/first; then sleep 1000 & echo $! >{tmp_path}/child; wait; fi"
    notifier = start(hangs, time_limit=0.3)
    notifier.tell(Notice("daily", "x"))
    notifier.tell(Notice("daily", "y"))
    eventually(lambda: result(metrics, "delivered") == 1, "the second is told")
    assert result(metrics, "timeout") == 1
    child = (tmp_path / "child").read_text().strip()
    eventually(lambda: not _runs(child), "its child process is gone, too")
    assert zombies() == []


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_a_program_that_floods_its_output_is_killed_in_time_and_costs_no_memory(
    start: StartNotifier, metrics: Metrics
) -> None:
    with structlog.testing.capture_logs() as logs:
        start("exec yes", time_limit=0.3).tell(Notice("daily", "x"))
        eventually(lambda: result(metrics, "timeout") == 1, "it is killed")
        eventually(lambda: logs, "it is logged")
    assert len(logs[0]["output"]) < 1000


def test_nobody_waits_for_it_and_what_is_too_much_is_dropped_and_counted(
    start: StartNotifier, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a program that hangs with the first notice,
    notifier = start("sleep 1000")
    notifier.tell(Notice("first", "x"))
    eventually(notifier._waiting.empty, "the program has the first")
    # when more happens than may wait, of many kinds,
    with structlog.testing.capture_logs() as logs:
        for number in range(under_test._QUEUE + 20):
            notifier.tell(Notice(f"kind{number}", "x"))
    # then the rest is dropped, which is said once, and a stop does not wait for it long.
    assert result(metrics, "dropped") == 20
    assert [entry["event"] for entry in logs].count("notices_dropped") == 1
    notifier.stop()
    assert notifier.join(8.0)
    assert notifier.failure is None


def test_a_status_that_cannot_be_told_ends_nothing(metrics: Metrics) -> None:
    def broken() -> ServiceStatus:
        raise RuntimeError("a bug")

    notifier = Notifier("true", 600.0, broken, metrics, interval=0.01)
    with structlog.testing.capture_logs() as logs:
        notifier.start()
        eventually(lambda: len(logs) > 1, "it is logged, and tried again")
        notifier.stop()
        assert notifier.join(5.0)
    assert notifier.failure is None
    assert {entry["event"] for entry in logs} == {"notices_failed"}
