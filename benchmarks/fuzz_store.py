"""Targets of benchmarks/fuzz.py: what is inside a store, damaged or made by a stranger.

Payloads and files get new checksums where that lets the damage reach what lies behind them.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from fuzz import Outcome, Target, outcome

import chgdb.archive as archive
from chgdb.database import Database
from chgdb.density import ChargeDensity, Structure
from chgdb.parquet import quoted
from chgdb.schema import LARGEST_GRID
from chgdb.seals import NO_SUMS, UNSEALED, seal

__all__ = ["TARGETS"]

SHIPPED = Path(__file__).parent.parent / "store"
RECORDS = 12
"""Of the shipped store, in the store that is damaged."""

MOST_POINTS = 2**21
"""Of a grid that a damaged payload may state without being refused: what a case has memory for."""


@dataclass(frozen=True)
class Sample:
    """A payload with its structure."""

    data: bytes
    structure: Structure


@dataclass(frozen=True)
class Store:
    """A whole store, a copy to damage, and what the whole one gives."""

    whole: Path
    copy: Path
    ids: list[str]
    rows: dict[str, dict[str, Any]]
    densities: dict[str, np.ndarray[Any, Any]]
    latents: dict[str, np.ndarray[Any, Any]]


def smallest(n: int) -> list[str]:
    """The records of the shipped store with the shortest payloads."""
    database = Database(SHIPPED)
    found = database.select(where="payload_bytes > 0", sort="payload_bytes", columns="id", limit=n)
    return [row["id"] for row in found]


# --- bytes ------------------------------------------------------------------------------------


def damaged(rng: np.random.Generator, content: bytes, other: bytes = b"") -> bytes:
    """A content with bytes changed, cut out, put in or taken from another."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        kind = int(rng.integers(0, 7))
        place = int(rng.integers(0, len(data) + 1))
        n = int(rng.integers(1, 1 + min(64, max(len(data), 1))))
        if kind <= 2 and place < len(data):
            data[place] ^= int(rng.integers(1, 256))
        elif kind == 3:
            del data[place : place + n]
        elif kind == 4:
            data[place:place] = rng.bytes(n)
        elif kind == 5:
            del data[place:]
        elif other:
            start = int(rng.integers(0, len(other)))
            data[place : place + n] = other[start : start + n]
    return bytes(data)


def payload_case(rng: np.random.Generator, samples: list[Sample]) -> Outcome:
    """A payload whose bytes were changed, with the checksum that they would have."""
    sample = samples[int(rng.integers(len(samples)))]
    other = samples[int(rng.integers(len(samples)))]
    (n1, n2, n3, n_fields), start = archive._varints(sample.data[5:], 0, 4)
    body = sample.data[5 + start :]
    head = [n1, n2, n3, n_fields]
    if rng.random() < 0.3:
        head[int(rng.integers(0, 4))] = int(
            rng.choice([0, 1, 2, 3, 4, 7, 64, 2**10, 10**5, 2**31, 2**63, 2**70])
        )
        if MOST_POINTS < head[0] * head[1] * head[2] <= LARGEST_GRID:
            head[:3] = [10**5] * 3
    if rng.random() < 0.8:
        body = damaged(rng, body, other.data)
    if rng.random() < 0.1:
        body = bytes([int(rng.integers(0, 6))]) + body[1:]
    content = b"".join(map(archive._varint, head)) + body
    structure = sample.structure if rng.random() < 0.9 else other.structure
    data = struct.pack("<BI", 1, archive._checksum(content, structure)) + content

    def decode() -> None:
        density = archive.decode(data, structure)
        assert density.grid == tuple(head[:3])
        assert np.isfinite(density.values).all()
        if density.magnetization is not None:
            assert np.isfinite(density.magnetization).all()
        assert (1 if density.magnetization is None else 1 + len(density.magnetization)) == head[3]

    return outcome(decode)


