"""Runs `notify_command` for each notice, in a thread of its own: nothing waits for it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog

from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.observe.notice_rules import Notice, NoticeLimiter, StatusWatcher, is_serving
from cdc_archiver.observe.service_status import ServiceStatus
from cdc_archiver.text import to_jsonable
from cdc_archiver.threads import StoppableThread
from cdc_archiver.transfer.ssh import clean_environment

_QUEUE: Final = 100
"""Notices that wait for the program; further ones are dropped."""
_INTERVAL: Final = 2.0
"""Seconds between two looks at the status."""
_TIME_LIMIT: Final = 30.0
"""Seconds after which the program and its child processes are killed."""
_AT_STOP: Final = 2.0
"""Seconds that the program may still take when the service stops."""
_TICK: Final = 0.05
_CHUNK: Final = 1 << 16
"""Bytes of output read at each tick, so that a program that floods it waits, and costs nothing."""
_KEPT_OUTPUT: Final = 400
_MAX_TEXT: Final = 4000
"""Characters: a notice fits into a pipe, so that a program which does not read it blocks nothing."""

_log = structlog.get_logger(__name__)


class Notifier(StoppableThread):
    """Tells an operator's program what happens.

    Args:
        command: the program and its arguments, quoted as in a shell; no shell runs it.
        notify_after: seconds after which the outage of a source is news.
        status: called for each look.
        metrics: counts notices by result.
        time_limit, interval: seconds.
    """

    def __init__(
        self,
        command: str,
        notify_after: float,
        status: Callable[[], ServiceStatus],
        metrics: Metrics,
        *,
        time_limit: float = _TIME_LIMIT,
        interval: float = _INTERVAL,
    ) -> None:
        super().__init__("notices")
        self._command = shlex.split(command)
        self._status = status
        self._results = metrics.notices
        self._time_limit = time_limit
        self._interval = interval
        self._watcher = StatusWatcher(notify_after)
        self._limiter = NoticeLimiter()
        self._limiting = threading.Lock()
        self._waiting: queue.Queue[bytes] = queue.Queue(_QUEUE)
        self._dropping = False

    def tell(self, notice: Notice) -> None:
        """Has the program told, soon. Never waits; may be called from any thread."""
        with self._limiting:
            if not self._limiter.admits(notice.kind, time.monotonic()):
                return
        self._enqueue(notice)

    def work(self) -> None:
        next_look = 0.0
        while not self.stopping.is_set():
            try:
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + self._interval
                    self._look()
                with contextlib.suppress(queue.Empty):
                    self._deliver(self._waiting.get(timeout=min(0.5, self._interval)))
            except Exception:  # whatever it is, files are archived all the same
                _log.exception("notices_failed")
                self.stopping.wait(self._interval)

    def _look(self) -> None:
        status = self._status()
        if is_serving(status):
            for notice in self._watcher.look(status, datetime.now(UTC), time.monotonic()):
                self.tell(notice)
        with self._limiting:
            summary = self._limiter.summary(time.monotonic())
        if summary is not None:
            self._enqueue(summary)

    def _enqueue(self, notice: Notice) -> None:
        about = {"kind": notice.kind, "at": datetime.now(UTC).isoformat(), "service": socket.gethostname()}
        more = {key: value[:_MAX_TEXT] if isinstance(value, str) else value for key, value in notice.more.items()}
        body = json.dumps(to_jsonable({**about, "text": notice.text[:_MAX_TEXT], **more})).encode("ascii") + b"\n"
        try:
            self._waiting.put_nowait(body)
            self._dropping = False
        except queue.Full:
            self._results.labels("dropped").inc()
            if not self._dropping:
                _log.warning("notices_dropped", waiting=_QUEUE, detail="notify_command is slower than the notices")
            self._dropping = True

    def _deliver(self, body: bytes) -> None:
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=clean_environment(),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._failed("failed", f"it cannot be started: {error}", b"")
            return
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        said = bytearray()
        with process.stdout:
            with contextlib.suppress(OSError):  # it may have ended, or have no interest in its input
                os.write(process.stdin.fileno(), body)
            with contextlib.suppress(OSError):
                process.stdin.close()
            in_time = self._wait(process, said)
            if not in_time:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
            _read(process.stdout.fileno(), said)
        if not in_time:
            self._failed("timeout", f"it was killed after {self._time_limit:g} s, or at the stop", said)
        elif status:
            self._failed("failed", f"exit status {status}" if status > 0 else f"signal {-status}", said)
        else:
            self._results.labels("delivered").inc()

    def _wait(self, process: subprocess.Popen[bytes], said: bytearray) -> bool:
        """Waits for the program's end; returns whether it came in time."""
        assert process.stdout is not None
        deadline = time.monotonic() + self._time_limit
        stopping = False
        while process.poll() is None:
            if self.stopping.is_set() and not stopping:
                stopping, deadline = True, min(deadline, time.monotonic() + _AT_STOP)
            if time.monotonic() >= deadline:
                return False
            _read(process.stdout.fileno(), said)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_TICK)
        return True

    def _failed(self, result: str, why: str, said: bytes | bytearray) -> None:
        self._results.labels(result).inc()
        output = bytes(said).decode("utf-8", "backslashreplace").strip()
        _log.error("notify_command_failed", command=shlex.join(self._command), detail=why, output=output)


def _read(output: int, said: bytearray) -> None:
    """Reads what is there, and keeps its end."""
    with contextlib.suppress(OSError):
        said += os.read(output, _CHUNK)
        del said[:-_KEPT_OUTPUT]
