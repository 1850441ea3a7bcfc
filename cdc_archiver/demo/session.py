"""An observing session for the demo: its files, their content, and which of them are registered together.

Pure, except :func:`write`.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

FEWEST: Final = 20
"""The smallest number of files with which every kind occurs."""
SMALLEST: Final = 100
"""Bytes of the smallest file."""

_ORDINARY: Final = 10**6
"""Bytes of the largest ordinary file; the sizes of the others are spread evenly over the powers of ten below."""
_MEGABYTE: Final = 1024**2
_BIG: Final = tuple(size * _MEGABYTE for size in (75, 60, 40, 25, 12))
"""Bytes of the big files other than the largest. The first is above the small lane's limit."""

_BURST: Final = 300
"""Most files in one transaction."""
_DIRECTORY_CHANGES: Final = 1_589_600_000
"""2020-05-16 03:33:20 UTC, where the archive's five digits turn from 15895 to 15896: soon after the session's start.

The night is a past one, because the database reads times in this machine's time zone: in that night no zone skipped an hour,
as one may tonight.
"""
_ACTION_FILES: Final = 12
_ACTION_SECONDS: Final = 37

_PUB_IDS: Final = ("crate1slot2", "crate1slot3", "crate1slot4", "crate2slot2", "crate2slot5")
_ACTIONS: Final = {
    "tracking_setup": (("tracking_setup", "npy"), ("FR_amp_vs_phi", "png"), ("flux_ramp_check", "txt")),
    "tune_band": (("full_band_resp", "npy"), ("tune_summary", "png"), ("channel_assignment", "txt")),
    "iv": (("iv_raw_data", "npy"), ("IV_curve", "png"), ("iv_bias_all", "npy")),
    "noise": (("noise_psd", "png"), ("noise_params", "txt"), ("noise_timestream", "npy")),
}
_SIGNATURES: Final = {"npy": b"\x93NUMPY\x01\x00", "png": b"\x89PNG\r\n\x1a\n", "txt": b"# "}


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file that the instrument will write, and its registration.

    Attributes:
        directory: relative to the instrument's directory.
        size: bytes.
        timestamp: time of registration, in seconds since the epoch.
        action_timestamp: start of its action, in seconds since the epoch; older publishers leave it out.
    """

    directory: PurePosixPath
    name: str
    size: int
    format: str
    action: str | None
    timestamp: int
    action_timestamp: int | None
    pub_id: str

    @property
    def plot(self) -> bool:
        """Whether it is an image."""
        return self.format == "png"


@dataclass(frozen=True, slots=True)
class Session:
    """All files, by the way in which they are registered.

    Attributes:
        early: before the start of the service.
        single: one at a time, while the service is idle.
        largest: just before the bursts.
        bursts: groups of files, each in one transaction.
    """

    early: tuple[PlannedFile, ...]
    single: tuple[PlannedFile, ...]
    largest: PlannedFile
    bursts: tuple[tuple[PlannedFile, ...], ...]

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        """All of them."""
        return (*self.early, *self.single, self.largest, *(file for burst in self.bursts for file in burst))


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file on the readout server.

    Attributes:
        path: absolute.
        md5: 16 bytes, of the written data, not read back.
        modified: modification time, in nanoseconds since the epoch.
    """

    planned: PlannedFile
    path: Path
    md5: bytes
    modified: int


def plan(files: int, largest: int) -> Session:
    """A session; the same for the same arguments.

    Args:
        files: number of files, at least :data:`FEWEST`.
        largest: bytes of the largest, at least :data:`SMALLEST`.
    """
    big = [largest, *(min(size, largest) for size in _BIG)][: max(1, files // 10)]
    ordinary = _ordinary(files - len(big), min(_ORDINARY, largest))
    big_files = [_big(files + number, size, f"raw_data_{number}") for number, size in enumerate(big)]
    early = max(3, files // 100)
    single = min(25, max(5, files // 10))
    rest = ordinary[early + single :]
    count = math.ceil(len(rest) / _BURST)
    bursts = [(*big_files[1:][number::count], *rest[number::count]) for number in range(count)]
    return Session(tuple(ordinary[:early]), tuple(ordinary[early : early + single]), big_files[0], tuple(bursts))


def write(planned: PlannedFile, below: Path) -> WrittenFile:
    """Writes a file.

    Args:
        below: the instrument's directory.

    Raises:
        OSError: it cannot be written, or exists already.
    """
    path = below / planned.directory / planned.name
    path.parent.mkdir(parents=True, exist_ok=True)
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("xb") as file:
        for part in _content(planned):
            md5.update(part)
            file.write(part)
    return WrittenFile(planned, path, md5.digest(), path.stat().st_mtime_ns)


def _ordinary(count: int, largest: int) -> list[PlannedFile]:
    chance = random.Random(count)
    files: list[PlannedFile] = []
    for number in range(count):
        exponent = chance.uniform(math.log(SMALLEST), math.log(largest))
        size = SMALLEST if number == 0 else round(math.exp(exponent))
        files.append(_odd(number, replace(_file(number), size=size), files))
    return files


def _file(number: int) -> PlannedFile:
    """One file among others of an action."""
    action_number, in_action = divmod(number, _ACTION_FILES)
    began = _DIRECTORY_CHANGES + (action_number - 4) * _ACTION_SECONDS
    action = list(_ACTIONS)[action_number % len(_ACTIONS)]
    stem, format_ = _ACTIONS[action][in_action % len(_ACTIONS[action])]
    pub_id = _PUB_IDS[action_number % len(_PUB_IDS)]
    timestamp = began + 3 + 2 * in_action
    return PlannedFile(
        directory=PurePosixPath("20200516", pub_id, str(began), "plots" if format_ == "png" else "outputs"),
        name=f"{timestamp}_{stem}_b{in_action % 8}.{format_}",
        size=SMALLEST,
        format=format_,
        action=action,
        timestamp=timestamp,
        action_timestamp=began,
        pub_id=pub_id,
    )


def _big(number: int, size: int, stem: str) -> PlannedFile:
    file = _file(number)
    directory = file.directory.with_name("outputs")
    return replace(file, directory=directory, name=f"{file.timestamp}_{stem}.npy", format="npy", size=size)


def _odd(number: int, file: PlannedFile, before: Sequence[PlannedFile]) -> PlannedFile:
    """Some files differ from the others, in the ways that old archives show."""
    match number % 20:
        case 3:  # the time is only in the name
            return replace(file, action_timestamp=None)
        case 7:  # the time is only in the row
            return replace(file, action_timestamp=None, name=f"summary_{number}.{file.format}")
        case 11:
            return replace(file, name=f"{file.timestamp} bias group 3, 'cold' (50 µA).{file.format}")
        case 15:  # measured again: the same name, hence the same path in the archive
            return replace(before[-1], directory=before[-1].directory / "again", size=file.size)
        case 18:
            return replace(file, action=None)
    return file


def _content(planned: PlannedFile) -> Iterator[bytes]:
    """Random data, so that no two files are equal, after the first bytes of the format."""
    head = _SIGNATURES[planned.format]
    yield head
    left = planned.size - len(head)
    while left:
        length = min(left, _MEGABYTE)
        # As hexadecimal text, half as many bytes are enough.
        yield os.urandom(length // 2 + 1).hex()[:length].encode() if planned.format == "txt" else os.urandom(length)
        left -= length
