"""rsync's lines in groups: together what comes together, at once what nothing follows, and nothing held for long."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from cdc_archiver.transfer import rsync, rsync_output
from cdc_archiver.transfer.rsync import Limits, RsyncRun

_NEVER = 600.0


@pytest.fixture(autouse=True)
def some_rsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run asks first whether there is an rsync."""
    program = tmp_path / "bin" / "rsync"
    program.parent.mkdir()
    program.symlink_to("/bin/false")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def run_of(script: str, entries: Sequence[bytes], directory: Path) -> RsyncRun:
    """A run of which a shell script is the rsync; it may wait for the file ``go``."""
    told = (
        f'told() {{ printf "%032d|1|$1\\n" 7; }}; wait_for_go() {{ until [ -e {directory}/go ]; do sleep 0.01; done; }}'
    )
    limits = Limits(max_size=None, io_timeout=60.0, stall_timeout=30.0)
    return RsyncRun(["sh", "-c", f"{told}; {script}"], entries, directory, limits, threading.Event())


def names(group: Sequence[rsync_output.Line]) -> list[bytes]:
    return [line.entry for line in group]


def test_files_that_arrive_together_are_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group costs a sync of the disk."""
    monkeypatch.setattr(rsync, "_GATHER", _NEVER)
    run = run_of("told a; told b; told c", [b"a", b"b", b"c", b"missing"], tmp_path)
    assert [names(group) for group in run.lines()] == [[b"a", b"b", b"c"]]
    assert run.status == 0


def test_what_nothing_follows_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsync, "_GATHER", _NEVER)
    groups = run_of("told a; wait_for_go", [b"a"], tmp_path).lines()
    assert names(next(groups)) == [b"a"], "rsync is there still"
    (tmp_path / "go").touch()
    assert list(groups) == []


def test_a_file_is_not_held_until_the_next_one_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsync, "_GATHER", 0.05)
    groups = run_of("told a; wait_for_go; told b", [b"a", b"b"], tmp_path).lines()
    assert names(next(groups)) == [b"a"]
    (tmp_path / "go").touch()
    assert [names(group) for group in groups] == [[b"b"]]
