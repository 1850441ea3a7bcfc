"""The rsync command, its process and the watchdog over it."""

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
"""Where, beside a staged file, rsync keeps what it had when a link broke."""

_TICK: Final = 0.25
_GATHER: Final = 0.2
"""Seconds for which lines are gathered while others are to come. Each group of files is synced to the disk by itself: as fast as
they came that was every thirty files, and rsync and the database waited behind it."""
_PIPE_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 16
_BREATH: Final = 0.002
"""Seconds between two reads while more than this many lines are to come: rsync writes each by itself, and each would wake us."""
_MANY: Final = 20
_LOOK_EVERY: Final = 2.0
_GRACE: Final = 3.0
_WORDS_MOST: Final = 1 << 20
"""Bytes that rsync and the other side may say beside the files' lines."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds one run.

    Attributes:
        max_size: bytes above which files are left out and said so; None for no limit.
        io_timeout: seconds of silence on the link after which rsync itself gives up.
        stall_timeout: seconds without a line and without a staged byte after which the watchdog kills it: rsync's own
            timeout does not see a stopped sender.
        rate: what rsync's ``--bwlimit`` takes; empty for no limit.
    """

    max_size: int | None
    io_timeout: float
    stall_timeout: float
    rate: str = ""


_PLAIN_DIRECTORIES: Final = re.compile(rb"(?:(?!-|\.{1,2}/)[A-Za-z0-9._-]+/)*")
"""Directories whose names mean nothing but themselves to any shell: before 3.2.4 rsync hands its arguments to one as they are."""

_DIRECTORY_MOST: Final = 1024
"""Bytes: with staging's own path before it, it is a path still."""


def common_directory(entries: Sequence[bytes]) -> bytes:
    """The directory that all entries lie below, ended by a slash, down to where its name is not plain; empty for the root.

    rsync walks a name component by component for each file, on both sides: from here the way is shorter.

    Args:
        entries: relative to the source root, normal.
    """
    # What the first and the last by the alphabet share, all share.
    shared = posixpath.commonpath([posixpath.dirname(min(entries)), posixpath.dirname(max(entries))])
    plain = _PLAIN_DIRECTORIES.match(shared + b"/")
    return plain[0] if plain and len(plain[0]) <= _DIRECTORY_MOST else b""


def rsync_command(
    source: SourceSettings,
    staging: Path,
    modes: FileModes,
    limits: Limits,
    control_path: Path | None,
    directory: bytes = b"",
) -> list[str]:
    """The argument list; what is wanted is read from standard input, each entry ended by a NUL.

    Args:
        source: where from.
        staging: directory on the archive's file system that no other rsync uses.
        modes: of staged, and so of archived, files.
        limits: of this run.
        control_path: of the source's ControlMaster; None for a connection of its own.
        directory: from :func:`common_directory`: what entries are relative to, below the source root as below staging.
    """
    below = os.fsdecode(directory)
    command = [
        "rsync",
        "--files-from=-",
        "--from0",
        "--no-implied-dirs",
        "--times",
        "--perms",
        # Directories of staging are ours whatever their mode at the source: one without rights could never be cleared.
        f"--chmod=D0700,F{modes.files:o}",
        # Without this a leftover that is complete prints nothing and exits 0, for ever.
        "--ignore-times",
        "--checksum-choice=md5",
        f"--out-format={rsync_output.OUT_FORMAT}",
        "--outbuf=L",
        f"--partial-dir={PARTIAL}",
        f"--timeout={max(1, round(limits.io_timeout))}",
    ]
    if limits.max_size is not None:
        command += [f"--max-size={limits.max_size}", "--info=skip1"]
    if limits.rate:
        command.append(f"--bwlimit={limits.rate}")
    if source.is_local:
        return [*command, "--", f"{source.source_root.rstrip('/')}/{below}", f"{staging}/{below}"]
    # For this side alone: the other one takes a directory for what it is either way. With --dirs, which a list implies, this side
    # looks each name up among two patterns for each entry, one of them with a wild card: the square of a batch.
    command.append("--no-dirs")
    if source.compress:
        command += ["--compress", "--compress-choice=zstd"]
    # With rrsync the directory is named by the key's command, and every path is taken as below it.
    root = "/" if source.restricted_key else f"{source.source_root.rstrip('/')}/"
    shell = remote_shell(source, control_path)
    return [*command, "-e", shell, "--", f"{rsync_host(source)}:{root}{below}", f"{staging}/{below}"]


