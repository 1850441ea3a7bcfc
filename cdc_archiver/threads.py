"""One contract for every thread of the service: start, stop, join, and the error that ended it."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence


class StoppableThread(ABC):
    """A thread of the service.

    ``work`` runs until ``stopping`` is set. An exception that it raises is kept in ``failure``; a return before ``stop`` counts as
    one. Either is unexpected, and makes the supervisor end the service.

    Args:
        name: the thread's name, as logs show it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopping = threading.Event()
        self.failure: BaseException | None = None
        self.on_end: Callable[[StoppableThread], None] = lambda thread: None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def work(self) -> None:
        """The thread's loop."""

    def interrupt(self) -> None:
        """Wakes ``work`` where it waits for anything but ``stopping``. Called once, after ``stopping`` is set."""

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end; returns at once. May be called repeatedly, from any thread."""
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
                raise RuntimeError(f"{self.name} returned before it was asked to stop")
        except BaseException as error:
            self.failure = error
        finally:
            self.on_end(self)


def join_all(threads: Sequence[StoppableThread], seconds: float) -> bool:
    """Waits for all threads together; returns whether all have ended."""
    deadline = time.monotonic() + seconds
    ended = [thread.join(max(0.0, deadline - time.monotonic())) for thread in threads]  # each, even past the deadline
    return all(ended)
