"""How far ChargE3Net's densities are from those of DFT, and what of it pseudopotentials explain.

    python benchmarks/charge3net.py nmae ../shared/densities ../shared/chgcar/*.gz --each 10
    python benchmarks/charge3net.py grid ../shared/densities --each 3
    python benchmarks/charge3net.py grid ../shared/densities --each 3 --all-waves
    python benchmarks/charge3net.py time ../shared/data/structures.json.gz --each 5

Of a folder the smallest cells of either kind are taken, with as many electrons as the density from
DFT and with another number; files that are named are all taken.

`nmae` predicts on the grid of the DFT density:

- missing: the electrons of the cell that the model's pseudopotentials do not have, %;
- NMAE: of the whole cell, with the electrons as they are, %;
- outside: of the points outside the spheres about the nuclei, on their own, %;
- non-spherical: of the whole cell, after the spherical part of the difference has been taken out
  of every sphere, where a pseudo-density is a convention, %.

A sphere has the radius 0.49 of the distance to the nearest atom, at most 1.5 A.

`grid` predicts on VASP's grid and on coarser ones, which are resampled to VASP's: what a coarse
grid loses, %, by its points per Angstrom. `--all-waves` keeps what the network predicts beyond
the waves of its training data.

`time` predicts structures from the smallest cell to the median one, in processor seconds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from chgdb import charge3net
from chgdb.archive import encode
from chgdb.charge3net import Charge3Net
from chgdb.density import ChargeDensity, Structure
from chgdb.errors import InputError
from chgdb.formats import default_id, find_densities, read_density
from chgdb.grid import fourier_resample, smooth, spacing_grid, vasp_grid
from chgdb.metrics import nmae
from chgdb.structure_files import StructureEntry, read_structures

KINDS = NAMED, SAME, OTHER = ("named files", "same electrons", "other electrons")

LARGEST_SPHERE = 1.5
SHELL = 0.1
"""A."""
GRIDS = (4.0, 5.0, 6.0, 7.0, 7.5, 8.0, 9.0, 10.0)
"""Points per Angstrom."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["nmae", "grid", "time"])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--each", type=int, default=12, help="materials of either kind")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--all-waves", action="store_true")
    options = parser.parse_args()
    if options.all_waves:
        charge3net.G_MAX = math.inf
    model = Charge3Net(options.device)
    print(f"{model.name}, weights {model.weights_sha256[:12]}, stated error {model.nmae:.2f} %\n")
    tasks = {"nmae": compare, "grid": coarsen, "time": measure}
    tasks[options.what](model, options.paths, options.each)


def smallest(
    model: Charge3Net, paths: Iterable[Path], each: int
) -> Iterator[tuple[str, ChargeDensity, str]]:
    """Densities, their names and `KINDS`: files that are named, the smallest cells of folders."""
    kinds: dict[str, list[tuple[float, str, ChargeDensity]]] = {kind: [] for kind in KINDS}
    named = [path for path in paths if path.is_file()]
    for path in find_densities(paths):
        density, _ = read_density(path)
        name = default_id(path, density.structure)
        try:
            own = abs(model.valence_electrons(density.structure) - density.n_electrons) < 0.1
        except InputError:
            continue
        kind = NAMED if path in named else SAME if own else OTHER
        kinds[kind].append((density.structure.volume, name, density))
    for kind, found in kinds.items():
        found.sort(key=lambda item: item[:2])
        for _, name, density in found if kind == NAMED else found[:each]:
            yield name, density, kind


