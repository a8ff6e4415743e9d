"""The atom libraries that came with the package."""

# ruff: noqa: E741 - l is the degree of a harmonic
from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest
from ase.data import chemical_symbols
from numpy.typing import NDArray

from chgdb.errors import StoreError
from chgdb.library import GENERIC, LATEST, LIBRARY_L, Atom, Library, load_library
from chgdb.multipoles import n_radial, radial, sphere_transform

ORTHONORMAL = 1e-2
NUMBERS = sorted(
    int(match[1])
    for file in files("chgdb").joinpath("libraries").iterdir()
    if (match := re.fullmatch(r"atoms-(\d+)\.npz", file.name))
)


@pytest.fixture(params=NUMBERS)
def library(request: pytest.FixtureRequest) -> Library:
    return load_library(request.param)


def overlaps(atom: Atom, l: int) -> NDArray[np.float64]:
    """Integrals over all space of products of modes, e^2/A^3, by their transforms.

    A Gaussian comes with Y_lm; a function inside a sphere without, so with sqrt(4 pi) Y_00.
    """
    g = np.linspace(1e-4, 60.0, 6001)
    functions = radial(l, g)
    if l == 0:
        inside = sphere_transform(g, atom.radius) * np.sqrt(4 * np.pi)
        functions = np.concatenate([functions, inside], axis=1)
    transforms = (functions @ atom.modes[l].T).T
    products = transforms[:, None] * transforms[None] * g**2
    return np.asarray(np.trapezoid(products, g, axis=-1) / (2 * np.pi) ** 3)


def test_the_latest_is_there() -> None:
    assert list(range(1, LATEST + 1)) == NUMBERS
    assert load_library().number == LATEST


def test_entries_have_their_shapes(library: Library) -> None:
    assert GENERIC in library.atoms
    assert {*library.atoms} - {GENERIC} <= {*chemical_symbols[1:]}
    for element, atom in library.atoms.items():
        assert 0.1 < atom.radius < 3.0, element
        assert atom.mean.shape == (n_radial(0),)
        assert len(atom.modes) == len(atom.deviations) == LIBRARY_L + 1
        for l in range(LIBRARY_L + 1):
            assert atom.modes[l].shape == (len(atom.deviations[l]), n_radial(l))
            assert atom.modes[l].dtype == atom.deviations[l].dtype == np.float64
            assert np.isfinite(atom.modes[l]).all()
        assert np.isfinite(atom.mean).all()
        assert len(atom.modes[0]) > 0


def test_deviations_decrease(library: Library) -> None:
    for element, atom in library.atoms.items():
        for deviations in atom.deviations:
            assert (deviations > 0).all()
            # float32 in the file: equal to its rounding is equal
            assert (np.diff(deviations) <= 1e-6 * deviations[:-1]).all(), element


def test_modes_are_orthonormal(library: Library) -> None:
    for element, atom in library.atoms.items():
        for l in range(LIBRARY_L + 1):
            gram = overlaps(atom, l)
            np.testing.assert_allclose(
                gram, np.eye(len(gram)), atol=ORTHONORMAL, err_msg=f"{element}, l = {l}"
            )


def test_the_generic_atom_has_no_mean(library: Library) -> None:
    assert not library.atom(GENERIC).mean.any()


def test_elements_that_are_known_and_not(library: Library) -> None:
    generic = library.atoms[GENERIC]
    assert library.atom("Si") is library.atoms["Si"]
    assert library.atom("Si", generic=True) is generic
    for unknown in ("Xx", "", "Fe_pv/abc", "si"):
        assert library.atom(unknown) is generic


def test_the_residual_is_a_spectrum(library: Library) -> None:
    assert library.residual.ndim == 1
    assert np.isfinite(library.residual).all()
    assert (library.residual > 0).all()
    g = np.array([0.0, 0.5, 0.999, 1.0, 7.3, len(library.residual) + 0.5, 1e6])
    expected = [0, 0, 0, 1, 7, len(library.residual) - 1, len(library.residual) - 1]
    np.testing.assert_array_equal(library.residual_at(g), library.residual[expected])
    assert library.residual_at(np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("number", [0, -1, LATEST + 1, 10**30])
def test_an_unknown_library_is_refused_by_its_number(number: int) -> None:
    with pytest.raises(StoreError, match=f"library {number}.*pip install --upgrade chgdb"):
        load_library(number)
