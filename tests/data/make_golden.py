"""What the shipped store and models say of some records: `make_golden.py > tests/data/golden.json`.

tests/test_numbers.py holds the file against what is computed today. It is made anew only by someone
who means to change the numbers, and who says so in the changelog. With `--bytes` it prints the
hashes of what is encoded too, which the tests compare between numbers of threads.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from chgdb.archive import encode
from chgdb.codec import load_codec
from chgdb.database import Database
from chgdb.density import ChargeDensity
from chgdb.features import features_of
from chgdb.schema import PREDICTED

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ("mp-149", "mp-134")
POINTS = 6
"""Values of each density, spread over its grid."""


def sampled(density: ChargeDensity) -> dict[str, Any]:
    """Electrons, the largest value and some others, e and e/A^3."""
    flat = density.values.ravel()
    index = np.linspace(0, flat.size - 1, POINTS).astype(int)
    return {
        "electrons": density.n_electrons,
        "largest": float(flat.max()),
        "values": flat[index].tolist(),
    }


def numbers(*, with_bytes: bool = False) -> dict[str, Any]:
    """By record, what is decoded, described and predicted."""
    database = Database(ROOT / "store", device="cpu")
    predictions = database.predict(list(RECORDS)).to_dict("records")
    predicted = {row["id"]: row for row in predictions}
    codec = load_codec(ROOT / "models" / database.info.encoder.id, "cpu")
    found: dict[str, Any] = {}
    for material in RECORDS:
        record = database[material]
        density = record.density()
        features = features_of(density)
        found[material] = {
            "payload": sampled(density),
            "latent": sampled(record.density(source="latent")),
            "features": features.descriptors[::12].tolist(),
            "predicted": {name: float(predicted[material][name]) for name in PREDICTED},
        }
        if with_bytes:
            (latent,) = codec.refining(3).encode([density])
            (plain,) = codec.refining(0).encode([density])
            found[material]["bytes"] = {
                "payload": hashlib.sha256(encode(density).data).hexdigest(),
                "decoded": hashlib.sha256(density.values.tobytes()).hexdigest(),
                "refined": (codec.stored(latent).values.ravel() * 127).round().tolist(),
                "plain": plain.values.ravel().tolist(),
            }
    return found


if __name__ == "__main__":
    json.dump(numbers(with_bytes="--bytes" in sys.argv), sys.stdout, indent=1)
    sys.stdout.write("\n")
