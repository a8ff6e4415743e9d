from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal

from chgdb.density import Structure
from chgdb.symmetry import (
    Symmetry,
    find_symmetry,
    reduced_lattice,
    space_group,
    standard_lattices,
)

SHARED = Path(__file__).parents[2] / "shared"
TRICLINIC = [3.0, 4.0, 5.0, 80.0, 95.0, 107.0]


def orthorhombic(
    number: int, site: tuple[float, float, float], lengths: tuple[float, float, float]
) -> Atoms:
    return crystal("B", [site], spacegroup=number, cellpar=[*lengths, 90, 90, 90])


def quartz() -> Atoms:
    return crystal(
        ["Si", "O"],
        [(0.4697, 0, 0), (0.4135, 0.2669, 0.1191)],
        spacegroup=152,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    )


@pytest.mark.parametrize(
    ("atoms", "symmetry"),
    [
        (bulk("C"), Symmetry(227, "Fd-3m", "cubic")),
        (bulk("NaCl", "rocksalt", a=5.64), Symmetry(225, "Fm-3m", "cubic")),
        (bulk("ZnO", "wurtzite", a=3.25, c=5.2), Symmetry(186, "P6_3mc", "hexagonal")),
        (quartz(), Symmetry(152, "P3_121", "trigonal")),
        (Atoms("In", cell=[3, 3, 4], pbc=True), Symmetry(123, "P4/mmm", "tetragonal")),
        (Atoms("Ga", cell=[3, 4, 5], pbc=True), Symmetry(47, "Pmmm", "orthorhombic")),
        (
            Atoms("Po", cell=[3, 4, 5, 90, 100, 90], pbc=True),
            Symmetry(10, "P2/m", "monoclinic"),
        ),
        (Atoms("Po", cell=TRICLINIC, pbc=True), Symmetry(2, "P-1", "triclinic")),
        (
            Atoms(
                "NaClF",
                scaled_positions=[[0, 0, 0], [0.4, 0.3, 0.2], [0.1, 0.6, 0.7]],
                cell=TRICLINIC,
                pbc=True,
            ),
            Symmetry(1, "P1", "triclinic"),
        ),
    ],
    ids=lambda value: f"{value.number}" if isinstance(value, Symmetry) else "",
)
def test_known_crystals(atoms: Atoms, symmetry: Symmetry) -> None:
    assert find_symmetry(Structure.from_ase(atoms)) == symmetry


def test_the_choice_of_cell_and_origin_does_not_matter() -> None:
    atoms = bulk("ZnO", "wurtzite", a=3.25, c=5.2)
    atoms.translate([0.3, 1.2, -7.0])
    supercell = atoms * (2, 1, 3)
    assert find_symmetry(Structure.from_ase(supercell)) == Symmetry(186, "P6_3mc", "hexagonal")


def test_symprec_decides_what_is_symmetric() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.positions[1] += [0.03, 0.02, 0.01]
    structure = Structure.from_ase(atoms)
    strict, loose = find_symmetry(structure), find_symmetry(structure, symprec=0.1)
    assert strict == Symmetry(1, "P1", "triclinic")
    assert loose == Symmetry(225, "Fm-3m", "cubic")


@pytest.mark.parametrize("species", [("Si", "Si"), ()])
def test_what_is_no_crystal_has_no_space_group(species: tuple[str, ...]) -> None:
    structure = Structure(np.eye(3) * 4, species, np.zeros((len(species), 3)))
    assert find_symmetry(structure) is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_agrees_with_the_materials_project() -> None:
    with gzip.open(SHARED / "data" / "structures.json.gz", "rt") as file:
        records = json.load(file)[::40]
    found = {}
    for record in records:
        structure = Structure.from_ase(
            Atoms(
                numbers=record["numbers"],
                cell=record["cell"],
                scaled_positions=record["scaled_positions"],
                pbc=True,
            )
        )
        symmetry = find_symmetry(structure)
        assert symmetry is not None
        found[record["id"]] = symmetry.number
    expected = {record["id"]: record["spacegroup"] for record in records}
    assert len(expected) > 50
    assert found == expected


@pytest.mark.parametrize(
    ("atoms", "lengths", "copies"),
    [
        (bulk("C", a=3.57), [3.57, 3.57, 3.57], 4),
        (bulk("Fe", a=2.87), [2.87, 2.87, 2.87], 2),
        (bulk("ZnO", "wurtzite", a=3.25, c=5.2), [3.25, 3.25, 5.2], 1),
        (bulk("As", "rhombohedral", a=4.13, alpha=54), [4.13, 4.13, 4.13], 1),
        (orthorhombic(62, (0.1, 0.25, 0.3), (6, 4, 5)), [4, 5, 6], 1),
        (orthorhombic(63, (0, 0.1, 0.25), (5, 6, 3)), [5, 6, 3], 2),
        (orthorhombic(38, (0, 0.2, 0.1), (3, 7, 6)), [6, 7, 3], 2),
    ],
    ids=["F", "I", "P", "R", "P orthorhombic", "C", "A"],
)
@pytest.mark.parametrize("repeats", [(1, 1, 1), (1, 2, 1)])
def test_the_usual_cell(
    atoms: Atoms, lengths: list[float], copies: int, repeats: tuple[int, int, int]
) -> None:
    structure = Structure.from_ase(atoms * repeats)
    found = standard_lattices(structure)
    assert found is not None
    primitive, usual = found
    np.testing.assert_allclose(np.linalg.norm(usual, axis=1), lengths, rtol=1e-6)
    tiles = usual @ np.linalg.inv(primitive)
    np.testing.assert_allclose(tiles, np.rint(tiles), atol=1e-9)
    assert abs(round(float(np.linalg.det(tiles)))) == copies
    cells = structure.lattice @ np.linalg.inv(primitive)
    np.testing.assert_allclose(cells, np.rint(cells), atol=1e-9)


def test_the_usual_cell_of_what_is_no_crystal() -> None:
    for species in (("Si", "Si"), ()):
        structure = Structure(np.eye(3) * 4, species, np.zeros((len(species), 3)))
        assert standard_lattices(structure) is None


def test_a_reduced_lattice_is_the_same_lattice() -> None:
    lattice = np.array([[3.0, 0.1, 0.0], [3.2, 4.0, 0.0], [9.0, 8.1, 5.0]])
    reduced = reduced_lattice(lattice)
    turn = reduced @ np.linalg.inv(lattice)
    np.testing.assert_allclose(turn, np.rint(turn), atol=1e-9)
    assert abs(np.linalg.det(turn)) == pytest.approx(1)
    assert np.linalg.norm(reduced, axis=1).sum() < np.linalg.norm(lattice, axis=1).sum()


def test_a_space_group_by_its_number() -> None:
    assert space_group(227) == Symmetry(227, "Fd-3m", "cubic")
    assert space_group(194) == Symmetry(194, "P6_3/mmc", "hexagonal")
    assert space_group(5).symbol == "C2"
    assert [space_group(number).number for number in range(1, 231)] == list(range(1, 231))
