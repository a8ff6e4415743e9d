"""Immutable values: a crystal structure and the charge density on its grid."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chgdb.elements import SYMBOLS, reduced_formula
from chgdb.errors import InputError
from chgdb.units import ATOMIC_MASS_PER_A3

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

__all__ = ["ChargeDensity", "Grid", "Latent", "Structure"]

Grid = tuple[int, int, int]
"""Number of grid points along a, b and c (CHGCAR NGXF NGYF NGZF)."""


def _frozen(values: ArrayLike) -> NDArray[np.float64]:
    """Contiguous read-only float64 array; copies unless the input is one that owns its data.

    Raises:
        InputError: the values are no real numbers in a rectangular array.
    """
    if type(values) is np.ndarray and values.dtype == np.float64:
        flags = values.flags
        if flags.owndata and flags.c_contiguous and not flags.writeable:
            return values
    try:
        # "same_kind" refuses complex numbers instead of dropping a part of them
        array = np.asarray(values).astype(np.float64, order="C", casting="same_kind")
    except (TypeError, ValueError) as error:
        raise InputError(f"not an array of real numbers ({error})") from error
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Structure:
    """A periodic crystal structure.

    Attributes:
        lattice: shape (3, 3), rows are the lattice vectors a, b, c in Angstrom.
        species: one element symbol per atom, in the order of the source file.
        frac_coords: shape (n_atoms, 3), fractional coordinates.

    Raises:
        InputError: shapes do not fit, a number is not finite or the cell has no volume.
    """

    lattice: NDArray[np.float64]
    species: tuple[str, ...]
    frac_coords: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "lattice", _frozen(self.lattice))
        object.__setattr__(self, "species", tuple(self.species))
        object.__setattr__(self, "frac_coords", _frozen(self.frac_coords))
        if self.lattice.shape != (3, 3):
            raise InputError(f"a lattice has shape (3, 3), not {self.lattice.shape}")
        if self.frac_coords.shape != (len(self.species), 3):
            raise InputError(
                f"{len(self.species)} species need coordinates of shape "
                f"({len(self.species)}, 3), not {self.frac_coords.shape}"
            )
        if not (np.isfinite(self.lattice).all() and np.isfinite(self.frac_coords).all()):
            raise InputError("the lattice or a coordinate is not a finite number")
        if self.volume < 1e-6:
            raise InputError("the lattice vectors span no volume")
        if not np.isfinite(self.volume):
            raise InputError("the lattice vectors are too long")

    @property
    def volume(self) -> float:
        """Cell volume in A^3."""
        with np.errstate(over="ignore", invalid="ignore"):
            return abs(float(np.linalg.det(self.lattice)))

    @cached_property
    def composition(self) -> dict[str, int]:
        """Atoms per element in the cell, elements in alphabetical order."""
        return dict(sorted(Counter(self.species).items()))

    @property
    def elements(self) -> tuple[str, ...]:
        """Element symbols in alphabetical order."""
        return tuple(self.composition)

    @property
    def formula(self) -> str:
        """Reduced formula as chemists write it, metals first: "SrVO3"."""
        return reduced_formula(self.composition)

    @property
    def mass_density(self) -> float:
        """Mass of the cell over its volume, g/cm^3, with standard atomic weights.

        Raises:
            InputError: a species is not an element.
        """
        from ase.data import atomic_masses

        if unknown := sorted(set(self.species) - set(SYMBOLS)):
            raise InputError(f"{unknown[0]!r} is not an element")
        mass = sum(float(atomic_masses[SYMBOLS.index(symbol) + 1]) for symbol in self.species)
        return mass / self.volume * ATOMIC_MASS_PER_A3

    @classmethod
    def from_ase(cls, atoms: Atoms) -> Structure:
        """The cell, symbols and scaled positions of an ASE object."""
        return cls(
            lattice=atoms.cell.array,
            species=tuple(atoms.get_chemical_symbols()),
            frac_coords=atoms.get_scaled_positions(wrap=False),
        )

    def to_ase(self) -> Atoms:
        """The structure as periodic ASE Atoms, atoms in the same order."""
        from ase import Atoms

        return Atoms(
            symbols=list(self.species),
            cell=np.array(self.lattice),
            scaled_positions=np.array(self.frac_coords),
            pbc=True,
        )


@dataclass(frozen=True, eq=False)
class ChargeDensity:
    """A valence charge density on the periodic grid of its cell.

    Attributes:
        values: shape (n1, n2, n3), e/A^3, indexed along a, b, c; point (i, j, k) lies at the
            fractional coordinate (i/n1, j/n2, k/n3).
        structure: the crystal it belongs to.
        magnetization: None, or shape (1, n1, n2, n3) for up - down, or (3, n1, n2, n3) for the
            x, y, z components; mu_B/A^3.

    Raises:
        InputError: the arrays have the wrong shape or hold a number that is not finite.
    """

    values: NDArray[np.float64]
    structure: Structure
    magnetization: NDArray[np.float64] | None = field(default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _frozen(self.values))
        if self.values.ndim != 3 or 0 in self.values.shape:
            raise InputError(f"a density has shape (n1, n2, n3), not {self.values.shape}")
        if not np.isfinite(self.values).all():
            raise InputError("the density holds a value that is not a finite number")
        if self.magnetization is not None:
            object.__setattr__(self, "magnetization", _frozen(self.magnetization))
            shape = self.magnetization.shape
            if len(shape) != 4 or shape[0] not in (1, 3) or shape[1:] != self.values.shape:
                raise InputError(
                    f"a magnetization on this grid has shape (1 or 3, *{self.grid}), not {shape}"
                )
            if not np.isfinite(self.magnetization).all():
                raise InputError("the magnetization holds a value that is not a finite number")

    @property
    def grid(self) -> Grid:
        """Points along a, b, c."""
        n1, n2, n3 = self.values.shape
        return n1, n2, n3

    @property
    def n_electrons(self) -> float:
        """Integral of the density over the cell, in electrons."""
        return float(self.values.mean()) * self.structure.volume

    @property
    def magnetic_moment(self) -> float | None:
        """Total moment of the cell in mu_B: signed up - down, or the length of the vector.

        None without a magnetization.
        """
        if self.magnetization is None:
            return None
        moment = self.magnetization.mean(axis=(1, 2, 3)) * self.structure.volume
        return float(moment[0]) if len(moment) == 1 else float(np.linalg.norm(moment))

    @property
    def atoms(self) -> Atoms:
        """The structure as ASE Atoms."""
        return self.structure.to_ase()

    def to_xarray(self) -> xr.DataArray:
        """The density with dimensions a, b, c and fractional coordinates on each.

        The lattice (row-wise, Angstrom) is in the attributes, because a non-orthogonal cell has
        no one-dimensional Cartesian axes.
        """
        import xarray as xr

        attrs: dict[str, Any] = {
            "units": "e/angstrom^3",
            "long_name": "valence charge density",
            "lattice": self.structure.lattice.ravel().tolist(),
            "formula": self.structure.formula,
        }
        coords = {axis: np.arange(n) / n for axis, n in zip("abc", self.grid, strict=True)}
        return xr.DataArray(
            self.values, dims=("a", "b", "c"), coords=coords, name="density", attrs=attrs
        )


@dataclass(frozen=True, eq=False)
class Latent:
    """A density in the latent space of an encoder.

    Attributes:
        values: shape (channel, a, b, c), float32. The cell fills the low corner
            (`LatentStorage.extent`); beyond it a `periodic` latent is zero, and a `paper` latent
            holds the code of the zeros around the cell.
        work_grid: grid of the cell that the network saw.
        n_electrons: electrons in the cell; a `periodic` latent does not hold them.
    """

    values: NDArray[np.float32]
    work_grid: Grid
    n_electrons: float
