"""Timecodes that somebody downstream took over and removed: nothing is copied into them again, unless a person says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from archive_places import staging_of
from asking import ask
from files_table import TABLE
from private_site import HISTORY, PrivateSite
from side_tables_of_site import enter_timecode, make_side_tables, marks_of
from waiting import eventually

from cdc_archiver.database.side_tables import MARKS, TIMECODES
from cdc_archiver.transfer.other_disks import PathNotes
from cdc_archiver.transfer.places import OTHER_DISKS

GONE = 15895


def verified(stage: PrivateSite, *arguments: str) -> dict[str, Any]:
    """The sums of ``verify``."""
    done = ask(stage, "verify", "--json", *arguments, *stage.flags())
    *_, last = [json.loads(line) for line in done.stdout.splitlines()]
    return {**last["sums"]["verdicts"], "requeued": last["sums"]["requeued"], "status": done.returncode}


def test_what_was_taken_over_does_not_come_back_by_itself(stage: PrivateSite) -> None:
    make_side_tables(stage)
    old, second, new, later = stage.files(4)
    with stage.service(sweep_interval=1) as service:
        # Given an archived timecode, of which the database has a backup from before,
        ids = stage.register(old, second)
        stage.sql(f"CREATE TABLE backup AS SELECT * FROM {TABLE}")
        stage.sql(f"CREATE TABLE no_marks AS SELECT * FROM {MARKS.name}")
        (kept,) = stage.register(later, timestamp="2020-05-16 12:00:00")
        stage.wait_archived(*ids, kept)
        eventually(lambda: state_of(stage, GONE) == "complete", "the timecode is complete")
        # when it is handed over and removed,
        done = ask(stage, "hand-over", str(GONE), "--by", "librarian", "--reason", "books are off site")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"handed over: timecode {GONE} of every source, to librarian\n"
        eventually(
            lambda: any("marks-" in path.name for path in staging(stage).glob(".notes/*")), "the file has the mark"
        )
        shutil.rmtree(stage.data_dir / str(GONE))
        # then verify counts its files apart, and requeues none,
        assert verified(stage, "--requeue") == {
            "ok": 1,
            "handed_over": 2,
            "missing": 0,
            "changed": 0,
            "unreadable": 0,
            "elsewhere": 0,
            "requeued": 0,
            "status": 0,
        }
        why = ask(stage, "why", str(ids[0]), *stage.flags()).stdout
        assert f"timecode {GONE} was handed over to librarian" in why
        assert "--requeue" not in why
        # a new row of it waits, without a failed attempt, and is named,
        (late,) = stage.register(new)
        eventually(lambda: service.metric("handed_over_pending_files") == 1, "the new row is counted")
        (source,) = service.status()["sources"]
        assert source["handed_over"] == {str(GONE): 1}
        status = ask(stage, "status", "--http-port", str(service.port)).stdout
        assert f"1 file of timecodes that were handed over ({GONE}): they wait until somebody decides" in status
        why = ask(stage, "why", str(late), *stage.flags()).stdout
        assert why.startswith(f"It is not here because it waits: timecode {GONE} was handed over to librarian")
        assert f"cdc-archiver retry --id {late} --into-handed-over" in why
        # and so do those of a restored backup, which has neither files nor marks.
        stage.sql(f"DELETE FROM {TABLE} WHERE id IN ({ids[0]}, {ids[1]})")
        stage.sql(f"DELETE FROM {MARKS.name}")
        stage.sql(f"INSERT INTO {TABLE} SELECT * FROM backup")
        eventually(lambda: service.metric("handed_over_pending_files") == 3, "the restored rows are counted")
    with stage.service(sweep_interval=1) as service:
        # The next service learns of them from the file, before it copies anything; the table has the mark again.
        eventually(lambda: service.metric("handed_over_pending_files") == 3, "the next service counts them")
        assert [mark[:4] for mark in marks_of(stage)] == [("handed_over", "", GONE, "librarian")]
        assert not (stage.data_dir / str(GONE)).exists()
        assert {(row.copied, row.attempts) for row in stage.rows([*ids, late])} == {(0, 0)}
        # A person may have one archived all the same,
        assert ask(stage, "retry", "--all-quarantined", "--into-handed-over", "--yes").returncode == 2
        stage.sql(f"UPDATE {TABLE} SET failed_copy_attempts = 1 WHERE id = {late}")
        done = ask(stage, "retry", "--id", str(late), "--yes")
        assert "1 file of timecodes that were handed over will wait" in done.stderr
        done = ask(stage, "retry", "--id", str(late), "--into-handed-over", "--yes")
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "retried 1 file")
        stage.wait_archived(late)
        assert stage.place(new).read_bytes() == new.content
        assert stage.count("copied = 0") == 2
        # or take the timecode back.
        assert ask(stage, "hand-over", "--undo", str(GONE), "17000").returncode == 3
        stage.wait_archived(*ids)
        eventually(lambda: service.metric("handed_over_pending_files") == 0, "none waits")


def test_timecodes_whose_directory_is_gone_are_found_and_marked_only_if_that_is_wanted(stage: PrivateSite) -> None:
    make_side_tables(stage)
    days = {
        15895: "15 04:34:24",
        15896: "16 12:00:00",
        15897: "17 12:00:00",
        15898: "18 12:00:00",
        15899: "20 12:00:00",
    }
    files = stage.files(len(days))
    with stage.service(host=""):
        ids = [
            id_
            for file, day in zip(files, days.values(), strict=True)
            for id_ in stage.register(file, timestamp=f"2020-05-{day}")
        ]
        stage.wait_archived(*ids)
    for timecode in days:
        enter_timecode(stage, timecode, "blocked" if timecode == 15896 else "complete", files=1)
    # One that is complete without archived rows, and one whose rows lie in another archive.
    enter_timecode(stage, 15900, "complete", files=0)
    enter_timecode(stage, 15901, "complete", files=1)
    # Given all directories gone, of which one is a link that leads nowhere, and one is there,
    for timecode in (15895, 15896, 15898, 15899):
        shutil.rmtree(stage.data_dir / str(timecode))
    (stage.data_dir / "15898").symlink_to(stage.directory / "unmounted")
    missing = ("hand-over", "--missing", "--data-dir", str(stage.data_dir))
    # then the other complete ones are listed, and nothing is marked,
    done = ask(stage, *missing)
    assert done.returncode == 0
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["15895", "15899"]
    assert "2 timecodes lack their directory; nothing was marked: add --by NAME --yes" in done.stderr
    assert marks_of(stage) == []
    # not one that was on another disk, which may not be mounted now,
    notes = PathNotes(staging(stage) / OTHER_DISKS)
    notes.add("15899/crate1slot2")
    assert [line.split("\t")[0] for line in ask(stage, *missing).stdout.splitlines()] == ["15895"]
    notes.remove("15899/crate1slot2")
    # only those that ended before,
    assert ask(stage, *missing, "--older-than", "2020-05-17").stdout.startswith("15895\t")
    assert "15899" not in ask(stage, *missing, "--older-than", "2020-05-17").stdout
    # and on a disk that is not mounted none at all.
    elsewhere = stage.directory / "other"
    (elsewhere / "lost+found").mkdir(parents=True)
    done = ask(stage, "hand-over", "--missing", "--by", "x", "--yes", "--data-dir", str(elsewhere))
    assert (done.returncode, done.stdout) == (4, "")
    assert marks_of(stage) == []
    # When that is wanted, they are marked, for the sources whose files they had.
    assert ask(stage, *missing, "--by", "cleaner", "--yes").returncode == 0
    assert [mark[:4] for mark in marks_of(stage)] == [
        ("handed_over", "pysmurf-monitor", timecode, "cleaner") for timecode in (15895, 15899)
    ]
    assert "no complete timecode lacks its directory" in ask(stage, *missing).stderr
    # A timecode that is not over cannot be handed over; one that is not complete is named.
    done = ask(stage, "hand-over", "99999", "--by", "x", "--reason", "y")
    assert (done.returncode, len(marks_of(stage))) == (2, 2)
    done = ask(stage, "hand-over", "15896", "--by", "x", "--reason", "y")
    assert (done.returncode, len(marks_of(stage))) == (3, 3)
    assert "timecode 15896 of pysmurf-monitor is blocked, not complete" in done.stderr
    assert stage.sql(f"SELECT COUNT(*) FROM {HISTORY}") == [(len(ids),)]


def state_of(stage: PrivateSite, timecode: int) -> str | None:
    """The state of a timecode."""
    rows = stage.sql(f"SELECT state FROM {TIMECODES.name} WHERE timecode = %s", (timecode,))
    return rows[0][0] if rows else None


def staging(stage: PrivateSite) -> Path:
    """The place for staging."""
    return staging_of(stage.data_dir)
