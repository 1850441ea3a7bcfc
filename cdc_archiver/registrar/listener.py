"""The socket on which the instrument's messages arrive: forwards them, and makes them durable, in a thread of its own."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from cdc_archiver.errors import Misconfigured
from cdc_archiver.observe.registrar_metrics import RegistrarMetrics
from cdc_archiver.registrar.messages import Announcement, Garbage, PassedOver, parse
from cdc_archiver.registrar.spool import Received, Spool
from cdc_archiver.threads import StoppableThread

RECEIVE_BUFFER: Final = 64 * 1024**2
"""Bytes wanted for what arrives while the spool is written."""
_SO_RCVBUFFORCE: Final = 33
_LONGEST: Final = 65_536
"""Bytes: no datagram is longer."""
_AT_ONCE: Final = 2048
"""Datagrams of one commit."""
_WAKE: Final = 0.25
_AGAIN: Final = 1.0
"""Seconds after which the spool is written again that could not be written."""

_log = structlog.get_logger(__name__)


class Listener(StoppableThread):
    """Receives, until it is stopped and the socket is empty.

    Args:
        host, port: the address to listen on; port 0 takes any free port, see :attr:`port`.
        forward: addresses that get each datagram as well.
        on_stored: called after announcements were stored.

    Attributes:
        complete_until: seconds since the epoch; what arrived before is in the spool.
        buffer: bytes of the receive buffer, as the kernel counts them.
        trouble: why the spool cannot be written; empty while it can.

    Raises:
        Misconfigured: it cannot listen there, or an address to forward to is unknown.
    """

    def __init__(
        self,
        host: str,
        port: int,
        forward: Sequence[str],
        spool: Spool,
        metrics: RegistrarMetrics,
        on_stored: Callable[[], None],
    ) -> None:
        super().__init__("listener")
        self._spool = spool
        self._metrics = metrics
        self._on_stored = on_stored
        self._targets = [_resolve(address) for address in forward]
        self._socket = listening_socket(host, port)
        self.port = int(self._socket.getsockname()[1])
        self._inode = os.fstat(self._socket.fileno()).st_ino
        self._dropped = 0
        self.buffer = enlarge_buffer(self._socket)
        self._socket.settimeout(_WAKE)
        self._forwarders = {family: socket.socket(family, socket.SOCK_DGRAM) for family, _ in self._targets}
        for forwarder in self._forwarders.values():
            forwarder.setblocking(False)  # a full buffer must hold up nothing
        self.complete_until = time.time()
        self.trouble = ""

    def work(self) -> None:
        while not self.stopping.is_set():
            self._receive()
        while self._receive():
            pass

    def close(self) -> None:
        """Closes its sockets, after its end."""
        for each in (self._socket, *self._forwarders.values()):
            each.close()

    def count_drops(self) -> None:
        """Counts what the kernel has dropped since the last call, because the receive buffer was full."""
        dropped = kernel_drops(self._inode)
        if dropped > self._dropped:
            self._metrics.kernel_drops.inc(dropped - self._dropped)
            _log.error(
                "kernel_dropped_messages",
                count=dropped - self._dropped,
                fix=f"sysctl -w net.core.rmem_max={RECEIVE_BUFFER}, and restart the registrar",
            )
        self._dropped = max(dropped, self._dropped)

    def _receive(self) -> bool:
        """Takes what the socket holds, and stores it; returns whether there was any."""
        batch: list[tuple[bytes, tuple[object, ...]]] = []
        looked = time.time()
        try:
            batch.append(self._take())
            self._socket.setblocking(False)
            while len(batch) < _AT_ONCE:
                looked = time.time()
                batch.append(self._take())
        except (TimeoutError, BlockingIOError):
            empty = True
        else:
            empty = False
        finally:
            self._socket.settimeout(_WAKE)
        if batch:
            self._store(batch)
        if empty:
            self.complete_until = looked
        return bool(batch)

    def _take(self) -> tuple[bytes, tuple[object, ...]]:
        datagram, sender = self._socket.recvfrom(_LONGEST)
        for family, address in self._targets:
            try:
                self._forwarders[family].sendto(datagram, address)
            except OSError:
                self._metrics.forward_failures.inc()
        return datagram, sender

    def _store(self, batch: Sequence[tuple[bytes, tuple[object, ...]]]) -> None:
        received = [Received(parse(datagram), str(sender[0]), int(str(sender[1]))) for datagram, sender in batch]
        while True:
            try:
                gaps, homeless = self._spool.store(received, time.time())
                break
            except sqlite3.Error as error:
                if not self.trouble:
                    _log.error(
                        "spool_not_written", spool=str(self._spool.path), detail=str(error), again_seconds=_AGAIN
                    )
                self.trouble = f"the spool {self._spool.path} cannot be written: {error}"
                if self.stopping.wait(_AGAIN):
                    _log.error("messages_lost_at_stop", count=len(batch))
                    return
        self.trouble = ""
        self._count(received, gaps, homeless)
        self._on_stored()

    def _count(self, received: Sequence[Received], gaps: int, homeless: Sequence[Announcement]) -> None:
        garbage: Counter[str] = Counter()
        for each in received:
            match each.message.content:
                case Announcement():
                    self._metrics.messages.labels("data_file").inc()
                case PassedOver(kind=kind):
                    self._metrics.messages.labels(kind).inc()
                case Garbage(reason=reason, detail=detail, path=path):
                    self._metrics.garbage.labels(reason.value).inc()
                    garbage[reason.value] += 1
                    if path or garbage[reason.value] == 1:  # a file is named, a flood is not
                        _log.warning(
                            "message_not_understood", reason=reason.value, detail=detail, path=path, sender=each.address
                        )
        if gaps:
            self._metrics.gaps.inc(gaps)
            _log.error("messages_missing", count=gaps)
        for announcement in homeless:
            self._metrics.outcomes.labels("lost").inc()
            _log.error("file_lost", path=announcement.path, detail="the spool is full", fix="--spool-max SIZE")


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket for datagrams to this address, shared with no other: never SO_REUSEADDR, with which a second socket takes all.

    Raises:
        Misconfigured: it cannot listen there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.bind(address)
        except BaseException:
            made.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        raise Misconfigured(
            f"the registrar cannot listen on {host}:{port} (UDP): {error}",
            "stop the program that listens there (`ss -lunp`), or choose another address: --udp-port PORT, --udp-host HOST",
        ) from error
    return made


def enlarge_buffer(made: socket.socket) -> int:
    """Enlarges the receive buffer as far as allowed; returns its size as the kernel counts it."""
    try:
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except OSError:  # needs CAP_NET_ADMIN; the other one is cut at net.core.rmem_max without an error
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    return made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def kernel_drops(inode: int) -> int:
    """How many datagrams to a socket the kernel has dropped; 0 where it does not tell.

    Args:
        inode: of the socket.
    """
    for name in ("udp", "udp6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[9] == str(inode):
                return int(fields[-1])
    return 0


def _resolve(address: str) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    """The address of ``HOST:PORT``, asked for once: a slow name server must not hold up a datagram."""
    host, _, port = address.rpartition(":")
    try:
        family, _, _, _, resolved = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
    except (OSError, ValueError, OverflowError) as error:
        raise Misconfigured(
            f"the address to forward to is not known: {address!r}: {error}", "--forward HOST:PORT"
        ) from error
    return family, resolved
