"""A wire to a port that can be cut, frozen, delayed, throttled and led elsewhere: what networks do to the database and to ssh."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

_PIECE = 65536
_WAIT = 10.0


class Proxy:
    """Carries bytes both ways between its own port on loopback and another.

    Its own port stays the same for its life. All that is asked of it holds for the connections that are open and for those
    to come, but for :meth:`cut`.

    Args:
        target: port on loopback that it leads to.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        """Where new connections are led: set it anew for a fail-over."""
        self.delay = 0.0
        """Seconds that each piece is held back, in each direction."""
        self.rate = 0.0
        """Bytes a second for each direction of each connection; 0 for no limit."""
        self.carried = 0
        """Bytes that came from the target's side so far."""
        self.connections = 0
        """Connections that were ever made to it."""
        self.refusing = False
        """Whether new connections are closed at once, as by a server that is down."""
        self._cut_at: int | None = None
        self._links: set[_Link] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._loop = asyncio.new_event_loop()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where to connect."""
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(_WAIT)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_WAIT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Resets every open connection; new ones are taken."""
        self._do(self._abort_all)

    def cut_after(self, count: int) -> None:
        """Resets every open connection once so many more bytes have come from the target's side."""
        self._cut_at = self.carried + count

    def freeze(self) -> None:
        """From now on nothing passes and nothing ends: connections stay open and silent, new ones are accepted and hear
        nothing. So looks a link whose other end lost its power."""
        self._do(self._thawed.clear)

    def thaw(self, *, forget: bool = True) -> None:
        """New connections pass again.

        Arguments:
            forget: whether those that were open meanwhile stay silent for ever; otherwise they go on where they were.
        """

        def go_on() -> None:
            for link in self._links if forget else ():
                link.silent = True
            self._thawed.set()

        self._do(go_on)

    def refuse(self) -> None:
        """Takes no more connections, and cuts those that are there."""
        self.refusing = True
        self.cut()

    def accept(self) -> None:
        """Takes connections again."""
        self.refusing = False

    def _do(self, act: Callable[[], None]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(act)
        self._loop.call_soon_threadsafe(done.set)
        assert done.wait(_WAIT), "the proxy's thread does not answer"

    async def _serve(self) -> None:
        self._server = await asyncio.start_server(self._take, sock=self._listener)

    async def _end(self) -> None:
        assert self._server is not None
        self._server.close()
        self._abort_all()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _abort_all(self) -> None:
        for link in list(self._links):
            link.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = _Link(writer)
        self._links.add(link)
        try:
            await self._thawed.wait()
            if self.refusing or link.silent:
                if link.silent:
                    await asyncio.Event().wait()
                return
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            link.writers.append(far_writer)
            await asyncio.gather(
                self._carry(link, reader, far_writer, counted=False),
                self._carry(link, far_reader, writer, counted=True),
            )
        except (OSError, asyncio.CancelledError):
            pass  # the target is away, an end has hung up, or all of this ends
        finally:
            link.abort()
            self._links.discard(link)

    async def _carry(
        self, link: "_Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool
    ) -> None:
        while piece := await reader.read(_PIECE if not self.rate else max(1, min(_PIECE, int(self.rate / 20)))):
            if self.delay:
                await asyncio.sleep(self.delay)
            if self.rate:
                await asyncio.sleep(len(piece) / self.rate)
            await self._thawed.wait()
            if link.silent:
                await asyncio.Event().wait()
            if counted:
                self.carried += len(piece)
                if self._cut_at is not None and self.carried >= self._cut_at:
                    self._cut_at = None
                    self._abort_all()
                    return
            writer.write(piece)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()


class _Link:
    """One connection through the proxy: its two ends."""

    def __init__(self, near: asyncio.StreamWriter) -> None:
        self.writers: list[Any] = [near]
        self.silent = False

    def abort(self) -> None:
        """Resets both ends."""
        for writer in self.writers:
            writer.transport.abort()
