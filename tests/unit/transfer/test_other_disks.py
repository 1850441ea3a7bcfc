"""Directories of the archive on another disk: copied to, remembered, and missed when that disk is not mounted."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_archiver.errors import DestinationUnavailable
from cdc_archiver.model import Reason
from cdc_archiver.settings.types import FileModes
from cdc_archiver.transfer import disk_sync, staging
from cdc_archiver.transfer.durable_copy import DurableCopy
from cdc_archiver.transfer.placement import Placed, Placement, Placer, Staged
from cdc_archiver.transfer.staging import Archive

MODES = FileModes(directories=0o755, files=0o644)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = Archive(tmp_path / "archive", 0)
    made.data_dir.mkdir()
    made.prepare()
    return made


@pytest.fixture
def other(archive: Archive) -> Iterator[Path]:
    """The timecode 15896 is the owner's link to another disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        (archive.data_dir / "15896").symlink_to(directory)
        yield Path(directory)


def stage(archive: Archive, final: str, content: bytes = b"data") -> Staged:
    path = archive.staging_directory("srv", "small-0") / final.replace("/", "-")
    path.write_bytes(content)
    return Staged(str(path), str(archive.data_dir / final), hashlib.md5(content).digest())


def place(archive: Archive, *finals: str, links: bool = True) -> list[Placement]:
    """Places a file at each path, as a batch of a process that has just started."""
    return Placer(archive, MODES, links=links).place([stage(archive, final) for final in finals])


def assert_waits(result: Placement, text: str) -> None:
    """Not counted, and nothing pauses."""
    assert isinstance(result, DestinationUnavailable)
    assert result.reason is Reason.PLACE_UNUSABLE
    assert text in str(result)


