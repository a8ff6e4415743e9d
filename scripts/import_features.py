"""Put the features of the 6059 materials of the source paper into a store, from pydemi's data set.

    python scripts/import_features.py store ../shared/data/structures.json.gz

Space groups are those of the structures that are given; the other materials have none.
"""

import gzip
import json
import sys

import chgdb
from chgdb.features import REFERENCE_DATA, reference_features


def main(store: str, structures: str | None = None) -> None:
    spacegroups = {}
    if structures:
        with gzip.open(structures, "rt", encoding="utf-8") as file:
            spacegroups = {entry["id"]: entry["spacegroup"] for entry in json.load(file)}
    table = reference_features(spacegroups)
    chgdb.open(store).add_features(table, REFERENCE_DATA)
    print(f"{store}: features of {len(table)} materials")


if __name__ == "__main__":
    main(*sys.argv[1:])
