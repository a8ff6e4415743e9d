"""What `chgdb evaluate` tells: scores of the property model, its peer and the paper's systems.

The systems learned from the materials whose density is in the store. They are scored on those of
them that are of the part, and so is the property model beside them: identical rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chgdb.errors import ModelError
from chgdb.evaluation import BASELINE, input_shares
from chgdb.figures import distribution_plot, parity_plot, shares_plot
from chgdb.files import make_folder
from chgdb.predicting import load_model
from chgdb.properties import TARGETS
from chgdb.property_evaluation import (
    compare_predictions,
    evaluate_properties,
    peer_predictions,
    score_table,
    tree_shares,
)
from chgdb.resources import model_folders
from chgdb.schema import PROPERTIES
from chgdb.scores import Scores
from chgdb.system_inputs import system_data
from chgdb.system_models import SYSTEMS, System
from chgdb.train_properties import join
from chgdb.weights import CONFIG_FILE

if TYPE_CHECKING:
    import pandas as pd

    from chgdb.database import Database

__all__ = ["Assessment", "assess", "write_assessment"]

_UNITS = {column.name: column.unit for column in PROPERTIES}


@dataclass(frozen=True, eq=False)
class Assessment:
    """Scores, and what they were computed from.

    Attributes:
        scores: as of `property_evaluation.score_table`, all systems below each other. A label
            "NAME, with density" means the rows of the part whose density is in the store; the
            property model takes its stored features there too, which may be of a data set.
        predictions: by label, with references.
        gains: by label, the property model paired with it on identical rows; and every system with
            the one that sees composition and symmetry alone ("NAME, over ...").
        shares: by label and target, the share of each kind of input in the predictions (SHAP).
    """

    scores: pd.DataFrame
    predictions: Mapping[str, pd.DataFrame]
    gains: Mapping[str, pd.DataFrame]
    shares: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)


def assess(
    database: Database,
    properties: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    model: str | Path | None = None,
    systems: Sequence[str] = SYSTEMS,
    part: str = "test",
    seed: int = 0,
) -> Assessment:
    """Score the property model, pydemi's where it is installed, and the systems that are trained.

    Args:
        database: the store, with features.
        properties: by id, with `split`; None for the reference values of the store.
        model: id or folder of the property model; None for the default one.
        systems: of the paper; those without a folder in `models/` are left out.
        part: "train", "val" or "test".
        seed: of the bootstrap.

    Raises:
        InputError: no material of the part has features and properties.
        ModelError: a model is not found, or damaged.
        MissingExtraError: a package that a model needs is not installed.
        StoreError: the store is damaged.
    """
    import pandas as pd

    known = properties if properties is not None else _references(database)
    table = join(database.features(), known)
    judged = load_model(model)
    made = evaluate_properties(judged, table, part)
    predictions = {judged.id: made}
    gains = {}
    rows = table[table["split"] == part]
    shares: dict[str, Mapping[str, Mapping[str, float]]] = {
        judged.id: tree_shares(judged.members("full"), rows, "full")
    }
    peer = peer_predictions(table) if part == "test" else None
    if peer is not None:
        predictions["pydemi"] = peer
        gains["pydemi"] = compare_predictions(peer, made, seed=seed)
    found = _trained(systems)
    if found:
        data = system_data(database)
        some = data.part(part)
        learned = data.part("train")
        here = made[made["id"].isin(some.ids)].reset_index(drop=True)
        predictions[f"{judged.id}, with density"] = here
        for name, folder in found.items():
            system = System.load(folder)
            frame = system.predict(some)
            for column, target in enumerate(TARGETS):
                frame[f"{target}_reference"] = some.targets[:, column]
            predictions[f"{name}, with density"] = frame
            both = frame[frame["id"].isin(here["id"])]
            gains[f"{name}, with density"] = compare_predictions(both, here, seed=seed)
            shares[f"{name}, with density"] = _by_target(
                input_shares({name: system}, some, learned)
            )
    baseline = f"{BASELINE}, with density"
    for name in found:
        label = f"{name}, with density"
        if name != BASELINE and BASELINE in found:
            pair = compare_predictions(predictions[baseline], predictions[label], seed=seed)
            gains[f"{label}, over {BASELINE}"] = pair
    scores = [score_table(frame, label, seed=seed) for label, frame in predictions.items()]
    return Assessment(pd.concat(scores, ignore_index=True), predictions, gains, shares)


def write_assessment(assessment: Assessment, folder: str | Path) -> list[Path]:
    """Tables (CSV) and figures (PNG): parity, distributions, and shares of the kinds of input.

    Returns:
        The files.

    Raises:
        InputError: the folder cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    import pandas as pd

    folder = make_folder(folder)
    written = [folder / "scores.csv"]
    assessment.scores.to_csv(written[0], index=False)
    if assessment.gains:
        written.append(folder / "gains.csv")
        gains = [frame.assign(pair=label) for label, frame in assessment.gains.items()]
        pd.concat(gains, ignore_index=True).to_csv(written[-1], index=False)
    written.append(folder / "shares.csv")
    rows = [
        {"system": label, "target": target, "kind": kind, "share": share}
        for label, targets in assessment.shares.items()
        for target, kinds in targets.items()
        for kind, share in kinds.items()
    ]
    pd.DataFrame(rows).to_csv(written[-1], index=False)
    for label, frame in assessment.predictions.items():
        written.append(folder / f"predictions-{_file_name(label)}.csv")
        frame.to_csv(written[-1], index=False)
    for row in assessment.scores.to_dict("records"):
        label, target = str(row["system"]), str(row["target"])
        frame = assessment.predictions[label]
        bounds = {
            end: frame[f"{target}_{end}"] for end in ("low", "high") if f"{target}_{end}" in frame
        }
        written.append(folder / f"parity-{_file_name(label)}-{target}.png")
        parity_plot(
            written[-1],
            frame[f"{target}_reference"],
            frame[target],
            title=f"{label}: {target.replace('_', ' ')}",
            unit=_UNITS[target],
            scores=Scores(int(row["n"]), row["r2"], row["mae"], row["rmse"]),
            **bounds,
        )
    label, frame = next(iter(assessment.predictions.items()))
    for target in TARGETS:
        written.append(folder / f"distribution-{target}.png")
        values = {"reference": frame[f"{target}_reference"], label: frame[target]}
        distribution_plot(written[-1], values, f"{target.replace('_', ' ')} ({_UNITS[target]})")
    for target in TARGETS:
        bars = {name: parts[target] for name, parts in assessment.shares.items() if target in parts}
        if bars:
            written.append(folder / f"shares-{target}.png")
            shares_plot(written[-1], bars)
    return written


def _references(database: Database) -> dict[str, dict[str, Any]]:
    """The reference values of the records of a store that have a part of the split."""
    names = [column.name for column in PROPERTIES]
    rows = database.select(columns=["id", *names]).rows()
    known = {
        row["id"]: {name: row[name] for name in names if row[name] is not None} for row in rows
    }
    return {id_: row for id_, row in known.items() if "split" in row}


def _trained(names: Sequence[str]) -> dict[str, Path]:
    """The folders of the systems that are there."""
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise ModelError(f"no system {unknown[0]!r}: there are {', '.join(SYSTEMS)}")
    folders = {name: [root / name for root in model_folders()] for name in names}
    return {
        name: next(path for path in paths if (path / CONFIG_FILE).is_file())
        for name, paths in folders.items()
        if any((path / CONFIG_FILE).is_file() for path in paths)
    }


def _by_target(shares: pd.DataFrame) -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = {}
    for row in shares.to_dict("records"):
        result.setdefault(str(row["target"]), {})[str(row["kind"])] = float(row["share"])
    return result


def _file_name(label: str) -> str:
    return label.replace(", ", "-").replace(" ", "-")
