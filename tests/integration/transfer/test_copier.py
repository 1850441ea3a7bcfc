"""A batch through the real rsync and the real sshd: an outcome for each file, and no file fails because of another."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from archive_places import marker_of
from copier_setup import CopierSetup, archived, copying, reason, staged
from waiting import eventually

from cdc_archiver.model import AttemptFailed, Batch, Deferred, Lane, Oversize, Reason
from cdc_archiver.sandbox import NO_PROGRAMS, SshServer
from cdc_archiver.transfer import copier, layout, rsync_output
from cdc_archiver.transfer.placement import Placer
from cdc_archiver.transfer.rsync import RsyncRun


@pytest.fixture(params=["ssh", "local"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, ssh_server: SshServer) -> Iterator[CopierSetup]:
    flags = ssh_server.settings if request.param == "ssh" else {}
    yield from staged(CopierSetup(tmp_path / "source", tmp_path / "data", flags))


@pytest.fixture
def over_ssh(tmp_path: Path, ssh_server: SshServer) -> Iterator[CopierSetup]:
    yield from staged(CopierSetup(tmp_path / "source", tmp_path / "data", ssh_server.settings))


NAMES = [
    "with space.npy",
    "new\nline.npy",
    "quote'\".npy",
    "pipe|.npy",
    "#hash.npy",
    ";semicolon.npy",
    "-dash.npy",
    "star*?[x].npy",
    "back\\#012slash.npy",
    "é.npy",
    b"latin1-\xe9.npy".decode("utf-8", "surrogateescape"),
    "~tilde.npy",
    "$HOME.npy",
    "a:b.npy",
    "tab\t.npy",
    "empty.npy",
]


def test_every_name_arrives_as_it_is(stage: CopierSetup) -> None:
    files = [stage.file(name, b"" if name == "empty.npy" else os.fsencode(name)) for name in NAMES]
    outcomes = stage.copy(*files)
    for file, name in zip(files, NAMES, strict=True):
        path = archived(outcomes[file.id], b"" if name == "empty.npy" else os.fsencode(name))
        assert path == stage.data / "15895/crate1slot2/1589517260_take_iv/outputs" / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert path.stat().st_mtime == pytest.approx(os.stat(file.path).st_mtime, abs=1)
    assert stage.staged() == []


def test_each_bad_file_gets_its_own_reason_and_does_not_affect_the_others(stage: CopierSetup) -> None:
    good = [stage.file(f"d{number % 5}/{number}.npy") for number in range(60)]
    missing = stage.row("gone.npy")
    changed = stage.file("changed.npy", b"new content", md5sum=bytes(16))
    (stage.source / "directory").mkdir()
    directory = stage.row("directory")
    (stage.source / "link").symlink_to("d0/0.npy")
    link = stage.row("link")
    os.mkfifo(stage.source / "fifo")
    fifo = stage.row("fifo")
    no_pub_id = stage.file("x.npy", pub_id=None)
    outside = stage.file("y.npy", pub_id="../..")
    no_md5 = stage.file("z.npy", md5sum=b"short")
    bad = [missing, changed, directory, link, fifo, no_pub_id, outside, no_md5]
    # When all are tried together
    outcomes = stage.copy(*bad[:4], *good, *bad[4:])
    # Then the good ones are archived and each bad one has its reason.
    for file in good:
        archived(outcomes[file.id], Path(file.path).relative_to(stage.source).as_posix().encode())
    assert {each.id: reason(outcomes[each.id]) for each in bad} == {
        missing.id: Reason.MISSING,
        changed.id: Reason.CHANGED,
        directory.id: Reason.NOT_A_FILE,
        link.id: Reason.NOT_A_FILE,
        fifo.id: Reason.NOT_A_FILE,
        no_pub_id.id: Reason.NO_PUB_ID,
        outside.id: Reason.BAD_PUB_ID,
        no_md5.id: Reason.NO_MD5,
    }
    failed = outcomes[changed.id]
    assert isinstance(failed, AttemptFailed)
    assert failed.md5_seen == hashlib.md5(b"new content").digest()
    assert failed.md5_seen.hex() in failed.detail
    assert "No such file" in getattr(outcomes[missing.id], "detail")  # noqa: B009 - a union's member


def test_a_directory_that_contains_another_file_is_not_a_file_either(stage: CopierSetup) -> None:
    """Its line is printed only where the directory is made for its own sake."""
    inside = stage.file("directory/inside.npy")
    directory = stage.row("directory")
    outcomes = stage.copy(inside, directory)
    archived(outcomes[inside.id], b"directory/inside.npy")
    assert reason(outcomes[directory.id]) is Reason.NOT_A_FILE


def test_a_file_in_the_archive_is_adopted_without_a_transfer(stage: CopierSetup) -> None:
    file = stage.file("a.npy")
    first = archived(stage.copy(file)[file.id], b"a.npy")
    os.unlink(file.path)
    assert archived(stage.copy(file)[file.id], b"a.npy", adopted=True) == first


def test_what_is_in_the_way_of_a_file_is_seen_before_it_is_fetched(stage: CopierSetup) -> None:
    blocked, free = stage.file("a.npy"), stage.file("b.npy", pub_id="another")
    in_the_way = stage.data / layout.archived_path(blocked, stage.settings.oldest_timestamp)
    in_the_way.parents[2].mkdir(parents=True)
    in_the_way.parents[1].write_bytes(b"a file where a directory belongs")
    os.unlink(blocked.path)  # to fetch it would fail otherwise
    outcomes = stage.copy(blocked, free)
    assert reason(outcomes[blocked.id]) is Reason.PLACE_UNUSABLE
    archived(outcomes[free.id], b"b.npy")


def test_different_files_of_one_name_and_two_rows_of_one_path(stage: CopierSetup) -> None:
    one, other = stage.file("d1/same.npy"), stage.file("d2/same.npy")
    twin = stage.row("d1/same.npy", md5sum=one.md5sum)
    stale = stage.row("d1/same.npy", md5sum=bytes(16))
    outcomes = stage.copy(one, other, twin, stale)
    paths = {archived(outcomes[one.id], b"d1/same.npy"), archived(outcomes[other.id], b"d2/same.npy")}
    assert {path.name for path in paths} == {"same.npy", "same.npy.1"}
    assert archived(outcomes[twin.id], b"d1/same.npy", adopted=True) in paths
    assert reason(outcomes[stale.id]) is Reason.CHANGED


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a link to another user")
def test_files_below_links_of_another_user_arrive_in_batches_and_none_is_counted(
    stage: CopierSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given files below two links that rsync 3.5 does not follow, and others,
    below = [stage.file(f"disk{number % 2}/f{number}.npy") for number in range(20)]
    others = [stage.file(f"plain/{number}.npy") for number in range(3)]
    gone = stage.row("link1/gone.npy")
    links = [stage.source / f"link{number}" for number in range(2)]
    for number, link in enumerate(links):
        link.symlink_to(f"disk{number}")
        os.lchown(link, 12345, 12345)
    files = [replace(file, path=file.path.replace("/disk", "/link")) for file in below]
    started: list[Any] = []

    class Counted(RsyncRun):
        def __init__(self, *values: Any) -> None:
            started.append(values)
            super().__init__(*values)

    monkeypatch.setattr(copier, "RsyncRun", Counted)
    with structlog.testing.capture_logs() as logs:
        # when they go out in one batch, twice,
        outcomes = stage.copy(*files[:10], *others, gone) | stage.copy(*files[10:])
    # then all arrive, in one rsync for each link, and only the missing one has failed;
    for file, name in [*zip(files, below, strict=True), *zip(others, others, strict=True)]:
        archived(outcomes[file.id], Path(name.path).relative_to(stage.source).as_posix().encode())
    assert (type(outcomes[gone.id]), reason(outcomes[gone.id])) == (AttemptFailed, Reason.MISSING)
    assert len(started) == 6
    # and one line of the log has the fix.
    (line,) = [each for each in logs if each["event"] == "link_not_followed"]
    assert line["link"] in map(str, links)
    assert line["detail"].endswith(f"fix: chown -h root {line['link']}")


def test_a_large_file_is_left_to_the_bulk_lane(stage: CopierSetup) -> None:
    limit = stage.settings.small_limit
    big, small = stage.file("big.npy", bytes(limit + 1)), stage.file("small.npy")
    outcomes = stage.copy(big, small)
    assert outcomes[big.id] == Oversize(big)
    archived(outcomes[small.id], b"small.npy")
    archived(stage.copy(big, lane=Lane.BULK)[big.id], bytes(limit + 1))


def test_a_whole_missing_batch_is_an_unmounted_disk_and_no_failed_attempt(stage: CopierSetup) -> None:
    outcomes = stage.copy(*(stage.row(f"{number}.npy") for number in range(3)))
    assert {(type(outcome), reason(outcome)) for outcome in outcomes.values()} == {
        (Deferred, Reason.SOURCE_NOT_MOUNTED)
    }
    assert {type(outcome) for outcome in stage.copy(stage.row("1.npy"), stage.row("2.npy")).values()} == {AttemptFailed}


def test_a_missing_source_root_is_an_unmounted_disk(tmp_path: Path, ssh_server: SshServer) -> None:
    flags = {**ssh_server.settings, "source_root": str(tmp_path / "source" / "mount")}
    for stage in staged(CopierSetup(tmp_path / "source", tmp_path / "data", flags)):
        assert reason(stage.copy(stage.row("mount/a.npy"))[1]) is Reason.SOURCE_NOT_MOUNTED


def test_an_empty_source_root_is_an_unmounted_disk_for_a_single_file_too(tmp_path: Path, ssh_server: SshServer) -> None:
    root = tmp_path / "source" / "mount"
    flags = {**ssh_server.settings, "source_root": str(root)}
    for stage in staged(CopierSetup(tmp_path / "source", tmp_path / "data", flags)):
        root.mkdir()
        gone = stage.row("mount/a.npy")
        assert reason(stage.copy(gone)[gone.id]) is Reason.SOURCE_NOT_MOUNTED
        stage.file("mount/b.npy")
        assert reason(stage.copy(gone)[gone.id]) is Reason.MISSING


def test_a_file_that_rsync_does_not_report_is_checked_on_the_source(
    stage: CopierSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an rsync that leaves files out; their state on the source decides."""
    there, gone = stage.file("there.npy"), stage.row("gone.npy")
    monkeypatch.setattr(RsyncRun, "lines", lambda self: iter(()))
    outcomes = stage.copy(there, gone)
    assert reason(outcomes[there.id]) is Reason.UNDECIDED
    assert (type(outcomes[gone.id]), reason(outcomes[gone.id])) == (AttemptFailed, Reason.MISSING)


