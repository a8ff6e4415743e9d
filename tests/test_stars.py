"""Stars of reciprocal lattice vectors against sums over every operation and every vector."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from analytic import SKEW, cosines, gaussians
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.spacegroup import crystal
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chgdb.density import Grid, Structure
from chgdb.stars import Operations, Stars, closure, generators, reciprocal_metric
from chgdb.symmetry import find_operations

ROUNDING = 1e-12
SYMPREC = 1e-2

Spectrum = dict[tuple[int, int, int], complex]


def quartz() -> Atoms:
    return crystal(
        ["Si", "O"],
        [(0.4697, 0, 0), (0.4135, 0.2669, 0.1191)],
        spacegroup=152,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    )


def pyrite() -> Atoms:
    return crystal(["Fe", "S"], [(0, 0, 0), (0.385,) * 3], spacegroup=205, cellpar=[5.42] * 3)


def p1() -> Atoms:
    places = [[0, 0, 0], [0.4, 0.3, 0.2], [0.1, 0.6, 0.7]]
    return Atoms("NaClF", scaled_positions=places, cell=SKEW, pbc=True)


CRYSTALS: dict[str, Callable[[], Atoms]] = {
    "diamond": lambda: bulk("C", a=3.57),
    "diamond, conventional": lambda: bulk("C", a=3.57, cubic=True),
    "rocksalt": lambda: bulk("NaCl", "rocksalt", a=5.64),
    "rocksalt 2x1x1": lambda: bulk("NaCl", "rocksalt", a=5.64).repeat((2, 1, 1)),
    "bcc": lambda: bulk("Fe"),
    "bcc 2x2x2": lambda: bulk("Fe", cubic=True).repeat(2),
    "hcp": lambda: bulk("Mg"),
    "wurtzite": lambda: bulk("ZnO", "wurtzite", a=3.25, c=5.2),
    "quartz": quartz,
    "pyrite": pyrite,
    "rutile": lambda: crystal(
        ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136,
        cellpar=[4.59, 4.59, 2.96, 90, 90, 90],
    ),
    "Ia-3d": lambda: crystal("Li", [(0.125, 0, 0.25)], spacegroup=230, cellpar=[12.0] * 3),
    "P4_1": lambda: crystal(
        ["Si", "O"], [(0.1, 0.2, 0.0), (0.3, 0.45, 0.1)], spacegroup=76,
        cellpar=[5.0, 5.0, 7.0, 90, 90, 90],
    ),
    "P6_1": lambda: crystal(
        "Se", [(0.11, 0.33, 0.05)], spacegroup=169, cellpar=[6.0, 6.0, 8.0, 90, 90, 120]
    ),
    "P2_1/c": lambda: crystal(
        "P", [(0.13, 0.21, 0.34)], spacegroup=14, cellpar=[4.0, 5.0, 6.0, 90, 104, 90]
    ),
    "Fdd2": lambda: crystal(
        "S", [(0.11, 0.07, 0.02)], spacegroup=43, cellpar=[8.0, 9.0, 6.0, 90, 90, 90]
    ),
    "R-3m, primitive": lambda: crystal(
        "Bi", [(0, 0, 0.234)], spacegroup=166, primitive_cell=True,
        cellpar=[4.55, 4.55, 11.86, 90, 90, 120],
    ),
    "triclinic P-1": lambda: Atoms("Po", cell=SKEW, pbc=True),
    "P1": p1,
    "skew cell of fcc": lambda: make_supercell(bulk("Al"), [[1, 1, 0], [0, 1, 2], [0, 0, 1]]),
}  # fmt: skip

names = st.sampled_from(sorted(CRYSTALS))
edge = st.one_of(st.integers(1, 12), st.sampled_from([2, 3, 5, 7, 11, 13]))
grids = st.one_of(st.tuples(edge, edge, edge), edge.map(lambda n: (n, n, n)))
seeds = st.integers(0, 2**32 - 1)


def setting(name: str) -> tuple[Structure, Operations]:
    structure = Structure.from_ase(CRYSTALS[name]())
    return structure, find_operations(structure, SYMPREC)


def below_nyquist(grid: Grid) -> list[tuple[int, int, int]]:
    ranges = [range(-((n - 1) // 2), (n - 1) // 2 + 1) for n in grid]
    return [(a, b, c) for a, b, c in product(*ranges) if (a, b, c) != (0, 0, 0)]


def images(h: tuple[int, int, int], operations: Operations) -> list[tuple[int, int, int]]:
    return [(int(a), int(b), int(c)) for a, b, c in np.array(h) @ operations.rotations]


def symmetric(spectrum: Spectrum, operations: Operations, grid: Grid) -> Spectrum:
    """The mean over all operations, without stars that leave the grid: F(hW) = F(h) e^2pi.i.hw."""
    on_grid = set(below_nyquist(grid))
    result = {}
    for h in spectrum:
        members = images(h, operations)
        if on_grid.issuperset(members):
            turns = np.exp(-2j * np.pi * (operations.translations @ np.array(h)))
            result[h] = complex(np.mean([spectrum[m] for m in members] * turns))
    return result


def on_points(spectrum: Spectrum, grid: Grid) -> NDArray[np.float64]:
    full = np.zeros(grid, dtype=np.complex128)
    for h, f in spectrum.items():
        full[h] = f
    return np.fft.ifftn(full).real * math.prod(grid)


def random_spectrum(grid: Grid, seed: int) -> Spectrum:
    rng = np.random.default_rng(seed)
    spectrum: Spectrum = {}
    for h in below_nyquist(grid):
        opposite = (-h[0], -h[1], -h[2])
        if opposite in spectrum:
            spectrum[h] = spectrum[opposite].conjugate()
        else:
            spectrum[h] = complex(*rng.normal(size=2))
    return spectrum


def dimension(operations: Operations, grid: Grid) -> int:
    """Of the invariant fields of mean zero: the trace of the mean over the operations."""
    on_grid = set(below_nyquist(grid))
    total = 0.0
    for h in on_grid:
        members = images(h, operations)
        if on_grid.issuperset(members):
            fixed = [i for i, m in enumerate(members) if m == h]
            turns = operations.translations[fixed] @ np.array(h)
            total += np.cos(2 * np.pi * turns).sum() / len(operations)
    return round(total)


# ---------------------------------------------------------------- coefficients


@settings(deadline=None, max_examples=60)
@given(names, grids, seeds)
def test_a_symmetric_field_comes_back(name: str, grid: Grid, seed: int) -> None:
    structure, operations = setting(name)
    spectrum = symmetric(random_spectrum(grid, seed), operations, grid)
    field = on_points(spectrum, grid)
    stars = Stars(structure, grid, operations)
    c = stars.coefficients(field)
    np.testing.assert_allclose(stars.field(c), field, atol=1000 * ROUNDING)
    assert np.square(c).sum() == pytest.approx(np.square(field).mean(), rel=1e-10, abs=1e-20)
    for h, f in zip(stars.h.tolist(), stars.to_complex(c), strict=True):
        assert abs(spectrum[h[0], h[1], h[2]] - f) < 100 * ROUNDING


@settings(deadline=None, max_examples=60)
@given(names, grids, seeds)
def test_any_coefficients_come_back(name: str, grid: Grid, seed: int) -> None:
    structure, operations = setting(name)
    stars = Stars(structure, grid, operations)
    assert stars.n_coefficients == dimension(operations, grid)
    c = np.random.default_rng(seed).normal(size=stars.n_coefficients)
    field = stars.field(c)
    assert field.shape == grid
    assert field.mean() == pytest.approx(0.0, abs=ROUNDING)
    assert np.square(field).mean() == pytest.approx(np.square(c).sum(), rel=1e-10)
    np.testing.assert_allclose(stars.coefficients(field), c, atol=100 * ROUNDING)
    np.testing.assert_allclose(stars.from_complex(stars.to_complex(c)), c, atol=ROUNDING)


@settings(deadline=None, max_examples=40)
@given(names, grids, seeds)
def test_any_field_gives_its_symmetric_part(name: str, grid: Grid, seed: int) -> None:
    """The projection on the invariant fields, and what is left is orthogonal to them."""
    structure, operations = setting(name)
    spectrum = random_spectrum(grid, seed)
    field = on_points(spectrum, grid) + 3.0
    kept = field.copy()
    stars = Stars(structure, grid, operations)
    part = stars.field(stars.coefficients(field))
    np.testing.assert_array_equal(field, kept)
    expected = on_points(symmetric(spectrum, operations, grid), grid)
    scale = np.abs(field).max()
    np.testing.assert_allclose(part, expected, atol=100 * ROUNDING * scale)
    assert np.mean((field - part) * part) == pytest.approx(0.0, abs=1e-10 * scale**2)


@pytest.mark.parametrize("grid", [(12, 12, 12), (8, 12, 4), (6, 6, 6)])
@pytest.mark.parametrize("name", ["diamond, conventional", "rutile", "P2_1/c", "bcc 2x2x2"])
def test_the_field_is_the_same_at_equivalent_points(name: str, grid: Grid) -> None:
    """f(W x + w) = f(x), on the points that operations map to points."""
    structure, operations = setting(name)
    stars = Stars(structure, grid, operations)
    field = stars.field(np.random.default_rng(0).normal(size=stars.n_coefficients))
    points = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), axis=-1)
    compared = 0
    for rotation, shift in zip(operations.rotations, operations.translations, strict=True):
        images = ((points / np.array(grid)) @ rotation.T + shift) * np.array(grid)
        if np.abs(images - np.rint(images)).max() < 0.01:
            target = np.rint(images).astype(int) % np.array(grid)
            moved = field[target[..., 0], target[..., 1], target[..., 2]]
            np.testing.assert_allclose(moved, field, atol=1e-11)
            compared += 1
    assert compared > 1


@pytest.mark.parametrize("name", sorted(CRYSTALS))
def test_every_coefficient_is_a_unit_of_the_mean_square(name: str) -> None:
    structure, operations = setting(name)
    stars = Stars(structure, (6, 5, 7), operations)
    fields = [stars.field(unit).ravel() for unit in np.eye(stars.n_coefficients)[:40]]
    if fields:
        matrix = np.array(fields)
        gram = matrix @ matrix.T / matrix.shape[1]
        np.testing.assert_allclose(gram, np.eye(len(fields)), atol=1e-11)


def test_several_columns_at_once() -> None:
    structure, operations = setting("quartz")
    stars = Stars(structure, (9, 9, 10), operations)
    rng = np.random.default_rng(0)
    f = rng.normal(size=(len(stars.h), 3)) + 1j * rng.normal(size=(len(stars.h), 3))
    columns = stars.from_complex(f)
    assert columns.shape == (stars.n_coefficients, 3)
    for i in range(3):
        np.testing.assert_array_equal(columns[:, i], stars.from_complex(f[:, i]))


# ---------------------------------------------------------------- which stars


def test_stars_of_diamond() -> None:
    """Face centring and the d glide forbid; 222 is there, but not of spherical atoms."""
    structure, operations = setting("diamond, conventional")
    stars = Stars(structure, (24, 24, 24), operations, g_max=2 * math.pi / 3.57 * 4.6)
    kinds = [tuple(sorted(map(abs, h), reverse=True)) for h in stars.h.tolist()]
    assert kinds == [(1, 1, 1), (2, 2, 0), (3, 1, 1), (2, 2, 2), (4, 0, 0), (3, 3, 1)]
    np.testing.assert_array_equal(stars.multiplicity, [8, 12, 24, 8, 6, 24])
    np.testing.assert_allclose(stars.g, 2 * np.pi / 3.57 * np.linalg.norm(stars.h, axis=1))
    assert stars.is_real.all()
    c = stars.coefficients(gaussians((24, 24, 24), structure, width=0.5))
    assert abs(c[3]) < 1e-10
    assert (np.abs(np.delete(c, 3)) > 1e-3).all()


def test_phases_follow_the_origin() -> None:
    """The phase that symmetry fixes moves with the origin; coefficients are real in each."""
    atoms = bulk("Si", a=5.43)
    for shift in ([0, 0, 0], [0.125] * 3, [0.03, 0.17, 0.41]):
        moved = atoms.copy()
        moved.set_scaled_positions(atoms.get_scaled_positions() + shift)
        structure = Structure.from_ase(moved)
        stars = Stars(structure, (16, 16, 16), find_operations(structure, SYMPREC))
        assert stars.is_real.all()
        field = gaussians((16, 16, 16), structure, width=0.7)
        c = stars.coefficients(field)
        np.testing.assert_allclose(stars.field(c) + field.mean(), field, atol=2e-6)


def test_without_symmetry_every_pair_is_a_star() -> None:
    structure, operations = setting("P1")
    assert len(operations) == 1
    grid = (7, 6, 5)
    stars = Stars(structure, grid, operations)
    assert stars.n_coefficients == len(below_nyquist(grid)) == 7 * 5 * 5 - 1
    assert not stars.is_real.any()
    assert (stars.multiplicity == 2).all()
    field = cosines(grid, [((1, 2, -1), 0.5, 0.4), ((3, 0, 2), 0.1, -1.0)], 2.0)
    c = stars.coefficients(field)
    assert np.square(c).sum() == pytest.approx(0.5**2 / 2 + 0.1**2 / 2)
    np.testing.assert_allclose(stars.field(c) + 2.0, field, atol=ROUNDING)


def test_a_supercell_has_the_stars_of_its_cell() -> None:
    small = Structure.from_ase(bulk("NaCl", "rocksalt", a=5.64, cubic=True))
    large = Structure.from_ase(bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat((2, 2, 2)))
    g_max = 6.0
    first = Stars(small, (20, 20, 20), find_operations(small, SYMPREC), g_max)
    operations = find_operations(large, SYMPREC)
    second = Stars(large, (40, 40, 40), operations, g_max)
    assert len(operations) == 48 * 32
    assert operations.lattice_translations.shape == (31, 3)
    assert len(operations.cosets) == 48
    np.testing.assert_array_equal(second.h, 2 * first.h)
    np.testing.assert_array_equal(second.multiplicity, first.multiplicity)


def test_one_point_has_no_star() -> None:
    structure, operations = setting("diamond")
    for grid in ((1, 1, 1), (2, 2, 2), (1, 2, 1)):
        stars = Stars(structure, grid, operations)
        assert stars.n_coefficients == len(stars.h) == 0
        field = np.random.default_rng(0).normal(size=grid)
        np.testing.assert_array_equal(stars.field(stars.coefficients(field)), np.zeros(grid))


@settings(deadline=None, max_examples=40)
@given(names, grids, st.floats(0.0, 12.0))
def test_the_sphere_takes_whole_stars(name: str, grid: Grid, g_max: float) -> None:
    structure, operations = setting(name)
    full, cut = Stars(structure, grid, operations), Stars(structure, grid, operations, g_max)
    assert (np.diff(full.g) >= -1e-12).all()
    assert (cut.g <= g_max * (1 + 1e-12)).all()
    np.testing.assert_array_equal(cut.h, full.h[: len(cut.h)])
    assert (full.g[len(cut.h) :] > g_max * (1 - 1e-12)).all()
    exact = 2 * np.pi * np.linalg.norm(full.h @ np.linalg.inv(structure.lattice).T, axis=1)
    np.testing.assert_allclose(full.g, exact, rtol=1e-9)


# ---------------------------------------------------------------- the same on every machine


def test_atoms_in_another_order_have_the_same_stars() -> None:
    for name, make in CRYSTALS.items():
        atoms = make()
        grid = (10, 9, 12) if name == "P1" else (10, 10, 10)
        structure, shuffled = (
            Structure.from_ase(a) for a in (atoms, atoms[np.arange(len(atoms))[::-1]])
        )
        first = Stars(structure, grid, find_operations(structure, SYMPREC))
        second = Stars(shuffled, grid, find_operations(shuffled, SYMPREC))
        np.testing.assert_array_equal(first.h, second.h)
        np.testing.assert_array_equal(first.is_real, second.is_real)


@pytest.mark.parametrize("name", sorted(CRYSTALS))
def test_operations_in_another_order_have_the_same_stars(name: str) -> None:
    structure, operations = setting(name)
    order = np.r_[0, np.random.default_rng(0).permutation(len(operations) - 1) + 1]
    other = Operations(operations.rotations[order], operations.translations[order])
    first, second = (Stars(structure, (9, 9, 9), group) for group in (operations, other))
    np.testing.assert_array_equal(first.h, second.h)
    np.testing.assert_array_equal(first.is_real, second.is_real)
    np.testing.assert_array_equal(first.multiplicity, second.multiplicity)


@pytest.mark.parametrize("name", sorted(CRYSTALS))
def test_noise_in_the_last_place_of_the_lattice_changes_no_order(name: str) -> None:
    """As from another reader of the same file, or a product of matrices on another machine."""
    structure, operations = setting(name)
    first = Stars(structure, (12, 12, 12), operations, 9.0)
    for seed in range(5):
        signs = np.random.default_rng(seed).integers(-1, 2, (3, 3))
        noisy = structure.lattice * (1 + 2.0**-52 * signs)
        other = Structure(noisy, structure.species, structure.frac_coords)
        second = Stars(other, (12, 12, 12), operations, 9.0)
        np.testing.assert_array_equal(first.h, second.h)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=9, max_size=9))
def test_reciprocal_metric(numbers: list[float]) -> None:
    lattice = np.reshape(numbers, (3, 3)) + 7 * np.eye(3)
    if abs(np.linalg.det(lattice)) > 1.0:
        np.testing.assert_allclose(
            reciprocal_metric(lattice), np.linalg.inv(lattice @ lattice.T), rtol=1e-9, atol=1e-9
        )


# ---------------------------------------------------------------- groups


def same_group(a: Operations, b: Operations) -> bool:
    """Whether they have the same operations, translations up to whole numbers."""
    if len(a) != len(b):
        return False
    for rotation, shift in zip(a.rotations, a.translations, strict=True):
        same = (b.rotations == rotation).all(axis=(1, 2))
        apart = b.translations[same] - shift
        apart -= np.rint(apart)
        if (np.abs(apart).max(axis=1, initial=0.0) < 1e-3).sum() != 1:
            return False
    return True


def assert_regenerates(operations: Operations) -> None:
    chosen = generators(operations)
    assert len(chosen) <= 7
    again = closure(operations.rotations[chosen], operations.translations[chosen])
    assert (again.rotations[0] == np.eye(3)).all()
    assert not again.translations[0].any()
    assert same_group(operations, again)


@pytest.mark.parametrize("name", sorted(CRYSTALS))
def test_generators_regenerate_the_group(name: str) -> None:
    _, operations = setting(name)
    assert (operations.rotations[0] == np.eye(3)).all()
    np.testing.assert_allclose(operations.translations[0] % 1, 0, atol=1e-3)
    assert_regenerates(operations)


def test_generators_regenerate_the_groups_of_many_materials(shared: Path) -> None:
    with gzip.open(shared / "data" / "structures.json.gz", "rt") as file:
        records = json.load(file)
    by_group: dict[int, dict[str, object]] = {}
    for record in records[::5]:
        by_group.setdefault(record["spacegroup"], record)
    assert len(by_group) > 60
    for record in by_group.values():
        atoms = Atoms(
            numbers=record["numbers"],
            scaled_positions=record["scaled_positions"],
            cell=record["cell"],
            pbc=True,
        )
        operations = find_operations(Structure.from_ase(atoms), SYMPREC)
        assert_regenerates(operations)


def test_the_operations_map_the_crystal_onto_itself() -> None:
    for name in CRYSTALS:
        structure, operations = setting(name)
        species = np.array(structure.species)
        for rotation, shift in zip(operations.rotations, operations.translations, strict=True):
            images = structure.frac_coords @ rotation.T + shift
            apart = images[:, None] - structure.frac_coords
            distance = np.linalg.norm((apart - np.rint(apart)) @ structure.lattice, axis=-1)
            nearest = distance.argmin(axis=1)
            assert distance.min(axis=1).max() < SYMPREC
            assert (species[nearest] == species).all()


@pytest.mark.parametrize(
    ("name", "n_operations"),
    [("diamond", 48), ("diamond, conventional", 192), ("bcc 2x2x2", 96 * 8), ("P1", 1),
     ("triclinic P-1", 2), ("hcp", 24), ("Ia-3d", 96), ("rocksalt 2x1x1", 24), ("Fdd2", 16)],
)  # fmt: skip
def test_orders_of_groups(name: str, n_operations: int) -> None:
    assert len(setting(name)[1]) == n_operations


def test_a_structure_without_a_group() -> None:
    cell = np.eye(3) * 4
    empty = Structure(cell, (), np.zeros((0, 3)))
    overlapping = Structure(cell, ("C", "C"), np.zeros((2, 3)))
    for structure in (empty, overlapping):
        operations = find_operations(structure, SYMPREC)
        assert len(operations) == 1
        assert not generators(operations)
        assert len(operations.lattice_translations) == 0


def test_operations_of_no_crystal_are_refused() -> None:
    shear = np.array([[[1, 1, 0], [0, 1, 0], [0, 0, 1]]])
    with pytest.raises(ValueError, match="no crystal"):
        closure(shear, np.zeros((1, 3)))
