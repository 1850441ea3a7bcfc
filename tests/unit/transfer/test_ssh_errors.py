"""ssh's error messages, as captured from OpenSSH 9.2: the reason and the hint for each."""

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cdc_archiver.model import Reason, Scope
from cdc_archiver.transfer.ssh_errors import SshEndpoint, classify_ssh_failure

ENDPOINT = SshEndpoint(
    host="smurf-srv", port=2222, user="data", known_hosts="/home/archive/.ssh/known_hosts", key="/keys/archive"
)

CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Someone could be eavesdropping on you right now (man-in-the-middle attack)!
It is also possible that a host key has just been changed.
The fingerprint for the ED25519 key sent by the remote host is
SHA256:31ShjurGUng+Sx+NccobRhmVH6zg2IQzpm0ZE0brRc0.
Please contact your system administrator.
Add correct host key in /home/archive/.ssh/known_hosts to get rid of this message.
Offending ED25519 key in /home/archive/.ssh/known_hosts:1
  remove with:
  ssh-keygen -f "/home/archive/.ssh/known_hosts" -R "[smurf-srv]:2222"
Host key for [smurf-srv]:2222 has changed and you have requested strict checking.
Host key verification failed.
"""

UNPROTECTED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@         WARNING: UNPROTECTED PRIVATE KEY FILE!          @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
Permissions 0644 for '/keys/archive' are too open.
It is required that your private key files are NOT accessible by others.
This private key will be ignored.
Load key "/keys/archive": bad permissions
data@smurf-srv: Permission denied (publickey).
"""

UNREACHABLE, REFUSED, HOST_KEY, LOST = (
    Reason.HOST_UNREACHABLE,
    Reason.LOGIN_REFUSED,
    Reason.HOST_KEY,
    Reason.LINK_LOST,
)


