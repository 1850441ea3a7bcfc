"""`check` on real servers, of the database: each fault is found, and what fixes it does."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from files_table import TABLE
from findings import not_ok, settings, the_only
from private_database import PASSWORD, PrivateDatabase
from pymysqlreplication import binlogstream

from cdc_archiver.database import schema
from cdc_archiver.database.connections import Database
from cdc_archiver.errors import ExitStatus
from cdc_archiver.preflight import CheckStatus, Finding, database_findings


def ask(world: PrivateDatabase, **flags: Any) -> list[Finding]:
    """The findings about the database."""
    chosen = settings(world, **flags)
    database = Database(chosen)
    try:
        return database_findings(database, chosen)
    finally:
        database.close()


def test_a_good_site_has_nothing_to_fix(good: PrivateDatabase) -> None:
    findings = ask(good)

    assert not_ok(findings) == []
    said = {finding.subject: finding.text for finding in findings}
    assert {"database", "clock", "grants", "table", "index", "stream", "history"} == said.keys()
    assert ("MariaDB" if good.server.kind == "mariadb" else "MySQL") in said["database"]


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a database.

    Attributes:
        broken_by: statements of root's; {u}, {d} and {t} stand for account, database and table.
        subject: of the one finding.
        says: a pattern in its text.
        fix: a pattern that its statement has.
    """

    broken_by: tuple[str, ...]
    subject: str
    status: CheckStatus
    says: str
    fix: str


