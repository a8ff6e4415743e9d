"""The HTTP interface of the web page, for notebooks too: each path one call of the library."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect

from chgdb import __version__
from chgdb.answers import (
    AddRequest,
    ColumnAnswer,
    DensityErrors,
    ErrorAnswer,
    MaterialAnswer,
    PageAnswer,
    PlaneAnswer,
    ReportAnswer,
    SimilarAnswer,
    StoreAnswer,
    UploadAnswer,
)
from chgdb.distributions import Distributions, distributions
from chgdb.errors import (
    ChgdbError,
    InputError,
    MissingExtraError,
    NotKnownError,
    QueryError,
    UnknownIdError,
)
from chgdb.export import (
    DENSITY_SUFFIXES,
    STRUCTURE_SUFFIXES,
    json_ready,
    write_structure,
)
from chgdb.files import brief, reason
from chgdb.filters import NO_SOURCE, RANGES, Conditions
from chgdb.planes import parse_miller
from chgdb.schema import CRYSTAL_SYSTEMS, SEARCHABLE, SOURCES, check_id
from chgdb.subjects import Subject, Subjects
from chgdb.uploads import STEPS, Upload, Uploads

if TYPE_CHECKING:
    from chgdb.database import Database

__all__ = ["UPLOADS_PATH", "make_api", "status_of"]

UPLOADS_PATH = "/api/uploads"
"""Where files are sent."""

_MOST_ROWS = 1000
_MOST_SIMILAR = 100

_FORMATS = {"CHGCAR": "chgcar"} | {
    name: name for name in (*DENSITY_SUFFIXES, *STRUCTURE_SUFFIXES) if name != "chgcar"
}
"""Format by the last part of the path of a file; a CHGCAR is written large."""

_Text = Annotated[str, Query(max_length=20_000)]
_Points = Annotated[int, Query(description="along the longest axis")]

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "Something cannot be understood or used"},
    403: {"model": ErrorAnswer, "description": "Another origin, or no token"},
    404: {"model": ErrorAnswer, "description": "No such material or file"},
    413: {"model": ErrorAnswer, "description": "More bytes than allowed"},
    500: {"model": ErrorAnswer, "description": "The store is damaged"},
    "default": {"model": ErrorAnswer, "description": "Anything else that went wrong"},
}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_BODY = {"required": True, "content": {"application/octet-stream": _BYTES}}


def make_api(
    database: Database,
    uploads: Uploads,
    *,
    token: str,
    most_bytes: int,
    originals: Mapping[str, Path],
) -> APIRouter:
    """The paths below /api.

    Args:
        database: the store.
        uploads: the files that are sent.
        token: what adding to the store asks for.
        most_bytes: of a file that is sent.
        originals: density files by the SHA-256 by which records name their sources.
    """
    router = APIRouter(prefix="/api", responses=_ERRORS)
    subjects = Subjects()

    def stored(material_id: str) -> Subject:
        record = database[check_id(material_id)]
        return Subject(record, originals.get(record.row["source_sha256"]))

    def sent(upload_id: str) -> Subject:
        upload = uploads.get(upload_id)
        if upload.examined is None:
            raise InputError(f"{upload.name}: not read yet")
        examined = upload.examined
        return Subject(examined.record, upload.path, examined.suggested_id, upload.species)

    @router.get("/store")
    def store() -> StoreAnswer:
        """The store, and what can be asked of it."""
        return StoreAnswer(
            version=__version__,
            records=len(database),
            materials_with_density=database.count(where="source IS NOT NULL"),
            place=str(database.place),
            attribution=database.info.attribution,
            encoder=database.info.encoder.id,
            sources=[*SOURCES, NO_SOURCE],
            crystal_systems=list(CRYSTAL_SYSTEMS),
            columns=[
                ColumnAnswer(name=c.name, type=c.type, unit=c.unit, description=c.description)
                for c in SEARCHABLE.values()
            ],
            ranges=list(RANGES),
            max_upload_bytes=most_bytes,
            writable=database.is_writable,
            originals=bool(originals),
        )

    @router.get("/summary")
    def summary() -> dict[str, Any]:
        """What the store holds, as `chgdb info` prints it."""
        return database.summary()

    @router.get("/materials")
    def materials(
        conditions: Annotated[Conditions, Depends(_conditions)],
        columns: _Text = "id,formula",
        sort: _Text = "",
        offset: int = 0,
        limit: Annotated[int, Query(ge=0, le=_MOST_ROWS)] = 200,
    ) -> PageAnswer:
        """Some of the records that fit, as `chgdb search` finds them."""
        found = database.select(
            columns=columns,
            sort=sort.removeprefix("-") or None,
            descending=sort.startswith("-"),
            offset=offset,
            limit=limit,
            **conditions,
        )
        return PageAnswer(
            total=database.count(**conditions),
            offset=offset,
            columns=list(found.columns),
            rows=[list(row) for row in found.values],
        )

    @router.get("/distributions")
    def distributed(conditions: Annotated[Conditions, Depends(_conditions)]) -> Distributions:
        """Properties and crystal systems of the records that fit, beside all."""
        return distributions(database, **conditions)

    @router.get("/materials/{material_id}")
    def material(material_id: str) -> MaterialAnswer:
        """One material: what is known of it, and what is predicted."""
        subject = stored(material_id)
        record = subject.record
        return MaterialAnswer(
            id=record.id,
            record=json_ready(record.row),
            properties=record.properties,
            predicted=record.predicted,
            sources=subject.sources,
            errors=_errors(subject),
        )

    @router.get("/materials/{material_id}/similar")
    def similar(
        material_id: str, n: Annotated[int, Query(ge=1, le=_MOST_SIMILAR)] = 8
    ) -> SimilarAnswer:
        """The materials whose densities are most like that of one."""
        return SimilarAnswer(rows=stored(material_id).record.nearest(n).rows())

    @router.post("/uploads", status_code=202, openapi_extra={"requestBody": _BODY})
    async def upload(
        request: Request,
        name: Annotated[str, Query(max_length=1000)],
        species: Annotated[
            str, Query(description="Ti,O: for a CHGCAR that does not name its elements")
        ] = "",
    ) -> UploadAnswer:
        """Send a density file, as the body; it is read and examined, which `GET` of it follows."""
        coming = uploads.expect(name, species.replace(",", " ").split())
        try:
            with coming.path.open("wb") as file:
                async for chunk in request.stream():
                    file.write(chunk)
            uploads.examine(coming)
        except OSError as error:
            uploads.forget(coming)
            raise InputError(f"{coming.name}: cannot be kept ({reason(error)})") from error
        except ClientDisconnect as error:
            uploads.forget(coming)
            raise InputError(f"{coming.name}: did not come whole") from error
        except BaseException:
            uploads.forget(coming)
            raise
        return _told(coming)

    @router.get("/uploads/{upload_id}")
    def uploaded(upload_id: str) -> UploadAnswer:
        """A file that was sent: how far it is, and what was found out."""
        return _told(uploads.get(upload_id))

    @router.delete("/uploads/{upload_id}", status_code=204)
    def forget(upload_id: str) -> None:
        """Stop working on a file and remove it."""
        uploads.forget(uploads.get(upload_id))

    @router.post("/uploads/{upload_id}/add", status_code=202)
    def add(
        upload_id: str, wanted: AddRequest, x_chgdb_token: Annotated[str, Header()] = ""
    ) -> UploadAnswer:
        """Add a file to the store; asks for the token that `chgdb ui` printed."""
        if not hmac.compare_digest(x_chgdb_token.encode(), token.encode()):
            raise HTTPException(403, "adding needs the token in the address that chgdb ui printed")
        found = uploads.get(upload_id)
        uploads.add(found, check_id(wanted.id), wanted.on_conflict)
        return _told(found)

    def about(prefix: str, find: Callable[[str], Subject]) -> None:
        """The paths that stored materials and files have in common."""

        @router.get(
            f"{prefix}/field",
            response_class=Response,
            responses={200: {"content": {"application/octet-stream": _BYTES}}},
        )
        def field(subject_id: str, source: _Text = "payload", points: _Points = 64) -> Response:
            """A density: float32, little-endian, e/A^3, along c fastest; periodic."""
            found = subjects.field(find(subject_id), source, points)
            headers = {
                "X-Chgdb-Grid": ",".join(map(str, found.values.shape)),
                "X-Chgdb-Origin": found.origin.encode("ascii", "replace").decode(),
            }
            if found.nmae is not None:
                headers["X-Chgdb-Nmae"] = f"{found.nmae:.6g}"
            content = np.ascontiguousarray(found.values, dtype="<f4").tobytes()
            return Response(content, media_type="application/octet-stream", headers=headers)

        @router.get(f"{prefix}/plane")
        def plane(
            subject_id: str,
            miller: _Text = "c",
            at: float = 0.0,
            sources: _Text = "payload",
            points: _Points = 240,
        ) -> PlaneAnswer:
            """Densities in a lattice plane, and the atoms near it."""
            asked = [word.strip() for word in sources.split(",") if word.strip()]
            made = subjects.plane(find(subject_id), asked, parse_miller(miller), at, points)
            return PlaneAnswer(**made)

        @router.get(
            f"{prefix}/files/{{name}}",
            response_class=Response,
            responses={
                200: {"content": {"application/octet-stream": _BYTES, "application/json": {}}}
            },
        )
        def file(subject_id: str, name: str) -> Response:
            """A file to download: CHGCAR, cube, npz, cif, poscar or json."""
            return _download(find(subject_id), name)

    about("/materials/{subject_id}", stored)
    about("/uploads/{subject_id}", sent)
    return router


def status_of(error: ChgdbError) -> int:
    """The HTTP status that says what kind of error it is."""
    if isinstance(error, UnknownIdError | NotKnownError):
        return 404
    if isinstance(error, InputError | MissingExtraError):
        return 400
    return 500


def _conditions(
    request: Request,
    formula: _Text = "",
    elements: _Text = "",
    exclude: _Text = "",
    chemsys: _Text = "",
    nelements: _Text = "",
    spacegroup: _Text = "",
    crystal_system: _Text = "",
    source: _Text = "",
    where: _Text = "",
    range: Annotated[  # noqa: A002 (as the page says it)
        list[str], Query(description="COLUMN=LOW:HIGH, for each range")
    ] = [],  # noqa: B006 (FastAPI copies it)
) -> Conditions:
    """The filters of a search; what is empty asks for nothing."""
    for name in request.query_params:
        if name not in _PARAMETERS:
            known = ", ".join(sorted(_PARAMETERS))
            raise QueryError(f"no parameter {brief(name)}; there are {known}")
    return {
        "formula": formula.strip() or None,
        "elements": elements,
        "exclude": exclude,
        "chemsys": chemsys.strip() or None,
        "nelements": nelements.strip() or None,
        "spacegroup": spacegroup.strip() or None,
        "crystal_system": crystal_system.strip() or None,
        "source": source.strip() or None,
        "ranges": dict(_range(text) for text in range),
        "where": where.strip() or None,
    }


_PARAMETERS = {*signature(_conditions).parameters} - {"request"} | {
    "columns",
    "sort",
    "offset",
    "limit",
}


def _range(text: str) -> tuple[str, str]:
    name, is_range, bounds = text.partition("=")
    if not is_range:
        raise QueryError(f"range {brief(text)}: write COLUMN=LOW:HIGH")
    return name.strip(), bounds.strip()


def _errors(subject: Subject) -> dict[str, DensityErrors]:
    return {source: DensityErrors(**error) for source, error in subject.errors.items()}


def _told(upload: Upload) -> UploadAnswer:
    examined = upload.examined
    report = None
    if examined:
        subject = Subject(examined.record, upload.path)
        row = {**examined.record.row, "id": examined.suggested_id, "source_file": upload.name}
        report = ReportAnswer(
            formula=row["formula"],
            record=json_ready(row),
            sources=subject.sources,
            errors=_errors(subject),
            predicted=examined.predicted,
            predicted_error=examined.predicted_error,
            similar=examined.similar,
            similar_error=examined.similar_error,
            stored_as=examined.stored_as,
        )
    return UploadAnswer(
        id=upload.id,
        name=upload.name,
        bytes=upload.size,
        state=upload.state,
        step=STEPS[min(upload.done, len(STEPS) - 1)],
        done=upload.done,
        steps=len(STEPS),
        error=upload.error,
        report=report,
        adding=upload.adding,
        added=upload.added,
        add_error=upload.add_error,
    )


def _download(subject: Subject, name: str) -> Response:
    """A record as a file; it is written to a folder that goes away when it has been sent."""
    record, id_ = subject.record, check_id(subject.name)
    if name == "json":
        return JSONResponse(
            {**record.to_dict(), "id": id_},
            headers={"Content-Disposition": f'attachment; filename="{id_}.json"'},
        )
    format_ = _FORMATS.get(name)
    if format_ is None:
        raise InputError(f"no file {brief(name)}; there are {', '.join([*_FORMATS, 'json'])}")
    suffix = DENSITY_SUFFIXES.get(format_) or STRUCTURE_SUFFIXES[format_]
    with _kept_folder() as folder:
        path = Path(folder.name) / f"{id_}{suffix}"
        if format_ in DENSITY_SUFFIXES:
            replace(record.density(), id=id_).write(path, format_)
        else:
            write_structure(path, record.structure, format_, comment=id_)
        return FileResponse(
            path,
            media_type="application/octet-stream",
            filename=path.name,
            background=BackgroundTask(folder.cleanup),
        )


@contextmanager
def _kept_folder() -> Iterator[TemporaryDirectory[str]]:
    """A temporary folder that stays, unless the block fails."""
    folder: TemporaryDirectory[str] = TemporaryDirectory(prefix="chgdb-file-")
    try:
        yield folder
    except BaseException:
        folder.cleanup()
        raise
