"""Materials that the store knows without holding their densities, through every verb."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import Run, gaussian_density

from chgdb.arrays import LatentArrays
from chgdb.database import Database
from chgdb.density import Structure
from chgdb.errors import StoreError
from chgdb.formats import write_density
from chgdb.schema import ARRAYS_FOLDER

MATERIALS = {
    "mp-10": {"formula": "Ti4O8", "bulk_modulus": 210.0, "split": "train"},
    "mp-11": {"formula": "GaAs", "band_gap": 1.4},
    "mp-1": {"formula": "TiO2", "shear_modulus": 100.0},
}
SITES = np.array([[0.0] * 3, [0.25] * 3])
GALLIUM_ARSENIDE = Structure(2.8 * (1 - np.eye(3)), ("Ga", "As"), SITES)


@pytest.fixture
def filled(database: Database) -> Database:
    """The five records and two materials without a density; one of the five has got a property."""
    report = database.import_materials(MATERIALS)
    assert (report.added, report.updated, report.failed) == (["mp-10", "mp-11"], ["mp-1"], [])
    return database


def test_they_are_found_and_told_apart(filled: Database) -> None:
    assert list(filled) == ["mp-1", "mp-2", "mp-3", "mp-4", "mp-5", "mp-10", "mp-11"]
    assert filled.search(formula="O2Ti")["id"].tolist() == ["mp-1", "mp-10"]
    assert filled.search(source="none")["id"].tolist() == ["mp-10", "mp-11"]
    assert len(filled.search(source="dft")) == 5
    assert filled.search(elements="Ti", where="bulk_modulus > 205")["id"].tolist() == ["mp-10"]
    assert filled["mp-10"].source is None
    assert filled["mp-1"].source == "dft"
    summary = filled.summary()
    assert (summary["records"], summary["densities, dft"], summary["without a density"]) == (
        7,
        5,
        2,
    )


def test_what_is_imported_again_changes_nothing(filled: Database) -> None:
    before = filled.select().values
    report = filled.import_materials(MATERIALS)
    assert (report.added, report.updated, report.failed) == ([], [], [])
    assert filled.select().values == before


def test_an_imported_property_joins_those_that_are_there(filled: Database) -> None:
    properties = filled["mp-1"].properties
    assert (properties["bulk_modulus"], properties["shear_modulus"]) == (200.0, 100.0)
    assert filled["mp-1"].density().n_electrons == pytest.approx(8.0)


def test_a_structure_may_come_later(filled: Database) -> None:
    with pytest.raises(StoreError, match="mp-11: its structure is not known"):
        _ = filled["mp-11"].structure
    report = filled.import_materials({"mp-11": {}}, {"mp-11": GALLIUM_ARSENIDE})
    assert report.updated == ["mp-11"]
    assert filled["mp-11"].structure.species == ("Ga", "As")
    assert filled["mp-11"].row["spacegroup"] == 216
    assert filled["mp-11"].properties == {"band_gap": 1.4}


@pytest.mark.parametrize(
    ("material", "why"),
    [
        ({"mp-2": {"formula": "Ge"}}, "Ge, but the record of this id is Si"),
        ({"mp-12": {}}, "has no formula"),
        ({"mp-12": {"formula": "Xx"}}, "Xx"),
        ({"../x": {"formula": "Si"}}, "cannot be a material id"),
        ({"mp-12": {"formula": "Si", "bulk_modulus": "hard"}}, "bulk_modulus is 'hard', not real"),
        ({"mp-2": {"is_metal": 7}}, "is_metal is 7, not boolean"),
    ],
)
def test_a_bad_material_stops_no_other(
    filled: Database, material: dict[str, dict[str, str]], why: str
) -> None:
    report = filled.import_materials({**material, "mp-13": {"formula": "Ge"}})
    assert report.added == ["mp-13"]
    ((id_, told),) = report.failed
    assert id_ == next(iter(material))
    assert why in told


def test_no_density_is_said_so(filled: Database) -> None:
    record = filled["mp-10"]
    for ask in (record.latent, record.density, lambda: record.grid):
        with pytest.raises(StoreError, match="mp-10: the store holds no density of it; add one"):
            ask()
    assert record.payload() is None


def test_a_density_comes_to_its_material(filled: Database, tmp_path: Path) -> None:
    path = tmp_path / "mp-10.npz"
    write_density(path, gaussian_density(("Ti", "O", "O"), electrons=30.0), "npz")
    report = filled.add(path)
    assert [row["id"] for row in report.added] == ["mp-10"]
    assert len(filled) == 7
    record = filled["mp-10"]
    assert record.properties == {"bulk_modulus": 210.0, "split": "train"}
    assert record.density().n_electrons == pytest.approx(30.0)
    assert len(filled.add(path).skipped) == 1


def test_a_density_of_another_material_is_refused(filled: Database, tmp_path: Path) -> None:
    path = tmp_path / "mp-10.npz"
    write_density(path, gaussian_density(("Si",)), "npz")
    ((_, why),) = filled.add(path).failed
    assert "mp-10 is taken by a record of TiO2, and this file of Si" in why
    assert filled["mp-10"].source is None


def test_the_arrays_hold_nothing_of_them(filled: Database) -> None:
    arrays = LatentArrays.open(filled.path / ARRAYS_FOLDER)
    assert arrays.ids() == ["mp-1", "mp-2", "mp-3", "mp-4", "mp-5", "", ""]
    shards = list((filled.path / ARRAYS_FOLDER / "latent" / "c").rglob("0"))
    size = sum(path.stat().st_size for path in shards if path.is_file())
    filled.import_materials({f"new-{i}": {"formula": "Si"} for i in range(500)})
    assert len(filled) == 507
    shards = [
        path for path in (filled.path / ARRAYS_FOLDER / "latent" / "c").rglob("*") if path.is_file()
    ]
    assert sum(path.stat().st_size for path in shards) == size
    assert filled["mp-1"].density(source="latent").n_electrons == pytest.approx(8.0)


def test_rows_after_them_are_right(filled: Database, tmp_path: Path) -> None:
    for i in range(3):
        write_density(tmp_path / f"x-{i}.npz", gaussian_density(("Si",), electrons=4.0 + i), "npz")
        filled.add(tmp_path / f"x-{i}.npz")
        filled.import_materials({f"y-{i}": {"formula": "Si"}})
    for i in range(3):
        assert filled[f"x-{i}"].density().n_electrons == pytest.approx(4.0 + i)
        assert filled[f"x-{i}"].density(source="latent").n_electrons == pytest.approx(4.0 + i)


def test_a_crash_before_the_table_leaves_nothing(
    filled: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The payloads of rows that a crash left behind are dropped, those before them are kept."""
    with monkeypatch.context() as patch:
        patch.setattr(type(filled._table), "append", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            filled.import_materials({"lost": {"formula": "Si"}})
    write_density(tmp_path / "x.npz", gaussian_density(("Si",), electrons=4.0), "npz")
    filled.add(tmp_path / "x.npz")
    assert "lost" not in filled
    for record in filled.get(["mp-1", "mp-5", "x"]):
        assert record.density().n_electrons == pytest.approx(record.row["n_electrons"])


def test_removing_and_copying(filled: Database, tmp_path: Path) -> None:
    copy = filled.copy(tmp_path / "copy")
    assert list(copy) == list(filled)
    for one, other in zip(copy.select(), filled.select(), strict=True):
        assert one == other
    assert copy["mp-5"].density().n_electrons == pytest.approx(12.0)
    filled.remove(["mp-10", "mp-1"])
    assert list(filled) == ["mp-2", "mp-3", "mp-4", "mp-5", "mp-11"]


def test_exports(filled: Database, tmp_path: Path) -> None:
    assert filled.export(tmp_path / "all.csv") == 7
    assert filled.export(tmp_path / "all.json") == 7
    assert filled.export(tmp_path / "dft.extxyz", source="dft") == 5
    with pytest.raises(StoreError, match="n_atoms > 0"):
        filled.export(tmp_path / "all.extxyz")
    assert not (tmp_path / "all.extxyz").exists()


def test_xarray_shows_the_densities(filled: Database) -> None:
    dataset = xr.open_dataset(filled.path, engine="chgdb", grid=(8, 8, 8))
    assert dataset.material.values.tolist() == ["mp-1", "mp-2", "mp-3", "mp-4", "mp-5"]
    assert float(dataset.density.sel(material="mp-5").mean()) > 0
    dataset.close()


def test_the_command_line(run: Run, store: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("material_id,formula,bulk_modulus\nmp-2,Si,91\nmp-77,GaAs,75\n")
    done = run("import-table", table, "--store", store)
    assert (done.code, done.out) == (0, "1 added, 1 updated, 0 as they were, 0 failed\n")
    assert run("search", "--source", "none", "--format", "ids", "--store", store).out == "mp-77\n"
    assert run("search", "--source", "vasp", "--store", store).code == 1
    found = run("search", "--bulk-modulus", "70:100", "--store", store).out
    assert "dft" in found
    shown = run("get", "mp-77", "--store", store)
    assert "none: the store holds no density of it" in shown.out
    refused = run("get", "mp-77", "--decode", "--store", store)
    assert refused.code == 1
    assert refused.err.count("\n") == 1
    assert "chgdb add CHGCAR --id mp-77" in refused.err
    table.write_text("material_id,formula\nmp-2,Ge\n")
    failed = run("import-table", table, "--store", store)
    assert failed.code == 1
    assert "mp-2: Ge, but the record of this id is Si" in failed.err


def test_a_table_that_cannot_be_read(run: Run, store: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("formula\nSi\n")
    assert "needs a column material_id" in run("import-table", tmp_path / "table.csv").err
    ((_, why),) = Database(store).import_materials({"mp-2": {"nonsense": 1}}).failed
    assert "nonsense is no property" in why
