"""What the property models see of a material: numbers made of a row of a feature table.

Three sets of inputs. `full` is everything a density tells. `core_blind` leaves out the descriptors
that see the core, which differ between pseudopotentials, and counts the interstitial charge in
electrons of the reference pseudopotentials; it serves densities of other pseudopotentials.
`composition` is composition and space group alone: what a gain of the density is measured against.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chgdb.composition import (
    COMPOSITION_FEATURES,
    FRACTIONS,
    OTHER_VALENCE,
    composition_features,
    element_fractions,
    parse_formula,
    reference_valence,
)
from chgdb.descriptors import CORE_BLIND, DESCRIPTORS
from chgdb.schema import CRYSTAL_SYSTEMS
from chgdb.units import ATOMIC_MASS_PER_A3

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "GEOMETRY",
    "GRID_BOUND",
    "INPUT_SETS",
    "SYMMETRY",
    "InputSet",
    "Inputs",
    "input_names",
    "is_foreign",
    "make_inputs",
]

InputSet = Literal["full", "core_blind", "composition"]

INPUT_SETS: tuple[InputSet, ...] = ("full", "core_blind", "composition")

GRID_BOUND = ("rho_min", "rho_min_ratio", "n_max", "n_min", "n_NNM", "Q_NNM")
"""Descriptors that no model sees: extrema on the points of a grid say more of it than of the
material, and rho_min sits in the core."""

GEOMETRY = (
    "volume_per_atom",
    "reference_valence",
    "reference_density",
    "mass_density",
    "relative_volume",
    "volume_per_radius",
    "interstitial_charge",
)
"""Volume per atom (A^3); valence electrons per atom of the reference pseudopotentials, and their
density (e/A^3); g/cm^3; volume over that of the elements; over the cube of the covalent radius;
mean density between the atoms times volume per atom (e)."""

SYMMETRY = ("spacegroup", "crystal_system")
"""Number of the space group; number of the crystal system from triclinic, 0, to cubic, 6."""


class Inputs:
    """The inputs of a feature table.

    Attributes:
        values: shape (row, input), nan where a descriptor is undefined.
        fractions: shape (row, element), shares of the elements in the atoms.
    """

    def __init__(self, values: NDArray[np.float64], fractions: NDArray[np.float64]) -> None:
        self.values = values
        self.fractions = fractions

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Inputs:
        return Inputs(self.values[rows], self.fractions[rows])

    def __len__(self) -> int:
        return len(self.values)


def input_names(kind: InputSet) -> tuple[str, ...]:
    """Names of the columns of `Inputs.values`."""
    if kind == "composition":
        return (*SYMMETRY, *COMPOSITION_FEATURES)
    density = (
        tuple(name for name in DESCRIPTORS if name not in GRID_BOUND)
        if kind == "full"
        else (*CORE_BLIND, "f_int in reference electrons")
    )
    return (*density, *GEOMETRY, *COMPOSITION_FEATURES)


def make_inputs(table: pd.DataFrame, kind: InputSet) -> Inputs:
    """The inputs of every row of a feature table.

    Raises:
        InputError: a formula cannot be read.
    """
    read = [_of_formula(text) for text in table["formula"]]
    composition = np.array([own.features for own in read]).reshape(-1, len(COMPOSITION_FEATURES))
    fractions = np.array([own.fractions for own in read]).reshape(-1, len(FRACTIONS))
    if kind == "composition":
        return Inputs(np.concatenate([_symmetry(table), composition], axis=1), fractions)
    valence = _valences(table)
    names = [name for name in DESCRIPTORS if name not in GRID_BOUND]
    density = table[names if kind == "full" else list(CORE_BLIND)].to_numpy(float)
    if kind == "core_blind":
        electrons = table["electrons_per_atom"].to_numpy(float)
        interstitial = table["f_int"].to_numpy(float) * electrons / valence
        density = np.column_stack([density, interstitial])
    return Inputs(
        np.concatenate([density, _geometry(table, valence, composition), composition], axis=1),
        fractions,
    )


def is_foreign(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Shape (row,): whether a density comes from other pseudopotentials than the training data.

    Seen in the count of its electrons. An element without a reference counts as foreign.
    """
    electrons = table["electrons_per_atom"].to_numpy(float)
    return ~(np.abs(electrons - _valences(table)) <= OTHER_VALENCE)


def _valences(table: pd.DataFrame) -> NDArray[np.float64]:
    return np.array([_of_formula(text).valence for text in table["formula"]], dtype=float)


class _Formula(NamedTuple):
    """What a formula tells: `composition_features`, `element_fractions`, `reference_valence`."""

    features: NDArray[np.float64]
    fractions: NDArray[np.float64]
    valence: float


@lru_cache(maxsize=2**14)
def _of_formula(text: str) -> _Formula:
    """A prediction asks for every formula several times; 16384 of them take 32 MB."""
    counts = parse_formula(text)
    return _Formula(
        composition_features(counts), element_fractions(counts), reference_valence(counts)
    )


def _symmetry(table: pd.DataFrame) -> NDArray[np.float64]:
    """Shape (row, 2), in the order of `SYMMETRY`; nan where the space group is not known."""
    number = table["spacegroup"].astype("Float64").to_numpy(float, na_value=np.nan)
    system = np.searchsorted(list(CRYSTAL_SYSTEMS.values()), np.nan_to_num(number, nan=1.0))
    return np.column_stack([number, np.where(np.isfinite(number), system, np.nan)])


def _geometry(
    table: pd.DataFrame, valence: NDArray[np.float64], composition: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Shape (row, 7), in the order of `GEOMETRY`."""

    def mean(name: str) -> NDArray[np.float64]:
        return composition[:, COMPOSITION_FEATURES.index(f"MagpieData mean {name}")]

    volume = table["volume_per_atom"].to_numpy(float)
    return np.column_stack(
        [
            volume,
            valence,
            valence / volume,
            mean("AtomicWeight") / volume * ATOMIC_MASS_PER_A3,
            volume / mean("GSvolume_pa"),
            volume / (mean("CovalentRadius") / 100) ** 3,  # pm
            table["rho_int_mean"].to_numpy(float) * volume,
        ]
    )
