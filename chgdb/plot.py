"""Pictures of densities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chgdb.density import ChargeDensity
from chgdb.figures import new_figure, save_figure
from chgdb.grid import fourier_resample
from chgdb.metrics import compare_cells
from chgdb.planes import LatticePlane, parse_miller

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_slice"]

_FINE = 3
"""A slice is drawn on a grid so many times finer than that of the density..."""
_COARSEST = 144
"""...and with at least so many points along its longer side."""
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
        normal: the plane: its Miller indices such as "1,1,0", or the one of the lattice vectors
            that it cuts while it holds the others, "a", "b" or "c".
        height: where it is, as a fraction of the spacing of such planes, any number.
        title: name of the density.

    Raises:
        InputError: an unknown plane, or the cells differ, or the file cannot be written or has
            another suffix.
        MissingExtraError: matplotlib is not installed.
    """
    plane = LatticePlane(density.structure, parse_miller(normal), height)
    shape = plane.shape(max(_FINE * max(density.grid), _COARSEST))
    panels: list[tuple[str, NDArray[np.float64], str]] = []
    values = plane.values(density.values, shape)
    if reference is not None:
        error_of_density = compare_cells(density, reference)
        original = plane.values(fourier_resample(reference.values, density.grid), shape)
        panels.append(("original", original, "density"))
        panels.append((f"{title} (NMAE {error_of_density.nmae:.2f} %)", values, "density"))
        panels.append(("difference", values - original, "difference"))
    else:
        panels.append((title, values, "density"))
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
        _draw(axes, plane, values, colours)
        axes.set_title(name.replace("$", r"\$"), fontsize=10)
        figure.colorbar(axes.collections[0], ax=axes, shrink=0.8, label="e/Å³")
    save_figure(figure, path)


def _draw(
    axes: Axes, plane: LatticePlane, values: NDArray[np.float64], colours: dict[str, Any]
) -> None:
    """One panel: the plane in Angstrom. Named are the atoms within `_IN_PLANE` of it."""
    (length, _), (along, across) = plane.vectors
    s, t = (np.linspace(0, 1, n + 1) - 0.5 / n for n in values.shape)
    x = s[:, None] * length + t[None, :] * along
    y = np.broadcast_to(t[None, :] * across, x.shape)
    axes.pcolormesh(x, y, values, shading="flat", rasterized=True, **colours)
    for atom in plane.atoms(_IN_PLANE):
        place = atom.s * length + atom.t * along, atom.t * across
        axes.plot(*place, "w.", markersize=3)
        axes.annotate(atom.symbol, place, color="w", fontsize=8)
    axes.set_aspect("equal")
    axes.set_xlabel("Å")
