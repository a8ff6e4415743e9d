"""The arrays of a store: quantised latents, payloads and what belongs to them, as one Zarr group.

Rows are written first, then committed by one rename of the group's `zarr.json`, whose consolidated
metadata is what readers go by. docs/format.md states the protocol.
"""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from numpy.typing import ArrayLike, NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, ObjectStore

from chgdb.density import Grid
from chgdb.errors import ChgdbError, InputError, ModelError, StoreError
from chgdb.files import (
    PARTIAL_SUFFIX,
    brief,
    place,
    reason,
    remove_partials,
    replace_file,
    sync_folder,
)
from chgdb.places import Place, RemotePath, as_os_error
from chgdb.schema import (
    LatentStorage,
    check_id,
    check_packing,
)
from chgdb.seals import UNSEALED, seal_holds, sealed

__all__ = [
    "RECORDED",
    "SEAL",
    "LatentArrays",
    "LatentStorage",
    "Part",
    "StoredLatent",
    "pack",
    "restore_metadata",
    "unpack",
    "write_part",
]

_T = TypeVar("_T")

_MATERIALS_PER_SHARD = 128
_MATERIALS_PER_CHUNK = 1024
"""Of the small arrays; latents have one material per chunk."""

_PAYLOAD_CHUNK = 2**14
_PAYLOAD_SHARD = 2**20
"""Bytes of payloads: what is read, and lost to damage, together; what is in one file."""

_METADATA = "zarr.json"
_ARRAYS = ("material_id", "latent", "grid", "work_grid", "n_electrons")
"""With one row per material, in every version of the format; the id is erased first."""

_PAYLOAD_ROWS = ("payload_offset", "payload_length")
RECORDED = "recorded_rows"
"""Attribute of the group: `LatentArrays.recorded`."""

SEAL = "seal"
"""Attribute of the group: what tells whether its `zarr.json` has changed."""

_PAYLOAD = "payload"
"""Since version 2: all payloads as one array of bytes, and where in it that of a row is."""

_CODECS = frozenset(("bytes", "vlen-utf8", "zstd", "crc32c", "sharding_indexed"))
"""What is in `zarr.json`. Zarr knows others, one of which, in its format 2, unpickles."""

_MAX_GRID = np.iinfo(np.int32).max
_MAX_FILE = 2**30
"""Bytes of a shard, or of a chunk, before it is compressed."""

_CHECKSUM = 4
"""Bytes of a CRC-32C at the end of a chunk."""

_MAX_FILES = 2**32
"""Of an array."""


def pack(values: NDArray[np.floating[Any]], dtype: str, scale_factor: float | None) -> NDArray[Any]:
    """Latents as they are stored: values / scale_factor, rounded half to even.

    Args:
        values: any shape.
        dtype: "int8", "float16" or "float32".
        scale_factor: for int8; None for the others.

    Raises:
        ModelError: a value is not finite, or too large for the dtype; nothing is clipped.
        InputError: a combination of dtype and scale factor that is not stored.
    """
    check_packing(dtype, scale_factor)
    scaled = np.asarray(values, dtype=np.float64)
    if scale_factor is not None:
        scaled = np.rint(scaled / scale_factor)
        limit = float(np.iinfo(np.int8).max)
    else:
        limit = float(np.finfo(dtype).max)
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


@dataclass(frozen=True)
class Part:
    """Rows whose latents and payloads one process writes, while others write other parts.

    Attributes:
        start: the first row.
        stop: the last row + 1.
        byte: of the first payload; the others follow it.
    """

    start: int
    stop: int
    byte: int


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


def _store(path: Place, *, read_only: bool = False) -> Store:
    """Where Zarr keeps its files; of an object it asks for the ranges that it needs."""
    if isinstance(path, RemotePath):
        return ObjectStore(path.client(within=True), read_only=read_only)
    return _DurableStore(path, read_only=read_only)


def _put(path: Path, content: bytes) -> None:
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)
    replace_file(path, content)


