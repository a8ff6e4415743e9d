"""Pictures of densities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chgdb.density import ChargeDensity
from chgdb.errors import InputError
from chgdb.figures import new_figure, save_figure
from chgdb.grid import fourier_resample
from chgdb.metrics import compare_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_slice"]

_AXES = {"a": 0, "b": 1, "c": 2}
_FINE = 3
"""A slice is drawn on a grid so many times finer than that of the density..."""
_COARSEST = 144
"""...and with at least so many points along each axis."""
_IN_PLANE = 0.1
"""Angstrom between an atom and the plane in which it is drawn."""


def plot_slice(
    density: ChargeDensity,
    path: str | Path,
    *,
    reference: ChargeDensity | None = None,
    normal: str = "c",
    height: float = 0.0,
    title: str = "density",
) -> None:
    """Draw a lattice plane of a density, in true proportions, with the atoms that lie in it.

    With a reference, three panels: reference, density, difference.

    Args:
        density: what to draw.
        path: PNG, SVG or PDF to write.
        reference: a density of the same cell.
        normal: the lattice vector that the plane cuts, "a", "b" or "c".
        height: fractional coordinate of the plane along it, any number.
        title: name of the density.

    Raises:
        InputError: an unknown axis, or the cells differ, or the file cannot be written or has
            another suffix.
        MissingExtraError: matplotlib is not installed.
    """
    if normal not in _AXES:
        raise InputError(f"--normal {normal}: use a, b or c")
    if not np.isfinite(height):
        raise InputError(f"--at {height}: use a fraction of the lattice vector, such as 0.5")
    axis = _AXES[normal]
    panels: list[tuple[str, NDArray[np.float64], str]] = []
    plane = _plane(density.values, axis, height)
    if reference is not None:
        error_of_density = compare_cells(density, reference)
        original = _plane(fourier_resample(reference.values, density.grid), axis, height)
        panels.append(("original", original, "density"))
        panels.append((f"{title} (NMAE {error_of_density.nmae:.2f} %)", plane, "density"))
        panels.append(("difference", plane - original, "difference"))
    else:
        panels.append((title, plane, "density"))
    top = max(float(values.max()) for _, values, kind in panels if kind == "density")
    top = top if top > 0 else 1.0
    figure = new_figure(4.2 * len(panels), 4.0, dpi=120)
    for number, (name, values, kind) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        peak = float(np.abs(values).max()) or 1.0
        colours: dict[str, Any] = (
            {"cmap": "viridis", "vmin": 0.0, "vmax": top}
            if kind == "density"
            else {"cmap": "RdBu_r", "vmin": -peak, "vmax": peak}
        )
        _draw(axes, density, values, axis, height, colours)
        axes.set_title(name.replace("$", r"\$"), fontsize=10)
        figure.colorbar(axes.collections[0], ax=axes, shrink=0.8, label="e/Å³")
    save_figure(figure, path)


def _plane(values: NDArray[np.float64], axis: int, height: float) -> NDArray[np.float64]:
    """A lattice plane at a fractional height, shape (m1, m2) on a fine grid, e/A^3."""
    n = values.shape[axis]
    frequencies = np.fft.fftfreq(n, 1 / n)
    phases = np.exp(2j * np.pi * frequencies * height)
    coefficients = np.fft.fft(values, axis=axis)
    plane = np.tensordot(coefficients, phases, axes=(axis, 0)).real / n
    shape = [max(_FINE * int(m), _COARSEST) for m in plane.shape]
    fine: NDArray[np.float64] = fourier_resample(plane[:, :, None], (*shape, 1))[:, :, 0]
    return fine


def _draw(
    axes: Axes,
    density: ChargeDensity,
    values: NDArray[np.float64],
    axis: int,
    height: float,
    colours: dict[str, Any],
) -> None:
    """One panel: the plane spanned by the two other lattice vectors, in Angstrom.

    Named are the atoms within `_IN_PLANE` of it.
    """
    lattice = density.structure.lattice
    others = [i for i in range(3) if i != axis]
    first, second = lattice[others[0]], lattice[others[1]]
    length = float(np.linalg.norm(first))
    along = float(first @ second) / length
    across = float(np.sqrt(second @ second - along**2))
    spacing = density.structure.volume / (length * across)
    u, v = (np.linspace(0, 1, n + 1) - 0.5 / n for n in values.shape)
    x = u[:, None] * length + v[None, :] * along
    y = np.broadcast_to(v[None, :] * across, x.shape)
    axes.pcolormesh(x, y, values, shading="flat", rasterized=True, **colours)
    for position, symbol in zip(
        density.structure.frac_coords, density.structure.species, strict=True
    ):
        distance = (position[axis] - height + 0.5) % 1 - 0.5
        if abs(distance) * spacing < _IN_PLANE:
            s, t = position[others] % 1
            axes.plot(s * length + t * along, t * across, "w.", markersize=3)
            axes.annotate(symbol, (s * length + t * along, t * across), color="w", fontsize=8)
    axes.set_aspect("equal")
    axes.set_xlabel("Å")
