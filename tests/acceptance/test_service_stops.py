"""How the service ends: in good order when it is asked to, loudly when a part of it dies."""

from __future__ import annotations

import signal
import sys
import time

import pytest
from archive_places import staging_of
from private_site import PrivateSite
from services import Program
from waiting import PATIENCE, eventually, processes_of

from cdc_archiver.database.recorder import Recorder
from cdc_archiver.dispatch.router import Router
from cdc_archiver.events.binlog_stream import BinlogStream
from cdc_archiver.events.sweep import Sweeper
from cdc_archiver.service.worker_pool import Worker
from cdc_archiver.threads import StoppableThread


def await_copy(stage: PrivateSite, program: Program) -> None:
    """Until rsync has brought the first bytes of a file that takes long."""
    incoming = staging_of(stage.data_dir)

    def at_work() -> bool:
        runs = any("rsync" in line and "--files-from" in line for line in processes_of(stage.directory))
        return runs and any(path.is_file() for path in incoming.rglob("*"))

    eventually(at_work, "rsync is at work")


def test_what_does_not_end_in_time_is_killed_with_its_children(stage: PrivateSite) -> None:
    # Given a file that takes minutes,
    with stage.program(bwlimit="100", drain_timeout="0.5") as program:
        (id_,) = stage.register(stage.file("slow.npy", size=10_000_000))
        await_copy(stage, program)
        # when the service is asked to end,
        began = time.monotonic()
        program.signal(signal.SIGINT)
        # then it ends soon after the time that it was given,
        assert program.wait() == 0
        assert time.monotonic() - began < 10
    # with no rsync and no ssh left on either side,
    eventually(lambda: not processes_of(stage.directory), "its children are gone")
    # the file's row is as it was, and nothing of it is in the archive.
    row = stage.row(id_)
    assert (row.copied, row.attempts) == (0, 0)
    assert stage.archived_files() == []
    assert list(stage.runtime.iterdir()) == []


def test_running_copies_may_end_and_nothing_new_is_begun(stage: PrivateSite) -> None:
    # Given a file that takes some seconds,
    with stage.program(bwlimit="256", drain_timeout=str(PATIENCE)) as program:
        slow = stage.file("slow.npy", size=600_000)
        (id_,) = stage.register(slow)
        await_copy(stage, program)
        # when the service is asked to end, and another file comes,
        program.signal(signal.SIGTERM)
        program.wait_state("stopping")
        assert program.get("/readyz")[0] == 503
        assert program.get("/healthz")[0] == 200
        (late,) = stage.register(stage.file("late.npy"))
        # then it ends when the first is archived, and the row says so; the other is for the next service.
        assert program.wait() == 0
    (row,) = stage.rows([id_])
    assert (row.path, row.copied, row.attempts) == (str(stage.place(slow)), 1, 0)
    assert stage.place(slow).read_bytes() == slow.content
    assert (stage.row(late).copied, stage.row(late).attempts) == (0, 0)


def test_what_is_known_is_written_back(stage: PrivateSite) -> None:
    # Given a batch of which some have arrived,
    ids = stage.register(*stage.files(30, size=50_000))
    with stage.program(workers=1, bwlimit="200", drain_timeout=0, until=None) as program:
        eventually(lambda: stage.count("copied = 1"), "the first have arrived")
        # when the service is asked to end at once,
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
    # then each file that is in the archive is so by its row, and no other.
    placed = {str(path) for path in stage.archived_files()}
    assert placed == {row.path for row in stage.rows(ids) if row.copied}
    assert 0 < len(placed) < len(ids)
    assert stage.count("failed_copy_attempts <> 0") == 0


def test_an_idle_service_ends_at_once_and_says_nothing_bad(stage: PrivateSite) -> None:
    with stage.program() as program:
        stage.wait_archived(*stage.register(stage.file("file.npy")))
        began = time.monotonic()
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
        assert time.monotonic() - began < 5
    assert "error" not in program.said


def test_a_standby_ends_at_once(stage: PrivateSite) -> None:
    with stage.service(), stage.service(until="standby") as service:
        began = time.monotonic()
        service.stop()
        assert time.monotonic() - began < 5


def test_a_service_that_waits_for_its_database_ends_at_once(stage: PrivateSite) -> None:
    with stage.service(mysql_port=1, until="no database") as service:
        began = time.monotonic()
        service.stop()
        assert time.monotonic() - began < 5


def test_a_host_that_hangs_does_not_keep_the_service_from_ending(stage: PrivateSite) -> None:
    # Given a readout server that takes connections and never answers, and a file that waits for it,
    stage.ssh.pause()
    (id_,) = stage.register(stage.file("waits.npy"))
    with stage.program(drain_timeout=0) as program:
        eventually(lambda: program.metric("in_flight") == 1, "the host is tried")
        # when the service is asked to end, then it does, within the ten seconds that a container is given.
        program.signal(signal.SIGTERM)
        assert program.wait(8) == 0
    assert (stage.row(id_).copied, stage.row(id_).attempts) == (0, 0)


# A part that dies.


def _boom(*_: object, **__: object) -> None:
    raise RuntimeError("a bug of ours")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (Router, "router"),
        (Sweeper, "sweeper"),
        (Recorder, "recorder"),
        (Worker, "127.0.0.1/"),
        (BinlogStream, "binlog"),
    ],
)
def test_a_part_that_dies_ends_the_service(
    stage: PrivateSite, monkeypatch: pytest.MonkeyPatch, part: type[StoppableThread], name: str
) -> None:
    # Given a part with a bug, which shows while the service is at work,
    work = part.work

    def dies(self: StoppableThread) -> None:
        self.stopping.wait(0.3)
        if self.stopping.is_set():
            return work(self)
        return _boom()

    monkeypatch.setattr(part, "work", dies)
    with stage.service(until=None) as service:
        # then the service ends by itself, and says which part it was, and of what it died.
        said = str(service.failure())
    assert name in said
    assert "a bug of ours" in said


def test_a_part_that_returns_unasked_ends_the_service_too(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "work", lambda self: None)
    with stage.service(until=None) as service:
        assert "router" in str(service.failure())


def test_a_death_is_one_clear_last_line_and_a_status_of_its_own(stage: PrivateSite) -> None:
    # Given a program with a bug in it,
    script = stage.directory / "buggy.py"
    script.write_text(
        "from cdc_archiver.dispatch.router import Router\n"
        "def _route(self, *_): raise RuntimeError('a bug of ours')\n"
        "Router._route = _route\n"
        "from cdc_archiver.cli import main\n"
        "main()\n"
    )
    with stage.program(interpreter=(sys.executable, str(script))) as program:
        # when it shows,
        stage.register(stage.file("file.npy"))
        # then the service ends with status 1, and its last line says why.
        program.may_trace = True
        assert program.wait() == 1
    last = program.said.splitlines()[-1]
    assert last.startswith("cdc-archiver: ")
    assert "router" in last
    assert "a bug of ours" in last
    assert (stage.row(1).copied, stage.row(1).attempts) == (0, 0)
