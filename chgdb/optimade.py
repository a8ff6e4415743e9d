"""The structures of a store over HTTP, as OPTIMADE 1.2 says (https://specs.optimade.org).

`optimade_routes` gives the routes `/v1/...` and `/versions` of a server. Nothing is held in memory:
a request is one to three queries over the table. Answers are plain dictionaries, which tests hold
against the validator of the package `optimade`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from chgdb import __version__
from chgdb.errors import ChgdbError, QueryError, UnknownIdError
from chgdb.files import brief
from chgdb.optimade_filter import (
    FIELDS,
    SYMBOL_PART,
    UnsupportedFilterError,
    is_foreign,
    known_field,
    parse_filter,
)
from chgdb.query import Condition, count_atoms

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from chgdb.database import Database

__all__ = ["API_VERSION", "MAX_PAGE", "optimade_routes"]

API_VERSION = "1.2.0"

MAX_PAGE = 1000
"""Most structures in one answer."""

_PAGE = 20
_SCHEMA = "https://schemas.optimade.org/openapi/v1.2/optimade.json"
_MEDIA_TYPE = "application/vnd.api+json"

_SERVED = Condition(
    '("lattice" IS NOT NULL AND "species" IS NOT NULL AND "frac_coords" IS NOT NULL)'
)
"""The records that are structures: those of which more is known than a formula."""

_TOP_LEVEL = ("id", "type")
"""Fields that stand beside the attributes."""

_ENTRY_PARAMETERS = frozenset(
    {"response_format", "response_fields", "email_address", "api_hint", "include"}
)
_LIST_PARAMETERS = _ENTRY_PARAMETERS | {"filter", "sort", "page_limit", "page_offset"}


class _HttpError(Exception):
    """An answer that is an error: status, title and one line."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.title = status, title


def optimade_routes(database: Database) -> list[Route]:
    """The routes of an OPTIMADE API over a store, for the root of a server.

    They answer every GET of `/versions`, below `/v1`, and below the paths of other versions, with
    the error that OPTIMADE demands. Their errors are JSON:API.
    """
    from starlette.routing import Route

    endpoints: dict[str, _Endpoint] = {
        "/versions": _versions,
        "/v1/info": _info,
        "/v1/info/structures": _info_structures,
        "/v1/links": _links,
        "/v1/structures": partial(_structures, database),
        "/v1/structures/{id}": partial(_structure, database),
        "/v1": _not_found,
        "/v1/{path:path}": _not_found,
        "/v{version:int}{rest:path}": _other_version,
    }
    return [
        Route(path + slash, _answering(endpoint, database), methods=["GET"])
        for path, endpoint in endpoints.items()
        for slash in ("", "/")
    ]


# --- endpoints ------------------------------------------------------------------------------

_Answer = Mapping[str, Any]
_Endpoint = Callable[["Request"], "_Answer | Response"]


def _answering(endpoint: _Endpoint, database: Database) -> Callable[[Request], Response]:
    """The endpoint of a route: the answer as JSON with its `meta`, errors too."""

    def answer(request: Request) -> Response:
        from starlette.responses import JSONResponse, Response

        status = 200
        try:
            content = endpoint(request)
            if isinstance(content, Response):
                return content
        except (ChgdbError, _HttpError) as error:
            status, title = _status(error)
            content = {"errors": [{"status": str(status), "title": title, "detail": str(error)}]}
        meta = {**_meta(request, database), **content.get("meta", {})}
        return JSONResponse({**content, "meta": meta}, status, media_type=_MEDIA_TYPE)

    return answer


def _status(error: ChgdbError | _HttpError) -> tuple[int, str]:
    if isinstance(error, _HttpError):
        return error.status, error.title
    if isinstance(error, UnsupportedFilterError):
        return 501, "Not Implemented"
    if isinstance(error, UnknownIdError):
        return 404, "Not Found"
    if isinstance(error, QueryError):
        return 400, "Bad Request"
    return 500, "Internal Server Error"


def _meta(request: Request, database: Database) -> dict[str, Any]:
    """What every answer says of itself."""
    path = re.sub(r"^/v[0-9][^/]*", "", request.url.path)
    query = f"?{request.url.query}" if request.url.query else ""
    return {
        "query": {"representation": f"{path}{query}"},
        "api_version": API_VERSION,
        "more_data_available": False,
        "schema": _SCHEMA,
        "time_stamp": _time(datetime.now(UTC)),
        "provider": {
            "name": "chgdb",
            "description": database.info.attribution or "A store of charge densities",
            "prefix": "chgdb",
            "homepage": None,
        },
        "implementation": {"name": "chgdb", "version": __version__},
    }


