"""Asks the running service over HTTP: its status, and the state of a file in it."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
from typing import Any, Final

from cdc_archiver.errors import ArchiverError, ExitStatus
from cdc_archiver.settings import Settings

_TIMEOUT: Final = 3.0
_MAX_BODY: Final = 64 * 1024 * 1024
_NOT_RUNNING: Final = (
    "start it (systemctl start cdc-archiver, or cdc-archiver run), or set --http-host and --http-port to its address"
)
_WRONG_ADDRESS: Final = "set --http-host and --http-port to the service's address"


class ServiceUnavailable(ArchiverError):
    """No service answers where one was expected."""

    exit_status = ExitStatus.UNREACHABLE


def address(settings: Settings) -> str:
    """The service's address, as host:port."""
    host = _reachable(settings.http_host)
    return f"[{host}]:{settings.http_port}" if ":" in host else f"{host}:{settings.http_port}"


def get_json(settings: Settings, path: str) -> dict[str, Any]:
    """The service's answer.

    Args:
        path: ``/api/…``.

    Raises:
        ServiceUnavailable: no service answers there, or another program does.
    """
    where = address(settings)
    if settings.http_port == 0:
        raise ServiceUnavailable("the service's port is not known: --http-port is 0", _WRONG_ADDRESS)
    try:
        connection = http.client.HTTPConnection(_reachable(settings.http_host), settings.http_port, timeout=_TIMEOUT)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read(_MAX_BODY)
    except (OSError, http.client.HTTPException) as error:
        message = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise ServiceUnavailable(f"no service answers at {where}: {message}", _NOT_RUNNING) from error
    if answer.status == 404:
        raise ServiceUnavailable(f"the service at {where} does not know {path}", "update it to this version")
    try:
        value = json.loads(body)
    except ValueError as error:
        raise ServiceUnavailable(
            f"the program at {where} is not cdc-archiver: its answer to {path} is not JSON", _WRONG_ADDRESS
        ) from error
    if answer.status != 200 or not isinstance(value, dict):
        raise ServiceUnavailable(
            f"the program at {where} is not cdc-archiver: {answer.status} {answer.reason}", _WRONG_ADDRESS
        )
    return value


def fetch_status(settings: Settings) -> dict[str, Any]:
    """The service's answer to /api/status.

    Raises:
        ServiceUnavailable: no service answers, or another program does.
    """
    status = get_json(settings, "/api/status")
    if not {"state", "sources", "database", "version"} <= status.keys():
        raise ServiceUnavailable(f"the program at {address(settings)} is not cdc-archiver", _WRONG_ADDRESS)
    return status


def describe_other_table(settings: Settings, status: dict[str, Any], table: str) -> str:
    """The table of a service that works on another one than this command.

    Returns:
        Its database and table; empty if both work on the same. Two names of one host count as two.
    """
    ours = f"{settings.mysql_host}:{settings.mysql_port}/{settings.mysql_database}"
    theirs, their_table = str(status.get("database")), status.get("table")
    if theirs != ours or their_table not in (None, table):
        return f"{theirs}, table {their_table}"
    return ""


def _reachable(host: str) -> str:
    """The address at which a server that listens on a host is reached; for one on all addresses, the loopback address."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            return "::1" if ":" in host else "127.0.0.1"
    return host
