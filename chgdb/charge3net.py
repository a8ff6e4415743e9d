"""Valence densities predicted from the structure alone, by ChargE3Net.

ChargE3Net (Koker et al., npj Comput. Mater. 10, 161 (2024)) is an E(3)-equivariant network that
tells the density at a point from the atoms within 4 A of it. The weights are those that pydemi
comes with, fine-tuned on VASP densities (PAW_PBE, 500 eV, PREC = Accurate): what it predicts is the
CHGCAR of such a run. docs/charge3net.md has its errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chgdb.density import ChargeDensity, Grid, Structure
from chgdb.elements import SYMBOLS
from chgdb.errors import InputError, MissingExtraError
from chgdb.grid import smooth, spacing_grid
from chgdb.stars import Operations
from chgdb.symmetry import find_operations

__all__ = ["SOURCE", "Charge3Net", "PredictedDensity", "grid_operations", "symmetry_unique"]

SOURCE = "charge3net"
"""What a store calls a density from here."""

DENSITY = 7.5
"""Points per Angstrom of `Charge3Net.work_grid`, at least."""

_PAIRS = 2048
"""Of an atom and a point in one pass of the network, 160 kB each."""

_SYMPREC = 1e-3
"""A; a density that is symmetrised wrongly by this is as exact as the network."""

_MULTIPLES = (2, 4, 6, 12)
"""Of the points along an axis, so that a grid holds the translations of screws and glides."""

_ON_GRID = 0.02
"""Points by which an operation may miss a grid point; 0.003 A."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PredictedDensity(ChargeDensity):
    """A predicted density, which holds exactly as many electrons as the pseudopotentials have.

    Attributes:
        raw_electrons: the integral of what the network predicted, by which it was divided.
    """

    raw_electrons: float


