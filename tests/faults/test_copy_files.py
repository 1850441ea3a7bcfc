"""Faults of single files, all at once and one by one: each gets its own outcome and does not affect the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_places import staging_of
from copy_assertions import (
    assert_archive_is_exactly,
    assert_archived,
    assert_healthy,
    assert_history_has,
    assert_no_failed_attempts,
    failure_count,
    one_batch,
    shorten_pauses,
    wait_failures,
)
from fake_rsync import DROPS_CAPABILITIES, FakeRsync, leaves_out
from files_table import TABLE
from private_site import PrivateSite, SourceFile, new_private_site
from waiting import eventually

from cdc_archiver.dispatch import retry_delays
from cdc_archiver.dispatch.dispatcher import Dispatcher
from cdc_archiver.model import Batch, Deferred, Outcome, Reason
from cdc_archiver.sandbox import DatabaseServer, MariaDb, SshServer
from cdc_archiver.sandbox.packages import bin_directory

REMOTE_PATH = f"{bin_directory()}:/usr/local/bin:/usr/bin:/bin"


@pytest.fixture
def stage(
    mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PrivateSite]:
    """A site where retries come in a moment."""
    shorten_pauses(monkeypatch)
    with new_private_site(mariadb, ssh_server, tmp_path) as made:
        yield made
        ssh_server.authorize()


@pytest.fixture
def readable_by_mode(stage: PrivateSite) -> None:
    """The account on the host reads only what file modes allow, even where it is root."""
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


FAILED: dict[str, tuple[Callable[[SourceFile], None], str, str]] = {
    "gone.npy": (gone, "missing", "No such file"),
    "unreadable.npy": (unreadable, "unreadable", "Permission denied"),
    "changed.npy": (changed, "changed", "the file's md5, "),
    "emptied.npy": (emptied, "changed", "the file's md5, "),
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


def test_one_bad_file_of_each_kind_does_not_affect_five_hundred_others(
    stage: PrivateSite, readable_by_mode: None
) -> None:
    good = stage.files(500)
    failed = [stage.file(name) for name in FAILED]
    refused = [stage.file(name) for name in REFUSED]
    for file, (spoil, _, _) in zip(failed, FAILED.values(), strict=True):
        spoil(file)
    for file, become in zip(refused, REFUSED.values(), strict=True):
        become(file)
    count = 500 + len(FAILED) + len(REFUSED) + len(IMPOSSIBLE)
    with stage.service(workers=1, batch_files=count, max_attempts=2) as service:
        # Given one batch of five hundred good files with one bad file of each kind among them,
        service.wait_settled()  # a sweep of the start that finds some of them first would have them read twice
        with one_batch(service, count):
            ids = stage.register(*good[:100])
            failed_ids = stage.register(*failed)
            ids += stage.register(*good[100:300])
            refused_ids = stage.register(*refused)
            ids += stage.register(*good[300:])
            impossible_ids = [stage.register(good[0], **columns)[0] for columns in IMPOSSIBLE.values()]
        # when it is copied, then all good files are archived,
        stage.wait_archived(*ids)
        # (retries come meanwhile; asked in this order, the difference is never too large)
        whole = lambda: service.metric("batch_files_count") - service.metric("batch_files_bucket", le="500.0") == 1
        eventually(whole, "they all went in one batch")
        # each other file has a failed attempt or is refused, and the source is up.
        for id_ in failed_ids:
            stage.wait_attempts(id_, 2)
        for id_ in refused_ids + impossible_ids:
            assert stage.wait_attempts(id_, 1).attempts == 1000
        assert_healthy(service)
        expected = {reason for _, reason, _ in FAILED.values()} | {"not_a_file", *IMPOSSIBLE}
        assert all(service.metric("copy_failures_total", reason=reason) for reason in expected)
        assert failure_count(service, *expected) == 0
        # When their files are correct again, and an operator retries them, then they are archived as well.
        (failed[-1].path.parent).unlink()
        failed[-1].path.parent.mkdir()
        for file in failed:
            file.path.write_bytes(file.content)
            file.path.chmod(0o644)
        stage.sql(f"UPDATE {TABLE} SET failed_copy_attempts = 0 WHERE failed_copy_attempts = 2")
        stage.wait_archived(*failed_ids)
    assert_archived(stage, ids, good)
    assert_archive_is_exactly(stage, *good, *failed)
    for id_, file, (_, reason, message) in zip(failed_ids, failed, FAILED.values(), strict=True):
        entry = assert_history_has(stage, id_, "charged", reason, message)
        assert entry["md5_row"] == file.md5
        assert (entry["md5_seen"] is None) == (reason != "changed")
        assert [each["result"] for each in stage.history(id_)] == ["charged", "charged", "archived"]
    for id_ in refused_ids:
        assert_history_has(stage, id_, "refused", "not_a_file", "a directory, a link or a device")
        assert len(stage.history(id_)) == 1
    assert [stage.history(id_)[0]["reason"] for id_ in impossible_ids] == list(IMPOSSIBLE)


def test_one_missing_file_among_others_is_a_failed_attempt_and_the_source_stays_up(stage: PrivateSite) -> None:
    """rsync status 23 and 24: missing from the beginning, or vanished after rsync listed it."""
    # Given a batch whose first file is slow,
    slow, vanishes, sound = stage.file("a-slow.npy", size=3_000_000), stage.file("b-vanishes.npy"), stage.file("c.npy")
    with stage.service(workers=1, bwlimit="1500k", max_attempts=2) as service:
        with one_batch(service, 3):
            first, second, third = stage.register(slow, vanishes, sound)
        staged = lambda: any(path.stat().st_size for path in staging_of(stage.data_dir).rglob(".a-slow.npy.*"))
        eventually(staged, "the first is on its way")
        # when the second is deleted, which rsync has on its list,
        vanishes.path.unlink()
        # then only it has a failed attempt, and only at the next try: its disk might be going away.
        stage.wait_attempts(second, 1)
        stage.wait_archived(first, third)
        assert_healthy(service)
        assert failure_count(service, "missing", "undecided") == 0
    assert_history_has(stage, second, "charged", "missing", "No such file")
    assert_archived(stage, [first, third], [slow, sound])
    assert_archive_is_exactly(stage, slow, sound)


def test_a_file_that_is_rewritten_while_it_is_read_is_never_archived_in_part(stage: PrivateSite) -> None:
    # Given a file on its way,
    file = stage.file("rewritten.npy", size=4_000_000)
    with stage.service(bwlimit="2m") as service:
        (id_,) = stage.register(file)
        staged = lambda: any(path.stat().st_size for path in staging_of(stage.data_dir).rglob(".rewritten.npy.*"))
        eventually(staged, "it is on its way")
        # when the instrument writes another into it,
        with file.path.open("r+b") as there:
            there.write(os.urandom(4_000_000))
        # then the received file is neither of the two: a failed attempt, and nothing of it is in the archive,
        stage.wait_attempts(id_, 1)
        assert stage.archived_files() == []
        assert failure_count(service, "changed") == 0
        entry = assert_history_has(stage, id_, "charged", "changed", file.md5.hex())
        assert entry["md5_seen"] not in (None, file.md5)
        # until the file is what was registered.
        file.path.write_bytes(file.content)
        stage.wait_archived(id_)
        assert_healthy(service)
    assert_archive_is_exactly(stage, file)
    assert stage.place(file).read_bytes() == file.content


def test_a_file_that_shrinks_while_it_is_read_has_a_failed_attempt_and_its_neighbours_go_on(stage: PrivateSite) -> None:
    # Given a file on its way, and others behind it,
    file, others = stage.file("a-shrinks.npy", size=4_000_000), stage.files(3)
    with stage.service(workers=1, bwlimit="2m", max_attempts=2) as service:
        with one_batch(service, 4):
            (id_, *ids) = stage.register(file, *others)
        staged = lambda: any(path.stat().st_size for path in staging_of(stage.data_dir).rglob(".a-shrinks.npy.*"))
        eventually(staged, "it is on its way")
        # when the instrument cuts it,
        os.truncate(file.path, 1000)
        # then it has failed attempts of its own, the others arrive, and the source is up.
        stage.wait_archived(*ids)
        stage.wait_attempts(id_, 1)
        assert_healthy(service)
        assert failure_count(service, "changed") == 0
    assert_history_has(stage, id_, "charged", "changed", "the file's md5, ")
    assert_archived(stage, ids, others)
    assert_archive_is_exactly(stage, *others)


def test_a_whole_unreadable_batch_is_a_failure_of_the_source(stage: PrivateSite, readable_by_mode: None) -> None:
    # Given a directory that an administrator has closed to the account,
    files = [stage.file(f"closed/{number}.npy") for number in range(4)]
    (stage.sources / "closed").chmod(0o600)
    try:
        with stage.service(max_attempts=2, workers=1) as service:
            with one_batch(service, len(files)):
                ids = stage.register(*files)
            # when it was tried more often than --max-attempts, then no attempt has failed,
            wait_failures(service, "source_not_mounted", 3 * len(files))
            service.wait_state("no source")
            assert "that the login may read it" in service.get("/readyz")[1]
            assert_no_failed_attempts(stage)
            # and all is archived when it is open again.
            (stage.sources / "closed").chmod(0o700)
            stage.wait_archived(*ids)
            assert_healthy(service)
    finally:
        (stage.sources / "closed").chmod(0o700)
    assert_no_failed_attempts(stage)
    assert_archived(stage, ids, files)


# The source's disk.


@pytest.mark.parametrize(
    "how", ["together", "one after the other", "with a key that sees nothing else", "the root itself"]
)
def test_an_unmounted_disk_on_the_source_causes_no_failed_attempt(stage: PrivateSite, how: str) -> None:
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
        # then it is recognised and reported after at most three files,
        wait_failures(service, "source_not_mounted", 3)
        service.wait_state("no source")
        assert "the disk is mounted" in service.get("/readyz")[1]
        assert (service.metric("source_up"), service.metric("destination_up")) == (0, 1)
        # (where files come one by one, the first two fail: the cause cannot be known yet)
        failed = [row.attempts for row in stage.rows(ids)]
        assert failed[2:] == [0, 0]
        assert how == "one after the other" or failed[:2] == [0, 0]
        # and it is asked again and again, which costs no file a try,
        wait_failures(service, "source_not_mounted", 10)
        assert [row.attempts for row in stage.rows(ids)] == failed
        # and all is archived when it is mounted.
        mounted.rmdir()
        away.rename(mounted)
        stage.wait_archived(*ids)
        assert_healthy(service)
        assert failure_count(service, "source_not_mounted", "missing") == 0
    assert_archive_is_exactly(stage, *files)
    if not any(failed):
        assert_no_failed_attempts(stage)
        assert_archived(stage, ids, files)


# Neither a line nor an error.


def test_a_file_that_rsync_does_not_report_is_tried_alone_at_the_third_try(
    stage: PrivateSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an rsync that does not report a file that is not the only one of its batch,
    fake = FakeRsync(stage.directory / "fake")
    fake.misbehave(leaves_out("odd.npy"))
    monkeypatch.setenv("PATH", fake.before(os.environ["PATH"]))
    monkeypatch.setattr(retry_delays, "INCONCLUSIVE_DELAYS", (0.05,))
    monkeypatch.setattr(retry_delays, "delay_after", lambda delays, tries: 0.05)
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
        # then it is tried alone, and arrives;
        stage.wait_archived(id_, *ids)
        assert_healthy(service)
        assert service.metric("copy_failures_total", reason="undecided") == 2
        assert failure_count(service, "undecided") == 0
    # and no attempt has failed.
    assert_no_failed_attempts(stage)
    assert_archived(stage, [id_, *ids], [odd, *files])


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
    """On both database servers: each treats a backslash and four-byte characters in its own way. And locally: there rsync treats
    lines of a list that begin with # or ; as comments."""
    with new_private_site(database_server, ssh_server, tmp_path) as stage:
        # Given unusual names, in a column that holds the longest,
        stage.sql(f"ALTER TABLE {TABLE} MODIFY path VARCHAR(1000) CHARACTER SET utf8mb4 NOT NULL")
        files = [stage.file(name) for name in NAMES]
        # and right below the root, so that rsync's list begins with them.
        changes: dict[str, Any] = {"host": ""} if where == "on this machine" else {}
        with stage.service(workers=1, source_root=str(stage.sources), **changes) as service:
            with one_batch(service, len(files)):
                ids = stage.register(*files)
            # when they are archived, then each is what it was called.
            stage.wait_archived(*ids)
            assert_healthy(service)
            assert failure_count(service) == 0
        assert_no_failed_attempts(stage)
        assert_archived(stage, ids, files)
        assert_archive_is_exactly(stage, *files)


