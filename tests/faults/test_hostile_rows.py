"""Values that look like commands, options, statements, ways out and log lines: in every text column of a row, and in every setting."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_places import staging_of
from files_table import CREATE_TABLE, TABLE
from private_site import Done, PrivateSite, insert, new_private_site
from prometheus_client.parser import text_string_to_metric_families
from services import PASSWORD
from waiting import eventually

from cdc_archiver.sandbox import DatabaseServer, SshServer

CANARY = Path(f"/tmp/p{os.getpid()}")
"""What each command would touch; short, for the columns have 32 characters."""
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[(\w+) *\] .*")

PAYLOADS = (
    f"'; DROP TABLE {TABLE};-- ",
    f'"; DROP TABLE {TABLE};-- ',
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f"; touch {CANARY}; #",
    f"-e sh -c 'touch {CANARY}'",
    f"--rsync-path=touch {CANARY}"[:32],
    f"-oProxyCommand=>{CANARY}",
    "--remove-source-files",
    "../../outside",
    "a/../../../../outside",
    "/outside",
    "%n%s%(x)s{0}{x}${HOME}",
    "<script>alert(1)</script>",
    "[bold red]x[/]",
    "\x1b[2J\x1b]0;owned\x07",
    "a\n2026-01-01T00:00:00Z [info] x",
    "a\r\nb\tc\x7f",
    "nul\0nul",
    "\\",
)
COLUMNS = ("action", "pub_id", "site", "script_id", "format", "pysmurf_version", "socs_version", "instance_id")


@pytest.fixture(autouse=True)
def nothing_is_executed() -> Iterator[None]:
    CANARY.unlink(missing_ok=True)
    yield
    touched = CANARY.exists()
    CANARY.unlink(missing_ok=True)
    assert not touched, "somebody's words were executed"


def files_outside_the_archive(stage: PrivateSite) -> list[tuple[str, bytes]]:
    """Everything in the site's directory but the archive, its staging and the logs: nothing may write to it."""
    own = stage.data_dir, staging_of(stage.data_dir).parent
    return sorted(
        (str(path), path.read_bytes() if path.is_file() else b"")
        for path in stage.directory.rglob("*")
        if not any(map(path.is_relative_to, own)) and path.suffix != ".log"
    )


def register_hostile(stage: PrivateSite) -> dict[int, bytes]:
    """A row for each payload in each column, and one for each file that is called so; ids of ours, and their files' content."""
    with contextlib.suppress(OSError):
        (stage.directory / "outside").mkdir()
    rows = []
    file = stage.file("file.npy")
    for payload in PAYLOADS:
        rows += [stage.values(file, **{column: payload}) for column in COLUMNS]
        rows.append(stage.values(file, path=f"{stage.sources}/{payload}"))
        rows.append(stage.values(file, path=payload))
        name = payload.replace("/", "|").replace("\0", "0")
        rows.append(stage.values(stage.file(name)))
    with contextlib.closing(stage.connect()) as connection, connection.cursor() as cursor:
        return {insert(cursor, [row]): row["md5sum"] for row in rows if row["instance_id"] not in PAYLOADS}


@pytest.mark.parametrize(
    ("database_server", "log_format"), [("mariadb", "console"), ("mysql", "json")], indirect=["database_server"]
)
def test_no_value_of_a_row_is_anything_but_a_value(either_stage: PrivateSite, log_format: str) -> None:
    stage = either_stage
    # Given rows with an attack in each text column,
    ids = register_hostile(stage)
    after = stage.file("after.npy")
    before = files_outside_the_archive(stage)
    tables = stage.sql("SHOW TABLES")
    with stage.program(log_format=log_format, log_level="debug", source_root=str(stage.sources)) as service:
        # when the service meets them,
        settled = f"copied = 1 OR failed_copy_attempts > 0 OR id NOT IN ({', '.join(map(str, ids))})"
        astray = sum(payload.startswith("/") for payload in PAYLOADS)
        eventually(
            lambda: stage.count(f"NOT ({settled})") == astray, "each is archived, refused, or waits for a person"
        )
        stage.wait_archived(*stage.register(after))
        # then the service is as well as ever, its metrics can be read, and so can its status;
        eventually(lambda: service.state() == "streaming", "all is well")
        assert list(text_string_to_metric_families(service.get("/metrics")[1]))
        assert service.status()["archived"] > 0
        checked = stage.command("check", *stage.flags(source_root=str(stage.sources)))
    # no table is harmed, nothing outside the archive is touched;
    assert set(tables) <= set(stage.sql("SHOW TABLES"))
    assert files_outside_the_archive(stage) == before
    # what is archived lies in its place, four directories deep, and is what was registered;
    archived = stage.sql(f"SELECT id, path FROM {TABLE} WHERE copied = 1")
    assert len(archived) > 100
    for id_, path in archived:
        place = Path(path)
        assert len(place.relative_to(stage.data_dir).parts) == 5
        assert place.resolve() == place
        assert place.is_file()
        assert id_ not in ids or len(ids[id_]) == 16
    # and each line of the log is one line, for a person as for a machine.
    (log,) = stage.directory.glob("program-*.log")
    for line in log.read_bytes().decode().split("\n")[:-1]:
        assert line.isprintable(), repr(line)
        assert json.loads(line)["event"] if log_format == "json" else LOG_LINE.fullmatch(line), line
    # Nor does the output of `check` about others' rows move a cursor, or imitate a line of the log.
    assert "Traceback" not in checked.stderr
    assert "\x1b" not in checked.stdout
    assert not re.search("^(2026-01|b\t)", checked.stdout, re.MULTILINE), checked.stdout


