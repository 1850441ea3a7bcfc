"""The settings as a Markdown table: what README shows, and a test keeps true.

``python -m cdc_archiver.reference README.md`` writes it between the two markers there.
"""

from __future__ import annotations

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Final

from cdc_archiver.settings import PREFIX, Settings

_BETWEEN_MARKERS: Final = re.compile(r"(<!-- settings -->\n).*?(<!-- end of settings -->)", re.DOTALL)


def settings_table() -> str:
    """A row for each setting."""
    rows = ["| flag, or key in TOML | variable | default | |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        if name == "sources":
            continue
        flag = "(no flag)" if name == "mysql_password" else f"`--{name.replace('_', '-')}`"
        variable = name.upper() if name.startswith("mysql_") else PREFIX + name.upper()
        rows.append(f"| {flag} | `{variable}` | {_default(field.default)} | {field.description} |")
    return "\n".join(rows) + "\n"


def with_settings_table(text: str) -> str:
    """A document with its table renewed."""
    return _BETWEEN_MARKERS.sub(lambda match: match[1] + settings_table() + match[2], text)


def _default(value: object) -> str:
    if value is None or value == "" or value == () or repr(value) == "SecretStr('')":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{value.value if isinstance(value, StrEnum) else value}`"


if __name__ == "__main__":
    for document in map(Path, sys.argv[1:]):
        document.write_text(with_settings_table(document.read_text(encoding="utf-8")), encoding="utf-8")
