"""`retry` and `ignore`: what an operator changes in the table, and what must never be changed."""

from __future__ import annotations

import contextlib
import json

import pytest
from asking import ask
from files_table import TABLE
from private_site import HISTORY, TARGET, PrivateSite
from recorded_history import archived, failed
from terminal import Terminal

from cdc_archiver.commands import retry as retry_module
from cdc_archiver.model import Reason


def attempts(stage: PrivateSite, *ids: int) -> list[int | None]:
    return [row.attempts for row in stage.rows(ids)]


def test_a_retry_is_taken_up_by_the_running_service_at_once_through_the_binary_log(stage: PrivateSite) -> None:
    # Given files that a service has given up, and that are there again; sweeps are far apart.
    files = stage.files(2)
    for file in files:
        file.path.unlink()
    with stage.service(max_attempts=1, sweep_interval=3600) as service:
        service.wait_settled()
        ids = stage.register(*files)
        for id_ in ids:
            stage.wait_attempts(id_, 1)
        for file in files:
            file.path.write_bytes(file.content)
        # when an operator says so,
        done = ask(stage, "retry", "--all-quarantined", "--yes", *stage.flags(max_attempts=1))
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "retried 2 files")
        # then they are archived, and it was the stream that told of them.
        stage.wait_archived(*ids)
        assert service.metric("sweep_found_total") == 0
    results = [entry["result"] for entry in stage.history(ids[0])]
    assert results == ["charged", "retried", "archived"]
    assert [str(stage.place(file)) for file in files] == [row.path for row in stage.rows(ids)]


def test_retry_changes_only_files_with_failed_attempts(either_stage: PrivateSite) -> None:
    stage = either_stage
    # Given a row of each kind,
    file = stage.file("file.npy")
    done_id = archived(stage, stage.file("done.npy"))
    stage.sql(f"UPDATE {TABLE} SET failed_copy_attempts = 7 WHERE id = %s", (done_id,))
    fresh, charged, quarantined, refused, ignored = (
        stage.register(file, failed_copy_attempts=number)[0] for number in (0, 3, 5, 1000, 2000)
    )
    (never,) = stage.register(file, failed_copy_attempts=None, copied=None)
    everything = (done_id, fresh, charged, quarantined, refused, ignored, never)
    # when all that failed of the target is retried,
    said = ask(stage, "retry", "--target", TARGET, "--yes")
    # then these are tried again, and no other.
    assert "to retry: 2 files (1 quarantined, 1 pending)" in said.stdout
    assert attempts(stage, *everything) == [7, 0, 0, 0, 1000, 2000, None]
    # A refused one is, where it is named; an ignored and an archived one never.
    said = ask(stage, "retry", *(f"--id={id_}" for id_ in everything), "--yes")
    assert said.returncode == 0
    assert attempts(stage, *everything) == [7, 0, 0, 0, 0, 2000, None]
    assert "left unchanged: 1 file, already archived" in said.stdout
    assert "left unchanged: 1 file, ignored: run `cdc-archiver ignore --undo` first" in said.stdout
    assert "left unchanged: 4 files, already pending" in said.stdout


def test_a_column_timestamp_that_updates_itself_stays_as_it_is(either_stage: PrivateSite) -> None:
    stage = either_stage
    # Given a table as old servers make it, where every UPDATE moves the timestamp, and with it the file's place,
    stage.sql(
        f"ALTER TABLE {TABLE} MODIFY timestamp TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP"
    )
    (id_,) = stage.register(stage.file("file.npy"), failed_copy_attempts=5)
    moment = stage.sql(f"SELECT timestamp FROM {TABLE}")
    # when it is retried, ignored and restored, then the timestamp stays.
    for arguments in (["retry", "--id", str(id_)], ["ignore", str(id_)], ["ignore", "--undo", str(id_)]):
        done = ask(stage, *arguments, "--yes")
        assert done.returncode == 0, done.stderr
        assert stage.sql(f"SELECT timestamp FROM {TABLE}") == moment
    assert attempts(stage, id_) == [0]


