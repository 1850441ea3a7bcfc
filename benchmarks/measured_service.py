"""`cdc-archiver run` as users run it, a process of its own, and its use of processor and memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator
from typing import Any, Final, Self

from benchmarks.other_build import OtherBuild
from benchmarks.proc_stats import cpu_seconds, cpu_seconds_of_family, most_resident_mb, resident_mb
from benchmarks.testbed import BenchmarkSite
from cdc_archiver.demo.service_process import ServiceProcess
from cdc_archiver.sandbox import SandboxError

_SETTLED_AFTER: Final = 1.5
"""Seconds from the start of the stream to the second sweep."""
_PATIENCE: Final = 30.0
_numbers = itertools.count(1)


class MeasuredService(ServiceProcess):
    """The service on a site, streaming and settled inside the ``with`` block.

    Args:
        site: the site.
        flags: of the command line, after ``run``.
        build: another build, to be run in place of this one.
        options: settings that override the site's; None removes one.
    """

    def __init__(self, site: BenchmarkSite, *flags: str, build: OtherBuild | None = None, **options: Any) -> None:
        directory = site.directory / f"program-{next(_numbers)}"
        directory.mkdir()
        environment = site.environment(options)
        if build is None:
            super().__init__(flags, environment, directory)
        else:
            environment.pop("PYTHONPATH", None)
            super().__init__(flags, environment, directory, build.command)
        self._site = site

    def __enter__(self) -> Self:
        try:
            self.start(_PATIENCE)
            self.settle()
        except BaseException as error:
            error.add_note(self.log_excerpt())
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Its process id; SandboxError if it has ended."""
        self.require_running()
        return self._process.pid

    def settle(self) -> None:
        """Waits until the sweeps of the start are over: later files come by the stream."""
        began = time.time()
        while self.metrics().total("last_sweep_timestamp_seconds") < began + _SETTLED_AFTER - 0.5:
            if time.time() > began + 2 * _SETTLED_AFTER:
                return  # they were over before the first look
            time.sleep(0.05)

    def cpu_seconds(self) -> float:
        """Processor time of the Python process only."""
        return cpu_seconds(self.pid)

    def cpu_seconds_with_children(self) -> float:
        """Processor time of the process, its rsyncs and its ssh."""
        return cpu_seconds_of_family(self.pid)

    def resident_mb(self) -> float:
        """Resident memory of the Python process, in MB."""
        return resident_mb(self.pid)

    def most_resident_mb(self) -> float:
        """The largest resident memory so far, in MB."""
        return most_resident_mb(self.pid)

    def require_streaming(self) -> None:
        """Checks that it streams; SandboxError if it does not."""
        self.require_running()
        if self.metrics().total("mode", mode="stream") != 1:
            raise SandboxError(f"the service does not stream; {self.log_excerpt()}")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Pauses it inside the block, which must be shorter than 15 s: then its lock would be lost."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def copied(self) -> float:
        """Files archived so far."""
        self.require_running()
        return self.metrics().total("copies_total", result="archived")

    def wait_copied(self, files: float) -> None:
        """Waits until it has counted so many files."""
        deadline = time.monotonic() + _PATIENCE
        while self.copied() < files:
            if time.monotonic() > deadline:
                raise SandboxError(f"{self.copied():.0f} files are archived, not {files:.0f}; {self.log_excerpt()}")
            time.sleep(0.05)
