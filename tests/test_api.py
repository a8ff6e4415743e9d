"""The HTTP interface: what each path answers is what the library says."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from conftest import ROOT

from chgdb.database import Database
from chgdb.formats import file_sha256, read_density

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from chgdb.web import create_app

MGO = ROOT / "examples" / "MgO.CHGCAR.xz"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    path = tmp_path_factory.mktemp("api") / "store"
    shutil.copytree(ROOT / "store", path, ignore=shutil.ignore_patterns(".lock*"))
    return Database(path, device="cpu")


@pytest.fixture(scope="module")
def client(database: Database) -> Iterator[TestClient]:
    app = create_app(
        database,
        token="the token",
        most_bytes=3 * 10**6,
        originals={file_sha256(MGO): MGO},
    )
    with TestClient(app, base_url="http://127.0.0.1") as made:
        yield made


def get(client: TestClient, path: str, **parameters: Any) -> Any:
    answer = client.get(f"/api/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_store(client: TestClient, database: Database) -> None:
    told = get(client, "store")
    assert told["records"] == len(database)
    assert told["materials_with_density"] == database.count(where="source IS NOT NULL")
    assert told["attribution"] == database.info.attribution
    assert told["writable"] is True
    assert told["place"] == str(database.place)
    assert get(client, "summary") == json.loads(json.dumps(database.summary()))
    assert {"name": "bulk_modulus", "type": "real", "unit": "GPa"}.items() <= told["columns"][
        [column["name"] for column in told["columns"]].index("bulk_modulus")
    ].items()


def test_pages_of_a_search(client: TestClient, database: Database) -> None:
    filters = {"elements": "O", "where": "bulk_modulus > 150", "range": ["volume=:80"]}
    columns = "id,formula,bulk_modulus,predicted_bulk_modulus"
    found = get(client, "materials", **filters, columns=columns, sort="-bulk_modulus", limit=7)
    frame = database.search(
        elements="O", where="bulk_modulus > 150", ranges={"volume": ":80"}, columns=columns,
        sort="bulk_modulus", descending=True,
    )  # fmt: skip
    assert found["total"] == len(frame) > 7
    assert found["columns"] == columns.split(",")
    rows = list(found["rows"])
    while len(rows) < found["total"]:
        page = get(
            client, "materials", **filters, columns=columns, sort="-bulk_modulus", limit=7,
            offset=len(rows),
        )  # fmt: skip
        assert page["offset"] == len(rows)
        rows += page["rows"]
    assert [row[0] for row in rows] == frame["id"].tolist()
    assert rows[0][2] == frame["bulk_modulus"][0]


def test_distributions_of_a_search(client: TestClient, database: Database) -> None:
    told = get(client, "distributions", crystal_system="cubic")
    assert told["selected"] == database.count(crystal_system="cubic")
    assert len(told["histograms"]) == 5
    assert sum(s["selected"] for s in told["crystal_systems"]) == told["selected"]


def test_a_material(client: TestClient, database: Database) -> None:
    told = get(client, "materials/mp-149")
    record = database["mp-149"]
    assert told["record"]["lattice"] == record.structure.lattice.tolist()
    assert told["properties"] == record.properties
    assert told["predicted"] == record.predicted
    assert told["sources"] == ["payload", "latent"]
    assert told["errors"]["latent"]["nmae"] == record.row["latent_nmae"]
    assert (
        get(client, "materials/mp-149/similar", n=3)["rows"] == database.nearest("mp-149", 3).rows()
    )


def test_neighbours_are_those_of_the_material_whatever_files_are_here(
    client: TestClient, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = database.nearest("mp-149", 3).rows()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mp-149").write_text("a file of the same name", encoding="utf-8")
    assert get(client, "materials/mp-149/similar", n=3)["rows"] == expected


def test_a_material_without_a_density(client: TestClient, database: Database) -> None:
    (bare,) = database.select(source="none", where="n_atoms IS NULL", columns="id", limit=1).values[
        0
    ]
    told = get(client, f"materials/{bare}")
    assert told["sources"] == []
    assert told["record"]["lattice"] is None
    assert told["predicted"]
    for path in ("files/CHGCAR", "files/cif", "plane", "field"):
        answer = client.get(f"/api/materials/{bare}/{path}")
        assert answer.status_code == 404
        assert bare in answer.json()["error"]


@pytest.mark.parametrize("source", ["payload", "latent"])
def test_a_field(client: TestClient, database: Database, source: str) -> None:
    answer = client.get("/api/materials/mp-149/field", params={"source": source, "points": 12})
    grid = tuple(map(int, answer.headers["x-chgdb-grid"].split(",")))
    values = np.frombuffer(answer.content, "<f4").reshape(grid)
    record = database["mp-149"]
    assert values.mean() * record.structure.volume == pytest.approx(
        record.row["n_electrons"], rel=1e-5
    )
    assert answer.headers["x-chgdb-nmae"] == f"{record.row[f'{source}_nmae']:.6g}"


def test_a_plane(client: TestClient, database: Database) -> None:
    told = get(client, "materials/mp-149/plane", miller="c", sources="payload,latent", points=48)
    fields = {
        field["source"]: np.frombuffer(base64.b64decode(field["values"]), "<f4").reshape(
            told["shape"]
        )
        for field in told["fields"]
    }
    assert told["basis"] == np.eye(3).tolist()
    for source, values in fields.items():
        density = database["mp-149"].density(source=source)
        step = density.grid[0] // 12
        expected = density.values[::step, ::step, 0]
        np.testing.assert_allclose(values[::4, ::4], expected, atol=1e-6)
    assert not np.allclose(fields["payload"], fields["latent"], atol=1e-4)


@pytest.mark.parametrize("name", ["CHGCAR", "cube", "npz"])
def test_a_density_to_download(
    client: TestClient, database: Database, tmp_path: Path, name: str
) -> None:
    answer = client.get(f"/api/materials/mp-149/files/{name}")
    assert "attachment" in answer.headers["content-disposition"]
    path = tmp_path / "file"
    path.write_bytes(answer.content)
    expected = database["mp-149"].density()
    if name == "cube":
        values, atoms = ase.io.cube.read_cube_data(StringIO(answer.text))
        assert atoms.get_chemical_symbols() == ["Si", "Si"]
        assert values.shape == expected.grid
    else:
        density, _ = read_density(path)
        np.testing.assert_allclose(density.values, expected.values, rtol=1e-6)


def test_a_structure_and_a_record_to_download(client: TestClient, database: Database) -> None:
    answer = client.get("/api/materials/mp-149/files/cif")
    (atoms,) = ase.io.read(StringIO(answer.text), ":", format="cif")
    assert atoms.get_chemical_formula() == "Si2"
    told = client.get("/api/materials/mp-149/files/json").json()
    assert told == json.loads(json.dumps(database["mp-149"].to_dict()))
    assert told["predicted"]["model"] == "properties-1"


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("materials?where=bulk_modulos > 1", 400, "bulk_modulus"),
        ("materials?elements=Xx", 400, "Xx"),
        ("materials?element=Ti", 400, "no parameter 'element'; there are chemsys, columns"),
        ("distributions?nelement=1", 400, "no parameter 'nelement'"),
        ("materials?range=volume", 400, "COLUMN=LOW:HIGH"),
        ("materials?range=formula=1:2", 400, "range needs a column of numbers"),
        ("materials?columns=nothing", 400, "no column"),
        ("materials?columns=", 400, "no columns to show"),
        ("materials?offset=-1", 400, "offset -1"),
        ("materials?limit=9999999", 400, "limit: "),
        ("materials?limit=x", 400, "limit: "),
        ("materials?sort=nothing", 400, "no column"),
        ("distributions?spacegroup=999", 400, "no space group"),
        ("materials/mp-14900000", 404, "nearest: "),
        ("materials/..%2F..%2Fetc%2Fpasswd", 404, ""),
        ("materials/%2e%2e", 400, "cannot be a material id"),
        ("materials/mp-149/field?source=/etc/passwd", 400, "no density from"),
        ("materials/mp-149/field?points=100000", 400, "points 100000"),
        ("materials/mp-149/plane?miller=0,0,0", 400, "Miller indices"),
        ("materials/mp-149/plane?at=nan", 400, "position nan"),
        ("materials/mp-149/plane?sources=payload,nothing", 400, "no density from 'nothing'"),
        ("materials/mp-149/files/..%2f..%2fchgdb.json", 404, ""),
        ("materials/mp-149/files/exe", 400, "no file 'exe'; there are"),
        ("materials/mp-149/similar?n=0", 400, "n: "),
        ("uploads/nothing", 404, "drop it again"),
        ("nothing", 404, "Not Found"),
    ],
)
def test_every_failure_is_one_line(client: TestClient, path: str, status: int, error: str) -> None:
    answer = client.get(f"/api/{path}")
    assert answer.status_code == status
    told = answer.json()
    assert list(told) == ["error"]
    assert error in told["error"]
    assert "\n" not in told["error"]


# ---------------------------------------------------------------------- files that are sent


def send(client: TestClient, name: str, content: bytes) -> dict[str, Any]:
    answer = client.post("/api/uploads", params={"name": name}, content=content)
    assert answer.status_code == 202, answer.text
    return followed(client, answer.json()["id"])


def followed(client: TestClient, upload_id: str) -> dict[str, Any]:
    end = time.monotonic() + 120
    while True:
        told: dict[str, Any] = get(client, f"uploads/{upload_id}")
        if told["state"] in ("done", "failed") and not told["adding"]:
            return told
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_file_is_sent_looked_at_and_added(
    client: TestClient, database: Database, tmp_path: Path
) -> None:
    told = send(client, "MgO.CHGCAR.xz", MGO.read_bytes())
    assert told["state"] == "done"
    assert told["bytes"] == MGO.stat().st_size
    report = told["report"]
    assert (report["formula"], report["record"]["id"]) == ("MgO", "MgO")
    assert report["errors"]["payload"]["nmae"] < 0.1
    assert report["sources"] == ["original", "payload", "latent"]
    assert report["similar"][0]["formula"] == "MgO"
    assert set(database["mp-149"].predicted) <= set(report["predicted"])
    upload = f"uploads/{told['id']}"
    plane = get(client, f"{upload}/plane", sources="original,latent", points=16)
    assert [field["nmae"] for field in plane["fields"]] == [
        None,
        report["errors"]["latent"]["nmae"],
    ]
    (tmp_path / "CHGCAR").write_bytes(client.get(f"/api/{upload}/files/CHGCAR").content)
    assert read_density(tmp_path / "CHGCAR")[0].structure.formula == "MgO"
    answer = client.get(f"/api/{upload}/files/json")
    assert answer.headers["content-disposition"].endswith('"MgO.json"')
    assert answer.json()["id"] == "MgO"

    for token in (b"", b"the wrong one", "é".encode()):
        answer = client.post(
            f"/api/{upload}/add", json={"id": "my-1"}, headers={b"X-Chgdb-Token": token}
        )
        assert answer.status_code == 403
        assert "token" in answer.json()["error"]
    assert "my-1" not in database
    headers = {"X-Chgdb-Token": "the token"}
    wrongs: list[Any] = [{"id": "../x"}, {"id": "a", "on_conflict": "explode"}, {}, []]
    for wrong in wrongs:
        answer = client.post(f"/api/{upload}/add", json=wrong, headers=headers)
        assert answer.status_code == 400
    answer = client.post(f"/api/{upload}/add", json={"id": "my-1"}, headers=headers)
    assert answer.status_code == 202
    assert followed(client, told["id"])["added"] == "my-1"
    added = get(client, "materials/my-1")
    assert added["record"]["formula"] == "MgO"
    assert added["sources"] == ["original", "payload", "latent"]  # the file is among the originals
    fields = get(client, "materials/my-1/plane", sources="original", points=16)["fields"]
    assert fields[0]["values"] == plane["fields"][0]["values"]
    assert client.delete(f"/api/{upload}").status_code == 204
    assert client.get(f"/api/{upload}").status_code == 404


def test_a_broken_file_is_told_of(client: TestClient) -> None:
    told = send(client, "<b>broken</b>.gz", b"\x1f\x8b nothing")
    assert (told["state"], told["report"]) == ("failed", None)
    assert told["error"]
    answer = client.get(f"/api/uploads/{told['id']}/field")
    assert answer.status_code == 400
    assert "not read yet" in answer.json()["error"]


def test_a_file_has_a_largest_size(client: TestClient) -> None:
    for content in (b"x" * (3 * 10**6 + 1), iter([b"x" * 10**6] * 4)):
        answer = client.post("/api/uploads", params={"name": "a"}, content=content)
        assert answer.status_code == 413
        assert "--max-upload" in answer.json()["error"]
