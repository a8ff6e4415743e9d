"""`train properties`, `train system` and `evaluate`, on materials that do not exist."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, Run
from feature_tables import feature_table, properties

import chgdb
from chgdb.properties import TARGETS, PropertyModel

pytest.importorskip("torch")
pytest.importorskip("lightgbm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with features, and the table of their properties."""
    folder = tmp_path_factory.mktemp("models")
    leave = shutil.ignore_patterns("features", "predictions")
    shutil.copytree(ROOT / "store", folder / "store", ignore=leave)
    features = feature_table(120)
    chgdb.open(folder / "store").add_features(features, "made up")
    known = properties(features)
    names = list(next(iter(known.values())))
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["material_id", *names])
        writer.writeheader()
        for id_, row in known.items():
            writer.writerow({"material_id": id_, **row})
    return folder


@pytest.fixture
def model(run: Run, folder: Path) -> Path:
    """A model that `train properties` made, once."""
    target = folder / "m-1"
    if not target.exists():
        small = ("--networks", 1, "--epochs", 1, "--store", folder / "store")
        table = ("--properties", folder / "table.csv")
        code, _, err = run("train", "properties", *table, "-o", target, *small)
        assert code == 0, err
    return target


def test_train_properties_makes_a_model_with_a_card(model: Path) -> None:
    assert PropertyModel.load(model).id == "m-1"
    card = (model / "README.md").read_text()
    assert all(name in card for name in TARGETS)


def test_evaluate_prints_scores_and_draws(
    run: Run, model: Path, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    asked = ("evaluate", "--properties", folder / "table.csv", "--model", model, "--no-systems")
    code, out, _ = run(*asked, "--store", folder / "store", "--format", "json")
    assert code == 0
    rows = json.loads(out)
    assert {row["target"] for row in rows if row["system"] == "m-1"} == set(TARGETS)
    code, out, _ = run(*asked, "--store", folder / "store", "-o", tmp_path / "out")
    assert code == 0
    assert "R2" in out
    assert "bulk_modulus" in out
    assert len(list((tmp_path / "out").glob("parity-m-1-*.png"))) == len(TARGETS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate", "--part", "nowhere", "--no-systems"), "nowhere"),
        (("evaluate", "--model", "no-such-model"), "no-such-model"),
        (("train", "system", "no-such", "-o", "OUT"), "no-such"),
        (("train", "properties", "--properties", "no.csv", "-o", "OUT"), "no.csv"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Run, arguments: tuple[str, ...], words: str, model: Path, folder: Path, tmp_path: Path
) -> None:
    asked = [str(tmp_path / "out") if text == "OUT" else text for text in arguments]
    if asked[0] == "evaluate":
        asked += ["--properties", str(folder / "table.csv")]
        asked += [] if "--model" in asked else ["--model", str(model)]
    code, _, err = run(*asked, "--store", folder / "store")
    assert code != 0
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert not (tmp_path / "out").exists()
