from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feature_tables import feature_table, properties

from chgdb.composition import mass_per_atom, parse_formula
from chgdb.elasticity import debye_temperature, youngs_modulus
from chgdb.errors import ChgdbError, FormatVersionError, InputError, ModelError
from chgdb.inputs import make_inputs
from chgdb.properties import (
    CONFIG_FILE,
    NEIGHBOURS,
    TARGETS,
    PropertyConfig,
    PropertyModel,
    Space,
    half_widths,
)

pytest.importorskip("torch")
pytest.importorskip("lightgbm")

from chgdb.train_properties import Settings, train_properties


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small"
    table = feature_table(160)
    small = Settings(networks=2, epochs=3, width=16, trees=15, batch=32)
    train_properties(table, properties(table), folder, settings=small)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> PropertyModel:
    return PropertyModel.load(folder)


def test_a_prediction_has_its_columns(model: PropertyModel) -> None:
    table = feature_table(9, seed=2)
    before = table.copy(deep=True)
    made = model.predict(table)
    assert table.equals(before)
    values = [name + end for name in TARGETS for end in ("", "_low", "_high")]
    flags = ["in_training", "outside_domain", "foreign"]
    assert list(made.columns) == ["id", *values, *flags, "neighbours"]
    assert made["id"].tolist() == table["id"].tolist()
    assert np.isfinite(made[values].to_numpy()).all()
    for name in TARGETS:
        assert (made[f"{name}_low"] <= made[name]).all()
        assert (made[name] <= made[f"{name}_high"]).all()
    assert made[["bulk_modulus_low", "debye_temperature_low"]].to_numpy().min() >= 0
    assert {made[name].dtype.kind for name in flags} == {"b"}
    for text in made["neighbours"]:
        pairs = json.loads(text)
        assert len(pairs) == NEIGHBOURS
        assert [d for _, d in pairs] == sorted(d for _, d in pairs)
    assert list(model.predict(table.iloc[:0]).columns) == list(made.columns)


def test_one_by_one_is_all_at_once(model: PropertyModel) -> None:
    table = feature_table(6, seed=2)
    table.loc[2, "electrons_per_atom"] += 1
    together = model.predict(table)
    for row in range(6):
        alone = model.predict(table.iloc[row : row + 1])
        pd.testing.assert_frame_equal(
            alone, together.iloc[row : row + 1].reset_index(drop=True), rtol=1e-5
        )


def test_young_and_debye_follow_from_the_moduli(model: PropertyModel) -> None:
    table = feature_table(9, seed=2)
    made = model.predict(table)
    bulk, shear = (made[name].to_numpy() for name in ("bulk_modulus", "shear_modulus"))
    np.testing.assert_allclose(made["youngs_modulus"], youngs_modulus(bulk, shear))
    mass = [mass_per_atom(parse_formula(text)) for text in table["formula"]]
    theta = debye_temperature(bulk, shear, table["volume_per_atom"].to_numpy(), np.array(mass))
    np.testing.assert_allclose(made["debye_temperature"], theta)


def test_foreign_densities_are_served_without_the_core(model: PropertyModel) -> None:
    table = feature_table(5, seed=2)
    table["electrons_per_atom"] *= 2
    table["f_int"] /= 2
    made = model.predict(table)
    assert made["foreign"].all()
    table[["zeta", "m1", "fisher_information", "shannon_entropy"]] *= 10
    assert model.predict(table).equals(made)


def test_a_training_material_is_known_by_id_and_by_what_it_is(model: PropertyModel) -> None:
    table = feature_table(160)
    split = {id_: row["split"] for id_, row in properties(table).items()}
    train = table["id"].map(split) == "train"
    made = model.predict(table)
    assert made["in_training"].equals(train)
    assert not made.loc[train, "outside_domain"].any()
    renamed = table[train].assign(id=[f"mine-{i}" for i in range(train.sum())])
    again = model.predict(renamed)
    assert again["in_training"].all()
    assert [json.loads(text)[0][0] for text in again["neighbours"]] == table.loc[
        train, "id"
    ].tolist()


def test_what_is_unlike_the_training_data_is_told(model: PropertyModel) -> None:
    table = feature_table(4, seed=2)
    table.loc[1, "formula"] = "XeF2"  # an element that no training material has
    table.loc[2, ["volume_per_atom", "rho_int_mean", "rho_mid_mean"]] = 200.0, 30.0, 30.0
    assert model.predict(table)["outside_domain"].tolist()[1:3] == [True, True]


def test_a_material_without_a_volume_is_refused(model: PropertyModel) -> None:
    table = feature_table(2)
    table.loc[0, "volume_per_atom"] = np.nan
    with pytest.raises(InputError, match="volume"):
        model.predict(table)


def test_neighbours_are_the_nearest_of_all() -> None:
    table = feature_table(50)
    space = Space.of(table)
    inputs = make_inputs(feature_table(8, seed=4), "core_blind")
    order, distances = space.nearest(inputs, 3)
    points = Space._points(inputs, space.scaler)
    every = np.linalg.norm(space.points[None] - points[:, None], axis=2)
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :3], atol=1e-4)
    np.testing.assert_array_equal(order, np.argsort(every, axis=1)[:, :3])
    _, others = space.nearest(make_inputs(table, "core_blind"), 1, others=True)
    assert others.min() > 1e-3


def test_half_widths_grow_with_doubt() -> None:
    one = np.ones(3)
    coefficients = (2.0, 0.5, 0.0, 1.0, 0.1, 0.1, 0.1)
    spread = np.array([0.0, 1.0, 4.0])
    widths = half_widths(coefficients, one, spread, one)
    assert (np.diff(widths) > 0).all()
    assert widths[1] == pytest.approx(2 * 1.1**0.5 * 1.1)


@pytest.mark.parametrize(
    "name",
    [
        "space.safetensors",
        "training.json",
        "full-network-0.safetensors",
        "full-bulk_modulus.txt",
        "full-scaler.safetensors",
    ],
)
def test_a_damaged_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(bytes(content))
    with pytest.raises(ModelError, match=name):
        PropertyModel.load(copy).predict(feature_table(3))
    (copy / name).unlink()
    with pytest.raises(ModelError, match=name):
        PropertyModel.load(copy).predict(feature_table(3))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format_version": 2}, FormatVersionError),
        ({"kind": "periodic"}, ModelError),
        ({"variants": {}}, ModelError),
        ({"id": "../x"}, ModelError),
        ({"files": {"../../etc/passwd": "0"}}, ModelError),
        ({"unknown": 1}, ModelError),
        ({"files": 3}, ModelError),
    ],
)
def test_a_configuration_that_is_none_is_refused(
    folder: Path, change: dict[str, object], error: type[ChgdbError]
) -> None:
    fields = json.loads((folder / CONFIG_FILE).read_text())
    with pytest.raises(error):
        PropertyConfig.parse(json.dumps({**fields, **change}))


def test_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="config"):
        PropertyModel.load(tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="config"):
        PropertyModel.load(tmp_path)
