"""Fit the property model: networks and trees on the features of the training materials.

What is fitted (scalers, networks, trees, the space of neighbours) sees the rows of the part "train"
alone. The part "val" chooses the weight of the trees in each mean and the widths of the intervals.
The part "test" is only predicted. No row is dropped for its target; a training row without elastic
constants (its table has moduli, but no C11) weighs less, because among those rows are moduli far
from what the material can have.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chgdb import __version__
from chgdb.errors import ChgdbError, InputError, MissingExtraError, ModelError
from chgdb.files import reason, replacing, shown, write_files
from chgdb.inputs import InputSet, make_inputs
from chgdb.perceptron import Scaler
from chgdb.properties import (
    BASE_TARGETS,
    CONFIG_FILE,
    MODULI,
    TARGETS,
    Members,
    PropertyConfig,
    PropertyModel,
    Space,
    Variant,
    network_file,
    pack_scaler,
    pack_space,
    scaler_file,
    tree_inputs,
    trees_file,
)
from chgdb.schema import check_id
from chgdb.system_inputs import fit_scaler
from chgdb.weights import packed, unpacked

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "OUTPUTS",
    "Settings",
    "fingerprint",
    "fit_members",
    "join",
    "train_properties",
]

OUTPUTS = (*BASE_TARGETS, "C11", "C12", "C44", "band_gap")
"""What a network learns. The last four are not predicted: learning them too helps the others."""

CUBE_ROOTS = (*MODULI, "C11", "C12", "C44")
"""Outputs that a network sees as the cube root of modulus times volume per atom."""

LEVEL = 0.9
"""Of the intervals."""

_DOMAIN = 0.99
"""Share of the training materials whose nearest neighbour is inside the domain."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How a model is fitted.

    Attributes:
        networks: by variant.
        epochs: of each network.
        batch: rows of a step.
        rate: largest learning rate of AdamW, on one cycle.
        decay: its weight decay.
        width: of the networks.
        noise: standard deviation of what is added to the scaled inputs.
        huber: error, in deviations of the target, beyond which the loss grows linearly.
        doubtful: weight of a training row without elastic constants.
        trees: how many, by target.
        leaves: of a tree.
        tree_rate: learning rate of the trees.
        seed: of everything.
    """

    networks: int = 4
    epochs: int = 150
    batch: int = 128
    rate: float = 2e-3
    decay: float = 0.1
    width: int = 256
    noise: float = 0.05
    huber: float = 0.3
    doubtful: float = 0.3
    trees: int = 1000
    leaves: int = 20
    tree_rate: float = 0.04
    seed: int = 0


def join(features: pd.DataFrame, properties: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The materials that have features and properties, in the order of the properties.

    Returns:
        The feature table with the outputs, the targets and `split` as further columns.

    Raises:
        InputError: none has, or the properties have no column `split`.
    """
    position = {id_: row for row, id_ in enumerate(features["id"])}
    ids = [id_ for id_ in properties if id_ in position]
    if not ids:
        raise InputError("no material of the features is in the table of properties")
    there = features.iloc[[position[id_] for id_ in ids]].reset_index(drop=True)
    rows = [properties[id_] for id_ in ids]
    if not any("split" in row for row in rows):
        raise InputError("the table of properties has no column split (train, val, test)")
    for name in dict.fromkeys((*OUTPUTS, *TARGETS)):
        there[name] = np.array([row.get(name, np.nan) for row in rows], dtype=float)
    there["split"] = [row.get("split") for row in rows]
    return there


