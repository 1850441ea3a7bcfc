"""A batch's rsync starts in the directory that contains all files; where it cannot enter that directory, it runs again from the
source root and reports each file."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from copier_setup import CopierSetup, archived, reason, staged
from fake_rsync import DROPS_CAPABILITIES, FakeRsync

from cdc_archiver.model import AttemptFailed, Oversize, Reason
from cdc_archiver.sandbox import SshServer
from cdc_archiver.transfer.rsync import RsyncRun


@pytest.fixture
def server(tmp_path: Path, ssh_server: SshServer) -> Iterator[SshServer]:
    server = SshServer(tmp_path / "sshd")
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["ssh", "local"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, ssh_server: SshServer) -> Iterator[CopierSetup]:
    flags = ssh_server.settings if request.param == "ssh" else {}
    yield from staged(CopierSetup(tmp_path / "source", tmp_path / "data", flags))


DIRECTORIES = ["with space", "$(touch owned)", "-dash", "~tilde", "star*", "semi;colon", "new\nline", "é"]


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_directory_of_any_name_is_only_a_directory(stage: CopierSetup, name: str) -> None:
    """All files of the batch are in this directory; rsync starts as deep as its name allows."""
    files = [stage.file(f"plain/{name}/{number}.npy") for number in range(2)]
    outcomes = stage.copy(*files)
    for number, file in enumerate(files):
        archived(outcomes[file.id], os.fsencode(f"plain/{name}/{number}.npy"))
    assert not Path("owned").exists()


def start_directories(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records the last component of the directory that each further rsync starts in."""
    seen: list[str] = []
    start = RsyncRun._start

    def record_directory(self: RsyncRun, *given: Any) -> Any:
        seen.append(posixpath.basename(os.fsdecode(self._directory).rstrip("/")))
        return start(self, *given)

    monkeypatch.setattr(RsyncRun, "_start", record_directory)
    return seen


def test_files_of_one_directory_are_fetched_from_there(stage: CopierSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = start_directories(monkeypatch)
    good, gone, big = stage.file("d/e/a.npy"), stage.row("d/e/gone.npy"), stage.file("d/e/b", bytes(2**26 + 1))
    inside, directory = stage.file("d/e/directory/inside.npy"), stage.row("d/e/directory")
    (stage.source / "d/e/link").symlink_to("a.npy")
    link = stage.row("d/e/link")
    outcomes = stage.copy(good, gone, big, inside, directory, link)
    archived(outcomes[good.id], b"d/e/a.npy")
    archived(outcomes[inside.id], b"d/e/directory/inside.npy")
    assert [reason(outcomes[each.id]) for each in (gone, directory, link)] == [
        Reason.MISSING,
        Reason.NOT_A_FILE,
        Reason.NOT_A_FILE,
    ]
    assert outcomes[big.id] == Oversize(big)
    assert seen == ["e"]
    assert stage.staged() == []


@pytest.mark.parametrize("what", ["missing", "a file"])
def test_files_of_a_missing_directory_are_missing(
    stage: CopierSetup, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """rsync cannot start there and reports no file: they are requested again from the root."""
    stage.file("other.npy")
    if what == "a file":
        stage.file("away")
    seen = start_directories(monkeypatch)
    gone = [stage.row(f"away/{number}.npy") for number in range(2)]
    outcomes = stage.copy(*gone)
    for file in gone:
        outcome = outcomes[file.id]
        assert (type(outcome), reason(outcome)) == (AttemptFailed, Reason.MISSING)
        assert f'link_stat "{file.path}" failed' in getattr(outcome, "detail")  # noqa: B009 - a union's member
    assert seen == ["away", ""]


def test_a_restricted_key_works_for_directories_as_for_files(
    tmp_path: Path, server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rrsync checks the directory that rsync starts in and refuses with messages of its own: a wrong row is not a failure of the
    configuration."""
    root, outside = tmp_path / "restricted", tmp_path / "outside"
    flags = {**server.settings, "source_root": str(root), "restricted_key": True}
    for stage in staged(CopierSetup(root, tmp_path / "data2", flags)):
        server.authorize(read_only=root)
        outside.mkdir()
        (outside / "a.npy").write_bytes(b"a")
        (root / "out").symlink_to(outside)
        (root / "in").symlink_to("d")
        seen = start_directories(monkeypatch)
        file, missing, out = stage.file("d/a.npy"), stage.row("away/gone.npy"), stage.row("out/a.npy")
        linked = stage.row("in/a.npy", md5sum=file.md5sum)
        lost = stage.row("in/gone.npy")
        archived(stage.copy(file)[file.id], b"d/a.npy")
        both = stage.copy(linked, lost)
        archived(both[linked.id], b"d/a.npy", adopted=True)
        assert reason(both[lost.id]) is Reason.MISSING
        assert reason(stage.copy(missing)[missing.id]) is Reason.MISSING
        assert seen == ["d", "in", "", "away", ""]
        # How rsync treats a link that leads outside depends on its version; it concerns only this file.
        assert isinstance(stage.copy(out)[out.id], AttemptFailed)
        assert seen[5:] == ["out", ""]


def test_files_of_a_forbidden_directory_are_unreadable(
    tmp_path: Path, server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in staged(CopierSetup(tmp_path / "source", tmp_path / "data", server.settings)):
        fake = FakeRsync(tmp_path / "fake")
        fake.misbehave(DROPS_CAPABILITIES)
        server.authorize(path=fake.before(os.environ["PATH"]))
        seen = start_directories(monkeypatch)
        file = stage.file("closed/a.npy")
        (stage.source / "closed").chmod(0)
        outcome = stage.copy(file)[file.id]
        assert (type(outcome), reason(outcome)) == (AttemptFailed, Reason.UNREADABLE)
        assert seen == ["closed", ""]


def test_a_key_command_that_always_serves_one_directory_causes_no_failed_attempt(
    tmp_path: Path, server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A custom command of a key, written when rsync always started in the root."""
    flags = {**server.settings, "source_root": str(tmp_path / "source")}
    for stage in staged(CopierSetup(tmp_path / "source", tmp_path / "data", flags)):
        fake = FakeRsync(tmp_path / "fake")
        fake.misbehave(f'set -- $(echo "$*" | sed "s, [^ ]*$,,"); exec $real "$@" {stage.source}/')
        server.authorize(path=fake.before(os.environ["PATH"]))
        seen = start_directories(monkeypatch)
        files = [stage.file(f"d/e/{number}.npy") for number in range(3)]
        outcomes = stage.copy(*files)
        for number, file in enumerate(files):
            archived(outcomes[file.id], f"d/e/{number}.npy".encode())
        assert seen == ["e", ""]
