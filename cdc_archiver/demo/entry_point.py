"""`cdc-archiver demo`: starts private servers, plays the session, checks every file, and removes everything."""

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

from cdc_archiver.demo.checks import Check
from cdc_archiver.demo.report import Reporter
from cdc_archiver.demo.scenario import Scenario
from cdc_archiver.demo.session import FEWEST, SMALLEST, Session, plan
from cdc_archiver.errors import ExitStatus, Misconfigured
from cdc_archiver.sandbox import Sandbox, SandboxError
from cdc_archiver.sandbox.database_servers import Kind
from cdc_archiver.sandbox.packages import BUNDLES, cache_directory, find, find_library
from cdc_archiver.settings.types import Bytes

_KINDS: Final[dict[str, Kind]] = {"mariadb": "mariadb", "mysql": "mysql"}
_SERVER_OF: Final[dict[Kind, str]] = {"mariadb": "mariadbd", "mysql": "mysqld"}
_SERVERS_BYTES: Final = 400 * 10**6
"""Space for the database's own files (MySQL's take 200 MB), with a margin."""


def run_demo(database: str, files: int, largest: str) -> ExitStatus:
    """Plays the demo, reports its result, and removes everything, however it ends.

    Args:
        database: ``mariadb`` or ``mysql``.
        files: number of files.
        largest: size of the largest file, in the format of settings: ``200M``.

    Returns:
        DONE if every check passes, otherwise INTERNAL_ERROR.

    Raises:
        Misconfigured: an argument is invalid, or the disk has too little free space.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that the terminal lacks must not end the demo
    if database not in _KINDS:
        raise Misconfigured(f"invalid database: {database!r}", "--db mariadb, or --db mysql")
    if files < FEWEST:
        raise Misconfigured(f"too few files: {files}", f"--files {FEWEST}, or more")
    session = plan(files, _size(largest))
    _require_space(session)
    reporter = Reporter(Console(highlight=False))
    checks: list[Check] = []
    trouble = ""
    sandbox: Sandbox | None = None
    try:
        with _Interrupts() as interrupts, contextlib.ExitStack() as stack:
            reporter.say(f"starting {database} and sshd (if not installed: fetched into {cache_directory()})")
            _fetch(_KINDS[database])
            with interrupts.deferred():  # a server cannot be stopped while it starts
                sandbox = stack.enter_context(Sandbox(_KINDS[database]))
                stack.callback(interrupts.ignore)  # called first: no signal interrupts the clean-up
            for check in Scenario(sandbox, session, reporter).run():
                reporter.check(check)
                checks.append(check)
    except KeyboardInterrupt:
        trouble = "interrupted"
    except SandboxError as error:
        trouble = str(error)
    if sandbox is not None:
        checks.append(_check_removed(sandbox))
        reporter.check(checks[-1])
    return _conclude(reporter, checks, trouble)


def _fetch(kind: Kind) -> None:
    for program in (_SERVER_OF[kind], *BUNDLES["ssh"].programs):
        find(program)
    find_library("libnss_wrapper.so")


def _conclude(reporter: Reporter, checks: list[Check], trouble: str) -> ExitStatus:
    failed = [check for check in checks if not check.passed]
    if not failed and not trouble:
        reporter.verdict(f"passed in {reporter.seconds:.0f} s", passed=True)
        return ExitStatus.DONE
    reporter.verdict(f"FAILED after {reporter.seconds:.0f} s:", passed=False)
    if trouble:
        reporter.problem(trouble)
    for check in failed:
        reporter.check(check)
    return ExitStatus.INTERNAL_ERROR


def _check_removed(sandbox: Sandbox) -> Check:
    left = [f"{server.log.stem} still runs" for server in (sandbox.database, sandbox.ssh) if server.running]
    if sandbox.directory.exists():
        left.append(f"{sandbox.directory} still exists")
    return Check("the private servers are stopped, and all their files and the demo's are removed", tuple(left))


def _size(text: str) -> int:
    try:
        size: int = TypeAdapter(Bytes).validate_python(text)
    except ValidationError:
        size = 0
    if size < SMALLEST:
        raise Misconfigured(f"invalid size: --largest {text!r} (at least {SMALLEST} bytes)", "--largest 200M")
    return size


def _require_space(session: Session) -> None:
    directory = tempfile.gettempdir()
    needed = 2 * sum(file.size for file in session.files) + _SERVERS_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise Misconfigured(
            f"the demo needs {decimal(needed)} in {directory}, where {decimal(free)} are free",
            "TMPDIR=/some/other/directory, or a smaller demo: --largest 20M --files 200",
        )


class _Interrupts:
    """Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt once; clean-up and report are not interrupted again."""

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
        """A signal inside the block takes effect at its end."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._pending:
            self._raise()

    def ignore(self) -> None:
        """Ignores further signals."""
        self._ignored = True

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._deferred:
            self._pending = True
        elif not self._ignored:
            self._raise()

    def _raise(self) -> None:
        self._ignored = self._raised = True
        raise KeyboardInterrupt