def fit_members(
    table: pd.DataFrame,
    train: NDArray[np.bool_],
    kind: InputSet,
    settings: Settings,
    *,
    cache: Path | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Members:
    """Networks and trees of one set of inputs, from the rows that `train` marks.

    The trees weigh one half in every mean; `Variant.intervals` is empty.

    Args:
        table: feature table with the outputs and targets as columns (`join`).
        train: shape (row,).
        kind: the set of inputs.
        settings: how.
        cache: folder of members that are done already, and are kept there.
        tick: called after each member.

    Raises:
        MissingExtraError: torch or LightGBM is not installed.
    """
    import lightgbm

    part = table[train].reset_index(drop=True)
    inputs = make_inputs(part, kind)
    volume = part["volume_per_atom"].to_numpy(float)
    scaler = Scaler.fit(inputs.values)
    outputs = np.column_stack([_output(part, name, volume) for name in OUTPUTS])
    mean, deviation = fit_scaler(outputs)
    weights = np.where(np.isfinite(part["C11"]), 1.0, settings.doubtful)
    scaled = scaler(inputs.values)
    networks = []
    for number in range(settings.networks):
        name = network_file(kind, number)
        state = _cached(cache, name)
        if state is None:
            state = _train_network(
                scaled, inputs.fractions, (outputs - mean) / deviation, weights,
                replace(settings, seed=settings.seed + number),
            )  # fmt: skip
            _keep(cache, name, packed(state))
        networks.append({key: values.astype(np.float32) for key, values in state.items()})
        tick()
    trees = {}
    seen = tree_inputs(inputs, scaler)
    for target in BASE_TARGETS:
        name = trees_file(kind, target)
        text = _cached_text(cache, name)
        if text is None:
            text = _grow(seen, part[target].to_numpy(float), target, volume, weights, settings)
            _keep(cache, name, text.encode())
        trees[target] = lightgbm.Booster(model_str=text)
        tick()
    variant = Variant(
        inputs=kind,
        networks=tuple(network_file(kind, n) for n in range(settings.networks)),
        trees={target: trees_file(kind, target) for target in BASE_TARGETS},
        outputs=OUTPUTS,
        output_mean=tuple(mean.tolist()),
        output_deviation=tuple(deviation.tolist()),
        weight_of_trees=dict.fromkeys(BASE_TARGETS, 0.5),
        intervals={},
    )
    return Members(variant, networks, trees, scaler)


def train_properties(
    features: pd.DataFrame,
    properties: Mapping[str, Mapping[str, Any]],
    out: str | Path,
    *,
    model_id: str = "properties-1",
    version: int = 1,
    settings: Settings | None = None,
    source: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> PropertyModel:
    """Fit both variants and write the model; an interrupted run goes on where it stopped.

    Members that are done wait in `<out>.partial`, under a hash of the data and the settings.

    Args:
        features: feature table.
        properties: by id, with `split`.
        out: folder of the model.
        model_id: its name.
        version: of the model under its name.
        settings: how; by default as the shipped model.
        source: what the data are, for the record.
        progress: called with the number of members done and of all.

    Raises:
        InputError: features and properties do not fit together, or a part is empty.
        ModelError: the folder cannot be written.
        MissingExtraError: torch or LightGBM is not installed.
    """
    settings = settings or Settings()
    out = Path(out).resolve()
    check_id(model_id)
    _check_target(out)
    table = join(features, properties)
    parts = {name: (table["split"] == name).to_numpy() for name in ("train", "val", "test")}
    for name in ("train", "val"):
        if parts[name].sum() < 20:
            raise InputError(
                f"{parts[name].sum()} materials in the part {name!r}: at least 20 are needed"
            )
    cache = _open_cache(out.with_name(out.name + ".partial"), fingerprint(table, settings))
    kinds: tuple[InputSet, ...] = ("full", "core_blind")
    total, done = len(kinds) * (settings.networks + len(BASE_TARGETS)), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    train, val = table[parts["train"]].reset_index(drop=True), table[parts["val"]]
    space = Space.of(train)
    _, apart = space.nearest(make_inputs(train, "core_blind"), 1, others=True)
    _, distance = space.nearest(make_inputs(val, "core_blind"), 1)
    files = pack_space(space)
    variants: dict[str, Variant] = {}
    members: dict[str, Members] = {}
    for kind in kinds:
        fitted = fit_members(table, parts["train"], kind, settings, cache=cache, tick=tick)
        fitted = _blended(fitted, val)
        fitted = _with_intervals(fitted, val, distance[:, 0])
        variants[kind], members[kind] = fitted.variant, fitted
        files[scaler_file(kind)] = packed(pack_scaler(fitted.scaler))
        for name in (*fitted.variant.networks, *fitted.variant.trees.values()):
            files[name] = (cache / name).read_bytes()
    config = PropertyConfig(
        id=model_id,
        version=version,
        variants=variants,
        level=LEVEL,
        domain=float(np.quantile(apart, _DOMAIN)),
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        training={
            "rows": {name: int(rows.sum()) for name, rows in parts.items()},
            "settings": asdict(settings),
            "data_sha256": fingerprint(table, settings),
            "chgdb": __version__,
            "python": platform.python_version(),
            **{name: installed(name) for name in ("numpy", "torch", "lightgbm")},
            **(source or {}),
        },
    )
    text = config.text().encode()
    write_files(out, {**files, CONFIG_FILE: text}, ModelError)
    for path in cache.iterdir():
        path.unlink()
    cache.rmdir()
    return PropertyModel(config, members, space, hashlib.sha256(text).hexdigest())


# ---------------------------------------------------------------------- members


def _output(table: pd.DataFrame, name: str, volume: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a network learns in place of a property."""
    values = table[name].to_numpy(float)
    if name in CUBE_ROOTS:
        return np.cbrt(values * volume)
    return np.sqrt(values) if name == "band_gap" else values


def _train_network(
    scaled: NDArray[np.float64],
    fractions: NDArray[np.float64],
    targets: NDArray[np.float64],
    weights: NDArray[np.float64],
    settings: Settings,
) -> dict[str, NDArray[np.float16]]:
    """The state of a trained network; targets are standardised, nan where unknown."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("training", "ml") from error
    from chgdb.nets import TabularNet

    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        there = torch.tensor(np.isfinite(targets) * weights[:, None], dtype=torch.float32)
        y = torch.tensor(np.nan_to_num(targets), dtype=torch.float32)
        x = torch.tensor(scaled, dtype=torch.float32)
        shares = torch.tensor(fractions, dtype=torch.float32)
        net = TabularNet(x.shape[1], shares.shape[1], y.shape[1], width=settings.width)
        absent = shares.sum(dim=0) == 0
        with torch.no_grad():  # an element that is not there stays without a say
            for layer in (net.shares, net.roots, net.direct):
                layer.weight[:, absent] = 0.0
        batch = min(settings.batch, len(y))
        steps = len(y) // batch
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=settings.rate, weight_decay=settings.decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.rate, settings.epochs * steps, pct_start=0.1
        )
        net.train()
        for _ in range(settings.epochs):
            order = torch.randperm(len(y), generator=generator)
            for rows in torch.split(order[: steps * batch], batch):
                noisy = x[rows] + settings.noise * torch.randn_like(x[rows])
                loss = torch.nn.functional.huber_loss(
                    net(noisy, shares[rows]), y[rows], reduction="none", delta=settings.huber
                )
                mean = (loss * there[rows]).sum() / there[rows].sum()
                optimizer.zero_grad()
                torch.autograd.backward(mean)
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                schedule.step()
    return {name: tensor.numpy().astype(np.float16) for name, tensor in net.state_dict().items()}


def _grow(
    seen: NDArray[np.float64],
    values: NDArray[np.float64],
    target: str,
    volume: NDArray[np.float64],
    weights: NDArray[np.float64],
    settings: Settings,
) -> str:
    """The text of boosted trees: of a modulus times volume per atom, or of an energy."""
    import lightgbm

    scale = volume if target in MODULI else np.ones(len(volume))
    rows = np.isfinite(values)
    parameters = {
        "objective": "regression",
        "learning_rate": settings.tree_rate,
        "num_leaves": settings.leaves,
        "min_data_in_leaf": 6,
        "feature_fraction": 0.25,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": 1.0,
        "seed": settings.seed + 1,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbose": -1,
    }
    names = [f"x{i}" for i in range(seen.shape[1])]
    data = lightgbm.Dataset(
        seen[rows], (values * scale)[rows], weight=weights[rows], feature_name=names
    )
    return str(lightgbm.train(parameters, data, settings.trees).model_to_string())


# ---------------------------------------------------------------------- what val decides


def _blended(members: Members, val: pd.DataFrame) -> Members:
    """With the weight of the trees that gives the smallest squared error on the validation part."""
    volume = val["volume_per_atom"].to_numpy(float)
    said = members.predict(make_inputs(val, members.variant.inputs), volume)
    weights = {}
    for target, rows in said.items():
        reference = val[target].to_numpy(float)
        networks, trees = rows[:-1].mean(axis=0), rows[-1]
        there = np.isfinite(reference)
        apart, error = (trees - networks)[there], (reference - networks)[there]
        best = (apart @ error) / max(float(apart @ apart), 1e-12)
        weights[target] = round(float(np.clip(best, 0.0, 1.0)), 3)
    return members.with_variant(replace(members.variant, weight_of_trees=weights))


def _with_intervals(members: Members, val: pd.DataFrame, distance: NDArray[np.float64]) -> Members:
    """With half widths that follow the logarithm of the errors of val, and hold `LEVEL` of them.

    Shape and scale are both of val: calibrated there, not split conformal intervals.
    """
    every = members.every_target(val)
    intervals = {}
    for target in TARGETS:
        error = np.abs(every[target] - val[target].to_numpy(float))
        there = np.isfinite(error)
        error, parts = error[there], [
            every[f"{target}_spread"][there], np.abs(every[target][there]), distance[there]
        ]  # fmt: skip
        floors = [0.1 * float(np.median(part)) + 1e-9 for part in parts]
        terms = np.log(
            np.column_stack([part + floor for part, floor in zip(parts, floors, strict=True)])
        )
        centred = terms - terms.mean(axis=0)
        goal = np.log(error + 0.1 * np.median(error))
        ridge = centred.T @ centred + 10.0 * np.eye(3)
        powers = np.clip(np.linalg.solve(ridge, centred.T @ (goal - goal.mean())), 0.0, 1.0)
        shape = np.exp(terms @ powers)
        rank = min(1.0, np.ceil((len(error) + 1) * LEVEL) / len(error))
        scale = float(np.quantile(error / shape, rank, method="higher"))
        intervals[target] = (scale, *powers.tolist(), *floors)
    return members.with_variant(replace(members.variant, intervals=intervals))


# ---------------------------------------------------------------------- resuming


def _check_target(folder: Path) -> None:
    """Refuse a folder that holds something else than a property model."""
    config = folder / CONFIG_FILE
    if not config.exists():
        return
    try:
        PropertyConfig.parse(config.read_text(encoding="utf-8"))
    except (ChgdbError, OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{shown(folder)}: holds another model; give a new folder") from error


def fingerprint(table: pd.DataFrame, settings: Settings) -> str:
    """A hash of the data and the settings."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    for name in table.columns:
        column = table[name]
        numbers = column.dtype.kind in "fiub"
        digest.update(
            column.to_numpy(np.float64).tobytes()
            if numbers
            else "\n".join(map(str, column)).encode()
        )
    return digest.hexdigest()


def _open_cache(folder: Path, fingerprint: str) -> Path:
    """The folder for members that are done; emptied if they are of another run."""
    mark = folder / "run.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not mark.exists() or mark.read_text() != fingerprint:
            for path in folder.iterdir():
                path.unlink()
            mark.write_text(fingerprint)
    except OSError as error:
        raise ModelError(f"{shown(folder)}: cannot be written ({reason(error)})") from error
    return folder


def _keep(cache: Path | None, name: str, content: bytes) -> None:
    if cache is not None:
        with replacing(cache / name, ModelError) as partial:
            partial.write_bytes(content)


def _cached(cache: Path | None, name: str) -> dict[str, NDArray[Any]] | None:
    return unpacked((cache / name).read_bytes()) if cache and (cache / name).exists() else None


def _cached_text(cache: Path | None, name: str) -> str | None:
    return (cache / name).read_text() if cache and (cache / name).exists() else None
