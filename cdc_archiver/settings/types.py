"""The kinds of value that settings have: durations, sizes, names, modes, choices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import time
from enum import StrEnum
from typing import Annotated, Final, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_settings import NoDecode

_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


class Verify(StrEnum):
    """How the md5 is proved."""

    STAGED = "staged"
    """In transfer, and once more from the file as it lies on the storage node."""
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
        raise ValueError(f"{value!r} is no time; say 90, 500ms, 5m, 2h or 30d")
    return float(match[1]) * _DURATION_UNITS[match[2] or "s"]


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+)\s*([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{value!r} is no size; say 5000, 64M or 2G")
    return int(match[1]) * _SIZE_UNITS[match[2].upper()]


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(_duration), Field(ge=0, le=100 * 365 * 86400, allow_inf_nan=False)]
"""A duration: a number of seconds, or a number with its unit: ``90``, ``500ms``, ``5m``, ``2h``, ``30d``."""

Bytes = Annotated[int, BeforeValidator(_size), Field(ge=0)]
"""A size: a number of bytes, or a number with its unit, powers of 1024: ``64M``, ``2G``."""

Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]
"""Several names: a repeated flag, a comma-separated variable, a list in the file."""


class FileModes(BaseModel):
    """Modes of what is archived.

    Attributes:
        directories: of new directories.
        files: of files.
    """

    model_config = ConfigDict(frozen=True)
    directories: int
    files: int


def parse_modes(text: str) -> FileModes:
    """Modes as ``D755,F644`` says them.

    Raises:
        ValueError: it is not of that form, or would lock the archiver itself out.
    """
    match = re.fullmatch(r"D([0-7]{3,4}),F([0-7]{3,4})", text.replace(" ", ""))
    if not match:
        raise ValueError(f"{text!r} is not of the form D755,F644")
    directories, files = int(match[1], 8), int(match[2], 8)
    if directories & 0o700 != 0o700 or files & 0o400 != 0o400:
        raise ValueError(f"{text!r}: the archiver itself must be able to read files and write directories (D7..,F4..)")
    return FileModes(directories=directories, files=files)


@dataclass(frozen=True, slots=True)
class Timetable:
    """A limit that depends on the time of day.

    Attributes:
        entries: from when, local time, which rate holds, sorted; empty rates are no limit. The last one of a day holds until
            the first of the next.
    """

    entries: tuple[tuple[time, str], ...] = ()

    def rate_at(self, now: time) -> str:
        """The rate at a time of day, as rsync's ``--bwlimit`` takes it; empty for no limit."""
        if not self.entries:
            return ""
        return max((entry for entry in self.entries if entry[0] <= now), default=self.entries[-1])[1]


def parse_timetable(text: str) -> Timetable:
    """A rate as rsync takes it, ``20m``, or a day's timetable of them: ``08:00,20m 19:00,off``.

    Raises:
        ValueError: it is of neither form.
    """
    entries: dict[time, str] = {}
    words = text.split()
    for word in words:
        clock, comma, rate = word.rpartition(",")
        match = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", clock)
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?[kKmMgGtT]?|off", rate) or bool(comma) != bool(match):
            raise ValueError(f"{word!r} is no rate; say KiB/s, or a number with its unit (20m), or 08:00,20m 19:00,off")
        if not match and len(words) > 1:
            raise ValueError(f"{text!r}: several rates need a time each, as in 08:00,20m 19:00,off")
        begin = time(int(match[1]), int(match[2])) if match else time()
        if begin in entries:
            raise ValueError(f"{text!r} says two rates for {clock}")
        entries[begin] = "" if rate == "off" else rate
    return Timetable(tuple(sorted(entries.items())))


def is_of_type(field: FieldInfo, kind: object) -> bool:
    """Whether a setting is of a kind: :data:`Seconds` or :data:`Bytes`."""
    return any(meta in field.metadata for meta in get_args(kind)[1:] if isinstance(meta, BeforeValidator))


def duration_text(seconds: float) -> str:
    """A duration as a person writes it: ``90s``, ``5m``, ``365d``."""
    for unit in ("d", "h", "m"):
        if seconds >= _DURATION_UNITS[unit] and seconds % _DURATION_UNITS[unit] == 0:
            return f"{seconds / _DURATION_UNITS[unit]:g}{unit}"
    return f"{seconds:g}s"


def size_text(size: int) -> str:
    """A size as a person writes it: ``64M``, ``1G``."""
    for unit in ("T", "G", "M", "K"):
        if size >= _SIZE_UNITS[unit] and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return str(size)
