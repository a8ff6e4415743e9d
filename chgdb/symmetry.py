"""The space group of a structure, by spglib."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import spglib

from chgdb.density import Structure
from chgdb.schema import CRYSTAL_SYSTEMS

__all__ = ["Symmetry", "find_symmetry"]


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
    kinds = {symbol: kind for kind, symbol in enumerate(structure.elements, start=1)}
    cell = (
        structure.lattice.tolist(),
        structure.frac_coords.tolist(),
        [kinds[symbol] for symbol in structure.species],
    )
    with warnings.catch_warnings():
        # spglib 2.7 to 2.x warns that it will raise instead of returning None; both are handled.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)
        except spglib.SpglibError:
            return None
    if dataset is None:
        return None
    return Symmetry(dataset.number, dataset.international, _crystal_system(dataset.number))


def _crystal_system(number: int) -> str:
    return next(name for name, last in CRYSTAL_SYSTEMS.items() if number <= last)
