"""The HTTP endpoints: which requests are answered, which are refused, and with which message."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from cdc_archiver.errors import DatabaseUnavailable
from cdc_archiver.observe import http, page
from cdc_archiver.observe.host_guard import is_loopback
from cdc_archiver.observe.http import HttpQueries, application
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.observe.query_pool import MAX_QUERIES, QueryPool


def nothing(_: object) -> Any:
    raise AssertionError("no test calls this")


class Client:
    """Asks an application in an event loop of its own, as the server has one; from any thread."""

    def __init__(self, queries: HttpQueries, host: str, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(application(queries, host, address)), base_url="http://127.0.0.1:9184"
        )

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return asyncio.run_coroutine_threadsafe(self._client.request(method, path, **more), self._loop).result(60)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()


@contextmanager
def asking(
    why: Callable[[str], Any] = nothing, *, host: str = "127.0.0.1", address: str = "127.0.0.1"
) -> Iterator[Client]:
    queries = HttpQueries(Metrics(), lambda: nothing(None), nothing, nothing, why)
    with closing(Client(queries, host, address)) as client:
        yield client


# The Host header.


@pytest.mark.parametrize(
    "name", ["localhost", "LOCALHOST:9184", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:9184", "here.example"]
)
def test_a_server_on_this_machine_answers_to_its_own_names(name: str) -> None:
    with asking(host="here.example") as client:
        assert client.get("/api/activity", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["evil.example", "evil.example:9184", "127.0.0.1.evil.example", "localhost.evil.example", "[::2]", "x@[::1]"],
)
@pytest.mark.parametrize("path", ["/", "/page/page.js", "/metrics", "/api/activity", "/api/why?q=1", "/nothing"])
def test_another_host_name_is_refused(name: str, path: str) -> None:
    with asking() as client:
        answer = client.get(path, headers={"Host": name})
    assert answer.status_code == 421
    assert "127.0.0.1" in answer.json()["error"]


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7"])
def test_a_server_that_others_reach_answers_to_any_name(address: str) -> None:
    with asking(host=address, address=address) as client:
        assert client.get("/metrics", headers={"Host": "storage.example:9184"}).status_code == 200


@pytest.mark.parametrize(
    ("address", "is_it"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback_addresses(address: str, is_it: bool) -> None:
    assert is_loopback(address) is is_it


@pytest.mark.parametrize("path", ["/", "/page/page.css", "/metrics", "/api/activity", "/api/why", "/nothing"])
def test_every_answer_allows_a_browser_only_content_of_this_service(path: str) -> None:
    with asking() as client:
        headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("id_", ["x", "-1", "1.5", "٤", "9" * 21, "9" * 5000])
def test_an_invalid_id_is_not_found(id_: str) -> None:
    with asking() as client:
        assert client.get(f"/api/file/{id_}").status_code == 404


# The page.


def test_the_page_and_all_its_files_exist() -> None:
    with asking() as client:
        for name, media_type in page.TYPES.items():
            answer = client.get("/" if name == page.INDEX else f"/page/{name}")
            assert answer.status_code == 200
            assert answer.headers["Content-Type"] == f"{media_type}; charset=utf-8"
            assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", ""), (
                f"{name} names a place outside"
            )
            assert "https://" not in answer.text


@pytest.mark.parametrize(
    "path", ["/nothing", "/page/", "/page/__init__.py", "/page/../http.py", "/page/%2e%2e/http.py"]
)
def test_other_paths_are_not_found(path: str) -> None:
    with asking() as client:
        answer = client.get(path)
    assert answer.status_code == 404
    assert "/ is the status page" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/", "/api/activity", "/api/why", "/metrics"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_it_is_read_only(method: str, path: str) -> None:
    with asking() as client:
        answer = client.request(method, path)
    assert answer.status_code == 405
    assert "read-only" in answer.json()["error"]


# The search.


def test_answers_are_ascii() -> None:
    with asking(lambda wanted: {"answer": f"{wanted} \udc80"}) as client:
        answer = client.get("/api/why", params={"q": " ü.npy "})
    assert answer.status_code == 200
    assert answer.content.isascii()
    assert json.loads(answer.content) == {"answer": "ü.npy \udc80"}


@pytest.mark.parametrize("query", ["", "?q=", "?q=%20", "?q=" + "x" * 1025])
def test_an_empty_query_and_one_that_is_too_long(query: str) -> None:
    with asking() as client:
        answer = client.get(f"/api/why{query}")
    assert answer.status_code == 400
    assert "?q=" in answer.json()["error"]


def test_a_few_queries_run_at_the_same_time_and_more_are_refused_for_now() -> None:
    asked, go_on = threading.Semaphore(0), threading.Event()

    def why(wanted: str) -> dict[str, str]:
        asked.release()
        assert go_on.wait(30)
        return {"answer": wanted}

    with asking(why) as client, ThreadPoolExecutor() as pool:
        # Given as many queries as the pool runs,
        waiting = [pool.submit(client.get, f"/api/why?q={number}") for number in range(MAX_QUERIES)]
        for _ in waiting:
            assert asked.acquire(timeout=30)
        # when there is one more, then it is refused, and all else is answered meanwhile;
        refused = client.get("/api/why?q=more")
        assert refused.status_code == 429
        assert "again" in refused.json()["error"]
        assert client.get("/api/activity").status_code == 200
        # when they are done, there are free slots again.
        go_on.set()
        assert [each.result(30).json() for each in waiting] == [
            {"answer": str(number)} for number in range(MAX_QUERIES)
        ]
        assert client.get("/api/why?q=again").status_code == 200


def test_a_query_that_takes_too_long_times_out_and_keeps_its_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "QueryPool", partial(QueryPool, max_queries=1, timeout=0.05))
    go_on, ended = threading.Event(), threading.Event()

    def why(_: str) -> dict[str, str]:
        assert go_on.wait(30)
        ended.set()
        return {}

    with asking(why) as client:
        answer = client.get("/api/why?q=1")
        assert answer.status_code == 504
        assert "too long" in answer.json()["error"]
        assert client.get("/api/why?q=2").status_code == 429
        go_on.set()
        assert ended.wait(30)


def test_an_error_is_a_sentence_and_an_internal_error_reveals_no_secret() -> None:
    def away(_: str) -> Any:
        raise DatabaseUnavailable("the database db:3306 does not answer", "is it there?")

    def broken(_: str) -> Any:
        raise ValueError("tr0ub4dor")

    with asking(away) as client:
        answer = client.get("/api/why?q=1")
        assert answer.status_code == 503
        assert "db:3306 does not answer" in answer.json()["error"]
    with asking(broken) as client:
        for _ in range(2 * MAX_QUERIES):  # and a slot is free again after each
            answer = client.get("/api/why?q=1")
            assert answer.status_code == 500
            assert "tr0ub4dor" not in answer.text
