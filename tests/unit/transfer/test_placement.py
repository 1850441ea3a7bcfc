"""Placement: files are placed whole or not at all, never overwritten, and adopted where they exist."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from archive_places import marker_of

from cdc_archiver.errors import DestinationUnavailable, LayoutRefused
from cdc_archiver.model import Reason
from cdc_archiver.settings.types import FileModes
from cdc_archiver.transfer import disk_sync, placement
from cdc_archiver.transfer.placement import Placed, Placer, Staged
from cdc_archiver.transfer.staging import Archive

MODES = FileModes(directories=0o750, files=0o640)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = Archive(tmp_path, min_free=0)
    archive.prepare()
    return archive


@pytest.fixture
def placer(archive: Archive) -> Placer:
    return Placer(archive, MODES)


def stage(archive: Archive, name: str, content: bytes, final: str = "15895/crate1/1_iv/outputs/iv.npy") -> Staged:
    directory = archive.staging_directory("srv", "small-0")
    (directory / name).write_bytes(content)
    return Staged(str(directory / name), str(archive.data_dir / final), hashlib.md5(content).digest())


def placed(placer: Placer, file: Staged) -> Placed:
    (result,) = placer.place([file])
    assert isinstance(result, Placed)
    return result


def test_a_placed_file_leaves_nothing_in_staging(archive: Archive, placer: Placer) -> None:
    file = stage(archive, "a", b"data")
    assert placed(placer, file) == Placed(file.final, 4, adopted=False)
    assert Path(file.final).read_bytes() == b"data"
    assert not Path(file.staged).exists()


def test_directories_have_their_mode_whatever_the_umask(archive: Archive, placer: Placer) -> None:
    before = os.umask(0o077)
    try:
        place = Path(placed(placer, stage(archive, "a", b"data")).path)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(directory.stat().st_mode) for directory in list(place.parents)[:4]}
    assert modes == {0o750}
    assert stat.S_IMODE(archive.incoming.stat().st_mode) == 0o700


def test_a_group_that_cannot_be_set_does_not_prevent_placement(
    archive: Archive, placer: Placer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a user namespace that does not map the archive's group; an error of the disk still fails."""
    archive.data_dir.chmod(0o2750)
    errors = [errno.EINVAL, errno.EPERM, errno.EIO]

    def refuse(*_: object) -> None:
        raise OSError(errors.pop(0), "refused")

    monkeypatch.setattr(os, "chown", refuse)
    other_group = lambda directory: os.getegid() + 1
    monkeypatch.setattr("cdc_archiver.transfer.placement._prescribed_group", other_group)
    assert Path(placed(placer, stage(archive, "a", b"data", "1/a")).path).exists()
    assert Path(placed(placer, stage(archive, "b", b"data", "1/b")).path).exists()
    assert isinstance(placer.place([stage(archive, "c", b"data", "1/c")])[0], DestinationUnavailable)


def test_a_different_file_of_the_same_name_gets_a_numbered_suffix_and_nothing_is_overwritten(
    archive: Archive, placer: Placer
) -> None:
    paths = [Path(placed(placer, stage(archive, "a", content)).path) for content in (b"first", b"second", b"third")]
    assert [path.name for path in paths] == ["iv.npy", "iv.npy.1", "iv.npy.2"]
    assert [path.read_bytes() for path in paths] == [b"first", b"second", b"third"]


def test_the_same_file_is_adopted_under_any_numbered_suffix(archive: Archive, placer: Placer) -> None:
    for content in (b"first", b"second"):
        placed(placer, stage(archive, "a", content))
    again = placed(placer, stage(archive, "a", b"second"))
    first = again.path.removesuffix(".1")
    assert (Path(first).name, again.adopted) == ("iv.npy", True)
    found = placer.find(first, hashlib.md5(b"second").digest())
    assert found == Placed(again.path, 6, adopted=True)
    assert again.path != first
    assert placer.find(first, bytes(16)) is None


def test_a_link_at_the_final_path_is_neither_followed_nor_adopted(
    archive: Archive, placer: Placer, tmp_path: Path
) -> None:
    file = stage(archive, "a", b"data")
    Path(file.final).parent.mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(b"data")
    Path(file.final).symlink_to(tmp_path / "elsewhere")
    assert placer.find(file.final, file.md5) is None
    assert placed(placer, file).path == f"{file.final}.1"


