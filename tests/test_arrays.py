"""Latents on disk: packing, rows, commits and crashes, and readers without chgdb."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from chgdb import arrays
from chgdb.arrays import LatentArrays, LatentStorage, pack, unpack
from chgdb.errors import InputError, ModelError, StoreError

SCALE = 1 / 127
INT8 = LatentStorage("int8", SCALE, (2, 3, 3, 3))
FLOAT16 = LatentStorage("float16", None, (2, 3, 3, 3))
ATTRS = {"encoder": "periodic-1", "attribution": "CC BY 4.0"}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 4 materials and chunks of 4 ids, so that few rows cross their borders."""
    monkeypatch.setattr(arrays, "_MATERIALS_PER_SHARD", 4)
    monkeypatch.setattr(arrays, "_MATERIALS_PER_CHUNK", 4)


def latents(start: int, n: int, storage: LatentStorage = INT8) -> NDArray[np.float32]:
    """Latents that are different in every row and exact in storage."""
    rng = np.random.default_rng(start)
    whole = rng.integers(-127, 128, (n, *storage.shape))
    whole[:, 0, 0, 0, 0] = 1 + np.arange(start, start + n) % 127
    return unpack(whole.astype(storage.dtype), storage.dtype, storage.scale_factor)


def add(group: LatentArrays, start: int, n: int, prefix: str = "mp") -> NDArray[np.float32]:
    values = latents(start, n, group.storage)
    rows = np.arange(start, start + n)
    grids = rows[:, None] + [10, 11, 12]
    group.write(start, [f"{prefix}-{i}" for i in rows], values, grids, grids + 1, rows + 0.25)
    return values


def check(path: Path, n: int) -> None:
    """The rows 0...n-1 are what `add` wrote row by row, for chgdb and for xarray."""
    group = LatentArrays.open(path)
    assert group.n_rows == n
    for row in range(n):
        stored = group.read(row, f"mp-{row}")
        np.testing.assert_array_equal(stored.values, latents(row, 1, group.storage)[0])
        assert stored.grid == (row + 10, row + 11, row + 12)
        assert stored.work_grid == (row + 11, row + 12, row + 13)
        assert stored.n_electrons == row + 0.25
    with xr.open_zarr(path) as dataset:
        loaded = dataset.load()
    assert dict(loaded.sizes) == {"material": n, "channel": 2, "a": 3, "b": 3, "c": 3, "axis": 3}
    assert loaded.material_id.values.tolist() == [f"mp-{row}" for row in range(n)]
    for row in range(n):
        expected = latents(row, 1, group.storage)[0]
        np.testing.assert_array_equal(loaded.latent[row].values.astype(np.float32), expected)


# ---------------------------------------------------------------------- packing


def finite(limit: float) -> st.SearchStrategy[NDArray[np.float32]]:
    bound = float(np.float32(limit))
    elements = st.floats(-bound, bound, width=32)
    return hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=4), elements=elements)


@given(finite(1.0), st.sampled_from([1 / 127, 0.05, 0.5]))
def test_int8_round_trip_is_within_half_a_step(values: NDArray[np.float32], scale: float) -> None:
    values = values * np.float32(min(1.0, 127 * scale))
    before = values.copy()
    stored = pack(values, "int8", scale)
    assert stored.dtype == np.int8
    error = np.abs(unpack(stored, "int8", scale) - values)
    assert error.max() <= scale / 2 * (1 + 1e-5)
    np.testing.assert_array_equal(values, before)
    np.testing.assert_array_equal(pack(unpack(stored, "int8", scale), "int8", scale), stored)


@given(finite(65504.0))
def test_float16_round_trip(values: NDArray[np.float32]) -> None:
    stored = pack(values, "float16", None)
    np.testing.assert_array_equal(stored, values.astype(np.float16))
    restored = unpack(stored, "float16", None)
    assert restored.dtype == np.float32
    np.testing.assert_array_equal(restored.astype(np.float16), stored)


def test_rounds_half_to_even() -> None:
    values = np.array([0.25, 0.75, 1.25, -0.25, -0.75])
    assert pack(values, "int8", 0.5).tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("dtype", "scale"), [("int8", SCALE), ("float16", None)])
def test_not_finite_is_refused(dtype: str, scale: float | None, value: float) -> None:
    with pytest.raises(ModelError, match="not a finite number"):
        pack(np.array([0.0, value]), dtype, scale)


