"""Pictures of densities: what is drawn, and that nothing is left when drawing fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from analytic import SKEW, crystal
from matplotlib.figure import Figure

from chgdb.density import ChargeDensity
from chgdb.errors import InputError
from chgdb.planes import LatticePlane
from chgdb.plot import plot_slice


@pytest.mark.parametrize(
    ("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"slice.{suffix}"
    plot_slice(crystal((8, 9, 10)), path)
    assert path.read_bytes().startswith(magic)
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_the_three_panels(tmp_path: Path, figures: list[Figure]) -> None:
    reference = crystal((12, 14, 16))
    density = ChargeDensity(reference.values * 1.1, reference.structure)
    plot_slice(density, tmp_path / "a.png", reference=reference, title="$mp_$", normal="a")
    (figure,) = figures
    panels = [axes for axes in figure.axes if axes.get_title()]
    titles = [axes.get_title() for axes in panels]
    assert titles == ["original", r"\$mp_\$ (NMAE 10.00 %)", "difference"]
    original, decoded, difference = (np.asarray(axes.collections[0].get_array()) for axes in panels)
    np.testing.assert_allclose(decoded, original * 1.1, rtol=1e-6)
    np.testing.assert_allclose(difference, decoded - original, atol=1e-9)
    scales = [axes.collections[0].get_clim() for axes in panels]
    assert scales[0] == scales[1]
    assert scales[2][0] == -scales[2][1]


def test_the_plane_has_its_true_shape(tmp_path: Path, figures: list[Figure]) -> None:
    plot_slice(crystal((8, 8, 8)), tmp_path / "a.png", normal="c")
    axes = figures[0].axes[0]
    corners = np.asarray(axes.collections[0].get_coordinates())  # type: ignore[attr-defined]
    a, b = corners[-1, 0] - corners[0, 0], corners[0, -1] - corners[0, 0]
    assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(SKEW[0]))
    assert np.linalg.norm(b) == pytest.approx(np.linalg.norm(SKEW[1]))
    assert a @ b == pytest.approx(SKEW[0] @ SKEW[1])


def test_any_lattice_plane_can_be_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    density = crystal((8, 8, 8))
    plot_slice(density, tmp_path / "a.png", normal="1,1,0", height=0.9)
    axes = figures[0].axes[0]
    plane = LatticePlane(density.structure, (1, 1, 0), 0.9)
    drawn = np.asarray(axes.collections[0].get_array())
    np.testing.assert_allclose(drawn, plane.values(density.values, drawn.shape), rtol=1e-9)
    assert [text.get_text() for text in axes.texts] == ["Si" for _ in plane.atoms(0.1)]


@pytest.mark.parametrize(
    ("height", "labels"), [(0.3, 1), (0.31, 1), (0.324, 0), (0.319, 1), (1.3, 1), (0.55, 1)]
)
def test_atoms_in_the_plane_are_named(
    tmp_path: Path, figures: list[Figure], height: float, labels: int
) -> None:
    """0.1 A from the plane at right angles to it, here 0.02 of c."""
    plot_slice(crystal((6, 6, 6)), tmp_path / "a.png", height=height)
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["Si"] * labels


def test_a_plane_of_negative_values_can_be_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    density = crystal((6, 6, 6))
    plot_slice(ChargeDensity(-density.values, density.structure), tmp_path / "a.png")
    plot_slice(ChargeDensity(density.values * 0, density.structure), tmp_path / "b.png")
    for figure in figures:
        assert figure.axes[0].collections[0].get_clim() == (0.0, 1.0)


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    density = crystal((6, 6, 6))
    with pytest.raises(InputError, match="plane 'd'"):
        plot_slice(density, tmp_path / "a.png", normal="d")
    with pytest.raises(InputError, match="position nan"):
        plot_slice(density, tmp_path / "a.png", height=float("nan"))
    with pytest.raises(InputError, match="suffix"):
        plot_slice(density, tmp_path / "a.xyz")
    with pytest.raises(InputError, match="cannot be written"):
        plot_slice(density, tmp_path / "no" / "a.png")
    with pytest.raises(InputError, match="lattices differ"):
        plot_slice(density, tmp_path / "a.png", reference=crystal((6, 6, 6), lattice=SKEW * 1.1))
    assert [path.name for path in tmp_path.iterdir()] == []