def prepare_payloads(folder: Path) -> list[Sample]:
    """Payloads of every kind: real ones, on the grid, exact, with magnetization."""
    del folder
    samples = []
    for record in Database(SHIPPED).get(smallest(24)):
        samples.append(Sample(record.payload() or b"", record.structure))
    for spin, tolerance in ((0, 1e-9), (0, 0.0), (1, 1.0), (3, 1.0), (1, 1e-7)):
        density = peaks(spin)
        made = archive.encode(density, archive.Tolerance(nmae=tolerance))
        samples.append(Sample(made.data, density.structure))
    return samples


def peaks(spin: int) -> ChargeDensity:
    """Gaussian peaks on two atoms."""
    lattice = np.array([[3.1, 0.0, 0.0], [0.6, 2.9, 0.0], [-0.4, 0.7, 3.4]])
    structure = Structure(lattice, ("Na", "Cl"), np.array([[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]]))
    points = np.stack(np.meshgrid(*[np.arange(12) / 12] * 3, indexing="ij"), axis=-1)
    values = np.full((12, 12, 12), 0.05)
    for position in structure.frac_coords:
        values += np.exp(2.0 * (np.cos(2 * np.pi * (points - position)) - 1).sum(axis=-1))
    spins = np.stack([values / (3 + i) for i in range(spin)]) if spin else None
    return ChargeDensity(values, structure, spins)


# --- stores -----------------------------------------------------------------------------------


def prepare_store(folder: Path) -> Store:
    """A store with some records of the shipped one, and what it gives."""
    ids = smallest(RECORDS)
    database = Database(SHIPPED).copy(folder / "whole", ids)
    database.import_materials({"no-density": {"formula": "NaCl", "band_gap": 5.0}})
    (folder / "whole" / ".lock").unlink(missing_ok=True)
    records = database.get(ids)
    return Store(
        folder / "whole",
        folder / "copy",
        [*ids, "no-density"],
        {record.id: record.row for record in database.get([*ids, "no-density"])},
        {record.id: record.density().values for record in records},
        {record.id: record.latent().values for record in records},
    )


def fresh(shared: Store) -> Path:
    """A whole copy."""
    shutil.rmtree(shared.copy, ignore_errors=True)
    shutil.copytree(shared.whole, shared.copy)
    return shared.copy


def used(shared: Store, rng: np.random.Generator, *, same: bool) -> Outcome:
    """Everything that reads the damaged copy; what it gives is refused, or the same if it must be.

    Returns:
        "refused" if any of it was.
    """
    results = []

    def looked() -> None:
        database = Database(shared.copy)
        some = [shared.ids[int(i)] for i in rng.choice(len(shared.ids), 1)]

        def searched() -> None:
            found = database.select(where="n_elements > 0").rows()
            assert not same or found == [shared.rows[id_] for id_ in shared.ids]

        def got(id_: str) -> None:
            (record,) = database.get([id_])
            assert not same or record.row == shared.rows[id_]

        def decoded(id_: str) -> None:
            density = database.decode([id_])[0].values
            assert np.isfinite(density).all()
            assert not same or np.array_equal(density, shared.densities[id_])

        def latent(id_: str) -> None:
            values = database[id_].latent().values
            assert not same or np.array_equal(values, shared.latents[id_])

        results.append(outcome(searched))
        results.append(outcome(lambda: database.count(where="band_gap > 1")))
        results.append(outcome(database.features))
        for id_ in some:
            results.append(outcome(lambda id_=id_: got(id_)))  # type: ignore[misc]
            if id_ != "no-density":
                results.append(outcome(lambda id_=id_: decoded(id_)))  # type: ignore[misc]
                results.append(outcome(lambda id_=id_: latent(id_)))  # type: ignore[misc]
        if rng.random() < 0.05:
            found = database.verify()
            assert all(str(finding).isprintable() for finding in found)

    results.append(outcome(looked))
    return "refused" if "refused" in results else "read"


def sealed_anew(path: Path) -> None:
    """Give a file the checksums that its writer would have given it."""
    content = path.read_bytes()
    for mark, empty in ((b"chgdb:sha256:", UNSEALED), (b"chgdb:crc32:", NO_SUMS)):
        start = content.rfind(mark)
        if start < 0 or start + len(empty) > len(content):
            return
        content = content[:start] + empty.encode() + content[start + len(empty) :]
    path.write_bytes(content)
    seal(path)


