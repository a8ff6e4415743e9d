"""The systems compared: the same rows, three protocols, intervals, pairs, and what they rest on.

split    train on "train", choose on "val", predict "test"
random   cross-validation over all rows: each is predicted by a system that has not seen it
grouped  the same with all polymorphs of a formula in one fold

In a fold of a cross-validation a tenth of its training rows takes the place of "val".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from chgdb.errors import InputError, ModelError
from chgdb.files import make_folder, replacing
from chgdb.scores import folds, grouped_folds, paired_row, score_row
from chgdb.system_models import RECIPES
from chgdb.systems import (
    SYSTEMS,
    TARGETS,
    Progress,
    System,
    SystemData,
    TrainOptions,
    train,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BASELINE",
    "PROTOCOLS",
    "Evaluation",
    "Protocol",
    "compare",
    "evaluate_systems",
    "input_shares",
]

Protocol = Literal["split", "random", "grouped"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

BASELINE = "composition-symmetry"
"""What a gain of the density is measured against."""

_INNER_FOLDS = 10


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How good the systems are.

    Attributes:
        scores: one row per system, protocol and target: `system`, `protocol`, `target`, `n`, and
            `r2`, `mae` and `rmse`, each also with `_low` and `_high`, the ends of its 95 %
            bootstrap interval; in the units of the targets.
        predictions: one row per system, protocol, target and material: `system`, `protocol`,
            `fold`, `target`, `id`, `reference` (nan where unknown) and `predicted`.
    """

    scores: pd.DataFrame
    predictions: pd.DataFrame


