"""The systems: one contract for all, nothing leaks from kept-aside rows, files are checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

import chgdb
from chgdb.composition import COMPOSITION_FEATURES, composition_features
from chgdb.errors import FormatVersionError, InputError, ModelError
from chgdb.evaluation import Evaluation, compare, evaluate_systems, input_shares
from chgdb.properties import TARGETS
from chgdb.scores import score
from chgdb.system_inputs import fit_components, fit_scaler, repeated, tree_features
from chgdb.system_models import RECIPES, _Network, network_inputs
from chgdb.systems import SYSTEMS, System, SystemData, TrainOptions, system_data, train
from chgdb.weights import CONFIG_FILE, WEIGHTS_FILE, load_config, packed, unpacked

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = TrainOptions(epochs=2, trials=2, widths=(4, 6))
LATENT_SYSTEMS = [name for name, recipe in RECIPES.items() if recipe.takes_latents]
EVERY = pytest.mark.parametrize("name", SYSTEMS)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made_up(n: int = 60, seed: int = 0) -> SystemData:
    """Cells of different sizes, whose targets hang on the latent and on the composition."""
    rng = np.random.default_rng(seed)
    extents = rng.integers(2, 6, (n, 3))
    latents = np.zeros((n, 4, 8, 8, 8), dtype=np.float32)
    for latent, (a, b, c) in zip(latents, extents, strict=True):
        latent[:, :a, :b, :c] = rng.standard_normal((4, a, b, c)) + rng.standard_normal(
            (4, 1, 1, 1)
        )
    composition = rng.standard_normal((n, len(COMPOSITION_FEATURES)))
    composition[:, 7] = 3.0
    composition[rng.random(n) < 0.1, 9] = np.nan
    pooled = np.array([z[:, z[0] != 0].mean(axis=1) for z in latents])
    base = composition[:, 0] + pooled[:, 0]
    targets = np.column_stack([base * (i + 1) + 10 * i for i in range(len(TARGETS))])
    targets[rng.random(targets.shape) < 0.05] = np.nan
    split = ["train"] * (n - 20) + ["val"] * 8 + ["test"] * 12
    return SystemData(
        ids=tuple(f"mp-{i}" for i in range(n)),
        formulas=tuple(f"X{i // 3}" for i in range(n)),
        split=tuple(split),
        latents=latents,
        extents=extents.astype(np.int64),
        composition=composition,
        spacegroup=rng.integers(0, 231, n),
        targets=targets,
        encoder="tiny 0123",
    )


DATA = made_up()


def with_other_rows(parts: tuple[str, ...], **changes: bool) -> SystemData:
    """The data with other numbers in some parts."""
    rows = [row for row, part in enumerate(DATA.split) if part in parts]
    other = made_up(seed=1)
    arrays = {name: getattr(DATA, name).copy() for name in changes}
    for name, array in arrays.items():
        array[rows] = getattr(other, name)[rows]
    return replace(DATA, **arrays)


@pytest.fixture(scope="module")
def systems() -> dict[str, System]:
    torch.set_num_threads(1)
    return {name: train(name, DATA, options=OPTIONS) for name in SYSTEMS}


def same(first: pd.DataFrame, second: pd.DataFrame) -> None:
    """To the last bit."""
    pd.testing.assert_frame_equal(first, second, check_exact=True)


# ---------------------------------------------------------------------- the contract


@EVERY
def test_contract(systems: dict[str, System], name: str, tmp_path: Path) -> None:
    """Shapes, round trip, input not mutated, a row alone as among others."""
    system = systems[name]
    before = {key: getattr(DATA, key).copy() for key in ("latents", "composition", "targets")}
    found = system.predict(DATA)
    assert list(found.columns) == ["id", *TARGETS]
    assert tuple(found["id"]) == DATA.ids
    assert np.isfinite(found[list(TARGETS)].to_numpy()).all()
    for key, array in before.items():
        np.testing.assert_array_equal(getattr(DATA, key), array)

    system.save(tmp_path / name)
    same(System.load(tmp_path / name).predict(DATA), found)
    assert System.load(tmp_path / name).config == system.config

    some = [3, 0, 59]
    same(system.predict(DATA.take(some)), found.iloc[some].reset_index(drop=True))
    alone = [system.predict(DATA.take([row])) for row in some]
    same(pd.concat(alone, ignore_index=True), found.iloc[some].reset_index(drop=True))
    assert len(system.predict(DATA.take([]))) == 0


@EVERY
def test_the_same_seed_gives_the_same_files(systems: dict[str, System], name: str) -> None:
    torch.set_num_threads(2)
    again = train(name, DATA, options=OPTIONS)
    assert torch.get_num_threads() == 2
    assert again.config.files == systems[name].config.files
    if RECIPES[name].kind == "network":
        other = train(name, DATA, seed=1, options=OPTIONS)
        assert other.config.files != again.config.files


@EVERY
def test_rows_kept_aside_change_nothing(systems: dict[str, System], name: str) -> None:
    """Neither inputs nor targets of the test rows have an influence on what is trained."""
    changes = dict.fromkeys(("latents", "extents", "composition", "spacegroup", "targets"), True)
    other = train(name, with_other_rows(("test",), **changes), options=OPTIONS)
    assert other.config.files == systems[name].config.files


@pytest.mark.parametrize("name", ["latent-lightgbm", "latent-cnn", "attention-cnn"])
def test_what_is_fitted_sees_training_rows_only(systems: dict[str, System], name: str) -> None:
    changes = dict.fromkeys(("latents", "extents", "composition", "targets"), True)
    data = with_other_rows(("val", "test"), **changes)
    options = replace(OPTIONS, trials=0)
    first, second = (fitted(train(name, rows, options=options)) for rows in (DATA, data))
    assert first.keys() == second.keys() != set()
    for key, array in first.items():
        np.testing.assert_array_equal(array, second[key])
    changed = replace(data, latents=data.latents * 2, composition=data.composition * 2)
    third = fitted(train(name, changed, options=options))
    assert any(not np.array_equal(array, third[key]) for key, array in first.items())


def fitted(system: System) -> dict[str, NDArray[Any]]:
    """Scalers, components and ranges of a system."""
    tensors = unpacked(system._files[WEIGHTS_FILE])
    return {key: array for key, array in tensors.items() if "/" in key}


def test_validation_rows_choose(systems: dict[str, System]) -> None:
    other = train("magpie-lightgbm", with_other_rows(("val",), targets=True), options=OPTIONS)
    assert other.config.files != systems["magpie-lightgbm"].config.files


@pytest.mark.parametrize("name", ["magpie-lightgbm", "composition-symmetry"])
def test_the_composition_alone_knows_no_latents(systems: dict[str, System], name: str) -> None:
    blind = replace(DATA, latents=np.zeros_like(DATA.latents), encoder="other")
    same(systems[name].predict(blind), systems[name].predict(DATA))
    assert systems[name].config.encoder == ""


def test_the_latent_alone_knows_no_composition(systems: dict[str, System]) -> None:
    blind = replace(DATA, composition=np.zeros_like(DATA.composition))
    same(systems["latent-cnn"].predict(blind), systems["latent-cnn"].predict(DATA))


def test_training_learns() -> None:
    options = TrainOptions(epochs=30, trials=0, widths=(6, 8))
    for name in ("attention-cnn", "pooled-lightgbm"):
        rows = DATA.part("train")
        predicted = train(name, DATA, options=options).predict(rows)[TARGETS[0]].to_numpy()
        known = np.isfinite(rows.targets[:, 0])
        correlation = np.corrcoef(predicted[known], rows.targets[known, 0])[0, 1]
        assert correlation > 0.5, name


def test_predictions_stay_in_the_range_of_the_training_rows(systems: dict[str, System]) -> None:
    far = replace(DATA, latents=DATA.latents * 1e4, composition=DATA.composition * 1e4)
    targets = DATA.part("train").targets
    for name, system in systems.items():
        values = system.predict(far)[list(TARGETS)].to_numpy()
        assert (values >= np.nanmin(targets, axis=0) - 1e-3).all(), name
        assert (values <= np.nanmax(targets, axis=0) + 1e-3).all(), name


# ---------------------------------------------------------------------- inputs


def test_a_scaler_bears_what_is_unknown_or_constant() -> None:
    mean, std = fit_scaler(
        np.array([[1.0, 5.0, np.nan], [3.0, 5.0, np.nan], [np.nan, 5.0, np.nan]])
    )
    np.testing.assert_allclose(mean, [2, 5, 0])
    np.testing.assert_allclose(std, [1, 1, 1])


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    latents = DATA.latents[:12]
    tensors = {k: v.astype(np.float64) for k, v in fit_components(latents, 512).items()}
    flat = latents.reshape(12, -1).astype(np.float64)
    varied = flat[:, flat.std(axis=0) > 0]
    scaled = (varied - varied.mean(axis=0)) / varied.std(axis=0)
    _, strengths, axes = np.linalg.svd(scaled, full_matrices=False)
    assert tensors["latent/components"].shape == (11, varied.shape[1])
    overlaps = np.abs((tensors["latent/components"] * axes[:11]).sum(axis=1))
    np.testing.assert_allclose(overlaps, 1, atol=2e-3)
    stored = unpacked(packed(fit_components(latents, 512)))
    data = DATA.take(range(12))
    projected = tree_features(("latent",), data, stored)["latent"]
    np.testing.assert_allclose(projected.std(axis=0) * 12**0.5, strengths[:11], rtol=2e-3)
    assert len(fit_components(latents, 3)["latent/components"]) == 3


def test_pooled_features_and_networks_know_no_origin() -> None:
    moved = DATA.latents.copy()
    for latent, (a, b, c) in zip(moved, DATA.extents, strict=True):
        latent[:, :a, :b, :c] = np.roll(latent[:, :a, :b, :c], (1, 2, 1), (1, 2, 3))
    first, second = (
        tree_features(("pooled",), replace(DATA, latents=latents), {})["pooled"]
        for latents in (DATA.latents, moved)
    )
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_pooled_features_see_the_cell_and_not_the_box() -> None:
    pooled = tree_features(("pooled",), DATA, {})["pooled"]
    a, b, c = DATA.extents[5]
    np.testing.assert_allclose(pooled[5, 1], DATA.latents[5, 1, :a, :b, :c].mean(), rtol=1e-5)


def test_symmetry_features() -> None:
    rows = DATA.take([0, 1, 2, 3])
    rows = replace(rows, spacegroup=np.array([0, 2, 166, 230]))
    features = tree_features(("symmetry",), rows, {})["symmetry"]
    np.testing.assert_array_equal(features[:, 0], [np.nan, 2, 166, 230])
    assert features[:, 1:].sum(axis=1).tolist() == [0, 1, 1, 1]
    assert features[1:, 1:].argmax(axis=1).tolist() == [0, 4, 6]


def test_the_crystal_repeated() -> None:
    filled = repeated(DATA)
    for latent, extent, box in zip(DATA.latents, DATA.extents, filled, strict=True):
        point = (7, 3, 5)
        inside = tuple(int(p % e) for p, e in zip(point, extent, strict=True))
        np.testing.assert_array_equal(box[:, *point], latent[:, *inside])
    unknown = replace(DATA, extents=np.zeros_like(DATA.extents))
    np.testing.assert_array_equal(repeated(unknown), DATA.latents)


def test_networks_see_finite_numbers() -> None:
    ranges = {
        "latent/maximum": np.float32(2.0),
        "composition/mean": np.zeros(138, np.float32),
        "composition/std": np.ones(138, np.float32),
    }
    recipe = RECIPES["attention-cnn"]
    arrays = {key: np.asarray(array) for key, array in ranges.items()}
    latents, composition = network_inputs(recipe, DATA, arrays, "zeros")
    np.testing.assert_array_equal(latents.numpy(), DATA.latents / 2)
    assert bool(composition.isfinite().all())


def test_data_of_a_store() -> None:
    database = chgdb.open(ROOT / "store")
    ids = database.select(columns=["id"], limit=3).values
    data = system_data(database, [material_id for (material_id,) in ids])
    assert data.latents.shape == (3, 16, 16, 16, 16)
    for row, material_id in enumerate(data.ids):
        record = database[material_id]
        latent = record.latent()
        mean_density = latent.n_electrons / record.structure.volume
        np.testing.assert_allclose(data.latents[row], latent.values * mean_density**0.5, rtol=1e-5)
        a, b, c = data.extents[row]
        assert not data.latents[row, :, a:].any()
        assert not data.latents[row, :, :, b:].any()
        assert data.latents[row, :, a - 1, b - 1, c - 1].any()
        expected = composition_features(record.structure.composition)
        np.testing.assert_array_equal(data.composition[row], expected)
        assert data.spacegroup[row] == record.row["spacegroup"]
        for column, target in enumerate(TARGETS):
            value = record.row[target]
            np.testing.assert_equal(data.targets[row, column], np.nan if value is None else value)
    with pytest.raises(InputError, match="no materials"):
        system_data(database, [])


def test_columns_of_different_lengths() -> None:
    with pytest.raises(InputError, match="different numbers"):
        replace(DATA, spacegroup=DATA.spacegroup[1:])


# ---------------------------------------------------------------------- training


class InterruptionError(Exception):
    pass


@pytest.mark.parametrize("name", ["attention-cnn"])
def test_an_interrupted_run_ends_like_one_that_was_not(name: str, tmp_path: Path) -> None:
    options = replace(OPTIONS, epochs=4)
    whole = train(name, DATA, options=options)

    def stop(line: str) -> None:
        if "epoch 2/" in line:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        train(name, DATA, out=tmp_path, options=options, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    with pytest.raises(InputError, match="other settings"):
        train(name, DATA, out=tmp_path, seed=1, options=options)
    lines: list[str] = []
    resumed = train(name, DATA, out=tmp_path, options=options, progress=lines.append)
    assert len(lines) == 2
    assert resumed.config.files == whole.config.files
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "weights.safetensors",
    ]


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged") as caught:
        train("latent-cnn", DATA, out=tmp_path, options=OPTIONS)
    assert "\n" not in str(caught.value)


def test_a_card_says_what_where_from_how_good(systems: dict[str, System], tmp_path: Path) -> None:
    train("magpie-lightgbm", DATA, out=tmp_path, seed=3, options=OPTIONS)
    card = (tmp_path / "README.md").read_text()
    assert (
        "chgdb train system magpie-lightgbm --seed 3 --trials 2 -o models/magpie-lightgbm" in card
    )
    assert "| test | bulk_modulus (GPa) |" in card
    assert "40 materials to learn from and 8" in card


def test_training_that_makes_no_sense() -> None:
    with pytest.raises(InputError, match="no system 'nonsense'"):
        train("nonsense", DATA)
    with pytest.raises(InputError, match="part 'val'"):
        train("magpie-lightgbm", replace(DATA, split=("train",) * len(DATA)))
    with pytest.raises(InputError, match="seed"):
        train("magpie-lightgbm", DATA, seed=-1)
    flat = DATA.targets.copy()
    flat[:, 2] = 1.0
    with pytest.raises(InputError, match=f"{TARGETS[2]} is the same"):
        train("magpie-lightgbm", replace(DATA, targets=flat))
    for bad in ({"epochs": 0}, {"trials": -1}, {"widths": ()}, {"fill": "water"}):
        with pytest.raises(InputError):
            TrainOptions(**bad)


# ---------------------------------------------------------------------- files


@pytest.fixture
def folder(systems: dict[str, System], tmp_path: Path) -> Path:
    systems["latent-lightgbm"].save(tmp_path / "system")
    return tmp_path / "system"


def rewrite(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**content, **changes}))


def hashed_anew(folder: Path, name: str, content: bytes) -> None:
    """Other content, which the configuration agrees with."""
    (folder / name).write_bytes(content)
    files = json.loads((folder / CONFIG_FILE).read_text())["files"]
    rewrite(folder, files={**files, name: hashlib.sha256(content).hexdigest()})


def test_no_pickle_and_small(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted([CONFIG_FILE, WEIGHTS_FILE, *(f"{target}.txt" for target in TARGETS)])


@pytest.mark.parametrize("file", [WEIGHTS_FILE, "bulk_modulus.txt"])
@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-1], lambda content: content + b"\n", lambda content: b""],
)
def test_another_file_is_refused(folder: Path, file: str, damage: Callable[[bytes], bytes]) -> None:
    (folder / file).write_bytes(damage((folder / file).read_bytes()))
    with pytest.raises(ModelError, match="sha256"):
        System.load(folder)


def test_a_missing_file(folder: Path) -> None:
    (folder / "shear_modulus.txt").unlink()
    with pytest.raises(ModelError, match=r"shear_modulus\.txt: cannot read"):
        System.load(folder)
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(ModelError, match=r"config\.json: cannot read"):
        System.load(folder)


def test_a_newer_version_is_refused(folder: Path) -> None:
    rewrite(folder, format_version=2)
    with pytest.raises(FormatVersionError, match="pip install --upgrade"):
        System.load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"name": "nonsense"},
        {"name": ["x"]},
        {"files": {}},
        {"files": {"../config.json": ""}},
        {"latent_shape": [1, 2]},
        {"latent_shape": [4, 8, 8, 10**9]},
        {"settings": []},
        {"surprise": 1},
    ],
    ids=str,
)
def test_what_is_no_configuration(folder: Path, changes: dict[str, Any]) -> None:
    rewrite(folder, **changes)
    with pytest.raises(ModelError, match="not the configuration") as caught:
        System.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_a_configuration_that_is_no_json(folder: Path, content: str) -> None:
    (folder / CONFIG_FILE).write_text(content)
    with pytest.raises(ModelError, match="not the configuration"):
        System.load(folder)


def test_an_encoder_is_no_system_and_a_system_no_encoder(folder: Path) -> None:
    with pytest.raises(ModelError):
        load_config(folder)
    with pytest.raises(ModelError):
        System.load(ROOT / "models" / "periodic-16")


def test_damage_that_the_hash_agrees_with(folder: Path, systems: dict[str, System]) -> None:
    hashed_anew(folder, "bulk_modulus.txt", b"no trees\n")
    with pytest.raises(ModelError, match="damaged"):
        System.load(folder)
    systems["latent-lightgbm"].save(folder)
    other = systems["magpie-lightgbm"]._files["bulk_modulus.txt"]
    hashed_anew(folder, "bulk_modulus.txt", other)
    with pytest.raises(ModelError, match="damaged"):
        System.load(folder)
    systems["latent-lightgbm"].save(folder)
    hashed_anew(folder, WEIGHTS_FILE, b"no tensors")
    with pytest.raises(ModelError, match="damaged"):
        System.load(folder)
    tensors = unpacked(systems["latent-lightgbm"]._files[WEIGHTS_FILE])
    systems["latent-lightgbm"].save(folder)
    hashed_anew(folder, WEIGHTS_FILE, packed({**tensors, "latent/mean": np.array([np.nan])}))
    with pytest.raises(ModelError, match="not finite"):
        System.load(folder)


@pytest.mark.parametrize(
    "net",
    [{"widths": [10**6]}, {"channels": 5}, {"widths": "wide"}, {"dropout": 0.5}, {"targets": 5}],
    ids=str,
)
def test_a_network_of_another_kind(
    systems: dict[str, System], tmp_path: Path, net: dict[str, Any]
) -> None:
    systems["attention-cnn"].save(tmp_path)
    settings = systems["attention-cnn"].config.settings
    rewrite(tmp_path, settings={**settings, "net": {**settings["net"], **net}})
    with pytest.raises(ModelError, match="damaged"):
        System.load(tmp_path)


def test_a_system_cannot_be_saved_into_a_file(systems: dict[str, System], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        systems["latent-cnn"].save(tmp_path / "file")


@pytest.mark.parametrize("name", LATENT_SYSTEMS)
def test_latents_of_another_encoder_are_refused(systems: dict[str, System], name: str) -> None:
    with pytest.raises(ModelError, match="takes latents of tiny"):
        systems[name].predict(replace(DATA, encoder="other 4567"))


@pytest.mark.parametrize("name", SYSTEMS)
def test_shipped_systems(name: str) -> None:
    """They belong to the shipped store, are small, and predict what their card says."""
    folder = ROOT / "models" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
    system = System.load(folder)
    database = chgdb.open(ROOT / "store")
    encoder = database.info.encoder
    takes = f"{encoder.id} {encoder.weights_sha256}" if RECIPES[name].takes_latents else ""
    assert system.config.encoder == takes
    assert system.config.training["rows"] == {"train": 310, "val": 31}
    selection = database.select(source="dft", where="split = 'val'", columns=["id"])
    data = system_data(database, [material_id for (material_id,) in selection.values])
    found = score(data.targets[:, 0], system.predict(data)[TARGETS[0]])
    row = f"| val | bulk_modulus (GPa) | 31 | {found.r2:.3f} | {found.mae:.3g} | {found.rmse:.3g} |"
    assert row in (folder / "README.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    names = ["magpie-lightgbm", "composition-symmetry"]
    return evaluate_systems(DATA, names, n_folds=3, options=replace(OPTIONS, trials=0))


def test_every_row_is_predicted_once_per_protocol(evaluation: Evaluation) -> None:
    keys = ["system", "protocol", "target"]
    counts = evaluation.predictions.groupby(keys)["id"].agg(["size", "nunique"])
    assert len(counts) == 2 * 3 * len(TARGETS)
    for (_, protocol, _), size, unique in counts.itertuples():
        assert size == unique == (12 if protocol == "split" else 60)


def test_polymorphs_are_in_one_fold(evaluation: Evaluation) -> None:
    formulas = dict(zip(DATA.ids, DATA.formulas, strict=True))
    table = evaluation.predictions.assign(formula=evaluation.predictions["id"].map(formulas))
    folds = table.groupby(["protocol", "formula"])["fold"].nunique().groupby("protocol").max()
    assert folds["grouped"] == 1
    assert folds["random"] > 1


def test_scores_are_those_of_the_predictions(evaluation: Evaluation) -> None:
    row = evaluation.scores.to_dict("records")[0]
    some = evaluation.predictions.dropna()
    for key in ("system", "protocol", "target"):
        some = some[some[key] == row[key]]
    error = some["predicted"] - some["reference"]
    assert row["n"] == len(some)
    assert row["mae"] == pytest.approx(error.abs().mean())
    assert row["rmse"] == pytest.approx((error**2).mean() ** 0.5)
    assert row["mae_low"] < row["mae"] < row["mae_high"]
    assert len(evaluation.scores) == 2 * 3 * len(TARGETS)


def test_comparison_is_paired(evaluation: Evaluation) -> None:
    table = compare(evaluation.predictions)
    assert set(table["system"]) == {"magpie-lightgbm"}
    scores = evaluation.scores.set_index(["system", "protocol", "target"])["mae"].to_dict()
    for row in table.to_dict("records"):
        own, other = (
            scores[system, row["protocol"], row["target"]]
            for system in ("magpie-lightgbm", "composition-symmetry")
        )
        assert row["mae_change"] == pytest.approx(own - other)
        assert row["mae_change_low"] <= row["mae_change"] <= row["mae_change_high"]
    with pytest.raises(InputError, match="no predictions of"):
        compare(evaluation.predictions, "latent-cnn")


def test_an_evaluation_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Evaluation:
        return evaluate_systems(
            DATA,
            ["magpie-lightgbm"],
            protocols=["random"],
            n_folds=2,
            options=replace(OPTIONS, trials=0),
            folder=tmp_path,
        )

    first = run()
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr("chgdb.evaluation.train", None)
    same(run().predictions, first.predictions)


def test_trained_systems_are_not_trained_again(systems: dict[str, System]) -> None:
    found = evaluate_systems(DATA, ["latent-cnn"], protocols=["split"], trained=systems)
    expected = systems["latent-cnn"].predict(DATA.part("test"))
    for target in TARGETS:
        some = found.predictions[found.predictions["target"] == target]
        np.testing.assert_array_equal(some["predicted"], expected[target])


def test_evaluations_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="no system"):
        evaluate_systems(DATA, ["nonsense"])
    with pytest.raises(InputError, match="no protocol"):
        evaluate_systems(DATA, protocols=["nonsense"])  # type: ignore[list-item]


def unclipped(system: System, data: SystemData) -> NDArray[np.float64]:
    if RECIPES[system.name].kind == "trees":
        return system.predict(data)[list(TARGETS)].to_numpy()
    assert isinstance(system, _Network)
    with torch.inference_mode():
        values = system._net(*system._inputs(data)).numpy()
    return np.asarray(values * system._range + system._low)


@EVERY
def test_contributions_add_up(systems: dict[str, System], name: str) -> None:
    """To the prediction less that of the background: exactly for trees, nearly for networks."""
    system = systems[name]
    rows, background = DATA.part("test"), DATA.part("train")
    parts = system.contributions(rows, background)
    assert (parts["absolute"] >= parts["signed"].abs() - 1e-9).all()
    total = parts.groupby(["target", "id"])["signed"].sum().unstack(0)
    predicted = unclipped(system, rows)
    for column, target in enumerate(TARGETS):
        rest = predicted[:, column] - total[target].loc[list(rows.ids)]
        allowed = 1e-6 if RECIPES[name].kind == "trees" else 0.2
        assert rest.std() < allowed * predicted[:, column].std(), target
    with pytest.raises(InputError, match="rows to compare"):
        system.contributions(rows, DATA.take([]))


def test_shares(systems: dict[str, System]) -> None:
    shares = input_shares(systems, DATA.part("test"), DATA.part("train"))
    sums = shares.groupby(["system", "target"])[["share", "net_share"]].sum()
    np.testing.assert_allclose(sums, 1)
    table = shares.groupby(["system", "kind"])["share"].mean().to_dict()
    assert table["latent-cnn", "latent"] == 1
    assert table["magpie-lightgbm", "composition"] == 1
    assert 0 < table["attention-cnn", "latent"] < 1
    assert 0 < table["pooled-lightgbm", "symmetry"] < 0.5
