"""Training of the encoders on folders of densities: `chgdb train encoder`.

Every epoch is a function of (seed, epoch), so a run that is interrupted and resumed takes the same
samples as one that is not.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from chgdb.codec import (
    BOX,
    Codec,
    PaperCodec,
    PeriodicCodec,
    boxed_vasp_grid,
    build_codec,
    build_net,
    select_device,
    signed_sqrt,
)
from chgdb.density import ChargeDensity, Grid
from chgdb.errors import InputError, ModelError
from chgdb.files import reason, replacing
from chgdb.formats import default_id, find_densities, read_density
from chgdb.grid import fourier_resample, shift_origin, zero_pad
from chgdb.intake import read_properties
from chgdb.metrics import nmae
from chgdb.nets import Autoencoder, PeriodicNet
from chgdb.weights import EncoderConfig, save_encoder

__all__ = [
    "Sample",
    "TrainSettings",
    "axis_rotations",
    "encoder_config",
    "evaluate_encoder",
    "load_samples",
    "settings_for",
    "split_of",
    "train_encoder",
]

Field = NDArray[np.float32]
STATE_FILE = "state.json"
CHECKPOINT_FILE = "checkpoint.safetensors"

_PROGRESS: dict[str, Callable[[Any], float]] = {
    "epoch": int,
    "steps": int,
    "stale": int,
    "best": float,
    "factor": float,
    "seconds": float,
}
"""Attributes of a run that its state file keeps."""

_DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading a damaged state raises."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One material with its density, for training or for measuring."""

    id: str
    density: ChargeDensity


@dataclass(frozen=True)
class TrainSettings:
    """How an encoder is trained.

    Attributes:
        epochs: passes over the training materials; the cosine schedule of `periodic` ends there.
        batch_points: grid points in one optimiser step.
        learning_rate: of Muon (`periodic`) or Adam (`paper`), at its peak.
        patience: epochs without a better validation error after which training stops.
        average: decay of the running average of the weights that is validated and kept (0: none).
        full_precision_epochs: last epochs in float32; those before multiply in bfloat16.
        box_margin: empty points kept beside a cell when `paper` is trained (its box is 128^3, but
            a convolution of zeros far from the cell teaches nothing).
        seed: of weights and of the order and augmentation of the samples.

    Raises:
        InputError: a value makes no sense.
    """

    epochs: int = 72
    batch_points: int = 100_000
    learning_rate: float = 4e-3
    patience: int = 30
    average: float = 0.998
    full_precision_epochs: int = 5
    box_margin: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_points, self.patience) < 1 or not self.learning_rate > 0:
            raise InputError("epochs, batch_points, patience and learning_rate must be positive")
        if not 0 <= self.average < 1 or min(self.box_margin, self.seed) < 0:
            raise InputError("average must be in [0, 1), box_margin and seed not negative")


def encoder_config(kind: str, latent_size: int = 16) -> EncoderConfig:
    """A configuration with the published latent size, or (8, 8, 8, 8) or (32, 32, 32, 32).

    Raises:
        InputError: another kind or size.
    """
    if kind not in ("periodic", "paper") or latent_size not in (8, 16, 32):
        raise InputError(
            f"no encoder {kind} with a latent of {latent_size}: kinds are periodic and paper, "
            "sizes 8, 16 and 32"
        )
    stages = {8: 4, 16: 3, 32: 2}[latent_size]
    net: dict[str, Any] = {"latent_channels": latent_size}
    if kind == "paper":
        net["widths"] = [16, 32, 32, 32][:stages]
    else:
        net["widths"] = [32, 96, 160, 192][:stages]
        net["encoder_blocks"] = [1, 1, 2, 2][:stages]
        net["decoder_blocks"] = [2, 3, 3, 3][:stages]
    size = latent_size
    refine_steps = 0 if kind == "paper" else 24
    shape = (size, size, size, size)
    return EncoderConfig(f"{kind}-{size}", kind, shape, net, refine_steps=refine_steps)


