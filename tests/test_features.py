from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from chgdb.density import ChargeDensity, Structure
from chgdb.descriptors import DESCRIPTORS, WITHIN_ELEMENTS
from chgdb.errors import InputError, MissingExtraError
from chgdb.features import (
    FEATURE_COLUMNS,
    REFERENCE_DATA,
    Features,
    features_of,
    reference_features,
)
from chgdb.formats import read_density


def made(counts: dict[str, float], electrons_per_atom: float = 4.0) -> Features:
    return Features(counts, np.arange(55.0), 20.0, electrons_per_atom, None)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors that cost nothing and need no package."""
    monkeypatch.setattr("chgdb.features.describe", lambda density: np.arange(55.0))


def uniform(species: tuple[str, ...], electrons: float, cell: float = 4.0) -> ChargeDensity:
    coords = np.arange(3.0 * len(species)).reshape(-1, 3) % 7 / 7
    structure = Structure(np.eye(3) * cell, species, coords)
    return ChargeDensity(np.full((4, 4, 4), electrons / structure.volume), structure)


def test_the_columns_of_a_feature_table() -> None:
    head = ("formula", "volume_per_atom", "electrons_per_atom", "spacegroup")
    assert (*head, *DESCRIPTORS) == FEATURE_COLUMNS
    assert tuple(made({"Si": 1.0}).row()) == FEATURE_COLUMNS


@pytest.mark.parametrize(
    ("counts", "formula"),
    [
        ({"Si": 2.0}, "Si"),
        ({"O": 4.0, "Ti": 2.0}, "TiO2"),
        ({"Si": 2.0, "Ni": 2.0, "Y": 1.0}, "Ni2YSi2"),
        ({"Ni": 0.5, "Fe": 0.5}, "Fe0.5Ni0.5"),
        ({"Fe": 1.5, "O": 1.0}, "Fe1.5O"),
    ],
)
def test_the_formula_of_a_row(counts: dict[str, float], formula: str) -> None:
    assert made(counts).row()["formula"] == formula


def test_formulas_are_written_as_those_of_structures(cheap: None) -> None:
    density = uniform(("O", "Ti", "O", "O", "O", "Ti"), 48.0)
    assert features_of(density).row()["formula"] == density.structure.formula == "TiO2"


def test_a_row_holds_the_features() -> None:
    features = Features({"Si": 1.0}, np.arange(55.0), 20.5, 4.0, 227)
    row = features.row()
    assert (row["volume_per_atom"], row["electrons_per_atom"], row["spacegroup"]) == (20.5, 4, 227)
    assert [row[name] for name in DESCRIPTORS] == list(range(55))


def test_what_is_per_atom_is_counted_in_the_given_cell(cheap: None) -> None:
    features = features_of(uniform(("Si", "Si", "O"), 14.0, cell=6.0))
    assert features.counts == {"Si": 2.0, "O": 1.0}
    assert features.volume_per_atom == pytest.approx(72.0)
    assert features.electrons_per_atom == pytest.approx(14 / 3)


@pytest.mark.parametrize(
    ("counts", "electrons", "foreign"),
    [
        ({"Si": 2.0}, 4.0, False),
        ({"Si": 2.0}, 4.009, False),
        ({"Si": 2.0}, 4.02, True),
        ({"Mg": 1.0, "O": 1.0}, 4.0, False),
        ({"Mg": 1.0, "O": 1.0}, 8.0, True),
        ({"Lr": 1.0}, 4.0, True),
    ],
)
def test_other_pseudopotentials_are_seen_in_the_electrons(
    counts: dict[str, float], electrons: float, foreign: bool
) -> None:
    assert made(counts, electrons).foreign is foreign


def test_only_the_total_density_counts(cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    density = uniform(("Fe",), 8.0)
    spin = ChargeDensity(density.values, density.structure, density.values[None] / 4)
    assert features_of(spin).row() == features_of(density).row()


def test_a_species_that_is_no_element_is_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def works(density: ChargeDensity) -> None:
        raise AssertionError

    monkeypatch.setattr("chgdb.features.describe", works)
    with pytest.raises(InputError, match="'Xx' is not an element"):
        features_of(uniform(("Xx",), 4.0))


def test_a_density_without_atoms_or_electrons_is_refused() -> None:
    pytest.importorskip("pydemi")
    with pytest.raises(InputError, match="without atoms"):
        features_of(uniform((), 4.0))
    with pytest.raises(InputError, match="with 0 electrons"):
        features_of(uniform(("Si",), 0.0))


@pytest.mark.parametrize(
    ("name", "formula", "electrons", "spacegroup"),
    [("mp-149.CHGCAR.gz", "Si", 4.0, 227), ("MgO.CHGCAR.xz", "MgO", 8.0, 225)],
)
def test_features_of_a_file(name: str, formula: str, electrons: float, spacegroup: int) -> None:
    pytest.importorskip("pydemi")
    features = features_of(read_density(ROOT / "examples" / name)[0])
    row = features.row()
    assert (row["formula"], row["spacegroup"]) == (formula, spacegroup)
    assert features.electrons_per_atom == pytest.approx(electrons, abs=1e-3)
    assert features.foreign is (formula == "MgO")
    assert np.isfinite(features.descriptors).all()


# ---------------------------------------------------------------------- reference features


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    pytest.importorskip("pydemi")
    return reference_features({"mp-149": 227})


def test_the_reference_table(table: pd.DataFrame) -> None:
    assert list(table.columns) == ["id", *FEATURE_COLUMNS]
    assert len(table) == table["id"].nunique() == 6059
    assert table["spacegroup"].dtype == "Int64"
    silicon = table.set_index("id").loc["mp-149"]
    assert (silicon["formula"], silicon["spacegroup"]) == ("Si", 227)
    assert silicon["electrons_per_atom"] == 4.0
    assert silicon["volume_per_atom"] == pytest.approx(20.4, rel=0.02)
    assert table["spacegroup"].notna().sum() == 1
    rest = table.drop(columns="spacegroup")
    assert rest.notna().all().all()
    assert (table[list(WITHIN_ELEMENTS)] >= 0).all().all()


def test_volumes_are_those_of_the_structures(table: pd.DataFrame, shared: Path) -> None:
    with gzip.open(shared / "data" / "structures.json.gz", "rt") as file:
        structures = json.load(file)
    volumes = {
        s["id"]: abs(np.linalg.det(s["cell"])) / len(s["numbers"])
        for s in structures
        if s["in_6059"]
    }
    ratio = table["volume_per_atom"] / table["id"].map(volumes)
    assert ratio.notna().sum() > 2000
    assert abs(ratio.median() - 1) < 1e-3


def test_the_reference_table_needs_pydemi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydemi", None)
    with pytest.raises(MissingExtraError, match=r"chgdb\[ml\]"):
        reference_features()


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        (None, "lacks the data set"),
        ({"features": list(DESCRIPTORS)}, "lacks the data set"),
        ({"features": ["zeta"], "dataset": {}}, "has other descriptors"),
    ],
)
def test_another_pydemi_is_told(
    bundle: dict[str, Any] | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lzma
    from types import SimpleNamespace

    fake = SimpleNamespace(__version__="9.9", __file__=str(tmp_path / "__init__.py"))
    monkeypatch.setitem(sys.modules, "pydemi", fake)
    if bundle is not None:
        with lzma.open(tmp_path / "properties_v1.json.xz", "wt") as file:
            json.dump(bundle, file)
    with pytest.raises(InputError, match=rf"pydemi 9\.9 {message}.* {REFERENCE_DATA}"):
        reference_features()
