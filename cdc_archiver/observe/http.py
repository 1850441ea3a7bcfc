"""The service's HTTP server: metrics, health, status, the status page. Read-only."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import structlog
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cdc_archiver.commands.why.diagnosis import reason_text
from cdc_archiver.dispatch.tracked_files import FileStatus
from cdc_archiver.errors import ArchiverError, Misconfigured
from cdc_archiver.observe import page
from cdc_archiver.observe.host_guard import HostGuard
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.observe.query_pool import QueryPool, QueryPoolBusy
from cdc_archiver.observe.service_status import KnownTimecodes, ServiceStatus
from cdc_archiver.observe.summary import Summary
from cdc_archiver.text import escape_unprintable, to_jsonable
from cdc_archiver.threads import StoppableThread

_MAX_QUERY: Final = 1024
"""Characters: more than a path has."""
_PATH_KEYS: Final = frozenset({"path", "source_path", "archived_path"})
_MD5: Final = re.compile(r"(?<![0-9a-f])([0-9a-f]{8})[0-9a-f]{24}(?![0-9a-f])", re.IGNORECASE)

_log = structlog.get_logger(__name__)


class HealthStatus(Protocol):
    """What `/healthz` and `/readyz` tell of a program."""

    @property
    def state(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def ready(self) -> bool: ...
    @property
    def healthy(self) -> bool: ...


@dataclass(frozen=True)
class HealthQueries:
    """The functions that the endpoints of a program without a status page call at each request."""

    registry: CollectorRegistry
    status: Callable[[], HealthStatus]


@dataclass(frozen=True)
class HttpQueries:
    """The functions that the endpoints call at each request.

    Attributes:
        summary: the sentences for a status.
        file_status: a file's state in the pipeline, by id.
        why: the facts about a file, by id, path or a part of a path; queries database and source, and may take long.
        timecodes: all that is known of timecodes.
    """

    metrics: Metrics
    status: Callable[[], ServiceStatus]
    summary: Callable[[ServiceStatus], Summary]
    file_status: Callable[[int], FileStatus | None]
    why: Callable[[str], dict[str, Any]]
    timecodes: Callable[[], KnownTimecodes] = KnownTimecodes


class HttpServer(StoppableThread):
    """The HTTP server of the service, or of another program that answers :class:`HealthQueries`.

    Args:
        host, port: the address to listen on; port 0 takes any free port, see :attr:`port`.

    Raises:
        Misconfigured: the server cannot listen there.
    """

    def __init__(self, host: str, port: int, queries: HttpQueries | HealthQueries) -> None:
        super().__init__("http")
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            # "::" stands for all IPv4 addresses as well: a scrape of one of these must not be refused.
            dual_stack = host == "::" and socket.has_dualstack_ipv6()
            self._socket = socket.create_server((host, port), family=family, backlog=64, dualstack_ipv6=dual_stack)
        except (OSError, OverflowError) as error:
            raise Misconfigured(
                f"the HTTP server cannot listen on {host}:{port}: {error}",
                "stop the program that uses it, or choose another address: --http-port PORT, --http-host HOST",
            ) from error
        address, self.port = self._socket.getsockname()[:2]
        config = uvicorn.Config(
            application(queries, host, address)
            if isinstance(queries, HttpQueries)
            else health_application(queries, host, address),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)

    def work(self) -> None:
        self._server.run(sockets=[self._socket])

    def interrupt(self) -> None:
        self._server.should_exit = True


def health_application(queries: HealthQueries, host: str, address: str) -> Starlette:
    """The application of a program without a status page.

    Args:
        host, address: the address that the server was told to listen on, and the one that it listens on.
    """
    api_status = lambda _request: _Json(to_jsonable(queries.status()))
    return Starlette(
        routes=[*_health_routes(queries), Route("/api/status", api_status)],
        middleware=[Middleware(HostGuard, host=host, address=address)],
    )


def _health_routes(queries: HealthQueries) -> list[Route]:
    def expose(request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # it expects a number as version; any other unknown header counts as none
            encode, content_type = choose_encoder("")
        return Response(encode(queries.registry), media_type=content_type)

    def healthz(_request: Request) -> Response:
        now = queries.status()
        return PlainTextResponse(f"{now.state}\n", 200 if now.healthy else 500)

    def readyz(_request: Request) -> Response:
        now = queries.status()
        return PlainTextResponse(
            "".join(
                f"{line}\n"
                for line in (
                    f"{now.state}: {escape_unprintable(now.why)}" if now.why else now.state,
                    *map(escape_unprintable, now.attention if isinstance(now, ServiceStatus) else ()),
                )
            ),
            200 if now.ready else 503,
        )

    return [Route("/metrics", expose), Route("/healthz", healthz), Route("/readyz", readyz)]


def application(queries: HttpQueries, host: str, address: str) -> Starlette:
    """The application, for a server or a test.

    Args:
        host, address: the address that the server was told to listen on, and the one that it listens on.
    """
    metrics = queries.metrics
    pool = QueryPool(queries.why)

    def api_status(_request: Request) -> Response:
        now = queries.status()
        return _Json({**to_jsonable(now), "words": to_jsonable(queries.summary(now))})

    def api_activity(_request: Request) -> Response:
        seen = to_jsonable(metrics.activity.snapshot())
        for group in seen["failing"]:
            group["words"] = reason_text(group["reason"])
        return _Json(_shortened(seen))

    def api_timecodes(request: Request) -> Response:
        known, limit = queries.timecodes(), request.query_params.get("newest", "")
        if limit:
            if not (limit.isascii() and limit.isdecimal() and len(limit) < 6):
                return _error(400, "?newest= takes the number of timecodes of each instance_id.")
            known = known.newest(int(limit))
        return _Json(_shortened(to_jsonable(known)))

    def api_file(request: Request) -> Response:
        text = request.path_params["id"]
        if not (text.isascii() and text.isdecimal() and len(text) <= 20):
            raise HTTPException(404)
        id_ = int(text)
        found = queries.file_status(id_)
        return _Json({"id": id_, "in_hand": None if found is None else to_jsonable(found)})

    async def api_why(request: Request) -> Response:
        wanted = request.query_params.get("q", "").strip()
        if not wanted or len(wanted) > _MAX_QUERY:
            return _error(400, f"Add ?q= with an id, a path or a part of a path, of at most {_MAX_QUERY} characters.")
        try:
            return _Json(_shortened(await pool.answer(wanted)))
        except QueryPoolBusy:
            return _error(429, "Other queries are running. Ask again in a moment.", {"Retry-After": "2"})
        except TimeoutError:
            return _error(504, "The query takes too long. Without this time limit: cdc-archiver why FILE")
        except ArchiverError as error:
            return _error(503, str(error))
        except Exception as error:
            _log.error("query_failed", query=wanted, exc_info=error)
            return _error(500, "Internal error. The service's log has the details: event query_failed.")

    def http_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentences = {
            404: "Not found. / is the status page.",
            405: "The service is read-only. Use GET.",
        }
        return _error(error.status_code, sentences.get(error.status_code, error.detail), error.headers)

    return Starlette(
        routes=[
            Route("/", partial(_page_file, page.INDEX)),
            *(Route(f"/page/{name}", partial(_page_file, name)) for name in page.TYPES if name != page.INDEX),
            *_health_routes(HealthQueries(metrics.registry, queries.status)),
            Route("/api/status", api_status),
            Route("/api/activity", api_activity),
            Route("/api/timecodes", api_timecodes),
            Route("/api/why", api_why),
            Route("/api/file/{id}", api_file),
        ],
        middleware=[Middleware(HostGuard, host=host, address=address)],
        exception_handlers={HTTPException: http_error},
    )


class _Json(Response):
    """JSON in ASCII: a file name may hold bytes that are not UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def _shortened(value: Any) -> Any:
    """An answer with shortened md5 sums, except in paths.

    With a file's md5 sum and the privilege to write rows, anyone can have the file archived; the page must not reveal it.
    """
    if isinstance(value, dict):
        return {key: inner if key in _PATH_KEYS else _shortened(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner) for inner in value]
    return _MD5.sub(r"\1…", value) if isinstance(value, str) else value


def _error(status: int, sentence: str, headers: Any = None) -> Response:
    return _Json({"error": sentence}, status, headers)


def _page_file(name: str, _request: Request) -> Response:
    # A browser revalidates each time: after an update, a cached page would misread the new answers.
    return Response(page.read(name), media_type=page.TYPES[name], headers={"Cache-Control": "no-cache"})
