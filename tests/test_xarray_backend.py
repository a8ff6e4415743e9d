"""The engine "chgdb" of xarray: metadata, and densities and latents read when indexed."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from conftest import MATERIALS, ROOT

from chgdb import archive
from chgdb.database import Database
from chgdb.errors import InputError, StoreError, UnknownIdError
from chgdb.schema import COLUMNS
from chgdb.xarray_backend import DEFAULT_GRID

GRID = (6, 7, 8)
SPACE = ("frac_a", "frac_b", "frac_c")
IDS = list(MATERIALS)


def opened(store: Path, **options: Any) -> xr.Dataset:
    return xr.open_dataset(store, engine="chgdb", **options)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The species of every payload that is decoded, as it happens."""
    real, seen = archive.decode, []

    def decode(data: bytes, structure: Any, *arguments: Any) -> Any:
        seen.append(structure.species)
        return real(data, structure, *arguments)

    monkeypatch.setattr(archive, "decode", decode)
    return seen


# --- metadata -------------------------------------------------------------------------------


def test_the_columns_are_variables_with_units(store: Path, database: Database) -> None:
    dataset = opened(store)
    assert dataset.material.values.tolist() == IDS
    for row in database.select():
        record = dataset.sel(material=row["id"])
        for name, column in COLUMNS.items():
            if name not in dataset or name == "lattice":
                continue
            found, expected = record[name].item(), row[name]
            if expected is None:
                assert found == "" if column.type == "text" else np.isnan(found)
            else:
                assert found == expected
            assert record[name].attrs.get("units", "") == column.unit
            assert record[name].attrs["long_name"] == column.description
        grid = [row["grid_a"], row["grid_b"], row["grid_c"]]
        assert record.grid.values.tolist() == grid
        assert record.work_grid.sel(axis="b") == row["work_grid_b"]
        assert record.lattice.values.tolist() == json.loads(row["lattice"])
    assert dataset.bulk_modulus.attrs["units"] == "GPa"
    assert {"formula", "spacegroup", "n_electrons", "species", "is_metal"} <= set(dataset)
    assert dataset.attrs["encoder"] == "tiny-16"
    assert dataset.attrs["attribution"] == "made for tests"


def test_types_do_not_depend_on_what_is_null(store: Path) -> None:
    dataset = opened(store)
    assert dataset.bulk_modulus.dtype == np.float64
    assert np.isnan(dataset.bulk_modulus.sel(material="mp-5"))
    assert dataset.is_metal.sel(material=["mp-4", "mp-1"]).values.tolist() == [1.0, 0.0]
    assert np.isnan(dataset.is_metal.sel(material="mp-5"))
    assert dataset.n_elements.dtype == np.int64
    assert dataset.n_atoms.dtype == np.float64
    assert dataset.latent_coarse.dtype == np.float64
    assert dataset.split.sel(material="mp-5") == ""
    assert dataset.where(dataset.split == "train", drop=True).material.values.tolist() == [
        "mp-1",
        "mp-4",
    ]


def test_an_empty_store(empty: Database) -> None:
    dataset = opened(empty.path)
    assert dataset.sizes["material"] == 0
    assert dataset.density.load().shape == (0, *DEFAULT_GRID)
    assert dataset.latent.load().shape == (0, 16, 16, 16, 16)
    assert dataset.lattice.shape == (0, 3, 3)


def test_the_engine_is_found_by_the_folder(store: Path, tmp_path: Path) -> None:
    assert "chgdb" in xr.backends.list_engines()
    assert xr.open_dataset(str(store)).sizes["material"] == 5
    assert xr.open_dataset(store).sizes["material"] == 5
    engine = xr.backends.list_engines()["chgdb"]
    assert not engine.guess_can_open(tmp_path)
    assert not engine.guess_can_open(str(store / "chgdb.json"))
    assert not engine.guess_can_open(b"CDF")
    with pytest.raises(StoreError, match="not a chgdb store"):
        opened(store / "materials")


