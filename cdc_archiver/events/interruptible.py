"""Connections that another thread can interrupt: how a stop reaches a thread that waits for the database."""

from __future__ import annotations

import contextlib
import socket
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pymysql
from pymysql.connections import Connection
from pymysql.constants import CR

from cdc_archiver.database.connections import SharedContextConnection


class Interrupted(OSError):
    """Another thread interrupted the connections before this one was made."""


class InterruptibleConnections:
    """Connections of one thread. Any other thread can end them with :meth:`interrupt`, whatever they wait for.

    PyMySQL's ``close()`` from another thread blocks until the next packet arrives. So each socket has a twin, a second descriptor of
    the same connection, and an interruption shuts the twins down. This wakes a thread in connect, in the handshake, with TLS or
    without, and in a read. The look-up of a host's name cannot be interrupted.

    Args:
        on_connect: called with each new connection; what it raises, :meth:`connect` raises.
    """

    def __init__(self, on_connect: Callable[[Connection], None] = lambda connection: None) -> None:
        self._on_connect = on_connect
        self._lock = threading.Lock()
        self._interrupted = False
        self._twins: set[socket.socket] = set()
        self._connections: weakref.WeakSet[_TwinnedConnection] = weakref.WeakSet()

    def connect(self, settings: Mapping[str, Any]) -> Connection:
        """Opens a connection.

        Args:
            settings: PyMySQL's, with host and port.

        Raises:
            Interrupted: the connections were interrupted before.
            pymysql.MySQLError: the server does not answer, or refuses this client.
        """
        connection = _TwinnedConnection(**settings, defer_connect=True)
        try:
            sock, twin = self._open_socket(connection.host, connection.port, connection.connect_timeout)
        except Interrupted:
            raise
        except OSError as error:
            raise pymysql.OperationalError(
                CR.CR_CONN_HOST_ERROR, f"Can't connect to MySQL server on {connection.host!r} ({error})"
            ) from error
        try:
            connection.connect(sock)
        except BaseException:
            sock.close()
            self._drop_twin(twin)
            raise
        connection.after_close = lambda: self._drop_twin(twin)
        try:
            self._on_connect(connection)
        except BaseException:
            with contextlib.suppress(pymysql.MySQLError):
                connection.close()  # of TLS, its own socket: ours is only what that was made of
            raise
        with self._lock:
            self._connections.add(connection)
        return connection

    def interrupt(self) -> None:
        """Ends every connection, and prevents new ones. Returns at once; safe from any thread."""
        with self._lock:
            self._interrupted = True
            for twin in self._twins:
                # On a socket that is not connected no thread waits.
                with contextlib.suppress(OSError):
                    twin.shutdown(socket.SHUT_RDWR)

    def close_all(self) -> None:
        """Closes the open connections. For the thread that uses them."""
        with self._lock:
            connections = list(self._connections)
            self._connections.clear()
        for connection in connections:
            with contextlib.suppress(pymysql.MySQLError):
                connection.close()

    def _open_socket(self, host: str, port: int, timeout: float | None) -> tuple[socket.socket, socket.socket]:
        failure: OSError = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:  # a kernel without IPv6: the next address may be of another family
                failure = error
                continue
            try:
                twin = self._add_twin(sock)
            except BaseException:
                sock.close()
                raise
            try:
                sock.settimeout(timeout)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                return sock, twin
            except OSError as error:
                failure = error
                sock.close()
                self._drop_twin(twin)
        raise failure

    def _add_twin(self, sock: socket.socket) -> socket.socket:
        with self._lock:
            if self._interrupted:
                raise Interrupted("the connections were interrupted")
            twin = sock.dup()
            self._twins.add(twin)
            return twin

    def _drop_twin(self, twin: socket.socket) -> None:
        with self._lock:
            self._twins.discard(twin)
        twin.close()


class _TwinnedConnection(SharedContextConnection):
    """A connection whose twin is closed with it."""

    after_close = staticmethod(lambda: None)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.after_close()
