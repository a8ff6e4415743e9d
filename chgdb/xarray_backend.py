"""A store as one xarray Dataset: `xr.open_dataset("store", engine="chgdb")`.

xarray finds this module by its entry point; nothing else imports it. docs/xarray.md has examples.
"""

from __future__ import annotations

import json
import math
import operator
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core.indexing import (
    ExplicitIndexer,
    IndexingSupport,
    LazilyIndexedArray,
    explicit_indexing_adapter,
)

from chgdb.database import Database, Source
from chgdb.density import Grid
from chgdb.errors import InputError
from chgdb.places import SCHEME, Place
from chgdb.schema import COLUMNS, INFO_FILE

__all__ = ["DEFAULT_GRID", "ChgdbBackend"]

DEFAULT_GRID: Grid = (48, 48, 48)
"""The common grid if none is asked for: nine of ten shipped densities have no more points an axis,
and it does not depend on what else is in a store."""

_BATCH_VALUES = 2**22
"""What is read together, at most, beyond one material: 32 MB of densities."""

_LATENT_DIMS = ("channel", "a", "b", "c")
_DENSITY_DIMS = ("frac_a", "frac_b", "frac_c")
_GRIDS = {
    "grid": "points of the source density along a, b, c",
    "work_grid": "points along a, b, c that the encoder saw",
}
_NOT_COLUMNS = {"id", "row", "lattice"} | {f"{grid}_{axis}" for grid in _GRIDS for axis in "abc"}
"""Columns of the table that are something else here."""


class ChgdbBackend(BackendEntrypoint):
    """The xarray engine "chgdb"."""

    description: ClassVar[str] = "Open a chgdb store: properties, latents and charge densities"

    def open_dataset(  # type: ignore[override] # the arguments of an engine are its own
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        grid: Sequence[int] | None = None,
        material: str | None = None,
        source: Source = "payload",
    ) -> xr.Dataset:
        """The densities of a store, or one, as a Dataset that decodes what is indexed.

        Along `material`, whose coordinate is the id, are the columns of the table (docs/format.md
        describes them): numbers as float64 with NaN for null if they may be null, text with "" for
        null, units in the attributes. `lattice` is (material, axis, xyz) in A, `grid` and
        `work_grid` are (material, axis), `species` and `frac_coords` remain JSON.

        `latent` (material, channel, a, b, c) and `density` (material, frac_a, frac_b, frac_c) in
        e/A^3 are read when they are indexed, and only for the materials that are. An array needs
        one shape, so all densities are decoded on one grid of fractional coordinates, `grid` or
        `DEFAULT_GRID`: by Fourier interpolation, which conserves the electrons, and loses detail
        where it is coarser than the source's grid. With `material` there is one density, on its
        own grid unless `grid` says otherwise, and no dimension `material`.

        Args:
            filename_or_obj: folder of the store, or s3://BUCKET/PREFIX.
            drop_variables: what to leave out.
            grid: points along a, b, c of every density.
            material: id of the only record to open.
            source: what densities are decoded from, as in `Database.decode`; "latent" needs torch.

        Raises:
            StoreError: there is no such store, or it is damaged.
            UnknownIdError: there is no such material.
            InputError: the grid is not three positive numbers.
        """
        database = Database(os.fspath(filename_or_obj))
        if not (material is None or isinstance(material, str)):
            raise InputError(
                "material: give one id, or open all and select with .sel(material=...)"
            )
        if material is None:
            rows = database.select(where="work_grid_a > 0").rows()
        else:
            rows = [record.row for record in database.get([material])]
            grid = grid or [rows[0][f"grid_{axis}"] for axis in "abc"]
        ids = [str(row["id"]) for row in rows]
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        variables = {
            **_metadata(rows),
            "latent": _lazy(
                ("material", *_LATENT_DIMS),
                _Latents(database.place, ids, database.info.latent.shape),
                {"units": "1", "long_name": "latent of the charge density"},
            ),
            "density": _lazy(
                ("material", *_DENSITY_DIMS),
                _Densities(database.place, ids, _checked(grid or DEFAULT_GRID), source),
                {"units": "e/angstrom^3", "long_name": "valence charge density"},
            ),
        }
        dataset = xr.Dataset(
            {name: value for name, value in variables.items() if name not in dropped},
            coords={
                "material": ("material", np.array(ids, dtype=str), {"long_name": "material id"}),
                "axis": list("abc"),
                "xyz": list("xyz"),
            },
            attrs={
                "encoder": database.info.encoder.id,
                "attribution": database.info.attribution,
                "created_by": database.info.created_by,
            },
        )
        for dim in _DENSITY_DIMS:
            if n := dataset.sizes.get(dim):
                position = f"fractional coordinate along {dim[-1]}"
                dataset[dim] = (dim, np.arange(n) / n, {"units": "1", "long_name": position})
        return dataset if material is None else dataset.isel(material=0)

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is the folder of a store, so that `engine` may be left out."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        store = os.fspath(filename_or_obj)
        return not store.startswith(SCHEME) and (Path(store) / INFO_FILE).is_file()


