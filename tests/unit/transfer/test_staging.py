"""data_dir and its staging: is the disk mounted, has it room, and what is left in staging is cleared."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from archive_places import marker_of

from cdc_archiver.database.archives import KnownArchive
from cdc_archiver.errors import DestinationUnavailable, Misconfigured
from cdc_archiver.model import Reason
from cdc_archiver.transfer.rsync import PARTIAL
from cdc_archiver.transfer.staging import Archive


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = Archive(tmp_path, min_free=0)
    archive.prepare()
    return archive


def test_leftovers_of_a_removed_source_are_deleted_after_a_day(archive: Archive) -> None:
    young, old = (archive.incoming / name / "small-0" / "a.npy" for name in ("other-1", "gone-2"))
    for path in (young, old):
        path.parent.mkdir(parents=True)
        path.touch()
    os.utime(old, (1, 1))
    archive.clear_abandoned()
    assert young.exists(), "another archiver on the same disk may be using it"
    assert not old.parent.parent.exists()


def test_nothing_is_written_to_a_bare_mount_point(archive: Archive) -> None:
    marker_of(archive.data_dir).unlink()
    with pytest.raises(DestinationUnavailable) as raised:
        archive.require_ready()
    assert raised.value.reason is Reason.DESTINATION_MISSING


def test_an_empty_directory_is_an_unmounted_disk_where_the_history_has_files(tmp_path: Path) -> None:
    archive = Archive(tmp_path, 0)
    with pytest.raises(DestinationUnavailable, match="not mounted"):
        archive.prepare(KnownArchive(has_files=True))
    with pytest.raises(DestinationUnavailable, match="not mounted"):
        archive.require_ready()
    assert list(tmp_path.iterdir()) == []
    assert not marker_of(tmp_path).exists()
    # When it is mounted after all, the same archive goes on.
    Archive(tmp_path, 0).prepare()
    archive.require_ready()


def test_a_disk_that_is_too_full_accepts_nothing(tmp_path: Path) -> None:
    archive = Archive(tmp_path, min_free=2**62)
    archive.prepare()
    with pytest.raises(DestinationUnavailable) as raised:
        archive.require_ready()
    assert raised.value.reason is Reason.NO_SPACE


def test_a_data_dir_that_is_a_file_is_misconfigured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", Path("relative")):
        with pytest.raises(Misconfigured):
            Archive(path, 0).require_directory()


def test_staging_is_cleared_except_for_young_parts_of_large_files(archive: Archive) -> None:
    directory = archive.staging_directory("srv", "bulk-0")
    for name, age in (("young", 0), ("old", 2 * 86400)):
        part = directory / name / PARTIAL / "big.npy"
        part.parent.mkdir(parents=True)
        part.touch()
        os.utime(part, (part.stat().st_mtime - age,) * 2)
    (directory / "d/e").mkdir(parents=True)
    (directory / "d/e/whole.npy").touch()
    archive.clear_staging("srv")
    assert [path for path in archive.incoming.rglob("*") if path.is_file()] == [
        directory / "young" / PARTIAL / "big.npy"
    ]
    assert not (directory / "d").exists()
