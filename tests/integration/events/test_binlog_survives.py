"""The stream on real servers: what it survives."""

from __future__ import annotations

import os
import random
from dataclasses import replace

from private_database import PrivateDatabase, new_private_database
from proxy import Proxy
from stream_scenario import TIMING_WITHOUT_CHECKS
from stream_under_test import StreamUnderTest, kill_dump_thread, passed, position, streaming
from waiting import eventually

from cdc_archiver.errors import ServerIdTaken
from cdc_archiver.sandbox import DatabaseServer


def test_a_killed_connection_is_opened_again_and_the_listener_sweeps(world: PrivateDatabase) -> None:
    with streaming(world, TIMING_WITHOUT_CHECKS) as running:
        kill_dump_thread(world)
        running.heard.await_anchors(2)
        assert [call[0] for call in running.heard.calls] == ["anchor", "lost", "anchor"]
        running.heard.await_ids(world.insert("/a"))
        [reason] = running.heard.all("lost")
        assert reason in ("link", "killed")
        assert running.metric("stream_reconnects_total", reason=reason) == 1


def test_a_new_file_and_a_purge_behind_us_go_unnoticed(world: PrivateDatabase) -> None:
    with streaming(world) as running:
        running.heard.await_ids(world.insert("/a"))
        world.sql("FLUSH BINARY LOGS")
        there = position(world)
        eventually(lambda: passed(running, there), "the new file begun")
        world.sql(f"PURGE BINARY LOGS TO '{there.file}'")
        running.heard.await_ids(world.insert("/b"))
        assert running.heard.all("lost") == []


def test_another_checksum_of_the_log_costs_one_reconnect(world: PrivateDatabase) -> None:
    """The library would go on with the old one: with names of files that miss their last four letters, for one."""
    with streaming(world, TIMING_WITHOUT_CHECKS) as running, world.globally("binlog_checksum", "NONE"):
        running.heard.await_anchors(2)
        running.heard.await_ids(world.insert("/a"))
        there = position(world)
        eventually(lambda: passed(running, there), f"{there} passed, at {running.stream.position}")
        world.sql("SET GLOBAL binlog_checksum = CRC32")
        running.heard.await_anchors(3)
        running.heard.await_ids(world.insert("/b"))
        assert running.heard.all("gap") == []


def test_many_reconnects_leave_no_descriptor_behind(mariadb: DatabaseServer) -> None:
    with new_private_database(mariadb) as world:
        before = len(os.listdir("/proc/self/fd"))
        with streaming(world, TIMING_WITHOUT_CHECKS) as running:
            for times in range(2, 6):
                kill_dump_thread(world)
                running.heard.await_anchors(times)
            assert len(os.listdir("/proc/self/fd")) <= before + 4, (
                "a socket and its twin, for the stream and the library"
            )
        assert len(os.listdir("/proc/self/fd")) <= before


def test_a_server_that_restarts_is_streamed_from_again(doomed: PrivateDatabase) -> None:
    with streaming(doomed) as running:
        running.heard.await_ids(doomed.insert("/a"))
        doomed.server.restart()
        running.heard.await_anchors(2)
        assert running.heard.all("lost")[0] in ("shutdown", "link")
        running.heard.await_ids(doomed.insert("/b"))


def test_a_server_that_dies_is_reported_and_streamed_from_again(doomed: PrivateDatabase) -> None:
    with streaming(doomed) as running:
        running.heard.await_ids(doomed.insert("/a"))
        doomed.server.kill()
        running.heard.await_one("unavailable", "cannot be used")
        doomed.server.start()
        running.heard.await_anchors(2)
        running.heard.await_ids(doomed.insert("/b"))


def test_a_reset_of_the_log_is_noticed_although_the_server_keeps_the_connection(doomed: PrivateDatabase) -> None:
    """A reader of the first file gets heartbeats, and none of the rows in the file that took its place."""
    reset = {"mysql": "RESET BINARY LOGS AND GTIDS", "mariadb": "RESET MASTER"}[doomed.server.kind]
    doomed.sql(reset)
    doomed.insert(*["/a"] * 20)
    with streaming(doomed) as running:
        doomed.sql(reset)
        running.heard.await_anchors(2)
        assert running.heard.all("lost") == ["position"]
        running.heard.await_ids(doomed.insert("/b"))


def test_a_reset_of_a_log_of_several_files_is_a_lost_position(doomed: PrivateDatabase) -> None:
    doomed.sql("FLUSH BINARY LOGS")
    with streaming(doomed, TIMING_WITHOUT_CHECKS) as running:
        doomed.sql({"mysql": "RESET BINARY LOGS AND GTIDS", "mariadb": "RESET MASTER"}[doomed.server.kind])
        running.heard.await_anchors(2)
        assert running.heard.all("lost") == ["position"]
        running.heard.await_ids(doomed.insert("/b"))


def test_a_link_that_falls_silent_is_noticed(world: PrivateDatabase) -> None:
    timing = replace(TIMING_WITHOUT_CHECKS, heartbeat=0.5)
    with (
        Proxy(world.server.port) as proxy,
        streaming(world, timing, database=world.database(port=proxy.port)) as running,
    ):
        running.heard.await_ids(world.insert("/a"))
        proxy.freeze()
        running.heard.await_one("lost", "stalled")
        proxy.thaw()
        running.heard.await_anchors(2)
        running.heard.await_ids(world.insert("/b"))


def test_another_replica_with_our_random_server_id_costs_one_reconnect(world: PrivateDatabase) -> None:
    with (
        streaming(world, TIMING_WITHOUT_CHECKS, rng=random.Random(7)) as running,
        streaming(world, TIMING_WITHOUT_CHECKS, rng=random.Random(7)) as other,
    ):
        assert running.heard.await_one("lost") == "server_id"
        running.heard.await_anchors(2)
        ids = world.insert("/a")
        running.heard.await_ids(ids)
        other.heard.await_ids(ids)


def test_another_replica_with_the_server_id_that_the_operator_set_ends_the_stream(world: PrivateDatabase) -> None:
    first = StreamUnderTest(world, TIMING_WITHOUT_CHECKS, server_id=4711)
    first.stream.start()
    first.heard.await_anchors(1)
    with streaming(world, TIMING_WITHOUT_CHECKS, server_id=4711) as second:
        assert first.stream.join(10)
        assert isinstance(first.stream.failure, ServerIdTaken)
        assert "4711" in str(first.stream.failure)
        assert "--server-id" in str(first.stream.failure)
        second.heard.await_ids(world.insert("/a"))
