"""The service under systemd: its notifications, its unit, the places of its files, and its work under the unit's restrictions."""

from __future__ import annotations

import configparser
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from notify_socket import NotifySocket
from private_site import PrivateSite, new_private_site

from cdc_archiver.registrar.lifecycle import source_of, spool_path
from cdc_archiver.sandbox import MariaDb, SshServer
from cdc_archiver.sandbox.packages import Bundle, fetch, find_on_system
from cdc_archiver.settings import load

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "cdc-archiver.service"
UNIT_PROGRAM = "/opt/cdc_archiver/bin/cdc-archiver"
EXPOSURE = 20
"""In tenths, as systemd-analyze counts; without hardening it is above 90."""

# Applies the restrictions of MemoryDenyWriteExecute= and NoNewPrivileges=; prctl(2) has their numbers.
_AS_THE_UNIT = (
    "import ctypes, os, sys; prctl = ctypes.CDLL(None, use_errno=True).prctl; "
    "assert prctl(38, 1, 0, 0, 0) == 0 and prctl(65, 1, 0, 0, 0) == 0, ctypes.get_errno(); "
    "os.execv(sys.executable, [sys.executable, '-m', 'cdc_archiver', *sys.argv[1:]])"
)


@pytest.fixture
def stage(mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    with new_private_site(mariadb, ssh_server, tmp_path) as built:
        yield built


@pytest.fixture(scope="module")
def unit() -> dict[str, dict[str, str]]:
    """Its sections. A key that stands twice has its last value here."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return {name: dict(parser[name]) for name in parser.sections()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory with the service's files in it."""
    root = tmp_path_factory.mktemp("root")
    install(root)
    for program in (root / "opt/cdc_archiver/bin/cdc-archiver", root / "bin/kill"):
        program.parent.mkdir(parents=True)
        program.touch(0o755)
    return root


def install(root: Path) -> None:
    subprocess.run([UNIT.parent / "install.sh"], check=True, env={**os.environ, "DESTDIR": str(root)})


@pytest.fixture(scope="module")
def systemd() -> tuple[list[str], dict[str, str], Path]:
    """systemd-analyze, its environment, and where systemd's own units are."""
    if program := find_on_system("systemd-analyze"):
        return [str(program)], dict(os.environ), Path("/lib/systemd/system")
    root = fetch(Bundle("systemd", ("systemd",), ("systemd-analyze",)))
    libraries = ":".join(str(directory.parent) for directory in root.rglob("libsystemd-*.so"))
    units = next(path.parent for path in root.rglob("sysinit.target"))
    return [str(root / "usr/bin/systemd-analyze")], {**os.environ, "LD_LIBRARY_PATH": libraries}, units


def analyze(systemd: tuple[list[str], dict[str, str], Path], *arguments: str) -> subprocess.CompletedProcess[str]:
    command, environment, _ = systemd
    return subprocess.run(
        [*command, *arguments], check=False, capture_output=True, text=True, env=environment, timeout=60
    )


@pytest.mark.parametrize("name", ["cdc-archiver.service", "cdc-registrar.service"])
def test_the_unit_is_one_that_systemd_understands(
    installed: Path, systemd: tuple[list[str], dict[str, str], Path], name: str
) -> None:
    units = installed / "lib/systemd/system"
    units.mkdir(parents=True, exist_ok=True)
    for target in systemd[2].glob("*.target"):
        shutil.copy(target, units, follow_symlinks=True)
    done = analyze(systemd, "verify", f"--root={installed}", "--recursive-errors=no", name)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(("name", "exposure"), [("cdc-archiver.service", EXPOSURE), ("cdc-registrar.service", 30)])
def test_the_unit_is_hardened(
    installed: Path, systemd: tuple[list[str], dict[str, str], Path], name: str, exposure: int
) -> None:
    done = analyze(
        systemd,
        "security",
        "--offline=yes",
        f"--root={installed}",
        f"--threshold={exposure}",
        "--no-pager",
        name,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


def test_the_unit_permits_what_the_service_does(unit: dict[str, dict[str, str]]) -> None:
    service = unit["Service"]
    # Placing sets a file's group. ~@privileged would forbid that without a message.
    filters = re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert filters.index("@chown") > filters.index("~@privileged @resources")
    # The metrics of the process itself are read from /proc/stat, too.
    assert "ProcSubset" not in service
    # ssh resolves names and makes sockets for its connections that are shared.
    assert {"AF_UNIX", "AF_INET", "AF_INET6"} <= set(service["RestrictAddressFamilies"].split())


def test_a_file_takes_the_group_of_a_setgid_directory(stage: PrivateSite) -> None:
    groups = [group for group in os.getgroups() if group != os.getegid()]
    if not groups and os.getuid() != 0:
        pytest.skip("this account has only one group")
    group = groups[0] if groups else 9000
    file = stage.file("a.npy")
    directory = stage.place(file).parent
    directory.mkdir(parents=True)
    os.chown(directory, -1, group)
    directory.chmod(0o2755)
    with stage.service():
        stage.wait_archived(*stage.register(file))
    assert stage.place(file).stat().st_gid == group


def test_the_unit_stops_the_service_as_it_wants_to_be_stopped(unit: dict[str, dict[str, str]]) -> None:
    service = unit["Service"]
    settings = load({"target": ("m",)}, environment={})
    assert int(service["TimeoutStopSec"]) >= settings.drain_timeout + 10
    assert service["KillMode"] == "mixed"  # with control-group, running copies would get SIGTERM as well
    assert service["RestartPreventExitStatus"] == "2"
    assert service["Type"] == "notify"
    assert service["ExecStart"] == f"{UNIT_PROGRAM} run"
    assert int(service["WatchdogSec"]) >= 30


def test_installed_files_are_those_that_the_unit_asks_for(unit: dict[str, dict[str, str]], installed: Path) -> None:
    service = unit["Service"]
    environment_file = installed / service["EnvironmentFile"].lstrip("/")
    password = service["LoadCredential"].partition(":")[2]
    assert (installed / password.lstrip("/")).stat().st_mode & 0o777 == 0o600
    variables = dict(
        line.split("=", 1) for line in environment_file.read_text().splitlines() if line and not line.startswith("#")
    )
    config = installed / variables["CDC_ARCHIVER_CONFIG"].lstrip("/")
    settings = load(config=config, environment={"MYSQL_PASSWORD_FILE": "/credential"})
    assert settings.sources[0].target
    assert str(settings.data_dir).startswith(service["ReadWritePaths"].lstrip("-") + "/")
    account = (installed / "etc/sysusers.d/cdc-archiver.conf").read_text().splitlines()[-1].split()
    assert account[1] == service["User"] == service["Group"]
    assert account[-1] == f"/var/lib/{service['StateDirectory']}"


def test_the_registrars_files_are_those_that_its_unit_asks_for(installed: Path) -> None:
    text = (installed / "etc/systemd/system/cdc-registrar.service").read_text()
    assert f"ExecStart={UNIT_PROGRAM} monitor\n" in text
    for place in (
        "etc/default/cdc-registrar",
        "etc/cdc_archiver/registrar.toml",
        "etc/cdc_archiver/registrar_password",
    ):
        assert (installed / place).exists()
        assert f"/{place}" in text + (installed / "etc/default/cdc-registrar").read_text()
    assert (installed / "etc/cdc_archiver/registrar_password").stat().st_mode & 0o777 == 0o600
    settings = load(config=installed / "etc/cdc_archiver/registrar.toml", environment={})
    assert source_of(settings).source_root == "/data"
    # The spool's place, below StateDirectory.
    with mock.patch.dict(os.environ, {"STATE_DIRECTORY": "/var/lib/cdc_registrar"}):
        assert str(spool_path(settings)) == "/var/lib/cdc_registrar/registrar.spool"
    assert "StateDirectory=cdc_registrar\n" in text


def test_the_example_of_several_sources_is_one(installed: Path, tmp_path: Path) -> None:
    text = (installed / "etc/cdc_archiver/archiver.toml").read_text()
    single, _, several = text.partition("# Several readout servers")
    example = "\n".join(line.removeprefix("# ") for line in several.splitlines()[2:])
    kept = "\n".join(line for line in single.splitlines() if not line.startswith(("host", "target")))
    config = tmp_path / "several.toml"
    config.write_text(f"{kept}\n{example}\n")
    assert tomllib.loads(config.read_text())["sources"]
    assert [source.name for source in load(config=config, environment={}).sources] == ["satp1"]


def test_an_installation_leaves_a_configuration_as_it_is(tmp_path: Path) -> None:
    install(tmp_path)
    kept = {tmp_path / "etc/default/cdc-archiver", tmp_path / "etc/cdc_archiver/archiver.toml"}
    for path in kept:
        path.write_text("# mine\n")
    (tmp_path / "etc/cdc_archiver/mysql_password").write_text("mine")
    (tmp_path / "etc/systemd/system/cdc-archiver.service").write_text("an older one")
    install(tmp_path)
    assert {path.read_text() for path in kept} == {"# mine\n"}
    assert (tmp_path / "etc/cdc_archiver/mysql_password").read_text() == "mine"
    assert (tmp_path / "etc/systemd/system/cdc-archiver.service").read_text() == UNIT.read_text()


def test_commands_run_as_the_service_with_its_settings_and_password_or_one_that_is_given(tmp_path: Path) -> None:
    install(tmp_path)
    (tmp_path / "etc/cdc_archiver/mysql_password").write_text("the service's\n")
    script = (tmp_path / "usr/local/sbin/cdc-archiver").read_text().replace("/etc/", f"{tmp_path}/etc/")
    default = tmp_path / "etc/default/cdc-archiver"
    values = {
        "CDC_ARCHIVER_BWLIMIT": ("08:00,20m 19:00,off", "08:00,20m 19:00,off"),
        "CDC_ARCHIVER_HOST": ("$(id)`id` ${HOME} & (x); # *'\"", "$(id)`id` ${HOME} & (x); # *'\""),
        "CDC_ARCHIVER_USER": (r"DOMAIN\\user\ x", r"DOMAIN\user x"),
        "CDC_ARCHIVER_SSH_KEY": (r"'a \\ \b $c \"d'", r"a \\ \b $c \"d"),
        "CDC_ARCHIVER_KNOWN_HOSTS": (r'"a \\ \b \$c \"d"', r'a \ \b $c "d'),
        "CDC_ARCHIVER_CHMOD": ("  D755,F644 \t", "D755,F644"),
        "MYSQL_USER": ("x\nMYSQL_USER=the service's", "the service's"),
        "MYSQL_HOST": ("", ""),
        "LANG": ("C.UTF-8", "C.UTF-8"),
    }
    lines = "".join(f"{name}={written}\n" for name, (written, _) in values.items())
    default.write_text(f"{default.read_text()}\n# A=1\n; B=2\nno assignment\nC-D=3\n{lines}LAST=1")
    # Fakes of the programs that it runs: they print their arguments and environment.
    for name, words in {
        "systemctl": 'case "$*" in *=User*) echo ocs;; *=Group*) echo smurf;; esac',
        "getent": 'echo "$2:x:9000:9000::/home/$2:/bin/sh"',
        "setpriv": 'echo "WORDS=$*"; exec env',
    }.items():
        fake = tmp_path / "bin" / name
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(f"#!/bin/sh\n{words}\n")
        fake.chmod(0o755)

    def told(**given: str) -> dict[str, str]:
        path = f"{fake.parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", script, "cdc-archiver", "why", "a b"],
            check=True,
            capture_output=True,
            text=True,
            env={"PATH": path, **given},
        )
        return dict(line.split("=", 1) for line in done.stdout.splitlines())

    assert (
        told().items()
        >= {
            "WORDS": f"--reuid ocs --regid smurf --init-groups {UNIT_PROGRAM} why a b",
            "MYSQL_PASSWORD": "the service's",
            "CDC_ARCHIVER_CONFIG": "/etc/cdc_archiver/archiver.toml",
            "HOME": "/home/ocs",
        }.items()
    )
    # The file says what systemd makes of it (systemd.exec(5), EnvironmentFile=);
    as_systemd = {name: value for name, (_, value) in values.items()} | {"LAST": "1"}
    assert told().items() >= as_systemd.items()
    assert not told().keys() & {"A", "B", "C-D", "no assignment"}
    # the caller's settings go before it, and nothing else of his.
    assert told(LANG="C")["LANG"] == "C.UTF-8"
    as_root = {"MYSQL_USER": "root", "MYSQL_PASSWORD": "root's"}
    default.write_text(f"{default.read_text()}\nMYSQL_PASSWORD_FILE=/the/services\n")
    assert told()["MYSQL_PASSWORD_FILE"] == "/the/services"
    assert told(**as_root).items() >= as_root.items()
    assert "MYSQL_PASSWORD_FILE" not in told(**as_root)
    assert "MYSQL_PASSWORD" not in told(MYSQL_PASSWORD_FILE="/another")


def test_the_manager_is_told_the_state_of_the_service_from_its_start_to_its_stop(stage: PrivateSite) -> None:
    with NotifySocket(stage.directory) as manager:
        interpreter = [
            *_with(NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="900000"),
            sys.executable,
            "-m",
            "cdc_archiver",
        ]
        with stage.program(interpreter=interpreter) as program:
            manager.wait("READY=1")
            manager.wait("STATUS=streaming")
            manager.wait("WATCHDOG=1")
            program.signal(signal.SIGTERM)
            manager.wait("STOPPING=1")
            assert program.wait() == 0


def test_files_are_archived_under_the_units_restrictions(stage: PrivateSite) -> None:
    if ctypes.CDLL(None).prctl(66, 0, 0, 0, 0) < 0:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    files = stage.files(3)
    with stage.program(interpreter=[sys.executable, "-c", _AS_THE_UNIT]):
        stage.wait_archived(*stage.register(*files))
    assert [stage.place(file).read_bytes() for file in files] == [file.content for file in files]


def _with(**variables: str) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in variables.items())]
