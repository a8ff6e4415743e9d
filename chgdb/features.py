"""What a density tells of a material: composition, volume, electrons, symmetry, descriptors.

A *feature table* is a DataFrame with the column `id` and the `FEATURE_COLUMNS`, one row per
material. Everything in it is the same whichever cell of the crystal the density is given in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chgdb.composition import OTHER_VALENCE, parse_formula, reference_valence
from chgdb.density import ChargeDensity
from chgdb.descriptors import DESCRIPTORS, WITHIN_ELEMENTS, describe
from chgdb.elements import formula_rank
from chgdb.errors import InputError, MissingExtraError
from chgdb.symmetry import find_symmetry

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FEATURES_VERSION",
    "FEATURE_COLUMNS",
    "REFERENCE_DATA",
    "Features",
    "features_of",
    "reference_bundle",
    "reference_features",
]

FEATURES_VERSION = 1
"""Raised when the features of a density change, so that stored ones are computed anew."""

FEATURE_COLUMNS: tuple[str, ...] = (
    *("formula", "volume_per_atom", "electrons_per_atom", "spacegroup"),
    *DESCRIPTORS,
)
"""The columns of a feature table but `id`: text, A^3, e, whole number or NA, then numbers."""

REFERENCE_DATA = "pydemi 0.2.0"
"""The data set of `reference_features`."""


@dataclass(frozen=True, eq=False)
class Features:
    """The features of a density.

    Attributes:
        counts: atoms per element; only the ratios matter.
        descriptors: shape (55,), in the order of `DESCRIPTORS`; nan where not defined.
        volume_per_atom: A^3.
        electrons_per_atom: e, as many as the density holds.
        spacegroup: 1 to 230, None where it is not known.
    """

    counts: Mapping[str, float]
    descriptors: NDArray[np.float64]
    volume_per_atom: float
    electrons_per_atom: float
    spacegroup: int | None

    @property
    def foreign(self) -> bool:
        """Whether the density is of other pseudopotentials than those of the training data.

        That is seen in the count of the electrons; where the reference count is not known, it is
        taken to be so.

        Raises:
            InputError: a species is not an element.
        """
        expected = reference_valence(self.counts)
        return not abs(self.electrons_per_atom - expected) <= OTHER_VALENCE

    def row(self) -> dict[str, Any]:
        """The features as a row of a feature table, without an id."""
        return {
            "formula": _formula(self.counts),
            "volume_per_atom": self.volume_per_atom,
            "electrons_per_atom": self.electrons_per_atom,
            "spacegroup": self.spacegroup,
            **dict(zip(DESCRIPTORS, self.descriptors.tolist(), strict=True)),
        }


def features_of(density: ChargeDensity) -> Features:
    """The features of a total density; its magnetization is not regarded.

    Args:
        density: in any cell of the crystal.

    Raises:
        InputError: a species is not an element, or the density has no atoms or no electrons.
        MissingExtraError: pydemi is not installed.
    """
    structure = density.structure
    n_atoms = len(structure.species)
    if n_atoms:
        reference_valence(structure.composition)  # tells of what is no element
    descriptors = describe(density)
    symmetry = find_symmetry(structure)
    return Features(
        counts={symbol: float(count) for symbol, count in structure.composition.items()},
        descriptors=descriptors,
        volume_per_atom=structure.volume / n_atoms,
        electrons_per_atom=density.n_electrons / n_atoms,
        spacegroup=symmetry.number if symmetry else None,
    )


def reference_features(spacegroups: Mapping[str, int] | None = None) -> pd.DataFrame:
    """The feature table of the 6059 materials that the property models are trained on.

    The descriptors are those that pydemi comes with, of the authors' VASP densities in their cells
    on their grids; variances that pydemi leaves open are 0, as in `describe`. The volume follows
    from the mean density, which is rho_min / rho_min_ratio, and the electrons of the
    pseudopotentials that were used.

    Args:
        spacegroups: number by id, of the materials of which it is known.

    Raises:
        InputError: the installed pydemi does not have that data set.
        MissingExtraError: pydemi is not installed.
    """
    import pandas as pd

    data = reference_bundle()["dataset"]
    table = pd.DataFrame(np.array(data["X"], dtype=np.float64), columns=list(DESCRIPTORS))
    table = table.fillna(dict.fromkeys(WITHIN_ELEMENTS, 0.0))
    counts = [parse_formula(formula) for formula in data["formula"]]
    electrons = np.array([reference_valence(composition) for composition in counts])
    mean = (table["rho_min"] / table["rho_min_ratio"]).to_numpy()
    numbers = spacegroups or {}
    head = pd.DataFrame(
        {
            "id": data["material_id"],
            "formula": [_formula(composition) for composition in counts],
            "volume_per_atom": electrons / mean,
            "electrons_per_atom": electrons,
            "spacegroup": pd.array(
                [numbers.get(material) for material in data["material_id"]], dtype="Int64"
            ),
        }
    )
    return pd.concat([head, table], axis=1)


def reference_bundle() -> dict[str, Any]:
    """What pydemi ships, without its models.

    Returns:
        `dataset`: `material_id`, `formula`, `split`, `X`, one row of `DESCRIPTORS` per material,
        and `y`, a list of values by target; `targets`: by target the `metrics` and, in `test`, the
        predictions `p` of pydemi's own models.

    Raises:
        InputError: the installed pydemi does not have that data set.
        MissingExtraError: pydemi is not installed.
    """
    try:
        import pydemi
    except ImportError as error:
        raise MissingExtraError("the reference features", "ml") from error
    return _read_bundle(Path(pydemi.__file__).parent / "properties_v1.json.xz", pydemi.__version__)


@lru_cache(maxsize=1)
def _read_bundle(path: Path, version: str) -> dict[str, Any]:
    import json
    import lzma

    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            bundle = json.load(file)
        if tuple(bundle["features"]) == DESCRIPTORS:
            targets = bundle.get("targets", {}).items()
            kept = {name: {key: own[key] for key in ("metrics", "test")} for name, own in targets}
            return {"dataset": bundle["dataset"], "targets": kept}
    except (OSError, lzma.LZMAError, ValueError, KeyError) as error:
        raise InputError(
            f"pydemi {version} lacks the data set of {REFERENCE_DATA}: "
            f"pip install '{REFERENCE_DATA.replace(' ', '==')}'"
        ) from error
    raise InputError(f"pydemi {version} has other descriptors than {REFERENCE_DATA}")


def _formula(counts: Mapping[str, float]) -> str:
    """The formula as `Structure.formula` writes it; counts that are not whole as they are."""
    amounts: dict[str, float] = {
        symbol: counts[symbol] for symbol in sorted(counts, key=formula_rank)
    }
    if all(float(amount).is_integer() for amount in amounts.values()):
        divisor = math.gcd(*(int(amount) for amount in amounts.values()))
        amounts = {symbol: amount / divisor for symbol, amount in amounts.items()}
    return "".join(
        symbol + ("" if amount == 1 else f"{amount:.12g}") for symbol, amount in amounts.items()
    )
