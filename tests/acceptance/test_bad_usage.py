"""An operator's mistakes: one clear line, the right exit status, and nothing is changed."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from files_table import TABLE
from private_site import PrivateSite
from services import COMMAND, PASSWORD
from waiting import eventually

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[(\w+) *\] .*")


@dataclass
class Mistake:
    """A mistake, and the message for it.

    Attributes:
        says: parts of the one line.
        arguments: of `run`.
        prepare: makes the site wrong, and returns more arguments.
    """

    says: list[str]
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[PrivateSite], list[str]] = lambda stage: []
    status: int = 2


def without_columns(stage: PrivateSite) -> list[str]:
    stage.sql(f"ALTER TABLE {TABLE} DROP COLUMN md5sum, DROP COLUMN pub_id")
    return []


def table_of_something_else(stage: PrivateSite) -> list[str]:
    stage.sql("CREATE TABLE thermometers (id INT PRIMARY KEY, kelvin DOUBLE)")
    return ["--table", "thermometers"]


def view(stage: PrivateSite) -> list[str]:
    stage.sql(f"CREATE VIEW todays_files AS SELECT * FROM {TABLE}")
    return ["--table", "todays_files"]


def no_table(stage: PrivateSite) -> list[str]:
    stage.sql(f"DROP TABLE {TABLE}")
    return []


def no_select(stage: PrivateSite) -> list[str]:
    stage.server.execute(f"REVOKE SELECT, UPDATE ON {stage.database}.* FROM '{stage.user}'@'%'")
    return []


def data_dir_is_a_file(stage: PrivateSite) -> list[str]:
    file = stage.directory / "file"
    file.write_text("precious")
    return ["--data-dir", str(file)]


def misspelt_key(stage: PrivateSite) -> list[str]:
    config = stage.directory / "site.toml"
    config.write_text("swep_interval = 30\n")
    return ["--config", str(config)]


def misspelt_key_of_a_source(stage: PrivateSite) -> list[str]:
    config = stage.directory / "site.toml"
    config.write_text('[[sources]]\nname = "a"\ntargets = ["m"]\n')
    return ["--config", str(config)]


def no_toml(stage: PrivateSite) -> list[str]:
    config = stage.directory / "site.toml"
    config.write_text("data_dir: /data\n")
    return ["--config", str(config)]


MISTAKES = {
    "a table without the columns": Mistake(["no column", "md5sum", "pub_id"], prepare=without_columns),
    "a table of something else": Mistake(["thermometers", "no column"], prepare=table_of_something_else),
    "a view": Mistake(["todays_files", "view"], prepare=view),
    "no table": Mistake([TABLE, "init-db"], prepare=no_table),
    "no privilege to read": Mistake(["grant"], prepare=no_select),
    "a wrong password": Mistake(["denied", "MYSQL_PASSWORD"], environment={"MYSQL_PASSWORD": "wrong-one"}),
    "a password file that is not there": Mistake(
        ["/nowhere/secret", "MYSQL_PASSWORD_FILE"],
        environment={"MYSQL_PASSWORD": "", "MYSQL_PASSWORD_FILE": "/nowhere/secret"},
    ),
    "two passwords": Mistake(
        ["MYSQL_PASSWORD", "MYSQL_PASSWORD_FILE", "both set"], environment={"MYSQL_PASSWORD_FILE": "/nowhere/secret"}
    ),
    "no such database": Mistake(["no_such_db"], environment={"MYSQL_DATABASE": "no_such_db"}),
    "a data_dir that is a file": Mistake(["is not a directory"], prepare=data_dir_is_a_file),
    "a relative data_dir": Mistake(["archive", "absolute"], ["--data-dir", "archive"]),
    "an unknown flag": Mistake(["--data-dri"], ["--data-dri", "/data"]),
    "a flag without its value": Mistake(["--table"], ["--table"]),
    "an invalid value": Mistake(["sweep_interval"], ["--sweep-interval", "often"]),
    "a misspelt key": Mistake(["'swep_interval'", "did you mean 'sweep_interval'?"], prepare=misspelt_key),
    "a misspelt key of a source": Mistake(["'targets'", "'target'"], prepare=misspelt_key_of_a_source),
    "a misspelt variable": Mistake(
        ["CDC_ARCHIVER_DATADIR", "CDC_ARCHIVER_DATA_DIR"], environment={"CDC_ARCHIVER_DATADIR": "/data"}
    ),
    "invalid TOML": Mistake(["site.toml", "not valid TOML"], prepare=no_toml),
    "a config that is not there": Mistake(["/nowhere.toml"], ["--config", "/nowhere.toml"]),
    "a host that is an option": Mistake(
        ["-oProxyCommand=touch /tmp/owned", "host"], ["--host", "-oProxyCommand=touch /tmp/owned"]
    ),
    "a host that hides an option": Mistake(["host"], ["--host", "smurf@-oProxyCommand=x"]),
    "a user that is an option": Mistake(["user"], ["--user", "-oProxyCommand=x"]),
}


def everything(stage: PrivateSite) -> tuple[object, ...]:
    """All rows and files, which must not change."""
    tables = sorted(name for (name,) in stage.sql("SHOW TABLES"))
    rows = [stage.sql(f"SELECT * FROM {name}") for name in tables]
    files = sorted((str(path), path.read_bytes() if path.is_file() else b"") for path in stage.directory.rglob("*"))
    return tables, rows, files


def the_one_line(stderr: str) -> str:
    """The last line; before it, log lines and nothing else."""
    *before, last = stderr.splitlines()
    assert [line for line in before if not LOG_LINE.fullmatch(line)] == [], stderr
    assert last.startswith("cdc-archiver: "), stderr
    assert PASSWORD not in stderr
    return last


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line_and_changes_nothing(stage: PrivateSite, name: str) -> None:
    # Given a pending file, and a mistake,
    mistake = MISTAKES[name]
    stage.register(stage.file("file.npy"))
    more = mistake.prepare(stage)
    before = everything(stage)
    # when the service is started,
    done = stage.command("run", *stage.flags(), *more, *mistake.arguments, environment=mistake.environment)
    # then one line says what is wrong, and nothing is changed.
    line = the_one_line(done.stderr)
    assert done.returncode == mistake.status, done.stderr
    assert done.stdout == ""
    for text in mistake.says:
        assert text.lower() in line.lower()
    assert everything(stage) == before


@pytest.mark.parametrize(
    ("left_out", "says"), [("target", ["target"]), ("data_dir", ["data_dir", "--data-dir"])], ids=["target", "data_dir"]
)
def test_a_missing_setting_is_named(stage: PrivateSite, left_out: str, says: list[str]) -> None:
    before = everything(stage)
    done = stage.command("run", *stage.flags(**{left_out: None}))
    line = the_one_line(done.stderr)
    assert done.returncode == 2
    assert all(text in line for text in says)
    assert everything(stage) == before


def test_a_port_that_is_in_use(stage: PrivateSite) -> None:
    stage.register(stage.file("file.npy"))
    before = everything(stage)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = stage.process("run", *stage.flags(http_port=port))
    line = the_one_line(done.stderr)
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in line
    assert "--http-port" in line
    assert everything(stage) == before


@pytest.mark.parametrize("arguments", [("check",), ("run", "--reconcile")], ids=["check", "reconcile"])
def test_a_database_that_cannot_be_reached_is_status_4(stage: PrivateSite, arguments: tuple[str, ...]) -> None:
    before = everything(stage)
    done = stage.process(*arguments, *stage.flags(), environment={"MYSQL_PORT": "1"})
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "127.0.0.1:1" in done.stdout + done.stderr
    assert everything(stage) == before


def test_a_server_id_of_another_replica_ends_one_of_the_two_with_a_message(stage: PrivateSite) -> None:
    # Given a service whose server_id an operator has set,
    other = stage.directory / "other"
    other.mkdir()
    with (
        stage.service(server_id=4711) as first,
        # when one for another target gets the same,
        stage.service(server_id=4711, target=("other",), data_dir=other, until=None) as second,
    ):
        eventually(lambda: first.ended or second.ended, "one of them ends")
        # then its message says what to do.
        said = (first if first.ended else second).failure()
    assert "4711" in str(said)
    assert "--server-id" in str(said)


def test_check_of_a_good_site_is_status_0_and_changes_nothing(stage: PrivateSite) -> None:
    stage.register(stage.file("file.npy"))
    before = everything(stage)
    done = stage.command("check", *stage.flags(source_root=str(stage.sources)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "FAIL" not in done.stdout
    assert everything(stage) == before


@pytest.mark.parametrize("arguments", [(), ("run", "--help"), ("--version",)])
def test_help_is_not_an_error(stage: PrivateSite, arguments: tuple[str, ...]) -> None:
    done = stage.process(*arguments)
    assert done.stderr == ""
    assert done.stdout != ""
    assert done.returncode == (0 if arguments else 2)


@pytest.mark.parametrize(("where", "status", "said"), [(">&-", 0, ""), (">/dev/full", 1, "No space left on device")])
def test_output_that_nobody_can_read_is_no_traceback(stage: PrivateSite, where: str, status: int, said: str) -> None:
    stage.register(stage.file("file.npy"))
    done = subprocess.run(
        ["sh", "-c", f'"$@" {where}', "sh", *COMMAND, "list"],
        check=False,
        env=stage.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == bool(said), done.stderr