class _StoreArray(BackendArray):
    """One array per material, read or decoded when it is indexed.

    It holds a path and ids, and opens the store when it first reads, so it can be sent to another
    process; threads may read at once.
    """

    def __init__(
        self, path: Place, ids: Sequence[str], shape: Sequence[int], dtype: type[np.floating[Any]]
    ) -> None:
        self._path = path
        self._ids = ids
        self._database: Database | None = None
        self.shape = (len(ids), *shape)
        self.dtype = np.dtype(dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_database": None}

    def __getitem__(self, key: ExplicitIndexer) -> Any:
        return explicit_indexing_adapter(key, self.shape, IndexingSupport.OUTER, self._read)

    @abstractmethod
    def _values(self, database: Database, ids: Sequence[str]) -> Iterable[NDArray[Any]]:
        """The array of each material."""

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """Outer indexing: a number, a slice or an array of numbers along each dimension."""
        rows, *inner = (np.arange(n)[k] for n, k in zip(self.shape, key, strict=True))
        ids = [self._ids[row] for row in np.atleast_1d(rows)]
        inner_shape = [np.size(k) for k in inner]
        found = np.empty((len(ids), *inner_shape), self.dtype)
        if found.size:
            for i, values in enumerate(self._all_values(ids)):
                found[i] = values[np.ix_(*map(np.atleast_1d, inner))]
        return found.reshape([np.size(k) for k in (rows, *inner) if np.ndim(k)])

    def _all_values(self, ids: Sequence[str]) -> Iterator[NDArray[Any]]:
        """The array of each material, a few of them held at a time."""
        database = self._database = self._database or Database(self._path)
        batch = max(_BATCH_VALUES // math.prod(self.shape[1:]), 1)
        for start in range(0, len(ids), batch):
            yield from self._values(database, ids[start : start + batch])


class _Latents(_StoreArray):
    """The latents, as `Record.latent` gives them."""

    def __init__(self, path: Place, ids: Sequence[str], shape: Sequence[int]) -> None:
        super().__init__(path, ids, shape, np.float32)

    def _values(self, database: Database, ids: Sequence[str]) -> Iterable[NDArray[np.float32]]:
        return (record.latent().values for record in database.get(ids))


class _Densities(_StoreArray):
    """The densities on one grid, as `Database.decode` gives them."""

    def __init__(self, path: Place, ids: Sequence[str], grid: Grid, source: Source) -> None:
        super().__init__(path, ids, grid, np.float64)
        self._grid = grid
        self._source = source

    def _values(self, database: Database, ids: Sequence[str]) -> Iterable[NDArray[np.float64]]:
        decoded = database.decode(ids, grid=self._grid, source=self._source)
        return (density.values for density in decoded)


def _lazy(dims: Sequence[str], array: _StoreArray, attrs: Mapping[str, str]) -> xr.Variable:
    """A variable that dask cuts into one chunk per material."""
    chunks = dict(zip(dims, (1, *array.shape[1:]), strict=True))
    return xr.Variable(dims, LazilyIndexedArray(array), attrs, {"preferred_chunks": chunks})


def _metadata(rows: Sequence[Mapping[str, Any]]) -> dict[str, xr.Variable]:
    """What the table says of each material."""
    n = len(rows)
    variables = {
        name: _column(name, [row[name] for row in rows])
        for name in COLUMNS
        if name not in _NOT_COLUMNS
    }
    for name, long_name in _GRIDS.items():
        points = [[row[f"{name}_{axis}"] or 0 for axis in "abc"] for row in rows]
        values = np.array(points, np.int64).reshape(n, 3)
        attrs = {"units": "1", "long_name": long_name}
        variables[name] = xr.Variable(("material", "axis"), values, attrs)
    unknown = [[np.nan] * 3] * 3
    lattices = np.array(
        [unknown if row["lattice"] is None else json.loads(row["lattice"]) for row in rows],
        np.float64,
    ).reshape(n, 3, 3)
    attrs = {"units": "angstrom", "long_name": "lattice vectors a, b, c"}
    variables["lattice"] = xr.Variable(("material", "axis", "xyz"), lattices, attrs)
    return variables


def _column(name: str, cells: Sequence[Any]) -> xr.Variable:
    """A column of the table in a type that xarray computes with, whatever is null."""
    column = COLUMNS[name]
    attrs = {"long_name": column.description}
    if column.unit:
        attrs["units"] = column.unit
    if column.type == "text":
        values = np.array(["" if cell is None else cell for cell in cells], dtype=str)
    elif column.nullable or column.type == "real":
        values = np.array([np.nan if cell is None else cell for cell in cells], dtype=np.float64)
    else:
        values = np.array(cells, dtype=bool if column.type == "boolean" else np.int64)
    return xr.Variable("material", values, attrs)


def _checked(grid: Sequence[int]) -> Grid:
    try:
        n1, n2, n3 = (operator.index(n) for n in grid)
    except (TypeError, ValueError) as error:
        raise InputError(f"a grid is three whole numbers, not {grid!r}") from error
    if min(n1, n2, n3) < 1:
        raise InputError(f"a grid has points along each axis, not {grid!r}")
    return n1, n2, n3
