"""The guard of the web page: origins, names of the server, sizes of bodies, headers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from chgdb.guard import Guard, is_loopback


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of bytes of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def ask(
    headers: dict[str, str],
    *,
    host: str = "127.0.0.1",
    method: str = "GET",
    path: str = "/api/materials",
    body: Sequence[bytes] = (b"",),
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer."""
    sent: list[dict[str, Any]] = []
    chunks = [
        {"type": "http.request", "body": chunk, "more_body": i + 1 < len(body)}
        for i, chunk in enumerate(body)
    ]

    async def receive() -> Any:
        return chunks.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "scheme": "http",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    guard = Guard(app, host=host, uploads="/api/uploads", most=1000_000)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(guard(scope, receive, send))
    finally:
        loop.close()
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], told, sent[1]["body"]


OWN = {"host": "127.0.0.1:8765"}

FOLLOWED = {
    **OWN,
    "sec-fetch-site": "cross-site",
    "sec-fetch-mode": "navigate",
    "sec-fetch-dest": "document",
}
"""What a browser sends when a link on another site is followed."""


@pytest.mark.parametrize(
    "headers",
    [
        OWN,
        {"host": "localhost:8765"},
        {"host": "[::1]:8765"},
        {"host": "LOCALHOST"},
        {**OWN, "origin": "http://127.0.0.1:8765"},
        {**OWN, "sec-fetch-site": "same-origin"},
        {**OWN, "sec-fetch-site": "none"},
        FOLLOWED,
    ],
)
def test_what_is_served(headers: dict[str, str]) -> None:
    status, told, body = ask(headers)
    assert (status, body) == (200, b"0")
    assert "default-src 'self'" in told["content-security-policy"]
    assert told["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in told


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "evil.example:8765"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "192.168.1.7:8765"},
        {"host": "[::1]evil.example"},
        {"host": "[::1"},
        {"host": "127.0.0.1:8765:1"},
        {"host": "127.0.0.1@evil.example"},
        {"host": ":8765"},
        {**OWN, "origin": "https://evil.example"},
        {**OWN, "origin": "null"},
        {**OWN, "origin": "http://127.0.0.1:9999"},
        {**OWN, "origin": "https://127.0.0.1:8765"},
        {**OWN, "sec-fetch-site": "cross-site"},
        {**OWN, "sec-fetch-site": "same-site", "sec-fetch-mode": "navigate"},
        {**FOLLOWED, "sec-fetch-dest": "iframe"},
    ],
)
def test_what_is_refused(headers: dict[str, str]) -> None:
    status, told, body = ask(headers)
    assert status == 403
    error = json.loads(body)["error"]
    assert error.startswith("refused: ")
    assert "\n" not in error
    assert "content-security-policy" in told


def test_a_form_of_another_site_is_refused_though_it_navigates() -> None:
    assert ask(FOLLOWED, method="POST")[0] == 403


def test_names_of_a_server_that_others_reach() -> None:
    for host in ("192.168.1.7:80", "localhost:80", "[fe80::1]:80"):
        assert ask({"host": host}, host="0.0.0.0")[0] == 200
    assert ask({"host": "evil.example"}, host="0.0.0.0")[0] == 403
    assert ask({"host": "box.lab:80"}, host="box.lab")[0] == 200


@pytest.mark.parametrize(("path", "most"), [("/api/uploads", 1000_000), ("/api/materials", 2**16)])
def test_a_body_has_a_limit(path: str, most: int) -> None:
    def post(body: Sequence[bytes], **headers: str) -> int:
        return ask({**OWN, **headers}, method="POST", path=path, body=body)[0]

    half = b"x" * (most // 2)
    assert post([half, half]) == 200
    assert post([half, half, b"x"]) == 413
    assert post([b""], **{"content-length": str(most + 1)}) == 413
    assert post([b""], **{"content-length": "9" * 4000}) == 413
    status, _, body = ask({**OWN, "content-length": "99999999"}, path="/api/uploads")
    assert status == 413
    assert json.loads(body)["error"].startswith("too large: at most 1 MB")


def test_addresses_of_this_machine_alone() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))
