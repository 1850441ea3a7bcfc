"""`check` of a source, on real servers: each fault is found, with its fix."""

import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from check_findings import not_ok, settings, the_only
from fake_rsync import FakeRsync
from healthy_site import Source

from cdc_archiver import preflight
from cdc_archiver.errors import ExitStatus
from cdc_archiver.preflight import CheckStatus, Finding, source_findings
from cdc_archiver.sandbox import NO_PROGRAMS, SshServer
from cdc_archiver.sandbox.packages import Tool, bin_directory
from cdc_archiver.settings import SourceSettings, load


@pytest.mark.parametrize("local", [False, True], ids=["remote", "local"])
def test_a_good_source(source: Source, local: bool) -> None:
    findings = source_findings(source(**({"host": "", "user": ""} if local else {})))

    assert not_ok(findings) == []
    assert "is readable" in findings[-1].text


def test_the_host_key_is_unknown(source: Source, tmp_path: Path) -> None:
    mine = source(known_hosts=tmp_path / "known_hosts")

    found = the_only(source_findings(mine))
    assert (found.status, found.exit_status) == (CheckStatus.FAILURE, ExitStatus.UNREACHABLE)
    subprocess.run(found.fix, shell=True, check=True, capture_output=True)

    assert not_ok(source_findings(mine)) == []


def test_the_host_key_changed(source: Source, ssh_server: SshServer) -> None:
    ssh_server.change_host_key()

    found = the_only(source_findings(source()))
    assert "has changed" in found.text
    subprocess.run(found.fix, shell=True, check=True, capture_output=True)

    assert not_ok(source_findings(source())) == []


def test_the_login_is_refused(source: Source, ssh_server: SshServer) -> None:
    ssh_server.revoke()

    found = the_only(source_findings(source()))
    assert "Permission denied" in found.text
    assert found.fix.startswith("ssh-copy-id -p ")


def test_the_host_is_down(source: Source, ssh_server: SshServer) -> None:
    ssh_server.stop()

    found = the_only(source_findings(source()))
    assert "Connection refused" in found.text
    assert found.exit_status is ExitStatus.UNREACHABLE


def test_an_option_that_ssh_no_longer_knows_is_not_the_cause(
    source: Source, ssh_server: SshServer, tmp_path: Path
) -> None:
    configuration = tmp_path / "config"
    configuration.write_text("RSAAuthentication yes\n")
    mine = source(ssh_config=configuration)
    assert not_ok(source_findings(mine)) == []

    ssh_server.stop()
    found = the_only(source_findings(mine))
    assert found.text.endswith("Connection refused")
    assert "--ssh-port" in found.fix


JUMP_HOST = """\
Host {host}
  ProxyJump gate
Host gate
  HostName {host}
  Port {port}
  User {user}
  IdentityFile "{key}"
  IdentitiesOnly yes
  UserKnownHostsFile "{known_hosts}"
"""


@pytest.mark.parametrize("how", ["is down", "refuses the key", "does not reach the host"])
def test_a_jump_host_that_fails_is_named(source: Source, ssh_server: SshServer, tmp_path: Path, how: str) -> None:
    """The jump host is the same server here, under another name."""
    configuration = tmp_path / "config"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = closed.getsockname()[1]
        values = {**vars(ssh_server), "host": ssh_server.host, "port": ssh_server.port, "user": ssh_server.user}
        if how == "is down":
            values["port"] = nobody
        if how == "refuses the key":
            values["key"] = tmp_path / "other"
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", values["key"]], check=True)
        configuration.write_text(JUMP_HOST.format(**values))
        changes = {"ssh_port": nobody} if how == "does not reach the host" else {}

        found = the_only(source_findings(source(ssh_config=configuration, **changes)))

    text, fix = {
        "is down": ("Connection refused", "127.0.0.1 is the jump host"),
        "refuses the key": ("Permission denied", "ssh-copy-id smurf@127.0.0.1  # 127.0.0.1 is the jump host"),
        "does not reach the host": ("open failed", "the jump host does not reach it"),
    }[how]
    assert text in found.text
    assert fix in found.fix


@pytest.mark.parametrize(("limit", "option"), [("CHECKSUM", {}), ("COMPRESS", {"compress": True})])
def test_an_account_that_limits_sums_or_compression(
    source: Source, ssh_server: SshServer, tmp_path: Path, limit: str, option: dict[str, bool]
) -> None:
    limited = FakeRsync(tmp_path / "limited")
    limited.misbehave(f"export RSYNC_{limit}_LIST=none")
    ssh_server.authorize(path=limited.before(f"{bin_directory()}:/usr/bin:/bin"))

    found = the_only(source_findings(source(**option)))
    assert (found.status, found.exit_status) == (CheckStatus.FAILURE, ExitStatus.USAGE)
    assert "was refused by the server" in found.text
    assert f"RSYNC_{limit}_LIST" in found.fix


