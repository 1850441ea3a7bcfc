"""The ids whose rows are to be read: fresh ones, and the backlog. Plain values, owned by the scheduler."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator


class Inboxes:
    """Two queues of ids, of which the fresh one goes first."""

    def __init__(self) -> None:
        self._fresh: deque[int] = deque()
        self._backlog: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._fresh) + len(self._backlog)

    def __iter__(self) -> Iterator[int]:
        yield from self._fresh
        yield from self._backlog

    def count(self, *, fresh: bool) -> int:
        """How many ids are in one of the two."""
        return len(self._of(fresh))

    def add(self, id_: int, *, fresh: bool) -> None:
        """Adds an id at the end."""
        self._of(fresh).append(id_)

    def put_back(self, id_: int, *, fresh: bool) -> None:
        """Adds an id at the front."""
        self._of(fresh).appendleft(id_)

    def take(self, limit: int) -> list[int]:
        """Takes at most so many ids."""
        return [(self._fresh or self._backlog).popleft() for _ in range(min(limit, len(self)))]

    def _of(self, fresh: bool) -> deque[int]:
        return self._fresh if fresh else self._backlog
