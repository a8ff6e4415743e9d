"""Time reading and writing a CHGCAR with chgdb, pymatgen and ASE on the same file.

usage: python benchmarks/chgcar_io.py [--grid N] [--repeat R]

Prints a Markdown table: best of R runs in seconds. pymatgen and ASE must be installed.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chgdb.chgcar import read_chgcar, write_chgcar
from chgdb.density import ChargeDensity, Structure

if TYPE_CHECKING:
    from collections.abc import Callable


def example(n: int) -> ChargeDensity:
    """A smooth positive density with peaks at the atoms of silicon, on an n^3 grid."""
    lattice = 2.73 * (np.ones((3, 3)) - np.eye(3))
    structure = Structure(lattice, ("Si", "Si"), np.array([[0.0] * 3, [0.25] * 3]))
    axis = np.arange(n) / n
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    values = np.full((n, n, n), 0.01)
    for position in structure.frac_coords:
        distance = ((points - position + 0.5) % 1.0 - 0.5) @ lattice
        values += np.exp(-2.0 * (distance**2).sum(axis=-1))
    return ChargeDensity(values, structure)


def best_seconds(call: Callable[[], object], repeat: int) -> float:
    """Shortest wall time of `repeat` calls."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def processor() -> str:
    """Name of the processor where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def measure(folder: Path, n: int, repeat: int) -> list[tuple[str, float, float]]:
    """(package, seconds to read, seconds to write) for the same density."""
    from ase.calculators.vasp import VaspChargeDensity
    from pymatgen.io.vasp.outputs import Chgcar

    source = folder / "CHGCAR"
    write_chgcar(source, example(n))
    ours = read_chgcar(source)
    theirs = Chgcar.from_file(str(source))
    ase = VaspChargeDensity(str(source))
    target = folder / "CHGCAR_out"

    def row(name: str, read: Callable[[], object], write: Callable[[], object]) -> None:
        rows.append((name, best_seconds(read, repeat), best_seconds(write, repeat)))

    rows: list[tuple[str, float, float]] = []
    row("chgdb", lambda: read_chgcar(source), lambda: write_chgcar(target, ours))
    row(
        f"pymatgen {version('pymatgen')}",
        lambda: Chgcar.from_file(str(source)),
        lambda: theirs.write_file(str(target)),
    )
    row(
        f"ASE {version('ase')}",
        lambda: VaspChargeDensity(str(source)),
        lambda: ase.write(str(target), format="chgcar"),
    )
    return rows


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--grid", type=int, default=128, metavar="N", help="points per axis")
    parser.add_argument("--repeat", type=int, default=3, metavar="R", help="runs of each")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.grid, arguments.repeat)
        size = (Path(folder) / "CHGCAR").stat().st_size
    read, write = rows[0][1:]
    n = arguments.grid
    print(f"CHGCAR of {n} x {n} x {n} points, {size / 1e6:.1f} MB, best of {arguments.repeat} runs")
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, {processor()}, ", end="")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| package | read (s) | write (s) | read / chgdb | write / chgdb |")
    print("| --- | --- | --- | --- | --- |")
    for name, seconds_read, seconds_write in rows:
        ratios = f"{seconds_read / read:.1f} | {seconds_write / write:.1f}"
        print(f"| {name} | {seconds_read:.3f} | {seconds_write:.3f} | {ratios} |")


if __name__ == "__main__":
    main()