@pytest.mark.parametrize(
    ("stderr", "reason", "in_message", "in_hint"),
    [
        pytest.param(
            "ssh: connect to host 127.0.0.1 port 2222: Connection refused\n",
            UNREACHABLE,
            "refused",
            "--ssh-port",
            id="closed",
        ),
        pytest.param(
            "ssh: connect to host 2001:db8::1 port 22: No route to host\n",
            UNREACHABLE,
            "No route",
            "host is up",
            id="no-route",
        ),
        pytest.param(
            "ssh: connect to host 10.0.0.9 port 22: Network is unreachable\n",
            UNREACHABLE,
            "Network",
            "network",
            id="network",
        ),
        pytest.param(
            "ssh: connect to host 2001:db8::1 port 22: Connection timed out\n",
            UNREACHABLE,
            "timed out",
            "host is up",
            id="timeout",
        ),
        pytest.param(
            "Connection timed out during banner exchange\nConnection to 10.255.255.1 port 22 timed out\n",
            UNREACHABLE,
            "banner exchange",
            "no sshd answers",
            id="mute",
        ),
        pytest.param(
            "ssh: Could not resolve hostname smurf-srv: Name or service not known\n",
            UNREACHABLE,
            "resolve",
            "name",
            id="name",
        ),
        pytest.param(
            "ssh: Could not resolve hostname smurf-srv: Temporary failure in name resolution\n",
            UNREACHABLE,
            "Temporary",
            "name",
            id="name-service",
        ),
        pytest.param(
            "ssh: Could not resolve hostname jump: Name or service not known\n"
            "kex_exchange_identification: Connection closed by remote host\nConnection closed by UNKNOWN port 65535\n",
            UNREACHABLE,
            "hostname jump",
            "name",
            id="jump-host-name",
        ),
        pytest.param(
            "kex_exchange_identification: read: Connection reset by endpoint\nConnection reset by 127.0.0.1 port 54981\n",
            UNREACHABLE,
            "kex_exchange_identification",
            "too many",
            id="reset-before-login",
        ),
        pytest.param(
            "kex_exchange_identification: Connection closed by remote host\nConnection closed by 10.0.0.2 port 22\n",
            UNREACHABLE,
            "closed by remote host",
            "address filter",
            id="tcp-wrapper",
        ),
        pytest.param(
            "Protocol major versions differ: 2 vs. 1\n"
            "banner exchange: Connection to 127.0.0.1 port 35251: could not read protocol version\n",
            UNREACHABLE,
            "Protocol major versions",
            "another service",
            id="not-ssh-2",
        ),
        pytest.param(
            "No ED25519 host key is known for [smurf-srv]:2222 and you have requested strict checking.\n"
            "Host key verification failed.\n",
            HOST_KEY,
            "No ED25519 host key is known",
            "ssh-keyscan -p 2222 smurf-srv >> /home/archive/.ssh/known_hosts",
            id="host-key-unknown",
        ),
        pytest.param(
            "No ED25519 host key is known for 192.168.7.2 and you have requested strict checking.\n"
            "Host key verification failed.\n",
            HOST_KEY,
            "192.168.7.2",
            "ssh-keyscan 192.168.7.2 >> /home/archive/.ssh/known_hosts",
            id="host-key-unknown-under-the-name-of-the-configuration",
        ),
        pytest.param(
            CHANGED,
            HOST_KEY,
            "has changed and you have requested",
            "ssh-keygen -f /home/archive/.ssh/known_hosts -R '[smurf-srv]:2222'; ssh-keyscan -p 2222 smurf-srv >>",
            id="host-key-changed",
        ),
        pytest.param(
            "ED25519 host key for smurf-srv was revoked and you have requested strict checking.\n"
            "Host key verification failed.\n",
            HOST_KEY,
            "revoked",
            "find out why",
            id="host-key-revoked",
        ),
        pytest.param("Host key verification failed.\n", HOST_KEY, "verification failed", "ssh-keyscan", id="host-key"),
        pytest.param(
            "Unable to negotiate with 10.0.0.2 port 22: no matching host key type found. Their offer: ssh-rsa,ssh-dss\n",
            HOST_KEY,
            "Their offer: ssh-rsa",
            "ed25519",
            id="host-key-type",
        ),
        pytest.param(
            "Unable to negotiate with 10.0.0.2 port 22: no matching key exchange method found. "
            "Their offer: diffie-hellman-group1-sha1\n",
            REFUSED,
            "key exchange",
            "update its sshd",
            id="key-exchange",
        ),
        pytest.param(
            "Unable to negotiate with 10.0.0.2 port 22: no matching cipher found. Their offer: 3des-cbc\n",
            REFUSED,
            "cipher",
            "old algorithms",
            id="cipher",
        ),
        pytest.param(
            "data@smurf-srv: Permission denied (publickey).\n",
            REFUSED,
            "Permission denied",
            "ssh-copy-id -p 2222 -i /keys/archive data@smurf-srv",
            id="key-refused",
        ),
        pytest.param(
            "data@smurf-srv: Permission denied (publickey,gssapi-keyex,gssapi-with-mic,password).\n",
            REFUSED,
            "gssapi",
            "ssh-copy-id",
            id="every-way-refused",
        ),
        pytest.param(
            "no such identity: /keys/archive: No such file or directory\ndata@smurf-srv: Permission denied (publickey).\n",
            REFUSED,
            "no such identity",
            "ssh-keygen -t ed25519 -N '' -f /keys/archive",
            id="key-missing",
        ),
        pytest.param(
            "no such identity: /keys/archive: Permission denied\ndata@smurf-srv: Permission denied (publickey).\n",
            REFUSED,
            "no such identity",
            "this user can read",
            id="key-directory-closed",
        ),
        pytest.param(UNPROTECTED, REFUSED, "bad permissions", "chmod 600 /keys/archive", id="key-unprotected"),
        pytest.param(
            'Load key "/keys/archive": Permission denied\ndata@smurf-srv: Permission denied (publickey).\n',
            REFUSED,
            "Load key",
            "this user can read",
            id="key-unreadable",
        ),
        pytest.param(
            'Load key "/keys/archive": error in libcrypto\ndata@smurf-srv: Permission denied (publickey).\n',
            REFUSED,
            "libcrypto",
            "private key",
            id="key-is-none",
        ),
        pytest.param(
            "Received disconnect from 127.0.0.1 port 2222:2: Too many authentication failures\n"
            "Disconnected from 127.0.0.1 port 2222\n",
            REFUSED,
            "Too many authentication failures",
            "--ssh-key",
            id="too-many-keys",
        ),
        pytest.param("No user exists for uid 54321\n", REFUSED, "54321", "passwd entry", id="uid-without-account"),
        pytest.param(
            "/home/archive/.ssh/config: line 3: Bad configuration option: nosuchoption\n"
            "/home/archive/.ssh/config: terminating, 1 bad configuration options\n",
            REFUSED,
            "line 3",
            "~/.ssh/config",
            id="configuration",
        ),
        pytest.param(
            "Can't open user config file /etc/archive/ssh: No such file or directory\n",
            REFUSED,
            "/etc/archive/ssh",
            "--ssh-config",
            id="configuration-missing",
        ),
        pytest.param(
            "Bad owner or permissions on /home/archive/.ssh/config\n", REFUSED, "Bad owner", "--ssh-config", id="owner"
        ),
        pytest.param(
            "Password change required but no TTY available.\n", REFUSED, "Password change", "expired", id="expired"
        ),
        pytest.param("Connection to 127.0.0.1 closed by remote host.\n", LOST, "closed by remote", "", id="sshd-ended"),
        pytest.param("Timeout, server 127.0.0.1 not responding.\n", LOST, "Timeout", "", id="server-frozen"),
        pytest.param("client_loop: send disconnect: Broken pipe\n", LOST, "Broken pipe", "", id="broken-pipe"),
        pytest.param(
            "packet_write_wait: Connection to 10.0.0.2 port 22: Broken pipe\n", LOST, "pipe", "", id="old-pipe"
        ),
        pytest.param("Read from remote host 10.0.0.2: Connection reset by endpoint\n", LOST, "reset", "", id="reset"),
        pytest.param("Connection reset by 127.0.0.1 port 44411\n", LOST, "reset", "", id="reset-in-key-exchange"),
        pytest.param("Connection closed by 10.0.0.2 port 22\n", LOST, "closed", "", id="closed-in-login"),
        pytest.param(
            "ssh_dispatch_run_fatal: Connection to 10.0.0.2 port 22: message authentication code incorrect\n",
            LOST,
            "message authentication",
            "",
            id="corrupted-link",
        ),
    ],
)
def test_each_failure_has_its_reason_and_its_hint(stderr: str, reason: Reason, in_message: str, in_hint: str) -> None:
    # ssh ends its lines with a carriage return and a newline, and rsync prints its own lines after them.
    output = stderr.replace("\n", "\r\n") + (
        "rsync: connection unexpectedly closed (0 bytes received so far) [Receiver]\n"
        "rsync error: unexplained error (code 255) at io.c(285) [Receiver=3.5.0]\n"
    )

    failure = classify_ssh_failure(output, ENDPOINT)

    assert failure is not None
    assert failure.reason is reason
    assert in_message in failure.message
    assert "\r" not in failure.message
    assert in_hint in failure.hint


HARMLESS = (
    '/etc/ssh/ssh_config line 53: Unsupported option "gssapiauthentication"',
    '/home/a b/.ssh/config line 1: Deprecated option "useroaming"',
    "Warning: Permanently added '[smurf-srv]:2222' (ED25519) to the list of known hosts.",
    "** WARNING: connection is not using a post-quantum key exchange algorithm.",
    "Control socket connect(/run/user/1000/cdc-x/1): Connection refused",
    "bash: warning: setlocale: LC_ALL: cannot change locale (en_US.UTF-8): No such file or directory",
    "Pseudo-terminal will not be allocated because stdin is not a terminal.",
)


@pytest.mark.parametrize("line", HARMLESS)
def test_a_line_that_says_nothing_of_a_failure_is_never_its_cause(line: str) -> None:
    assert classify_ssh_failure(f"{line}\r\n", ENDPOINT) is None
    down = classify_ssh_failure(f"{line}\r\nssh: connect to host smurf-srv port 2222: Connection refused\r\n", ENDPOINT)
    assert down is not None
    assert (down.reason, down.message) == (UNREACHABLE, "ssh: connect to host smurf-srv port 2222: Connection refused")


@pytest.mark.parametrize(
    ("stderr", "reason", "message"),
    [
        (
            'Load key "/keys/other": bad permissions\nclient_loop: send disconnect: Broken pipe\n',
            LOST,
            "client_loop: send disconnect: Broken pipe",
        ),
        (
            "ssh: connect to address 10.0.0.1 port 22: Connection refused\nConnection to 10.0.0.2 closed by remote host.\n",
            LOST,
            "Connection to 10.0.0.2 closed by remote host.",
        ),
        (
            "/etc/ssh/ssh_config line 4: an option of tomorrow is ignored\ndata@smurf-srv: Permission denied (publickey).\n",
            REFUSED,
            "data@smurf-srv: Permission denied (publickey).",
        ),
    ],
)
def test_the_last_error_decides(stderr: str, reason: Reason, message: str) -> None:
    failure = classify_ssh_failure(stderr, ENDPOINT)
    assert failure is not None
    assert (failure.reason, failure.message) == (reason, message)


THROUGH_A_JUMP_HOST = (
    "kex_exchange_identification: Connection closed by remote host\nConnection closed by UNKNOWN port 65535\n"
)


