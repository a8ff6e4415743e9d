"""How good the property model is: the split of the paper, cross-validation, and its peer.

`evaluate_properties` scores a model on the rows of a part. `cross_validate` fits anew in every
fold, drawn at random or with all polymorphs of a formula together. `compare_predictions` sets two
against each other row by row, such as those with and without the density. `peer_predictions` are
those for the test part that pydemi ships.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from chgdb.errors import InputError, ModelError
from chgdb.features import reference_bundle
from chgdb.files import make_folder, replacing
from chgdb.inputs import GEOMETRY, SYMMETRY, InputSet, input_names, make_inputs
from chgdb.properties import BASE_TARGETS, TARGETS, Members, PropertyModel
from chgdb.schema import PROPERTIES
from chgdb.scores import coverage, folds, grouped_folds, paired_row, score_row
from chgdb.train_properties import Settings, fingerprint, fit_members

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "compare_predictions",
    "cross_validate",
    "evaluate_properties",
    "fit_and_predict",
    "peer_predictions",
    "score_table",
    "tree_shares",
    "write_card",
]

Protocol = Literal["random", "grouped"]
PROTOCOLS: tuple[Protocol, ...] = ("random", "grouped")

_PEER = "pydemi"
_PACKAGES = ("python", "numpy", "torch", "lightgbm")


def evaluate_properties(model: PropertyModel, table: pd.DataFrame, part: str) -> pd.DataFrame:
    """The predictions of a model beside the references, for the rows of one part.

    Args:
        model: to be judged.
        table: feature table with the targets and `split` as columns (`train_properties.join`).
        part: "train", "val" or "test".

    Returns:
        What `PropertyModel.predict` gives, and "<target>_reference", nan where unknown.

    Raises:
        InputError: no row is of the part.
    """
    rows = table[table["split"] == part].reset_index(drop=True)
    if rows.empty:
        raise InputError(f"no material of the part {part!r} has features and properties")
    made = model.predict(rows)
    for target in TARGETS:
        made[f"{target}_reference"] = rows[target].to_numpy(float)
    return made


def score_table(predictions: pd.DataFrame, label: str, *, seed: int = 0) -> pd.DataFrame:
    """Scores of predictions with their references in "<target>_reference".

    Returns:
        One row per target: `system` (the label), `target`, `n`, `r2`, `mae` and `rmse`, each with
        `_low` and `_high`, the ends of its 95 % bootstrap interval, and `coverage`, the share of
        the references inside the prediction intervals (nan if there are none).
    """
    import pandas as pd

    rows = []
    for target in TARGETS:
        if target not in predictions:
            continue
        reference = predictions[f"{target}_reference"].to_numpy(float)
        made = predictions[target].to_numpy(float)
        if not np.isfinite(reference).any():
            continue
        row: dict[str, Any] = {"system": label, "target": target}
        row |= score_row(reference, made, seed)
        bounds = [f"{target}_low", f"{target}_high"]
        row["coverage"] = (
            coverage(reference, *(predictions[name].to_numpy(float) for name in bounds))
            if set(bounds) <= set(predictions.columns)
            else np.nan
        )
        rows.append(row)
    return pd.DataFrame(rows)


def compare_predictions(
    first: pd.DataFrame, second: pd.DataFrame, *, seed: int = 0
) -> pd.DataFrame:
    """The second predictions against the first, paired: on the same rows and resamples of them.

    Returns:
        One row per target that both have: `target`, `n`, `mae_change` and `r2_change` (second
        minus first), each with `_low` and `_high`, the ends of the 95 % interval, and `_better`,
        the share of the resamples in which the second is better.
    """
    import pandas as pd

    second = second.set_index("id").loc[first["id"]]
    rows = []
    for target in TARGETS:
        if target not in first or target not in second:
            continue
        reference = first[f"{target}_reference"].to_numpy(float)
        pair = first[target].to_numpy(), second[target].to_numpy()
        rows.append({"target": target, **paired_row(reference, *pair, seed)})
    return pd.DataFrame(rows)


def fit_and_predict(
    table: pd.DataFrame,
    train: NDArray[np.bool_],
    rows: NDArray[np.bool_],
    kind: InputSet,
    settings: Settings,
) -> pd.DataFrame:
    """Predictions of some rows by members fitted on others; networks and trees weigh the same.

    Args:
        table: feature table with the outputs and targets as columns (`train_properties.join`).
        train: shape (row,), the rows to fit.
        rows: shape (row,), those to predict.
        kind: the set of inputs.
        settings: how to fit.
    """
    import pandas as pd

    members = fit_members(table, train, kind, settings)
    some = table[rows].reset_index(drop=True)
    every = members.every_target(some)
    made = pd.DataFrame({"id": some["id"], **{target: every[target] for target in TARGETS}})
    for target in TARGETS:
        made[f"{target}_reference"] = some[target].to_numpy(float)
    return made


def cross_validate(
    table: pd.DataFrame,
    kind: InputSet,
    protocol: Protocol,
    settings: Settings,
    *,
    n_folds: int = 5,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Predictions of every row by members that were fitted without its fold.

    Args:
        table: feature table with the outputs and targets as columns (`train_properties.join`).
        kind: the set of inputs.
        protocol: "random", or "grouped": all materials of one formula in one fold.
        settings: how to fit.
        n_folds: how many.
        seed: of the folds.
        folder: keeps the predictions of the folds that are done, for a run that was interrupted.
        progress: called with the folds done and all.
    """
    import pandas as pd

    if protocol == "grouped":
        fold = grouped_folds(table["formula"].to_numpy(), n_folds, seed)
    else:
        fold = folds(len(table), n_folds, seed)
    parts = []
    for number in range(n_folds):
        run = fingerprint(table, settings)[:12]
        kept = folder / f"{kind}-{protocol}-{n_folds}-{seed}-{number}-{run}.csv" if folder else None
        if kept is not None and kept.exists():
            parts.append(pd.read_csv(kept))
        else:
            parts.append(fit_and_predict(table, fold != number, fold == number, kind, settings))
            if kept is not None:
                make_folder(kept.parent)
                with replacing(kept) as partial:
                    parts[-1].to_csv(partial, index=False)
        if progress:
            progress(number + 1, n_folds)
    return pd.concat(parts, ignore_index=True)


