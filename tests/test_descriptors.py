from __future__ import annotations

import itertools
import sys
import warnings

import numpy as np
import pytest
from ase.spacegroup import crystal
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import chgdb
from chgdb import descriptors
from chgdb.density import ChargeDensity, Grid, Structure
from chgdb.descriptors import (
    CORE_BLIND,
    DESCRIPTORS,
    POINTS_PER_ANGSTROM,
    WITHIN_ELEMENTS,
    describe,
    standard_cell,
)
from chgdb.elements import SYMBOLS
from chgdb.errors import InputError, MissingExtraError
from chgdb.grid import half_waves, shift_origin, spacing_grid

ROUNDING = 2e-4
"""Of a density whose header has six decimals, relative to its largest value."""

WIDTH = 0.45
"""Of the Gaussian atoms, Angstrom: nothing is left of them where waves are damped."""

# Spacegroup, cell, and the elements with their positions.
CRYSTALS: dict[str, tuple[int, list[float], dict[str, tuple[float, float, float]]]] = {
    "P1": (1, [4.1, 4.9, 5.7, 75, 82, 98], {"Li": (0, 0, 0), "O": (0.3, 0.21, 0.44)}),
    "P-1": (2, [4.1, 4.9, 5.7, 105, 98, 112], {"Li": (0, 0, 0), "O": (0.3, 0.21, 0.44)}),
    "P2_1/c": (14, [5.1, 5.2, 5.3, 90, 99, 90], {"Zr": (0.28, 0.04, 0.21)}),
    "C2/m": (12, [7.3, 3.1, 5.0, 90, 108, 90], {"Li": (0.1, 0, 0.23), "O": (0.36, 0, 0.4)}),
    "Cc": (9, [6.1, 5.2, 5.9, 90, 112, 90], {"Li": (0, 0.1, 0), "O": (0.26, 0.36, 0.4)}),
    "Pnma": (62, [6.8, 4.1, 5.3, 90, 90, 90], {"Ti": (0.18, 0.25, 0.12), "B": (0.03, 0.25, 0.6)}),
    "Cmcm": (63, [3.9, 10.7, 3.3, 90, 90, 90], {"Ca": (0, 0.14, 0.25), "Si": (0, 0.43, 0.25)}),
    "Amm2": (38, [3.6, 4.5, 6.0, 90, 90, 90], {"Y": (0, 0, 0), "C": (0.5, 0, 0.31)}),
    "Fdd2": (43, [6.2, 7.9, 4.1, 90, 90, 90], {"Si": (0.1, 0.07, 0.2)}),
    "Immm": (71, [2.9, 4.0, 8.5, 90, 90, 90], {"Pt": (0, 0, 0), "V": (0, 0, 0.34)}),
    "I4_1/a": (88, [4.2, 4.2, 7.1, 90, 90, 90], {"Ca": (0, 0.25, 0.125), "F": (0.2, 0.1, 0.3)}),
    "I4/mmm": (139, [3.7, 3.7, 9.1, 90, 90, 90], {"Ba": (0, 0, 0), "Al": (0, 0, 0.38)}),
    "P3_121": (152, [4.9, 4.9, 5.4, 90, 90, 120], {"Si": (0.47, 0, 0), "O": (0.41, 0.27, 0.12)}),
    "R3m": (160, [4.0, 4.0, 9.9, 90, 90, 120], {"Ge": (0, 0, 0.24), "Te": (0, 0, 0.75)}),
    "R-3m": (166, [3.8, 3.8, 10.5, 90, 90, 120], {"As": (0, 0, 0.227)}),
    "P6_3mc": (186, [3.2, 3.2, 5.2, 90, 90, 120], {"Be": (1 / 3, 2 / 3, 0)}),
    "P2_13": (198, [4.5, 4.5, 4.5, 90, 90, 90], {"Fe": (0.14, 0.14, 0.14)}),
    "Fm-3m": (225, [4.2, 4.2, 4.2, 90, 90, 90], {"Mg": (0, 0, 0), "O": (0.5, 0.5, 0.5)}),
    "Fd-3m": (227, [5.4, 5.4, 5.4, 90, 90, 90], {"Si": (0, 0, 0)}),
    "Im-3m": (229, [3.2, 3.2, 3.2, 90, 90, 90], {"W": (0, 0, 0)}),
}  # fmt: skip


