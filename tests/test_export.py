"""Records as files of other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ase.io
import duckdb
import numpy as np
import pandas as pd
import pytest

from chgdb import export
from chgdb.database import Database
from chgdb.errors import InputError, QueryError, StoreError
from chgdb.export import write_structure


def test_csv(database: Database, tmp_path: Path) -> None:
    assert database.export(tmp_path / "a.csv", elements="Ti") == 2
    frame = pd.read_csv(tmp_path / "a.csv")
    assert frame["id"].tolist() == ["mp-1", "mp-5"]
    assert frame["band_gap"].tolist() == [3.0, 1.9]
    assert (frame["payload_bytes"] > 0).all()
    assert (frame["payload_nmae"] <= 0.1).all()
    assert json.loads(frame["species"][0]) == ["Ti", "O", "O"]


def test_json(database: Database, tmp_path: Path) -> None:
    database.export(tmp_path / "a.JSON", where="id = 'mp-1'")
    (row,) = json.loads((tmp_path / "a.JSON").read_text(encoding="utf-8"))
    assert row["species"] == ["Ti", "O", "O"]
    np.testing.assert_allclose(row["lattice"], database["mp-1"].structure.lattice)
    assert row["shear_modulus"] is None


def test_parquet(database: Database, tmp_path: Path) -> None:
    database.export(tmp_path / "a.parquet", sort="band_gap", descending=True)
    frame = duckdb.read_parquet(str(tmp_path / "a.parquet")).df()
    expected = database.search(sort="band_gap", descending=True)
    assert frame["id"].tolist() == expected["id"].tolist()
    assert frame.columns.tolist() == expected.columns.tolist()
    np.testing.assert_array_equal(frame["band_gap"], expected["band_gap"])
    assert pd.isna(frame["shear_modulus"]).all()


def test_extxyz(database: Database, tmp_path: Path) -> None:
    database.export(tmp_path / "a.extxyz", columns=["id"])
    images = ase.io.read(tmp_path / "a.extxyz", index=":")
    assert [atoms.info["material_id"] for atoms in images] == list(database)
    record, atoms = database["mp-1"], images[0]
    assert atoms.get_chemical_symbols() == list(record.structure.species)
    np.testing.assert_allclose(atoms.cell.array, record.structure.lattice, atol=1e-7)
    np.testing.assert_allclose(atoms.positions, record.atoms.positions, atol=1e-7)
    assert atoms.info["bulk_modulus"] == 200.0
    assert not atoms.info["is_metal"]
    assert "shear_modulus" not in atoms.info


def test_a_store(database: Database, tmp_path: Path) -> None:
    assert database.export(tmp_path / "part", ranges={"band_gap": "1:"}) == 3
    part = Database(tmp_path / "part")
    assert list(part) == ["mp-1", "mp-3", "mp-5"]
    np.testing.assert_array_equal(part["mp-5"].latent().values, database["mp-5"].latent().values)


def test_chosen_columns(database: Database, tmp_path: Path) -> None:
    database.export(tmp_path / "a.csv", columns=["formula", "id"], limit=1)
    assert (tmp_path / "a.csv").read_text() == "formula,id\nTiO2,mp-1\n"


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.parquet", "a.extxyz", "a"])
def test_no_records(database: Database, tmp_path: Path, name: str) -> None:
    assert database.export(tmp_path / name, elements="Xe") == 0
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.parquet", "a.extxyz", "a"])
def test_what_is_there_stays(database: Database, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match=f"{name}: exists already"):
        database.export(tmp_path / name)
    assert (tmp_path / name).read_text() == "precious"


def test_a_folder_that_is_not_empty_stays(database: Database, tmp_path: Path) -> None:
    before = sorted(database.path.rglob("*"))
    with pytest.raises(StoreError, match="exists and is not empty"):
        database.export(database.path)
    assert sorted(database.path.rglob("*")) == before


def test_refusals_write_nothing(database: Database, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    with pytest.raises(InputError, match=r"unknown suffix; use \.csv"):
        database.export(new / "a.xlsx")
    with pytest.raises(QueryError, match="no column 'foo'"):
        database.export(new / "a.csv", sort="foo")
    with pytest.raises(InputError, match="cannot be written"):
        database.export(new / "absent" / "a.csv")
    assert not list(new.iterdir())


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.parquet", "a.extxyz"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_no_file(
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    failure: BaseException,
) -> None:
    def fail(_: Any, path: Path) -> None:
        path.write_text("the first half")
        raise failure

    monkeypatch.setitem(export._WRITERS, Path(name).suffix, fail)
    expected = InputError if isinstance(failure, OSError) else KeyboardInterrupt
    new = tmp_path / "new"
    new.mkdir()
    with pytest.raises(expected):
        database.export(new / name)
    assert not list(new.iterdir())


@pytest.mark.parametrize(("format", "reader"), [("cif", "cif"), ("poscar", "vasp")])
def test_structures(database: Database, tmp_path: Path, format: str, reader: str) -> None:  # noqa: A002
    structure = database["mp-5"].structure
    write_structure(tmp_path / "a", structure, format, comment="mp-5")
    atoms = ase.io.read(tmp_path / "a", format=reader)
    assert sorted(atoms.get_chemical_symbols()) == sorted(structure.species)
    np.testing.assert_allclose(atoms.cell.lengths(), structure.to_ase().cell.lengths(), atol=1e-4)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a"]
    if format == "poscar":
        assert (tmp_path / "a").read_text().startswith("mp-5\n")


def test_a_structure_that_cannot_be_written(database: Database, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_structure(tmp_path / "absent" / "a.cif", database["mp-1"].structure, "cif")
    with pytest.raises(InputError, match="unknown format 'xyz'"):
        write_structure(tmp_path / "a.xyz", database["mp-1"].structure, "xyz")
    assert not (tmp_path / "a.xyz").exists()
