"""Damage every file of a store and see that nothing wrong comes out of it, and that it is repaired.

usage: python benchmarks/flips.py [--store DIR] [--flips N] [--repairs N] [--seed S] [--records N]

Of every file some bytes are flipped (all those of chgdb.json and of the group's zarr.json), and it
is truncated, emptied, filled with zeros, deleted, and swapped with one of its kind.
After each, `verify` must name the file or a record, every reader must refuse or give what the whole
store gave, and (for some) `verify --repair` must leave a store that is whole, in which every
record is as it was unless the repair listed it. Prints a table; exits with 1 if one of it failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chgdb import parquet
from chgdb.database import Database
from chgdb.errors import ChgdbError
from chgdb.repair import repair
from chgdb.verification import verify

SHIPPED = Path(__file__).parent.parent / "store"
EVERY_BYTE = {"chgdb.json", "latents.zarr/zarr.json"}
"""Files of which all bytes are flipped."""

ADDED = ("row", "added", "chgdb_version")
"""Columns that a repair sets anew."""

LATENT = ("latent_nmae", "latent_max_error", "latent_electron_error")
"""Columns that a latent made from a payload has anew."""


class Damage(NamedTuple):
    """Files of a store as they are to be: content, or None for one that is deleted."""

    kind: str
    files: dict[str, bytes | None]


class Answers(NamedTuple):
    """What a whole store gives."""

    rows: dict[str, dict[str, Any]]
    densities: dict[str, Any]
    latents: dict[str, Any]
    features: Any


def answers(store: Path, chosen: int) -> Answers:
    """Every record, and the densities of some."""
    database = Database(store)
    rows = {row["id"]: row for row in database.select().rows()}
    dense = [id_ for id_, row in rows.items() if row["payload_bytes"]][:chosen]
    densities = {id_: database.decode([id_])[0].values for id_ in dense}
    latents = {id_: database[id_].latent().values for id_ in dense}
    return Answers(rows, densities, latents, database.features())


def small_store(folder: Path, records: int) -> Path:
    """Some records of the shipped store with their features, and materials without a density."""
    database = Database(SHIPPED)
    found = database.select(
        where="payload_bytes > 0", sort="payload_bytes", columns="id", limit=records
    )
    store = database.copy(folder / "whole", [row["id"] for row in found])
    store.import_materials(
        {"no-1": {"formula": "NaCl", "band_gap": 5.0}, "no-2": {"formula": "Fe"}}
    )
    (folder / "whole" / ".lock").unlink(missing_ok=True)
    return folder / "whole"


def damages(store: Path, flips: int, rng: np.random.Generator) -> Iterator[Damage]:
    """What is done to each file."""
    names = [p.relative_to(store).as_posix() for p in sorted(store.rglob("*")) if p.is_file()]
    for name in names:
        content = (store / name).read_bytes()
        size = len(content)
        if not size:
            continue
        every = name in EVERY_BYTE
        places = range(size) if every else rng.integers(0, size, flips).tolist()
        for place in places:
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(rng.integers(0, 8))
            yield Damage("flip", {name: bytes(flipped)})
        start = int(rng.integers(0, size))
        sector = content[:start] + bytes(min(512, size - start)) + content[start + 512 :]
        for kind, changed in (
            ("truncate", content[: size // 2]),
            ("cut the last byte", content[:-1]),
            ("empty", b""),
            ("zeros", bytes(size)),
            ("zero 512 bytes", sector),
            ("random", rng.bytes(size)),
            ("delete", None),
        ):
            if changed != content:
                yield Damage(kind, {name: changed})
        for other in names:
            alike = _table_or_name(name) == _table_or_name(other)
            if other > name and alike and (store / other).read_bytes() != content:
                yield Damage("swap", {name: (store / other).read_bytes(), other: content})
                yield Damage("double", {other: content})


def _table_or_name(name: str) -> str:
    """What files of a kind have in common: the folder of their table, the name of a JSON file."""
    path = Path(name)
    return path.parent.as_posix() if path.suffix == ".parquet" else path.name


def apply(store: Path, files: dict[str, bytes | None]) -> None:
    """Write or delete files."""
    for name, content in files.items():
        if content is None:
            (store / name).unlink(missing_ok=True)
        else:
            (store / name).write_bytes(content)
    parquet._is_whole.cache_clear()  # one file is written twice within the clock's step


def readers(store: Path, whole: Answers, rng: np.random.Generator) -> list[str]:
    """What was given out that is not what the whole store gives."""
    wrong: list[str] = []
    refused = []
    ids = list(whole.densities)
    id_ = ids[int(rng.integers(len(ids)))]
    any_id = list(whole.rows)[int(rng.integers(len(whole.rows)))]

    def same(what: str, call: Any, expected: Any) -> None:
        try:
            found = call()
        except ChgdbError as error:
            refused.append(what)
            if not str(error).isprintable():
                wrong.append(f"{what}: {error!r}")
            return
        equal = found.equals(expected) if hasattr(found, "equals") else None
        if equal is None:
            equal = (
                np.array_equal(found, expected) if hasattr(found, "shape") else found == expected
            )
        if not equal:
            wrong.append(f"{what} gave another answer")

    try:
        database = Database(store)
    except ChgdbError:
        return []
    rows = list(whole.rows.values())
    same("search", lambda: database.select().rows(), rows)
    same(
        "count",
        lambda: database.count(where="n_elements > 1"),
        sum(r["n_elements"] > 1 for r in rows),
    )
    same("get", lambda: database[any_id].row, whole.rows[any_id])
    same("decode", lambda: database.decode([id_])[0].values, whole.densities[id_])
    same("latent", lambda: database[id_].latent().values, whole.latents[id_])
    same("features", database.features, whole.features)
    return wrong


def opened(store: Path, before: dict[str, bytes], damage: Damage) -> list[str]:
    """Whether a store is opened whose metadata say something else than before."""
    try:
        _ = Database(store)._arrays
    except ChgdbError:
        return []
    for name, content in damage.files.items():
        found, known = (json.loads(text or b"0") for text in (content, before[name]))
        for value in (found, known):
            value.pop("seal", None)
            value.get("attributes", value).pop("seal", None)
        if found != known:
            return [f"opened with another {name}"]
    return []


def named(store: Path, damage: Damage) -> str:
    """Empty if verify names a damaged file or a record; else what it does."""
    found = list(verify(store))
    for name in damage.files:
        array = name.rpartition("/c/")[0] or name
        words = [name, array, Path(name).parent.as_posix(), "record ", "latents.zarr", "materials"]
        if any(word in finding.where for finding in found for word in words):
            return ""
    return "verify finds nothing" if not found else f"verify names {found[0].where}"


def repaired(store: Path, whole: Answers) -> list[str]:
    """What is wrong with a store after its repair."""
    report = repair(store)
    wrong = [f"after the repair: {f}" for f in report.left if f.level == "error"]
    told = " ".join([*report.lost, *report.done])
    database = Database(store)
    rows = {row["id"]: row for row in database.select().rows()}
    unknown = "their ids are not known" in told
    for id_, row in whole.rows.items():
        if f"record {id_}:" in told or (id_ not in rows and unknown and not row["source"]):
            continue
        if id_ not in rows:
            wrong.append(f"{id_} is gone and was not listed")
        elif {k: v for k, v in row.items() if k not in ADDED} != {
            k: v for k, v in rows[id_].items() if k not in ADDED
        }:
            wrong.append(f"{id_} has changed and was not listed")
        elif id_ in whole.densities and not (
            np.array_equal(database.decode([id_])[0].values, whole.densities[id_])
            and np.array_equal(database[id_].latent().values, whole.latents[id_])
        ):
            wrong.append(f"the density of {id_} has changed and was not listed")
    for id_ in rows.keys() & whole.rows.keys():
        for name in set(rows[id_]) - {*ADDED, *LATENT}:
            if rows[id_][name] not in (whole.rows[id_][name], None):
                wrong.append(f"{id_} has another {name}")
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    repair(store)
    if {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} != before:
        wrong.append("a second repair changed something")
    return wrong


def main() -> None:
    """Run and print what became of it."""
    parser = argparse.ArgumentParser(description="Damage every file of a store.")
    parser.add_argument("--store", type=Path, help="by default, some records of the shipped one")
    parser.add_argument("--records", type=int, default=10)
    parser.add_argument("--flips", type=int, default=20, help="of each file")
    parser.add_argument("--verified", type=int, default=3, help="every n-th is verified")
    parser.add_argument("--repairs", type=int, default=10, help="every n-th is repaired")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    failures = run(arguments)
    sys.exit(bool(failures))


def run(arguments: argparse.Namespace) -> list[str]:
    """Damage, look, repair; what failed."""
    rng = np.random.default_rng(arguments.seed)
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[str] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="chgdb-flips-") as folder:
        path = Path(folder)
        store = arguments.store or small_store(path, arguments.records)
        copy, work = path / "copy", path / "work"
        shutil.copytree(store, copy)
        (copy / ".lock").unlink(missing_ok=True)
        whole = answers(copy, arguments.records)
        for index, damage in enumerate(damages(copy, arguments.flips, rng)):
            before = {n: (copy / n).read_bytes() for n in damage.files}
            apply(copy, damage.files)
            wrong: list[str] = []
            counts[damage.kind, "damages"] += 1
            try:
                rare = damage.kind != "flip"
                optional = all(
                    content is None and name.startswith(("features/", "predictions/"))
                    for name, content in damage.files.items()
                )
                if not rare and damage.files.keys() & EVERY_BYTE:
                    wrong += opened(copy, before, damage)
                elif not optional:
                    wrong += readers(copy, whole, rng)
                if rare or index % arguments.verified == 0:
                    counts[damage.kind, "verified"] += 1
                    missing = named(copy, damage)
                    if missing and not meaningless(before, damage):
                        wrong.append(missing)
                if rare or index % arguments.repairs == 0:
                    counts[damage.kind, "repaired"] += 1
                    shutil.rmtree(work, ignore_errors=True)
                    shutil.copytree(copy, work)
                    told = repaired(work, whole)
                    if damage.kind in ("swap", "double"):  # what is whole is left where it is
                        told = [text for text in told if not text.startswith("after the repair")]
                    wrong += told
            except Exception as error:  # noqa: BLE001
                wrong.append(f"{type(error).__name__}: {error}")
            apply(copy, dict(before))
            if wrong:
                counts[damage.kind, "failed"] += 1
                place = _place(before, damage)
                failures.append(f"{damage.kind} {place}: {'; '.join(wrong)[:600]}")
                print("FAILED", failures[-1], flush=True)
    columns = ("damages", "verified", "repaired", "failed")
    print("\n| damage | " + " | ".join(columns) + " |\n|" + " --- |" * 5)
    for kind in dict.fromkeys(kind for kind, _ in counts):
        print(f"| {kind} | " + " | ".join(str(counts[kind, name]) for name in columns) + " |")
    print(f"\nseed {arguments.seed}, {time.perf_counter() - began:.0f} s")
    return failures


def meaningless(before: dict[str, bytes], damage: Damage) -> bool:
    """Whether only white space of JSON, or a file that may be missing, was damaged."""
    for name, content in damage.files.items():
        if content is None:
            if not name.startswith(("features/", "predictions/")):
                return False
        elif name.endswith(".json"):
            try:
                if json.loads(content) != json.loads(before[name]):
                    return False
            except (ValueError, RecursionError):
                return False
        else:
            return False
    return True


def _place(before: dict[str, bytes], damage: Damage) -> str:
    name, content = next(iter(damage.files.items()))
    pairs = enumerate(zip(before[name], content or b"", strict=False))
    first = next((i for i, (a, b) in pairs if a != b), len(content or b""))
    return f"{', '.join(damage.files)} at byte {first}"


if __name__ == "__main__":
    main()