def parquet_case(rng: np.random.Generator, shared: Store) -> Outcome:
    """A part of a table with other bytes, or another Parquet file in its place."""
    store = fresh(shared)
    path = rng.choice(sorted(store.glob("*/*.parquet")))
    kind = int(rng.integers(0, 4))
    if kind == 0:
        path.write_bytes(damaged(rng, path.read_bytes()))
        return used(shared, rng, same=b"chgdb:sha256:" in path.read_bytes())
    if kind == 1:
        content = bytearray(path.read_bytes())
        place = int(rng.integers(4, len(content) - 8))
        content[place] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        sealed_anew(path)
    else:
        _foreign(rng, path)
    return used(shared, rng, same=False)


_VALUES = (
    "NULL", "'x'", "''", "1e308", "-1", "'NaN'::DOUBLE", "true", "[1, 2]", "{'a': 1}",
    "'\\x00'::BLOB",
    "DATE '2000-01-01'", "9223372036854775807", "1.5::DECIMAL(5, 2)", "repeat('y', 100000)",
    "'[[1e400,0,0],[0,1,0],[0,0,1]]'", "'[\"Na\"]'", "'[[[[[[[['", "uuid()", "'infinity'::DOUBLE",
)  # fmt: skip


def _foreign(rng: np.random.Generator, path: Path) -> None:
    """Set some columns to what they are not, or leave them out, or write something else."""
    with duckdb.connect() as connection:
        names = [row[0] for row in connection.execute(f"DESCRIBE FROM '{path}'").fetchall()]
        change, drop = {}, set()
        for name in rng.choice(names, int(rng.integers(1, 6)), replace=False):
            if rng.random() < 0.2:
                drop.add(name)
            else:
                change[name] = str(rng.choice(_VALUES))
        some = " AND random() < 0.5" if rng.random() < 0.3 else ""
        columns = ", ".join(
            f"CASE WHEN row_number() OVER () > 0{some} THEN {change[name]} END AS {quoted(name)}"
            if name in change
            else quoted(name)
            for name in names
            if name not in drop
        )
        target = path.with_suffix(".new")
        connection.execute(f"COPY (SELECT {columns} FROM '{path}') TO '{target}' (FORMAT parquet)")
        target.replace(path)


# --- JSON -------------------------------------------------------------------------------------

_JSON: tuple[Any, ...] = (
    None, True, 0, 1, -1, 2, 3, 10**18, -(10**18), 10**400, 1.5, 1e308, "", "x", "../../x", "int32",
    "float64", "uint8", "object", "O", "numcodecs.pickle", "pickle", "numcodecs.blosc", "gzip",
    "zstd", "inline", "big", [], {}, [0], [-1], [10**9], [1] * 40, {"name": "numcodecs.pickle"},
    [{"name": "bytes"}], "\x00", "é\ud800",
)  # fmt: skip