@pytest.mark.parametrize(
    ("value", "dtype", "scale"),
    [
        (1.005, "int8", SCALE),
        (-1.01, "int8", SCALE),
        (1e30, "int8", SCALE),
        (65505.0, "float16", None),
        (-1e30, "float16", None),
    ],
)
def test_overflow_is_refused_not_clipped(value: float, dtype: str, scale: float | None) -> None:
    with pytest.raises(ModelError, match="exceeds"):
        pack(np.array([value], dtype=np.float32), dtype, scale)


def test_only_what_is_specified_is_packed() -> None:
    for dtype, scale in (("int8", None), ("float16", 0.5), ("int16", 1.0), ("int8", -1.0)):
        with pytest.raises(InputError):
            pack(np.zeros(1), dtype, scale)
        with pytest.raises(InputError):
            unpack(np.zeros(1), dtype, scale)


# ---------------------------------------------------------------------- rows


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("storage", [INT8, FLOAT16])
def test_rows_across_shard_borders(tmp_path: Path, storage: LatentStorage) -> None:
    """Row by row over three shards; every append keeps its neighbours intact."""
    path = tmp_path / "latents.zarr"
    group = LatentArrays.create(path, storage, ATTRS)
    check(path, 0)
    for row in range(9):
        add(group, row, 1)
    check(path, 9)
    assert LatentArrays.open(path).storage == storage


@pytest.mark.usefixtures("small_shards")
def test_many_rows_at_once_equal_single_ones(tmp_path: Path) -> None:
    one, many = (LatentArrays.create(tmp_path / name, INT8, ATTRS) for name in ("one", "many"))
    values = np.concatenate([add(one, row, 1) for row in range(6)])
    rows = np.arange(6)
    grids = rows[:, None] + [10, 11, 12]
    packed = pack(values, "int8", SCALE)
    many.write(0, [f"mp-{i}" for i in rows], packed, grids, grids + 1, rows + 0.25)
    check(tmp_path / "many", 6)
    shard = Path("latent/c/0/0/0/0/0")
    assert (tmp_path / "many" / shard).read_bytes() == (tmp_path / "one" / shard).read_bytes()


