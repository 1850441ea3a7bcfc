"""`check` of the archive's directory."""

import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from archive_places import staging_of
from check_findings import not_ok, settings, the_only
from small_disk import UNSHARE, require_mounts

from cdc_archiver.database.archives import KnownArchive
from cdc_archiver.errors import DestinationUnavailable, ExitStatus
from cdc_archiver.preflight import CheckStatus, Finding, destination_findings
from cdc_archiver.transfer.staging import Archive
from cdc_archiver.transfer.staging_place import sibling_of


def check(directory: Path, *, known: bool = False, **flags: Any) -> list[Finding]:
    """The findings about the disk, except the one about the file system of the test machine."""
    findings = destination_findings(settings(data_dir=directory, **flags), KnownArchive(has_files=known))
    return [finding for finding in findings if finding.subject != "file system"]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere: a test of permissions runs as another user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_good_data_dir_is_left_as_it_was(data_dir: Path) -> None:
    assert not_ok(check(data_dir)) == []
    assert list(data_dir.iterdir()) == []


def test_the_trial_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(data_dir: Path) -> None:
    killed, living = (staging_of(data_dir) / name for name in (".check-killed", ".check-living"))
    for trial in (killed, living):
        trial.mkdir(parents=True)
        (trial / "staged-0").touch()
        os.utime(trial, (0, 0))
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    check(data_dir)
    os.close(lock)
    assert list(staging_of(data_dir).iterdir()) == [living]
    assert list(data_dir.iterdir()) == []


def test_a_missing_data_dir(data_dir: Path) -> None:
    data_dir.rmdir()

    found = the_only(check(data_dir))
    assert found.exit_status is ExitStatus.USAGE
    subprocess.run(found.fix, shell=True, check=True)

    assert not_ok(check(data_dir)) == []


def test_a_data_dir_that_is_a_file(data_dir: Path) -> None:
    data_dir.rmdir()
    data_dir.write_text("")

    assert "is a file" in the_only(check(data_dir)).text