def test_a_file_is_found_by_its_bytes_where_the_table_keeps_bytes(stage: PrivateSite) -> None:
    # Given a name that is not UTF-8, in a table whose path is binary,
    stage.sql(f"ALTER TABLE {TABLE} MODIFY path VARBINARY(260) NOT NULL")
    file = stage.file(os.fsdecode(b"caf\xe9-\xff.npy"))
    with stage.service() as service:
        (id_,) = stage.register(file, path=os.fsencode(file.path))
        # then it is archived under the very same bytes.
        stage.wait_archived(id_)
        assert_healthy(service)
    assert os.fsdecode(stage.sql(f"SELECT path FROM {TABLE}")[0][0]) == str(stage.place(file))
    assert_archive_is_exactly(stage, file)
    assert [entry["result"] for entry in stage.history(id_)] == ["archived"]


def test_a_name_that_the_table_cannot_store_is_a_missing_file(stage: PrivateSite) -> None:
    """A column in latin1 holds characters: a byte of a file name comes back as a character, which in UTF-8 is another name. The
    polling agent did not find such a file either; what counts is that no other file is affected."""
    # Given a table in latin1, with a name that it can store and one that it cannot,
    stage.sql(f"ALTER TABLE {TABLE} MODIFY path VARCHAR(260) CHARACTER SET latin1 NOT NULL")
    storable, unstorable = stage.file("Grüße.npy"), stage.file(os.fsdecode(b"caf\xe9.npy"))
    others = stage.files(5)
    with stage.service(max_attempts=2, workers=1) as service:
        with one_batch(service, 7):
            (lost,) = stage.register(unstorable, path=str(unstorable.path).replace("\udce9", "é"))
            ids = stage.register(storable, *others)
        # then the first is archived with all others, and the second has failed attempts as missing.
        stage.wait_archived(*ids)
        assert stage.wait_attempts(lost, 2).attempts == 2
        assert_healthy(service)
        assert failure_count(service, "missing") == 0
    assert_history_has(stage, lost, "charged", "missing", "No such file")
    assert_archived(stage, ids, [storable, *others])
    assert_archive_is_exactly(stage, storable, *others)