@pytest.mark.parametrize("links", [True, False])
def test_files_for_a_timecode_on_another_disk_are_copied_there(archive: Archive, other: Path, links: bool) -> None:
    for name in ("a", "b"):
        results = place(archive, f"15896/crate1/{name}", f"15895/crate1/{name}", links=links)
        finals = [archive.data_dir / timecode / "crate1" / name for timecode in ("15896", "15895")]
        assert results == [Placed(str(final), 4, adopted=False) for final in finals]
        assert [final.read_bytes() for final in finals] == [b"data", b"data"]
    assert sorted(path.name for path in other.rglob("*")) == ["a", "b", "crate1"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("now", ["dangling", "own disk", "gone"])
def test_files_wait_while_that_disk_is_not_mounted_and_others_are_placed(
    archive: Archive, other: Path, links: bool, now: str
) -> None:
    # Given a timecode that was on another disk,
    place(archive, "15896/crate1/a", links=links)
    link = archive.data_dir / "15896"
    link.unlink()
    # when it is a link to nowhere, a directory of data_dir's own disk, or not there at all,
    if now == "dangling":
        link.symlink_to(other / "away")
    if now == "own disk":
        link.mkdir()
    # then its files wait, nothing is written there, and others are placed,
    placer = Placer(archive, MODES, links=links)
    files = [stage(archive, "15896/crate1/b"), stage(archive, "15895/crate1/b")]
    obstacle = placer.places.obstacle(files[0].final)
    waits, placed = placer.place(files)
    assert obstacle is not None
    assert_waits(obstacle, "not mounted")
    assert_waits(waits, "not mounted")
    assert isinstance(placed, Placed)
    assert not any(link.glob("*"))
    assert placer.find(files[0].final, files[0].md5) is None
    # until the person who moved the timecode here says so with the command that the message names.
    if now != "dangling":
        note = str(waits).rpartition("rmdir ")[2]
        Path(note).rmdir()
        assert isinstance(place(archive, "15896/crate1/b", links=links)[0], Placed)


def test_a_disk_that_goes_away_between_look_and_copy_gets_nothing(
    archive: Archive, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a disk that is unmounted just before the copy opens its directory,
    place(archive, "15896/crate1/a")
    link = archive.data_dir / "15896"
    begin = DurableCopy.__init__

    def unmount(copy: DurableCopy, *given: Any, **named: Any) -> None:
        link.unlink()
        (link / "crate1").mkdir(parents=True)
        begin(copy, *given, **named)

    monkeypatch.setattr(DurableCopy, "__init__", unmount)
    assert_waits(place(archive, "15896/crate1/b")[0], "not mounted")
    assert not any((link / "crate1").iterdir())


def test_errors_of_another_disk_stop_no_other_file(
    archive: Archive, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(archive, "15896/crate1/a")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DurableCopy, "fill", full)
        failure, placed = place(archive, "15896/crate1/b", "15895/crate1/b")
    assert_waits(failure, "No space left")
    assert isinstance(placed, Placed)
    # Nor does one that cannot be synced.
    sync = disk_sync.sync_directories

    def failing(directories: list[str]) -> bool:
        if any("15896" in directory for directory in directories):
            raise OSError(errno.EIO, "Input/output error")
        return sync(directories)

    monkeypatch.setattr(disk_sync, "sync_directories", failing)
    failure, placed = place(archive, "15896/crate1/c", "15895/crate1/c")
    assert_waits(failure, "Input/output error")
    assert isinstance(placed, Placed)


def test_least_free_space_holds_for_each_disk(archive: Archive, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(archive, "15896/crate1/a")
    elsewhere = os.stat(other).st_dev
    monkeypatch.setattr(staging, "_free_bytes", lambda path: 5 if os.stat(path).st_dev == elsewhere else 500)
    monkeypatch.setattr(archive, "_min_free", 100)
    archive.require_ready()
    places = Placer(archive, MODES).places
    full = places.obstacle(str(archive.data_dir / "15896/crate1/b"))
    assert full is not None
    assert_waits(full, "less than --min-free")
    assert places.obstacle(str(archive.data_dir / "15895/crate1/b")) is None


def test_the_names_of_a_batch_are_synced_on_each_disk(
    archive: Archive, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a batch of many directories on two disks,
    finals = [f"{timecode}/crate{number}/a" for number in range(20) for timecode in ("15895", "15896")]
    place(archive, *finals)
    for path in archive.data_dir.glob("1*/*/a"):
        path.unlink()
    devices: set[int] = set()
    syncfs = disk_sync._syncfs

    def noted(descriptor: int) -> None:
        if (archive.data_dir / "15895/crate19/a").exists():  # all names are given
            devices.add(os.fstat(descriptor).st_dev)
        syncfs(descriptor)

    monkeypatch.setattr(disk_sync, "_syncfs", noted)
    place(archive, *finals)
    # then both are synced at the end.
    assert devices == {os.stat(archive.data_dir).st_dev, os.stat(other).st_dev}


def test_many_directories_on_two_disks_are_synced_with_one_call_for_each_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        directories = [Path(top) / str(number) for number in range(20) for top in (memory, tmp_path)]
        for directory in directories:
            directory.mkdir()
        devices = []
        monkeypatch.setattr(disk_sync, "_syncfs", lambda descriptor: devices.append(os.fstat(descriptor).st_dev))
        assert disk_sync.sync_directories(directories)
    assert len(devices) == len(set(devices)) == 2


def test_staging_that_became_another_disk_than_data_dir_is_a_missing_destination(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        monkeypatch.setattr(Archive, "incoming", Path(memory))
        with pytest.raises(DestinationUnavailable, match="can no longer be linked") as raised:
            place(archive, "15895/crate1/a")
    assert raised.value.reason is Reason.DESTINATION_MISSING
    assert not any(path.is_file() for path in archive.data_dir.glob("1*/**/*"))


def test_which_directories_are_on_other_disks_outlives_the_clearing_of_staging(archive: Archive, other: Path) -> None:
    place(archive, "15896/crate1/a")
    for path in archive.incoming.rglob("*"):
        os.utime(path, (1, 1))
    archive.clear_abandoned()
    assert Placer(archive, MODES).places.noted() == [str(archive.data_dir / "15896")]