def test_two_rows_may_share_one_staged_file(archive: Archive, placer: Placer) -> None:
    first = stage(archive, "a", b"data")
    second = Staged(first.staged, f"{archive.data_dir}/15895/crate2/1_iv/outputs/iv.npy", first.md5)
    results = placer.place([first, second])
    assert [isinstance(result, Placed) for result in results] == [True, True]
    assert Path(second.final).read_bytes() == b"data"


def test_a_name_that_is_too_long_with_its_suffix_is_refused_and_the_others_are_placed(
    archive: Archive, placer: Placer
) -> None:
    long = f"15895/crate1/1_iv/outputs/{'x' * 254}"
    placed(placer, stage(archive, "a", b"first", long))
    refused, other = placer.place([stage(archive, "b", b"second", long), stage(archive, "c", b"third")])
    assert isinstance(refused, LayoutRefused)
    assert refused.reason is Reason.BAD_NAME
    assert isinstance(other, Placed)


def test_an_obstacle_on_the_path_of_one_file_concerns_only_that_file(archive: Archive, placer: Placer) -> None:
    in_the_way = archive.data_dir / "15895/crate1/1_iv"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_bytes(b"a file where a directory belongs")
    blocked, free = stage(archive, "a", b"first"), stage(archive, "b", b"second", "15895/crate2/1_iv/outputs/iv.npy")
    assert placer.find(blocked.final, blocked.md5) is None
    failure, other = placer.place([blocked, free])
    assert isinstance(failure, DestinationUnavailable)
    assert failure.reason is Reason.PLACE_UNUSABLE
    assert failure.reason.scope == "nobody"
    assert isinstance(other, Placed)


def test_a_name_too_long_for_a_suffix_ends_the_search_without_an_error(archive: Archive, placer: Placer) -> None:
    long = f"15895/crate1/1_iv/outputs/{'x' * 254}"
    place = placed(placer, stage(archive, "a", b"first", long)).path
    assert placer.find(place, bytes(16)) is None


def test_nothing_is_placed_once_the_disk_is_unmounted(archive: Archive, placer: Placer) -> None:
    file = stage(archive, "a", b"data")
    marker_of(archive.data_dir).unlink()
    with pytest.raises(DestinationUnavailable, match="not mounted"):
        placer.place([file])
    assert not Path(file.final).exists()


