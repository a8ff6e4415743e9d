"""How the properties and the crystal systems of a selection lie among those of all materials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chgdb.schema import COLUMNS, CRYSTAL_SYSTEMS

if TYPE_CHECKING:
    from typing import Unpack

    from chgdb.database import Database
    from chgdb.filters import Conditions

__all__ = ["SHOWN", "Distributions", "Histogram", "SystemCount", "distributions"]

SHOWN = (
    "bulk_modulus",
    "shear_modulus",
    "youngs_modulus",
    "formation_energy",
    "debye_temperature",
)
"""The properties whose distributions are told."""

_BINS = 40
_OUTSIDE = 0.5
"""% of the values at either end that the bins leave out, so that no outlier stretches them."""


@dataclass(frozen=True)
class Histogram:
    """How often the values of a property occur.

    Attributes:
        column: the property.
        unit: of the edges.
        description: of the property, for people.
        edges: of the bins, one more than there are bins; none where no value is known.
        all: materials of the store in each bin, its lower edge included (of the last one, both).
        selected: those of the selection.
        known: materials of the store whose value is known.
        selected_known: those of the selection.
        outside: materials of the store with values beyond the edges.
    """

    column: str
    unit: str
    description: str
    edges: list[float]
    all: list[int]
    selected: list[int]
    known: int
    selected_known: int
    outside: int


@dataclass(frozen=True)
class SystemCount:
    """How often a crystal system occurs; its name is None where it is not known."""

    name: str | None
    all: int
    selected: int


@dataclass(frozen=True)
class Distributions:
    """The distributions of all materials of a store, and of a selection among them."""

    total: int
    selected: int
    histograms: list[Histogram]
    crystal_systems: list[SystemCount]


def distributions(database: Database, **conditions: Unpack[Conditions]) -> Distributions:
    """How the records that fit are distributed, beside all the others.

    Args:
        database: the store.
        **conditions: as of `Database.select`.

    Raises:
        QueryError: a filter that cannot be understood, or an unknown column.
        StoreError: the store is damaged.
    """
    columns = [*SHOWN, "crystal_system"]
    chosen = database.select(columns=columns, **conditions).values
    whole = database.select(columns=columns).values if any(conditions.values()) else chosen
    return Distributions(
        total=len(whole),
        selected=len(chosen),
        histograms=[
            _histogram(name, _numbers(whole, i), _numbers(chosen, i))
            for i, name in enumerate(SHOWN)
        ],
        crystal_systems=_systems(whole, chosen),
    )


def _numbers(rows: Sequence[tuple[Any, ...]], i: int) -> NDArray[np.float64]:
    return np.array([row[i] for row in rows if row[i] is not None], dtype=np.float64)


def _histogram(column: str, whole: NDArray[np.float64], chosen: NDArray[np.float64]) -> Histogram:
    edges = np.empty(0)
    counts = np.zeros((2, 0), dtype=np.int64)
    if len(whole):
        low, high = np.percentile(whole, [_OUTSIDE, 100 - _OUTSIDE])
        edges = np.histogram_bin_edges(whole, _BINS, (low, high))
        counts = np.array([np.histogram(values, edges)[0] for values in (whole, chosen)])
    about = COLUMNS[column]
    return Histogram(
        column=column,
        unit=about.unit,
        description=about.description,
        edges=edges.tolist(),
        all=counts[0].tolist(),
        selected=counts[1].tolist(),
        known=len(whole),
        selected_known=len(chosen),
        outside=len(whole) - int(counts[0].sum()),
    )


def _systems(
    whole: Sequence[tuple[Any, ...]], chosen: Sequence[tuple[Any, ...]]
) -> list[SystemCount]:
    counts, selected = (Counter(row[-1] for row in rows) for rows in (whole, chosen))
    names = [*CRYSTAL_SYSTEMS, *([None] if None in counts else [])]
    return [SystemCount(name, counts[name], selected[name]) for name in names]
