"""Structures and densities as immutable values."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from analytic import SKEW, crystal
from ase import Atoms
from ase.build import bulk

from chgdb.density import ChargeDensity, Structure
from chgdb.errors import InputError

CUBE = np.diag([2.0, 3.0, 4.0])


def structure(**changes: Any) -> Structure:
    parts: dict[str, Any] = {
        "lattice": CUBE,
        "species": ("Sr", "V", "O", "O", "O"),
        "frac_coords": np.arange(15).reshape(5, 3) / 15,
    }
    return Structure(**{**parts, **changes})


def test_derived_quantities() -> None:
    crystal = structure()
    assert crystal.volume == pytest.approx(24.0)
    assert crystal.formula == "SrVO3"
    assert crystal.elements == ("O", "Sr", "V")
    assert crystal.composition == {"O": 3, "Sr": 1, "V": 1}
    mass = 87.62 + 50.9415 + 3 * 15.999
    assert crystal.mass_density == pytest.approx(mass * 1.66053906660 / 24.0, rel=1e-6)


@pytest.mark.parametrize(
    ("species", "formula"),
    [("", ""), ("Fe", "Fe"), ("Fe Fe", "Fe"), ("O Ti O", "TiO2"), ("O Ti O O Ti O", "TiO2")],
)
def test_formula(species: str, formula: str) -> None:
    symbols = tuple(species.split())
    coords = np.zeros((len(symbols), 3))
    assert structure(species=symbols, frac_coords=coords).formula == formula


def test_a_left_handed_cell_has_a_positive_volume() -> None:
    assert structure(lattice=CUBE[[1, 0, 2]]).volume == pytest.approx(24.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lattice": np.eye(2)}, "shape"),
        ({"lattice": np.zeros((3, 3))}, "span no volume"),
        ({"lattice": CUBE * np.nan}, "finite"),
        ({"lattice": CUBE * 1e110}, "too long"),
        ({"lattice": [[1.0], [2.0, 3.0]]}, "real numbers"),
        ({"lattice": CUBE + 0j}, "real numbers"),
        ({"species": ("Si",)}, "species need coordinates"),
        ({"frac_coords": np.full((5, 3), np.inf)}, "finite"),
    ],
)
def test_impossible_structures(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        structure(**changes)


def test_mass_of_an_unknown_element() -> None:
    with pytest.raises(InputError, match="'Xx' is not an element"):
        _ = structure(species=("Xx",) * 5).mass_density


def test_to_ase_and_back() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    back = Structure.from_ase(atoms).to_ase()
    assert isinstance(back, Atoms)
    assert back.pbc.all()
    assert back.get_chemical_symbols() == ["Na", "Cl"]
    np.testing.assert_allclose(back.positions, atoms.positions, atol=1e-12)
    np.testing.assert_allclose(back.cell.array, atoms.cell.array)


def test_values_are_copied_and_frozen() -> None:
    values = np.ones((2, 3, 4))
    density = ChargeDensity(values, structure())
    values[:] = 7
    assert density.values.max() == 1.0
    with pytest.raises(ValueError, match="read-only"):
        density.values[0, 0, 0] = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        density.values = values  # type: ignore[misc]
    again = ChargeDensity(density.values, density.structure)
    assert again.values is density.values, "a frozen array need not be copied"


def test_a_read_only_view_does_not_give_the_base_away() -> None:
    base = np.ones((2, 3, 4))
    view = base.view()
    view.setflags(write=False)
    density = ChargeDensity(view, structure())
    base[:] = 7
    assert density.values.max() == 1.0


def test_electrons_and_moments() -> None:
    density = ChargeDensity(np.full((2, 3, 4), 0.5), structure())
    assert density.grid == (2, 3, 4)
    assert density.n_electrons == pytest.approx(12.0)
    assert density.magnetic_moment is None
    up = ChargeDensity(density.values, structure(), np.full((1, 2, 3, 4), -0.25))
    assert up.magnetic_moment == pytest.approx(-6.0)
    vector = np.zeros((3, 2, 3, 4))
    vector[1], vector[2] = 0.3, -0.4
    assert ChargeDensity(density.values, structure(), vector).magnetic_moment == pytest.approx(12.0)


def test_gaussians_hold_their_electrons() -> None:
    density = crystal(electrons=4.0)
    expected = 8.0 + 0.05 * density.structure.volume
    assert density.n_electrons == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("values", "magnetization", "message"),
    [
        (np.ones((2, 3)), None, r"shape \(n1, n2, n3\)"),
        (np.ones((2, 0, 3)), None, r"shape \(n1, n2, n3\)"),
        (np.full((2, 2, 2), np.nan), None, "finite"),
        (np.ones((2, 2, 2)), np.ones((2, 2, 2)), r"shape \(1 or 3"),
        (np.ones((2, 2, 2)), np.ones((2, 2, 2, 2)), r"shape \(1 or 3"),
        (np.ones((2, 2, 2)), np.full((1, 2, 2, 2), np.inf), "finite"),
    ],
)
def test_impossible_densities(values: Any, magnetization: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ChargeDensity(values, structure(), magnetization)


def test_to_xarray() -> None:
    density = crystal((4, 5, 6))
    array = density.to_xarray()
    assert array.dims == ("a", "b", "c")
    assert array.attrs["units"] == "e/angstrom^3"
    np.testing.assert_allclose(np.reshape(array.attrs["lattice"], (3, 3)), SKEW)
    np.testing.assert_allclose(array.coords["b"], [0, 0.2, 0.4, 0.6, 0.8])
    assert float(array.sel(a=0.25, b=0.2, c=0.5)) == density.values[1, 1, 3]
