"""What real servers say of themselves, and what of it stands in a stream's way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from files_table import TABLE
from private_database import PASSWORD, PrivateDatabase, new_private_database
from proxy import Proxy

from cdc_archiver.database import connections, server_features
from cdc_archiver.database.server_features import Obstacle, Position, ServerKind
from cdc_archiver.errors import Misconfigured, StreamUnavailable
from cdc_archiver.sandbox import DatabaseServer, open_database


@contextlib.contextmanager
def account(world: PrivateDatabase, *grants: str) -> Iterator[str]:
    """An account with these statements' grants, in which {user} stands for it."""
    name = f"somebody_{world.name}"
    world.sql(f"CREATE USER '{name}'@'%' IDENTIFIED BY '{PASSWORD}'")
    world.sql(f"GRANT SELECT ON {world.name}.* TO '{name}'@'%'")
    for grant in grants:
        world.sql(grant.format(user=f"'{name}'@'%'"))
    try:
        yield name
    finally:
        world.sql(f"DROP USER '{name}'@'%'")


def obstacles(world: PrivateDatabase, user: str = "") -> list[Obstacle]:
    with world.connection(user) as connection:
        return server_features.stream_obstacles(connection, server_features.identify(connection), world.name, TABLE)


def test_the_server_is_identified(world: PrivateDatabase) -> None:
    with world.connection() as connection:
        server = server_features.identify(connection)
    assert server.kind == world.server.kind
    expected = {ServerKind.MARIADB: (10, 11), ServerKind.MYSQL: (9, 0)}[server.kind]
    assert server.version >= (*expected, 0)
    assert str(server).startswith({"mariadb": "MariaDB 1", "mysql": "MySQL 9"}[world.server.kind])
    assert server.account == f"'{world.user}'@'%'"


def test_the_position_grows_with_what_is_written(world: PrivateDatabase) -> None:
    with world.connection() as connection:
        server = server_features.identify(connection)
        before = server_features.position(connection, server)
        world.insert()
        after = server_features.position(connection, server)
        world.sql("FLUSH BINARY LOGS")
        next_file = server_features.position(connection, server)
    assert before < after < next_file
    assert str(before) == f"{before.file}:{before.offset}"
    assert before.file.startswith("binlog.0")


def test_positions_are_ordered_by_number_not_by_letters() -> None:
    assert Position("binlog.999999", 900) < Position("binlog.1000000", 4)
    assert Position("binlog.000002", 4) > Position("binlog.000001", 5000)
    assert Position("binlog.000001", 90) < Position("binlog.000001", 100)
    assert Position("binlog.000001", 90) == Position("binlog.000001", 90)


def test_the_account_of_the_docs_has_no_obstacle(world: PrivateDatabase) -> None:
    assert obstacles(world) == []


# Grants.


@pytest.mark.parametrize(
    ("grants", "missing"),
    [
        ([], "REPLICATION SLAVE, REPLICATION CLIENT"),
        (["GRANT REPLICATION CLIENT ON *.* TO {user}"], "REPLICATION SLAVE"),
        (["GRANT REPLICATION SLAVE ON *.* TO {user}"], "REPLICATION CLIENT"),
        (["GRANT REPLICATION SLAVE ON *.* TO {user}", "GRANT SUPER ON *.* TO {user}"], ""),
        (["GRANT ALL PRIVILEGES ON *.* TO {user}"], ""),
        (["GRANT ALL PRIVILEGES ON *.* TO {user} WITH GRANT OPTION"], ""),
        (["GRANT ALL PRIVILEGES ON files_nobody.* TO {user}"], "REPLICATION SLAVE, REPLICATION CLIENT"),
    ],
)
def test_a_missing_grant_is_named_with_the_statement_that_gives_it(
    world: PrivateDatabase, grants: list[str], missing: str
) -> None:
    with account(world, *grants) as name:
        found = obstacles(world, name)
        assert [obstacle.fix for obstacle in found] == ([f"GRANT {missing} ON *.* TO '{name}'@'%'"] if missing else [])
        assert all(obstacle.fatal for obstacle in found)
        for obstacle in found:
            world.sql(obstacle.fix)
        assert obstacles(world, name) == [], "the statement fixes it"


def test_an_admin_privilege_does_not_count_as_permission_to_read(mariadb: DatabaseServer) -> None:
    """MariaDB has names that begin alike."""
    with (
        new_private_database(mariadb) as world,
        account(world, "GRANT REPLICATION SLAVE ADMIN, BINLOG MONITOR ON *.* TO {user}") as name,
    ):
        assert [obstacle.fix for obstacle in obstacles(world, name)] == [
            f"GRANT REPLICATION SLAVE ON *.* TO '{name}'@'%'"
        ]


def test_with_roles_no_grant_is_reported_as_missing(world: PrivateDatabase) -> None:
    role = f"role_{world.name}"
    world.sql(f"CREATE ROLE {role}")
    try:
        with account(world, f"GRANT {role} TO {{user}}") as name:
            assert obstacles(world, name) == []
    finally:
        world.sql(f"DROP ROLE {role}")


def test_without_the_grant_there_is_no_position(world: PrivateDatabase) -> None:
    with account(world) as name, world.connection(name) as connection:
        server = server_features.identify(connection)
        with pytest.raises(StreamUnavailable) as caught:
            server_features.position(connection, server)
    assert caught.value.hint == f"GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO '{name}'@'%'"


# Settings and the table.


