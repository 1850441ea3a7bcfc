"""`check` on real servers: each fault is found, and what mends it does."""

import io
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kit import PASSWORD, TABLE, World, new_world
from pymysqlreplication import binlogstream
from rich.console import Console

from cdc_archiver import preflight
from cdc_archiver.database import history, schema
from cdc_archiver.database.engine import Database
from cdc_archiver.errors import ExitStatus
from cdc_archiver.preflight import Finding, Report, Status, database_findings, destination_findings, source_findings
from cdc_archiver.sandbox import NO_PROGRAMS, DatabaseServer, SshServer
from cdc_archiver.settings import Settings, SourceSettings, load
from cdc_archiver.transfer.staging import MARKER, Archive


@contextmanager
def good_world(server: DatabaseServer) -> Iterator[World]:
    """A site where all is as it should be, the index and the right to the side table included."""
    with new_world(server) as made:
        made.sql(schema.index_statement(TABLE))
        made.server.create_archiver_user(made.user, PASSWORD, made.name, table=TABLE, history="cdc_archiver_history")
        yield made


@pytest.fixture(scope="module")
def good(database_server: DatabaseServer) -> Iterator[World]:
    """A good site that no test changes."""
    with good_world(database_server) as made:
        yield made


@pytest.fixture
def world(database_server: DatabaseServer) -> Iterator[World]:
    """A good site for one test to spoil."""
    with good_world(database_server) as made:
        yield made


def settings(world: World | None = None, **flags: Any) -> Settings:
    where = (
        {
            "mysql_port": world.server.port,
            "mysql_database": world.name,
            "mysql_user": world.user,
            "mysql_password": PASSWORD,
        }
        if world
        else {}
    )
    return load(flags={"target": ("monitor",), **where, **flags}, environment={})


def ask(world: World, **flags: Any) -> list[Finding]:
    """The findings about the database."""
    chosen = settings(world, **flags)
    database = Database(chosen)
    try:
        return database_findings(database, chosen)
    finally:
        database.close()


def not_ok(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status is not Status.OK]


def the_only(findings: list[Finding]) -> Finding:
    """The one finding that is not ok. It says how to mend it."""
    wrong = not_ok(findings)
    assert len(wrong) == 1, wrong
    assert wrong[0].mend
    return wrong[0]


# --- the database


