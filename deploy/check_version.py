"""Compares a tag with the version in pyproject.toml: `check_version.py v1.2.3` prints that version's changes, or fails."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def version() -> str:
    """The version in pyproject.toml."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def changes(of: str, text: str) -> str:
    """The section of CHANGELOG.md about a version; empty if there is none."""
    match = re.search(rf"^## {re.escape(of)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return match[1].strip() if match else ""


def main(tag: str) -> int:
    """Prints the changes. Returns the exit status."""
    if tag != f"v{version()}":
        print(f"the tag {tag} is not v{version()}, the version in pyproject.toml", file=sys.stderr)
        return 1
    told = changes(version(), (ROOT / "CHANGELOG.md").read_text())
    if not told:
        print(f"CHANGELOG.md has nothing under '## {version()}'", file=sys.stderr)
        return 1
    print(told)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
