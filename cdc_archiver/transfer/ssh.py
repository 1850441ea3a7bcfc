"""Runs OpenSSH: its options and environment, and one shared connection (ControlMaster) for each source."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pwd
import selectors
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from cdc_archiver.errors import Misconfigured
from cdc_archiver.settings import SourceSettings
from cdc_archiver.transfer.ssh_errors import SshEndpoint

CONNECT_TIMEOUT: Final = 10
"""Seconds to establish a connection; a copy waits at most this long for a ControlMaster."""

_OPTIONS: Final = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    # OpenSSH and paramiko read the same file, and only a person writes to it.
    "GlobalKnownHostsFile": "/dev/null",
    "UpdateHostKeys": "no",
    "ConnectTimeout": str(CONNECT_TIMEOUT),
    "ConnectionAttempts": "1",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "3",
    # A person's own ssh configuration may set these; rsync's pipe does not work with them.
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "PermitLocalCommand": "no",
    "EscapeChar": "none",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "ControlPersist": "no",
    # LogLevel ERROR would hide "Unable to negotiate", "Timeout, server not responding" and "no such identity".
    "LogLevel": "INFO",
}


CONTROL_PATH_BYTES: Final = 90
"""The longest ControlPath. ssh first binds ``<path>.<16 letters>``, and a socket address has 108 bytes with its final zero;
OpenSSH 9.2 accepted 90 and refused 91."""

_SOCKET_DIRECTORY_PREFIX: Final = "cdcssh-"

_NOT_PASSED_ON: Final = ("RSYNC_", "SSH_", "MYSQL_", "CDC_ARCHIVER_")


def ssh_command(source: SourceSettings, control_path: Path | None = None) -> list[str]:
    """The ssh command line for a source, without the host.

    Follow it with ``--``, :attr:`SourceSettings.host_name` and a remote command, or hand it to rsync as
    :func:`remote_shell` does.

    Args:
        control_path: socket of a running ControlMaster to use; None for a separate connection.

    Raises:
        Misconfigured: ssh cannot work: this uid has no account, or ssh's configuration cannot express a path.
    """
    return ["ssh", *_options(source, "no", control_path)]


def remote_shell(source: SourceSettings, control_path: Path | None = None) -> str:
    """:func:`ssh_command` as rsync's ``--rsh`` takes it.

    Raises:
        Misconfigured: as :func:`ssh_command`.
    """
    return " ".join(_quoted_for_rsync(argument) for argument in ssh_command(source, control_path))


def rsync_host(source: SourceSettings) -> str:
    """The host for the part before rsync's colon: an IPv6 address in brackets, no user (ssh has it already)."""
    return f"[{source.host_name}]" if ":" in source.host_name else source.host_name


def known_hosts_file(source: SourceSettings) -> Path:
    """The file of trusted host keys, absolute.

    Raises:
        Misconfigured: this uid has no account, hence no ``~/.ssh``.
    """
    return absolute(source.known_hosts or Path("~/.ssh/known_hosts"))


def ssh_endpoint(source: SourceSettings) -> SshEndpoint:
    """The other side, for the hints of :mod:`cdc_archiver.transfer.ssh_errors`.

    Raises:
        Misconfigured: as :func:`ssh_command`.
    """
    return SshEndpoint(
        host=source.host_name,
        port=source.ssh_port if _port_is_set(source) else None,
        user=source.login,
        known_hosts=str(known_hosts_file(source)),
        key=str(absolute(source.ssh_key)) if source.ssh_key else "",
        restricted_to=source.source_root if source.restricted_key else "",
    )


