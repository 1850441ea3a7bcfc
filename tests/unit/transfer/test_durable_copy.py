"""Durable copies: a file appears at its final path whole or not at all, and replaces none, on whatever file system."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdc_archiver.errors import DestinationUnavailable
from cdc_archiver.model import Reason
from cdc_archiver.settings.types import FileModes
from cdc_archiver.transfer import disk_sync, durable_copy
from cdc_archiver.transfer.durable_copy import can_link
from cdc_archiver.transfer.placement import Placed, Placer, Staged
from cdc_archiver.transfer.staging import Archive

MODES = FileModes(directories=0o755, files=0o644)
FINAL = "15895/crate1/1_iv/outputs/iv.npy"
WAYS = ("unnamed", "hidden", "renamed")


@pytest.fixture(params=["disk", "memory"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    """On the file system of the temporary directory, and on a tmpfs."""
    with tempfile.TemporaryDirectory(dir=tmp_path if request.param == "disk" else "/dev/shm") as directory:
        made = Archive(Path(directory), 0)
        made.prepare()
        yield made


@pytest.fixture
def placer(archive: Archive) -> Placer:
    return Placer(archive, MODES, owner="srv", links=False)


def stage(archive: Archive, content: bytes, final: str = FINAL, id_: int = 7) -> Staged:
    path = archive.staging_directory("srv", "small-0") / f"staged-{id_}"
    path.write_bytes(content)
    path.chmod(0o640)
    os.utime(path, ns=(5, 1_589_517_264_123_456_789))
    return Staged(str(path), str(archive.data_dir / final), hashlib.md5(content).digest(), id=id_)


def names(archive: Archive) -> list[str]:
    """Every file and hidden directory that a reader of the archive could meet."""
    found = archive.data_dir.glob("[0-9]*/**/*")
    return sorted(str(each.relative_to(archive.data_dir)) for each in found if each.is_file() or each.name[0] == ".")


def refuse(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Takes away what a file system without unnamed files, or without links, does not have."""
    real = os.open

    def without_unnamed(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no unnamed files")
        return real(path, flags, *rest, **named)

    def without_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links")

    if way == "hidden":
        monkeypatch.setattr(os, "open", without_unnamed)
    if way == "renamed":
        monkeypatch.setattr(os, "link", without_links)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_has_content_mode_and_time_of_the_staged_file_and_replaces_nothing(
    archive: Archive, placer: Placer, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    # Given writes that take three bytes at most,
    refuse(monkeypatch, way)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:3])))
    # when two files of one name come, the first of them twice,
    results = [placer.place([stage(archive, content)])[0] for content in (b"first file", b"other file", b"first file")]
    # then each is there once, whole,
    final = str(archive.data_dir / FINAL)
    assert results == [Placed(final, 10, False), Placed(f"{final}.1", 10, False), Placed(final, 10, True)]
    assert [Path(path).read_bytes() for path in (final, f"{final}.1")] == [b"first file", b"other file"]
    # with mode and time of the staged file, and nothing else is left.
    found = os.stat(final)
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o640, 1_589_517_264_123_456_789)
    assert names(archive) == [FINAL, f"{FINAL}.1"]
    assert not any(path.is_file() for path in archive.incoming.rglob("*"))