def test_retry_by_reason_by_path_and_by_source(stage: PrivateSite) -> None:
    files = [stage.file(name) for name in ("day1/a.npy", "day1/b.npy", "day2/a.npy", "day2/A.NPY")]
    ids = stage.register(*files, failed_copy_attempts=5)
    (others,) = stage.register(files[0], failed_copy_attempts=5, instance_id="another-monitor")
    for id_, reason in zip(ids, (Reason.MISSING, Reason.CHANGED, Reason.CHANGED, Reason.MISSING), strict=True):
        failed(stage, id_, Reason.UNREADABLE)
        failed(stage, id_, reason)

    def would(*arguments: str) -> list[int]:
        done = ask(stage, "retry", *arguments, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["dry_run"], found["changed"]) == (True, 0)
        assert found["would_change"] == len(found["ids"])
        return sorted(found["ids"])

    assert would("--reason", "changed") == [ids[1], ids[2]]
    assert would("--reason", "changed", "--path", f"{stage.sources}/day2/*") == [ids[2]]
    # The database compares without case; a file system does not.
    assert would("--path", f"{stage.sources}/day2/a.npy") == [ids[2]]
    assert would("--path", f"{stage.sources}/day2/a.*") == [ids[2]]
    assert would("--target", "another-monitor") == [others]
    assert would("--all-quarantined") == [*ids, others]
    assert would("--all-quarantined", *stage.flags(http_port=None)) == ids
    assert would("--source", stage.ssh.host, *stage.flags()) == ids
    assert attempts(stage, *ids, others) == [5] * 5
    for wrong in (["--reason", "mising"], ["--source", "nobody"], []):
        done = ask(stage, "retry", *wrong, "--yes")
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


def test_an_unknown_id_is_reported_and_the_others_are_changed(stage: PrivateSite) -> None:
    (id_,) = stage.register(stage.file("file.npy"), failed_copy_attempts=5)
    done = ask(stage, "retry", "--id", str(id_), "--id", "4711", "--yes")
    assert done.returncode == 3
    assert "no row has the id 4711" in done.stderr
    assert attempts(stage, id_) == [0]
    # A mistyped path is as little nothing to do as a mistyped id.
    done = ask(stage, "ignore", f"{stage.sources}/fiel.npy", "--yes")
    assert done.returncode == 3
    assert f"no row has the path {stage.sources}/fiel.npy" in done.stderr


