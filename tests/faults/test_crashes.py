"""SIGKILL of the service at every step of a copy, and of each of its processes: no file is lost, duplicated or failed."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import crashing_service
import pytest
from archive_places import staging_of
from audit import ArchiveWatcher, ExpectedFile, ExpectedFiles, ExpectedResult, RegistrationState, audit
from files_table import TABLE
from private_site import PrivateSite, SourceFile
from soak.site import children_of, send
from waiting import PATIENCE, eventually

from cdc_archiver.database import history, schema
from cdc_archiver.sandbox import ChildProcess

IN_THE_DATABASE = ("row-written", "history-written", "committed", "charge-written")
OUTSIDE_THE_DATABASE = tuple(step for step in crashing_service.STEPS if step not in IN_THE_DATABASE)


def some_of(steps: tuple[str, ...], *short: str) -> list[Any]:
    """All steps; only the ones in ``short`` run without the mark ``long``."""
    return [pytest.param(step, marks=() if step in short else pytest.mark.long) for step in steps]


LARGE = 1_500_000


class Registrations:
    """Records the files that a test registers, and watches the archive for them."""

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
    """The command to run instead of ``cdc-archiver``."""
    return (sys.executable, "-X", "utf8", crashing_service.__file__, step)


def archive_through_a_crash(stage: PrivateSite, step: str) -> None:
    registrations = Registrations(stage)
    files = [*stage.files(3), stage.file("large.npy", size=LARGE), stage.file("later.npy")]
    missing = stage.file("missing.npy")
    missing.path.unlink()
    with registrations.watcher:
        # Given a service that dies at a step of these copies,
        with stage.program(interpreter=crashing(step), bwlimit="2000") as service:
            service.wait_settled()
            ids = registrations.register(*files[:-1])
            bad = registrations.register(missing, fate=ExpectedResult.MISSING)
            assert service.wait() == -signal.SIGKILL
        # when another is started, and one more file is registered,
        with stage.service():
            ids += registrations.register(files[-1])
            # then all of them are archived, and the missing one has one failed attempt.
            stage.wait_archived(*ids)
            stage.wait_attempts(bad[0], 1)
    # Each file is archived once, under its own name, and no other attempt has failed; each has one archived entry in the history.
    registrations.require_clean()
    assert stage.archived_files() == sorted(map(stage.place, files))


@pytest.mark.parametrize("step", some_of(OUTSIDE_THE_DATABASE, "in-mid-transfer", "linked", "placed"))
def test_a_service_that_is_killed_during_a_copy_is_restarted(stage: PrivateSite, step: str) -> None:
    archive_through_a_crash(stage, step)


@pytest.mark.parametrize("step", some_of(IN_THE_DATABASE, "row-written", "committed"))
def test_a_service_that_is_killed_during_its_write_back_is_restarted(either_stage: PrivateSite, step: str) -> None:
    archive_through_a_crash(either_stage, step)


def test_a_failed_attempt_that_was_committed_and_not_acknowledged_is_counted_once(either_stage: PrivateSite) -> None:
    stage = either_stage
    registrations = Registrations(stage)
    missing = stage.file("missing.npy")
    missing.path.unlink()
    with registrations.watcher:
        # Given a service that is killed before it learns that the failed attempt is in the table,
        with stage.program(interpreter=crashing("committed")) as service:
            (id_,) = registrations.register(missing, fate=ExpectedResult.MISSING)
            assert service.wait() == -signal.SIGKILL
        assert stage.row(id_).attempts == 1
        # when another tries once more, as each does at its start,
        with stage.service():
            stage.wait_attempts(id_, 2)
    # then each failed attempt was counted once, and each is in the history.
    assert [entry["result"] for entry in stage.history(id_)] == ["charged"] * 2
    registrations.require_clean()


def test_a_reconciliation_that_is_killed_is_run_again(stage: PrivateSite) -> None:
    registrations = Registrations(stage)
    with registrations.watcher:
        # Given a reconciliation that is killed when it has placed its first file of many,
        files = stage.files(60)
        ids = registrations.register(*files)
        command = [*crashing("linked"), "run", *stage.flags(), "--reconcile"]
        first = ChildProcess("reconciliation", command, stage.directory / "first.log", stage.environment())
        first.start()
        assert first.wait(PATIENCE)
        assert first.returncode == -signal.SIGKILL
        assert len(stage.archived_files()) == 1
        assert stage.count("copied = 0") == 60
        # when it is run again, then it adopts the first and copies the others.
        done = stage.command("run", *stage.flags(), "--reconcile")
    assert (done.returncode, done.stdout.partition(";")[0]) == (0, "archived 60")
    assert [row.copied for row in stage.rows(ids)] == [1] * 60
    registrations.require_clean()
    assert stage.archived_files() == sorted(map(stage.place, files))


@pytest.mark.parametrize("which", ["parent", "child"])
def test_a_killed_rsync_causes_no_failed_attempt(stage: PrivateSite, which: str) -> None:
    registrations = Registrations(stage)
    # Given a large file on its way (rsync is two processes on this side),
    with registrations.watcher, stage.service(bwlimit="1000") as service:
        (id_,) = registrations.register(stage.file("large.npy", size=LARGE))
        rsyncs = eventually(
            lambda: if_two(children_of(os.getpid(), pattern("rsync --files-from=-", stage))), "both are there"
        )
        eventually(lambda: crashing_service.staged_bytes(staging_of(stage.data_dir)) > 0, "some of it is there")
        # when one of them is killed,
        send(min(rsyncs) if which == "parent" else max(rsyncs), signal.SIGKILL)
        # then the file comes with the next one, and the service has never ended.
        stage.wait_archived(id_)
        assert service.get("/healthz")[0] == 200
    registrations.require_clean()


def test_a_killed_ssh_connection_causes_no_failed_attempt(stage: PrivateSite) -> None:
    registrations = Registrations(stage)
    # Given a large file on its way by the connection that all rsyncs share,
    with registrations.watcher, stage.service(bwlimit="1000") as service:
        (id_,) = registrations.register(stage.file("large.npy", size=LARGE))
        eventually(lambda: crashing_service.staged_bytes(staging_of(stage.data_dir)) > 0, "some of it is there")
        (master,) = children_of(os.getpid(), pattern("ssh -N", stage))
        # when its ssh is killed,
        send(master, signal.SIGKILL)
        # then the file comes by another,
        stage.wait_archived(id_)
        # which is shared as before.
        stage.wait_archived(*registrations.register(stage.file("small.npy")))
        (next_master,) = children_of(os.getpid(), pattern("ssh -N", stage))
        assert next_master != master
        service.wait_state("streaming")
    registrations.require_clean()


@pytest.mark.parametrize("back", ["later", "at once"])
def test_a_source_disk_that_is_unmounted_during_a_batch_causes_no_failed_attempt(stage: PrivateSite, back: str) -> None:
    registrations = Registrations(stage)
    away = stage.directory / "away"
    away.mkdir()
    files = stage.files(200, size=20_000)
    # Given a batch of files of which some have come,
    with registrations.watcher, stage.service(source_root=str(stage.sources), bwlimit="1000") as service:
        ids = registrations.register(*files)
        eventually(lambda: stage.count("copied = 1") > 0, "some have come")
        # when the source root suddenly is an empty directory, also for the running rsync,
        move_all(stage.sources, away)
        if back == "later":
            service.wait_state("no source")
            assert service.status()["sources"][0]["state"]["reason"] == "source_not_mounted"
        # and the files come back,
        move_all(away, stage.sources)
        # then all of them are archived, and no attempt has failed.
        stage.wait_archived(*ids, within=60.0)
    registrations.require_clean()


def test_the_audit_finds_planted_faults(stage: PrivateSite) -> None:
    """A check that finds nothing must be able to find something."""
    registrations = Registrations(stage)
    files = [stage.file(f"{name}.npy", name.encode()) for name in ("good", "lost", "twice", "charged", "another", "n")]
    good, _, twice, charged, another, numbered = files
    ids = registrations.register(*files)
    stage.sql(schema.table_statement(history.TABLE))
    with registrations.watcher:
        for file in (good, twice, charged, another):
            stage.place(file).parent.mkdir(parents=True, exist_ok=True)
            stage.place(file).write_bytes(file.content)
        stage.place(twice).with_suffix(".npy.1").write_bytes(twice.content)
        stage.place(numbered).with_suffix(".npy.2").write_bytes(numbered.content)
        stage.place(good).with_name("half.npy").write_bytes(b"goo")
        (staging_of(stage.data_dir) / "left").mkdir(parents=True)
        (staging_of(stage.data_dir) / "left" / "over").write_bytes(b"left")
        eventually(lambda: registrations.watcher.files == 7, "the watcher has seen them")
        stage.place(another).write_bytes(b"other")
        for id_, file in zip(ids, files, strict=True):
            stage.sql(f"UPDATE {TABLE} SET copied = 1, path = %s WHERE id = %s", (str(stage.place(file)), id_))
        stage.sql(f"UPDATE {TABLE} SET failed_copy_attempts = 1 WHERE id = %s", (ids[3],))
    found = audit(stage, registrations.book, registrations.watcher)

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
    return rf"(^|/){program} .*{re.escape(str(staging_of(stage.data_dir) if 'rsync' in program else stage.ssh.key))}"


def if_two(pids: list[int]) -> list[int]:
    return pids if len(pids) > 1 else []


def move_all(directory: Path, other: Path) -> None:
    for name in sorted(os.listdir(directory)):
        (directory / name).rename(other / name)