def changed_json(rng: np.random.Generator, value: Any) -> Any:
    """A JSON value with one value in it changed, removed or doubled."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in items:
            places.append((node, key))
            if isinstance(child, dict | list):
                walk(child)

    walk(value)
    node, key = places[int(rng.integers(len(places)))]
    kind = int(rng.integers(0, 6))
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node[key], int | float):
        node[key] = node[key] * int(rng.choice([-1, 2, 10**6, 10**12])) + int(rng.integers(-1, 2))
    elif kind == 2 and isinstance(node, list):
        node.append(node[key])
    else:
        node[key] = _JSON[int(rng.integers(len(_JSON)))]
    return value


def _rewrite(rng: np.random.Generator, path: Path, seal_key: Callable[[Any], Any]) -> None:
    """Change values in a JSON file, whose seal is left out; or its text."""
    content = json.loads(path.read_text(encoding="utf-8"))
    seal_key(content)
    for _ in range(int(rng.integers(1, 3))):
        content = changed_json(rng, content)
    text = json.dumps(content).encode()
    if rng.random() < 0.1:
        text = rng.choice([b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"", b"nul", text[:50]])
    path.write_bytes(text)


def zarr_case(rng: np.random.Generator, shared: Store) -> Outcome:
    """Metadata that say something else, or chunks with other bytes."""
    store = fresh(shared)
    arrays = store / "latents.zarr"
    if rng.random() < 0.7:
        own = rng.random() < 0.15
        path = rng.choice(sorted(arrays.glob("*/zarr.json"))) if own else arrays / "zarr.json"
        _rewrite(rng, path, lambda content: content.get("attributes", {}).pop("seal", None))
        return used(shared, rng, same=False)
    chunks = sorted(path for path in arrays.rglob("*") if path.is_file() and "c" in path.parts)
    path = chunks[int(rng.integers(len(chunks)))]
    kind = int(rng.integers(0, 4))
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(chunks[int(rng.integers(len(chunks)))].read_bytes())
    else:
        path.write_bytes(damaged(rng, path.read_bytes()))
    return used(shared, rng, same=True)


def info_case(rng: np.random.Generator, shared: Store) -> Outcome:
    """A `chgdb.json` that says something else, or another atom library."""
    store = fresh(shared)
    if rng.random() < 0.2:
        path = store / "atoms-1.npz"
        path.write_bytes(damaged(rng, path.read_bytes()))
        return used(shared, rng, same=True)
    _rewrite(rng, store / "chgdb.json", lambda content: content.pop("seal", None))
    result = used(shared, rng, same=False)
    told = outcome(lambda: Database(store).summary())
    return "refused" if "refused" in (result, told) else "read"


def prepare_encoder(folder: Path) -> Path:
    """A store that holds its encoder, a small one."""
    import torch

    from chgdb.arrays import LatentStorage
    from chgdb.codec import build_net
    from chgdb.schema import EncoderInfo, StoreInfo
    from chgdb.weights import EncoderConfig

    net = {"latent_channels": 2, "widths": [2, 2, 2], "encoder_blocks": [0, 0, 0]}
    config = EncoderConfig(
        "tiny", "periodic", (2, 16, 16, 16), {**net, "decoder_blocks": [0, 0, 0]}
    )
    torch.manual_seed(0)
    tensors = build_net(config).state_dict()
    info = StoreInfo(
        EncoderInfo("tiny", "periodic", ""), LatentStorage("float32", None, (2, 16, 16, 16)), "", ""
    )
    database = Database.create_for(folder / "whole", info)
    database.keep_encoder(config, tensors)
    return folder


def encoder_case(rng: np.random.Generator, folder: Path) -> Outcome:
    """Weights with another header or other bytes, and a configuration that says something else."""
    import hashlib

    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "whole", copy)
    config, weights = copy / "encoder/config.json", copy / "encoder/weights.safetensors"
    if rng.random() < 0.5:
        _rewrite(rng, config, lambda _: None)
    else:
        content = weights.read_bytes()
        size = int.from_bytes(content[:8], "little")
        kind = int(rng.integers(0, 3))
        if kind == 0:
            length = int(rng.choice([0, 1, size - 1, size + 8, 10**9, 2**40, 2**63 - 1]))
            content = length.to_bytes(8, "little") + content[8:]
        elif kind == 1:
            header = json.dumps(changed_json(rng, json.loads(content[8 : 8 + size]))).encode()
            content = len(header).to_bytes(8, "little") + header + content[8 + size :]
        else:
            content = damaged(rng, content)
        weights.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        for path in (config, copy / "chgdb.json"):
            text = json.loads(path.read_text(encoding="utf-8"))
            text.pop("seal", None)
            text.get("encoder", text)["weights_sha256"] = sha256
            path.write_text(json.dumps(text), encoding="utf-8")

    def loaded() -> None:
        database = Database(copy, device="cpu")
        database.encoder_tensors()
        _ = database._codec
        database.verify(deep=True)

    return outcome(loaded)


TARGETS = (
    Target("payload", prepare_payloads, payload_case),
    Target("parquet", prepare_store, parquet_case),
    Target("zarr", prepare_store, zarr_case),
    Target("info", prepare_store, info_case),
    Target("encoder", prepare_encoder, encoder_case),
)
