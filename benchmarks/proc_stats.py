"""Figures from /proc about a process, the processors and a disk."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(entry))[1]), []).append(int(entry))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, its ended threads included, to the nanosecond.

    Raises:
        OSError: there is no such process.
    """
    # What clock_getcpuclockid(3) makes of a process id.
    return time.clock_gettime((~pid << 3) | 2)


def cpu_seconds_of_family(pid: int) -> float:
    """Processor time of a process, its living descendants and its ended children, in seconds."""
    total = cpu_seconds(pid) + cpu_of_ended_children(pid)
    for child in family(pid)[1:]:
        with contextlib.suppress(OSError):
            total += cpu_seconds(child)
    return total


def cpu_seconds_of_all(pid: int) -> float:
    """Processor time of a process and its living descendants, each with its ended children, in seconds."""
    total = 0.0
    for member in family(pid):
        with contextlib.suppress(OSError):
            total += cpu_seconds(member) + cpu_of_ended_children(member)
    return total


def cpu_of_ended_children(pid: int) -> float:
    """Processor time of the ended children of a process, in seconds, with the coarse resolution of clock ticks."""
    fields = _stat(pid)
    return (int(fields[13]) + int(fields[14])) / _TICKS


def resident_mb(pid: int) -> float:
    """Memory that a process has in RAM, in MB.

    Raises:
        ProcessLookupError: it has ended.
    """
    return _memory_mb(pid, "VmRSS")


def most_resident_mb(pid: int) -> float:
    """The largest resident memory so far, in MB.

    Raises:
        ProcessLookupError: it has ended.
    """
    return _memory_mb(pid, "VmHWM")


def busy_processors() -> tuple[float, float]:
    """Seconds that all processors together have worked, and waited for a disk, since the machine's start."""
    user, nice, system, _, waiting, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / _TICKS, waiting / _TICKS


def disk_busy(directory: Path) -> float | None:
    """Seconds that the disk of a directory was busy, since the machine's start; None if it is unknown."""
    device = os.stat(directory).st_dev
    for line in Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if (int(fields[0]), int(fields[1])) == (os.major(device), os.minor(device)):
            return int(fields[12]) / 1000
    return None


def _memory_mb(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(f"process {pid} has ended")


def _stat(pid: int) -> list[str]:
    """The fields behind a process's name, which may itself hold blanks and brackets: its state is the first."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