def atoms_density(structure: Structure, grid: Grid | None = None) -> ChargeDensity:
    """A Gaussian per atom with as many electrons as its atomic number, by its Fourier series."""
    grid = grid or spacing_grid(structure.lattice, 12.0)
    h = half_waves(grid)
    g = 2 * np.pi * np.linalg.norm(h @ np.linalg.inv(structure.lattice).T, axis=-1)
    kept = g < 2 * np.pi * 4.0
    factors = np.zeros(kept.sum(), dtype=complex)
    for symbol, x in zip(structure.species, structure.frac_coords, strict=True):
        factors += (SYMBOLS.index(symbol) + 1) * np.exp(-2j * np.pi * (h[kept] @ x))
    series = np.zeros(kept.shape, dtype=complex)
    series[kept] = factors * np.exp(-0.5 * (WIDTH * g[kept]) ** 2) / structure.volume
    return ChargeDensity(np.fft.irfftn(series, s=grid, axes=(0, 1, 2)) * np.prod(grid), structure)


def known(name: str) -> Structure:
    number, cellpar, sites = CRYSTALS[name]
    atoms = crystal(list(sites), list(sites.values()), spacegroup=number, cellpar=cellpar)
    return Structure.from_ase(atoms)


def given_in(
    structure: Structure,
    basis: NDArray[np.int64],
    *,
    rotation: NDArray[np.float64] | None = None,
    shift: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> Structure:
    """The crystal in a cell with the vectors `basis` @ lattice, as a CHGCAR with six decimals."""
    back = np.linalg.inv(basis)
    copies = abs(round(float(np.linalg.det(basis))))
    reach = range(-int(np.abs(basis).sum()), int(np.abs(basis).sum()) + 1)
    steps = np.array(list(itertools.product(reach, repeat=3)))
    inside = np.rint(steps @ back * copies).astype(int) % copies
    _, first = np.unique(inside, axis=0, return_index=True)
    assert len(first) == copies
    coords = ((structure.frac_coords[:, None] + steps[first]) @ back).reshape(-1, 3)
    species = [symbol for symbol in structure.species for _ in first]
    if shift is not None:
        coords = coords + shift
    lattice = basis @ structure.lattice
    if rotation is not None:
        lattice = lattice @ rotation
    order = np.random.default_rng(seed).permutation(len(species))
    return Structure(
        np.round(lattice, 6),
        tuple(species[i] for i in order),
        np.round(coords[order] % 1.0, 6),
    )


def rotation(seed: int) -> NDArray[np.float64]:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return np.asarray(q * np.sign(np.linalg.det(q)), dtype=np.float64)


def random_basis(seed: int, copies: tuple[int, int, int]) -> NDArray[np.int64]:
    """A cell of some copies, sheared, with its vectors in any order and of either hand."""
    rng = np.random.default_rng(seed)
    basis = np.diag(copies)
    for _ in range(2):
        i, j = rng.permutation(3)[:2]
        basis[i] += rng.integers(-1, 2) * basis[j]
    return np.asarray(basis[rng.permutation(3)] * rng.choice([-1, 1]), dtype=np.int64)


def random_crystal(rng: np.random.Generator, n_atoms: int) -> Structure:
    """Atoms apart from each other in a cell without symmetry."""
    lattice = np.diag(rng.uniform(3.0, 6.0, 3)) + rng.uniform(-1.0, 1.0, (3, 3))
    steps = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    coords = np.zeros((0, 3))
    while len(coords) < n_atoms:
        x = rng.random(3)
        if np.linalg.norm((coords[:, None] - x + steps) @ lattice, axis=-1).min(initial=9) > 0.8:
            coords = np.vstack([coords, x])
    return Structure(lattice, ("Si", "O", "O", "Li")[:n_atoms], coords)


def assert_same(found: ChargeDensity, expected: ChargeDensity) -> None:
    """Values on the same grid of the same cell."""
    assert found.grid == expected.grid
    np.testing.assert_allclose(found.structure.lattice, expected.structure.lattice, atol=2e-5)
    scale = np.abs(expected.values).max()
    assert np.abs(found.values - expected.values).max() < ROUNDING * scale
    apart = found.structure.frac_coords[:, None] - expected.structure.frac_coords
    apart = np.linalg.norm((apart - np.rint(apart)) @ expected.structure.lattice, axis=-1)
    nearest = apart.argmin(axis=1)
    assert sorted(nearest) == list(range(len(nearest)))
    assert apart.min(axis=1).max() < 1e-4
    species = [expected.structure.species[i] for i in nearest]
    assert list(found.structure.species) == species


# ---------------------------------------------------------------------- the standard cell


@pytest.mark.parametrize("name", CRYSTALS)
def test_the_standard_cell_does_not_depend_on_the_cell(name: str) -> None:
    structure = known(name)
    expected = standard_cell(atoms_density(structure))
    for seed, copies in enumerate([(1, 1, 1), (1, 1, 1), (2, 1, 1), (1, 2, 1)]):
        other = given_in(
            structure,
            random_basis(seed, copies),
            rotation=rotation(seed),
            shift=np.random.default_rng(seed).random(3),
            seed=seed,
        )
        assert_same(standard_cell(atoms_density(other)), expected)


@pytest.mark.parametrize("name", CRYSTALS)
def test_the_primitive_cell_gives_the_usual_one(name: str) -> None:
    number, cellpar, sites = CRYSTALS[name]
    primitive = crystal(
        list(sites), list(sites.values()), spacegroup=number, cellpar=cellpar, primitive_cell=True
    )
    found = standard_cell(atoms_density(Structure.from_ase(primitive)))
    assert_same(found, standard_cell(atoms_density(known(name))))
    if name.startswith("R"):
        assert len(found.structure.species) == len(primitive)
    else:
        assert len(found.structure.species) == len(known(name).species)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_crystal_has_one_standard_cell(seed: int) -> None:
    rng = np.random.default_rng(seed)
    structure = random_crystal(rng, n_atoms=int(rng.integers(1, 5)))
    other = given_in(
        structure, random_basis(seed, (1, 1, 1)), rotation=rotation(seed), shift=rng.random(3)
    )
    assert_same(standard_cell(atoms_density(other)), standard_cell(atoms_density(structure)))


@pytest.mark.parametrize("strain", [1e-5, 1e-4, 1e-3])
def test_a_cell_that_is_almost_symmetric(strain: float) -> None:
    """spglib takes it to be tetragonal, and either of two axes as the first."""
    lattice = np.diag([3.0, 3.0 * (1 + strain), 4.0])
    lattice[2, 0] = strain
    structure = Structure(lattice, ("W",), np.zeros((1, 3)))
    expected = standard_cell(atoms_density(structure))
    for seed in range(6):
        other = given_in(structure, random_basis(seed, (1, 1, 1)), rotation=rotation(seed))
        assert_same(standard_cell(atoms_density(other)), expected)


def test_the_standard_cell_holds_the_field_itself() -> None:
    structure = known("Pnma")
    given_density = atoms_density(structure)
    found = standard_cell(given_density)
    assert np.isclose(found.values.mean(), given_density.values.mean(), rtol=1e-12)
    lattice = found.structure.lattice
    assert np.array_equal(lattice, np.tril(lattice))
    assert (np.diag(lattice) > 0).all()
    assert np.all(np.diff(np.linalg.norm(lattice, axis=1)) > 0)
    # The damping leaves these atoms as they are, so the series there is the one of the atoms.
    expected = atoms_density(found.structure, found.grid).values
    assert np.abs(found.values - expected).max() < 1e-3 * expected.max()


def test_the_grid_is_fine_enough_and_holds_halves_and_quarters() -> None:
    found = standard_cell(atoms_density(known("Cmcm")))
    lengths = np.linalg.norm(found.structure.lattice, axis=1)
    assert all(n % 4 == 0 for n in found.grid)
    assert (np.array(found.grid) / lengths > POINTS_PER_ANGSTROM * (1 - 1e-3)).all()


def test_a_large_cell_is_sampled_more_coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    density = atoms_density(known("Fm-3m"))
    usual = standard_cell(density)
    assert len(usual.structure.species) == 8
    monkeypatch.setattr(descriptors, "LARGEST_GRID", usual.values.size - 1)
    primitive = standard_cell(density)
    assert len(primitive.structure.species) == 2
    monkeypatch.setattr(descriptors, "LARGEST_GRID", 10_000)
    coarse = standard_cell(density)
    assert 4_000 < coarse.values.size <= 10_000
    assert np.isclose(coarse.values.mean(), density.values.mean())


def test_translations_that_the_density_lacks_are_not_used() -> None:
    cell = known("Im-3m")
    density = atoms_density(given_in(cell, np.diag([2, 1, 1])))
    wave = np.cos(2 * np.pi * np.arange(density.grid[0]) / density.grid[0])[:, None, None]
    mean = density.values.mean()
    weak = ChargeDensity(density.values + 0.01 * mean * wave, density.structure)
    strong = ChargeDensity(density.values + 0.2 * mean * wave, density.structure)
    assert len(standard_cell(weak).structure.species) == 2
    assert_same(standard_cell(weak), standard_cell(density))
    assert len(standard_cell(strong).structure.species) == 4


def test_the_magnetization_and_the_given_density_stay_out_of_it() -> None:
    density = atoms_density(known("R-3m"))
    before = density.values.copy()
    spin = ChargeDensity(density.values, density.structure, density.values[None] / 2)
    found = standard_cell(spin)
    assert found.magnetization is None
    assert_same(found, standard_cell(density))
    assert np.array_equal(density.values, before)


# ---------------------------------------------------------------------- descriptors


def test_the_names_are_those_of_pydemi() -> None:
    """But lap_concentration, which is 1/2 for every density and not in its data set."""
    pydemi = pytest.importorskip("pydemi")
    names = [name for name in pydemi.descriptor_names() if name != "lap_concentration"]
    assert tuple(names) == DESCRIPTORS


def test_groups_are_of_the_descriptors() -> None:
    assert len(set(DESCRIPTORS)) == len(DESCRIPTORS) == 55
    assert set(CORE_BLIND) <= set(DESCRIPTORS)
    assert set(WITHIN_ELEMENTS) <= set(CORE_BLIND)


def of_store(material_id: str) -> ChargeDensity:
    found: ChargeDensity = chgdb.open(ROOT / "store")[material_id].density()
    return found


@pytest.mark.parametrize("material_id", ["mp-149", "mp-2490", "mp-142", "mp-11549", "mp-1434"])
def test_descriptors_of_real_densities_do_not_depend_on_the_cell(material_id: str) -> None:
    """Against what they vary by between materials, which is about as much as they are."""
    pytest.importorskip("pydemi")
    density = of_store(material_id)
    structure, values = density.structure, density.values
    expected = describe(density)
    turned = Structure(
        structure.lattice @ rotation(1), structure.species[::-1], structure.frac_coords[::-1]
    )
    shift = np.array([0.3137, 0.1234, 0.7771])
    moved = Structure(structure.lattice, structure.species, structure.frac_coords + shift)
    doubled = given_in(structure, np.diag([1, 2, 1]))
    cyclic = np.eye(3, dtype=np.int64)[[1, 2, 0]]
    for other in (
        ChargeDensity(values[:, :, :], turned),
        ChargeDensity(shift_origin(values, shift), moved),
        ChargeDensity(np.tile(values, (1, 2, 1)), doubled),
        ChargeDensity(values.transpose(1, 2, 0), given_in(structure, cyclic)),
    ):
        found = describe(other)
        apart = np.abs(found - expected) / np.maximum(np.abs(expected), 0.01)
        worst = int(apart.argmax())
        assert apart[worst] < 5e-3, DESCRIPTORS[worst]


def test_what_pydemi_leaves_open_is_told_apart_from_nothing() -> None:
    """One atom of an element has no variance; two that are alike have none either."""
    pytest.importorskip("pydemi")
    one = standard_cell(atoms_density(known("I4/mmm"), None))
    assert len(one.structure.species) > 2
    values = dict(zip(DESCRIPTORS, describe(atoms_density(known("R3m"))), strict=True))
    assert [values[name] for name in WITHIN_ELEMENTS] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("lattice", "species", "coords", "values"),
    [
        (np.eye(3) * 4, ("Si",), [[0, 0, 0]], np.ones((8, 8, 8))),
        (np.eye(3) * 4, ("Si",), [[0, 0, 0]], np.ones((1, 1, 1))),
        (np.eye(3), ("H",), [[0, 0, 0]], np.random.default_rng(0).random((3, 4, 5))),
        (np.eye(3) * 4, ("Si", "Si"), [[0, 0, 0], [0, 0, 0]], np.ones((8, 8, 8))),
        (np.diag([3, 3, 20.0]), ("Si",), [[0, 0, 0.05]], np.ones((9, 9, 1)) * np.eye(60)[3]),
        (np.eye(3) * 4, ("Si",), [[7, -3, 0]], np.random.default_rng(0).normal(0.1, 1, (12,) * 3)),
    ],
    ids=["uniform", "one point", "coarse", "overlapping", "vacuum", "negative"],
)  # fmt: skip
def test_odd_densities_are_described(
    lattice: NDArray[np.float64],
    species: tuple[str, ...],
    coords: list[list[float]],
    values: NDArray[np.float64],
) -> None:
    pytest.importorskip("pydemi")
    density = ChargeDensity(values, Structure(lattice, species, np.array(coords, dtype=float)))
    assert np.isfinite(describe(density)).all()


