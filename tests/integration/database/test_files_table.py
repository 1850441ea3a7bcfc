"""Rows read and written back, on both real servers: what is pending, and compare-and-set."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pymysql
import pytest
import sqlalchemy as sa
from files_table import TABLE
from private_database import PASSWORD, PrivateDatabase, new_private_database
from rows import allow_history, database_of, files_table, register, states

from cdc_archiver.database import history, schema
from cdc_archiver.database.connections import Database
from cdc_archiver.database.files_table import Census, FilesTable, Pending, WriteResult
from cdc_archiver.database.history import History, OutcomeEntry
from cdc_archiver.errors import Misconfigured
from cdc_archiver.model import Archived, AttemptFailed, Reason, Refused
from cdc_archiver.sandbox import DatabaseServer
from cdc_archiver.settings import load


def test_a_row_is_read_with_its_time_as_utc_and_its_md5_whole(world: PrivateDatabase) -> None:
    md5 = b"\x00\xff\x80" + bytes(13)
    (id_,) = register(world, {"path": "/data/é\n'\".npy", "md5sum": md5, "failed_copy_attempts": None})
    with database_of(world) as database, database.connect() as connection:
        row = files_table().load(connection, [id_, 999])[id_]
    assert row.record.timestamp == datetime(2020, 5, 15, 4, 34, 24, tzinfo=UTC)
    assert (row.record.path, row.record.md5sum) == ("/data/é\n'\".npy", md5)
    assert (row.record.failed_copy_attempts, row.record.attempts, row.copied) == (None, 0, False)


def test_pending_rows_are_counted_by_timecode_to_the_second(world: PrivateDatabase) -> None:
    register(
        world,
        {"timestamp": "2020-05-16 03:33:19"},
        {"timestamp": "2020-05-16 03:33:20", "copied": None},
        {"timestamp": "2020-05-17 07:19:59"},
        {"timestamp": "2020-05-17 07:20:00"},
        {"timestamp": "2020-05-16 12:00:00", "copied": 1},
        {"timestamp": "2020-05-16 12:00:00", "failed_copy_attempts": 5},
        {"timestamp": "2020-05-16 12:00:00", "instance_id": "another"},
    )
    with database_of(world) as database, database.connect() as connection:
        for timecodes, counted in (((15896,), {15896: 2}), ((15895, 15897, 15899), {15895: 1, 15897: 1}), ((), {})):
            assert files_table().pending_in_timecodes(connection, ["m"], timecodes) == counted


@pytest.mark.parametrize("zone", ["", "+00:00"])
def test_the_time_is_what_its_writer_put_there_unless_a_zone_is_set(mariadb: DatabaseServer, zone: str) -> None:
    """The writer puts a UTC time as naive text, in the server's zone; read in the same zone it is the same again."""
    with new_private_database(mariadb) as world, world.globally("time_zone", "'+05:00'"):
        (id_,) = register(world, {})
        flags = {"mysql_port": world.server.port, "mysql_database": world.name, "mysql_user": world.user}
        database = Database(load({**flags, "mysql_password": PASSWORD, "db_time_zone": zone}, environment={}))
        with database.connect() as connection:
            time = files_table().load(connection, [id_])[id_].record.timestamp
        database.close()
    assert time == datetime(2020, 5, 14 if zone else 15, 23 if zone else 4, 34, 24, tzinfo=UTC)


def test_what_is_pending(world: PrivateDatabase) -> None:
    ids = register(
        world,
        {},
        {"copied": None},
        {"failed_copy_attempts": None},
        {"failed_copy_attempts": 4},
        {"failed_copy_attempts": 5},
        {"failed_copy_attempts": 1000},
        {"failed_copy_attempts": 2000},
        {"copied": 1},
        {"instance_id": "another"},
        {"instance_id": None},
    )
    with database_of(world) as database, database.connect() as connection:
        pending = files_table().pending(connection, ["m"], 0, ids[-1], 100)
        assert pending == [Pending(ids[0], 0), Pending(ids[1], 0), Pending(ids[2], 0), Pending(ids[3], 4)]
        assert files_table().pending(connection, ["m"], ids[0], ids[2], 1) == [Pending(ids[1], 0)]
        assert files_table(max_attempts=6).pending(connection, ["m"], ids[3], ids[-1], 9) == [Pending(ids[4], 5)]
        time = datetime(2020, 5, 15, 4, 34, 24, tzinfo=UTC)
        assert files_table().census(connection, ["m"]) == Census(4, 1, 1, 1, time)
        assert files_table().census(connection, ["nobody"]) == Census()


