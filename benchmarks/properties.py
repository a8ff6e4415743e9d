"""How good the property models are beyond the one split: folds, and what the density adds.

    python benchmarks/properties.py --store store --folder folds \\
        --properties ../shared/data/properties_6059.csv.gz \\
        --spacegroups ../shared/data/latentmatfusion_6059_data.csv

Fits one network of 100 epochs and the trees anew every time, at equal weights: two on the split and
ten folds (random, and all materials of one formula together). The folds of an interrupted run are
taken from the folder. 40 minutes on a machine of two cores with other work.
"""

import argparse
from pathlib import Path

import pandas as pd

import chgdb
from chgdb.intake import read_properties
from chgdb.property_evaluation import (
    PROTOCOLS,
    compare_predictions,
    cross_validate,
    fit_and_predict,
    score_table,
)
from chgdb.train_properties import Settings, join


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--properties", type=Path, required=True)
    parser.add_argument("--spacegroups", type=Path, help="CSV: material_id, space_group_number")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--epochs", type=int, default=100)
    arguments = parser.parse_args()
    features = chgdb.open(arguments.store).features()
    if arguments.spacegroups:
        known = pd.read_csv(arguments.spacegroups).set_index("material_id")["space_group_number"]
        features["spacegroup"] = features["id"].map(known).astype("Int64")
    table = join(features, read_properties(arguments.properties))
    settings = Settings(networks=1, epochs=arguments.epochs)
    train, test = ((table["split"] == part).to_numpy() for part in ("train", "test"))
    without = fit_and_predict(table, train, test, "composition", settings)
    full = fit_and_predict(table, train, test, "full", settings)
    for label, made in (("composition and symmetry", without), ("with the density", full)):
        print(score_table(made, label).round(4).to_string(), flush=True)
    print(compare_predictions(without, full).round(4).to_string(), flush=True)
    for protocol in PROTOCOLS:
        made = cross_validate(table, "full", protocol, settings, folder=arguments.folder)
        print(score_table(made, protocol).round(4).to_string(), flush=True)


if __name__ == "__main__":
    main()
