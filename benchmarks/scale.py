"""How the time and memory of every command grow with the number of records.

usage: python benchmarks/scale.py [--sizes 1000 10000 100000 1000000] [--folder /tmp/scale]

Builds synthetic stores (ids `syn-...`): the records of the shipped store with a density, repeated,
with properties that vary; latents, payloads and features are real ones, repeated. Then every
command runs in a process of its own, the short ones three times, of which the fastest counts; and
again inside one process that has started, without the imports. Memory is the largest resident set.
Prints Markdown; the stores are deleted unless --keep is given.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import zarr
from store_ops import _run as run_command
from store_ops import machine, run, table

from chgdb.arrays import LatentArrays
from chgdb.database import Database
from chgdb.density import ChargeDensity
from chgdb.formats import write_density
from chgdb.parquet import ROW_GROUP, file_metadata
from chgdb.schema import COLUMNS, FEATURES, FORMAT_VERSION, PREDICTIONS, Column
from chgdb.seals import seal

SHIPPED = Path(__file__).resolve().parent.parent / "store"
ATTRIBUTION = "SYNTHETIC: records of the shipped store repeated, their properties varied; no data"
GROUP, PER_SHARD, SHARD = 128, 1024, 2**20
"""Different densities; rows whose payloads fill one shard of payloads; its bytes."""

PART = 2**20
SEARCHES = {
    "search, elements and where": ["--elements", "Ti,O", "--where", "bulk_modulus > 150"],
    "search, sort": ["--sort=-bulk_modulus", "--limit", "20"],
    "search, formula": ["--formula", "TiO2"],
    "search, predicted": ["--where", "predicted_bulk_modulus > 300", "--limit", "20"],
}


def build(folder: Path, n: int) -> Path:
    """A store of `n` records, all with latent, payload, features and predictions."""
    target = folder / f"store-{n}"
    if target.exists():
        return target
    source = Database(SHIPPED)
    chosen = source.select(
        where="payload_bytes IS KNOWN AND payload_bytes < 900", limit=GROUP, columns="id"
    )
    base = source.copy(folder / f"base-{n}", [row["id"] for row in chosen])
    info = replace(base.info, attribution=ATTRIBUTION)
    shutil.rmtree(target.with_suffix(".new"), ignore_errors=True)
    made = Database._create(target.with_suffix(".new"), info).path
    _arrays(base, made, n)
    varied = "(0.5 + ((i * 7919) % 10007) / 10007)"
    numbers = [c.name for c in COLUMNS.values() if c.type == "real" and c.unit in ("GPa", "eV")]
    changes = ", ".join(f"{name} * {varied} AS {name}" for name in numbers)
    identity = "printf('syn-%09d', i) AS id"
    for start in range(0, n, PART):
        stop = min(start + PART, n)
        _copy(
            f"SELECT base.* REPLACE ({identity}, i AS row, 'synthetic' AS source_file, "
            f"sha256(i::VARCHAR) AS source_sha256, {changes}) FROM base "
            f"JOIN (SELECT unnest(range({start}, {stop})) AS i) ON row = i % {GROUP} ORDER BY id",
            base.path / "materials",
            made / f"materials/{start:09d}-{stop:09d}.parquet",
            list(COLUMNS.values()),
        )
    (part,) = (base.path / "materials").glob("*.parquet")
    rows = (
        f"JOIN '{part}' AS known ON known.id = base.id "
        f"JOIN (SELECT unnest(range(0, {n})) AS i) ON known.row = i % {GROUP} ORDER BY i"
    )
    _copy(
        f"SELECT base.* REPLACE ({identity}, 'density' AS origin, i AS record_row, "
        f"sha256(i::VARCHAR) AS sha256, base.m1 * {varied} AS m1) "
        f"FROM base {rows}",
        base.path / "features",
        made / "features/000000000.parquet",
        list(FEATURES.values()),
    )
    _copy(
        f"SELECT base.* REPLACE ({identity}, sha256(i::VARCHAR) AS features_sha256, "
        f"base.bulk_modulus * {varied} AS bulk_modulus) FROM base {rows}",
        base.path / "predictions",
        made / "predictions/000000000.parquet",
        list(PREDICTIONS.values()),
    )
    shutil.rmtree(base.path)
    made.rename(target)
    return target


def _copy(query: str, source: Path, target: Path, columns: list[Column]) -> None:
    target.parent.mkdir(exist_ok=True)
    metadata = file_metadata({c.name: c.unit for c in columns}, FORMAT_VERSION)
    pairs = ", ".join(f"\"{key}\": '{value}'" for key, value in metadata.items())
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (WITH base AS (SELECT * FROM '{source}/*.parquet') {query}) TO '{target}' "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP}, "
            f"KV_METADATA {{{pairs}}})"
        )
    seal(target)


def _arrays(base: Database, made: Path, n: int) -> None:
    """Latents and payloads of the base, repeated: shards are copied, small arrays are written."""
    records = [base[id_] for id_ in base]
    payloads = [record.payload() or b"" for record in records]
    path = made / "latents.zarr"
    LatentArrays.open(path, writable=True).write(
        0,
        [record.id for record in records],
        np.stack([record.latent().values for record in records]),
        [record.grid for record in records],
        [record.latent().work_grid for record in records],
        [record.row["n_electrons"] for record in records],
        payloads,
    )
    n_shards = -(-n // PER_SHARD)
    lengths = np.array([len(payload) for payload in payloads])
    block = b"".join(payloads) * (PER_SHARD // GROUP)
    if len(block) > SHARD:
        raise ValueError(f"{len(block)} bytes of payloads in a shard of {SHARD}")
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    arrays: dict[str, Any] = dict(group.arrays())
    rows = np.arange(n)
    within = np.concatenate([[0], np.cumsum(np.tile(lengths, PER_SHARD // GROUP))[:-1]])
    values = {
        "material_id": np.array([f"syn-{i:09d}" for i in rows], object),
        "payload_length": lengths[rows % GROUP],
        "payload_offset": rows // PER_SHARD * SHARD + within[rows % PER_SHARD],
        **{name: arrays[name][:][rows % GROUP] for name in ("grid", "work_grid", "n_electrons")},
    }
    for name, content in values.items():
        arrays[name].resize((n, *arrays[name].shape[1:]))
        arrays[name][:] = content
    arrays["latent"].resize((n, *arrays["latent"].shape[1:]))
    shards = path / "latent/c"
    for shard in range(1, -(-n // GROUP)):
        (shards / f"{shard}/0/0/0").mkdir(parents=True)
        shutil.copyfile(shards / "0/0/0/0/0", shards / f"{shard}/0/0/0/0")
    stop = int(values["payload_offset"][-1] + values["payload_length"][-1])
    arrays["payload"].resize((n_shards * SHARD,))
    arrays["payload"][:SHARD] = np.frombuffer(block.ljust(SHARD, b"\0"), np.uint8)
    for shard in range(1, n_shards):
        shutil.copyfile(path / "payload/c/0", path / f"payload/c/{shard}")
    writable = LatentArrays.open(path, writable=True)
    writable._commit(n, stop)
    writable.truncate(n)


INSIDE = """
import json, sys, time
from pathlib import Path
import chgdb, numpy, zarr, pandas, chgdb.arrays, chgdb.archive, chgdb.features, chgdb.similarity
store, last = sys.argv[1:3]
def timed(function):
    start = time.perf_counter(); answer = function(); return time.perf_counter() - start, answer