def _versions(request: Request) -> Response:  # noqa: ARG001 (an endpoint)
    from starlette.responses import Response

    return Response("version\n1\n", headers={"Content-Type": "text/csv; header=present"})


def _info(request: Request) -> _Answer:
    _checked_parameters(request, _ENTRY_PARAMETERS)
    version = {"url": f"{_root(request)}/v1", "version": API_VERSION}
    attributes = {
        "api_version": API_VERSION,
        "available_api_versions": [version],
        "formats": ["json"],
        "available_endpoints": ["info", "links", "structures"],
        "entry_types_by_format": {"json": ["structures"]},
        "is_index": False,
    }
    return {"data": {"id": "/", "type": "info", "attributes": attributes}}


def _info_structures(request: Request) -> _Answer:
    _checked_parameters(request, _ENTRY_PARAMETERS)
    properties = {
        name: {
            "description": field.description,
            "type": field.type,
            "x-optimade-type": field.type,
            "sortable": field.sort_column is not None,
            **({"unit": field.unit} if field.unit else {}),
        }
        for name, field in FIELDS.items()
        if field.served
    }
    data = {
        "id": "structures",
        "type": "info",
        "formats": ["json"],
        "description": "Crystal structures, the properties of the materials, and how well the "
        "store keeps their charge densities",
        "properties": properties,
        "output_fields_by_format": {"json": list(properties)},
    }
    return {"data": data}


def _links(request: Request) -> _Answer:
    _checked_parameters(request, _LIST_PARAMETERS)
    root = {
        "id": "chgdb",
        "type": "links",
        "attributes": {
            "name": "chgdb",
            "description": "This server",
            "base_url": _root(request),
            "homepage": None,
            "link_type": "root",
        },
    }
    return {"data": [root], "meta": {"data_returned": 1, "data_available": 1}}


def _structures(database: Database, request: Request) -> _Answer:
    """One page of the structures that fit a filter."""
    asked = _checked_parameters(request, _LIST_PARAMETERS)
    limit = _whole(asked, "page_limit", _PAGE, least=1)
    offset = _whole(asked, "page_offset", 0)
    if limit > MAX_PAGE:
        raise _HttpError(403, "Forbidden", f"page_limit {limit}: at most {MAX_PAGE} at a time")
    names, warnings = _fields(asked)
    sort, descending = _sorting(asked.get("sort", ""))
    condition, more_warnings = parse_filter(asked.get("filter", ""))
    found = database.select(
        also=_SERVED & condition,
        columns=_columns(names),
        sort=sort,
        descending=descending,
        limit=limit,
        offset=offset,
    )
    available = database.count(also=_SERVED)
    returned = database.count(also=_SERVED & condition) if condition.sql else available
    more = offset + len(found) < returned and len(found) > 0
    following = request.url.include_query_params(page_offset=offset + limit)
    meta = {
        "data_returned": returned,
        "data_available": available,
        "more_data_available": more,
        **_warned([*warnings, *more_warnings]),
    }
    data = [_entry(row, names) for row in found]
    return {"data": data, "links": {"next": str(following) if more else None}, "meta": meta}


def _structure(database: Database, request: Request) -> _Answer:
    """One structure by its id."""
    asked = _checked_parameters(request, _ENTRY_PARAMETERS)
    names, warnings = _fields(asked)
    material_id = request.path_params["id"]
    with_id = _SERVED & Condition('("id" = ?)', (material_id,))
    found = database.select(also=with_id, columns=_columns(names), limit=1).rows()
    if not found:
        raise UnknownIdError(f"no structure {brief(material_id)}")
    return {
        "data": _entry(found[0], names),
        "meta": {"data_returned": 1, **_warned(warnings)},
    }


def _not_found(request: Request) -> _Answer:
    raise _HttpError(404, "Not Found", f"no endpoint {brief(request.url.path)}")


def _other_version(request: Request) -> _Answer:
    path = brief(request.url.path)
    raise _HttpError(553, "Version Not Supported", f"{path}: this server answers below /v1")


# --- requests -------------------------------------------------------------------------------


def _root(request: Request) -> str:
    """The URL of the server."""
    return str(request.base_url).rstrip("/")


def _checked_parameters(request: Request, known: frozenset[str]) -> dict[str, str]:
    """The parameters of a request; those with the prefix of another provider are left out.

    Raises:
        QueryError: one is unknown, or asks for what there is not.
    """
    asked = {k: v for k, v in request.query_params.items() if not is_foreign(k)}
    for name in asked:
        if name not in known:
            raise QueryError(f"no parameter {brief(name)}; there are {', '.join(sorted(known))}")
    if asked.get("response_format", "json") != "json":
        raise QueryError(f"response_format {brief(asked['response_format'])}: there is only json")
    if asked.get("include", "") not in ("", "references"):
        raise QueryError(f"include {brief(asked['include'])}: there is nothing to include")
    return asked


