"""Functions about the atoms against SciPy, quadrature, group theory and sums in real space."""

# ruff: noqa: E741 - l is the degree of a harmonic
from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from analytic import SKEW
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from ase.spacegroup import crystal
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import sph_harm_y

from chgdb.density import Grid, Structure
from chgdb.multipoles import (
    GAUSSIANS,
    MAX_L,
    POWERS,
    Site,
    SphereFunctions,
    angular,
    n_radial,
    nearest_distances,
    radial,
    real_harmonics,
    sites,
    sphere_transform,
)
from chgdb.stars import Operations, Stars
from chgdb.symmetry import find_operations

ROUNDING = 1e-11
SYMPREC = 1e-2

rng = np.random.default_rng(0)
DIRECTIONS = rng.normal(size=(200, 3))


def wyckoff(
    group: int, cell: list[float], **atoms: tuple[float, float, float]
) -> Callable[[], Structure]:
    """A crystal of a space group with one atom of each element in the asymmetric unit."""
    return lambda: Structure.from_ase(
        crystal(list(atoms), list(atoms.values()), spacegroup=group, cellpar=cell)
    )


def made(build: Callable[[], Atoms]) -> Callable[[], Structure]:
    return lambda: Structure.from_ase(build())


HEXAGONAL = [5.0, 5.0, 8.0, 90.0, 90.0, 120.0]
TETRAGONAL = [4.6, 4.6, 7.0, 90.0, 90.0, 90.0]
ORTHORHOMBIC = [4.0, 5.0, 6.0, 90.0, 90.0, 90.0]
CUBIC = [6.0, 6.0, 6.0, 90.0, 90.0, 90.0]

CRYSTALS: dict[str, Callable[[], Structure]] = {
    "diamond": made(lambda: bulk("Si", a=5.43)),
    "rocksalt": made(lambda: bulk("NaCl", "rocksalt", a=5.64)),
    "rocksalt, cubic cell": made(lambda: bulk("NaCl", "rocksalt", a=5.64, cubic=True)),
    "hcp": made(lambda: bulk("Mg")),
    "wurtzite": made(lambda: bulk("ZnO", "wurtzite", a=3.25, c=5.2)),
    "hcp 2x1x1": made(lambda: bulk("Mg").repeat((2, 1, 1))),
    "quartz, 3_1": wyckoff(152, HEXAGONAL, Si=(0.47, 0, 1 / 3), O=(0.41, 0.27, 0.12)),
    "P3": wyckoff(143, HEXAGONAL, Se=(0.3, 0.12, 0.2), Te=(1 / 3, 2 / 3, 0.05)),
    "R-3m": wyckoff(166, [4.5, 4.5, 11.8, 90, 90, 120], Bi=(0, 0, 0.234), Te=(0.3, 0.15, 0.4)),
    "R3c": wyckoff(161, [5.2, 5.2, 13.9, 90, 90, 120], Li=(0, 0, 0.28), O=(0.05, 0.34, 0.06)),
    "P6_3": wyckoff(173, HEXAGONAL, Se=(0.11, 0.33, 0.05), As=(1 / 3, 2 / 3, 0.3)),
    "P6_1": wyckoff(169, HEXAGONAL, Se=(0.11, 0.33, 0.05)),
    "P6_222": wyckoff(180, HEXAGONAL, Si=(0.5, 0, 0), O=(0.2, 0.4, 0.5)),
    "P6/mmm": wyckoff(191, HEXAGONAL, Ti=(0, 0, 0), B=(1 / 3, 2 / 3, 0.5), H=(0.2, 0.4, 0.1)),
    "P4_1": wyckoff(76, TETRAGONAL, Si=(0.1, 0.2, 0.0), O=(0.3, 0.45, 0.1)),
    "P-4": wyckoff(81, TETRAGONAL, S=(0, 0, 0), O=(0.12, 0.31, 0.2)),
    "rutile": wyckoff(136, [4.6, 4.6, 2.96, 90, 90, 90], Ti=(0, 0, 0), O=(0.305, 0.305, 0)),
    "anatase": wyckoff(141, [3.78, 3.78, 9.5, 90, 90, 90], Ti=(0, 0, 0), O=(0, 0, 0.208)),
    "perovskite": wyckoff(221, CUBIC, Sr=(0, 0, 0), Ti=(0.5, 0.5, 0.5), O=(0.5, 0.5, 0)),
    "pyrite": wyckoff(205, CUBIC, Fe=(0, 0, 0), S=(0.385, 0.385, 0.385)),
    "P2_13": wyckoff(198, CUBIC, Fe=(0.137, 0.137, 0.137), O=(0.1, 0.25, 0.4)),
    "P4_332": wyckoff(212, CUBIC, Sr=(0.125, 0.125, 0.125), Si=(0.42, 0.42, 0.42)),
    "I-43m": wyckoff(217, CUBIC, Mn=(0.317, 0.317, 0.317), Cr=(0.36, 0.36, 0.04)),
    "Pm-3": wyckoff(200, CUBIC, W=(0, 0, 0), O=(0.23, 0.31, 0.0)),
    "P23": wyckoff(195, CUBIC, W=(0, 0, 0), O=(0.23, 0.31, 0.1)),
    "P432": wyckoff(207, CUBIC, W=(0, 0, 0), O=(0.23, 0.31, 0.1)),
    "Fdd2": wyckoff(43, [8, 9, 6, 90, 90, 90], S=(0.11, 0.07, 0.02), O=(0, 0, 0.4)),
    "Pmmm": wyckoff(47, ORTHORHOMBIC, Ga=(0, 0, 0), O=(0.2, 0.3, 0.4)),
    "P2_1/c": wyckoff(14, [4, 5, 6, 90, 104, 90], P=(0.13, 0.21, 0.34), Cu=(0, 0, 0)),
    "P-1": wyckoff(2, [4, 5, 6, 80, 95, 107], P=(0.13, 0.21, 0.34), Cu=(0, 0, 0)),
    "P1": wyckoff(1, [4, 5, 6, 80, 95, 107], P=(0.13, 0.21, 0.34), Cu=(0, 0, 0)),
}