def compare(model: Charge3Net, paths: Iterable[Path], each: int) -> None:
    columns = ("seconds", "e", "e raw", "e DFT", "missing", "NMAE", "outside", "non-spherical")
    print(f"{'':28s}" + "".join(f"{name:>10s}" for name in columns[:-1]) + columns[-1].rjust(14))
    rows: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in KINDS}
    for name, density, kind in smallest(model, paths, each):
        structure = density.structure
        start = perf_counter()
        predicted = model.predict(structure, density.grid)
        seconds = perf_counter() - start
        outside, rest = beyond_nuclei(predicted.values - density.values, structure)
        errors = (
            nmae(predicted.values, density.values),
            100 * np.abs((predicted.values - density.values)[outside]).sum()
            / np.abs(density.values[outside]).sum(),
            100 * np.abs(rest).sum() / np.abs(density.values).sum(),
        )  # fmt: skip
        n, raw, n_dft = predicted.n_electrons, predicted.raw_electrons, density.n_electrons
        rows[kind].append(errors)
        told = f"{seconds:10.1f}{n:10.3f}{raw:10.3f}{n_dft:10.3f}{100 * (1 - n / n_dft):10.2f}"
        told += f"{errors[0]:10.2f}{errors[1]:10.2f}{errors[2]:14.2f}"
        print(f"{name:20s}{structure.formula:8s}{told}", flush=True)
    for kind, errors_of_kind in rows.items():
        if errors_of_kind:
            print(f"\n{kind}, {len(errors_of_kind)}: median (range)")
            for label, values in zip(columns[-3:], zip(*errors_of_kind, strict=True), strict=True):
                spread = f"({min(values):.2f} to {max(values):.2f})"
                print(f"  {label:14s}{median(values):6.2f} {spread}")


def beyond_nuclei(
    difference: NDArray[np.float64], structure: Structure
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which points are outside the spheres, and the difference less its spherical parts in them."""
    atoms = structure.to_ase()
    i, _, distances = neighbor_list("ijd", atoms, 2 * LARGEST_SPHERE / 0.98 + 1e-6)
    grid = difference.shape
    axes = [np.arange(n) / n for n in grid]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    outside, rest = np.ones(grid, dtype=bool), difference.copy()
    for atom, position in enumerate(structure.frac_coords):
        radius = min(LARGEST_SPHERE, 0.49 * min(distances[i == atom], default=np.inf))
        apart = points - position
        apart -= np.rint(apart)
        nearest = np.full(grid, np.inf)
        for image in np.ndindex(3, 3, 3):  # in a skew cell another image may be nearer
            vector = (apart + np.array(image) - 1) @ structure.lattice
            np.minimum(nearest, np.linalg.norm(vector, axis=-1), out=nearest)
        inside = nearest < radius
        outside &= ~inside
        shell = (nearest[inside] / SHELL).astype(int)
        means = np.bincount(shell, difference[inside]) / np.maximum(np.bincount(shell), 1)
        rest[inside] -= means[shell]
    return outside, rest


def coarsen(model: Charge3Net, paths: Iterable[Path], each: int) -> None:
    print(f"{'':28s}{'fine grid':>16s}" + "".join(f"{density:8.1f}" for density in GRIDS))
    rows = []
    for name, density, _ in smallest(model, paths, each):
        structure = density.structure
        fine = model.predict(structure, vasp_grid(structure.lattice))
        losses = []
        for points in GRIDS:
            n1, n2, n3 = (smooth(n) for n in spacing_grid(structure.lattice, points))
            coarse = model.predict(structure, (n1, n2, n3))
            losses.append(nmae(fourier_resample(coarse.values, fine.grid), fine.values))
        rows.append(losses)
        told = f"{name:20s}{structure.formula:8s}{'x'.join(map(str, fine.grid)):>16s}"
        print(told + "".join(f"{loss:8.3f}" for loss in losses), flush=True)
    medians = [median(column) for column in zip(*rows, strict=True)]
    print(f"{'median (%)':44s}" + "".join(f"{loss:8.3f}" for loss in medians))


def measure(model: Charge3Net, paths: Iterable[Path], each: int) -> None:
    entries = [entry for path in paths for entry in read_structures(path)]
    found = [entry for entry in entries if isinstance(entry, StructureEntry)]
    found.sort(key=lambda entry: entry.structure.volume)
    model.predict(found[0].structure, (4, 4, 4))  # what is compiled at the first call
    print(
        f"{'':28s}{'A^3':>8s}{'atoms':>7s}{'grid':>14s}{'predict':>9s}{'payload':>9s}{'bytes':>7s}"
    )
    for place in np.linspace(0, len(found) // 2, each).astype(int):
        entry = found[place]
        structure = entry.structure
        start = process_time()
        density = model.predict(structure)
        predicted = process_time()
        payload = encode(density)
        encoded = process_time()
        told = f"{entry.id:18s}{structure.formula:10s}{structure.volume:8.0f}"
        told += f"{len(structure.species):7d}"
        told += f"{'x'.join(map(str, density.grid)):>14s}{predicted - start:9.1f}"
        print(told + f"{encoded - predicted:9.1f}{len(payload.data):7d}", flush=True)


if __name__ == "__main__":
    main()
