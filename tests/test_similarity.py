"""The distance between densities: what it sees, what it does not see, and its scale."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import MakeDensity, MakeFile
from numpy.typing import NDArray
from predictions import feature_table

from chgdb import similarity
from chgdb.database import Database
from chgdb.density import ChargeDensity, Structure
from chgdb.similarity import DENSITY_COLUMNS, density_coordinates, distances

QUARTER = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def columns(n: int = 6) -> dict[str, NDArray[np.float64]]:
    table = feature_table([f"m{i}" for i in range(n)])
    return {name: table[name].to_numpy(float) for name in DENSITY_COLUMNS}


def test_distances_are_those_of_points() -> None:
    points = density_coordinates(columns())
    assert points.shape == (6, 5)
    assert distances(points, points[2])[2] == 0
    there, back = distances(points, points[0])[3], distances(points, points[3])[0]
    assert there == back > 0
    assert there <= distances(points, points[5])[0] + distances(points, points[5])[3]


def test_electrons_in_the_cores_are_not_seen() -> None:
    """Ten more of them per atom: the electrons between the atoms are as many as before."""
    table = columns()
    electrons = table["electrons_per_atom"]
    share = table["f_int"] * electrons / (electrons + 10)
    semicore = {**table, "electrons_per_atom": electrons + 10, "f_int": share}
    np.testing.assert_allclose(density_coordinates(table), density_coordinates(semicore))


def test_what_is_almost_nothing_is_alike() -> None:
    table = {**columns(3), "rho_mid_std": np.array([0.0, -1e-9, 1e-5])}
    points = density_coordinates(table)
    assert np.ptp(points[:, 2]) < 0.001


def test_what_is_not_known_is_far_from_everything() -> None:
    points = density_coordinates({**columns(2), "rho_int_mean": np.array([np.nan, 0.1])})
    assert np.isnan(distances(points, points[1])[0])


def test_the_spreads_are_those_of_the_reference_materials() -> None:
    """And they do not depend on a store: a distance is the same in every one."""
    pytest.importorskip("pydemi")
    from chgdb.features import reference_features

    table = reference_features()
    points = density_coordinates({name: table[name] for name in DENSITY_COLUMNS})
    low, high = np.quantile(points, [0.25, 0.75], axis=0)
    np.testing.assert_allclose((high - low) / 1.349, 1, atol=2e-4)
    assert len(similarity._SPREADS) == points.shape[1]


# ---------------------------------------------------------------------- with real features


def rotated(density: ChargeDensity) -> ChargeDensity:
    structure = density.structure
    turned = Structure(structure.lattice @ QUARTER, structure.species, structure.frac_coords)
    return ChargeDensity(density.values, turned)


def shifted(density: ChargeDensity) -> ChargeDensity:
    steps = (3, 5, 2)
    structure = density.structure
    positions = structure.frac_coords + np.array(steps) / density.grid
    moved = Structure(structure.lattice, structure.species, positions % 1)
    return ChargeDensity(np.roll(density.values, steps, (0, 1, 2)), moved)


def supercell(density: ChargeDensity) -> ChargeDensity:
    structure = density.structure
    second = structure.frac_coords + np.array([0, 1, 0])
    positions = np.concatenate([structure.frac_coords, second]) / [1, 2, 1]
    lattice = structure.lattice * np.array([[1], [2], [1]])
    return ChargeDensity(
        np.tile(density.values, (1, 2, 1)), Structure(lattice, structure.species * 2, positions)
    )


def test_the_same_crystal_is_the_nearest_however_it_is_given(
    make_density: MakeDensity, empty: Database, make_file: MakeFile
) -> None:
    pytest.importorskip("pydemi")
    kinds = (("Si", "C"), ("Na", "Cl"), ("Ti", "O", "O"), ("Fe",))
    densities = {
        "".join(species): make_density(species, grid=(24, 24, 28), electrons=4.0 + 3 * number)
        for number, species in enumerate(kinds)
    }
    files = [make_file(f"{name}.npz", density) for name, density in densities.items()]
    empty.add(files)
    for material_id in empty:
        empty._predictor._features_of([(material_id, None)])
    density = densities["SiC"]
    assert len(empty.similar("SiC")) == 3
    for change in (rotated, shifted, supercell):
        path = make_file(f"{change.__name__}.npz", change(density))
        found = empty.similar(path)
        assert found["id"][0] == "SiC"
        assert found["distance"][0] < 0.03, change.__name__
        assert found["distance"][1] > 10 * found["distance"][0]