TABLE: list[tuple[str, str, str, tuple[int, ...]]] = [
    # crystal, element, site symmetry, invariants of l = 0 ... 6 (Bradley and Cracknell, table 2.6)
    ("P1", "P", "C1", (1, 3, 5, 7, 9, 11, 13)),
    ("P-1", "Cu", "Ci", (1, 0, 5, 0, 9, 0, 13)),
    ("Fdd2", "O", "C2", (1, 1, 3, 3, 5, 5, 7)),
    ("quartz, 3_1", "Si", "C2", (1, 1, 3, 3, 5, 5, 7)),
    ("pyrite", "S", "C3", (1, 1, 1, 3, 3, 3, 5)),
    ("pyrite", "Fe", "S6", (1, 0, 1, 0, 3, 0, 5)),
    ("P-4", "S", "S4", (1, 0, 1, 2, 3, 2, 3)),
    ("rutile", "Ti", "D2h", (1, 0, 2, 0, 3, 0, 4)),
    ("rutile", "O", "C2v", (1, 1, 2, 2, 3, 3, 4)),
    ("anatase", "Ti", "D2d", (1, 0, 1, 1, 2, 1, 2)),
    ("perovskite", "O", "D4h", (1, 0, 1, 0, 2, 0, 2)),
    ("perovskite", "Ti", "Oh", (1, 0, 0, 0, 1, 0, 1)),
    ("P432", "W", "O", (1, 0, 0, 0, 1, 0, 1)),
    ("Pm-3", "W", "Th", (1, 0, 0, 0, 1, 0, 2)),
    ("P23", "W", "T", (1, 0, 0, 1, 1, 0, 2)),
    ("diamond", "Si", "Td", (1, 0, 0, 1, 1, 0, 1)),
    ("wurtzite", "Zn", "C3v", (1, 1, 1, 2, 2, 2, 3)),
    ("R-3m", "Bi", "C3v", (1, 1, 1, 2, 2, 2, 3)),
    ("P4_332", "Sr", "D3", (1, 0, 1, 1, 2, 1, 3)),
    ("hcp", "Mg", "D3h", (1, 0, 1, 1, 1, 1, 2)),
    ("P6/mmm", "Ti", "D6h", (1, 0, 1, 0, 1, 0, 2)),
    ("P6/mmm", "B", "D3h", (1, 0, 1, 1, 1, 1, 2)),
    ("I-43m", "Cr", "Cs", (1, 2, 3, 4, 5, 6, 7)),
]


