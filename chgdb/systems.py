"""The systems of the source paper, which predict properties from latents and from the composition.

    latent-cnn            residual 3D convolutions over the latent alone
    magpie-lightgbm       boosted trees over the composition alone
    latent-lightgbm       trees over the principal components of the latent and the composition
    attention-cnn         residual 3D convolutions with attention, and a branch for the composition
    composition-symmetry  trees over composition and space group: what a density has to beat
    pooled-lightgbm       that, and the mean and the spread of each channel of the latent

All learn from `SystemData`, the same rows for each. What is fitted (scalers, principal components,
ranges of the targets, weights) sees the rows of the part "train" only; the rows of "val" choose
hyperparameters and the moment to stop; those of "test" are not looked at.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from chgdb import __version__
from chgdb.composition import COMPOSITION_FEATURES
from chgdb.errors import InputError, MissingExtraError, ModelError
from chgdb.files import reason, replacing, shown
from chgdb.schema import PROPERTIES
from chgdb.scores import score
from chgdb.system_inputs import (
    TARGETS,
    SystemData,
    fit_components,
    fit_scaler,
    system_data,
    tree_features,
)
from chgdb.system_models import (
    RECIPES,
    SYSTEMS,
    Fill,
    Recipe,
    System,
    SystemConfig,
    build_network,
    build_system,
    lightgbm_module,
    network_inputs,
    one_thread,
)
from chgdb.weights import WEIGHTS_FILE, packed, unpacked

if TYPE_CHECKING:
    import lightgbm
    from torch import Tensor

__all__ = [
    "SYSTEMS",
    "TARGETS",
    "Progress",
    "System",
    "SystemData",
    "TrainOptions",
    "system_data",
    "train",
]

Array = NDArray[np.float64]
Progress = Callable[[str], None]
"""Called with one line now and then."""

CHECKPOINT_FILE = "checkpoint.safetensors"

_COMPONENTS = (8, 16, 32, 64, 128, 256, 512)
"""Numbers of principal components to choose from, as far as there are rows; the paper has 512."""


@dataclass(frozen=True)
class TrainOptions:
    """How the systems are trained.

    Attributes:
        epochs: passes of a network over the training rows, at most; its rate falls to zero there.
        trials: settings that trees are tried with; with 0, default ones are taken.
        widths: channels of the stages of a network; `chgdb.property_nets.PAPER_WIDTHS` in the
            paper, of which the default is a quarter: 1 MB instead of 16.
        fill: what a network sees beside the cell in the box of the latent: "crystal", the cell
            repeated, or "zeros" as in the paper.

    Raises:
        InputError: a value makes no sense.
    """

    epochs: int = 60
    trials: int = 40
    widths: tuple[int, ...] = (16, 32, 64)
    fill: Fill = "crystal"

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.epochs < 1 or self.trials < 0 or not self.widths or min(self.widths) < 1:
            raise InputError("epochs and widths must be positive, trials not negative")
        if self.fill not in get_args(Fill):
            raise InputError(f"fill {self.fill!r}: use {' or '.join(get_args(Fill))}")


class _Trained(NamedTuple):
    """What training gives: files, settings of the system, notes for the record."""

    files: dict[str, bytes]
    settings: dict[str, Any]
    notes: dict[str, Any]


def train(
    name: str,
    data: SystemData,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    options: TrainOptions | None = None,
    progress: Progress | None = None,
) -> System:
    """Train a system on the rows "train"; those of "val" choose, those of "test" are not seen.

    The same data, seed and options give the same system, whatever the number of cores.

    Args:
        name: one of `SYSTEMS`.
        data: all rows; a row without a reference for a target is left out for this target alone.
        seed: of weights, order of the rows, and search.
        out: folder that gets the system with a card. A network leaves a checkpoint there after
            every epoch, from which an interrupted run is taken up.
        options: how to train.
        progress: called with a line per epoch or trial.

    Raises:
        InputError: there is no such system, there are too few rows, or `out` holds another run.
        ModelError: the training diverged, or the result cannot be written.
        MissingExtraError: LightGBM, Optuna or torch is not installed.
    """
    from threadpoolctl import threadpool_limits

    options = options or TrainOptions()
    if name not in RECIPES:
        raise InputError(f"no system {name!r}: there are {', '.join(SYSTEMS)}")
    if seed < 0:
        raise InputError("the seed must not be negative")
    _check_rows(data)
    recipe = RECIPES[name]
    start = time.perf_counter()
    if recipe.kind == "trees":
        with threadpool_limits(1):
            trained = _TreeTrainer(name, data, seed, options.trials, progress).run()
    else:
        trained = _train_network(name, data, seed, Path(out) if out else None, options, progress)
    training = {
        "seed": seed,
        **trained.notes,
        "rows": {part: data.split.count(part) for part in ("train", "val")},
        "materials": _fingerprint([data.part("train").ids, data.part("val").ids]),
        "seconds": round(time.perf_counter() - start),
        "versions": _versions(recipe),
    }
    config = SystemConfig(
        name=name,
        encoder=data.encoder if recipe.takes_latents else "",
        latent_shape=data.latents.shape[1:],
        settings=trained.settings,
        files={n: hashlib.sha256(content).hexdigest() for n, content in trained.files.items()},
        training=training,
    )
    system = build_system(config, trained.files)
    if out is not None:
        system.save(out, _card(system, data, seed, options))
        (Path(out) / CHECKPOINT_FILE).unlink(missing_ok=True)
    return system


def _check_rows(data: SystemData) -> None:
    """Refuse data from which nothing can be learnt or chosen."""
    for part, least in (("train", 8), ("val", 1)):
        targets = data.targets[[row for row, name in enumerate(data.split) if name == part]]
        known = np.isfinite(targets).sum(axis=0)
        fewest = int(known.argmin())
        if known[fewest] < least:
            raise InputError(
                f"{known[fewest]} rows of the part {part!r} have a reference for "
                f"{TARGETS[fewest]}; at least {least} are needed"
            )
        spread = np.nanmax(targets, axis=0) - np.nanmin(targets, axis=0)
        if part == "train" and spread.min() <= 0:
            raise InputError(f"{TARGETS[int(spread.argmin())]} is the same in all training rows")


def _fingerprint(values: Sequence[Any], *arrays: NDArray[Any]) -> str:
    """A hash of numbers, texts and arrays."""
    digest = hashlib.sha256(json.dumps(values).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _versions(recipe: Recipe) -> dict[str, str]:
    from importlib.metadata import version

    names = ["numpy", *(["lightgbm", "optuna"] if recipe.kind == "trees" else ["torch"])]
    python = {"chgdb": __version__, "python": platform.python_version()}
    return python | {name: version(name) for name in names}


def _card(system: System, data: SystemData, seed: int, options: TrainOptions) -> str:
    """The README.md of a system: what it is, from what, how good, made how."""
    config = system.config
    recipe = RECIPES[config.name]
    rows = config.training["rows"]
    units = {column.name: column.unit for column in PROPERTIES}
    used = f"--seed {seed}"
    if recipe.kind == "trees":
        used += f" --trials {options.trials}"
    else:
        widths = ",".join(map(str, options.widths))
        used += f" --epochs {options.epochs} --widths {widths} --fill {options.fill}"
    encoder, _, sha256 = config.encoder.partition(" ")
    text = f"""# {config.name}

