"""The service under test, in a thread of this process or as a process of its own, and its answers over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families
from waiting import PATIENCE, eventually, eventually_or_not

from cdc_archiver.errors import ExitStatus
from cdc_archiver.sandbox import ChildProcess
from cdc_archiver.service.supervisor import Supervisor
from cdc_archiver.settings import Settings

COMMAND = (sys.executable, "-m", "cdc_archiver")
PASSWORD = "tr0ub4dor-and-3"
"""Of the archiver's account; no program may write it anywhere."""


class Served:
    """A service that answers over HTTP."""

    port = 0

    def get(self, path: str) -> tuple[int, str]:
        """Status and body."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def status(self) -> dict[str, Any]:
        """The answer of /api/status."""
        answer: dict[str, Any] = json.loads(self.get("/api/status")[1])
        return answer

    def state(self) -> str:
        """The state in /readyz's answer."""
        return self.get("/readyz")[1].split("\n")[0].partition(":")[0].strip()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels; its name is given without the prefix."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == f"cdc_archiver_{name}" and labels.items() <= sample.labels.items()
        )

    def wait_metric(self, value: float, name: str, **labels: str) -> None:
        """Waits until a metric has a value: metrics count a file after its row has changed."""
        if not eventually_or_not(lambda: self.metric(name, **labels) == value, PATIENCE):
            raise AssertionError(f"{name} {labels} is not {value}, but {self.metric(name, **labels)}")

    def wait_state(self, state: str, within: float = PATIENCE) -> None:
        """Waits until /readyz reports a state."""
        if not eventually_or_not(lambda: self.state() == state, within):
            raise AssertionError(f"not {state!r} within {within} s, but {self.get('/readyz')}")

    def wait_settled(self) -> None:
        """Waits for the sweeps of the start, of which the last is 1.5 s after the start of the stream: later files come by
        the stream."""
        self.wait_state("streaming")
        began = time.time()
        last_look = lambda: self.metric("last_sweep_timestamp_seconds") > began + 1 or time.time() > began + 3
        eventually(last_look, "the second look of the start is done")


class Service(Served):
    """The service in a thread. It ends with the ``with`` block, without an error unless :meth:`failure` was called."""

    def __init__(self, settings: Settings, until: str | None) -> None:
        self.archiver = Supervisor(settings)
        self._until = until
        self.ended: ExitStatus | Exception | None = None
        self.looked = False
        self._thread = threading.Thread(target=self._run, name="acceptance-service", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            eventually(lambda: self.archiver.http is not None or self.ended, "the HTTP server is there")
            if self.archiver.http is not None:
                self.port = self.archiver.http.port
            if self._until is not None:
                self.wait_state(self._until)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if kind is None and not self.looked:
            assert self.ended is ExitStatus.DONE, f"the service ended with {self.ended!r}"

    def stop(self) -> None:
        """Stops it as SIGTERM does."""
        self.archiver.stop()
        self._thread.join(60.0)
        assert not self._thread.is_alive(), "the service did not end within 60 s"

    def failure(self) -> Exception:
        """The exception with which it ended."""
        self._thread.join(PATIENCE)
        self.looked = True
        assert isinstance(self.ended, Exception), f"the service did not fail: {self.ended!r}"
        return self.ended

    def _run(self) -> None:
        try:
            self.ended = self.archiver.run()
        except Exception as error:
            self.ended = error


class Program(Served):
    """``cdc-archiver`` as a process. It is killed at the end of the ``with`` block, and must not have written a secret."""

    may_trace = False
    """Whether a traceback is allowed in its log, because a bug is part of the test."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, until: str | None) -> None:
        self._process = ChildProcess("cdc-archiver", command, log, environment)
        self._until = until

    def __enter__(self) -> Self:
        self._process.start()
        try:
            self.port = int(eventually(self._listens_at, "it says where it listens, or ends"))
            if self._until is not None:
                self.wait_state(self._until)
        except BaseException as error:
            self._process.kill()
            error.add_note(f"the program said:\n{self.said}")
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._process.kill()
        if kind is None:
            assert PASSWORD not in self.said
            assert self.may_trace or "Traceback" not in self.said, self.said

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def said(self) -> str:
        """Its whole output, without colours."""
        return self._process.log_tail(10_000)

    def signal(self, number: signal.Signals) -> None:
        self._process.send(number)

    def wait(self, within: float = PATIENCE) -> int:
        """Waits for its end; its exit status."""
        assert self._process.wait(within), f"it has not ended after {within} s; it said:\n{self.said}"
        assert self._process.returncode is not None
        return self._process.returncode

    def kill(self) -> None:
        """SIGKILL, without its children."""
        self._process.send(signal.SIGKILL)
        self._process.wait(PATIENCE)

    def _listens_at(self) -> str:
        assert self._process.running, f"it ended with status {self._process.returncode}; it said:\n{self.said}"
        match = re.search(r"address\W+http://[^:]+:(\d+)", self.said)
        return match[1] if match else ""
