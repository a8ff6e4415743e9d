"""What the systems of `chgdb.systems` see of a material, and how numbers become features.

`SystemData` holds the same rows for every system. What is fitted here (scalers, components) is
fitted by the caller on training rows and handed back as named arrays, so that a trained system can
store them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chgdb.composition import COMPOSITION_FEATURES, composition_features
from chgdb.errors import InputError
from chgdb.files import shown
from chgdb.schema import PREDICTED

if TYPE_CHECKING:
    from chgdb.database import Database

__all__ = [
    "TARGETS",
    "SystemData",
    "fit_components",
    "fit_scaler",
    "repeated",
    "system_data",
    "tree_features",
]

Array = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]

TARGETS = PREDICTED
"""What the systems predict; units as in `chgdb.schema.PROPERTIES`."""

_SYMMETRY_STARTS = (3, 16, 75, 143, 168, 195)
"""First space groups of the monoclinic to the cubic crystal systems."""


@dataclass(frozen=True, eq=False)
class SystemData:
    """Materials as the systems see them.

    Attributes:
        ids: one per row.
        formulas: reduced formula of each row; polymorphs share it.
        split: "train", "val", "test" or "" of each row.
        latents: shape (row, channel, a, b, c), float32; `system_data` says in which unit.
        extents: shape (row, 3), int64: points of the latent that the cell fills along each axis.
            The crystal is periodic over them, so rolling them moves the origin and nothing else;
            0 where that does not hold.
        composition: shape (row, 138), `chgdb.composition.COMPOSITION_FEATURES`; nan is unknown.
        spacegroup: shape (row,), int64; 0 is unknown.
        targets: shape (row, target), `TARGETS` in their units; nan is unknown.
        encoder: id and hash of the encoder of the latents.

    Raises:
        InputError: the shapes do not fit each other.
    """

    ids: tuple[str, ...]
    formulas: tuple[str, ...]
    split: tuple[str, ...]
    latents: NDArray[np.float32]
    extents: NDArray[np.int64]
    composition: Array
    spacegroup: NDArray[np.int64]
    targets: Array
    encoder: str = ""

    def __post_init__(self) -> None:
        n = len(self.ids)
        lengths = {len(self.formulas), len(self.split), len(self.latents)}
        shapes = (
            (self.extents, (n, 3)),
            (self.composition, (n, len(COMPOSITION_FEATURES))),
            (self.spacegroup, (n,)),
            (self.targets, (n, len(TARGETS))),
        )
        if lengths != {n} or self.latents.ndim != 5 or any(a.shape != s for a, s in shapes):
            raise InputError("the columns of the data have different numbers of rows or features")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> SystemData:
        """Some rows, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        return SystemData(
            ids=tuple(self.ids[row] for row in index),
            formulas=tuple(self.formulas[row] for row in index),
            split=tuple(self.split[row] for row in index),
            latents=self.latents[index],
            extents=self.extents[index],
            composition=self.composition[index],
            spacegroup=self.spacegroup[index],
            targets=self.targets[index],
            encoder=self.encoder,
        )

    def part(self, *names: str) -> SystemData:
        """The rows of some parts of the split, such as "train"."""
        return self.take([row for row, part in enumerate(self.split) if part in names])


def system_data(database: Database, ids: Sequence[str] | None = None) -> SystemData:
    """The materials of a store.

    The latents of a `periodic` encoder stand for sqrt(density / mean density); here they are
    multiplied by the square root of the mean density in e/A^3, so that they tell, as the latents
    of the paper do, how dense a material is. Those of a `paper` encoder are taken as they are.

    Args:
        database: the store.
        ids: materials, in this order; None for all that have a latent and a part of the split.

    Raises:
        InputError: there are none.
        UnknownIdError: one is not there.
        StoreError: the store is damaged.
    """
    if ids is None:
        found = database.select(
            source="dft", where="n_electrons > 0", columns=["id", "split"]
        ).values
        ids = [material_id for material_id, split in found if split]
    if not ids:
        raise InputError(f"{shown(database.place)}: no materials that have a part of the split")
    records = database.get(list(ids))
    encoder = database.info.encoder
    periodic = encoder.kind == "periodic"
    latents, extents = [], []
    for record in records:
        latent = record.latent()
        factor = math.sqrt(latent.n_electrons / record.structure.volume) if periodic else 1.0
        latents.append(latent.values * np.float32(factor))
        extent = database.info.latent.extent(latent.work_grid)
        extents.append(extent if periodic else (0, 0, 0))
    rows = [record.row for record in records]
    targets = [[math.nan if row[t] is None else row[t] for t in TARGETS] for row in rows]
    return SystemData(
        ids=tuple(record.id for record in records),
        formulas=tuple(row["reduced_formula"] for row in rows),
        split=tuple(row["split"] or "" for row in rows),
        latents=np.stack(latents).astype(np.float32),
        extents=np.array(extents, dtype=np.int64),
        composition=np.stack([composition_features(r.structure.composition) for r in records]),
        spacegroup=np.array([row["spacegroup"] or 0 for row in rows], dtype=np.int64),
        targets=np.array(targets, dtype=np.float64),
        encoder=f"{encoder.id} {encoder.weights_sha256}",
    )