def test_layout_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "latents.zarr"
    add(LatentArrays.create(path, INT8, ATTRS), 0, 2)
    root = json.loads((path / "zarr.json").read_text())
    assert root["zarr_format"] == 3
    assert root["attributes"] == ATTRS
    consolidated = root["consolidated_metadata"]["metadata"]
    for name, metadata in consolidated.items():
        assert metadata == json.loads((path / name / "zarr.json").read_text())
    latent = consolidated["latent"]
    sharding = latent["codecs"][0]["configuration"]
    assert latent["dimension_names"] == ["material", "channel", "a", "b", "c"]
    assert latent["fill_value"] == 0
    assert latent["attributes"]["scale_factor"] == SCALE
    assert sharding["chunk_shape"] == [1, 2, 3, 3, 3]
    assert [codec["name"] for codec in sharding["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert [codec["name"] for codec in sharding["index_codecs"]] == ["bytes", "crc32c"]
    assert not list(path.rglob("*.partial"))


@pytest.mark.usefixtures("small_shards")
def test_erased_rows_hold_nothing_and_neighbours_stay(tmp_path: Path) -> None:
    path = tmp_path / "latents.zarr"
    group = LatentArrays.create(path, INT8, ATTRS)
    add(group, 0, 6)
    size = (path / "latent/c/0/0/0/0/0").stat().st_size
    group.erase([1, 2, 5])
    assert LatentArrays.open(path).ids() == ["mp-0", "", "", "mp-3", "mp-4", ""]
    assert (path / "latent/c/0/0/0/0/0").stat().st_size < size
    with pytest.raises(StoreError, match="row 1 holds nothing, not mp-1"):
        LatentArrays.open(path).read(1, "mp-1")
    np.testing.assert_array_equal(group.read(3, "mp-3").values, latents(0, 6)[3])
    with xr.open_zarr(path) as dataset:
        assert dataset.latent[1].values.max() == 0
    with pytest.raises(StoreError, match="no row 6"):
        group.erase([6])


def test_read_checks_whose_row_it_is(tmp_path: Path) -> None:
    group = LatentArrays.create(tmp_path / "z", INT8, ATTRS)
    add(group, 0, 2)
    with pytest.raises(StoreError, match="row 1 holds mp-1, not mp-0"):
        group.read(1, "mp-0")
    for row in (2, -1):
        with pytest.raises(StoreError, match=f"no row {row}, there are 2"):
            group.read(row, "mp-0")


def test_open_reader_sees_rows_added_later(tmp_path: Path) -> None:
    group = LatentArrays.create(tmp_path / "z", INT8, ATTRS)
    add(group, 0, 1)
    reader = LatentArrays.open(tmp_path / "z")
    add(group, 1, 1)
    assert reader.read(1, "mp-1").n_electrons == 1.25


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    LatentArrays.create(tmp_path / "z", INT8, ATTRS)
    with pytest.raises(StoreError):
        add(LatentArrays.open(tmp_path / "z"), 0, 1)
    check(tmp_path / "z", 0)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"ids": ["a", "b", "c"]}, InputError),
        ({"ids": ["a", "../b"]}, InputError),
        ({"latents": np.zeros((2, 2, 3, 3, 4))}, InputError),
        ({"latents": np.zeros((2, 2, 3, 3, 3), dtype=np.int64)}, InputError),
        ({"latents": np.full((2, 2, 3, 3, 3), np.nan)}, ModelError),
        ({"latents": np.full((2, 2, 3, 3, 3), 1.1)}, ModelError),
        ({"grids": [[1, 2, 3]]}, InputError),
        ({"grids": [[1, 2, 3], [1, 2, 0]]}, InputError),
        ({"work_grids": [[1, 2, 3], [1, 2, 2**40]]}, InputError),
        ({"n_electrons": [1.0, np.nan]}, InputError),
        ({"start": 2}, StoreError),
        ({"start": -1}, StoreError),
    ],
)
def test_bad_rows_change_nothing(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception]
) -> None:
    group = LatentArrays.create(tmp_path / "z", INT8, ATTRS)
    add(group, 0, 1)
    row: dict[str, Any] = {
        "start": 1,
        "ids": ["a", "b"],
        "latents": np.zeros((2, 2, 3, 3, 3)),
        "grids": np.ones((2, 3), int),
        "work_grids": np.ones((2, 3), int),
        "n_electrons": [1.0, 2.0],
    }
    with pytest.raises(error):
        group.write(**(row | changes))
    check(tmp_path / "z", 1)


# ---------------------------------------------------------------------- damage and crashes


def test_flipped_byte_of_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "z"
    add(LatentArrays.create(path, INT8, ATTRS), 0, 2)
    flip(path / "latent/c/0/0/0/0/0", 20)
    with pytest.raises(StoreError, match="checksum") as caught:
        LatentArrays.open(path).read(0, "mp-0")
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(LatentArrays.open(path).read(1, "mp-1").values, latents(0, 2)[1])


def test_flipped_byte_of_a_shard_index(tmp_path: Path) -> None:
    path = tmp_path / "z"
    add(LatentArrays.create(path, INT8, ATTRS), 0, 2)
    flip(path / "latent/c/0/0/0/0/0", -20)
    with pytest.raises(StoreError, match="checksum"):
        LatentArrays.open(path).read(0, "mp-0")


@pytest.mark.parametrize("name", ["material_id", "n_electrons"])
def test_flipped_byte_of_a_small_array(tmp_path: Path, name: str) -> None:
    path = tmp_path / "z"
    add(LatentArrays.create(path, INT8, ATTRS), 0, 2)
    flip(path / name / "c/0", 10)
    with pytest.raises(StoreError):
        LatentArrays.open(path).read(0, "mp-0")


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_missing_and_damaged_groups(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="missing"):
        LatentArrays.open(tmp_path / "z")
    assert not (tmp_path / "z").exists()
    LatentArrays.create(tmp_path / "z", INT8, ATTRS)
    with pytest.raises(StoreError, match="exists already"):
        LatentArrays.create(tmp_path / "z", INT8, ATTRS)
    (tmp_path / "z" / "zarr.json").write_text("{")
    with pytest.raises(StoreError) as caught:
        LatentArrays.open(tmp_path / "z")
    assert "\n" not in str(caught.value)


class CrashError(BaseException):
    """Stands for the end of the process."""


