"""The stream on real servers: what it delivers, what it survives, what it says when it cannot be had."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymysql
import pytest
import structlog
from files_table import CREATE_TABLE, TABLE
from proxy import Proxy
from waiting import eventually
from world import PASSWORD, World, new_world

from cdc_archiver.database import server as servers
from cdc_archiver.database.server import Position
from cdc_archiver.errors import ServerIdTaken, StreamUnavailable
from cdc_archiver.events.binlog import BinlogStream, Pace
from cdc_archiver.events.line import Line, LineCut
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.sandbox import DatabaseServer, open_database

QUICK = Pace(heartbeat=1.0, first_retry=0.05, last_retry=0.4, first_ask=0.2, last_ask=0.4, settle=0.3, look=0.5)
CALM = Pace(heartbeat=1.0, first_retry=0.05, last_retry=0.4, first_ask=0.2, last_ask=0.4, settle=0.3, look=60.0)
"""As QUICK, but it does not look around in between: for what the stream itself must notice."""


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.batches: list[list[int]] = []

    def on_ids(self, ids: Sequence[int]) -> None:
        self.batches.append(list(ids))

    def on_anchor(self) -> None:
        self.calls.append(("anchor", ""))

    def on_gap(self, why: str) -> None:
        self.calls.append(("gap", why))

    def on_lost(self, reason: str) -> None:
        self.calls.append(("lost", reason))

    def on_unavailable(self, why: str) -> None:
        self.calls.append(("unavailable", why))

    @property
    def ids(self) -> list[int]:
        return [number for batch in self.batches for number in batch]

    def all(self, kind: str) -> list[str]:
        return [what for name, what in self.calls if name == kind]

    def await_anchors(self, count: int) -> None:
        eventually(lambda: len(self.all("anchor")) >= count, f"{count} anchors, heard {self.calls}", 30)

    def await_ids(self, ids: Sequence[int]) -> None:
        eventually(lambda: set(ids) <= set(self.ids), f"ids {ids} in {self.ids}, heard {self.calls}")

    def await_one(self, kind: str, words: str = "") -> str:
        return eventually(
            lambda: next((what for what in self.all(kind) if words in what), None) or "",
            f"{kind} with {words!r}, heard {self.calls}",
        )


class Streaming:
    """A stream, who hears it, and its metrics."""

    def __init__(self, world: World, pace: Pace = QUICK, **options: Any) -> None:
        database = options.pop("database", None) or world.database()
        self.heard = Heard()
        self.metrics = Metrics()
        self.stream = BinlogStream(
            database,
            TABLE,
            self.heard,
            self.metrics,
            pace=pace,
            chance=options.pop("chance", random.Random()),
            **options,
        )

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"cdc_archiver_{name}", labels) or 0.0


@contextlib.contextmanager
def streaming(world: World, pace: Pace = QUICK, *, anchored: bool = True, **options: Any) -> Iterator[Streaming]:
    """A stream that is open, and that must end of its own accord in good order."""
    running = Streaming(world, pace, **options)
    running.stream.start()
    try:
        if anchored:
            running.heard.await_anchors(1)
        yield running
    finally:
        running.stream.stop()
        assert running.stream.join(5)
    assert running.stream.failure is None


@pytest.fixture
def world(database_server: DatabaseServer) -> Iterator[World]:
    with new_world(database_server) as made:
        yield made


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def doomed_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer]:
    """A server of this module's own, for tests that stop, kill or reset it."""
    server = open_database(request.param, tmp_path_factory.mktemp(f"doomed-{request.param}"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def doomed(doomed_server: DatabaseServer) -> Iterator[World]:
    with new_world(doomed_server) as made:
        yield made


def position(world: World) -> Position:
    with world.connection() as connection:
        return servers.position(connection, servers.identify(connection))


def passed(running: Streaming, there: Position) -> bool:
    here = running.stream.position
    return here is not None and not here < there


def kill_dump_thread(world: World) -> None:
    for row in world.sql("SHOW PROCESSLIST"):
        if row[1] == world.user and row[4] == "Binlog Dump":
            world.sql(f"KILL {row[0]}")


# What a row's way into the table looks like in the log.


def test_an_md5_that_is_no_text_or_ends_in_zeros_does_not_hide_its_row(world: World) -> None:
    """Default metadata: BINARY is decoded as UTF-8, and the server trims trailing zeros."""
    with streaming(world) as running:
        for md5 in ("FFFE0102030405060708090A0B0C0D0E", "00112233445566778899AABBCCDDEE00", "C328".ljust(32, "0")):
            running.heard.await_ids(world.insert("/data/a.dat", md5=f"0x{md5}"))
        assert running.heard.ids == [1, 2, 3]
        assert running.heard.all("gap") == []


def test_full_metadata_names_the_key(world: World) -> None:
    with world.globally("binlog_row_metadata", "FULL"), streaming(world) as running:
        world.sql(f"ALTER TABLE {TABLE} ADD COLUMN number INT FIRST")
        running.heard.await_ids(world.insert("/data/a", "/data/b", md5="0xFFFE0102030405060708090A0B0C0D00"))
        assert running.heard.all("gap") == []


def test_metadata_that_changes_in_mid_stream_changes_nothing(world: World) -> None:
    with streaming(world) as running:
        running.heard.await_ids(world.insert("/data/a"))
        with world.globally("binlog_row_metadata", "FULL"):
            running.heard.await_ids(world.insert("/data/b"))
        running.heard.await_ids(world.insert("/data/c"))
        assert running.heard.all("gap") == []


def test_a_transaction_is_handed_over_at_its_end_and_in_one(world: World) -> None:
    with streaming(world) as running:
        world.sql(
            "BEGIN",
            f"INSERT INTO {TABLE} (path, md5sum) VALUES ('/a', 0x01), ('/b', 0x02)",
            f"INSERT INTO {TABLE} (path, md5sum) VALUES ('/c', 0x03)",
            "COMMIT",
        )
        running.heard.await_ids([1, 2, 3])
        assert running.heard.batches == [[1, 2, 3]]


def test_what_is_rolled_back_is_never_heard_of(world: World) -> None:
    with streaming(world) as running:
        world.sql("BEGIN", f"INSERT INTO {TABLE} (path, md5sum) VALUES ('/a', 0x01)", "ROLLBACK")
        after = world.insert("/b")
        running.heard.await_ids(after)
        assert running.heard.ids == after


def test_rows_that_come_by_select_or_from_a_file_are_rows_like_others(world: World, tmp_path: Path) -> None:
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


def test_a_row_that_is_replaced_or_updated_wakes_us_again(world: World) -> None:
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


def test_the_key_is_found_in_a_minimal_row_image(world: World) -> None:
    """An INSERT's image has it although it was left to AUTO_INCREMENT; an UPDATE's has it in the row before, only."""
    with streaming(world) as running:
        minimal = "SET SESSION binlog_row_image = MINIMAL"
        running.heard.await_ids(world.insert("/a", before=minimal))
        world.sql(minimal, f"UPDATE {TABLE} SET copied = 0 WHERE id = 1")
        eventually(lambda: running.heard.ids == [1, 1], "the update")


def test_the_later_id_may_commit_first(world: World) -> None:
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


def test_rows_of_an_xa_transaction_come_at_its_prepare(world: World) -> None:
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


def finished(world: World, statement: str) -> bool:
    """Ends an XA transaction, unless the session that prepared it is still on its way out."""
    try:
        world.sql(statement)
    except pymysql.OperationalError as error:
        if error.args[0] != 1397:
            raise
        return False
    return True


def test_a_huge_transaction_is_handed_over_in_parts(world: World) -> None:
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
def test_a_table_that_is_altered_in_mid_stream_is_read_as_it_is_then(world: World, change: str) -> None:
    with streaming(world) as running:
        running.heard.await_ids(world.insert("/a"))
        world.sql(f"ALTER TABLE {TABLE} {change}")
        running.heard.await_ids(world.insert("/b", "/c"))
        assert running.heard.ids == [1, 2, 3]
        assert running.heard.all("gap") == []


def test_an_unsigned_key_beyond_the_signed_range_keeps_its_value(world: World) -> None:
    world.sql(f"ALTER TABLE {TABLE} MODIFY COLUMN id INT UNSIGNED AUTO_INCREMENT, AUTO_INCREMENT = 3000000000")
    with streaming(world) as running:
        world.insert("/a")
        running.heard.await_ids([3_000_000_000])


def test_rows_that_cannot_be_decoded_make_a_gap_and_hold_up_nothing(world: World) -> None:
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


# How far it is.


def test_traffic_in_other_tables_moves_the_position(world: World) -> None:
    world.sql("CREATE TABLE other (a INT AUTO_INCREMENT PRIMARY KEY)")
    with streaming(world, Pace(heartbeat=60.0)) as running:
        world.sql("INSERT INTO other VALUES ()")
        there = position(world)
        eventually(lambda: passed(running, there), f"{there} passed, at {running.stream.position}")
        assert running.heard.ids == []


def test_on_an_idle_server_a_heartbeat_moves_the_position(world: World) -> None:
    """A DDL makes events of which none is handed to us."""
    with streaming(world) as running:
        world.sql("CREATE TABLE other (a INT)", "DROP TABLE other")
        there = position(world)
        eventually(lambda: passed(running, there), "the position passed within two heartbeats", 3)


def test_what_the_stream_should_have_delivered_and_has_not_is_missed(world: World) -> None:
    """And what was there before the anchor, or was delivered, is not."""
    before = world.insert("/old")
    with streaming(world, CALM) as running:
        eventually(lambda: running.stream.anchor_max_id, "the anchor settled")
        assert running.stream.anchor_max_id == before[0]
        seen = world.insert("/seen")
        unseen = world.insert("/unseen", before="SET SESSION sql_log_bin = 0")
        world.insert("/later")
        there = position(world)
        ahead = Position(there.file, there.offset + 1)
        running.stream.suspect(before + seen + unseen, ahead)
        eventually(lambda: passed(running, there), "the position passed")
        assert running.stream.take_missed() == [], "it may still come"
        running.stream.suspect(before + seen + unseen, there)
        assert running.stream.take_missed() == unseen


def test_lag_is_the_age_of_an_event_and_nothing_while_idle(world: World) -> None:
    calm = replace(CALM, heartbeat=60.0)
    with streaming(world, calm) as running:
        assert running.metric("stream_connected") == 1
        world.sql("SET TIMESTAMP = UNIX_TIMESTAMP() - 100", f"INSERT INTO {TABLE} (path, md5sum) VALUES ('/a', 0x01)")
        eventually(lambda: 95 < running.metric("stream_lag_seconds") < 130, "the lag of an old event")
    assert running.metric("stream_connected") == 0
    assert math.isnan(running.metric("stream_lag_seconds"))
    with streaming(world) as running:
        world.sql("SET TIMESTAMP = UNIX_TIMESTAMP() - 100", f"INSERT INTO {TABLE} (path, md5sum) VALUES ('/b', 0x01)")
        running.heard.await_ids([2])
        eventually(lambda: running.metric("stream_lag_seconds") == 0, "no lag after a heartbeat")


# What it survives.


def test_a_killed_connection_is_opened_again_and_the_listener_sweeps(world: World) -> None:
    with streaming(world, CALM) as running:
        kill_dump_thread(world)
        running.heard.await_anchors(2)
        assert [call[0] for call in running.heard.calls] == ["anchor", "lost", "anchor"]
        running.heard.await_ids(world.insert("/a"))
        [reason] = running.heard.all("lost")
        assert reason in ("link", "killed")
        assert running.metric("stream_reconnects_total", reason=reason) == 1


def test_a_new_file_and_a_purge_behind_us_go_unnoticed(world: World) -> None:
    with streaming(world) as running:
        running.heard.await_ids(world.insert("/a"))
        world.sql("FLUSH BINARY LOGS")
        there = position(world)
        eventually(lambda: passed(running, there), "the new file begun")
        world.sql(f"PURGE BINARY LOGS TO '{there.file}'")
        running.heard.await_ids(world.insert("/b"))
        assert running.heard.all("lost") == []


def test_another_checksum_of_the_log_costs_one_reconnect(world: World) -> None:
    """The library would go on with the old one: with names of files that miss their last four letters, for one."""
    with streaming(world, CALM) as running, world.globally("binlog_checksum", "NONE"):
        running.heard.await_anchors(2)
        running.heard.await_ids(world.insert("/a"))
        there = position(world)
        eventually(lambda: passed(running, there), f"{there} passed, at {running.stream.position}")
        world.sql("SET GLOBAL binlog_checksum = CRC32")
        running.heard.await_anchors(3)
        running.heard.await_ids(world.insert("/b"))
        assert running.heard.all("gap") == []


def test_many_reconnects_leave_no_descriptor_behind(mariadb: DatabaseServer) -> None:
    with new_world(mariadb) as world:
        before = len(os.listdir("/proc/self/fd"))
        with streaming(world, CALM) as running:
            for times in range(2, 6):
                kill_dump_thread(world)
                running.heard.await_anchors(times)
            assert len(os.listdir("/proc/self/fd")) <= before + 4, (
                "a socket and its twin, for the stream and the library"
            )
        assert len(os.listdir("/proc/self/fd")) <= before


def test_a_server_that_restarts_is_streamed_from_again(doomed: World) -> None:
    with streaming(doomed) as running:
        running.heard.await_ids(doomed.insert("/a"))
        doomed.server.restart()
        running.heard.await_anchors(2)
        assert running.heard.all("lost")[0] in ("shutdown", "link")
        running.heard.await_ids(doomed.insert("/b"))


def test_a_server_that_dies_is_said_to_be_away_and_streamed_from_again(doomed: World) -> None:
    with streaming(doomed) as running:
        running.heard.await_ids(doomed.insert("/a"))
        doomed.server.kill()
        running.heard.await_one("unavailable", "cannot be used")
        doomed.server.start()
        running.heard.await_anchors(2)
        running.heard.await_ids(doomed.insert("/b"))


def test_a_reset_of_the_log_is_noticed_although_the_server_keeps_the_connection(doomed: World) -> None:
    """A reader of the first file gets heartbeats, and none of the rows in the file that took its place."""
    reset = {"mysql": "RESET BINARY LOGS AND GTIDS", "mariadb": "RESET MASTER"}[doomed.server.kind]
    doomed.sql(reset)
    doomed.insert(*["/a"] * 20)
    with streaming(doomed) as running:
        doomed.sql(reset)
        running.heard.await_anchors(2)
        assert running.heard.all("lost") == ["position"]
        running.heard.await_ids(doomed.insert("/b"))


def test_a_reset_of_a_log_of_several_files_is_a_lost_position(doomed: World) -> None:
    doomed.sql("FLUSH BINARY LOGS")
    with streaming(doomed, CALM) as running:
        doomed.sql({"mysql": "RESET BINARY LOGS AND GTIDS", "mariadb": "RESET MASTER"}[doomed.server.kind])
        running.heard.await_anchors(2)
        assert running.heard.all("lost") == ["position"]
        running.heard.await_ids(doomed.insert("/b"))


def test_a_link_that_falls_silent_is_noticed(world: World) -> None:
    pace = replace(CALM, heartbeat=0.5)
    with Proxy(world.server.port) as proxy, streaming(world, pace, database=world.database(port=proxy.port)) as running:
        running.heard.await_ids(world.insert("/a"))
        proxy.freeze()
        running.heard.await_one("lost", "stalled")
        proxy.thaw()
        running.heard.await_anchors(2)
        running.heard.await_ids(world.insert("/b"))


def test_another_replica_with_our_random_server_id_costs_one_reconnect(world: World) -> None:
    with (
        streaming(world, CALM, chance=random.Random(7)) as running,
        streaming(world, CALM, chance=random.Random(7)) as other,
    ):
        assert running.heard.await_one("lost") == "server_id"
        running.heard.await_anchors(2)
        ids = world.insert("/a")
        running.heard.await_ids(ids)
        other.heard.await_ids(ids)


def test_another_replica_with_the_server_id_that_the_operator_set_ends_the_stream(world: World) -> None:
    first = Streaming(world, CALM, server_id=4711)
    first.stream.start()
    first.heard.await_anchors(1)
    with streaming(world, CALM, server_id=4711) as second:
        assert first.stream.join(10)
        assert isinstance(first.stream.failure, ServerIdTaken)
        assert "4711" in str(first.stream.failure)
        assert "--server-id" in str(first.stream.failure)
        second.heard.await_ids(world.insert("/a"))


# When there is no stream to be had.


def test_a_missing_grant_is_named_and_streaming_begins_when_it_is_given(world: World) -> None:
    account = f"'{world.user}'@'%'"
    world.sql(f"REVOKE REPLICATION SLAVE ON *.* FROM {account}")
    with streaming(world, anchored=False) as running:
        assert f"GRANT REPLICATION SLAVE ON *.* TO {account}" in running.heard.await_one("unavailable")
        world.sql(f"REVOKE REPLICATION CLIENT ON *.* FROM {account}")
        grant = f"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {account}"
        running.heard.await_one("unavailable", grant)
        world.sql(grant)
        running.heard.await_anchors(1)
        running.heard.await_ids(world.insert("/a"))
        assert len(running.heard.all("unavailable")) == 2, "each reason is said once"
        assert running.heard.all("lost") == []


def test_a_grant_that_hides_in_a_role_shows_by_the_attempt(world: World) -> None:
    """What SHOW GRANTS leaves open, the server's answer to the attempt decides: here, no."""
    role = f"reader_{world.name}"
    world.sql(
        f"REVOKE REPLICATION SLAVE ON *.* FROM '{world.user}'@'%'",
        f"CREATE ROLE {role}",
        f"GRANT {role} TO '{world.user}'@'%'",
    )
    try:
        with streaming(world, anchored=False) as running:
            running.heard.await_one("unavailable", "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO")
            world.sql(f"GRANT REPLICATION SLAVE ON *.* TO '{world.user}'@'%'")
            running.heard.await_anchors(1)
    finally:
        world.sql(f"DROP ROLE {role}")


def test_statement_format_is_no_stream(world: World) -> None:
    """Neither at the start nor from in between; the look around finds it."""
    with world.globally("binlog_format", "'STATEMENT'"), streaming(world, anchored=False) as running:
        running.heard.await_one("unavailable", "SET GLOBAL binlog_format = 'ROW'")
        world.sql("SET GLOBAL binlog_format = 'ROW'")
        running.heard.await_anchors(1)
        world.sql("SET GLOBAL binlog_format = 'MIXED'")
        running.heard.await_one("unavailable", "binlog_format is MIXED")
        assert running.heard.all("lost") == ["unavailable"]


def test_compression_is_no_stream(world: World) -> None:
    variable = {"mysql": "binlog_transaction_compression", "mariadb": "log_bin_compress"}[world.server.kind]
    with streaming(world) as running:
        with world.globally(variable, "ON"):
            running.heard.await_one("unavailable", f"SET GLOBAL {variable} = OFF")
        running.heard.await_anchors(2)
        running.heard.await_ids(world.insert("/a"))


def test_a_row_that_was_compressed_in_mid_stream_makes_a_gap(world: World) -> None:
    """On MySQL any session may compress; on MariaDB it is the server's setting, and rows below 256 bytes stay as they are."""
    with streaming(world, CALM) as running:
        eventually(lambda: running.stream.anchor_max_id is not None, "the first look around")
        if world.server.kind == "mysql":
            world.insert("/a", before="SET SESSION binlog_transaction_compression = ON")
        else:
            with world.globally("log_bin_compress", "ON"):
                world.insert("/a" * 130)
        assert "compressed" in running.heard.await_one("gap")
        assert running.metric("stream_events_total", outcome="unreadable") == 1
        running.heard.await_ids(world.insert("/d"))


def test_a_wrong_password_is_said_and_the_right_one_taken(world: World) -> None:
    with streaming(world, CALM) as running:
        world.sql(f"ALTER USER '{world.user}'@'%' IDENTIFIED BY 'changed'")
        kill_dump_thread(world)
        assert "MYSQL_PASSWORD" in running.heard.await_one("unavailable", "Access denied")
        world.sql(f"ALTER USER '{world.user}'@'%' IDENTIFIED BY '{PASSWORD}'")
        running.heard.await_anchors(2)
        running.heard.await_ids(world.insert("/a"))


def test_a_table_that_is_gone_is_said_and_streaming_begins_when_it_is_back(world: World) -> None:
    world.sql(f"DROP TABLE {TABLE}")
    with streaming(world, anchored=False) as running:
        running.heard.await_one("unavailable", TABLE)
        world.sql(CREATE_TABLE)
        running.heard.await_anchors(1)
        running.heard.await_ids(world.insert("/a"))


def test_a_server_without_a_binary_log_is_no_stream(doomed: World) -> None:
    """The last test of its server, which is started anew with the log off."""
    doomed.server.stop()
    doomed.server.options = ("--skip-log-bin",)
    doomed.server.start()
    with streaming(doomed, anchored=False) as running:
        assert "set log_bin" in running.heard.await_one("unavailable", "writes no binary log")
    with pytest.raises(StreamUnavailable, match="writes no binary log"):
        position(doomed)


# How it stops, and what it says on the way.


def ends_within_a_second(running: Streaming) -> None:
    before = time.monotonic()
    running.stream.stop()
    assert running.stream.join(5)
    assert time.monotonic() - before < 1.0
    assert running.stream.failure is None


def test_it_stops_at_once_while_it_waits_for_events(world: World) -> None:
    with streaming(world, Pace(heartbeat=60.0)) as running:
        ends_within_a_second(running)
    assert [call[0] for call in running.heard.calls] == ["anchor"], "a stop is no loss"


def test_it_stops_at_once_while_it_waits_to_ask_again(world: World) -> None:
    with world.globally("binlog_format", "'STATEMENT'"), streaming(world, Pace(), anchored=False) as running:
        running.heard.await_one("unavailable")
        ends_within_a_second(running)


@pytest.mark.parametrize("mute", ["the handshake", "the connection"])
def test_it_stops_at_once_while_it_connects(mariadb: DatabaseServer, mute: str) -> None:
    with new_world(mariadb) as world, contextlib.ExitStack() as stack:
        # Nobody accepts: a connection shakes hands with the kernel and hears no more; beyond the backlog not even that.
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        if mute == "the connection":
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(port.getsockname())
        database = world.database(port=port.getsockname()[1])
        with streaming(world, anchored=False, database=database) as running:
            eventually(lambda: any(running.stream._line._twins), "it connects")
            ends_within_a_second(running)


def test_a_line_is_cut_under_tls_too(mysql: DatabaseServer) -> None:
    """PyMySQL wraps the socket, which would leave us with a dead one; the twin lives."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with new_world(mysql) as world:
        line = Line()
        settings = {**world.database().connection_settings(), "ssl": context, "read_timeout": 30}
        connection = line.dial(settings)
        ended = threading.Event()

        def wait_for_an_answer() -> None:
            with contextlib.suppress(pymysql.MySQLError), connection.cursor() as cursor:
                cursor.execute("SELECT SLEEP(20)")
            ended.set()

        with connection.cursor() as cursor:
            cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_version'")
            assert "TLS" in str(cursor.fetchone())
        waiter = threading.Thread(target=wait_for_an_answer)
        waiter.start()
        eventually(lambda: "SLEEP" in str(world.sql("SHOW PROCESSLIST")), "the question is asked")
        line.cut()
        assert ended.wait(1)
        waiter.join()
        with pytest.raises(LineCut):
            line.dial(settings)
        line.hang_up()


def test_a_line_that_is_cut_before_it_is_used_wakes_who_uses_it() -> None:
    """The stop may come between the socket's making and its connect."""
    line = Line()
    with socket.create_server(("127.0.0.1", 0)) as mute:

        def cut_at_once(sock: socket.socket) -> socket.socket:
            twin = pair(sock)
            line.cut()
            return twin

        pair, line._pair = line._pair, cut_at_once  # type: ignore[method-assign]
        before = time.monotonic()
        with pytest.raises((pymysql.MySQLError, OSError)):
            line.dial({"host": "127.0.0.1", "port": mute.getsockname()[1], "connect_timeout": 30, "read_timeout": 30})
        assert time.monotonic() - before < 1
    line.hang_up()


def test_no_log_line_has_the_password(
    world: World, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """mysql-replication 1.0.17 logs its settings, password included, unless it is kept from it."""
    library = logging.getLogger("pymysqlreplication")
    level = library.level
    caplog.set_level(logging.DEBUG)
    library.setLevel(logging.DEBUG)
    ours = structlog.get_config()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory())  # to what is captured here
    try:
        with streaming(world, CALM) as running:
            running.heard.await_ids(world.insert("/a"))
            kill_dump_thread(world)
            running.heard.await_anchors(2)
            world.sql(f"ALTER USER '{world.user}'@'%' IDENTIFIED BY 'changed'")
            kill_dump_thread(world)
            said = running.heard.await_one("unavailable", "Access denied")
    finally:
        library.setLevel(level)
        structlog.configure(**ours)
    printed = capsys.readouterr()
    everything = f"{caplog.text}\n{printed.out}\n{printed.err}\n{said}"
    assert "BINLOG_ROW_METADATA" in caplog.text, "the library's own words are among what was looked at"
    assert "stream_ended" in everything
    assert PASSWORD not in everything
