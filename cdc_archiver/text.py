"""Text for people and JSON for programs: unprintable characters escaped, values in JSON's types. Pure."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from pathlib import PurePath
from typing import Any


def escape_unprintable(text: str) -> str:
    """The text on one line, in valid UTF-8, without control or invisible characters: these are escaped in Python's notation."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def format_size(size: float) -> str:
    """A size for a person, in powers of 1000.

    Args:
        size: bytes.
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_file_count(count: int) -> str:
    """``1 file``, ``2 files``."""
    return "1 file" if count == 1 else f"{count} files"


def to_jsonable(value: Any) -> Any:
    """A value in JSON's types: dataclasses as objects without their ``repr=False`` fields, times in ISO 8601, bytes in hexadecimal,
    NaN and infinities as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in fields(value) if field.repr}
    if isinstance(value, dict):
        return {str(key): to_jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(inner) for inner in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, PurePath) else value


def fold_instance_id(instance_id: str) -> str:
    """An instance_id as the database compares it: case and trailing spaces are ignored."""
    return instance_id.casefold().rstrip()