@pytest.mark.parametrize("way", WAYS)
def test_a_marker_waits_for_its_name_in_a_streams_directory(
    archive: Archive, placer: Placer, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    refuse(monkeypatch, way)
    marker = "15896/suprsync/sync-1/1_smurf_15895_finalized.yaml"
    seen: set[str] = set()
    sync = disk_sync.sync_descriptors

    def look_and_sync(descriptors: Sequence[int]) -> None:
        seen.update(names(archive))
        sync(descriptors)

    monkeypatch.setattr(disk_sync, "sync_descriptors", look_and_sync)
    staged = replace(stage(archive, b"timecode: 15895\n", marker), stream="crate1")
    assert placer.place([staged]) == [Placed(str(archive.data_dir / marker), 16, False)]
    assert not [name for name in seen if name.startswith("15896/suprsync/")]
    assert names(archive) == [marker]


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_at_any_moment_leaves_all_of_the_file_or_nothing_and_the_next_start_ends_it(
    tmp_path: Path, way: str
) -> None:
    script = Path(__file__).with_name("crashing_copies.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path, way], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 15


@pytest.mark.parametrize("way", WAYS)
def test_a_directory_removed_during_the_copy_is_made_again(
    archive: Archive, placer: Placer, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    # Given a timecode that another program removes when the copy is complete,
    refuse(monkeypatch, way)
    sync, timecode = disk_sync.sync_descriptors, archive.data_dir / "15895"
    removed: list[Path] = []

    def remove_once(descriptors: Sequence[int]) -> None:
        sync(descriptors)
        if not removed:
            shutil.rmtree(timecode)
            removed.append(timecode)

    monkeypatch.setattr(disk_sync, "sync_descriptors", remove_once)
    # then the file is in the directory that was made again.
    assert placer.place([stage(archive, b"data")]) == [Placed(str(archive.data_dir / FINAL), 4, False)]
    assert removed
    assert (archive.data_dir / FINAL).read_bytes() == b"data"
    assert names(archive) == [FINAL]


def test_a_copy_has_the_group_of_a_setgid_directory(
    archive: Archive, placer: Placer, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = next((each for each in os.getgroups() if each != os.getegid()), 4711 if os.geteuid() == 0 else os.getegid())
    directory = (archive.data_dir / FINAL).parent
    directory.mkdir(parents=True)
    os.chown(directory, -1, group)
    directory.chmod(0o2755)
    placer.place([stage(archive, b"unnamed")])
    refuse(monkeypatch, "hidden")
    placer.place([stage(archive, b"hidden", f"{FINAL}-2")])
    assert [path.stat().st_gid for path in directory.iterdir()] == [group, group]


def test_a_staged_file_that_this_machine_changed_gets_no_name_and_others_do(archive: Archive, placer: Placer) -> None:
    bad, good = stage(archive, b"data", id_=1), stage(archive, b"good", f"{FINAL}-2", id_=2)
    Path(bad.staged).write_bytes(b"dat\0")
    failure, other = placer.place([bad, good])
    assert isinstance(failure, DestinationUnavailable)
    assert failure.reason is Reason.CORRUPTED
    assert isinstance(other, Placed)
    assert names(archive) == [f"{FINAL}-2"]


def test_a_copy_that_is_given_up_leaves_nothing(archive: Archive, placer: Placer) -> None:
    cancel = threading.Event()
    cancel.set()
    (failure,) = placer.place([stage(archive, b"data")], cancel)
    assert isinstance(failure, DestinationUnavailable)
    assert failure.reason is Reason.STOPPING
    assert names(archive) == []


def test_a_file_system_that_can_neither_link_nor_rename_without_replacing_holds_no_archive(
    archive: Archive, placer: Placer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As FUSE: rename(2) alone would replace another file."""
    refuse(monkeypatch, "renamed")
    monkeypatch.setattr(durable_copy, "_rename_without_replacing", _refused)
    with pytest.raises(DestinationUnavailable, match="hard links") as raised:
        placer.place([stage(archive, b"data")])
    assert raised.value.reason is Reason.DESTINATION_UNWRITABLE
    assert names(archive) == []


def _refused(*_: object) -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize("files", [1, disk_sync.SYNC_EACH, disk_sync.SYNC_EACH + 1, 100])
def test_the_data_of_each_copy_is_synced_before_its_name_and_its_directory_after_it(
    archive: Archive, placer: Placer, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    done: list[str] = []
    link, fsync, syncfs = os.link, os.fsync, disk_sync._syncfs

    def synced(descriptor: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "data")
        fsync(descriptor)

    def all_synced(descriptor: int) -> None:
        done.append("all")
        syncfs(descriptor)

    def linked(*given: Any, **named: Any) -> None:
        done.append("link")
        link(*given, **named)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(disk_sync, "_syncfs", all_synced)
    monkeypatch.setattr(os, "link", linked)
    placer.place([stage(archive, b"%d" % n, f"15895/crate1/1_iv/outputs/{n}", n) for n in range(files)])
    covered = names_given = 0
    for step in done:
        if step == "data":
            covered += 1
        elif step == "all":
            covered = min(files, names_given + 32)
        elif step == "link":
            names_given += 1
            assert names_given <= covered
    assert names_given == files
    assert done[-1] in ("directory", "all")


def test_whether_links_lead_from_one_directory_into_another_is_told_by_a_trial(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        assert can_link(tmp_path / "a", tmp_path / "b") is True
        assert can_link(tmp_path / "a", Path(memory)) is False
        assert [*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir(), *Path(memory).iterdir()] == []


def test_it_cannot_be_told_without_unnamed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "hidden")
    assert can_link(tmp_path, tmp_path) is None
