"""The lock on real servers: one holder, all or none, and a loss that is noticed before anybody else holds it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import pytest
from files_table import TABLE
from private_database import PASSWORD, PrivateDatabase
from proxy import Proxy
from waiting import eventually

from cdc_archiver.database.connections import Database
from cdc_archiver.database.source_locks import LockTiming, SourceLocks, lock_name
from cdc_archiver.errors import ArchiverError, DatabaseUnavailable, LockLost
from cdc_archiver.service.lock_keeper import LockKeeper

QUICK = LockTiming(session_limit=3, check_interval=0.5, answer_limit=1.0, try_interval=0.1)

_HOLDER = """
import sys, time
from cdc_archiver.database.connections import Database
from cdc_archiver.database.source_locks import SourceLocks
from cdc_archiver.settings import load
host, port, name, user, password = sys.argv[1:6]
flags = dict(mysql_host=host, mysql_port=port, mysql_database=name, mysql_user=user, mysql_password=password)
locks = SourceLocks(Database(load(flags=flags, environment={})), sys.argv[6], {"srv": sys.argv[7:]})
print(locks.acquire("srv"), flush=True)
time.sleep(60)
"""


def locks_of(database: Database, *targets: str, table: str = TABLE, timing: LockTiming | None = None) -> SourceLocks:
    """The locks of one source, `srv`."""
    return SourceLocks(database, table, {"srv": targets}, timing)


class Keeping:
    """A keeper, and what it said when."""

    def __init__(
        self,
        database: Database,
        *targets: str,
        sources: Mapping[str, Sequence[str]] | None = None,
        share: int = 0,
        timing: LockTiming = QUICK,
        all_or_none: bool = False,
    ) -> None:
        self.acquired: list[float] = []
        self.lost: list[tuple[float, str]] = []
        self.holders: list[Mapping[str, str]] = []
        self.unreachable: list[str] = []
        self.reachable = 0
        locks = SourceLocks(database, TABLE, sources or {"srv": targets}, timing)
        self.keeper = LockKeeper(locks, self, share, all_or_none=all_or_none)

    def on_acquired(self, sources: Sequence[str], losses: int) -> None:
        self.acquired.append(time.monotonic())

    def on_lost(self, lost: LockLost) -> None:
        self.lost.append((time.monotonic(), str(lost)))

    def on_requested(self, source: str) -> None:
        self.keeper.release(source, self.keeper.losses)

    def on_held_by_other(self, holders: Mapping[str, str]) -> None:
        self.holders.append(holders)

    def on_unreachable(self, error: ArchiverError) -> None:
        self.unreachable.append(str(error))

    def on_reachable(self) -> None:
        self.reachable += 1

    @property
    def waits(self) -> bool:
        return any(self.holders)

    @property
    def held(self) -> set[str]:
        return set(self.keeper.held)

    def __enter__(self) -> Self:
        self.keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.keeper.stop()
        assert self.keeper.join(5)
        assert self.keeper.failure is None


def test_of_two_holders_the_second_waits_and_learns_who_is_first(world: PrivateDatabase) -> None:
    first, second = (locks_of(world.database(), "monitor") for _ in range(2))
    assert first.acquire("srv")
    assert not second.acquire("srv")
    holder = second.holder("srv")
    assert holder is not None
    assert world.user in holder
    assert "127.0.0.1" in holder
    assert "monitor" in holder
    assert first.holder("srv") is None
    first.check()
    first.close()
    assert second.acquire("srv")
    with pytest.raises(LockLost):
        first.check()
    second.close()
    assert first.holder("srv") is None


@pytest.mark.parametrize("taken", ["a", "b", "c"])
def test_all_or_none(world: PrivateDatabase, taken: str) -> None:
    """Whichever of them another holds: the first that is asked for, or the last."""
    busy = locks_of(world.database(), taken)
    assert busy.acquire("srv")
    all_three = locks_of(world.database(), "a", "b", "c")
    assert not all_three.acquire("srv")
    for name in {"a", "b", "c"} - {taken}:
        single = locks_of(world.database(), name)
        eventually(partial(single.acquire, "srv"), f"the lock of {name}, which nobody holds", 3)
        single.close()
    busy.close()
    assert all_three.acquire("srv")
    all_three.check()
    all_three.close()


def test_other_targets_tables_and_databases_are_other_locks(world: PrivateDatabase) -> None:
    held = [
        locks_of(world.database(), target, table=table)
        for table, target in ((TABLE, "one"), (TABLE, "two"), ("other", "one"))
    ]
    assert all(locks.acquire("srv") for locks in held)
    for locks in held:
        locks.close()
    assert lock_name("files", TABLE, "one") != lock_name("elsewhere", TABLE, "one")


@pytest.mark.parametrize("target", ["x" * 500, "Überwachung-µ'\\;", "", "a b"])
def test_any_name_has_a_lock(world: PrivateDatabase, target: str) -> None:
    assert len(lock_name(world.name, TABLE, target)) <= 64
    locks = locks_of(world.database(), target)
    assert locks.acquire("srv")
    locks.check()
    locks.close()


def test_two_spellings_of_one_target_are_one_lock(world: PrivateDatabase) -> None:
    """The table compares without regard to case, so both would archive the same rows."""
    first = locks_of(world.database(), "Monitor")
    assert first.acquire("srv")
    assert not locks_of(world.database(), "monitor").acquire("srv")
    first.close()


def test_a_killed_process_holds_nothing(world: PrivateDatabase) -> None:
    address = ("127.0.0.1", str(world.server.port))
    command = [sys.executable, "-c", _HOLDER, *address, world.name, world.user, PASSWORD, TABLE, "monitor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "True\n"
            with Keeping(world.database(), "monitor") as keeping:
                eventually(lambda: keeping.waits, "the keeper says who holds it")
                assert keeping.acquired == []
                holder.send_signal(signal.SIGKILL)
                eventually(lambda: keeping.acquired, "the lock is ours")
        finally:
            holder.kill()


def test_a_severed_link_is_noticed_before_another_has_the_lock(world: PrivateDatabase) -> None:
    """The heart of it: no moment with two holders who both believe it. And a dead host's lock dies."""
    with (
        Proxy(world.server.port) as proxy,
        Keeping(world.database(port=proxy.port), "monitor") as first,
    ):
        eventually(lambda: first.acquired, "the first has it")
        with Keeping(world.database(), "monitor") as second:
            eventually(lambda: second.waits, "the second waits")
            time.sleep(3 * QUICK.check_interval)  # long enough to see that checks keep the session alive
            assert first.lost == []
            severed = time.monotonic()
            proxy.freeze()
            eventually(lambda: second.acquired, "the second has it")
            assert first.lost, "the first has not noticed"
            assert first.lost[0][0] < second.acquired[0]
            assert second.acquired[0] - severed < QUICK.session_limit + 3
            proxy.thaw()
            eventually(lambda: first.waits, "the first waits its turn")
        eventually(lambda: len(first.acquired) == 2, "and gets it")


