"""A TCP proxy that cuts, freezes, delays, throttles and redirects connections, as networks do to the database and to ssh."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

_PIECE = 65536
_WAIT = 10.0


class Proxy:
    """Forwards bytes between its own port on loopback and another one.

    Its own port does not change. Every method except :meth:`cut` affects open and new connections.

    Args:
        target: the port on loopback to which it forwards.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        """The port for new connections; change it for a fail-over."""
        self.delay = 0.0
        """Delay of each piece in each direction, in seconds."""
        self.rate = 0.0
        """Limit for each direction of each connection, in bytes a second; 0: none."""
        self.carried = 0
        """Bytes received from the target so far."""
        self.connections = 0
        """Connections accepted so far."""
        self.refusing = False
        """Whether new connections are closed at once, as by a stopped server."""
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
        """The port to connect to."""
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
        """Resets every open connection; new ones are accepted."""
        self._do(self._abort_all)

    def cut_after(self, count: int) -> None:
        """Resets every open connection after so many further bytes from the target."""
        self._cut_at = self.carried + count

    def freeze(self) -> None:
        """Forwards nothing and closes nothing: connections stay open and silent, new ones are accepted and stay silent, as if
        the other end had lost power."""
        self._do(self._thawed.clear)

    def thaw(self, *, forget: bool = True) -> None:
        """Forwards new connections again.

        Arguments:
            forget: whether connections from before stay silent for ever; otherwise they continue.
        """

        def go_on() -> None:
            for link in self._links if forget else ():
                link.silent = True
            self._thawed.set()

        self._do(go_on)

    def refuse(self) -> None:
        """Refuses new connections and resets the open ones."""
        self.refusing = True
        self.cut()

    def accept(self) -> None:
        """Accepts connections again."""
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
            pass  # the target is away, one end has closed, or the proxy stops
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
