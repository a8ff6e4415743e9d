"""Four writers and four readers of one store at once: is anything lost, doubled or torn?

usage: python benchmarks/concurrency.py [--seconds 60] [--seed 0] [--writers 4] [--readers 4]

Every writer has materials of its own, which it adds, replaces and removes at random; now and then
it predicts the whole store or compacts it. It keeps a journal of what it has done, and looks after
each step whether the store agrees. At the end the store must be the union of the journals, with
what `verify` finds nothing wrong in. Every reader searches, counts, gets, decodes and opens the
store with xarray: each record must be wholly one version of its density and decode to it, and
nothing may be raised but the refusal to give a record that has just been removed.

Densities and checks are those of benchmarks/crashes.py. Prints a Markdown table of what was done;
exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
from crashes import NEXT, ROUNDING, State, States, World, check_densities, state_of, verified

from chgdb.database import Database
from chgdb.errors import UnknownIdError
from chgdb.metrics import compare

Told = tuple[str, Counter[str], States, list[str]]
"""Who tells it, how often it did what, its journal, and what failed."""


def write(world: World, ids: Sequence[str], seed: int, until: float) -> Told:
    """Add, replace and remove materials of one's own."""
    random = np.random.default_rng(seed)
    journal: States = {}
    counts: Counter[str] = Counter()
    failures: list[str] = []
    database = Database(world.store, device="cpu")
    while time.time() < until and not failures:
        id_ = str(random.choice(ids))
        what = str(random.choice(["add"] * 6 + ["remove"] * 2 + ["predict --all", "compact"]))
        try:
            if what == "add":
                version = "b" if id_ in journal and journal[id_].version == "a" else "a"
                what = "replace" if id_ in journal else "add"
                report = database.add(
                    world.file(version, id_), on_conflict="replace", refine_steps=0
                )
                assert len(report.added) == 1, f"{id_}: {report.failed + report.skipped}"
                journal[id_] = State(version, None)
            elif what == "remove":
                if id_ not in journal:
                    continue
                database.remove(id_)
                del journal[id_]
            elif what == "compact":
                database.compact()
            else:
                told = database.predict_all()
                what = "predict --all" if told.predicted else "predict --all, nothing due"
            counts[what] += 1
            rows = database.select(where=f"id IN ({', '.join(map(repr, ids))})").rows()
            found = {row["id"]: state_of(world, row) for row in rows}
            assert found == journal, f"{found}, not {journal}"
        except Exception:  # noqa: BLE001 (whatever it is, it is a failure)
            failures.append(f"writer {seed}, {what} {id_}: {traceback.format_exc()}")
    return f"writer {seed}", counts, journal, failures


def read(world: World, seed: int, until: float) -> Told:
    """Look at everything, in every way."""
    import xarray

    random = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    failures: list[str] = []
    kept = Database(world.store, device="cpu")
    while time.time() < until and not failures:
        what = str(random.choice(["search", "get", "decode", "decode", "count", "xarray"]))
        database = kept if random.integers(2) else Database(world.store, device="cpu")
        try:
            rows = database.select().rows()
            assert len({row["id"] for row in rows}) == len(rows), "a record is there twice"
            for row in rows:
                state_of(world, row)
            chosen = [str(id_) for id_ in random.permutation([row["id"] for row in rows])[:3]]
            if what == "get":
                for record in database.get(chosen):
                    state_of(world, record.row)
            elif what == "decode":
                for density in database.decode(chosen):
                    version = {10: "a", 12: "b"}[density.grid[0]]
                    known = world.versions[density.id, version]
                    assert density.nmae == known.row["payload_nmae"], f"{density.id} is mixed"
                    error = compare(density, known.density)
                    assert error.nmae <= density.nmae + ROUNDING, f"{density.id}: {error}"
            elif what == "count":
                assert 0 <= database.count(formula="Fe") <= 1
                assert len(database) <= len(world.ids)
            elif what == "xarray" and chosen:
                with xarray.open_dataset(
                    world.store, engine="chgdb", material=chosen[0]
                ) as dataset:
                    assert float(dataset["density"].mean()) > 0
            counts[what] += 1
        except UnknownIdError:
            counts["refused: removed meanwhile"] += 1
        except Exception:  # noqa: BLE001 (whatever it is, it is a failure)
            failures.append(f"reader {seed}, {what}: {traceback.format_exc()}")
    return f"reader {seed}", counts, {}, failures


def _work(
    queue: Queue[Told],
    ready: Barrier,
    world: World,
    work: Callable[..., Told],
    seconds: float,
    *arguments: Any,
) -> None:
    import torch
    import xarray  # noqa: F401 (loading takes seconds, before all begin)

    import chgdb.adding
    import chgdb.codec  # noqa: F401

    torch.set_num_threads(1)
    ready.wait()
    queue.put(work(world, *arguments, time.time() + seconds))


def run(
    world: World, seconds: float, *, writers: int = 4, readers: int = 4, seed: int = 0
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Let them work; what was done by writers and by readers, and what failed."""
    context = multiprocessing.get_context("spawn")
    queue: Queue[Told] = context.Queue()
    Database(world.store).remove([id_ for id_ in Database(world.store) if id_ != NEXT])
    Database(world.store).remove(NEXT)
    jobs: list[tuple[Any, ...]] = [
        (write, seconds, world.ids[which::writers], seed + which) for which in range(writers)
    ]
    jobs += [(read, seconds, seed + writers + which) for which in range(readers)]
    ready = context.Barrier(len(jobs))
    processes = [context.Process(target=_work, args=(queue, ready, world, *job)) for job in jobs]
    for process in processes:
        process.start()
    told = [queue.get(timeout=seconds + 300) for _ in processes]
    for process in processes:
        process.join()
    counts = {role: Counter[str]() for role in ("writer", "reader")}
    failures = [failure for *_, failed in told for failure in failed]
    journal: States = {}
    for name, counted, states, _ in told:
        counts[name.split()[0]].update(counted)
        journal |= states
    try:
        database = Database(world.store, device="cpu")
        rows = database.select().rows()
        found = {row["id"]: state_of(world, row) for row in rows}
        assert len(rows) == len(found), "a record is there twice"
        assert found == journal, f"the store holds {found}, the journals {journal}"
        check_densities(world, database, rows)
        verified(world, notes=True)
        database.compact()
        verified(world, notes=False)
    except AssertionError as error:
        failures.append(f"at the end: {error}")
    return counts, failures


def main() -> None:
    """Write, read and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--readers", type=int, default=4)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="chgdb-concurrency-") as folder:
        world = World(Path(folder))
        world.build()
        counts, failures = run(
            world,
            arguments.seconds,
            writers=arguments.writers,
            readers=arguments.readers,
            seed=arguments.seed,
        )
    print("| who | what | times |\n| --- | --- | --- |")
    for role, counted in counts.items():
        for what, times in sorted(counted.items()):
            print(f"| {role} | {what} | {times} |")
    print(f"\n{len(failures)} failures, load {os.getloadavg()[0]:.1f}")
    for failure in failures:
        print(f"FAILED {failure}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
