"""Marks of timecodes in the table and in the file alongside the archive: neither forgets what only the other has."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from files_table import TABLE
from private_database import PrivateDatabase
from structlog.testing import capture_logs

from cdc_archiver.database.marks import Mark, MarkKind, Marks, add_marks

NAME = "cdc_archiver_marks"


def say(world: PrivateDatabase, kind: MarkKind, timecode: int) -> None:
    """A command, on a machine that does not see the file."""
    database = world.database()
    try:
        with database.transaction() as connection:
            add_marks(connection, TABLE, [Mark(kind, "", timecode, "ann", "why", None, datetime.now(UTC))])
    finally:
        database.close()


def test_a_restored_table_gets_back_what_the_file_has_and_nothing_is_said_twice(
    world: PrivateDatabase, tmp_path: Path
) -> None:
    known: list[Marks] = []

    def handed_over() -> set[int]:
        """As a service sees it that has just started, and then one that runs on."""
        with world.connection() as connection:
            known.append(Marks(world.name, TABLE, lambda: tmp_path))
            for marks in known:
                marks.refresh(connection)
        (seen,) = {frozenset(t for t in (17000, 17001, 17002) if marks.handed_over("a", t)) for marks in known}
        return set(seen)

    # While the account may not make the table, what the file says counts, and the reason is told.
    with capture_logs() as logs:
        assert handed_over() == set()
    assert [log["event"] for log in logs] == ["marks_off"]
    assert "GRANT" in known[0].unavailable
    world.sql(f"GRANT CREATE, INSERT ON {NAME} TO '{world.user}'@'%'")
    assert handed_over() == set()
    # Given three timecodes that were handed over, and a backup that knows the first,
    say(world, MarkKind.HANDED_OVER, 17000)
    world.sql(f"CREATE TABLE backup AS SELECT * FROM {NAME}")
    say(world, MarkKind.HANDED_OVER, 17001)
    say(world, MarkKind.HANDED_OVER, 17002)
    assert handed_over() == {17000, 17001, 17002}
    # when it is restored, and a command takes one back before any service has seen that,
    restore = (f"TRUNCATE {NAME}", f"INSERT INTO {NAME} SELECT * FROM backup")
    world.sql(*restore)
    say(world, MarkKind.TAKEN_BACK, 17001)
    # then the command counts, and the table has again what it had lost, once.
    assert handed_over() == {17000, 17002}
    assert handed_over() == {17000, 17002}
    rows = world.sql(f"SELECT kind, timecode FROM {NAME} ORDER BY number")
    assert rows == [("handed_over", 17000), ("taken_back", 17001), ("handed_over", 17002)]
    # Where the table cannot be read any more, nothing is forgotten, by a new service either.
    world.sql(f"DROP TABLE {NAME}", f"REVOKE CREATE, INSERT ON {NAME} FROM '{world.user}'@'%'")
    with capture_logs() as logs:
        assert handed_over() == {17000, 17002}
    assert {log["event"] for log in logs} == {"marks_off"}


def test_a_command_counts_although_the_databases_clock_was_set_back(world: PrivateDatabase) -> None:
    world.sql(f"GRANT CREATE, INSERT ON {NAME} TO '{world.user}'@'%'")
    marks = Marks(world.name, TABLE, lambda: None)
    with world.connection() as connection:
        marks.refresh(connection)
    say(world, MarkKind.HELD, 17000)
    world.sql(f"UPDATE {NAME} SET at = at + INTERVAL 1 DAY")
    say(world, MarkKind.UNHELD, 17000)
    with world.connection() as connection:
        marks.refresh(connection)
    assert marks.held("a", 17000) is None
