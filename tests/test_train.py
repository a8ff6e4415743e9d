"""Training: it learns, and an interrupted run ends like one that was not."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic import crystal
from safetensors.torch import load_file, save_file

from chgdb import train as module
from chgdb.codec import build_codec, build_net, load_codec
from chgdb.density import ChargeDensity
from chgdb.errors import InputError, ModelError
from chgdb.formats import write_density
from chgdb.train import (
    Sample,
    TrainSettings,
    axis_rotations,
    encoder_config,
    evaluate_encoder,
    load_samples,
    settings_for,
    split_of,
    train_encoder,
)
from chgdb.weights import EncoderConfig

TINY = {
    "periodic": EncoderConfig(
        "tiny",
        "periodic",
        (8, 32, 32, 32),
        {
            "latent_channels": 8,
            "widths": [8, 16],
            "encoder_blocks": [1, 1],
            "decoder_blocks": [1, 1],
        },
    ),
    "paper": EncoderConfig(
        "tiny-paper", "paper", (4, 32, 32, 32), {"latent_channels": 4, "widths": [4, 4]}
    ),
}
SETTINGS = {
    "periodic": TrainSettings(
        epochs=3, batch_points=10_000, learning_rate=1.0, average=0.5, full_precision_epochs=20
    ),
    "paper": TrainSettings(
        epochs=3, batch_points=5_000, learning_rate=5e-3, average=0.0, full_precision_epochs=20
    ),
}
KINDS = pytest.mark.parametrize("kind", ["periodic", "paper"])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def samples(count: int, first: int = 0) -> list[Sample]:
    """Small cells, of two shapes."""
    made = []
    for i in range(first, first + count):
        rng = np.random.default_rng(i)
        lattice = np.diag([1.9, 2.0, 2.1 if i % 2 else 2.7]) + rng.uniform(-0.05, 0.05, (3, 3))
        made.append(
            Sample(
                f"mp-{i}",
                crystal((14, 14, 15), lattice=lattice, coords=rng.random((2, 3)).tolist()),
            )
        )
    return made


TRAIN, VALIDATION = samples(4), samples(2, first=10)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def run(kind: str, folder: Path, **changes: object) -> list[str]:
    lines: list[str] = []
    train_encoder(
        TINY[kind],
        TRAIN,
        VALIDATION,
        folder,
        replace(SETTINGS[kind], **changes),  # type: ignore[arg-type]
        device="cpu",
        report=lines.append,
    )
    return lines


class InterruptionError(Exception):
    pass


def run_until(kind: str, folder: Path, epoch: int) -> None:
    """Stop right after the checkpoint of an epoch."""

    def report(line: str) -> None:
        if line.startswith(f"epoch {epoch + 1}/"):
            raise InterruptionError

    with pytest.raises(InterruptionError):
        train_encoder(
            TINY[kind], TRAIN, VALIDATION, folder, SETTINGS[kind], device="cpu", report=report
        )


@KINDS
def test_training_lowers_the_error(tmp_path: Path, kind: str) -> None:
    lines = run(kind, tmp_path, epochs=10)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    assert losses[-1] < 0.9 * losses[0]
    config = load_codec(tmp_path, "cpu").config
    assert config.training["epochs_run"] == len(lines) == 10
    assert config.training["materials"] == 4


@KINDS
def test_a_resumed_run_gives_the_same_weights(tmp_path: Path, kind: str) -> None:
    whole = run(kind, tmp_path / "whole")
    run_until(kind, tmp_path / "parts", 1)
    run_until(kind, tmp_path / "parts", 2)
    parts = run(kind, tmp_path / "parts")
    assert [line.split(", learning")[0] for line in parts] == [
        line.split(", learning")[0] for line in whole[2:]
    ]
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0)


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    run("periodic", tmp_path)
    before = weights(tmp_path)
    assert run("periodic", tmp_path) == []
    for name, tensor in weights(tmp_path).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_only_the_last_checkpoint_is_kept(tmp_path: Path) -> None:
    run("paper", tmp_path)
    assert sorted([path.name for path in tmp_path.iterdir()]) == [
        "00003.checkpoint.safetensors",
        "config.json",
        "state.json",
        "weights.safetensors",
    ]


def test_training_stops_early_and_keeps_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([3.0, 1.0, 2.0, 1.0, 5.0, 6.0])
    kept: list[dict[str, torch.Tensor]] = []

    def validate(task: module._PeriodicTask) -> float:
        kept.append({k: v.clone() for k, v in task.codec.net.state_dict().items()})
        return next(errors)

    monkeypatch.setattr(module._PeriodicTask, "validate", validate)
    lines = run("periodic", tmp_path, epochs=50, patience=3)
    assert len(lines) == 5
    for name, tensor in weights(tmp_path).items():
        torch.testing.assert_close(tensor, kept[1][name], rtol=0, atol=0)


def test_the_rate_of_the_paper_falls_on_plateaus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._PaperTask, "validate", lambda _: 1.0)
    lines = run("paper", tmp_path, epochs=14, patience=11)
    rates = [float(line.split("learning rate ")[1].split(",")[0]) for line in lines]
    assert len(rates) == 12
    np.testing.assert_allclose(rates, [5e-3] * 6 + [3.5e-3] * 5 + [2.45e-3], rtol=0.03)


@pytest.mark.parametrize("change", ["settings", "encoder", "materials"])
def test_another_run_in_the_folder_is_refused(tmp_path: Path, change: str) -> None:
    run_until("periodic", tmp_path, 1)
    config, settings, materials = TINY["periodic"], SETTINGS["periodic"], TRAIN
    if change == "settings":
        settings = replace(settings, seed=1)
    elif change == "encoder":
        config = replace(config, net={**config.net, "encoder_blocks": [1, 2]})
    else:
        materials = TRAIN[:-1]
    with pytest.raises(InputError, match="holds a run with another"):
        train_encoder(config, materials, VALIDATION, tmp_path, settings, device="cpu")


DAMAGES = [
    ("state.json", b""),
    ("state.json", b"[]"),
    ("state.json", b"{}"),
    ("state.json", b"\xff"),
    ("00001.checkpoint.safetensors", b""),
    ("00001.checkpoint.safetensors", b"\x80\x04N."),
    ("00001.checkpoint.safetensors", None),
]


@pytest.mark.parametrize(("name", "content"), DAMAGES)
def test_a_damaged_checkpoint_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    run_until("paper", tmp_path, 1)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="damaged") as caught:
        run("paper", tmp_path)
    assert "\n" not in str(caught.value)
    assert "--no-resume" in str(caught.value)


@pytest.mark.parametrize(
    "key",
    ["net/down.0.weight", "average/down.0.weight", "best/to_latent.bias", "optimizer/0/exp_avg"],
)
@pytest.mark.parametrize("missing", [True, False])
def test_a_checkpoint_with_other_tensors_is_refused(
    tmp_path: Path, key: str, missing: bool
) -> None:
    run_until("paper", tmp_path, 1)
    path = tmp_path / "00001.checkpoint.safetensors"
    tensors = load_file(path)
    assert key in tensors
    if not missing:
        tensors[key] = torch.zeros(2, 2)
    elif key.startswith("optimizer"):
        tensors = {name: value for name, value in tensors.items() if "optimizer/0/" not in name}
    else:
        del tensors[key]
    save_file(tensors, path)
    with pytest.raises(InputError, match="damaged"):
        run("paper", tmp_path)


def test_a_state_cannot_set_anything_else(tmp_path: Path) -> None:
    run_until("paper", tmp_path, 1)
    state = json.loads((tmp_path / "state.json").read_text())
    state |= {"folder": "/nowhere", "_validate": 1, "checkpoint": "../x"}
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert len(run("paper", tmp_path)) == 2


def test_training_that_diverges_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._PaperTask, "validate", lambda _: float("nan"))
    with pytest.raises(ModelError, match="diverged"):
        run("paper", tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_network_that_decodes_to_nothing_yet_is_no_failure() -> None:
    codec = build_codec(TINY["periodic"], build_net(TINY["periodic"]))
    task = module._PeriodicTask(codec, TRAIN, VALIDATION, SETTINGS["periodic"])
    for parameter in codec.net.parameters():
        torch.nn.init.zeros_(parameter)
    assert task.validate() == float("inf")


def test_training_needs_materials(tmp_path: Path) -> None:
    nothing: list[Sample] = []
    for train, validation in ((nothing, VALIDATION), (TRAIN, nothing)):
        with pytest.raises(InputError, match="at least one material"):
            train_encoder(TINY["paper"], train, validation, tmp_path, SETTINGS["paper"])


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"batch_points": 0}, {"learning_rate": -1.0}, {"average": 1.0}]
)
def test_settings_beyond_reason(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be"):
        TrainSettings(**change)  # type: ignore[arg-type]


# --- batches ----------------------------------------------------------------------------------


def test_the_12_rotations() -> None:
    """About each axis by 0, 90, 180 and 270 degrees: 10 different fields, each turned back."""
    field = np.random.default_rng(0).random((3, 4, 5))
    rotations = axis_rotations()
    assert len(rotations) == 12
    turned = [np.rot90(field, k, axes) for k, axes in rotations]
    assert len({rotated.tobytes() + bytes(rotated.shape) for rotated in turned}) == 10
    for (k, axes), rotated in zip(rotations, turned, strict=True):
        np.testing.assert_array_equal(np.rot90(rotated, -k, axes), field)
        (kept,) = {0, 1, 2} - set(axes)
        assert rotated.shape[kept] == field.shape[kept]
    assert sorted({axes for _, axes in rotations}) == [(0, 1), (0, 2), (1, 2)]


def test_batches_of_periodic_are_the_cells_moved_and_relabelled() -> None:
    codec = build_codec(TINY["periodic"], build_net(TINY["periodic"]))
    task = module._PeriodicTask(codec, TRAIN, VALIDATION, SETTINGS["periodic"])
    batches = list(task.batches(np.random.default_rng(5)))
    assert sum(len(batch) for batch in batches) == len(TRAIN)
    for batch in batches:
        assert batch.dtype == torch.float32
        means = (batch * batch.abs()).mean(dim=(1, 2, 3, 4))
        torch.testing.assert_close(means, torch.ones(len(batch)), rtol=1e-5, atol=0)
    again = list(task.batches(np.random.default_rng(5)))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    other = list(task.batches(np.random.default_rng(6)))
    assert not all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(batches, other, strict=False)
    )


def test_batches_of_paper_are_rotated_and_padded_with_zeros() -> None:
    codec = build_codec(TINY["paper"], build_net(TINY["paper"]))
    task = module._PaperTask(codec, TRAIN, VALIDATION, SETTINGS["paper"])
    totals = sorted(float(codec.to_field(sample.density).sum()) for sample in TRAIN)
    rows = [row for batch in task.batches(np.random.default_rng(0)) for row in batch]
    assert sorted(float(row.sum()) for row in rows) == pytest.approx(totals, rel=1e-5)
    for row in rows:
        assert all(n % codec.net.factor == 0 for n in row.shape[1:])
        assert float(row[0, -1].abs().max()) == 0.0


# --- measuring --------------------------------------------------------------------------------


def test_evaluation_by_hand() -> None:
    codec = build_codec(TINY["paper"], build_net(TINY["paper"]))
    (sample,) = samples(1)
    with torch.no_grad():
        codec.net.to_density.weight.zero_()  # type: ignore[operator,union-attr]
        codec.net.to_density.bias.fill_(0.5)  # type: ignore[operator,union-attr]
    errors = evaluate_encoder(codec, [sample])[sample.id]
    density = sample.density
    mean = density.values.mean()
    expected = 100 * np.abs(density.values - mean).sum() / density.values.sum()
    assert errors["nmae"] == pytest.approx(expected, rel=1e-6)
    box = np.zeros((128, 128, 128))
    field = codec.to_field(density)
    box[tuple(slice(n) for n in field.shape)] = field
    assert errors["box_mae"] == pytest.approx(np.abs(box - 0.5).mean(), rel=1e-5)
    assert errors["box_mse"] == pytest.approx(np.square(box - 0.5).mean(), rel=1e-5)


def test_evaluation_does_not_touch_the_density() -> None:
    codec = build_codec(TINY["periodic"], build_net(TINY["periodic"]))
    (sample,) = samples(1)
    before = sample.density.values.copy()
    errors = evaluate_encoder(codec, [sample])
    np.testing.assert_array_equal(sample.density.values, before)
    assert errors.keys() == {"mp-0"}
    assert errors["mp-0"]["nmae"] > 0


# --- data and configuration ---------------------------------------------------------------------


def write_set(folder: Path, names: list[str]) -> None:
    folder.mkdir()
    density: ChargeDensity = crystal((6, 6, 6))
    for name in names:
        write_density(folder / f"{name}.npz", density, "npz")


def table(path: Path, rows: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split"])
        writer.writerows(rows.items())
    return path


def test_the_table_decides_the_split_where_it_names_the_material(tmp_path: Path) -> None:
    names = [f"mp-{i}" for i in range(1, 9)]
    write_set(tmp_path / "set", names)
    splits = {"mp-1": "test", "mp-2": "val", "mp-99": "train"}
    parts = load_samples([tmp_path / "set"], table(tmp_path / "table.csv", splits))
    found = {sample.id: part for part, members in parts.items() for sample in members}
    assert sorted(found) == names
    assert found["mp-1"] == "test"
    assert found["mp-2"] == "val"
    assert all(found[name] == split_of(name, {}) for name in names[2:])
    assert list(load_samples([tmp_path / "set"])) == ["train", "val", "test"]


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path / "set", ["mp-1"])
    with pytest.raises(InputError, match="'holdout'"):
        load_samples([tmp_path / "set"], table(tmp_path / "table.csv", {"mp-1": "holdout"}))


def test_the_hash_splits_80_10_10() -> None:
    parts = [split_of(f"mp-{i}", {}) for i in range(3000)]
    assert parts.count("train") / 3000 == pytest.approx(0.8, abs=0.03)
    assert parts.count("val") / 3000 == pytest.approx(0.1, abs=0.02)
    assert parts == [split_of(f"mp-{i}", {}) for i in range(3000)]


@KINDS
@pytest.mark.parametrize("size", [8, 16, 32])
def test_published_sizes(kind: str, size: int) -> None:
    config = encoder_config(kind, size)
    assert config.latent_shape == (size,) * 4
    with torch.device("meta"):
        assert build_net(config).factor == 128 // size


def test_other_encoders_are_refused() -> None:
    for kind, size in (("vae", 16), ("paper", 12)):
        with pytest.raises(InputError, match="no encoder"):
            encoder_config(kind, size)


def test_settings_of_the_paper() -> None:
    settings = settings_for("paper", epochs=7, seed=3)
    assert (settings.learning_rate, settings.patience, settings.average) == (1e-3, 10, 0.0)
    assert (settings.epochs, settings.seed) == (7, 3)
    assert settings_for("periodic").average > 0
