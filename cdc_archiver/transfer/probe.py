"""Inspects a source through paramiko, and diagnoses files that did not arrive. Never carries data.

rsync uses OpenSSH. Where paramiko cannot take the same way (a jump host, a certificate authority, a key that is restricted
to rrsync) the answer is "cannot tell", and no copy fails because of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import posixpath
import re
import shlex
import stat
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Never

import paramiko

from cdc_archiver.errors import ArchiverError, HostUnavailable
from cdc_archiver.model import Reason
from cdc_archiver.settings import SourceSettings
from cdc_archiver.transfer.source_files import (
    FileState,
    LocalFiles,
    file_states,
    first_foreign_link,
    root_state,
)
from cdc_archiver.transfer.ssh import (
    CONNECT_TIMEOUT,
    absolute,
    clean_environment,
    known_hosts_file,
    ssh_command,
    ssh_endpoint,
)
from cdc_archiver.transfer.ssh_errors import host_key_hint, key_refused_hint

PROBE_LIMIT: Final = 30.0
"""Seconds that one inspection or one diagnosis takes at most; the rest is then reported as unknown."""

_MAX_LINKS: Final = 3
_OUTPUT_LIMIT: Final = 65536
_RSYNC_VERSION: Final = re.compile(r"rsync\s+version v?(\d[\w.]*)")
_LOG: Final = "cdc_archiver.paramiko"

# paramiko also logs, with a traceback, every error that it raises.
logging.getLogger(_LOG).setLevel(logging.CRITICAL + 1)


_TIMEOUT_MESSAGE: Final = re.compile(r"banner|Negotiation failed|timed? ?out", re.IGNORECASE)
"""paramiko's error where a host accepts the connection and then is silent; an incompatible host gives other errors."""


@dataclass(frozen=True, slots=True)
class SourceInspection:
    """Result of inspecting a source.

    Attributes:
        rsync: version on the source; empty where unknown.
        rsync_missing: the account on the source finds no rsync.
        root: the source root: OK for a directory that can be listed, NOT_A_FILE for something that is not a directory.
        unknown_because: why some of this is unknown; empty where all is known.
    """

    rsync: str
    rsync_missing: bool
    root: FileState
    unknown_because: str = ""


class ProbeUnavailable(ArchiverError):
    """paramiko cannot log in where OpenSSH perhaps can."""