{recipe.text[0].upper()}{recipe.text[1:]}.
One of the systems that follow arXiv 2605.07227, to be compared on the same rows (docs/properties.md
has the comparison); the model that chgdb predicts with is another.

## Data

{rows["train"]} materials to learn from and {rows["val"]} to choose settings and the moment to stop:
those of the store that have a part of the paper's split. Properties: Materials Project, CC BY 4.0.
"""
    if encoder:
        text += f"Latents of the encoder {encoder}, weights {sha256[:12]}.\n"
    text += "\n## Scores\n\n| part | target | n | R2 | MAE | RMSE |\n" + "| --- " * 6 + "|\n"
    for part in ("val", "test"):
        some = data.part(part)
        predicted = system.predict(some)
        for column, target in enumerate(TARGETS):
            found = score(some.targets[:, column], predicted[target].to_numpy())
            if found.n:
                text += (
                    f"| {part} | {target} ({units[target]}) | {found.n} | {found.r2:.3f} "
                    f"| {found.mae:.3g} | {found.rmse:.3g} |\n"
                )
    return f"""{text}
The rows "val" chose the settings, so their scores are too good.

## Training

```
chgdb train system {config.name} {used} -o models/{config.name}
```

```json
{json.dumps({"settings": config.settings, "training": config.training}, indent=2)}
```
"""


# ---------------------------------------------------------------------- trees

_FIRST_TREES: dict[str, Any] = {
    "learning_rate": 0.05,
    "num_leaves": 8,
    "min_data_in_leaf": 8,
    "feature_fraction": 0.4,
    "bagging_fraction": 0.8,
    "lambda_l2": 1.0,
}
"""What is tried first, or taken if nothing is to be tried."""

_FIXED_TREES: dict[str, Any] = {
    "objective": "regression",
    "metric": "rmse",
    "bagging_freq": 1,
    "max_bin": 63,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
_ROUNDS = 400
_STALE_ROUNDS = 40


class _TreeTrainer:
    """The trees of one system: a search over settings, judged on the validation rows."""

    def __init__(
        self, name: str, data: SystemData, seed: int, trials: int, progress: Progress | None
    ) -> None:
        self.name = name
        self.seed = seed
        self.trials = trials
        self.progress = progress
        self.parts = [data.part("train"), data.part("val")]
        self.inputs = RECIPES[name].inputs
        self.tensors: dict[str, NDArray[Any]] = {}
        if "latent" in self.inputs:
            self.tensors = _fit_latents(self.parts[0])
        # from the numbers as they are stored
        stored = unpacked(packed(self.tensors))
        self.features = [tree_features(self.inputs, part, stored) for part in self.parts]

    def run(self) -> _Trained:
        choices: list[int] = []
        if self.tensors:
            there = len(self.tensors["latent/components"])
            choices = sorted({min(number, there) for number in _COMPONENTS})
        settings = dict(_FIRST_TREES)
        if choices:
            settings["components"] = choices[min(1, len(choices) - 1)]
        if self.trials:
            settings = self._search(settings, choices)
        boosters, error = self._fit(settings)
        files = {}
        if self.tensors:
            components = self.tensors["latent/components"][: settings["components"]]
            files[WEIGHTS_FILE] = packed(self.tensors | {"latent/components": components})
        for target, booster in zip(TARGETS, boosters, strict=True):
            text = booster.model_to_string(num_iteration=booster.best_iteration)
            files[f"{target}.txt"] = text.encode()
        notes = {
            "trials": self.trials,
            "rounds": [int(booster.best_iteration) for booster in boosters],
            "best_validation": round(error, 6),
        }
        return _Trained(files, settings, notes)

    def _search(self, first: dict[str, Any], choices: Sequence[int]) -> dict[str, Any]:
        """The settings with the lowest validation error."""
        try:
            import optuna
        except ImportError as error:
            raise MissingExtraError("the search for settings of trees", "ml") from error

        def objective(trial: optuna.Trial) -> float:
            asked: dict[str, Any] = {
                "learning_rate": trial.suggest_float("learning_rate", 0.03, 0.2, log=True),
                "num_leaves": trial.suggest_int("num_leaves", 4, 12),
                "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 3, 30),
                "feature_fraction": trial.suggest_float("feature_fraction", 0.1, 1.0),
                "bagging_fraction": trial.suggest_float("bagging_fraction", 0.5, 1.0),
                "lambda_l2": trial.suggest_float("lambda_l2", 1e-2, 30.0, log=True),
            }
            if choices:
                asked["components"] = trial.suggest_categorical("components", list(choices))
            _, error = self._fit(asked)
            if self.progress:
                self.progress(
                    f"{self.name}: trial {trial.number + 1}/{self.trials}, "
                    f"validation {error:.4g} (RMSE / spread)"
                )
            return error

        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=self.seed))
            study.enqueue_trial(first)
            study.optimize(objective, n_trials=self.trials)
        finally:
            optuna.logging.set_verbosity(level)
        return dict(study.best_params)

    def _fit(self, settings: Mapping[str, Any]) -> tuple[list[lightgbm.Booster], float]:
        """A booster per target, and the mean over the targets of validation RMSE / spread."""
        module = lightgbm_module()
        parameters = {**_FIXED_TREES, **settings, "seed": self.seed}
        components = parameters.pop("components", None)
        features = [
            np.concatenate([x[:, :components] if k == "latent" else x for k, x in part.items()], 1)
            for part in self.features
        ]
        boosters, errors = [], []
        for column in range(len(TARGETS)):
            (x, y), (x_val, y_val) = (
                (values[known], rows.targets[known, column])
                for values, rows in zip(features, self.parts, strict=True)
                for known in [np.isfinite(rows.targets[:, column])]
            )
            booster = module.train(
                parameters,
                module.Dataset(x, y),
                num_boost_round=_ROUNDS,
                valid_sets=[module.Dataset(x_val, y_val)],
                valid_names=["val"],
                callbacks=[module.early_stopping(_STALE_ROUNDS, verbose=False)],
            )
            boosters.append(booster)
            errors.append(booster.best_score["val"]["rmse"] / y.std())
        return boosters, float(np.mean(errors))


def _fit_latents(rows: SystemData) -> dict[str, NDArray[Any]]:
    """Principal components of the latents and the scaler of the composition."""
    mean, std = fit_scaler(rows.composition)
    return {
        **fit_components(rows.latents, max(_COMPONENTS)),
        "composition/mean": mean.astype(np.float32),
        "composition/std": std.astype(np.float32),
    }


# ---------------------------------------------------------------------- networks

_BATCH = 16
_LEARNING_RATE = 2e-3
_WARM_UP = 50
"""Steps until the rate is reached."""
_WEIGHT_DECAY = 1e-2
_AVERAGE = 0.98
"""Decay of the running average of the weights that is validated and kept."""
_STALE_EPOCHS = 40


def _train_network(
    name: str,
    data: SystemData,
    seed: int,
    folder: Path | None,
    options: TrainOptions,
    progress: Progress | None,
) -> _Trained:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("a convolutional network", "ml") from error
    with torch.random.fork_rng(devices=[]), one_thread():
        return _NetworkTrainer(name, data, seed, folder, options, progress).run()


class _NetworkTrainer:
    """One training of a network, whose every epoch is a function of (seed, epoch)."""

    def __init__(
        self,
        name: str,
        data: SystemData,
        seed: int,
        folder: Path | None,
        options: TrainOptions,
        progress: Progress | None,
    ) -> None:
        import torch

        self.name = name
        self.recipe = RECIPES[name]
        self.seed = seed
        self.folder = folder
        self.options = options
        self.progress = progress
        self.train, self.validation = data.part("train"), data.part("val")
        self.ranges, low, high = _fit_ranges(self.train)
        self.targets, self.validation_targets = (
            torch.from_numpy(((rows.targets - low) / (high - low)).astype(np.float32))
            for rows in (self.train, self.validation)
        )
        self.spread = np.nanstd(self.targets.numpy(), axis=0)
        branch = len(COMPOSITION_FEATURES) if "composition" in self.recipe.inputs else 0
        self.arguments: dict[str, Any] = {
            "channels": data.latents.shape[1],
            "widths": list(options.widths),
            "attention": bool(branch),
            "composition": branch,
            "dense": [256, 128],
            "head": [128],
            "targets": len(TARGETS),
        }
        torch.manual_seed(seed)
        self.net = build_network(self.arguments)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), weight_decay=_WEIGHT_DECAY)
        self.average = self._copy()
        self.best_weights = self._copy()
        self.best = math.inf
        self.epoch = 0
        self.stale = 0
        self.steps = 0

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.net.state_dict().items()}

    def run(self) -> _Trained:
        checkpoint = _Checkpoint(self)
        checkpoint.restore()
        start = time.perf_counter()
        while self.epoch < self.options.epochs and self.stale < _STALE_EPOCHS:
            loss = self._step()
            error = self._validate()
            self.epoch += 1
            checkpoint.save()
            if self.progress:
                self.progress(
                    f"{self.name}: epoch {self.epoch}/{self.options.epochs}, loss {loss:.4g}, "
                    f"validation {error:.4g} (best {self.best:.4g}; RMSE / spread), "
                    f"{time.perf_counter() - start:.0f} s"
                )
        if not math.isfinite(self.best):
            raise ModelError(f"{self.name}: the training diverged")
        tensors = dict(self.ranges)
        for name, value in self.best_weights.items():
            array = value.numpy()
            tensors[name] = array.astype(np.float16) if array.ndim > 1 else array
        settings = {"net": self.arguments, "fill": self.options.fill}
        notes = {"epochs": self.epoch, "best_validation": round(self.best, 6)}
        return _Trained({WEIGHTS_FILE: packed(tensors)}, settings, notes)

    def _step(self) -> float:
        """One epoch; returns the mean loss."""
        import torch

        self.net.train()
        rng = np.random.default_rng([self.seed, self.epoch])
        torch.manual_seed(self.seed * 100_003 + self.epoch)
        order = rng.permutation(len(self.train))
        batches = np.array_split(order, max(1, len(order) // _BATCH))
        losses = []
        for number, batch in enumerate(batches):
            done = (self.epoch + number / len(batches)) / self.options.epochs
            rate = _LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * done))
            for group in self.optimizer.param_groups:
                group["lr"] = rate * min(1.0, (self.steps + 1) / _WARM_UP)
            rows = _moved(self.train.take(batch), rng)
            output = self.net(*network_inputs(self.recipe, rows, self.ranges, self.options.fill))
            target = self.targets[batch]
            loss = (output - target)[torch.isfinite(target)].square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            self.steps += 1
            self._update_average()
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    def _update_average(self) -> None:
        decay = min(_AVERAGE, (self.steps + 1) / (self.steps + 10))
        for name, value in self.net.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1.0 - decay)
            else:
                self.average[name].copy_(value)

    def _validate(self) -> float:
        """Error of the averaged weights on the validation rows; keeps the best."""
        import torch

        current = self._copy()
        self.net.load_state_dict(self.average)
        self.net.eval()
        outputs = []
        with torch.inference_mode():
            for row in range(len(self.validation)):
                part = self.validation.take([row])
                inputs = network_inputs(self.recipe, part, self.ranges, self.options.fill)
                outputs.append(self.net(*inputs).clamp(0, 1))
        errors = (torch.cat(outputs) - self.validation_targets).square().numpy()
        error = float(np.mean(np.sqrt(np.nanmean(errors, axis=0)) / self.spread))
        if error < self.best:
            self.best, self.stale, self.best_weights = error, 0, self._copy()
        else:
            self.stale += 1
        self.net.load_state_dict(current)
        return error


class _Checkpoint:
    """The state of a run as one file, which is there whole or not at all."""

    def __init__(self, run: _NetworkTrainer) -> None:
        self.run = run
        self.path = run.folder / CHECKPOINT_FILE if run.folder else None
        train, validation = run.train, run.validation
        self.identity = _fingerprint(
            [run.name, run.seed, run.arguments, run.options.epochs, run.options.fill],
            *(train.latents, train.composition, train.targets, train.extents),
            *(validation.latents, validation.composition, validation.targets),
        )

    def save(self) -> None:
        """Write the state.

        Raises:
            ModelError: it cannot be written.
        """
        if self.path is None:
            return
        from safetensors.torch import save_file

        run = self.run
        slots = {
            f"{index}/{name}": value
            for index, slot in run.optimizer.state_dict()["state"].items()
            for name, value in slot.items()
        }
        parts = {"net": run.net.state_dict(), "average": run.average, "best": run.best_weights}
        tensors = {
            f"{part}/{name}": value.contiguous()
            for part, values in (*parts.items(), ("optimizer", slots))
            for name, value in values.items()
        }
        state = {name: getattr(run, name) for name in ("epoch", "stale", "steps", "best")}
        metadata = {"run": self.identity, "state": json.dumps(state)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelError(f"{shown(self.path)}: cannot be written ({reason(error)})") from error
        with replacing(self.path, ModelError) as partial:
            save_file(tensors, partial, metadata)

    def restore(self) -> None:
        """Take up the run, if there is one.

        Raises:
            InputError: it is damaged, or another run.
        """
        if self.path is None or not self.path.exists():
            return
        from safetensors import SafetensorError, safe_open

        path = shown(self.path)
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("run") != self.identity:
                raise InputError(
                    f"{path}: of a run with other settings or other materials; use another folder"
                )
            self._load(json.loads(metadata["state"]), tensors)
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise InputError(
                f"{path}: damaged ({reason(error)[:200]}); remove it to start again"
            ) from error

    def _load(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        run = self.run
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = tensor
        slots: dict[int, dict[str, Tensor]] = {}
        for key, tensor in parts["optimizer"].items():
            index, _, name = key.partition("/")
            slots.setdefault(int(index), {})[name] = tensor
        for part in ("best", "average", "net"):
            run.net.load_state_dict(parts[part])
        run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": slots})
        run.average, run.best_weights = parts["average"], parts["best"]
        run.epoch, run.stale, run.steps = (int(state[n]) for n in ("epoch", "stale", "steps"))
        run.best = float(state["best"])


def _fit_ranges(rows: SystemData) -> tuple[dict[str, NDArray[Any]], Array, Array]:
    """What the training rows say of the scales, by the names of the stored tensors."""
    mean, std = fit_scaler(rows.composition)
    low, high = np.nanmin(rows.targets, axis=0), np.nanmax(rows.targets, axis=0)
    largest = max(float(np.abs(rows.latents).max()), 1e-12)
    ranges = {
        "latent/maximum": np.array(largest),
        "composition/mean": mean,
        "composition/std": std,
        "target/low": low,
        "target/high": high,
    }
    return {name: array.astype(np.float32) for name, array in ranges.items()}, low, high


def _moved(rows: SystemData, rng: np.random.Generator) -> SystemData:
    """The same crystals from other origins: rolls of their cells by whole points of the latent."""
    for latent, extent in zip(rows.latents, rows.extents, strict=True):
        if extent.all():
            cell = latent[:, : extent[0], : extent[1], : extent[2]]
            cell[...] = np.roll(cell, rng.integers(extent), (1, 2, 3))
    return rows