def clean_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for ssh and rsync: no variable of an operator's shell changes their behaviour, and no secret is passed on.

    Args:
        environment: default: the process's.
    """
    environment = os.environ if environment is None else environment
    kept = {name: value for name, value in environment.items() if not name.upper().startswith(_NOT_PASSED_ON)}
    return {**kept, "LC_ALL": "C"}


def home_directory() -> Path:
    """The home directory that OpenSSH uses: the account's, whatever ``HOME`` says.

    Raises:
        Misconfigured: this uid has no account; ssh would say "No user exists for uid".
    """
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        raise Misconfigured(
            f"uid {os.getuid()} has no passwd entry here, and ssh refuses to run without one",
            f"useradd -u {os.getuid()} -m archiver  # in a container: in its image, or install libnss_wrapper; "
            "or run as an existing user",
        ) from None


def absolute(path: Path) -> Path:
    """The path with ``~`` expanded as ssh does it, and independent of the working directory.

    Raises:
        Misconfigured: as :func:`home_directory`.
    """
    return home_directory().joinpath(*path.parts[1:]) if path.parts[:1] == ("~",) else path.absolute()


def dies_with_parent(command: list[str]) -> list[str]:
    """Wraps a command so that it gets SIGTERM when the thread that starts it ends, also when the process is killed.

    It uses ``setpriv``, since a ``preexec_fn`` may deadlock with other threads. Where no ``setpriv`` can do it, the command is
    returned unchanged.
    """
    return [*_death_signal_wrapper(), *command]


class ControlMaster:
    """The connection of a source that its rsyncs share: 36 ms for a file instead of 0.3 s.

    Its absence is never an error: rsync then makes its own connection, and any failure shows there. Safe to share between
    threads.
    """

    def __init__(self, source: SourceSettings) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._directory: SocketDirectory | None = None
        self._started = 0
        self._closed = False
        self._master: _Master | None = None

    def ensure(self) -> Path | None:
        """The ControlPath to use now; starts the master where none runs. Concurrent callers share one start.

        Takes some microseconds while the master runs, and at most :data:`CONNECT_TIMEOUT` seconds.

        Returns:
            None: there is no shared connection.
        """
        deadline = time.monotonic() + CONNECT_TIMEOUT
        master = self._current()
        if master is not None and master.settled.is_set() and not master.answers():
            master.end()
            master = self._current()
        if master is None or not master.settled.wait(max(0.0, deadline - time.monotonic())):
            return None
        return master.socket if master.up else None

    @property
    def output(self) -> str:
        """Standard error of the newest master, for a diagnosis."""
        master = self._master
        return master.output if master else ""

    def renew(self) -> None:
        """Ends the master and the sessions that use it; the next :meth:`ensure` logs in again.

        Some settings count only at a login (the key's options, a group, a shell): without this a fix would have no effect.
        """
        master = self._master
        if master is not None:
            master.end()

    def close(self) -> None:
        """Ends the master and the sessions that use it. It is not started again."""
        with self._lock:
            self._closed = True
            master, directory = self._master, self._directory
        if master is not None:
            master.end()
            master.join(3.0)
        if directory is not None:
            directory.remove()

    def _current(self) -> _Master | None:
        with self._lock:
            if self._closed or self._source.is_local:
                return None
            if self._master is None or self._master.finished:
                self._master = self._start()
            return self._master

    def _start(self) -> _Master | None:
        if self._directory is not None and not self._directory.path.is_dir():
            self._directory.remove()
            self._directory = None
        if self._directory is None:
            self._directory = SocketDirectory.make()
        if self._directory is None:
            return None
        # A new name each time: an old master that still exits removes its own socket.
        self._started += 1
        socket = self._directory.path / str(self._started)
        try:
            command = ["ssh", "-N", *_options(self._source, "yes", socket), "--", self._source.host_name]
            check = [*ssh_command(self._source, socket), "-O", "check", "--", self._source.host_name]
        except Misconfigured:
            return None
        master = _Master(f"ssh-{self._source.name}", command, check, socket)
        master.start()
        return master


class _Master(threading.Thread):
    """One ``ssh -M -N`` process: starts it, reads its output, ends it.

    The thread lives exactly as long as its child, as :func:`dies_with_parent` requires.
    """

    def __init__(self, name: str, command: list[str], check: list[str], socket: Path) -> None:
        super().__init__(name=name, daemon=True)
        self.socket = socket
        self.settled = threading.Event()
        """Set when it is up or has failed."""
        self._command = command
        self._check = check
        self._checked = 0.0
        self._output = b""
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._ended = threading.Event()

    @property
    def finished(self) -> bool:
        """Whether it has ended or was asked to end."""
        return self._ended.is_set() or self._ending.is_set()

    @property
    def up(self) -> bool:
        """Whether it accepts sessions, as far as is known without asking it."""
        return self.settled.is_set() and not self.finished

    @property
    def output(self) -> str:
        """The last 8 kB of its standard error."""
        return self._output.decode(errors="replace").replace("\r", "")

    def answers(self) -> bool:
        """Whether it is up; runs ``ssh -O check`` (8 ms) where the last check is older than 5 s."""
        process = self._process
        if not self.up or process is None or process.poll() is not None or not _is_socket(self.socket):
            return False
        if time.monotonic() - self._checked < _CHECK_EVERY:
            return True
        try:
            done = subprocess.run(
                self._check,
                check=False,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                timeout=_CHECK_LIMIT,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        self._checked = time.monotonic()
        return done.returncode == 0

    def end(self) -> None:
        """Asks it to end and returns at once."""
        self._ending.set()
        process = self._process
        if process is not None and process.poll() is None:
            _signal_group(process, signal.SIGTERM)

    def run(self) -> None:
        try:
            self._process = process = subprocess.Popen(
                dies_with_parent(self._command),
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            self._output = f"ssh cannot be started: {error}".encode()
        else:
            try:
                self._watch(process)
            finally:
                self._terminate(process)
        finally:
            self._ended.set()
            self.settled.set()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        deadline = time.monotonic() + CONNECT_TIMEOUT
        with selectors.DefaultSelector() as selector:
            selector.register(process.stderr, selectors.EVENT_READ)
            while process.poll() is None and not self._ending.is_set():
                if not self.settled.is_set():
                    if _is_socket(self.socket):
                        self._checked = time.monotonic()
                        self.settled.set()
                    elif time.monotonic() > deadline:
                        return  # ssh has no time limit for a login that hangs
                # When ssh ends, its stderr ends too and wakes select(); a ProxyCommand may keep it open, hence the limit.
                if selector.select(1.0 if self.settled.is_set() else 0.01) and not self._read(process.stderr):
                    process.wait()
            # Its last output may still be in the pipe.
            while selector.select(0) and self._read(process.stderr):
                pass

    def _read(self, pipe: IO[bytes]) -> bool:
        chunk = os.read(pipe.fileno(), 4096)
        self._output = (self._output + chunk)[-_OUTPUT_KEPT:]
        return bool(chunk)

    def _terminate(self, process: subprocess.Popen[bytes]) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is not None:
                break
            _signal_group(process, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
        if process.stderr is not None:
            process.stderr.close()
        self.socket.unlink(missing_ok=True)


_CHECK_EVERY: Final = 5.0
_CHECK_LIMIT: Final = 2.0
_OUTPUT_KEPT: Final = 8192


class SocketDirectory:
    """A private directory for ControlMaster sockets, with a path short enough for a socket.

    It is locked while its process lives, so that a directory left by a killed process is recognised and removed.

    Args:
        path: the directory; locked already.
        descriptor: of the directory; holds the lock.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def make(cls) -> SocketDirectory | None:
        """Makes one in this account's runtime directory or in ``/tmp``; None where neither works."""
        for place in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.getuid()}", "/tmp"):
            if place.startswith("/"):
                with contextlib.suppress(OSError):
                    _clear_abandoned(Path(place))
                    path = Path(tempfile.mkdtemp(prefix=_SOCKET_DIRECTORY_PREFIX, dir=place))
                    descriptor = _lock_directory(path)
                    if descriptor is not None and len(os.fsencode(path)) <= CONTROL_PATH_BYTES - len("/99999999"):
                        return cls(path, descriptor)
                    _remove_directory(path, descriptor)
        return None

    def remove(self) -> None:
        """Removes it. May be called repeatedly."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            _remove_directory(self.path, descriptor)


def _lock_directory(path: Path) -> int | None:
    """A descriptor of the directory, locked; None where another process holds the lock."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_directory(path: Path, descriptor: int | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if descriptor is not None:
        os.close(descriptor)


