"""Feature tables of materials that do not exist, whose properties follow from their features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from chgdb.composition import mass_per_atom, parse_formula, reference_valence
from chgdb.descriptors import DESCRIPTORS
from chgdb.elasticity import debye_temperature, youngs_modulus

if TYPE_CHECKING:
    import pandas as pd

METALS = ("Ti", "Fe", "Al", "Mg", "Cu", "Ni", "Zr", "V")
OTHERS = ("O", "N", "C", "Si", "S")


def feature_table(rows: int = 120, seed: int = 0) -> Any:
    """A DataFrame of materials of one metal and one nonmetal, with descriptors at random.

    Any, because the stubs of pandas refuse arithmetic on cells.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    formulas = [
        f"{rng.choice(METALS)}{rng.integers(1, 4)}{rng.choice(OTHERS)}{rng.integers(1, 4)}"
        for _ in range(rows)
    ]
    columns: dict[str, Any] = {
        "id": [f"m-{i}" for i in range(rows)],
        "formula": formulas,
        "volume_per_atom": rng.uniform(8, 25, rows),
        "electrons_per_atom": [reference_valence(parse_formula(text)) for text in formulas],
        "spacegroup": pd.array(rng.choice([225, 62, 194, 2], rows), dtype="Int64"),
    }
    columns |= {name: rng.normal(1, 0.3, rows) for name in DESCRIPTORS}
    return pd.DataFrame(columns)


def properties(table: pd.DataFrame, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Moduli that fall with the volume and rise with the density between the atoms."""
    rng = np.random.default_rng(seed)
    volume = table["volume_per_atom"].to_numpy()
    bulk = 2000 / volume * table["rho_int_mean"].abs().to_numpy() + 5
    shear = 0.5 * bulk
    mass = np.array([mass_per_atom(parse_formula(text)) for text in table["formula"]])
    energy = -0.1 * table["rho_mid_mean"].to_numpy()
    values = {
        "bulk_modulus": bulk,
        "shear_modulus": shear,
        "youngs_modulus": youngs_modulus(bulk, shear),
        "formation_energy": energy,
        "cohesive_energy": energy - 4,
        "debye_temperature": debye_temperature(bulk, shear, volume, mass),
        "C11": bulk * 1.5,
        "band_gap": np.zeros(len(table)),
    }
    parts = rng.choice(["train", "val", "test"], len(table), p=[0.6, 0.2, 0.2])
    return {
        id_: {"split": str(parts[i]), **{name: float(v[i]) for name, v in values.items()}}
        for i, id_ in enumerate(table["id"])
    }
