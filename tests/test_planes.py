"""Densities in lattice planes: the basis, values against analytic waves, the atoms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from analytic import SKEW, Wave, cosines, crystal
from hypothesis import given
from hypothesis import strategies as st

from chgdb.density import Structure
from chgdb.errors import InputError
from chgdb.planes import LatticePlane, Miller, parse_miller

WAVES: list[Wave] = [((1, 2, -1), 0.4, 0.3), ((0, 1, 2), 0.3, -0.8), ((2, 0, 1), 0.2, 1.0)]
ATOMS = Structure(SKEW, ("Si", "C"), np.array([[0.1, 0.2, 0.3], [0.9, 0.45, 0.77]]))

indices = st.tuples(*[st.integers(-7, 7)] * 3).filter(any)


@given(indices)
def test_the_basis_is_one_of_the_lattice_and_of_the_plane(miller: Miller) -> None:
    plane = LatticePlane(ATOMS, miller)
    assert abs(round(np.linalg.det(plane.basis))) == 1
    assert list(plane.basis @ plane.miller) == [0, 0, 1]
    assert math.gcd(*plane.miller) == 1
    u, v, w = plane.basis @ SKEW
    assert np.cross(u, v) @ w > 0
    assert abs(u @ v) <= (0.5 + 1e-6) * (u @ u)  # reduced: no shorter vectors span it
    assert u @ u <= v @ v * (1 + 1e-6)
    np.testing.assert_allclose(plane.vectors @ plane.vectors.T, [[u @ u, u @ v], [u @ v, v @ v]])
    reciprocal = np.linalg.inv(SKEW) @ plane.miller
    assert plane.spacing == pytest.approx(1 / np.linalg.norm(reciprocal))


@given(indices, st.floats(-2, 2))
def test_values_are_those_of_the_waves(miller: Miller, at: float) -> None:
    plane = LatticePlane(ATOMS, miller, at)
    shape = 9, 6
    s, t = np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij")
    points = np.stack([s, t, np.full(shape, at)], axis=-1) @ plane.basis
    expected = np.ones(shape)
    for wave, amplitude, phase in WAVES:
        expected += amplitude * np.cos(2 * np.pi * points @ np.array(wave) + phase)
    values = plane.values(cosines((8, 9, 7), WAVES, 1.0), shape)
    np.testing.assert_allclose(values, expected, atol=1e-10)


def test_a_plane_of_the_grid_has_its_values() -> None:
    """Also of noise, which has waves at the edge of an even grid."""
    values = np.random.default_rng(0).normal(size=(4, 6, 8))
    plane = LatticePlane(Structure(np.eye(3), (), np.empty((0, 3))), (0, 0, 1), 0.25)
    np.testing.assert_array_equal(plane.basis, np.eye(3))
    np.testing.assert_allclose(plane.values(values, (4, 6)), values[:, :, 2], atol=1e-12)


def test_of_float32_it_is_about_the_same() -> None:
    values = np.random.default_rng(0).random((9, 8, 7))
    plane = LatticePlane(ATOMS, (1, -2, 3), 0.4)
    exact, single = (plane.values(values.astype(kind), (20, 30)) for kind in ("f8", "f4"))
    np.testing.assert_allclose(single, exact, atol=1e-5)


def test_planes_repeat() -> None:
    planes = [LatticePlane(ATOMS, (1, 1, 0), at) for at in (0.25, 7.25, -0.75)]
    assert [plane.at for plane in planes] == [0.25] * 3
    assert LatticePlane(ATOMS, (1, 1, 0), 1e308).at < 1


@given(indices, st.floats(-1, 1))
def test_atoms_are_where_they_are(miller: Miller, at: float) -> None:
    plane = LatticePlane(ATOMS, miller, at)
    u, v, w = plane.basis @ SKEW
    normal = np.cross(u, v) / np.linalg.norm(np.cross(u, v))
    found = list(plane.atoms(math.inf))
    assert [atom.symbol for atom in found] == ["Si", "C"]
    for atom, frac in zip(found, ATOMS.frac_coords, strict=True):
        assert abs(atom.distance) <= plane.spacing / 2 * (1 + 1e-9)
        assert 0 <= atom.s < 1
        assert 0 <= atom.t < 1
        place = atom.s * u + atom.t * v + at * w + atom.distance * normal
        shift = np.linalg.solve(SKEW.T, place) - frac
        np.testing.assert_allclose(shift, np.rint(shift), atol=1e-9)
    near = [atom for atom in found if abs(atom.distance) <= 0.3]
    assert list(plane.atoms(0.3)) == near


def test_a_common_divisor_is_left_out() -> None:
    assert LatticePlane(ATOMS, (2, -4, 0)).miller == (1, -2, 0)


def test_the_grid_has_even_steps() -> None:
    plane = LatticePlane(crystal((4, 4, 4), lattice=np.diag([2.0, 6.0, 1.0])).structure, (0, 0, 1))
    assert sorted(plane.shape(90)) == [30, 90]


@pytest.mark.parametrize(
    ("text", "miller"),
    [
        ("1,1,0", (1, 1, 0)),
        ("(1 -1 0)", (1, -1, 0)),
        ("11-2", (1, 1, -2)),
        ("12, 0, -3", (12, 0, -3)),
        ("C", (0, 0, 1)),
        ("a", (1, 0, 0)),
    ],
)
def test_indices_as_people_write_them(text: str, miller: Miller) -> None:
    assert parse_miller(text) == miller


@pytest.mark.parametrize("text", ["", "d", "1,1", "1,1,1,1", "1.5,0,0", "1,x,0", "9" * 30, "\n"])
def test_what_is_no_plane(text: str) -> None:
    with pytest.raises(InputError, match="use Miller indices"):
        parse_miller(text)


def test_planes_that_cannot_be() -> None:
    with pytest.raises(InputError, match="not all zero"):
        LatticePlane(ATOMS, (0, 0, 0))
    with pytest.raises(InputError, match="up to 50"):
        LatticePlane(ATOMS, (51, 0, 0))
    with pytest.raises(InputError, match="position nan"):
        LatticePlane(ATOMS, (1, 0, 0), math.nan)
