"""`chgdb ui`: the page, the HTTP interface that it uses, and OPTIMADE, as one ASGI application."""

from __future__ import annotations

import errno
import secrets
import socket
import webbrowser
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from chgdb import __version__
from chgdb.api import UPLOADS_PATH, make_api, status_of
from chgdb.errors import ChgdbError, InputError
from chgdb.files import explained, one_line, reason
from chgdb.guard import Guard
from chgdb.optimade import optimade_routes
from chgdb.uploads import Uploads

if TYPE_CHECKING:
    from chgdb.database import Database
    from chgdb.guard import App

__all__ = ["MOST_BYTES", "create_app", "serve"]

MOST_BYTES = 10**9
"""Of a file that is sent, unless another limit is given."""

_PAGE = Path(__file__).resolve().parent / "page"

_ASKED_AGAIN = {"Cache-Control": "no-cache"}

_ABOUT = """A store of charge densities: search, records, densities, predictions, files.

Every failure is `{"error": "one line"}`. Numbers are in the units that `/api/store` tells."""


def create_app(
    database: Database,
    *,
    host: str = "127.0.0.1",
    token: str | None = None,
    most_bytes: int = MOST_BYTES,
    originals: Mapping[str, Path] | None = None,
) -> App:
    """The application that serves one store.

    Args:
        database: the store.
        host: name or address that it is served at; others are refused.
        token: what adding to the store asks for; None lets nothing be added.
        most_bytes: of a file that is sent.
        originals: density files by SHA-256, as of `chgdb.formats.densities_by_sha256`.
    """
    uploads = Uploads(database)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        uploads.close()

    app = FastAPI(
        title="chgdb",
        version=__version__,
        description=_ABOUT,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.include_router(
        make_api(
            database,
            uploads,
            token=token or secrets.token_urlsafe(32),
            most_bytes=most_bytes,
            originals=originals or {},
        )
    )

    app.router.routes.extend(optimade_routes(database))

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def index() -> FileResponse:
        return FileResponse(_PAGE / "index.html", headers=_ASKED_AGAIN)

    app.mount("/page", _Page(directory=_PAGE), name="page")

    @app.exception_handler(ChgdbError)
    def refuse(_: Request, error: ChgdbError) -> JSONResponse:
        return _answer(status_of(error), str(error))

    @app.exception_handler(RequestValidationError)
    def misunderstand(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        return _answer(400, f"{where}: {first['msg']}")

    @app.exception_handler(HTTPException)
    def tell(_: Request, error: HTTPException) -> JSONResponse:
        return _answer(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    def explain(_: Request, error: Exception) -> JSONResponse:
        return _answer(500, explained(error))

    return Guard(app, host=host, uploads=UPLOADS_PATH, most=most_bytes)


def serve(
    database: Database,
    *,
    host: str,
    port: int,
    most_bytes: int,
    originals: Mapping[str, Path],
    ready: Callable[[str], None],
    browser: bool = False,
) -> None:
    """Serve a store until the process is interrupted.

    Args:
        database: the store.
        host: name or address to bind to.
        port: 0 for any that is free.
        most_bytes: of a file that is sent.
        originals: as of `create_app`.
        ready: called once with the address of the page, which holds the token.
        browser: open the page in the user's browser.

    Raises:
        InputError: host and port cannot be bound to.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = "; --port 0 takes any free port" if taken else ""
        raise InputError(f"{host}:{port}: cannot be listened at ({reason(error)}){hint}") from error
    token = secrets.token_urlsafe(32)
    app = create_app(database, host=host, token=token, most_bytes=most_bytes, originals=originals)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    shown = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host  # noqa: S104 (as the user asked)
    url = f"http://{shown}:{listening.getsockname()[1]}/#token={token}"
    with listening, suppress(KeyboardInterrupt), TemporaryDirectory(prefix="chgdb-page-") as folder:
        ready(url)
        if browser:
            webbrowser.open(_leading_to(url, Path(folder)).as_uri())
        uvicorn.Server(config).run(sockets=[listening])


def _leading_to(url: str, folder: Path) -> Path:
    """A page that leads to an address, which the arguments of the browser would show to others."""
    path = folder / "chgdb.html"
    path.touch(mode=0o600)
    path.write_text(f'<meta http-equiv="refresh" content="0; url={url}">\n', encoding="utf-8")
    return path


class _Page(StaticFiles):
    """The files of the page; browsers ask whether they are still the same, as after an update."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(_ASKED_AGAIN)
        return response


def _answer(status: int, error: str) -> JSONResponse:
    return JSONResponse({"error": one_line(error)}, status)