def test_a_server_whose_algorithms_paramiko_does_not_know(tmp_path: Path, root: Path, source: Source) -> None:
    class PlainNameOnly(SshServer):
        def _settings(self, program: Tool, port: int) -> list[tuple[str, str]]:
            return [("KexAlgorithms", "curve25519-sha256"), *super()._settings(program, port)]

    server = PlainNameOnly(tmp_path / "sshd")
    server.start()
    try:
        found = the_only(source_findings(source(**server.settings)))
    finally:
        server.stop()
    assert "Incompatible ssh peer" in found.text
    assert "curve25519-sha256@libssh.org" in found.fix


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a link to another user")
@pytest.mark.parametrize("local", [False, True], ids=["remote", "local"])
def test_a_directory_link_of_another_user(source: Source, root: Path, local: bool) -> None:
    (root / "day 1").mkdir()
    link = root / "day 1" / "run"
    link.symlink_to(root / "day 1")
    os.lchown(link, 12345, 12345)
    mine = source(**({"host": "", "user": ""} if local else {}))

    found = the_only(source_findings(mine))
    assert found.status is CheckStatus.WARNING
    assert f"{link} is a directory link of a user other than root and the login" in found.text
    subprocess.run(found.fix, shell=True, check=True)

    assert not_ok(source_findings(mine)) == []


def test_rsync_is_missing_on_the_source(source: Source, ssh_server: SshServer) -> None:
    ssh_server.authorize(path=NO_PROGRAMS)

    found = the_only(source_findings(source()))
    assert (found.status, found.exit_status) == (CheckStatus.FAILURE, ExitStatus.USAGE)
    assert "not found" in found.text
    assert "install rsync" in found.fix


def test_an_old_rsync_on_the_source_is_reported_with_its_risk(
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
    assert found.status is CheckStatus.WARNING
    assert found.text.startswith("rsync 3.2.7 on the source: versions before 3.4.0 have security holes")


@pytest.mark.parametrize("local", [False, True], ids=["remote", "local"])
def test_the_source_root_is_missing(source: Source, tmp_path: Path, local: bool) -> None:
    mine = source(source_root=f"{tmp_path}/not mounted", **({"host": "", "user": ""} if local else {}))

    found = the_only(source_findings(mine))
    assert (found.status, found.exit_status) == (CheckStatus.FAILURE, ExitStatus.UNREACHABLE)
    assert found.fix.startswith(f"mount '{tmp_path}/not mounted'  # ")


@pytest.mark.parametrize("local", [False, True], ids=["remote", "local"])
def test_an_empty_source_root_may_be_an_unmounted_disk(source: Source, tmp_path: Path, local: bool) -> None:
    (tmp_path / "empty").mkdir()
    mine = source(source_root=f"{tmp_path}/empty", **({"host": "", "user": ""} if local else {}))

    found = the_only(source_findings(mine))
    assert (found.status, "is its disk mounted" in found.text) == (CheckStatus.WARNING, True)


def test_a_restricted_key_is_fine_once_it_is_configured(source: Source, ssh_server: SshServer) -> None:
    ssh_server.authorize(read_only=Path(source().source_root))

    found = the_only(source_findings(source()))
    assert found.fix.startswith("restricted_key = true")

    assert not_ok(source_findings(source(restricted_key=True))) == []


def test_a_source_that_only_openssh_reaches_is_a_warning(source: Source, ssh_server: SshServer, tmp_path: Path) -> None:
    configuration = tmp_path / "config"
    configuration.write_text(f"ProxyCommand {_netcat(tmp_path)} %h %p\n")

    found = the_only(source_findings(source(ssh_config=configuration)))
    assert found.status is CheckStatus.WARNING
    assert "cannot diagnose" in found.text
    assert "proxycommand" in found.text


def test_sources_are_checked_in_parallel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=10)

    def slow(source: SourceSettings) -> list[Finding]:
        together.wait()
        return [Finding(f"source {source.name}", CheckStatus.OK, "")]

    monkeypatch.setattr(preflight, "source_findings", slow)
    both = ({"name": "a", "target": ("a",)}, {"name": "b", "target": ("b",)})
    report = preflight.run_checks(load(flags={"sources": both, "mysql_port": 1, "data_dir": tmp_path}, environment={}))

    assert {"source a", "source b"} <= {finding.subject for finding in report.findings}


def test_rsync_is_missing_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Source) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert the_only(preflight.machine_findings(settings())).fix == "apt-get install rsync"
    assert the_only(source_findings(source())).fix == "apt-get install rsync"


def _netcat(directory: Path) -> Path:
    """A program that joins its standard input and output to a port: what a jump host does."""
    program = directory / "netcat"
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
