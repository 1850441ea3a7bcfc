"""Faults of the archive: a disk that is full, read-only, unmounted or corrupt, and a database that is lost after placement."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_places import staging_of
from copy_assertions import (
    assert_archive_is_exactly,
    assert_archived,
    assert_destination_down,
    assert_healthy,
    assert_no_failed_attempts,
    failure_count,
    shorten_pauses,
    wait_failures,
)
from fake_rsync import FakeRsync, corrupts, ends_early
from private_site import PrivateSite, new_private_site
from proxy import Proxy
from services import COMMAND
from small_disk import SmallDisk
from waiting import eventually

from cdc_archiver.sandbox import MariaDb, SshServer
from cdc_archiver.service import pipeline
from cdc_archiver.transfer.placement import Placer


@pytest.fixture
def stage(
    mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PrivateSite]:
    """A site where retries come in a moment."""
    shorten_pauses(monkeypatch)
    with new_private_site(mariadb, ssh_server, tmp_path) as made:
        yield made


@pytest.fixture
def fake(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> FakeRsync:
    """The rsync of this machine."""
    made = FakeRsync(stage.directory / "fake")
    monkeypatch.setenv("PATH", made.before(os.environ["PATH"]))
    return made


# Errors of a real disk.


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_disk_that_fills_up_during_a_batch_causes_no_failed_attempt(stage: PrivateSite, what: str) -> None:
    """There were enough bytes when the batch began; the check of free space does not see inodes at all."""
    if what == "bytes":
        disk, size = SmallDisk(stage.data_dir, "32m", used="28M"), 100_000
    else:
        disk, size = SmallDisk(stage.data_dir, files=1000, used_files=940), 100
    files = stage.files(80, size=size)
    ids = stage.register(*files)
    # Given a disk that is too small for a backlog,
    with stage.program(interpreter=disk.interpreter(COMMAND), until="no destination") as program:
        disk.belongs_to(program.pid)
        # when it is full, then only the destination is down;
        assert_destination_down(program, "no_space")
        assert failure_count(program, "no_space") == 0
        assert_no_failed_attempts(stage)
        # files that fit are archived (on a tmpfs a link takes an inode too: without inodes nothing may fit),
        assert stage.count("copied = 1") < len(ids)
        if what == "bytes":
            eventually(lambda: stage.count("copied = 1"), "files that fit are archived")
        # and the rest when there is space again.
        disk.make_room()
        stage.wait_archived(*ids)
        assert_healthy(program)
        assert_archived(stage, ids, files, root=disk.root)
    assert_no_failed_attempts(stage)


@pytest.mark.parametrize("failure", ["read-only", "unmounted"])
def test_a_disk_that_cannot_be_written_to_causes_no_failed_attempt(stage: PrivateSite, failure: str) -> None:
    # Given an archive with a file in it,
    disk = SmallDisk(stage.data_dir)
    before, files = stage.file("before.npy"), stage.files(5)
    with stage.program(interpreter=disk.interpreter(COMMAND)) as program:
        disk.belongs_to(program.pid)
        ids = stage.register(before)
        stage.wait_archived(*ids)
        # when its disk is read-only, or gone,
        {"read-only": disk.make_read_only, "unmounted": disk.unmount}[failure]()
        ids += stage.register(*files)
        # then the service reports it, no attempt fails, and nothing is written to the mount point;
        reason = {"read-only": "destination_unwritable", "unmounted": "destination_missing"}[failure]
        assert_destination_down(program, reason)
        assert failure_count(program, reason) == 0
        assert_no_failed_attempts(stage)
        assert list(stage.data_dir.iterdir()) == []
        # and all is archived when the disk is back.
        {"read-only": disk.make_writable, "unmounted": disk.mount}[failure]()
        stage.wait_archived(*ids)
        assert_healthy(program)
        assert_archived(stage, ids, [before, *files], root=disk.root)
    assert_no_failed_attempts(stage)


def test_a_clean_up_downstream_that_removes_whole_timecodes_delays_no_file(stage: PrivateSite) -> None:
    # Given somebody who removes timecodes all the time,
    files = stage.files(300, size=100)
    over = threading.Event()

    def clean_up() -> None:
        while not over.wait(0.002):
            shutil.rmtree(stage.data_dir / "15895", ignore_errors=True)

    remover = threading.Thread(target=clean_up, name="clean-up")
    # when files of such a timecode come,
    with stage.program(host="", batch_files=15) as program:
        remover.start()
        try:
            ids = stage.register(*files)
            rows = stage.wait_archived(*ids)
        finally:
            over.set()
            remover.join()
        # then each is archived as if nobody were there: neither file nor disk is to blame.
        assert [row.path for row in rows] == [str(stage.place(file)) for file in files]
        assert_healthy(program)
        assert failure_count(program) == 0
        assert "destination_down" not in program.said
    assert_no_failed_attempts(stage)


# Errors of the disk as rsync reports them: also where nothing can be mounted.

_PARTIAL_TRANSFER = "rsync error: some files/attrs were not transferred (see previous errors) (code 23) at main.c(1865) [generator=3.5.0]"
RECEIVERS = {
    "full": (11, 'rsync: [receiver] write failed on "/a/b": No space left on device (28)', "no_space"),
    "no temporary file": (
        23,
        f'rsync: [receiver] mkstemp "/a/.b.Qn5Yzt" failed: Permission denied (13)\n{_PARTIAL_TRANSFER}',
        "destination_unwritable",
    ),
    "no directory": (
        23,
        f'rsync: [generator] recv_generator: mkdir "/a/b" failed: Input/output error (5)\n{_PARTIAL_TRANSFER}',
        "destination_unwritable",
    ),
}


@pytest.mark.parametrize("failure", RECEIVERS)
def test_a_write_error_of_the_receiving_rsync_is_a_failure_of_the_destination(
    stage: PrivateSite, fake: FakeRsync, failure: str
) -> None:
    # Given an rsync that receives two files and cannot write the third,
    status, message, reason = RECEIVERS[failure]
    fake.misbehave(ends_early(2, status, message))
    files = stage.files(40)
    ids = stage.register(*files)
    with stage.service(workers=1, until=None) as service:
        wait_failures(service, reason)
        # then files that arrived count, and only the destination is down;
        assert_destination_down(service, reason)
        # it is said of the archive, and of no source, whichever one's file it was;
        said = f"no destination: {reason}: the archive's disk: rsync: "
        eventually(lambda: service.get("/readyz")[1].startswith(said), "the disk is named")
        eventually(lambda: stage.count("copied = 1") >= 2, "files that arrived are archived")
        assert failure_count(service, reason) == 0
        assert_no_failed_attempts(stage)
        # and the others follow.
        fake.behave()
        stage.wait_archived(*ids)
        assert_healthy(service)
    assert_no_failed_attempts(stage)
    assert_archived(stage, ids, files)


@pytest.mark.parametrize("verify", ["staged", "transfer"])
def test_a_file_that_is_corrupted_on_this_machine_is_not_archived(
    stage: PrivateSite, fake: FakeRsync, verify: str
) -> None:
    # Given a disk, or a memory, that changes a file after it has arrived,
    fake.misbehave(corrupts("bad.npy"))
    bad, good = stage.file("bad.npy"), stage.files(5)
    ids = stage.register(bad, *good)
    with stage.service(until=None, verify=verify) as service:
        stage.wait_archived(*ids[1:])
        if verify == "transfer":
            # then, with --verify transfer, the corrupted file is archived;
            stage.wait_archived(ids[0])
            assert stage.place(bad).read_bytes() != bad.content
            return
        # then only the destination is down, and the other files are archived;
        wait_failures(service, "corrupted", 3)
        assert_destination_down(service, "corrupted")
        assert "memory and disks" in service.get("/readyz")[1] or "memory" in str(service.status()["destination"])
        assert failure_count(service, "corrupted") == 0
        assert_no_failed_attempts(stage)
        assert_archive_is_exactly(stage, *good)
        # and it comes when the machine is sound again.
        fake.behave()
        stage.wait_archived(*ids)
        assert_healthy(service)
    assert_no_failed_attempts(stage)
    assert_archived(stage, ids, [bad, *good])


# The database, after placement.


@pytest.fixture
def placed_and_cut(monkeypatch: pytest.MonkeyPatch, stage: PrivateSite) -> Iterator[Proxy]:
    """A connection to the database that is cut after a file is placed and before its row is updated."""
    place = Placer.place
    with Proxy(stage.server.port) as wire:

        def place_and_cut(placer: Placer, files: Any, cancel: Any) -> Any:
            placed = place(placer, files, cancel)
            archived = [file for file in files if stage.data_dir / "15895" in Path(file.final).parents]
            if archived and not wire.refusing:  # not for the trial files of the preflight
                wire.refuse()
                monkeypatch.setattr(Placer, "place", place)
            return placed

        monkeypatch.setattr(Placer, "place", place_and_cut)
        yield wire


def test_files_placed_while_the_database_was_away_are_recorded_when_it_is_back(
    stage: PrivateSite, placed_and_cut: Proxy
) -> None:
    files = stage.files(3)
    ids = stage.register(*files)
    # Given placed files, and a database that is lost before the rows are updated,
    with stage.service(until=None, mysql_port=placed_and_cut.port) as service:
        service.wait_state("no database")
        assert stage.archived_files() != []
        assert stage.count("copied = 1") == 0
        assert service.get("/healthz")[0] == 200
        # when it is back, then each row is updated once, and no file is archived twice.
        placed_and_cut.accept()
        stage.wait_archived(*ids)
        assert_healthy(service)
        assert failure_count(service) == 0
    assert_no_failed_attempts(stage)
    assert_archived(stage, ids, files)
    assert_archive_is_exactly(stage, *files)


def test_files_placed_by_a_service_that_could_not_record_them_are_adopted_by_the_next(
    stage: PrivateSite, placed_and_cut: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_KILL_SECONDS", 1.0)
    files = stage.files(3)
    ids = stage.register(*files)
    # Given a service that placed files, lost its database, and was stopped,
    with stage.service(until=None, mysql_port=placed_and_cut.port, drain_timeout=0.5) as service:
        service.wait_state("no database")
    inodes = {path: path.stat().st_ino for path in stage.archived_files()}
    assert inodes
    assert stage.count("copied = 1") == 0
    # and a source that has deleted the files that arrived,
    for file in files:
        if stage.place(file) in inodes:
            file.path.unlink()
    # when the next service starts, then it adopts the placed files.
    with stage.service() as service:
        stage.wait_archived(*ids)
        service.wait_metric(len(inodes), "copies_total", result="adopted")
    assert_no_failed_attempts(stage)
    assert_archived(stage, ids, files)
    assert_archive_is_exactly(stage, *files)
    assert {path: path.stat().st_ino for path in inodes} == inodes


def test_only_the_marker_and_staging_remain_besides_the_archive(stage: PrivateSite, fake: FakeRsync) -> None:
    # Given a failure of each kind during copies,
    files = stage.files(12)
    ids = stage.register(*files)
    with stage.service(until=None, workers=1) as service:
        for status, message, reason in RECEIVERS.values():
            fake.misbehave(ends_early(1, status, message))
            wait_failures(service, reason)
        fake.behave()
        stage.wait_archived(*ids)
        # then no leftovers remain.
        staging = staging_of(stage.data_dir)
        eventually(lambda: not any(names for _, _, names in os.walk(staging)), "staging is empty")
    assert {path.name for path in stage.data_dir.iterdir()} == {"15895"}
    assert_archive_is_exactly(stage, *files)
