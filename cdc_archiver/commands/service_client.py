"""The running service, asked over HTTP: what it says of itself, and of a file that it has in hand."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
from typing import Any, Final

from cdc_archiver.errors import ArchiverError, ExitStatus
from cdc_archiver.settings import Settings

_PATIENCE: Final = 3.0
_LONGEST: Final = 64 * 1024 * 1024


class NoService(ArchiverError):
    """No service answers where one was expected."""

    exit_status = ExitStatus.UNREACHABLE


def address(settings: Settings) -> str:
    """Where the service is asked."""
    host = _reachable(settings.http_host)
    return f"[{host}]:{settings.http_port}" if ":" in host else f"{host}:{settings.http_port}"


def ask(settings: Settings, path: str) -> dict[str, Any]:
    """The service's answer.

    Args:
        path: ``/api/…``.

    Raises:
        NoService: none answers there, or something else does.
    """
    where = address(settings)
    if settings.http_port == 0:
        raise NoService("the service's port is not known: --http-port is 0")
    try:
        connection = http.client.HTTPConnection(_reachable(settings.http_host), settings.http_port, timeout=_PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read(_LONGEST)
    except (OSError, http.client.HTTPException) as error:
        words = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise NoService(
            f"no service answers at {where}: {words}", "--http-host and --http-port say where it is"
        ) from error
    if answer.status == 404:
        raise NoService(f"the service at {where} does not know {path}")
    try:
        value = json.loads(body)
    except ValueError as error:
        raise NoService(f"what answers at {where} is no cdc-archiver: it answers {path} with no JSON") from error
    if answer.status != 200 or not isinstance(value, dict):
        raise NoService(f"what answers at {where} is no cdc-archiver: {answer.status} {answer.reason}")
    return value


def status_of(settings: Settings) -> dict[str, Any]:
    """What the service says of itself.

    Raises:
        NoService: none answers, or another program does.
    """
    status = ask(settings, "/api/status")
    if not {"state", "sources", "database", "version"} <= status.keys():
        raise NoService(f"what answers at {address(settings)} is no cdc-archiver")
    return status


def works_on(settings: Settings, status: dict[str, Any], table: str) -> str:
    """Whether a service works on the table that we look at.

    Returns:
        What it works on instead; empty where it is ours. Two names of one host are taken for two.
    """
    ours = f"{settings.mysql_host}:{settings.mysql_port}/{settings.mysql_database}"
    theirs, their_table = str(status.get("database")), status.get("table")
    if theirs != ours or their_table not in (None, table):
        return f"{theirs}, table {their_table}"
    return ""


def _reachable(host: str) -> str:
    """Where a server that listens on a host can be asked: one on all addresses, on this machine's own."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            return "::1" if ":" in host else "127.0.0.1"
    return host