@pytest.mark.parametrize("image", [True, False])
def test_marking_copied_changes_nothing_if_the_row_changed_since_it_was_read(
    world: PrivateDatabase, image: bool
) -> None:
    # Given three rows as read, of which one was archived by an equal of ours meanwhile and one was given another path
    ids = register(world, {"path": "/data/1"}, {"path": "/data/2"}, {"path": "/data/3"})
    with database_of(world) as database:
        with database.connect() as connection:
            records = [row.record for row in files_table().load(connection, ids, row_image=image).values()]
        world.sql(
            f"UPDATE {TABLE} SET copied = 1, path = '/archive/2' WHERE id = {ids[1]}",
            f"UPDATE {TABLE} SET path = '/data/other' WHERE id = {ids[2]}",
        )
        # When all are marked
        with database.transaction() as connection:
            places = {record: f"/archive/{number}" for number, record in enumerate(records, 1)}
            written = files_table().mark_copied(connection, places)
    # Then the first is, the second was already, the third stays.
    assert written == WriteResult(changed={ids[0]}, already={ids[1]})
    assert states(world) == {
        ids[0]: ("/archive/1", 1, 0),
        ids[1]: ("/archive/2", 1, 0),
        ids[2]: ("/data/other", 0, 0),
    }


@pytest.mark.parametrize(
    "change",
    [
        "md5sum = UNHEX(REPEAT('ab', 16))",
        "pub_id = 'crate9slot9'",
        "pub_id = 'CRATE1SLOT2'",
        "action = NULL",
        "action = 'take_iv '",
        "timestamp = '2021-01-01'",
        "action_timestamp = 7",
        "plot = 1",
    ],
)
def test_a_file_registered_again_while_its_old_version_was_copied_is_another_file(
    world: PrivateDatabase, change: str
) -> None:
    ids = register(world, {"path": "/data/1"})
    with database_of(world) as database:
        with database.connect() as connection:
            (row,) = files_table().load(connection, ids, row_image=True).values()
        world.sql(f"UPDATE {TABLE} SET {change} WHERE id = {ids[0]}")
        with database.transaction() as connection:
            assert files_table().mark_copied(connection, {row.record: "/archive/1"}) == WriteResult(set(), set())
            assert files_table().count_failed_attempt(connection, [row.record]) == WriteResult(set(), set())
    assert states(world) == {ids[0]: ("/data/1", 0, 0)}


