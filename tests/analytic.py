"""Fields known in closed form, on any grid and cell: what the tests measure with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from chgdb.density import ChargeDensity, Grid, Structure

SKEW = np.array([[3.9, 0.0, 0.0], [1.3, 4.1, 0.0], [-0.7, 0.9, 5.2]])
"""Rows of a triclinic cell, A; 5.2 A long at least along c."""

Wave = tuple[tuple[int, int, int], float, float]
"""Whole-number wave vector, amplitude and phase of a cosine."""


def cosines(grid: Sequence[int], waves: Sequence[Wave], constant: float) -> NDArray[np.float64]:
    """A constant plus amplitude * cos(2 pi h.x + phase), at x = (i/n1, j/n2, k/n3)."""
    x = np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij")
    field = np.full(tuple(grid), constant)
    for wave, amplitude, phase in waves:
        angle = sum(2 * np.pi * h * axis for h, axis in zip(wave, x, strict=True))
        field += amplitude * np.cos(angle + phase)
    return field


def gaussians(
    grid: Sequence[int],
    structure: Structure,
    *,
    width: float = 0.6,
    electrons: float = 4.0,
    background: float = 0.05,
) -> NDArray[np.float64]:
    """A Gaussian per atom, of `width` A, with all its periodic images, on a background; e/A^3."""
    lattice = structure.lattice
    x = np.stack(np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij"), axis=-1)
    field = np.full(tuple(grid), background)
    norm = electrons / (width * np.sqrt(2 * np.pi)) ** 3
    for position in structure.frac_coords:
        for image in product((-2, -1, 0, 1, 2), repeat=3):
            away = (x - position - np.array(image)) @ lattice
            field += norm * np.exp(-np.square(away).sum(axis=-1) / (2 * width**2))
    return field


def crystal(
    grid: Grid = (20, 24, 27),
    *,
    lattice: NDArray[np.float64] = SKEW,
    coords: Sequence[Sequence[float]] = ((0.1, 0.2, 0.3), (0.6, 0.7, 0.55)),
    width: float = 0.6,
    electrons: float = 4.0,
) -> ChargeDensity:
    """A crystal of silicon-like Gaussians."""
    structure = Structure(lattice, ("Si",) * len(coords), np.array(coords, dtype=float))
    values = gaussians(grid, structure, width=width, electrons=electrons)
    return ChargeDensity(values, structure)
