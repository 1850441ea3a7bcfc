"""paramiko, the control plane and never the data path: a look at a source, and a diagnosis of files that did not arrive.

rsync rides on OpenSSH. Where paramiko cannot go the same way (a jump host, a certificate authority, a key that is restricted
to rrsync) the answer is "cannot tell", and no copy fails for it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import posixpath
import re
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Never

import paramiko

from cdc_archiver.errors import ArchiverError, HostUnavailable
from cdc_archiver.model import Reason
from cdc_archiver.settings import SourceSettings
from cdc_archiver.transfer.ssh import (
    CONNECT_TIMEOUT,
    absolute,
    clean_environment,
    known_hosts_file,
    peer,
    ssh_command,
)
from cdc_archiver.transfer.ssh_errors import host_key_hint, key_refused_hint

PROBE_LIMIT: Final = 30.0
"""Seconds that one look or one diagnosis takes at the most; what is not known by then cannot be told."""

_OUTPUT_LIMIT: Final = 65536
_RSYNC_VERSION: Final = re.compile(r"rsync\s+version v?(\d[\w.]*)")
_LOG: Final = "cdc_archiver.paramiko"

# paramiko logs, with tracebacks, every error that it raises as well.
logging.getLogger(_LOG).setLevel(logging.CRITICAL + 1)


class FileState(StrEnum):
    """What can be seen of a file on its source."""

    OK = "ok"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    NOT_A_FILE = "not_a_file"
    ROOT_GONE = "root_gone"
    """The directory that all files lie below is missing or empty: its disk is not mounted."""
    CANNOT_TELL = "cannot_tell"
    UNREACHABLE = "unreachable"
    """It could not be looked at just now; another time it can."""


_SILENCE: Final = re.compile(r"banner|Negotiation failed|timed? ?out", re.IGNORECASE)
"""What paramiko says where a host takes the connection and then says nothing; one that it cannot talk to says other things."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a source showed.

    Attributes:
        rsync: version there; empty where it cannot be told.
        rsync_missing: the account there finds no rsync.
        root: the source root: OK for a directory that can be listed, NOT_A_FILE for what is no directory.
        unknown: why something above cannot be told; empty where all of it was.
    """

    rsync: str
    rsync_missing: bool
    root: FileState
    unknown: str = ""


class CannotTell(ArchiverError):
    """OpenSSH may well get there; paramiko does not."""


class Probe:
    """One source, seen by paramiko; a local one by this machine's own eyes. Safe to share between threads.

    Args:
        limit: seconds for one call at the most.
    """

    def __init__(self, source: SourceSettings, limit: float = PROBE_LIMIT) -> None:
        self._source = source
        self._limit = limit

    def look(self) -> Look:
        """Logs in, and asks for rsync and the source root.

        Raises:
            HostUnavailable: the login failed; its ``reason`` is one of ssh's four.
            CannotTell: paramiko cannot log in where OpenSSH perhaps can.
            Misconfigured: this uid has no account.
        """
        source = self._source
        if source.is_local:
            version = rsync_version_here()
            return Look(version or "", version is None, _root_state(_LocalFiles(), source.source_root))
        with self._login() as transport:
            rsync, missing, unknown = self._ask_rsync(transport)
            root = FileState.CANNOT_TELL
            try:
                with _sftp(transport) as files:
                    root = _root_state(files, source.source_root)
            except _BROKEN as error:
                unknown = unknown or f"the account gives no SFTP: {_text(error)}"
            return Look(rsync, missing, root, unknown)

    def diagnose(self, paths: Sequence[str]) -> dict[str, FileState]:
        """What is the matter with files, as far as can be seen from here. Never raises for what it cannot see.

        Args:
            paths: absolute, as rows have them.
        """
        source = self._source
        states = dict.fromkeys(paths, FileState.CANNOT_TELL)
        if source.is_local:
            states.update(_diagnosis(_LocalFiles(), source.source_root, paths))
        elif not source.restricted_key:
            # Whatever a server answers: a diagnosis that fails says nothing, and harms nobody.
            try:
                with self._login() as transport:
                    try:
                        with _sftp(transport) as files:
                            # One by one: what was seen before a link breaks stays seen.
                            for path, state in _diagnosis(files, source.source_root, paths):
                                states[path] = state
                    except Exception as error:
                        # A server that does not let us look says so on a link that stays.
                        if isinstance(error, TimeoutError) or not transport.is_active():
                            _leave_open(states)
            except HostUnavailable as error:
                if error.reason is Reason.HOST_UNREACHABLE:
                    _leave_open(states)
            except Exception as error:
                if _SILENCE.search(str(error)):
                    _leave_open(states)
        return states

    def sees_directory_of(self, paths: Sequence[str]) -> bool:
        """Whether the directory of one of these files is there, with something in it: then its disk is mounted.

        Never raises; what it cannot see it does not claim.

        Args:
            paths: absolute, as rows have them; a few.
        """
        directories = sorted({posixpath.dirname(path) for path in paths if "\0" not in path})
        if self._source.is_local:
            return any(_root_state(_LocalFiles(), directory) is FileState.OK for directory in directories)
        if not self._source.restricted_key:
            with contextlib.suppress(Exception), self._login() as transport, _sftp(transport) as files:
                return any(_root_state(files, directory) is FileState.OK for directory in directories)
        return False

    @contextmanager
    def _login(self) -> Iterator[paramiko.Transport]:
        where = _resolve(self._source)
        client = paramiko.SSHClient()
        client.set_log_channel(_LOG)
        client.set_missing_host_key_policy(_Reject())
        # Several waits in paramiko have no timeout of their own; closing the connection ends them all.
        watchdog = threading.Timer(self._limit, client.close)
        watchdog.daemon = True
        watchdog.start()
        try:
            with self._in_our_words():
                known = known_hosts_file(self._source)
                if not where.keys:
                    raise CannotTell(f"{self._source.host_name}: there is no private key here that paramiko could use")
                if known.exists():
                    client.load_system_host_keys(str(known))
                client.connect(
                    where.host,
                    port=where.port,
                    username=where.user,
                    key_filename=list(where.keys),  # type: ignore[arg-type]  # a list is documented
                    timeout=CONNECT_TIMEOUT,
                    banner_timeout=CONNECT_TIMEOUT,
                    auth_timeout=CONNECT_TIMEOUT,
                    channel_timeout=CONNECT_TIMEOUT,
                    allow_agent=False,
                    look_for_keys=False,
                )
            transport = client.get_transport()
            if transport is None:
                raise CannotTell(f"{self._source.host_name}: the connection closed again")
            yield transport
        finally:
            watchdog.cancel()
            client.close()

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        host = self._source.host_name
        them = peer(self._source)
        try:
            yield
        except _UnknownHostKey as error:
            raise HostUnavailable(
                Reason.HOST_KEY,
                f"{host}: no host key is known for it in {them.known_hosts}",
                host_key_hint(them, changed=False),
            ) from error
        except paramiko.BadHostKeyException as error:
            raise HostUnavailable(
                Reason.HOST_KEY,
                f"{host}: its host key is another than the one in {them.known_hosts}",
                host_key_hint(them, changed=True),
            ) from error
        except (paramiko.ssh_exception.NoValidConnectionsError, TimeoutError) as error:
            raise HostUnavailable(
                Reason.HOST_UNREACHABLE, f"{host}: {_text(error)}", "is the host up, and is the port right?"
            ) from error
        except paramiko.PasswordRequiredException as error:
            raise HostUnavailable(
                Reason.LOGIN_REFUSED, f"{host}: the private key has a passphrase", "use a key without a passphrase"
            ) from error
        except (paramiko.AuthenticationException, PermissionError) as error:
            raise HostUnavailable(Reason.LOGIN_REFUSED, f"{host}: {_text(error)}", key_refused_hint(them)) from error
        except OSError as error:
            raise HostUnavailable(Reason.HOST_UNREACHABLE, f"{host}: {_text(error)}") from error
        except (*_BROKEN, UnicodeError, ValueError) as error:
            raise CannotTell(f"{host}: paramiko cannot log in: {_text(error)}") from error

    def _ask_rsync(self, transport: paramiko.Transport) -> tuple[str, bool, str]:
        """The version there, whether it is missing, and why neither can be told."""
        try:
            status, output = _run(transport, "rsync --version")
        except _BROKEN as error:
            return "", False, f"the account runs no command: {_text(error)}"
        if found := _RSYNC_VERSION.search(output):
            return found[1], False, ""
        if status == 127:
            return "", True, ""
        return "", False, f"the account runs no `rsync --version`: {output.strip()[:200] or f'status {status}'}"


def _leave_open(states: dict[str, FileState]) -> None:
    """What was not seen can be looked at another time."""
    unseen = [path for path, state in states.items() if state is FileState.CANNOT_TELL]
    states.update(dict.fromkeys(unseen, FileState.UNREACHABLE))


def rsync_version_here() -> str | None:
    """The version of this machine's rsync; None where there is none, empty where it does not say."""
    try:
        done = subprocess.run(
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
    found = _RSYNC_VERSION.search(done.stdout)
    return found[1] if found else ""


class _UnknownHostKey(paramiko.SSHException):
    """Nothing is known about this host."""


class _Reject(paramiko.RejectPolicy):
    """paramiko's own rejection, told apart from all its other SSHExceptions."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> Never:
        raise _UnknownHostKey(f"no host key is known for {hostname}")


_BROKEN: Final = (paramiko.SSHException, paramiko.SFTPError, OSError, EOFError)
"""What paramiko raises when the other side, or the watchdog, ends a conversation."""


@dataclass(frozen=True, slots=True)
class _Where:
    host: str
    port: int
    user: str
    keys: tuple[str, ...]


def _resolve(source: SourceSettings) -> _Where:
    """Where OpenSSH would go with its whole configuration, asked of OpenSSH itself."""
    command = [*ssh_command(source), "-G", "--", source.host_name]
    try:
        done = subprocess.run(
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
        raise CannotTell(f"ssh cannot be asked for its configuration: {error}") from error
    if done.returncode != 0:
        raise CannotTell(f"ssh does not take its configuration: {done.stderr.strip()}")
    values: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        values.setdefault(name, []).append(value)
    for option in ("proxyjump", "proxycommand", "hostkeyalias"):
        if values.get(option, ["none"])[0] not in ("none", ""):
            raise CannotTell(f"{source.host_name}: the ssh configuration has {option}, which only OpenSSH follows")
    # With a key of its own, the list of -G has the configuration's after it; ours alone is what is meant.
    named = [source.ssh_key] if source.ssh_key else [Path(value) for value in values.get("identityfile", ())]
    keys = [str(absolute(key)) for key in named]
    return _Where(
        host=values["hostname"][0],
        port=int(values["port"][0]),
        user=values["user"][0],
        keys=tuple(key for key in keys if os.path.isfile(key)),
    )


def _run(transport: paramiko.Transport, command: str) -> tuple[int, str]:
    """Runs a short command there: its exit status (-1 for none) and what it wrote, both streams."""
    with contextlib.closing(transport.open_session(timeout=CONNECT_TIMEOUT)) as channel:
        channel.settimeout(CONNECT_TIMEOUT)
        channel.set_combine_stderr(True)
        channel.exec_command(command)
        output = b""
        while len(output) < _OUTPUT_LIMIT and (chunk := channel.recv(4096)):
            output += chunk
        # recv_exit_status() would wait for ever.
        channel.status_event.wait(CONNECT_TIMEOUT)
        return channel.exit_status, output.decode(errors="replace")


class _LocalFiles:
    """This machine's files, with the three questions that are put to SFTP."""

    def lstat(self, path: bytes) -> int:
        return os.lstat(path).st_mode

    def try_open(self, path: bytes) -> None:
        os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK))

    def has_entries(self, path: bytes) -> bool:
        with os.scandir(path) as entries:
            return any(True for _ in entries)


