"""Hands notices on, at most ten in a minute; the rest become one summary."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import structlog

from cdc_archiver.timecodes.status_types import NoticeKind, TimecodeNotice

_AT_MOST: Final = 10
_WITHIN: Final = 60.0

_log = structlog.get_logger(__name__)


class Notices:
    """For one thread.

    Args:
        deliver: receives each notice; an error of it is logged.
        clock: seconds, monotonic.
    """

    def __init__(self, deliver: Callable[[TimecodeNotice], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._deliver = deliver
        self._clock = clock
        self._times: deque[float] = deque()
        self._more: Counter[NoticeKind] = Counter()

    def add(self, notice: TimecodeNotice) -> None:
        """Hands a notice on, or counts it for the summary."""
        if self._has_room():
            self._send(notice)
        else:
            self._more[notice.kind] += 1

    def flush(self) -> None:
        """Sends the summary, where there is one and a minute has room again."""
        if self._more and self._has_room():
            text = ", ".join(f"{count} {kind.value}" for kind, count in sorted(self._more.items()))
            self._more.clear()
            self._send(TimecodeNotice(NoticeKind.SUMMARY, "", "", 0, detail=f"more notices of timecodes: {text}"))

    def _has_room(self) -> bool:
        while self._times and self._times[0] <= self._clock() - _WITHIN:
            self._times.popleft()
        return len(self._times) < _AT_MOST

    def _send(self, notice: TimecodeNotice) -> None:
        self._times.append(self._clock())
        try:
            self._deliver(notice)
        except Exception as error:
            _log.error("notice_not_delivered", kind=notice.kind.value, timecode=notice.timecode, detail=repr(error))
