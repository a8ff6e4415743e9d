"""What a row of the table says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import MakeFile, gaussian_density

from chgdb.density import Structure
from chgdb.errors import InputError, QueryError
from chgdb.intake import take_in
from chgdb.rows import describe_intake, describe_material, describe_payload, is_same_material
from chgdb.schema import COLUMNS

SITES = np.array([[0.0] * 3, [0.25] * 3])
SILICON = Structure(2.7 * (1 - np.eye(3)), ("Si", "Si"), SITES)


def test_a_material_of_which_the_formula_is_known() -> None:
    row = describe_material("mp-1", "O4Ti2")
    assert row.pop("added").startswith("20")
    assert row.pop("chgdb_version")
    assert row == {
        "id": "mp-1",
        "formula": "TiO2",
        "reduced_formula": "O2Ti",
        "chemsys": "O-Ti",
        "elements": "O,Ti",
        "n_elements": 2,
    }


def test_a_material_of_which_the_structure_is_known() -> None:
    row = describe_material("mp-149", "Si", SILICON)
    assert (row["n_atoms"], row["spacegroup"], row["crystal_system"]) == (2, 227, "cubic")
    assert row["volume"] == pytest.approx(SILICON.volume)
    assert row["mass_density"] == pytest.approx(2.37, abs=0.02)
    assert json.loads(row["species"]) == ["Si", "Si"]
    assert {*row} <= {*COLUMNS}
    assert "source" not in row


def test_a_structure_of_another_material_is_refused() -> None:
    with pytest.raises(InputError, match="GaAs, but its structure is of Si"):
        describe_material("mp-1", "GaAs", SILICON)


@pytest.mark.parametrize("formula", ["", "Xx2", "TiO2 "[:-2] + "+"])
def test_a_formula_that_is_none(formula: str) -> None:
    with pytest.raises(QueryError):
        describe_material("mp-1", formula)


def test_a_density_and_its_file(make_file: MakeFile) -> None:
    path = make_file("mp-7.CHGCAR", spin=1)
    row = describe_intake(take_in(path))
    density = gaussian_density(spin=1)
    assert (row["id"], row["source"], row["source_format"]) == ("mp-7", "dft", "chgcar")
    assert row["source_file"] == "mp-7.CHGCAR"
    assert row["n_electrons"] == pytest.approx(density.n_electrons, rel=1e-6)
    assert row["magnetization"] == pytest.approx(density.n_electrons / 3, rel=1e-6)
    assert [row[f"grid_{axis}"] for axis in "abc"] == list(density.grid)
    assert row["source_nmae"] is None
    assert {*row} <= {*COLUMNS}


def test_no_payload_no_columns() -> None:
    assert describe_payload(None) == {}


def test_the_same_material_under_another_formula() -> None:
    row = describe_material("mp-1", "TiO2")
    assert is_same_material(row, "O4Ti2")
    assert not is_same_material(row, "TiO")
