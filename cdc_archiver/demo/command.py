"""The demo: an observing session on private servers, archived by the real service, proved file by file, cleared away."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final, Self

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.filesize import decimal

from cdc_archiver.demo.observing import FEWEST, SMALLEST, Session, plan
from cdc_archiver.demo.playing import Play
from cdc_archiver.demo.proof import Check
from cdc_archiver.demo.telling import Teller
from cdc_archiver.errors import ExitStatus, Misconfigured
from cdc_archiver.sandbox import Sandbox
from cdc_archiver.sandbox.child_process import SandboxError
from cdc_archiver.sandbox.database_servers import Kind
from cdc_archiver.sandbox.packages import BUNDLES, cache_directory, find, find_library
from cdc_archiver.settings.types import Bytes

_KINDS: Final[dict[str, Kind]] = {"mariadb": "mariadb", "mysql": "mysql"}
_SERVER_OF: Final[dict[Kind, str]] = {"mariadb": "mariadbd", "mysql": "mysqld"}
_SERVERS_BYTES: Final = 400 * 10**6
"""What the database's own files take (MySQL's: 200 MB), and room to spare."""


def run_demo(database: str, files: int, largest: str) -> ExitStatus:
    """Plays it, says what came of it, and clears everything away, however it ends.

    Args:
        database: ``mariadb`` or ``mysql``.
        files: how many.
        largest: size of the largest, as settings take sizes: ``200M``.

    Returns:
        DONE if every file is archived and proved, else INTERNAL_ERROR.

    Raises:
        Misconfigured: an argument makes no sense, or there is not enough room.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a letter; that is no reason to end
    if database not in _KINDS:
        raise Misconfigured(f"there is no demo on {database!r}", "--db mariadb, or --db mysql")
    if files < FEWEST:
        raise Misconfigured(f"there is no demo with {files} files", f"--files {FEWEST}, or more")
    session = plan(files, _size(largest))
    _require_room(session)
    teller = Teller(Console(highlight=False))
    checks: list[Check] = []
    trouble = ""
    sandbox: Sandbox | None = None
    try:
        with _Interrupts() as interrupts, contextlib.ExitStack() as stack:
            teller.say(f"starting {database} and sshd (fetched into {cache_directory()} where they are not installed)")
            _fetch(_KINDS[database])
            with interrupts.deferred():  # a server that is about to start cannot be stopped yet
                sandbox = stack.enter_context(Sandbox(_KINDS[database]))
                stack.callback(interrupts.ignore)  # called first: nothing cuts the clearing away short
            for check in Play(sandbox, session, teller).run():
                teller.check(check)
                checks.append(check)
    except KeyboardInterrupt:
        trouble = "interrupted"
    except SandboxError as error:
        trouble = str(error)
    if sandbox is not None:
        checks.append(_prove_cleared(sandbox))
        teller.check(checks[-1])
    return _conclude(teller, checks, trouble)


def _fetch(kind: Kind) -> None:
    for program in (_SERVER_OF[kind], *BUNDLES["ssh"].programs):
        find(program)
    find_library("libnss_wrapper.so")


def _conclude(teller: Teller, checks: list[Check], trouble: str) -> ExitStatus:
    wrong = [check for check in checks if not check.right]
    if not wrong and not trouble:
        teller.verdict(f"all is right, after {teller.seconds:.0f} s", right=True)
        return ExitStatus.DONE
    teller.verdict(f"NOT RIGHT, after {teller.seconds:.0f} s:", right=False)
    if trouble:
        teller.fault(trouble)
    for check in wrong:
        teller.check(check)
    return ExitStatus.INTERNAL_ERROR


def _prove_cleared(sandbox: Sandbox) -> Check:
    left = [f"{server.log.stem} still runs" for server in (sandbox.database, sandbox.ssh) if server.running]
    if sandbox.directory.exists():
        left.append(f"{sandbox.directory} is still there")
    return Check("the private servers are stopped, and all that they and the demo wrote is removed", tuple(left))


def _size(text: str) -> int:
    try:
        size: int = TypeAdapter(Bytes).validate_python(text)
    except ValidationError:
        size = 0
    if size < SMALLEST:
        raise Misconfigured(f"--largest {text!r} is no size of {SMALLEST} bytes or more", "--largest 200M")
    return size


def _require_room(session: Session) -> None:
    place = tempfile.gettempdir()
    needed = 2 * sum(file.size for file in session.files) + _SERVERS_BYTES
    free = shutil.disk_usage(place).free
    if free < needed:
        raise Misconfigured(
            f"the demo needs {decimal(needed)} in {place}, which has {decimal(free)} left",
            "TMPDIR=/some/other/directory, or smaller: --largest 20M --files 200",
        )


class _Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt, once: what follows, to the exit status, is not cut short."""

    def __init__(self) -> None:
        self._ignored = False
        self._deferred = False
        self._pending = False
        self._raised = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._raised else handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """What comes meanwhile is heard at the end."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._pending:
            self._raise()

    def ignore(self) -> None:
        """From now on they do nothing."""
        self._ignored = True

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._deferred:
            self._pending = True
        elif not self._ignored:
            self._raise()

    def _raise(self) -> None:
        self._ignored = self._raised = True
        raise KeyboardInterrupt