@pytest.mark.parametrize(
    ("stderr", "reason", "hint"),
    [
        (
            "ssh: connect to host gate port 22: Connection refused\n" + THROUGH_A_JUMP_HOST,
            UNREACHABLE,
            "gate is the jump host",
        ),
        ("me@gate: Permission denied (publickey).\n" + THROUGH_A_JUMP_HOST, REFUSED, "ssh-copy-id me@gate  # gate is"),
        (
            "No ED25519 host key is known for gate and you have requested strict checking.\n"
            "Host key verification failed.\n" + THROUGH_A_JUMP_HOST,
            HOST_KEY,
            "gate is the jump host",
        ),
        (
            "Connection timed out during banner exchange\nConnection to UNKNOWN port 65535 timed out\n",
            UNREACHABLE,
            "ssh -p 2222 -G smurf-srv | grep -i ^proxy",
        ),
        (
            "channel 0: open failed: connect failed: Connection refused\nstdio forwarding failed\n"
            + THROUGH_A_JUMP_HOST,
            UNREACHABLE,
            "the jump host does not reach it",
        ),
        ("data@smurf-srv: Permission denied (publickey).\n", REFUSED, "ssh-copy-id -p 2222"),
    ],
)
def test_a_jump_host_that_fails_is_named(stderr: str, reason: Reason, hint: str) -> None:
    failure = classify_ssh_failure(stderr, ENDPOINT)
    assert failure is not None
    assert failure.reason is reason
    assert hint in failure.hint


def test_a_user_name_that_ssh_takes_from_a_file_only() -> None:
    failure = classify_ssh_failure(
        "remote username contains invalid characters\r\n", replace(ENDPOINT, user="OBS\\data")
    )
    assert failure is not None
    assert failure.reason is REFUSED
    written = subprocess.run(
        failure.hint.replace(">> ~/.ssh/config", ""), shell=True, check=True, capture_output=True, text=True
    )
    assert written.stdout == "Host smurf-srv\n  User OBS\\data\n"


@pytest.mark.parametrize(
    "stderr",
    [
        "",
        "rsync: connection unexpectedly closed (0 bytes received so far) [Receiver]\n",
        "Control socket connect(/run/user/1000/cdc-x/1): Connection refused\r\n",
        "mux_client_request_session: session request failed: Session open refused by endpoint\r\n",
        "*** Permission denied to everybody: Connection refused ***\nHost key verification failed is a phrase\n",
        "sh: 1: rsync: not found\n",
        "/bin/bash: line 1: rsync: command not found\n",
        'rsync: [sender] send_files failed to open "/data/a": Permission denied (13)\n',
        'rsync: [receiver] mkstemp "/data/.a" failed: No space left on device (28)\n',
    ],
)
def test_output_that_is_not_an_ssh_failure_is_not_classified_as_one(stderr: str) -> None:
    assert classify_ssh_failure(stderr, ENDPOINT) is None


def test_a_host_that_is_down_concerns_the_source_and_a_refused_login_the_configuration() -> None:
    down = classify_ssh_failure("ssh: connect to host a port 22: Connection refused\r\n", ENDPOINT)
    refused = classify_ssh_failure("data@a: Permission denied (publickey).\r\n", ENDPOINT)

    assert down is not None
    assert refused is not None
    assert (down.reason.scope, refused.reason.scope) == (Scope.SOURCE, Scope.CONFIGURATION)


def test_hints_are_commands_that_a_shell_can_run() -> None:
    endpoint = SshEndpoint("fe80::1", None, "", "/home/a b/known", "")
    unknown = "No RSA host key is known for fe80::1 and you have requested strict checking.\n"

    failure = classify_ssh_failure(unknown, endpoint)

    assert failure is not None
    assert shlex.split(failure.hint, comments=True) == ["ssh-keyscan", "fe80::1", ">>", "/home/a b/known"]


def test_the_hint_for_a_refused_restricted_key_does_not_authorize_an_ordinary_login() -> None:
    found = classify_ssh_failure("data@srv: Permission denied (publickey).", replace(ENDPOINT, restricted_to="/data"))
    assert found is not None
    assert "ssh-copy-id" not in found.hint
    assert 'restrict,command="rrsync -ro /data" <content of /keys/archive.pub>  #' in found.hint


def test_the_hint_for_a_refused_restricted_key_has_the_whole_line(tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text("ssh-ed25519 AAAAC3 archiver@node\n")
    endpoint = replace(ENDPOINT, restricted_to="/data", key=str(tmp_path / "key"))
    found = classify_ssh_failure("data@srv: Permission denied (publickey).", endpoint)
    assert found is not None
    assert 'restrict,command="rrsync -ro /data" ssh-ed25519 AAAAC3 archiver@node  #' in found.hint