def test_variables_are_dropped(store: Path) -> None:
    assert "density" not in opened(store, drop_variables="density")
    dataset = opened(store, drop_variables=["latent", "formula"])
    assert not {"latent", "formula"} & set(dataset)
    assert "density" in dataset


# --- densities and latents ------------------------------------------------------------------


def test_densities_on_the_default_grid(store: Path, database: Database) -> None:
    density = opened(store).density
    assert density.dims == ("material", *SPACE)
    assert density.shape == (5, *DEFAULT_GRID)
    assert density.attrs["units"] == "e/angstrom^3"
    np.testing.assert_array_equal(density.frac_b, np.arange(48) / 48)
    (expected,) = database.decode("mp-3", grid=DEFAULT_GRID)
    np.testing.assert_array_equal(density.sel(material="mp-3"), expected.values)


def test_electrons_are_those_of_the_record_on_a_grid_that_is_asked_for(store: Path) -> None:
    dataset = opened(store, grid=GRID)
    assert dataset.density.shape == (5, *GRID)
    electrons = dataset.density.mean(SPACE) * dataset.volume
    np.testing.assert_allclose(electrons, dataset.n_electrons, rtol=1e-6)


def test_one_material_on_its_own_grid(store: Path, database: Database) -> None:
    dataset = opened(store, material="mp-2")
    assert "material" not in dataset.dims
    assert dataset.material == "mp-2"
    assert dataset.formula == "Si"
    assert dataset.density.dims == SPACE
    record = database["mp-2"]
    assert dataset.density.shape == record.grid
    np.testing.assert_array_equal(dataset.density, record.density().values)
    np.testing.assert_array_equal(dataset.latent, record.latent().values)
    nearest = dataset.density.sel(frac_a=0.5, frac_b=0.5, frac_c=0.5, method="nearest")
    assert nearest == record.density().values[8, 9, 10]
    coarse = opened(store, material="mp-2", grid=GRID)
    np.testing.assert_array_equal(coarse.density, record.density(GRID).values)


def test_latents(store: Path, database: Database) -> None:
    latent = opened(store).latent
    assert latent.dims == ("material", "channel", "a", "b", "c")
    assert latent.dtype == np.float32
    for id_ in IDS:
        np.testing.assert_array_equal(latent.sel(material=id_), database[id_].latent().values)


def test_densities_from_latents(store: Path, database: Database) -> None:
    density = opened(store, grid=GRID, source="latent").density.sel(material="mp-1")
    (expected,) = database.decode("mp-1", grid=GRID, source="latent")
    np.testing.assert_array_equal(density, expected.values)
    (payload,) = database.decode("mp-1", grid=GRID)
    assert not np.allclose(density, payload.values, rtol=1e-3)


@pytest.mark.parametrize("grid", [(8, 8), (8, 8, 0), (8, 8, 8.5), (8, 8, 8, 8), 8])
def test_a_bad_grid_is_refused_at_once(store: Path, grid: Any) -> None:
    with pytest.raises(InputError, match="a grid"):
        opened(store, grid=grid)


def test_an_unknown_material_or_source(store: Path) -> None:
    with pytest.raises(UnknownIdError, match="mp-22"):
        opened(store, material="mp-22")
    with pytest.raises(InputError, match="source"):
        opened(store, source="file").density.load()


def test_a_record_removed_since(store: Path) -> None:
    density = opened(store, grid=GRID).density
    Database(store).remove(["mp-4"])
    assert density.sel(material="mp-5").load().shape == GRID
    with pytest.raises(UnknownIdError, match="mp-4"):
        density.sel(material="mp-4").load()


# --- laziness -------------------------------------------------------------------------------


def test_only_what_is_indexed_is_decoded(store: Path, decoded: list[tuple[str, ...]]) -> None:
    dataset = opened(store, grid=GRID)
    assert "density" in repr(dataset)
    assert dataset.density.sel(material=["mp-2", "mp-4"]).shape == (2, *GRID)
    assert decoded == []
    dataset.density.sel(material="mp-2").load()
    assert decoded == [MATERIALS["mp-2"]]
    decoded.clear()
    dataset.density.sel(material=["mp-4", "mp-1"]).isel(frac_a=0).load()
    assert sorted(decoded) == sorted([MATERIALS["mp-4"], MATERIALS["mp-1"]])
    decoded.clear()
    assert dataset.density.isel(frac_a=slice(0)).load().size == 0
    assert decoded == []


