"""What the service answers over HTTP: metrics, health, status, the status page. Read-only."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
import uvicorn
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cdc_archiver.commands.why.diagnosis import reason_words
from cdc_archiver.dispatch.in_flight import FileStatus
from cdc_archiver.errors import ArchiverError, Misconfigured
from cdc_archiver.observe import page
from cdc_archiver.observe.host_guard import Doorkeeper
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.observe.query_pool import Busy, Inquirer
from cdc_archiver.observe.service_status import ServiceStatus
from cdc_archiver.observe.summary import Summary
from cdc_archiver.text import escape_unprintable, to_jsonable
from cdc_archiver.threads import Part

_LONGEST_QUESTION: Final = 1024
"""Characters: more than a path has."""
_PATHS: Final = frozenset({"path", "source_path", "archived_path"})
_SUM: Final = re.compile(r"(?<![0-9a-f])([0-9a-f]{8})[0-9a-f]{24}(?![0-9a-f])", re.IGNORECASE)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Views:
    """What the server shows, asked at each request.

    Attributes:
        words: a status in words.
        why: what is known of a file, by id, path or a part of one; may take long, asks database and source.
    """

    metrics: Metrics
    status: Callable[[], ServiceStatus]
    words: Callable[[ServiceStatus], Summary]
    file_status: Callable[[int], FileStatus | None]
    why: Callable[[str], dict[str, Any]]


class HttpServer(Part):
    """The service's HTTP server.

    Args:
        host, port: where it listens; port 0 takes any free one, see :attr:`port`.

    Raises:
        Misconfigured: the address cannot be had.
    """

    def __init__(self, host: str, port: int, views: Views) -> None:
        super().__init__("http")
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            # All addresses are those of IPv4 as well: without it a scrape of one of these would be refused.
            everywhere = host == "::" and socket.has_dualstack_ipv6()
            self._socket = socket.create_server((host, port), family=family, backlog=64, dualstack_ipv6=everywhere)
        except (OSError, OverflowError) as error:
            raise Misconfigured(
                f"the HTTP server cannot listen on {host}:{port}: {error}",
                "--http-host and --http-port choose another address; is another archiver running here?",
            ) from error
        address, self.port = self._socket.getsockname()[:2]
        config = uvicorn.Config(
            application(views, host, address),
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


def application(views: Views, host: str, address: str) -> Starlette:
    """The application, for a server or a test.

    Args:
        host, address: what the server was told to listen on, and what it listens on.
    """
    metrics = views.metrics
    inquirer = Inquirer(views.why)

    def expose(request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # it takes a version for a number; any other header is read as none
            encode, content_type = choose_encoder("")
        return Response(encode(metrics.registry), media_type=content_type)

    def healthz(_request: Request) -> Response:
        now = views.status()
        return PlainTextResponse(f"{now.state}\n", 200 if now.healthy else 500)

    def readyz(_request: Request) -> Response:
        now = views.status()
        return PlainTextResponse(
            f"{now.state}: {escape_unprintable(now.why)}\n" if now.why else f"{now.state}\n", 200 if now.ready else 503
        )

    def api_status(_request: Request) -> Response:
        now = views.status()
        return _Json({**to_jsonable(now), "words": to_jsonable(views.words(now))})

    def api_activity(_request: Request) -> Response:
        seen = to_jsonable(metrics.activity.seen())
        for group in seen["failing"]:
            group["words"] = reason_words(group["reason"])
        return _Json(_shortened(seen))

    def api_file(request: Request) -> Response:
        text = request.path_params["id"]
        if not (text.isascii() and text.isdecimal() and len(text) <= 20):
            raise HTTPException(404)
        id_ = int(text)
        found = views.file_status(id_)
        return _Json({"id": id_, "in_hand": None if found is None else to_jsonable(found)})

    async def api_why(request: Request) -> Response:
        wanted = request.query_params.get("q", "").strip()
        if not wanted or len(wanted) > _LONGEST_QUESTION:
            return _complaint(
                400, f"Say ?q= and an id, a path or a part of one, of at most {_LONGEST_QUESTION} characters."
            )
        try:
            return _Json(_shortened(await inquirer.answer(wanted)))
        except Busy:
            return _complaint(429, "Others are being answered: ask again in a moment.", {"Retry-After": "2"})
        except TimeoutError:
            return _complaint(504, "It takes too long: `cdc-archiver why` has more patience.")
        except ArchiverError as error:
            return _complaint(503, str(error))
        except Exception as error:
            _log.error("not_answered", question=wanted, exc_info=error)
            return _complaint(500, "It could not be answered, by internal error; the log says more.")

    def complain(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = {
            404: "There is nothing here: / is the status page.",
            405: "The service is read-only: GET is all it takes.",
        }
        return _complaint(error.status_code, words.get(error.status_code, error.detail), error.headers)

    return Starlette(
        routes=[
            Route("/", partial(_of_page, page.INDEX)),
            *(Route(f"/page/{name}", partial(_of_page, name)) for name in page.TYPES if name != page.INDEX),
            Route("/metrics", expose),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/api/status", api_status),
            Route("/api/activity", api_activity),
            Route("/api/why", api_why),
            Route("/api/file/{id}", api_file),
        ],
        middleware=[Middleware(Doorkeeper, host=host, address=address)],
        exception_handlers={HTTPException: complain},
    )


class _Json(Response):
    """JSON in ASCII: a name may hold what is no UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def _shortened(value: Any) -> Any:
    """An answer without whole md5 sums, but in paths: who knows a file's sum and may write rows can have the file archived,
    and whoever may open a page is not to learn it there."""
    if isinstance(value, dict):
        return {key: inner if key in _PATHS else _shortened(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner) for inner in value]
    return _SUM.sub(r"\1…", value) if isinstance(value, str) else value


def _complaint(status: int, sentence: str, headers: Any = None) -> Response:
    return _Json({"error": sentence}, status, headers)


def _of_page(name: str, _request: Request) -> Response:
    # Asked for anew each time: after an update, an old page in a browser would misread the new answers.
    return Response(page.read(name), media_type=page.TYPES[name], headers={"Cache-Control": "no-cache"})
