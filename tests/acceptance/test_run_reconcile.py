"""`run --reconcile` as a script runs it: what it prints, and its exit status."""

from __future__ import annotations

import signal
import subprocess
import threading
import time

import pytest
from files_table import TABLE
from private_site import TARGET, Done, PrivateSite
from services import COMMAND
from waiting import eventually

from cdc_archiver.database.source_locks import SourceLocks, lock_name
from cdc_archiver.dispatch import health, scheduler
from cdc_archiver.events.sweep import Sweeper
from cdc_archiver.model import Scope
from cdc_archiver.service import reconcile_completion
from cdc_archiver.service.reconcile_completion import ReconcileCompletion
from cdc_archiver.service.supervisor import Supervisor


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trouble is waited for a moment, not half a minute."""
    monkeypatch.setattr(reconcile_completion, "_PATIENCE", 1.0)


def test_it_copies_what_was_missed_and_exits_with_0(either_stage: PrivateSite) -> None:
    stage = either_stage
    # Given files that were registered while nobody was at work, a large one among them,
    files = [*stage.files(20), stage.file("large.npy", size=3_000_000)]
    ids = stage.register(*files)
    given_up = stage.register(stage.file("ignored.npy"), failed_copy_attempts=2000)
    # when it is run,
    done = stage.process("run", "--reconcile", "--small-limit", "1M", *stage.flags())
    # then all are archived, an operator's decision is respected, and a script hears of it.
    assert done.stdout == "archived 21; left: 0 pending, 0 quarantined, 0 refused, 1 ignored\n"
    assert done.returncode == 0, done.stderr
    assert {row.copied for row in stage.rows(ids)} == {1}
    assert all(stage.place(file).read_bytes() == file.content for file in files)
    assert stage.row(given_up[0]).copied == 0
    # Run again, it finds nothing to do.
    done = stage.command("run", "--reconcile", *stage.flags())
    assert (done.returncode, done.stdout) == (0, "archived 0; left: 0 pending, 0 quarantined, 0 refused, 1 ignored\n")


def test_it_exits_with_3_where_files_are_still_not_right(stage: PrivateSite) -> None:
    # Given one file of each fate: sound, missing, given up long ago, impossible.
    missing = stage.file("missing.npy")
    missing.path.unlink()
    sound, lost, given_up, impossible = (
        *stage.register(stage.file("sound.npy")),
        *stage.register(missing),
        *stage.register(stage.file("given-up.npy"), failed_copy_attempts=5),
        *stage.register(stage.file("impossible.npy"), pub_id=None),
    )
    done = stage.command("run", "--reconcile", *stage.flags())
    assert done.stdout == "archived 1; left: 1 pending, 1 quarantined, 1 refused, 0 ignored\n"
    assert done.returncode == 3, done.stderr
    assert [row.attempts for row in stage.rows([sound, lost, given_up, impossible])] == [0, 1, 5, 1000]
    assert "Traceback" not in done.stderr


def test_it_exits_with_4_where_a_source_cannot_be_reached(stage: PrivateSite, impatient: None) -> None:
    (id_,) = stage.register(stage.file("file.npy"))
    stage.ssh.stop()
    done = stage.command("run", "--reconcile", *stage.flags())
    assert done.returncode == 4, done.stderr
    assert done.stdout == "archived 0; left: 1 pending, 0 quarantined, 0 refused, 0 ignored\n"
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"cdc-archiver: {stage.ssh.host}: host_unreachable: ")
    assert (stage.row(id_).copied, stage.row(id_).attempts) == (0, 0)


def test_an_unreachable_source_with_nothing_to_give_is_no_matter(stage: PrivateSite) -> None:
    stage.ssh.stop()
    done = stage.command("run", "--reconcile", *stage.flags())
    assert (done.returncode, done.stdout) == (0, "archived 0; left: 0 pending, 0 quarantined, 0 refused, 0 ignored\n")


def test_it_exits_with_4_where_the_database_cannot_be_reached(stage: PrivateSite) -> None:
    done = stage.command("run", "--reconcile", *stage.flags(), environment={"MYSQL_PORT": "1"})
    assert done.returncode == 4
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("cdc-archiver: the database 127.0.0.1:1 ")


def test_with_a_full_archive_it_says_so_and_charges_nobody(stage: PrivateSite, impatient: None) -> None:
    (id_,) = stage.register(stage.file("file.npy"))
    done = stage.command("run", "--reconcile", *stage.flags(min_free="1000T"))
    assert done.returncode == 3
    assert "no_space" in done.stderr.splitlines()[-1]
    assert (stage.row(id_).copied, stage.row(id_).attempts) == (0, 0)


def test_it_has_patience_with_a_host_that_comes_back(stage: PrivateSite) -> None:
    # Given a host that reboots,
    (id_,) = stage.register(stage.file("file.npy"))
    stage.ssh.stop()
    back = threading.Timer(1.5, stage.ssh.start)
    back.start()
    # when it comes back soon, then its files are archived in the same run.
    done = stage.command("run", "--reconcile", *stage.flags())
    back.join()
    assert (done.returncode, done.stdout) == (0, "archived 1; left: 0 pending, 0 quarantined, 0 refused, 0 ignored\n")
    assert stage.row(id_).attempts == 0


def test_interrupted_it_says_what_is_left_and_leaves_no_process(stage: PrivateSite) -> None:
    # Given a reconciliation on a slow link,
    ids = stage.register(*stage.files(30, size=50_000))
    command = [*COMMAND, "run", "--reconcile", *stage.flags(bwlimit="100", drain_timeout="0.3")]
    with subprocess.Popen(command, env=stage.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        eventually(lambda: stage.count("copied = 1"), "it is at work")
        # when an operator loses patience,
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=30)
    # then it says how far it came, which the table says too.
    done = stage.count("copied = 1")
    assert run.returncode == 3
    assert said.decode().startswith(f"archived {done}; left: {len(ids) - done} pending, ")
    assert stage.count("failed_copy_attempts <> 0") == 0
    assert len(stage.archived_files()) == done


def at_work(stage: PrivateSite) -> tuple[threading.Thread, list[Done], list[int]]:
    """A run on a slow link that has archived something and has much left, in a thread; its end; the rows."""
    ids = stage.register(*stage.files(40, size=50_000))
    ended: list[Done] = []
    run = threading.Thread(
        target=lambda: ended.append(stage.process("run", "--reconcile", *stage.flags(bwlimit="100")))
    )
    run.start()
    eventually(lambda: stage.count("copied = 1"), "it is at work")
    return run, ended, ids


def test_a_lost_lock_ends_it_with_4_and_counts_no_failed_attempt(stage: PrivateSite) -> None:
    run, ended, ids = at_work(stage)
    # When the connection that holds the lock is cut,
    ((session,),) = stage.sql("SELECT IS_USED_LOCK(%s)", [lock_name(stage.database, TABLE, TARGET)])
    stage.sql(f"KILL {session}")
    run.join()
    # then it ends before all is done, in one line,
    assert ended[0].returncode == 4, ended[0].stderr
    assert ended[0].stdout == ""
    assert ended[0].stderr.splitlines()[-1].startswith("cdc-archiver: ")
    assert "Traceback" not in ended[0].stderr
    assert stage.count("failed_copy_attempts <> 0") == 0
    # and the next run has the rest, each file once.
    assert stage.count("copied = 1") < len(ids)
    assert stage.command("run", "--reconcile", *stage.flags()).returncode == 0
    assert len(stage.archived_files()) == len(ids)


def test_a_database_that_goes_away_ends_it_with_4(doomed_stage: PrivateSite) -> None:
    stage = doomed_stage
    run, ended, ids = at_work(stage)
    stage.server.kill()
    run.join()
    assert ended[0].returncode == 4, ended[0].stderr
    assert ended[0].stdout == ""
    assert ended[0].stderr.splitlines()[-1].startswith("cdc-archiver: ")
    stage.server.start()
    stage.close()  # the administrator connects again
    assert stage.count("failed_copy_attempts <> 0") == 0
    assert stage.command("run", "--reconcile", *stage.flags()).returncode == 0
    assert len(stage.archived_files()) == len(ids)


def test_a_thread_that_crashes_ends_it_with_1(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(sweeper: Sweeper) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Sweeper, "work", crash)
    stage.register(stage.file("file.npy"))
    done = stage.command("run", "--reconcile", *stage.flags())
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "cdc-archiver: the thread sweeper died of RuntimeError('a bug'); fix: "
    )


def test_locks_that_nobody_is_known_to_hold_are_waited_for_no_longer_than_told(
    stage: PrivateSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile_completion, "_LOCK_LIMIT", 0.5)
    monkeypatch.setattr(SourceLocks, "acquire_all", lambda locks: False)
    monkeypatch.setattr(SourceLocks, "holder", lambda locks, source: None)
    stage.register(stage.file("file.npy"))
    done = stage.command("run", "--reconcile", "--wait", "1", *stage.flags())
    assert (done.returncode, done.stdout) == (3, "archived 0; left: 1 pending, 0 quarantined, 0 refused, 0 ignored\n")


def test_it_takes_over_from_a_service_that_dies(stage: PrivateSite) -> None:
    # Given a running service that does not get on, and a reconciliation that watches it,
    ids = stage.register(*stage.files(3, size=200_000))
    said: list[Done] = []
    with stage.program(bwlimit="1", until=None) as service:
        eventually(lambda: service.metric("in_flight") > 0, "the service is at work")
        run = threading.Thread(target=lambda: said.append(stage.process("run", "--reconcile", *stage.flags())))
        run.start()
        time.sleep(2)  # until it watches, of which nothing tells from outside
        # when the service dies,
        service.kill()
        run.join()
    # then the reconciliation does the work itself.
    assert said[0].returncode == 0, said[0].stderr
    assert {row.copied for row in stage.rows(ids)} == {1}


def test_beside_a_service_it_watches_and_copies_nothing(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(health._PAUSES, Scope.SOURCE, (0.3, 0.5))
    # Given a running service whose source is down, and files that wait for it,
    with stage.service() as service:
        stage.ssh.stop()
        ids = stage.register(*stage.files(3))
        service.wait_state("no source")
        # when it is run for a second, then it says that they still wait,
        done = stage.command("run", "--reconcile", "--wait", "1", *stage.flags())
        assert done.stdout == "the running service archived 0; left: 3 pending, 0 quarantined, 0 refused, 0 ignored\n"
        assert done.returncode == 3, done.stderr
        # and when it may take longer and the source comes back, that the service has them.
        back = threading.Timer(1.5, stage.ssh.start)
        back.start()
        done = stage.command("run", "--reconcile", "--wait", "60", *stage.flags())
        back.join()
        assert done.stdout == "the running service archived 3; left: 0 pending, 0 quarantined, 0 refused, 0 ignored\n"
        assert done.returncode == 0, done.stderr
        # It was the service indeed.
        service.wait_metric(3, "copies_total", result="archived")
        assert {row.copied for row in stage.rows(ids)} == {1}
        assert service.state() == "streaming"


def test_a_service_that_comes_meanwhile_stands_by_and_takes_over(stage: PrivateSite) -> None:
    # Given a reconciliation that takes a while,
    ids = stage.register(*stage.files(20, size=40_000))
    said = []
    run = threading.Thread(
        target=lambda: said.append(stage.process("run", "--reconcile", *stage.flags(bwlimit="400")).stdout)
    )
    run.start()
    eventually(lambda: stage.count("copied = 1"), "it is at work")
    # when the service is started beside it,
    with stage.service(until=None) as service:
        # then it waits for its end, and streams.
        service.wait_state("streaming")
        run.join()
        assert stage.count("copied = 1") == len(ids)
        assert said == ["archived 20; left: 0 pending, 0 quarantined, 0 refused, 0 ignored\n"]


def test_more_than_fits_into_the_queues_is_archived_too(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"INBOX_LIMIT": 20, "QUEUE_LIMIT": 10, "BACKLOG_LIMIT": 8, "REFILL_BELOW": 4}.items():
        monkeypatch.setattr(scheduler, name, value)
    stage.register(*stage.files(120))
    reconciliation = ReconcileCompletion()
    Supervisor(stage.settings(), reconciliation=reconciliation).run()
    result = reconciliation.result
    assert result is not None
    assert (result.archived, result.left.pending, int(result.status)) == (120, 0, 0)
    assert stage.count(f"copied = 1 AND path LIKE '{stage.data_dir}/%'") == 120
