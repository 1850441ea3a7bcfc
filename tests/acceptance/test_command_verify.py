"""`verify`: compares archived files with their rows, and requeues those with a problem."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from archive_places import staging_of
from asking import ask
from files_table import TABLE
from private_site import HISTORY, PrivateSite
from prometheus_client.parser import text_string_to_metric_families
from recorded_history import archived

from cdc_archiver.commands.hashing import hash_file
from cdc_archiver.commands.verify import verification
from cdc_archiver.errors import DatabaseUnavailable


def run(stage: PrivateSite, *arguments: str, status: int = 0) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What a script is told: the files that are not right, and the sums."""
    done = ask(stage, "verify", "--json", *arguments, *stage.flags())
    assert done.returncode == status, done.stderr
    *problems, last = [json.loads(line) for line in done.stdout.splitlines()]
    return problems, last["sums"]


def verdicts(problems: list[dict[str, Any]]) -> dict[int, str]:
    return {problem["id"]: problem["verdict"] for problem in problems}


def test_each_verdict_for_people_and_for_scripts(either_stage: PrivateSite) -> None:
    stage = either_stage
    # Given files that were archived, and what years do to them; and some that are not archived,
    files = stage.files(6)
    right, gone, changed, directory, looped, elsewhere = (archived(stage, file) for file in files)
    stage.register(files[0])
    stage.place(files[1]).unlink()
    stage.place(files[2]).write_bytes(b"another")
    stage.place(files[3]).unlink()
    stage.place(files[3]).mkdir()
    loop = stage.data_dir / "loop"
    loop.symlink_to(loop)
    stage.sql(f"UPDATE {TABLE} SET path = %s WHERE id = %s", (f"{loop}/x.npy", looped))
    stage.sql(f"UPDATE {TABLE} SET path = 'relative.npy' WHERE id = %s", (elsewhere,))
    # then each is called by its name,
    problems, sums = run(stage, status=3)
    expected = {gone: "missing", changed: "changed", directory: "changed", looped: "unreadable", elsewhere: "elsewhere"}
    assert verdicts(problems) == expected
    assert sums["verdicts"] == {"ok": 1, "missing": 1, "changed": 2, "unreadable": 1, "elsewhere": 1, "handed_over": 0}
    assert (sums["total"], sums["complete"], sums["unregistered"], sums["requeued"]) == (6, True, None, 0)
    # also for a person,
    done = ask(stage, "verify", *stage.flags())
    assert done.returncode == 3
    lines = done.stdout.splitlines()
    assert f"missing    {gone}  {stage.place(files[1])}: it does not exist" in lines
    assert any(line.startswith("changed") and files[2].md5.hex() in line for line in lines)
    assert lines[-1].startswith("verified 6 files, ")
    assert lines[-1].endswith(": 1 right, 1 missing, 2 changed, 1 unreadable, 1 elsewhere")
    # and nothing has changed.
    assert stage.count("copied = 1") == 6
    # Where all is right, the status says so.
    stage.sql(f"DELETE FROM {TABLE} WHERE id > %s", (right,))
    assert run(stage)[0] == []


