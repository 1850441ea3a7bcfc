"""Outcomes to the table, on both real servers: in batches, again after an outage, and never for a row that changed concurrently."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from files_table import TABLE
from private_database import PrivateDatabase
from rows import allow_history, database_of, files_table, register, states
from waiting import eventually

from cdc_archiver.database import history
from cdc_archiver.database import recorder as recorder_module
from cdc_archiver.database.connections import Database
from cdc_archiver.database.history import History, OutcomeEntry
from cdc_archiver.database.recorder import Recorder
from cdc_archiver.model import Archived, AttemptFailed, FileRecord, Reason, Refused


class RecordingWriteBackListener:
    """Keeps what a recorder reports."""

    def __init__(self) -> None:
        self.settled_ids: dict[int, bool] = {}
        self.refused_ids: dict[int, str] = {}
        self.own_writes: set[int] = set()
        self.held_up = False

    def expect_own_writes(self, ids: Sequence[int]) -> None:
        self.own_writes.update(ids)

    def cancel_own_writes(self, ids: Sequence[int]) -> None:
        self.own_writes.difference_update(ids)

    def settled(self, source: str, outcome: Archived | AttemptFailed | Refused, *, counted: bool) -> None:
        self.settled_ids[outcome.record.id] = counted

    def write_refused(self, source: str, outcome: Archived | AttemptFailed | Refused, detail: str) -> bool:
        self.refused_ids[outcome.record.id] = detail
        return True

    def set_backpressure(self, on: bool) -> None:
        self.held_up = on


def records(database: Database, ids: list[int]) -> list[FileRecord]:
    with database.connect() as connection:
        return [row.record for row in files_table().load(connection, ids).values()]


def test_each_kind_of_outcome_has_its_effect_and_its_entry(world: PrivateDatabase) -> None:
    # Given four rows, of which one changes while its file is copied
    allow_history(world)
    ids = register(world, *({"path": f"/data/{number}"} for number in range(4)))
    heard = RecordingWriteBackListener()
    with database_of(world) as database:
        with database.connect() as connection:
            assert history.open_history(connection) == ""
        archived, charged, refused, moved = records(database, ids)
        world.sql(f"UPDATE {TABLE} SET failed_copy_attempts = 3 WHERE id = {moved.id}")
        recorder = Recorder(database, files_table(), History(TABLE, 0.0), heard, patience=1.0)
        # When their outcomes are recorded
        recorder.start()
        recorder.put("srv", Archived(archived, "/archive/0", 7), 0.1)
        recorder.put("srv", AttemptFailed(charged, Reason.CHANGED, "another md5", bytes(16)), 0.1)
        recorder.put("srv", Refused(refused, Reason.NO_PUB_ID, "no pub_id"), 0.1)
        recorder.put("srv", AttemptFailed(moved, Reason.MISSING, "gone"), 0.1)
        eventually(lambda: len(heard.settled_ids) == 4, "all are settled")
        recorder.stop()
        assert recorder.join(5.0)
    # Then each row has its result, except the one that changed: its attempt does not count.
    assert list(states(world).values()) == [
        ("/archive/0", 1, 0),
        ("/data/1", 0, 1),
        ("/data/2", 0, 1000),
        ("/data/3", 0, 3),
    ]
    assert heard.settled_ids == {archived.id: True, charged.id: True, refused.id: True, moved.id: False}
    assert heard.own_writes == {archived.id, charged.id, refused.id}
    entries = world.sql(f"SELECT file_id, result, source, reason FROM {history.NAME} ORDER BY id")
    assert entries == [
        (archived.id, "archived", "srv", None),
        (charged.id, "charged", "srv", "changed"),
        (refused.id, "refused", "srv", "no_pub_id"),
    ]


def test_an_outage_delays_a_write_back_and_loses_none(world: PrivateDatabase) -> None:
    # Given a recorder whose connections were killed, and a table that is gone
    ids = register(world, {})
    heard = RecordingWriteBackListener()
    seen: list[bool] = []
    with database_of(world) as database:
        (record,) = records(database, ids)
        recorder = Recorder(database, files_table(), None, heard, 1.0, on_database=lambda up, why: seen.append(up))
        recorder.start()
        for (session,) in world.sql(f"SELECT id FROM information_schema.processlist WHERE user = '{world.user}'"):
            world.sql(f"KILL {session}")
        world.sql(f"RENAME TABLE {TABLE} TO away")
        # When an outcome is to be recorded
        recorder.put("srv", Archived(record, "/archive/0", 7), 0.1)
        eventually(lambda: False in seen, "the outage is noticed")
        assert not heard.settled_ids
        # Then it is written once the table is back.
        world.sql(f"RENAME TABLE away TO {TABLE}")
        eventually(lambda: heard.settled_ids == {record.id: True}, "the outcome is recorded")
        recorder.stop()
        assert recorder.join(5.0)
    assert states(world)[record.id] == ("/archive/0", 1, 0)
    assert seen[-1]


def test_a_stop_writes_what_waits_and_a_discard_does_not(world: PrivateDatabase) -> None:
    ids = register(world, {"path": "/data/0"}, {"path": "/data/1"})
    with database_of(world) as database:
        first, second = records(database, ids)
        for record, discard in ((first, False), (second, True)):
            recorder = Recorder(database, files_table(), None, RecordingWriteBackListener(), 5.0)
            recorder.put("srv", Archived(record, f"/archive{record.path}", 7), 0.1)
            if discard:
                recorder.discard()
            else:
                recorder.stop()
            recorder.start()
            assert recorder.join(10.0)
    assert list(states(world).values()) == [("/archive/data/0", 1, 0), ("/data/1", 0, 0)]


def test_a_history_that_cannot_be_written_delays_no_row(world: PrivateDatabase) -> None:
    allow_history(world)
    ids = register(world, {})
    heard = RecordingWriteBackListener()
    with database_of(world) as database:
        with database.connect() as connection:
            assert history.open_history(connection) == ""
        world.server.execute(f"DROP TABLE {world.name}.{history.NAME}")
        (record,) = records(database, ids)
        recorder = Recorder(database, files_table(), History(TABLE, 0.0), heard, 1.0)
        recorder.start()
        recorder.put("srv", Archived(record, "/archive/0", 7), 0.1)
        eventually(lambda: heard.settled_ids == {record.id: True}, "the row is written")
        recorder.stop()
        assert recorder.join(5.0)
    assert states(world)[record.id] == ("/archive/0", 1, 0)


def test_a_row_that_the_server_rejects_delays_no_other(world: PrivateDatabase) -> None:
    # Given a counter too small for what a refused row would be given
    world.sql(f"ALTER TABLE {TABLE} MODIFY failed_copy_attempts TINYINT")
    ids = register(world, {"path": "/data/0"}, {"path": "/data/1"}, {"path": "/data/2"})
    heard = RecordingWriteBackListener()
    with database_of(world) as database:
        first, bad, last = records(database, ids)
        recorder = Recorder(database, files_table(), None, heard, 1.0)
        # When it is recorded together with others
        recorder.put("srv", Archived(first, "/archive/0", 7), 0.1)
        recorder.put("srv", Refused(bad, Reason.NO_PUB_ID, "no pub_id"), 0.1)
        recorder.put("srv", Archived(last, "/archive/2", 7), 0.1)
        recorder.start()
        eventually(lambda: len(heard.settled_ids) == 2 and heard.refused_ids, "all are settled")
        recorder.stop()
        assert recorder.join(5.0)
    # Then they are written, and it is given back.
    assert heard.settled_ids == {first.id: True, last.id: True}
    assert list(heard.refused_ids) == [bad.id]
    assert [state[1] for state in states(world).values()] == [1, 0, 1]


def test_a_row_locked_by_another_transaction_delays_the_others_by_seconds_only(
    world: PrivateDatabase,
) -> None:
    ids = register(world, {"path": "/data/0"}, {"path": "/data/1"})
    heard = RecordingWriteBackListener()
    with database_of(world) as database, world.server.connect(database=world.name, autocommit=False) as stranger:
        free, held = records(database, ids)
        with stranger.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {TABLE} WHERE id = {held.id} FOR UPDATE")
        recorder = Recorder(database, files_table(), None, heard, 1.0)
        recorder.put("srv", Archived(held, "/archive/1", 7), 0.1)
        recorder.put("srv", Archived(free, "/archive/0", 7), 0.1)
        recorder.start()
        eventually(lambda: len(heard.settled_ids) == 2, "both are settled", within=40.0)
        recorder.stop()
        assert recorder.join(10.0)
    assert heard.settled_ids == {free.id: True, held.id: False}
    assert states(world)[free.id] == ("/archive/0", 1, 0)


def test_a_history_past_its_retention_is_pruned_alongside_the_writes(
    world: PrivateDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep comes once a minute: by its chunks only the history would grow without end where files come fast."""
    monkeypatch.setattr(history, "_PRUNE_ROWS", 10)
    monkeypatch.setattr(history, "_PRUNE_ON", 0.05)
    monkeypatch.setattr(recorder_module, "_LOOK_UP", 0.05)
    allow_history(world)
    ids = register(world, {"path": "/data/0"}, {"path": "/data/1"})
    heard = RecordingWriteBackListener()
    with database_of(world) as database:
        with database.connect() as connection:
            assert history.open_history(connection) == ""
        first, second = records(database, ids)
        side_table = History(TABLE, retention=3600.0)
        # Given entries of which 35 are past their time
        with database.connect() as connection:
            side_table.write(connection, [OutcomeEntry("srv", Archived(first, "/archive/old", 7), 0.1)] * 35)
            world.sql(f"UPDATE {history.NAME} SET at = at - INTERVAL 2 HOUR")
            side_table.write(connection, [OutcomeEntry("srv", Archived(first, "/archive/young", 7), 0.1)] * 3)
        recorder = Recorder(database, files_table(), side_table, heard, patience=1.0)
        recorder.start()
        try:
            # when a sweep deletes its portion, and outcomes are written meanwhile,
            with database.connect() as connection:
                assert side_table.prune(connection) == 10
            recorder.put("srv", Archived(first, "/archive/0", 7), 0.1)
            recorder.put("srv", Archived(second, "/archive/1", 7), 0.1)
            # then the others go without another sweep, and what is young stays.
            old = f"SELECT COUNT(*) FROM {history.NAME} WHERE archived_path = '/archive/old'"
            eventually(lambda: world.sql(old) == [(0,)], "the old entries are deleted", within=30.0)
            eventually(lambda: len(heard.settled_ids) == 2, "both outcomes are written", within=30.0)
        finally:
            recorder.stop()
            assert recorder.join(10.0)
        assert heard.settled_ids == dict.fromkeys(ids, True)
    paths = world.sql(f"SELECT archived_path FROM {history.NAME} ORDER BY archived_path")
    assert [path for (path,) in paths] == ["/archive/0", "/archive/1", *["/archive/young"] * 3]