def test_a_good_site_has_nothing_to_mend(good: World) -> None:
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
        mend: a pattern that its statement has.
    """

    broken_by: tuple[str, ...]
    subject: str
    status: Status
    says: str
    mend: str


RIGHTS, FAIL, WARN = "ON {d}.{t} FROM {u}", Status.FAILURE, Status.WARNING
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
def test_the_statement_that_is_named_mends_the_fault(world: World, name: str) -> None:
    fault = FAULTS[name]
    with _globals_kept(world, *re.findall(r"SET GLOBAL (\w+)", " ".join(fault.broken_by))):
        if name == "key-missing":
            world.sql(f"DROP INDEX cdc_archiver_pending ON {TABLE}", f"ALTER TABLE {TABLE} MODIFY id INT")
        world.sql(*(each.format(u=f"'{world.user}'@'%'", d=world.name, t=TABLE) for each in fault.broken_by))

        findings = not_ok(ask(world))
        if name == "key-missing":  # the index went with its column
            findings = [finding for finding in findings if finding.subject != "index"]
        found = the_only(findings)

        assert (found.subject, found.status) == (fault.subject, fault.status)
        assert re.search(fault.says, found.text)
        assert re.search(fault.mend, found.mend)
        if name == "md5-in-hexadecimal":
            return  # what it says of the column is all; the values would have to be converted
        world.sql(found.mend)
        if name == "key-missing":
            world.sql(schema.index_statement(TABLE))
        assert not_ok(ask(world)) == []


def test_compression_stands_in_the_streams_way(world: World) -> None:
    variable = "log_bin_compress" if world.server.kind == "mariadb" else "binlog_transaction_compression"
    with _globals_kept(world, variable):
        world.sql(f"SET GLOBAL {variable} = ON")

        found = the_only(ask(world))

        assert (found.subject, found.status) == ("stream", Status.WARNING)
        world.sql(found.mend)
        assert not_ok(ask(world)) == []


def test_a_database_that_we_may_not_enter(world: World) -> None:
    world.sql(f"DROP USER '{world.user}'@'%'", f"CREATE USER '{world.user}'@'%' IDENTIFIED BY '{PASSWORD}'")

    found = the_only(ask(world))
    assert (found.subject, found.exit_status) == ("grants", ExitStatus.USAGE)
    world.sql(found.mend)

    assert [each.status for each in not_ok(ask(world))] == [Status.WARNING, Status.WARNING]  # stream and history


def test_a_database_that_is_not_there(world: World) -> None:
    absent = f"{world.name}_absent"
    world.sql(f"GRANT SELECT, UPDATE ON {absent}.* TO '{world.user}'@'%'")

    found = the_only(ask(world, mysql_database=absent))
    assert (found.subject, found.exit_status) == ("database", ExitStatus.USAGE)
    world.sql(found.mend)
    try:
        found = the_only(ask(world, mysql_database=absent))
    finally:
        world.sql(f"DROP DATABASE {absent}")

    assert (found.subject, found.text) == (
        "table",
        f"there is no table pysmurf_files (nor pysmurf_files_v<N>) in the database {absent}",
    )
    assert "init-db" in found.mend


def test_a_view_is_no_table_of_files(world: World) -> None:
    world.sql(
        f"CREATE VIEW seen AS SELECT * FROM {TABLE}", f"GRANT SELECT, UPDATE ON {world.name}.seen TO '{world.user}'@'%'"
    )

    assert "is a view" in the_only(ask(world, table="seen")).text


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
def test_no_way_in(good: World, flags: dict[str, Any], says: str, exit_status: ExitStatus) -> None:
    found = the_only(ask(good, **flags))

    assert says in found.text
    assert (found.status, found.exit_status) == (Status.FAILURE, exit_status)


def test_the_newest_version_of_the_table_is_taken_and_older_ones_with_files_are_named(world: World) -> None:
    world.sql(
        f"RENAME TABLE {TABLE} TO {TABLE}_v2",
        f"CREATE TABLE {TABLE}_v10 LIKE {TABLE}_v2",
        f"INSERT INTO {TABLE}_v2 (path, md5sum, instance_id) VALUES ('/data/old', 0x00112233445566778899AABBCCDDEEFF, 'monitor')",
        f"GRANT SELECT, UPDATE ON {world.name}.* TO '{world.user}'@'%'",
    )

    findings = ask(world)

    assert "SELECT and UPDATE on the table pysmurf_files_v10" in {finding.text for finding in findings}
    found = the_only(findings)
    assert "pysmurf_files_v2" in found.text
    assert "--table pysmurf_files_v2 --reconcile" in found.mend


def test_a_server_id_that_clashes(good: World) -> None:
    # The server's own.
    found = the_only(ask(good, server_id=1))
    assert (found.subject, found.status) == ("server_id", Status.FAILURE)
    assert found.mend.startswith("--server-id 2 ")
    # Nobody's.
    assert not_ok(ask(good, server_id=77001)) == []


@pytest.mark.filterwarnings("ignore:.db. is deprecated")  # mysql-replication 1.0.17 with PyMySQL 1.2
def test_a_server_id_that_another_replica_has(world: World) -> None:
    if world.server.kind == "mariadb":
        world.sql(f"GRANT REPLICATION MASTER ADMIN ON *.* TO '{world.user}'@'%'")
    where = {"host": "127.0.0.1", "port": world.server.port, "user": world.user, "password": PASSWORD}
    make: Any = binlogstream.BinLogStreamReader
    reader = make(
        connection_settings=where, server_id=77002, blocking=True, enable_logging=False, report_slave="another"
    )
    try:
        reader.fetchone()
        found = the_only(ask(world, server_id=77002))
    finally:
        reader.close()

    assert (found.subject, found.status) == ("server_id", Status.FAILURE)


def test_the_time_zone_is_said(good: World) -> None:
    said = [finding.text for finding in ask(good, db_time_zone="+05:30") if finding.subject == "clock"]

    assert said == ["the column timestamp is read in the zone +05:30 (+05:30), as --db-time-zone says"]


def test_a_question_that_breaks_is_a_finding_and_the_others_are_asked(
    good: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bool:
        raise ZeroDivisionError("so it is")

    monkeypatch.setattr(schema, "has_index", broken)
    findings = ask(good)

    found = the_only(findings)
    assert (found.subject, found.exit_status) == ("index", ExitStatus.OWN_FAULT)
    assert "so it is" in found.text
    assert "stream" in {finding.subject for finding in findings}


def test_asking_changes_nothing(good: World) -> None:
    before = good.sql("SHOW TABLES"), _binary_log_end(good)
    ask(good)

    assert (good.sql("SHOW TABLES"), _binary_log_end(good)) == before


# --- a source


@pytest.fixture
def source(ssh_server: SshServer, tmp_path: Path) -> Iterator[Callable[..., SourceSettings]]:
    """A source with a file, on a server where all is as it should be again afterwards."""
    root = tmp_path / "source root"
    root.mkdir()
    (root / "file").write_text("x")

    def make(**values: Any) -> SourceSettings:
        return SourceSettings.model_validate(
            {
                "name": "readout",
                "host": ssh_server.host,
                "user": ssh_server.user,
                "target": ("monitor",),
                "ssh_port": ssh_server.port,
                "ssh_key": ssh_server.key,
                "known_hosts": ssh_server.known_hosts,
                "ssh_config": "/dev/null",
                "source_root": str(root),
                **values,
            }
        )

    yield make
    ssh_server.start()
    ssh_server.authorize()
    ssh_server.trust_host_key()


Source = Callable[..., SourceSettings]


@pytest.mark.parametrize("local", [False, True], ids=["remote", "local"])
def test_a_good_source(source: Source, local: bool) -> None:
    findings = source_findings(source(**({"host": "", "user": ""} if local else {})))

    assert not_ok(findings) == []
    assert "can be read" in findings[-1].text


def test_the_host_key_is_unknown(source: Source, tmp_path: Path) -> None:
    mine = source(known_hosts=tmp_path / "known_hosts")

    found = the_only(source_findings(mine))
    assert (found.status, found.exit_status) == (Status.FAILURE, ExitStatus.UNREACHABLE)
    subprocess.run(found.mend, shell=True, check=True, capture_output=True)

    assert not_ok(source_findings(mine)) == []


def test_the_host_key_changed(source: Source, ssh_server: SshServer) -> None:
    ssh_server.change_host_key()

    found = the_only(source_findings(source()))
    assert "has changed" in found.text
    subprocess.run(found.mend, shell=True, check=True, capture_output=True)

    assert not_ok(source_findings(source())) == []


def test_the_login_is_refused(source: Source, ssh_server: SshServer) -> None:
    ssh_server.revoke()

    found = the_only(source_findings(source()))
    assert "Permission denied" in found.text
    assert found.mend.startswith("ssh-copy-id -p ")


def test_the_host_is_down(source: Source, ssh_server: SshServer) -> None:
    ssh_server.stop()

    found = the_only(source_findings(source()))
    assert "Connection refused" in found.text
    assert found.exit_status is ExitStatus.UNREACHABLE


def test_there_is_no_rsync_on_the_source(source: Source, ssh_server: SshServer) -> None:
    ssh_server.authorize(path=NO_PROGRAMS)

    found = the_only(source_findings(source()))
    assert (found.status, found.exit_status) == (Status.FAILURE, ExitStatus.USAGE)
    assert "not found" in found.text
    assert "install rsync" in found.mend


def test_an_old_rsync_on_the_source_is_named_with_the_reason(
    source: Source, ssh_server: SshServer, tmp_path: Path
) -> None:
    real = shutil.which("rsync")
    wrapper = tmp_path / "bin" / "rsync"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "rsync  version 3.2.7  protocol version 31" && exit\nexec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    ssh_server.authorize(path=f"{wrapper.parent}:/usr/bin:/bin")

    found = the_only(source_findings(source()))
    assert found.status is Status.WARNING
    assert found.text.startswith("rsync 3.2.7 there: below 3.4.0 it has holes")


@pytest.mark.parametrize("local", [False, True], ids=["remote", "local"])
def test_the_source_root_is_missing(source: Source, tmp_path: Path, local: bool) -> None:
    mine = source(source_root=f"{tmp_path}/not mounted", **({"host": "", "user": ""} if local else {}))

    found = the_only(source_findings(mine))
    assert (found.status, found.exit_status) == (Status.FAILURE, ExitStatus.UNREACHABLE)
    assert found.mend.startswith(f"mount '{tmp_path}/not mounted'  # ")


@pytest.mark.parametrize("local", [False, True], ids=["remote", "local"])
def test_an_empty_source_root_may_be_an_unmounted_disk(source: Source, tmp_path: Path, local: bool) -> None:
    (tmp_path / "empty").mkdir()
    mine = source(source_root=f"{tmp_path}/empty", **({"host": "", "user": ""} if local else {}))

    found = the_only(source_findings(mine))
    assert (found.status, "is its disk mounted" in found.text) == (Status.WARNING, True)


def test_a_restricted_key_is_fine_once_it_is_said(source: Source, ssh_server: SshServer) -> None:
    ssh_server.authorize(read_only=Path(source().source_root))

    found = the_only(source_findings(source()))
    assert found.mend.startswith("restricted_key = true")

    assert not_ok(source_findings(source(restricted_key=True))) == []


def test_where_only_openssh_gets_through_it_is_no_failure(
    source: Source, ssh_server: SshServer, tmp_path: Path
) -> None:
    configuration = tmp_path / "config"
    configuration.write_text(f"ProxyCommand {_netcat(tmp_path)} %h %p\n")

    found = the_only(source_findings(source(ssh_config=configuration)))
    assert found.status is Status.WARNING
    assert "cannot tell" in found.text
    assert "proxycommand" in found.text


def test_sources_are_asked_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=10)

    def slow(source: SourceSettings) -> list[Finding]:
        together.wait()
        return [Finding(f"source {source.name}", Status.OK, "")]

    monkeypatch.setattr(preflight, "source_findings", slow)
    both = ({"name": "a", "target": ("a",)}, {"name": "b", "target": ("b",)})
    report = preflight.run_checks(load(flags={"sources": both, "mysql_port": 1, "data_dir": tmp_path}, environment={}))

    assert {"source a", "source b"} <= {finding.subject for finding in report.findings}


# --- this machine and its disk


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that other accounts can get to, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="cdc-") as name:
        os.chmod(name, 0o755)
        folder = Path(name) / "the archive"
        folder.mkdir()
        yield folder


def look(folder: Path, *, known: bool = False, **flags: Any) -> list[Finding]:
    """The findings about the disk, without that about a file system which the test machine happens to have."""
    findings = destination_findings(settings(data_dir=folder, **flags), known=known)
    return [finding for finding in findings if finding.subject != "file system"]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere; a test of rights has to be somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_good_data_dir_is_left_as_it_was(data_dir: Path) -> None:
    assert not_ok(look(data_dir)) == []
    assert list(data_dir.iterdir()) == []


def test_a_missing_data_dir(data_dir: Path) -> None:
    data_dir.rmdir()

    found = the_only(look(data_dir))
    assert found.exit_status is ExitStatus.USAGE
    subprocess.run(found.mend, shell=True, check=True)

    assert not_ok(look(data_dir)) == []


def test_a_data_dir_that_is_a_file(data_dir: Path) -> None:
    data_dir.rmdir()
    data_dir.write_text("")

    assert "is a file" in the_only(look(data_dir)).text


def test_a_data_dir_that_we_may_not_write(data_dir: Path) -> None:
    data_dir.chmod(0o555)
    with as_nobody():
        found = the_only(look(data_dir))
    assert "Permission denied" in found.text
    if os.geteuid() != 0:
        return

    # The owner's own right to write is what the folder has besides.
    data_dir.chmod(0o755)
    subprocess.run(found.mend, shell=True, check=True)
    with as_nobody():
        assert not_ok(look(data_dir)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder that its own owner cannot enter is nobody's case")
def test_a_data_dir_that_we_cannot_get_to(data_dir: Path) -> None:
    data_dir.parent.chmod(0o700)
    with as_nobody():
        found = the_only(look(data_dir))

    assert found.text == f"data_dir {data_dir}: Permission denied"


def test_a_disk_without_hard_links(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(source: Path, target: Path, **_: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(source), None, str(target))

    monkeypatch.setattr(os, "link", no_link)

    found = the_only(look(data_dir))
    assert "Operation not permitted" in found.text
    assert "hard links" in found.mend


def test_a_disk_that_is_nearly_full(data_dir: Path) -> None:
    found = the_only(look(data_dir, min_free="500T"))
    assert found.subject == "free space"

    value = found.mend.split()[1]
    assert not_ok(look(data_dir, min_free=value)) == []


def test_the_file_system_is_named_and_one_that_does_not_last_is_warned_of() -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir():
        pytest.skip("this machine has no tmpfs")
    findings = {f.subject: f for f in destination_findings(settings(data_dir=shared_memory, min_free=0))}

    assert findings["file system"].status is Status.WARNING
    assert findings["file system"].text == (
        "/dev/shm is on a tmpfs (/dev/shm): what is archived there does not outlive a reboot"
    )


def test_a_disk_that_is_gone_is_not_taken_for_a_new_archive(data_dir: Path) -> None:
    found = the_only(look(data_dir, known=True))
    assert (found.subject, "not mounted" in found.text) == ("marker", True)

    subprocess.run(found.mend.partition(": ")[2], shell=True, check=True)
    assert (data_dir / MARKER).exists()
    assert not_ok(look(data_dir, known=True)) == []


def test_what_lies_in_staging_is_said(data_dir: Path) -> None:
    archive = Archive(data_dir, settings().modes, 0)
    archive.prepare(known=False)
    (archive.staging_folder("readout", "small-1") / "part").write_bytes(bytes(2048))

    (said,) = [finding.text for finding in look(data_dir) if finding.subject == "staging"]
    assert said.startswith("1 files (2.0 KiB) in ")


def test_there_is_no_rsync_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Source) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert the_only(preflight.machine_findings(settings())).mend == "apt-get install rsync"
    assert the_only(source_findings(source())).mend == "apt-get install rsync"


# --- the report


def test_the_whole_report(good: World, source: Source, data_dir: Path) -> None:
    mine = source().model_dump(exclude={"name", "target"})
    chosen = settings(good, data_dir=data_dir, **mine)

    report = preflight.run_checks(chosen)

    subjects = [finding.subject for finding in report.findings]
    assert subjects.index("rsync here") < subjects.index("database") < subjects.index("source 127.0.0.1")
    assert subjects.index("source 127.0.0.1") < subjects.index("data_dir")
    assert report.exit_status is ExitStatus.DONE
    assert {
        "subject": "marker",
        "status": "ok",
        "text": f"{data_dir / MARKER} will be made at the first run",
        "mend": "",
    } in (report.as_dict()["findings"])


def test_what_the_history_knows_reaches_the_question_about_the_disk(
    world: World, source: Source, data_dir: Path
) -> None:
    chosen = settings(world, data_dir=data_dir, **source().model_dump(exclude={"name", "target"}))
    database = Database(chosen)
    with database.connect() as connection:
        assert history.open_history(connection) == ""
    database.close()
    world.sql(
        "INSERT INTO cdc_archiver_history (at, file_table, file_id, instance_id, source, result, source_path, archived_path)"
        f" VALUES (NOW(), '{TABLE}', 1, 'monitor', 'readout', 'archived', '/data/a', '{data_dir}/17000/a')"
    )

    report = preflight.run_checks(chosen)

    assert "the disk is not mounted" in the_only(list(report.findings)).text
    assert report.exit_status is ExitStatus.USAGE


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((), ExitStatus.DONE),
        ((ExitStatus.UNREACHABLE,), ExitStatus.UNREACHABLE),
        ((ExitStatus.UNREACHABLE, ExitStatus.USAGE), ExitStatus.USAGE),
        ((ExitStatus.OWN_FAULT, ExitStatus.UNREACHABLE), ExitStatus.UNREACHABLE),
        ((ExitStatus.OWN_FAULT,), ExitStatus.OWN_FAULT),
    ],
)
def test_the_exit_status_is_what_a_person_can_do_most_about(
    found: tuple[ExitStatus, ...], expected: ExitStatus
) -> None:
    good = Finding("a", Status.OK, "")
    failures = [Finding("b", Status.FAILURE, "", "mend", status) for status in found]

    assert Report((good, *failures)).exit_status is expected


def test_a_printed_report_has_a_line_for_each_finding_and_its_command_whole() -> None:
    command = "GRANT SELECT, UPDATE ON `files`.`pysmurf_files` TO 'archiver'@'%'  -- " + "x" * 100
    report = Report((Finding("database", Status.OK, "[fine]"), Finding("grants", Status.FAILURE, "none", command)))
    out = io.StringIO()

    preflight.print_report(report, Console(file=out, width=40))

    assert out.getvalue().splitlines() == [
        "ok      database  [fine]",
        "FAIL    grants    none",
        f"                  mend: {command}",
    ]


@contextmanager
def _globals_kept(world: World, *variables: str) -> Iterator[None]:
    with ExitStack() as stack:
        for variable in variables:
            value = world.sql(f"SELECT @@GLOBAL.{variable}")[0][0]
            stack.callback(world.sql, f"SET GLOBAL {variable} = {value!r}")
        yield


def _binary_log_end(world: World) -> object:
    return world.sql("SHOW BINLOG STATUS" if world.server.kind == "mariadb" else "SHOW BINARY LOG STATUS")[0][:2]


def _netcat(folder: Path) -> Path:
    """A program that joins its standard input and output to a port: what a jump host does."""
    program = folder / "netcat"
    program.write_text(
        "#!/usr/bin/env python3\n"
        "import os, socket, sys, threading\n"
        "far = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def back():\n"
        "    while data := far.recv(65536):\n"
        "        os.write(1, data)\n"
        "    os._exit(0)\n"
        "threading.Thread(target=back, daemon=True).start()\n"
        "while data := os.read(0, 65536):\n"
        "    far.sendall(data)\n"
    )
    program.chmod(0o755)
    return program
