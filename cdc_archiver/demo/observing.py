"""An observing session for the demo: which files the instrument writes, what is in them, and which come together. Pure but
for :func:`write`."""

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
"""Files below which not every kind would be among them."""
SMALLEST: Final = 100
"""Bytes of the smallest file."""

_ORDINARY: Final = 10**6
"""Bytes of the largest of the ordinary files; their sizes are spread evenly over the powers of ten below."""
_MEGABYTE: Final = 1024**2
_BIG: Final = tuple(size * _MEGABYTE for size in (75, 60, 40, 25, 12))
"""Bytes of the big files beside the largest. The first is over the small lane's limit."""

_BURST: Final = 300
"""Files that are registered in one transaction, at the most."""
_DIRECTORY_CHANGES: Final = 1_589_600_000
"""2020-05-16 03:33:20 UTC, where the archive's five digits turn from 15895 to 15896: soon after the session's start.

A night long past, because the database takes times as of this machine's zone, and no zone skipped an hour in that one;
tonight, one might.
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
class Planned:
    """A file that the instrument will write, and what its publisher will say of it.

    Attributes:
        directory: below the instrument's own.
        size: bytes.
        timestamp: when it is registered, seconds since the epoch.
        action_timestamp: when its action began; older publishers do not say.
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
        """Whether it is a picture."""
        return self.format == "png"


@dataclass(frozen=True, slots=True)
class Session:
    """All files, by how they are registered.

    Attributes:
        early: before the service runs.
        alone: one at a time, with nothing else going on.
        largest: just before the bursts.
        bursts: each in one transaction.
    """

    early: tuple[Planned, ...]
    alone: tuple[Planned, ...]
    largest: Planned
    bursts: tuple[tuple[Planned, ...], ...]

    @property
    def files(self) -> tuple[Planned, ...]:
        """All of them."""
        return (*self.early, *self.alone, self.largest, *(file for burst in self.bursts for file in burst))


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it lies on the readout server.

    Attributes:
        path: absolute.
        md5: 16 bytes, taken from what was written, not read back.
        modified: its modification time, nanoseconds since the epoch.
    """

    planned: Planned
    path: Path
    md5: bytes
    modified: int


def plan(files: int, largest: int) -> Session:
    """A session; the same for the same arguments.

    Args:
        files: how many, :data:`FEWEST` at the least.
        largest: bytes of the largest, :data:`SMALLEST` at the least.
    """
    big = [largest, *(min(size, largest) for size in _BIG)][: max(1, files // 10)]
    ordinary = _ordinary(files - len(big), min(_ORDINARY, largest))
    monsters = [_big(files + number, size, f"raw_data_{number}") for number, size in enumerate(big)]
    early = max(3, files // 100)
    alone = min(25, max(5, files // 10))
    rest = ordinary[early + alone :]
    count = math.ceil(len(rest) / _BURST)
    bursts = [(*monsters[1:][number::count], *rest[number::count]) for number in range(count)]
    return Session(tuple(ordinary[:early]), tuple(ordinary[early : early + alone]), monsters[0], tuple(bursts))


def write(planned: Planned, below: Path) -> Written:
    """Writes a file.

    Args:
        below: the instrument's directory.

    Raises:
        OSError: it cannot be written, or is there.
    """
    path = below / planned.directory / planned.name
    path.parent.mkdir(parents=True, exist_ok=True)
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("xb") as file:
        for part in _content(planned):
            md5.update(part)
            file.write(part)
    return Written(planned, path, md5.digest(), path.stat().st_mtime_ns)


def _ordinary(count: int, largest: int) -> list[Planned]:
    chance = random.Random(count)
    files: list[Planned] = []
    for number in range(count):
        exponent = chance.uniform(math.log(SMALLEST), math.log(largest))
        size = SMALLEST if number == 0 else round(math.exp(exponent))
        files.append(_odd(number, replace(_file(number), size=size), files))
    return files


def _file(number: int) -> Planned:
    """One file among others of an action."""
    action_number, in_action = divmod(number, _ACTION_FILES)
    began = _DIRECTORY_CHANGES + (action_number - 4) * _ACTION_SECONDS
    action = list(_ACTIONS)[action_number % len(_ACTIONS)]
    stem, format_ = _ACTIONS[action][in_action % len(_ACTIONS[action])]
    pub_id = _PUB_IDS[action_number % len(_PUB_IDS)]
    timestamp = began + 3 + 2 * in_action
    return Planned(
        directory=PurePosixPath("20200516", pub_id, str(began), "plots" if format_ == "png" else "outputs"),
        name=f"{timestamp}_{stem}_b{in_action % 8}.{format_}",
        size=SMALLEST,
        format=format_,
        action=action,
        timestamp=timestamp,
        action_timestamp=began,
        pub_id=pub_id,
    )


def _big(number: int, size: int, stem: str) -> Planned:
    file = _file(number)
    directory = file.directory.with_name("outputs")
    return replace(file, directory=directory, name=f"{file.timestamp}_{stem}.npy", format="npy", size=size)


def _odd(number: int, file: Planned, before: Sequence[Planned]) -> Planned:
    """Now and then a file is not like the others: what archives of years have in them."""
    match number % 20:
        case 3:  # the time is in the name only
            return replace(file, action_timestamp=None)
        case 7:  # the time is nowhere but in the row
            return replace(file, action_timestamp=None, name=f"summary_{number}.{file.format}")
        case 11:
            return replace(file, name=f"{file.timestamp} bias group 3, 'cold' (50 µA).{file.format}")
        case 15:  # taken again: the same name, hence the same place in the archive
            return replace(before[-1], directory=before[-1].directory / "again", size=file.size)
        case 18:
            return replace(file, action=None)
    return file


def _content(planned: Planned) -> Iterator[bytes]:
    """Random, so that no file equals another's; its first bytes are those of its format."""
    head = _SIGNATURES[planned.format]
    yield head
    left = planned.size - len(head)
    while left:
        length = min(left, _MEGABYTE)
        # Half as many bytes make a text of that length.
        yield os.urandom(length // 2 + 1).hex()[:length].encode() if planned.format == "txt" else os.urandom(length)
        left -= length
