"""`hold` and `unhold`: what they record and what they say, and what a running service makes of it."""

from __future__ import annotations

import json

from archive_places import staging_of
from asking import ask
from private_site import TARGET, PrivateSite
from side_tables_of_site import NEW, OLD, QUICK, during, enter_timecode, make_side_tables, marks_of, stored, wait_state
from waiting import eventually

from cdc_archiver.commands.context import operator_name
from cdc_archiver.database.side_tables import MARKS


def test_hold_and_unhold_record_who_and_why_and_say_what_they_cannot_do(stage: PrivateSite) -> None:
    # Without the side tables the command says how to make them.
    done = ask(stage, "hold", "--timecode", "17788", "--reason", "clock")
    assert (done.returncode, done.stdout) == (2, "")
    assert "fix: cdc-archiver init-db creates it; cdc-archiver check prints the GRANT" in done.stderr
    make_side_tables(stage)
    # A hold is for every source, or for some.
    done = ask(stage, "hold", "--timecode", "17788", "--timecode", "17789", "--reason", "clock")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"held: timecode {n} of every source" for n in (17788, 17789)]
    ask(stage, "hold", "--timecode", "17790", "--target", TARGET, "--reason", "disk", "--by", "Ann", "--until", "2d")
    assert marks_of(stage) == [
        ("held", "", 17788, operator_name(), "clock"),
        ("held", "", 17789, operator_name(), "clock"),
        ("held", TARGET, 17790, "Ann", "disk"),
    ]
    ((hours,),) = stage.sql(f"SELECT TIMESTAMPDIFF(MINUTE, at, until) DIV 60 FROM {MARKS.name} WHERE timecode = 17790")
    assert 47 <= hours <= 48
    # A reason, five digits and a time to come are required.
    for arguments, said in {
        ("--timecode", "17788"): "hold needs a reason; fix: add --reason TEXT",
        ("--timecode", "1778", "--reason", "x"): "1778 is no timecode; fix: name the five digits",
        ("--timecode", "17788", "--reason", "x", "--until", "2020-05-15"): "the time '2020-05-15' is past",
    }.items():
        done = ask(stage, "hold", *arguments)
        assert (done.returncode, len(marks_of(stage))) == (2, 3)
        assert said in done.stderr
    # A timecode that readers were told of is held all the same.
    enter_timecode(stage, 17791, "complete")
    enter_timecode(stage, 17792, "complete", told_by="before")
    for timecode, status in ((17791, 3), (17792, 0)):
        done = ask(stage, "hold", "--timecode", str(timecode), "--reason", "late")
        assert done.returncode == status
        assert ("the hold cannot take that back" in done.stderr) == (status == 3)
    assert len(marks_of(stage)) == 5
    # A mistyped target would hold nothing.
    done = ask(stage, "hold", "--timecode", "17788", "--reason", "x", "--target", "pysmurf-monitr")
    assert (done.returncode, len(marks_of(stage))) == (2, 5)
    assert f"unknown target: 'pysmurf-monitr'; fix: use one of {TARGET}" in done.stderr
    # What is not held cannot be unheld.
    done = ask(stage, "unhold", "--timecode", "17788", "--timecode", "17700")
    assert done.returncode == 3
    assert done.stdout == "no longer held: timecode 17788 of every source\n"
    assert done.stderr == "cdc-archiver: timecode 17700 of every source is not held\n"
    assert marks_of(stage)[-1][:3] == ("unheld", "", 17788)
    # The end of a hold for every source ends those of single ones.
    assert ask(stage, "unhold", "--timecode", "17790").returncode == 0
    assert ask(stage, "unhold", "--timecode", "17790", "--target", TARGET).returncode == 3


def test_a_held_timecode_becomes_complete_when_it_is_unheld_and_a_late_file_is_named(stage: PrivateSite) -> None:
    with stage.service(**QUICK):
        # Given a service at an archive, and a timecode that is held before its first row,
        stage.wait_archived(*stage.register(stage.file("before.npy")))
        wait_state(stage, OLD, "complete", 1)
        assert ask(stage, "hold", "--timecode", str(NEW), "--reason", "clock", "--by", "Ann").returncode == 0
        eventually(lambda: any(staging_of(stage.data_dir).glob(".notes/marks-*")), "the service knows the hold")
        # when files of that and of another one are archived,
        (held,) = stage.register(stage.file("held.npy"), timestamp=during(NEW, 5))
        stage.wait_archived(held)
        (other,) = stage.register(stage.file("other.npy"), timestamp=during(NEW + 1, 5))
        stage.wait_archived(other)
        wait_state(stage, NEW + 1, "complete", 1)
        # then the other one is complete, this one is not, and whoever asks is told why.
        assert stored(stage, NEW)["state"] == "open"
        (told,) = json.loads(ask(stage, "timecodes", str(NEW), "--json").stdout)
        assert (told["held"], told["held_reason"], told["told_by"]) == (True, "Ann: clock", "")
        assert f"{NEW}, open; held by Ann" in ask(stage, "why", str(held), *stage.flags()).stdout
        # When the hold ends, it becomes complete,
        assert ask(stage, "unhold", "--timecode", str(NEW)).returncode == 0
        wait_state(stage, NEW, "complete", 1)
        # and it is too late to hold it back. Another file of it comes late, which is said of that file alone.
        assert ask(stage, "hold", "--timecode", str(NEW), "--reason", "too late").returncode == 3
        (late,) = stage.register(stage.file("late.npy"), timestamp=during(NEW, 6))
        stage.wait_archived(late)
        eventually(lambda: stored(stage, NEW)["late"] == 1, "the file came late")
        eventually(lambda: stage.history(late, late=True)[-1]["result"] == "late", "the history says so")
        note = f"It came late: readers had been told before that timecode {NEW} is complete."
        assert [note in ask(stage, "why", str(id_), *stage.flags()).stdout for id_ in (late, held)] == [True, False]
        (line,) = [line for line in ask(stage, "timecodes", str(NEW)).stdout.splitlines() if line.startswith("late  ")]
        assert line.endswith(f"  {late}  {stage.row(late).path}")
