"""The ssh command line of a source, and which environment reaches it."""

import os
import pwd
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Never

import pytest

from cdc_archiver.errors import Misconfigured
from cdc_archiver.settings import SourceSettings
from cdc_archiver.transfer import ssh
from cdc_archiver.transfer.ssh import CONTROL_PATH_BYTES, SocketDirectory


def source(**values: Any) -> SourceSettings:
    return SourceSettings(**{"name": "a", "host": "data@smurf-srv", "target": ("monitor",), **values})


def options(command: list[str]) -> dict[str, str]:
    return dict(value.split("=", 1) for flag, value in pairwise(command) if flag == "-o")


def test_ssh_never_prompts_and_trusts_no_unknown_host() -> None:
    values = options(ssh.ssh_command(source()))

    assert values["BatchMode"] == "yes"
    assert values["StrictHostKeyChecking"] == "yes"
    assert values["GlobalKnownHostsFile"] == "/dev/null"
    assert (values["ForwardAgent"], values["ForwardX11"], values["RemoteCommand"]) == ("no", "no", "none")


def test_a_silent_host_times_out() -> None:
    values = options(ssh.ssh_command(source()))

    assert (values["ConnectTimeout"], values["ServerAliveInterval"], values["ServerAliveCountMax"]) == ("10", "15", "3")


def test_known_hosts_is_the_accounts_own_whatever_home_is_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere/else")
    expected = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh/known_hosts"

    assert ssh.known_hosts_file(source()) == expected
    assert options(ssh.ssh_command(source()))["UserKnownHostsFile"] == f'"{expected}"'


def test_a_named_key_is_the_only_one_that_is_offered() -> None:
    values = options(ssh.ssh_command(source(ssh_key="/keys/archive")))

    assert (values["IdentitiesOnly"], values["IdentityFile"]) == ("yes", '"/keys/archive"')


def test_without_a_key_openssh_chooses() -> None:
    assert not {"IdentitiesOnly", "IdentityFile"} & options(ssh.ssh_command(source())).keys()


def test_options_that_are_not_set_are_left_to_the_ssh_configuration() -> None:
    command = ssh.ssh_command(source(host="smurf-srv"))

    assert not {"-p", "-l", "-F"} & set(command)


@pytest.mark.parametrize("port", [22, 2222])
def test_options_that_are_set_override_the_ssh_configuration(port: int) -> None:
    command = ssh.ssh_command(source(ssh_port=port, ssh_config="/etc/archive/ssh_config"))

    assert command[1:3] == ["-F", "/etc/archive/ssh_config"]
    assert command[-4:] == ["-p", str(port), "-l", "data"]


def test_rsync_never_becomes_a_master() -> None:
    own = options(ssh.ssh_command(source()))
    shared = options(ssh.ssh_command(source(), Path("/run/user/7/cdc-x/1")))

    assert (own["ControlMaster"], own["ControlPath"]) == ("no", "none")
    assert (shared["ControlMaster"], shared["ControlPath"]) == ("no", '"/run/user/7/cdc-x/1"')


def test_a_path_that_ssh_would_expand_is_refused_with_its_name() -> None:
    with pytest.raises(Misconfigured, match="HOME"):
        ssh.ssh_command(source(ssh_key="/keys/${HOME}/key"))


def test_a_tilde_is_the_accounts_home() -> None:
    home = pwd.getpwuid(os.getuid()).pw_dir

    assert options(ssh.ssh_command(source(ssh_key="~/.ssh/archive")))["IdentityFile"] == f'"{home}/.ssh/archive"'


@pytest.mark.parametrize(
    ("host", "expected"),
    [("smurf-srv", "smurf-srv"), ("data@10.0.0.2", "10.0.0.2"), ("data@fe80::1%eth0", "[fe80::1%eth0]")],
)
def test_an_ipv6_address_is_bracketed_before_rsyncs_colon(host: str, expected: str) -> None:
    assert ssh.rsync_host(source(host=host)) == expected


