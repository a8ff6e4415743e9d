"""The commands that predict, and that find densities alike."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT, MakeFile, Run
from predictions import CheapModel, feature_table, use_cheap_features, use_model

from chgdb import predicting
from chgdb.database import Database
from chgdb.schema import PREDICTED


@pytest.fixture(autouse=True)
def model(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheapModel:
    use_cheap_features(monkeypatch)
    return use_model(monkeypatch, tmp_path, CheapModel())


@pytest.fixture
def store(store: Path) -> Path:
    """A store with the features of materials that it has no records of."""
    Database(store).add_features(feature_table(["mp-11", "mp-12", "mp-13"]), "set")
    return store


def assert_one_line(err: str) -> None:
    assert err.startswith("chgdb: error: ")
    assert err.count("\n") == 1


def test_predict_tells_people(run: Run, store: Path) -> None:
    code, out, err = run("predict", "mp-1", "--store", store)
    assert (code, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0] == "mp-1: TiO2"
    assert lines[1].split("  ")[0] == "property"
    (bulk,) = (line for line in lines if line.startswith("bulk_modulus"))
    value = Database(store)["mp-1"].row["volume"] / 3
    assert bulk.split() == [
        *("bulk_modulus", "(GPa)", f"{value:.4g}", f"{value - 1:.4g}", "to", f"{value + 1:.4g}"),
        "200",
    ]
    (shear,) = (line for line in lines if line.startswith("shear_modulus"))
    assert shear.endswith("-"), "no reference value"
    assert "in the training set" in out
    assert "outside the training domain" not in out
    assert lines[-2:] == [
        "nearest in training: mp-7 (0.25)",
        "features from: density; model: properties-1, version 1",
    ]


def test_the_flags_are_told_in_words(run: Run, store: Path) -> None:
    out = run("predict", "mp-12", "mp-13", "--store", store).out
    first, second = out.split("\n\n")
    assert "outside the training domain" in first
    assert "other pseudopotential" not in first
    assert "other pseudopotential" in second
    assert "features from: set" in second


def test_predict_in_other_formats(run: Run, store: Path, make_file: MakeFile) -> None:
    file = make_file("own.CHGCAR", species=("Si",), electrons=4.0)
    words = ("predict", "mp-1", file, "--store", store, "--format")
    first, second = json.loads(run(*words, "json").out)
    assert first["neighbours"] == [["mp-7", 0.25]]
    assert first["in_training"] is True
    assert first["bulk_modulus_reference"] == 200
    assert second["bulk_modulus_reference"] is None
    assert (second["id"], second["features_from"]) == (str(file), "file")
    rows = list(csv.DictReader(io.StringIO(run(*words, "csv").out)))
    assert [row["id"] for row in rows] == ["mp-1", str(file)]
    for name in PREDICTED:
        for end in ("", "_low", "_high"):
            assert float(rows[1][name + end]) == pytest.approx(second[name + end])


def test_predict_all_counts_and_is_found(run: Run, store: Path) -> None:
    code, out, err = run("predict", "--all", "--store", store)
    assert (code, err) == (0, "")
    assert out.startswith("8 predicted, 0 up to date; features of 5 computed; ")
    counts = json.loads(run("predict", "--all", "--store", store, "--format", "json").out)
    assert (counts["predicted"], counts["up to date"], counts["failed"]) == (0, 8, 0)
    out = run("predict", "--all", "--force", "--store", store).out
    assert out.startswith("8 predicted, 0 up to date; features of 0 computed; ")
    where = ("--where", "predicted_bulk_modulus > bulk_modulus - 1000")
    words = ("search", "--store", store, *where, "--format", "csv")
    found = run(*words, "--columns", "id,predicted_bulk_modulus,prediction_in_training").out
    assert found.splitlines()[0] == "id,predicted_bulk_modulus,prediction_in_training"
    assert [line.split(",")[0] for line in found.splitlines()[1:]] == [
        *("mp-1", "mp-2", "mp-3", "mp-4")
    ]
    assert "predicted" not in run("search", "--store", store, "--columns", "all").out


def test_predict_all_names_what_failed(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features_of(density: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("chgdb.features.features_of", features_of)
    code, out, err = run("predict", "--all", "--store", store)
    assert code == 1
    assert out.startswith("3 predicted, 0 up to date; features of 0 computed; ")
    assert err.splitlines() == [f"chgdb: error: mp-{i}: MemoryError" for i in range(1, 6)]


def test_ctrl_c_during_predict_all_keeps_what_is_stored(
    run: Run, store: Path, model: CheapModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "_CHUNK", 3)
    predict = model.predict

    def interrupted(table: pd.DataFrame) -> pd.DataFrame:
        if len(model.asked) == 1:
            raise KeyboardInterrupt
        return predict(table)

    monkeypatch.setattr(model, "predict", interrupted)
    code, _, err = run("predict", "--all", "--store", store)
    assert (code, err) == (130, "chgdb: interrupted\n")
    monkeypatch.setattr(model, "predict", predict)
    out = run("predict", "--all", "--store", store).out
    assert out.startswith("5 predicted, 3 up to date; features of 0 computed; ")


def test_get_shows_predictions_beside_the_references(run: Run, store: Path) -> None:
    words = ("get", "mp-1", "mp-2", "--store", store)
    assert "predicted" not in run(*words).out
    assert "predicted" not in json.loads(run(*words, "--format", "json").out)[0]
    run("predict", "--all", "--store", store)
    first, second = json.loads(run(*words, "--format", "json").out)
    value = first["volume"] / 3
    assert first["predicted"]["bulk_modulus"] == pytest.approx(value)
    assert first["predicted"]["bulk_modulus_low"] == pytest.approx(value - 1)
    assert first["predicted"]["in_training"] is True
    assert second["predicted"]["outside_domain"] is True
    assert first["bulk_modulus"] == 200
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in run(*words).out.splitlines()}
    volume = second["volume"] / 2
    assert lines["predicted_bulk_modulus"].split() == [
        *("(GPa)", f"{volume:.4g}", f"({volume - 1:.4g}", "to", f"{volume + 1:.4g})")
    ]
    assert lines["predicted_by"].strip() == "properties-1"
    assert lines["prediction_outside_domain"].strip() == "True"


def test_info_counts_features_and_predictions(run: Run, store: Path) -> None:
    run("predict", "--all", "--store", store)
    content = json.loads(run("info", "--store", store, "--format", "json").out)
    assert content["records"] == 5
    assert content["materials with features"] == 8
    assert content["predictions of properties-1"] == 8


def test_similar(run: Run, store: Path, template: Path) -> None:
    code, out, err = run("similar", "mp-11", "-n", 1, "--store", store)
    assert (code, err) == (0, "")
    header, row = out.splitlines()
    assert "volume_per_atom (A^3)" in header
    assert row.split()[0] in ("mp-12", "mp-13")
    run("predict", "--all", "--store", store)
    file = template / "files" / "mp-4.npz"
    rows = json.loads(run("similar", file, "--store", store, "--format", "json").out)
    assert len(rows) == 8
    assert rows[0]["id"] == "mp-4"
    assert rows[0]["density"] is True
    assert rows[0]["distance"] < 0.01


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["predict"], "name materials or files to predict, or give --all"),
        (["predict", "mp-1", "--all"], "name materials or files to predict, or give --all"),
        (["predict", "mp-1", "--force"], "--force goes with --all"),
        (["predict", "mp-111"], "no file and no material 'mp-111' in"),
        (["predict", "mp-1", "gone/CHGCAR"], "no file and no material 'gone/CHGCAR'"),
        (["predict", "mp-1", "--model", "absent"], "no property model absent in"),
        (["predict", "mp-1", "--model", "tiny-16"], "it does not predict properties"),
        (["predict", "--all", "--model", "no/where"], "there is no such folder"),
        (["predict", "."], ".: a folder; name the file of a density"),
        (["similar", "mp-111"], "nearest: mp-11"),
        (["similar", "gone/CHGCAR"], "no file and no material 'gone/CHGCAR'"),
    ],
)
def test_failures_are_one_line_and_change_nothing(
    run: Run, store: Path, words: Sequence[str], problem: str
) -> None:
    before = sorted(store.rglob("*"))
    code, out, err = run(*words, "--store", store)
    assert code == 1
    assert out == ""
    assert problem in err
    assert_one_line(err)
    assert [path for path in sorted(store.rglob("*")) if path.name != ".lock"] == [
        path for path in before if path.name != ".lock"
    ]


def test_damaged_predictions_are_one_line(run: Run, store: Path) -> None:
    run("predict", "--all", "--store", store)
    (part,) = (store / "predictions").iterdir()
    part.write_bytes(b"PAR1")
    for words in (
        ["search", "--columns", "predicted_by"],
        ["predict", "--all"],
        ["get", "mp-1"],
    ):
        code, out, err = run(*words, "--store", store)
        assert (code, out) == (1, "")
        assert "predictions/000000000.parquet: damaged" in err
        assert_one_line(err)
    assert run("search", "--store", store).code == 0


def test_similar_loads_nothing_heavy(store: Path) -> None:
    code = (
        "import sys\n"
        "from chgdb.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = ('torch', 'lightgbm', 'pandas', 'zarr', 'xarray', 'ase', 'pydemi', 'sklearn')\n"
        "sys.exit(','.join(name for name in heavy if name in sys.modules) or None)"
    )
    words = ["similar", "mp-11", "--store", str(store)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mp-12" in done.stdout
