"""Who is answered over HTTP, and what every answer tells a browser: no other site may use the service through somebody's browser."""

from __future__ import annotations

import contextlib
import ipaddress
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_HERE: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Doorkeeper:
    """Stands before the application.

    A server on this machine's own address is asked by that address alone. A site elsewhere that gives its name this address, and
    so makes a visitor's browser take the service for a part of itself (DNS rebinding), is known by the name, and gets 421.
    A server on any other address answers to whatever name it has: those who can reach it are those who may.

    Args:
        host: what the server was told to listen on; it is answered to, as well.
        address: what it listens on.
    """

    def __init__(self, application: ASGIApp, host: str, address: str) -> None:
        self._application = application
        configured = f"[{host}]" if ":" in host else host
        self._names = _HERE | {configured.lower()} if is_loopback(address) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        name = Headers(scope=scope).get("host")
        # Who names no host at all is no browser.
        if self._names is not None and name is not None and without_port(name).lower() not in self._names:
            refusal = JSONResponse(
                {
                    "error": "This service listens on this machine's own address and answers to localhost, 127.0.0.1 and [::1]: "
                    "ask it by one of these, or set --http-host to the name or address that it is to be asked by."
                },
                421,
            )
            await refusal(scope, receive, send_with_headers)
            return
        await self._application(scope, receive, send_with_headers)


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach it.

    Args:
        address: an IP address, with or without a zone.
    """
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(address.partition("%")[0])
        mapped = getattr(found, "ipv4_mapped", None)
        return (mapped or found).is_loopback
    return False


def without_port(name: str) -> str:
    """A Host header's name."""
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0]