def peer_predictions(table: pd.DataFrame) -> pd.DataFrame | None:
    """What the models inside pydemi predicted for the test part; None if it is not installed.

    Args:
        table: feature table with `split` and the targets, whose references are put beside them.
    """
    import pandas as pd

    if find_spec(_PEER) is None:
        return None
    bundle = reference_bundle()
    data = bundle["dataset"]
    made = []
    for target in TARGETS:
        if target not in bundle["targets"]:
            continue
        # its test predictions leave out the rows without a reference
        there = [
            id_
            for id_, part, value in zip(
                data["material_id"], data["split"], data["y"][target], strict=True
            )
            if part == "test" and value is not None
        ]
        predicted = bundle["targets"][target]["test"]["p"]
        made.append(pd.Series(predicted, index=pd.Index(there, name="id"), name=target))
    frame = pd.concat(made, axis=1).reset_index()
    references = table.set_index("id")
    frame = frame[frame["id"].isin(references.index)].reset_index(drop=True)
    for target in frame.columns[1:]:
        known = references.loc[frame["id"], target].to_numpy(float)
        frame[f"{target}_reference"] = np.where(frame[target].notna(), known, np.nan)
        frame[target] = frame[target].fillna(0.0)
    return frame


def tree_shares(
    members: Members, table: pd.DataFrame, kind: InputSet
) -> dict[str, dict[str, float]]:
    """What the trees rest on: mean magnitude of the SHAP values by group of inputs, sum 1.

    The values are LightGBM's own (S. Lundberg et al., TreeSHAP), of what the trees were fitted to:
    a modulus times volume per atom, or an energy. Groups are "density" (descriptors and the charge
    between the atoms), "volume", "composition" (statistics, fractions, valence) and "symmetry".

    Args:
        members: whose trees.
        table: feature table of the materials to explain.
        kind: the set of inputs of the members.
    """
    names = input_names(kind)
    inputs = make_inputs(table, kind)
    groups = np.array(
        [_group(name) for name in names] + ["composition"] * inputs.fractions.shape[1]
    )
    shares = {}
    for target in BASE_TARGETS:
        values = np.abs(members.contributions(target, inputs))
        total = float(values.sum())
        shares[target] = {
            str(group): float(values[:, groups == group].sum()) / total
            for group in dict.fromkeys(groups)
        }
    return shares


def write_card(folder: str | Path, model: PropertyModel, table: pd.DataFrame) -> None:
    """Write README.md of a property model: from what, how, how good, made how.

    Args:
        folder: of the model.
        model: just trained.
        table: feature table with the targets and `split` as columns (`train_properties.join`).

    Raises:
        ModelError: it cannot be written.
    """
    made = evaluate_properties(model, table, "test")
    training = model.config.training
    units = {column.name: column.unit for column in PROPERTIES}
    lines = [
        f"# {model.id}, version {model.version}",
        "",
        "Bulk, shear and Young's modulus, formation and cohesive energy and Debye temperature from",
        "the features of a charge density (docs/properties.md): networks (safetensors, evaluated",
        "by NumPy) and boosted trees (LightGBM text), a variant for densities of the",
        "pseudopotentials of the training data and a core-blind one for others.",
        "",
        "Data: the features of the store and the table of properties, split as the source paper",
        f"has it: {_listed(training['rows'])}.",
        "Materials Project, CC BY 4.0, by way of pydemi 0.2.0.",
        "Fitted on the part train; val chose the weights of the means and the widths of the",
        "intervals; test was predicted only.",
        "",
        "| test part | n | R2 | MAE | RMSE | inside the 90 % interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in score_table(made, model.id).to_dict("records"):
        target = str(row["target"])
        lines.append(
            f"| {target} ({units[target]}) | {row['n']} | {row['r2']:.4f} | {row['mae']:.4g} "
            f"| {row['rmse']:.4g} | {100 * row['coverage']:.1f} % |"
        )
    settings = training["settings"]
    lines += [
        "",
        "Made by",
        "",
        "    chgdb train properties --properties ../shared/data/properties_6059.csv.gz \\",
        (
            f"        --networks {settings['networks']} --epochs {settings['epochs']} "
            f"--seed {settings['seed']} -o models/{model.id}"
        ),
        "",
        f"with chgdb {training['chgdb']}, " + _listed({name: training[name] for name in _PACKAGES})
        + f"; SHA-256 of config.json {model.sha256}.",
        "The same packages on the same kind of processor give the same files.",
    ]  # fmt: skip
    with replacing(Path(folder) / "README.md", ModelError) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _group(name: str) -> str:
    if name == "reference_valence":
        return "composition"
    if name in GEOMETRY and name != "interstitial_charge":
        return "volume"
    if name in SYMMETRY:
        return "symmetry"
    return "composition" if name.startswith("MagpieData") or name.endswith("-norm") else "density"
