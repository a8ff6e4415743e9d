"""Trained systems: a folder on disk and predictions from it.

A folder holds `config.json` with the hash of every other file, tensors as safetensors, trees as
LightGBM text, and a card. Nothing in it runs code. A system that was just trained is built from the
same bytes that are written, so it predicts what it predicts after loading, to the last bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chgdb.composition import COMPOSITION_FEATURES
from chgdb.errors import FormatVersionError, InputError, MissingExtraError, ModelError
from chgdb.files import reason, write_files
from chgdb.system_inputs import TARGETS, SystemData, repeated, tree_features
from chgdb.trees import load_trees
from chgdb.weights import CONFIG_FILE, WEIGHTS_FILE, unpacked

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from chgdb.property_nets import PropertyNet

__all__ = [
    "CARD_FILE",
    "RECIPES",
    "SYSTEMS",
    "SYSTEM_FORMAT_VERSION",
    "Fill",
    "Recipe",
    "System",
    "SystemConfig",
    "build_network",
    "build_system",
    "lightgbm_module",
    "network_inputs",
    "one_thread",
]

Array = NDArray[np.float64]
Fill = Literal["crystal", "zeros"]
"""What a network sees beside the cell in the box of a latent: the crystal again, or nothing."""

FORMAT = "chgdb-system"
SYSTEM_FORMAT_VERSION = 1
CARD_FILE = "README.md"

_BACKGROUND = 8
"""Rows that expected gradients start from."""
_STEPS = 8
"""Points of the line from each."""

_NET_ARGUMENTS = {"channels", "widths", "attention", "composition", "dense", "head", "targets"}
_LARGEST_WIDTH = 1024
_MOST_WIDTHS = 6
_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError)
"""What building a system from files of another making raises."""


class Recipe(NamedTuple):
    """What a system is made of."""

    kind: Literal["trees", "network"]
    inputs: tuple[str, ...]
    """Of "latent", "pooled", "composition" and "symmetry", in the order of the features."""
    text: str

    @property
    def takes_latents(self) -> bool:
        """Whether the density has a say."""
        return not {"latent", "pooled"}.isdisjoint(self.inputs)


RECIPES = {
    "latent-cnn": Recipe(
        "network", ("latent",), "residual 3D convolutions over the latent, nothing else"
    ),
    "magpie-lightgbm": Recipe("trees", ("composition",), "LightGBM over MAGPIE, nothing else"),
    "latent-lightgbm": Recipe(
        "trees",
        ("latent", "composition"),
        "LightGBM over the principal components of the standardised latent and MAGPIE",
    ),
    "attention-cnn": Recipe(
        "network",
        ("latent", "composition"),
        "residual 3D convolutions with channel and spatial attention over the latent, dense "
        "layers over MAGPIE, one head over both",
    ),
    "composition-symmetry": Recipe(
        "trees",
        ("composition", "symmetry"),
        "LightGBM over MAGPIE, space group and crystal system: what a density has to beat",
    ),
    "pooled-lightgbm": Recipe(
        "trees",
        ("pooled", "composition", "symmetry"),
        "composition-symmetry and, of each channel of the latent, mean and standard deviation "
        "over the cell (not in the paper)",
    ),
}
"""The systems by name."""

SYSTEMS: tuple[str, ...] = tuple(RECIPES)
"""Names of the systems."""


@dataclass(frozen=True)
class SystemConfig:
    """What a trained system is.

    Attributes:
        name: one of `SYSTEMS`.
        encoder: id and hash of the encoder whose latents it takes; "" if it takes none.
        latent_shape: (channel, a, b, c) of those latents.
        settings: of the trees or the network.
        files: name of each file beside the configuration, and its SHA-256.
        training: rows, seed, versions of the libraries and more, for the record.

    Raises:
        InputError: the values have other types, or there is no such system.
    """

    name: str
    encoder: str
    latent_shape: tuple[int, ...]
    settings: dict[str, Any]
    files: dict[str, str]
    training: dict[str, Any]

    def __post_init__(self) -> None:
        if self.name not in SYSTEMS:
            raise InputError(f"no system {str(self.name)[:80]!r}: there are {', '.join(SYSTEMS)}")
        objects = (self.settings, self.files, self.training)
        if not isinstance(self.encoder, str) or not all(isinstance(o, dict) for o in objects):
            raise InputError("encoder is text; settings, files and training are objects")
        shape = self.latent_shape
        if not isinstance(shape, list | tuple) or not _small_numbers(shape) or len(shape) != 4:
            raise InputError("latent_shape is 4 numbers")
        object.__setattr__(self, "latent_shape", tuple(shape))
        if set(self.files) != set(_file_names(RECIPES[self.name])):
            raise InputError(f"the files are {', '.join(_file_names(RECIPES[self.name]))}")


def _small_numbers(values: Any) -> bool:
    return all(type(value) is int and 0 <= value <= _LARGEST_WIDTH for value in values)


def _file_names(recipe: Recipe) -> list[str]:
    """The files of a system, its configuration and its card left out."""
    trees = [f"{target}.txt" for target in TARGETS] if recipe.kind == "trees" else []
    fitted = recipe.kind == "network" or "latent" in recipe.inputs
    return [WEIGHTS_FILE] * fitted + trees


class System:
    """A trained system; `chgdb.systems.train` makes it and `System.load` reads it."""

    def __init__(self, config: SystemConfig, files: Mapping[str, bytes]) -> None:
        self.config = config
        self._files = dict(files)
        self._recipe = RECIPES[config.name]

    @property
    def name(self) -> str:
        """One of `SYSTEMS`."""
        return self.config.name

    @classmethod
    def load(cls, folder: str | Path) -> System:
        """The system in a folder.

        Raises:
            ModelError: it is missing or damaged, or a file is not the one that the configuration
                names.
            FormatVersionError: a newer chgdb wrote it.
            MissingExtraError: LightGBM or torch is not installed.
        """
        config = _load_config(Path(folder))
        files = {}
        for name, sha256 in config.files.items():
            path = Path(folder) / name
            try:
                files[name] = path.read_bytes()
            except OSError as error:
                raise ModelError(f"{path}: cannot read the system ({reason(error)})") from error
            if hashlib.sha256(files[name]).hexdigest() != sha256:
                raise ModelError(f"{path}: not the file that {CONFIG_FILE} names (sha256)")
        try:
            return build_system(config, files)
        except _DAMAGE as error:
            raise ModelError(f"{folder}: damaged ({reason(error)[:200]})") from error

    def save(self, folder: str | Path, card: str = "") -> None:
        """Write the system to a folder.

        Args:
            folder: gets the files of the system; others in it stay.
            card: text of its README.md; none is written if it is empty.

        Raises:
            ModelError: it cannot be written.
        """
        header = {"format": FORMAT, "format_version": SYSTEM_FORMAT_VERSION}
        config = json.dumps({**header, **asdict(self.config)}, indent=2) + "\n"
        contents = {**self._files, CONFIG_FILE: config.encode()}
        if card:
            contents[CARD_FILE] = card.encode()
        write_files(folder, contents, ModelError)

    def predict(self, data: SystemData) -> pd.DataFrame:
        """Predictions in the order of the rows; each is the same whatever the other rows are.

        Returns:
            Columns `id` and `TARGETS`, in their units.

        Raises:
            ModelError: the latents are those of another encoder.
        """
        import pandas as pd

        self._check(data)
        values = self._predict(data) if len(data) else np.empty((0, len(TARGETS)))
        frame = pd.DataFrame(values, columns=list(TARGETS))
        frame.insert(0, "id", list(data.ids))
        return frame

    def contributions(self, data: SystemData, background: SystemData) -> pd.DataFrame:
        """What each kind of input adds to each prediction, in the unit of the target.

        For trees these are the exact SHAP values that LightGBM computes (S. Lundberg et al., Nat.
        Mach. Intell. 2, 56 (2020)): the prediction less its mean over the training rows, divided
        among the features. For networks they are expected gradients (G. Erion et al., Nat. Mach.
        Intell. 3, 620 (2021)): gradients integrated along straight lines from 8 rows of the
        background, drawn with a fixed seed, and averaged over them; they add up to the prediction
        less the mean prediction of the 8.

        Args:
            data: rows to explain.
            background: rows that networks start from, best those they were trained on.

        Returns:
            Columns `id`, `target`, `kind` ("latent", "composition" or "symmetry"), `signed`, the
            sum over the features of this kind, and `absolute`, the sum of their magnitudes.

        Raises:
            InputError: the background has no rows.
            ModelError: the latents are those of another encoder.
        """
        import pandas as pd

        self._check(data)
        self._check(background)
        if not len(background):
            raise InputError("contributions need rows to compare with")
        frames = []
        for kind, (signed, absolute) in self._contributions(data, background).items():
            for column, target in enumerate(TARGETS):
                frame = pd.DataFrame({"id": list(data.ids)}).assign(target=target, kind=kind)
                frame["signed"] = signed[:, column]
                frame["absolute"] = absolute[:, column]
                frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def _check(self, data: SystemData) -> None:
        if not self._recipe.takes_latents:
            return
        shape = data.latents.shape[1:]
        if data.encoder != self.config.encoder or shape != self.config.latent_shape:
            raise ModelError(
                f"{self.name} takes latents of {self.config.encoder[:40] or 'an unknown encoder'}, "
                f"not of {data.encoder[:40] or 'an unknown one'}"
            )

    def _predict(self, data: SystemData) -> Array:
        raise NotImplementedError

    def _contributions(
        self, data: SystemData, background: SystemData
    ) -> dict[str, tuple[Array, Array]]:
        """Kind -> signed and absolute sums, each of shape (row, target)."""
        raise NotImplementedError


def _load_config(folder: Path) -> SystemConfig:
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot read the system ({reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not the configuration of a system ({reason(error)})") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ModelError(f"{path}: not the configuration of a system (its format is another)")
    version = content.pop("format_version", None)
    if version != SYSTEM_FORMAT_VERSION:
        raise FormatVersionError(
            f"{path}: system format {version!r}; this chgdb reads "
            f"{SYSTEM_FORMAT_VERSION}: pip install --upgrade chgdb"
        )
    try:
        return SystemConfig(**content)
    except (TypeError, InputError) as error:
        raise ModelError(f"{path}: not the configuration of a system ({error})") from error


def build_system(config: SystemConfig, files: Mapping[str, bytes]) -> System:
    """A system from the content of its files, whether just trained or read.

    Raises:
        ValueError: they do not hold what the configuration says; so do TypeError, KeyError,
            AttributeError, IndexError and RuntimeError.
        MissingExtraError: LightGBM or torch is not installed.
    """
    trees = RECIPES[config.name].kind == "trees"
    return _Trees(config, files) if trees else _Network(config, files)


# ---------------------------------------------------------------------- trees


class _Trees(System):
    """One LightGBM booster per target."""

    def __init__(self, config: SystemConfig, files: Mapping[str, bytes]) -> None:
        super().__init__(config, files)
        self._tensors = unpacked(files[WEIGHTS_FILE]) if WEIGHTS_FILE in files else {}
        self._boosters = [load_trees(files[f"{target}.txt"].decode()) for target in TARGETS]
        (n_features,) = {booster.num_feature() for booster in self._boosters}
        nothing = SystemData(
            ids=("",),
            formulas=("",),
            split=("",),
            latents=np.zeros((1, *config.latent_shape), dtype=np.float32),
            extents=np.zeros((1, 3), dtype=np.int64),
            composition=np.zeros((1, len(COMPOSITION_FEATURES))),
            spacegroup=np.zeros(1, dtype=np.int64),
            targets=np.full((1, len(TARGETS)), np.nan),
        )
        if _joined(self._features(nothing)).shape[1] != n_features:
            raise ValueError("the trees take other features")

    def _features(self, data: SystemData) -> dict[str, Array]:
        return tree_features(self._recipe.inputs, data, self._tensors)

    def _predict(self, data: SystemData) -> Array:
        features = _joined(self._features(data))
        return np.column_stack(
            [np.asarray(b.predict(features, num_threads=1)) for b in self._boosters]
        )

    def _contributions(
        self, data: SystemData, background: SystemData
    ) -> dict[str, tuple[Array, Array]]:
        del background  # the trees carry how many training rows went each way
        parts = self._features(data)
        features = _joined(parts)
        shap = [
            np.asarray(b.predict(features, pred_contrib=True, num_threads=1))
            for b in self._boosters
        ]
        ends = np.cumsum([values.shape[1] for values in parts.values()])
        # the last column of each is the mean over the training rows
        by_kind = np.split(np.stack(shap, axis=1)[:, :, :-1], ends[:-1], axis=2)
        return {
            "latent" if kind == "pooled" else kind: (part.sum(axis=2), np.abs(part).sum(axis=2))
            for kind, part in zip(parts, by_kind, strict=True)
        }


def _joined(parts: Mapping[str, Array]) -> Array:
    return np.concatenate(list(parts.values()), axis=1)


def lightgbm_module() -> ModuleType:
    """LightGBM.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import lightgbm
    except ImportError as error:
        raise MissingExtraError("boosted trees", "ml") from error
    return lightgbm


