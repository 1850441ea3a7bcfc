"""The state of a long command in a file: written whole or not at all, read by the run that goes on."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from cdc_archiver.errors import Misconfigured


def read_progress(path: Path, kind: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier run has left; None where there was none, or it came to its end.

    Args:
        kind: what must be the same in both runs.

    Raises:
        Misconfigured: it cannot be read, or is of another run.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Misconfigured(f"the state {path} cannot be read: {error}", "remove it to begin anew") from error
    if not isinstance(found, dict) or "kind" not in found:
        raise Misconfigured(f"{path} is no state of a run", "--state names a file of its own")
    if found.get("complete"):
        return None
    if found["kind"] != kind:
        differs = [key for key in kind if found["kind"].get(key) != kind[key]]
        raise Misconfigured(
            f"the state {path} is of another run: its {', '.join(differs) or 'kind'} is another",
            "use the same flags, or remove it to begin anew",
        )
    return found


def write_whole(path: Path, text: str) -> None:
    """Writes a file such that nobody ever reads half of it.

    Raises:
        Misconfigured: it cannot be written.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise Misconfigured(f"{path} cannot be written: {error}", "name a file in a directory of yours") from error
