"""How far a density is from its reference, in the terms of the field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chgdb.density import ChargeDensity
from chgdb.errors import InputError
from chgdb.grid import fourier_resample

__all__ = ["DensityError", "compare", "compare_cells", "nmae"]


@dataclass(frozen=True)
class DensityError:
    """The error of a density against a reference on the same grid.

    Attributes:
        nmae: normalised mean absolute error, %.
        max_error: largest absolute difference, e/A^3.
        electron_error: difference of the electron counts, e.
    """

    nmae: float
    max_error: float
    electron_error: float


def nmae(values: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """100 * sum|values - reference| / sum|reference|, in %.

    Raises:
        InputError: the shapes differ, or the reference is zero everywhere.
    """
    if values.shape != reference.shape:
        raise InputError(f"cannot compare grids of {values.shape} and {reference.shape}")
    norm = float(np.abs(reference).sum())
    if norm == 0.0:
        raise InputError("the reference density is zero everywhere")
    return 100.0 * float(np.abs(values - reference).sum()) / norm


def compare(density: ChargeDensity, reference: ChargeDensity) -> DensityError:
    """The error of `density` against `reference`, over the true cell.

    Raises:
        InputError: the grids differ, or the reference is zero everywhere.
    """
    return DensityError(
        nmae=nmae(density.values, reference.values),
        max_error=float(np.abs(density.values - reference.values).max()),
        electron_error=density.n_electrons - reference.n_electrons,
    )


def compare_cells(density: ChargeDensity, reference: ChargeDensity) -> DensityError:
    """`compare` for two grids of one cell: the density is resampled to that of the reference.

    Raises:
        InputError: the cells differ by more than the 6 decimals of a CHGCAR explain, or the
            reference is zero everywhere.
    """
    if not np.allclose(density.structure.lattice, reference.structure.lattice, atol=1e-4):
        raise InputError(
            f"{density.structure.formula} and {reference.structure.formula}: the lattices differ, "
            "so there is no point-wise error"
        )
    if density.grid != reference.grid:
        values = fourier_resample(density.values, reference.grid)
        density = ChargeDensity(values, density.structure)
    return compare(density, reference)
