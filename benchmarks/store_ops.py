"""What it costs to add, get, open and search: seconds and memory, each command in a fresh process.

usage: python benchmarks/store_ops.py --store DIR --densities DIR

Prints Markdown tables. The store is copied to a temporary folder first; nothing else is written.
Every command is timed from its start to its end, with the start of Python and torch in it, and
nothing is run beforehand to warm it up. Memory is the largest resident set of the process.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import chgdb
from chgdb import formats, intake, metrics
from chgdb.database import Database
from chgdb.density import ChargeDensity, Structure
from chgdb.grid import fourier_resample, vasp_grid

SMALL, LARGE = "mp-149", "mp-1487"
"""Silicon, 2 atoms; and NiAl, 2 atoms, of which 3 x 3 x 3 cells take a grid of 128^3 in VASP."""

REPEAT = 5


def supercell(density: ChargeDensity, times: int) -> ChargeDensity:
    """times^3 cells of a crystal on the grid that VASP takes at ENCUT = 500."""
    structure = density.structure
    offsets = np.stack(np.meshgrid(*[np.arange(times)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    coordinates = (structure.frac_coords[:, None] + offsets[None]).reshape(-1, 3) / times
    species = tuple(symbol for symbol in structure.species for _ in offsets)
    lattice = times * structure.lattice
    values = fourier_resample(np.tile(density.values, (times,) * 3), vasp_grid(lattice))
    return ChargeDensity(values, Structure(lattice, species, coordinates))


def run(*words: str | Path) -> tuple[float, float, str]:
    """A chgdb command in a process of its own: seconds, MB at its peak, and what it printed."""
    command = [Path(sys.executable).with_name("chgdb"), *words]
    return _run([str(word) for word in command])


WATCHER = """
import json, os, sys, time
start = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
spent = time.perf_counter() - start
print(json.dumps([spent, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)]))
"""
"""Linux counts the memory of the starting process to the started one: let a tiny one start it."""


def _run(command: Sequence[str]) -> tuple[float, float, str]:
    watcher = [sys.executable, "-IS", "-c", WATCHER, *command]
    done = subprocess.run(watcher, capture_output=True, text=True, check=True)
    *printed, last = done.stdout.splitlines()
    seconds, memory, status = json.loads(last)
    if status:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr}")
    return seconds, memory, "\n".join(printed)


class Stopwatch:
    """Seconds spent in named functions while they do their real work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent = time.perf_counter() - start
                self.seconds[name] = self.seconds.get(name, 0.0) + spent

        return call

    @contextmanager
    def watching(self, **places: tuple[Any, str]) -> Iterator[None]:
        """Time functions where `places` finds them: label=(owner, name)."""
        with ExitStack() as stack:
            for label, (owner, name) in places.items():
                function = self.timed(label, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, function))
            yield


def stages(store: Path, file: Path, material_id: str) -> dict[str, float]:
    """Seconds of each step of one `add`, in a process that has torch loaded."""
    watch = Stopwatch()
    database = Database(store, device="cpu")
    codec = watch.timed("load torch and the encoder", lambda: database._codec)()
    with watch.watching(
        hash=(intake, "file_sha256"),
        read=(intake, "read_density"),
        symmetry=(intake, "find_symmetry"),
        encode=(type(codec), "encode"),
        decode=(type(codec), "decode"),
        check=(metrics, "compare"),
        store=(Database, "_commit"),
    ):
        start = time.perf_counter()
        report = database.add([file], ids=[material_id])
        watch.seconds["all of add"] = time.perf_counter() - start
    if report.failed:
        raise RuntimeError(report.failed[0][1])
    return watch.seconds


