"""Under which symmetry a density is written, and how its operations are.

An operation W|w of a crystal is told by W and by the atom to which it takes the first atom of the
rarest element: so w is known as well as the coordinates are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from chgdb.density import Structure
from chgdb.multipoles import sites
from chgdb.stars import Operations, closure, generators, wrapped
from chgdb.symmetry import find_operations

__all__ = [
    "LARGEST_ELEMENT",
    "MOST_GENERATORS",
    "Described",
    "describe",
    "group_from",
    "groups_of",
    "n_targets",
]

Described = tuple[NDArray[np.int64], int]
"""The rotation W of an operation, and which atom of the reference element it leads to."""

MOST_GENERATORS = 7

LARGEST_ELEMENT = 2
"""Of a rotation W; 1 in cells that are reduced, 2 in supercells of them."""

_STRONGEST = 2048
"""Coefficients on which operations are tried."""


def groups_of(
    values: NDArray[np.float64], structure: Structure, symprec: float, rms: float
) -> Iterator[Operations]:
    """Groups to try: that of the structure as far as the field has it, then P1."""
    found = find_operations(structure, symprec)
    if len(found) > 1:
        holds = _leave_unchanged(values, found, rms)
        if not holds.all():
            # If rounding made them no group, their closure is larger, and P1 is taken.
            chosen = np.flatnonzero(holds)
            found = Operations(found.rotations[chosen], found.translations[chosen])
        with suppress(ValueError):
            group = group_from(structure, describe(structure, found))
            if 1 < len(group) <= len(found):
                sites(structure, group, 0)  # raises where it moves an atom to where there is none
                yield group
    yield Operations.identity()


def _leave_unchanged(
    values: NDArray[np.float64], operations: Operations, rms: float
) -> NDArray[np.bool_]:
    """Which operations leave the strongest coefficients of a field as they are."""
    grid = (values.shape[0], values.shape[1], values.shape[2])
    spectrum = np.fft.rfftn(values) / values.size
    strongest = np.argsort(-np.abs(spectrum), axis=None, kind="stable")[:_STRONGEST]
    h = np.stack(np.unravel_index(strongest, spectrum.shape), axis=1)
    h = h - np.where(h > np.array(grid) // 2, grid, 0)
    limits = [(n - 1) // 2 for n in grid]
    h = h[(np.abs(h) <= limits).all(axis=1)]

    def at(vectors: NDArray[np.int64]) -> NDArray[np.complex128]:
        mirrored = vectors[:, 2] < 0
        index = np.where(mirrored[:, None], -vectors, vectors)
        found: NDArray[np.complex128] = spectrum[
            index[:, 0] % grid[0], index[:, 1] % grid[1], index[:, 2]
        ]
        return np.where(mirrored, found.conj(), found)

    own = at(h)
    holds = []
    for rotation, shift in zip(operations.rotations, operations.translations, strict=True):
        member = h @ rotation
        inside = (np.abs(member) <= limits).all(axis=1)
        turned = own[inside] * np.exp(2j * np.pi * (h[inside] @ shift))
        holds.append(np.linalg.norm(at(member[inside]) - turned) <= 0.5 * rms)
    return np.array(holds)


def _reference(structure: Structure) -> tuple[int, list[int]]:
    """The atom that says where operations lead, and those it may lead to: of the rarest element."""
    counts = structure.composition
    element = min(counts, key=lambda symbol: (counts[symbol], structure.species.index(symbol)))
    atoms = [i for i, symbol in enumerate(structure.species) if symbol == element]
    return atoms[0], atoms


def describe(structure: Structure, operations: Operations) -> list[Described]:
    """Generators as their rotation and the position of the atom they lead to.

    Raises:
        ValueError: they cannot be written.
    """
    if len(operations) == 1:
        return []
    first, candidates = _reference(structure)
    coords = structure.frac_coords
    described = []
    for index in generators(operations):
        rotation, shift = operations.rotations[index], operations.translations[index]
        if np.abs(rotation).max() > LARGEST_ELEMENT:
            raise ValueError("a rotation that is not written")
        apart = rotation @ coords[first] + shift - coords[candidates]
        apart -= np.rint(apart)
        target = int(np.linalg.norm(apart @ structure.lattice, axis=1).argmin())
        described.append((rotation, target))
    if len(described) > MOST_GENERATORS:
        raise ValueError("too many generators")
    return described


def group_from(structure: Structure, described: Sequence[Described]) -> Operations:
    """The group of described generators.

    Raises:
        ValueError: they are of no crystal.
    """
    if not described:
        return Operations.identity()
    first, candidates = _reference(structure)
    coords = structure.frac_coords
    rotations, shifts = [], []
    for rotation, target in described:
        if abs(round(float(np.linalg.det(rotation)))) != 1:
            raise ValueError("not a rotation")
        rotations.append(rotation)
        shifts.append(wrapped(coords[candidates[target]] - rotation @ coords[first]))
    return closure(np.array(rotations), np.array(shifts))


def n_targets(structure: Structure) -> int:
    """How many atoms an operation may lead to."""
    return len(_reference(structure)[1])
