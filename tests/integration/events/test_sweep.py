"""The sweep, on a real server: what it offers, in which order, and why it says that it found it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from files_table import TABLE
from private_database import PrivateDatabase, new_private_database
from rows import files_table, register
from waiting import eventually

from cdc_archiver.database.files_table import Pending
from cdc_archiver.database.server_features import Position
from cdc_archiver.events.interval_set import IntervalSet
from cdc_archiver.events.sweep import NoStream, Sweeper
from cdc_archiver.model import Origin
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.sandbox import MariaDb
from cdc_archiver.settings import load


@pytest.fixture
def world(mariadb: MariaDb) -> Iterator[PrivateDatabase]:
    with new_private_database(mariadb) as world:
        yield world


class FakeSink:
    """Takes ids as the dispatcher would, with space for a limited number."""

    def __init__(self, room: int = 1000) -> None:
        self.free = room
        self.offered: list[tuple[int, bool]] = []
        self.known: set[int] = set()
        self.dropped: set[int] = set()
        self.awaited: set[int] = set()
        self.starved = False

    def offer(self, ids: Iterable[int], origin: Origin, *, fresh: bool) -> set[int]:
        new = set(ids) - self.known
        self.known |= new
        self.free -= len(new)
        self.offered += [(id_, fresh) for id_ in sorted(new)]
        return new

    def notice(self, rows: Sequence[Pending]) -> None:
        pass

    def room(self, source: str) -> int:
        return self.free

    def request_refill(self, source: str) -> None:
        self.starved = True

    def was_dropped(self, id_: int) -> bool:
        return id_ in self.dropped

    def is_awaited(self, id_: int) -> bool:
        return id_ in self.awaited

    def forget_dropped(self) -> None:
        self.dropped.clear()

    def empty(self, room: int) -> list[int]:
        """A worker took and archived everything."""
        ids = [id_ for id_, _ in self.offered]
        self.offered.clear()
        self.free = room
        return ids


class FakeStream:
    """A stream that has delivered, and missed, what a test says."""

    def __init__(self) -> None:
        self.position: Position | None = Position("binlog.000001", 4)
        self.anchor_max_id: int | None = 0
        self.delivered = IntervalSet()
        self.suspects: list[int] = []
        self.missed: list[int] = []

    def suspect(self, ids: Iterable[int], position: Position) -> None:
        self.suspects += ids

    def take_missed(self) -> list[int]:
        missed, self.missed = self.missed, []
        return missed


class Stage:
    """A sweeper and what is around it."""

    def __init__(self, world: PrivateDatabase, stream: Any = None, **settings: Any) -> None:
        self.sink = FakeSink()
        self.metrics = Metrics()
        self.stream = stream or NoStream()
        self.database = world.database()
        loaded = load({"target": ("m",), **settings}, environment={})
        self.sweeper = Sweeper(loaded, self.database, files_table(), self.sink, self.stream, self.metrics)

    def found(self) -> dict[str, float]:
        reasons = ("backlog", "retry", "requeued", "stream_missed", "overflow", "late_commit")
        return {why: n for why in reasons if (n := self.metrics.total("sweep_found_total", why=why))}

    def close(self) -> None:
        self.database.close()


@pytest.fixture
def make(world: PrivateDatabase) -> Iterator[Any]:
    stages: list[Stage] = []

    def make_stage(stream: Any = None, **settings: Any) -> Stage:
        stages.append(Stage(world, stream, **settings))
        return stages[-1]

    yield make_stage
    for stage in stages:
        stage.close()


def test_everything_pending_is_offered_once_and_counted(world: PrivateDatabase, make: Any) -> None:
    ids = register(world, {}, {"copied": None}, {"copied": 1}, {"failed_copy_attempts": 2}, {"failed_copy_attempts": 5})
    stage = make()
    stage.sweeper.sweep()
    stage.sweeper.sweep()
    assert stage.sink.empty(1000) == [ids[0], ids[1], ids[3]]
    assert stage.found() == {"backlog": 2, "retry": 1}
    assert stage.sweeper.exhausted.is_set()
    assert stage.metrics.total("pending_files", source="local") == 3
    assert stage.metrics.total("quarantined_files", source="local") == 1
    assert stage.metrics.total("oldest_pending_age_seconds", source="local") > 1e8


def test_no_more_is_read_than_the_queue_has_space_for_and_the_rest_later(world: PrivateDatabase, make: Any) -> None:
    # Given 25 pending rows and space for ten
    ids = register(world, *({} for _ in range(25)))
    stage = make()
    stage.sink.free = 10
    # When the queue is emptied again and again
    rounds = []
    for _ in range(3):
        stage.sweeper.sweep()
        assert stage.sink.starved
        rounds.append(stage.sink.empty(10))
    # Then each row is offered once, in order.
    assert rounds == [ids[:10], ids[10:20], ids[20:]]


def test_rows_added_since_the_last_sweep_go_before_the_backlog(world: PrivateDatabase, make: Any) -> None:
    old = register(world, *({} for _ in range(20)))
    stage = make()
    stage.sink.free = 5
    stage.sweeper.sweep()
    assert stage.sink.empty(5) == old[:5]
    new = register(world, {}, {})
    stage.sweeper.sweep()
    assert stage.sink.offered == [*((id_, True) for id_ in new), *((id_, False) for id_ in old[5:8])]


def test_it_counts_why_a_sweep_found_a_row(world: PrivateDatabase, make: Any) -> None:
    # Given a stream anchored after the first row, that has delivered the others but the last, one before it was visible
    stream = FakeStream()
    before, delivered, dropped, late, unheard = register(world, {}, {}, {}, {}, {})
    stream.anchor_max_id = before
    for id_ in (delivered, dropped, late):
        stream.delivered.add(id_)
    stage = make(stream)
    stage.sink.dropped.add(dropped)
    stage.sink.awaited.add(late)
    # When a sweep finds all of them
    stage.sweeper.sweep()
    # Then the last is a suspect, and no miss as long as the stream may still tell of it,
    assert stage.found() == {"backlog": 1, "requeued": 1, "overflow": 1, "late_commit": 1}
    assert len(stage.sink.offered) == 5
    assert stream.suspects == [unheard]
    # and is one when the stream has passed it without delivering it: once.
    stream.missed = [unheard]
    stage.sweeper.sweep()
    stage.sweeper.sweep()
    assert stage.found() == {"backlog": 1, "requeued": 1, "overflow": 1, "late_commit": 1, "stream_missed": 1}
    assert stream.suspects == [unheard]


def test_an_anchor_is_swept_at_once_and_once_more(world: PrivateDatabase, make: Any) -> None:
    """A row committed just before the anchor may be invisible at the first look."""
    stream = FakeStream()
    stage = make(stream, sweep_interval=3600)
    stage.sweeper.start()
    eventually(lambda: stage.sweeper.last_sweep, "the first sweep")
    # Given a row that becomes visible while the sweep at the anchor is under way, past where that looks,
    late: list[int] = []
    offer = stage.sink.offer

    def offer_and_register(*given: Any, **named: Any) -> Any:
        stage.sink.offer = offer
        late.extend(register(world, {}))
        return offer(*given, **named)

    stage.sink.offer = offer_and_register
    (early,) = register(world, {})
    # when the stream is anchored, then there is a second look, which finds it.
    stage.sweeper.anchored()
    eventually(lambda: early in stage.sink.known, "the sweep at the anchor")
    eventually(lambda: late and late[0] in stage.sink.known, "the second sweep")
    stage.sweeper.stop()
    assert stage.sweeper.join(5.0)
    assert stage.sweeper.failure is None


def test_a_database_that_is_down_is_tried_again(world: PrivateDatabase, make: Any) -> None:
    (id_,) = register(world, {})
    world.sql(f"RENAME TABLE {TABLE} TO away")
    stage = make()
    answers: list[bool] = []
    stage.sweeper._on_database = lambda up, why: answers.append(up)
    stage.sweeper.start()
    eventually(lambda: False in answers, "it is noticed")
    world.sql(f"RENAME TABLE away TO {TABLE}")
    eventually(lambda: id_ in stage.sink.known, "it goes on")
    stage.sweeper.stop()
    assert stage.sweeper.join(5.0)
