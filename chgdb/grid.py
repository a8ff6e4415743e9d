"""Grids of a periodic density: Fourier resampling, shifting, padding, and how fine a grid to take.

Resampling is trigonometric interpolation. It keeps the mean exactly, so electrons are conserved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chgdb.density import Grid
from chgdb.errors import InputError
from chgdb.units import BOHR, RYDBERG

__all__ = [
    "crop",
    "fourier_resample",
    "half_frequencies",
    "half_waves",
    "low_pass",
    "points_per_angstrom",
    "shift_origin",
    "smooth",
    "spacing_grid",
    "vasp_grid",
    "zero_pad",
]

_MAX_POINTS = 2**30
"""Points of the largest grid that is made: 8 GiB."""


def fourier_resample(values: NDArray[np.float64], grid: Sequence[int]) -> NDArray[np.float64]:
    """A real periodic field on another grid of the same cell, by trigonometric interpolation.

    Exact for a field without components at or above the Nyquist frequency of the coarser grid of
    each axis; components there are dropped. An axis whose number of points stays keeps all of them.
    The mean is kept to rounding.

    Args:
        values: shape (n1, n2, n3).
        grid: points along a, b, c of the result.

    Raises:
        InputError: a grid of less than one point or of more than 2^30.
    """
    grid = tuple(int(n) for n in grid)
    if len(grid) != 3 or min(grid) < 1:
        raise InputError(f"a grid is three positive numbers, not {grid}")
    if math.prod(grid) > _MAX_POINTS:
        raise InputError(f"a grid of {grid} points is too large: at most {_MAX_POINTS} points")
    values = np.asarray(values, dtype=np.float64)
    if grid == values.shape:
        return values.copy()
    coefficients = np.fft.rfftn(values, axes=(0, 1, 2))
    for axis in (0, 1):
        coefficients = _cut_or_pad(coefficients, axis, values.shape[axis], grid[axis])
    n_old, n_new = values.shape[2], grid[2]
    if n_old != n_new:
        keep = (min(n_old, n_new) - 1) // 2 + 1
        coefficients = coefficients[:, :, :keep]
    resampled = np.fft.irfftn(coefficients, s=grid, axes=(0, 1, 2), norm="backward")
    result: NDArray[np.float64] = resampled * (math.prod(grid) / values.size)
    return result


def _cut_or_pad(
    coefficients: NDArray[np.complex128], axis: int, n_old: int, n_new: int
) -> NDArray[np.complex128]:
    """Keep the frequencies below both Nyquist limits along one full (not halved) FFT axis."""
    if n_old == n_new:
        return coefficients
    h = (min(n_old, n_new) - 1) // 2
    shape = list(coefficients.shape)
    shape[axis] = n_new
    out = np.zeros(shape, dtype=coefficients.dtype)
    source, target = np.moveaxis(coefficients, axis, 0), np.moveaxis(out, axis, 0)
    target[: h + 1] = source[: h + 1]
    if h:
        target[-h:] = source[-h:]
    return out


def shift_origin(values: NDArray[np.float64], shift: ArrayLike) -> NDArray[np.float64]:
    """The field f(x - shift), whose shift need not be a whole number of grid points.

    Nyquist components of even axes, which have no defined phase, are dropped unless the shift is
    a whole number of points there.

    Args:
        values: shape (n1, n2, n3).
        shift: three fractional coordinates.
    """
    coefficients = np.fft.rfftn(values, axes=(0, 1, 2))
    frequencies = half_frequencies(values.shape)
    for axis, (n, s) in enumerate(zip(values.shape, np.asarray(shift, float), strict=True)):
        phase = np.exp(-2j * np.pi * frequencies[axis] * s)
        if n % 2 == 0:
            whole = abs(s * n - round(s * n)) < 1e-9
            phase[n // 2] = round(math.cos(math.pi * s * n)) if whole else 0.0
        shape = [1, 1, 1]
        shape[axis] = len(phase)
        coefficients *= phase.reshape(shape)
    return np.fft.irfftn(coefficients, s=values.shape, axes=(0, 1, 2))


def half_frequencies(grid: Sequence[int]) -> list[NDArray[np.floating]]:
    """The frequencies h, k, l along a, b, c of what `rfftn` gives for a field on a grid."""
    n1, n2, n3 = grid
    return [
        np.fft.fftfreq(n1, 1 / n1),
        np.fft.fftfreq(n2, 1 / n2),
        np.arange(n3 // 2 + 1, dtype=np.float64),
    ]


def half_waves(grid: Sequence[int]) -> NDArray[np.float64]:
    """The Miller indices of what `rfftn` gives for a field, shape (n1, n2, n3 // 2 + 1, 3)."""
    return np.stack(np.meshgrid(*half_frequencies(grid), indexing="ij"), axis=-1)


def low_pass(
    values: NDArray[np.float64], lattice: NDArray[np.float64], g_max: float
) -> NDArray[np.float64]:
    """The part of a field that waves with |G| of at most `g_max` make up; the mean is kept.

    Args:
        values: shape (n1, n2, n3).
        lattice: shape (3, 3), rows in Angstrom.
        g_max: 1/Angstrom, 2 pi included.
    """
    length = (
        2 * np.pi * np.linalg.norm(half_waves(values.shape) @ np.linalg.inv(lattice).T, axis=-1)
    )
    coefficients = np.where(length <= g_max, np.fft.rfftn(values, axes=(0, 1, 2)), 0.0)
    return np.fft.irfftn(coefficients, s=values.shape, axes=(0, 1, 2))


def zero_pad(values: NDArray[np.floating], box: Sequence[int]) -> NDArray[np.float64]:
    """The field in the low corner of a larger box of zeros.

    Raises:
        InputError: the field is larger than the box.
    """
    if any(n > m for n, m in zip(values.shape, box, strict=True)):
        raise InputError(f"a grid of {values.shape} does not fit into a box of {tuple(box)}")
    out = np.zeros(tuple(box))
    out[tuple(slice(n) for n in values.shape)] = values
    return out


def crop(values: NDArray[np.float64], grid: Sequence[int]) -> NDArray[np.float64]:
    """The low corner of a box: the inverse of `zero_pad`."""
    return values[tuple(slice(n) for n in grid)]


def spacing_grid(
    lattice: NDArray[np.float64], density: float, *, multiple: int = 1, largest: int | None = None
) -> Grid:
    """The smallest grid with at least `density` points per Angstrom along each lattice vector.

    Args:
        lattice: shape (3, 3), rows in Angstrom.
        density: points per Angstrom.
        multiple: every dimension is a multiple of it.
        largest: no dimension exceeds it, even where that is coarser than asked; a multiple of
            `multiple` itself.
    """
    lengths = np.linalg.norm(lattice, axis=1)
    steps = np.ceil(lengths * density / multiple - 1e-6).astype(int)
    grid = np.maximum(steps, 1) * multiple
    n1, n2, n3 = (int(n) for n in (grid if largest is None else np.minimum(grid, largest)))
    return n1, n2, n3


def points_per_angstrom(lattice: NDArray[np.float64], grid: Sequence[int]) -> float:
    """The lowest sampling density of a grid over its three axes, in 1/Angstrom.

    Args:
        lattice: shape (3, 3), rows in Angstrom.
        grid: points along a, b, c.
    """
    return float((np.asarray(grid) / np.linalg.norm(lattice, axis=1)).min())


def vasp_grid(lattice: NDArray[np.float64], encut: float = 500.0) -> Grid:
    """The fine FFT grid (NGXF, NGYF, NGZF) that VASP chooses with PREC = Accurate.

    Twice the smallest even 2-3-5-7-smooth grid that holds 2 G_cut on both sides (VASP wiki,
    "PREC"; "NGX").

    Args:
        lattice: shape (3, 3), rows in Angstrom.
        encut: plane-wave cut-off in eV.
    """
    cutoff = math.sqrt(encut / RYDBERG) / BOHR
    lengths = np.linalg.norm(lattice, axis=1)
    n1, n2, n3 = (2 * smooth(int(4 * cutoff * x / (2 * math.pi) + 0.5)) for x in lengths)
    return n1, n2, n3


def smooth(n: int, multiple: int = 2) -> int:
    """The smallest multiple of at least n without a prime factor above 7: FFTs of it are fast.

    Args:
        n: a number of points.
        multiple: itself without a prime factor above 7.
    """
    n = max(math.ceil(n / multiple), 1) * multiple
    while not _is_smooth(n):
        n += multiple
    return n


def _is_smooth(n: int) -> bool:
    for prime in (2, 3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n == 1