@pytest.mark.parametrize(
    "columns",
    [
        "",
        "MODIFY path VARBINARY(260) NULL, MODIFY action VARBINARY(32), MODIFY plot BIT(1), MODIFY timestamp DATETIME NULL",
        "CONVERT TO CHARACTER SET latin1",
    ],
)
def test_unchanged_rows_are_not_read_again(
    world: PrivateDatabase, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    """The server says that they are what they were, by one digest, and locks them."""
    if columns:
        world.sql(f"ALTER TABLE {TABLE} {columns}")
    odd: list[dict[str, object]] = [
        {"path": "/data/é.npy"},
        {"action": None, "plot": None, "copied": None},
        {"timestamp": None},
        {"plot": 1},
    ]
    ids = register(world, *({"path": f"/data/{number}", **row} for number, row in enumerate(odd * 100)))

    def read_again(*_: object) -> None:
        raise AssertionError("they were read once more")

    def write(
        table: FilesTable, connection: sa.Connection, column: str, values: Mapping[int, str], **same: int
    ) -> None:
        with world.server.connect(database=world.name) as other, other.cursor() as cursor:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
            with pytest.raises(pymysql.OperationalError, match="Lock wait timeout"):
                cursor.execute(f"UPDATE {TABLE} SET plot = 7 WHERE id = {min(values)}")
        written(table, connection, column, values, **same)

    written = FilesTable._set
    monkeypatch.setattr(FilesTable, "_lock", read_again)
    monkeypatch.setattr(FilesTable, "_set", write)
    with database_of(world) as database:
        with database.connect() as connection:
            records = [row.record for row in files_table().load(connection, ids, row_image=True).values()]
        with database.transaction() as connection:
            places = {record: f"/archive/{record.id}" for record in records}
            assert files_table().mark_copied(connection, places) == WriteResult(set(ids), set())
    assert len(set(states(world).values())) == len(ids) == 400


def test_a_failed_attempt_of_another_service_does_not_prevent_marking_the_file_copied(world: PrivateDatabase) -> None:
    ids = register(world, {"path": "/data/1"})
    with database_of(world) as database:
        with database.connect() as connection:
            (row,) = files_table().load(connection, ids, row_image=True).values()
        world.sql(f"UPDATE {TABLE} SET failed_copy_attempts = 3 WHERE id = {ids[0]}")
        with database.transaction() as connection:
            assert files_table().mark_copied(connection, {row.record: "/archive/1"}).changed == set(ids)


def test_a_table_of_binary_columns_and_nulls_is_read_and_written_like_any_other(world: PrivateDatabase) -> None:
    """Columns as somebody's migration left them; what cannot be archived is refused later, and stops nothing."""
    world.sql(
        f"ALTER TABLE {TABLE} MODIFY path VARBINARY(260) NULL, MODIFY action VARBINARY(32), MODIFY pub_id VARBINARY(32), "
        "MODIFY instance_id VARBINARY(32), MODIFY plot BIT(1), MODIFY md5sum BINARY(16) NULL, MODIFY timestamp DATETIME NULL"
    )
    (whole,) = register(world, {"path": "/data/1", "plot": 1})
    (empty,) = register(world, dict.fromkeys(("path", "action", "pub_id", "md5sum", "timestamp", "plot"), None))
    with database_of(world) as database:
        with database.connect() as connection:
            assert [each.id for each in files_table().pending(connection, ["m"], 0, empty, 9)] == [whole, empty]
            rows = files_table().load(connection, [whole, empty])
        record, nothing = rows[whole].record, rows[empty].record
        assert (record.path, record.action, record.pub_id, record.plot) == ("/data/1", "take_iv", "crate1slot2", True)
        assert (nothing.path, nothing.md5sum, nothing.pub_id, nothing.timestamp) == ("", b"", None, None)
        with database.transaction() as connection:
            assert files_table().mark_copied(connection, {record: "/archive/1"}).changed == {whole}
            assert files_table().refuse(connection, [nothing]).changed == {empty}
    assert states(world)[whole][:2] == (b"/archive/1", 1)


def test_a_failed_attempt_whose_acknowledgement_was_lost_is_not_counted_twice(world: PrivateDatabase) -> None:
    ids = register(world, {"failed_copy_attempts": None}, {"failed_copy_attempts": 3}, {"copied": 1})
    with database_of(world) as database:
        with database.connect() as connection:
            records = [row.record for row in files_table().load(connection, ids).values()]
        for changed in ({ids[0], ids[1]}, set[int]()):
            with database.transaction() as connection:
                assert files_table().count_failed_attempt(connection, records) == WriteResult(changed, set())
        with database.connect() as connection:
            fresh = files_table().load(connection, ids)[ids[0]].record
        with database.transaction() as connection:
            assert files_table().refuse(connection, [fresh]).changed == {ids[0]}
    assert [state[2] for state in states(world).values()] == [1000, 4, 0]


def test_more_rows_than_one_statement_takes(world: PrivateDatabase) -> None:
    ids = register(world, *({"path": f"/data/{number}"} for number in range(450)))
    with database_of(world) as database:
        with database.connect() as connection:
            records = [row.record for row in files_table().load(connection, ids).values()]
        with database.transaction() as connection:
            files_table().mark_copied(connection, {record: f"/archive{record.path}" for record in records})
    assert set(states(world).values()) == {(f"/archive/data/{number}", 1, 0) for number in range(450)}


def test_names_beyond_ascii_in_a_table_of_another_character_set(world: PrivateDatabase) -> None:
    world.sql(f"ALTER TABLE {TABLE} CONVERT TO CHARACTER SET latin1")
    ids = register(world, {"path": "/data/é.npy"})
    with database_of(world) as database:
        with database.connect() as connection:
            (row,) = files_table().load(connection, ids).values()
        with database.transaction() as connection:
            assert files_table().mark_copied(connection, {row.record: "/archive/é.npy"}).changed == set(ids)
    assert states(world) == {ids[0]: ("/archive/é.npy", 1, 0)}


def test_the_index_serves_the_query_of_a_sweep(world: PrivateDatabase) -> None:
    """Its cost is that of the pending rows alone: few rows looked at, however many are archived."""
    with world.server.connect(database=world.name) as root, root.cursor() as cursor:
        cursor.execute(schema.index_statement(TABLE))
        for _ in range(20):
            rows = [(f"/archive/{number}", "m", 1, 0, bytes(16)) for number in range(500)]
            cursor.executemany(
                f"INSERT INTO {TABLE} (path, instance_id, copied, failed_copy_attempts, md5sum) VALUES (%s,%s,%s,%s,%s)",
                rows,
            )
        cursor.execute(f"ANALYZE TABLE {TABLE}")
    (pending,) = register(world, {})
    with database_of(world) as database, database.connect() as connection:
        assert schema.has_index(connection, world.name, TABLE)
        before = _rows_read(connection)
        assert files_table().pending(connection, ["m"], 0, pending, 100) == [Pending(pending, 0)]
        assert files_table().census(connection, ["m"]).pending == 1
        assert _rows_read(connection) - before < 100


def _rows_read(connection: sa.Connection) -> int:
    rows = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'")
    return sum(int(value) for name, value in rows if name in ("Handler_read_next", "Handler_read_rnd_next"))


def test_the_table_is_resolved_by_name_or_version(world: PrivateDatabase) -> None:
    with database_of(world) as database, database.connect() as connection:
        assert schema.resolve_table(connection, world.name) == TABLE
        world.sql(f"RENAME TABLE {TABLE} TO {TABLE}_v2", f"CREATE TABLE {TABLE}_v10 LIKE {TABLE}_v2")
        world.sql(f"CREATE VIEW {TABLE} AS SELECT * FROM {TABLE}_v10")
        assert schema.resolve_table(connection, world.name) == f"{TABLE}_v10"
        assert schema.older_versions(connection, world.name, f"{TABLE}_v10") == [f"{TABLE}_v2"]
        with pytest.raises(Misconfigured, match="is a view"):
            schema.resolve_table(connection, world.name, TABLE)
        with pytest.raises(Misconfigured, match="no table nope"):
            schema.resolve_table(connection, world.name, "nope")


def test_a_new_sites_table_is_the_one_that_monitors_write(world: PrivateDatabase) -> None:
    world.sql(f"DROP TABLE {TABLE}")
    world.sql(schema.table_statement(schema.files_table(TABLE)))
    with database_of(world) as database, database.connect() as connection:
        assert schema.path_width(connection, world.name, TABLE) == 260
        schema.require_columns(connection, world.name, TABLE)
    (id_,) = register(world, {"timestamp": None})
    assert world.sql(f"SELECT timestamp FROM {TABLE} WHERE id = {id_}") == [(None,)]


def test_the_history_takes_a_wait_of_months(world: PrivateDatabase) -> None:
    """More milliseconds than its column holds: a readout server that was off all winter."""
    (id_,) = register(world, {"path": "/data/1"})
    allow_history(world)
    with database_of(world) as database, database.connect() as connection:
        assert history.open_history(connection) == ""
        record = files_table().load(connection, [id_])[id_].record
        History(TABLE, retention=0.0).write(
            connection, [OutcomeEntry("srv", Archived(record, "/archive/1", 5), 90 * 86400.0)]
        )
    assert world.sql(f"SELECT waited_ms FROM {history.NAME}") == [(2**31 - 1,)]


@pytest.mark.parametrize("mode", ["", "NO_BACKSLASH_ESCAPES"])
def test_the_history_stores_names_of_any_characters(mariadb: DatabaseServer, mode: str) -> None:
    names = ["it's", 'a "word"', "100 %s %% %(x)s", "back\\slash\\", "é\n\t☃", "x); DROP TABLE", "y" * 3000]
    with new_private_database(mariadb) as world, world.globally("sql_mode", f"'{mode}'"):
        allow_history(world)
        (id_,) = register(world, {"path": "/data/1"})
        with database_of(world) as database, database.connect() as connection:
            assert history.open_history(connection) == ""
            record = files_table().load(connection, [id_])[id_].record
            entries = [OutcomeEntry("srv", Refused(record, Reason.BAD_NAME, name), 0.0) for name in names]
            # More than one statement takes.
            History(TABLE, retention=0.0).write(connection, entries * 100)
        kept = world.sql(f"SELECT detail FROM {history.NAME} ORDER BY id")
    assert kept == [(name,) for name in names] * 100


def test_a_history_that_is_locked_or_guarded_is_pruned_later(world: PrivateDatabase) -> None:
    """And fails nobody who asks for it: not the sweep, not the write-back."""
    (id_,) = register(world, {"path": "/data/1"})
    allow_history(world)
    with database_of(world) as database:
        with database.connect() as connection:
            assert history.open_history(connection) == ""
            record = files_table().load(connection, [id_])[id_].record
            side_table = History(TABLE, retention=3600.0)
            side_table.write(connection, [OutcomeEntry("srv", Archived(record, "/archive/1", 5), 0.1)])
        world.sql(f"UPDATE {history.NAME} SET at = at - INTERVAL 2 HOUR")
        with world.server.connect(database=world.name) as theirs, database.connect() as connection:
            theirs.begin()
            theirs.cursor().execute(f"SELECT * FROM {history.NAME} FOR UPDATE")
            connection.exec_driver_sql("SET SESSION innodb_lock_wait_timeout = 1")
            assert side_table.prune(connection) == 0
            theirs.rollback()
        world.sql(f"CREATE TRIGGER guard BEFORE DELETE ON {history.NAME} FOR EACH ROW SIGNAL SQLSTATE '45000'")
        with database.connect() as connection:
            assert History(TABLE, retention=3600.0).prune(connection) == 0
        world.sql("DROP TRIGGER guard")
        with database.connect() as connection:
            assert History(TABLE, retention=3600.0).prune(connection) == 1


def test_the_history_has_source_paths_and_attempts(world: PrivateDatabase) -> None:
    (id_,) = register(world, {"path": "/data/1"})
    with database_of(world) as database:
        with database.connect() as connection:
            assert "denied" in history.open_history(connection), "without the right there is none, and it says why"
        allow_history(world)
        side_table = History(TABLE, retention=3600.0)
        with database.connect() as connection:
            assert history.open_history(connection) == ""
            assert history.open_history(connection) == "", "it may be there already"
            record = files_table().load(connection, [id_])[id_].record
            assert not side_table.knows_archived(connection, "/archive/")
            side_table.write(
                connection,
                [
                    OutcomeEntry("srv", AttemptFailed(record, Reason.CHANGED, "x" * 10_000, b"\xff" * 16), 0.25),
                    OutcomeEntry("srv", Archived(record, "/archive/1", 5), 0.5),
                ],
            )
            assert side_table.knows_archived(connection, "/archive/")
            assert not side_table.knows_archived(connection, "/arch_ve/")
            assert side_table.prune(connection) == 0
        rows = world.sql(
            f"SELECT result, reason, source_path, archived_path, size, md5_row, md5_seen, waited_ms, LENGTH(detail) "
            f"FROM {history.NAME} ORDER BY id"
        )
        assert rows == [
            ("charged", "changed", "/data/1", None, None, bytes(range(16)), b"\xff" * 16, 250, 4000),
            ("archived", None, "/data/1", "/archive/1", 5, bytes(range(16)), None, 500, None),
        ]
        # When its time is over, an entry goes.
        world.sql(f"UPDATE {history.NAME} SET at = at - INTERVAL 2 HOUR WHERE result = 'charged'")
        with database.connect() as connection:
            assert side_table.prune(connection) == 1
            assert History(TABLE, retention=0.0).prune(connection) == 0
        # Without the right to delete it grows, and fails nothing.
        world.server.execute(f"REVOKE DELETE ON {world.name}.{history.NAME} FROM '{world.user}'@'%'")
        world.sql(f"UPDATE {history.NAME} SET at = at - INTERVAL 2 HOUR")
        with database.connect() as connection:
            assert side_table.prune(connection) == 0
