"""What happens to the binary log and to the table while the service streams: new files, purges, resets, DDL, rows that hide."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pymysql
import pytest
from files_table import TABLE
from private_site import PrivateSite, SourceFile, insert
from proxy import Proxy
from stream_scenario import FORGET_THE_LOG, LINK_OR_LOCK, TIMING_WITHOUT_CHECKS, StreamScenario, connections_of
from waiting import eventually

from cdc_archiver.events import binlog

pytestmark = pytest.mark.usefixtures("quick_stream")


@pytest.fixture
def stage(doomed_stage: PrivateSite) -> PrivateSite:
    return doomed_stage


@pytest.fixture
def without_checks(monkeypatch: pytest.MonkeyPatch, quick_stream: None) -> None:
    """The stream does not look around, and so has to notice by itself."""
    monkeypatch.setattr(binlog, "StreamTiming", lambda: TIMING_WITHOUT_CHECKS)


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
        assert story.reconnects() == {"position": 1}
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


def test_rows_that_a_session_logs_as_statements(stage: PrivateSite) -> None:
    with stage.service(sweep_interval=1) as service:
        service.wait_settled()
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # Given rows of which the log has nothing but the INSERT's text,
        files = story.new_files(2)
        story.remember(register_after(stage, "SET SESSION binlog_format = STATEMENT", files), files)
        # then the sweep finds them,
        story.arrives_by_stream()
        story.streams()
        # and they are counted for what they are: rows that the stream did not tell of.
        eventually(lambda: service.metric("sweep_found_total", why="stream_missed") == 2, "two rows are missed")
        story.ends_well(missed=2)
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
    with stage.service(sweep_interval=1) as service:
        service.wait_settled()
        story = StreamScenario(stage, service)
        story.arrives_by_stream()
        # Given rows of a transaction that is prepared, of which the log tells, and whose commit takes its time,
        files = story.new_files(2)
        with prepared(stage, files) as (cursor, first, name):
            story.was_delivered([first, first + 1])
            # until nobody looks for them any more,
            story.arrives_by_stream()
            eventually(lambda: service.metric("queue_depth") == service.metric("in_flight") == 0, "nothing is in hand")
            assert stage.count("copied = 0") == 0
            cursor.execute(f"XA COMMIT {name}")
        # then they are archived all the same, and the stream has missed nothing.
        story.remember([first, first + 1], files)
        story.arrives_by_stream()
        story.ends_well()
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