VALUES = (
    f"x$(touch {CANARY})`touch {CANARY}`;touch {CANARY}|touch {CANARY}'q\"",
    f"-oProxyCommand=touch {CANARY}",
    "a\n2026-01-01T00:00:00Z [info] fake\x1b[2J",
)
OF_A_SOURCE = ("host", "user", "source_root", "ssh_key", "known_hosts", "ssh_config", "bwlimit")
OTHERS = (
    *("target", "data_dir", "chmod", "table", "db_time_zone", "mysql_database", "mysql_user", "mysql_ssl_ca"),
    *("http_host", "log_format", "config"),
)


@pytest.mark.parametrize("name", OF_A_SOURCE + OTHERS)
def test_no_setting_is_anything_but_its_value(stage: PrivateSite, name: str) -> None:
    """Who may write settings may do much; he may not be made to do it by a name that he copied from somewhere."""
    stage.register(stage.file("file.npy"))
    before = files_outside_the_archive(stage)
    for text in VALUES:
        for value in (text, f"/{text}") if name in ("source_root", "data_dir") else (text,):
            # When a setting has this value, then it is an error like any other, or a directory that does not exist.
            flag = f"--{name.replace('_', '-')}={value}"
            given: dict[str, Any] = {name: None} if name in ("host", "user", "target") else {}
            if name in OTHERS:
                given["host"] = ""  # no login is needed to see what comes of these
            flags = stage.flags(http_port=None, **given)
            done = stage.command("check", *flags, *([] if name == "http_host" else ["--http-port=0"]), flag)
            assert_printed_in_lines(done, value)
            assert done.returncode in (0, 2, 4)
    assert files_outside_the_archive(stage) == before
    assert stage.count("copied = 0") == 1
    assert stage.archived_files() == []


def assert_printed_in_lines(done: Done, value: str) -> None:
    assert "Traceback" not in done.stderr, done.stderr
    assert PASSWORD not in done.stderr + done.stdout
    output = done.stdout + done.stderr
    assert "\x1b" not in output, f"{value!r} moves the cursor: {output!r}"
    assert "\n2026-01-01T" not in output, f"{value!r} makes a line of its own: {output!r}"
    assert all(LOG_LINE.fullmatch(line) or line.startswith("cdc-archiver: ") for line in done.stderr.splitlines()), (
        output
    )


def test_a_site_whose_every_name_looks_like_a_command_is_a_site_like_any_other(
    database_server: DatabaseServer, ssh_server: SshServer, tmp_path: Path
) -> None:
    # Given directories, keys and a database that are really called so,
    odd = tmp_path / f"a $(touch {CANARY.name}) 'b\" ;`c` %h -e"
    odd.mkdir()
    name = "o'd`d\"; DROP TABLE x; --"
    quoted = f"`{name.replace('`', '``')}`"
    with new_private_site(database_server, ssh_server, odd) as stage:
        key = Path(shutil.copy(ssh_server.key, odd / "key 'of' $(us)"))
        hosts = Path(shutil.copy(ssh_server.known_hosts, odd / 'known "hosts" %h'))
        file = stage.file("file $(x).npy")
        row = stage.values(file)
        with contextlib.closing(stage.server.connect(database=None)) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {quoted}")
            try:
                cursor.execute(f"USE {quoted}")
                cursor.execute(CREATE_TABLE)
                cursor.execute(
                    f"GRANT SELECT, UPDATE, CREATE, INSERT, DELETE ON {quoted}.* TO '{stage.user}'@'%%'" % ()
                )
                options: dict[str, Any] = {"ssh_key": key, "known_hosts": hosts, "source_root": str(stage.sources)}
                # when files are registered there, then they are archived, by the stream as well.
                with stage.service(mysql_database=name, **options) as service:
                    service.wait_settled()
                    insert(cursor, [row])
                    eventually(stage.archived_files, "the file is archived")
                    service.wait_metric(1, "copies_total", result="archived")
                    assert service.metric("stream_events_total", outcome="offered") == 1
                cursor.execute(f"SELECT path, copied FROM {TABLE}")
                assert list(cursor.fetchall()) == [(str(stage.place(file)), 1)]
            finally:
                cursor.execute(f"DROP DATABASE {quoted}")
        assert stage.place(file).read_bytes() == file.content
    assert not [path for directory in (Path.cwd(), ssh_server.home, odd) for path in directory.glob(f"*{CANARY.name}*")]