def crash_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """The process ends when it renames the file after `writes` files."""
    done = 0
    replace = Path.replace

    def counted(self: Path, target: Path) -> Path:
        nonlocal done
        if done == writes:
            raise CrashError
        done += 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", counted)


def count_renames(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are renamed into place from now on."""
    renamed: list[Path] = []
    replace = Path.replace

    def noted(self: Path, target: Path) -> Path:
        renamed.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    return renamed


@pytest.mark.usefixtures("small_shards")
def test_crash_at_any_rename_loses_nothing(tmp_path: Path) -> None:
    """Committed rows stay readable, xarray sees equal lengths, and the next append succeeds."""
    base = tmp_path / "base"
    group = LatentArrays.create(base, INT8, ATTRS)
    for row in range(3):
        add(group, row, 1)
    whole = tmp_path / "whole"
    shutil.copytree(base, whole)
    with pytest.MonkeyPatch.context() as patch:
        renamed = count_renames(patch)
        add(LatentArrays.open(whole, writable=True), 3, 3, "lost")
    assert renamed[-1] == whole / "zarr.json"
    assert len(renamed) >= 10
    for writes in range(len(renamed)):
        path = tmp_path / f"z{writes}"
        shutil.copytree(base, path)
        group = LatentArrays.open(path, writable=True)
        with pytest.MonkeyPatch.context() as patch:
            crash_after(patch, writes)
            with pytest.raises(CrashError):
                add(group, 3, 3, "lost")
        check(path, 3)
        again = LatentArrays.open(path, writable=True)
        assert not list(path.rglob("*.partial"))
        add(again, 3, 1)
        check(path, 4)


@pytest.mark.usefixtures("small_shards")
def test_rows_committed_without_a_record_are_overwritten(tmp_path: Path) -> None:
    """The crash between the commit of the arrays and that of the table."""
    path = tmp_path / "z"
    group = LatentArrays.create(path, INT8, ATTRS)
    for row in range(3):
        add(group, row, 1)
    add(group, 3, 6, "lost")
    again = LatentArrays.open(path, writable=True)
    assert again.n_rows == 9
    add(again, 3, 1)
    check(path, 4)
    for row in range(4, 10):
        add(again, row, 1)
    check(path, 10)


@pytest.mark.usefixtures("small_shards")
def test_rows_without_a_record_are_dropped_before_they_are_overwritten(tmp_path: Path) -> None:
    """Nobody sees the id of one record with the latent of another."""
    path = tmp_path / "z"
    group = LatentArrays.create(path, INT8, ATTRS)
    for row in range(3):
        add(group, row, 1)
    add(group, 3, 3, "lost")
    with pytest.MonkeyPatch.context() as patch:
        crash_after(patch, 3)
        with pytest.raises(CrashError):
            add(LatentArrays.open(path, writable=True), 3, 1)
    check(path, 3)


# ---------------------------------------------------------------------- readers without chgdb

READER = """
import sys
sys.modules["chgdb"] = None
import numpy as np, xarray as xr
for path in sys.argv[1:]:
    ds = xr.open_zarr(path)
    assert ds.latent.dims == ("material", "channel", "a", "b", "c"), ds.latent.dims
    assert ds.latent.dtype.kind == "f" and ds.latent.dtype.itemsize >= 4, ds.latent.dtype
    assert list(ds.coords) == ["material_id"], ds.coords
    assert ds.grid.dims == ds.work_grid.dims == ("material", "axis")
    ids = ds.material_id.values
    assert ids.dtype.kind in "TUO" and all(type(i) is str for i in ids.tolist())
    assert ds.attrs["encoder"] == "periodic-1"
    assert ds.n_electrons.attrs["units"] == "e"
    one = ds.set_index(material="material_id").latent.sel(material="mp-1").astype("float32")
    np.save(path + ".npy", one.values)
"""


def test_xarray_alone_reads_it_without_a_warning(tmp_path: Path) -> None:
    paths = {str(tmp_path / storage.dtype): storage for storage in (INT8, FLOAT16)}
    for path, storage in paths.items():
        add(LatentArrays.create(path, storage, ATTRS), 0, 2)
    command = [sys.executable, "-I", "-W", "error", "-c", READER, *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for path in paths:
        read = LatentArrays.open(path).read(1, "mp-1").values
        np.testing.assert_array_equal(np.load(path + ".npy"), read)
