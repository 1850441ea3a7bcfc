"""`init-db` on an empty database: what it makes is what the service needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import ask
from files_table import TABLE
from private_site import HISTORY, PrivateSite, new_private_site
from recorded_history import archived

from cdc_archiver.database import side_tables
from cdc_archiver.sandbox import DatabaseServer, SshServer

INDEX = "cdc_archiver_pending"
GRANTS = 1 + len(side_tables.ALL)
"""Lines about grants, the last of the output."""
SIDE_TABLES = [table.name for table in side_tables.ALL]
OBJECTS = [f"table {TABLE}", f"index {INDEX}", f"history {HISTORY}", *(f"side table {name}" for name in SIDE_TABLES)]


@pytest.fixture
def stage(database_server: DatabaseServer, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    """An empty database, and an account that may make tables."""
    with new_private_site(database_server, ssh_server, tmp_path, table=False) as made:
        made.server.execute(f"GRANT CREATE, INDEX, INSERT, DELETE ON {made.database}.* TO '{made.user}'@'%'")
        yield made


def tables(stage: PrivateSite) -> list[str]:
    return sorted(name for (name,) in stage.sql("SHOW TABLES"))


def indexed(stage: PrivateSite) -> list[str]:
    """The columns of the index for sweeps."""
    rows = stage.sql(f"SHOW INDEX FROM {TABLE}")
    return [row[4] for row in rows if row[2] == INDEX]


def test_it_makes_table_index_and_history_and_the_service_works_with_them(stage: PrivateSite) -> None:
    # Given an empty database,
    assert tables(stage) == []
    # when init-db is run,
    done = stage.process("init-db")
    # then it says what it has made,
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:-GRANTS] == [f"-- {name}: created" for name in OBJECTS]
    assert tables(stage) == sorted([HISTORY, TABLE, *SIDE_TABLES])
    assert indexed(stage) == ["copied", "instance_id", "id", "failed_copy_attempts"]
    # and the service archives with only its own permissions, without a warning.
    stage.server.execute(f"REVOKE CREATE, INDEX, INSERT, DELETE ON {stage.database}.* FROM '{stage.user}'@'%'")
    with stage.program() as service:
        (id_,) = stage.register(stage.file("file.npy"))
        stage.wait_archived(id_)
        assert service.status()["history"] == "kept"
        assert "warning" not in service.said
    assert [entry["result"] for entry in stage.history(id_)] == ["archived"]


def test_it_may_be_run_again_and_leaves_what_is_there(stage: PrivateSite) -> None:
    # Given a table in use,
    stage.command("init-db")
    file = stage.file("file.npy")
    stage.register(file)
    before = stage.sql(f"SELECT * FROM {TABLE}"), stage.sql(f"SHOW CREATE TABLE {TABLE}")
    # when init-db is run again,
    done = stage.command("init-db")
    # then nothing changes.
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:-GRANTS] == [f"-- {name}: exists" for name in OBJECTS]
    assert (stage.sql(f"SELECT * FROM {TABLE}"), stage.sql(f"SHOW CREATE TABLE {TABLE}")) == before


def test_the_statements_of_a_dry_run_work(stage: PrivateSite) -> None:
    # Given what a dry run prints, for an administrator who does not let programs make tables,
    done = stage.command("init-db", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert tables(stage) == []
    # when he runs it himself,
    statements = [statement.strip() for statement in done.stdout.split(";") if statement.strip()]
    assert len(statements) == len(OBJECTS)
    for statement in statements:
        stage.sql(statement)
    # then there is nothing left to do,
    assert tables(stage) == sorted([HISTORY, TABLE, *SIDE_TABLES])
    done = stage.command("init-db")
    assert "created" not in done.stdout
    # and the tables are those that init-db makes.
    by_hand = {name: stage.sql(f"SHOW CREATE TABLE {name}")[0][1] for name in tables(stage)}
    for name in tables(stage):
        stage.sql(f"DROP TABLE {name}")
    assert stage.command("init-db").returncode == 0
    assert {name: stage.sql(f"SHOW CREATE TABLE {name}")[0][1] for name in tables(stage)} == by_hand


def test_a_dry_run_on_a_table_in_use_prints_only_what_is_missing(stage: PrivateSite) -> None:
    stage.command("init-db")
    stage.sql(f"DROP INDEX {INDEX} ON {TABLE}")
    done = stage.command("init-db", "--dry-run")
    statements = [line for line in done.stdout.splitlines() if line.startswith("CREATE")]
    assert len(statements) == 1
    assert statements[0].startswith(f"CREATE INDEX `{INDEX}`")


def test_without_the_permission_the_error_is_one_line(stage: PrivateSite) -> None:
    stage.server.execute(f"REVOKE CREATE ON {stage.database}.* FROM '{stage.user}'@'%'")
    done = stage.command("init-db")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("cdc-archiver: ")
    assert "denied" in line
    assert tables(stage) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (f"RENAME TABLE {TABLE} TO {TABLE}_old", f"the table {TABLE}_old"),
        (f"RENAME TABLE {TABLE} TO night", "the table night"),
        (f"DROP TABLE {TABLE}", f"a history of the table {TABLE}"),
    ],
    ids=["renamed", "renamed otherwise", "dropped"],
)
def test_no_empty_table_takes_the_place_of_one_that_is_renamed_or_dropped(
    stage: PrivateSite, change: str, found: str
) -> None:
    # Given a table of files that is not where it was,
    stage.command("init-db")
    archived(stage, stage.file("file.npy"))
    stage.sql(change)
    before = tables(stage)
    # when init-db is run, then it makes nothing, and says what it has found and what to do.
    for arguments in (["init-db"], ["init-db", "--dry-run"]):
        done = stage.command(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"init-db did not create the table {TABLE}: the database {stage.database} has " in done.stderr
        assert found in done.stderr
        assert "--new-table" in done.stderr
    # Nor does anybody else advise it,
    for arguments in (["list"], ["check", *stage.flags()]):
        done = stage.command(*arguments)
        assert found in done.stdout + done.stderr
        assert "creates it with" not in done.stdout + done.stderr
    assert tables(stage) == before
    # and an operator who wants one has it.
    done = stage.command("init-db", "--new-table")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"-- table {TABLE}: created"), done.stderr


def test_a_view_in_the_tables_place_is_named_as_such(stage: PrivateSite) -> None:
    stage.command("init-db")
    stage.sql(f"RENAME TABLE {TABLE} TO night")
    stage.sql(f"CREATE VIEW {TABLE} AS SELECT * FROM night")
    for arguments in (["init-db"], ["init-db", "--new-table"]):
        done = stage.command(*arguments)
        assert done.returncode == 2
        assert f"{TABLE} is a view; the binary log names its base table" in done.stderr
    done = stage.command("init-db", "--table", f"{TABLE}_v2")
    assert done.returncode == 2
    assert f"has the table night, the view {TABLE}" in done.stderr
    assert tables(stage) == sorted([HISTORY, "night", TABLE, *SIDE_TABLES])


def test_an_index_on_an_expression(mysql: DatabaseServer, ssh_server: SshServer, tmp_path: Path) -> None:
    """MySQL gives no column for it."""
    with new_private_site(mysql, ssh_server, tmp_path) as stage:
        stage.sql(f"CREATE INDEX by_name ON {TABLE} ((LOWER(path)))")
        stage.server.execute(f"GRANT CREATE, INDEX ON {stage.database}.* TO '{stage.user}'@'%'")
        found = ask(stage, "check", *stage.flags()).stdout
        assert "internal error" not in found
        assert "the index for the sweep is missing" in found
        done = stage.command("init-db")
        assert done.returncode == 0, done.stderr
        assert f"-- index {INDEX}: created" in done.stdout
        assert "each sweep reads" not in ask(stage, "check", *stage.flags()).stdout
