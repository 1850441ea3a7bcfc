"""Runs the status page's queries of database and source: a few at a time, each with a time limit, off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final

TIMEOUT: Final = 25.0
"""Seconds after which a query is answered with a time-out."""
MAX_QUERIES: Final = 2


class QueryPoolBusy(Exception):
    """The pool runs as many queries as it may."""


class QueryPool:
    """Runs each query in a thread of its own.

    A thread that hangs, on a disk or a database, cannot be ended; it keeps its slot until it returns, so that there are never
    more threads than slots.

    Args:
        run: runs one query; may take long.
        max_queries: slots.
        timeout: seconds for one query.
    """

    def __init__(self, run: Callable[[str], Any], max_queries: int = MAX_QUERIES, timeout: float = TIMEOUT) -> None:
        self._run = run
        self._slots = threading.BoundedSemaphore(max_queries)
        self._timeout = timeout

    async def answer(self, query: str) -> Any:
        """The query's answer.

        Raises:
            QueryPoolBusy: no slot is free.
            TimeoutError: the query takes too long.
            Exception: the query's own.
        """
        if not self._slots.acquire(blocking=False):
            raise QueryPoolBusy
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            if answered.done():  # it timed out
                return
            if error is None:
                answered.set_result(value)
            else:
                answered.set_exception(error)

        def work() -> None:
            value, error = None, None
            try:
                value = self._run(query)
            except BaseException as caught:
                error = caught
            finally:
                self._slots.release()
            with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(settle, value, error)

        try:
            threading.Thread(target=work, name="query", daemon=True).start()
        except BaseException:
            self._slots.release()
            raise
        return await asyncio.wait_for(answered, self._timeout)
