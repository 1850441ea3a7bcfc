"""The archive's side: a disk that is full, read-only, away or lying, and a database that is gone when a file is in its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from copying import (
    assert_all_is_well,
    assert_destination_is_to_blame,
    assert_nobody_charged,
    assert_only,
    assert_whole,
    failures,
    shorten_pauses,
    wait_failures,
)
from fakes import FakeRsync, ends_early, spoils
from private_site import PrivateSite, new_private_site
from proxy import Proxy
from services import COMMAND
from small_disk import SmallDisk
from waiting import eventually

from cdc_archiver.sandbox import MariaDb, SshServer
from cdc_archiver.service import pipeline
from cdc_archiver.transfer.staging import INCOMING, MARKER, Archive


@pytest.fixture
def stage(
    mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PrivateSite]:
    """Where what failed is tried again in a moment."""
    shorten_pauses(monkeypatch)
    with new_private_site(mariadb, ssh_server, tmp_path) as made:
        yield made


@pytest.fixture
def fake(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> FakeRsync:
    """The rsync of this machine."""
    made = FakeRsync(stage.directory / "fake")
    monkeypatch.setenv("PATH", made.before(os.environ["PATH"]))
    return made


# The disk, as the kernel says it.


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_disk_that_fills_up_in_the_midst_of_a_batch_charges_nobody(stage: PrivateSite, what: str) -> None:
    """Of bytes there were enough when the batch began; of inodes no look at the free space warns at all."""
    if what == "bytes":
        disk, size = SmallDisk(stage.data_dir, "32m", used="28M"), 100_000
    else:
        disk, size = SmallDisk(stage.data_dir, files=1000, used_files=940), 100
    files = stage.files(80, size=size)
    ids = stage.register(*files)
    # Given a disk that has no room for all of a backlog,
    with stage.program(interpreter=disk.interpreter(COMMAND), until="no destination") as program:
        disk.belongs_to(program.pid)
        # when it is full, then the disk is to blame, and nobody else;
        assert_destination_is_to_blame(program, "no_space")
        assert failures(program, "no_space") == 0
        assert_nobody_charged(stage)
        # what fitted is archived (on a tmpfs a link takes an inode, too: without inodes nothing may fit),
        assert stage.count("copied = 1") < len(ids)
        if what == "bytes":
            eventually(lambda: stage.count("copied = 1"), "what fitted is archived")
        # and the rest when there is room again.
        disk.make_room()
        stage.wait_archived(*ids)
        assert_all_is_well(program)
        assert_whole(stage, ids, files, root=disk.root)
    assert_nobody_charged(stage)


@pytest.mark.parametrize("trouble", ["read-only", "unmounted"])
def test_a_disk_that_can_not_be_written_to_charges_nobody(stage: PrivateSite, trouble: str) -> None:
    # Given an archive with a file in it,
    disk = SmallDisk(stage.data_dir)
    before, files = stage.file("before.npy"), stage.files(5)
    with stage.program(interpreter=disk.interpreter(COMMAND)) as program:
        disk.belongs_to(program.pid)
        ids = stage.register(before)
        stage.wait_archived(*ids)
        # when its disk is read-only, or gone,
        {"read-only": disk.make_read_only, "unmounted": disk.unmount}[trouble]()
        ids += stage.register(*files)
        # then the service says so, nobody is charged, and nothing is written to the directory that is left;
        reason = {"read-only": "destination_unwritable", "unmounted": "destination_missing"}[trouble]
        assert_destination_is_to_blame(program, reason)
        assert failures(program, reason) == 0
        assert_nobody_charged(stage)
        assert list(stage.data_dir.iterdir()) == []
        # and all is archived when it is as it was.
        {"read-only": disk.make_writable, "unmounted": disk.mount}[trouble]()
        stage.wait_archived(*ids)
        assert_all_is_well(program)
        assert_whole(stage, ids, [before, *files], root=disk.root)
    assert_nobody_charged(stage)


# The disk, as rsync says it: wherever nothing can be mounted, too.

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


@pytest.mark.parametrize("trouble", RECEIVERS)
def test_what_the_receiving_rsync_can_not_write_is_the_destinations_fault(
    stage: PrivateSite, fake: FakeRsync, trouble: str
) -> None:
    # Given an rsync that brings two files and cannot write the third,
    status, words, reason = RECEIVERS[trouble]
    fake.misbehave(ends_early(2, status, words))
    files = stage.files(40)
    ids = stage.register(*files)
    with stage.service(workers=1, until=None) as service:
        wait_failures(service, reason)
        # then what arrived counts, the disk is to blame, and no file and no source;
        assert_destination_is_to_blame(service, reason)
        eventually(lambda: stage.count("copied = 1") >= 2, "what arrived is archived")
        assert failures(service, reason) == 0
        assert_nobody_charged(stage)
        # and the others follow.
        fake.behave()
        stage.wait_archived(*ids)
        assert_all_is_well(service)
    assert_nobody_charged(stage)
    assert_whole(stage, ids, files)


@pytest.mark.parametrize("verify", ["staged", "transfer"])
def test_a_file_that_goes_bad_on_this_machine_is_not_archived(stage: PrivateSite, fake: FakeRsync, verify: str) -> None:
    # Given a disk, or a memory, that changes a file after it has arrived,
    fake.misbehave(spoils("bad.npy"))
    bad, good = stage.file("bad.npy"), stage.files(5)
    ids = stage.register(bad, *good)
    with stage.service(until=None, verify=verify) as service:
        stage.wait_archived(*ids[1:])
        if verify == "transfer":
            # then who has asked for the one proof alone has the file as it is;
            stage.wait_archived(ids[0])
            assert stage.place(bad).read_bytes() != bad.content
            return
        # then it is noticed, it is no file's fault and no source's, and the others are archived;
        wait_failures(service, "corrupted", 3)
        assert_destination_is_to_blame(service, "corrupted")
        assert "memory and disks" in service.get("/readyz")[1] or "memory" in str(service.status()["destination"])
        assert failures(service, "corrupted") == 0
        assert_nobody_charged(stage)
        assert_only(stage, *good)
        # and it comes when the machine is sound again.
        fake.behave()
        stage.wait_archived(*ids)
        assert_all_is_well(service)
    assert_nobody_charged(stage)
    assert_whole(stage, ids, [bad, *good])


# The database, after placement.


@pytest.fixture
def placed_and_cut(monkeypatch: pytest.MonkeyPatch, stage: PrivateSite) -> Iterator[Proxy]:
    """A way to the database that ends at the moment that a file has got its place, and its row knows nothing of it."""
    place = Archive.place
    with Proxy(stage.server.port) as wire:

        def place_and_cut(archive: Archive, files: Any) -> Any:
            placed = place(archive, files)
            archived = [file for file in files if stage.data_dir / "15895" in Path(file.final).parents]
            if archived and not wire.refusing:  # and not the trial that the start makes of the disk
                wire.refuse()
                monkeypatch.setattr(Archive, "place", place)
            return placed

        monkeypatch.setattr(Archive, "place", place_and_cut)
        yield wire


def test_what_was_placed_while_the_database_was_away_is_said_when_it_is_back(
    stage: PrivateSite, placed_and_cut: Proxy
) -> None:
    files = stage.files(3)
    ids = stage.register(*files)
    # Given files in their places, and a database that is gone before the rows could say so,
    with stage.service(until=None, mysql_port=placed_and_cut.port) as service:
        service.wait_state("no database")
        assert stage.archived_files() != []
        assert stage.count("copied = 1") == 0
        assert service.get("/healthz")[0] == 200
        # when it is back, then each row says so, once, and no file is there twice.
        placed_and_cut.accept()
        stage.wait_archived(*ids)
        assert_all_is_well(service)
        assert failures(service) == 0
    assert_nobody_charged(stage)
    assert_whole(stage, ids, files)
    assert_only(stage, *files)


def test_what_was_placed_by_a_service_that_never_could_say_so_is_adopted_by_the_next(
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
    # and whose source has deleted what arrived,
    for file in files:
        if stage.place(file) in inodes:
            file.path.unlink()
    # when the next one starts, then it takes what is there.
    with stage.service() as service:
        stage.wait_archived(*ids)
        service.wait_metric(len(inodes), "copies_total", result="adopted")
    assert_nobody_charged(stage)
    assert_whole(stage, ids, files)
    assert_only(stage, *files)
    assert {path: path.stat().st_ino for path in inodes} == inodes


def test_the_marker_and_staging_are_all_that_is_left_beside_the_archive(stage: PrivateSite, fake: FakeRsync) -> None:
    # Given trouble of each kind on the way,
    files = stage.files(12)
    ids = stage.register(*files)
    with stage.service(until=None, workers=1) as service:
        for status, words, reason in RECEIVERS.values():
            fake.misbehave(ends_early(1, status, words))
            wait_failures(service, reason)
        fake.behave()
        stage.wait_archived(*ids)
        # then nothing of it is left.
        staging = stage.data_dir / INCOMING
        eventually(lambda: not any(path.is_file() for path in staging.rglob("*")), "staging is empty")
    own = {INCOMING, MARKER}
    assert {path.name for path in stage.data_dir.iterdir()} - own == {"15895"}
    assert_only(stage, *files)
