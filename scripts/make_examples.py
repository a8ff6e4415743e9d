"""Write the two CHGCAR files of examples/ from the densities of the project.

usage: python scripts/make_examples.py ../shared/densities examples
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from chgdb.density import ChargeDensity, Structure
from chgdb.formats import read_density, write_density
from chgdb.grid import fourier_resample, shift_origin, vasp_grid

SHIFT = (0.13, 0.29, 0.41)
"""Fractional; it falls on no grid point, so no value of the file is one of the store's."""


def moved(density: ChargeDensity) -> ChargeDensity:
    """The crystal with another origin, on the grid that VASP takes at ENCUT = 500."""
    structure = density.structure
    grid = vasp_grid(structure.lattice)
    values = shift_origin(fourier_resample(density.values, grid), SHIFT)
    order = np.argsort(structure.species, kind="stable")  # Mg before O, as people write it
    species = tuple(structure.species[i] for i in order)
    coordinates = (structure.frac_coords[order] + SHIFT) % 1.0
    return ChargeDensity(values, Structure(structure.lattice, species, coordinates))


def main() -> None:
    """Write both files and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("densities", type=Path, help="folder with mp-149.npz and mp-1265.npz")
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    silicon, _ = read_density(arguments.densities / "mp-149.npz")
    oxide, _ = read_density(arguments.densities / "mp-1265.npz")
    files = {
        "mp-149.CHGCAR.gz": (silicon, "Si mp-149, ABINIT PBE for chgdb"),
        "MgO.CHGCAR.xz": (moved(oxide), "MgO mp-1265 moved, ABINIT PBE for chgdb"),
    }
    arguments.target.mkdir(parents=True, exist_ok=True)
    for name, (density, comment) in files.items():
        path = arguments.target / name
        write_density(path, density, "chgcar", comment=comment + ", no augmentation")
        grid = "x".join(map(str, density.grid))
        lowest = np.min(density.values)
        print(f"{path}: {grid}, {path.stat().st_size} bytes, lowest value {lowest:.4f} e/A^3")


if __name__ == "__main__":
    main()
