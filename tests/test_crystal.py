"""A field as atoms and waves: the limits that it is held to, its symmetry, its size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from analytic import SKEW, cosines, gaussians
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chgdb.crystal import Limits, NotReachedError, decode_field, encode_field
from chgdb.density import ChargeDensity, Grid, Structure
from chgdb.errors import ChgdbError, StoreError
from chgdb.formats import read_density
from chgdb.library import LATEST

EXAMPLES = Path(__file__).parents[1] / "examples"
ELECTRONS = 1e-8
"""Relative error of the electrons, at most."""


def structure_of(atoms: Atoms) -> Structure:
    return Structure.from_ase(atoms)


def limits_of(values: NDArray[np.float64], percent: float) -> Limits:
    return Limits(percent / 100 * float(np.abs(values).mean()), math.inf)


def round_trip(
    values: NDArray[np.float64], structure: Structure, limits: Limits, *, generic: bool = False
) -> bytes:
    """The bytes, after a look at what they decode to."""
    before = values.copy()
    data = encode_field(values, structure, limits, generic=generic)
    np.testing.assert_array_equal(values, before)
    grid = (values.shape[0], values.shape[1], values.shape[2])
    back = decode_field(data, structure, grid, LATEST)
    error = np.abs(back - values)
    assert error.mean() <= limits.mean_error
    assert error.max() <= limits.max_error
    assert abs(back.mean() - values.mean()) <= ELECTRONS * np.abs(values).mean()
    np.testing.assert_array_equal(back, decode_field(data, structure, grid, LATEST))
    return data


def quartz() -> Atoms:
    return crystal(
        ["Si", "O"],
        [(0.4697, 0, 0), (0.4135, 0.2669, 0.1191)],
        spacegroup=154,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    )


CRYSTALS: dict[str, tuple[Structure, Grid]] = {
    "diamond": (structure_of(bulk("Si", a=5.43)), (15, 15, 15)),
    "diamond, cubic cell": (structure_of(bulk("Si", a=5.43, cubic=True)), (16, 16, 16)),
    "rocksalt": (structure_of(bulk("NaCl", "rocksalt", a=5.64)), (16, 16, 16)),
    "wurtzite": (structure_of(bulk("ZnO", "wurtzite", a=3.25, c=5.2)), (12, 12, 18)),
    "quartz": (structure_of(quartz()), (14, 14, 16)),
    "hcp": (structure_of(bulk("Mg")), (11, 11, 17)),
    "triclinic": (
        Structure(SKEW, ("C", "N"), np.array([[0.1, 0.2, 0.3], [0.6, 0.7, 0.55]])),
        (11, 12, 14),
    ),
}  # fmt: skip


# ---------------------------------------------------------------- limits


def test_limits_by_hand() -> None:
    error = np.array([[[0.1, -0.4], [0.0, 0.3]]])
    assert Limits(0.2, math.inf).share(error) == pytest.approx(1.0)
    assert Limits(math.inf, 0.2).share(error) == pytest.approx(2.0)
    assert Limits(0.1, 0.8).share(error) == pytest.approx(2.0)
    assert Limits(0.1, math.inf).rms == pytest.approx(0.12)
    assert 0 < Limits(math.inf, 0.1).rms < 0.1


@pytest.mark.parametrize("percent", [10.0, 0.1, 1e-3, 1e-6])
@pytest.mark.parametrize("name", sorted(CRYSTALS))
def test_smooth_crystals_at_any_tolerance(name: str, percent: float) -> None:
    structure, grid = CRYSTALS[name]
    values = gaussians(grid, structure, width=0.6)
    try:
        data = round_trip(values, structure, limits_of(values, percent))
    except NotReachedError:
        assert percent < 0.1  # the tails at the Nyquist frequencies
        return
    assert len(data) < 5 * values.size


@pytest.mark.parametrize("limit", [1.0, 1e-2, 1e-4])
def test_the_largest_error_alone_and_both(limit: float) -> None:
    structure, grid = CRYSTALS["wurtzite"]
    values = gaussians(grid, structure, width=0.7)
    loose = round_trip(values, structure, Limits(math.inf, limit))
    tight = round_trip(values, structure, Limits(0.1 * limit, limit))
    assert len(loose) <= len(tight) + 8


waves = st.lists(
    st.tuples(
        st.tuples(*[st.integers(-3, 3)] * 3), st.floats(-1.0, 1.0), st.floats(0, 2 * math.pi)
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["diamond", "rocksalt", "wurtzite", "hcp", "triclinic"]),
    st.tuples(*[st.sampled_from([7, 8])] * 3),
    waves,
    st.floats(-2.0, 2.0),
    st.sampled_from([5.0, 0.3, 0.02]),
    st.booleans(),
)
def test_any_field_below_nyquist(
    name: str,
    grid: Grid,
    waves: list[tuple[tuple[int, int, int], float, float]],
    constant: float,
    percent: float,
    generic: bool,
) -> None:
    """Of the symmetry of its cell or not, of either sign, of mean zero, of one or many waves."""
    values = cosines(grid, waves, constant)
    if np.abs(values).mean() > 1e-6:
        limits = limits_of(values, percent)
        round_trip(values, CRYSTALS[name][0], limits, generic=generic)


def test_noise_at_the_nyquist_frequencies_is_not_reached() -> None:
    structure, _ = CRYSTALS["rocksalt"]
    values = 1.0 + np.random.default_rng(0).normal(size=(6, 6, 6))
    with pytest.raises(NotReachedError):
        encode_field(values, structure, limits_of(values, 0.1))


# ---------------------------------------------------------------- symmetry


def test_symmetry_is_made_use_of_only_where_the_density_has_it() -> None:
    structure, grid = CRYSTALS["rocksalt"]
    symmetric = gaussians(grid, structure, width=0.6)
    extra = Structure(structure.lattice, ("H",), np.array([[0.31, 0.12, 0.7]]))
    small = round_trip(symmetric, structure, limits_of(symmetric, 0.01))
    values = symmetric + 0.2 * gaussians(grid, extra, width=0.6)
    large = round_trip(values, structure, limits_of(values, 0.01))
    assert len(small) < 200
    assert len(large) > 3 * len(small)


def test_a_part_of_the_symmetry_is_made_use_of() -> None:
    """A wave along a leaves a subgroup: more bytes than with all of it, fewer than with none."""
    structure, grid = CRYSTALS["rocksalt"]
    symmetric = gaussians(grid, structure, width=0.6)
    partly = symmetric + cosines(grid, [((2, 0, 0), 0.05, 0.0), ((1, 0, 0), 0.02, 0.0)], 0.0)
    odd = Structure(structure.lattice, ("H",), np.array([[0.31, 0.12, 0.7]]))
    none = symmetric + 0.05 * gaussians(grid, odd, width=0.6)
    sizes = [
        len(round_trip(values, structure, limits_of(symmetric, 0.01)))
        for values in (symmetric, partly, none)
    ]
    assert sizes == sorted(sizes)
    assert sizes[1] < 0.7 * sizes[2]


def test_cells_of_one_crystal_take_about_the_same_bytes() -> None:
    """Primitive, conventional and double: what they describe is the same."""
    sizes = []
    for atoms, grid in (
        (bulk("Al", a=4.05), (12, 12, 12)),
        (bulk("Al", a=4.05, cubic=True), (17, 17, 17)),
        (bulk("Al", a=4.05).repeat((2, 1, 1)), (24, 12, 12)),
    ):
        structure = structure_of(atoms)
        values = gaussians(grid, structure, width=0.8)
        sizes.append(len(round_trip(values, structure, limits_of(values, 0.05))))
    assert max(sizes) <= min(sizes) + 40


def test_the_origin_and_the_orientation_do_not_matter() -> None:
    sizes = []
    for rotation, shift in ((0.0, [0, 0, 0]), (35.0, [0.11, 0.23, 0.37])):
        atoms = bulk("ZnO", "wurtzite", a=3.25, c=5.2)
        atoms.rotate(rotation, (1, 2, 3), rotate_cell=True)
        atoms.set_scaled_positions(atoms.get_scaled_positions() + np.array(shift))
        structure = structure_of(atoms)
        values = gaussians((12, 12, 18), structure, width=0.7)
        sizes.append(len(round_trip(values, structure, limits_of(values, 0.05))))
    assert abs(sizes[0] - sizes[1]) <= 8


def test_coordinates_of_six_decimals_bear_the_symmetry() -> None:
    atoms = quartz()
    exact = structure_of(atoms)
    rounded = Structure(np.round(exact.lattice, 6), exact.species, np.round(exact.frac_coords, 6))
    values = gaussians((16, 16, 18), exact, width=0.7)
    limits = limits_of(values, 0.05)
    sizes = [len(round_trip(values, structure, limits)) for structure in (exact, rounded)]
    assert abs(sizes[0] - sizes[1]) <= 0.2 * sizes[0]


def test_atoms_at_one_place() -> None:
    """No crystal, but a file may say so; alike and unlike, exactly and nearly."""
    places = np.array([[0.1, 0.2, 0.3]] * 2 + [[0.1, 0.2, 0.3002], [0.6, 0.1, 0.4]])
    values = gaussians((12, 12, 15), Structure(SKEW, ("C",), places[:1]), width=0.8)
    for species in (("C", "C", "O", "N"), ("C", "O", "C", "C"), ("C", "C", "C", "C")):
        round_trip(values, Structure(SKEW, species, places), limits_of(values, 0.1))


def test_no_atoms_and_unknown_species() -> None:
    values = gaussians(
        (12, 12, 15), Structure(SKEW, ("C",), np.array([[0.1, 0.2, 0.3]])), width=0.8
    )
    round_trip(values, Structure(SKEW, (), np.zeros((0, 3))), limits_of(values, 0.1))
    species = ("Xx", "Fe_pv/abc", "")
    places = np.array([[0.1, 0.2, 0.3], [0.5, 0.5, 0.5], [0.9, 0.1, 0.6]])
    round_trip(values, Structure(SKEW, species, places), limits_of(values, 0.1))


# ---------------------------------------------------------------- real densities


@pytest.mark.parametrize(("name", "most"), [("mp-149.CHGCAR.gz", 80), ("MgO.CHGCAR.xz", 110)])
def test_the_examples_take_few_bytes(name: str, most: int) -> None:
    density, _ = read_density(EXAMPLES / name)
    data = round_trip(density.values, density.structure, limits_of(density.values, 0.1))
    assert len(data) < most


def test_densities_of_the_promise(shared: Path) -> None:
    """At most 500 bytes at 0.1 % in the mean; here of some of the smallest."""
    paths = sorted((shared / "densities").glob("*.npz"), key=lambda path: path.stat().st_size)
    sizes = []
    for path in paths[::60][:5]:
        density, _ = read_density(path)
        data = round_trip(density.values, density.structure, limits_of(density.values, 0.1))
        sizes.append(len(data))
    assert sum(sizes) / len(sizes) < 500


# ---------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def example() -> tuple[bytes, Structure, Grid]:
    structure, grid = CRYSTALS["wurtzite"]
    values = gaussians(grid, structure, width=0.7)
    return encode_field(values, structure, limits_of(values, 0.1)), structure, grid


def assert_decodes_or_is_refused(data: bytes, structure: Structure, grid: Grid) -> None:
    """A body alone has no checksum, so it may decode to something; no other error may come."""
    try:
        with np.errstate(all="ignore"):
            field = decode_field(data, structure, grid, LATEST)
            ChargeDensity(field, structure)
    except ChgdbError:
        return
    assert field.shape == grid


def test_damaged_bodies_raise_nothing_else(example: tuple[bytes, Structure, Grid]) -> None:
    data, structure, grid = example
    rng = np.random.default_rng(0)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= int(rng.integers(1, 256))
        assert_decodes_or_is_refused(bytes(damaged), structure, grid)
    for length in range(len(data)):
        assert_decodes_or_is_refused(data[:length], structure, grid)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=80))
def test_any_body_raises_nothing_else(data: bytes) -> None:
    assert_decodes_or_is_refused(data, *CRYSTALS["triclinic"])


def test_the_body_of_another_structure_raises_nothing_else(
    example: tuple[bytes, Structure, Grid],
) -> None:
    for structure, grid in CRYSTALS.values():
        assert_decodes_or_is_refused(example[0], structure, grid)
    empty = Structure(SKEW, (), np.zeros((0, 3)))
    assert_decodes_or_is_refused(example[0], empty, (4, 4, 4))


def test_an_unknown_library_is_refused(example: tuple[bytes, Structure, Grid]) -> None:
    with pytest.raises(StoreError, match="library 99"):
        decode_field(example[0], example[1], example[2], 99)
