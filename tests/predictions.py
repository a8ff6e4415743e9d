"""A model and features that cost nothing, for tests of what a store does with them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chgdb import features
from chgdb.database import Database
from chgdb.density import ChargeDensity
from chgdb.descriptors import DESCRIPTORS
from chgdb.features import FEATURE_COLUMNS
from chgdb.schema import PREDICTED


class CheapModel:
    """Predicts its factor times the volume per atom, and remembers what it was asked."""

    def __init__(self, factor: float = 1.0, model_id: str = "properties-1") -> None:
        self.id = model_id
        self.version = 1
        self.factor = factor
        self.sha256 = f"{factor:064}"
        self.asked: list[list[str]] = []

    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        assert list(table.columns) == ["id", *FEATURE_COLUMNS]
        assert table["spacegroup"].dtype == "Int64"
        self.asked.append(table["id"].tolist())
        made = table[["id"]].copy()
        for number, name in enumerate(PREDICTED):
            value = self.factor * table["volume_per_atom"] + number
            made[name], made[f"{name}_low"], made[f"{name}_high"] = value, value - 1, value + 1
        made["in_training"] = table["id"].str.endswith("1")
        made["outside_domain"] = table["id"].str.endswith("2")
        made["foreign"] = table["id"].str.endswith("3")
        made["neighbours"] = '[["mp-7", 0.25]]'
        return made


class CheapFeatures:
    """Quantiles of a density, which do not depend on the cell, in the place of descriptors."""

    def __init__(self, density: ChargeDensity) -> None:
        self.density = density

    def row(self) -> dict[str, Any]:
        structure = self.density.structure
        atoms = len(structure.species)
        levels = np.quantile(self.density.values, np.linspace(0, 1, len(DESCRIPTORS)))
        return {
            "formula": structure.formula,
            "volume_per_atom": structure.volume / atoms,
            "electrons_per_atom": self.density.n_electrons / atoms,
            "spacegroup": None,
            **dict(zip(DESCRIPTORS, levels.tolist(), strict=True)),
        }


def use_cheap_features(patch: pytest.MonkeyPatch) -> list[ChargeDensity]:
    """Let features cost nothing; returns the densities whose features were computed, so far."""
    seen: list[ChargeDensity] = []

    def features_of(density: ChargeDensity) -> CheapFeatures:
        seen.append(density)
        return CheapFeatures(density)

    patch.setattr(features, "features_of", features_of)
    return seen


def use_model(patch: pytest.MonkeyPatch, tmp_path: Path, model: CheapModel) -> CheapModel:
    """Let a model be found by its id, and the models that CHGDB_MODELS names by theirs.

    Args:
        patch: undoes it.
        tmp_path: where a folder of models is made.
        model: what loading gives.
    """
    folder = tmp_path / "models"
    if not folder.exists():
        folder.mkdir()
        for known in Path(os.environ["CHGDB_MODELS"]).iterdir():
            (folder / known.name).symlink_to(known)
    (folder / model.id).mkdir(exist_ok=True)
    (folder / model.id / "config.json").write_text(json.dumps({"kind": "properties"}))
    patch.setenv("CHGDB_MODELS", str(folder))
    patch.setattr("chgdb.properties.PropertyModel.load", lambda folder: model)
    return model


def feature_table(ids: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """The features of materials of a data set."""
    numbers = np.random.default_rng(seed).uniform(0.1, 1.0, (len(ids), len(DESCRIPTORS)))
    head = pd.DataFrame(
        {
            "id": list(ids),
            "formula": "NaCl",
            "volume_per_atom": np.arange(len(ids)) + 10.0,
            "electrons_per_atom": 4.0,
            "spacegroup": pd.array([225, *[None] * (len(ids) - 1)][: len(ids)], dtype="Int64"),
        }
    )
    return pd.concat([head, pd.DataFrame(numbers, columns=list(DESCRIPTORS))], axis=1)


def of_records(table: pd.DataFrame, database: Database) -> pd.DataFrame:
    """The same features, of the formula and the volume of the records that have the ids."""
    table = table.copy()
    for record in database.get([id_ for id_ in table["id"] if id_ in database]):
        row = table["id"] == record.id
        table.loc[row, "formula"] = record.row["formula"]
        table.loc[row, "volume_per_atom"] = record.row["volume"] / record.row["n_atoms"]
    return table
