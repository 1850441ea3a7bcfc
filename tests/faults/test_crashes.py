"""SIGKILL at every step of a file's way, and of everything that works for the service: nothing is lost, doubled or charged."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import crash_at
import pytest
from audit import ArchiveWatcher, ExpectedFile, ExpectedFiles, ExpectedResult, RegistrationState, audit
from files_table import TABLE
from private_site import PrivateSite, SourceFile
from soak.site import children_of, send
from waiting import PATIENCE, eventually

from cdc_archiver.database import history, schema
from cdc_archiver.sandbox import ChildProcess
from cdc_archiver.transfer.staging import INCOMING

IN_THE_DATABASE = ("row-written", "history-written", "committed", "charge-written")
ELSEWHERE = tuple(step for step in crash_at.STEPS if step not in IN_THE_DATABASE)


def some_of(steps: tuple[str, ...], *short: str) -> list[Any]:
    """All of them, of which these alone belong to the short form."""
    return [pytest.param(step, marks=() if step in short else pytest.mark.long) for step in steps]


LARGE = 1_500_000


class Told:
    """A book of what a test registers, and the watcher that goes by it."""

    def __init__(self, stage: PrivateSite) -> None:
        self.stage = stage
        self.book = ExpectedFiles()
        self.watcher = ArchiveWatcher(stage.data_dir, self.book)

    def register(self, *files: SourceFile, fate: ExpectedResult = ExpectedResult.GOOD) -> list[int]:
        expected = [
            ExpectedFile(
                file.md5, os.path.relpath(self.stage.place(file), self.stage.data_dir), len(file.content), fate
            )
            for file in files
        ]
        self.book.plan(expected)
        ids = self.stage.register(*files)
        self.book.set(expected, RegistrationState.REGISTERED)
        return ids

    def require_clean(self) -> None:
        """Nothing is wrong, and nothing is left in staging."""
        found = audit(self.stage, self.book, self.watcher)
        assert found.clean, found


def crashing(step: str) -> Sequence[str]:
    """What is run in place of ``cdc-archiver``."""
    return (sys.executable, "-X", "utf8", crash_at.__file__, step)


def archive_through_a_crash(stage: PrivateSite, step: str) -> None:
    told = Told(stage)
    files = [*stage.files(3), stage.file("large.npy", size=LARGE), stage.file("later.npy")]
    missing = stage.file("missing.npy")
    missing.path.unlink()
    with told.watcher:
        # Given a service that dies at a step of these files' way,
        with stage.program(interpreter=crashing(step), bwlimit="2000") as service:
            service.wait_settled()
            ids = told.register(*files[:-1])
            bad = told.register(missing, fate=ExpectedResult.MISSING)
            assert service.wait() == -signal.SIGKILL
        # when another is started, and one more comes,
        with stage.service():
            ids += told.register(files[-1])
            # then all of them are archived, and the missing one has had its try.
            stage.wait_archived(*ids)
            stage.wait_attempts(bad[0], 1)
    # Each is there once, under its own name, and nobody else is charged; each history tells of one archiving.
    told.require_clean()
    assert stage.archived_files() == sorted(map(stage.place, files))


@pytest.mark.parametrize("step", some_of(ELSEWHERE, "in-mid-transfer", "linked", "placed"))
def test_a_service_that_is_killed_on_a_files_way_is_started_again(stage: PrivateSite, step: str) -> None:
    archive_through_a_crash(stage, step)


@pytest.mark.parametrize("step", some_of(IN_THE_DATABASE, "row-written", "committed"))
def test_a_service_that_is_killed_in_its_write_back_is_started_again(either_stage: PrivateSite, step: str) -> None:
    archive_through_a_crash(either_stage, step)


def test_a_charge_that_was_committed_and_not_acknowledged_is_counted_once(either_stage: PrivateSite) -> None:
    stage = either_stage
    told = Told(stage)
    missing = stage.file("missing.npy")
    missing.path.unlink()
    with told.watcher:
        # Given a service that is killed before it hears that its charge is in the table,
        with stage.program(interpreter=crashing("committed")) as service:
            (id_,) = told.register(missing, fate=ExpectedResult.MISSING)
            assert service.wait() == -signal.SIGKILL
        assert stage.row(id_).attempts == 1
        # when another tries once more, as each does at its start,
        with stage.service():
            stage.wait_attempts(id_, 2)
    # then each try was charged once, and the history tells of each.
    assert [entry["result"] for entry in stage.history(id_)] == ["charged"] * 2
    told.require_clean()


def test_a_reconciliation_that_is_killed_is_run_again(stage: PrivateSite) -> None:
    told = Told(stage)
    with told.watcher:
        # Given a reconciliation that is killed when it has placed its first file of many,
        files = stage.files(60)
        ids = told.register(*files)
        command = [*crashing("linked"), "run", *stage.flags(), "--reconcile"]
        first = ChildProcess("reconciliation", command, stage.directory / "first.log", stage.environment())
        first.start()
        assert first.wait(PATIENCE)
        assert first.returncode == -signal.SIGKILL
        assert len(stage.archived_files()) == 1
        assert stage.count("copied = 0") == 60
        # when it is run again, then it adopts the one, and brings the others.
        done = stage.command("run", *stage.flags(), "--reconcile")
    assert (done.returncode, done.stdout.partition(";")[0]) == (0, "archived 60")
    assert [row.copied for row in stage.rows(ids)] == [1] * 60
    told.require_clean()
    assert stage.archived_files() == sorted(map(stage.place, files))


@pytest.mark.parametrize("which", ["parent", "child"])
def test_an_rsync_that_is_killed_alone_costs_its_files_nothing(stage: PrivateSite, which: str) -> None:
    told = Told(stage)
    # Given a large file on its way (rsync is two processes on this side),
    with told.watcher, stage.service(bwlimit="1000") as service:
        (id_,) = told.register(stage.file("large.npy", size=LARGE))
        rsyncs = eventually(
            lambda: two(children_of(os.getpid(), pattern("rsync --files-from=-", stage))), "both are there"
        )
        eventually(lambda: crash_at.staged_bytes(stage.data_dir / INCOMING) > 0, "some of it is there")
        # when one of them is killed,
        send(min(rsyncs) if which == "parent" else max(rsyncs), signal.SIGKILL)
        # then the file comes with the next one, and the service has never ended.
        stage.wait_archived(id_)
        assert service.get("/healthz")[0] == 200
    told.require_clean()


def test_a_connection_that_is_killed_alone_costs_its_files_nothing(stage: PrivateSite) -> None:
    told = Told(stage)
    # Given a large file on its way by the connection that all rsyncs share,
    with told.watcher, stage.service(bwlimit="1000") as service:
        (id_,) = told.register(stage.file("large.npy", size=LARGE))
        eventually(lambda: crash_at.staged_bytes(stage.data_dir / INCOMING) > 0, "some of it is there")
        (master,) = children_of(os.getpid(), pattern("ssh -N", stage))
        # when its ssh is killed,
        send(master, signal.SIGKILL)
        # then the file comes by another,
        stage.wait_archived(id_)
        # which is shared as before.
        stage.wait_archived(*told.register(stage.file("small.npy")))
        (next_master,) = children_of(os.getpid(), pattern("ssh -N", stage))
        assert next_master != master
        service.wait_state("streaming")
    told.require_clean()


@pytest.mark.parametrize("back", ["later", "at once"])
def test_a_source_disk_that_goes_away_in_mid_batch_costs_its_files_nothing(stage: PrivateSite, back: str) -> None:
    told = Told(stage)
    away = stage.directory / "away"
    away.mkdir()
    files = stage.files(200, size=20_000)
    # Given a batch of files of which some have come,
    with told.watcher, stage.service(source_root=str(stage.sources), bwlimit="1000") as service:
        ids = told.register(*files)
        eventually(lambda: stage.count("copied = 1") > 0, "some have come")
        # when all of a sudden the root is an empty directory, for the rsync that is at work in it, too,
        move_all(stage.sources, away)
        if back == "later":
            service.wait_state("no source")
            assert service.status()["sources"][0]["state"]["reason"] == "source_not_mounted"
        # and the files come back,
        move_all(away, stage.sources)
        # then all of them are archived, and nobody was charged for it.
        stage.wait_archived(*ids, within=60.0)
    told.require_clean()


def test_the_audit_sees_what_is_planted(stage: PrivateSite) -> None:
    """A check that finds nothing must be able to find something."""
    told = Told(stage)
    files = [stage.file(f"{name}.npy", name.encode()) for name in ("good", "lost", "twice", "charged", "another", "n")]
    good, _, twice, charged, another, numbered = files
    ids = told.register(*files)
    stage.sql(schema.table_statement(history.TABLE))
    with told.watcher:
        for file in (good, twice, charged, another):
            stage.place(file).parent.mkdir(parents=True, exist_ok=True)
            stage.place(file).write_bytes(file.content)
        stage.place(twice).with_suffix(".npy.1").write_bytes(twice.content)
        stage.place(numbered).with_suffix(".npy.2").write_bytes(numbered.content)
        stage.place(good).with_name("half.npy").write_bytes(b"goo")
        (stage.data_dir / INCOMING / "left").mkdir(parents=True)
        (stage.data_dir / INCOMING / "left" / "over").write_bytes(b"left")
        eventually(lambda: told.watcher.files == 7, "the watcher has seen them")
        stage.place(another).write_bytes(b"other")
        for id_, file in zip(ids, files, strict=True):
            stage.sql(f"UPDATE {TABLE} SET copied = 1, path = %s WHERE id = %s", (str(stage.place(file)), id_))
        stage.sql(f"UPDATE {TABLE} SET failed_copy_attempts = 1 WHERE id = %s", (ids[3],))
    found = audit(stage, told.book, told.watcher)

    def names(lines: tuple[str, ...]) -> set[str]:
        return {match[1] for line in lines if (match := re.search(r"(\w+)\.npy", line))}

    assert names(found.lost) == {"lost", "another", "n"}
    assert names(found.duplicated) == {"twice", "n"}
    # No archiving of any of them is in the history.
    assert names(found.wrongly_charged) == {"good", "lost", "twice", "charged", "another", "n"}
    assert "charged" in found.wrongly_charged[0]
    assert names(found.half) == {"half", "another"}
    assert names(found.orphans) == {"twice", "half", "n"}
    assert len(found.left) == 1


def pattern(program: str, stage: PrivateSite) -> str:
    """The command lines of a program that works for this stage, by whichever way it was started."""
    return rf"(^|/){program} .*{re.escape(str(stage.data_dir if 'rsync' in program else stage.ssh.key))}"


def two(pids: list[int]) -> list[int]:
    return pids if len(pids) > 1 else []


def move_all(directory: Path, other: Path) -> None:
    for name in sorted(os.listdir(directory)):
        (directory / name).rename(other / name)
