"""The space group of a structure and its operations, by spglib."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import spglib
from numpy.typing import NDArray

from chgdb.density import Structure
from chgdb.schema import CRYSTAL_SYSTEMS
from chgdb.stars import MAX_OPERATIONS, Operations, wrapped

__all__ = [
    "Symmetry",
    "find_operations",
    "find_symmetry",
    "reduced_lattice",
    "space_group",
    "standard_lattices",
]


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


@cache
def space_group(number: int) -> Symmetry:
    """The space group of a number, 1 to 230, with the symbol of its standard setting."""
    with _ASKING, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        settings = (spglib.get_spacegroup_type(hall) for hall in range(1, 531))
        first = next(found for found in settings if found and found.number == number)
    return Symmetry(number, first.international_short, _crystal_system(number))


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


def standard_lattices(
    structure: Structure, symprec: float = 0.01
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The vectors of a primitive and of the usual cell, where the crystal lies in the structure.

    The usual cell is the conventional one of the International Tables as spglib standardises it,
    with exceptions that follow pymatgen and the Materials Project: the rhombohedron for R, for A
    the axes b, c, a, which make it C, and orthorhombic axes by ascending length, where C leaves the
    centred face where it is.

    Args:
        structure: any cell of the crystal, primitive or not.
        symprec: how far an atom may be from its symmetric position, Angstrom.

    Returns:
        Twice shape (3, 3), rows in Angstrom, as exact as the positions of the atoms; None where
        spglib finds no space group, as for a cell without atoms.
    """
    dataset = _ask(spglib.get_symmetry_dataset, structure, symprec) if structure.species else None
    if dataset is None:
        return None
    conventional = np.linalg.inv(dataset.transformation_matrix).T @ structure.lattice
    primitive, usual = _CENTRINGS[dataset.international[0]]
    axes = usual @ conventional
    if _crystal_system(dataset.number) == "orthorhombic":
        free = 2 if dataset.international[0] in "AC" else 3
        lengths = np.linalg.norm(axes, axis=1)
        axes[:free] = axes[np.argsort(lengths[:free], kind="stable")]
    return primitive @ conventional, axes


def reduced_lattice(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Niggli-reduced vectors of a lattice, rows in Angstrom; itself where spglib fails."""
    with _ASKING, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            reduced = spglib.niggli_reduce(lattice)
        except spglib.SpglibError:
            reduced = None
    return np.array(lattice if reduced is None else reduced, dtype=np.float64)


_RHOMBOHEDRON = np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3

_CENTRINGS = {
    "P": (np.eye(3), np.eye(3)),
    "F": (np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2, np.eye(3)),
    "I": (np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2, np.eye(3)),
    "C": (np.array([[1, 1, 0], [-1, 1, 0], [0, 0, 2]]) / 2, np.eye(3)),
    "A": (np.array([[2, 0, 0], [0, 1, -1], [0, 1, 1]]) / 2, np.eye(3)[[1, 2, 0]]),
    "R": (_RHOMBOHEDRON, _RHOMBOHEDRON),
}
"""Rows of the primitive and of the usual vectors in the conventional ones, by the centring.

The primitive ones are spglib's, https://spglib.readthedocs.io/en/stable/definition.html."""


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