def test_a_data_dir_without_write_permission(data_dir: Path) -> None:
    data_dir.chmod(0o555)
    with as_nobody():
        found = the_only(check(data_dir))
    assert "Permission denied" in found.text
    if os.geteuid() != 0:
        return

    # The owner's own write permission is what the fix relies on.
    data_dir.chmod(0o755)
    subprocess.run(found.fix, shell=True, check=True)
    state_dir = data_dir.parent / "state"
    state_dir.mkdir(mode=0o777)
    state_dir.chmod(0o777)
    with as_nobody():
        assert not_ok(check(data_dir, state_dir=state_dir)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to make a directory that the user cannot enter")
def test_a_data_dir_that_cannot_be_entered(data_dir: Path) -> None:
    data_dir.parent.chmod(0o700)
    with as_nobody():
        found = the_only(check(data_dir))

    assert found.text == f"data_dir {data_dir}: Permission denied"


def test_without_hard_links_files_are_copied(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(source: Path, target: Path, **_: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(source), None, str(target))

    monkeypatch.setattr(os, "link", no_link)

    findings = check(data_dir, state_dir=data_dir.parent / "state")
    assert not_ok(findings) == []
    (text,) = [finding.text for finding in findings if finding.subject == "staging"]
    assert f"files are staged in {data_dir.parent}/state/" in text
    assert "links do not lead from" in text
    assert "each file is written twice" in text


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        pytest.param("remount,ro", "mount -o remount,rw {}", id="the disk"),
        pytest.param("remount,bind,ro", "systemctl edit cdc-archiver  # [Service] ReadWritePaths={}", id="this mount"),
    ],
)
def test_a_directory_that_only_the_service_sees_read_only_is_not_fixed_by_remounting_the_disk(
    data_dir: Path, options: str, fix: str
) -> None:
    require_mounts()
    script = f'mount -t tmpfs none "$1" && mount -o {options} "$1" && shift && exec "$@"'
    check_there = (
        "import sys; from pathlib import Path; import test_preflight_disk as here; "
        "print(here.the_only(here.check(Path(sys.argv[1]))).fix)"
    )
    done = subprocess.run(
        [*UNSHARE, "sh", "-c", script, "sh", data_dir, sys.executable, "-c", check_there, data_dir],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.startswith(fix.format(shlex.quote(str(data_dir)))), done.stdout + done.stderr


def test_a_disk_that_is_nearly_full(data_dir: Path) -> None:
    found = the_only(check(data_dir, min_free="500T"))
    assert found.subject == "free space"
    assert found.fix.startswith(f"df -h {shlex.quote(str(data_dir))}  # make room there"), (
        "the guard is never the first fix"
    )


def test_a_disk_without_inodes(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(data_dir)
    full = os.statvfs_result([*real[:5], 1000, 0, 0, *real[8:]])
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    found = the_only(check(data_dir, min_free=0))
    assert found.subject == "free inodes"
    assert "no free inodes in" in found.text
    with pytest.raises(DestinationUnavailable, match=r"has no free inodes, and .* of space"):
        Archive(data_dir, 0).require_ready()


def test_the_file_system_is_reported_with_a_warning_for_a_volatile_one() -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir():
        pytest.skip("this machine has no tmpfs")
    findings = {f.subject: f for f in destination_findings(settings(data_dir=shared_memory, min_free=0))}

    assert findings["file system"].status is CheckStatus.WARNING
    assert findings["file system"].text == (
        "/dev/shm is on a tmpfs (/dev/shm): files archived there do not survive a reboot"
    )


def test_a_disk_that_is_gone_is_not_taken_for_a_new_archive(data_dir: Path) -> None:
    found = the_only(check(data_dir, known=True))
    assert (found.subject, "not mounted" in found.text) == ("marker", True)
    assert found.fix.startswith(f"mount {shlex.quote(str(data_dir))}  # ")
    assert not sibling_of(data_dir).exists()
    # When it is mounted, its marker shows it.
    Archive(data_dir, 0).prepare()
    assert not_ok(check(data_dir, known=True)) == []


def test_what_stops_the_archives_readers_is_named_with_the_fix(data_dir: Path) -> None:
    # Given an archive with timecodes, one of them on another disk, and nothing else,
    (data_dir / "15895").mkdir()
    (data_dir.parent / "elsewhere").mkdir()
    (data_dir / "15896").symlink_to(data_dir.parent / "elsewhere")
    Archive(data_dir, 0).prepare()
    assert not_ok(check(data_dir)) == []
    # when other things come to lie there,
    for name in ("1.0", "notes", "158951", ".snapshot", "lost+found"):
        (data_dir / name).mkdir()
    for name in ("15897", "15898 copy", "z'.txt"):
        (data_dir / name).write_text("")
    found = the_only(check(data_dir))
    # then some are named, the others are counted,
    assert found.status is CheckStatus.WARNING
    assert ": .snapshot, 1.0, 15895" in found.text
    assert " and 3 more; readers of the archive take each name there for a timecode" in found.text
    # and the fix takes them out of the way, at most twice.
    subprocess.run(found.fix, shell=True, check=True)
    subprocess.run(the_only(check(data_dir)).fix, shell=True, check=True)
    assert not_ok(check(data_dir)) == []
    assert sorted(entry.name for entry in data_dir.iterdir()) == ["15895", "15896"]


def test_a_data_dir_that_is_the_top_of_a_disk_has_its_lost_and_found(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir / "lost+found").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == data_dir)

    found = the_only(check(data_dir))
    assert "is a mount point" in found.text
    assert found.fix.startswith(f"--data-dir {shlex.quote(f'{data_dir}/archive')}  #")


def test_leftovers_in_staging_are_reported(data_dir: Path) -> None:
    archive = Archive(data_dir, 0)
    archive.prepare()
    (archive.staging_directory("readout", "small-1") / "part").write_bytes(bytes(2048))

    (text,) = [finding.text for finding in check(data_dir) if finding.subject == "staging"]
    assert "1 files (2.0 kB) there are copies under way" in text