def _whole(asked: Mapping[str, str], name: str, default: int, *, least: int = 0) -> int:
    text = asked.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) or int(text) < least:
        raise QueryError(f"{name} {brief(text)}: give a whole number, {least} or more")
    return int(text)


def _fields(asked: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The fields of an answer, and what its reader should be told.

    Raises:
        QueryError: one is unknown, and not of another provider.
    """
    text = asked.get("response_fields", "")
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        return [name for name, field in FIELDS.items() if field.served], []
    foreign = [name for name in names if is_foreign(name)]
    for name in names:
        if name not in foreign:
            known_field(name)
    return names, [f"no field {brief(name)} here: it is null" for name in foreign]


def _sorting(text: str) -> tuple[str | None, bool]:
    """The column to order by, and whether the largest is first."""
    if not text:
        return None, False
    if "," in text:
        raise QueryError(f"sort {brief(text)}: structures are sorted by one field")
    name = text.removeprefix("-")
    column = known_field(name).sort_column
    if column is None:
        raise QueryError(f"sort {brief(text)}: /v1/info/structures says what is sortable")
    return column, text.startswith("-")


def _columns(names: Sequence[str]) -> list[str]:
    """The columns that some fields are made from."""
    fields = (FIELDS[name] for name in names if name in FIELDS)
    return list(dict.fromkeys(["id", *(column for field in fields for column in field.columns)]))


def _warned(warnings: Sequence[str]) -> dict[str, Any]:
    title = "Unknown field of another provider"
    told = [{"type": "warning", "title": title, "detail": detail} for detail in warnings]
    return {"warnings": told} if told else {}


# --- structures -----------------------------------------------------------------------------

_Row = Mapping[str, Any]


def _entry(row: _Row, names: Sequence[str]) -> dict[str, Any]:
    """A structure as a resource of JSON:API."""
    attributes = {name: _value(row, name) for name in names if name not in _TOP_LEVEL}
    return {"id": row["id"], "type": "structures", "attributes": attributes}


def _value(row: _Row, name: str) -> Any:
    if name not in FIELDS or not FIELDS[name].served:
        return None
    columns = FIELDS[name].columns
    if any(row[column] is None for column in columns):
        return None
    if name in _VALUES:
        return _VALUES[name](row)
    value = row[columns[0]]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ratios(row: _Row) -> list[float]:
    counts = count_atoms(row["reduced_formula"], int)
    return [counts[symbol] / sum(counts.values()) for symbol in sorted(counts)]


def _anonymous_formula(row: _Row) -> str:
    """A2B for TiO2; after Z come Aa, Ba, ... ."""
    counts = Counter(count_atoms(row["reduced_formula"], int)).most_common()
    letters = [chr(65 + i % 26) + (chr(96 + i // 26) if i > 25 else "") for i in range(len(counts))]
    return "".join(
        letter + (str(count) if count > 1 else "")
        for letter, (_, count) in zip(letters, counts, strict=True)
    )


def _positions(row: _Row) -> list[list[float]]:
    """Cartesian positions, Angstrom."""
    lattice = json.loads(row["lattice"])
    return [
        [
            sum(x * vector[axis] for x, vector in zip(atom, lattice, strict=True))
            for axis in range(3)
        ]
        for atom in json.loads(row["frac_coords"])
    ]


def _species(row: _Row) -> list[dict[str, Any]]:
    symbols = sorted(set(json.loads(row["species"])))
    return [{"name": s, "chemical_symbols": [s], "concentration": [1.0]} for s in symbols]


def _symbol(row: _Row) -> str:
    """P 63/m m c for P6_3/mmc."""
    return re.sub(SYMBOL_PART, r" \1", row["spacegroup_symbol"]).replace("_", "")


def _last_modified(row: _Row) -> str | None:
    try:
        return _time(datetime.fromisoformat(row["added"]))
    except ValueError:
        return None


def _time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_VALUES: Mapping[str, Callable[[_Row], Any]] = {
    "last_modified": _last_modified,
    "elements": lambda row: row["elements"].split(","),
    "elements_ratios": _ratios,
    "chemical_formula_anonymous": _anonymous_formula,
    "dimension_types": lambda _: [1, 1, 1],
    "nperiodic_dimensions": lambda _: 3,
    "lattice_vectors": lambda row: json.loads(row["lattice"]),
    "space_group_symbol_hermann_mauguin": _symbol,
    "cartesian_site_positions": _positions,
    "species": _species,
    "species_at_sites": lambda row: json.loads(row["species"]),
    "structure_features": lambda _: [],
}
"""What is not as it stands in a column."""
