"""The application: its page, its documentation, what it refuses, how it starts and stops."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Run, Served

pytest.importorskip("fastapi")
import httpx
from fastapi.testclient import TestClient

from chgdb.database import Database
from chgdb.web import create_app, serve

PAGE = ROOT / "chgdb" / "page"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = create_app(Database(ROOT / "store"))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as made:
        yield made


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "script-src" in answer.headers["content-security-policy"] or (
        "default-src 'self'" in answer.headers["content-security-policy"]
    )
    for path in re.findall(r'(?:src|href)="(/[^"#]+)"', answer.text):
        assert client.get(path).status_code == 200, path
    own = [path for path in PAGE.rglob("*") if path.suffix in (".html", ".js", ".css")]
    assert len(own) > 5
    for path in own:
        if "vendor" not in path.parts:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"https?://(?!www\.w3\.org/)", text), path
            assert "innerHTML" not in text, path


@pytest.mark.parametrize(
    "path",
    ["/page/../web.py", "/page/..%2fweb.py", "/page/%2e%2e/web.py", "/page//etc/passwd", "/x"],
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert list(answer.json()) == ["error"]


def test_the_interface_is_documented(client: TestClient) -> None:
    told = client.get("/openapi.json").json()
    paths = told["paths"]
    assert {"/api/store", "/api/materials", "/api/materials/{material_id}", "/api/uploads"} <= set(
        paths
    )
    for path, methods in paths.items():
        for method, about in methods.items():
            assert about.get("summary"), (path, method)
            assert about.get("description"), (path, method)
            assert "422" not in about["responses"], path  # it is never sent
    page = paths["/api/materials"]["get"]["responses"]["200"]["content"]["application/json"]
    assert page["schema"]["$ref"].endswith("PageAnswer")
    documented = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")
    for path in paths:
        if path.startswith("/api/"):
            assert f"`{re.sub('{[a-z_]+}', 'ID', path, count=1)}".replace("{name}", "NAME") in (
                documented
            ), path


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"host": "evil.example"},
    ],
)
@pytest.mark.parametrize(
    "path", ["/", "/api/store", "/api/materials/mp-149/files/CHGCAR", "/v1/info"]
)
def test_others_are_refused(client: TestClient, path: str, headers: dict[str, str]) -> None:
    answer = client.get(path, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"].startswith("refused: ")


def test_a_mistake_of_ours_is_one_line(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(Database, "select", fail)
    answer = client.get("/api/materials")
    assert answer.status_code == 500
    assert answer.json() == {"error": "unexpected ZeroDivisionError: two lines"}


def test_a_damaged_store_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(ROOT / "store", path, ignore=shutil.ignore_patterns(".lock*"))
    part = max((path / "materials").iterdir(), key=lambda file: file.stat().st_size)
    part.chmod(part.stat().st_mode | stat.S_IWUSR)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 255
    part.write_bytes(content)
    with TestClient(create_app(Database(path)), base_url="http://127.0.0.1") as client:
        answer = client.get("/api/distributions")
    assert answer.status_code == 500
    assert "damaged" in answer.json()["error"]


# ---------------------------------------------------------------------- chgdb ui


def test_the_running_page(served: Served) -> None:
    with httpx.Client(base_url=served.url) as client:
        assert client.get("/").status_code == 200
        assert client.get("/api/store").json()["records"] == len(Database(served.store))
        assert client.get("/api/store").json()["originals"] is True
        assert "server" not in client.get("/").headers
    host, _ = served.url.removeprefix("http://").split(":")
    assert host == "127.0.0.1"
    assert len(served.token) > 30


def test_it_listens_to_this_machine_alone(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    others = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), port)}
    for address in {"127.0.0.2", *others} - {"127.0.0.1", "::1"}:
        with pytest.raises(OSError):  # noqa: PT011 (refused or unreachable)
            socket.create_connection((address, port), timeout=2).close()


def test_a_port_that_is_taken(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = run("ui", "--port", port, "--no-browser", "--store", ROOT / "store")
    assert outcome.code == 1
    assert outcome.err.startswith(f"chgdb: error: 127.0.0.1:{port}: cannot be listened at")
    assert "--port 0" in outcome.err


def test_what_cannot_be_served(run: Run, tmp_path: Path) -> None:
    for words, told in (
        (("--store", tmp_path / "no"), "not a chgdb store"),
        (("--sources", tmp_path / "no"), "no"),
        (("--host", "no.such.host.invalid"), "cannot be listened at"),
    ):
        outcome = run("ui", "--no-browser", "--port", 0, *words)
        assert outcome.code == 1
        assert told in outcome.err
        assert outcome.err.count("\n") == 1


def test_answers_are_valid_json(client: TestClient) -> None:
    """No NaN, which other languages do not read."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    columns = [column["name"] for column in client.get("/api/store").json()["columns"]]
    every = f"materials?limit=1000&columns={','.join(columns)}"
    for path in ("store", every, f"{every}&source=none", "distributions", "materials/mp-149"):
        answer = client.get(f"/api/{path}")
        assert answer.status_code == 200
        json.loads(answer.text, parse_constant=refuse)


def test_an_interrupted_upload_is_quiet(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /api/uploads?name=a HTTP/1.1\r\nHost: {host}\r\nContent-Length: 999"
        connection.sendall(f"{head}\r\n\r\nxx".encode())
        time.sleep(0.2)
    time.sleep(0.3)
    assert httpx.get(f"{served.url}/api/store").status_code == 200
    assert "Traceback" not in capfd.readouterr().err


def test_the_token_is_no_argument_of_the_browser(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[str] = []
    told: list[str] = []

    def look(url: str) -> None:
        path = Path(urllib.parse.urlparse(url).path)
        assert path.stat().st_mode & 0o077 == 0
        opened.append(path.read_text(encoding="utf-8"))

    monkeypatch.setattr("webbrowser.open", look)
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    serve(
        Database(ROOT / "store"),
        host="127.0.0.1",
        port=0,
        most_bytes=10,
        originals={},
        ready=told.append,
        browser=True,
    )
    assert "#token=" in told[0]
    assert told[0] in opened[0]


def test_a_server_stops_at_once_while_a_file_is_read(tmp_path: Path) -> None:
    """And says nothing of it; what was sent goes with it."""
    command = [
        *(sys.executable, "-c", "from chgdb.cli import main; main()", "ui", "--port", "0"),
        *("--no-browser", "--store", str(ROOT / "store")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split("/#")[0]
        content = (ROOT / "examples" / "MgO.CHGCAR.xz").read_bytes()
        told = httpx.post(f"{url}/api/uploads?name=a", content=content).json()
        end = time.monotonic() + 60
        while httpx.get(f"{url}/api/uploads/{told['id']}").json()["done"] < 2:
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=15)
    assert process.returncode == 0
    assert err == ""
    assert not list(tmp_path.glob("chgdb-*"))
