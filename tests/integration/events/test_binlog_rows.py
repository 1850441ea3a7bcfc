"""The stream on real servers: what it makes of rows, however they came into the table, and of DDL between them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pymysql
import pytest
from files_table import CREATE_TABLE, TABLE
from private_database import PrivateDatabase
from stream_under_test import streaming
from waiting import eventually


def test_an_md5_that_is_not_text_or_ends_in_zeros_does_not_hide_its_row(world: PrivateDatabase) -> None:
    """Default metadata: BINARY is decoded as UTF-8, and the server trims trailing zeros."""
    with streaming(world) as running:
        for md5 in ("FFFE0102030405060708090A0B0C0D0E", "00112233445566778899AABBCCDDEE00", "C328".ljust(32, "0")):
            running.heard.await_ids(world.insert("/data/a.dat", md5=f"0x{md5}"))
        assert running.heard.ids == [1, 2, 3]
        assert running.heard.all("gap") == []


def test_full_metadata_names_the_key(world: PrivateDatabase) -> None:
    with world.globally("binlog_row_metadata", "FULL"), streaming(world) as running:
        world.sql(f"ALTER TABLE {TABLE} ADD COLUMN number INT FIRST")
        running.heard.await_ids(world.insert("/data/a", "/data/b", md5="0xFFFE0102030405060708090A0B0C0D00"))
        assert running.heard.all("gap") == []


def test_metadata_that_changes_in_mid_stream_changes_nothing(world: PrivateDatabase) -> None:
    with streaming(world) as running:
        running.heard.await_ids(world.insert("/data/a"))
        with world.globally("binlog_row_metadata", "FULL"):
            running.heard.await_ids(world.insert("/data/b"))
        running.heard.await_ids(world.insert("/data/c"))
        assert running.heard.all("gap") == []


def test_a_transaction_is_handed_over_at_its_end_and_in_one(world: PrivateDatabase) -> None:
    with streaming(world) as running:
        world.sql(
            "BEGIN",
            f"INSERT INTO {TABLE} (path, md5sum) VALUES ('/a', 0x01), ('/b', 0x02)",
            f"INSERT INTO {TABLE} (path, md5sum) VALUES ('/c', 0x03)",
            "COMMIT",
        )
        running.heard.await_ids([1, 2, 3])
        assert running.heard.batches == [[1, 2, 3]]


def test_a_rolled_back_transaction_is_not_delivered(world: PrivateDatabase) -> None:
    with streaming(world) as running:
        world.sql("BEGIN", f"INSERT INTO {TABLE} (path, md5sum) VALUES ('/a', 0x01)", "ROLLBACK")
        after = world.insert("/b")
        running.heard.await_ids(after)
        assert running.heard.ids == after


def test_rows_that_come_by_select_or_from_a_file_are_rows_like_others(world: PrivateDatabase, tmp_path: Path) -> None:
    with streaming(world) as running:
        world.insert("/a", "/b")
        world.sql(f"INSERT INTO {TABLE} (path, md5sum) SELECT path, md5sum FROM {TABLE}")
        lines = tmp_path / "rows.csv"
        lines.write_text("/c,0123456789abcdef\n/d,0123456789abcdef\n")
        world.sql("SET GLOBAL local_infile = ON")
        with (
            contextlib.closing(world.server.connect(database=world.name, local_infile=True)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(
                f"LOAD DATA LOCAL INFILE '{lines}' INTO TABLE {TABLE} FIELDS TERMINATED BY ',' (path, md5sum)"
            )
        ids = [row[0] for row in world.sql(f"SELECT id FROM {TABLE}")]
        assert len(ids) == 6
        running.heard.await_ids(ids)


def test_a_row_that_is_replaced_or_updated_wakes_us_again(world: PrivateDatabase) -> None:
    """REPLACE and ON DUPLICATE KEY UPDATE arrive as updates; so does an operator's retry."""
    [row] = world.insert("/a")
    with streaming(world) as running:
        for statement in (
            f"REPLACE INTO {TABLE} (id, path, md5sum) VALUES ({row}, '/new', 0x02)",
            f"INSERT INTO {TABLE} (id, path, md5sum) VALUES ({row}, '/a', 0x01) ON DUPLICATE KEY UPDATE copied = 1",
            f"UPDATE {TABLE} SET copied = 0 WHERE id = {row}",
        ):
            heard_before = len(running.heard.ids)
            world.sql(statement)
            eventually(lambda before=heard_before: len(running.heard.ids) > before, statement)  # type: ignore[misc]
        assert set(running.heard.ids) == {row}


