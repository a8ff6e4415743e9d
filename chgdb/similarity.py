"""How unlike two densities are: a distance that sees no origin, no orientation and no cell.

It is Euclidean, over five quantities that two kinds of pseudopotential give alike, because they
look between the atoms: the mean density there, the density at the middle of the bonds (mean and
standard deviation), the electrons between the atoms per atom, and the volume per atom. Each is the
logarithm of a descriptor plus a floor, so that what is small everywhere stays alike, over the
spread of that logarithm.

The spreads are constants, so that a distance means the same in every store: the distance of the
quartiles over 1.349 (the standard deviation, were they normal) among the 6059 materials in the data
set of pydemi 0.2.0 (`scripts/fit_similarity.py`).

Of the descriptors that see no cores these five were chosen because they find, from 384 densities of
other data sets (ABINIT), the VASP density of the same material among the 6059 most often
(docs/cli.md has the numbers).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["DENSITY_COLUMNS", "density_coordinates", "distances"]

DENSITY_COLUMNS = (
    "rho_int_mean",
    "rho_mid_mean",
    "rho_mid_std",
    "f_int",
    "electrons_per_atom",
    "volume_per_atom",
)
"""The columns of a feature table that the distance is made from."""

_FLOORS = np.array([0.01, 0.01, 0.01, 0.1, 0.01])
"""Added before the logarithm: e/A^3 three times, e per atom, A^3 per atom."""

_SPREADS = np.array([0.6190, 0.4305, 1.1887, 0.8217, 0.3581])
"""Of the logarithms, among the reference materials."""


def density_coordinates(
    table: Mapping[str, ArrayLike], spreads: ArrayLike = _SPREADS
) -> NDArray[np.float64]:
    """The points between which distances are Euclidean.

    Args:
        table: the `DENSITY_COLUMNS`, each of shape (n,), in the units of a feature table.
        spreads: shape (5,), what each coordinate is divided by.

    Returns:
        Shape (n, 5); NaN where a descriptor is not known.
    """
    columns = {name: np.asarray(table[name], dtype=np.float64) for name in DENSITY_COLUMNS}
    # f_int is a share of all electrons; their number depends on the pseudopotential.
    between_atoms = columns["f_int"] * columns["electrons_per_atom"]
    quantities = [columns[name] for name in ("rho_int_mean", "rho_mid_mean", "rho_mid_std")]
    points = np.stack([*quantities, between_atoms, columns["volume_per_atom"]], axis=-1)
    scaled: NDArray[np.float64] = np.log(np.maximum(points, 0.0) + _FLOORS) / np.asarray(spreads)
    return scaled


def distances(points: NDArray[np.float64], point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shape (n,): how far points of shape (n, 5) are from one of shape (5,)."""
    apart: NDArray[np.float64] = np.linalg.norm(points - point, axis=1)
    return apart
