"""Nothing to do: what the service costs by being there."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Final

from benchmarks.cases.base import Case, Figures, Way
from benchmarks.figures import OURS, Aim
from benchmarks.program import Program

_IMPORTS: Final = """
import cdc_archiver.cli, cdc_archiver.service.supervisor, uvicorn.protocols.http.h11_impl, uvicorn.lifespan.on
from pathlib import Path
pages = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
print(int(pages.split()[1]) * 1024 / 1e6)
"""


class Rest(Case):
    """Processor and memory of an idle service, beside those of a Python that has only imported it."""

    name = "rest"
    aims = (
        Aim("processor time while idle, of one core", "cpu_percent", at_most=0.5, unit="%"),
        Aim("memory above that of its imports", "above_imports_mb", at_most=25.0, unit="MB"),
    )
    plot = "cpu_percent"
    sizes = ("rest_seconds",)

    @property
    def size(self) -> str:
        return f"{self.scale.rest_seconds:g} s"

    @property
    def title(self) -> str:
        return f"idle for {self.size}"

    @property
    def rounds(self) -> int:
        return self.scale.lone_rounds

    def prepare(self) -> None:
        site = self.ground.site()
        self.stack.callback(site.close)
        self._program = self.stack.enter_context(Program(site))
        site.wait_copied(site.register(self.ground.files("warm", 1, 1000)))
        time.sleep(1.0)  # what the start has set going comes to its end

    def ways(self) -> Mapping[str, Way]:
        return {OURS: self._ours}

    def _ours(self) -> Figures:
        self._program.require_streaming()
        used, began = self._program.cpu_seconds_with_children(), time.monotonic()
        time.sleep(self.scale.rest_seconds)
        used, seconds = self._program.cpu_seconds_with_children() - used, time.monotonic() - began
        self._program.require_streaming()
        resident, imports = self._program.resident_mb(), self._imports_mb()
        return {
            "cpu_percent": [used / seconds * 100],
            "resident_mb": [resident],
            "imports_mb": [imports],
            "above_imports_mb": [resident - imports],
        }

    def _imports_mb(self) -> float:
        done = subprocess.run([sys.executable, "-c", _IMPORTS], check=True, capture_output=True, text=True)
        return float(done.stdout)