def test_requeued_files_are_archived_again_by_the_running_service(either_stage: PrivateSite) -> None:
    stage = either_stage
    files = stage.files(5)
    with stage.service(sweep_interval=3600) as service:
        service.wait_settled()
        ids = stage.register(*files)
        stage.wait_archived(*ids)
        # Given a file that is gone, one that is damaged, one that its source does not have any more either,
        stage.place(files[0]).unlink()
        stage.place(files[1]).write_bytes(b"damaged")
        stage.place(files[2]).unlink()
        files[2].path.unlink()
        # and one whose row somebody has changed, so that the history knows nothing of it,
        (stage.data_dir / "moved.npy").write_bytes(b"x")
        stage.sql(f"UPDATE {TABLE} SET path = %s WHERE id = %s", (f"{stage.data_dir}/moved.npy", ids[3]))
        # when they are requeued,
        problems, sums = run(stage, "--requeue", status=3)
        notes = {problem["id"]: (problem["requeued"], problem["requeue_note"]) for problem in problems}
        assert notes == {
            ids[0]: (True, ""),
            ids[1]: (True, ""),
            ids[2]: (False, "its source no longer has it"),
            ids[3]: (False, "the history does not know its path on the source"),
        }
        assert sums["requeued"] == 2
        # then the service archives them anew, and the stream told it so; the damaged one is kept alongside.
        stage.wait_archived(ids[0], ids[1])
        assert service.metric("sweep_found_total") == 0
    place = stage.place(files[1])
    assert stage.row(ids[0]).path == str(stage.place(files[0]))
    assert stage.row(ids[1]).path == f"{place}.1"
    assert (place.read_bytes(), Path(f"{place}.1").read_bytes()) == (b"damaged", files[1].content)
    assert stage.row(ids[2]).path == str(stage.place(files[2]))
    assert stage.count("copied = 1") == 5
    results = [entry["result"] for entry in stage.history(ids[0])]
    assert results == ["archived", "requeued", "archived"]
    assert run(stage, status=3)[1]["verdicts"] == {
        "ok": 3,
        "missing": 1,
        "changed": 1,
        "unreadable": 0,
        "elsewhere": 0,
        "handed_over": 0,
    }


def test_a_requeued_rows_timestamp_stays(stage: PrivateSite) -> None:
    stage.sql(
        f"ALTER TABLE {TABLE} MODIFY timestamp TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP"
    )
    file = stage.file("file.npy")
    id_ = archived(stage, file)
    stage.sql(f"UPDATE {TABLE} SET timestamp = '2020-05-15 04:34:24'")
    stage.place(file).unlink()
    (stage.data_dir / "15895/other").write_bytes(b"")
    run(stage, "--requeue", status=3)
    (row,) = stage.sql(f"SELECT path, copied, failed_copy_attempts, timestamp FROM {TABLE} WHERE id = {id_}")
    assert row[:3] == (str(file.path), 0, 0)
    assert str(row[3]) == "2020-05-15 04:34:24"


def test_a_name_that_is_not_utf_8_is_requeued_too(either_stage: PrivateSite) -> None:
    stage = either_stage
    stage.sql(f"ALTER TABLE {TABLE} MODIFY path VARBINARY(260) NOT NULL")
    file = stage.file("caf\udce9.npy")
    stage.register(stage.file("other.npy"))
    with stage.service(sweep_interval=3600) as service:
        service.wait_settled()
        (id_,) = stage.register(file, path=os.fsencode(file.path))
        stage.wait_archived(id_)
        stage.place(file).unlink()
        problems, _ = run(stage, "--requeue", status=3)
        assert [problem["requeued"] for problem in problems] == [True]
        stage.wait_archived(id_)
    assert os.fsencode(stage.place(file)) == stage.sql(f"SELECT path FROM {TABLE} WHERE id = {id_}")[0][0]
    assert stage.place(file).read_bytes() == file.content
    # A person sees its bytes as escapes, and finds it by its name.
    words = ask(stage, "why", "caf\udce9", *stage.flags()).stdout
    assert words.startswith("It is here: archived")
    assert r"caf\udce9.npy" in words


def test_requeue_needs_the_history_and_a_source_that_can_be_examined(stage: PrivateSite) -> None:
    file = stage.file("file.npy")
    id_ = archived(stage, file)
    stage.place(file).write_bytes(b"damaged")
    # A restricted key cannot be looked through: nothing is promised that may not be there.
    problems, _ = run(stage, "--requeue", "--restricted-key", "--source-root", str(stage.sources), status=3)
    assert "is restricted to rsync, so the file cannot be examined" in problems[0]["requeue_note"]
    done = ask(stage, "verify", "--requeue", "--data-dir", str(stage.data_dir))
    assert done.returncode == 2
    assert "--requeue needs a configured source" in done.stderr
    stage.sql(f"DROP TABLE {HISTORY}")
    done = ask(stage, "verify", "--requeue", *stage.flags())
    assert done.returncode == 2
    assert "--requeue needs the history" in done.stderr
    assert stage.row(id_).copied == 1