class Probe:
    """Inspects one source: through paramiko, or directly for a local source. Safe to share between threads.

    Args:
        limit: seconds that one call takes at most.
    """

    def __init__(self, source: SourceSettings, limit: float = PROBE_LIMIT) -> None:
        self._source = source
        self._limit = limit

    def inspect(self) -> SourceInspection:
        """Logs in and checks rsync and the source root.

        Raises:
            HostUnavailable: the login failed; ``reason`` is one of HOST_KEY, HOST_UNREACHABLE, LOGIN_REFUSED.
            ProbeUnavailable: paramiko cannot log in where OpenSSH perhaps can.
            Misconfigured: this uid has no account.
        """
        source = self._source
        if source.is_local:
            version = rsync_version_here()
            return SourceInspection(version or "", version is None, root_state(LocalFiles(), source.source_root))
        with self._login() as transport:
            rsync, missing, unknown_because = self._check_rsync(transport)
            root = FileState.CANNOT_TELL
            try:
                with _sftp_files(transport) as files:
                    root = root_state(files, source.source_root)
            except _CONNECTION_ERRORS as error:
                unknown_because = unknown_because or f"the account offers no SFTP: {_error_text(error)}"
            return SourceInspection(rsync, missing, root, unknown_because)

    def diagnose(self, paths: Sequence[str]) -> dict[str, FileState]:
        """The state of files on the source, as far as it can be determined. Never raises where it cannot.

        Args:
            paths: absolute, as rows have them.
        """
        source = self._source
        states = dict.fromkeys(paths, FileState.CANNOT_TELL)
        if source.is_local:
            states.update(file_states(LocalFiles(), source.source_root, paths))
        elif not source.restricted_key:
            # Whatever a server answers: a diagnosis that fails proves nothing and must cost nothing.
            try:
                with self._login() as transport:
                    try:
                        with _sftp_files(transport) as files:
                            # One by one: states found before a link breaks are kept.
                            for path, state in file_states(files, source.source_root, paths):
                                states[path] = state
                    except Exception as error:
                        # A server that forbids the check answers on a connection that stays up.
                        if isinstance(error, TimeoutError) or not transport.is_active():
                            _mark_unreachable(states)
            except HostUnavailable as error:
                if error.reason is Reason.HOST_UNREACHABLE:
                    _mark_unreachable(states)
            except Exception as error:
                if _TIMEOUT_MESSAGE.search(str(error)):
                    _mark_unreachable(states)
        return states

    def confirms_mount(self, paths: Sequence[str]) -> bool:
        """Whether the directory of one of these files exists and has entries: then its disk is mounted.

        Never raises; where it cannot see the directory, the answer is False.

        Args:
            paths: absolute, as rows have them; a few.
        """
        directories = sorted({posixpath.dirname(path) for path in paths if "\0" not in path})
        if self._source.is_local:
            return any(root_state(LocalFiles(), directory) is FileState.OK for directory in directories)
        if not self._source.restricted_key:
            with contextlib.suppress(Exception), self._login() as transport, _sftp_files(transport) as files:
                return any(root_state(files, directory) is FileState.OK for directory in directories)
        return False

    def foreign_link(self, path: str) -> str | None:
        """The first directory above a file that is a link of a user other than root and the login: rsync 3.5 and later follows
        none. None where there is none, or this cannot be seen; never raises.

        Args:
            path: absolute, as rows have it.
        """
        top = f"{self._source.source_root.rstrip('/')}/"  # rsync follows every link in the source root itself
        parents = [str(parent) for parent in reversed(Path(path).parents) if str(parent).startswith(top)]
        with contextlib.suppress(Exception):
            if self._source.is_local:
                return first_foreign_link(LocalFiles(), parents, os.geteuid())
            if not self._source.restricted_key:
                with self._login() as transport, _sftp_files(transport) as files:
                    return first_foreign_link(files, parents, int(_run(transport, "id -u")[1]))
        return None

    def foreign_links(self) -> list[str]:
        """Some links to directories near the source root that rsync 3.5 and later does not follow, as :meth:`foreign_link`."""
        root = shlex.quote(f"{self._source.source_root.rstrip('/')}/")
        find = (
            f"timeout 5 find {root} -maxdepth 3 -type l ! -user 0 ! -user \"$(id -u)\" -exec test -d '{{}}' ';' -print"
        )
        output = ""
        with contextlib.suppress(Exception):
            if self._source.is_local:
                done = subprocess.run(
                    ["sh", "-c", find], check=False, capture_output=True, text=True, timeout=CONNECT_TIMEOUT
                )
                output = done.stdout
            elif not self._source.restricted_key:
                with self._login() as transport:
                    output = _run(transport, f"{find} 2>/dev/null")[1]
        return [line for line in output.splitlines() if line.startswith("/")][:_MAX_LINKS]

    @contextmanager
    def _login(self) -> Iterator[paramiko.Transport]:
        login = _resolve_login(self._source)
        client = paramiko.SSHClient()
        client.set_log_channel(_LOG)
        client.set_missing_host_key_policy(_RejectUnknownHost())
        # Several waits in paramiko have no timeout; closing the connection ends them all.
        watchdog = threading.Timer(self._limit, client.close)
        watchdog.daemon = True
        watchdog.start()
        try:
            with self._translated_errors():
                known = known_hosts_file(self._source)
                if not login.keys:
                    raise ProbeUnavailable(f"{self._source.host_name}: paramiko finds no private key that it can use")
                if known.exists():
                    client.load_system_host_keys(str(known))
                client.connect(
                    login.host,
                    port=login.port,
                    username=login.user,
                    key_filename=list(login.keys),  # type: ignore[arg-type]  # a list is documented
                    timeout=CONNECT_TIMEOUT,
                    banner_timeout=CONNECT_TIMEOUT,
                    auth_timeout=CONNECT_TIMEOUT,
                    channel_timeout=CONNECT_TIMEOUT,
                    allow_agent=False,
                    look_for_keys=False,
                )
            transport = client.get_transport()
            if transport is None:
                raise ProbeUnavailable(f"{self._source.host_name}: the connection closed right after the login")
            yield transport
        finally:
            watchdog.cancel()
            client.close()

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        host = self._source.host_name
        endpoint = ssh_endpoint(self._source)
        try:
            yield
        except _UnknownHostKey as error:
            raise HostUnavailable(
                Reason.HOST_KEY,
                f"{host}: {endpoint.known_hosts} has no key of this host",
                host_key_hint(endpoint, changed=False),
            ) from error
        except paramiko.BadHostKeyException as error:
            raise HostUnavailable(
                Reason.HOST_KEY,
                f"{host}: its host key differs from the one in {endpoint.known_hosts}",
                host_key_hint(endpoint, changed=True),
            ) from error
        except (paramiko.ssh_exception.NoValidConnectionsError, TimeoutError) as error:
            raise HostUnavailable(
                Reason.HOST_UNREACHABLE,
                f"{host}: {_error_text(error)}",
                "check that the host is up, and the port (--ssh-port)",
            ) from error
        except paramiko.PasswordRequiredException as error:
            raise HostUnavailable(
                Reason.LOGIN_REFUSED,
                f"{host}: the private key has a passphrase",
                "set --ssh-key to a key without a passphrase",
            ) from error
        except (paramiko.AuthenticationException, PermissionError) as error:
            raise HostUnavailable(
                Reason.LOGIN_REFUSED, f"{host}: {_error_text(error)}", key_refused_hint(endpoint)
            ) from error
        except OSError as error:
            raise HostUnavailable(Reason.HOST_UNREACHABLE, f"{host}: {_error_text(error)}") from error
        except paramiko.ssh_exception.IncompatiblePeer as error:
            raise ProbeUnavailable(
                f"{host}: paramiko cannot log in: {_error_text(error)}",
                f"on {host}, allow curve25519-sha256@libssh.org (KexAlgorithms) and usual algorithms in /etc/ssh/sshd_config; "
                "without it files are archived all the same",
            ) from error
        except (*_CONNECTION_ERRORS, UnicodeError, ValueError) as error:
            raise ProbeUnavailable(f"{host}: paramiko cannot log in: {_error_text(error)}") from error

    def _check_rsync(self, transport: paramiko.Transport) -> tuple[str, bool, str]:
        """The version of rsync on the source, whether it is missing, and why neither is known."""
        try:
            status, output = _run(transport, "rsync --version")
        except _CONNECTION_ERRORS as error:
            return "", False, f"the account cannot run commands: {_error_text(error)}"
        if found := _RSYNC_VERSION.search(output):
            return found[1], False, ""
        if status == 127:
            return "", True, ""
        return "", False, f"the account cannot run `rsync --version`: {output.strip()[:200] or f'status {status}'}"