# ---------------------------------------------------------------------- networks


class _Network(System):
    """A `PropertyNet` and the ranges of what goes in and comes out."""

    def __init__(self, config: SystemConfig, files: Mapping[str, bytes]) -> None:
        super().__init__(config, files)
        self._net = build_network(config.settings["net"])
        self._fill = config.settings["fill"]
        tensors = unpacked(files[WEIGHTS_FILE])
        names = ("latent/maximum", "composition/mean", "composition/std")
        self._ranges = {name: tensors.pop(name) for name in names}
        low, high = tensors.pop("target/low"), tensors.pop("target/high")
        self._low, self._range = low.astype(np.float64), (high - low).astype(np.float64)
        shapes = [array.shape for array in (*self._ranges.values(), low, high)]
        features, targets = (len(COMPOSITION_FEATURES),), (len(TARGETS),)
        if shapes != [(), features, features, targets, targets]:
            raise ValueError("the ranges have other shapes")
        import torch

        self._net.load_state_dict({name: torch.from_numpy(t) for name, t in tensors.items()})
        self._net.eval()

    def _inputs(self, data: SystemData) -> list[Tensor]:
        return network_inputs(self._recipe, data, self._ranges, self._fill)

    def _predict(self, data: SystemData) -> Array:
        import torch

        rows = []
        with torch.inference_mode(), one_thread():
            # one row at a time: sums over a batch may be rounded otherwise
            for row in range(len(data)):
                inputs = self._inputs(data.take([row]))
                rows.append(self._net(*inputs).numpy()[0])
        # like trees, it does not leave what it has seen
        scaled = np.clip(np.stack(rows).astype(np.float64), 0.0, 1.0)
        return np.asarray(scaled * self._range + self._low)

    def _contributions(
        self, data: SystemData, background: SystemData
    ) -> dict[str, tuple[Array, Array]]:
        import torch

        chosen = np.random.default_rng(0).permutation(len(background))[:_BACKGROUND]
        starts = self._inputs(background.take(chosen))
        shape = (len(data), len(TARGETS))
        kinds = self._recipe.inputs
        found = {kind: (np.zeros(shape), np.zeros(shape)) for kind in kinds}
        steps = (torch.arange(_STEPS) + 0.5) / _STEPS
        for row in range(len(data)):
            inputs = self._inputs(data.take([row]))
            differences = [x - start for x, start in zip(inputs, starts, strict=True)]
            points = []
            for start, difference in zip(starts, differences, strict=True):
                fractions = steps.view(-1, *[1] * difference.ndim)
                line = (start + fractions * difference).flatten(0, 1)
                points.append(line.requires_grad_(True))
            output = self._net(*points)
            for column in range(len(TARGETS)):
                slopes = torch.autograd.grad(output[:, column].sum(), points, retain_graph=True)
                for kind, slope, difference in zip(kinds, slopes, differences, strict=True):
                    mean = slope.view(_STEPS, *difference.shape).mean(0)
                    parts = (mean * difference).mean(0) * float(self._range[column])
                    found[kind][0][row, column] = float(parts.sum())
                    found[kind][1][row, column] = float(parts.abs().sum())
        return found


