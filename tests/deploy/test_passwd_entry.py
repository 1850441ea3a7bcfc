"""A uid without an account, as a container may have: OpenSSH refuses it, so it is lent one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_site import PrivateSite, new_private_site

from cdc_archiver.sandbox import MariaDb, SshServer
from cdc_archiver.sandbox.packages import find_library
from cdc_archiver.transfer import passwd_entry

WITHOUT_ACCOUNT = ("unshare", "--user", "--map-user=54321", "--map-group=54321", "--")


@pytest.fixture
def stage(mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    tried = subprocess.run([*WITHOUT_ACCOUNT, "true"], check=False, capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no other uid is to be had here: {tried.stderr.strip()}")
    with new_private_site(mariadb, ssh_server, tmp_path) as built:
        yield built


def test_a_uid_without_an_account_archives_over_ssh(stage: PrivateSite) -> None:
    libraries = find_library("libnss_wrapper.so").parent
    interpreter = [*WITHOUT_ACCOUNT, "env", f"LD_LIBRARY_PATH={libraries}", sys.executable, "-m", "cdc_archiver"]
    file = stage.file("a.npy")
    with stage.program(interpreter=interpreter):
        stage.wait_archived(*stage.register(file))
    assert stage.place(file).read_bytes() == file.content


def test_without_the_library_the_operator_is_told_the_fix(stage: PrivateSite) -> None:
    environment = stage.environment() | {"LD_LIBRARY_PATH": ""}
    done = subprocess.run(
        [*WITHOUT_ACCOUNT, sys.executable, "-S", "-c", "import ctypes; ctypes.CDLL('libnss_wrapper.so')"],
        check=False,
        capture_output=True,
        env=environment,
    )
    if done.returncode == 0:
        pytest.skip("libnss_wrapper is installed on this machine")
    done = subprocess.run(
        [*WITHOUT_ACCOUNT, sys.executable, "-m", "cdc_archiver", "check", *stage.flags()],
        check=False,
        capture_output=True,
        env=environment,
        timeout=60,
    )
    assert "uid 54321 has no passwd entry" in " ".join(done.stdout.decode().split())


def test_who_has_an_account_is_lent_none() -> None:
    assert passwd_entry.passwd_entry_environment({}) == {}


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"HOME": "/home/ocs", "USER": "ocs"}, "ocs:x:5:6::/home/ocs:/bin/sh"),
        ({}, "archiver:x:5:6::/:/bin/sh"),
        ({"HOME": "relative", "USER": "a:b"}, "archiver:x:5:6::/:/bin/sh"),
        ({"HOME": "/a:b", "USER": "x\nroot:x:0:0::/:/bin/sh"}, "archiver:x:5:6::/:/bin/sh"),
    ],
)
def test_the_entry_is_one_line_whatever_the_variables_say(environment: dict[str, str], line: str) -> None:
    assert passwd_entry.passwd_entry(5, 6, environment) == line


def test_it_is_lent_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    # What was started anew with it, and still finds no account, goes on without one.
    assert passwd_entry.passwd_entry_environment({"NSS_WRAPPER_PASSWD": "/proc/1/fd/3"}) == {}