# ---------------------------------------------------------------------- features


def fit_scaler(values: NDArray[Any]) -> tuple[Array, Array]:
    """Mean and standard deviation of each column, 0 and 1 where nothing is known or varies."""
    known = np.isfinite(values)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0.0).sum(axis=0) / count
    std = np.sqrt((np.where(known, values - mean, 0.0) ** 2).sum(axis=0) / count)
    return mean, np.where(std > 1e-12 * np.maximum(np.abs(mean), 1.0), std, 1.0)


def fit_components(latents: NDArray[np.float32], limit: int) -> dict[str, NDArray[Any]]:
    """Standardisation and principal components of flattened latents.

    Numbers that no row varies in are left out. There are as many components as rows allow, `limit`
    at most.

    Returns:
        `latent/index` (feature,), `latent/mean` and `latent/std` (feature,), and
        `latent/components` (component, feature) in half precision, largest variance first.
    """
    flat = latents.reshape(len(latents), -1)
    index = np.flatnonzero(flat.std(axis=0) > 0)
    mean, std = fit_scaler(flat[:, index].astype(np.float64))
    scaled = (flat[:, index] - mean) / std
    # of the small matrix of rows: X = U S V^T, X X^T = U S^2 U^T, V = X^T U / S
    squares, vectors = np.linalg.eigh(scaled @ scaled.T)
    order = np.argsort(-squares, kind="stable")[: min(limit, len(flat) - 1)]
    order = order[squares[order] > 1e-9 * max(squares[-1], 1e-300)]
    components = (scaled.T @ vectors[:, order] / np.sqrt(squares[order])).T
    largest = np.abs(components).argmax(axis=1)
    components *= np.sign(components[np.arange(len(order)), largest])[:, None]
    return {
        "latent/index": index.astype(np.int32),
        "latent/mean": mean.astype(np.float32),
        "latent/std": std.astype(np.float32),
        "latent/components": components.astype(np.float16),
    }


def _projected(latents: NDArray[np.float32], tensors: Arrays) -> Array:
    """Shape (row, component)."""
    flat = latents.reshape(len(latents), -1)
    index, mean, std = (tensors[f"latent/{name}"] for name in ("index", "mean", "std"))
    components = tensors["latent/components"].astype(np.float64)
    # one row at a time: sums over a batch may be rounded otherwise
    rows = [components @ ((row[index] - mean) / std).astype(np.float64) for row in flat]
    return np.stack(rows) if rows else np.empty((0, len(components)))


def _pooled(data: SystemData) -> Array:
    """Shape (row, 2 channel): mean and standard deviation of each channel over the cell."""
    rows = []
    for latent, extent in zip(data.latents.astype(np.float64), data.extents, strict=True):
        a, b, c = extent if extent.all() else latent.shape[1:]
        cell = latent[:, :a, :b, :c].reshape(len(latent), -1)
        rows.append(np.concatenate([cell.mean(axis=1), cell.std(axis=1)]))
    return np.stack(rows)


def _symmetry(spacegroup: NDArray[np.int64]) -> Array:
    """Shape (row, 8): the space group, nan if unknown, and which crystal system it belongs to."""
    system = np.digitize(spacegroup, _SYMMETRY_STARTS)
    one_hot = np.eye(len(_SYMMETRY_STARTS) + 1)[system] * (spacegroup > 0)[:, None]
    return np.column_stack([np.where(spacegroup > 0, spacegroup, np.nan), one_hot])


def tree_features(inputs: Sequence[str], data: SystemData, tensors: Arrays) -> dict[str, Array]:
    """What trees see of each kind of input, shape (row, feature); a row depends on no other.

    Args:
        inputs: of "latent" (its principal components), "pooled" (mean and standard deviation of
            each channel over the cell), "composition" (standardised if a scaler was fitted) and
            "symmetry" (space group, and which of the 7 crystal systems).
        data: the materials.
        tensors: of `fit_components`, and `composition/mean` and `composition/std` of `fit_scaler`.
    """
    makers: dict[str, Callable[[], Array]] = {
        "latent": lambda: _projected(data.latents, tensors),
        "pooled": lambda: _pooled(data),
        "composition": lambda: _composition(data, tensors),
        "symmetry": lambda: _symmetry(data.spacegroup),
    }
    return {kind: makers[kind]() for kind in inputs}


def _composition(data: SystemData, tensors: Arrays) -> Array:
    """The composition, standardised where a scaler was fitted."""
    if "composition/mean" not in tensors:
        return data.composition
    scaled: Array = (data.composition - tensors["composition/mean"]) / tensors["composition/std"]
    return scaled


def repeated(data: SystemData) -> NDArray[np.float32]:
    """Latents, the crystal repeated until it fills their box, without the empty space beside it.

    The last repetition is cut where the box ends. Latents of unknown extents stay as they are.
    """
    filled = np.empty_like(data.latents)
    edges = data.latents.shape[2:]
    for row, (latent, extent) in enumerate(zip(data.latents, data.extents, strict=True)):
        a, b, c = (np.arange(n) % (m or n) for n, m in zip(edges, extent, strict=True))
        filled[row] = latent[:, a[:, None, None], b[:, None], c]
    return filled
