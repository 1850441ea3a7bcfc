"""Two services for the same targets: one works, the other stands by and takes over."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from files_table import TABLE
from private_site import TARGET, PrivateSite, new_private_site
from structlog.testing import capture_logs
from waiting import eventually

from cdc_archiver.database.source_locks import LockTiming, lock_name
from cdc_archiver.sandbox import DatabaseServer, MariaDb, SshServer

WITHIN_SECONDS = 10.0
SHORT = (3, 0.7, 1.0, 0.2, 2.0)
"""A LockTiming that a test can wait for."""


@pytest.fixture
def stage(database_server: DatabaseServer, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    with new_private_site(database_server, ssh_server, tmp_path) as made:
        yield made


@pytest.fixture
def mariadb_stage(mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    with new_private_site(mariadb, ssh_server, tmp_path) as made:
        yield made


def test_the_second_stands_by_and_takes_over_when_the_first_dies(stage: PrivateSite) -> None:
    # Given two services for the same targets,
    with stage.program() as first, stage.program(until="standby") as second:
        assert second.get("/healthz")[0] == second.get("/readyz")[0] == 200
        assert second.metric("mode", mode="standby") == 1
        assert second.metric("mode") == 1
        # when files come, then the first archives them, and the second leaves them alone.
        stage.wait_archived(*stage.register(*stage.files(5, prefix="first")))
        first.wait_metric(5, "copies_total", result="archived")
        second.wait_metric(0, "copies_total")
        # When the first dies and files come meanwhile,
        began = time.monotonic()
        first.kill()
        ids = stage.register(*stage.files(5, prefix="second"))
        # then the second has them within seconds, and streams.
        stage.wait_archived(*ids)
        second.wait_state("streaming")
        assert time.monotonic() - began < WITHIN_SECONDS
        assert second.metric("mode", mode="stream") == 1
        second.wait_metric(5, "copies_total", result="archived")
    assert stage.sql(f"SELECT COUNT(*), SUM(copied), SUM(failed_copy_attempts) FROM {TABLE}") == [(10, 10, 0)]


def test_a_new_version_is_started_before_the_old_one_is_stopped(mariadb_stage: PrivateSite) -> None:
    stage = mariadb_stage
    with stage.service() as old, stage.program(until="standby") as new:
        # When the old one is stopped in good order, in the midst of its work,
        ids = stage.register(*stage.files(60))
        old.stop()
        # then the new one has the rest, and nothing is archived twice or charged.
        stage.wait_archived(*ids)
        new.wait_state("streaming")
    assert len(stage.archived_files()) == 60
    assert stage.count("failed_copy_attempts <> 0") == 0


def test_a_service_that_loses_its_lock_stops_copying_and_begins_anew(
    mariadb_stage: PrivateSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = mariadb_stage
    monkeypatch.setattr(LockTiming.__init__, "__defaults__", SHORT)
    slow = stage.file("slow.npy", size=500_000)
    # Given a service with a file on its way,
    with capture_logs() as logs, stage.service(bwlimit="200") as service:
        (id_,) = stage.register(slow)
        eventually(lambda: service.metric("in_flight") == 1, "it is on its way")
        # when the connection that holds the lock is cut,
        ((session,),) = stage.sql("SELECT IS_USED_LOCK(%s)", [lock_name(stage.database, TABLE, TARGET)])
        stage.sql(f"KILL {session}")
        # then the service notices, takes its targets again, and brings the file once more;
        eventually(lambda: [log["event"] for log in logs].count("lock_acquired") == 2, "the lock is taken again")
        stage.wait_archived(id_)
        service.wait_state("streaming")
    assert "lock_lost" in [log["event"] for log in logs]
    # nobody is charged for it.
    assert stage.row(id_).attempts == 0
    assert stage.archived_files() == [stage.place(slow)]


def test_services_with_other_targets_work_side_by_side(mariadb_stage: PrivateSite) -> None:
    stage = mariadb_stage
    # Given two services with a target each, on archives of their own,
    other_archive = stage.directory / "other"
    other_archive.mkdir()
    with stage.service() as one, stage.service(target=("other-monitor",), data_dir=other_archive) as other:
        # when both get files, then each archives its own.
        mine, theirs = stage.file("mine.npy"), stage.file("theirs.npy")
        stage.wait_archived(*stage.register(mine), *stage.register(theirs, instance_id="other-monitor"))
        one.wait_metric(1, "copies_total", result="archived")
        other.wait_metric(1, "copies_total", result="archived")
    assert stage.archived_files() == [stage.place(mine)]
    # A third that wants both gets neither: all targets of a source or none.
    with stage.service(), stage.service(target=(TARGET, "other-monitor"), until="standby"):
        pass


def test_a_frozen_service_loses_its_targets_and_writes_nothing_when_it_wakes(mariadb_stage: PrivateSite) -> None:
    stage = mariadb_stage
    # Given a first service that is frozen with a file on its way, as a machine is that is suspended,
    script = stage.directory / "short_locks.py"
    script.write_text(
        "from cdc_archiver.database.source_locks import LockTiming\n"
        f"LockTiming.__init__.__defaults__ = {SHORT!r}\n"
        "from cdc_archiver.cli import main\n"
        "main()\n"
    )
    slow = stage.file("slow.npy", size=200_000)
    with stage.program(bwlimit="100", interpreter=(sys.executable, str(script))) as first:
        (id_,) = stage.register(slow)
        eventually(lambda: first.metric("in_flight") == 1, "it is on its way")
        first.signal(signal.SIGSTOP)
        # when the database has not heard of it for some seconds, and the second has taken over,
        with stage.service() as second:
            stage.wait_archived(id_)
            # and the first wakes,
            first.signal(signal.SIGCONT)
            first.wait_state("standby")
            # then the file is there once, and its row says the one thing.
            assert second.state() == "streaming"
        assert stage.archived_files() == [stage.place(slow)]
        assert stage.row(id_).path == str(stage.place(slow))
        assert [entry["result"] for entry in stage.history(id_)] == ["archived"]
