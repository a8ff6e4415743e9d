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
from chgdb.symmetry import Symmetry, find_symmetry

SHARED = Path(__file__).parents[2] / "shared"
TRICLINIC = [3.0, 4.0, 5.0, 80.0, 95.0, 107.0]


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