def test_a_killed_session_is_noticed_and_the_lock_taken_again(world: PrivateDatabase) -> None:
    with Keeping(world.database(), "monitor") as keeping:
        eventually(lambda: keeping.acquired, "the lock is ours")
        [session] = [row[0] for row in world.sql("SHOW PROCESSLIST") if row[1] == world.user]
        world.sql(f"KILL {session}")
        eventually(lambda: keeping.lost, "the loss is noticed", 3)
        assert "gone" in keeping.lost[0][1]
        eventually(lambda: len(keeping.acquired) == 2, "the lock is ours again")


def test_a_lock_that_was_taken_from_a_living_session_is_noticed(world: PrivateDatabase) -> None:
    locks = locks_of(world.database(), "monitor")
    assert locks.acquire("srv")
    assert locks._connection is not None
    with locks._connection.cursor() as cursor:
        cursor.execute("SELECT RELEASE_ALL_LOCKS()")
    with pytest.raises(LockLost, match="monitor"):
        locks.check()
    assert not locks.held


def test_a_keeper_that_stops_leaves_the_lock_free(world: PrivateDatabase) -> None:
    with Keeping(world.database(), "monitor", timing=LockTiming()) as keeping:
        eventually(lambda: keeping.acquired, "the lock is ours")
        before = time.monotonic()
    assert time.monotonic() - before < 1, "it does not wait for its next check"
    assert locks_of(world.database(), "monitor").acquire("srv")