def test_an_unmounted_disk_is_not_an_archive_of_missing_files(stage: PrivateSite) -> None:
    files = stage.files(3)
    ids = [archived(stage, file) for file in files]
    stage.data_dir.rename(stage.directory / "unmounted")
    stage.data_dir.mkdir()
    done = ask(stage, "verify", "--requeue", *stage.flags())
    assert done.returncode == 4
    assert f": the disk is not mounted; fix: mount {stage.data_dir}  #" in done.stderr
    # A mount point that holds something is still none.
    (stage.data_dir / "lost+found").mkdir()
    done = ask(stage, "verify", "--requeue", *stage.flags())
    assert done.returncode == 4
    assert (
        "the database knows files there, and it has no directory of a timecode: the disk is not mounted" in done.stderr
    )
    told = ask(stage, "why", str(ids[0]), *stage.flags()).stdout
    assert "cannot be examined from here" in told.splitlines()[0]
    assert "the disk is not mounted" in told.splitlines()[0]
    shutil.rmtree(stage.data_dir)
    assert ask(stage, "verify", *stage.flags()).returncode == 4
    assert [row.copied for row in stage.rows(ids)] == [1, 1, 1]
    assert ask(stage, "verify").returncode == 2


def test_a_disk_that_is_unmounted_meanwhile_ends_the_run(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    files = stage.files(5)
    for file in files:
        archived(stage, file)
    calls = itertools.count()

    def unmounting(path: str, *more: Any, **options: Any) -> Any:
        if next(calls) == 2:
            for entry in stage.data_dir.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return hash_file(path, *more, **options)

    monkeypatch.setattr(verification, "hash_file", unmounting)
    done = ask(stage, "verify", "--requeue", "--jobs", "1", *stage.flags())
    assert done.returncode == 4
    assert f"fix: mount {stage.data_dir}" in done.stderr
    assert stage.count("copied = 1") == 5


def test_unreadable_files_are_not_requeued_and_the_next_run_does_what_one_left(
    stage: PrivateSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a damaged file, one that cannot be read here, and a database that goes away a little later,
    files = stage.files(6)
    ids = [archived(stage, file) for file in files]
    stage.place(files[0]).write_bytes(b"damaged")
    away = [DatabaseUnavailable("the database went away")]

    def reading(path: str, *more: Any, **options: Any) -> Any:
        if path == str(stage.place(files[1])):
            raise PermissionError(13, "Permission denied")
        if path == str(stage.place(files[4])) and away:
            raise away.pop()
        return hash_file(path, *more, **options)

    monkeypatch.setattr(verification, "hash_file", reading)
    words = ["verify", "--json", "--requeue", "--jobs", "1", "--state", str(stage.directory / "state"), *stage.flags()]
    # then what was found so far is told, and nothing is done about it;
    first = ask(stage, *words)
    assert first.returncode == 4
    told = [json.loads(line) for line in first.stdout.splitlines()]
    assert verdicts(told) == {ids[0]: "changed", ids[1]: "unreadable"}
    assert {problem["requeue_note"] for problem in told} == {"the run ended before that"}
    assert stage.count("copied = 1") == 6
    # and the next run has it done, but for the one of which nothing is known.
    problems, sums = run(stage, *words[2 : -len(stage.flags())], status=3)
    assert {problem["id"]: problem["requeue_note"] for problem in problems} == {
        ids[0]: "",
        ids[1]: "it cannot be read here; fix that first",
    }
    assert sums["verdicts"] == {"ok": 4, "missing": 0, "changed": 1, "unreadable": 1, "elsewhere": 0, "handed_over": 0}
    assert [row.copied for row in stage.rows(ids)] == [0, 1, 1, 1, 1, 1]
    # A single file is named.
    assert run(stage, str(ids[2]))[1]["total"] == 1
    assert ask(stage, "verify", "4711", *stage.flags()).returncode == 2


def test_a_selection_by_time_by_target_or_by_random_sample(stage: PrivateSite) -> None:
    ids = [archived(stage, file) for file in stage.files(20, size=10)]
    stage.sql(f"UPDATE {TABLE} SET timestamp = '2021-01-01 00:00:00' WHERE id <= %s", (ids[4],))
    stage.sql(f"UPDATE {TABLE} SET instance_id = 'm2' WHERE id = %s", (ids[0],))
    assert run(stage, "--since", "2021-01-01")[1]["total"] == 4
    assert run(stage, "--until", "2021-01-01")[1]["total"] == 15
    assert run(stage, "--sample", "7")[1]["verdicts"]["ok"] == 7
    assert run(stage, "--sample", "50%", "--source", stage.ssh.host)[1]["verdicts"]["ok"] == 10
    assert run(stage, "--sample", "1000")[1]["verdicts"]["ok"] == 19
    everybodys = ask(stage, "verify", "--json", "--data-dir", str(stage.data_dir))
    assert json.loads(everybodys.stdout)["sums"]["total"] == 20
    for wrong in ("0", "none", "101%", "-3"):
        done = ask(stage, "verify", f"--sample={wrong}", *stage.flags())
        assert done.returncode == 2
        assert "invalid sample: " in done.stderr


@pytest.mark.parametrize("sample", [(), ("--sample", "17")], ids=["all", "sample"])
def test_an_interrupted_run_continues_where_it_stopped(
    stage: PrivateSite, monkeypatch: pytest.MonkeyPatch, sample: tuple[str, ...]
) -> None:
    # Given twenty files, two of them damaged, and a run with a state,
    files = stage.files(20, size=10)
    ids = [archived(stage, file) for file in files]
    for number in (3, 17):
        stage.place(files[number]).write_bytes(b"damaged")
    if sample:
        lost = (f"{TABLE} WHERE id <= {ids[19]} AND id > {ids[15]}", f"{TABLE} WHERE id = {ids[17]}")
        stage.sql(f"DELETE FROM {lost[0]} AND id <> {ids[17]}")
        sample = ("--sample", "17")
    total = 17 if sample else 20
    state = stage.directory / "verify.state"
    read: list[str] = []

    def interrupted(path: str, *more: Any, **options: Any) -> Any:
        read.append(path)
        if len(read) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return hash_file(path, *more, **options)

    monkeypatch.setattr(verification, "hash_file", interrupted)
    # when it is interrupted,
    first, sums = run(stage, "--state", str(state), "--jobs", "1", *sample, status=130)
    assert sums["complete"] is False
    done_before = sum(sums["verdicts"].values())
    assert 0 < done_before < total
    assert verdicts(first) == {ids[3]: "changed"}
    # then another run says that it goes on,
    done = ask(stage, "verify", "--state", str(state), "--since", "2d", *stage.flags())
    assert done.returncode == 2
    assert "is of a run with other values: since" in done.stderr
    read.clear()
    read.extend([""] * 1000)  # no interruption any more
    second_begins = len(read)
    second, sums = run(stage, "--state", str(state), *sample, status=3)
    # reads what is left and nothing twice, and its sums are those of both.
    assert len(read) - second_begins == total - done_before
    assert verdicts(second) == {ids[17]: "changed"}
    assert sums["verdicts"] == {
        "ok": total - 2,
        "missing": 0,
        "changed": 2,
        "unreadable": 0,
        "elsewhere": 0,
        "handed_over": 0,
    }
    # What is complete is begun anew.
    assert sum(run(stage, "--state", str(state), *sample, status=3)[1]["verdicts"].values()) == total


def test_files_without_a_row(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given files with a row, files that the running service has placed and not recorded yet, files of an older table,
    named, placed, older = stage.files(3)
    archived(stage, named)
    stage.register(placed)
    stage.place(placed).write_bytes(placed.content)
    old_id = archived(stage, older)
    stage.sql(f"CREATE TABLE {TABLE}_v0 LIKE {TABLE}")
    stage.sql(f"INSERT INTO {TABLE}_v0 SELECT * FROM {TABLE} WHERE id = %s", (old_id,))
    stage.sql(f"DELETE FROM {TABLE} WHERE id = %s", (old_id,))
    # the archiver's own, and what a crash of another program left behind,
    (staging_of(stage.data_dir) / "x").mkdir(parents=True)
    (staging_of(stage.data_dir) / "x/part").write_bytes(b"part")
    left = Path(f"{stage.place(named)}.1")
    left.write_bytes(named.content)
    stray = stage.data_dir / "two\nlines.txt"
    stray.write_bytes(b"")
    # then these two are told, where it is asked for.
    assert run(stage)[1]["unregistered"] is None
    problems, sums = run(stage, "--unregistered", status=3)
    assert {problem["path"] for problem in problems} == {str(left), str(stray)}
    assert (sums["unregistered"], sums["verdicts"]["ok"]) == (2, 1)
    words = ask(stage, "verify", "--unregistered", *stage.flags()).stdout
    assert rf"unregistered {stage.data_dir}/two\nlines.txt: no row names it" in words
    # Under another name of the directory, every good file would be a stranger: nothing is told.
    (stage.directory / "link").symlink_to(stage.data_dir)
    done = ask(stage, "verify", "--unregistered", "--json", *stage.flags(data_dir=stage.directory / "link"))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"no archived row of {TABLE} is below {stage.directory}/link" in done.stderr
    stage.sql(f"UPDATE {TABLE} SET path = %s WHERE copied = 0", (f"{stage.directory}/link/two\nlines.txt",))
    stage.sql(f"UPDATE {TABLE} SET copied = 1 WHERE copied = 0")
    problems, _ = run(stage, "--unregistered", status=3)
    assert stray not in {Path(problem["path"]) for problem in problems if problem["verdict"] == "unregistered"}
    # A directory that may not be read is said, and the rest is looked at.
    listed, closed = os.scandir, stage.place(named).parent

    def scandir(directory: Any) -> Any:
        if Path(directory) == closed:
            raise PermissionError(13, "Permission denied", directory)
        return listed(directory)

    monkeypatch.setattr(os, "scandir", scandir)
    done = ask(stage, "verify", "--unregistered", "--json", *stage.flags())
    assert done.returncode == 3
    assert f"skipped directory {closed}: Permission denied" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["sums"]["folders_not_seen"] == 1


def test_the_sums_for_prometheus(stage: PrivateSite) -> None:
    file = stage.file("file.npy", size=1234)
    archived(stage, file)
    metrics = stage.directory / "verify.prom"
    run(stage, "--metrics-file", str(metrics))
    found = {
        (sample.name, sample.labels.get("result", "")): sample.value
        for family in text_string_to_metric_families(metrics.read_text())
        for sample in family.samples
    }
    assert found["cdc_archiver_verify_files", "ok"] == 1
    assert found["cdc_archiver_verify_files", "missing"] == 0
    assert found["cdc_archiver_verify_bytes", ""] == 1234
    assert found["cdc_archiver_verify_complete", ""] == 1
    assert found["cdc_archiver_verify_timestamp_seconds", ""] > 1_500_000_000
    assert (metrics.stat().st_mode & 0o777) == 0o644
    done = ask(stage, "verify", "--metrics-file", "/nowhere/x.prom", *stage.flags())
    assert done.returncode == 2
