"""What is the matter with single files, all at once and one by one: each gets what it deserves, and its neighbours nothing of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from copying import (
    assert_all_is_well,
    assert_nobody_charged,
    assert_only,
    assert_said,
    assert_whole,
    failures,
    one_batch,
    shorten_pauses,
    wait_failures,
)
from fakes import DROPS_CAPABILITIES, FakeRsync, says_nothing_of
from files_table import TABLE
from private_site import PrivateSite, SourceFile, new_private_site
from waiting import eventually

from cdc_archiver.dispatch import scheduler
from cdc_archiver.dispatch.dispatcher import Dispatcher
from cdc_archiver.model import Batch, Deferred, Outcome, Reason
from cdc_archiver.sandbox import DatabaseServer, MariaDb, SshServer
from cdc_archiver.sandbox.packages import bin_directory

REMOTE_PATH = f"{bin_directory()}:/usr/local/bin:/usr/bin:/bin"


@pytest.fixture
def stage(
    mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PrivateSite]:
    """Where what failed is tried again in a moment."""
    shorten_pauses(monkeypatch)
    with new_private_site(mariadb, ssh_server, tmp_path) as made:
        yield made
        ssh_server.authorize()


@pytest.fixture
def readable_by_mode(stage: PrivateSite) -> None:
    """The account on the host reads what its mode allows: root's, too."""
    if os.geteuid() == 0:
        fake = FakeRsync(stage.directory / "fake-there")
        fake.misbehave(DROPS_CAPABILITIES)
        stage.ssh.authorize(path=fake.before(REMOTE_PATH))


# One of each among five hundred.


def gone(file: SourceFile) -> None:
    file.path.unlink()


def unreadable(file: SourceFile) -> None:
    file.path.chmod(0)


def changed(file: SourceFile) -> None:
    file.path.write_bytes(b"another")


def emptied(file: SourceFile) -> None:
    file.path.write_bytes(b"")


def a_directory(file: SourceFile) -> None:
    file.path.unlink()
    file.path.mkdir()


def a_directory_with_files(file: SourceFile) -> None:
    a_directory(file)
    (file.path / "inside.npy").write_bytes(b"inside")


def a_link(file: SourceFile) -> None:
    file.path.unlink()
    file.path.symlink_to("f0000.npy")


def a_link_to_nowhere(file: SourceFile) -> None:
    file.path.unlink()
    file.path.symlink_to("nowhere")


def a_pipe(file: SourceFile) -> None:
    file.path.unlink()
    os.mkfifo(file.path)


def below_a_file(file: SourceFile) -> None:
    """The directory that it lay in is a file now."""
    file.path.unlink()
    file.path.parent.rmdir()
    file.path.parent.write_bytes(b"no directory")


CHARGED: dict[str, tuple[Callable[[SourceFile], None], str, str]] = {
    "gone.npy": (gone, "missing", "No such file"),
    "unreadable.npy": (unreadable, "unreadable", "Permission denied"),
    "changed.npy": (changed, "changed", "the file's md5 is"),
    "emptied.npy": (emptied, "changed", "the file's md5 is"),
    "directory-gone/below.npy": (below_a_file, "missing", "(20)"),
}
REFUSED: dict[str, Callable[[SourceFile], None]] = {
    "directory.npy": a_directory,
    "full-directory.npy": a_directory_with_files,
    "link.npy": a_link,
    "dangling.npy": a_link_to_nowhere,
    "pipe.npy": a_pipe,
}
IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "no_pub_id": {"pub_id": None},
    "bad_pub_id": {"pub_id": "../.."},
    "no_timestamp": {"timestamp": None},
}