def test_files_that_were_not_shown_are_not_changed(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a question that somebody reads for a while, and a file that is registered meanwhile,
    ids = stage.register(*stage.files(2))

    def reading(question: str, *, yes: bool) -> bool:
        assert question == "ignore 2 files?"
        ids.extend(stage.register(stage.file("later.npy")))
        return True

    monkeypatch.setattr(retry_module, "confirm", reading)
    # when he says yes, then it was not about that one.
    done = ask(stage, "ignore", f"{stage.sources}/*")
    assert done.stdout.splitlines()[-1] == "ignored 2 files"
    assert attempts(stage, *ids) == [2000, 2000, 0]


def test_a_terminal_is_asked_for_a_confirmation_and_a_script_is_not(stage: PrivateSite) -> None:
    ids = stage.register(*stage.files(2), failed_copy_attempts=5)
    # A script cannot confirm.
    done = ask(stage, "retry", "--all-quarantined")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert attempts(stage, *ids) == [5, 5]
    # A person may say no,
    with Terminal(stage, ["retry", "--all-quarantined"]) as terminal:
        seen = terminal.wait_for("retry 2 files? [y/N]")
        assert "to retry: 2 files" in seen
        assert "f0001.npy" in seen
        terminal.type("n")
        assert terminal.end().returncode == 0
    assert attempts(stage, *ids) == [5, 5]
    # as with Ctrl-C,
    with Terminal(stage, ["retry", "--all-quarantined"]) as terminal:
        terminal.wait_for("[y/N]")
        done = terminal.interrupt()
    assert done.returncode == 130
    assert "nothing was changed" in done.stdout
    assert "Traceback" not in done.stdout
    assert attempts(stage, *ids) == [5, 5]
    # or yes.
    with Terminal(stage, ["retry", "--all-quarantined"]) as terminal:
        terminal.wait_for("[y/N]")
        terminal.type("y")
        terminal.wait_for("retried 2 files")
        assert terminal.end().returncode == 0
    assert attempts(stage, *ids) == [0, 0]


def test_a_locked_row_is_reported_and_its_neighbours_are_changed(
    stage: PrivateSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc_archiver.database.connections._LOCK_WAIT", 1)
    ids = stage.register(*stage.files(3), failed_copy_attempts=5)
    with contextlib.closing(stage.connect(autocommit=False)) as other, other.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {TABLE} WHERE id = %s FOR UPDATE", (ids[1],))
        done = ask(stage, "retry", "--all-quarantined", "--yes")
    assert done.returncode == 3
    assert "1 file could not be changed: another open transaction has locked the rows" in done.stderr
    assert attempts(stage, *ids) == [0, 5, 0]


def test_many_files_are_changed_in_chunks(stage: PrivateSite) -> None:
    ids = stage.register(*[stage.file("one.npy")] * 1500, failed_copy_attempts=5)
    done = ask(stage, "retry", "--all-quarantined", "--yes")
    assert done.stdout.splitlines()[-1] == "retried 1500 files"
    assert "… and 1490 more" in done.stdout
    assert stage.count("failed_copy_attempts = 0") == len(ids)


def test_ignored_files_are_not_tried_again_raise_no_alert_and_keep_name_and_reason(stage: PrivateSite) -> None:
    file = stage.file("lost.npy")
    file.path.unlink()
    with stage.service(max_attempts=1) as service:
        (id_,) = stage.register(file)
        stage.wait_attempts(id_, 1)
        # when an operator gives a file up,
        done = ask(stage, "ignore", str(id_), "--reason", "disk of crate 3 died", "--yes")
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "ignored 1 file")
        assert attempts(stage, id_) == [2000]
        # then no run has anything to complain of,
        service.stop()
    reconciled = ask(stage, "run", "--reconcile", *stage.flags())
    assert reconciled.returncode == 0, reconciled.stderr
    assert "1 ignored" in reconciled.stdout
    # and whoever asks is told who it was, and why.
    told = ask(stage, "why", str(id_)).stdout
    assert told.startswith("It is not here because it is marked as ignored: by ")
    assert "@" in told.splitlines()[0]
    assert "disk of crate 3 died" in told.splitlines()[0]
    note = stage.history(id_)[-1]
    assert (note["result"], note["source_path"]) == ("ignored", str(file.path))
    # Undone, it is tried again.
    file.path.write_bytes(file.content)
    done = ask(stage, "ignore", "--undo", str(id_), "--yes")
    assert (done.returncode, attempts(stage, id_)) == (0, [0])
    assert stage.history(id_)[-1]["result"] == "restored"
    with stage.service(max_attempts=1):
        stage.wait_archived(id_)


def test_ignore_takes_paths_and_leaves_archived_files_unchanged(stage: PrivateSite) -> None:
    one, two, three = stage.file("old/one.npy"), stage.file("old/two.npy"), stage.file("new/one.npy")
    ids = stage.register(one, two, three)
    done_id = archived(stage, stage.file("old/done.npy"))
    done = ask(stage, "ignore", f"{stage.sources}/old/*", str(done_id), "--yes")
    assert done.returncode == 0
    assert attempts(stage, *ids, done_id) == [2000, 2000, 0, 0]
    assert "left unchanged: 1 file, already archived" in done.stdout
    again = ask(stage, "ignore", str(ids[0]), "--yes")
    assert again.stdout.splitlines() == ["nothing to ignore", "left unchanged: 1 file, already ignored"]
    assert ask(stage, "ignore", "--yes").returncode == 2
    undone = ask(stage, "ignore", "--undo", str(ids[0]), str(ids[2]), "--yes")
    assert attempts(stage, *ids) == [0, 2000, 0]
    assert "left unchanged: 1 file, not ignored" in undone.stdout


def test_without_a_history_the_change_is_made_and_the_missing_note_is_reported(either_stage: PrivateSite) -> None:
    stage = either_stage
    ask(stage, "list")
    account = f"'{stage.user}'@'%'"
    (id_,) = stage.register(stage.file("file.npy"), failed_copy_attempts=5)
    failed(stage, id_, Reason.MISSING)
    # It may be read, and not written.
    stage.server.execute(f"REVOKE INSERT ON {stage.database}.{HISTORY} FROM {account}")
    done = ask(stage, "ignore", str(id_), "--yes")
    assert done.returncode == 0
    assert "the history has no note of this change: the history cannot be written: " in done.stderr
    assert attempts(stage, id_) == [2000]
    # It may not even be read.
    stage.server.execute(f"REVOKE CREATE, SELECT, DELETE ON {stage.database}.{HISTORY} FROM {account}")
    stage.sql(f"REVOKE SELECT, UPDATE ON {stage.database}.* FROM {account}")
    stage.sql(f"GRANT SELECT, UPDATE ON {stage.database}.{TABLE} TO {account}")
    done = ask(stage, "ignore", "--undo", str(id_), "--yes")
    assert done.returncode == 0
    assert "the history has no note of this change: " in done.stderr
    assert attempts(stage, id_) == [0]
    # What cannot be had without it says so.
    done = ask(stage, "retry", "--reason", "missing", "--yes")
    assert done.returncode == 2
    assert "--reason needs the history" in done.stderr
