"""Accounts that cannot serve, on the real sshd: the copy and `check` say which kind it is, and the fix."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from check_findings import the_only
from copier_setup import CopierSetup, archived, reason, staged

from cdc_archiver.model import Reason
from cdc_archiver.preflight import source_findings
from cdc_archiver.sandbox import SshServer


@pytest.fixture
def server(tmp_path: Path, ssh_server: SshServer) -> Iterator[SshServer]:
    server = SshServer(tmp_path / "sshd")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def stage(tmp_path: Path, server: SshServer) -> Iterator[CopierSetup]:
    yield from staged(CopierSetup(tmp_path / "source", tmp_path / "data", server.settings))


def shell(server: SshServer, program: str) -> None:
    accounts = server.directory / "passwd"
    first, *others = accounts.read_text().splitlines()
    accounts.write_text("\n".join([f"{first.rpartition(':')[0]}:{program}", *others]) + "\n")


def nologin(server: SshServer) -> None:
    shell(server, "/usr/sbin/nologin")


def false(server: SshServer) -> None:
    shell(server, "/bin/false")


def greeting(server: SshServer) -> None:
    shell(server, "/bin/bash")
    (server.home / ".bashrc").write_text("echo 'Welcome to smurf-srv!'\n")


def sftp_only(server: SshServer) -> None:
    keys = server.directory / "authorized_keys"
    keys.write_text(f'command="internal-sftp",{keys.read_text()}')


@pytest.mark.parametrize(
    ("spoil", "message", "fix"),
    [
        (nologin, "runs no commands: it answers 'This account is currently not available.'", "chsh -s /bin/sh smurf"),
        (false, "runs no commands: it ends without an answer", "chsh -s /bin/sh smurf"),
        (greeting, "the start-up files of the account smurf@127.0.0.1 print 'Welcome to smurf-srv!'", "~/.bashrc"),
        (sftp_only, "the account smurf@127.0.0.1 is for SFTP only", "ForceCommand internal-sftp"),
    ],
)
def test_an_account_that_cannot_serve_is_named_with_its_fix(
    stage: CopierSetup, server: SshServer, spoil: Callable[[SshServer], None], message: str, fix: str
) -> None:
    file = stage.file("a.npy")
    spoil(server)

    outcome = stage.copy(file)[file.id]
    assert reason(outcome) is Reason.RSYNC_REFUSED
    assert message in getattr(outcome, "detail")  # noqa: B009 - a union's member
    found = the_only(source_findings(stage.settings.sources[0]))
    assert message in found.text
    assert fix in found.fix

    # A fix counts from the next login, and the next try makes one.
    shell(server, "/bin/sh")
    server.authorize()
    archived(stage.copy(file)[file.id], b"a.npy")


def test_start_up_files_are_silent_after_the_fix(stage: CopierSetup, server: SshServer) -> None:
    greeting(server)
    command, _, _ = the_only(source_findings(stage.settings.sources[0])).fix.partition("  #")
    assert command.startswith("sed -i ")

    subprocess.run(command.replace("~", str(server.home)), shell=True, check=True)

    file = stage.file("a.npy")
    archived(stage.copy(file)[file.id], b"a.npy")
