"""Checks the Host header of each request, and adds security headers: no other site may use the service through a browser.

starlette's TrustedHostMiddleware answers 400 in plain text, and refuses a request without a Host header.
"""

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
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class HostGuard:
    """ASGI middleware.

    A server on a loopback address accepts only that address's names. Another site can give its own name this address, and so
    make a visitor's browser send requests here (DNS rebinding); such a request has the site's name, and gets 421. A server
    on any other address accepts every name: its network decides who reaches it.

    Args:
        host: the address or name that the server was told to listen on; it is accepted, too.
        address: the address that it listens on.
    """

    def __init__(self, application: ASGIApp, host: str, address: str) -> None:
        self._application = application
        configured = f"[{host}]" if ":" in host else host
        self._names = _LOOPBACK_NAMES | {configured.lower()} if is_loopback(address) else None

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
        # A request without a Host header does not come from a browser.
        if self._names is not None and name is not None and without_port(name).lower() not in self._names:
            refusal = JSONResponse(
                {
                    "error": "This service listens on a loopback address and accepts only the names localhost, 127.0.0.1 and [::1]. "
                    "Use one of these, or set --http-host to another name or address of this machine."
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


def without_port(host: str) -> str:
    """The name in a Host header."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
