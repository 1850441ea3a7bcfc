"""The stream on real servers: how far it says it is, and what it therefore has missed."""

from __future__ import annotations

import math
from dataclasses import replace

from files_table import TABLE
from private_database import PrivateDatabase
from stream_scenario import TIMING_WITHOUT_CHECKS
from stream_under_test import passed, position, streaming
from waiting import eventually

from cdc_archiver.database.server_features import Position
from cdc_archiver.events.binlog_stream import StreamTiming


def test_traffic_in_other_tables_moves_the_position(world: PrivateDatabase) -> None:
    world.sql("CREATE TABLE other (a INT AUTO_INCREMENT PRIMARY KEY)")
    with streaming(world, StreamTiming(heartbeat=60.0)) as running:
        world.sql("INSERT INTO other VALUES ()")
        there = position(world)
        eventually(lambda: passed(running, there), f"{there} passed, at {running.stream.position}")
        assert running.heard.ids == []


def test_on_an_idle_server_a_heartbeat_moves_the_position(world: PrivateDatabase) -> None:
    """A DDL makes events of which none is handed to us."""
    with streaming(world) as running:
        world.sql("CREATE TABLE other (a INT)", "DROP TABLE other")
        there = position(world)
        eventually(lambda: passed(running, there), "the position passed within two heartbeats", 3)


def test_a_row_that_the_stream_should_have_delivered_is_missed(world: PrivateDatabase) -> None:
    """And what was there before the anchor, or was delivered, is not."""
    before = world.insert("/old")
    with streaming(world, TIMING_WITHOUT_CHECKS) as running:
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


def test_lag_is_the_age_of_an_event_and_nothing_while_idle(world: PrivateDatabase) -> None:
    calm = replace(TIMING_WITHOUT_CHECKS, heartbeat=60.0)
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
