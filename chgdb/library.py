"""What the atoms of each element look like in a density: the mean and the ways it varies.

A library holds for every element the mean radial function of a site (l = 0) and, for each l,
modes: orthonormal radial functions, with the standard deviation of their amplitudes over the
materials it was learned from. `scripts/fit_library.py` makes one. A library that was released never
changes, because payloads name it by its number.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from chgdb.errors import StoreError

__all__ = [
    "GENERIC",
    "LATEST",
    "LIBRARY_L",
    "Atom",
    "Library",
    "library_file",
    "library_name",
    "load_library",
    "read_library",
]

GENERIC = "X"
"""The entry for an element that the library does not know, or a density of another kind."""

LATEST = 1
"""The library that new payloads use."""

LIBRARY_L = 4
"""Modes are of l = 0 ... 4."""


@dataclass(frozen=True, eq=False)
class Atom:
    """An element's entry.

    Attributes:
        radius: of the functions inside a sphere, Angstrom, before it is cut to 0.49 of the distance
            to the nearest neighbour.
        mean: shape (radial function,), amplitudes for l = 0, e.
        modes: for each l, shape (mode, radial function), by decreasing deviation.
        deviations: for each l, shape (mode,), sqrt(e^2/A^3).
    """

    radius: float
    mean: NDArray[np.float64]
    modes: tuple[NDArray[np.float64], ...]
    deviations: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True, eq=False)
class Library:
    """The entries by element, and the spectrum of what they leave.

    Attributes:
        number: which library this is.
        atoms: element symbol, or `GENERIC`, to its entry.
        residual: shape (bin,), for |G| from 0 in bins of 1/Angstrom: mean square of an orthonormal
            coefficient times volume over the squared mean density.
    """

    number: int
    atoms: dict[str, Atom]
    residual: NDArray[np.float64]

    def atom(self, element: str, *, generic: bool = False) -> Atom:
        """The entry of an element, the generic one if there is none or if it is asked for."""
        return self.atoms[element if element in self.atoms and not generic else GENERIC]

    def residual_at(self, g: NDArray[np.float64]) -> NDArray[np.float64]:
        """`residual` for each |G| in 1/Angstrom."""
        last = len(self.residual) - 1
        return self.residual[np.minimum(g.astype(np.int64), last)]


def library_name(number: int) -> str:
    """The name of the file of a library, in the package and in a store."""
    return f"atoms-{number}.npz"


def library_file(number: int) -> bytes:
    """The file of a library that came with the package.

    Raises:
        StoreError: this chgdb has no library of that number.
    """
    file = files("chgdb") / "libraries" / library_name(number)
    if not file.is_file():
        raise StoreError(
            f"a payload needs the atom library {number}, which this chgdb lacks: "
            "pip install --upgrade chgdb"
        )
    return file.read_bytes()


@lru_cache(maxsize=4)
def load_library(number: int = LATEST) -> Library:
    """A library that came with the package.

    Raises:
        StoreError: this chgdb has no library of that number.
    """
    return read_library(library_file(number), number)


def read_library(content: bytes, number: int) -> Library:
    """The library in a file, such as one that `scripts/fit_library.py` made."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        numbers = {
            name: archive[name].astype(np.float64) for name in archive.files if name != "elements"
        }
        elements = [str(symbol) for symbol in archive["elements"]]
    atoms = {}
    for index, element in enumerate(elements):
        deviations = [numbers[f"deviations_{l}"][index] for l in range(LIBRARY_L + 1)]
        kept = [deviation > 0 for deviation in deviations]
        atoms[element] = Atom(
            radius=float(numbers["radius"][index]),
            mean=numbers["mean"][index],
            modes=tuple(numbers[f"modes_{l}"][index][kept[l]] for l in range(LIBRARY_L + 1)),
            deviations=tuple(d[k] for d, k in zip(deviations, kept, strict=True)),
        )
    return Library(number, atoms, numbers["residual"])
