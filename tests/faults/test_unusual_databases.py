"""Databases set up otherwise than usual: dirty reads by default, versioned tables, odd modes, broken triggers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from asking import ask
from files_table import TABLE
from private_database import PrivateDatabase
from private_site import HISTORY, TARGET, PrivateSite, SourceFile, insert, new_private_site
from rows import database_of, register
from stream_scenario import StreamScenario
from waiting import eventually

from cdc_archiver.sandbox import DatabaseServer, SshServer
from cdc_archiver.service import table_watch

LEVELS = ["READ UNCOMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@contextlib.contextmanager
def default_isolation(server: DatabaseServer, level: str) -> Iterator[None]:
    """The isolation of sessions that do not set their own."""
    server.execute(f"SET GLOBAL TRANSACTION ISOLATION LEVEL {level}")
    try:
        yield
    finally:
        server.execute("SET GLOBAL TRANSACTION ISOLATION LEVEL REPEATABLE READ")


@pytest.mark.parametrize("level", LEVELS)
def test_every_session_reads_what_is_committed_by_now_and_nothing_else(world: PrivateDatabase, level: str) -> None:
    committed, locked = register(world, {"path": "/data/1"}, {"path": "/data/2"})
    with (
        default_isolation(world.server, level),
        database_of(world) as database,
        database.connect() as reading,
        database.transaction() as writing,
        contextlib.closing(database.raw_connection(autocommit=False)) as raw,
        contextlib.closing(world.server.connect(database=world.name, autocommit=False)) as stranger,
    ):
        # Given an open transaction that has inserted a row and changed another one,
        with stranger.cursor() as cursor:
            cursor.execute(f"INSERT INTO {TABLE} (path, md5sum) VALUES ('/data/3', '')")
            cursor.execute(f"UPDATE {TABLE} SET copied = 1 WHERE id = {locked}")

        def seen() -> list[list[tuple[int, int]]]:
            statement = f"SELECT id, copied FROM {TABLE} ORDER BY id"
            with raw.cursor() as cursor:
                cursor.execute(statement)
                found = [list(cursor.fetchall())]
            return found + [[(*row,) for row in each.exec_driver_sql(statement)] for each in (reading, writing)]

        # then no session of ours waits for it or sees what it did,
        assert seen() == [[(committed, 0), (locked, 0)]] * 3
        # and each sees what is committed meanwhile.
        stranger.commit()
        assert seen() == [[(committed, 0), (locked, 1), (locked + 1, None)]] * 3
        # What ours have read is locked for nobody.
        with stranger.cursor() as cursor:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
            cursor.execute(f"UPDATE {TABLE} SET copied = 0 WHERE id = {locked}")


def test_a_row_that_is_rolled_back_is_never_archived(either_stage: PrivateSite) -> None:
    stage = either_stage
    doomed = stage.file("rolled-back.npy")
    # Given a server where a session sees what others have not committed, unless it says otherwise,
    with (
        default_isolation(stage.server, "READ UNCOMMITTED"),
        contextlib.closing(stage.connect(autocommit=False)) as connection,
        connection.cursor() as cursor,
    ):
        # and a transaction that has registered a file,
        insert(cursor, [stage.values(doomed)])
        (later,) = stage.register(stage.file("committed.npy"))
        # when sweeps and stream have found all there is,
        with stage.service() as service:
            service.wait_settled()
            stage.wait_archived(later)
            (streamed,) = stage.register(stage.file("streamed.npy"))
            stage.wait_archived(streamed)
            connection.rollback()
    # then the file of that row was not among it.
    assert not stage.place(doomed).exists()
    assert len(stage.archived_files()) == 2


@pytest.mark.parametrize(
    "versioning",
    [
        "ADD SYSTEM VERSIONING",
        (
            "ADD since TIMESTAMP(6) GENERATED ALWAYS AS ROW START, ADD until TIMESTAMP(6) GENERATED ALWAYS AS ROW END, "
            "ADD PERIOD FOR SYSTEM_TIME(since, until), ADD SYSTEM VERSIONING"
        ),
    ],
    ids=["hidden columns", "visible columns"],
)
def test_a_system_versioned_table_works_as_any_other(stage: PrivateSite, versioning: str) -> None:
    # Given MariaDB's table that keeps its history itself,
    stage.sql(f"ALTER TABLE {TABLE} {versioning}")
    stage.server.execute(f"GRANT INDEX ON {stage.database}.* TO '{stage.user}'@'%'")
    made = stage.command("init-db")
    assert (made.returncode, made.stdout.splitlines()[0]) == (0, f"-- table {TABLE}: exists"), made.stderr
    kind = "SELECT table_type FROM information_schema.tables WHERE table_schema = %s AND table_name = %s"
    assert stage.sql(kind, (stage.database, TABLE)) == [("SYSTEM VERSIONED",)]
    with stage.service(sweep_interval=3600) as service:
        service.wait_settled()
        # when a file is missing and another one there,
        missing = stage.file("missing.npy")
        missing.path.unlink()
        (bad,) = stage.register(missing)
        stage.wait_attempts(bad, 1)
        (good,) = stage.register(stage.file("good.npy"))
        stage.wait_archived(good)
        service.wait_metric(1, "copies_total", result="archived")
        (last,) = stage.register(stage.file("last.npy"))
        stage.wait_archived(last)
        # then the stream tells of each once, and our own writes wake nobody: they would end a file's wait for its next attempt.
        eventually(lambda: service.metric("stream_events_total", outcome="echo") >= 3, "it has read our own writes")
        told = [service.metric("stream_events_total", outcome=outcome) for outcome in ("offered", "known")]
        assert sum(told) == 3
        checked = ask(stage, "check", *stage.flags())
        assert "FAIL" not in checked.stdout, checked.stdout
    # A delete and a retry arrive as updates.
    assert ask(stage, "retry", "--id", str(bad), "--yes").returncode == 0
    assert stage.row(bad).attempts == 0


def test_retry_and_ignore_where_the_server_takes_an_empty_text_for_null(
    mariadb: DatabaseServer, ssh_server: SshServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mode = mariadb.execute("SELECT @@GLOBAL.sql_mode")[0][0]
    try:
        for odd in (f"{mode},EMPTY_STRING_IS_NULL", "EMPTY_STRING_IS_NULL", "ORACLE,EMPTY_STRING_IS_NULL"):
            mariadb.execute("SET GLOBAL sql_mode = %s", (odd,))
            with new_private_site(mariadb, ssh_server, tmp_path_factory.mktemp("mode")) as stage:
                stage.server.execute(f"GRANT INDEX ON {stage.database}.* TO '{stage.user}'@'%'")
                assert stage.command("init-db").returncode == 0
                (id_,) = stage.register(stage.file("file.npy"), failed_copy_attempts=5)
                for arguments in (["retry", "--id", str(id_)], ["ignore", str(id_)]):
                    stage.sql(f"UPDATE {TABLE} SET failed_copy_attempts = 5")
                    done = ask(stage, *arguments, "--yes")
                    assert (done.returncode, done.stderr) == (0, "")
                assert stage.row(id_).attempts == 2000
                assert [entry["result"] for entry in stage.history(id_)] == ["retried", "ignored"]
    finally:
        mariadb.execute("SET GLOBAL sql_mode = %s", (mode,))


def test_a_history_that_is_granted_later_is_kept_from_then_on(stage: PrivateSite) -> None:
    account = f"'{stage.user}'@'%'"
    stage.server.execute(f"REVOKE CREATE, SELECT, INSERT, DELETE ON {stage.database}.{HISTORY} FROM {account}")
    with stage.service(sweep_interval=1) as service:
        assert "GRANT CREATE, SELECT, INSERT, DELETE ON" in service.status()["history"]
        stage.server.execute(f"GRANT CREATE, SELECT, INSERT, DELETE ON {stage.database}.{HISTORY} TO {account}")
        eventually(lambda: service.status()["history"] == "kept", "the history is kept")


@pytest.mark.usefixtures("quick_stream")
def test_a_trigger_that_names_a_missing_table(either_stage: PrivateSite) -> None:
    stage = either_stage
    # Given a trigger whose table somebody has dropped,
    stage.sql("CREATE TABLE audit (id INT)")
    stage.sql(f"CREATE TRIGGER audited AFTER UPDATE ON {TABLE} FOR EACH ROW INSERT INTO audit VALUES (NEW.id)")
    stage.sql("DROP TABLE audit")
    with stage.service() as service:
        scenario = StreamScenario(stage, service)
        ids = scenario.register()
        # then the service does not miss the table of files,
        eventually(lambda: "audit" in service.get("/readyz")[1], "it says what is missing")
        said = service.get("/readyz")[1]
        assert "a trigger names it" in said
        assert "renamed" not in said
        # and writes back what it has archived as soon as the trigger works.
        stage.sql("CREATE TABLE audit (id INT)")
        stage.wait_archived(*ids)
        scenario.ends_well()


def test_a_result_that_the_database_refuses_is_set_aside_named_and_tried_again_on_request(
    either_stage: PrivateSite,
) -> None:
    stage = either_stage
    # Given a table where a path may be there once, a file that was registered twice,
    stage.sql(f"ALTER TABLE {TABLE} ADD UNIQUE KEY one_path (path)")
    file = stage.file("twice.npy")
    twin = stage.sources.parent / "twin"
    twin.symlink_to(stage.sources)
    # and a trigger that lets nobody count a failed attempt of another file,
    missing = stage.file("missing.npy")
    missing.path.unlink()
    stage.sql(
        f"CREATE TRIGGER keep BEFORE UPDATE ON {TABLE} FOR EACH ROW IF NEW.failed_copy_attempts = 1 THEN "
        "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no counting here'; END IF"
    )

    def stuck() -> set[int]:
        rows = stage.sql(f"SELECT file_id FROM {HISTORY} WHERE result = 'not_recordable'")
        return {id_ for (id_,) in rows}

    def tries() -> float:
        return service.metric("copy_failures_total", reason="not_recordable")

    with stage.service(retry_delays="0.05s", sweep_interval=1) as service:
        (first,) = stage.register(file)
        stage.wait_archived(first)
        (second,) = stage.register(SourceFile(twin / file.path.name, file.content))
        (uncounted,) = stage.register(missing)
        # when their results were refused a few times,
        eventually(lambda: stuck() == {second, uncounted}, "both are set aside")
        service.wait_metric(2, "not_recordable_files")
        assert tries() == 10
        # then sweeps pass over them, others go on, and each look names them.
        stage.wait_archived(*stage.register(stage.file("other.npy")))
        began = service.metric("last_sweep_timestamp_seconds")
        eventually(lambda: service.metric("last_sweep_timestamp_seconds") > began + 2, "sweeps have looked")
        assert tries() == 10
        assert service.get("/healthz")[0] == 200
        port = ("--http-port", str(service.port))
        assert "2 not recordable" in ask(stage, "status", *port).stdout
        said = ask(stage, "why", str(second), *port).stdout
        assert "It is in its place in the archive, but the database refuses to record that" in said
        assert "Duplicate entry" in said
        assert f"cdc-archiver retry --id {second}" in said
        assert "It was tried, but the database refuses to record that" in ask(stage, "why", str(uncounted)).stdout
        # When the cause is removed, and an operator asks for another try, it is made;
        stage.sql(f"ALTER TABLE {TABLE} DROP KEY one_path")
        done = ask(stage, "retry", "--reason", "not_recordable", "--target", TARGET, "--yes")
        assert "retried 2 files" in done.stdout
        stage.wait_archived(second)
        # and a row that is deleted is forgotten.
        stage.sql(f"DELETE FROM {TABLE} WHERE id = {uncounted}")
        service.wait_metric(0, "not_recordable_files")
    assert stage.history(second)[-1]["result"] == "adopted"


def test_rows_that_nobody_archives_are_named(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_watch, "LOOK", 0.0)
    monkeypatch.setattr(table_watch, "UNHELD", 2.0)
    # Given rows of an instance_id that is misspelt, of one that another service has, and of one that is named as another's,
    for name in ("typo", "second", "elsewhere"):
        stage.register(stage.file(f"{name}.npy"), instance_id=name)
    with (
        stage.service(target=("second",), host=""),
        stage.service(sweep_interval=0.5, other_targets=("elsewhere",)) as service,
    ):
        # when nobody has held a lock for a while, then those rows are named, and no others,
        eventually(lambda: service.metric("unclaimed_files", instance_id="typo") == 1, "the rows are named")
        assert service.metric("unclaimed_files") == 1
        status, body = service.get("/readyz")
        assert (status, body.splitlines()[0]) == (200, "streaming")
        assert "1 pending rows of the instance_id 'typo' are taken by no service; fix: " in body
        assert "'typo'" in ask(stage, "status", "--http-port", str(service.port)).stdout
        # until somebody corrects them.
        stage.sql(f"UPDATE {TABLE} SET instance_id = '{TARGET}' WHERE instance_id = 'typo'")
        eventually(lambda: service.metric("unclaimed_files") == 0, "none are left")


def test_an_empty_table_that_is_chosen_while_another_has_pending_rows(stage: PrivateSite) -> None:
    # Given pending rows in a table of an older version, and an empty one that comes first,
    stage.register(*stage.files(2))
    stage.sql(f"RENAME TABLE {TABLE} TO {TABLE}_v1")
    stage.sql(f"CREATE TABLE {TABLE} LIKE {TABLE}_v1")
    stage.server.execute(f"GRANT SELECT, UPDATE ON {stage.database}.{TABLE}_v1 TO '{stage.user}'@'%'")
    with stage.service() as service:
        # then each look says so.
        eventually(lambda: service.metric("other_table_pending_files", table=f"{TABLE}_v1") == 2, "it is counted")
        said = (
            f"the table {TABLE} is empty, and {TABLE}_v1 has 2 pending rows of these targets; fix: --table {TABLE}_v1"
        )
        assert said in service.get("/readyz")[1]
        assert said in ask(stage, "status", "--http-port", str(service.port)).stdout