def test_one_bad_file_of_each_kind_costs_five_hundred_others_nothing(
    stage: PrivateSite, readable_by_mode: None
) -> None:
    good = stage.files(500)
    charged = [stage.file(name) for name in CHARGED]
    refused = [stage.file(name) for name in REFUSED]
    for file, (spoil, _, _) in zip(charged, CHARGED.values(), strict=True):
        spoil(file)
    for file, become in zip(refused, REFUSED.values(), strict=True):
        become(file)
    count = 500 + len(CHARGED) + len(REFUSED) + len(IMPOSSIBLE)
    with stage.service(workers=1, batch_files=count, max_attempts=2) as service:
        # Given one batch with one of each kind of trouble in it, spread over five hundred sound files,
        service.wait_settled()  # a sweep of the start that finds some of them first would have them read twice
        with one_batch(service, count):
            ids = stage.register(*good[:100])
            charged_ids = stage.register(*charged)
            ids += stage.register(*good[100:300])
            refused_ids = stage.register(*refused)
            ids += stage.register(*good[300:])
            impossible_ids = [stage.register(good[0], **columns)[0] for columns in IMPOSSIBLE.values()]
        # when it was copied, then all that is sound is archived,
        stage.wait_archived(*ids)
        # (retries come meanwhile; asked in this order, the difference is never too large)
        whole = lambda: service.metric("batch_files_count") - service.metric("batch_files_bucket", le="500.0") == 1
        eventually(whole, "they all went in one batch")
        # and each other is charged or refused, and the source is none the worse.
        for id_ in charged_ids:
            stage.wait_attempts(id_, 2)
        for id_ in refused_ids + impossible_ids:
            assert stage.wait_attempts(id_, 1).attempts == 1000
        assert_all_is_well(service)
        expected = {reason for _, reason, _ in CHARGED.values()} | {"not_a_file", *IMPOSSIBLE}
        assert all(service.metric("copy_failures_total", reason=reason) for reason in expected)
        assert failures(service, *expected) == 0
        # When their files are what they should be, and somebody says so, then they are archived as well.
        (charged[-1].path.parent).unlink()
        charged[-1].path.parent.mkdir()
        for file in charged:
            file.path.write_bytes(file.content)
            file.path.chmod(0o644)
        stage.sql(f"UPDATE {TABLE} SET failed_copy_attempts = 0 WHERE failed_copy_attempts = 2")
        stage.wait_archived(*charged_ids)
    assert_whole(stage, ids, good)
    assert_only(stage, *good, *charged)
    for id_, file, (_, reason, words) in zip(charged_ids, charged, CHARGED.values(), strict=True):
        entry = assert_said(stage, id_, "charged", reason, words)
        assert entry["md5_row"] == file.md5
        assert (entry["md5_seen"] is None) == (reason != "changed")
        assert [each["result"] for each in stage.history(id_)] == ["charged", "charged", "archived"]
    for id_ in refused_ids:
        assert_said(stage, id_, "refused", "not_a_file", "a directory, a link or a device")
        assert len(stage.history(id_)) == 1
    assert [stage.history(id_)[0]["reason"] for id_ in impossible_ids] == list(IMPOSSIBLE)


def test_one_missing_file_among_others_is_charged_and_the_source_is_up_all_the_while(stage: PrivateSite) -> None:
    """Of 23 and of 24: missing from the beginning, or vanished between rsync's list and its look."""
    # Given a batch whose first file takes its time,
    slow, vanishes, sound = stage.file("a-slow.npy", size=3_000_000), stage.file("b-vanishes.npy"), stage.file("c.npy")
    with stage.service(workers=1, bwlimit="1500k", max_attempts=2) as service:
        with one_batch(service, 3):
            first, second, third = stage.register(slow, vanishes, sound)
        staged = lambda: any(path.stat().st_size for path in (stage.data_dir / ".incoming").rglob(".a-slow.npy.*"))
        eventually(staged, "the first is on its way")
        # when the second is deleted, which rsync has on its list,
        vanishes.path.unlink()
        # then it alone is charged, and only when it is looked for once more: its disk might be going.
        stage.wait_attempts(second, 1)
        stage.wait_archived(first, third)
        assert_all_is_well(service)
        assert failures(service, "missing", "undecided") == 0
    assert_said(stage, second, "charged", "missing", "No such file")
    assert_whole(stage, [first, third], [slow, sound])
    assert_only(stage, slow, sound)


def test_a_file_that_is_rewritten_while_it_is_read_is_never_archived_in_part(stage: PrivateSite) -> None:
    # Given a file on its way,
    file = stage.file("rewritten.npy", size=4_000_000)
    with stage.service(bwlimit="2m") as service:
        (id_,) = stage.register(file)
        staged = lambda: any(path.stat().st_size for path in (stage.data_dir / ".incoming").rglob(".rewritten.npy.*"))
        eventually(staged, "it is on its way")
        # when the instrument writes another into it,
        with file.path.open("r+b") as there:
            there.write(os.urandom(4_000_000))
        # then what arrives is neither the one nor the other: charged, and nothing of it is in the archive,
        stage.wait_attempts(id_, 1)
        assert stage.archived_files() == []
        assert failures(service, "changed") == 0
        entry = assert_said(stage, id_, "charged", "changed", file.md5.hex())
        assert entry["md5_seen"] not in (None, file.md5)
        # until the file is what was registered.
        file.path.write_bytes(file.content)
        stage.wait_archived(id_)
        assert_all_is_well(service)
    assert_only(stage, file)
    assert stage.place(file).read_bytes() == file.content