def setting(name: str) -> tuple[Structure, Operations]:
    structure = CRYSTALS[name]()
    return structure, find_operations(structure, SYMPREC)


# ---------------------------------------------------------------- harmonics


def scipy_harmonics(l: int, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = np.moveaxis(vectors, -1, 0)
    theta, phi = np.arctan2(np.hypot(x, y), z), np.arctan2(y, x)
    columns = []
    for m in range(-l, l + 1):
        value = sph_harm_y(l, abs(m), theta, phi) * (-1) ** m * (math.sqrt(2) if m else 1.0)
        columns.append(value.imag if m < 0 else value.real)
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("l", range(9))
def test_real_harmonics_are_those_of_scipy(l: int) -> None:
    vectors = np.concatenate([DIRECTIONS, np.eye(3), -np.eye(3), [[1.0, 1.0, 0.0]]])
    np.testing.assert_allclose(
        real_harmonics(l, vectors), scipy_harmonics(l, vectors), atol=1e-13, rtol=1e-11
    )


def test_real_harmonics_are_orthonormal() -> None:
    """By an exact quadrature: Gauss in cos(theta), even in phi."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    phi = 2 * np.pi * np.arange(24) / 24
    z, angle = np.meshgrid(nodes, phi, indexing="ij")
    rho = np.sqrt(1 - z**2)
    points = np.stack([rho * np.cos(angle), rho * np.sin(angle), z], axis=-1)
    values = np.concatenate([real_harmonics(l, points) for l in range(9)], axis=-1)
    gram = np.einsum(
        "ij,ijm,ijn->mn", weights[:, None] * np.full(24, 2 * np.pi / 24), values, values
    )
    np.testing.assert_allclose(gram, np.eye(81), atol=1e-12)


def test_harmonics_know_directions_only() -> None:
    for l in range(MAX_L + 1):
        lengths = np.exp(rng.normal(size=(200, 1)) * 10)
        np.testing.assert_allclose(
            real_harmonics(l, DIRECTIONS * lengths), real_harmonics(l, DIRECTIONS), atol=1e-12
        )
        at_zero = real_harmonics(l, np.zeros((2, 3)))
        expected = 1 / math.sqrt(4 * math.pi) if l == 0 else 0.0
        np.testing.assert_array_equal(at_zero, np.full((2, 2 * l + 1), expected))
        np.testing.assert_allclose(
            real_harmonics(l, -DIRECTIONS), (-1) ** l * real_harmonics(l, DIRECTIONS), atol=1e-12
        )
    assert real_harmonics(2, np.ones((4, 5, 3))).shape == (4, 5, 5)


# ---------------------------------------------------------------- sites


@pytest.mark.parametrize("name", sorted(CRYSTALS))
def test_orbits_are_those_of_spglib(name: str) -> None:
    import spglib

    structure, operations = setting(name)
    found = sites(structure, operations, 2)
    atoms = [atom for site in found for atom in site.atoms]
    assert sorted(atoms) == list(range(len(structure.species)))
    assert [site.atoms[0] for site in found] == sorted(site.atoms[0] for site in found)
    kinds = {symbol: i for i, symbol in enumerate(structure.elements)}
    cell = (
        structure.lattice.tolist(),
        structure.frac_coords.tolist(),
        [kinds[symbol] for symbol in structure.species],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of errors that are not raised yet
        dataset = spglib.get_symmetry_dataset(cell, symprec=SYMPREC)
    assert dataset is not None
    for site in found:
        assert site.atoms[0] == min(site.atoms)
        assert {structure.species[atom] for atom in site.atoms} == {site.element}
        orbit = dataset.crystallographic_orbits
        assert set(np.flatnonzero(orbit == orbit[site.atoms[0]])) == set(site.atoms)


@pytest.mark.parametrize(("name", "element", "symmetry", "counts"), TABLE)
def test_invariants_of_the_point_groups(
    name: str, element: str, symmetry: str, counts: tuple[int, ...]
) -> None:
    structure, operations = setting(name)
    site = next(s for s in sites(structure, operations, MAX_L) if s.element == element)
    assert tuple(site.harmonics[l].shape[1] for l in range(MAX_L + 1)) == counts, symmetry


@pytest.mark.parametrize("name", sorted(CRYSTALS))
def test_harmonics_are_orthonormal_on_every_atom(name: str) -> None:
    structure, operations = setting(name)
    for site in sites(structure, operations, MAX_L):
        for l, harmonics in site.harmonics.items():
            n = harmonics.shape[1]
            assert harmonics.shape == (len(site.atoms), n, 2 * l + 1)
            for rows in harmonics:
                np.testing.assert_allclose(rows @ rows.T, np.eye(n), atol=ROUNDING)


@pytest.mark.parametrize("name", sorted(CRYSTALS))
def test_functions_have_the_symmetry_of_the_crystal(name: str) -> None:
    """F(h) of each is what stars make of it: F(hW) = F(h) exp(2 pi i h.w) on every member."""
    structure, operations = setting(name)
    stars = Stars(structure, (11, 11, 12), operations, 7.0)
    for site in sites(structure, operations, MAX_L):
        for l in range(MAX_L + 1):
            f = angular(structure, stars, site, l)
            assert f.shape == (len(stars.h), site.harmonics[l].shape[1])
            back = [stars.to_complex(column) for column in stars.from_complex(f).T]
            if back:
                np.testing.assert_allclose(np.stack(back, axis=1), f, atol=ROUNDING)


@pytest.mark.parametrize("name", sorted(CRYSTALS))
def test_functions_have_the_symmetry_on_every_member_of_a_star(name: str) -> None:
    """As above without stars: the function at hW, for many operations."""
    structure, operations = setting(name)
    h = np.random.default_rng(1).integers(-4, 5, (30, 3))
    for i in range(0, len(operations), 1 + len(operations) // 20):
        rotation = operations.rotations[i]
        turn = np.exp(2j * np.pi * (h @ operations.translations[i]))
        for site in sites(structure, operations, MAX_L)[:2]:
            for l in (1, 2, 3, 4, 6):
                own, member = (at(structure, site, l, vectors) for vectors in (h, h @ rotation))
                np.testing.assert_allclose(member, own * turn[:, None], atol=1e-9)


def at(structure: Structure, site: Site, l: int, h: NDArray[np.int64]) -> NDArray[np.complex128]:
    """F(h) of a site's functions with R~ = 1 by the formula of the module."""
    g = 2 * np.pi * h @ np.linalg.inv(structure.lattice).T
    total = np.zeros((len(h), site.harmonics[l].shape[1]), dtype=complex)
    for atom, rows in zip(site.atoms, site.harmonics[l], strict=True):
        phase = np.exp(-2j * np.pi * (h @ structure.frac_coords[atom]))
        total += phase[:, None] * (scipy_harmonics(l, g) @ rows.T)
    return total * (-1j) ** l / structure.volume


@pytest.mark.parametrize("name", ["diamond", "P3", "P6_3", "R3c", "P4_1"])
def test_angular_is_the_formula(name: str) -> None:
    structure, operations = setting(name)
    stars = Stars(structure, (9, 9, 9), operations, 6.0)
    for site in sites(structure, operations, 4):
        for l in range(5):
            f = angular(structure, stars, site, l)
            np.testing.assert_allclose(f, at(structure, site, l, stars.h), atol=ROUNDING)


def test_the_choice_of_origin_and_cell_does_not_matter() -> None:
    """The number of functions, and the functions up to a rotation among them."""
    atoms = bulk("ZnO", "wurtzite", a=3.25, c=5.2)
    moved = atoms.copy()
    moved.rotate(40, (1, 2, 3), rotate_cell=True)
    moved.set_scaled_positions(moved.get_scaled_positions() + np.array([0.21, 0.33, 0.47]))
    for build in (atoms, moved, atoms.repeat((2, 2, 1))):
        structure = Structure.from_ase(build)
        found = sites(structure, find_operations(structure, SYMPREC), MAX_L)
        assert [site.element for site in found] == ["Zn", "O"]
        assert [h.shape[1] for h in found[0].harmonics.values()] == [1, 1, 1, 2, 2, 2, 3]


def test_operations_of_another_structure_are_refused() -> None:
    structure, _ = setting("P1")
    with pytest.raises(ValueError, match="not those of the structure"):
        sites(structure, setting("Pmmm")[1], 0)


@pytest.mark.parametrize("name", ["diamond", "P1"])
def test_the_basis_bears_rounding(name: str) -> None:
    """A lattice that differs in the last place gives the same functions, not others."""
    structure, operations = setting(name)
    noisy = Structure(
        structure.lattice * (1 + 2.0**-52), structure.species, structure.frac_coords + 2.0**-53
    )
    for one, other in zip(
        sites(structure, operations, MAX_L), sites(noisy, operations, MAX_L), strict=True
    ):
        for l in range(MAX_L + 1):
            np.testing.assert_allclose(one.harmonics[l], other.harmonics[l], atol=1e-9)


# ---------------------------------------------------------------- Gaussians


def real_space(
    structure: Structure, grid: Grid, site: Site, l: int, function: int, alpha: float
) -> NDArray[np.float64]:
    """(r / sqrt(alpha))^l exp(-r^2 / 2 alpha) / (2 pi alpha)^(3/2) Y_lm about every image."""
    x = np.stack(np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij"), axis=-1)
    total = np.zeros(grid)
    for atom, rows in zip(site.atoms, site.harmonics[l], strict=True):
        for image in product((-1, 0, 1), repeat=3):
            away = (x - structure.frac_coords[atom] - np.array(image)) @ structure.lattice
            r = np.linalg.norm(away, axis=-1) / math.sqrt(alpha)
            total += r**l * np.exp(-(r**2) / 2) * (scipy_harmonics(l, away) @ rows[function])
    return np.asarray(total / (2 * math.pi * alpha) ** 1.5)


@pytest.mark.parametrize("l", range(5))
@pytest.mark.parametrize("name", ["P3", "P-4", "P1"])
def test_gaussians_in_real_space(name: str, l: int) -> None:
    structure, operations = setting(name)
    grid = (20, 20, 28)
    stars = Stars(structure, grid, operations)
    k = int(np.abs(np.array(GAUSSIANS[l]) - 0.35).argmin())
    for site in sites(structure, operations, l)[-1:]:
        f = angular(structure, stars, site, l)[:, 0] * radial(l, stars.g)[:, k]
        field = real_space(structure, grid, site, l, 0, GAUSSIANS[l][k])
        made = stars.field(stars.from_complex(f))
        np.testing.assert_allclose(made, field - field.mean(), atol=1e-5 * np.abs(field).max())


def test_radial_functions() -> None:
    g = np.linspace(0, 20, 9)
    for l in range(MAX_L + 1):
        values = radial(l, g)
        assert values.shape == (9, len(GAUSSIANS[l]))
        for k, alpha in enumerate(GAUSSIANS[l]):
            expected = (math.sqrt(alpha) * g) ** l * np.exp(-alpha * g**2 / 2)
            np.testing.assert_allclose(values[:, k], expected, rtol=1e-12)
        assert n_radial(l) == len(GAUSSIANS[l]) + (len(POWERS) if l == 0 else 0)
        assert (np.diff(GAUSSIANS[l]) > 0).all()


# ---------------------------------------------------------------- spheres


@pytest.mark.parametrize("radius", [0.4, 0.91, 1.5])
def test_sphere_transform_is_the_integral(radius: float) -> None:
    g = np.array([0.0, 1e-3, 0.05, 0.7, 3.0, 11.0, 29.0])
    values = sphere_transform(g, radius)
    assert values.shape == (7, len(POWERS))
    for column, power in zip(values.T, POWERS, strict=True):
        for x, value in zip(g, column, strict=True):
            expected = quad(
                lambda r, x=x, power=power: (
                    4 * np.pi * r**2 * (1 - (r / radius) ** 2) ** power * np.sinc(x * r / np.pi)
                ),
                0,
                radius,
                epsabs=1e-13,
            )[0]
            assert value == pytest.approx(expected, abs=2e-6 * column[0])


@pytest.mark.parametrize("name", ["P3", "rocksalt", "P1", "rutile"])
def test_sampled_spheres_are_the_transform_on_a_fine_grid(name: str) -> None:
    structure, operations = setting(name)
    stars = Stars(structure, (60, 60, 60), operations, 6.0)
    for site in sites(structure, operations, 0):
        radius = 0.49 * nearest_distances(structure)[site.atoms[0]]
        spheres = SphereFunctions(structure, (60, 60, 60), site, radius)
        phase = np.exp(-2j * np.pi * (stars.h @ structure.frac_coords[list(site.atoms)].T))
        transform = sphere_transform(stars.g, radius) / structure.volume
        for k, unit in enumerate(np.eye(len(POWERS))):
            sampled = stars.coefficients(spheres.field(unit))
            smooth = stars.from_complex(phase.sum(axis=1) * transform[:, k])
            size = sphere_transform(np.zeros(1), radius)[0, k] / structure.volume
            np.testing.assert_allclose(sampled, smooth, atol=2e-4 * size * len(site.atoms) * 4)


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    st.floats(0.3, 7.0),
    st.lists(st.floats(-2, 2), min_size=len(POWERS), max_size=len(POWERS)),
)
def test_spheres_are_sums_over_images(
    grid: Grid, place: list[float], radius: float, amplitudes: list[float]
) -> None:
    """Wherever the atom is, and where a sphere reaches over its own images."""
    structure = Structure(SKEW, ("Si",), np.array([place]))
    site = Site("Si", (0,), {})
    x = np.stack(np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij"), axis=-1)
    expected = np.zeros(grid)
    for image in product(range(-5, 6), repeat=3):
        away = (x - np.array(place) - np.array(image)) @ SKEW
        inside = np.maximum(1 - np.square(away).sum(axis=-1) / radius**2, 0.0)
        expected += sum(a * inside**k for k, a in zip(POWERS, amplitudes, strict=True))
    field = SphereFunctions(structure, grid, site, radius).field(np.array(amplitudes))
    assert field.shape == grid
    np.testing.assert_allclose(field, expected, atol=1e-9)


# ---------------------------------------------------------------- distances


def by_ase(structure: Structure) -> NDArray[np.float64]:
    cutoff = float(np.linalg.norm(structure.lattice, axis=1).min()) + 1e-6
    i, d = neighbor_list("id", structure.to_ase(), cutoff)
    shortest = np.full(len(structure.species), np.inf)
    np.minimum.at(shortest, i, d)
    return shortest


@pytest.mark.parametrize("name", sorted(CRYSTALS))
def test_nearest_distances_of_crystals(name: str) -> None:
    structure, _ = setting(name)
    np.testing.assert_allclose(nearest_distances(structure), by_ase(structure), rtol=1e-9)


angle = st.floats(50, 120)
length = st.floats(2.0, 9.0)


@settings(deadline=None, max_examples=60)
@given(length, length, length, angle, angle, angle, st.integers(1, 6), st.integers(0, 999))
def test_nearest_distances_of_any_cell(
    a: float, b: float, c: float, alpha: float, beta: float, gamma: float, n: int, seed: int
) -> None:
    ca, cb, cg = (math.cos(math.radians(x)) for x in (alpha, beta, gamma))
    assume(1 - ca**2 - cb**2 - cg**2 + 2 * ca * cb * cg > 0.05)
    atoms = Atoms(
        f"C{n}",
        cell=[a, b, c, alpha, beta, gamma],
        scaled_positions=np.random.default_rng(seed).random((n, 3)) * 3 - 1,
        pbc=True,
    )
    structure = Structure.from_ase(atoms)
    expected = by_ase(structure)
    assume(expected.min() > 2e-3)
    np.testing.assert_allclose(nearest_distances(structure), expected, rtol=1e-9)


@pytest.mark.parametrize("shear", [1, 2, 3, 9])
def test_nearest_distances_of_a_very_skew_cell(shear: int) -> None:
    """A cubic lattice, described by vectors that are much longer than they need be."""
    lattice = np.array([[1.0, 0, 0], [shear, 1, 0], [0, shear, 1]]) * 3.0
    second = np.linalg.solve(lattice.T, [0, 0, 1.0])
    structure = Structure(lattice, ("Po", "Po"), np.array([np.zeros(3), second]))
    np.testing.assert_allclose(nearest_distances(structure), [1.0, 1.0])


def test_atoms_at_one_place_are_no_neighbours() -> None:
    structure = Structure(np.eye(3) * 4, ("C", "C"), np.zeros((2, 3)))
    np.testing.assert_allclose(nearest_distances(structure), [4.0, 4.0])
    assert len(nearest_distances(Structure(np.eye(3), (), np.zeros((0, 3))))) == 0