def settings_for(kind: str, *, epochs: int = 72, seed: int = 0) -> TrainSettings:
    """The settings that suit an encoder; `paper` has those of its paper where it gives them."""
    settings = TrainSettings(epochs=epochs, full_precision_epochs=min(5, epochs // 10), seed=seed)
    if kind == "paper":
        return replace(settings, batch_points=300_000, learning_rate=1e-3, patience=10, average=0.0)
    return settings


def load_samples(
    paths: Sequence[str | Path], properties: str | Path | None = None
) -> dict[str, list[Sample]]:
    """Density files in three parts, "train", "val" and "test".

    Args:
        paths: files, folders and globs.
        properties: CSV whose column `split` decides where it names a material.

    Raises:
        InputError: a file cannot be read, or the table names a part that there is not.
    """
    table = read_properties(properties) if properties else {}
    splits = {name: row["split"] for name, row in table.items() if "split" in row}
    parts: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for path in find_densities(paths):
        density, _ = read_density(path)
        sample = Sample(default_id(path, density.structure), density)
        part = split_of(sample.id, splits)
        if part not in parts:
            raise InputError(
                f"{properties}: {sample.id} is in no part {part!r}; use train, val, test"
            )
        parts[part].append(sample)
    return parts


def split_of(material_id: str, splits: Mapping[str, str]) -> str:
    """The part a material belongs to: as the table says, else 80/10/10 by the hash of its id."""
    if material_id in splits:
        return splits[material_id]
    bucket = int(hashlib.sha256(material_id.encode()).hexdigest(), 16) % 10
    return {8: "val", 9: "test"}.get(bucket, "train")


def axis_rotations() -> list[tuple[int, tuple[int, int]]]:
    """The 12 rotations of the paper: 0, 90, 180 and 270 degrees about each axis, for np.rot90."""
    return [(k, plane) for plane in ((1, 2), (0, 2), (0, 1)) for k in range(4)]


class _Task:
    """What differs between the encoders: augmentation, batches and loss."""

    metric: ClassVar[str]
    """What `validate` returns."""

    def __init__(
        self,
        codec: Codec,
        train: Sequence[Sample],
        validation: Sequence[Sample],
        settings: TrainSettings,
    ) -> None:
        self.codec = codec
        self.settings = settings
        self.validation = validation
        self.fields = [self._prepare(sample.density) for sample in train]

    def _prepare(self, density: ChargeDensity) -> NDArray[np.float64] | Field:
        raise NotImplementedError

    def batches(self, rng: np.random.Generator) -> Iterator[Tensor]:
        """Augmented batches of one epoch, each (batch, 1, n1, n2, n3)."""
        raise NotImplementedError

    def loss(self, net: Autoencoder, batch: Tensor) -> Tensor:
        """What the optimiser lowers."""
        raise NotImplementedError

    def validate(self) -> float:
        """The error that decides which weights are kept and when training stops."""
        raise NotImplementedError

    def _grouped(
        self, shapes: Sequence[tuple[int, ...]], rng: np.random.Generator
    ) -> list[list[int]]:
        """Indices in batches of equal shape that hold about `batch_points` points."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i in rng.permutation(len(shapes)):
            groups.setdefault(shapes[i], []).append(int(i))
        batches = []
        for shape, members in groups.items():
            size = max(1, round(self.settings.batch_points / math.prod(shape)))
            batches += [members[i : i + size] for i in range(0, len(members), size)]
        return [batches[i] for i in rng.permutation(len(batches))]


class _PeriodicTask(_Task):
    """Random origin, all 48 relabellings of the axes, NMAE loss, noise as of 8-bit storage."""

    metric = "median NMAE, %"

    def _prepare(self, density: ChargeDensity) -> NDArray[np.float64]:
        values = fourier_resample(density.values, self.codec.work_grid(density.structure.lattice))
        values = values / values.mean()
        order = np.argsort(values.shape, kind="stable")
        return np.ascontiguousarray(values.transpose(order))

    def batches(self, rng: np.random.Generator) -> Iterator[Tensor]:
        for members in self._grouped([field.shape for field in self.fields], rng):
            rows = []
            for i in members:
                field = self.fields[i].astype(np.float64)
                if rng.random() < 0.5:
                    field = shift_origin(field, rng.random(3))
                shape = field.shape
                axes = list(rng.permutation(3))
                swapped = field.transpose(axes)
                if swapped.shape == shape:
                    field = swapped
                flips = tuple(axis for axis in range(3) if rng.random() < 0.5)
                rows.append(signed_sqrt(np.flip(field, flips)))
            batch = np.stack(rows)[:, None].astype(np.float32)
            order = [0, 1, *(2 + rng.permutation(3))]
            yield torch.from_numpy(np.ascontiguousarray(batch.transpose(order)))

    def loss(self, net: Autoencoder, batch: Tensor) -> Tensor:
        z = net.encode(batch)
        noise = (torch.rand_like(z, dtype=torch.float32) - 0.5) * (self.codec.storage[1] or 0.0)
        y = net.decode(z + noise.to(z.dtype)).float()
        axes = (1, 2, 3, 4)
        target = batch * batch.abs()
        error = (y * y.abs() - target).abs().sum(axes) / target.abs().sum(axes)
        return error.mean() + (y - batch).abs().mean()

    def validate(self) -> float:
        errors = []
        for sample in self.validation:
            try:
                errors.append(evaluate_encoder(self.codec, [sample])[sample.id]["nmae"])
            except ModelError:  # of a network that has learnt nothing yet
                errors.append(math.inf)
        return float(np.median(errors))


class _PaperTask(_Task):
    """The published recipe: 12 axis rotations, zero-padded box, mean squared error."""

    metric = "MSE, (e/A^3)^2"

    def _prepare(self, density: ChargeDensity) -> Field:
        return self.codec.to_field(density)

    def batches(self, rng: np.random.Generator) -> Iterator[Tensor]:
        rotations = axis_rotations()
        turns = [rotations[i] for i in rng.integers(len(rotations), size=len(self.fields))]
        fields = [np.rot90(f, *turn) for f, turn in zip(self.fields, turns, strict=True)]
        boxes = [self._box(field) for field in fields]
        for members in self._grouped(boxes, rng):
            yield torch.cat([self._padded(fields[i]) for i in members])

    def loss(self, net: Autoencoder, batch: Tensor) -> Tensor:
        return torch.nn.functional.mse_loss(net(batch).float(), batch)

    def validate(self) -> float:
        net = self.codec.net
        with torch.inference_mode():
            batches = [
                self._padded(self._prepare(sample.density)).to(self.codec.device)
                for sample in self.validation
            ]
            return float(np.mean([float(self.loss(net, batch)) for batch in batches]))

    def _box(self, field: Field) -> Grid:
        factor, margin = self.codec.net.factor, self.settings.box_margin
        n1, n2, n3 = (min(BOX, factor * math.ceil((n + margin) / factor)) for n in field.shape)
        return n1, n2, n3

    def _padded(self, field: Field) -> Tensor:
        box = zero_pad(field, self._box(field)).astype(np.float32)
        return torch.from_numpy(box[None, None])


def evaluate_encoder(codec: Codec, samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Errors per material after storage.

    Returns:
        id -> `nmae`, %, on the material's own grid and with its electrons; `box_mse`, (e/A^3)^2,
        and `box_mae`, e/A^3, averaged over a box of 128^3 points with the cell on VASP's grid in
        one corner, as the paper gives them: for `paper` of the network's raw output, also where
        the box is empty; for `periodic`, which has no box, of its density with zeros around it.
    """
    errors = {}
    for sample in samples:
        density = sample.density
        (latent,) = map(codec.stored, codec.encode([density]))
        (output,) = codec.decode_box([latent])
        decoded = codec.density_from_box(output, latent, density.structure)
        grid = boxed_vasp_grid(density.structure.lattice)
        difference = -fourier_resample(density.values, grid)
        if isinstance(codec, PaperCodec):
            difference = output + zero_pad(difference, output.shape)
        else:
            difference += fourier_resample(decoded.values, grid)
        errors[sample.id] = {
            "nmae": nmae(fourier_resample(decoded.values, density.grid), density.values),
            "box_mse": float(np.square(difference).sum()) / BOX**3,
            "box_mae": float(np.abs(difference).sum()) / BOX**3,
        }
    return errors


def train_encoder(
    config: EncoderConfig,
    train: Sequence[Sample],
    validation: Sequence[Sample],
    folder: str | Path,
    settings: TrainSettings,
    *,
    device: str = "auto",
    resume: bool = True,
    report: Callable[[str], None] | None = None,
) -> EncoderConfig:
    """Train an encoder and write it to `folder`.

    Args:
        config: the network to train.
        train: materials to learn from.
        validation: materials that decide which weights are kept and when training stops.
        folder: gets the encoder, and a checkpoint after every epoch.
        settings: how to train.
        device: a name for `select_device`.
        resume: take up the run in `folder`, if there is one; its weights come out as if it had not
            been interrupted.
        report: called with one line per epoch.

    Returns:
        The configuration that was written, with the hash of the weights.

    Raises:
        InputError: no materials, or the run in `folder` is damaged or has another encoder, other
            settings or other materials.
        ModelError: the training diverged, or its result cannot be written.
    """
    if not train or not validation:
        raise InputError("training needs at least one material to train on and one to validate on")
    device = select_device(device)
    torch.manual_seed(settings.seed)
    codec = build_codec(replace(config, refine_steps=0), build_net(config), device)
    task_class = _PeriodicTask if isinstance(codec, PeriodicCodec) else _PaperTask
    materials = [[sample.id for sample in samples] for samples in (train, validation)]
    run = _Run(task_class(codec, train, validation, settings), Path(folder), materials)
    if resume:
        run.restore()
    while run.epoch < settings.epochs and run.stale < settings.patience:
        line = run.step()
        if report:
            report(line)
        run.save()
    if not math.isfinite(run.best):
        raise ModelError(f"{folder}: the training diverged; lower the learning rate")
    training = {
        **asdict(settings),
        "materials": len(train),
        "epochs_run": run.epoch,
        "best_validation": {run.task.metric: round(run.best, 6)},
        "seconds": round(run.seconds),
        "device": device,
    }
    return save_encoder(run.folder, replace(config, training=training), run.best_weights)


class _Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per convolution; plain Adam for the biases.

    The update of a convolution, seen as a (channel out, rest) matrix, is replaced by its nearest
    semi-orthogonal matrix (K. Jordan, "Muon", 2024), so that every layer moves by the same amount
    in the spectral norm whatever its fan-in: a network without normalisation layers then bears a
    rate at which Adam diverges. Newton-Schulz steps run on the small Gram matrix.
    """

    def __init__(self, params: Iterator[torch.nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for value in group["params"]:
                if value.ndim > 1:
                    self._step_matrix(value, value.grad, self.state[value], group["lr"])
                else:
                    self._step_vector(value, value.grad, self.state[value], 0.05 * group["lr"])

    @staticmethod
    def _step_matrix(value: Tensor, grad: Tensor, state: dict[str, Tensor], rate: float) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(value)
        momentum = state["momentum"].lerp_(grad, 0.05)
        update = grad.lerp(momentum, 0.95).flatten(1)
        value.add_(_orthogonal(update).view_as(value), alpha=-rate)

    @staticmethod
    def _step_vector(value: Tensor, grad: Tensor, state: dict[str, Tensor], rate: float) -> None:
        if not state:
            state["step"] = torch.zeros(())
            state["mean"] = torch.zeros_like(value)
            state["square"] = torch.zeros_like(value)
        state["step"] += 1
        n = float(state["step"])
        mean = state["mean"].lerp_(grad, 0.1) / (1 - 0.9**n)
        square = state["square"].lerp_(grad.square(), 0.01) / (1 - 0.99**n)
        value.sub_(rate * mean / (square.sqrt() + 1e-10))


def _orthogonal(matrix: Tensor) -> Tensor:
    """Roughly the nearest semi-orthogonal matrix: every singular value in 0.7...1.2."""
    if matrix.shape[0] > matrix.shape[1]:
        return _orthogonal(matrix.T).T
    matrix = matrix / (matrix.norm() + 1e-12)
    gram = matrix @ matrix.T
    eye = torch.eye(len(gram), dtype=matrix.dtype, device=matrix.device)
    total = eye
    for _ in range(5):
        factor = 3.4445 * eye - 4.7750 * gram + 2.0315 * gram @ gram
        gram = factor @ gram @ factor
        total = factor @ total
    return total @ matrix


class _Run:
    """The state of one training run, on disk after every epoch."""

    def __init__(self, task: _Task, folder: Path, materials: Sequence[Sequence[str]]) -> None:
        self.task = task
        self.materials = materials
        self.codec = task.codec
        self.net = task.codec.net
        self.settings = task.settings
        self.folder = folder
        self.optimizer: torch.optim.Optimizer
        if isinstance(self.net, PeriodicNet):
            self.optimizer = _Muon(self.net.parameters())
        else:
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.0, fused=True)
        self.average = self._copy()
        self.best_weights = self._copy()
        self.best = math.inf
        self.stale = 0
        self.epoch = 0
        self.steps = 0
        self.factor = 1.0
        self.seconds = 0.0

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.net.state_dict().items()}

    def _learning_rate(self, progress: float) -> float:
        """Cosine after a short warm-up for `periodic`; reduced on plateaus for `paper`."""
        if isinstance(self.task, _PaperTask):
            return self.settings.learning_rate * self.factor
        warm_up = min(1.0, (self.steps + 1) / 200)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.settings.learning_rate * warm_up * (0.01 + 0.99 * cosine)

    def step(self) -> str:
        """One epoch; returns a line that describes it."""
        start = time.perf_counter()
        settings = self.settings
        self.net.train()
        device_type = torch.device(self.codec.device).type
        low = self.epoch < settings.epochs - settings.full_precision_epochs
        rng = np.random.default_rng([settings.seed, self.epoch])
        torch.manual_seed(settings.seed * 100_003 + self.epoch)
        losses = []
        seen = 0
        for batch in self.task.batches(rng):
            progress = (self.epoch + seen / len(self.task.fields)) / settings.epochs
            rate = self._learning_rate(progress)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(device_type, dtype=torch.bfloat16, enabled=low):
                loss = self.task.loss(self.net, batch.to(self.codec.device))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            self._update_average()
            losses.append(float(loss.detach()))
            seen += len(batch)
            self.steps += 1
        error = self._validate()
        self.epoch += 1
        self.seconds += time.perf_counter() - start
        return (
            f"epoch {self.epoch}/{settings.epochs}: loss {np.mean(losses):.5g}, "
            f"validation {error:.4g} (best {self.best:.4g}; {self.task.metric}), "
            f"learning rate {rate:.2g}, {self.seconds:.0f} s"
        )

    def _update_average(self) -> None:
        decay = min(self.settings.average, (self.steps + 1) / (self.steps + 10))
        if self.settings.average == 0.0:
            decay = 0.0
        with torch.no_grad():
            current = self.net.state_dict()
            average = [self.average[name] for name in current]
            torch._foreach_lerp_(average, list(current.values()), 1.0 - decay)

    def _validate(self) -> float:
        """The validation error of the averaged weights; keeps them when they are the best yet."""
        current = self._copy()
        self.net.load_state_dict(self.average)
        self.net.eval()
        error = self.task.validate()
        if error < self.best:
            self.best, self.stale, self.best_weights = error, 0, self._copy()
        else:
            self.stale += 1
            if self.stale % 5 == 0:
                self.factor *= 0.7
        self.net.load_state_dict(current)
        return error

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with, as JSON gives it back."""
        config = self.codec.config
        names = json.dumps(self.materials).encode()
        identity = {
            "encoder": [config.id, config.kind, config.net],
            "settings": asdict(self.settings),
            "materials": hashlib.sha256(names).hexdigest(),
        }
        return dict(json.loads(json.dumps(identity)))

    def _checkpoint(self, epoch: int) -> Path:
        return self.folder / f"{epoch:05d}.{CHECKPOINT_FILE}"

    def save(self) -> None:
        """Write tensors first, then the state that makes them valid.

        Raises:
            ModelError: they cannot be written.
        """
        tensors = {f"net/{k}": v.contiguous() for k, v in self._copy().items()}
        tensors |= {f"average/{k}": v.contiguous() for k, v in self.average.items()}
        tensors |= {f"best/{k}": v.contiguous() for k, v in self.best_weights.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": v.contiguous() for k, v in slots.items()}
        state = {"run": self._identity(), **{name: getattr(self, name) for name in _PROGRESS}}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelError(f"{self.folder}: cannot be written ({reason(error)})") from error
        checkpoint = self._checkpoint(self.epoch)
        with replacing(checkpoint, ModelError, durable=True) as partial:
            save_file(tensors, partial)
        with replacing(self.folder / STATE_FILE, ModelError, durable=True) as partial:
            partial.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        for old in self.folder.glob(f"*.{CHECKPOINT_FILE}"):
            if old.name != checkpoint.name:
                old.unlink()

    def restore(self) -> None:
        """Take up the run in `folder`, if there is one.

        Raises:
            InputError: it is damaged, or has another encoder, other settings or other materials.
        """
        path = self.folder / STATE_FILE
        if not path.exists():
            return
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            if state["run"] != self._identity():
                raise InputError(
                    f"{self.folder}: holds a run with another encoder, other settings or other "
                    "materials; use another folder"
                )
            progress = {name: convert(state[name]) for name, convert in _PROGRESS.items()}
            self._load(load_file(self._checkpoint(int(progress["epoch"]))))
        except (*_DAMAGE, SafetensorError) as error:
            raise InputError(
                f"{self.folder}: the run there is damaged ({reason(error)[:200]}); use another "
                "folder, or start again with --no-resume"
            ) from error
        for name, value in progress.items():
            setattr(self, name, value)

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a checkpoint.

        Raises:
            KeyError: one is missing.
            ValueError: one has another shape.
        """

        def weights(part: str) -> dict[str, Tensor]:
            loaded = {name: tensors[f"{part}/{name}"] for name in self.average}
            for name, tensor in loaded.items():
                if tensor.shape != self.average[name].shape:
                    raise ValueError(f"{part}/{name} has the shape {tuple(tensor.shape)}")
            return {name: tensor.to(self.codec.device) for name, tensor in loaded.items()}

        slots: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            if part == "optimizer":
                index, _, slot = name.partition("/")
                slots.setdefault(int(index), {})[slot] = tensor
        parameters = list(self.net.parameters())
        if sorted(slots) != list(range(len(parameters))):
            raise KeyError("the state of the optimiser")
        for number, parameter in enumerate(parameters):
            if not {slot.shape for slot in slots[number].values()} <= {parameter.shape, ()}:
                raise ValueError(f"optimizer/{number} has another shape")
        net, average, best = weights("net"), weights("average"), weights("best")
        self.net.load_state_dict(net)
        self.average, self.best_weights = average, best
        optimizer = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**optimizer, "state": slots})