def build_network(arguments: object) -> PropertyNet:
    """A network with random weights.

    Args:
        arguments: of `PropertyNet`, all but the dropout; they may come from a file.

    Raises:
        ValueError: they are others, or beyond all reason.
        MissingExtraError: torch is not installed.
    """
    try:
        from chgdb.property_nets import PropertyNet
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("a convolutional network", "ml") from error
    if not isinstance(arguments, dict) or set(arguments) != _NET_ARGUMENTS:
        raise ValueError(f"a network has the arguments {', '.join(sorted(_NET_ARGUMENTS))}")
    for name, value in arguments.items():
        numbers = value if isinstance(value, list) else [int(value)]
        if len(numbers) > _MOST_WIDTHS or not _small_numbers(numbers):
            raise ValueError(f"{name} of the network is {str(value)[:80]}")
    return PropertyNet(**arguments)


def network_inputs(
    recipe: Recipe, data: SystemData, ranges: Mapping[str, NDArray[Any]], fill: Fill
) -> list[Tensor]:
    """What a network sees: latents over their maximum, and the composition if it has a branch.

    Args:
        recipe: of the system.
        data: the materials.
        ranges: `latent/maximum`, `composition/mean` and `composition/std` of the training rows.
        fill: what is beside the cell.
    """
    import torch

    latents = repeated(data) if fill == "crystal" else data.latents
    inputs = [torch.from_numpy(latents / np.float32(ranges["latent/maximum"]))]
    if "composition" in recipe.inputs:
        scaled = (data.composition - ranges["composition/mean"]) / ranges["composition/std"]
        inputs.append(torch.from_numpy(np.nan_to_num(scaled, nan=0.0).astype(np.float32)))
    return inputs


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums over one thread: the same numbers, however many cores there are."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)