seconds = {}
seconds["open"], db = timed(lambda: chgdb.open(store))
seconds["get"], _ = timed(lambda: db[last])
seconds["get --decode"], _ = timed(lambda: db.decode(last))
db.decode(last)
seconds["get --decode, again"], _ = timed(lambda: db.decode(last))
seconds["search, elements and where"], _ = timed(
    lambda: db.select(elements="Ti,O", where="bulk_modulus > 150", columns="id,formula", limit=51))
seconds["search, sort"], _ = timed(lambda: db.select(
    sort="bulk_modulus", descending=True, limit=20, columns="id,formula"))
seconds["search, formula"], _ = timed(
    lambda: db.select(formula="TiO2", columns="id,formula", limit=51))
seconds["search, predicted"], _ = timed(lambda: db.select(
    where="predicted_bulk_modulus > 300", columns="id,formula", limit=20))
seconds["similar"], _ = timed(lambda: db.nearest(last, 10))
print(json.dumps(seconds))
"""


def measure(
    store: Path, n: int, files: list[Path], largest: int
) -> dict[str, tuple[float, float, float | None]]:
    """By command: seconds and MB of the process, and seconds in one that has started.

    `predict --all` runs where there are at most `largest` records.
    """
    last = f"syn-{n - 1:09d}"
    at = ("--store", str(store))
    words: dict[str, list[str]] = {
        "open": ["get", last],
        "get": ["get", last],
        "get --decode": ["get", last, "--decode", "-o", str(store.parent / "out.vasp")],
        **{name: ["search", *options] for name, options in SEARCHES.items()},
        "similar": ["similar", last],
    }
    inner = [
        json.loads(run_command([sys.executable, "-c", INSIDE, str(store), last])[2])
        for _ in range(3)
    ]
    result: dict[str, tuple[float, float, float | None]] = {}
    for name, command in words.items():
        if name == "open":
            seconds, memory, _ = min(
                run_command([sys.executable, "-c", f"import chgdb; chgdb.open({str(store)!r})"])
                for _ in range(3)
            )
        else:
            seconds, memory, _ = min(run(*command, *at) for _ in range(3))
        result[name] = seconds, memory, min(times[name] for times in inner)
    if n <= largest:
        result["predict --all"] = (*predict(store), None)
    for name, paths in (("add, 1 material", files[:1]), (f"add, {len(files) - 1}", files[1:])):
        if paths:
            seconds, memory, _ = run("add", *paths, *at, "--processes", "1")
            result[name] = seconds, memory, None
    return result


def predict(store: Path) -> tuple[float, float]:
    """Seconds and MB of `predict --all` without predictions that are up to date."""
    shutil.rmtree(store / "predictions")
    seconds, memory, _ = run("predict", "--all", "--store", store)
    return seconds, memory


def densities(folder: Path, n: int) -> list[Path]:
    """Files of small densities, no two alike."""
    source = Database(SHIPPED)["mp-149"].density((24, 24, 24))
    files = []
    for i in range(n):
        files.append(folder / f"syn-add-{i}.npz")
        write_density(
            files[-1], ChargeDensity(source.values * (1 + 1e-3 * i), source.structure), "npz"
        )
    return files


def size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**k for k in (3, 4, 5, 6)])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/scale"), help="20 GB free")
    parser.add_argument("--predict", type=int, default=10_000, help="largest size of predict --all")
    parser.add_argument("--add", type=int, default=128, help="materials to add at once")
    parser.add_argument("--keep", action="store_true", help="do not delete the stores")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    print(f"`{shlex.join(['python', *sys.argv])}`\n\n{machine()}\n", flush=True)
    files = densities(folder, 1 + arguments.add)
    columns: dict[int, dict[str, tuple[float, float, float | None]]] = {}
    sizes = []
    for n in arguments.sizes:
        start = time.perf_counter()
        store = build(folder, n)
        parts = {name: size(store / name) for name in ("materials", "latents.zarr", "features")}
        took = time.perf_counter() - start
        sizes.append(
            [f"{n:.0e}", f"{size(store) / 1e6:.0f}", *(f"{b / n:.0f}" for b in parts.values())]
        )
        print(f"- {n}: built in {took:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
        columns[n] = measure(store, n, files, arguments.predict)
        for name, (seconds, memory, inside) in columns[n].items():
            print(f"  - {name}: {seconds:.2f} s, {memory:.0f} MB, inside {inside}", flush=True)
        if not arguments.keep:
            shutil.rmtree(store)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}\n")
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    for what, index in (
        ("s, the whole command", 0),
        ("MB, its peak", 1),
        ("s, in a process that has started", 2),
    ):
        rows = []
        for name in names:
            cells = [columns[n].get(name, (None,) * 3)[index] for n in columns]
            if any(cell is not None for cell in cells):
                digits = 0 if index == 1 else 3
                rows.append(
                    [name, *("" if cell is None else f"{cell:.{digits}f}" for cell in cells)]
                )
        print(table([what, *(f"{n:.0e}" for n in columns)], rows))
    heading = ["records", "MB", "table, B/record", "arrays, B/record", "features, B/record"]
    print(table(heading, sizes))


if __name__ == "__main__":
    main()