class Charge3Net:
    """The network with the weights that come with pydemi.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".

    Attributes:
        name: of the weights.
        weights_sha256: of their file.
        nmae: its error on the validation part of its own data, as the file states it, %.

    Raises:
        MissingExtraError: pydemi, torch, e3nn or ASE is not installed.
        InputError: the device does not exist.
    """

    def __init__(self, device: str = "auto") -> None:
        try:
            from pydemi import ml
        except ImportError as error:
            raise MissingExtraError("a density from a structure", "ml-density") from error
        if ml.missing():
            raise MissingExtraError("a density from a structure", "ml-density")
        from chgdb.codec import select_device

        self._valence: dict[str, float] = ml.ZVAL
        self._model = ml.load(device=select_device(device))
        self.name = str(self._model.info["name"])
        self.weights_sha256: str = self._model.sha256
        self.nmae = float(self._model.info["best_val_nmape"])

    def valence_electrons(self, structure: Structure) -> float:
        """Electrons in the cell with the pseudopotentials of the training data.

        Raises:
            InputError: there is an element that was not in the training data.
        """
        unknown = [symbol for symbol in structure.elements if symbol not in self._valence]
        if unknown:
            raise InputError(
                f"{', '.join(unknown)}: not among the {len(self._valence)} elements that "
                "ChargE3Net knows; add a density from DFT instead"
            )
        return sum(self._valence[symbol] for symbol in structure.species)

    def work_grid(self, structure: Structure) -> Grid:
        """The grid on which a density is predicted: as fine as a payload needs, no finer.

        Of the grids with the density `DENSITY` the one with the fewest symmetry-unique points.
        """
        operations = find_operations(structure, _SYMPREC)
        grids: list[Grid] = []
        for multiple in _MULTIPLES:
            grid = spacing_grid(structure.lattice, DENSITY, multiple=multiple)
            n1, n2, n3 = (smooth(n, multiple) for n in grid)
            grids.append((n1, n2, n3))
        return min(grids, key=lambda g: math.prod(g) / len(grid_operations(operations, g)[0]))

    def predict(
        self,
        structure: Structure,
        grid: Grid | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> PredictedDensity:
        """The density of a structure.

        Args:
            structure: a crystal.
            grid: points along a, b, c; `work_grid` by default.
            progress: called with the number of points done and of all.

        Raises:
            InputError: there is an element that the network does not know, or it predicts no
                electrons.
        """
        electrons = self.valence_electrons(structure)
        grid = self.work_grid(structure) if grid is None else grid
        operations = find_operations(structure, _SYMPREC)
        points, inverse = symmetry_unique(operations, grid)
        unique = self._at(structure, points / np.array(grid), progress)
        values = unique[inverse].reshape(grid)
        raw = float(values.mean()) * structure.volume
        if not raw > 0.5 * electrons:
            raise InputError(f"ChargE3Net predicts {raw:.3g} electrons instead of {electrons:g}")
        return PredictedDensity(values * (electrons / raw), structure, raw_electrons=raw)

    def _at(
        self,
        structure: Structure,
        points: NDArray[np.float64],
        progress: Callable[[int, int], None] | None,
    ) -> NDArray[np.float64]:
        """What the network predicts at points, shape (n, 3) in fractional coordinates, e/A^3."""
        import torch
        from pydemi import ml
        from pydemi.io.base import Lattice
        from pydemi.io.base import Structure as PydemiStructure
        from pydemi.ml.graph import Replicas, atom_edges, probe_edges

        model, device = self._model, self._model.device
        crystal = PydemiStructure(
            Lattice(np.array(structure.lattice)), list(structure.species), structure.frac_coords
        )

        def tensors(edges: tuple[NDArray[Any], ...]) -> tuple[torch.Tensor, ...]:
            atom, point, vector = edges
            return (
                torch.as_tensor(atom, device=device),
                torch.as_tensor(point, device=device),
                torch.as_tensor(vector, dtype=torch.float32, device=device),
            )

        images = Replicas.build(crystal, model.cutoff)
        numbers = [SYMBOLS.index(symbol) + 1 for symbol in structure.species]
        cartesian = points @ structure.lattice
        size = ml.chunk_size(crystal, device, _PAIRS)
        density = np.empty(len(points))
        with torch.inference_mode():
            atoms = model.net.atom_model(
                torch.tensor(numbers, device=device),
                *tensors(atom_edges(images, crystal, model.cutoff)),
            )
            for start in range(0, len(points), size):
                chunk = cartesian[start : start + size]
                edges = tensors(probe_edges(images, chunk, model.cutoff))
                found = model.net.probe_model(atoms, len(chunk), *edges)
                density[start : start + size] = found.cpu().numpy()
                if progress:
                    progress(start + len(chunk), len(points))
        return density


def grid_operations(operations: Operations, grid: Grid) -> tuple[NDArray[np.int64], ...]:
    """The operations that map a grid onto itself, on whole numbers of its points.

    They are a group: products and inverses of such operations are such operations.

    Returns:
        Rotations, shape (n, 3, 3), and translations, shape (n, 3), m -> W m + w modulo the grid.
    """
    n = np.array(grid)
    rotations = operations.rotations * n[:, None] / n
    shifts = operations.translations * n
    whole = (rotations == np.rint(rotations)).all(axis=(1, 2))
    fits = whole & (np.abs(shifts - np.rint(shifts)) <= _ON_GRID).all(axis=1)
    return np.rint(rotations[fits]).astype(np.int64), np.rint(shifts[fits]).astype(np.int64)


def symmetry_unique(
    operations: Operations, grid: Grid
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One point of each set of points that symmetry makes alike.

    Args:
        operations: of the space group; those that the grid does not hold are left out.
        grid: points along a, b, c.

    Returns:
        The points as whole numbers of steps, shape (n, 3), and for every point of the grid, in C
        order, which of them it is like, shape (n1 * n2 * n3,).
    """
    points = np.stack(np.unravel_index(np.arange(math.prod(grid)), grid), axis=1)
    first = np.arange(len(points))
    for rotation, shift in zip(*grid_operations(operations, grid), strict=True):
        image = (points @ rotation.T + shift) % grid
        np.minimum(first, np.ravel_multi_index(tuple(image.T), grid), out=first)
    unique, inverse = np.unique(first, return_inverse=True)
    return points[unique], inverse