def test_a_file_that_is_reported_before_its_rename_is_placed_after_it(
    stage: CopierSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a local rsync: its sender prints the line, well before the receiver renames the file."""
    late, last = stage.file("d/late.npy"), stage.file("d/last.npy")

    def tell(run: RsyncRun) -> Iterator[list[rsync_output.OutputLine]]:
        names = [b"d/late.npy", b"d/last.npy"]
        entries = {name: entry for name in names for entry in run._entries if entry.endswith(name)}
        places = {name: run._staging / os.fsdecode(entry) for name, entry in entries.items()}
        places[names[1]].write_bytes(names[1])
        yield [rsync_output.FileReceived(entries[name], hashlib.md5(name).digest(), len(name)) for name in names]
        assert not places[names[1]].exists(), "the other one is placed already"
        places[names[0]].write_bytes(names[0])

    monkeypatch.setattr(RsyncRun, "lines", tell)
    outcomes = stage.copy(late, last)
    archived(outcomes[late.id], b"d/late.npy")
    archived(outcomes[last.id], b"d/last.npy")


def test_nothing_is_written_to_an_unmounted_disk(stage: CopierSetup) -> None:
    marker_of(stage.data).unlink()
    before = sorted(stage.data.rglob("*"))
    file = stage.file("a.npy")
    assert reason(stage.copy(file)[file.id]) is Reason.DESTINATION_MISSING
    assert sorted(stage.data.rglob("*")) == before


def test_a_file_that_is_corrupted_on_this_machine_is_not_placed_and_others_are(
    stage: CopierSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = stage.file("bad.npy"), stage.file("good.npy")
    verify = Placer.verify

    def spoil_then_verify(placer: Placer, file: Any, cancel: threading.Event) -> bool:
        if file.staged.endswith("/bad.npy"):
            Path(file.staged).write_bytes(b"bad.npx")
        return verify(placer, file, cancel)

    monkeypatch.setattr(Placer, "verify", spoil_then_verify)
    outcomes = stage.copy(bad, good)
    assert reason(outcomes[bad.id]) is Reason.CORRUPTED
    archived(outcomes[good.id], b"good.npy")
    assert [path.name for path in stage.data.glob("1*/**/*") if path.is_file()] == ["good.npy"]


def test_outcomes_come_as_files_arrive(over_ssh: CopierSetup) -> None:
    """A slow last file does not delay the outcomes before it."""
    small = [over_ssh.file(f"a{number}.npy") for number in range(3)]
    slow = over_ssh.file("z.npy", os.urandom(3_000_000))
    over_ssh.settings = over_ssh.settings.model_copy(
        update={"sources": (over_ssh.settings.sources[0].model_copy(update={"bwlimit": "1500k"}),)}
    )
    (source,) = over_ssh.settings.sources
    batch = Batch(source.name, Lane.SMALL, "small-0", (*small, slow))
    times = {out.record.id: time.monotonic() for out in over_ssh.copier.archive(source, batch)}
    assert max(times[file.id] for file in small) < times[slow.id] - 0.3


def test_a_cancelled_batch_is_deferred_and_leaves_no_process(over_ssh: CopierSetup) -> None:
    big = over_ssh.file("big.npy", os.urandom(20_000_000))
    source = over_ssh.settings.sources[0].model_copy(update={"bwlimit": "500k"})
    outcomes, thread = copying(over_ssh, source, big)
    over_ssh.cancel.set()
    thread.join(10.0)
    assert not thread.is_alive()
    assert [reason(outcome) for outcome in outcomes] == [Reason.STOPPING]
    assert not any(str(over_ssh.data) in line for line in _command_lines())


def _command_lines() -> list[str]:
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                lines.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return [line for line in lines if "rsync" in line]


def test_a_link_that_is_cut_resumes_where_it_was(over_ssh: CopierSetup, ssh_server: SshServer) -> None:
    # Given a large file whose transfer is killed half-way
    big = over_ssh.file("deep/er/big.npy", os.urandom(12_000_000))
    (source,) = over_ssh.settings.sources
    slow = source.model_copy(update={"bwlimit": "4000k"})
    _, thread = copying(over_ssh, slow, big)

    def half_way() -> bool:
        return any(part.stat().st_size > 5_000_000 for part in over_ssh.archive.incoming.rglob(".big.npy.*"))

    eventually(half_way, "half of it has arrived")
    over_ssh.cancel.set()
    thread.join(15.0)
    assert [part.stat().st_size > 4_000_000 for part in over_ssh.staged()] == [True], "what arrived is kept"
    # When it is tried again, together with a file of another directory, then it is archived whole, and the part is used.
    over_ssh.cancel.clear()
    other = over_ssh.file("other/small.npy")
    outcomes = over_ssh.copy(big, other, lane=Lane.BULK)
    archived(outcomes[big.id], Path(big.path).read_bytes())
    archived(outcomes[other.id], b"other/small.npy")
    assert over_ssh.staged() == []


class TestFailuresOfTheSource:
    """Failures that concern no single file, each with the real sshd."""

    @pytest.fixture
    def server(self, tmp_path: Path, ssh_server: SshServer) -> Iterator[SshServer]:
        server = SshServer(tmp_path / "sshd")
        server.start()
        yield server
        server.stop()

    @pytest.fixture
    def stage(self, tmp_path: Path, server: SshServer) -> Iterator[CopierSetup]:
        yield from staged(CopierSetup(tmp_path / "source", tmp_path / "data", server.settings))

    def test_sshd_is_down(self, stage: CopierSetup, server: SshServer) -> None:
        file = stage.file("a.npy")
        server.stop()
        assert reason(stage.copy(file)[file.id]) is Reason.HOST_UNREACHABLE
        server.start()
        archived(stage.copy(file)[file.id], b"a.npy")

    def test_a_short_outage_of_sshd_is_retried(self, stage: CopierSetup, server: SshServer) -> None:
        file = stage.file("a.npy")
        server.stop()
        timer = threading.Timer(0.4, server.start)
        timer.start()
        archived(stage.copy(file)[file.id], b"a.npy")
        timer.join()

    def test_the_host_key_has_changed(self, stage: CopierSetup, server: SshServer) -> None:
        file = stage.file("a.npy")
        server.change_host_key()
        outcome = stage.copy(file)[file.id]
        assert reason(outcome) is Reason.HOST_KEY
        assert "ssh-keyscan" in getattr(outcome, "detail")  # noqa: B009 - a union's member

    def test_the_key_is_refused(self, stage: CopierSetup, server: SshServer) -> None:
        file = stage.file("a.npy")
        server.revoke()
        assert reason(stage.copy(file)[file.id]) is Reason.LOGIN_REFUSED

    def test_rsync_is_not_installed_on_the_source(self, stage: CopierSetup, server: SshServer) -> None:
        file = stage.file("a.npy")
        server.authorize(path=NO_PROGRAMS)
        assert reason(stage.copy(file)[file.id]) is Reason.RSYNC_MISSING
        # A fix there counts only from the next login, and the next try makes one.
        server.authorize()
        archived(stage.copy(file)[file.id], b"a.npy")

    def test_a_restricted_key_is_enough(self, tmp_path: Path, server: SshServer) -> None:
        root = tmp_path / "restricted"
        flags = {**server.settings, "source_root": str(root), "restricted_key": True}
        for stage in staged(CopierSetup(root, tmp_path / "data2", flags)):
            server.authorize(read_only=root)
            file, missing, directory = stage.file("d/a.npy"), stage.row("gone.npy"), stage.row("d")
            outcomes = stage.copy(file, missing, directory)
            archived(outcomes[file.id], b"d/a.npy")
            assert reason(outcomes[missing.id]) is Reason.MISSING
            assert reason(outcomes[directory.id]) is Reason.NOT_A_FILE

    def test_a_sender_that_stops_is_killed(self, tmp_path: Path, server: SshServer) -> None:
        flags = {**server.settings, "stall_timeout": 2, "io_timeout": 600}
        for stage in staged(CopierSetup(tmp_path / "s2", tmp_path / "d2", flags)):
            big = stage.file("big.npy", os.urandom(30_000_000))
            slow = stage.settings.sources[0].model_copy(update={"bwlimit": "2000k"})
            outcomes, thread = copying(stage, slow, big)
            server.pause()
            thread.join(30.0)
            server.resume()
            assert [reason(outcome) for outcome in outcomes] == [Reason.STALLED]