def test_arguments_for_rsync_are_quoted_only_where_necessary() -> None:
    shell = ssh.remote_shell(source(ssh_key="/key's directory/key"))

    assert shell.startswith("ssh -o BatchMode=yes ")
    assert """'IdentityFile="/key''s directory/key"'""" in shell


def test_no_variable_of_an_operators_shell_reaches_ssh_or_rsync() -> None:
    cleaned = ssh.clean_environment(
        {
            "PATH": "/bin",
            "RSYNC_RSH": "rsh",
            "RSYNC_OLD_ARGS": "1",
            "SSH_AUTH_SOCK": "/x",
            "LC_ALL": "de_DE",
            "HOME": "/h",
        }
    )

    assert cleaned == {"PATH": "/bin", "HOME": "/h", "LC_ALL": "C"}


def test_a_uid_without_an_account_is_reported_before_ssh_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_account(uid: int) -> Never:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", no_account)

    with pytest.raises(Misconfigured, match=rf"uid {os.getuid()} has no passwd entry.*useradd -u {os.getuid()}"):
        ssh.ssh_command(source(known_hosts="/known"))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short XDG_RUNTIME_DIR, and a PATH where a test may put its own `ssh` first."""
    with tempfile.TemporaryDirectory() as directory:  # pytest's own may be too long for a socket
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        yield Path(directory)


def fake_ssh(directory: Path, script: str) -> None:
    program = directory / "ssh"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_a_login_that_hangs_delays_a_copy_for_a_limited_time_and_is_ended(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ssh(runtime, f"echo $$ > {runtime}/pid; trap '' TERM; while :; do sleep 60; done")
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT", 0.5)
    master = ssh.ControlMaster(source())

    began = time.monotonic()
    assert master.ensure() is None
    assert time.monotonic() - began < 2
    master.close()

    assert not _alive(int((runtime / "pid").read_text()), until=5)


def test_a_failing_ssh_means_no_master_and_no_error(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh(runtime, "echo 'ssh: nothing works here' >&2; exit 255")
    master = ssh.ControlMaster(source())

    assert master.ensure() is None
    assert master.output == "ssh: nothing works here\n"
    master.close()


def test_the_socket_directory_is_private_and_is_removed_with_the_master(runtime: Path) -> None:
    fake_ssh(runtime, "exit 255")
    master = ssh.ControlMaster(source())
    master.ensure()

    (directory,) = runtime.glob("cdcssh-*")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    master.close()
    assert not directory.exists()


def test_directories_of_killed_processes_are_removed_and_those_of_living_ones_are_kept(runtime: Path) -> None:
    abandoned = runtime / "cdcssh-abandoned"
    abandoned.mkdir()
    (abandoned / "1").touch()
    unrelated = runtime / "cdc-other"
    unrelated.mkdir()
    first, second = SocketDirectory.make(), SocketDirectory.make()
    assert first is not None
    assert second is not None
    assert not abandoned.exists()
    assert first.path.is_dir()
    assert second.path.is_dir()
    first.remove()
    second.remove()
    assert list(runtime.glob("cdc*")) == [unrelated]


def test_a_runtime_directory_with_a_long_path_is_not_used(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = runtime / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    # The path in ssh's arguments is the one that counts.
    fake_ssh(runtime, f'echo "$@" > {runtime}/arguments; exit 255')
    master = ssh.ControlMaster(source())
    master.ensure()
    master.close()

    path = (runtime / "arguments").read_text().partition('ControlPath="')[2].partition('"')[0]
    assert path
    assert len(path) <= CONTROL_PATH_BYTES
    assert not list(long.iterdir())


def test_a_local_source_has_no_master() -> None:
    assert ssh.ControlMaster(source(host="")).ensure() is None


def _alive(pid: int, until: float) -> bool:
    deadline = time.monotonic() + until
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return True
