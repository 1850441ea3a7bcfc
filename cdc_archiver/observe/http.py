"""What the service answers over HTTP: metrics, health, status. Read-only."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import uvicorn
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cdc_archiver.dispatch.ledger import Whereabouts
from cdc_archiver.errors import Misconfigured
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.operations.status import Status
from cdc_archiver.threads import Part
from cdc_archiver.words import printable

_INDEX = """cdc_archiver

/metrics      for Prometheus
/healthz      200 while the process and its threads live
/readyz       200 while files can be archived, or another archiver does it; else 503 and why
/api/status   all of it, as JSON
/api/file/ID  where a file is on its way through the service, as JSON
"""


class HttpServer(Part):
    """The service's HTTP server.

    Args:
        host, port: where it listens; port 0 takes any free one, see :attr:`port`.
        status, whereabouts: asked at each request.

    Raises:
        Misconfigured: the address cannot be had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Metrics,
        status: Callable[[], Status],
        whereabouts: Callable[[int], Whereabouts | None],
    ) -> None:
        super().__init__("http")
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=64)
        except (OSError, OverflowError) as error:
            raise Misconfigured(
                f"the HTTP server cannot listen on {host}:{port}: {error}",
                "--http-host and --http-port choose another address; is another archiver running here?",
            ) from error
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application(metrics, status, whereabouts),
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


def application(
    metrics: Metrics, status: Callable[[], Status], whereabouts: Callable[[int], Whereabouts | None]
) -> Starlette:
    """The application, for a server or a test.

    Args:
        status, whereabouts: asked at each request.
    """

    def index(_request: Request) -> Response:
        return PlainTextResponse(_INDEX)

    def expose(request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # it takes a version for a number; any other header is read as none
            encode, content_type = choose_encoder("")
        return Response(encode(metrics.registry), media_type=content_type)

    def healthz(_request: Request) -> Response:
        now = status()
        return PlainTextResponse(f"{now.state}\n", 200 if now.healthy else 500)

    def readyz(_request: Request) -> Response:
        now = status()
        return PlainTextResponse(
            f"{now.state}: {printable(now.why)}\n" if now.why else f"{now.state}\n", 200 if now.ready else 503
        )

    def api_status(_request: Request) -> Response:
        return JSONResponse(_plain(asdict(status())))

    def api_file(request: Request) -> Response:
        id_ = request.path_params["id"]
        found = whereabouts(id_)
        return JSONResponse({"id": id_, "in_hand": None if found is None else _plain(asdict(found))})

    return Starlette(
        routes=[
            Route("/", index),
            Route("/metrics", expose),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/api/status", api_status),
            Route("/api/file/{id:int}", api_file),
        ]
    )


def _plain(value: Any) -> Any:
    """JSON's types; times in ISO 8601."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if hasattr(value, "isoformat") else value
