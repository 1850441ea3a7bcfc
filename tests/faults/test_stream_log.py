"""What happens to the binary log and to the table while the service streams: new files, purges, resets, DDL, rows that hide."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pymysql
import pytest
from files_table import TABLE
from private_site import PrivateSite, SourceFile, insert
from proxy import Proxy
from stream_scenario import FORGET_THE_LOG, LINK_OR_LOCK, TIMING_WITHOUT_CHECKS, StreamScenario, connections_of
from structlog.testing import capture_logs
from waiting import eventually

from cdc_archiver.events import binlog_stream

pytestmark = pytest.mark.usefixtures("quick_stream")


@pytest.fixture
def stage(doomed_stage: PrivateSite) -> PrivateSite:
    return doomed_stage


@pytest.fixture
def without_checks(monkeypatch: pytest.MonkeyPatch, quick_stream: None) -> None:
    """The stream does not look around, and so has to notice by itself."""
    monkeypatch.setattr(binlog_stream, "StreamTiming", lambda: TIMING_WITHOUT_CHECKS)


def log_end(stage: PrivateSite) -> tuple[str, int]:
    """The newest file of the log, and how long it is."""
    statement = {"mysql": "SHOW BINARY LOG STATUS", "mariadb": "SHOW MASTER STATUS"}[stage.server.kind]
    file, offset, *_ = stage.sql(statement)[0]
    return str(file), int(offset)


def register_after(stage: PrivateSite, before: str, files: list[SourceFile], **columns: Any) -> list[int]:
    """Registers files in one INSERT of a session that ran a statement before."""
    with contextlib.closing(stage.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(before)
        first = insert(cursor, [stage.values(file, **columns) for file in files])
    return list(range(first, first + len(files)))


# The log.


def test_a_new_file_of_the_log_and_a_purge_behind_us_go_unnoticed(stage: PrivateSite) -> None:
    with stage.service() as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # Given a server that begins a new file between two rows and throws the older ones away,
        for _ in range(3):
            story.register()
            stage.sql("FLUSH BINARY LOGS")
        story.arrives_by_stream()
        file, _ = log_end(stage)
        stage.sql(f"PURGE BINARY LOGS TO '{file}'")
        # then all of them are told of, and nothing is said.
        story.arrives_by_stream()
        story.was_delivered(list(story.files))
        story.streams()
        story.ends_well()
        assert story.reconnects() == {}
        assert str(service.status()["stream"]["position"]).startswith(file)


def test_a_log_that_is_purged_while_we_are_away(stage: PrivateSite) -> None:
    with Proxy(stage.server.port) as wire, stage.service(mysql_port=wire.port) as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # Given a service that cannot reach its server,
        wire.refuse()
        story.has_no_database()
        eventually(lambda: not connections_of(stage, "Binlog Dump"), "the server has noticed")
        # when rows are written, and the part of the log that tells of them is thrown away,
        story.register(3)
        stage.sql("FLUSH BINARY LOGS")
        file, _ = log_end(stage)

        def purged() -> bool:
            stage.sql(f"PURGE BINARY LOGS TO '{file}'")  # which leaves what a reader, on its way out, still holds
            return [row[0] for row in stage.sql("SHOW BINARY LOGS")] == [file]

        eventually(purged, "nothing of it is left")
        # then nobody misses it.
        wire.accept()
        story.streams()
        story.arrives_by_stream()
        story.ends_well()
        assert story.reconnects() in LINK_OR_LOCK


@pytest.mark.parametrize("read", ["the first file", "a later file"])
def test_a_log_that_is_reset(stage: PrivateSite, read: str) -> None:
    stage.sql(FORGET_THE_LOG[stage.server.kind])
    if read == "a later file":
        stage.sql("FLUSH BINARY LOGS")
    with stage.service() as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream(5)
        # Given an administrator who lets the log begin anew, and rows around it,
        story.register()
        stage.sql(FORGET_THE_LOG[stage.server.kind])
        story.register()
        # then the service notices, and begins there too.
        eventually(story.reconnects, "the end of the stream is counted")
        story.streams()
        story.arrives_by_stream()
        story.ends_well()
        # It ends by its position; or the server ends it first, once the service's own writes have made the new log as long.
        assert story.reconnects() in ({"position": 1}, {"shutdown": 1})
        assert log_end(stage)[0].endswith("000001")


# The table.


@pytest.mark.parametrize(
    "change",
    [
        "ADD COLUMN operator INT NOT NULL DEFAULT 7 FIRST",
        "ADD COLUMN operator VARCHAR(32)",
        "RENAME COLUMN script_id TO script",
    ],
)
def test_a_table_that_is_altered(stage: PrivateSite, change: str) -> None:
    with stage.service() as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # Given rows on both sides of an ALTER,
        story.register()
        stage.sql(f"ALTER TABLE {TABLE} {change}")
        story.register(2)
        # then the stream reads each as the table was then.
        story.arrives_by_stream()
        story.was_delivered(list(story.files))
        story.streams()
        story.ends_well()
        assert story.reconnects() == {}
        assert service.metric("stream_events_total", outcome="unreadable") == 0


def test_a_table_that_is_renamed_away_and_back(stage: PrivateSite) -> None:
    with stage.service() as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # Given a table that is gone for a while,
        stage.sql(f"RENAME TABLE {TABLE} TO elsewhere")
        # then the service lives, and says what it misses;
        story.has_no_database(TABLE)
        # names the table that may be the one, and does not advise to make an empty one in its place;
        assert f"the database {stage.database} has the table elsewhere" in service.get("/readyz")[1]
        assert "init-db" not in service.get("/readyz")[1]
        # a row that is written meanwhile, under the other name, is found when the table is back.
        files = story.new_files()
        names = ", ".join(f"`{name}`" for name in stage.values(files[0]))
        marks = ", ".join(["%s"] * len(stage.values(files[0])))
        stage.sql(f"INSERT INTO elsewhere ({names}) VALUES ({marks})", list(stage.values(files[0]).values()))
        [(id_,)] = stage.sql("SELECT MAX(id) FROM elsewhere")
        story.remember([id_], files)
        stage.sql(f"RENAME TABLE elsewhere TO {TABLE}")
        story.streams()
        story.arrives_by_stream()
        story.ends_well()
        assert story.reconnects() == {"unavailable": 1}


# Rows that the log hides.


def test_rows_that_are_compressed_in_mid_stream(stage: PrivateSite, without_checks: None) -> None:
    with stage.service() as service:
        service.wait_settled()
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # Given rows in the log that nobody here can read: on MySQL any session may do that, on MariaDB the server does,
        # with rows of 256 bytes and more,
        files = story.new_files(3)
        long = {
            name: "x" * width
            for name, width in {"site": 32, "script_id": 32, "socs_version": 64, "pysmurf_version": 64}.items()
        }
        if stage.server.kind == "mysql":
            ids = register_after(stage, "SET SESSION binlog_transaction_compression = ON", files, **long)
        else:
            try:
                ids = register_after(stage, "SET GLOBAL log_bin_compress = ON", files, **long)
            finally:
                stage.sql("SET GLOBAL log_bin_compress = OFF")
        story.remember(ids, files)
        # then the service sees that something went by, and sweeps at once, not a minute later;
        stage.wait_archived(*ids)
        assert service.metric("stream_events_total", outcome="unreadable") >= 1
        # what can be read is told of as before.
        story.streams()
        story.arrives_by_stream()
        story.ends_well()
        assert story.reconnects() == {}


def test_rows_of_a_session_that_still_logs_statements(stage: PrivateSite) -> None:
    with contextlib.ExitStack() as stack:
        # Given a server that logs statements, a writer, and a service that polls and has written a row,
        stage.sql("SET GLOBAL binlog_format = 'MIXED'")
        stack.callback(stage.sql, "SET GLOBAL binlog_format = 'ROW'")
        writer = stack.enter_context(contextlib.closing(stage.connect()))
        lines = stack.enter_context(capture_logs())
        service = stack.enter_context(stage.service(until="polling", sweep_interval=3600, poll_interval=0.5))
        story = StreamScenario(stage, service)
        stage.wait_archived(*story.register())
        # when the server's format is set to what the service needs,
        stage.sql("SET GLOBAL binlog_format = 'ROW'")
        story.streams()
        service.wait_settled()
        # then the service's own connections log rows,
        story.arrives_by_stream()
        assert service.metric("stream_events_total", outcome="unreadable") == 0
        # and what the writer goes on to log as a statement is swept for at once,
        files = story.new_files(2)
        with writer.cursor() as cursor:
            first = insert(cursor, [stage.values(file) for file in files])
        stage.wait_archived(*story.remember([first, first + 1], files))
        # with the words that help, and without the alarm of a row that the stream has lost.
        said = eventually(
            lambda: [line["detail"] for line in lines if line["event"] == "stream_gap"], "the gap is logged"
        )
        assert f"reconnect the writer, connection {writer.thread_id()} of the server" in said[0]
        story.streams()
        story.arrives_by_stream()
        story.ends_well()
        assert service.metric("stream_events_total", outcome="unreadable") == 1
        assert story.reconnects() == {}


@contextlib.contextmanager
def prepared(stage: PrivateSite, files: list[SourceFile]) -> Iterator[tuple[Any, int, str]]:
    """An XA transaction that registers files and is prepared, not committed: its session, its first id, its name."""
    name = f"'{stage.database}'"
    with contextlib.closing(stage.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"XA START {name}")
        first = insert(cursor, [stage.values(file) for file in files])
        cursor.execute(f"XA END {name}")
        cursor.execute(f"XA PREPARE {name}")
        try:
            yield cursor, first, name
        finally:
            with contextlib.suppress(pymysql.MySQLError):
                cursor.execute(f"XA ROLLBACK {name}")


def test_rows_that_become_visible_long_after_their_event(stage: PrivateSite) -> None:
    with stage.service(sweep_interval=3600) as service:
        service.wait_settled()
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        swept = service.metric("sweep_duration_seconds_count")
        # Given rows of a transaction that is prepared, of which the log tells, and whose commit takes its time,
        files = story.new_files(2)
        with prepared(stage, files) as (cursor, first, name):
            began = time.monotonic()
            story.was_delivered([first, first + 1])
            story.arrives_by_stream()
            eventually(lambda: service.metric("queue_depth") == service.metric("in_flight") == 0, "nothing is in hand")
            eventually(lambda: time.monotonic() > began + 2.0, "a commit that is on its way would have come")
            assert stage.count("copied = 0") == 0
            cursor.execute(f"XA COMMIT {name}")
            committed = time.monotonic()
        # then they are archived soon after it, without a sweep,
        stage.wait_archived(*story.remember([first, first + 1], files))
        assert time.monotonic() - committed < (committed - began) + 3.0
        assert service.metric("sweep_duration_seconds_count") == swept
        # and the stream goes on, and has missed nothing.
        story.arrives_by_stream()
        story.ends_well()
        assert story.reconnects() == {}


SEMI_SYNC = {"mysql": "rpl_semi_sync_source", "mariadb": "rpl_semi_sync_master"}


@contextlib.contextmanager
def semi_synchronous(stage: PrivateSite, milliseconds: int) -> Iterator[None]:
    """The next commit is in the log, and visible so much later: it waits for a replica to acknowledge it, and there is none."""
    name = SEMI_SYNC[stage.server.kind]
    if stage.server.kind == "mysql":
        stage.sql(f"INSTALL PLUGIN {name} SONAME 'semisync_source.so'")
    stage.sql(f"SET GLOBAL {name}_wait_point = 'AFTER_SYNC', GLOBAL {name}_timeout = {milliseconds}")
    stage.sql(f"SET GLOBAL {name}_enabled = ON")
    try:
        yield
    finally:
        stage.sql(f"SET GLOBAL {name}_enabled = OFF")
        if stage.server.kind == "mysql":
            stage.sql(f"UNINSTALL PLUGIN {name}")


def test_rows_whose_commit_waits_for_a_replica(stage: PrivateSite) -> None:
    with stage.service(sweep_interval=3600) as service:
        service.wait_settled()
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        swept = service.metric("sweep_duration_seconds_count")
        # Given a server that shows a row only after it has waited for a replica,
        with semi_synchronous(stage, 1000):
            story.register(2)
        # then the files are archived without a sweep, although their event came before.
        story.arrives_by_stream()
        story.ends_well()
        assert service.metric("event_to_archived_seconds_sum") > 1.0, "the commit did not wait"
        assert service.metric("sweep_duration_seconds_count") == swept
        assert story.reconnects() == {}


def test_rows_with_an_event_that_never_become_visible(stage: PrivateSite) -> None:
    with stage.service() as service:
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # Given rows of a transaction that is prepared and then rolled back,
        with prepared(stage, [stage.file("never.npy")]) as (cursor, first, name):
            story.was_delivered([first])
            cursor.execute(f"XA ROLLBACK {name}")
        # then they hold up nothing, and nobody asks for their files.
        story.arrives_by_stream()
        story.streams()
        story.ends_well()
        assert stage.history(first) == []
        assert service.metric("copy_failures_total") == 0