def test_a_database_that_is_down_is_reported_once_and_waited_for(world: PrivateDatabase) -> None:
    with Proxy(world.server.port) as proxy:
        proxy.freeze()
        locks = locks_of(world.database(port=proxy.port), "monitor", timing=QUICK)
        with pytest.raises(DatabaseUnavailable):
            locks.acquire("srv")
        with Keeping(world.database(port=proxy.port), "monitor") as keeping:
            eventually(lambda: keeping.unreachable, "the keeper says that the database is away")
            proxy.thaw()
            eventually(lambda: keeping.acquired, "the lock is ours")
            assert len(keeping.unreachable) == 1
            assert keeping.reachable == 1


@pytest.mark.parametrize(("check", "answer"), [(10.0, 3.0), (5.0, 5.0)])
def test_a_timing_that_would_let_two_hold_it_is_refused(check: float, answer: float) -> None:
    with pytest.raises(ValueError, match="another could hold the lock"):
        LockTiming(check_interval=check, answer_limit=answer)


FAIR = LockTiming(session_limit=3, check_interval=0.2, answer_limit=1.0, try_interval=0.1, spare_after=1.0)
FOUR: Mapping[str, Sequence[str]] = {f"srv{number}": [f"monitor{number}"] for number in range(4)}


def test_with_a_share_each_takes_its_part_and_the_rest_when_another_dies(world: PrivateDatabase) -> None:
    """Two that should hold two each: nothing is left to nobody, and nobody keeps more than the share for long."""
    with Keeping(world.database(), sources=FOUR, share=2, timing=FAIR) as first:
        # Alone it takes its share at once, and the others when it is clear that nobody else does.
        eventually(lambda: len(first.held) == 2, "its share")
        eventually(lambda: len(first.held) == 4, "what nobody takes")
        with Keeping(world.database(), sources=FOUR, share=2, timing=FAIR) as second:
            # A second one has room for two: it gets them.
            eventually(lambda: len(second.held) == 2 and len(first.held) == 2, "two each")
            assert first.held | second.held == set(FOUR)
            # Each knows who has the others.
            eventually(lambda: second.holders[-1:] and set(second.holders[-1]) == first.held, "it knows where they are")
            assert not first.lost
        # It ends: the first has all of them again.
        eventually(lambda: first.held == set(FOUR), "all four again")


def test_without_a_share_the_first_holds_all(world: PrivateDatabase) -> None:
    with Keeping(world.database(), sources=FOUR, timing=FAIR) as first:
        eventually(lambda: first.held == set(FOUR), "all")
        assert len(first.acquired) == 1
        with Keeping(world.database(), sources=FOUR, timing=FAIR) as second:
            eventually(lambda: second.holders and set(second.holders[-1]) == set(FOUR), "it waits for all of them")
            time.sleep(3 * FAIR.check_interval)
            assert first.held == set(FOUR)


def test_all_or_none_takes_no_source_while_another_holds_one(world: PrivateDatabase) -> None:
    holder = SourceLocks(world.database(), TABLE, {"srv2": FOUR["srv2"]})
    assert holder.acquire("srv2")
    with Keeping(world.database(), sources=FOUR, timing=FAIR, all_or_none=True) as keeping:
        eventually(lambda: keeping.holders and set(keeping.holders[-1]) == {"srv2"}, "it knows which one is held")
        time.sleep(2 * FAIR.spare_after)  # longer than a source that nobody takes is left to others
        assert not keeping.held
        holder.close()
        eventually(lambda: keeping.held == set(FOUR), "all of them together")
        assert len(keeping.acquired) == 1


