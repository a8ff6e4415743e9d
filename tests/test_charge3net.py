from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from ase.build import bulk, graphene
from hypothesis import given, settings
from hypothesis import strategies as st

from chgdb.charge3net import G_MAX, Charge3Net, grid_operations, symmetry_unique
from chgdb.density import Grid, Structure
from chgdb.errors import InputError, MissingExtraError
from chgdb.grid import low_pass
from chgdb.metrics import nmae
from chgdb.symmetry import find_operations

ROUNDING = 1e-4
"""NMAE in %, of float32 sums in another order."""
RADIAL = 0.01
"""NMAE in % that leaving out weak radial functions may cost."""

STRUCTURES = {
    "lithium": bulk("Li"),
    "diamond": bulk("C"),
    "magnesium": bulk("Mg"),
    "rock salt": bulk("NaCl", "rocksalt", a=5.6),
    "graphene": graphene(vacuum=3.0),
}


def structure_of(name: str) -> Structure:
    return Structure.from_ase(STRUCTURES[name])


@pytest.fixture(scope="module")
def network() -> Charge3Net:
    pytest.importorskip("e3nn")
    return Charge3Net("cpu")


# --- symmetry -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURES)
@given(st.tuples(*[st.integers(1, 12)] * 3))
@settings(max_examples=20, deadline=None)
def test_alike_points_are_exchanged_by_operations(name: str, grid: Grid) -> None:
    """Every point is an image of its unique point, and every image is told to be alike."""
    operations = find_operations(structure_of(name), 1e-3)
    points, inverse = symmetry_unique(operations, grid)
    assert len(inverse) == math.prod(grid)
    assert sorted(set(inverse)) == list(range(len(points)))
    rotations, shifts = grid_operations(operations, grid)
    every = np.stack(np.unravel_index(np.arange(len(inverse)), grid), axis=1)
    orbits = [{tuple(image) for image in (rotations @ point + shifts) % grid} for point in points]
    for point, index in zip(every, inverse, strict=True):
        assert tuple(point) in orbits[index]
    assert sum(map(len, orbits)) == len(inverse)


def test_a_grid_that_breaks_symmetry_keeps_what_it_holds() -> None:
    operations = find_operations(structure_of("diamond"), 1e-3)
    assert len(operations) == 48
    assert len(grid_operations(operations, (8, 8, 8))[0]) == 48
    assert len(grid_operations(operations, (6, 6, 6))[0]) == 24  # no quarters
    assert len(grid_operations(operations, (8, 8, 12))[0]) < 48
    assert len(grid_operations(operations, (5, 7, 11))[0]) == 1


# --- the network ----------------------------------------------------------------------------


def test_it_predicts_what_pydemi_predicts(network: Charge3Net) -> None:
    from pydemi import ml
    from pydemi.io.base import Lattice
    from pydemi.io.base import Structure as PydemiStructure

    lattice = np.array([[3.1, 0, 0], [0.4, 2.9, 0], [0.2, 0.3, 3.3]])
    structure = Structure(lattice, ("Li", "F"), np.array([[0.1, 0.1, 0.1], [0.6, 0.5, 0.6]]))
    grid = (5, 4, 6)
    crystal = PydemiStructure(
        Lattice(np.array(structure.lattice)), list(structure.species), structure.frac_coords
    )
    theirs = ml.predict_grid(crystal, grid, max_pairs=512).astype(np.float64)
    ours = network.predict(structure, grid)
    assert ours.raw_electrons == pytest.approx(theirs.mean() * structure.volume, rel=1e-4)
    assert ours.n_electrons == pytest.approx(network.valence_electrons(structure), rel=1e-12)
    assert nmae(ours.values * ours.raw_electrons / ours.n_electrons, theirs) < RADIAL


@pytest.mark.parametrize("name", ["lithium", "diamond"])
def test_symmetry_changes_nothing_but_the_time(
    network: Charge3Net, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    structure = structure_of(name)
    with_symmetry = network.predict(structure, (4, 4, 4))
    monkeypatch.setattr("chgdb.charge3net._SYMPREC", 0.0)
    monkeypatch.setattr(
        "chgdb.charge3net.find_operations",
        lambda *_: type(find_operations(structure, 1)).identity(),
    )
    done: list[tuple[int, int]] = []
    monkeypatch.setattr("chgdb.charge3net._POINTS", 24)
    all_points = network.predict(structure, (4, 4, 4), progress=lambda *at: done.append(at))
    assert done == [(24, 64), (48, 64), (64, 64)]
    assert nmae(with_symmetry.values, all_points.values) < ROUNDING


def test_the_work_grid_is_even_smooth_and_fine_enough(network: Charge3Net) -> None:
    for name in STRUCTURES:
        structure = structure_of(name)
        grid = network.work_grid(structure)
        operations = find_operations(structure, 1e-3)
        assert len(grid_operations(operations, grid)[0]) == len(operations)
        for n, length in zip(grid, np.linalg.norm(structure.lattice, axis=1), strict=True):
            assert n % 2 == 0
            assert n > G_MAX * length / np.pi  # no wave up to G_MAX is at the Nyquist frequency
            assert (
                max(p for p in range(2, n + 1) if n % p == 0 and all(p % q for q in range(2, p)))
                <= 7
            )


def test_there_are_no_waves_beyond_those_of_the_training_data(network: Charge3Net) -> None:
    structure = structure_of("lithium")
    density = network.predict(structure)
    assert density.grid == network.work_grid(structure)
    np.testing.assert_allclose(
        low_pass(density.values, structure.lattice, G_MAX), density.values, atol=1e-12
    )


def test_it_knows_its_weights(network: Charge3Net) -> None:
    assert "ChargE3Net" in network.name
    assert len(network.weights_sha256) == 64
    assert 0 < network.nmae < 5


def test_an_unknown_element_is_told(network: Charge3Net) -> None:
    structure = Structure(np.eye(3) * 4, ("Po", "Xe"), np.array([[0.0] * 3, [0.5] * 3]))
    with pytest.raises(InputError, match="Po, Xe: not among the 87 elements that ChargE3Net knows"):
        network.predict(structure)
    assert network.valence_electrons(structure_of("rock salt")) == 8


def test_without_e3nn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "e3nn" else real(name, *rest),
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'chgdb\[ml-density\]'"):
        Charge3Net()


def test_without_pydemi_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydemi", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'chgdb\[ml-density\]'"):
        Charge3Net()
