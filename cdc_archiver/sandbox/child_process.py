"""Child processes: started in a session of their own, logged to a file, stopped or killed with all their descendants."""

import contextlib
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

_POLL = 0.02
"""Seconds between two looks at something that can only be polled."""

_KILL_LIMIT = 10.0
"""Seconds to wait for killed processes; one that the kernel holds in a system call ends later."""

_PORTS = range(20_000, 32_000)
"""Below Linux's range for outgoing connections, so that none takes a server's port while the server is restarted."""
_PORT_SHARES = 16
"""Processes with neighbouring ids draw from different ports, for the same reason."""


class SandboxError(Exception):
    """A private server, or a program that it needs, is not available; the message says which, why, and the fix."""


def free_port() -> int:
    """A TCP port on loopback that is free now; another process may take it before the caller binds it."""
    share = _PORTS[os.getpid() % _PORT_SHARES :: _PORT_SHARES]
    for port in random.sample(share, 200):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise SandboxError(f"no free TCP port on 127.0.0.1 between {_PORTS.start} and {_PORTS.stop}")


class ChildProcess:
    """One long-running program.

    It ends with this process, however this process ends, if `setpriv` is installed (it is part of Debian's base system).
    Otherwise only `stop` and `kill` end it.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Describe the program; `start` runs it.

        Arguments:
            name: its name in messages.
            command: the program's path and its arguments.
            log: the file that its output is appended to.
            environment: its whole environment; None: the environment of this process.
        """
        self.name = name
        self.command = tuple(command)
        self.log = log
        self.environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """The running program's process id; SandboxError before the first start."""
        if self._process is None:
            raise SandboxError(f"{self.name} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs and before it was started."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Run it; SandboxError if it runs already or cannot be started."""
        if self.running:
            raise SandboxError(f"{self.name} runs already, as process {self.pid}")
        if shutil.which(self.command[0]) is None:  # setpriv would be started all the same
            raise SandboxError(f"cannot run {self.name}: {self.command[0]} is not a program")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        try:
            self._process = _spawn(self.command, self.log, self.environment)
        except OSError as error:
            raise SandboxError(f"cannot run {self.name} ({self.command[0]}): {error}") from error

    def wait(self, timeout: float) -> bool:
        """Wait for its end, at most `timeout` seconds; whether it ended."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, timeout: float = 15.0) -> None:
        """Ask it to end (SIGTERM), wait at most `timeout` seconds, then kill it and its remaining descendants."""
        if not self.running:
            return
        members = self._descendants_and_self()
        self.send(signal.SIGTERM)
        self.send_to_all(signal.SIGCONT)  # a stopped process does not handle SIGTERM
        self.wait(timeout)
        self._kill(members)

    def kill(self) -> None:
        """End it and all its descendants at once (SIGKILL)."""
        if self.running:
            self._kill(self._descendants_and_self())

    def send(self, number: signal.Signals) -> None:
        """Send it one signal; no effect after its end."""
        if self._process is not None:
            self._process.send_signal(number)

    def send_to_all(self, number: signal.Signals) -> None:
        """Send a signal to it and to all its descendants: SIGSTOP and SIGCONT pause and resume a server."""
        for member in self._descendants_and_self():
            member.send(number)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines that it wrote since its latest start."""
        try:
            with self.log.open("rb") as file:
                file.seek(self._log_start)
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _descendants_and_self(self) -> list["_Member"]:
        return _descendants(self.pid) if self.running else []

    def _kill(self, members: list["_Member"]) -> None:
        # A server that forks while it is being killed leaves a child that the first look did not see.
        deadline = time.monotonic() + _KILL_LIMIT
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is None:
                members = [*members, *_descendants(self._process.pid)]
                self._process.kill()
            alive = [member for member in members if member.alive()]
            if not alive:
                break
            for member in alive:
                member.send(signal.SIGKILL)
            members = [*alive, *(child for member in alive for child in _descendants(member.pid))]
            if self._process is not None:
                self._process.poll()
            time.sleep(_POLL)
        # Of a program with threads, the first may be gone while others still hold its files and its port.
        self.wait(max(_POLL, deadline - time.monotonic()))


@dataclass(frozen=True)
class _Member:
    """A process, identified by its number and its start time: numbers are used again."""

    pid: int
    born: str

    def alive(self) -> bool:
        found = _stat(self.pid)
        return found is not None and found[1] == self.born and found[2] != "Z"

    def send(self, number: signal.Signals) -> None:
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _stat(pid: int) -> tuple[int, str, str] | None:
    """A process's parent, start time and state; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The command name, in brackets, may hold blanks and brackets: the fields are counted from the last bracket.
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), fields[19], fields[0]


def _descendants(pid: int) -> list[_Member]:
    """The process and its living descendants."""
    children: dict[int, list[int]] = {}
    born: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := _stat(int(entry))) is not None:
            children.setdefault(found[0], []).append(int(entry))
            born[int(entry)] = found[1]
    members, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        if current in born:
            members.append(_Member(current, born[current]))
        waiting.extend(children.get(current, []))
    return members


@dataclass(frozen=True)
class _SpawnRequest:
    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] | None
    answer: "Future[subprocess.Popen[bytes]]"


class _Spawner(threading.Thread):
    """The thread that starts every child process.

    Linux ties a child's "die with your parent" to the *thread* that forked it: a server that a short-lived thread
    started would die with that thread. This one lives as long as the process.
    """

    def __init__(self) -> None:
        super().__init__(name="sandbox-spawner", daemon=True)
        self.requests: queue.SimpleQueue[_SpawnRequest] = queue.SimpleQueue()
        self.owner = os.getpid()

    def run(self) -> None:
        while True:
            request = self.requests.get()
            try:
                request.answer.set_result(_popen(request.command, request.log, request.environment))
            except Exception as error:  # raised again in the caller
                request.answer.set_exception(error)


_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()


def _spawn(command: tuple[str, ...], log: Path, environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    global _spawner
    with _spawner_lock:
        if _spawner is None or _spawner.owner != os.getpid():  # a forked child has no threads but its own
            _spawner = _Spawner()
            _spawner.start()
        spawner = _spawner
    request = _SpawnRequest(command, log, environment, Future())
    spawner.requests.put(request)
    return request.answer.result()


def _popen(command: tuple[str, ...], log: Path, environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    # By way of setpriv and not of a preexec_fn, which may deadlock in a process with threads.
    setpriv = shutil.which("setpriv")
    guard = (setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()
    with log.open("ab") as output:
        return subprocess.Popen(
            [*guard, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )
