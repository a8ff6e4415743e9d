"""The API is held against the validator of the package `optimade`, and against the store."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from chgdb.database import Database
from chgdb.optimade import MAX_PAGE, optimade_routes
from chgdb.optimade_filter import FIELDS, PREFIX

if TYPE_CHECKING:
    from starlette.testclient import TestClient

testclient = pytest.importorskip("starlette.testclient")
validation = pytest.importorskip("optimade.validator")

BASE = "http://testserver/v1"
Entry = dict[str, Any]


def client_of(database: Database) -> TestClient:
    from starlette.applications import Starlette

    client: TestClient = testclient.TestClient(Starlette(routes=optimade_routes(database)))
    return client


@pytest.fixture(scope="module")
def client(template: Path) -> Iterator[TestClient]:
    """Of a store with five structures; nothing changes it."""
    with client_of(Database(template / "store")) as client:
        yield client


def ask(
    client: TestClient, path: str, status: int = 200, /, **parameters: object
) -> dict[str, Any]:
    response = client.get(f"/v1{path}", params={k: str(v) for k, v in parameters.items()})
    assert response.headers["content-type"] == "application/vnd.api+json"
    answer: dict[str, Any] = response.json()
    assert response.status_code == status, answer
    assert answer["meta"]["provider"]["prefix"] == "chgdb"
    return answer


def refused(client: TestClient, path: str, status: int, /, **parameters: object) -> str:
    """The one line of an error."""
    answer = ask(client, path, status, **parameters)
    (error,) = answer["errors"]
    assert error["status"] == str(status)
    assert "data" not in answer
    assert "\n" not in error["detail"]
    return str(error["detail"])


def ids(answer: dict[str, Any]) -> list[str]:
    return [entry["id"] for entry in answer["data"]]


class ValidatorClient:
    """The requests of the validator, to the application in this process."""

    def __init__(self, client: TestClient) -> None:
        self.base_url = BASE
        self.last_request: str | None = None
        self._client = client

    def get(self, request: str) -> Any:
        path = request if request.startswith("/") or not request else f"/{request}"
        self.last_request = request if "://" in request else self.base_url + path
        return self._client.get(self.last_request)


@pytest.mark.filterwarnings("ignore:Accessing the 'model_fields'")  # by optimade
def test_the_validator_is_satisfied(client: TestClient) -> None:
    random.seed(0)  # it chooses what it looks at
    validator = validation.ImplementationValidator(client=ValidatorClient(client), verbosity=-1)
    validator.validate_implementation()
    results = validator.results
    assert validator.valid, results.failure_messages + results.internal_failure_messages
    assert results.optional_failure_messages == []
    assert results.success_count > 30
    assert results.optional_success_count > 5


def test_an_empty_store_is_served(empty: Database) -> None:
    with client_of(empty) as client:
        answer = ask(client, "/structures", filter="nelements = 2")
        assert answer["data"] == []
        assert answer["meta"]["data_available"] == 0
        assert answer["links"]["next"] is None


def test_only_materials_with_a_structure_are_served(database: Database) -> None:
    database.import_materials({"mp-98": {"formula": "H2O", "bulk_modulus": 1.0}})
    assert database.select(columns="id,bulk_modulus", elements="H").values == [("mp-98", 1.0)]
    with client_of(database) as client:
        assert ids(ask(client, "/structures")) == ["mp-1", "mp-2", "mp-3", "mp-4", "mp-5"]
        assert ids(ask(client, "/structures", filter='elements HAS "H"')) == []
        assert ask(client, "/structures")["meta"]["data_available"] == 5
        assert "mp-98" in refused(client, "/structures/mp-98", 404)


def test_a_structure_is_that_of_its_record(client: TestClient, template: Path) -> None:
    adapter = pytest.importorskip("optimade.adapters").Structure
    database = Database(template / "store")
    for entry in ask(client, "/structures")["data"]:
        record = database[entry["id"]]
        atoms = adapter(entry).as_ase
        assert atoms.get_chemical_symbols() == record.atoms.get_chemical_symbols()
        assert atoms.cell.array == pytest.approx(record.atoms.cell.array)
        assert atoms.get_positions() == pytest.approx(record.atoms.get_positions())
        told = entry["attributes"]
        assert told["nsites"] == len(record.atoms) == len(told["species_at_sites"])
        assert told["nelements"] == len(told["elements"]) == len(told["species"])
        assert sum(told["elements_ratios"]) == pytest.approx(1)
        assert datetime.fromisoformat(told["last_modified"]).utcoffset() is not None
        for name in ("bulk_modulus", "band_gap", "is_metal"):
            assert told[PREFIX + name] == record.properties.get(name)


@pytest.mark.parametrize(
    ("material_id", "formulas"),
    [
        ("mp-1", ("TiO2", "O2Ti", "A2B", [2 / 3, 1 / 3])),
        ("mp-2", ("Si", "Si", "A", [1.0])),
        ("mp-5", ("SrTiO3", "O3SrTi", "A3BC", [0.6, 0.2, 0.2])),
    ],
)
def test_formulas(client: TestClient, material_id: str, formulas: tuple[object, ...]) -> None:
    told = ask(client, f"/structures/{material_id}")["data"]["attributes"]
    names = ("descriptive", "reduced", "anonymous")
    found = (*(told[f"chemical_formula_{name}"] for name in names), told["elements_ratios"])
    assert found == formulas


@pytest.mark.parametrize(
    ("symbol", "told"),
    [
        ("P6_3/mmc", "P 63/m m c"),
        ("P2_12_12_1", "P 21 21 21"),
        ("Fm-3m", "F m -3 m"),
        ("P-1", "P -1"),
        ("I4_1/amd", "I 41/a m d"),
        ("P-42_1m", "P -4 21 m"),
    ],
)
def test_symbols_of_space_groups_are_written_with_spaces(symbol: str, told: str) -> None:
    from chgdb.optimade import _VALUES

    name = "space_group_symbol_hermann_mauguin"
    assert _VALUES[name]({"spacegroup_symbol": symbol}) == told


def literal(value: object) -> str:
    if isinstance(value, bool):
        return str(value).upper()
    return json.dumps(value)


def test_filters_ask_for_what_is_served(client: TestClient) -> None:
    """Every value of every field finds just the entries with this value."""
    entries = ask(client, "/structures")["data"]
    asked = 0

    def found(filter_: str) -> list[str]:
        return ids(ask(client, "/structures", filter=filter_, response_fields="id"))

    for name, field in FIELDS.items():
        values = {
            entry["id"]: entry.get(name)
            if name in ("id", "type")
            else entry["attributes"].get(name)
            for entry in entries
        }
        assert found(f"{name} IS UNKNOWN") == [
            id_ for id_, value in values.items() if value is None
        ], name
        if field.type == "list":
            for length in {len(v) for v in values.values() if v is not None}:
                assert found(f"{name} LENGTH {length}") == [
                    k for k, v in values.items() if v is not None and len(v) == length
                ]
        if field.type == "list" and field.items is None:
            continue
        distinct = sorted({json.dumps(value) for value in values.values()})
        for value in map(json.loads, distinct[:1] if name.startswith(PREFIX) else distinct):
            if value is None or value == []:
                continue
            word = "HAS ALL" if field.type == "list" else "="
            texts = map(literal, value if isinstance(value, list) else [value])
            expected = [
                id_
                for id_, other in values.items()
                if (set(other or []) >= set(value) if field.type == "list" else other == value)
            ]
            assert found(f"{name} {word} {','.join(texts)}") == expected, name
            asked += 1
    assert asked > 60


@pytest.mark.parametrize("parameters", [{}, {"filter": "nelements > 1"}, {"sort": "-nelements"}])
def test_pages_hold_everything_once(client: TestClient, parameters: dict[str, str]) -> None:
    whole = ids(ask(client, "/structures", **parameters))
    url: str | None = f"{BASE}/structures"
    answer = ask(client, "/structures", page_limit=2, **parameters)
    seen = []
    while url:
        assert answer["meta"]["data_returned"] == len(whole)
        assert len(answer["data"]) <= 2
        seen += ids(answer)
        url = answer["links"]["next"]
        assert bool(url) == answer["meta"]["more_data_available"]
        if url:
            assert url.startswith(BASE)
            answer = client.get(url).json()
    assert seen == whole
    assert len(set(seen)) == len(seen) > 1


def test_beyond_the_last_page_is_nothing(client: TestClient) -> None:
    answer = ask(client, "/structures", page_offset=10**15 - 1)
    assert answer["data"] == []
    assert answer["links"]["next"] is None
    assert not answer["meta"]["more_data_available"]


def test_sorting(client: TestClient) -> None:
    up = ask(client, "/structures", sort=f"{PREFIX}bulk_modulus")
    down = ask(client, "/structures", sort=f"-{PREFIX}bulk_modulus")
    assert ids(up) == ["mp-3", "mp-2", "mp-4", "mp-1", "mp-5"]
    assert ids(down) == ["mp-1", "mp-4", "mp-2", "mp-3", "mp-5"]
    for field in ("elements", "chemical_formula_anonymous", "nsites,id", "-assemblies"):
        assert "sort" in refused(client, "/structures", 400, sort=field)
    properties = ask(client, "/info/structures")["data"]["properties"]
    for name, told in properties.items():
        ask(client, "/structures", 200 if told["sortable"] else 400, sort=name)


def test_only_the_fields_asked_for(client: TestClient) -> None:
    fields = f"nsites,{PREFIX}bulk_modulus,assemblies,_exmpl_x,id"
    answer = ask(client, "/structures/mp-1", response_fields=fields)
    assert answer["data"] == {
        "id": "mp-1",
        "type": "structures",
        "attributes": {
            "nsites": 3,
            f"{PREFIX}bulk_modulus": 200.0,
            "assemblies": None,
            "_exmpl_x": None,
        },
    }
    (warning,) = answer["meta"]["warnings"]
    assert warning["type"] == "warning"
    assert "_exmpl_x" in warning["detail"]
    assert "no field" in refused(client, "/structures", 400, response_fields="nsites,crazy")
    assert "no field" in refused(client, "/structures", 400, response_fields=f"{PREFIX}crazy")


def test_fields_of_others_are_warned_of(client: TestClient) -> None:
    answer = ask(client, "/structures", filter='_exmpl_x = 2 OR id = "mp-1"')
    assert ids(answer) == ["mp-1"]
    assert "_exmpl_x" in answer["meta"]["warnings"][0]["detail"]
    assert "warnings" not in ask(client, "/structures")["meta"]


@pytest.mark.parametrize(
    ("path", "status", "parameters", "message"),
    [
        ("/structures", 400, {"filter": "crazyfield = 2"}, "no field"),
        ("/structures", 400, {"filter": "nelements ="}, "cannot be read"),
        ("/structures", 501, {"filter": 'nelements = "2"'}, "cannot compare"),
        ("/structures", 400, {"page_limit": 0}, "page_limit '0'"),
        ("/structures", 400, {"page_limit": "1e3"}, "page_limit"),
        ("/structures", 400, {"page_limit": -1}, "page_limit"),
        ("/structures", 400, {"page_offset": "٣"}, "page_offset"),
        ("/structures", 400, {"page_offset": "9" * 40}, "page_offset"),
        ("/structures", 403, {"page_limit": MAX_PAGE + 1}, "at most 1000"),
        ("/structures", 400, {"response_format": "xml"}, "there is only json"),
        ("/structures", 400, {"include": "calculations"}, "nothing to include"),
        ("/structures", 400, {"page_number": 2}, "no parameter 'page_number'"),
        ("/structures/mp-1", 400, {"filter": "nsites=1"}, "no parameter 'filter'"),
        ("/structures/mp-77", 404, {}, "no structure 'mp-77'"),
        ("/structures/..%2F..%2Fchgdb.json", 404, {}, "no endpoint"),
        ("/structures/" + "x" * 4000, 404, {}, "no structure"),
        ("/structures/%00", 404, {}, "no structure"),
        ("/versions", 404, {}, "no endpoint"),
        ("/calculations", 404, {}, "no endpoint"),
        ("/info/calculations", 404, {}, "no endpoint"),
    ],
)
def test_errors_are_one_line(
    client: TestClient, path: str, status: int, parameters: dict[str, object], message: str
) -> None:
    assert message in refused(client, path, status, **parameters)


@pytest.mark.parametrize("path", ["/v0/info", "/v2/structures", "/v1.7/info", "/v123123/info"])
def test_other_versions_are_553(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 553
    assert "below /v1" in response.json()["errors"][0]["detail"]


def test_parameters_of_others_and_hints_are_taken(client: TestClient) -> None:
    for parameters in ({"_exmpl_key": "x"}, {"api_hint": "v7.3"}, {"email_address": "a@b.c"}):
        assert ask(client, "/structures", include="", response_format="json", **parameters)["data"]
        assert ask(client, "/info", **parameters)["data"]


def test_a_slash_at_the_end_changes_nothing(client: TestClient) -> None:
    for path in ("/structures", "/structures/mp-1", "/info", "/info/structures", "/links"):
        assert ask(client, path)["data"] == ask(client, f"{path}/")["data"]


def test_versions_is_a_table(client: TestClient) -> None:
    response = client.get("/versions")
    assert response.text == "version\n1\n"
    assert response.headers["content-type"].replace(" ", "") == "text/csv;header=present"


def test_fields_are_described(client: TestClient) -> None:
    data = ask(client, "/info/structures")["data"]
    modulus = data["properties"][f"{PREFIX}bulk_modulus"]
    assert modulus["unit"] == "GPa"
    assert modulus["type"] == "float"
    assert "Voigt-Reuss-Hill" in modulus["description"]
    served = ask(client, "/structures/mp-1")["data"]["attributes"]
    assert set(data["properties"]) == {*served, "id", "type"}
    assert data["output_fields_by_format"]["json"] == list(data["properties"])


def test_the_answer_says_what_was_asked(client: TestClient) -> None:
    meta = ask(client, "/structures", filter="nsites<3", page_limit=1)["meta"]
    assert re.fullmatch(
        r"/structures\?filter=nsites.*3&page_limit=1", meta["query"]["representation"]
    )
    assert meta["data_available"] == 5
    assert meta["data_returned"] == 3


def test_a_damaged_store_is_500(store: Path) -> None:
    with client_of(Database(store)) as client:
        for part in (store / "materials").glob("*.parquet"):
            part.write_bytes(b"PAR1")
        assert "damaged" in refused(client, "/structures", 500)