class Removal:
    """Removes a directory just before one of the system calls about it.

    Args:
        number: of that call, from 1 on.
        file: whose presence at that moment is noted.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path, number: int, file: str) -> None:
        self.done = False
        self.had_file = False
        self._left = number
        self._calls = {name: getattr(os, name) for name in ("stat", "lstat", "mkdir", "link", "open", "chmod")}
        self._directory = directory
        self._file = file
        self._patch = monkeypatch

    def __enter__(self) -> Self:
        for name in self._calls:
            self._patch.setattr(os, name, self._counted(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, call in self._calls.items():
            self._patch.setattr(os, name, call)

    def _counted(self, name: str) -> Callable[..., Any]:
        call = self._calls[name]

        def counted(*arguments: Any, **options: Any) -> Any:
            if any(str(self._directory) in str(argument) for argument in arguments):
                self._left -= 1
                if self._left == 0:
                    self.__exit__()
                    self.done, self.had_file = True, os.path.exists(self._file)
                    shutil.rmtree(self._directory, ignore_errors=True)
            return call(*arguments, **options)

        return counted


@pytest.mark.parametrize("links", [True, False], ids=["linked", "copied"])
@pytest.mark.parametrize("there", [b"", b"data", b"another"], ids=["empty", "with this file", "with another"])
def test_a_directory_that_another_program_removes_meanwhile_is_made_again(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, there: bytes, links: bool
) -> None:
    placer = Placer(archive, MODES, links=links)
    for number in range(1, 100):
        # Given a file on its way, into a directory with or without one of its name,
        file = stage(archive, "a", b"data")
        timecode = archive.data_dir / "15895"
        if there:
            Path(file.final).parent.mkdir(parents=True)
            Path(file.final).write_bytes(there)
        # when somebody removes the whole timecode before any of the system calls,
        with Removal(monkeypatch, timecode, number, file.final) as removal:
            result = placed(placer, file)
        # then the file is in its place, unless it was removed from there.
        own = Path(result.path)
        assert own.exists() or removal.had_file
        assert not own.exists() or own.read_bytes() == b"data"
        shutil.rmtree(timecode, ignore_errors=True)
        if not removal.done:
            break
    assert number > 8


def test_a_file_that_is_removed_while_it_is_looked_at_is_not_found_or_was_there(
    archive: Archive, placer: Placer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 100):
        file = stage(archive, "a", b"data")
        placed(placer, file)
        with Removal(monkeypatch, archive.data_dir / "15895", number, file.final) as removal:
            found = placer.find(file.final, file.md5)
        assert found in (None, Placed(file.final, 4, adopted=True))
        if not removal.done:
            break
    assert found is not None
    assert number > 5


def test_a_disk_that_is_unmounted_during_placement_is_not_taken_for_a_removed_directory(
    archive: Archive, placer: Placer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a file that is about to be linked,
    file = stage(archive, "a", b"data")
    link = os.link

    def unmount_and_link(*arguments: Any, **options: Any) -> None:
        # when nothing is left of its directory, nor the marker,
        shutil.rmtree(archive.data_dir / "15895")
        marker_of(archive.data_dir).unlink()
        link(*arguments, **options)

    monkeypatch.setattr(os, "link", unmount_and_link)
    # then nothing is made again on the bare mount point.
    with pytest.raises(DestinationUnavailable) as trouble:
        placer.place([file])
    assert trouble.value.reason is Reason.DESTINATION_MISSING
    assert not (archive.data_dir / "15895").exists()


def test_a_file_that_changes_in_staging_is_a_failure_of_the_destination(archive: Archive, placer: Placer) -> None:
    file = stage(archive, "a", b"data")
    Path(file.staged).write_bytes(b"dat\0")
    with pytest.raises(DestinationUnavailable) as raised:
        placer.verify(file, threading.Event())
    assert raised.value.reason is Reason.CORRUPTED


@pytest.mark.parametrize("files", [1, disk_sync.SYNC_EACH, disk_sync.SYNC_EACH + 1])
def test_data_is_synced_before_the_link_and_directories_after_it(
    archive: Archive, placer: Placer, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    done: list[str] = []

    def watched(what: Callable[[int], str], act: Callable[..., None]) -> Callable[..., None]:
        def also(*arguments: Any, **options: Any) -> None:
            done.append(what(arguments[0]))
            act(*arguments, **options)

        return also

    def kind(descriptor: int) -> str:
        return "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "data"

    monkeypatch.setattr(os, "link", watched(lambda _: "link", os.link))
    monkeypatch.setattr(os, "fsync", watched(kind, os.fsync))
    monkeypatch.setattr(disk_sync, "_syncfs", watched(lambda _: "all", disk_sync._syncfs))
    placer.place(
        [stage(archive, f"f{number}", b"x%d" % number, f"1/p/1_a/outputs/{number}") for number in range(files)]
    )
    first, last = done.index("link"), len(done) - 1 - done[::-1].index("link")
    assert set(done[:first]) == ({"all"} if files > disk_sync.SYNC_EACH else {"data"})
    assert set(done[first : last + 1]) == {"link"}
    assert set(done[last + 1 :]) <= {"directory", "all"}
    assert len(done) > last + 1


def test_a_data_dir_that_disappears_during_placement_is_a_missing_destination(tmp_path: Path) -> None:
    """Unmounted while in use: no directories are created on the mount point."""
    directory = tmp_path / "mount" / "archive"
    directory.mkdir(parents=True)
    archive = Archive(directory, min_free=0)
    archive.prepare()
    placer = Placer(archive, MODES)
    directory.rename(tmp_path / "elsewhere")
    with pytest.raises(DestinationUnavailable, match="data_dir itself is gone"):
        placer.places.make(directory / "15895" / "crate1", set())
    assert not directory.exists()
    (tmp_path / "away").mkdir()
    assert not placer.places.is_trusted(tmp_path / "away"), "a directory outside data_dir is not trusted"


@pytest.mark.parametrize("size", [*range(-1, 18), 1000])
@pytest.mark.parametrize("there", range(18))
def test_a_file_is_hashed_to_its_end_whatever_its_expected_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, there: int
) -> None:
    monkeypatch.setattr(placement, "_READ_BYTES", 8)
    content = bytes(range(there))
    (tmp_path / "file").write_bytes(content)
    assert placement._md5_of(str(tmp_path / "file"), size) == hashlib.md5(content).digest()


def test_hashing_stops_when_cancelled(archive: Archive, placer: Placer) -> None:
    file, cancel = stage(archive, "a", b"data"), threading.Event()
    assert placer.verify(file, cancel)
    cancel.set()
    assert not placer.verify(file, cancel)