def _clear_abandoned(place: Path) -> None:
    for path in place.glob(f"{_SOCKET_DIRECTORY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.geteuid() and (descriptor := _lock_directory(path)) is not None:
                _remove_directory(path, descriptor)


def _options(source: SourceSettings, control_master: str, control_path: Path | None) -> list[str]:
    home_directory()  # without an account ssh does not work, and its own message comes too late
    options = {
        **_OPTIONS,
        "UserKnownHostsFile": _quoted_for_ssh(known_hosts_file(source)),
        "ControlMaster": control_master,
        "ControlPath": _quoted_for_ssh(control_path) if control_path else "none",
    }
    if source.ssh_key:
        options |= {"IdentitiesOnly": "yes", "IdentityFile": _quoted_for_ssh(absolute(source.ssh_key))}
    arguments = ["-F", str(absolute(source.ssh_config))] if source.ssh_config else []
    for name, value in options.items():
        arguments += ["-o", f"{name}={value}"]
    if _port_is_set(source):
        arguments += ["-p", str(source.ssh_port)]
    if source.login:
        arguments += ["-l", source.login]
    return arguments


def _port_is_set(source: SourceSettings) -> bool:
    """Whether the operator set the port: the default must not override a Port in ~/.ssh/config."""
    return "ssh_port" in source.model_fields_set


def _quoted_for_ssh(path: Path) -> str:
    """A path as a value in ssh's configuration, where blanks separate and ``%`` and ``${`` expand."""
    text = str(path)
    if "${" in text or "\n" in text:
        raise Misconfigured(f"ssh cannot use the path {text!r}: it expands '${{'", "move the file")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _quoted_for_rsync(argument: str) -> str:
    """An argument in ``--rsh``: rsync splits at blanks, quotes group, a doubled quote stands for itself, a backslash is literal."""
    return "'" + argument.replace("'", "''") + "'" if set(argument) & set(" '\"") else argument


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # A ProxyCommand is in the group too. The group belongs to the child: it was started in a session of its own.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@functools.cache
def _death_signal_wrapper() -> tuple[str, ...]:
    wrapper = (shutil.which("setpriv") or "setpriv", "--pdeathsig", "TERM", "--")
    try:
        # busybox has a setpriv that lacks this.
        trial = subprocess.run(
            [*wrapper, "true"],
            check=False,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CHECK_LIMIT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return wrapper if trial.returncode == 0 else ()
