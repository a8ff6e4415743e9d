"""The space group of a structure and its operations, by spglib."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import spglib

from chgdb.density import Structure
from chgdb.schema import CRYSTAL_SYSTEMS
from chgdb.stars import MAX_OPERATIONS, Operations, wrapped

__all__ = ["Symmetry", "find_operations", "find_symmetry"]


_ASKING = Lock()
"""The filters of warnings belong to all threads."""


@dataclass(frozen=True)
class Symmetry:
    """The space group of a structure.

    Attributes:
        number: of the space group, 1 to 230.
        symbol: Hermann-Mauguin, short: "Fd-3m".
        crystal_system: "triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal",
            "hexagonal" or "cubic".
    """

    number: int
    symbol: str
    crystal_system: str


def find_symmetry(structure: Structure, symprec: float = 0.01) -> Symmetry | None:
    """The space group of the atoms, magnetic moments not regarded.

    Args:
        structure: any cell of the crystal, primitive or not.
        symprec: how far an atom may be from its symmetric position, Angstrom.

    Returns:
        None where spglib finds no space group, as for atoms that overlap or a cell without atoms:
        such a structure is not known to be of P1, it is not a crystal.
    """
    dataset = _ask(spglib.get_symmetry_dataset, structure, symprec)
    if dataset is None:
        return None
    return Symmetry(dataset.number, dataset.international, _crystal_system(dataset.number))


def find_operations(structure: Structure, symprec: float) -> Operations:
    """The operations that map the structure onto itself; P1 where spglib finds none, or too many.

    Args:
        structure: any cell of the crystal, primitive or not.
        symprec: how far an atom may be from its symmetric position, Angstrom.
    """
    found = _ask(spglib.get_symmetry, structure, symprec) if structure.species else None
    if found is None or len(found["rotations"]) > MAX_OPERATIONS:
        return Operations.identity()
    rotations = np.asarray(found["rotations"], dtype=np.int64)
    translations = wrapped(np.asarray(found["translations"], dtype=np.float64))
    plain = (rotations == np.eye(3, dtype=np.int64)).all(axis=(1, 2))
    near_zero = np.abs(translations - np.rint(translations)).max(axis=1) < 1e-3
    identity_first = np.argsort(~(plain & near_zero), kind="stable")
    return Operations(rotations[identity_first], translations[identity_first])


def _ask(question: Callable[..., Any], structure: Structure, symprec: float) -> Any:
    """What spglib answers about a structure, None where it finds no symmetry."""
    kinds = {symbol: kind for kind, symbol in enumerate(structure.elements, start=1)}
    cell = (
        structure.lattice.tolist(),
        structure.frac_coords.tolist(),
        [kinds[symbol] for symbol in structure.species],
    )
    with _ASKING, warnings.catch_warnings():
        # spglib 2.7 to 2.x warns that it will raise instead of returning None; both are handled.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return question(cell, symprec=symprec)
        except spglib.SpglibError:
            return None


def _crystal_system(number: int) -> str:
    return next(name for name, last in CRYSTAL_SYSTEMS.items() if number <= last)
