"""Others' words, for a person: a file's name, what a host said, a database's error. Pure."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line, moving no cursor, hiding nothing, and in UTF-8: what is not so is escaped as Python does it."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