@pytest.mark.parametrize(
    ("species", "value", "message"),
    [
        ((), 1.0, "without atoms"),
        (("Si",), 0.0, "with 0 electrons"),
        (("Si",), -1.0, "with -64 electrons"),
        (("Si",), 1e308, "with inf electrons"),
    ],
)
def test_what_cannot_be_described_is_told(
    species: tuple[str, ...], value: float, message: str
) -> None:
    structure = Structure(np.eye(3) * 4, species, np.zeros((len(species), 3)))
    density = ChargeDensity(np.full((8, 8, 8), value), structure)
    with pytest.raises(InputError, match=message):
        standard_cell(density)


def test_without_pydemi_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydemi", None)
    with pytest.raises(MissingExtraError, match=r"chgdb\[ml\]"):
        describe(atoms_density(known("Im-3m")))


def test_errors_and_warnings_of_pydemi_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    pydemi = pytest.importorskip("pydemi")

    def fails(data: object) -> None:
        warnings.warn("a warning", RuntimeWarning, stacklevel=1)
        raise ValueError("no such thing")

    monkeypatch.setattr(pydemi, "featurize", fails)
    with pytest.raises(InputError, match=r"cannot be described \(no such thing\)"):
        describe(atoms_density(known("Im-3m")))
    monkeypatch.setattr(pydemi, "featurize", lambda data: dict.fromkeys(DESCRIPTORS, np.inf))
    with pytest.raises(InputError, match="zeta is no finite number"):
        describe(atoms_density(known("Im-3m")))


def test_descriptors_are_near_those_of_the_authors(shared: object) -> None:
    """Silicon, whose pseudopotentials hold as many electrons in ABINIT as in VASP."""
    pytest.importorskip("pydemi")
    from training_data import pydemi_bundle

    data = pydemi_bundle()["dataset"]
    theirs = data["X"][data["material_id"].index("mp-149")]
    ours = describe(of_store("mp-149"))
    for name in ("rho_int_mean", "rho_mid_mean", "rho_perc_a", "f_int", "f_NCI", "zeta"):
        at = DESCRIPTORS.index(name)
        assert ours[at] == pytest.approx(theirs[at], rel=0.05), name
