"""Where files are staged, and who may use a directory there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from archive_places import staging_of

from cdc_archiver.errors import DestinationUnavailable
from cdc_archiver.model import Reason
from cdc_archiver.transfer.staging import Archive
from cdc_archiver.transfer.staging_claims import StagingClaims
from cdc_archiver.transfer.staging_place import choose_place, place_below, state_directory


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "archive"
    directory.mkdir()
    return directory


def test_files_are_staged_next_to_the_archive_where_links_lead_into_it(data_dir: Path, tmp_path: Path) -> None:
    place = choose_place(data_dir, None, tmp_path / "state")
    assert (place.staging, place.links) == (staging_of(data_dir), True)
    assert place.cost == "files are linked into place"
    assert not (tmp_path / "state").exists()
    assert list(data_dir.iterdir()) == []


def test_a_link_to_the_archive_is_followed(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links/pysmurf"
    link.symlink_to(data_dir)
    assert choose_place(link, None, tmp_path / "state").staging == staging_of(data_dir)


def test_the_operators_directory_wins_and_may_be_shared_by_archives_of_one_name(data_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other/archive"
    other.mkdir(parents=True)
    chosen = [choose_place(directory, tmp_path / "chosen", tmp_path / "state") for directory in (data_dir, other)]
    assert len({place.staging for place in chosen}) == 2
    assert all(place.staging.is_relative_to(tmp_path / "chosen") and place.links for place in chosen)
    assert not staging_of(data_dir).exists()


def test_a_mount_point_has_its_staging_in_the_state_directory(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == data_dir)
    place = choose_place(data_dir, None, tmp_path / "state")
    assert place.root == place_below(tmp_path / "state", data_dir)
    assert place.why == f"{data_dir} is itself a mount point"
    assert not staging_of(data_dir).parent.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to make a directory of another user")
def test_a_place_of_another_user_is_not_used(data_dir: Path, tmp_path: Path) -> None:
    staging_of(data_dir).mkdir(parents=True)
    os.chown(staging_of(data_dir), 65534, 65534)
    place = choose_place(data_dir, None, tmp_path / "state")
    assert place.staging.is_relative_to(tmp_path / "state")
    assert "it belongs to the user 65534" in place.why


def test_no_place_at_all_is_an_error_with_a_fix(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / ".archive.cdc_archiver").write_text("in the way")
    (tmp_path / "state").write_text("in the way, too")
    with pytest.raises(DestinationUnavailable) as raised:
        choose_place(data_dir, None, tmp_path / "state")
    assert raised.value.reason is Reason.DESTINATION_UNWRITABLE
    assert "--staging-dir DIR" in raised.value.hint


def test_the_state_directory_is_the_one_that_is_set_or_systemds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/unit:/elsewhere")
    assert state_directory(tmp_path / "set") == tmp_path / "set"
    assert state_directory(None) == tmp_path / "unit"


def test_no_two_processes_use_or_clear_one_directory(tmp_path: Path) -> None:
    one, two = StagingClaims(), StagingClaims()
    first, second = one.claim(tmp_path, "srv"), two.claim(tmp_path, "srv")
    assert (first.name, second.name) == ("srv", "srv~1")
    (first / "part").write_bytes(b"part")
    os.utime(first / "part", (1, 1))
    two.prune_unclaimed(first, before=2.0)
    assert (first / "part").exists()
    # When the first has let it go, it is anybody's.
    one.release("srv")
    two.prune_unclaimed(first, before=2.0)
    assert not first.exists()
    assert StagingClaims().claim(tmp_path, "srv") == first


def test_a_claim_ends_with_its_process_and_moves_with_the_place(tmp_path: Path) -> None:
    claims = StagingClaims()
    claims.move_to(tmp_path / "a")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert claims.claim(tmp_path / "a", "srv") == tmp_path / "a/srv"
    claims.move_to(tmp_path / "b")
    assert claims.claim(tmp_path / "b", "srv") == tmp_path / "b/srv"
    assert StagingClaims().claim(tmp_path / "a", "srv") == tmp_path / "a/srv"


def test_staging_is_for_this_user_alone_and_the_marker_for_everybody(data_dir: Path) -> None:
    Archive(data_dir, 0).prepare()
    assert staging_of(data_dir).stat().st_mode & 0o777 == 0o700
    assert staging_of(data_dir).parent.stat().st_mode & 0o005 == 0o005
