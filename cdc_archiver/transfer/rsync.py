"""Builds the rsync command, runs it, stops a run that stalls, and finds the files that it has renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import posixpath
import re
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from cdc_archiver.errors import HostUnavailable
from cdc_archiver.model import Reason
from cdc_archiver.settings import SourceSettings
from cdc_archiver.settings.types import FileModes
from cdc_archiver.transfer import rsync_output
from cdc_archiver.transfer.ssh import clean_environment, dies_with_parent, remote_shell, rsync_host

PARTIAL: Final = ".rsync-partial"
"""Directory next to a staged file where rsync keeps the part that it had when the link broke."""

_POLL_SECONDS: Final = 0.25
_GROUP_SECONDS: Final = 0.2
"""Seconds for which lines are collected while others are pending. Each group of files is synced to the disk separately: without
this a group had about thirty files, and rsync and the database waited for the sync."""
_PIPE_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 16
_READ_PAUSE_SECONDS: Final = 0.002
_MANY_PENDING: Final = 20
"""Seconds between two reads while more than this many lines are pending: rsync writes each line separately, and each would wake
this process."""
_STAGING_CHECK_SECONDS: Final = 2.0
_EXIT_GRACE_SECONDS: Final = 3.0
_RENAME_CHECKS: Final = 20
_RENAME_CHECK_SECONDS: Final = 0.001
"""How many times, and after how many seconds, to check whether rsync has given a staged file its name."""
_MAX_OUTPUT_BYTES: Final = 1 << 20
"""Bytes that rsync and the other side may print besides the files' lines."""


@dataclass(frozen=True, slots=True)
class RsyncLimits:
    """Limits of one run.

    Attributes:
        max_size: bytes above which rsync skips and reports a file; None for no limit.
        io_timeout: seconds of silence on the link after which rsync itself gives up.
        stall_timeout: seconds without a line and without a staged byte after which rsync is killed: its own timeout does not
            notice a stopped sender.
        rate: a value of rsync's ``--bwlimit``; empty for no limit.
    """

    max_size: int | None
    io_timeout: float
    stall_timeout: float
    rate: str = ""


_PLAIN_DIRECTORIES: Final = re.compile(rb"(?:(?!-|\.{1,2}/)[A-Za-z0-9._-]+/)*")
"""Directories whose names no shell interprets: before 3.2.4 rsync passes its arguments to a shell unquoted."""

_MAX_DIRECTORY_BYTES: Final = 1024
"""Bytes: together with the path of staging it remains a valid path."""


def common_directory(entries: Sequence[bytes]) -> bytes:
    """The deepest directory that contains all entries and has a plain name, ended by a slash; empty for the root.

    For each file rsync walks the path component by component, on both sides: from here the path is shorter.

    Args:
        entries: relative to the source root, normal.
    """
    # Entries between the first and the last in sort order share the prefix that these two share.
    shared = posixpath.commonpath([posixpath.dirname(min(entries)), posixpath.dirname(max(entries))])
    plain = _PLAIN_DIRECTORIES.match(shared + b"/")
    return plain[0] if plain and len(plain[0]) <= _MAX_DIRECTORY_BYTES else b""


def transfer_options(source: SourceSettings, limits: RsyncLimits) -> list[str]:
    """The options of a copy that the other side may refuse; ``check`` tries the same."""
    options = [
        "--times",
        "--perms",
        # Without this rsync prints nothing for a complete leftover and exits 0, every time.
        "--ignore-times",
        "--checksum-choice=md5",
        f"--partial-dir={PARTIAL}",
        f"--timeout={max(1, round(limits.io_timeout))}",
    ]
    if limits.max_size is not None:
        options += [f"--max-size={limits.max_size}", "--info=skip1"]
    if limits.rate:
        options.append(f"--bwlimit={limits.rate}")
    if source.compress and not source.is_local:
        options += ["--compress", "--compress-choice=zstd"]
    return options


