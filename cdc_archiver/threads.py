"""One contract for every thread of the service: start, stop, join, and what it died of."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence


class StoppableThread(ABC):
    """A part of the service with a thread of its own.

    ``work`` runs until ``stopping`` is set. An exception that leaves it is kept in ``failure``; so is a return without a stop
    having been asked for. Either is unexpected, and whoever supervises the part ends the service.

    Args:
        name: the thread's name, as logs show it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopping = threading.Event()
        self.failure: BaseException | None = None
        self.on_end: Callable[[StoppableThread], None] = lambda part: None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def work(self) -> None:
        """The part's loop."""

    def interrupt(self) -> None:
        """Wakes ``work`` where it waits for something other than ``stopping``. Called once, after that is set."""

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end; returns at once. May be called often, from any thread."""
        if not self.stopping.is_set():
            self.stopping.set()
            self.interrupt()

    def join(self, timeout: float | None = None) -> bool:
        """Waits for the end of the thread.

        Args:
            timeout: seconds; None waits for ever.

        Returns:
            Whether it has ended.
        """
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.work()
            if not self.stopping.is_set():
                raise RuntimeError(f"{self.name} returned although nobody had asked it to stop")
        except BaseException as error:
            self.failure = error
        finally:
            self.on_end(self)


def join_all(parts: Sequence[StoppableThread], seconds: float) -> bool:
    """Waits for all of them together; returns whether all have ended."""
    deadline = time.monotonic() + seconds
    ended = [part.join(max(0.0, deadline - time.monotonic())) for part in parts]  # each gets its turn
    return all(ended)
