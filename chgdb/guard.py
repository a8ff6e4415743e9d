"""What stands before the web page: only its own pages may call it, and none sends too much.

A server on this machine can be called by every page that its browser has open. Refused are
requests of other origins (the headers Origin and Sec-Fetch-Site, which pages cannot forge), host
names that are not the server's (a name that another's DNS server points here), and bodies larger
than allowed. Every answer forbids the page to load anything from elsewhere.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["Guard", "is_loopback"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_SMALL_BODY = 2**16
"""Bytes of a request that is no upload."""

_HOST = re.compile(r"(\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[^:\[\]]+))(:[0-9]*)?", re.ASCII)
"""A Host header: a name or an address, and a port."""

_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; "
    "worker-src 'self' blob:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_ADDED = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]


class Guard:
    """ASGI middleware that lets through what the server's own page, or no page at all, asks.

    Args:
        app: what is guarded.
        host: that the server binds to. Beside its own name, a server on a loopback address
            answers to localhost, any other to the name and the addresses of this machine.
        uploads: the path that takes large bodies.
        most: bytes of a body sent there.
    """

    def __init__(self, app: App, *, host: str, uploads: str, most: int) -> None:
        self._app = app
        self._host = host.lower().strip("[]")
        self._names = {"localhost"} if is_loopback(self._host) else _names_of_this_machine()
        self._uploads = uploads
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, or refuse with one line of JSON."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        most = self._most if scope["path"] == self._uploads else _SMALL_BODY
        refused = self._refusal(scope, headers)
        if refused:
            await _answer(send, 403, refused)
        elif not _fits(headers.get("content-length", "0"), most):
            await _answer(send, 413, _too_large(most))
        else:
            await self._counted(scope, receive, send, most)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> str | None:
        """Why a request is not served, if so."""
        host = headers.get("host", "")
        if not self._is_own(host):
            return f"refused: {host[:80]!r} is not a name of this server"
        origin = headers.get("origin")
        own = f"{scope.get('scheme', 'http')}://{host}"
        if origin is not None and origin.lower() != own.lower():
            return "refused: another origin; only the pages of this server may call it"
        opened = (
            headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
            and scope["method"] == "GET"
        )
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not opened:
            return "refused: another site; only the pages of this server may call it"
        return None

    def _is_own(self, host: str) -> bool:
        """Whether a Host header names this server, on whatever port."""
        parts = _HOST.fullmatch(host.lower())
        if not parts:
            return False
        name = parts["v6"] or parts["name"]
        if name == self._host or name in self._names:
            return True
        return is_loopback(name) or (not is_loopback(self._host) and _is_address(name))

    async def _counted(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        """Serve, but stop where the body grows beyond what is allowed."""
        received = 0
        started = False

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= most else {"type": "http.disconnect"}

        async def marking(message: Message) -> None:
            nonlocal started
            if received > most and not started:
                return  # what the application says of the disconnection
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), *_ADDED]
            await send(message)

        try:
            await self._app(scope, counting, marking)
        except Exception:
            if received <= most:
                raise
        if received > most and not started:
            await _answer(send, 413, _too_large(most))


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, which no other can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _names_of_this_machine() -> set[str]:
    return {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}


def _fits(length: str, most: int) -> bool:
    return not length.isdecimal() or int(length[:20]) <= most


def _too_large(most: int) -> str:
    size = f"{most / 1e6:.0f} MB" if most >= 10**6 else f"{most} bytes"
    return f"too large: at most {size}; chgdb ui --max-upload takes more of a file"


async def _answer(send: Send, status: int, error: str) -> None:
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *_ADDED,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
