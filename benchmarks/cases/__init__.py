"""The cases, in the order in which they run."""

from __future__ import annotations

from typing import Final

from benchmarks.cases.base import Case
from benchmarks.cases.bursts import Burst, Dust, LargerFiles, MoreFiles
from benchmarks.cases.idle import Idle, Rest
from benchmarks.cases.large import LargeFile, LargeFileTransferOnly, ManyLargeFiles
from benchmarks.cases.night import Night
from benchmarks.cases.sources import Sources
from benchmarks.cases.stream import Paced, StreamBurst, Unrelated
from benchmarks.cases.tables import Pending, Sweep
from benchmarks.cases.timecodes import Timecodes

CASES: Final[tuple[type[Case], ...]] = (
    Idle,
    Burst,
    Dust,
    LargeFile,
    LargeFileTransferOnly,
    ManyLargeFiles,
    Night,
    StreamBurst,
    Paced,
    Unrelated,
    Sweep,
    Timecodes,
    Pending,
    Rest,
    Sources,
    MoreFiles,
    LargerFiles,
)

__all__ = ["CASES", "Case"]
