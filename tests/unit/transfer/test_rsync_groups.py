"""rsync's lines in groups: lines that come together form one group, the last ones come at once, and none waits long."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from cdc_archiver.transfer import rsync, rsync_output
from cdc_archiver.transfer.rsync import RsyncLimits, RsyncRun

_NEVER = 600.0


@pytest.fixture(autouse=True)
def rsync_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run first checks that rsync is installed."""
    program = tmp_path / "bin" / "rsync"
    program.parent.mkdir()
    program.symlink_to("/bin/false")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def run_of(script: str, entries: Sequence[bytes], directory: Path) -> RsyncRun:
    """A run with a shell script in place of rsync; the script may wait for the file ``go``."""
    report = f'report() {{ printf "%032d|1|$1\\n" 7; }}; wait_for_go() {{ until [ -e {directory}/go ]; do sleep 0.01; done; }}'
    limits = RsyncLimits(max_size=None, io_timeout=60.0, stall_timeout=30.0)
    return RsyncRun(["sh", "-c", f"{report}; {script}"], entries, directory, limits, threading.Event())


def names(group: Sequence[rsync_output.OutputLine]) -> list[bytes]:
    return [line.entry for line in group]


def test_files_that_arrive_together_are_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group costs a sync of the disk."""
    monkeypatch.setattr(rsync, "_GROUP_SECONDS", _NEVER)
    run = run_of("report a; report b; report c", [b"a", b"b", b"c", b"missing"], tmp_path)
    assert [names(group) for group in run.lines()] == [[b"a", b"b", b"c"]]
    assert run.status == 0


def test_the_last_file_is_yielded_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsync, "_GROUP_SECONDS", _NEVER)
    groups = run_of("report a; wait_for_go", [b"a"], tmp_path).lines()
    assert names(next(groups)) == [b"a"], "rsync is still running"
    (tmp_path / "go").touch()
    assert list(groups) == []


def test_a_file_does_not_wait_for_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsync, "_GROUP_SECONDS", 0.05)
    groups = run_of("report a; wait_for_go; report b", [b"a", b"b"], tmp_path).lines()
    assert names(next(groups)) == [b"a"]
    (tmp_path / "go").touch()
    assert [names(group) for group in groups] == [[b"b"]]
