"""What a datagram of the instrument's publisher says. Pure.

A message is JSON: ``{"host", "id", "script", "time", "seq_no", "type", "payload"}``. One of type ``data_file`` announces a file. Numbers
may be text, with or without ``_``: scripts pass what they have.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

TIMECODE_SECONDS: Final = 100_000
"""Length of the period that the first five digits of a time name."""

_LATEST: Final = 2**32 - 1
"""Seconds since the epoch: no server's TIMESTAMP goes further."""
_KINDS: Final = frozenset(
    [
        "start",
        "stop",
        "log",
        "general",
        "backend_error",
        "g3_file",
        "metadata",
        "session_data",
        "session_log",
        "session_start",
        "session_stop",
    ]
)
_STREAMER: Final = "STREAMER:"
"""Publishers with such an id announce time streams, whose files suprsync takes."""


class GarbageReason(StrEnum):
    """Why a datagram announces nothing. The values are labels of a metric."""

    EMPTY = "empty"
    ENCODING = "encoding"
    JSON = "json"
    NO_OBJECT = "no_object"
    NO_TYPE = "no_type"
    NO_PUBLISHER = "no_publisher"
    NO_PATH = "no_path"
    BAD_VALUE = "bad_value"


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a message, and its place in that publisher's sequence.

    Attributes:
        seq_no: counts from 0 with each publisher.
    """

    publisher: str
    seq_no: int

    @property
    def announces_files(self) -> bool:
        """Whether a message of it that is missing may have announced a file of the table."""
        return not self.publisher.startswith(_STREAMER)


@dataclass(frozen=True, slots=True)
class Announcement:
    """A file that the instrument has announced.

    Attributes:
        at: seconds since the epoch, the row's ``timestamp``.
        action_timestamp: seconds since the epoch.
    """

    path: str
    at: int
    pub_id: str
    action: str | None
    action_timestamp: int | None
    format: str | None
    plot: bool
    script_id: str | None
    pysmurf_version: str | None


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A message of another kind."""

    kind: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """A datagram that cannot be understood.

    Attributes:
        detail: a phrase for a person.
        path: of the file that it announces, where that can be told.
    """

    reason: GarbageReason
    detail: str
    path: str = ""


Content: TypeAlias = Announcement | PassedOver | Garbage


@dataclass(frozen=True, slots=True)
class Message:
    """A datagram, understood.

    Attributes:
        sender: None where the message does not tell it.
        sent: seconds since the epoch by the sender's clock; None where the message does not tell it.
    """

    sender: Sender | None
    sent: float | None
    content: Content


def timecode_of(seconds: float) -> int:
    """The timecode in which a time lies."""
    return math.floor(seconds) // TIMECODE_SECONDS


def parse(datagram: bytes) -> Message:
    """Says what a datagram is. Never raises."""
    if not datagram.strip():
        return _garbage(GarbageReason.EMPTY, "no content")
    try:
        text = datagram.decode()
    except UnicodeDecodeError as error:
        return _garbage(GarbageReason.ENCODING, str(error))
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number with too many digits, a nesting too deep
        return _garbage(GarbageReason.JSON, str(error))
    if not isinstance(values, dict):
        return _garbage(GarbageReason.NO_OBJECT, f"a JSON {type(values).__name__}, not an object")
    return Message(_sender(values), _number_or_none(values.get("time")), _content(values))


def _content(values: dict[str, Any]) -> Content:
    kind = values.get("type")
    if not isinstance(kind, str) or not kind:
        return Garbage(GarbageReason.NO_TYPE, "no type")
    if kind != "data_file":
        return PassedOver(kind if kind in _KINDS else "other")
    payload = values.get("payload")
    path = payload.get("path") if isinstance(payload, dict) else None
    if not isinstance(payload, dict) or not isinstance(path, str) or not path:
        return Garbage(GarbageReason.NO_PATH, "a data_file without a path")
    try:
        path = _text("path", path) or ""
        return _announcement(values, payload, path)
    except _BadValue as error:
        return Garbage(error.reason, str(error), path)


def _announcement(values: dict[str, Any], payload: dict[str, Any], path: str) -> Announcement:
    if not (pub_id := _text("id", values.get("id"))):
        raise _BadValue("id is missing", GarbageReason.NO_PUBLISHER)
    name, at = "timestamp", payload.get("timestamp")
    if at is None or at == "":
        name, at = "time", values.get("time")
    seconds = math.floor(_number(name, at))
    if not 0 < seconds <= _LATEST:
        raise _BadValue(f"{name} {at!r} is not from 1970 to 2106")
    action_ts = payload.get("action_ts")
    return Announcement(
        path=path,
        at=seconds,
        pub_id=pub_id,
        action=_text("action", payload.get("action")),
        action_timestamp=None if action_ts in (None, "") else math.floor(_number("action_ts", action_ts)),
        format=_text("format", payload.get("format")),
        plot=_truth("plot", payload.get("plot")),
        script_id=_text("script", values.get("script")),
        pysmurf_version=_text("pysmurf_version", payload.get("pysmurf_version")),
    )


class _BadValue(Exception):
    def __init__(self, text: str, reason: GarbageReason = GarbageReason.BAD_VALUE) -> None:
        super().__init__(text)
        self.reason = reason


def _garbage(reason: GarbageReason, detail: str) -> Message:
    return Message(None, None, Garbage(reason, detail))


def _sender(values: dict[str, Any]) -> Sender | None:
    publisher, seq_no = values.get("id"), _number_or_none(values.get("seq_no"))
    try:
        if seq_no is None or not 0 <= seq_no < 2**63 or not (publisher := _text("id", publisher)):
            return None
    except _BadValue:
        return None
    return Sender(publisher, int(seq_no))


def _text(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise _BadValue(f"{name} is {_shown(value)}, not a text")
    if "\0" in value or any(0xD800 <= ord(character) < 0xE000 for character in value):
        raise _BadValue(f"{name} {_shown(value)} has a character that no column takes")
    return value


def _number(name: str, value: object) -> float:
    number: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and value.isascii() and len(value) <= 64:
        digits = value.strip().replace("_", "")
        try:
            number = int(digits) if digits.removeprefix("-").isdigit() else float(digits)
        except ValueError:
            number = None
    if number is None or (isinstance(number, float) and not math.isfinite(number)) or abs(number) >= 2**63:
        raise _BadValue(f"{name} is {_shown(value)}, not a number")
    return number


def _number_or_none(value: object) -> float | None:
    try:
        return None if value is None else _number("", value)
    except _BadValue:
        return None


def _truth(name: str, value: object) -> bool:
    if value is None or value == "":
        return False
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    return bool(value) if isinstance(value, bool) else bool(_number(name, value))


def _shown(value: object) -> str:
    if isinstance(value, list | dict):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
