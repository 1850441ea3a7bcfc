"""OpenSSH: its options, the environment it runs in, and one ControlMaster for each source."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import selectors
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from cdc_archiver.errors import Misconfigured
from cdc_archiver.settings import SourceSettings
from cdc_archiver.transfer.sockets import SocketDirectory
from cdc_archiver.transfer.ssh_errors import Peer

CONNECT_TIMEOUT: Final = 10
"""Seconds for a connection to come about; a copy waits for a ControlMaster no longer than this."""

_OPTIONS: Final = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    # One file for OpenSSH and paramiko, and nothing ever writes to it but a person.
    "GlobalKnownHostsFile": "/dev/null",
    "UpdateHostKeys": "no",
    "ConnectTimeout": str(CONNECT_TIMEOUT),
    "ConnectionAttempts": "1",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "3",
    # What a person's own configuration may ask for, and a pipe for rsync cannot stand.
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "PermitLocalCommand": "no",
    "EscapeChar": "none",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "ControlPersist": "no",
    # ERROR would hide "Unable to negotiate", "Timeout, server not responding" and "no such identity".
    "LogLevel": "INFO",
}


_NOT_FOR_CHILDREN: Final = ("RSYNC_", "SSH_", "MYSQL_", "CDC_ARCHIVER_")


def ssh_command(source: SourceSettings, control_path: Path | None = None) -> list[str]:
    """The ssh command line for a source, up to where the host comes.

    Follow it with ``--``, :attr:`SourceSettings.host_name` and a remote command, or hand it to rsync as
    :func:`remote_shell` does.

    Args:
        control_path: socket of a running ControlMaster to go through; None: a connection of its own.

    Raises:
        Misconfigured: no ssh could work: this uid has no account, or a path cannot be written in ssh's configuration.
    """
    return ["ssh", *_options(source, "no", control_path)]


def remote_shell(source: SourceSettings, control_path: Path | None = None) -> str:
    """:func:`ssh_command` as rsync's ``--rsh`` takes it.

    Raises:
        Misconfigured: as :func:`ssh_command`.
    """
    return " ".join(_quoted_for_rsync(word) for word in ssh_command(source, control_path))


def rsync_host(source: SourceSettings) -> str:
    """The host as it stands before rsync's colon: an IPv6 address in brackets, no user (ssh has it already)."""
    return f"[{source.host_name}]" if ":" in source.host_name else source.host_name


def known_hosts_file(source: SourceSettings) -> Path:
    """The one file of trusted host keys, absolute.

    Raises:
        Misconfigured: this uid has no account, hence no ``~/.ssh``.
    """
    return absolute(source.known_hosts or Path("~/.ssh/known_hosts"))


def peer(source: SourceSettings) -> Peer:
    """Who is on the other side, for the hints of :mod:`cdc_archiver.transfer.ssh_errors`.

    Raises:
        Misconfigured: as :func:`ssh_command`.
    """
    return Peer(
        host=source.host_name,
        port=source.ssh_port if _port_is_set(source) else None,
        user=source.login,
        known_hosts=str(known_hosts_file(source)),
        key=str(absolute(source.ssh_key)) if source.ssh_key else "",
        restricted_to=source.source_root if source.restricted_key else "",
    )


