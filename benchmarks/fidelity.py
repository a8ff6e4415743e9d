"""What an archived density is still good for: Bader charges and densities along bonds.

usage: python benchmarks/fidelity.py [--bader-python PYTHON] [--limit N]

Each density is encoded on its own grid to an NMAE of 0.1 and 1 %, decoded, and compared with the
original. Prints Markdown tables.

Bader charges: by baderkit, a program of others, in its own Python (it needs other versions of
pandas and pymatgen), through CHGCAR files on VASP's grid at ENCUT = 500. As VASP users add the core
of AECCAR0, a narrow Gaussian at each nucleus is added where basins are searched, the same in all;
the charges are those of the density without it. The last row moves the original and its atoms by
half a point of that grid: what Bader charges owe to the grid alone.

Bonds: from each atom to its nearest neighbours, by trigonometric interpolation at 101 points.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray
from store_ops import machine, table

from chgdb import archive
from chgdb.chgcar import write_chgcar
from chgdb.density import ChargeDensity, Grid, Structure
from chgdb.formats import read_density
from chgdb.grid import fourier_resample, half_waves, shift_origin, vasp_grid

SHARED = Path(__file__).resolve().parents[2] / "shared"

TOLERANCES = (0.1, 1.0)
"""NMAE, %."""

MOVED = "grid moved"

CORE_ELECTRONS, CORE_WIDTH = 10.0, 0.2
"""The Gaussian that marks a nucleus for Bader's partition: e, and its standard deviation in A."""

NEAREST = 1.05
"""Neighbours up to this times the shortest distance of an atom are its nearest."""

BOND_POINTS = 101
MIDDLE = slice(20, 81)
"""Of a bond: where its lowest density is looked for, away from the smoothed cores."""

BADER = """
import json, logging, sys
from baderkit import Bader, Grid
logging.disable(logging.CRITICAL)
charges = {}
for name, (charge, reference) in json.load(open(sys.argv[1])).items():
    grids = [Grid.from_vasp(file, data_type="charge") for file in (charge, reference)]
    bader = Bader(charge_grid=grids[0], reference_grid=grids[1], vacuum_tol=False)
    charges[name] = bader.atom_charges.tolist()
    print(f"\\rbader {len(charges)} ", end="", file=sys.stderr, flush=True)
json.dump(charges, open(sys.argv[2], "w"))
"""


@dataclass(frozen=True)
class Case:
    """A density and what became of it.

    Attributes:
        id: the material.
        original: as in the file.
        decoded: tolerance -> density.
    """

    id: str
    original: ChargeDensity
    decoded: Mapping[float, ChargeDensity]


def choose(folder: Path, most_atoms: int, limit: int) -> list[Path]:
    """At most `limit` densities of small cells, evenly spread over the list of files."""
    small = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            if len(arrays["numbers"]) <= most_atoms:
                small.append(path)
    steps = np.linspace(0, len(small) - 1, min(limit, len(small))).astype(int)
    return [small[i] for i in steps]


def coded(path: Path) -> Case:
    """A density, encoded and decoded at each tolerance."""
    density, _ = read_density(path)
    decoded = {}
    for tolerance in TOLERANCES:
        payload = archive.encode(density, archive.Tolerance(nmae=tolerance))
        decoded[tolerance] = archive.decode(payload.data, density.structure)
    return Case(path.stem, density, decoded)


# --- Bader ----------------------------------------------------------------------------------


def on_grid(density: ChargeDensity, grid: Grid) -> ChargeDensity:
    return ChargeDensity(fourier_resample(density.values, grid), density.structure)


def moved(density: ChargeDensity) -> ChargeDensity:
    """The crystal half a grid point further along each axis."""
    shift = 0.5 / np.array(density.grid)
    structure = density.structure
    atoms = Structure(structure.lattice, structure.species, structure.frac_coords + shift)
    return ChargeDensity(shift_origin(density.values, shift), atoms)


def with_cores(density: ChargeDensity) -> ChargeDensity:
    """The density plus a narrow Gaussian at each nucleus, made from its Fourier series."""
    structure, h = density.structure, half_waves(density.grid)
    g = 2 * np.pi * h @ np.linalg.inv(structure.lattice).T
    phases = np.exp(-2j * np.pi * h @ structure.frac_coords.T).sum(axis=-1)
    decay = np.exp(-0.5 * CORE_WIDTH**2 * np.square(g).sum(axis=-1))
    cores = np.fft.irfftn(phases * decay, s=density.grid, axes=(0, 1, 2), norm="forward")
    return ChargeDensity(density.values + CORE_ELECTRONS / structure.volume * cores, structure)


def bader_inputs(case: Case) -> Iterator[tuple[str, ChargeDensity]]:
    """(name, density) of everything whose Bader charges are compared, on one fine grid."""
    grid = vasp_grid(case.original.structure.lattice)
    original = on_grid(case.original, grid)
    yield "original", original
    yield MOVED, moved(original)
    for tolerance, density in case.decoded.items():
        yield f"{tolerance:g} %", on_grid(density, grid)


