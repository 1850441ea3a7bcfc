"""The stream on real servers: what it says where there is none, and how it begins when there can be one."""

from __future__ import annotations

import pytest
from files_table import CREATE_TABLE, TABLE
from private_database import PASSWORD, PrivateDatabase
from stream_scenario import TIMING_WITHOUT_CHECKS
from stream_under_test import kill_dump_thread, position, streaming
from waiting import eventually

from cdc_archiver.errors import StreamUnavailable


def test_a_missing_grant_is_named_and_streaming_begins_when_it_is_given(world: PrivateDatabase) -> None:
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


def test_a_grant_within_a_role_is_found_by_the_attempt(world: PrivateDatabase) -> None:
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


def test_statement_format_prevents_a_stream(world: PrivateDatabase) -> None:
    """Neither at the start nor from in between; the look around finds it."""
    with world.globally("binlog_format", "'STATEMENT'"), streaming(world, anchored=False) as running:
        running.heard.await_one("unavailable", "SET GLOBAL binlog_format = 'ROW'")
        world.sql("SET GLOBAL binlog_format = 'ROW'")
        running.heard.await_anchors(1)
        world.sql("SET GLOBAL binlog_format = 'MIXED'")
        running.heard.await_one("unavailable", "binlog_format is MIXED")
        assert running.heard.all("lost") == ["unavailable"]


def test_compression_prevents_a_stream(world: PrivateDatabase) -> None:
    variable = {"mysql": "binlog_transaction_compression", "mariadb": "log_bin_compress"}[world.server.kind]
    with streaming(world) as running:
        with world.globally(variable, "ON"):
            running.heard.await_one("unavailable", f"SET GLOBAL {variable} = OFF")
        running.heard.await_anchors(2)
        running.heard.await_ids(world.insert("/a"))


def test_a_row_that_was_compressed_in_mid_stream_makes_a_gap(world: PrivateDatabase) -> None:
    """On MySQL any session may compress; on MariaDB it is the server's setting, and rows below 256 bytes stay as they are."""
    with streaming(world, TIMING_WITHOUT_CHECKS) as running:
        eventually(lambda: running.stream.anchor_max_id is not None, "the first look around")
        if world.server.kind == "mysql":
            world.insert("/a", before="SET SESSION binlog_transaction_compression = ON")
        else:
            with world.globally("log_bin_compress", "ON"):
                world.insert("/a" * 130)
        assert "compressed" in running.heard.await_one("gap")
        assert running.metric("stream_events_total", outcome="unreadable") == 1
        running.heard.await_ids(world.insert("/d"))


def test_a_wrong_password_is_reported_and_the_right_one_used(world: PrivateDatabase) -> None:
    with streaming(world, TIMING_WITHOUT_CHECKS) as running:
        world.sql(f"ALTER USER '{world.user}'@'%' IDENTIFIED BY 'changed'")
        kill_dump_thread(world)
        assert "MYSQL_PASSWORD" in running.heard.await_one("unavailable", "Access denied")
        world.sql(f"ALTER USER '{world.user}'@'%' IDENTIFIED BY '{PASSWORD}'")
        running.heard.await_anchors(2)
        running.heard.await_ids(world.insert("/a"))


def test_a_missing_table_is_reported_and_streaming_begins_when_it_is_back(world: PrivateDatabase) -> None:
    world.sql(f"DROP TABLE {TABLE}")
    with streaming(world, anchored=False) as running:
        running.heard.await_one("unavailable", TABLE)
        world.sql(CREATE_TABLE)
        running.heard.await_anchors(1)
        running.heard.await_ids(world.insert("/a"))


def test_a_server_without_a_binary_log_prevents_a_stream(doomed: PrivateDatabase) -> None:
    """A server that is started anew with the log off, and then with it again: other tests come after this one."""
    doomed.server.stop()
    doomed.server.options = ("--skip-log-bin",)
    doomed.server.start()
    try:
        with streaming(doomed, anchored=False) as running:
            assert "set log_bin" in running.heard.await_one("unavailable", "writes no binary log")
        with pytest.raises(StreamUnavailable, match="writes no binary log"):
            position(doomed)
    finally:
        doomed.server.stop()
        doomed.server.options = ()
        doomed.server.start()
