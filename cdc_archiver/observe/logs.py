"""structlog set up: one line an event, on standard error; for people or as JSON."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from cdc_archiver.kinds import LogFormat, LogLevel
from cdc_archiver.words import printable

# Libraries whose own lines repeat, at length and with tracebacks, what we say ourselves.
_QUIET: Final = ("paramiko", "pymysqlreplication", "uvicorn.access", "asyncio")


def set_up_logs(log_format: LogFormat, level: LogLevel) -> None:
    """Sets logging up for the process.

    Args:
        level: the least severe that is written.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _escape_controls,
    ]
    renderer: Any
    if log_format is LogFormat.JSON:
        # Without the locals that structlog shows by default: a password may be among them.
        shared.append(
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
        )
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    number = logging.getLevelNamesMapping()[level.value.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=renderer))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _escape_controls(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A file's name may hold anything; in a log it stays on its line and moves no cursor."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = printable(value)
    return event
