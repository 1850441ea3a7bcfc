"""Timecodes on other disks than data_dir: a mount, or the owner's link. Their files are archived there, or wait for the disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from copy_assertions import assert_healthy, assert_no_failed_attempts, shorten_pauses
from private_site import PrivateSite, SourceFile, new_private_site
from services import COMMAND
from small_disk import SmallDisk
from waiting import eventually

from cdc_archiver.sandbox import MariaDb, SshServer

TIMECODE = "15896"
IN_TIMECODE = {"timestamp": "2020-05-16 12:00:00"}


@pytest.fixture
def stage(
    mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PrivateSite]:
    shorten_pauses(monkeypatch)
    with new_private_site(mariadb, ssh_server, tmp_path) as made:
        yield made


def place(stage: PrivateSite, file: SourceFile) -> Path:
    """Where a file of the timecode belongs."""
    return stage.data_dir / TIMECODE / stage.place(file).relative_to(stage.data_dir / "15895")


def check(stage: PrivateSite) -> str:
    """What `check` says."""
    done = stage.command("check", *stage.flags(host=""))
    return done.stdout + done.stderr


def test_a_mounted_timecode_is_archived_to_and_its_files_wait_while_it_is_not_mounted(stage: PrivateSite) -> None:
    # Given a timecode on a disk of its own,
    mount_point = stage.data_dir / TIMECODE
    mount_point.mkdir()
    disk = SmallDisk(mount_point)
    first, waiting, other = stage.file("first.npy"), stage.file("waiting.npy"), stage.file("other.npy")
    # then its files are archived there.
    with stage.program(interpreter=disk.interpreter(COMMAND), host="") as program:
        disk.belongs_to(program.pid)
        (id_,) = stage.register(first, **IN_TIMECODE)
        (row,) = stage.wait_archived(id_)
        assert row.path == str(place(stage, first))
        assert (disk.root / row.path[1:]).read_bytes() == first.content
        assert_healthy(program)
    assert list(mount_point.iterdir()) == [], "it is not on data_dir's own disk"
    # When the service is started without that disk,
    with stage.program(host="") as program:
        (late,) = stage.register(waiting, **IN_TIMECODE)
        # then its files wait, nothing counts, nothing lies on the mount point, and other files are archived.
        eventually(lambda: program.metric("copy_failures_total", reason="place_unusable"), "it is said")
        stage.wait_archived(*stage.register(other))
        assert_healthy(program)
        assert (stage.row(late).copied, stage.row(late).attempts) == (0, 0)
        assert f"{mount_point} was on a disk of its own, which is not mounted there now" in program.said
    assert list(mount_point.iterdir()) == []
    assert "files for it wait, others are archived" in check(stage)
    # And they are archived when it is back.
    with stage.program(interpreter=disk.interpreter(COMMAND), host="") as program:
        disk.belongs_to(program.pid)
        (row,) = stage.wait_archived(late)
        assert (disk.root / row.path[1:]).read_bytes() == waiting.content
    assert_no_failed_attempts(stage)


def test_a_timecode_that_is_the_owners_link_to_another_disk(stage: PrivateSite) -> None:
    # Given a timecode that its owner has moved to another disk, with a link in its place,
    files, other = stage.files(40), stage.file("other.npy")
    link = stage.data_dir / TIMECODE
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        link.symlink_to(elsewhere)
        with stage.service(host="") as service:
            # when files come for it, more than are synced one by one,
            rows = stage.wait_archived(*stage.register(*files, **IN_TIMECODE))
            # then they are there, and the rows name the paths below data_dir.
            assert [row.path for row in rows] == [str(place(stage, file)) for file in files]
            assert [Path(row.path).read_bytes() for row in rows] == [file.content for file in files]
            assert len([path for path in Path(elsewhere).rglob("*") if path.is_file()]) == len(files)
            said = check(stage)
            assert f"the first is {link}: files are written twice there" in said
            # When that disk is away, then a file waits, and others are archived,
            link.unlink()
            link.symlink_to(f"{elsewhere}-away")
            waiting = stage.file("waiting.npy")
            (late,) = stage.register(waiting, **IN_TIMECODE)
            eventually(lambda: service.metric("copy_failures_total", reason="place_unusable"), "it is said")
            stage.wait_archived(*stage.register(other))
            assert_healthy(service)
            # until it is back.
            link.unlink()
            link.symlink_to(elsewhere)
            stage.wait_archived(late)
            assert place(stage, waiting).read_bytes() == waiting.content
    assert_no_failed_attempts(stage)