KEYS: dict[str, dict[str, Any]] = {
    "number": {"material": 3},
    "last": {"material": -1, "frac_c": -1},
    "slice": {"material": slice(1, 4, 2), "frac_b": slice(5, None)},
    "backwards": {"material": slice(None, None, -1), "frac_a": slice(4, 0, -2)},
    "list": {"material": [4, 0, 4], "frac_a": [2, 5], "frac_c": [7, 0, 1]},
    "mixed": {"material": [1], "frac_a": 3, "frac_b": slice(2), "frac_c": [0, 3]},
    "none": {"material": [], "frac_a": 1},
    "all": {},
    "one value": {"material": 1, "frac_a": 2, "frac_b": 3, "frac_c": 4},
    "points": {
        "material": xr.DataArray([0, 2, 2], dims="point"),
        "frac_a": xr.DataArray([1, 3, 5], dims="point"),
    },
}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("batch", [1, 2**22])
def test_every_kind_of_index(
    store: Path,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    batch: int,
) -> None:
    monkeypatch.setattr("chgdb.xarray_backend._BATCH_VALUES", batch)
    whole = np.stack([density.values for density in database.decode(IDS, grid=GRID)])
    expected = xr.DataArray(whole, dims=("material", *SPACE)).isel(KEYS[name])
    found = opened(store, grid=GRID).density.isel(KEYS[name]).load()
    assert found.dims == expected.dims
    np.testing.assert_array_equal(found, expected)


# --- dask, threads, processes ---------------------------------------------------------------


def test_a_dask_chunk_is_one_material(store: Path, decoded: list[tuple[str, ...]]) -> None:
    density = opened(store, grid=GRID, chunks={}).density
    assert density.chunks == ((1,) * 5, (6,), (7,), (8,))
    assert opened(store, chunks={}).latent.chunks == ((1,) * 5, (16,), (16,), (16,), (16,))
    assert decoded == []
    with dask.config.set(scheduler="synchronous"):
        density.isel(material=[2]).mean().compute()
    assert decoded == [MATERIALS["mp-3"]]


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask_schedulers(store: Path, database: Database, scheduler: str) -> None:
    dataset = opened(store, grid=GRID, chunks={"material": 2})
    with dask.config.set(scheduler=scheduler, num_workers=2):
        electrons = (dataset.density.mean(SPACE) * dataset.volume).compute()
    np.testing.assert_allclose(electrons, dataset.n_electrons, rtol=1e-6)


def test_threads_read_at_once(store: Path, database: Database) -> None:
    dataset = opened(store, grid=GRID)
    expected = {id_: database.decode(id_, grid=GRID)[0].values for id_ in IDS}

    def read(id_: str) -> bool:
        return np.array_equal(dataset.density.sel(material=id_).values, expected[id_])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, IDS * 8))


def test_a_dataset_can_be_sent_to_another_process(store: Path) -> None:
    dataset = opened(store, grid=GRID, source="latent")
    dataset.density.sel(material="mp-1").load()
    assert len(pickle.dumps(dataset.density)) < 4000  # without the open store and its encoder
    copy = pickle.loads(pickle.dumps(dataset))
    xr.testing.assert_identical(copy.load(), dataset.load())


def test_payloads_are_decoded_without_torch(store: Path) -> None:
    code = (
        "import sys, xarray as xr\n"
        f"xr.open_dataset({str(store)!r}, engine='chgdb').density.isel(material=0).load()\n"
        "print('torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_code_of_the_documentation_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "xarray.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    namespace: dict[str, Callable[..., Any]] = {}
    for block in blocks:
        exec(compile(block, "docs/xarray.md", "exec"), namespace)
    assert "GPa" in capsys.readouterr().out
