"""The types of settings: durations, sizes, names, modes, choices."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from enum import StrEnum
from typing import Annotated, Final, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_settings import NoDecode

from cdc_archiver.model import OLDEST_TIMESTAMP
from cdc_archiver.timespec import format_time

_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}

_FIVE_DIGITS_FROM: Final = datetime.fromtimestamp(10_000, UTC)
"""Seconds since the epoch with fewer than five digits name a directory such as ``1.0``, which stops the archive's readers."""


READERS_ARCHIVES: Final = ("smurf", "timestreams")
"""The archives that readers know; at another name they stop."""


class Verify(StrEnum):
    """How the md5 is verified."""

    STAGED = "staged"
    """In transfer, and again from the staged file on the storage node."""
    TRANSFER = "transfer"
    """In transfer only."""


class LogFormat(StrEnum):
    CONSOLE = "console"
    JSON = "json"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _duration(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(-?[0-9.]+(?:e[0-9+]+)?)\s*(ms|s|m|h|d)?", value.strip())
    if match is None:
        raise ValueError(f"invalid duration: {value!r}: use 90, 500ms, 5m, 2h or 30d")
    return float(match[1]) * _DURATION_UNITS[match[2] or "s"]


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+)\s*([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"invalid size: {value!r}: use 5000, 64M or 2G")
    return int(match[1]) * _SIZE_UNITS[match[2].upper()]


def _timestamp(value: object) -> datetime:
    text = value.isoformat() if isinstance(value, date) else value  # TOML has dates and times of its own
    try:
        found = datetime.fromisoformat(text.strip() if isinstance(text, str) else "")
        found = (found.replace(tzinfo=UTC) if found.tzinfo is None else found).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"invalid time: {value!r}: use 1995-01-01 or 1995-01-01T12:00:00Z") from None
    if not _FIVE_DIGITS_FROM <= found <= OLDEST_TIMESTAMP:
        raise ValueError(
            f"{format_time(found)} is not from {format_time(_FIVE_DIGITS_FROM)} (10,000 s since the epoch: before it, a "
            f"file's directory would not have five digits) to {format_time(OLDEST_TIMESTAMP)}"
        )
    return found


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _durations(value: object) -> object:
    return (value,) if isinstance(value, int | float) else _comma_separated(value)


Seconds = Annotated[float, BeforeValidator(_duration), Field(ge=0, le=100 * 365 * 86400, allow_inf_nan=False)]
"""A duration: a number of seconds, or a number with a unit: ``90``, ``500ms``, ``5m``, ``2h``, ``30d``."""

Bytes = Annotated[int, BeforeValidator(_size), Field(ge=0)]
"""A size: a number of bytes, or a number with a unit, a power of 1024: ``64M``, ``2G``."""

Timestamp = Annotated[datetime, BeforeValidator(_timestamp)]
"""The earliest ``timestamp`` of a row: a date, or a date and a time, in UTC where it names no zone."""

Delays = Annotated[tuple[Seconds, ...], NoDecode, BeforeValidator(_durations), Field(min_length=1, max_length=100)]
"""Several durations, separated by commas: ``5s,1m``."""

Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]
"""Several names: a repeated flag, a comma-separated variable, a list in the file."""


class FileModes(BaseModel):
    """Modes of archived files.

    Attributes:
        directories: mode of new directories.
        files: mode of files.
    """

    model_config = ConfigDict(frozen=True)
    directories: int
    files: int


def parse_modes(text: str) -> FileModes:
    """Parses modes in the form ``D755,F644``.

    Raises:
        ValueError: the text has another form, or the modes would deny the archiver itself access.
    """
    match = re.fullmatch(r"D([0-7]{3,4}),F([0-7]{3,4})", text.replace(" ", ""))
    if not match:
        raise ValueError(f"invalid modes: {text!r}: use the form D755,F644")
    directories, files = int(match[1], 8), int(match[2], 8)
    if directories & 0o700 != 0o700 or files & 0o400 != 0o400:
        raise ValueError(
            f"invalid modes: {text!r}: the archiver itself must be able to read files and write directories (D7..,F4..)"
        )
    return FileModes(directories=directories, files=files)


@dataclass(frozen=True, slots=True)
class Timetable:
    """A limit that depends on the time of day.

    Attributes:
        entries: pairs of a local time and the rate from then on, sorted; an empty rate is no limit. The last rate of a day
            holds until the first entry of the next day.
    """

    entries: tuple[tuple[time, str], ...] = ()

    def rate_at(self, now: time) -> str:
        """The rate at a time of day, in the format of rsync's ``--bwlimit``; empty for no limit."""
        if not self.entries:
            return ""
        return max((entry for entry in self.entries if entry[0] <= now), default=self.entries[-1])[1]


def parse_timetable(text: str) -> Timetable:
    """Parses a rate in rsync's format, ``20m``, or a timetable of rates: ``08:00,20m 19:00,off``.

    Raises:
        ValueError: the text has neither form.
    """
    entries: dict[time, str] = {}
    parts = text.split()
    for part in parts:
        clock, comma, rate = part.rpartition(",")
        match = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", clock)
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?[kKmMgGtT]?|off", rate) or bool(comma) != bool(match):
            raise ValueError(f"invalid rate: {part!r}: use KiB/s, a number with a unit (20m), or 08:00,20m 19:00,off")
        if not match and len(parts) > 1:
            raise ValueError(f"invalid timetable: {text!r}: each rate needs a time, as in 08:00,20m 19:00,off")
        begin = time(int(match[1]), int(match[2])) if match else time()
        if begin in entries:
            raise ValueError(f"invalid timetable: {text!r}: two rates at {clock}")
        entries[begin] = "" if rate == "off" else rate
    return Timetable(tuple(sorted(entries.items())))


def parse_speakers(entries: Iterable[str]) -> dict[str, str]:
    """The INSTANCE-ID by archive of entries in the form ``[ARCHIVE=]INSTANCE-ID``.

    Raises:
        ValueError: an entry has another form, or two speak for one archive.
    """
    found: dict[str, str] = {}
    for entry in entries:
        archive, equals, name = entry.rpartition("=")
        archive = archive if equals else READERS_ARCHIVES[0]
        if archive not in READERS_ARCHIVES:
            raise ValueError(f"invalid archive: {archive!r}: use {' or '.join(READERS_ARCHIVES)}")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name):
            raise ValueError(f"invalid INSTANCE-ID: {name!r}: at most 64 letters, digits, '.', '_' and '-'")
        if archive in found:
            raise ValueError(f"two INSTANCE-IDs for the archive {archive}: {found[archive]!r} and {name!r}")
        found[archive] = name
    return found


def is_of_type(field: FieldInfo, annotation: object) -> bool:
    """Whether a setting has a type: :data:`Seconds`, :data:`Bytes`, :data:`Timestamp` or :data:`Names`."""
    return any(meta in field.metadata for meta in get_args(annotation)[1:] if isinstance(meta, BeforeValidator))


def duration_text(seconds: float) -> str:
    """A duration in the format in which it is set: ``90s``, ``5m``, ``365d``."""
    for unit in ("d", "h", "m"):
        if seconds >= _DURATION_UNITS[unit] and seconds % _DURATION_UNITS[unit] == 0:
            return f"{seconds / _DURATION_UNITS[unit]:g}{unit}"
    return f"{seconds:g}s"


def size_text(size: int) -> str:
    """A size in the format in which it is set: ``64M``, ``1G``."""
    for unit in ("T", "G", "M", "K"):
        if size >= _SIZE_UNITS[unit] and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return str(size)
