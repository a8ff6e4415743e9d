"""Latents and payloads on disk: packing, rows, commits and crashes, and readers without chgdb."""

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
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from chgdb import arrays
from chgdb.arrays import LatentArrays, LatentStorage, Part, pack, unpack, write_part
from chgdb.errors import InputError, ModelError, StoreError

SCALE = 1 / 127
INT8 = LatentStorage("int8", SCALE, (2, 3, 3, 3))
FLOAT16 = LatentStorage("float16", None, (2, 3, 3, 3))
ATTRS = {"encoder": "periodic-1", "attribution": "CC BY 4.0"}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards and chunks so small that few rows cross their borders."""
    monkeypatch.setattr(arrays, "_MATERIALS_PER_SHARD", 4)
    monkeypatch.setattr(arrays, "_MATERIALS_PER_CHUNK", 4)
    monkeypatch.setattr(arrays, "_PAYLOAD_CHUNK", 16)
    monkeypatch.setattr(arrays, "_PAYLOAD_SHARD", 64)


def latents(start: int, n: int, storage: LatentStorage = INT8) -> NDArray[np.float32]:
    """Latents that are different in every row and exact in storage."""
    rng = np.random.default_rng(start)
    whole = rng.integers(-127, 128, (n, *storage.shape))
    whole[:, 0, 0, 0, 0] = 1 + np.arange(start, start + n) % 127
    return unpack(whole.astype(storage.dtype), storage.dtype, storage.scale_factor)


def payload(row: int) -> bytes:
    """A payload that differs in every row, also in length; row 3 and every 5th have none."""
    return b"" if row % 5 == 3 else np.random.default_rng(row).bytes(5 + row * 13 % 40)


def add(group: LatentArrays, start: int, n: int, prefix: str = "mp") -> NDArray[np.float32]:
    values = latents(start, n, group.storage)
    rows = np.arange(start, start + n)
    grids = rows[:, None] + [10, 11, 12]
    ids = [f"{prefix}-{i}" for i in rows]
    payloads = [payload(int(i)) if prefix == "mp" else b"lost" * 9 for i in rows]
    group.write(start, ids, values, grids, grids + 1, rows + 0.25, payloads)
    return values


def check(path: Path, n: int) -> None:
    """The rows 0...n-1 are what `add` wrote row by row, for chgdb and for xarray."""
    group = LatentArrays.open(path)
    assert group.n_rows == n
    assert group.n_bytes == sum(len(payload(row)) for row in range(n))
    for row in range(n):
        stored = group.read(row, f"mp-{row}")
        np.testing.assert_array_equal(stored.values, latents(row, 1, group.storage)[0])
        assert stored.grid == (row + 10, row + 11, row + 12)
        assert stored.work_grid == (row + 11, row + 12, row + 13)
        assert stored.n_electrons == row + 0.25
        assert group.read_payload(row, f"mp-{row}") == payload(row)
    with xr.open_zarr(path) as dataset:
        loaded = dataset.load()
    sizes = {"material": n, "channel": 2, "a": 3, "b": 3, "c": 3, "axis": 3, "byte": group.n_bytes}
    assert dict(loaded.sizes) == sizes
    assert loaded.payload.dtype == np.uint8
    assert loaded.payload.values.tobytes() == b"".join(map(payload, range(n)))
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


@given(finite(float(np.finfo(np.float32).max)))
def test_float32_is_kept_to_the_bit(values: NDArray[np.float32]) -> None:
    stored = pack(values, "float32", None)
    assert stored.dtype == np.float32
    assert unpack(stored, "float32", None).tobytes() == values.tobytes()


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
        (1e300, "float32", None),
    ],
)
def test_overflow_is_refused_not_clipped(value: float, dtype: str, scale: float | None) -> None:
    with pytest.raises(ModelError, match="exceeds"):
        pack(np.array([value]), dtype, scale)


def test_only_what_is_specified_is_packed() -> None:
    for dtype, scale in (
        ("int8", None),
        ("float16", 0.5),
        ("float32", 0.5),
        ("int16", 1.0),
        ("int8", -1.0),
    ):
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
    ids = [f"mp-{i}" for i in rows]
    many.write(0, ids, packed, grids, grids + 1, rows + 0.25, [payload(int(i)) for i in rows])
    check(tmp_path / "many", 6)
    for shard in ("latent/c/0/0/0/0/0", "payload/c/0", "payload/c/1"):
        assert (tmp_path / "many" / shard).read_bytes() == (tmp_path / "one" / shard).read_bytes()


def test_layout_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "latents.zarr"
    add(LatentArrays.create(path, INT8, ATTRS), 0, 2)
    root = json.loads((path / "zarr.json").read_text())
    assert root["zarr_format"] == 3
    assert root["attributes"].pop("seal").startswith("chgdb:sha256:")
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
    assert consolidated["payload"]["dimension_names"] == ["byte"]
    assert consolidated["payload_offset"]["dimension_names"] == ["material"]
    sharding = consolidated["payload"]["codecs"][0]["configuration"]
    assert sharding["chunk_shape"] == [2**14]
    assert [codec["name"] for codec in sharding["codecs"]] == ["bytes", "zstd", "crc32c"]
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
    assert group.read_payload(4, "mp-4") == payload(4)
    with xr.open_zarr(path) as dataset:
        assert dataset.latent[1].values.max() == 0
        kept = [payload(row) if row in (0, 3, 4) else bytes(len(payload(row))) for row in range(6)]
        assert dataset.payload.values.tobytes() == b"".join(kept)
        assert dataset.payload_length.values.tolist()[1:3] == [0, 0]
    with pytest.raises(StoreError, match="row 1 holds nothing, not mp-1"):
        LatentArrays.open(path).read_payload(1, "mp-1")
    with pytest.raises(StoreError, match="no row 6"):
        group.erase([6])


@pytest.mark.usefixtures("small_shards")
def test_bytes_of_erased_rows_are_not_used_again(tmp_path: Path) -> None:
    path = tmp_path / "z"
    group = LatentArrays.create(path, INT8, ATTRS)
    add(group, 0, 3)
    group.erase([2])
    again = LatentArrays.open(path, writable=True)
    add(again, 3, 3)
    with xr.open_zarr(path) as dataset:
        assert dataset.payload_offset.values.tolist() == [0, 5, 0, 54, 54, 71]
    assert [again.read_payload(row, f"mp-{row}") for row in (0, 1, 3, 4, 5)] == [
        payload(row) for row in (0, 1, 3, 4, 5)
    ]


@pytest.mark.usefixtures("small_shards")
def test_a_payload_is_read_without_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = LatentArrays.create(tmp_path / "z", INT8, ATTRS)
    add(group, 0, 20)
    got: list[tuple[str, Any]] = []
    get = arrays._DurableStore.get

    async def noted(self: Any, key: str, prototype: Any, byte_range: Any = None) -> Any:
        got.append((key, byte_range))
        return await get(self, key, prototype, byte_range)

    monkeypatch.setattr(arrays._DurableStore, "get", noted)
    assert LatentArrays.open(tmp_path / "z").read_payload(17, "mp-17") == payload(17)
    assert not [key for key, _ in got if key.startswith("latent/c")]
    start = sum(len(payload(row)) for row in range(17))
    chunks = {start // 16 * 16, (start + len(payload(17)) - 1) // 16 * 16}
    chunks = set(range(min(chunks), max(chunks) + 1, 16))
    read = [(key, part) for key, part in got if key.startswith("payload/c")]
    assert {key for key, _ in read} == {f"payload/c/{chunk // 64}" for chunk in chunks}
    assert all(part is not None for _, part in read)
    shards = {chunk // 64 for chunk in chunks}
    assert len(read) <= len(shards) + len(chunks)


def test_rows_without_payloads(tmp_path: Path) -> None:
    group = LatentArrays.create(tmp_path / "z", INT8, ATTRS)
    values = latents(0, 2)
    group.write(0, ["a", "b"], values, np.ones((2, 3)), np.ones((2, 3)), np.ones(2), [b"", b""])
    assert LatentArrays.open(tmp_path / "z").read_payload(1, "b") == b""
    group.erase([1])
    assert LatentArrays.open(tmp_path / "z").n_bytes == 0


def test_a_payload_beyond_the_bytes_that_are_there(tmp_path: Path) -> None:
    group = LatentArrays.create(tmp_path / "z", INT8, ATTRS)
    add(group, 0, 2)
    for name, wrong in (("payload_length", 10_000), ("payload_offset", -1)):
        array: Any = group._group[name]
        right = array[1]
        array[1] = wrong
        with pytest.raises(StoreError, match="damaged, row 1 has no place for a payload"):
            LatentArrays.open(tmp_path / "z").read_payload(1, "mp-1")
        array[1] = right
    assert group.read_payload(1, "mp-1") == payload(1)


def test_a_group_of_version_1_is_only_read() -> None:
    path = ROOT / "tests/data/store-v1/latents.zarr"
    group = LatentArrays.open(path)
    assert group.n_bytes is None
    assert group.read(0, "mp-1").grid == (18, 20, 24)
    assert group.read_payload(0, "mp-1") == b""
    with pytest.raises(StoreError, match="row 1 holds nothing"):
        group.read_payload(1, "mp-2")
    with pytest.raises(StoreError, match="format version 1, which is only read"):
        LatentArrays.open(path, writable=True)


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
    assert reader.read_payload(1, "mp-1") == payload(1)


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
        ({"payloads": [b"one"]}, InputError),
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
        "payloads": [b"one", b"two"],
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


@pytest.mark.usefixtures("small_shards")
def test_a_flipped_byte_of_a_payload_stops_no_other(tmp_path: Path) -> None:
    path = tmp_path / "z"
    add(LatentArrays.create(path, INT8, ATTRS), 0, 12)
    flip(path / "payload/c/0", 20)
    reader = LatentArrays.open(path)
    with pytest.raises(StoreError, match="checksum") as caught:
        reader.read_payload(0, "mp-0")
    assert "\n" not in str(caught.value)
    assert reader.read_payload(11, "mp-11") == payload(11)
    np.testing.assert_array_equal(reader.read(0, "mp-0").values, latents(0, 12)[0])


def test_flipped_byte_of_a_shard_index(tmp_path: Path) -> None:
    path = tmp_path / "z"
    add(LatentArrays.create(path, INT8, ATTRS), 0, 2)
    flip(path / "latent/c/0/0/0/0/0", -20)
    with pytest.raises(StoreError, match="checksum"):
        LatentArrays.open(path).read(0, "mp-0")


@pytest.mark.parametrize("name", ["material_id", "n_electrons", "payload_offset"])
def test_flipped_byte_of_a_small_array(tmp_path: Path, name: str) -> None:
    path = tmp_path / "z"
    add(LatentArrays.create(path, INT8, ATTRS), 0, 2)
    flip(path / name / "c/0", 10)
    group = LatentArrays.open(path)
    with pytest.raises(StoreError):
        group.read_payload(0, "mp-0") if "payload" in name else group.read(0, "mp-0")


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
    assert len(renamed) >= 16
    assert {path.relative_to(whole).parts[0] for path in renamed} >= {"payload", "payload_offset"}
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
    assert again.n_bytes is not None
    assert again.n_bytes > sum(len(payload(row)) for row in range(4))
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
    assert ds.payload.dims == ("byte",) and ds.payload.dtype == np.uint8
    assert ds.payload_offset.dims == ds.payload_length.dims == ("material",)
    assert ds.payload_offset.dtype == ds.payload_length.dtype == np.int64
    start, length = int(ds.payload_offset[1]), int(ds.payload_length[1])
    ds.payload[start:start + length].values.tofile(path + ".payload")
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
        assert Path(path + ".payload").read_bytes() == payload(1)


# --- written in parts -----------------------------------------------------------------------


def in_parts(group: LatentArrays, start: int, n: int) -> list[Part]:
    """`add`, with the latents and payloads written part by part, the last first, and each twice."""
    values = list(pack(latents(start, n, group.storage), INT8.dtype, INT8.scale_factor))
    rows = np.arange(start, start + n)
    payloads = [payload(int(i)) for i in rows]
    lengths = [len(one) for one in payloads]
    parts = group.reserve(start, lengths)
    assert isinstance(group.path, Path)
    for part in (*reversed(parts), *parts):
        inside = slice(part.start - start, part.stop - start)
        write_part(group.path, part, values[inside], payloads[inside])
    grids = rows[:, None] + [10, 11, 12]
    group.commit(parts, [f"mp-{i}" for i in rows], grids, grids + 1, rows + 0.25, lengths)
    return parts


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(("before", "n"), [(0, 1), (0, 9), (2, 11), (4, 3), (7, 1)])
def test_parts_share_no_file_and_hold_what_one_writer_writes(
    tmp_path: Path, before: int, n: int
) -> None:
    group = LatentArrays.create(tmp_path / "a", INT8, ATTRS)
    other = LatentArrays.create(tmp_path / "b", INT8, ATTRS)
    if before:
        add(group, 0, before)
        add(other, 0, before)
    parts = in_parts(LatentArrays.open(group.path, writable=True), before, n)
    add(other, before, n)
    assert len({part.start // 4 for part in parts}) == len(parts)
    assert all(part.byte % 64 == 0 for part in parts[1:])
    assert [part.stop for part in parts[:-1]] == [part.start for part in parts[1:]]
    reread = LatentArrays.open(group.path)
    assert reread.n_rows == before + n
    for row in range(before + n):
        assert reread.read_payload(row, f"mp-{row}") == payload(row)
        one, same = reread.read(row, f"mp-{row}"), other.read(row, f"mp-{row}")
        np.testing.assert_array_equal(one.values, same.values)
        assert (one.grid, one.work_grid, one.n_electrons) == (
            same.grid,
            same.work_grid,
            same.n_electrons,
        )


@pytest.mark.usefixtures("small_shards")
def test_parts_that_were_never_committed_are_overwritten(tmp_path: Path) -> None:
    group = LatentArrays.create(tmp_path / "a", INT8, ATTRS)
    for row in range(3):
        add(group, row, 1)
    lengths = [50] * 9
    values = list(pack(latents(50, 9), INT8.dtype, INT8.scale_factor))
    for part in group.reserve(3, lengths):
        inside = slice(part.start - 3, part.stop - 3)
        write_part(tmp_path / "a", part, values[inside], [b"l" * 50] * (part.stop - part.start))
    check(tmp_path / "a", 3)
    in_parts(LatentArrays.open(group.path, writable=True), 3, 6)
    again = LatentArrays.open(group.path, writable=True)
    add(again, 5, 4)  # rows 5 to 8 had no records: they are dropped, then written
    reread = LatentArrays.open(group.path)
    assert reread.n_rows == 9
    for row in range(9):
        assert reread.read_payload(row, f"mp-{row}") == payload(row)
        reread.read(row, f"mp-{row}")


def test_a_part_after_a_gap(tmp_path: Path) -> None:
    group = LatentArrays.create(tmp_path / "a", INT8, ATTRS)
    with pytest.raises(StoreError, match="row 1 does not follow the 0 rows"):
        group.reserve(1, [3])
