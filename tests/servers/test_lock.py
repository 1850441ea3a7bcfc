"""The lock on real servers: one holder, all or none, and a loss that is noticed before anybody else holds it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Self

import pytest
from kit import PASSWORD, TABLE, World, eventually, new_world
from proxy import Proxy

from cdc_archiver.database.engine import Database
from cdc_archiver.database.lock import LockKeeper, LockTiming, TargetLocks, lock_name
from cdc_archiver.errors import DatabaseUnavailable, LockLost
from cdc_archiver.sandbox import DatabaseServer

QUICK = LockTiming(session_limit=3, check_interval=0.5, answer_limit=1.0, try_interval=0.1)

_HOLDER = """
import sys, time
from cdc_archiver.database.engine import Database
from cdc_archiver.database.lock import TargetLocks
from cdc_archiver.settings import load
host, port, name, user, password = sys.argv[1:6]
flags = dict(mysql_host=host, mysql_port=port, mysql_database=name, mysql_user=user, mysql_password=password)
locks = TargetLocks(Database(load(flags=flags, environment={})), sys.argv[6], sys.argv[7:])
print(locks.acquire(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def world(database_server: DatabaseServer) -> Iterator[World]:
    with new_world(database_server) as made:
        yield made


class Keeping:
    """A keeper, and when it said what."""

    def __init__(self, database: Database, *targets: str, timing: LockTiming = QUICK) -> None:
        self.acquired: list[float] = []
        self.lost: list[tuple[float, str]] = []
        self.waiting: list[str] = []
        self.unreachable: list[str] = []
        self.keeper = LockKeeper(
            TargetLocks(database, TABLE, targets, timing),
            lambda: self.acquired.append(time.monotonic()),
            lambda why: self.lost.append((time.monotonic(), why)),
            self.waiting.append,
            self.unreachable.append,
        )

    def __enter__(self) -> Self:
        self.keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.keeper.stop()
        assert self.keeper.join(5)
        assert self.keeper.failure is None


def test_of_two_holders_the_second_waits_and_learns_who_is_first(world: World) -> None:
    first, second = (TargetLocks(world.database(), TABLE, ["monitor"]) for _ in range(2))
    assert first.acquire()
    assert not second.acquire()
    holder = second.holder()
    assert holder is not None
    assert world.user in holder
    assert "127.0.0.1" in holder
    assert "monitor" in holder
    assert first.holder() is None
    first.check()
    first.release()
    assert second.acquire()
    with pytest.raises(LockLost):
        first.check()
    second.release()
    assert first.holder() is None


@pytest.mark.parametrize("taken", ["a", "b", "c"])
def test_all_or_none(world: World, taken: str) -> None:
    """Whichever of them another holds: the first that is asked for, or the last."""
    busy = TargetLocks(world.database(), TABLE, [taken])
    assert busy.acquire()
    all_three = TargetLocks(world.database(), TABLE, ["a", "b", "c"])
    assert not all_three.acquire()
    for name in {"a", "b", "c"} - {taken}:
        single = TargetLocks(world.database(), TABLE, [name])
        eventually(single.acquire, f"the lock of {name}, which nobody holds", 3)
        single.release()
    busy.release()
    assert all_three.acquire()
    all_three.check()
    all_three.release()


def test_other_targets_tables_and_databases_are_other_locks(world: World) -> None:
    held = [
        TargetLocks(world.database(), table, [target])
        for table, target in ((TABLE, "one"), (TABLE, "two"), ("other", "one"))
    ]
    assert all(locks.acquire() for locks in held)
    for locks in held:
        locks.release()
    assert lock_name("files", TABLE, "one") != lock_name("elsewhere", TABLE, "one")


@pytest.mark.parametrize("target", ["x" * 500, "Überwachung-µ'\\;", "", "a b"])
def test_any_name_has_a_lock(world: World, target: str) -> None:
    assert len(lock_name(world.name, TABLE, target)) <= 64
    locks = TargetLocks(world.database(), TABLE, [target])
    assert locks.acquire()
    locks.check()
    locks.release()


def test_two_spellings_of_one_target_are_one_lock(world: World) -> None:
    """The table compares without regard to case, so both would archive the same rows."""
    first = TargetLocks(world.database(), TABLE, ["Monitor"])
    assert first.acquire()
    assert not TargetLocks(world.database(), TABLE, ["monitor"]).acquire()
    first.release()


def test_a_killed_process_holds_nothing(world: World) -> None:
    address = ("127.0.0.1", str(world.server.port))
    command = [sys.executable, "-c", _HOLDER, *address, world.name, world.user, PASSWORD, TABLE, "monitor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "True\n"
            with Keeping(world.database(), "monitor") as keeping:
                eventually(lambda: keeping.waiting, "the keeper says who holds it")
                assert keeping.acquired == []
                holder.send_signal(signal.SIGKILL)
                eventually(lambda: keeping.acquired, "the lock is ours")
        finally:
            holder.kill()


def test_a_severed_link_is_noticed_before_another_has_the_lock(world: World) -> None:
    """The heart of it: no moment with two holders who both believe it. And a dead host's lock dies."""
    with (
        Proxy(world.server.port) as proxy,
        Keeping(world.database(port=proxy.port), "monitor") as first,
    ):
        eventually(lambda: first.acquired, "the first has it")
        with Keeping(world.database(), "monitor") as second:
            eventually(lambda: second.waiting, "the second waits")
            time.sleep(3 * QUICK.check_interval)  # long enough to see that checks keep the session alive
            assert first.lost == []
            severed = time.monotonic()
            proxy.freeze()
            eventually(lambda: second.acquired, "the second has it")
            assert first.lost, "the first has not noticed"
            assert first.lost[0][0] < second.acquired[0]
            assert second.acquired[0] - severed < QUICK.session_limit + 3
            proxy.thaw()
            eventually(lambda: len(first.waiting) > 0, "the first waits its turn")
        eventually(lambda: len(first.acquired) == 2, "and gets it")


def test_a_killed_session_is_noticed_and_the_lock_taken_again(world: World) -> None:
    with Keeping(world.database(), "monitor") as keeping:
        eventually(lambda: keeping.acquired, "the lock is ours")
        [session] = [row[0] for row in world.sql("SHOW PROCESSLIST") if row[1] == world.user]
        world.sql(f"KILL {session}")
        eventually(lambda: keeping.lost, "the loss is noticed", 3)
        assert "gone" in keeping.lost[0][1]
        eventually(lambda: len(keeping.acquired) == 2, "the lock is ours again")


def test_a_lock_that_was_taken_from_a_living_session_is_noticed(world: World) -> None:
    locks = TargetLocks(world.database(), TABLE, ["monitor"])
    assert locks.acquire()
    assert locks._connection is not None
    with locks._connection.cursor() as cursor:
        cursor.execute("SELECT RELEASE_ALL_LOCKS()")
    with pytest.raises(LockLost, match="monitor"):
        locks.check()
    assert not locks.held


def test_a_keeper_that_stops_leaves_the_lock_free(world: World) -> None:
    with Keeping(world.database(), "monitor", timing=LockTiming()) as keeping:
        eventually(lambda: keeping.acquired, "the lock is ours")
        before = time.monotonic()
    assert time.monotonic() - before < 1, "it does not wait for its next check"
    assert TargetLocks(world.database(), TABLE, ["monitor"]).acquire()


def test_a_database_that_is_away_is_said_once_and_waited_for(world: World) -> None:
    with Proxy(world.server.port) as proxy:
        proxy.freeze()
        locks = TargetLocks(world.database(port=proxy.port), TABLE, ["monitor"], QUICK)
        with pytest.raises(DatabaseUnavailable):
            locks.acquire()
        with Keeping(world.database(port=proxy.port), "monitor") as keeping:
            eventually(lambda: keeping.unreachable, "the keeper says that the database is away")
            proxy.thaw()
            eventually(lambda: keeping.acquired, "the lock is ours")
            assert len(keeping.unreachable) == 1


@pytest.mark.parametrize(("check", "answer"), [(10.0, 3.0), (5.0, 5.0)])
def test_a_timing_that_would_let_two_hold_it_is_refused(check: float, answer: float) -> None:
    with pytest.raises(ValueError, match="another could hold the lock"):
        LockTiming(check_interval=check, answer_limit=answer)