def machine() -> str:
    """Machine, versions and load."""
    names = ("numpy", "torch", "zarr", "duckdb", "fastparquet")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"chgdb {chgdb.__version__}, Python {platform.python_version()}, {versions}; "
        f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def commands(store: Path, files: dict[str, Path], folder: Path) -> str:
    """Time of commands, each in a process of its own."""
    rows = []
    baseline = _run([sys.executable, "-c", "import chgdb.codec"])
    rows.append(["(only importing torch)", "", f"{baseline[0]:.2f}", f"{baseline[1]:.0f}", ""])
    for name, file in files.items():
        size = f"{file.stat().st_size / 1e6:.1f}"
        added = run("add", file, "--id", f"bench-{name}", "--store", store)
        target = folder / f"{name}.CHGCAR.vasp"
        got = run("get", f"bench-{name}", "--decode", "-o", target, "--store", store)
        error = added[2].rsplit("NMAE ", 1)[-1]
        rows.append([f"add, {name}", size, f"{added[0]:.2f}", f"{added[1]:.0f}", error])
        rows.append([f"get --decode, {name}", size, f"{got[0]:.2f}", f"{got[1]:.0f}", ""])
    return table(["command", "file (MB)", "s", "peak memory (MB)", "NMAE"], rows)


def queries(store: Path) -> str:
    """Time of opening and searching."""
    cases = {
        "info": [],
        "search": ["--elements", "O", "--where", "bulk_modulus > 150"],
        "--help": [],
    }
    rows = []
    for name, words in cases.items():
        where = [] if name == "--help" else ["--store", str(store)]
        times = [run(name, *words, *where) for _ in range(REPEAT)]
        seconds = statistics.median(time for time, *_ in times)
        memory = statistics.median(memory for _, memory, _ in times)
        shown = shlex.join(["chgdb", name, *words])
        rows.append([f"`{shown}`, process", f"{seconds:.3f}", f"{memory:.0f}"])
    start = time.perf_counter()
    database = chgdb.open(store)
    opened = time.perf_counter()
    database.search(elements=["O"], where="bulk_modulus > 150")
    first = time.perf_counter()
    later = []
    for _ in range(REPEAT):
        begin = time.perf_counter()
        database.search(elements=["O"], where="bulk_modulus > 150")
        later.append(time.perf_counter() - begin)
    rows += [
        ["`chgdb.open`, in a process that has imported it", f"{opened - start:.4f}", ""],
        ["`db.search`, the first in a process", f"{first - opened:.4f}", ""],
        ["`db.search`, later", f"{statistics.median(later):.4f}", ""],
    ]
    return table([f"what (median of {REPEAT})", "s", "peak memory (MB)"], rows)


def bulk(store: Path, files: Sequence[Path]) -> str:
    """Time of adding many small files at once."""
    encoder = Database(store).info.encoder.id
    target = store.with_name("bulk")
    run("init", target, "--encoder", encoder)
    words = ("--store", target, "--processes", "1")
    seconds, memory, _ = run("add", *files, *words)
    n = len(files)
    row = [f"add, {n} npz files at once", f"{seconds:.1f}", f"{seconds / n:.2f}", f"{memory:.0f}"]
    return table(["command", "s", "s per material", "peak memory (MB)"], [row])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--store", type=Path, required=True, help="it is copied, not changed")
    parser.add_argument("--densities", type=Path, required=True, help="the project's npz files")
    parser.add_argument("--bulk", type=int, default=32, metavar="N", help="files to add at once")
    arguments = parser.parse_args()
    small, _ = formats.read_density(arguments.densities / f"{SMALL}.npz")
    large, _ = formats.read_density(arguments.densities / f"{LARGE}.npz")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = folder / "store"
        run("export", store, "--store", arguments.store)
        files = {}
        for name, density in {"Si": supercell(small, 1), "AlNi": supercell(large, 3)}.items():
            files[name] = folder / f"{name}.vasp"
            formats.write_density(files[name], density, "chgcar")
            grid = " x ".join(map(str, density.grid))
            print(f"- {name}: {len(density.structure.species)} atoms, {grid} points")
        print(f"- store: {len(Database(store))} records\n")
        print(f"`{shlex.join(['python', *sys.argv])}`\n\n{machine()}\n")
        print(queries(store))
        print(commands(store, files, folder))
        print(bulk(store, formats.find_densities([arguments.densities])[: arguments.bulk]))
        database = folder / "stages"
        run("export", database, "--store", arguments.store)
        steps = stages(database, files["AlNi"], "bench")
        print("AlNi again, step by step in one process:\n")
        print(table(["step", "s"], [[name, f"{spent:.3f}"] for name, spent in steps.items()]))


if __name__ == "__main__":
    main()
