"""Elastic moduli, energies and the Debye temperature of a material from its features.

A model is a folder: networks (safetensors, evaluated by NumPy), boosted trees (LightGBM text),
the training materials in a scaled space of features, and `config.json` with the SHA-256 of each.
Two variants are in it. The one that sees all of a density serves densities of the pseudopotentials
that the training data had; the core-blind one serves the others. `chgdb.train_properties` makes it.

Networks and trees predict K, G and the two energies; their weighted means are the predictions.
E = 9KG/(3K + G), and the Debye temperature follows from K, G, volume and mass (`elasticity`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chgdb.composition import FRACTIONS, mass_per_atom, parse_formula
from chgdb.elasticity import debye_temperature, youngs_modulus
from chgdb.errors import FormatVersionError, InputError, ModelError
from chgdb.files import reason, shown
from chgdb.inputs import INPUT_SETS, Inputs, InputSet, input_names, is_foreign, make_inputs
from chgdb.perceptron import Scaler, forward
from chgdb.schema import PREDICTED, check_id
from chgdb.trees import load_trees
from chgdb.weights import packed, unpacked

if TYPE_CHECKING:
    import lightgbm
    import pandas as pd

__all__ = [
    "BASE_TARGETS",
    "CONFIG_FILE",
    "NEIGHBOURS",
    "PROPERTY_MODEL_VERSION",
    "TARGETS",
    "Members",
    "PropertyConfig",
    "PropertyModel",
    "Space",
    "Variant",
    "all_targets",
    "half_widths",
    "network_file",
    "pack_scaler",
    "pack_space",
    "scaler_file",
    "tree_inputs",
    "trees_file",
]

TARGETS = PREDICTED
"""What is predicted; units as in `chgdb.schema.PROPERTIES`."""

BASE_TARGETS = ("bulk_modulus", "shear_modulus", "formation_energy", "cohesive_energy")
"""What the members predict; the rest follows."""

MODULI = ("bulk_modulus", "shear_modulus")

PROPERTY_MODEL_VERSION = 1
"""Version of the layout of the folder."""

CONFIG_FILE = "config.json"
SPACE_FILE = "space.safetensors"
IDS_FILE = "training.json"

NEIGHBOURS = 5
"""Nearest training materials that a prediction names."""

SAME = 0.15
"""Distance below which a material of the same formula is taken for the training material itself.

Of the training materials whose densities another code computed, 90 % lie nearer to themselves; so
do half of the pairs of polymorphs, which count as seen, too.
"""

_CHUNK = 1024

_COEFFICIENTS = 7
"""Of `half_widths`."""

_SCALER = ("grain", "knots", "mean", "deviation")

_GROUPS = 4
"""Groups of coordinates in a `Space`."""


@dataclass(frozen=True)
class Variant:
    """How the members of one variant make a prediction.

    Attributes:
        inputs: the set of inputs they see.
        networks: files of the networks.
        trees: target to the file of its trees.
        outputs: what a network predicts; a modulus as the cube root of modulus times volume per
            atom, (GPa A^3)^(1/3), an energy as it is.
        output_mean, output_deviation: of the training targets, by output.
        weight_of_trees: target to the weight of the trees in the mean, 0 to 1.
        intervals: target to the coefficients of `half_widths`.
    """

    inputs: InputSet
    networks: tuple[str, ...]
    trees: Mapping[str, str]
    outputs: tuple[str, ...]
    output_mean: tuple[float, ...]
    output_deviation: tuple[float, ...]
    weight_of_trees: Mapping[str, float]
    intervals: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class PropertyConfig:
    """`config.json` of a property model.

    Attributes:
        id: name of the model.
        version: of the model; a model made anew under the same name has another.
        variants: "full" and "core_blind".
        level: share of the references that the intervals are meant to hold.
        domain: distance to the nearest training material beyond which a material is outside.
        files: name of each other file to its SHA-256.
        training: what made the model, for the record.
    """

    id: str
    version: int
    variants: Mapping[str, Variant]
    level: float
    domain: float
    files: Mapping[str, str]
    training: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The file's content."""
        fields = {"format_version": PROPERTY_MODEL_VERSION, "kind": "properties", **asdict(self)}
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str) -> PropertyConfig:
        """The configuration in a file's content.

        Raises:
            FormatVersionError: a newer chgdb wrote it.
            ModelError: it is none.
        """
        try:
            fields = json.loads(text)
            version, kind = fields.pop("format_version"), fields.pop("kind")
            if kind != "properties":
                raise ModelError(f"a model of kind {kind!r}, not one of properties")
            if version != PROPERTY_MODEL_VERSION:
                raise FormatVersionError(
                    f"a property model of format version {version!r}; "
                    f"this chgdb reads {PROPERTY_MODEL_VERSION}: upgrade chgdb"
                )
            variants = {
                name: Variant(**{k: _tuples(v) for k, v in variant.items()})
                for name, variant in fields.pop("variants").items()
            }
            config = cls(variants=variants, **fields)
            _check(config)
        except (
            *(ValueError, TypeError, KeyError, AttributeError),
            *(RecursionError, InputError),
        ) as error:
            raise ModelError(
                f"not the configuration of a property model ({reason(error)})"
            ) from error
        return config


