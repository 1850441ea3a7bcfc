"""The demo as a user runs it: it checks its own result, fails if a check fails, and leaves nothing behind."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc_archiver.sandbox import SshServer

FEW = ("--files", "60", "--largest", "2M")


@pytest.fixture
def place() -> Iterator[Path]:
    """The demo's TMPDIR: files left behind show there, and all its processes know the name.

    Not pytest's own directory, which is too long for archived paths and for a socket's name.
    """
    directory = Path(tempfile.mkdtemp(prefix="demo-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(params=["mariadb", "mysql"])
def database(request: pytest.FixtureRequest, ssh_server: SshServer) -> str:
    """A database that is available here; otherwise the test is skipped."""
    request.getfixturevalue(request.param)
    name: str = request.param
    return name


@contextlib.contextmanager
def demo(place: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A running demo; killed at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "cdc_archiver", "demo", *arguments],
        env={**os.environ, "TMPDIR": str(place), "MYSQL_HOST": "a site's own", "CDC_ARCHIVER_TABLE": "of_a_site"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: "subprocess.Popen[str]", expected: str) -> str:
    """Its output up to the line with this text."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if expected in line:
            return text
    raise AssertionError(f"it ended without {expected!r}:\n{text}")


def of_this_demo(place: Path) -> list[tuple[int, str]]:
    """The processes with its directory in their command line or environment, and their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                command = (entry / "cmdline").read_bytes()
                if os.fsencode(place) in command + (entry / "environ").read_bytes():
                    found.append((int(entry.name), command.replace(b"\0", b" ").decode(errors="replace")))
    return found


def assert_nothing_is_left(place: Path) -> None:
    # The children of a killed process may take a moment to end.
    deadline = time.monotonic() + 5.0
    while (left := of_this_demo(place)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    assert list(place.iterdir()) == []


def test_every_file_is_archived_and_checked(database: str, place: Path) -> None:
    with demo(place, "--db", database, *FEW) as process:
        out, _ = process.communicate()

    assert process.returncode == 0, out
    assert re.search(r"files +60, of 100 bytes to 2\.1 MB; [\d.]+ MB in total", out)
    assert re.search(r"under load +\d+ files, [\d.]+ MB in [\d.]+ s: \d+ files/s, [\d.]+ [kM]B/s", out)
    assert re.search(r"latency, single +p50 [\d.]+ m?s, p99 [\d.]+ m?s \(6 files\)", out)
    assert re.search(r"latency, all +p50 [\d.]+ m?s, p99 [\d.]+ m?s \(57 files\)", out)
    # The sweep at the start of the stream may also find the first of the files that came after the service's start.
    backlog = re.search(r"sweeps +\d+; found: (\d+) backlog, .*\b0 stream_missed", out)
    assert backlog is not None, out
    assert int(backlog[1]) >= 3, out
    # If a sweep finds a row first, the event of the stream counts as known.
    assert sum(int(count) for count in re.findall(r"(\d+) (?:offered|known)", out)) == 57
    for line in (
        "60 rows have copied = 1",
        "60 paths follow from the registered rows",
        "60 archived files have the registered md5",
        "files have mode 640 and directories 750",
        "every file in the archive has a row",
        "60 files at the source are unchanged",
        "the service's metrics agree: 0 stream_missed, 0 charged, 0 refused, 60 archived",
        "SIGTERM stops the service in",
        "run --reconcile finds no file to archive",
        "the private servers are stopped",
    ):
        assert re.search(rf"^  ✓ {re.escape(line)}", out, re.MULTILINE), f"no tick for {line!r} in:\n{out}"
    assert "✗" not in out
    assert out.splitlines()[-1].startswith("passed in ")
    assert_nothing_is_left(place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_removes_everything(
    ssh_server: SshServer, mariadb: object, place: Path, number: int
) -> None:
    with demo(place, "--files", "300", "--largest", "20M") as process:
        read_until(process, "streaming")
        assert any("cdc_archiver run" in command for _, command in of_this_demo(place))  # there is something to remove
        process.send_signal(number)
        time.sleep(0.1)
        process.send_signal(number)  # a second signal does not interrupt the clean-up
        out, _ = process.communicate()

    assert process.returncode == 1, out
    assert "interrupted" in out
    assert_nothing_is_left(place)


def test_a_demo_interrupted_while_its_servers_start_removes_everything(
    ssh_server: SshServer, mysql: object, place: Path
) -> None:
    """Otherwise a server would come up after the clean-up, and keep its directory."""
    with demo(place, "--db", "mysql", *FEW) as process:
        deadline = time.monotonic() + 30.0
        while not any("mysqld" in command for _, command in of_this_demo(place)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()

    assert process.returncode == 1, out
    assert "interrupted" in out
    assert_nothing_is_left(place)


def test_a_service_that_dies_is_a_failure_with_the_end_of_its_log(
    ssh_server: SshServer, mariadb: object, place: Path
) -> None:
    with demo(place, "--files", "300", "--largest", "20M") as process:
        read_until(process, "streaming")
        (pid,) = (pid for pid, command in of_this_demo(place) if "cdc_archiver run" in command)
        os.kill(pid, signal.SIGKILL)
        out, _ = process.communicate()

    assert process.returncode == 1, out
    assert "the service ended unexpectedly, with status -9" in out
    assert "the service's log ends with:" in out
    assert_nothing_is_left(place)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--db", "oracle"), "invalid database: 'oracle'"),
        (("--largest", "much"), "invalid size: --largest 'much'"),
        (("--largest", "10"), "invalid size: --largest '10' (at least 100 bytes)"),
        (("--largest", "900T"), "the demo needs"),
    ],
)
def test_an_invalid_argument_is_reported_in_one_line(arguments: tuple[str, ...], expected: str, place: Path) -> None:
    with demo(place, *arguments) as process:
        out, _ = process.communicate()

    assert process.returncode == 2
    assert expected in out
    assert len(out.splitlines()) == 1
    assert_nothing_is_left(place)