def test_no_source_shows_as_held_while_all_are_tried_and_one_is_not_available(
    world: PrivateDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads read what is held: some of the sources, for a moment, would be sources to copy from."""
    holder = SourceLocks(world.database(), TABLE, {"srv2": FOUR["srv2"]})
    locks = SourceLocks(world.database(), TABLE, FOUR)
    assert holder.acquire("srv2")
    held_meanwhile: list[tuple[str, ...]] = []
    ask = locks._ask

    def ask_and_look(statement: str, name: str) -> tuple[Any, ...]:
        held_meanwhile.append(locks.held)
        return ask(statement, name)

    monkeypatch.setattr(locks, "_ask", ask_and_look)
    assert not locks.acquire_all()
    assert len(held_meanwhile) > 2
    assert set(held_meanwhile) == {()}
    assert all(locks.holder(source) is None for source in FOUR if source != "srv2"), "what was taken is free again"
    holder.close()
    assert locks.acquire_all()
    assert set(locks.held) == set(FOUR)
    locks.close()


def test_sources_are_described_anew(world: PrivateDatabase) -> None:
    with Keeping(world.database(), sources={"a": ["one"], "b": ["two"]}, timing=FAIR) as keeping:
        eventually(lambda: keeping.held == {"a", "b"}, "both")
        keeping.keeper.describe({"a": ["one", "another"], "c": ["three"]})
        eventually(lambda: keeping.held == {"a", "b", "c"}, "the new one")
        # What it held it holds with the targets that it had, until it is let go.
        other = locks_of(world.database(), "another")
        assert other.acquire("srv")
        other.close()
        keeping.keeper.release("b", 0)
        eventually(lambda: keeping.held == {"a", "c"}, "it is described no more")
        keeping.keeper.release("a", 0)
        eventually(lambda: keeping.keeper.covers("a", ["one", "another"]), "with its new target", 5)
        assert not locks_of(world.database(), "another").acquire("srv")
        assert keeping.held == {"a", "c"}


def test_a_source_no_longer_described_is_no_longer_requested(world: PrivateDatabase) -> None:
    """Or else whoever holds it beyond his share would give it back for ever."""
    holder = SourceLocks(world.database(), TABLE, {"b": ["two"]})
    assert holder.acquire("b")
    locks = SourceLocks(world.database(), TABLE, {"a": ["one"], "b": ["two"]})
    locks.request_sources(["b"])
    assert holder.is_requested("b")
    locks.describe({"a": ["one"]})
    locks.request_sources([])
    assert not holder.is_requested("b")
    locks.close()
    holder.close()


def test_a_release_that_was_meant_for_a_lock_since_lost_and_taken_again_is_none(world: PrivateDatabase) -> None:
    with Keeping(world.database(), sources={"a": ["one"], "b": ["two"]}, timing=FAIR) as keeping:
        eventually(lambda: keeping.held == {"a", "b"}, "both")
        [session] = [row[0] for row in world.sql("SHOW PROCESSLIST") if row[1] == world.user]
        world.sql(f"KILL {session}")
        eventually(lambda: len(keeping.acquired) == 2, "both again")
        assert keeping.keeper.losses == 1
        keeping.keeper.release("b", 0)
        time.sleep(3 * FAIR.check_interval)
        assert keeping.held == {"a", "b"}
        keeping.keeper.release("b", 1)
        eventually(lambda: len(keeping.acquired) == 3, "it was let go, and taken again")


def test_it_is_known_with_which_targets_a_source_is_held(world: PrivateDatabase) -> None:
    locks = SourceLocks(world.database(), TABLE, {"a": ["one", "two"]})
    assert not locks.covers("a", ["one", "two"])
    assert locks.acquire("a")
    locks.describe({"a": ["one", "two", "three"]})
    assert locks.covers("a", ["two", "one"])
    assert not locks.covers("a", ["one", "two", "three"])
    assert not locks.covers("a", ["one"])
    locks.close()