class _RemoteFiles:
    """The same questions over SFTP."""

    def __init__(self, sftp: paramiko.SFTPClient) -> None:
        self._sftp = sftp

    def lstat(self, path: bytes) -> int:
        return self._sftp.lstat(path).st_mode or 0

    def try_open(self, path: bytes) -> None:
        self._sftp.open(path, "rb").close()

    def has_entries(self, path: bytes) -> bool:
        try:
            return any(True for _ in self._sftp.listdir_iter(path, read_aheads=1))
        except UnicodeDecodeError:  # paramiko takes every name for UTF-8; this one is none, but it is a name
            return True


@contextmanager
def _sftp(transport: paramiko.Transport) -> Iterator[_RemoteFiles]:
    client = paramiko.SFTPClient.from_transport(transport)
    if client is None:
        raise paramiko.SSHException("no channel")
    with contextlib.closing(client):
        channel = client.get_channel()
        if channel is not None:
            channel.settimeout(CONNECT_TIMEOUT)
        yield _RemoteFiles(client)


def _diagnosis(files: _LocalFiles | _RemoteFiles, root: str, paths: Sequence[str]) -> Iterator[tuple[str, FileState]]:
    if _root_state(files, root) in (FileState.MISSING, FileState.NOT_A_FILE, FileState.ROOT_GONE):
        yield from ((path, FileState.ROOT_GONE) for path in paths)
        return
    for path in paths:
        # No file can have a name with a NUL, and sshd ends the conversation over one.
        yield path, FileState.MISSING if "\0" in path else _file_state(files, _bytes(path))


def _file_state(files: _LocalFiles | _RemoteFiles, path: bytes) -> FileState:
    def ask() -> FileState:
        if not stat.S_ISREG(files.lstat(path)):
            return FileState.NOT_A_FILE
        files.try_open(path)
        return FileState.OK

    return _state_of(ask)


def _root_state(files: _LocalFiles | _RemoteFiles, root: str) -> FileState:
    path = _bytes(root)

    def ask() -> FileState:
        # With a slash at its end a link to a directory is that directory.
        if not stat.S_ISDIR(files.lstat(path.rstrip(b"/") + b"/")):
            return FileState.NOT_A_FILE
        return FileState.OK if files.has_entries(path) else FileState.ROOT_GONE

    return _state_of(ask)


def _state_of(ask: Callable[[], FileState]) -> FileState:
    try:
        return ask()
    except OSError as error:
        match error.errno:
            case errno.ENOENT | errno.ENOTDIR | errno.ENAMETOOLONG:
                return FileState.MISSING
            case errno.EACCES | errno.EPERM | errno.EIO:
                return FileState.UNREADABLE
            case _:
                return FileState.CANNOT_TELL


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _text(error: BaseException) -> str:
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split()) or type(error).__name__