class RsyncRun:
    """One rsync process. Iterate :meth:`lines` to its end, then ask for ``status`` and ``stderr``.

    Args:
        command: from :func:`rsync_command`.
        entries: what is wanted, relative to the source root.
        staging: the directory it writes to, watched for progress.
        limits: of this run.
        cancel: set from elsewhere to kill it.
        directory: that of the command; rsync hears and tells names relative to it, and nobody else does.
    """

    def __init__(
        self,
        command: Sequence[str],
        entries: Sequence[bytes],
        staging: Path,
        limits: Limits,
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

    def lines(self) -> Iterator[list[rsync_output.Line]]:
        """What arrives, in groups: all that was printed since the last group was taken; at once where nothing more is to come.

        Raises:
            HostUnavailable: there is no rsync on this machine.
        """
        # In memory: a full /tmp is no reason to copy nothing.
        with _memory_file("wanted") as wanted, _memory_file("errors") as errors:
            # An entry that begins with '#' or ';' would be dropped without a word.
            start = len(self._directory)
            wanted.write(b"".join(b"./" + entry[start:] + b"\0" for entry in self._entries))
            wanted.seek(0)
            process = self._start(wanted, errors)
            try:
                yield from self._watch(process, errors)
            except BaseException:  # whoever reads the lines gave up on the run
                self.cancelled = True
                raise
            finally:
                self._end(process)
                self.status = process.returncode
                errors.seek(0)
                # For people: what is no UTF-8 must not break a log, a page or the history.
                self.stderr = errors.read(_WORDS_MOST).decode("utf-8", "backslashreplace")

    def _start(self, wanted: IO[bytes], errors: IO[bytes]) -> subprocess.Popen[bytes]:
        environment = clean_environment()
        if shutil.which("rsync", path=environment.get("PATH")) is None:
            raise HostUnavailable(Reason.RSYNC_MISSING, "there is no rsync on this machine", "apt-get install rsync")
        process = subprocess.Popen(
            dies_with_parent(self._command),
            stdin=wanted,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        assert process.stdout is not None
        with contextlib.suppress(OSError):  # a full pipe would hold rsync up while we hash and sync
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return process

    def _watch(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> Iterator[list[rsync_output.Line]]:
        assert process.stdout is not None
        output = process.stdout.fileno()
        rest = b""
        progress = _Progress(self._staging)
        gathered: list[rsync_output.Line] = []
        told = 0
        due = float("inf")
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while True:
                ready = selector.select(min(_TICK, max(0.0, due - time.monotonic())))
                if self._cancel.is_set():
                    self.cancelled = True
                    return
                if progress.silent_for() > self._limits.stall_timeout:
                    self.stalled = True
                    break
                if os.fstat(errors.fileno()).st_size > _WORDS_MOST or len(rest) > _WORDS_MOST:
                    self.stalled = True  # chatter without end is no progress
                    break
                if ready:
                    chunk = os.read(output, _READ_BYTES)
                    if not chunk:
                        break
                    *complete, rest = (rest + chunk).split(b"\n")
                    lines = [
                        line for text in complete if (line := rsync_output.read_line(text, self._directory)) is not None
                    ]
                    if lines:
                        progress.heard()
                        due = min(due, time.monotonic() + _GATHER)
                        gathered += lines
                        told += len(lines)
                if gathered and (told >= len(self._entries) or time.monotonic() >= due):
                    yield gathered
                    progress.heard()
                    gathered, due = [], float("inf")
                if ready and len(self._entries) - told > _MANY:
                    time.sleep(_BREATH)
        if gathered:
            yield gathered

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Waits for a process that has closed its output; kills one that is not wanted any more, with its children."""
        assert process.stdout is not None
        process.stdout.close()
        if not (self.stalled or self.cancelled):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
                return
        # rsync keeps what it has of a file (--partial-dir) on SIGTERM, not on SIGKILL.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
                return
        process.wait()


def _memory_file(name: str) -> IO[bytes]:
    return os.fdopen(os.memfd_create(name), "w+b")


class _Progress:
    """How long nothing has happened: no line, no byte in staging."""

    def __init__(self, staging: Path) -> None:
        self._staging = staging
        self._since = time.monotonic()
        self._looked = self._since
        self._bytes = -1

    def heard(self) -> None:
        self._since = time.monotonic()

    def silent_for(self) -> float:
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY:
            self._looked = now
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
