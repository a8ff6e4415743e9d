"""How many materials a minute `add` stores: one process, several, workers of a dask cluster.

usage: python benchmarks/cluster.py FILES... [--refine STEPS] [--ways one,processes,cluster]

Prints a Markdown table. Every run is a `chgdb add` of its own, from its start to its end, into a
fresh store in a temporary folder; the CPU seconds are those of all its processes.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chgdb.database import Database

WAYS = {
    "one": ["--processes", "1"],
    "processes": ["--processes", "2"],
    "cluster": ["--scheduler", "local:2"],
}


def run(files: list[str], options: list[str], store: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one `chgdb add`."""
    command = [sys.executable, "-c", "from chgdb.cli import main; main()", "add", "--list", "-"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        [*command, *options, "--store", str(store)],
        input="\n".join(files),
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--refine", default=None)
    parser.add_argument("--ways", default=",".join(WAYS))
    arguments = parser.parse_args()
    refine = ["--refine", arguments.refine] if arguments.refine is not None else []
    print(f"{len(arguments.files)} files, {os.cpu_count()} cores, {' '.join(refine)}\n")
    print("| way | s | materials/min | CPU s per material | load |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for way in arguments.ways.split(","):
            store = Path(folder) / way
            Database.create(store)
            seconds, cpu = run(arguments.files, [*WAYS[way], *refine], store)
            stored = len(Database(store))
            rate = 60 * stored / seconds
            load = os.getloadavg()[0]
            print(
                f"| `{' '.join(WAYS[way])}` | {seconds:.0f} | {rate:.0f} | {cpu / stored:.2f} "
                f"| {load:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
