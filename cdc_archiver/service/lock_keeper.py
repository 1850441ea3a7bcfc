"""The locks of the sources in a thread of their own: acquired as they become free, shared with others, given up when lost."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cdc_archiver.database.server_identity import ServerIdentity
from cdc_archiver.database.source_locks import SourceLocks
from cdc_archiver.errors import ArchiverError, LockLost
from cdc_archiver.threads import StoppableThread


class Owner(Protocol):
    """What a lock keeper tells its owner, in the keeper's thread."""

    def on_acquired(self, sources: Sequence[str], losses: int) -> None:
        """These sources are held now, until a loss: then the keeper counts one more."""

    def on_lost(self, lost: LockLost) -> None:
        """We hold nothing any more. Has all copying stopped within what the timing of the locks leaves for it; until it
        returns, nothing is tried again."""

    def on_requested(self, source: str) -> None:
        """Another archiver requests a source that is held beyond the share: yield it when its copies have ended."""

    def on_held_by_other(self, holders: Mapping[str, str]) -> None:
        """Others hold these sources; the holders are described for a person. Called when it changes."""

    def on_unreachable(self, error: ArchiverError) -> None:
        """The database cannot be asked; once for each reason."""

    def on_reachable(self) -> None:
        """It can be asked again."""


@dataclass(frozen=True, slots=True)
class _Request:
    release: str = ""
    losses: int = 0
    sources: Mapping[str, Sequence[str]] | None = None


class LockKeeper(StoppableThread):
    """Gets the sources' locks as soon as they are free, keeps them, and says when they are gone.

    With a share, it takes at most that many sources while another archiver is there for the others. A source that nobody
    has taken for a while it takes all the same, and yields it once another archiver has room for it.

    Args:
        locks: which; the thread's own from here on.
        owner: told of all that happens.
        share: at most this number of sources; 0 for all.
        all_or_none: take the locks of all sources together, or none.
    """

    def __init__(self, locks: SourceLocks, owner: Owner, share: int = 0, *, all_or_none: bool = False) -> None:
        super().__init__("lock")
        self._locks = locks
        self._owner = owner
        self._share = share
        self._all_or_none = all_or_none
        self._sources: tuple[str, ...] = tuple(locks.sources)
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._free_since: dict[str, float] = {}
        self._yielding: set[str] = set()
        self._holders: Mapping[str, str] = {}
        self._last_error = ""

    @property
    def held(self) -> tuple[str, ...]:
        """The sources that we hold, as far as is known."""
        return self._locks.held

    @property
    def server(self) -> ServerIdentity | None:
        """The server on which the locks are held or tried; None without a connection."""
        return self._locks.server

    @property
    def losses(self) -> int:
        """How often all that we held was lost: what was acquired before the last loss is ours no more."""
        return self._locks.losses

    def covers(self, source: str, targets: Sequence[str]) -> bool:
        """Whether we hold a source, and with exactly these targets."""
        return self._locks.covers(source, targets)

    def release(self, source: str, losses: int) -> None:
        """Its copies have ended: lets go of it. Returns at once.

        Args:
            losses: as told when it was acquired: what was lost and acquired again since stays.
        """
        self._requests.put(_Request(release=source, losses=losses))

    def describe(self, sources: Mapping[str, Sequence[str]]) -> None:
        """Other sources are ours to take from now on, with their targets. Returns at once."""
        self._requests.put(_Request(sources=dict(sources)))

    def interrupt(self) -> None:
        self._requests.put(_Request())

    def work(self) -> None:
        """Tries, keeps, tries again; lets go at the stop. A stop takes no longer than an unanswered question."""
        try:
            while not self.stopping.is_set():
                try:
                    self._look()
                    if self._last_error:
                        self._last_error = ""
                        self._owner.on_reachable()
                    self._serve_requests(self._pause())
                except LockLost as lost:
                    self._yielding.clear()
                    self._owner.on_lost(lost)
                except ArchiverError as error:
                    if str(error) != self._last_error:
                        self._last_error = str(error)
                        self._owner.on_unreachable(error)
                    # Whether those that we hold are lost is for the check to find out, and soon.
                    self.stopping.wait(0.1 if self._locks.held else self._locks.timing.try_interval)
        finally:
            self._locks.close()

    def _pause(self) -> float:
        timing = self._locks.timing
        return timing.check_interval if set(self._locks.held) >= set(self._sources) else timing.try_interval

    def _serve_requests(self, wait: float) -> None:
        deadline = time.monotonic() + wait
        while not self.stopping.is_set():
            try:
                request = self._requests.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
            if request.sources is not None:
                self._locks.describe(request.sources)
                self._sources = tuple(request.sources)
                return
            if request.release and request.losses == self._locks.losses:
                self._yielding.discard(request.release)
                # Whoever wants it is to have it: to us it is as if it were free from now on.
                self._free_since[request.release] = time.monotonic()
                self._locks.release(request.release)

    def _look(self) -> None:
        if self._locks.held:
            self._locks.check()
        acquired: list[str] = []
        try:
            self._try_all(acquired)
        finally:
            if acquired:
                self._owner.on_acquired(acquired, self._locks.losses)
        for source in self._locks.held[self._share :] if self._share else ():
            if source not in self._yielding and self._locks.is_requested(source):
                self._yielding.add(source)
                self._owner.on_requested(source)

    def _try_all(self, acquired: list[str]) -> None:
        now = time.monotonic()
        if self._all_or_none and not self._locks.held and self._locks.acquire_all():
            acquired.extend(self._locks.held)
        holders: dict[str, str] = {}
        requests: list[str] = []
        for source in self._sources:
            if source in self._locks.held:
                continue
            has_room = not self._all_or_none and (not self._share or len(self._locks.held) < self._share)
            if (has_room or self._is_spare(source, now)) and self._locks.acquire(source):
                self._free_since.pop(source, None)
                acquired.append(source)
                continue
            if has_room:
                requests.append(source)
            if holder := self._locks.holder(source):  # it may have become free between the two questions
                holders[source] = holder
                self._free_since.pop(source, None)
            else:
                self._free_since.setdefault(source, now)
        self._locks.request_sources(requests)
        if self._all_or_none and not self._locks.held:
            self._locks.close()  # a session that idles until the next try may be cut, which would end the run
        if holders != self._holders:
            self._holders = holders
            self._owner.on_held_by_other(holders)

    def _is_spare(self, source: str, now: float) -> bool:
        since = self._free_since.get(source)
        return not self._all_or_none and since is not None and now - since >= self._locks.timing.spare_after
