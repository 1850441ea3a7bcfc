"""Who hears the stream: the narrow door between it and the rest of the house."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class StreamListener(Protocol):
    """What the owner of a stream is told.

    Every call comes from the stream's own thread, and **none may block**: no SQL, no queue that waits for room. While a call
    lasts, nothing is read, and the server drops a reader that stays away for longer than its ``net_write_timeout``. Where
    a queue is full, drop the ids and ask for a sweep.

    A row becomes visible some milliseconds after its event, so one that cannot be read yet is not gone; and a sweep that
    ``on_anchor`` or ``on_gap`` asks for finds the last rows surely only when it is repeated about a second later.
    """

    def on_ids(self, ids: Sequence[int]) -> None:
        """Rows were written or changed.

        Called at the end of a transaction; in a huge one also before, some thousand ids at a time. An id may come twice,
        and may be of a row that never becomes visible (XA).

        Args:
            ids: their primary keys, in the order of the log.
        """

    def on_anchor(self) -> None:
        """The stream is open; what was written before is not in it: sweep now, and once more a second later."""

    def on_gap(self, why: str) -> None:
        """Something went by that could not be read: sweep soon. The stream goes on."""

    def on_lost(self, reason: str) -> None:
        """The stream has ended, and a new one is being opened. ``on_anchor`` or ``on_unavailable`` comes next.

        Args:
            reason: one word, as the metric ``stream_reconnects_total`` has it.
        """

    def on_unavailable(self, why: str) -> None:
        """There is no stream now: poll. Said once for each reason; ``on_anchor`` follows when there is one again.

        Args:
            why: for a person: what is wrong, and what fixes it.
        """