def test_a_statement_on_the_table_makes_a_gap_and_no_other_statement_does(
    world: PrivateDatabase, tmp_path: Path
) -> None:
    """A session logs statements where its binlog_format is another one than the server's. MySQL 9's cannot be decoded."""
    log_statements, elsewhere = "SET SESSION binlog_format = STATEMENT", f"{world.name}_elsewhere"
    insert = f"INSERT INTO {TABLE} (path, md5sum) VALUES ('/a', 0x01)"
    lines = tmp_path / "rows.csv"
    lines.write_text("/c,0123456789abcdef\n")
    with streaming(world) as running:
        # Given DDL, statements on other tables and in other databases, then there is no gap.
        world.sql(log_statements, "CREATE TABLE other (id INT)", "INSERT INTO other VALUES (1)", "DROP TABLE other")
        world.sql(f"CREATE DATABASE {elsewhere}")
        world.sql(log_statements, f"USE {elsewhere}", CREATE_TABLE, insert, f"DROP DATABASE {elsewhere}")
        running.heard.await_ids(world.insert("/b"))
        assert running.heard.all("gap") == []
        # Given statements on the table, then each is a gap, and the stream goes on.
        world.sql(log_statements, insert)
        world.sql(log_statements, "USE mysql", insert.replace(TABLE, f"`{world.name}`.{TABLE}"))
        world.sql("SET GLOBAL local_infile = ON")
        with (
            contextlib.closing(world.server.connect(database=world.name, local_infile=True)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(log_statements)
            cursor.execute(
                f"LOAD DATA LOCAL INFILE '{lines}' INTO TABLE {TABLE} FIELDS TERMINATED BY ',' (path, md5sum)"
            )
        running.heard.await_ids(world.insert("/d"))
        gaps = running.heard.all("gap")
        assert len(gaps) == 3
        assert all("a session still logs statements: reconnect the writer" in gap for gap in gaps)
        assert running.heard.all("lost") == []


def test_the_key_is_found_in_a_minimal_row_image(world: PrivateDatabase) -> None:
    """An INSERT's image has it although it was left to AUTO_INCREMENT; an UPDATE's has it in the row before, only."""
    with streaming(world) as running:
        minimal = "SET SESSION binlog_row_image = MINIMAL"
        running.heard.await_ids(world.insert("/a", before=minimal))
        world.sql(minimal, f"UPDATE {TABLE} SET copied = 0 WHERE id = 1")
        eventually(lambda: running.heard.ids == [1, 1], "the update")


def test_the_later_id_may_commit_first(world: PrivateDatabase) -> None:
    with (
        streaming(world) as running,
        contextlib.closing(world.server.connect(database=world.name, autocommit=False)) as slow,
        slow.cursor() as cursor,
    ):
        cursor.execute(f"INSERT INTO {TABLE} (path, md5sum) VALUES ('/slow', 0x01)")
        running.heard.await_ids(world.insert("/fast"))
        assert running.heard.ids == [2]
        slow.commit()
        running.heard.await_ids([1])


def test_rows_of_an_xa_transaction_come_at_its_prepare(world: PrivateDatabase) -> None:
    """Also those that are rolled back later: an id is a wake-up, not a fact."""
    name = f"'{world.name}'"
    with streaming(world) as running:
        for end, row in (("COMMIT", 1), ("ROLLBACK", 2)):
            insert = f"INSERT INTO {TABLE} (path, md5sum) VALUES ('/xa', 0x01)"
            world.sql(f"XA START {name}", insert, f"XA END {name}", f"XA PREPARE {name}")
            running.heard.await_ids([row])
            eventually(lambda: finished(world, f"XA {end} {name}"), "its session has left it")  # noqa: B023
        assert world.sql(f"SELECT id FROM {TABLE}") == [(1,)]
        world.sql(f"XA START {name}", insert, f"XA END {name}", f"XA COMMIT {name} ONE PHASE")
        running.heard.await_ids([3])


def finished(world: PrivateDatabase, statement: str) -> bool:
    """Ends an XA transaction, unless the session that prepared it is still on its way out."""
    try:
        world.sql(statement)
    except pymysql.OperationalError as error:
        if error.args[0] != 1397:
            raise
        return False
    return True


def test_a_huge_transaction_is_handed_over_in_parts(world: PrivateDatabase) -> None:
    rows = 12_000
    digits = "(SELECT 0 d UNION SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5)"
    numbers = " JOIN ".join(f"{digits} t{n}" for n in range(6))
    with streaming(world) as running:
        world.sql(f"INSERT INTO {TABLE} (path, md5sum) SELECT '/a', 0x01 FROM {numbers} LIMIT {rows}")
        eventually(lambda: len(running.heard.ids) >= rows, "all rows", 30)
        assert len(set(running.heard.ids)) == rows
        assert max(map(len, running.heard.batches)) < 11_000
        assert len(running.stream.delivered.ranges) < 10


# DDL in mid-stream.


@pytest.mark.parametrize(
    "change",
    [
        "ADD COLUMN number INT NOT NULL DEFAULT 7 FIRST",
        "ADD COLUMN number INT NOT NULL DEFAULT 7",
        "RENAME COLUMN id TO row_id",
        "MODIFY COLUMN id INT AUTO_INCREMENT AFTER action_timestamp",
        "MODIFY COLUMN id BIGINT UNSIGNED AUTO_INCREMENT",
    ],
)
def test_a_table_that_is_altered_in_mid_stream_is_read_as_it_is_then(world: PrivateDatabase, change: str) -> None:
    with streaming(world) as running:
        running.heard.await_ids(world.insert("/a"))
        world.sql(f"ALTER TABLE {TABLE} {change}")
        running.heard.await_ids(world.insert("/b", "/c"))
        assert running.heard.ids == [1, 2, 3]
        assert running.heard.all("gap") == []


def test_an_unsigned_key_beyond_the_signed_range_keeps_its_value(world: PrivateDatabase) -> None:
    world.sql(f"ALTER TABLE {TABLE} MODIFY COLUMN id INT UNSIGNED AUTO_INCREMENT, AUTO_INCREMENT = 3000000000")
    with streaming(world) as running:
        world.insert("/a")
        running.heard.await_ids([3_000_000_000])


def test_rows_that_cannot_be_decoded_make_a_gap_and_delay_nothing(world: PrivateDatabase) -> None:
    """A column of a type that mysql-replication does not know: its rows are the sweep's, and the next ones ours again."""
    kind = {"mysql": "VECTOR(3)", "mariadb": "VARCHAR(50) COMPRESSED"}[world.server.kind]
    value = {"mysql": "TO_VECTOR('[1,2,3]')", "mariadb": f"'{'x' * 50}'"}[world.server.kind]
    with streaming(world) as running:
        world.sql(f"ALTER TABLE {TABLE} ADD COLUMN strange {kind} FIRST")
        world.sql(f"INSERT INTO {TABLE} (strange, path, md5sum) VALUES ({value}, '/a', 0x01)")
        running.heard.await_one("gap")
        assert running.metric("stream_events_total", outcome="unreadable") >= 1
        world.sql(f"ALTER TABLE {TABLE} DROP COLUMN strange")
        running.heard.await_ids(world.insert("/b"))
        assert running.heard.all("lost") == []
