"""Print the spreads of `chgdb.similarity`: python scripts/fit_similarity.py.

They are constants of the distance, and stay as they are once released.
"""

from __future__ import annotations

import numpy as np

from chgdb.features import reference_features
from chgdb.similarity import DENSITY_COLUMNS, density_coordinates


def main() -> None:
    """The distance of the quartiles over that of a normal distribution, before any scaling."""
    table = reference_features()
    points = density_coordinates({name: table[name] for name in DENSITY_COLUMNS}, spreads=1.0)
    low, high = np.quantile(points, [0.25, 0.75], axis=0)
    print(", ".join(f"{spread:.4f}" for spread in (high - low) / 1.349))


if __name__ == "__main__":
    main()