def test_files_that_all_can_not_be_read_are_their_hosts_fault(stage: PrivateSite, readable_by_mode: None) -> None:
    # Given a directory that an administrator has closed to our account,
    files = [stage.file(f"closed/{number}.npy") for number in range(4)]
    (stage.sources / "closed").chmod(0o600)
    try:
        with stage.service(max_attempts=2, workers=1) as service:
            with one_batch(service, len(files)):
                ids = stage.register(*files)
            # when it was tried more often than a file has tries, then nobody is charged,
            wait_failures(service, "source_not_mounted", 3 * len(files))
            service.wait_state("no source")
            assert "can the login read it" in service.get("/readyz")[1]
            assert_nobody_charged(stage)
            # and all is archived when it is open again.
            (stage.sources / "closed").chmod(0o700)
            stage.wait_archived(*ids)
            assert_all_is_well(service)
    finally:
        (stage.sources / "closed").chmod(0o700)
    assert_nobody_charged(stage)
    assert_whole(stage, ids, files)


# The source's disk.


@pytest.mark.parametrize(
    "how", ["together", "one after the other", "with a key that sees nothing else", "the root itself"]
)
def test_a_disk_that_is_not_mounted_at_the_source_charges_nobody(stage: PrivateSite, how: str) -> None:
    # Given a source whose disk is not mounted: every file of it is missing, and its directory is empty,
    mounted, away = stage.sources / "disk", stage.sources / "disk-away"
    files = [stage.file(f"disk/{number}.npy") for number in range(4)]
    mounted.rename(away)
    mounted.mkdir()
    changes: dict[str, Any] = {}
    if how == "with a key that sees nothing else":
        stage.ssh.authorize(read_only=stage.sources)
        changes = {"source_root": str(stage.sources), "restricted_key": True}
    elif how == "the root itself":
        changes = {"source_root": str(mounted)}
    with stage.service(workers=1, max_attempts=9, **changes) as service:
        if how == "one after the other":
            ids = stage.register(files[0])
            stage.wait_attempts(ids[0], 1)
            ids += stage.register(files[1])
            stage.wait_attempts(ids[1], 1)
            ids += stage.register(*files[2:])
        else:
            with one_batch(service, len(files)):
                ids = stage.register(*files)
        # then it is found out after three files at the latest, and said,
        wait_failures(service, "source_not_mounted", 3)
        service.wait_state("no source")
        assert "is the disk mounted" in service.get("/readyz")[1]
        assert (service.metric("source_up"), service.metric("destination_up")) == (0, 1)
        # (of those that come alone the first two are charged: nobody could know)
        charged = [row.attempts for row in stage.rows(ids)]
        assert charged[2:] == [0, 0]
        assert how == "one after the other" or charged[:2] == [0, 0]
        # and it is asked again and again, which costs no file a try,
        wait_failures(service, "source_not_mounted", 10)
        assert [row.attempts for row in stage.rows(ids)] == charged
        # and all is archived when it is mounted.
        mounted.rmdir()
        away.rename(mounted)
        stage.wait_archived(*ids)
        assert_all_is_well(service)
        assert failures(service, "source_not_mounted", "missing") == 0
    assert_only(stage, *files)
    if not any(charged):
        assert_nobody_charged(stage)
        assert_whole(stage, ids, files)


# Neither a line nor an error.


