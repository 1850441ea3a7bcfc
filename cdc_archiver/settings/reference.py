"""The settings as a Markdown table for docs/configuration.md; a test compares the two.

``python -m cdc_archiver.settings.reference docs/configuration.md`` writes it between the two markers there.
"""

from __future__ import annotations

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from cdc_archiver.settings import PREFIX, Settings
from cdc_archiver.settings.types import Bytes, Delays, Seconds, Timestamp, duration_text, is_of_type, size_text
from cdc_archiver.timespec import format_time

_BETWEEN_MARKERS: Final = re.compile(r"(<!-- settings -->\n).*?(<!-- end of settings -->)", re.DOTALL)


def settings_table() -> str:
    """The table, a row for each setting."""
    rows = ["| flag | variable | default | meaning |", "|---|---|---|---|"]
    rows.append(f"| `--config` | `{PREFIX}CONFIG` |  | TOML file with settings. |")
    for name, field in Settings.model_fields.items():
        if name == "sources":
            continue
        flag = "(no flag)" if name == "mysql_password" else f"`--{name.replace('_', '-')}`"
        variable = name.upper() if name.startswith("mysql_") else PREFIX + name.upper()
        rows.append(f"| {flag} | `{variable}` | {default_text(field)} | {field.description} |")
    return "\n".join(rows) + "\n"


def with_settings_table(text: str) -> str:
    """A document with its table regenerated."""
    return _BETWEEN_MARKERS.sub(lambda match: match[1] + settings_table() + match[2], text)


def default_text(field: FieldInfo) -> str:
    """A setting's default in the format in which it is set; empty where there is none."""
    value = field.default
    if value is None or value == "" or value == () or isinstance(value, SecretStr):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, StrEnum):
        return f"`{value.value}`"
    if is_of_type(field, Seconds):
        return f"`{duration_text(value)}`"
    if is_of_type(field, Delays):
        return f"`{','.join(map(duration_text, value))}`"
    if is_of_type(field, Timestamp):
        return f"`{format_time(value)}`"
    return f"`{size_text(value) if is_of_type(field, Bytes) else value}`"


if __name__ == "__main__":
    for document in map(Path, sys.argv[1:]):
        document.write_text(with_settings_table(document.read_text(encoding="utf-8")), encoding="utf-8")