def evaluate_systems(
    data: SystemData,
    names: Sequence[str] = SYSTEMS,
    *,
    protocols: Sequence[Protocol] = PROTOCOLS,
    n_folds: int = 5,
    seed: int = 0,
    options: TrainOptions | None = None,
    trained: Mapping[str, System] | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Train and score systems on identical rows.

    Args:
        data: all rows.
        names: the systems.
        protocols: how rows are kept aside.
        n_folds: of the cross-validations.
        seed: of folds, trainings and intervals.
        options: how to train.
        trained: systems that were trained on this split, which are then not trained again for it.
        folder: keeps the predictions of every training, so that an interrupted evaluation of the
            same data is taken up.
        progress: called with lines of the trainings.

    Raises:
        InputError: there is no such system or protocol, or there are too few rows.
        ModelError: a training diverged, or the folder cannot be written.
        MissingExtraError: LightGBM, Optuna or torch is not installed.
    """
    import pandas as pd

    options = options or TrainOptions()
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise InputError(f"no system {unknown[0]!r}: there are {', '.join(SYSTEMS)}")
    if unknown := [name for name in protocols if name not in PROTOCOLS]:
        raise InputError(f"no protocol {unknown[0]!r}: there are {', '.join(PROTOCOLS)}")
    frames = []
    for protocol in protocols:
        for fold, split in enumerate(_splits(data, protocol, n_folds, seed)):
            part = replace(data, split=split)
            for name in names:
                values = None
                if protocol == "split" and trained and name in trained:
                    values = trained[name].predict(part.part("test"))
                if values is None:
                    job = _Job(name, part, seed, options, Path(folder) if folder else None)
                    where = f"{protocol} {fold + 1}" if protocol != "split" else protocol
                    values = job.run(_prefixed(progress, where))
                frames.append(_long(values, part.part("test"), name, protocol, fold))
    predictions = pd.concat(frames, ignore_index=True)
    return Evaluation(_scores(predictions, seed), predictions)


def compare(predictions: pd.DataFrame, baseline: str = BASELINE, *, seed: int = 0) -> pd.DataFrame:
    """Every system against one, paired: on the same rows and the same resamples of them.

    Args:
        predictions: of `Evaluation`.
        baseline: the system to beat.
        seed: of the resamples.

    Returns:
        One row per other system, protocol and target: `system`, `protocol`, `target`, `n`,
        `mae_change` and `r2_change` (system minus baseline), each also with `_low` and `_high`,
        the ends of its 95 % interval, and with `_better`, the fraction of the resamples in which
        the system is better.

    Raises:
        InputError: the baseline is not among the systems.
    """
    import pandas as pd

    if baseline not in set(predictions["system"]):
        raise InputError(f"no predictions of {baseline}, which is to be compared with")
    rows = []
    keys = ["protocol", "target"]
    for (protocol, target), some in predictions.groupby(keys, sort=False):
        table = some.pivot_table(index="id", columns="system", values="predicted", sort=False)
        reference = some.drop_duplicates("id").set_index("id")["reference"].loc[table.index]
        for system in dict.fromkeys(some["system"]):
            if system == baseline:
                continue
            row = {"system": system, "protocol": protocol, "target": target}
            rows.append(row | paired_row(reference, table[baseline], table[system], seed))
    return pd.DataFrame(rows)


def input_shares(
    systems: Mapping[str, System], data: SystemData, background: SystemData
) -> pd.DataFrame:
    """How much of the predictions rests on the latent, the composition and the symmetry.

    Args:
        systems: name to trained system.
        data: rows to explain, such as those of the part "test".
        background: the rows that the systems were trained on.

    Returns:
        One row per system, target and kind of input: `system`, `target`, `kind`, `share` and
        `net_share`. `share` adds up the magnitudes of `System.contributions` over the features of
        the kind and over the rows; `net_share` lets the features of a kind cancel each other
        within a row first. Each sums to 1 over the kinds.
    """
    import pandas as pd

    frames = []
    for name, system in systems.items():
        if len(RECIPES[system.name].inputs) == 1:
            (kind,) = RECIPES[system.name].inputs
            whole = pd.DataFrame({"target": list(TARGETS)})
            frames.append(whole.assign(system=name, kind=kind, share=1.0, net_share=1.0))
            continue
        parts = system.contributions(data, background)
        parts["signed"] = parts["signed"].abs()
        sums = parts.groupby(["target", "kind"], sort=False)[["absolute", "signed"]].sum()
        shares = sums / sums.groupby(level="target").transform("sum")
        shares.columns = pd.Index(["share", "net_share"])
        frames.append(shares.reset_index().assign(system=name))
    columns = ["system", "target", "kind", "share", "net_share"]
    return pd.concat(frames, ignore_index=True)[columns]


class _Job:
    """One training and the predictions of its test rows."""

    def __init__(
        self, name: str, data: SystemData, seed: int, options: TrainOptions, folder: Path | None
    ) -> None:
        self.name = name
        self.data = data
        self.seed = seed
        self.options = options
        digest = hashlib.sha256(
            json.dumps([name, data.ids, data.split, seed, data.encoder, asdict(options)]).encode()
        )
        for array in (data.latents, data.composition, data.spacegroup, data.targets):
            digest.update(array.tobytes())
        self.path = folder / f"{name}-{digest.hexdigest()[:16]}.json" if folder else None

    def run(self, progress: Progress | None) -> pd.DataFrame:
        import pandas as pd

        if self.path is not None and self.path.exists():
            return pd.DataFrame(json.loads(self.path.read_text(encoding="utf-8")))
        system = train(
            self.name, self.data, seed=self.seed, options=self.options, progress=progress
        )
        values = system.predict(self.data.part("test"))
        if self.path is not None:
            make_folder(self.path.parent, ModelError)
            with replacing(self.path, ModelError) as partial:
                partial.write_text(json.dumps(values.to_dict("list")), encoding="utf-8")
        return values


def _prefixed(progress: Progress | None, where: str) -> Progress | None:
    return (lambda line: progress(f"{where}, {line}")) if progress else None


def _splits(data: SystemData, protocol: Protocol, n: int, seed: int) -> list[tuple[str, ...]]:
    """The part of each row, once for "split" and once per fold otherwise."""
    if protocol == "split":
        return [data.split]
    groups = np.array(data.formulas)

    def divided(rows: np.ndarray[Any, Any], parts: int, own_seed: int) -> np.ndarray[Any, Any]:
        if protocol == "grouped":
            return grouped_folds(groups[rows], parts, own_seed)
        return folds(len(rows), parts, own_seed)

    every = np.arange(len(data))
    outer = divided(every, n, seed)
    splits = []
    for fold in range(n):
        rest = every[outer != fold]
        inner = divided(rest, min(_INNER_FOLDS, len(rest)), seed + 1 + fold)
        parts = np.full(len(data), "test", dtype=object)
        parts[rest] = np.where(inner == 0, "val", "train")
        splits.append(tuple(map(str, parts)))
    return splits


def _long(
    values: pd.DataFrame, rows: SystemData, name: str, protocol: Protocol, fold: int
) -> pd.DataFrame:
    """Predictions with one row per target and material."""
    import pandas as pd

    frames = [
        pd.DataFrame(
            {"id": rows.ids, "reference": rows.targets[:, column], "predicted": values[target]}
        ).assign(system=name, protocol=protocol, fold=fold, target=target)
        for column, target in enumerate(TARGETS)
    ]
    columns = ["system", "protocol", "fold", "target", "id", "reference", "predicted"]
    return pd.concat(frames, ignore_index=True)[columns]


def _scores(predictions: pd.DataFrame, seed: int) -> pd.DataFrame:
    import pandas as pd

    rows = []
    keys = ["system", "protocol", "target"]
    for (system, protocol, target), some in predictions.groupby(keys, sort=False):
        row = {"system": system, "protocol": protocol, "target": target}
        rows.append(row | score_row(some["reference"], some["predicted"], seed))
    return pd.DataFrame(rows)
