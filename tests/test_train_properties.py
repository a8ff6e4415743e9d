from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_tables import feature_table, properties

from chgdb.errors import InputError
from chgdb.inputs import make_inputs
from chgdb.properties import CONFIG_FILE, TARGETS, PropertyModel

pytest.importorskip("torch")
pytest.importorskip("lightgbm")

from chgdb import train_properties as training
from chgdb.train_properties import Settings, fit_members, join, train_properties

SMALL = Settings(networks=2, epochs=3, width=16, trees=15, batch=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PropertyModel]:
    folder = tmp_path_factory.mktemp("models") / "small"
    table = feature_table(160)
    return folder, train_properties(table, properties(table), folder, settings=SMALL)


def test_what_was_trained_is_what_is_read(made: tuple[Path, PropertyModel]) -> None:
    folder, model = made
    table = feature_table(20, seed=3)
    read = PropertyModel.load(folder)
    assert read.sha256 == model.sha256
    assert read.predict(table).equals(model.predict(table))
    assert not folder.with_name("small.partial").exists()
    assert not [path for path in folder.iterdir() if path.suffix in (".pkl", ".pickle", ".joblib")]


def test_the_same_seed_gives_the_same_files(
    made: tuple[Path, PropertyModel], tmp_path: Path
) -> None:
    folder, _ = made
    table = feature_table(160)
    train_properties(table, properties(table), tmp_path / "again", settings=SMALL)
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_interrupted_run_goes_on_where_it_stopped(
    made: tuple[Path, PropertyModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = made
    table, out = feature_table(160), tmp_path / "model"
    trained: list[int] = []
    real = training._train_network

    def counted(*arguments: Any) -> Any:
        trained.append(1)
        return real(*arguments)

    monkeypatch.setattr(training, "_train_network", counted)

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_properties(table, properties(table), out, settings=SMALL, progress=stop)
    assert not out.exists()
    train_properties(table, properties(table), out, settings=SMALL)
    assert len(trained) == 4  # two of each variant: none was trained twice
    assert (out / CONFIG_FILE).read_bytes() == (folder / CONFIG_FILE).read_bytes()


def test_other_data_do_not_take_up_an_old_run(tmp_path: Path) -> None:
    table, out = feature_table(160), tmp_path / "model"

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_properties(table, properties(table), out, settings=SMALL, progress=stop)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "model.partial").iterdir()}
    table["zeta"] += np.arange(160) % 7 * 0.1
    with pytest.raises(KeyboardInterrupt):
        train_properties(table, properties(table), out, settings=SMALL, progress=stop)
    now = {path.name: path.read_bytes() for path in (tmp_path / "model.partial").iterdir()}
    assert now["run.txt"] != kept["run.txt"]
    assert now["full-network-0.safetensors"] != kept["full-network-0.safetensors"]


def test_nothing_that_is_fitted_sees_validation_or_test(
    made: tuple[Path, PropertyModel], tmp_path: Path
) -> None:
    """Other features and targets in val and test: networks, trees, scalers and space stay."""
    folder, _ = made
    table = feature_table(160)
    known = properties(table)
    aside = [id_ for id_, row in known.items() if row["split"] != "train"]
    for id_ in aside:
        for name in TARGETS:
            known[id_][name] *= 3
    rows = table["id"].isin(aside)
    table.loc[rows, ["zeta", "volume_per_atom", "rho_int_mean"]] *= 1.7
    out = tmp_path / "other"
    train_properties(table, known, out, settings=SMALL)
    for path in folder.iterdir():
        if path.name != CONFIG_FILE:
            assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    one, two = (json.loads((f / CONFIG_FILE).read_text()) for f in (folder, out))
    assert one["domain"] == two["domain"]
    for name in ("full", "core_blind"):
        for key in ("output_mean", "output_deviation"):
            assert one["variants"][name][key] == two["variants"][name][key]


def test_the_test_part_changes_nothing(made: tuple[Path, PropertyModel], tmp_path: Path) -> None:
    folder, _ = made
    table = feature_table(160)
    known = properties(table)
    for row in known.values():
        if row["split"] == "test":
            row.update({name: row[name] * 5 for name in TARGETS})
    out = tmp_path / "other"
    train_properties(table, known, out, settings=SMALL)
    one, two = (json.loads((f / CONFIG_FILE).read_text()) for f in (folder, out))
    assert one["variants"] == two["variants"]


def test_what_follows_from_the_features_is_learned() -> None:
    table = feature_table(900)
    rows = join(table, properties(table))
    train = (rows["split"] == "train").to_numpy()
    some = Settings(networks=1, epochs=60, width=32, trees=200, batch=64)
    members = fit_members(rows, train, "full", some)
    test = rows[rows["split"] == "test"]
    made = members.every_target(test)
    for name in TARGETS:
        reference = test[name].to_numpy(float)
        error = np.abs(made[name] - reference).mean()
        assert error < 0.35 * np.abs(reference - reference.mean()).mean(), name


def test_rows_without_a_target_are_no_obstacle() -> None:
    table = feature_table(80)
    known = properties(table)
    for id_ in list(known)[::3]:
        del known[id_]["formation_energy"], known[id_]["C11"]
    rows = join(table, known)
    train = np.ones(len(rows), bool)
    members = fit_members(rows, train, "core_blind", Settings(1, 2, width=8, trees=5, batch=32))
    made = members.predict(make_inputs(rows, "core_blind"), rows["volume_per_atom"].to_numpy())
    assert all(np.isfinite(values).all() for values in made.values())


def test_what_cannot_be_trained_is_told(tmp_path: Path) -> None:
    table = feature_table(60)
    with pytest.raises(InputError, match="no material"):
        train_properties(table, {"other": {}}, tmp_path / "m", settings=SMALL)
    known = properties(table)
    with pytest.raises(InputError, match="split"):
        train_properties(
            table, {id_: {"bulk_modulus": 1.0} for id_ in known}, tmp_path / "m", settings=SMALL
        )
    for row in known.values():
        row["split"] = "train"
    with pytest.raises(InputError, match="'val'"):
        train_properties(table, known, tmp_path / "m", settings=SMALL)
    assert not list(tmp_path.iterdir())