def clean_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for ssh and rsync: no word of an operator's shell changes what they do, and no secret of ours goes along.

    Args:
        environment: default: the process's.
    """
    environment = os.environ if environment is None else environment
    kept = {name: value for name, value in environment.items() if not name.upper().startswith(_NOT_FOR_CHILDREN)}
    return {**kept, "LC_ALL": "C"}


def home_directory() -> Path:
    """The home that OpenSSH goes by: the account's, whatever ``HOME`` says.

    Raises:
        Misconfigured: this uid has no account; ssh would say "No user exists for uid".
    """
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        raise Misconfigured(
            f"uid {os.getuid()} has no passwd entry here, and ssh refuses to run without one",
            f"run as a user of this machine, or add an entry: `useradd -u {os.getuid()} -m archiver` (in a container: "
            "in its image, or with libnss_wrapper)",
        ) from None


def absolute(path: Path) -> Path:
    """The path with ``~`` expanded as ssh does it, and independent of the working directory.

    Raises:
        Misconfigured: as :func:`home_directory`.
    """
    return home_directory().joinpath(*path.parts[1:]) if path.parts[:1] == ("~",) else path.absolute()


def dies_with_parent(command: list[str]) -> list[str]:
    """The command, made to get SIGTERM when the thread that starts it ends, a killed process's threads included.

    By way of ``setpriv`` where that can do it, since a ``preexec_fn`` may deadlock beside other threads. Without it the
    command comes back as it is.
    """
    return [*_guard(), *command]


class ControlMaster:
    """The one connection of a source that its rsyncs share: 36 ms for a file in place of 0.3 s.

    Not having it is never an error: rsync makes its own connection then, and whatever is wrong shows there. Safe to share
    between threads.
    """

    def __init__(self, source: SourceSettings) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._directory: SocketDirectory | None = None
        self._started = 0
        self._closed = False
        self._master: _Master | None = None

    def ensure(self) -> Path | None:
        """The ControlPath to use now; the master is started where none runs. Callers at the same time share one start.

        Takes some microseconds while it runs, and :data:`CONNECT_TIMEOUT` seconds at the most.

        Returns:
            None: go without.
        """
        deadline = time.monotonic() + CONNECT_TIMEOUT
        master = self._present()
        if master is not None and master.settled.is_set() and not master.answers():
            master.end()
            master = self._present()
        if master is None or not master.settled.wait(max(0.0, deadline - time.monotonic())):
            return None
        return master.socket if master.up else None

    @property
    def words(self) -> str:
        """What the newest master said, for a diagnosis."""
        master = self._master
        return master.words if master else ""

    def renew(self) -> None:
        """Ends the master, sessions that go through it included; the next :meth:`ensure` logs in anew.

        What counts at the login (the key's options, a group, a shell) is otherwise never seen to have been fixed.
        """
        master = self._master
        if master is not None:
            master.end()

    def close(self) -> None:
        """Ends the master, sessions that go through it included. It is not started again."""
        with self._lock:
            self._closed = True
            master, directory = self._master, self._directory
        if master is not None:
            master.end()
            master.join(3.0)
        if directory is not None:
            directory.remove()

    def _present(self) -> _Master | None:
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
        # A new name each time: the old master may still be on its way out, and takes its socket along.
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
    """One ``ssh -M -N``, the reading of what it says, and its end.

    The thread lives exactly as long as its child: that is what :func:`dies_with_parent` asks for.
    """

    def __init__(self, name: str, command: list[str], check: list[str], socket: Path) -> None:
        super().__init__(name=name, daemon=True)
        self.socket = socket
        self.settled = threading.Event()
        """It is up, or it failed."""
        self._command = command
        self._check = check
        self._checked = 0.0
        self._said = b""
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._ended = threading.Event()

    @property
    def finished(self) -> bool:
        """Whether it has ended, or was asked to."""
        return self._ended.is_set() or self._ending.is_set()

    @property
    def up(self) -> bool:
        """Whether it takes sessions, as far as can be seen without asking it."""
        return self.settled.is_set() and not self.finished

    @property
    def words(self) -> str:
        """What it said, the last 8 kB."""
        return self._said.decode(errors="replace").replace("\r", "")

    def answers(self) -> bool:
        """Whether it is up, asked with ``ssh -O check`` (8 ms) where that was longer ago than 5 s."""
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
        """Asks it to end, and returns at once."""
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
            self._said = f"ssh cannot be started: {error}".encode()
        else:
            try:
                self._watch(process)
            finally:
                self._put_down(process)
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
                        return  # a login that hangs has no time limit of its own
                # The end of ssh ends its stderr too, which wakes us; a ProxyCommand may keep it open, hence a limit.
                if selector.select(1.0 if self.settled.is_set() else 0.01) and not self._read(process.stderr):
                    process.wait()
            # What it said last may still be in the pipe.
            while selector.select(0) and self._read(process.stderr):
                pass

    def _read(self, pipe: IO[bytes]) -> bool:
        said = os.read(pipe.fileno(), 4096)
        self._said = (self._said + said)[-_WORDS_KEPT:]
        return bool(said)

    def _put_down(self, process: subprocess.Popen[bytes]) -> None:
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
_WORDS_KEPT: Final = 8192


def _options(source: SourceSettings, control_master: str, control_path: Path | None) -> list[str]:
    home_directory()  # without an account no ssh works, and its own words come too late to be of help
    options = {
        **_OPTIONS,
        "UserKnownHostsFile": _quoted_for_ssh(known_hosts_file(source)),
        "ControlMaster": control_master,
        "ControlPath": _quoted_for_ssh(control_path) if control_path else "none",
    }
    if source.ssh_key:
        options |= {"IdentitiesOnly": "yes", "IdentityFile": _quoted_for_ssh(absolute(source.ssh_key))}
    words = ["-F", str(absolute(source.ssh_config))] if source.ssh_config else []
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    if _port_is_set(source):
        words += ["-p", str(source.ssh_port)]
    if source.login:
        words += ["-l", source.login]
    return words


def _port_is_set(source: SourceSettings) -> bool:
    """Whether anybody named the port: the default must not override a Port in ~/.ssh/config."""
    return "ssh_port" in source.model_fields_set


def _quoted_for_ssh(path: Path) -> str:
    """A path as a value in ssh's configuration, where blanks separate, ``%`` and ``${`` expand."""
    text = str(path)
    if "${" in text or "\n" in text:
        raise Misconfigured(f"{text!r} cannot be named to ssh, which expands '${{'", "move the file")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _quoted_for_rsync(word: str) -> str:
    """A word of ``--rsh``: split at blanks, quotes group, a doubled quote is itself, a backslash is nothing special."""
    return "'" + word.replace("'", "''") + "'" if set(word) & set(" '\"") else word


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # A ProxyCommand is in the group, too. The group is the child's own: it was started in a session of its own.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@functools.cache
def _guard() -> tuple[str, ...]:
    guard = (shutil.which("setpriv") or "setpriv", "--pdeathsig", "TERM", "--")
    try:
        # busybox has a setpriv that lacks this.
        tried = subprocess.run(
            [*guard, "true"],
            check=False,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CHECK_LIMIT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return guard if tried.returncode == 0 else ()
