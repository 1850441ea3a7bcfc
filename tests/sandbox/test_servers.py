"""The private servers, and the properties on which other tests rely."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pymysql
import pytest

from cdc_archiver.sandbox import (
    NO_PROGRAMS,
    ChildProcess,
    DatabaseServer,
    Sandbox,
    SandboxError,
    SshServer,
    free_port,
    open_database,
    private_server,
)


@pytest.fixture
def own_server(database_server: DatabaseServer, tmp_path: Path) -> Iterator[DatabaseServer]:
    """A server for one test, which may stop and kill it; one of each available kind."""
    server = open_database(database_server.kind, tmp_path / "server")
    server.start()
    yield server
    server.kill()


def eventually(question: Callable[[], bool], timeout: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# Databases


def test_row_binlog_is_on_and_metadata_at_the_servers_default(database_server: DatabaseServer) -> None:
    ((on, row_format, metadata),) = database_server.execute("SELECT @@log_bin, @@binlog_format, @@binlog_row_metadata")

    assert (on, row_format) == (1, "ROW")
    assert metadata == {"mariadb": "NO_LOG", "mysql": "MINIMAL"}[database_server.kind]


def test_the_administrator_is_the_only_account_and_connects_only_by_the_socket(own_server: DatabaseServer) -> None:
    accounts = own_server.execute("SELECT User, Host FROM mysql.user")

    assert [host for user, host in accounts if user == "root"] == ["localhost"]
    assert "" not in [user for user, _ in accounts]
    assert own_server.directory.stat().st_mode & 0o077 == 0
    with pytest.raises(pymysql.err.OperationalError):
        own_server.connect(unix_socket=None, host="127.0.0.1", port=own_server.port)


def test_data_and_port_outlive_a_kill_and_a_restart(own_server: DatabaseServer) -> None:
    own_server.execute("CREATE DATABASE kept")
    own_server.execute("CREATE TABLE kept.t (id INT PRIMARY KEY)")
    own_server.execute("INSERT INTO kept.t VALUES (1)")
    port, pid = own_server.port, own_server.pid

    own_server.kill()
    assert not alive(pid)
    own_server.start()
    own_server.execute("INSERT INTO kept.t VALUES (2)")
    own_server.restart()

    assert own_server.execute("SELECT id FROM kept.t ORDER BY id") == [(1,), (2,)]
    assert own_server.port == port


def test_the_archivers_account_may_do_what_it_needs_and_no_more(own_server: DatabaseServer) -> None:
    own_server.execute("CREATE DATABASE files")
    own_server.execute("CREATE TABLE files.pysmurf_files (id INT PRIMARY KEY, copied TINYINT)")
    own_server.create_archiver_user(
        "archiver", "it's 100%", "files", table="pysmurf_files", history="cdc_archiver_history"
    )

    with (
        contextlib.closing(own_server.connect("archiver", "it's 100%", "files")) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("UPDATE pysmurf_files SET copied = 1 WHERE id = 1")
        cursor.execute("CREATE TABLE cdc_archiver_history (id INT PRIMARY KEY)")
        cursor.execute("DELETE FROM cdc_archiver_history")
        for refused in (
            "INSERT INTO pysmurf_files VALUES (1, 0)",
            "DELETE FROM pysmurf_files",
            "DROP TABLE cdc_archiver_history",
            "CREATE TABLE another (id INT)",
        ):
            with pytest.raises(pymysql.err.MySQLError, match="denied"):
                cursor.execute(refused)


def test_given_server_options_override_the_defaults(database_server: DatabaseServer, tmp_path: Path) -> None:
    with open_database(database_server.kind, tmp_path, options=["--skip-log-bin", "--server-id=7"]) as server:
        assert server.execute("SELECT @@log_bin, @@server_id") == [(0, 7)]


def test_a_directory_may_have_a_long_path(database_server: DatabaseServer, tmp_path: Path) -> None:
    with open_database(database_server.kind, tmp_path / ("long" * 30)) as server:
        assert server.execute("SELECT 1") == [(1,)]
        sockets = server.socket.parent

    del server
    assert eventually(lambda: not sockets.exists())


def test_the_error_quotes_the_log_of_a_server_that_ends_at_its_start(
    database_server: DatabaseServer, tmp_path: Path
) -> None:
    server = open_database(database_server.kind, tmp_path, options=["--no-such-option"])

    with pytest.raises(SandboxError, match="no-such-option"):
        server.start()

    assert not server.running


def test_a_port_that_another_process_takes_is_given_up(
    database_server: DatabaseServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = iter([taken, free_port()])
        monkeypatch.setattr(private_server, "free_port", lambda: next(ports))

        with open_database(database_server.kind, tmp_path) as server:
            assert server.port != taken


def test_a_paused_server_does_not_answer_until_it_is_resumed(own_server: DatabaseServer) -> None:
    own_server.pause()
    with pytest.raises(pymysql.err.OperationalError):
        own_server.connect(read_timeout=0.3, connect_timeout=1)

    own_server.resume()

    assert own_server.execute("SELECT 1") == [(1,)]


def test_two_mysql_servers_have_two_identities(mysql: DatabaseServer, tmp_path: Path) -> None:
    with open_database("mysql", tmp_path) as another:
        assert another.execute("SELECT @@server_uuid") != mysql.execute("SELECT @@server_uuid")


# ssh


@pytest.fixture
def own_ssh(ssh_server: SshServer, tmp_path: Path) -> Iterator[SshServer]:
    """A server for one test, if one is available."""
    with SshServer(tmp_path / "an ssh server") as server:
        yield server


def remote(server: SshServer, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(server.command(*command), capture_output=True, text=True, check=False, timeout=30)


def pull(server: SshServer, source: str, target: Path) -> subprocess.CompletedProcess[str]:
    login = shlex.join(server.command()[:-1])
    command = ["rsync", "-a", "--timeout=20", "-e", login, f"{server.user}@{server.host}:{source}", f"{target}/"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def paramiko_client(server: SshServer) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    client.load_host_keys(str(server.known_hosts))
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    client.connect(
        server.host,
        server.port,
        server.user,
        key_filename=str(server.key),
        allow_agent=False,
        look_for_keys=False,
        timeout=10,
    )
    return client


def test_ssh_logs_in_to_an_account_of_the_servers_own(ssh_server: SshServer) -> None:
    done = remote(ssh_server, 'echo "$USER $HOME $(id -u) ${LD_PRELOAD:-clean} ${LD_LIBRARY_PATH:-clean}"')

    assert done.stdout == f"smurf {ssh_server.home} {os.getuid()} clean clean\n", done.stderr


def test_paramiko_logs_in_and_opens_sftp(ssh_server: SshServer) -> None:
    (ssh_server.home / "seen").write_text("hello")

    with paramiko_client(ssh_server) as client, client.open_sftp() as sftp:
        assert sftp.lstat("seen").st_size == 5


def test_the_remote_path_has_rsync_unless_it_is_replaced(own_ssh: SshServer, tmp_path: Path) -> None:
    (own_ssh.home / "file").write_text("hello")

    assert pull(own_ssh, "file", tmp_path / "first").returncode == 0
    assert (tmp_path / "first" / "file").read_text() == "hello"

    own_ssh.authorize(path=NO_PROGRAMS)
    done = pull(own_ssh, "file", tmp_path / "second")
    assert done.returncode in (12, 127)
    assert "not found" in done.stderr


def test_a_restricted_key_reads_its_directory_and_nothing_else(own_ssh: SshServer, tmp_path: Path) -> None:
    inside = tmp_path / "a directory"
    inside.mkdir()
    (inside / "file").write_text("hello")
    own_ssh.authorize(read_only=inside)

    assert pull(own_ssh, "/", tmp_path / "copy").returncode == 0
    assert (tmp_path / "copy" / "file").read_text() == "hello"
    assert "rrsync error" in remote(own_ssh, "id").stderr


def test_a_revoked_key_is_refused(own_ssh: SshServer) -> None:
    own_ssh.revoke()

    done = remote(own_ssh, "true")

    assert done.returncode == 255
    assert "Permission denied" in done.stderr


def test_a_changed_host_key_is_seen_by_ssh_and_by_paramiko(own_ssh: SshServer) -> None:
    own_ssh.change_host_key()

    assert "Host key verification failed" in remote(own_ssh, "true").stderr
    with pytest.raises(paramiko.BadHostKeyException):
        paramiko_client(own_ssh)

    own_ssh.trust_host_key()
    assert remote(own_ssh, "true").returncode == 0


def test_a_kill_ends_open_sessions_and_the_port_stays(own_ssh: SshServer) -> None:
    port = own_ssh.port
    with subprocess.Popen(
        own_ssh.command("echo $$; exec sleep 600"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as session:
        assert session.stdout is not None
        far_side = int(session.stdout.readline())
        own_ssh.kill()
        assert session.wait(10) == 255
    assert not alive(far_side)

    own_ssh.start()
    assert own_ssh.port == port
    assert remote(own_ssh, "true").returncode == 0


def test_sshd_gives_up_a_port_that_another_process_takes(
    ssh_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = iter([taken, free_port()])
        monkeypatch.setattr(private_server, "free_port", lambda: next(ports))

        with SshServer(tmp_path) as server:
            assert server.port != taken
            assert remote(server, "true").returncode == 0


# The whole stage


def test_a_sandbox_runs_both_and_leaves_nothing(database_server: DatabaseServer, ssh_server: SshServer) -> None:
    sandbox = Sandbox(database_server.kind)

    def use() -> None:
        with sandbox:
            assert sandbox.database.execute("SELECT 1") == [(1,)]
            assert remote(sandbox.ssh, "true").returncode == 0
            subprocess.run(["rsync", "--version"], env=sandbox.environment(), check=True, stdout=subprocess.DEVNULL)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        use()

    assert not sandbox.directory.exists()
    assert not sandbox.database.running
    assert not sandbox.ssh.running


def test_servers_die_with_the_process_that_started_them(mariadb: DatabaseServer, ssh_server: SshServer) -> None:
    program = (
        "import time\nfrom cdc_archiver.sandbox import Sandbox\n"
        "with Sandbox('mariadb') as s:\n"
        "    print(s.directory, s.database.pid, s.ssh.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        directory, *pids = process.stdout.readline().split()
        process.kill()
    try:
        assert len(pids) == 2
        assert eventually(lambda: not any(alive(int(pid)) for pid in pids))
    finally:
        subprocess.run(["rm", "-rf", directory], check=True)


def test_ctrl_c_leaves_nothing(mariadb: DatabaseServer, ssh_server: SshServer) -> None:
    program = (
        "import time\nfrom cdc_archiver.sandbox import Sandbox\n"
        "with Sandbox('mariadb') as s:\n"
        "    print(s.directory, s.database.pid, s.ssh.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        directory, *pids = process.stdout.readline().split()
        process.send_signal(signal.SIGINT)

    assert not Path(directory).exists()
    assert not any(alive(int(pid)) for pid in pids)


# Processes


def test_a_child_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    child = ChildProcess("sleep", ["sleep", "600"], tmp_path / "log")
    starter = threading.Thread(target=child.start)
    starter.start()
    starter.join()
    try:
        assert not child.wait(0.3)
    finally:
        child.stop()
    assert child.returncode == -signal.SIGTERM


def test_a_child_that_ignores_sigterm_is_killed_with_its_own_children(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 600 & echo $!; while :; do sleep 0.05; done"
    child = ChildProcess("stubborn", ["sh", "-c", script], tmp_path / "log")
    child.start()
    assert eventually(lambda: child.log_tail() != "")
    grandchild = int(child.log_tail())

    child.stop(timeout=0.2)

    assert child.returncode == -signal.SIGKILL
    assert not alive(grandchild)


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    child = ChildProcess("nothing", [str(tmp_path / "no-such-program")], tmp_path / "log")

    with pytest.raises(SandboxError, match=r"nothing.*no-such-program"):
        child.start()

    assert not child.running