@pytest.mark.parametrize("value", ["STATEMENT", "MIXED"])
def test_a_log_of_statements_is_an_obstacle(world: PrivateDatabase, value: str) -> None:
    with world.globally("binlog_format", f"'{value}'"):
        [obstacle] = obstacles(world)
    assert value in obstacle.what
    assert obstacle.fix == "SET GLOBAL binlog_format = 'ROW'"
    assert obstacle.fatal


def test_compression_is_an_obstacle(world: PrivateDatabase) -> None:
    variable = {"mysql": "binlog_transaction_compression", "mariadb": "log_bin_compress"}[world.server.kind]
    with world.globally(variable, "ON"):
        [obstacle] = obstacles(world)
    assert obstacle.fix == f"SET GLOBAL {variable} = OFF"
    assert obstacle.fatal


def test_another_storage_engine_is_an_obstacle_until_the_table_is_changed(world: PrivateDatabase) -> None:
    world.sql(f"ALTER TABLE {TABLE} ENGINE = MyISAM")
    [obstacle] = obstacles(world)
    assert "MyISAM" in obstacle.what
    assert obstacle.fatal
    world.sql(obstacle.fix)
    assert obstacles(world) == []


def test_the_key_is_found_where_it_is(world: PrivateDatabase) -> None:
    with world.connection() as connection:
        key = server_features.key_column(connection, world.name, TABLE)
        assert (key.schema, key.table, key.name, key.ordinal, key.columns) == (world.name, TABLE, "id", 0, 16)
        world.sql(f"ALTER TABLE {TABLE} ADD COLUMN number INT FIRST, RENAME COLUMN id TO row_id")
        key = server_features.key_column(connection, world.name, TABLE)
        assert (key.name, key.ordinal, key.columns) == ("row_id", 1, 17)


@pytest.mark.parametrize(
    ("definition", "complaint"),
    [
        ("", "does not exist, or this user may not see it"),
        ("(id INT)", "not a single integer column"),
        ("(id VARCHAR(20) PRIMARY KEY)", "not a single integer column"),
        ("(id INT, site INT, PRIMARY KEY (id, site))", "not a single integer column"),
    ],
)
def test_a_table_without_one_integer_key_is_refused(world: PrivateDatabase, definition: str, complaint: str) -> None:
    world.sql(f"DROP TABLE {TABLE}")
    if definition:
        world.sql(f"CREATE TABLE {TABLE} {definition}")
    with world.connection() as connection, pytest.raises(Misconfigured, match=complaint):
        server_features.key_column(connection, world.name, TABLE)


@pytest.mark.parametrize("kind", ["mariadb", "mysql"])
def test_start_options_that_exclude_our_database_from_the_log(kind: str, tmp_path: Path) -> None:
    server = open_database("mysql" if kind == "mysql" else "mariadb", tmp_path / kind)
    server.options = ("--binlog-do-db=elsewhere",)
    try:
        server.start()
        with new_private_database(server) as world:
            [only] = obstacles(world)
            assert "elsewhere" in only.what
            assert f"binlog_do_db={world.name}" in only.fix
            assert only.fatal
            server.stop()
            server.options = (f"--binlog-ignore-db={world.name}",)
            server.start()
            [without] = obstacles(world)
            assert f"binlog_ignore_db={world.name}" in without.fix
            assert without.fatal
    finally:
        server.kill()


def test_an_idle_connection_on_a_silent_link_delays_its_next_user_only_briefly(
    mariadb: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a firewall does it that forgets idle connections: the next question on each would wait for a minute."""
    monkeypatch.setattr(connections, "PING_TIMEOUT", 0.5)
    with new_private_database(mariadb) as world, Proxy(mariadb.port) as proxy:
        database = world.database(port=proxy.port)
        with database.connect() as first, database.connect() as second:
            assert first.scalar(sa.text("SELECT 1")) == second.scalar(sa.text("SELECT 1")) == 1
        proxy.freeze()
        proxy.thaw()  # new connections pass, the old ones stay silent
        began = time.monotonic()
        with database.connect() as first, database.connect() as second:
            assert first.scalar(sa.text("SELECT 1")) == second.scalar(sa.text("SELECT 1")) == 1
        assert time.monotonic() - began < connections.ANSWER_TIMEOUT / 2
        database.close()


def test_a_server_that_answers_slower_than_the_ping_timeout_is_usable(
    mariadb: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New connections have just been answered: they are not asked, and so none is thrown away for being slow."""
    with new_private_database(mariadb) as world, Proxy(mariadb.port) as proxy:
        database = world.database(port=proxy.port)
        with database.connect() as connection:
            assert connection.scalar(sa.text("SELECT 1")) == 1
        monkeypatch.setattr(connections, "PING_TIMEOUT", 0.1)
        proxy.delay = 0.15
        with database.connect() as connection:
            assert connection.scalar(sa.text("SELECT 1")) == 1
        database.close()


def test_connections_without_tls_settings_share_a_context_and_still_use_tls(world: PrivateDatabase) -> None:
    """PyMySQL would read the system's certificates for each of them."""
    database = world.database()
    with contextlib.closing(database.raw_connection()) as one, contextlib.closing(database.raw_connection()) as other:
        assert vars(one)["ctx"] is vars(other)["ctx"]
        with one.cursor() as cursor:
            cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
            ((_, cipher),) = cursor.fetchall()
        assert bool(cipher) == (world.server.kind == "mysql")
    database.close()
