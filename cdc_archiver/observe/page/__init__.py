"""The status page: static files, sent unchanged; no build step, nothing from another site."""

from __future__ import annotations

from importlib import resources
from types import MappingProxyType
from typing import Final

INDEX: Final = "index.html"
TYPES: Final = MappingProxyType(
    {
        INDEX: "text/html",
        "page.css": "text/css",
        "theme.js": "text/javascript",
        "words.js": "text/javascript",
        "plot.js": "text/javascript",
        "page.js": "text/javascript",
        "answer.js": "text/javascript",
        "timecodes.js": "text/javascript",
    }
)
"""Every file of the page and its media type."""


def read(name: str) -> bytes:
    """A file of the page.

    Args:
        name: one of :data:`TYPES`.
    """
    return (resources.files(__package__) / name).read_bytes()
