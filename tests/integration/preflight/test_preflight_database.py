"""`check` of the database, on real servers: each fault is found, and its fix works."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from check_findings import not_ok, settings, the_only
from files_table import TABLE
from healthy_site import healthy_database
from private_database import PASSWORD, PrivateDatabase
from pymysqlreplication import binlogstream

from cdc_archiver.database import schema
from cdc_archiver.database.connections import Database
from cdc_archiver.errors import ExitStatus
from cdc_archiver.preflight import CheckStatus, Finding, database_findings
from cdc_archiver.sandbox import MariaDb


def check(world: PrivateDatabase, **flags: Any) -> list[Finding]:
    """The findings about the database."""
    chosen = settings(world, **flags)
    database = Database(chosen)
    try:
        return database_findings(database, chosen)
    finally:
        database.close()


def test_a_good_site_needs_no_fix(good: PrivateDatabase) -> None:
    findings = check(good)

    assert not_ok(findings) == []
    texts = {finding.subject: finding.text for finding in findings}
    assert {"database", "clock", "grants", "table", "index", "stream", "history", "side tables"} == texts.keys()
    assert ("MariaDB" if good.server.kind == "mariadb" else "MySQL") in texts["database"]


@dataclass(frozen=True)
class Fault:
    """A fault of a database.

    Attributes:
        caused_by: statements of root's; {u}, {d} and {t} stand for account, database and table.
        subject: of the one finding.
        text: a pattern in its text.
        fix: a pattern in the statement that fixes it.
    """

    caused_by: tuple[str, ...]
    subject: str
    status: CheckStatus
    text: str
    fix: str


ON_TABLE_FROM_USER, FAIL, WARN = "ON {d}.{t} FROM {u}", CheckStatus.FAILURE, CheckStatus.WARNING
FAULTS = {
    "update-not-granted": Fault((f"REVOKE UPDATE {ON_TABLE_FROM_USER}",), "grants", FAIL, "lacks UPDATE on", "GRANT SELECT, UPDATE ON"),
    "select-not-granted": Fault((f"REVOKE SELECT {ON_TABLE_FROM_USER}",), "grants", FAIL, "lacks SELECT", "GRANT SELECT, UPDATE ON"),
    "some-columns-granted": Fault(
        (f"REVOKE UPDATE {ON_TABLE_FROM_USER}", "GRANT UPDATE (path, copied) ON {d}.{t} TO {u}"), "grants", FAIL, "UPDATE", "GRANT"
    ),
    "nothing-granted-on-the-table": Fault(
        (f"REVOKE SELECT, UPDATE {ON_TABLE_FROM_USER}",), "grants", FAIL, "has no privilege on it", r"GRANT SELECT, UPDATE ON `\w+`\.\* TO"
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
        ("ALTER TABLE {t} MODIFY md5sum CHAR(32)",), "table", FAIL, "md5sum .* has the unsuitable type char", r"MODIFY COLUMN md5sum BINARY\(16\)"
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
    "timecodes-not-granted": Fault(
        ("REVOKE UPDATE ON {d}.cdc_archiver_timecodes FROM {u}",),
        "side tables",
        WARN,
        "lacks privileges on cdc_archiver_timecodes: files are archived all the same",
        "GRANT CREATE, SELECT, INSERT, UPDATE ON `files_[0-9]+`.cdc_archiver_timecodes TO",
    ),
    "server-read-only": Fault(
        ("SET GLOBAL read_only = ON",), "database", FAIL, "read-only", "SET GLOBAL read_only = OFF"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_the_statement_in_the_fix_fixes_the_fault(site: PrivateDatabase, name: str) -> None:
    fault = FAULTS[name]
    with _globals_kept(site, *re.findall(r"SET GLOBAL (\w+)", " ".join(fault.caused_by))):
        if name == "key-missing":
            site.sql(f"DROP INDEX cdc_archiver_pending ON {TABLE}", f"ALTER TABLE {TABLE} MODIFY id INT")
        site.sql(*(each.format(u=f"'{site.user}'@'%'", d=site.name, t=TABLE) for each in fault.caused_by))

        findings = not_ok(check(site))
        if name == "key-missing":  # the index went with its column
            findings = [finding for finding in findings if finding.subject != "index"]
        found = the_only(findings)

        assert (found.subject, found.status) == (fault.subject, fault.status)
        assert re.search(fault.text, found.text)
        assert re.search(fault.fix, found.fix)
        if name == "md5-in-hexadecimal":
            return  # only the message is tested: the values would have to be converted
        site.sql(found.fix)
        if name == "key-missing":
            site.sql(schema.index_statement(TABLE))
        assert not_ok(check(site)) == []


def test_sessions_that_may_still_log_statements_are_mentioned(mariadb: MariaDb) -> None:
    """MySQL does not show to an account with few privileges that a variable was set."""
    with healthy_database(mariadb) as site:
        site.sql("SET GLOBAL binlog_format = 'MIXED'", "SET GLOBAL binlog_format = 'ROW'")

        findings = check(site)

    assert not_ok(findings) == []
    (found,) = (finding for finding in findings if finding.subject == "stream")
    assert "reconnect the writers" in found.text


def test_compression_prevents_the_stream(site: PrivateDatabase) -> None:
    variable = "log_bin_compress" if site.server.kind == "mariadb" else "binlog_transaction_compression"
    with _globals_kept(site, variable):
        site.sql(f"SET GLOBAL {variable} = ON")

        found = the_only(check(site))

        assert (found.subject, found.status) == ("stream", CheckStatus.WARNING)
        site.sql(found.fix)
        assert not_ok(check(site)) == []


def test_a_database_that_the_account_may_not_use(site: PrivateDatabase) -> None:
    site.sql(f"DROP USER '{site.user}'@'%'", f"CREATE USER '{site.user}'@'%' IDENTIFIED BY '{PASSWORD}'")

    found = the_only(check(site))
    assert (found.subject, found.exit_status) == ("grants", ExitStatus.USAGE)
    site.sql(found.fix)

    assert [each.status for each in not_ok(check(site))] == [
        CheckStatus.WARNING,
        CheckStatus.WARNING,
        CheckStatus.WARNING,
    ]  # stream, history and side tables


def test_a_missing_database(site: PrivateDatabase) -> None:
    absent = f"{site.name}_absent"
    site.sql(f"GRANT SELECT, UPDATE ON {absent}.* TO '{site.user}'@'%'")

    found = the_only(check(site, mysql_database=absent))
    assert (found.subject, found.exit_status) == ("database", ExitStatus.USAGE)
    site.sql(found.fix)
    try:
        found = the_only(check(site, mysql_database=absent))
    finally:
        site.sql(f"DROP DATABASE {absent}")

    assert (found.subject, found.text) == (
        "table",
        f"there is no table pysmurf_files (nor pysmurf_files_v<N>) in the database {absent}",
    )
    assert "init-db" in found.fix


def test_a_view_is_not_a_table_of_files(site: PrivateDatabase) -> None:
    site.sql(
        f"CREATE VIEW seen AS SELECT * FROM {TABLE}", f"GRANT SELECT, UPDATE ON {site.name}.seen TO '{site.user}'@'%'"
    )

    assert "is a view" in the_only(check(site, table="seen")).text


@pytest.mark.parametrize(
    ("flags", "text", "exit_status"),
    [
        ({"mysql_password": "wrong"}, "Access denied", ExitStatus.USAGE),
        ({"mysql_user": "nobody"}, "Access denied", ExitStatus.USAGE),
        ({"mysql_password_file": "/none/password"}, "cannot be read from /none/password", ExitStatus.USAGE),
        ({"mysql_port": 1}, "refused", ExitStatus.UNREACHABLE),
        ({"mysql_host": "no-such-host.invalid"}, "no-such-host.invalid", ExitStatus.UNREACHABLE),
    ],
)
def test_a_failed_connection(good: PrivateDatabase, flags: dict[str, Any], text: str, exit_status: ExitStatus) -> None:
    found = the_only(check(good, **flags))

    assert text in found.text
    assert (found.status, found.exit_status) == (CheckStatus.FAILURE, exit_status)


def test_the_newest_version_of_the_table_is_used_and_older_ones_with_pending_files_are_reported(
    site: PrivateDatabase,
) -> None:
    site.sql(
        f"RENAME TABLE {TABLE} TO {TABLE}_v2",
        f"CREATE TABLE {TABLE}_v10 LIKE {TABLE}_v2",
        f"INSERT INTO {TABLE}_v2 (path, md5sum, instance_id) VALUES ('/data/old', 0x00112233445566778899AABBCCDDEEFF, 'monitor')",
        f"GRANT SELECT, UPDATE ON {site.name}.* TO '{site.user}'@'%'",
    )

    findings = check(site)

    assert "SELECT and UPDATE on the table pysmurf_files_v10" in {finding.text for finding in findings}
    found = the_only(findings)
    assert "pysmurf_files_v2" in found.text
    assert "--table pysmurf_files_v2 --reconcile" in found.fix


def test_a_server_id_that_clashes(good: PrivateDatabase) -> None:
    # The database server's own id.
    found = the_only(check(good, server_id=1))
    assert (found.subject, found.status) == ("server_id", CheckStatus.FAILURE)
    assert found.fix.startswith("--server-id 2 ")
    # An unused id.
    assert not_ok(check(good, server_id=77001)) == []


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
        found = the_only(check(site, server_id=77002))
    finally:
        reader.close()

    assert (found.subject, found.status) == ("server_id", CheckStatus.FAILURE)


def test_the_time_zone_is_reported(good: PrivateDatabase) -> None:
    texts = [finding.text for finding in check(good, db_time_zone="+05:30") if finding.subject == "clock"]

    assert texts == ["the column timestamp is read in the time zone +05:30 (+05:30), set by --db-time-zone"]


def test_a_check_that_raises_is_a_finding_and_the_others_run(
    good: PrivateDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bool:
        raise ZeroDivisionError("so it is")

    monkeypatch.setattr(schema, "has_index", broken)
    findings = check(good)

    found = the_only(findings)
    assert (found.subject, found.exit_status) == ("index", ExitStatus.INTERNAL_ERROR)
    assert "so it is" in found.text
    assert "stream" in {finding.subject for finding in findings}


def test_checks_change_nothing(good: PrivateDatabase) -> None:
    before = good.sql("SHOW TABLES"), _binary_log_end(good)
    check(good)

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