def _mark_unreachable(states: dict[str, FileState]) -> None:
    """States that were not found can be checked again later."""
    unseen = [path for path, state in states.items() if state is FileState.CANNOT_TELL]
    states.update(dict.fromkeys(unseen, FileState.UNREACHABLE))


def rsync_version_here() -> str | None:
    """The version of this machine's rsync; None where there is none, empty where it prints no version."""
    try:
        result = subprocess.run(
            ["rsync", "--version"],
            check=False,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CONNECT_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _RSYNC_VERSION.search(result.stdout)
    return found[1] if found else ""


class _UnknownHostKey(paramiko.SSHException):
    """known_hosts has no key of this host."""


class _RejectUnknownHost(paramiko.RejectPolicy):
    """paramiko's own rejection, distinct from its other SSHExceptions."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> Never:
        raise _UnknownHostKey(f"no known host key for {hostname}")


_CONNECTION_ERRORS: Final = (paramiko.SSHException, paramiko.SFTPError, OSError, EOFError)
"""What paramiko raises when the other side, or the watchdog, closes a connection."""


@dataclass(frozen=True, slots=True)
class _ResolvedLogin:
    """Host, port, user and private keys after ssh's configuration was applied."""

    host: str
    port: int
    user: str
    keys: tuple[str, ...]


def _resolve_login(source: SourceSettings) -> _ResolvedLogin:
    """The login that OpenSSH would use with its whole configuration, as ``ssh -G`` prints it."""
    command = [*ssh_command(source), "-G", "--", source.host_name]
    try:
        result = subprocess.run(
            command,
            check=False,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CONNECT_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProbeUnavailable(f"`ssh -G` cannot be run: {error}") from error
    if result.returncode != 0:
        raise ProbeUnavailable(f"ssh rejects its configuration: {result.stderr.strip()}")
    values: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        name, _, value = line.partition(" ")
        values.setdefault(name, []).append(value)
    for option in ("proxyjump", "proxycommand", "hostkeyalias"):
        if values.get(option, ["none"])[0] not in ("none", ""):
            raise ProbeUnavailable(
                f"{source.host_name}: the ssh configuration has {option}, which only OpenSSH supports"
            )
    # With --ssh-key, the list of -G also has the configuration's keys; only the set one is meant.
    named = [source.ssh_key] if source.ssh_key else [Path(value) for value in values.get("identityfile", ())]
    keys = [str(absolute(key)) for key in named]
    return _ResolvedLogin(
        host=values["hostname"][0],
        port=int(values["port"][0]),
        user=values["user"][0],
        keys=tuple(key for key in keys if os.path.isfile(key)),
    )


def _run(transport: paramiko.Transport, command: str) -> tuple[int, str]:
    """Runs a short command on the source: its exit status (-1 for none) and its output, both streams."""
    with contextlib.closing(transport.open_session(timeout=CONNECT_TIMEOUT)) as channel:
        channel.settimeout(CONNECT_TIMEOUT)
        channel.set_combine_stderr(True)
        channel.exec_command(command)
        output = b""
        while len(output) < _OUTPUT_LIMIT and (chunk := channel.recv(4096)):
            output += chunk
        # recv_exit_status() has no timeout.
        channel.status_event.wait(CONNECT_TIMEOUT)
        return channel.exit_status, output.decode(errors="replace")


class _RemoteFiles:
    """Files of a remote source, over SFTP."""

    def __init__(self, sftp: paramiko.SFTPClient) -> None:
        self._sftp = sftp

    def lstat(self, path: bytes) -> int:
        return self._sftp.lstat(path).st_mode or 0

    def try_open(self, path: bytes) -> None:
        self._sftp.open(path, "rb").close()

    def link_owner(self, path: bytes) -> int | None:
        found = self._sftp.lstat(path)
        return found.st_uid if stat.S_ISLNK(found.st_mode or 0) else None

    def has_entries(self, path: bytes) -> bool:
        try:
            return any(True for _ in self._sftp.listdir_iter(path, read_aheads=1))
        except UnicodeDecodeError:  # paramiko decodes every name as UTF-8; this one is not UTF-8, but it exists
            return True


@contextmanager
def _sftp_files(transport: paramiko.Transport) -> Iterator[_RemoteFiles]:
    """The files of the account, while the context lasts."""
    client = paramiko.SFTPClient.from_transport(transport)
    if client is None:
        raise paramiko.SSHException("no channel")
    with contextlib.closing(client):
        channel = client.get_channel()
        if channel is not None:
            channel.settimeout(CONNECT_TIMEOUT)
        yield _RemoteFiles(client)


def _error_text(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
