"""Questions over HTTP that ask database and source: a few at a time, each with a limit; nothing of the service waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final

PATIENCE: Final = 25.0
"""Seconds after which the one who asked is told that it takes too long."""
AT_ONCE: Final = 2


class Busy(Exception):
    """As many questions as may be are being answered."""


class Inquirer:
    """Answers questions, each in a thread of its own.

    A thread that hangs, on a disk or a database, cannot be ended; it keeps its place until it comes back, so that there are never
    more of them than may be.

    Args:
        ask: answers one; may take long.
    """

    def __init__(self, ask: Callable[[str], Any], at_once: int = AT_ONCE, patience: float = PATIENCE) -> None:
        self._ask = ask
        self._places = threading.BoundedSemaphore(at_once)
        self._patience = patience

    async def answer(self, question: str) -> Any:
        """The answer.

        Raises:
            Busy: no place is free.
            TimeoutError: it takes too long.
            Exception: what the answering raised.
        """
        if not self._places.acquire(blocking=False):
            raise Busy
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            if answered.done():  # nobody waits for it any more
                return
            if error is None:
                answered.set_result(value)
            else:
                answered.set_exception(error)

        def work() -> None:
            value, error = None, None
            try:
                value = self._ask(question)
            except BaseException as caught:
                error = caught
            finally:
                self._places.release()
            with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(settle, value, error)

        try:
            threading.Thread(target=work, name="inquiry", daemon=True).start()
        except BaseException:
            self._places.release()
            raise
        return await asyncio.wait_for(answered, self._patience)
