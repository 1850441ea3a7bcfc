"""The real service as a child process, started as a site starts it: `run` with flags and environment variables."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from cdc_archiver.sandbox.child_process import ChildProcess, SandboxError
from cdc_archiver.settings import PREFIX

_POLL: Final = 0.05
_KEPT: Final = f"{PREFIX}CACHE"
"""The only variable with the product's prefix that is not a setting of the service."""


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """The metrics at one time."""

    samples: tuple[tuple[str, Mapping[str, str], float], ...]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series that have these labels.

        Args:
            name: without the prefix: ``copies_total``.
        """
        return sum(
            value
            for sample, has, value in self.samples
            if sample == f"cdc_archiver_{name}" and labels.items() <= has.items()
        )

    def by(self, label: str, name: str) -> dict[str, int]:
        """The sums by the values of one label."""
        values = [has[label] for sample, has, _ in self.samples if sample == f"cdc_archiver_{name}"]
        return {value: round(self.total(name, **{label: value})) for value in values}


class ServiceProcess:
    """`cdc-archiver run` as a child process.

    Args:
        flags: of the command line, after `run`.
        environment: its environment variables; see :func:`without_settings`.
        directory: for its logs.
        program: the program to run, of another build.
    """

    def __init__(
        self,
        flags: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        program: Sequence[str] = (sys.executable, "-m", "cdc_archiver"),
    ) -> None:
        self._command = (*program, "run", *flags)
        self._environment = dict(environment)
        self._directory = directory
        self._process = ChildProcess("the service", self._command, directory / "service.log", self._environment)
        self._port: int | None = None

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._process.running

    @property
    def port(self) -> int:
        """The port of its HTTP server on 127.0.0.1, from its log.

        Raises:
            SandboxError: the log does not have it yet.
        """
        if self._port is None:
            for line in self._lines():
                if line.get("event") == "listening":
                    self._port = int(str(line["address"]).rpartition(":")[2])
                    return self._port
            raise SandboxError("the service does not listen yet")
        return self._port

    def start(self, timeout: float = 30.0) -> None:
        """Starts it and waits until it streams.

        Args:
            timeout: seconds.

        Raises:
            SandboxError: it ended, or does not stream within the timeout.
        """
        self._process.start()
        deadline = time.monotonic() + timeout
        while not (state := self._state()).startswith("200 streaming"):
            if self._process.wait(_POLL):
                raise SandboxError(f"the service ended at its start with status {self._process.returncode}")
            if time.monotonic() > deadline:
                raise SandboxError(f"after {timeout:.0f} s the service does not stream; /readyz says: {state}")

    def require_running(self) -> None:
        """Checks that it runs.

        Raises:
            SandboxError: it has ended.
        """
        if not self.running:
            raise SandboxError(f"the service ended unexpectedly, with status {self._process.returncode}")

    def metrics(self) -> MetricsSnapshot:
        """The current content of /metrics.

        Raises:
            SandboxError: it does not answer.
        """
        status, text = self._get("/metrics")
        if status != 200:
            raise SandboxError(f"the service's /metrics answered {status}")
        families = text_string_to_metric_families(text)
        return MetricsSnapshot(
            tuple((sample.name, sample.labels, sample.value) for family in families for sample in family.samples)
        )

    def stop(self, timeout: float) -> tuple[int | None, float]:
        """Stops it with SIGTERM; kills it after `timeout` seconds.

        Returns:
            Its exit status, and the duration in seconds.
        """
        began = time.monotonic()
        self._process.stop(timeout)
        return self._process.returncode, time.monotonic() - began

    def kill(self) -> None:
        """Kills it and its descendants."""
        self._process.kill()

    def reconcile(self, timeout: float) -> tuple[int | None, str]:
        """Runs `run --reconcile` to its end.

        Returns:
            Its exit status, None if it was killed after `timeout` seconds; its last line of output.
        """
        process = ChildProcess(
            "run --reconcile", (*self._command, "--reconcile"), self._directory / "reconcile.log", self._environment
        )
        process.start()
        try:
            ended = process.wait(timeout)
        finally:
            process.kill()
        return process.returncode if ended else None, process.log_tail(1)

    def log_excerpt(self) -> str:
        """The last lines of its log above level info; without such lines, the end of the log."""
        lines = self._process.log_tail(500).splitlines()
        serious = [line for line in lines if '"level": "info"' not in line]
        return "\n".join(serious[-10:] or lines[-3:])

    def _state(self) -> str:
        try:
            status, text = self._get("/readyz")
        except SandboxError as error:
            return str(error)
        return f"{status} {text.strip()}"

    def _get(self, path: str) -> tuple[int, str]:
        # Not urllib, which would use the machine's http_proxy for loopback.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10.0)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise SandboxError(f"the service's {path} does not answer: {error}") from error
        finally:
            connection.close()

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for text in self._process.log_tail(100).splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # a library's output, or an incomplete line
            if isinstance(line, dict):
                lines.append(line)
        return lines


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without settings of the archiver, which this machine may have for another one."""
    return {
        name: value for name, value in environment.items() if name == _KEPT or not name.startswith((PREFIX, "MYSQL_"))
    }


def settings_environment(**settings: object) -> dict[str, str]:
    """Settings as environment variables.

    Args:
        settings: by name: ``mysql_host``, ``ssh_port``.
    """
    return {
        name.upper() if name.startswith("mysql_") else PREFIX + name.upper(): os.fspath(value)
        if isinstance(value, os.PathLike)
        else str(value)
        for name, value in settings.items()
    }
