"""What a chemical formula tells without a density: MAGPIE statistics, fractions, mass, valence.

The statistics are those of L. Ward et al., npj Comput. Mater. 2, 16028 (2016), as matminer's
ElementProperty ("magpie") and Stoichiometry compute them. The numbers of each element, and the
valence electrons of the pseudopotentials behind the training data, are in
`libraries/elements-1.json`; its card says where they come from. Like an atom library, the table
never changes once released, because models were trained on it.

A composition is a mapping of element symbol to its number of atoms; only the ratios matter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chgdb.elements import SYMBOLS
from chgdb.errors import InputError
from chgdb.query import count_atoms

__all__ = [
    "COMPOSITION_FEATURES",
    "ELEMENT_TABLE",
    "FRACTIONS",
    "OTHER_VALENCE",
    "composition_features",
    "element_fractions",
    "mass_per_atom",
    "parse_formula",
    "reference_valence",
]

ELEMENT_TABLE = "elements-1.json"
"""The table of elements, in `chgdb/libraries`."""

_PROPERTIES = (
    *("Number", "MendeleevNumber", "AtomicWeight", "MeltingT", "Column", "Row"),
    *("CovalentRadius", "Electronegativity"),
    *("NsValence", "NpValence", "NdValence", "NfValence", "NValence"),
    *("NsUnfilled", "NpUnfilled", "NdUnfilled", "NfUnfilled", "NUnfilled"),
    *("GSvolume_pa", "GSbandgap", "GSmagmom", "SpaceGroupNumber"),
)
_STATISTICS = ("minimum", "maximum", "range", "mean", "avg_dev", "mode")
_NORMS = (0, 2, 3, 5, 7, 10)

COMPOSITION_FEATURES: tuple[str, ...] = (
    *(f"MagpieData {name} {prop}" for prop in _PROPERTIES for name in _STATISTICS),
    *(f"{p}-norm" for p in _NORMS),
)
"""Names, as matminer and pydemi have them: 132 statistics, then 6 norms of the fractions."""

_HEAVIEST = 103
FRACTIONS: tuple[str, ...] = tuple(f"fraction {symbol}" for symbol in SYMBOLS[:_HEAVIEST])
"""Names of the element fractions, by atomic number up to lawrencium."""


OTHER_VALENCE = 0.01
"""Electrons per atom by which the count may differ between pseudopotentials of one kind."""


class _Elements(NamedTuple):
    """Numbers by element in the order of `SYMBOLS`, nan where unknown."""

    magpie: NDArray[np.float64]
    """Shape (element, property)."""
    valence: NDArray[np.float64]
    """Shape (element,), e."""


_ROWS = {symbol: row for row, symbol in enumerate(SYMBOLS)}


def parse_formula(text: str) -> dict[str, float]:
    """The atoms of a formula as written: {"Y": 1, "Si": 2, "Ni": 2} for "Y(SiNi)2".

    Counts may be decimal numbers: "Fe0.5Ni0.5".

    Raises:
        InputError: the text is no chemical formula or names an unknown element.
    """
    return count_atoms(text, float)


def composition_features(counts: Mapping[str, float]) -> NDArray[np.float64]:
    """Shape (138,), in the order of `COMPOSITION_FEATURES`.

    For each property of the elements the least and the greatest value, their difference, the mean
    over the atoms, the mean absolute deviation from it, and the value of the most frequent element
    (the least, if several are); then the p-norms of the fractions, of which the zeroth is the
    number of elements. A statistic over an element whose value is unknown is nan.

    Raises:
        InputError: the composition names an unknown element, or has no atoms or impossible counts.
    """
    rows, fractions = _fractions(counts)
    values = _elements().magpie[rows]
    least, greatest = values.min(axis=0), values.max(axis=0)
    mean = fractions @ values
    deviation = fractions @ np.abs(values - mean)
    mode = values[np.isclose(fractions, fractions.max())].min(axis=0)
    statistics = np.stack([least, greatest, greatest - least, mean, deviation, mode], axis=1)
    norms = [float((fractions**p).sum() ** (1 / p)) if p else float(len(rows)) for p in _NORMS]
    return np.concatenate([statistics.ravel(), norms])


def element_fractions(counts: Mapping[str, float]) -> NDArray[np.float64]:
    """Shape (103,), in the order of `FRACTIONS`: the share of each element in the atoms.

    Raises:
        InputError: the composition names an unknown element, or has no atoms or impossible counts.
    """
    rows, fractions = _fractions(counts)
    every = np.zeros(len(SYMBOLS))
    every[rows] = fractions
    return every[:_HEAVIEST]


def mass_per_atom(counts: Mapping[str, float]) -> float:
    """The mean atomic mass, u; nan where that of an element is unknown.

    Raises:
        InputError: the composition names an unknown element, or has no atoms or impossible counts.
    """
    rows, fractions = _fractions(counts)
    return float(fractions @ _elements().magpie[rows, _PROPERTIES.index("AtomicWeight")])


def reference_valence(counts: Mapping[str, float]) -> float:
    """Electrons per atom that a density of the training data has; nan where it is unknown.

    Those of the PAW data set that the authors' VASP runs used for each element. A density with
    another number comes from other pseudopotentials.

    Raises:
        InputError: the composition names an unknown element, or has no atoms or impossible counts.
    """
    rows, fractions = _fractions(counts)
    return float(fractions @ _elements().valence[rows])


def _fractions(counts: Mapping[str, float]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of the elements that are there, ascending, and their shares, which sum to 1."""
    if unknown := [symbol for symbol in counts if symbol not in _ROWS]:
        raise InputError(f"{str(unknown[0])[:20]!r} is not an element")
    if not all(math.isfinite(count) and count >= 0 for count in counts.values()):
        raise InputError("the counts of a composition must be finite and not negative")
    present = sorted((_ROWS[symbol], float(count)) for symbol, count in counts.items() if count > 0)
    if not present:
        raise InputError("the composition has no atoms")
    rows, amounts = zip(*present, strict=True)
    shares = np.array(amounts) / max(amounts)
    return np.array(rows), shares / shares.sum()


@lru_cache(maxsize=1)
def _elements() -> _Elements:
    """The table that came with the package."""
    text = (files("chgdb") / "libraries" / ELEMENT_TABLE).read_text(encoding="utf-8")
    table = json.loads(text)
    columns = [table["properties"].index(name) for name in _PROPERTIES]
    entries = [table["elements"].get(symbol, {}) for symbol in SYMBOLS]
    nothing = [None] * len(table["properties"])
    # null becomes nan
    magpie = np.array([entry.get("magpie") or nothing for entry in entries], dtype=np.float64)
    valence = np.array([entry.get("valence") for entry in entries], dtype=np.float64)
    return _Elements(magpie[:, columns], valence)