class Members:
    """The networks and the trees of a variant.

    Args:
        variant: how they are put together.
        networks: name to array, of each network.
        trees: target to boosted trees.
        scaler: of the inputs.
    """

    def __init__(
        self,
        variant: Variant,
        networks: Sequence[Mapping[str, NDArray[np.float32]]],
        trees: Mapping[str, lightgbm.Booster],
        scaler: Scaler,
    ) -> None:
        self.variant = variant
        self._networks = networks
        self._trees = trees
        self.scaler = scaler

    def with_variant(self, variant: Variant) -> Members:
        """The same members, put together in another way."""
        return Members(variant, self._networks, self._trees, self.scaler)

    def predict(
        self, inputs: Inputs, volume: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        """What every member says: target to shape (member, row), the trees last.

        Args:
            inputs: of the materials.
            volume: shape (row,), A^3 per atom.
        """
        scaled = self.scaler(inputs.values).astype(np.float32)
        fractions = inputs.fractions.astype(np.float32)
        mean = np.array(self.variant.output_mean)
        deviation = np.array(self.variant.output_deviation)
        grown_from = tree_inputs(inputs, self.scaler)
        said = [forward(n, scaled, fractions) * deviation + mean for n in self._networks]
        result = {}
        for target in BASE_TARGETS:
            column = self.variant.outputs.index(target)
            rows = [values[:, column] for values in said]
            if target in MODULI:
                rows = [np.maximum(values, 0.0) ** 3 / volume for values in rows]
            if target in self._trees:
                grown = np.asarray(self._trees[target].predict(grown_from, num_threads=1))
                rows.append(np.maximum(grown, 0.0) / volume if target in MODULI else grown)
            result[target] = np.array(rows)
        return result

    def every_target(
        self, table: pd.DataFrame, inputs: Inputs | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """Every target and its "<target>_spread" for the rows of a feature table.

        Args:
            table: the materials.
            inputs: what `make_inputs` makes of them, where that is known already.
        """
        volume = table["volume_per_atom"].to_numpy(float)
        mass = np.array([mass_per_atom(parse_formula(text)) for text in table["formula"]])
        if inputs is None:
            inputs = make_inputs(table, self.variant.inputs)
        return all_targets(self.mean(self.predict(inputs, volume)), volume, mass)

    def contributions(self, target: str, inputs: Inputs) -> NDArray[np.float64]:
        """SHAP values of the trees of a target: shape (row, column of `tree_inputs`)."""
        values = self._trees[target].predict(tree_inputs(inputs, self.scaler), pred_contrib=True)
        return np.asarray(values, dtype=float)[:, :-1]

    def mean(self, said: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
        """The weighted means, and the standard deviation of the members as "<target>_spread"."""
        result = {}
        n = len(self._networks)
        for target, rows in said.items():
            trees = self.variant.weight_of_trees[target] if target in self._trees else 0.0
            weights = np.full(len(rows), (1 - trees) / n)
            if target in self._trees:
                weights[-1] = trees
            result[target] = weights @ rows
            result[f"{target}_spread"] = rows.std(axis=0)
        return result


@dataclass(frozen=True, eq=False)
class Space:
    """The training materials as points, for neighbours and the domain.

    Distances are root mean squares over four groups of scaled inputs that densities of any
    pseudopotential share: density, volume, means of element properties, element fractions.

    Attributes:
        ids: of the training materials.
        formulas: theirs, reduced.
        points: shape (material, coordinate).
        scaler: of the coordinates but the fractions.
        elements: shape (element,), which the training data hold.
    """

    ids: tuple[str, ...]
    formulas: tuple[str, ...]
    points: NDArray[np.float32]
    scaler: Scaler
    elements: NDArray[np.bool_]

    @classmethod
    def of(cls, table: pd.DataFrame) -> Space:
        """The space of the rows of a feature table of training materials."""
        inputs = make_inputs(table, "core_blind")
        scaler = Scaler.fit(inputs.values[:, _coordinates()[0]])
        points = cls._points(inputs, scaler).astype(np.float16).astype(np.float32)
        ids, formulas = tuple(table["id"]), tuple(table["formula"])
        return cls(ids, formulas, points, scaler, np.asarray(inputs.fractions.any(axis=0)))

    @staticmethod
    def _points(inputs: Inputs, scaler: Scaler) -> NDArray[np.float64]:
        columns, groups = _coordinates()
        scaled = scaler(inputs.values[:, columns])
        sizes = np.array([(groups == group).sum() for group in groups])
        # roots of fractions have length 1: without a common element they are sqrt(2) apart
        parts = [scaled / np.sqrt(sizes), np.sqrt(inputs.fractions)]
        points: NDArray[np.float64] = np.concatenate(parts, axis=1) / np.sqrt(_GROUPS)
        return points

    def nearest(
        self, inputs: Inputs, n: int, *, others: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The nearest training materials of core-blind inputs, the nearest first.

        Args:
            inputs: of the materials.
            n: how many.
            others: leave out the nearest: for the training materials themselves.

        Returns:
            Shapes (row, n): positions in `ids`, and distances.
        """
        points = self._points(inputs, self.scaler).astype(np.float32)
        squares = (self.points**2).sum(axis=1)
        n = min(n, len(self.points) - others)
        order = np.empty((len(points), n), np.int64)
        distances = np.empty((len(points), n))
        for start in range(0, len(points), _CHUNK):
            part = points[start : start + _CHUNK]
            d2 = squares + (part**2).sum(axis=1)[:, None] - 2 * part @ self.points.T
            best = np.argpartition(d2, n + others - 1, axis=1)[:, : n + others]
            exact = np.linalg.norm(self.points[best] - part[:, None], axis=2)
            rank = np.argsort(exact, axis=1, kind="stable")[:, others:]
            order[start : start + _CHUNK] = np.take_along_axis(best, rank, axis=1)
            distances[start : start + _CHUNK] = np.take_along_axis(exact, rank, axis=1)
        return order, distances


def _coordinates() -> tuple[list[int], NDArray[np.int64]]:
    """Columns of the core-blind inputs that are coordinates, and the group of each."""
    names = input_names("core_blind")
    composition = next(i for i, name in enumerate(names) if name.startswith("MagpieData"))
    volumes = [i for i in range(composition) if "volume" in names[i] or names[i] == "mass_density"]
    density = [i for i in range(composition) if i not in volumes and "reference" not in names[i]]
    density += [i for i in range(composition) if names[i] == "f_int in reference electrons"]
    elements = [i for i, name in enumerate(names) if name.startswith("MagpieData mean")]
    density = sorted(set(density))
    groups = [0] * len(density) + [1] * len(volumes) + [2] * len(elements)
    return [*density, *volumes, *elements], np.array(groups)


def tree_inputs(inputs: Inputs, scaler: Scaler) -> NDArray[np.float64]:
    """What trees see: inputs in steps of the scaler's grain, then the fractions."""
    return np.concatenate([scaler.rounded(inputs.values), inputs.fractions], axis=1)


def all_targets(
    base: Mapping[str, NDArray[np.float64]],
    volume: NDArray[np.float64],
    mass: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Every target from those of the members, with their spreads.

    Args:
        base: `BASE_TARGETS` and "<target>_spread", shape (row,).
        volume: A^3 per atom.
        mass: u per atom.
    """
    bulk, shear = base["bulk_modulus"], base["shear_modulus"]
    result = {name: base[name] for name in (*BASE_TARGETS, *(f"{t}_spread" for t in BASE_TARGETS))}
    result["youngs_modulus"] = np.asarray(youngs_modulus(bulk, shear))
    result["debye_temperature"] = np.asarray(debye_temperature(bulk, shear, volume, mass))
    relative = base["shear_modulus_spread"] / np.maximum(shear, 1e-3)
    result["youngs_modulus_spread"] = relative * result["youngs_modulus"]
    result["debye_temperature_spread"] = relative / 2 * result["debye_temperature"]
    return result


def half_widths(
    coefficients: Sequence[float],
    predicted: NDArray[np.float64],
    spread: NDArray[np.float64],
    distance: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Half widths of the intervals: c0 times powers c1, c2, c3 of spread, |predicted|, distance.

    Each of the three stands on a floor of its own, which is added to it.

    Args:
        coefficients: c0 (in units of the target), c1, c2, c3, and the floors of spread, predicted
            and distance.
        predicted: shape (row,).
        spread: of the members, shape (row,).
        distance: to the nearest training material, shape (row,).
    """
    scale, *powers_and_floors = coefficients
    width = np.full(len(predicted), float(scale))
    for power, floor, value in zip(
        powers_and_floors[:3],
        powers_and_floors[3:],
        (spread, np.abs(predicted), distance),
        strict=True,
    ):
        width *= (floor + value) ** power
    return width


class PropertyModel:
    """A property model.

    Args:
        config: its configuration.
        members: by variant.
        space: of the training materials.
        sha256: of the configuration, which holds the hashes of the rest.
    """

    def __init__(
        self, config: PropertyConfig, members: Mapping[str, Members], space: Space, sha256: str
    ) -> None:
        self.config = config
        self.space = space
        self.sha256 = sha256
        self._members = members

    @property
    def id(self) -> str:
        """Name of the model."""
        return self.config.id

    @property
    def version(self) -> int:
        """Version of the model under its name."""
        return self.config.version

    @classmethod
    def load(cls, folder: str | Path) -> PropertyModel:
        """The model in a folder; members are read when they are needed.

        Raises:
            ModelError: a file is missing, damaged or another than the configuration names.
            FormatVersionError: a newer chgdb made the model.
            MissingExtraError: LightGBM or safetensors is not installed.
        """
        folder = Path(folder)
        text = _read(folder / CONFIG_FILE)
        try:
            config = PropertyConfig.parse(text.decode())
        except UnicodeDecodeError as error:
            raise ModelError(f"{shown(folder / CONFIG_FILE)}: not UTF-8") from error
        except (ModelError, FormatVersionError) as error:
            raise type(error)(f"{shown(folder / CONFIG_FILE)}: {error}") from error
        members = _LazyMembers(folder, config)
        return cls(config, members, _load_space(folder, config), hashlib.sha256(text).hexdigest())

    def members(self, variant: str) -> Members:
        """The members of "full" or "core_blind".

        Raises:
            ModelError: a file of theirs is missing or damaged.
        """
        return self._members[variant]

    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        """Predictions for the materials of a feature table.

        Returns:
            In the order of the rows: `id`; for each of `TARGETS` the prediction, `<target>_low` and
            `<target>_high`, an interval that is meant to hold `config.level` of the references;
            `in_training`, whether the material was learned from; `outside_domain`, whether it is
            further from all training materials than these from each other, or has an element that
            they lack; `foreign`, whether its density is of other pseudopotentials, so that the
            core-blind variant served; `neighbours`, JSON list of [id, distance].

        Raises:
            InputError: a formula cannot be read, or a volume is missing.
            ModelError: a file of the model is damaged.
        """
        import pandas as pd

        if table.empty:
            return pd.DataFrame({name: [] for name in _columns()})
        volume = table["volume_per_atom"].to_numpy(float)
        if not (np.isfinite(volume) & (volume > 0)).all():
            raise InputError("a material without a volume cannot be predicted")
        foreign = is_foreign(table)
        columns: dict[str, Any] = {"id": table["id"].to_numpy()}
        blind = make_inputs(table, "core_blind")
        nearest, distances = self.space.nearest(blind, NEIGHBOURS)
        for name in TARGETS:
            for suffix in ("", "_low", "_high"):
                columns[name + suffix] = np.full(len(table), np.nan)
        for variant, rows in (
            ("full", np.flatnonzero(~foreign)),
            ("core_blind", np.flatnonzero(foreign)),
        ):
            if len(rows):
                part = table.iloc[rows]
                inputs = blind[rows] if variant == "core_blind" else make_inputs(part, "full")
                made = self._of_variant(variant, part, inputs, distances[rows, 0])
                for name, values in made.items():
                    columns[name][rows] = values
        columns["in_training"] = self._in_training(table, nearest, distances)
        # the fractions end at lawrencium: what is beyond is missing in their sum
        unknown = blind.fractions[:, ~self.space.elements].any(axis=1)
        new = unknown | (blind.fractions.sum(axis=1) < 0.999)
        columns["outside_domain"] = new | (distances[:, 0] > self.config.domain)
        columns["foreign"] = foreign
        columns["neighbours"] = [
            json.dumps(
                [[self.space.ids[i], round(float(d), 4)] for i, d in zip(*pair, strict=True)]
            )
            for pair in zip(nearest, distances, strict=True)
        ]
        return pd.DataFrame(columns)

    def _of_variant(
        self, name: str, table: pd.DataFrame, inputs: Inputs, distance: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        members = self._members[name]
        every = members.every_target(table, inputs)
        result = {}
        for target in TARGETS:
            value = every[target]
            half = half_widths(
                members.variant.intervals[target], value, every[f"{target}_spread"], distance
            )
            low = value - half
            positive = target not in ("formation_energy", "cohesive_energy")
            result[target] = value
            result[f"{target}_low"] = np.maximum(low, 0.0) if positive else low
            result[f"{target}_high"] = value + half
        return result

    def _in_training(
        self, table: pd.DataFrame, nearest: NDArray[np.int64], distances: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """By id, or a training material of the same formula close by."""
        known = set(self.space.ids)
        same = [
            any(
                d <= SAME and self.space.formulas[i] == formula
                for i, d in zip(rows, row_distances, strict=True)
            )
            for formula, rows, row_distances in zip(
                table["formula"], nearest, distances, strict=True
            )
        ]
        named = np.array([id_ in known for id_ in table["id"]])
        return np.asarray(named | np.array(same), dtype=bool)


def _columns() -> list[str]:
    values = [name + suffix for name in TARGETS for suffix in ("", "_low", "_high")]
    return ["id", *values, "in_training", "outside_domain", "foreign", "neighbours"]


class _LazyMembers(Mapping[str, Members]):
    """The members of the variants, read from the folder when they are asked for."""

    def __init__(self, folder: Path, config: PropertyConfig) -> None:
        self._folder = folder
        self._config = config
        self._read: dict[str, Members] = {}

    def __getitem__(self, name: str) -> Members:
        if name not in self._read:
            self._read[name] = _load_members(self._folder, self._config, name)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._config.variants)

    def __len__(self) -> int:
        return len(self._config.variants)


# ---------------------------------------------------------------------- files


def network_file(variant: str, number: int) -> str:
    """Name of the file of a network."""
    return f"{variant}-network-{number}.safetensors"


def trees_file(variant: str, target: str) -> str:
    """Name of the file of the trees of a target."""
    return f"{variant}-{target}.txt"


def scaler_file(variant: str) -> str:
    """Name of the file of the scaler of a variant."""
    return f"{variant}-scaler.safetensors"


def pack_scaler(scaler: Scaler) -> dict[str, NDArray[np.float64]]:
    """A scaler as named arrays."""
    return {name: getattr(scaler, name) for name in _SCALER}


def pack_space(space: Space) -> dict[str, bytes]:
    """The files of a space: name to content."""
    arrays: dict[str, NDArray[Any]] = {
        "points": space.points.astype(np.float16),
        "elements": space.elements.astype(np.uint8),
        **pack_scaler(space.scaler),
    }
    names = json.dumps({"ids": space.ids, "formulas": space.formulas}, indent=0) + "\n"
    return {SPACE_FILE: packed(arrays), IDS_FILE: names.encode()}


def _load_space(folder: Path, config: PropertyConfig) -> Space:
    tensors = _tensors(folder, config, SPACE_FILE)
    try:
        names = json.loads(_checked(folder, config, IDS_FILE))
        space = Space(
            tuple(names["ids"]),
            tuple(names["formulas"]),
            tensors["points"],
            _scaler(tensors),
            tensors["elements"].astype(bool),
        )
        sizes = {len(space.ids), len(space.formulas), len(space.points)}
        if len(sizes) != 1 or space.elements.shape != (len(FRACTIONS),):
            raise IndexError("other materials or elements")
        with np.errstate(all="ignore"):
            space.nearest(_nothing("core_blind"), 1)
    except IndexError as error:
        raise ModelError(
            f"{shown(folder)}: the parts of its training materials do not fit ({reason(error)})"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{shown(folder)}: its training materials cannot be read") from error
    return space


def _load_members(folder: Path, config: PropertyConfig, name: str) -> Members:
    variant = config.variants[name]
    networks = []
    for file in variant.networks:
        tensors = _tensors(folder, config, file)
        if "direct.weight" not in tensors or len(tensors["direct.weight"]) != len(variant.outputs):
            raise ModelError(f"{shown(folder / file)}: not a network of this model")
        networks.append(tensors)
    trees = {}
    for target, file in variant.trees.items():
        try:
            trees[target] = load_trees(_checked(folder, config, file).decode())
        except ValueError as error:
            raise ModelError(f"{shown(folder / file)}: {reason(error)}") from error
    members = Members(
        variant, networks, trees, _scaler(_tensors(folder, config, scaler_file(name)))
    )
    nothing = _nothing(variant.inputs)
    n_features = nothing.values.shape[1] + nothing.fractions.shape[1]
    try:
        if any(booster.num_feature() != n_features for booster in trees.values()):
            raise ValueError("the trees take other features")
        with np.errstate(all="ignore"):
            members.mean(members.predict(nothing, np.ones(1)))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ModelError(
            f"{shown(folder)}: the parts of {name} do not fit each other ({reason(error)})"
        ) from error
    return members


def _nothing(kind: InputSet) -> Inputs:
    """The inputs of a row of zeros."""
    return Inputs(np.zeros((1, len(input_names(kind)))), np.zeros((1, len(FRACTIONS))))


def _scaler(tensors: Mapping[str, NDArray[Any]]) -> Scaler:
    if not set(_SCALER) <= set(tensors):
        raise ModelError("a scaler of a property model is not one")
    return Scaler(*(tensors[name].astype(float) for name in _SCALER))


def _tensors(folder: Path, config: PropertyConfig, name: str) -> dict[str, NDArray[Any]]:
    try:
        return unpacked(_checked(folder, config, name))
    except ValueError as error:
        raise ModelError(f"{shown(folder / name)}: {reason(error)}") from error


def _checked(folder: Path, config: PropertyConfig, name: str) -> bytes:
    """The content of a file that the configuration names."""
    content = _read(folder / name)
    if hashlib.sha256(content).hexdigest() != config.files.get(name):
        raise ModelError(
            f"{shown(folder / name)}: not the file that {CONFIG_FILE} names (its SHA-256 differs)"
        )
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{shown(path)}: cannot be read ({reason(error)})") from error


def _tuples(value: Any) -> Any:
    """Lists as tuples, at any depth."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _check(config: PropertyConfig) -> None:
    """ValueError for a configuration that names what cannot be there."""
    check_id(config.id)
    if set(config.variants) != {"full", "core_blind"}:
        raise ValueError("its variants are not full and core_blind")
    for variant in config.variants.values():
        if variant.inputs not in INPUT_SETS or not set(BASE_TARGETS) <= set(variant.outputs):
            raise ValueError("a variant with unknown inputs or without an output")
        if not (set(variant.trees) <= set(BASE_TARGETS) and set(TARGETS) <= set(variant.intervals)):
            raise ValueError("a variant with unknown trees or without an interval")
        if {len(variant.output_mean), len(variant.output_deviation)} != {len(variant.outputs)}:
            raise ValueError("a variant whose outputs do not fit")
        if not variant.networks or set(variant.weight_of_trees) != set(BASE_TARGETS):
            raise ValueError("a variant without networks or weights")
        if {len(numbers) for numbers in variant.intervals.values()} != {_COEFFICIENTS}:
            raise ValueError("intervals with another number of coefficients")
        numbers = [*variant.output_mean, *variant.output_deviation]
        numbers += variant.weight_of_trees.values()
        numbers += [value for some in variant.intervals.values() for value in some]
        if not all(isinstance(value, float | int) for value in numbers):
            raise ValueError("text where numbers belong")
    if not (isinstance(config.version, int) and isinstance(config.domain, float)):
        raise ValueError("version or domain is no number")
    for name in config.files:
        if Path(name).name != name:
            raise ValueError(f"{name!r} is no file of the model")