def test_a_file_that_rsync_passes_over_in_silence_goes_alone_at_the_third_try(
    stage: PrivateSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an rsync that says nothing of a file, as long as it has company,
    fake = FakeRsync(stage.directory / "fake")
    fake.misbehave(says_nothing_of("odd.npy"))
    monkeypatch.setenv("PATH", fake.before(os.environ["PATH"]))
    monkeypatch.setattr(scheduler, "INCONCLUSIVE_DELAYS", (0.05,))
    judge = Dispatcher.judge

    def judge_and_hold(self: Dispatcher, batch: Batch, outcome: Outcome) -> Outcome:
        if isinstance(outcome, Deferred) and outcome.reason is Reason.UNDECIDED:
            self.set_backpressure(True)  # until we have found it company
        return judge(self, batch, outcome)

    monkeypatch.setattr(Dispatcher, "judge", judge_and_hold)
    odd, files = stage.file("odd.npy"), stage.files(15)
    with stage.service(workers=1) as service:
        with one_batch(service, 6):
            (id_, *ids) = stage.register(odd, *files[:5])
        # when it was passed over twice, and the others were not,
        for tries in (1, 2):
            wait_failures(service, "undecided", tries)
            with one_batch(service, 6):
                ids += stage.register(*files[5 * tries : 5 * tries + 5])
        # then it goes alone, and arrives;
        stage.wait_archived(id_, *ids)
        assert_all_is_well(service)
        assert service.metric("copy_failures_total", reason="undecided") == 2
        assert failures(service, "undecided") == 0
    # and that was nobody's fault.
    assert_nobody_charged(stage)
    assert_whole(stage, [id_, *ids], [odd, *files])


# Names.

NAMES = (
    "with space",
    " ",
    "  leading and trailing  ",
    "quote'single",
    'quote"double',
    "`backtick`$(date)${HOME}",
    "two\nlines",
    "return\r",
    "tab\t",
    "pipe|pipe|%C|%l|%n",
    "# hash",
    "; semicolon",
    "*",
    "star*?[a-z]",
    "-v",
    "--help",
    "--",
    "trailing backslash\\",
    "\\#012",
    "\\",
    "\x01\x02\x1b[2J\x7f",
    "con:on",
    "a::b",
    "user@host:file",
    "~",
    "..dots..",
    ".hidden",
    ".rsync-partial",
    "Grüße, 望遠鏡 🔭",
    "e\u0301 is not \u00e9",
    "file.1",
    ".incoming",
    "percent%20%s",
    "comma,{a,b}",
    "l" * 255,
    "ä" * 127,
)


@pytest.mark.parametrize("where", ["over there", "on this machine"])
def test_names_are_nothing_but_names(
    database_server: DatabaseServer, ssh_server: SshServer, tmp_path: Path, where: str
) -> None:
    """On both servers: each has its own idea of a backslash and of four bytes. And locally: rsync takes lines of a list that
    begin with # or ; for comments there."""
    with new_private_site(database_server, ssh_server, tmp_path) as stage:
        # Given names as only a test has them, in a column that has room for the longest,
        stage.sql(f"ALTER TABLE {TABLE} MODIFY path VARCHAR(1000) CHARACTER SET utf8mb4 NOT NULL")
        files = [stage.file(name) for name in NAMES]
        # and right below the root, so that rsync's list begins with them.
        changes: dict[str, Any] = {"host": ""} if where == "on this machine" else {}
        with stage.service(workers=1, source_root=str(stage.sources), **changes) as service:
            with one_batch(service, len(files)):
                ids = stage.register(*files)
            # when they are archived, then each is what it was called.
            stage.wait_archived(*ids)
            assert_all_is_well(service)
            assert failures(service) == 0
        assert_nobody_charged(stage)
        assert_whole(stage, ids, files)
        assert_only(stage, *files)


def test_a_file_is_found_by_its_bytes_where_the_table_keeps_bytes(stage: PrivateSite) -> None:
    # Given a name that is no UTF-8, in a table whose path is binary,
    stage.sql(f"ALTER TABLE {TABLE} MODIFY path VARBINARY(260) NOT NULL")
    file = stage.file(os.fsdecode(b"caf\xe9-\xff.npy"))
    with stage.service() as service:
        (id_,) = stage.register(file, path=os.fsencode(file.path))
        # then it is archived under the very same bytes.
        stage.wait_archived(id_)
        assert_all_is_well(service)
    assert os.fsdecode(stage.sql(f"SELECT path FROM {TABLE}")[0][0]) == str(stage.place(file))
    assert_only(stage, file)
    assert [entry["result"] for entry in stage.history(id_)] == ["archived"]


def test_a_name_that_the_table_could_not_keep_is_a_file_that_is_missing(stage: PrivateSite) -> None:
    """A column in latin1 holds characters: a byte that its writer meant as it is comes back as a character, whose name in
    UTF-8 is another. The polling agent did not find such a file either; what counts is that nobody else suffers."""
    # Given a table in latin1, with a name that it can say and one that it cannot,
    stage.sql(f"ALTER TABLE {TABLE} MODIFY path VARCHAR(260) CHARACTER SET latin1 NOT NULL")
    said, unsaid = stage.file("Grüße.npy"), stage.file(os.fsdecode(b"caf\xe9.npy"))
    others = stage.files(5)
    with stage.service(max_attempts=2, workers=1) as service:
        with one_batch(service, 7):
            (lost,) = stage.register(unsaid, path=str(unsaid.path).replace("\udce9", "é"))
            ids = stage.register(said, *others)
        # then the one is archived with all others, and the other is charged as missing.
        stage.wait_archived(*ids)
        assert stage.wait_attempts(lost, 2).attempts == 2
        assert_all_is_well(service)
        assert failures(service, "missing") == 0
    assert_said(stage, lost, "charged", "missing", "No such file")
    assert_whole(stage, ids, [said, *others])
    assert_only(stage, said, *others)
