"""Others' words, for a person: a file's name, what a host said, a database's error. Pure."""

from __future__ import annotations

from typing import Final

_CONTROL: Final = {number: f"\\x{number:02x}" for number in [*range(0x20), *range(0x7F, 0xA0)]} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def printable(text: str) -> str:
    """The text on one line, moving no cursor, and in UTF-8: what is not so is escaped."""
    if text.isprintable():
        return text
    return text.translate(_CONTROL).encode("utf-8", "backslashreplace").decode("utf-8")