class LatentArrays:
    """The Zarr group of a store, for reading rows or for adding and erasing them.

    Reading needs no lock; one writer may be open at a time.

    Attributes:
        path: of the group.
        storage: how latents are stored.
        n_rows: rows that are committed.
        n_bytes: of payloads that are committed; None in a group of format version 1, which has no
            payloads and is only read.
    """

    def __init__(
        self,
        path: Place,
        group: zarr.Group,
        storage: LatentStorage,
        n_rows: int,
        n_bytes: int | None,
    ) -> None:
        self.path = path
        self.storage = storage
        self.n_rows = n_rows
        self.n_bytes = n_bytes
        self._group = group

    @classmethod
    def create(
        cls, path: str | Place, storage: LatentStorage, attrs: Mapping[str, str]
    ) -> LatentArrays:
        """A new group without rows, open for writing.

        Args:
            path: folder to make.
            storage: how latents are stored.
            attrs: attributes of the group: the encoder, the licence.

        Raises:
            StoreError: the folder is there already, or cannot be written.
        """
        path = place(path)
        if path.exists():
            raise StoreError(f"{path}: exists already")
        with _mapped(path):
            group = zarr.create_group(_store(path), zarr_format=3, attributes=dict(attrs))
            _create_arrays(group, storage)
            _commit(path, 0, 0)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: str | Place, *, writable: bool = False) -> LatentArrays:
        """An existing group.

        Raises:
            StoreError: it is missing or damaged.
        """
        path = place(path)
        with _mapped(path):
            if isinstance(path, Path) and seal_holds(path / _METADATA) is False:
                raise StoreError(
                    f"{path / _METADATA}: damaged, it has changed since it was written (seal); "
                    "chgdb verify --repair restores it"
                )
            store = _store(path, read_only=not writable)
            committed = zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=True)
            _check_codecs(committed.metadata.to_dict())
            has_payloads = _PAYLOAD in committed
            names = (*_ARRAYS, *_PAYLOAD_ROWS) if has_payloads else _ARRAYS
            arrays = {name: _array(committed, name) for name in names}
            every = [*arrays.values(), *([_array(committed, _PAYLOAD)] if has_payloads else [])]
            for array in every:
                _check_array(path, array)
            latent = arrays["latent"]
            n_rows = latent.shape[0]
            n_bytes = _array(committed, _PAYLOAD).shape[0] if has_payloads else None
            if any(array.shape[0] != n_rows for array in arrays.values()):
                raise StoreError(f"{path}: damaged, its arrays differ in the number of rows")
            channel, a, b, c = latent.shape[1:]
            dtype = str(latent.dtype)
            scale = float(latent.attrs["scale_factor"])  # type: ignore[arg-type]
            storage = LatentStorage(dtype, scale if dtype == "int8" else None, (channel, a, b, c))
            if writable:
                if not has_payloads:
                    raise StoreError(f"{path}: of format version 1, which is only read")
                if isinstance(path, Path):
                    _check_own(path, names)
                remove_partials(path, below=True)
                committed = zarr.open_group(store, mode="r+", zarr_format=3, use_consolidated=False)
        return cls(path, committed, storage, n_rows, n_bytes)

    def write(
        self,
        start: int,
        ids: Sequence[str],
        latents: NDArray[Any] | None,
        grids: ArrayLike,
        work_grids: ArrayLike,
        n_electrons: ArrayLike,
        payloads: Sequence[bytes],
    ) -> None:
        """Write and commit the rows start...start + len(ids) - 1; they become the last rows.

        Rows from `start` on that are there already, which a crash may leave, are dropped.

        Args:
            start: first row, at most `n_rows`.
            ids: one material id per row; "" in a row without a density, where the rest is 0.
            latents: shape (row, channel, a, b, c): float values, or packed in the stored dtype;
                None if no row has one.
            grids: shape (row, 3), points of the source densities; 0 where they are not known.
            work_grids: shape (row, 3), points that the encoder saw.
            n_electrons: shape (row,), electrons; 0 where they are not known.
            payloads: one per row; empty where there is none.

        Raises:
            InputError: an id, a shape or a number that cannot be stored.
            ModelError: a latent value that the stored dtype cannot hold.
            StoreError: a gap before `start`, or the arrays cannot be written.
        """
        rows = self._checked(ids, latents, grids, work_grids, n_electrons)
        lengths = np.array([len(payload) for payload in payloads], np.int64)
        rows["payload_length"] = _shaped("payloads", lengths, (len(ids),))
        stop = start + len(ids)
        self.truncate(start)
        with _mapped(self.path):
            ends = (self.n_bytes or 0) + np.cumsum(lengths)
            rows["payload_offset"] = ends - lengths
            for name, values in rows.items():
                self._extend(name, start, values)
            if "latent" not in rows:
                latent = _array(self._group, "latent")
                latent.resize((stop, *latent.shape[1:]))
            content = np.frombuffer(b"".join(payloads), np.uint8)
            n_bytes = self._extend(_PAYLOAD, self.n_bytes or 0, content)
            self._commit(stop, n_bytes)

    def reserve(self, start: int, lengths: Sequence[int]) -> list[Part]:
        """Rows from `start` on in parts that can be written at once: none shares a shard file.

        The lock of the store's one writer is held until `commit`. Rows from `start` on that are
        there already, which a crash may leave, are dropped.

        Args:
            start: first row, at most `n_rows`.
            lengths: of each row, bytes of the payload.

        Raises:
            StoreError: a gap before `start`, or the arrays cannot be written.
        """
        stop = start + len(lengths)
        self.truncate(start)
        with _mapped(self.path):
            latent, payload = _array(self._group, "latent"), _array(self._group, _PAYLOAD)
            rows, size = (latent.shards or (1,))[0], (payload.shards or (1,))[0]
            parts: list[Part] = []
            byte = end = self.n_bytes or 0
            for first in (start, *range(start - start % rows + rows, stop, rows)):
                last = min(first - first % rows + rows, stop)
                byte = -(-end // size) * size if parts else byte
                parts.append(Part(first, last, byte))
                end = byte + sum(lengths[first - start : last - start])
            latent.resize((stop, *latent.shape[1:]))
            payload.resize((end,))
        return parts

    def commit(
        self,
        parts: Sequence[Part],
        ids: Sequence[str],
        grids: ArrayLike,
        work_grids: ArrayLike,
        n_electrons: ArrayLike,
        lengths: Sequence[int],
    ) -> None:
        """Commit rows whose latents and payloads `write_part` has written; they become the last.

        Args:
            parts: what `reserve` gave.
            ids: one material id per row.
            grids: as of `write`, like `work_grids` and `n_electrons`.
            work_grids: shape (row, 3).
            n_electrons: shape (row,).
            lengths: of each row, bytes of the payload.

        Raises:
            InputError: an id, a shape or a number that cannot be stored.
            StoreError: the arrays cannot be written.
        """
        start = parts[0].start
        blank = np.zeros((len(ids), *self.storage.shape), self.storage.dtype)
        rows = self._checked(ids, blank, grids, work_grids, n_electrons)
        del rows["latent"]
        sizes = np.asarray(lengths, np.int64)
        rows["payload_length"] = _shaped("lengths", sizes, (len(ids),))
        offsets = []
        for part in parts:
            inside = sizes[part.start - start : part.stop - start]
            offsets.append(part.byte + np.cumsum(inside) - inside)
        rows["payload_offset"] = np.concatenate(offsets)
        with _mapped(self.path):
            for name, values in rows.items():
                self._extend(name, start, values)
            self._commit(parts[-1].stop, int(rows["payload_offset"][-1] + sizes[-1]))

    def truncate(self, n_rows: int) -> None:
        """Drop what a crash left: rows from `n_rows` on, and what is beyond the committed ones.

        Raises:
            StoreError: a gap before them, or the arrays cannot be written.
        """
        if n_rows < self.recorded:
            raise StoreError(
                f"{self.path}: rows {n_rows} to {self.recorded - 1} had records, so a file of the "
                "table is missing; restore it, chgdb verify says more"
            )
        if not 0 <= n_rows <= self.n_rows:
            raise StoreError(f"{self.path}: row {n_rows} does not follow the {self.n_rows} rows")
        with _mapped(self.path):
            if n_rows < self.n_rows:
                # a row without a record was never erased: it knows where its payload began
                self._commit(n_rows, int(self._row("payload_offset", n_rows)))
            for name in (*_ARRAYS, *_PAYLOAD_ROWS, _PAYLOAD):
                array = _array(self._group, name)
                length = self._length(name)
                if array.shape[0] > length:
                    array[length:] = array.fill_value
                    array.resize((length, *array.shape[1:]))
            for leftover in self.leftovers():
                leftover.unlink(missing_ok=True)

    @property
    def recorded(self) -> int:
        """Rows before this one have had their records: they are not what a crash left."""
        rows = self._group.attrs.get(RECORDED)
        return rows if isinstance(rows, int) else 0

    def record(self, n_rows: int) -> None:
        """Keep in mind that the rows before `n_rows` have their records.

        Raises:
            StoreError: it cannot be written.
        """
        with _mapped(self.path):
            if n_rows > self.recorded or SEAL not in self._group.attrs:
                root = json.loads((self.path / _METADATA).read_text(encoding="utf-8"))
                root["attributes"][RECORDED] = max(n_rows, self.recorded)
                _write_metadata(self.path, root)

    def leftovers(self) -> list[Path]:
        """Files of unfinished writing, and chunks that hold no committed row or byte.

        None of a group in a bucket, where they are overwritten when their turn comes.
        """
        if isinstance(self.path, RemotePath):
            return []
        found = list(self.path.rglob(f".*{PARTIAL_SUFFIX}"))
        for name in self.names:
            per_file = self.per_file(name)
            for path in (self.path / name / "c").glob("[0-9]*"):
                if path.name.isdecimal() and int(path.name) * per_file >= self._length(name):
                    found += (
                        [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
                    )
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays of this group."""
        return _ARRAYS if self.n_bytes is None else (*_ARRAYS, *_PAYLOAD_ROWS, _PAYLOAD)

    def block(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """What is stored in the rows (bytes, of `payload`) start...stop - 1 of an array.

        Raises:
            StoreError: damaged data.
        """
        with _mapped(self.path / name):
            if name == "material_id":
                self._check_ids(start, stop)
            return np.asarray(_array(self._group, name)[start:stop])

    def per_file(self, name: str) -> int:
        """Rows (bytes, of `payload`) of an array that one file holds."""
        array = _array(self._group, name)
        return (array.shards or array.chunks)[0]

    def chunks_per_file(self, name: str) -> int | None:
        """How many chunks the files of an array hold if they are shards; None if they are not."""
        array = _array(self._group, name)
        if array.shards is None:
            return None
        return math.prod(array.shards) // math.prod(array.chunks)

    def _length(self, name: str) -> int:
        """Committed rows (bytes, of `payload`) of an array."""
        return (self.n_bytes or 0) if name == _PAYLOAD else self.n_rows

    def read(self, row: int, expected_id: str) -> StoredLatent:
        """One row, if it belongs to the material it should.

        Raises:
            StoreError: no such row, a row of another material, or damaged data.
        """
        return self._repeated(lambda arrays: arrays._read(row, expected_id))

    def read_payload(self, row: int, expected_id: str) -> bytes:
        """The payload of one row, if it belongs to the material it should; empty if it has none.

        Raises:
            StoreError: no such row, a row of another material, or damaged data.
        """
        return self._repeated(lambda arrays: arrays._read_payload(row, expected_id))

    def ids(self) -> list[str]:
        """The material id of every row; "" where the record was removed.

        Raises:
            StoreError: damaged data.
        """
        return [str(material_id) for material_id in self.block("material_id", 0, self.n_rows)]

    def erase(self, rows: Sequence[int]) -> None:
        """Overwrite rows of removed records with the fill value; the other rows stay.

        Raises:
            StoreError: no such row, or the arrays cannot be written.
        """
        for row in rows:
            self._check_row(row)
        with _mapped(self.path):
            extents = [self._extent(row) for row in rows]
        self.erase_rows(rows)
        self.erase_bytes(extents)

    def erase_rows(self, rows: Sequence[int]) -> None:
        """Overwrite rows with the fill value, but for the bytes of their payloads.

        Raises:
            StoreError: the arrays cannot be written.
        """
        with _mapped(self.path):
            # An offset that is gone before its length would name bytes of another row.
            for name in (*_ARRAYS, "payload_length", "payload_offset"):
                array = _array(self._group, name)
                for row in rows:
                    array[row] = array.fill_value

    def erase_bytes(self, extents: Iterable[tuple[int, int]]) -> None:
        """Overwrite payloads with the fill value, each from its first byte to the last + 1.

        Raises:
            StoreError: the arrays cannot be written.
        """
        with _mapped(self.path):
            payload = _array(self._group, _PAYLOAD)
            for start, stop in extents:
                payload[start:stop] = payload.fill_value

    def overwrite(
        self, name: str, start: int, values: NDArray[Any] | None, stop: int | None = None
    ) -> None:
        """Write rows (bytes, of `payload`) of an array in whose chunks nothing else is whole.

        Args:
            name: of the array.
            start: first row.
            values: of the rows; None for the fill value.
            stop: last row + 1; by default where the values end.

        Raises:
            StoreError: the array cannot be written.
        """
        with _mapped(self.path / name):
            array = _array(self._group, name)
            end = start + len(values) if values is not None else (stop or start)
            array[start:end] = array.fill_value if values is None else values

    def _repeated(self, read: Callable[[LatentArrays], _T]) -> _T:
        """Read; if that fails, once more with what is on the disk now.

        A writer may have added the row since, or replaced a shard between the reading of its index
        and of its chunk.
        """
        try:
            return read(self)
        except StoreError:
            return read(LatentArrays.open(self.path))

    def _read(self, row: int, expected_id: str) -> StoredLatent:
        self._check_row(row)
        with _mapped(self.path):
            stored = self._row("latent", row)
            grid, work_grid = self._row("grid", row), self._row("work_grid", row)
            n_electrons = float(self._row("n_electrons", row))
        self._check_id(row, expected_id)
        values = unpack(stored, self.storage.dtype, self.storage.scale_factor)
        return StoredLatent(values, _grid(grid), _grid(work_grid), n_electrons)

    def _read_payload(self, row: int, expected_id: str) -> bytes:
        self._check_row(row)
        content = b""
        if self.n_bytes is not None:
            with _mapped(self.path):
                start, stop = self._extent(row)
                if not 0 <= start <= stop <= self.n_bytes:
                    raise StoreError(f"{self.path}: damaged, row {row} has no place for a payload")
                content = np.asarray(_array(self._group, _PAYLOAD)[start:stop]).tobytes()
        self._check_id(row, expected_id)
        return content

    def _row(self, name: str, row: int) -> NDArray[Any]:
        return np.asarray(_array(self._group, name)[row])

    def _extent(self, row: int) -> tuple[int, int]:
        """First and last + 1 of the bytes that are the payload of a row."""
        start = int(self._row("payload_offset", row))
        return start, start + int(self._row("payload_length", row))

    def _extend(self, name: str, start: int, values: NDArray[Any]) -> int:
        """Write from `start` on, to the new end of the array; where that is."""
        array = _array(self._group, name)
        stop = start + len(values)
        array.resize((stop, *array.shape[1:]))
        array[start:stop] = values
        return stop

    def _check_id(self, row: int, expected_id: str) -> None:
        """Asked after the rest of a row is read: what was erased meanwhile is not given out."""
        with _mapped(self.path):
            self._check_ids(row, row + 1)
            found = str(self._row("material_id", row).item())
        if found != expected_id:
            held = found or "nothing"
            raise StoreError(f"{self.path}: row {row} holds {held}, not {expected_id}")

    def _check_ids(self, start: int, stop: int) -> None:
        """Refuse files that announce more ids than one holds: room would be made for them."""
        if isinstance(self.path, RemotePath):
            return
        per_file = self.per_file("material_id")
        for index in range(start // per_file, -(-stop // per_file)):
            path = self.path / "material_id" / "c" / str(index)
            with suppress(FileNotFoundError):
                texts = Zstd().decode(path.read_bytes()[:-_CHECKSUM])
                if int.from_bytes(texts[:4], "little") != per_file:
                    raise StoreError(f"{path}: damaged, it does not hold {per_file} ids")

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.n_rows:
            raise StoreError(f"{self.path}: no row {row}, there are {self.n_rows}")

    def _checked(
        self,
        ids: Sequence[str],
        latents: NDArray[Any] | None,
        grids: ArrayLike,
        work_grids: ArrayLike,
        n_electrons: ArrayLike,
    ) -> dict[str, NDArray[Any]]:
        """The values to store, by array."""
        n = len(ids)
        rows = {
            "material_id": np.array([id_ and check_id(id_) for id_ in ids], dtype=object),
            "grid": _shaped("grids", np.asarray(grids).reshape(-1, 3), (n, 3)),
            "work_grid": _shaped("work_grids", np.asarray(work_grids).reshape(-1, 3), (n, 3)),
            "n_electrons": _shaped("n_electrons", np.asarray(n_electrons, np.float64), (n,)),
        }
        if latents is not None:
            rows["latent"] = _shaped("latents", self._packed(latents), (n, *self.storage.shape))
        for name in ("grid", "work_grid"):
            known = rows[name][(rows[name] != 0).any(axis=1)]
            if known.size and not (known.min() >= 1 and known.max() <= _MAX_GRID):
                raise InputError(f"{name}: a grid has a positive number of points along each axis")
        named = rows["material_id"] != ""
        if latents is None and named.any():
            raise InputError("a row that has the id of a material has a latent")
        if (rows["work_grid"][named] < 1).any():
            raise InputError("work_grid: a latent was made on a grid with points along each axis")
        if not np.isfinite(rows["n_electrons"]).all():
            raise InputError("n_electrons holds a value that is not a finite number")
        return rows

    def _packed(self, latents: NDArray[Any]) -> NDArray[Any]:
        latents = np.asarray(latents)
        if latents.dtype.kind == "f":
            return pack(latents, self.storage.dtype, self.storage.scale_factor)
        if latents.dtype != np.dtype(self.storage.dtype):
            raise InputError(f"latents are float values or {self.storage.dtype}")
        return latents

    def _commit(self, n_rows: int, n_bytes: int) -> None:
        _commit(self.path, n_rows, n_bytes)
        self.n_rows, self.n_bytes = n_rows, n_bytes


def write_part(
    path: str | Path, part: Part, latents: Sequence[NDArray[Any]], payloads: Sequence[bytes]
) -> None:
    """Write what `LatentArrays.reserve` has made room for, and nothing else; in any process.

    Written once more, the same gives the same.

    Args:
        path: of the group.
        part: one that `reserve` gave.
        latents: of each row, packed in the stored dtype.
        payloads: of each row; empty where there is none.

    Raises:
        StoreError: the arrays cannot be written.
    """
    with _mapped(Path(path)):
        group = zarr.open_group(_DurableStore(Path(path)), mode="r+", use_consolidated=False)
        _array(group, "latent")[part.start : part.stop] = np.stack(latents)
        content = np.frombuffer(b"".join(payloads), np.uint8)
        _array(group, _PAYLOAD)[part.byte : part.byte + len(content)] = content


def restore_metadata(
    path: Path, storage: LatentStorage, attrs: Mapping[str, str], keep: Callable[[Path], None]
) -> list[Path]:
    """Write damaged metadata anew: those of the group from the arrays', theirs from the group's.

    Args:
        path: of the group.
        storage: how latents are stored.
        attrs: attributes of the group.
        keep: called with a file before it is changed.

    Returns:
        The files that were changed.

    Raises:
        StoreError: they cannot be written.
    """
    names = (*_ARRAYS, *_PAYLOAD_ROWS, _PAYLOAD)
    changed = []
    known: dict[str, Any] = {}
    recorded = 0
    try:
        LatentArrays.open(path)
        root = json.loads((path / _METADATA).read_text(encoding="utf-8"))
        recorded = root["attributes"].get(RECORDED, 0)
        if {k: root["attributes"].get(k) for k in attrs} == dict(attrs) and type(recorded) is int:
            known = root["consolidated_metadata"]["metadata"]
    except (ChgdbError, OSError, ValueError, KeyError, TypeError):
        pass
    with _mapped(path), tempfile.TemporaryDirectory(prefix="chgdb-") as folder:
        LatentArrays.create(Path(folder) / "made", storage, attrs)
        made = {name: _read_json(Path(folder) / "made" / name / _METADATA) for name in names}
        own = {name: _read_json(path / name / _METADATA) for name in names}
        lengths = [n for name in names if name != _PAYLOAD for n in [_length_of(own[name])] if n]
        for name in names:
            right = known.get(name) or (own[name] if _is_like(own[name], made[name]) else None)
            if right is None:
                length = max(lengths, default=0)
                if name == _PAYLOAD:
                    length = max(_length_of(own[name]) or 0, _PAYLOAD_SHARD * _files(path / name))
                right = {**made[name], "shape": [length, *made[name]["shape"][1:]]}
            found = own[name] or {"shape": []}
            if {**found, "shape": found["shape"][1:]} != {**right, "shape": right["shape"][1:]} or (
                (_length_of(found) or 0) < right["shape"][0]
            ):
                keep(path / name / _METADATA)
                _put(path / name / _METADATA, json.dumps(right, indent=2).encode())
                changed.append(path / name / _METADATA)
        if not known:
            keep(path / _METADATA)
            rows, n_bytes = (
                max(lengths, default=0),
                _length_of(_read_json(path / _PAYLOAD / _METADATA)),
            )
            root = {"attributes": {**attrs, RECORDED: recorded or rows}}
            _write_metadata(path, {**root, "zarr_format": 3, "node_type": "group"})
            _commit(path, rows, n_bytes or 0)
            changed.append(path / _METADATA)
    return changed


def _read_json(path: Path) -> dict[str, Any]:
    """The metadata of an array; empty if they are damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if _length_of(content) is not None else {}


def _length_of(metadata: Any) -> int | None:
    """Rows of an array by its metadata; None if they do not say."""
    shape = metadata.get("shape") if isinstance(metadata, dict) else None
    if not isinstance(shape, list) or not shape:
        return None
    return shape[0] if type(shape[0]) is int and shape[0] >= 0 else None


def _is_like(found: dict[str, Any], made: dict[str, Any]) -> bool:
    """Whether metadata are those of an array that a writer makes, but for the sizes of files."""
    return {**found, "shape": 0} == {**made, "shape": 0} and found["shape"][1:] == made["shape"][1:]


def _files(path: Path) -> int:
    return 1 + max((int(p.name) for p in (path / "c").glob("*") if p.name.isdecimal()), default=-1)


def _create_arrays(group: zarr.Group, storage: LatentStorage) -> None:
    def create(
        name: str,
        dtype: str,
        axes: Mapping[str, int],
        attrs: Mapping[str, Any],
        *,
        first: str = "material",
        chunk: int = _MATERIALS_PER_CHUNK,
        shard: int | None = None,
    ) -> None:
        sizes = tuple(axes.values())
        codecs: list[BytesBytesCodec] = [ZstdCodec(level=9), Crc32cCodec()]
        group.create_array(
            name,
            shape=(0, *sizes),
            chunks=(chunk, *sizes),
            shards=(shard, *sizes) if shard else None,
            dtype=dtype,
            compressors=codecs,
            fill_value="" if dtype == "string" else 0,
            dimension_names=[first, *axes],
            attributes={**attrs},
        )

    latent_axes = dict(zip(("channel", "a", "b", "c"), storage.shape, strict=True))
    scale = {"scale_factor": storage.scale_factor or 1.0}
    named = {"coordinates": "material_id"}
    latent = {"long_name": "latent of the charge density", "units": "1", **scale, **named}
    create("latent", storage.dtype, latent_axes, latent, chunk=1, shard=_MATERIALS_PER_SHARD)
    create("material_id", "string", {}, {"long_name": "material id"})
    for name, dtype, axes, units, long_name in (
        ("grid", "int32", {"axis": 3}, "1", "points of the source density along a, b, c"),
        ("work_grid", "int32", {"axis": 3}, "1", "points that the encoder saw along a, b, c"),
        ("n_electrons", "float64", {}, "e", "electrons in the cell"),
        ("payload_offset", "int64", {}, "1", "first byte of the payload"),
        ("payload_length", "int64", {}, "1", "bytes of the payload"),
    ):
        create(name, dtype, axes, {"long_name": long_name, "units": units, **named})
    create(
        _PAYLOAD,
        "uint8",
        {},
        {"long_name": "payloads of all materials, one after another"},
        first="byte",
        chunk=_PAYLOAD_CHUNK,
        shard=_PAYLOAD_SHARD,
    )


def _commit(path: Place, n_rows: int, n_bytes: int) -> None:
    """Tell readers the number of rows and bytes, with one rename of the group's metadata."""
    root = json.loads((path / _METADATA).read_text(encoding="utf-8"))
    arrays = {}
    for name in sorted((*_ARRAYS, *_PAYLOAD_ROWS, _PAYLOAD)):
        metadata = json.loads((path / name / _METADATA).read_text(encoding="utf-8"))
        length = n_bytes if name == _PAYLOAD else n_rows
        arrays[name] = {**metadata, "shape": [length, *metadata["shape"][1:]]}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": arrays}
    root["consolidated_metadata"] = consolidated
    _write_metadata(path, root)


def _write_metadata(path: Place, root: dict[str, Any]) -> None:
    """Write the metadata of the group, sealed."""
    root["attributes"] = {**root.get("attributes", {}), SEAL: UNSEALED}
    replace_file(path / _METADATA, sealed((json.dumps(root, indent=2) + "\n").encode()))


def _check_array(path: Place, array: zarr.Array[Any]) -> None:
    """Refuse an array that no writer of stores makes, before any memory is given to its chunks.

    Raises:
        StoreError: its type, its codecs or the size of its files are others.
    """
    name, codecs = array.basename, array.metadata.to_dict().get("codecs", ())
    packed = ["zstd", "crc32c"]
    known = (["sharding_indexed"], ["bytes", *packed], ["vlen-utf8", *packed])
    found = [str(codec["name"]) for codec in codecs]  # type: ignore[union-attr,index,call-overload]
    size = math.prod(array.shards or array.chunks) * array.dtype.itemsize
    rows = array.shape[0] if array.ndim else 0
    files = -(-rows // (array.shards or array.chunks or (1,))[0])
    if found not in known or array.ndim < 1 or size > _MAX_FILE or files > _MAX_FILES:
        raise StoreError(
            f"{path}: damaged, {name} is not an array of a store (shape {array.shape}, "
            f"chunks {array.chunks}, codecs {', '.join(found)})"[:500]
        )


def _check_own(path: Path, names: Iterable[str]) -> None:
    """Refuse to write by the metadata of an array that are not those that readers go by.

    Raises:
        StoreError: they differ in more than the number of rows.
    """
    root = json.loads((path / _METADATA).read_text(encoding="utf-8"))
    for name in names:
        own = json.loads((path / name / _METADATA).read_text(encoding="utf-8"))
        known = root["consolidated_metadata"]["metadata"][name]
        if {**own, "shape": own["shape"][1:]} != {**known, "shape": known["shape"][1:]}:
            raise StoreError(
                f"{path / name / _METADATA}: damaged, the {_METADATA} of the group says otherwise; "
                "chgdb verify --repair restores it"
            )


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"{name} is not an array")
    return array


def _check_codecs(metadata: Any) -> None:
    """Refuse what chgdb has never written, before a chunk is decoded with it.

    Raises:
        StoreError: an array of Zarr format 2, or a codec that is none of ours.
    """
    for item in metadata if isinstance(metadata, list) else [metadata]:
        if not isinstance(item, dict):
            continue
        if item.get("zarr_format", 3) != 3:
            raise StoreError("an array of another format than Zarr 3")
        for key in ("codecs", "index_codecs"):
            for codec in item.get(key, ()):
                if codec["name"] not in _CODECS:
                    raise StoreError(f"an unknown codec, {brief(str(codec['name']))}")
                _check_codecs(codec.get("configuration"))
        consolidated = item.get("consolidated_metadata") or {}
        _check_codecs(list(consolidated.get("metadata", {}).values()))


def _shaped(name: str, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if values.shape != shape:
        raise InputError(f"{name} have shape {values.shape}, not {shape}")
    return values


def _grid(values: NDArray[Any]) -> Grid:
    n1, n2, n3 = (int(n) for n in values)
    return n1, n2, n3


@contextmanager
def _mapped(path: Place) -> Iterator[None]:
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
        what = (
            "cannot be read or written"
            if (known := as_os_error(error))
            else "damaged or unreadable"
        )
        raise StoreError(f"{path}: {what} ({reason(known or error)})") from error
