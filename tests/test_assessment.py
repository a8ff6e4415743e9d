from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_tables import feature_table, properties

import chgdb
from chgdb.errors import InputError, ModelError
from chgdb.properties import TARGETS

pytest.importorskip("torch")
pytest.importorskip("lightgbm")
pytest.importorskip("matplotlib")

from chgdb.assessment import Assessment, assess, write_assessment
from chgdb.train_properties import Settings, train_properties

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def assessment(tmp_path_factory: pytest.TempPathFactory) -> Assessment:
    """A small model, and a store whose features are those of materials that do not exist."""
    folder = tmp_path_factory.mktemp("assessment")
    features = feature_table(150)
    small = Settings(networks=1, epochs=2, width=8, trees=10, batch=32)
    known = properties(features)
    train_properties(features, known, folder / "m", settings=small)
    leave = shutil.ignore_patterns("features", "predictions")
    shutil.copytree(ROOT / "store", folder / "store", ignore=leave)
    database = chgdb.open(folder / "store")
    database.add_features(features, "made up")
    return assess(database, known, model=folder / "m", systems=())


def test_the_model_is_scored(assessment: Assessment) -> None:
    scores = assessment.scores
    assert scores["system"].unique().tolist()[0] == "properties-1"
    assert scores["target"].tolist()[: len(TARGETS)] == list(TARGETS)
    assert np.isfinite(scores[["r2", "mae", "rmse"]].to_numpy(float)).all()


def test_tables_and_figures_are_written(assessment: Assessment, tmp_path: Path) -> None:
    files = write_assessment(assessment, tmp_path / "out")
    assert all(path.stat().st_size > 0 for path in files)
    names = {path.name for path in files}
    assert {"scores.csv", "predictions-properties-1.csv"} <= names
    for target in TARGETS:
        assert f"parity-properties-1-{target}.png" in names
        assert f"distribution-{target}.png" in names
    assert "shares-bulk_modulus.png" in names
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        write_assessment(assessment, tmp_path / "file")


def test_systems_are_scored_on_the_same_rows_as_the_model() -> None:
    """The shipped models, on the densities of the shipped store."""
    result = assess(chgdb.open(ROOT / "store"), systems=("magpie-lightgbm", "composition-symmetry"))
    frames = {label: frame for label, frame in result.predictions.items() if ", with" in label}
    assert len(frames) == 3
    ids = [sorted(frame["id"]) for frame in frames.values()]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) > 30
    (pair,) = (frame for label, frame in result.gains.items() if ", over" in label)
    first = frames["composition-symmetry, with density"]
    second = frames["magpie-lightgbm, with density"].set_index("id").loc[first["id"]]
    for row in pair.to_dict("records"):
        reference = first[f"{row['target']}_reference"].to_numpy()
        errors = [np.abs(f[row["target"]].to_numpy() - reference) for f in (first, second)]
        assert row["mae_change"] == pytest.approx(np.nanmean(errors[1]) - np.nanmean(errors[0]))
    for parts in result.shares["magpie-lightgbm, with density"].values():
        assert sum(parts.values()) == pytest.approx(1)


def test_an_unknown_system_is_told(tmp_path: Path) -> None:
    from chgdb.assessment import _trained

    with pytest.raises(ModelError, match="no system 'x'"):
        _trained(["x"])


def test_without_features_there_is_nothing_to_score(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests/data/store-v1", tmp_path / "store")
    some: dict[str, dict[str, Any]] = {"mp-1": {"split": "test"}}
    with pytest.raises(InputError):
        assess(chgdb.open(tmp_path / "store"), some)
