"""A real sshd: the shared connection and its end, failures as seen by ssh and by paramiko, diagnosis, odd names."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from healthy_site import Source

from cdc_archiver.errors import HostUnavailable
from cdc_archiver.model import Reason
from cdc_archiver.sandbox import NO_PROGRAMS, SshServer
from cdc_archiver.settings import SourceSettings
from cdc_archiver.transfer import ssh
from cdc_archiver.transfer.probe import Probe, ProbeUnavailable, SourceInspection
from cdc_archiver.transfer.source_files import FileState
from cdc_archiver.transfer.ssh import ControlMaster
from cdc_archiver.transfer.ssh_errors import SshEndpoint, SshFailure, classify_ssh_failure


@pytest.fixture
def master(source: Source) -> Iterator[ControlMaster]:
    started = ControlMaster(source())
    yield started
    started.close()


pytestmark = pytest.mark.usefixtures("as_it_was")


def fetch(
    source: SourceSettings, directory: Path, control_path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """An rsync of all of the source root."""
    root = "/" if source.restricted_key else f"{source.source_root}/"
    return subprocess.run(
        [
            "rsync",
            "-r",
            "-e",
            ssh.remote_shell(source, control_path),
            "--",
            f"{ssh.rsync_host(source)}:{root}",
            f"{directory}/",
        ],
        check=False,
        env=ssh.clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


def failure(source: SourceSettings, directory: Path) -> SshFailure:
    """The ssh failure that an rsync ends with."""
    done = fetch(source, directory)
    found = classify_ssh_failure(done.stderr, ssh.ssh_endpoint(source))
    # 255 is ssh's. Where rsync sees the end of the pipe before the end of ssh, it says 12 instead.
    assert done.returncode in (12, 255), done
    assert found is not None, done.stderr
    return found


def eventually(question: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def pid_of(master_socket: Path) -> int:
    answer = subprocess.run(
        ["ssh", "-O", "check", "-o", f"ControlPath={master_socket}", "any"], check=True, capture_output=True, text=True
    )
    return int(answer.stderr.partition("pid=")[2].partition(")")[0])


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def logins(server: SshServer) -> int:
    return server.log.read_text().count("Accepted publickey")


# --- the shared connection


def test_workers_share_one_login(master: ControlMaster, source: Source, ssh_server: SshServer, tmp_path: Path) -> None:
    before = logins(ssh_server)
    statuses: list[int] = []

    def work(number: int) -> None:
        statuses.append(fetch(source(), tmp_path / str(number), master.ensure()).returncode)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert statuses == [0, 0, 0, 0]
    assert logins(ssh_server) == before + 1


def test_the_connection_comes_back_after_the_server_did(
    master: ControlMaster, source: Source, ssh_server: SshServer, tmp_path: Path
) -> None:
    first = master.ensure()
    ssh_server.restart()

    assert eventually(lambda: master.ensure() not in (None, first))
    assert fetch(source(), tmp_path / "copy", master.ensure()).returncode == 0


def test_a_socket_whose_master_was_killed_is_replaced(master: ControlMaster) -> None:
    first = master.ensure()
    assert first is not None
    os.kill(pid_of(first), signal.SIGKILL)

    assert eventually(lambda: master.ensure() not in (None, first))
    assert eventually(lambda: not first.exists())


def test_a_master_that_no_longer_answers_is_replaced(master: ControlMaster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "_CHECK_EVERY", 0.0)
    monkeypatch.setattr(ssh, "_CHECK_LIMIT", 0.3)
    first = master.ensure()
    assert first is not None
    stopped = pid_of(first)
    os.kill(stopped, signal.SIGSTOP)

    second = master.ensure()

    assert second not in (None, first)
    assert eventually(lambda: is_gone(stopped))


def test_a_copy_makes_its_own_connection_where_the_socket_is_dead(source: Source, tmp_path: Path) -> None:
    dead = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))  # nothing listens on it, and nothing removes it

    done = fetch(source(), tmp_path / "copy", dead)

    assert done.returncode == 0
    assert "Connection refused" in done.stderr  # of the socket; it must not pass for the host's
    assert classify_ssh_failure(done.stderr, ssh.ssh_endpoint(source())) is None


def test_a_renewed_connection_logs_in_again(master: ControlMaster, ssh_server: SshServer) -> None:
    first, before = master.ensure(), logins(ssh_server)

    master.renew()

    assert master.ensure() not in (None, first)
    assert logins(ssh_server) == before + 1


def test_closing_leaves_neither_process_nor_directory_and_is_final(master: ControlMaster) -> None:
    path = master.ensure()
    assert path is not None
    pid = pid_of(path)

    master.close()

    assert eventually(lambda: is_gone(pid))
    assert not path.parent.exists()
    assert master.ensure() is None


def test_the_connection_ends_with_the_process_that_made_it(source: Source) -> None:
    if not ssh.dies_with_parent([]):
        pytest.skip("this machine has no setpriv that can do it")
    program = (
        "import sys, time; from cdc_archiver.settings import SourceSettings\n"
        "from cdc_archiver.transfer.ssh import ControlMaster\n"
        "master = ControlMaster(SourceSettings.model_validate_json(sys.argv[1]))\n"
        "print(master.ensure(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, source().model_dump_json()], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        pid = pid_of(path)
        process.kill()

    assert eventually(lambda: is_gone(pid))
    shutil.rmtree(path.parent, ignore_errors=True)  # whoever starts a connection next removes what the dead have left


def test_a_host_that_is_down_gives_no_socket_and_its_error_is_kept(
    master: ControlMaster, ssh_server: SshServer
) -> None:
    ssh_server.stop()

    assert master.ensure() is None
    assert "Connection refused" in master.output


def test_a_frozen_host_delays_a_copy_no_longer_than_the_limit(
    master: ControlMaster, ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT", 0.5)
    ssh_server.pause()

    began = time.monotonic()
    assert master.ensure() is None
    assert time.monotonic() - began < 1.5

    ssh_server.resume()
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT", 10)
    assert eventually(lambda: master.ensure() is not None)


# --- odd names


def test_paths_with_blanks_and_quotes_reach_ssh_whole(
    source: Source, ssh_server: SshServer, tmp_path: Path, master: ControlMaster
) -> None:
    odd = tmp_path / """a 'key' of "ours", 100%h \\ """
    odd.mkdir()
    key, known_hosts = odd / "key", odd / "known hosts"
    shutil.copy(ssh_server.key, key)
    shutil.copy(ssh_server.known_hosts, known_hosts)
    mine = source(ssh_key=key, known_hosts=known_hosts)

    assert fetch(mine, tmp_path / "copy").returncode == 0
    assert (tmp_path / "copy" / "file").read_text() == "what was measured"
    assert Probe(mine).inspect().rsync
    shared = ControlMaster(mine)
    assert shared.ensure() is not None
    shared.close()


@pytest.mark.parametrize(
    "word", ["plain", "two words", "it's", 'say "so"', "''", '"\'"', "a\\b", "a  b", "'begins", "ends'", "tab\there"]
)
def test_rsync_splits_the_remote_shell_into_the_intended_arguments(
    ssh_server: SshServer, source: Source, tmp_path: Path, word: str
) -> None:
    heard = tmp_path / "heard"
    listener = tmp_path / "listener"
    listener.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > {heard}\n')
    listener.chmod(0o755)
    shell = " ".join(ssh._quoted_for_rsync(part) for part in (str(listener), word, "last"))

    subprocess.run(["rsync", "-e", shell, "--", "host:/x", str(tmp_path)], check=False, capture_output=True, timeout=20)

    assert heard.read_text().split("\0")[:3] == [word, "last", "host"]


def test_the_users_ssh_configuration_applies_where_nothing_is_set(
    ssh_server: SshServer, tmp_path: Path, root: Path
) -> None:
    configuration = tmp_path / "config"
    configuration.write_text(
        f"Host readout\n  HostName {ssh_server.host}\n  Port {ssh_server.port}\n  User {ssh_server.user}\n"
        f"  IdentityFile {ssh_server.key}\n  RequestTTY force\n  RemoteCommand cat\n  LogLevel QUIET\n"
    )
    mine = SourceSettings.model_validate(
        {
            "name": "readout",
            "host": "readout",
            "target": ("monitor",),
            "known_hosts": ssh_server.known_hosts,
            "ssh_config": configuration,
            "source_root": str(root),
        }
    )

    assert fetch(mine, tmp_path / "copy").returncode == 0
    assert Probe(mine).inspect().root is FileState.OK


# --- failures: ssh's messages and paramiko give the same reason


def test_an_unknown_host_key(source: Source, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known hosts"
    mine = source(known_hosts=known_hosts)

    found = failure(mine, tmp_path)
    with pytest.raises(HostUnavailable) as seen:
        Probe(mine).inspect()

    assert (found.reason, seen.value.reason) == (Reason.HOST_KEY, Reason.HOST_KEY)
    assert found.hint == seen.value.hint
    subprocess.run(found.hint, shell=True, check=True, capture_output=True)  # a person compares the fingerprint first
    assert fetch(mine, tmp_path / "copy").returncode == 0


def test_a_changed_host_key(source: Source, ssh_server: SshServer, tmp_path: Path) -> None:
    ssh_server.change_host_key()

    found = failure(source(), tmp_path)
    with pytest.raises(HostUnavailable, match="differs from the one") as seen:
        Probe(source()).inspect()

    assert (found.reason, seen.value.reason) == (Reason.HOST_KEY, Reason.HOST_KEY)
    assert "has changed" in found.message
    assert found.hint == seen.value.hint
    subprocess.run(found.hint, shell=True, check=True, capture_output=True)
    assert fetch(source(), tmp_path / "copy").returncode == 0


def test_a_refused_login(source: Source, ssh_server: SshServer, tmp_path: Path) -> None:
    ssh_server.revoke()

    found = failure(source(), tmp_path)
    with pytest.raises(HostUnavailable) as seen:
        Probe(source()).inspect()

    assert (found.reason, seen.value.reason) == (Reason.LOGIN_REFUSED, Reason.LOGIN_REFUSED)
    assert f"ssh-copy-id -p {ssh_server.port} -i " in found.hint
    assert found.hint == seen.value.hint


def test_a_host_that_is_down(source: Source, ssh_server: SshServer, tmp_path: Path) -> None:
    ssh_server.stop()

    with pytest.raises(HostUnavailable) as seen:
        Probe(source()).inspect()

    assert failure(source(), tmp_path).reason is Reason.HOST_UNREACHABLE
    assert seen.value.reason is Reason.HOST_UNREACHABLE


def test_an_unknown_host_name(source: Source, tmp_path: Path) -> None:
    mine = source(host="no-such-host.invalid")

    with pytest.raises(HostUnavailable) as seen:
        Probe(mine).inspect()

    assert failure(mine, tmp_path).reason is Reason.HOST_UNREACHABLE
    assert seen.value.reason is Reason.HOST_UNREACHABLE


def test_a_key_that_others_may_read_is_fixed_by_its_hint(source: Source, ssh_server: SshServer, tmp_path: Path) -> None:
    key = tmp_path / "my key"
    shutil.copy(ssh_server.key, key)
    key.chmod(0o644)
    mine = source(ssh_key=key)

    found = failure(mine, tmp_path)

    assert (found.reason, shlex.split(found.hint)) == (Reason.LOGIN_REFUSED, ["chmod", "600", str(key)])
    subprocess.run(found.hint, shell=True, check=True)
    assert fetch(mine, tmp_path / "copy").returncode == 0


def test_a_missing_key(source: Source, tmp_path: Path) -> None:
    found = failure(source(ssh_key=tmp_path / "none"), tmp_path)

    assert found.reason is Reason.LOGIN_REFUSED
    assert found.message == f"no such identity: {tmp_path}/none: No such file or directory"


def test_a_file_that_is_not_a_key(source: Source, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("no key at all\n")
    key.chmod(0o600)

    found = failure(source(ssh_key=key), tmp_path)

    assert found.reason is Reason.LOGIN_REFUSED
    assert found.message.startswith(f'Load key "{key}": ')


def test_more_keys_than_the_server_accepts(source: Source, tmp_path: Path) -> None:
    lines = []
    for number in range(7):
        key = tmp_path / f"key{number}"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        lines.append(f"IdentityFile {key}\n")
    configuration = tmp_path / "config"
    configuration.write_text("".join(lines))

    found = failure(source(ssh_config=configuration, ssh_key=tmp_path / "key0"), tmp_path)

    assert found.reason is Reason.LOGIN_REFUSED
    assert "Too many authentication failures" in found.message


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("KexAlgorithms diffie-hellman-group1-sha1", Reason.LOGIN_REFUSED),
        ("HostKeyAlgorithms ssh-rsa", Reason.HOST_KEY),
        ("NoSuchOption yes", Reason.LOGIN_REFUSED),
        ("ProxyCommand false", Reason.HOST_UNREACHABLE),
    ],
)
def test_errors_in_the_ssh_configuration(source: Source, tmp_path: Path, option: str, reason: Reason) -> None:
    configuration = tmp_path / "config"
    configuration.write_text(f"{option}\n")

    assert failure(source(ssh_config=configuration), tmp_path).reason is reason


@pytest.mark.parametrize("how", ["down", "refused"])
def test_an_option_that_ssh_no_longer_knows_is_not_the_cause(
    source: Source, ssh_server: SshServer, tmp_path: Path, how: str
) -> None:
    configuration = tmp_path / "config"
    configuration.write_text("RSAAuthentication yes\n")
    mine = source(ssh_config=configuration)
    assert fetch(mine, tmp_path / "copy").stderr.startswith(f'{configuration} line 1: Unsupported option "rsa')
    if how == "down":
        ssh_server.stop()
    else:
        ssh_server.revoke()

    found = failure(mine, tmp_path)

    expected = (
        (Reason.HOST_UNREACHABLE, "Connection refused") if how == "down" else (Reason.LOGIN_REFUSED, "(publickey).")
    )
    assert (found.reason, found.message.endswith(expected[1])) == (expected[0], True)


def test_a_link_that_is_cut_in_mid_copy(source: Source, ssh_server: SshServer, root: Path, tmp_path: Path) -> None:
    (root / "large").write_bytes(bytes(20_000_000))
    mine = source()
    command = [
        "rsync",
        "-r",
        "--bwlimit=1m",
        "-e",
        ssh.remote_shell(mine),
        "--",
        f"{mine.host}:{root}/",
        f"{tmp_path}/copy/",
    ]
    with subprocess.Popen(command, env=ssh.clean_environment(), stderr=subprocess.PIPE, text=True) as process:
        assert eventually(lambda: any((tmp_path / "copy").glob(".large.*")))
        ssh_server.kill()
        stderr = process.communicate(timeout=30)[1]

    assert process.returncode in (12, 255)
    # rsync may end its ssh before that prints anything; then only its exit status is known.
    found = classify_ssh_failure(stderr, ssh.ssh_endpoint(mine))
    assert found is None or found.reason is Reason.LINK_LOST


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run ssh as a uid that has no account")
def test_a_uid_without_an_account() -> None:
    done = subprocess.run(
        ["setpriv", "--reuid", "54321", "--clear-groups", "ssh", "-F", "/dev/null", "127.0.0.1"],
        check=False,
        capture_output=True,
        text=True,
    )

    found = classify_ssh_failure(done.stderr, SshEndpoint("127.0.0.1", None, "", "/k", ""))
    assert found is not None
    assert (found.reason, found.message) == (Reason.LOGIN_REFUSED, "No user exists for uid 54321")


# --- inspection and diagnosis through paramiko


def test_an_inspection_reports_rsync_and_the_root(source: Source) -> None:
    seen = Probe(source()).inspect()

    assert seen.root is FileState.OK
    assert seen.rsync[0].isdigit()
    assert (seen.rsync_missing, seen.unknown_because) == (False, "")


def test_an_inspection_reports_a_missing_rsync(source: Source, ssh_server: SshServer) -> None:
    ssh_server.authorize(path=NO_PROGRAMS)

    assert Probe(source()).inspect() == SourceInspection(rsync="", rsync_missing=True, root=FileState.OK)


@pytest.mark.parametrize("local", [False, True], ids=["sftp", "local"])
def test_each_file_that_did_not_arrive_is_diagnosed(source: Source, root: Path, local: bool) -> None:
    (root / "directory").mkdir()
    (root / "link").symlink_to("file")
    (root / os.fsdecode(b"latin-\xe9")).write_text("x")
    mine = source(host="", user="") if local else source()
    expected = {
        f"{root}/file": FileState.OK,
        f"{root}/directory": FileState.NOT_A_FILE,
        f"{root}/link": FileState.NOT_A_FILE,
        f"{root}/none": FileState.MISSING,
        f"{root}/file/below": FileState.MISSING,
        f"{root}/with\0nul": FileState.MISSING,
        str(root / os.fsdecode(b"latin-\xe9")): FileState.OK,
        str(root / os.fsdecode(b"latin-\xea")): FileState.MISSING,
    }

    assert Probe(mine).diagnose(list(expected)) == expected


@pytest.mark.parametrize("local", [False, True], ids=["sftp", "local"])
@pytest.mark.parametrize("gone", ["empty", "absent"])
def test_an_unmounted_disk_is_not_a_missing_file(source: Source, tmp_path: Path, gone: str, local: bool) -> None:
    (tmp_path / "empty").mkdir()
    mine = source(source_root=str(tmp_path / gone), **({"host": "", "user": ""} if local else {}))

    assert set(Probe(mine).diagnose(["/a", "/b"]).values()) == {FileState.ROOT_GONE}


def test_a_restricted_key_copies_and_cannot_be_inspected(
    source: Source, ssh_server: SshServer, root: Path, tmp_path: Path
) -> None:
    ssh_server.authorize(read_only=root)
    mine = source(restricted_key=True)

    assert fetch(mine, tmp_path / "copy").returncode == 0
    for each in (mine, source()):
        seen = Probe(each).inspect()
        assert (seen.rsync, seen.rsync_missing, seen.root) == ("", False, FileState.CANNOT_TELL)
        assert "rrsync" in seen.unknown_because
        assert Probe(each).diagnose([f"{root}/file"]) == {f"{root}/file": FileState.CANNOT_TELL}


@pytest.mark.parametrize("option", ["ProxyJump elsewhere", "ProxyCommand nc %h %p", "HostKeyAlias other"])
def test_an_ssh_configuration_that_only_openssh_supports_cannot_be_inspected(
    source: Source, tmp_path: Path, option: str
) -> None:
    configuration = tmp_path / "config"
    configuration.write_text(f"{option}\n")
    mine = source(ssh_config=configuration)

    with pytest.raises(ProbeUnavailable, match=option.split()[0].lower()):
        Probe(mine).inspect()
    assert Probe(mine).diagnose(["/a"]) == {"/a": FileState.CANNOT_TELL}


def test_a_frozen_host_ends_a_diagnosis_at_the_limit(source: Source, ssh_server: SshServer) -> None:
    ssh_server.pause()

    began = time.monotonic()
    assert Probe(source(), limit=0.5).diagnose(["/a"]) == {"/a": FileState.UNREACHABLE}
    assert time.monotonic() - began < 3
