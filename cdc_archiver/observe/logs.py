"""Sets structlog up: one line for each event, on standard error, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Final, TextIO

import structlog

from cdc_archiver.settings.types import LogFormat, LogLevel
from cdc_archiver.text import escape_unprintable

# Libraries whose log lines repeat ours, at length and with tracebacks.
_QUIET: Final = ("paramiko", "pymysqlreplication", "uvicorn.access", "asyncio")

_buffered = threading.local()
_writing = threading.RLock()
# Made once: json.dumps with a default makes an encoder for each line.
_json = json.JSONEncoder(default=repr)


def set_up_logs(log_format: LogFormat, level: LogLevel) -> None:
    """Sets logging up for the process.

    Args:
        level: the lowest severity that is written.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _escape_controls,
    ]
    renderer: Any
    if log_format is LogFormat.JSON:
        # Without local variables, which structlog shows by default: they may include a password.
        shared.append(
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
        )
        renderer = structlog.processors.JSONRenderer(serializer=lambda event, **_: _json.encode(event))
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    number = logging.getLevelNamesMapping()[level.value.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _LineWriter(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.lock = _writing
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=renderer))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def buffered_logs() -> Iterator[None]:
    """Writes this thread's log lines of the block at its end, all at once: for many lines in a row."""
    lines: list[str] = []
    _buffered.lines = lines
    try:
        yield
    finally:
        _buffered.lines = None
        if lines:
            _LineWriter(sys.stderr).msg("\n".join(lines))


class _LineWriter:
    """Writes whole lines: those of different threads do not mix."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def msg(self, line: str) -> None:
        """Writes a line, or keeps it for the end of :func:`buffered_logs`."""
        lines = getattr(_buffered, "lines", None)
        if lines is not None:
            lines.append(line)
            return
        # Without Python's buffering, as in a container, a pipe receives many lines in pieces.
        with _writing:
            self._file.write(line + "\n")
            self._file.flush()

    debug = info = warning = error = critical = msg


def _escape_controls(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escapes control characters: a file's name may contain any, and must stay on one line and move no cursor."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = escape_unprintable(value)
    return event
