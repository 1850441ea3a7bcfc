"""The archive marker: where it lies, and which archive it shows."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from archive_places import marker_of

from cdc_archiver.database.archives import ArchiveEntry, KnownArchive
from cdc_archiver.errors import DestinationUnavailable
from cdc_archiver.model import Reason
from cdc_archiver.transfer.archive_marker import ATTRIBUTE
from cdc_archiver.transfer.staging import Archive


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "archive"
    directory.mkdir()
    return directory


def known(id_: str, data_dir: Path) -> KnownArchive:
    return KnownArchive({"m": ArchiveEntry(id_, str(data_dir), 1, None)})


def block_sibling(data_dir: Path) -> None:
    (data_dir.parent / ".archive.cdc_archiver").write_text("in the way")


def test_the_marker_of_a_new_archive_lies_next_to_it_and_stays_the_same(data_dir: Path) -> None:
    archive = Archive(data_dir, 0)
    archive.prepare()
    assert archive.marker is not None
    assert len(archive.marker.id) == 32
    assert json.loads(marker_of(data_dir).read_text())["id"] == archive.marker.id
    again = Archive(data_dir, 0)
    again.prepare(known(archive.marker.id, data_dir))
    assert again.marker == archive.marker
    assert list(data_dir.iterdir()) == []


def test_without_a_place_next_to_it_the_marker_is_an_attribute_of_the_directory(data_dir: Path, tmp_path: Path) -> None:
    block_sibling(data_dir)
    archive = Archive(data_dir, 0, state_dir=tmp_path / "state")
    archive.prepare()
    assert archive.marker is not None
    assert json.loads(os.getxattr(data_dir, ATTRIBUTE))["id"] == archive.marker.id
    # Found by whoever has another state directory, too.
    again = Archive(data_dir, 0, state_dir=tmp_path / "other")
    assert again.recognise() == archive.marker
    os.removexattr(data_dir, ATTRIBUTE)
    with pytest.raises(DestinationUnavailable, match="was there before"):
        archive.require_ready()


def test_without_attributes_it_lies_in_the_state_directory_for_that_directory_only(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_sibling(data_dir)

    def no_attributes(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", no_attributes)
    monkeypatch.setattr(os, "getxattr", no_attributes)
    archive = Archive(data_dir, 0, state_dir=tmp_path / "state")
    archive.prepare()
    assert archive.marker is not None
    assert archive.marker.path is not None
    assert archive.marker.path.is_relative_to(tmp_path / "state")
    assert Archive(data_dir, 0, state_dir=tmp_path / "state").recognise() == archive.marker
    # Another directory in its place is another archive, or the bare mount point.
    data_dir.rename(tmp_path / "unmounted")
    data_dir.mkdir()
    with pytest.raises(DestinationUnavailable) as raised:
        archive.require_ready()
    assert raised.value.reason is Reason.DESTINATION_MISSING
    assert Archive(data_dir, 0, state_dir=tmp_path / "state").recognise() is None


def test_another_archive_none_and_one_that_cannot_be_read_are_told_apart(data_dir: Path) -> None:
    archive = Archive(data_dir, 0)
    with pytest.raises(DestinationUnavailable, match="no marker is there: the disk is not mounted"):
        archive.prepare(known("a", data_dir))
    assert not marker_of(data_dir).exists()
    archive.prepare(KnownArchive())
    with pytest.raises(DestinationUnavailable, match="is another archive"):
        archive.prepare(known("a", data_dir))
    marker_of(data_dir).write_text("")
    with pytest.raises(DestinationUnavailable, match="cannot be read"):
        archive.prepare(KnownArchive())
    archive.prepare(KnownArchive(), renew=True)
    assert archive.marker is not None
    assert archive.marker.id


def test_a_directory_that_cannot_be_looked_at_is_not_gone(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(data_dir, 0)
    archive.prepare()
    stat = os.stat

    def disconnected(path: object, **options: object) -> os.stat_result:
        if path == data_dir:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return stat(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", disconnected)
    with pytest.raises(DestinationUnavailable, match=r"cannot be looked at: .* \(ENOTCONN\); fix: umount -l"):
        archive.require_ready()