def bader_charges(
    cases: Sequence[Case], python: Path, folder: Path
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """What -> material -> electrons of each atom."""
    files: dict[str, tuple[str, str]] = {}
    for case in cases:
        for name, density in bader_inputs(case):
            charge, reference = (folder / f"{len(files)}{kind}.vasp" for kind in ("", "_ref"))
            write_chgcar(charge, density)
            write_chgcar(reference, with_cores(density))
            files[json.dumps([name, case.id])] = (str(charge), str(reference))
    request, answer = folder / "request.json", folder / "answer.json"
    request.write_text(json.dumps(files), encoding="utf-8")
    command = [str(python), "-c", BADER, str(request), str(answer)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(file=sys.stderr)
    charges: dict[str, dict[str, NDArray[np.float64]]] = {}
    for key, electrons in json.loads(answer.read_text(encoding="utf-8")).items():
        name, id_ = json.loads(key)
        charges.setdefault(name, {})[id_] = np.array(electrons)
    return charges


def bader_table(cases: Sequence[Case], python: Path) -> str:
    """Differences of the Bader charges from those of the original."""
    with tempfile.TemporaryDirectory() as folder:
        charges = bader_charges(cases, python, Path(folder))
    original, rows = charges.pop("original"), []
    for name in [*(f"{tolerance:g} %" for tolerance in TOLERANCES), MOVED]:
        away = {id_: np.abs(charges[name][id_] - original[id_]) for id_ in original}
        every = np.concatenate(list(away.values()))
        numbers = [every.mean(), np.percentile(every, 90), every.max()]
        worst = max(away, key=lambda id_: float(away[id_].max()))
        rows.append([name, str(len(every)), *(f"{number:.4f}" for number in numbers), worst])
    heading = ["decoded at", "atoms", "difference, mean (e)", "90 %", "largest", "worst"]
    return table(heading, rows)


# --- bonds ----------------------------------------------------------------------------------


def bonds(structure: Structure) -> NDArray[np.float64]:
    """Ends of the bonds to nearest neighbours, fractional: shape (bond, 2, 3), each once."""
    atoms = structure.to_ase()
    longest = 1.5 * structure.volume ** (1 / 3) + 3.0
    first, second, distance, images = neighbor_list("ijdS", atoms, longest)
    shortest = np.full(len(atoms), np.inf)
    np.minimum.at(shortest, first, distance)
    near = distance <= NEAREST * shortest[first]
    kept: dict[tuple[float, ...], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for i, j, image in zip(first[near], second[near], images[near], strict=True):
        start, end = structure.frac_coords[i], structure.frac_coords[j] + image
        middle = np.round((start + end) / 2 % 1.0, 6) % 1.0
        kept.setdefault((*middle, *sorted((i, j))), (start, end))
    return np.array(list(kept.values()))


def along(values: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The trigonometric interpolation of a field at fractional points, Nyquist terms left out.

    Args:
        values: shape (n1, n2, n3).
        points: shape (point, 3).
    """
    series = np.fft.fftn(values, norm="forward")
    waves = []
    for axis, n in enumerate(values.shape):
        frequencies = np.fft.fftfreq(n, 1 / n)
        wave = np.exp(2j * np.pi * np.outer(points[:, axis], frequencies))
        wave[:, np.abs(frequencies) * 2 >= n] = 0.0
        waves.append(wave)
    lines = np.einsum("abc,pc->pab", series, waves[2], optimize=True)
    return np.asarray(np.einsum("pab,pa,pb->p", lines, waves[0], waves[1], optimize=True).real)


def bond_profiles(density: ChargeDensity) -> NDArray[np.float64]:
    """The density along each bond, from atom to atom: shape (bond, point)."""
    steps = np.linspace(0, 1, BOND_POINTS)[:, None]
    ends = bonds(density.structure)
    lines = ends[:, None, 0] + steps * (ends[:, None, 1] - ends[:, None, 0])
    return np.array([along(density.values, line) for line in lines])


def bond_table(cases: Sequence[Case]) -> str:
    """Relative differences of the density on bonds."""
    rows = []
    original = {case.id: bond_profiles(case.original) for case in cases}
    for tolerance in TOLERANCES:
        found = {name: [] for name in ("midpoint", "lowest", "rms")}  # type: dict[str, list[float]]
        for case in cases:
            for before, after in zip(
                original[case.id], bond_profiles(case.decoded[tolerance]), strict=True
            ):
                half, low = BOND_POINTS // 2, before[MIDDLE].min()
                found["midpoint"].append(abs(after[half] / before[half] - 1))
                found["lowest"].append(abs(after[MIDDLE].min() / low - 1))
                rms = np.sqrt(np.mean(np.square(after - before)))
                found["rms"].append(float(rms / before.mean()))
        numbers = [
            f"{100 * value:.3f}"
            for name in found
            for value in (np.mean(found[name]), np.max(found[name]))
        ]
        rows.append([f"{tolerance:g} %", str(len(found["rms"])), *numbers])
    kinds = ("midpoint", "lowest point of the middle", "rms along the bond / mean")
    heading = [f"{kind}, {what} (%)" for kind in kinds for what in ("mean", "largest")]
    return table(["decoded at", "bonds", *heading], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--densities", type=Path, default=SHARED / "densities", metavar="DIR")
    parser.add_argument(
        "--bader-python", type=Path, metavar="PYTHON", help="of an environment with baderkit"
    )
    parser.add_argument("--limit", type=int, default=32, metavar="N", help="densities at most")
    parser.add_argument("--most-atoms", type=int, default=8, metavar="N", help="in a cell")
    arguments = parser.parse_args()
    paths = choose(arguments.densities, arguments.most_atoms, arguments.limit)
    print(f"`{shlex.join(['python', *sys.argv])}`\n\n{machine()}; {len(paths)} densities\n")
    cases = []
    for path in paths:
        cases.append(coded(path))
        print(f"\rcoded {len(cases)}/{len(paths)} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(bond_table(cases), flush=True)
    if arguments.bader_python:
        print(bader_table(cases, arguments.bader_python))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