RIGHTS, FAIL, WARN = "ON {d}.{t} FROM {u}", CheckStatus.FAILURE, CheckStatus.WARNING
FAULTS = {
    "update-not-granted": Fault((f"REVOKE UPDATE {RIGHTS}",), "grants", FAIL, "lacks UPDATE on", "GRANT SELECT, UPDATE ON"),
    "select-not-granted": Fault((f"REVOKE SELECT {RIGHTS}",), "grants", FAIL, "lacks SELECT", "GRANT SELECT, UPDATE ON"),
    "some-columns-granted": Fault(
        (f"REVOKE UPDATE {RIGHTS}", "GRANT UPDATE (path, copied) ON {d}.{t} TO {u}"), "grants", FAIL, "UPDATE", "GRANT"
    ),
    "nothing-granted-on-the-table": Fault(
        (f"REVOKE SELECT, UPDATE {RIGHTS}",), "grants", FAIL, "has no right on it", r"GRANT SELECT, UPDATE ON `\w+`\.\* TO"
    ),
    "replication-not-granted": Fault(
        ("REVOKE REPLICATION SLAVE ON *.* FROM {u}",), "stream", WARN, "REPLICATION SLAVE.*polled every 5 s", "GRANT REPLIC"
    ),
    "statement-format": Fault(
        ("SET GLOBAL binlog_format = 'STATEMENT'",), "stream", WARN, "STATEMENT", "SET GLOBAL binlog_format"
    ),
    "myisam": Fault(("ALTER TABLE {t} ENGINE = MyISAM",), "table", FAIL, "MyISAM", "ENGINE = InnoDB"),
    "column-missing": Fault(
        ("ALTER TABLE {t} DROP COLUMN pub_id",), "table", FAIL, "no column pub_id", r"ADD COLUMN pub_id VARCHAR\(32\)"
    ),
    "key-missing": Fault(
        ("ALTER TABLE {t} DROP COLUMN id",), "table", FAIL, "no column id", "ADD COLUMN id INTEGER NOT NULL AUTO_INCREMENT"
    ),
    "counter-too-narrow": Fault(
        ("ALTER TABLE {t} MODIFY failed_copy_attempts TINYINT",), "table", FAIL, "tinyint", "MODIFY COLUMN failed_copy"
    ),
    "md5-in-hexadecimal": Fault(
        ("ALTER TABLE {t} MODIFY md5sum CHAR(32)",), "table", FAIL, "md5sum .* is a char", r"MODIFY COLUMN md5sum BINARY\(16\)"
    ),
    "index-missing": Fault(
        ("DROP INDEX cdc_archiver_pending ON {t}",), "index", WARN, "whole table", "CREATE INDEX .*init-db"
    ),
    "side-table-not-granted": Fault(
        ("REVOKE CREATE, SELECT, INSERT, DELETE ON {d}.cdc_archiver_history FROM {u}",),
        "history",
        WARN,
        "lacks .* on the side table",
        "GRANT CREATE, SELECT, INSERT, DELETE ON",
    ),
    "side-table-read-only": Fault(
        ("CREATE TABLE cdc_archiver_history (file_id BIGINT)", "REVOKE CREATE, INSERT ON {d}.cdc_archiver_history FROM {u}"),
        "history",
        WARN,
        "lacks INSERT on the side table",
        "GRANT CREATE, SELECT, INSERT, DELETE ON",
    ),
    "server-read-only": Fault(
        ("SET GLOBAL read_only = ON",), "database", FAIL, "read-only", "SET GLOBAL read_only = OFF"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_the_statement_that_is_named_mends_the_fault(site: PrivateDatabase, name: str) -> None:
    fault = FAULTS[name]
    with _globals_kept(site, *re.findall(r"SET GLOBAL (\w+)", " ".join(fault.broken_by))):
        if name == "key-missing":
            site.sql(f"DROP INDEX cdc_archiver_pending ON {TABLE}", f"ALTER TABLE {TABLE} MODIFY id INT")
        site.sql(*(each.format(u=f"'{site.user}'@'%'", d=site.name, t=TABLE) for each in fault.broken_by))

        findings = not_ok(ask(site))
        if name == "key-missing":  # the index went with its column
            findings = [finding for finding in findings if finding.subject != "index"]
        found = the_only(findings)

        assert (found.subject, found.status) == (fault.subject, fault.status)
        assert re.search(fault.says, found.text)
        assert re.search(fault.fix, found.fix)
        if name == "md5-in-hexadecimal":
            return  # what it says of the column is all; the values would have to be converted
        site.sql(found.fix)
        if name == "key-missing":
            site.sql(schema.index_statement(TABLE))
        assert not_ok(ask(site)) == []


def test_compression_stands_in_the_streams_way(site: PrivateDatabase) -> None:
    variable = "log_bin_compress" if site.server.kind == "mariadb" else "binlog_transaction_compression"
    with _globals_kept(site, variable):
        site.sql(f"SET GLOBAL {variable} = ON")

        found = the_only(ask(site))

        assert (found.subject, found.status) == ("stream", CheckStatus.WARNING)
        site.sql(found.fix)
        assert not_ok(ask(site)) == []


def test_a_database_that_we_may_not_enter(site: PrivateDatabase) -> None:
    site.sql(f"DROP USER '{site.user}'@'%'", f"CREATE USER '{site.user}'@'%' IDENTIFIED BY '{PASSWORD}'")

    found = the_only(ask(site))
    assert (found.subject, found.exit_status) == ("grants", ExitStatus.USAGE)
    site.sql(found.fix)

    assert [each.status for each in not_ok(ask(site))] == [
        CheckStatus.WARNING,
        CheckStatus.WARNING,
    ]  # stream and history


def test_a_database_that_is_not_there(site: PrivateDatabase) -> None:
    absent = f"{site.name}_absent"
    site.sql(f"GRANT SELECT, UPDATE ON {absent}.* TO '{site.user}'@'%'")

    found = the_only(ask(site, mysql_database=absent))
    assert (found.subject, found.exit_status) == ("database", ExitStatus.USAGE)
    site.sql(found.fix)
    try:
        found = the_only(ask(site, mysql_database=absent))
    finally:
        site.sql(f"DROP DATABASE {absent}")

    assert (found.subject, found.text) == (
        "table",
        f"there is no table pysmurf_files (nor pysmurf_files_v<N>) in the database {absent}",
    )
    assert "init-db" in found.fix


def test_a_view_is_no_table_of_files(site: PrivateDatabase) -> None:
    site.sql(
        f"CREATE VIEW seen AS SELECT * FROM {TABLE}", f"GRANT SELECT, UPDATE ON {site.name}.seen TO '{site.user}'@'%'"
    )

    assert "is a view" in the_only(ask(site, table="seen")).text


@pytest.mark.parametrize(
    ("flags", "says", "exit_status"),
    [
        ({"mysql_password": "wrong"}, "Access denied", ExitStatus.USAGE),
        ({"mysql_user": "nobody"}, "Access denied", ExitStatus.USAGE),
        ({"mysql_password_file": "/none/password"}, "cannot be read from /none/password", ExitStatus.USAGE),
        ({"mysql_port": 1}, "refused", ExitStatus.UNREACHABLE),
        ({"mysql_host": "no-such-host.invalid"}, "no-such-host.invalid", ExitStatus.UNREACHABLE),
    ],
)
def test_no_way_in(good: PrivateDatabase, flags: dict[str, Any], says: str, exit_status: ExitStatus) -> None:
    found = the_only(ask(good, **flags))

    assert says in found.text
    assert (found.status, found.exit_status) == (CheckStatus.FAILURE, exit_status)


def test_the_newest_version_of_the_table_is_taken_and_older_ones_with_files_are_named(site: PrivateDatabase) -> None:
    site.sql(
        f"RENAME TABLE {TABLE} TO {TABLE}_v2",
        f"CREATE TABLE {TABLE}_v10 LIKE {TABLE}_v2",
        f"INSERT INTO {TABLE}_v2 (path, md5sum, instance_id) VALUES ('/data/old', 0x00112233445566778899AABBCCDDEEFF, 'monitor')",
        f"GRANT SELECT, UPDATE ON {site.name}.* TO '{site.user}'@'%'",
    )

    findings = ask(site)

    assert "SELECT and UPDATE on the table pysmurf_files_v10" in {finding.text for finding in findings}
    found = the_only(findings)
    assert "pysmurf_files_v2" in found.text
    assert "--table pysmurf_files_v2 --reconcile" in found.fix


def test_a_server_id_that_clashes(good: PrivateDatabase) -> None:
    # The server's own.
    found = the_only(ask(good, server_id=1))
    assert (found.subject, found.status) == ("server_id", CheckStatus.FAILURE)
    assert found.fix.startswith("--server-id 2 ")
    # Nobody's.
    assert not_ok(ask(good, server_id=77001)) == []


@pytest.mark.filterwarnings("ignore:.db. is deprecated")  # mysql-replication 1.0.17 with PyMySQL 1.2
def test_a_server_id_that_another_replica_has(site: PrivateDatabase) -> None:
    if site.server.kind == "mariadb":
        site.sql(f"GRANT REPLICATION MASTER ADMIN ON *.* TO '{site.user}'@'%'")
    where = {"host": "127.0.0.1", "port": site.server.port, "user": site.user, "password": PASSWORD}
    make: Any = binlogstream.BinLogStreamReader
    reader = make(
        connection_settings=where, server_id=77002, blocking=True, enable_logging=False, report_slave="another"
    )
    try:
        reader.fetchone()
        found = the_only(ask(site, server_id=77002))
    finally:
        reader.close()

    assert (found.subject, found.status) == ("server_id", CheckStatus.FAILURE)


def test_the_time_zone_is_said(good: PrivateDatabase) -> None:
    said = [finding.text for finding in ask(good, db_time_zone="+05:30") if finding.subject == "clock"]

    assert said == ["the column timestamp is read in the zone +05:30 (+05:30), as --db-time-zone says"]


def test_a_question_that_breaks_is_a_finding_and_the_others_are_asked(
    good: PrivateDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bool:
        raise ZeroDivisionError("so it is")

    monkeypatch.setattr(schema, "has_index", broken)
    findings = ask(good)

    found = the_only(findings)
    assert (found.subject, found.exit_status) == ("index", ExitStatus.INTERNAL_ERROR)
    assert "so it is" in found.text
    assert "stream" in {finding.subject for finding in findings}


def test_asking_changes_nothing(good: PrivateDatabase) -> None:
    before = good.sql("SHOW TABLES"), _binary_log_end(good)
    ask(good)

    assert (good.sql("SHOW TABLES"), _binary_log_end(good)) == before


@contextmanager
def _globals_kept(world: PrivateDatabase, *variables: str) -> Iterator[None]:
    with ExitStack() as stack:
        for variable in variables:
            value = world.sql(f"SELECT @@GLOBAL.{variable}")[0][0]
            stack.callback(world.sql, f"SET GLOBAL {variable} = {value!r}")
        yield


def _binary_log_end(world: PrivateDatabase) -> object:
    return world.sql("SHOW BINLOG STATUS" if world.server.kind == "mariadb" else "SHOW BINARY LOG STATUS")[0][:2]
