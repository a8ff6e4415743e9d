"""The arrays of a store: quantised latents and what belongs to them, as one Zarr v3 group.

Rows are written first, then committed by one rename of the group's `zarr.json`, whose consolidated
metadata is what readers go by. docs/format.md states the protocol.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from chgdb.density import Grid
from chgdb.errors import ChgdbError, InputError, ModelError, StoreError
from chgdb.files import PARTIAL_SUFFIX, reason, replace_file, sync_folder
from chgdb.schema import (
    LatentStorage,
    check_id,
    check_packing,
)

__all__ = ["LatentArrays", "LatentStorage", "StoredLatent", "pack", "unpack"]

_MATERIALS_PER_SHARD = 128
_MATERIALS_PER_CHUNK = 1024
"""Of the small arrays; latents have one material per chunk."""

_METADATA = "zarr.json"
_ARRAYS = ("latent", "material_id", "grid", "work_grid", "n_electrons")
_MAX_GRID = np.iinfo(np.int32).max


def pack(values: NDArray[np.floating[Any]], dtype: str, scale_factor: float | None) -> NDArray[Any]:
    """Latents as they are stored: values / scale_factor, rounded half to even.

    Args:
        values: any shape.
        dtype: "int8" or "float16".
        scale_factor: for int8; None for float16.

    Raises:
        ModelError: a value is not finite, or too large for the dtype; nothing is clipped.
        InputError: a combination of dtype and scale factor that is not stored.
    """
    check_packing(dtype, scale_factor)
    scaled = np.asarray(values, dtype=np.float64)
    limit = float(np.finfo(np.float16).max)
    if scale_factor is not None:
        scaled = np.rint(scaled / scale_factor)
        limit = np.iinfo(np.int8).max
    if scaled.size and not np.isfinite(scaled).all():
        raise ModelError("a latent holds a value that is not a finite number")
    if scaled.size and (peak := float(np.abs(scaled).max())) > limit:
        largest = limit * (scale_factor or 1.0)
        value = peak * (scale_factor or 1.0)
        raise ModelError(f"a latent value of {value:g} exceeds {largest:g}, the most {dtype} holds")
    return scaled.astype(dtype)


def unpack(stored: NDArray[Any], dtype: str, scale_factor: float | None) -> NDArray[np.float32]:
    """Stored latents as float32: stored * scale_factor, what `xr.open_zarr` gives.

    Raises:
        InputError: a combination of dtype and scale factor that is not stored.
    """
    check_packing(dtype, scale_factor)
    return (stored.astype(np.float64) * (scale_factor or 1.0)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class StoredLatent:
    """One row of the arrays.

    Attributes:
        values: shape (channel, a, b, c), float32, unpacked.
        grid: points of the source density.
        work_grid: points that the encoder saw; see LatentStorage.extent.
        n_electrons: electrons in the cell.
    """

    values: NDArray[np.float32]
    grid: Grid
    work_grid: Grid
    n_electrons: float


class _DurableStore(LocalStore):
    """A LocalStore whose files are on the disk before they get their names."""

    def set_sync(self, key: str, value: Buffer) -> None:
        self._check_writable()
        _put(self.root / key, value.to_bytes())

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not (self.root / key).exists():
            await self.set(key, value)


def _put(path: Path, content: bytes) -> None:
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)
    replace_file(path, content)


class LatentArrays:
    """The Zarr group of a store, for reading rows or for adding and erasing them.

    Reading needs no lock; one writer may be open at a time.
    """

    def __init__(self, path: Path, group: zarr.Group, storage: LatentStorage, n_rows: int) -> None:
        self.path = path
        self.storage = storage
        self.n_rows = n_rows
        self._group = group

    @classmethod
    def create(
        cls, path: str | Path, storage: LatentStorage, attrs: Mapping[str, str]
    ) -> LatentArrays:
        """A new group without rows, open for writing.

        Args:
            path: folder to make.
            storage: how latents are stored.
            attrs: attributes of the group: the encoder, the licence.

        Raises:
            StoreError: the folder is there already, or cannot be written.
        """
        path = Path(path)
        if path.exists():
            raise StoreError(f"{path}: exists already")
        with _mapped(path):
            group = zarr.create_group(_DurableStore(path), zarr_format=3, attributes=dict(attrs))
            _create_arrays(group, storage)
            _commit(path, 0)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False) -> LatentArrays:
        """An existing group.

        Raises:
            StoreError: it is missing or damaged.
        """
        path = Path(path)
        with _mapped(path):
            store = _DurableStore(path, read_only=not writable)
            committed = zarr.open_group(store, mode="r", use_consolidated=True)
            arrays = {name: _array(committed, name) for name in _ARRAYS}
            latent = arrays["latent"]
            n_rows = latent.shape[0]
            if any(array.shape[0] != n_rows for array in arrays.values()):
                raise StoreError(f"{path}: damaged, its arrays differ in the number of rows")
            channel, a, b, c = latent.shape[1:]
            dtype = str(latent.dtype)
            scale = float(latent.attrs["scale_factor"])  # type: ignore[arg-type]
            storage = LatentStorage(dtype, scale if dtype == "int8" else None, (channel, a, b, c))
            if writable:
                for leftover in path.rglob(f".*{PARTIAL_SUFFIX}"):
                    leftover.unlink(missing_ok=True)
                committed = zarr.open_group(store, mode="r+", use_consolidated=False)
        return cls(path, committed, storage, n_rows)

    def write(
        self,
        start: int,
        ids: Sequence[str],
        latents: NDArray[Any],
        grids: ArrayLike,
        work_grids: ArrayLike,
        n_electrons: ArrayLike,
    ) -> None:
        """Write and commit the rows start...start + len(ids) - 1; they become the last rows.

        Rows from `start` on that are there already, which a crash may leave, are dropped.

        Args:
            start: first row, at most `n_rows`.
            ids: one material id per row.
            latents: shape (row, channel, a, b, c): float values, or packed in the stored dtype.
            grids: shape (row, 3), points of the source densities.
            work_grids: shape (row, 3), points that the encoder saw.
            n_electrons: shape (row,), electrons.

        Raises:
            InputError: an id, a shape or a number that cannot be stored.
            ModelError: a latent value that the stored dtype cannot hold.
            StoreError: a gap before `start`, or the arrays cannot be written.
        """
        if not 0 <= start <= self.n_rows:
            raise StoreError(f"{self.path}: row {start} does not follow the {self.n_rows} rows")
        rows = self._checked(ids, latents, grids, work_grids, n_electrons)
        stop = start + len(ids)
        with _mapped(self.path):
            if start < self.n_rows:
                self._commit(start)
            for name, values in rows.items():
                array = _array(self._group, name)
                array.resize((stop, *array.shape[1:]))
                array[start:stop] = values
            self._commit(stop)

    def read(self, row: int, expected_id: str) -> StoredLatent:
        """One row, if it belongs to the material it should.

        Raises:
            StoreError: no such row, a row of another material, or damaged data.
        """
        try:
            return self._read(row, expected_id)
        except StoreError:
            # A writer may have added the row since, or replaced a shard between the reading of
            # its index and of its chunk.
            return LatentArrays.open(self.path)._read(row, expected_id)

    def ids(self) -> list[str]:
        """The material id of every row; "" where the record was removed.

        Raises:
            StoreError: damaged data.
        """
        with _mapped(self.path):
            stored = _array(self._group, "material_id")[: self.n_rows]
            return [str(material_id) for material_id in np.asarray(stored)]

    def erase(self, rows: Sequence[int]) -> None:
        """Overwrite rows of removed records with the fill value; the other rows stay.

        Raises:
            StoreError: no such row, or the arrays cannot be written.
        """
        for row in rows:
            self._check_row(row)
        with _mapped(self.path):
            for name in _ARRAYS:
                array = _array(self._group, name)
                for row in rows:
                    array[row] = array.fill_value

    def _read(self, row: int, expected_id: str) -> StoredLatent:
        self._check_row(row)
        with _mapped(self.path):
            found = str(np.asarray(_array(self._group, "material_id")[row]).item())
            stored = np.asarray(_array(self._group, "latent")[row])
            grid = np.asarray(_array(self._group, "grid")[row])
            work_grid = np.asarray(_array(self._group, "work_grid")[row])
            n_electrons = float(np.asarray(_array(self._group, "n_electrons")[row]))
        if found != expected_id:
            held = found or "nothing"
            raise StoreError(f"{self.path}: row {row} holds {held}, not {expected_id}")
        values = unpack(stored, self.storage.dtype, self.storage.scale_factor)
        return StoredLatent(values, _grid(grid), _grid(work_grid), n_electrons)

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.n_rows:
            raise StoreError(f"{self.path}: no row {row}, there are {self.n_rows}")

    def _checked(
        self,
        ids: Sequence[str],
        latents: NDArray[Any],
        grids: ArrayLike,
        work_grids: ArrayLike,
        n_electrons: ArrayLike,
    ) -> dict[str, NDArray[Any]]:
        """The values to store, by array."""
        n = len(ids)
        latents = np.asarray(latents)
        if latents.dtype.kind == "f":
            latents = pack(latents, self.storage.dtype, self.storage.scale_factor)
        elif latents.dtype != np.dtype(self.storage.dtype):
            raise InputError(f"latents are float values or {self.storage.dtype}")
        rows = {
            "latent": _shaped("latents", latents, (n, *self.storage.shape)),
            "material_id": np.array([check_id(id_) for id_ in ids], dtype=object),
            "grid": _shaped("grids", np.asarray(grids).reshape(-1, 3), (n, 3)),
            "work_grid": _shaped("work_grids", np.asarray(work_grids).reshape(-1, 3), (n, 3)),
            "n_electrons": _shaped("n_electrons", np.asarray(n_electrons, np.float64), (n,)),
        }
        for name in ("grid", "work_grid"):
            if n and not (rows[name].min() >= 1 and rows[name].max() <= _MAX_GRID):
                raise InputError(f"{name}: a grid has a positive number of points along each axis")
        if not np.isfinite(rows["n_electrons"]).all():
            raise InputError("n_electrons holds a value that is not a finite number")
        return rows

    def _commit(self, n_rows: int) -> None:
        _commit(self.path, n_rows)
        self.n_rows = n_rows


def _create_arrays(group: zarr.Group, storage: LatentStorage) -> None:
    def create(name: str, dtype: str, axes: Mapping[str, int], attrs: Mapping[str, Any]) -> None:
        sizes = tuple(axes.values())
        is_latent = name == "latent"
        codecs: list[BytesBytesCodec] = [ZstdCodec(level=9), Crc32cCodec()]
        group.create_array(
            name,
            shape=(0, *sizes),
            chunks=(1 if is_latent else _MATERIALS_PER_CHUNK, *sizes),
            shards=(_MATERIALS_PER_SHARD, *sizes) if is_latent else None,
            dtype=dtype,
            compressors=codecs,
            fill_value="" if dtype == "string" else 0,
            dimension_names=["material", *axes],
            attributes={**attrs},
        )

    latent_axes = dict(zip(("channel", "a", "b", "c"), storage.shape, strict=True))
    scale = {"scale_factor": storage.scale_factor or 1.0}
    latent = {"long_name": "latent of the charge density", "units": "1", **scale}
    create("latent", storage.dtype, latent_axes, {**latent, "coordinates": "material_id"})
    create("material_id", "string", {}, {"long_name": "material id"})
    points = {"units": "1", "coordinates": "material_id"}
    grid = "points of the source density along a, b, c"
    create("grid", "int32", {"axis": 3}, {"long_name": grid, **points})
    work_grid = "points that the encoder saw along a, b, c"
    create("work_grid", "int32", {"axis": 3}, {"long_name": work_grid, **points})
    electrons = {"long_name": "electrons in the cell", "units": "e", "coordinates": "material_id"}
    create("n_electrons", "float64", {}, electrons)


def _commit(path: Path, n_rows: int) -> None:
    """Tell readers the number of rows, with one rename of the group's metadata."""
    root = json.loads((path / _METADATA).read_text(encoding="utf-8"))
    arrays = {}
    for name in sorted(_ARRAYS):
        metadata = json.loads((path / name / _METADATA).read_text(encoding="utf-8"))
        arrays[name] = {**metadata, "shape": [n_rows, *metadata["shape"][1:]]}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": arrays}
    root["consolidated_metadata"] = consolidated
    replace_file(path / _METADATA, (json.dumps(root, indent=2) + "\n").encode())


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{name} is not an array")
    return array


def _shaped(name: str, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if values.shape != shape:
        raise InputError(f"{name} have shape {values.shape}, not {shape}")
    return values


def _grid(values: NDArray[Any]) -> Grid:
    n1, n2, n3 = (int(n) for n in values)
    return n1, n2, n3


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """Whatever Zarr, its codecs or the system raise, as one line that names the arrays."""
    try:
        yield
    except ChgdbError:
        raise
    except FileNotFoundError as error:
        raise StoreError(f"{path}: missing or incomplete") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read or written ({reason(error)})") from error
    except Exception as error:
        raise StoreError(f"{path}: damaged or unreadable ({reason(error)})") from error
