"""Runs commands while a service runs in a thread of the test, without the service's log lines in their output."""

from __future__ import annotations

import re
from collections.abc import Mapping

from private_site import Done, PrivateSite

_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.]+Z? \[(info|warning|error|debug) *\] .*\n")


def ask(stage: PrivateSite, *arguments: str, environment: Mapping[str, str] | None = None) -> Done:
    """Runs ``cdc-archiver`` with these arguments to its end, in this process."""
    done = stage.command(*arguments, environment=environment)
    return Done(done.returncode, _LOG_LINE.sub("", done.stdout), _LOG_LINE.sub("", done.stderr))