def rsync_command(
    source: SourceSettings,
    staging: Path,
    modes: FileModes,
    limits: RsyncLimits,
    control_path: Path | None,
    directory: bytes = b"",
) -> list[str]:
    """The argument list. rsync reads the wanted entries from standard input, each ended by a NUL.

    Args:
        source: the source to copy from.
        staging: directory on the archive's file system that no other rsync uses.
        modes: of staged, and so of archived, files.
        limits: of this run.
        control_path: of the source's ControlMaster; None for a separate connection.
        directory: from :func:`common_directory`: what entries are relative to, below the source root as below staging.
    """
    below = os.fsdecode(directory)
    command = [
        "rsync",
        "--files-from=-",
        "--from0",
        "--no-implied-dirs",
        # Directories in staging stay accessible whatever their mode on the source: one without permissions could never be cleared.
        f"--chmod=D0700,F{modes.files:o}",
        f"--out-format={rsync_output.OUT_FORMAT}",
        "--outbuf=L",
        *transfer_options(source, limits),
    ]
    if source.is_local:
        return [*command, "--", f"{source.source_root.rstrip('/')}/{below}", f"{staging}/{below}"]
    # Only for the receiving side; the sender treats a directory the same either way. With --dirs, which a list implies, the
    # receiver matches each name against two patterns for each entry, one with a wildcard: quadratic in the size of a batch.
    command.append("--no-dirs")
    # With rrsync the key's command names the directory, and every path is relative to it.
    root = "/" if source.restricted_key else f"{source.source_root.rstrip('/')}/"
    shell = remote_shell(source, control_path)
    return [*command, "-e", shell, "--", f"{rsync_host(source)}:{root}{below}", f"{staging}/{below}"]


class RsyncRun:
    """One rsync process. Iterate :meth:`lines` to its end, then read ``status`` and ``stderr``.

    Args:
        command: from :func:`rsync_command`.
        entries: the wanted files, relative to the source root.
        staging: the directory that rsync writes to, watched for progress.
        limits: of this run.
        cancel: set it to kill rsync.
        directory: that of the command; only rsync uses names relative to it.
    """

    def __init__(
        self,
        command: Sequence[str],
        entries: Sequence[bytes],
        staging: Path,
        limits: RsyncLimits,
        cancel: threading.Event,
        directory: bytes = b"",
    ) -> None:
        self._command = list(command)
        self._entries = entries
        self._staging = staging
        self._limits = limits
        self._cancel = cancel
        self._directory = directory
        self.stalled = False
        self.cancelled = False
        self.status = 0
        self.stderr = ""

    def lines(self) -> Iterator[list[rsync_output.OutputLine]]:
        """Yields the lines printed, in groups: all since the last group was taken; at once where no more lines are pending.

        Raises:
            HostUnavailable: there is no rsync on this machine.
        """
        # In memory: a full /tmp must not stop copying.
        with _memory_file("wanted") as wanted, _memory_file("errors") as errors:
            # rsync silently drops an entry that begins with '#' or ';'.
            start = len(self._directory)
            wanted.write(b"".join(b"./" + entry[start:] + b"\0" for entry in self._entries))
            wanted.seek(0)
            process = self._start(wanted, errors)
            try:
                yield from self._read_groups(process, errors)
            except BaseException:  # the consumer of the lines gave up the run
                self.cancelled = True
                raise
            finally:
                self._stop(process)
                self.status = process.returncode
                errors.seek(0)
                # For people: bytes that are not UTF-8 must not break a log, a page or the history.
                self.stderr = errors.read(_MAX_OUTPUT_BYTES).decode("utf-8", "backslashreplace")

    def _start(self, wanted: IO[bytes], errors: IO[bytes]) -> subprocess.Popen[bytes]:
        environment = clean_environment()
        if shutil.which("rsync", path=environment.get("PATH")) is None:
            raise HostUnavailable(
                Reason.RSYNC_MISSING, "rsync is not installed on this machine", "apt-get install rsync"
            )
        process = subprocess.Popen(
            dies_with_parent(self._command),
            stdin=wanted,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        assert process.stdout is not None
        with contextlib.suppress(OSError):  # a full pipe would block rsync during hashing and syncing
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return process

    def _read_groups(
        self, process: subprocess.Popen[bytes], errors: IO[bytes]
    ) -> Iterator[list[rsync_output.OutputLine]]:
        assert process.stdout is not None
        output = process.stdout.fileno()
        partial_line = b""
        idle = _IdleTimer(self._staging)
        group: list[rsync_output.OutputLine] = []
        reported = 0
        due = float("inf")
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while True:
                ready = selector.select(min(_POLL_SECONDS, max(0.0, due - time.monotonic())))
                if self._cancel.is_set():
                    self.cancelled = True
                    return
                if idle.seconds() > self._limits.stall_timeout:
                    self.stalled = True
                    break
                if os.fstat(errors.fileno()).st_size > _MAX_OUTPUT_BYTES or len(partial_line) > _MAX_OUTPUT_BYTES:
                    self.stalled = True  # endless output is not progress
                    break
                if ready:
                    chunk = os.read(output, _READ_BYTES)
                    if not chunk:
                        break
                    *complete, partial_line = (partial_line + chunk).split(b"\n")
                    lines = [
                        line
                        for text in complete
                        if (line := rsync_output.parse_line(text, self._directory)) is not None
                    ]
                    if lines:
                        idle.reset()
                        due = min(due, time.monotonic() + _GROUP_SECONDS)
                        group += lines
                        reported += len(lines)
                if group and (reported >= len(self._entries) or time.monotonic() >= due):
                    yield group
                    idle.reset()
                    group, due = [], float("inf")
                if ready and len(self._entries) - reported > _MANY_PENDING:
                    time.sleep(_READ_PAUSE_SECONDS)
        if group:
            yield group

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        """Waits for a process that has closed its output; kills a stalled or cancelled one with its children."""
        assert process.stdout is not None
        process.stdout.close()
        if not (self.stalled or self.cancelled):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_GRACE_SECONDS)
                return
        # On SIGTERM rsync keeps the part of a file that it has (--partial-dir), on SIGKILL it does not.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_GRACE_SECONDS)
                return
        process.wait()


@dataclass(frozen=True, slots=True)
class ReportedFile:
    """An output line and, for a received file, its path in staging and its status there."""

    line: rsync_output.OutputLine
    staged: str = ""
    stat_result: os.stat_result | None = None


def split_renamed(
    lines: Sequence[rsync_output.OutputLine], staging: Path
) -> tuple[list[ReportedFile], list[rsync_output.OutputLine]]:
    """Separates lines whose staged file has its final name from those whose file does not have it yet.

    rsync prints a file's line when its data is complete and renames it then, mostly within microseconds. The line of the next
    file, or the end, comes after the rename. A local rsync prints the line when the data is sent, well before the rename.

    Returns:
        Files that can be placed, and lines to check again later.
    """
    ready: list[ReportedFile] = []
    waiting: list[rsync_output.OutputLine] = []
    directory = os.path.join(os.fsencode(staging), b"")
    for line in lines:
        if not isinstance(line, rsync_output.FileReceived):
            ready.append(ReportedFile(line))
            continue
        staged = os.fsdecode(directory + line.entry)
        for check in range(_RENAME_CHECKS if line is lines[-1] else 1):
            if check:
                time.sleep(_RENAME_CHECK_SECONDS)
            try:
                found = os.lstat(staged)
            except OSError:
                continue
            ready.append(ReportedFile(line, staged, found))
            break
        else:
            waiting.append(line)
    return ready, waiting


def _memory_file(name: str) -> IO[bytes]:
    return os.fdopen(os.memfd_create(name), "w+b")


class _IdleTimer:
    """Measures for how long nothing has happened: no line, no byte in staging."""

    def __init__(self, staging: Path) -> None:
        self._staging = staging
        self._since = time.monotonic()
        self._checked = self._since
        self._bytes = -1

    def reset(self) -> None:
        self._since = time.monotonic()

    def seconds(self) -> float:
        now = time.monotonic()
        if now - self._checked >= _STAGING_CHECK_SECONDS:
            self._checked = now
            staged = _bytes_below(self._staging)
            if staged != self._bytes:
                self._bytes = staged
                self._since = now
        return now - self._since


def _bytes_below(directory: Path) -> int:
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total
