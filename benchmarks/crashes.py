"""Kill commands that write to a store at random moments, and see whether anything is lost.

usage: python benchmarks/crashes.py [--kills 300] [--seed 0] [--only NAME ...]

Small real densities, of the store of the checkout, go in and out of a store in a temporary folder.
Of ten kills (SIGKILL) four come before a random change of a file (`step`), five at a random time
between the first lock and the end of the command (`time`), one hits the command line itself
(`command`). A command with worker processes is killed with them, or alone. After every kill:

- the store opens, and has the records that it had before, or those that the command was to make of
  them, each wholly old or new; what the command had reported as stored is there;
- every density decodes to the one that went in, within the stored error, its electrons too, and so
  do the latents; predictions are those of the density that the record has;
- the next `add` succeeds, and `verify` finds nothing but notes; after `compact`, from time to time,
  it finds nothing at all.

Prints a Markdown table; exits with 1 if anything failed. A failure names the seed of its kill: the
same kill alone is `--only NAME --seed SEED --kills 1` (times vary, steps do not).
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from chgdb.database import Database
from chgdb.density import ChargeDensity
from chgdb.formats import read_density, write_density
from chgdb.metrics import compare
from chgdb.schema import PROPERTIES

ROOT = Path(__file__).parent.parent
MATERIALS = 8
TOLERANCE = 0.1
"""% of NMAE, the default of `add`."""

ROUNDING = 1e-6
"""Part by which a number may differ that was computed anew; and of an error in %."""

LATENT_ROUNDING = 1e-2
"""The same of the error of a latent, which depends on what is encoded together."""

GONE = 30.0
"""Seconds after which no worker of a killed command may be alive."""

VERIFY, COMPACT = 3, 10
"""Every so many kills of an operation the store is verified, or compacted and begun anew."""

How = Literal["step", "time", "command"]
NEXT = "next"
"""Id of the record that is added after every kill."""


class State(NamedTuple):
    """What a record is: the version of its density, "" if it has none, and an imported property."""

    version: str
    bulk_modulus: float | None


States = dict[str, State]


@dataclass(frozen=True)
class Version:
    """One density of a material."""

    file: Path
    density: ChargeDensity
    row: dict[str, Any]
    predicted: float


class World:
    """What went into the stores: two versions of every material, and what they must become."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.versions: dict[tuple[str, str], Version] = {}
        self.ids: list[str] = []

    def build(self) -> None:
        """Make the encoder, the files and the first store."""
        make_encoder(self.folder / "models")
        shipped = Database(ROOT / "store")
        fitting = shipped.select(where="payload_bytes IS NOT NULL", sort="volume", columns="id")
        named = {id_: id_ for (id_,) in fitting.values[:MATERIALS]}
        self.ids = list(named)
        named[fitting.values[MATERIALS][0]] = NEXT
        for version, n, scale in (("a", 10, 1.0), ("b", 12, 1.02)):
            reference = Database.create(self.folder / f"reference-{version}", encoder="tiny-16")
            (self.folder / version).mkdir()
            for density in shipped.decode(list(named), grid=(n, n, n)):
                scaled = ChargeDensity(scale * density.values, density.structure)
                write_density(self.file(version, named[density.id]), scaled, "npz")
            reference.add(self.folder / version, refine_steps=0)
            reference.predict_all()
            for id_ in (*self.ids, NEXT):
                self.versions[id_, version] = Version(
                    self.file(version, id_),
                    read_density(self.file(version, id_))[0],
                    reference[id_].row,
                    reference[id_].predicted["bulk_modulus"],
                )
        self.begin()

    def file(self, version: str, id_: str) -> Path:
        return self.folder / version / f"{id_}.npz"

    def begin(self) -> States:
        """A new store, with version a of all materials but the last two."""
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.folder / "reference-a", self.store)
        Database(self.store).remove(self.ids[-2:])
        return {id_: State("a", None) for id_ in (*self.ids[:-2], NEXT)}


def make_encoder(models: Path) -> None:
    """A tiny encoder without training, and let it be found."""
    import torch

    from chgdb.codec import build_net
    from chgdb.weights import EncoderConfig, save_encoder

    blocks = [1, 1, 1]
    net = {
        "latent_channels": 16,
        "widths": [4, 4, 4],
        "encoder_blocks": blocks,
        "decoder_blocks": blocks,
    }
    config = EncoderConfig("tiny-16", "periodic", (16, 16, 16, 16), net)
    torch.manual_seed(0)
    save_encoder(models / config.id, config, build_net(config).state_dict())
    os.environ["CHGDB_MODELS"] = str(models)


# ---------------------------------------------------------------------- what is killed


@dataclass(frozen=True)
class Plan:
    """One command: what it is given, and what the records are when it has ended."""

    operation: str
    after: States
    files: list[Path] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """The materials, in the order in which the command reports them."""
    processes: int = 1
    table: Path | None = None

    def words(self) -> list[str]:
        """The command line."""
        if self.operation in ("add", "replace", "bulk add"):
            options = ("--refine", "0", "--processes", str(self.processes))
            return ["add", *map(str, self.files), "--on-conflict", "replace", *options]
        if self.operation == "predict --all":
            return ["predict", "--all", "--force"]
        if self.operation == "import-table":
            return ["import-table", str(self.table)]
        return [self.operation, *self.ids] if self.operation == "remove" else ["compact"]

    def run(self, database: Database, tell: Callable[[int, int], None]) -> None:
        """The same in this process."""
        from chgdb.intake import read_materials

        if self.operation in ("add", "replace", "bulk add"):
            report = database.add(
                self.files,
                on_conflict="replace",
                refine_steps=0,
                processes=self.processes,
                progress=tell,
            )
            if report.failed:
                raise AssertionError(report.failed[0][1])
        elif self.operation == "predict --all":
            database.predict_all(force=True)
        elif self.operation == "import-table" and self.table:
            database.import_materials(read_materials(self.table), progress=tell)
        elif self.operation == "remove":
            database.remove(self.ids)
        else:
            database.compact()


def plan(operation: str, states: States, world: World, random: np.random.Generator) -> Plan:
    """A command that changes something, if there is anything to change."""
    chosen = [str(id_) for id_ in random.permutation(world.ids)]
    absent = [id_ for id_ in chosen if not states.get(id_, State("", None)).version]
    dense = [id_ for id_ in chosen if id_ not in absent]
    if operation in ("add", "replace", "bulk add"):
        taken = {"add": absent[:4] or dense[:2], "replace": dense[:4], "bulk add": chosen}[
            operation
        ]
        new = {
            id_: ("a" if states.get(id_, State("", None)).version == "b" else "b") for id_ in taken
        }
        kept = {
            id_: states[id_].bulk_modulus if id_ in states and not states[id_].version else None
            for id_ in taken
        }  # the properties of a record without a density
        after = states | {id_: State(new[id_], kept[id_]) for id_ in taken}
        files = [world.file(new[id_], id_) for id_ in taken]
        return Plan(operation, after, files, taken, 2 if operation == "bulk add" else 1)
    if operation == "remove":
        gone = ([id_ for id_ in chosen if id_ in states] or sorted(states))[:3]
        return Plan(operation, {id_: s for id_, s in states.items() if id_ not in gone}, ids=gone)
    if operation == "import-table":
        value = float(random.integers(1, 1000))
        table = world.folder / "table.csv"
        formulas = {id_: world.versions[id_, "a"].row["formula"] for id_ in chosen}
        lines = [f"{id_},{formulas[id_]},{value},{value}" for id_ in chosen]
        table.write_text("\n".join(["id,formula,bulk_modulus,shear_modulus", *lines, ""]))
        new_states = {
            id_: State(states[id_].version if id_ in states else "", value) for id_ in chosen
        }
        return Plan(operation, states | new_states, ids=chosen, table=table)
    return Plan(operation, states)


OPERATIONS = ("add", "replace", "bulk add", "predict --all", "remove", "compact", "import-table")


class Kill(NamedTuple):
    """How a command ended.

    Attributes:
        in_work: it was killed, after it had taken the lock and before its end.
        locked: it held the lock then.
        alone: its worker processes were not killed.
        done: materials that it had reported as stored.
        outlived: a worker was alive long after it.
    """

    in_work: bool
    locked: bool
    alone: bool
    done: int
    outlived: bool


def _child(store: Path, plan: Plan, kill_at: int, pipe: Connection) -> None:
    """Run a command, in a process that has the modules loaded; end before a change, if told so."""
    import torch

    from chgdb import adding, database, predicting

    os.setsid()
    torch.set_num_threads(1)
    adding.BATCH, predicting._FEATURE_BATCH, predicting._CHUNK = 2, 2, 3
    database._MATERIALS = 3
    steps = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        opened = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        changes = opened or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if changes and str(arguments[0]).startswith(str(store)):
            steps += 1
            if steps == kill_at:
                os.killpg(0, signal.SIGKILL)

    here = Database(store, device="cpu")
    sys.addaudithook(count)
    plan.run(here, lambda done, _: pipe.send(("done", done)))
    pipe.send(("steps", steps))


class Killer:
    """Starts commands and kills them; remembers how long they take unharmed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seconds: dict[tuple[str, bool], float] = {}
        self.steps: Counter[str] = Counter()
        self._note = world.store / ".lock-owner"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            [
                *("chgdb.codec", "chgdb.adding", "chgdb.compaction", "chgdb.predicting"),
                *("chgdb.properties", "chgdb.descriptors", "fastparquet", "lightgbm"),
            ]
        )

    def measure(self, plan: Plan, how: How) -> None:
        """Run a command to its end, to know how long it takes."""
        end = self.run(plan, how, None)
        if end.in_work:
            raise RuntimeError(f"{plan.operation}: ended by itself")

    def run(self, plan: Plan, how: How, random: np.random.Generator | None) -> Kill:
        """Run a command and kill it; to its end, without `random`."""
        self._note.unlink(missing_ok=True)
        kill_at = 0
        delay = math.inf
        alone = False
        if random is not None:
            if how == "step":
                kill_at = int(random.integers(1, self.steps[plan.operation] + 1))
            else:
                delay = float(random.uniform(0, self.seconds[plan.operation, how == "command"]))
            alone = plan.processes > 1 and how != "step" and bool(random.integers(2))
        started = self._command(plan) if how == "command" else self._fork(plan, kill_at)
        pid, alive, wait, told = started
        locked_at = None
        while alive():
            now = time.monotonic()
            if locked_at is None and self._note.exists():
                locked_at = now
            if locked_at is not None and now - locked_at >= delay:
                (os.kill if alone else os.killpg)(pid, signal.SIGKILL)
                break
            time.sleep(0.0005)
        spent = time.monotonic() - (locked_at or time.monotonic())
        code = wait()
        outlived = _outlived(pid)
        messages = told()
        if code == 0 and random is None:
            self.seconds[plan.operation, how == "command"] = spent
            self.steps[plan.operation] = dict(messages).get("steps", self.steps[plan.operation])
        elif code not in (0, -signal.SIGKILL):
            raise AssertionError(f"{plan.operation} ended with {code}")
        done = len(plan.ids) if code == 0 else dict(messages).get("done", 0)
        killed = code == -signal.SIGKILL
        in_work = killed and (locked_at is not None or how == "step")
        return Kill(in_work, killed and self._note.exists(), alone and killed, done, outlived)

    def _fork(self, plan: Plan, kill_at: int) -> Started:
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_child, args=(self.world.store, plan, kill_at, sender)
        )
        process.start()
        sender.close()

        def told() -> list[tuple[str, int]]:
            messages = []
            with suppress(EOFError, OSError), receiver:
                while receiver.poll():
                    messages.append(receiver.recv())
            return messages

        def wait() -> int:
            process.join()
            return process.exitcode or 0

        return Started(process.pid or 0, process.is_alive, wait, told)

    def _command(self, plan: Plan) -> Started:
        code = "from chgdb.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *plan.words(), "--store", str(self.world.store)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return Started(process.pid, lambda: process.poll() is None, process.wait, list)


class Started(NamedTuple):
    """A process, which leads a group: whether it lives, its exit code, what it told."""

    pid: int
    alive: Callable[[], bool]
    wait: Callable[[], int]
    told: Callable[[], list[tuple[str, int]]]


def _outlived(group: int) -> bool:
    """Whether a process of a killed command is there after `GONE`."""
    deadline = time.monotonic() + GONE
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.01)
    os.killpg(group, signal.SIGKILL)
    return True


# ---------------------------------------------------------------------- what must hold


def check(world: World, before: States, planned: Plan, kill: Kill) -> States:
    """What the store holds now.

    Raises:
        AssertionError: something is lost, doubled, torn, or not what went in.
    """
    database = Database(world.store, device="cpu")
    rows = database.select().rows()
    found = {row["id"]: state_of(world, row) for row in rows}
    assert len(found) == len(rows) == len(database), "a record is there twice"
    for id_ in {*before, *planned.after, *found}:
        old, new = before.get(id_), planned.after.get(id_)
        assert found.get(id_) in (old, new), f"{id_} is {found.get(id_)}, was {old}, becomes {new}"
    for id_ in planned.ids[: kill.done]:
        assert found.get(id_) == planned.after.get(id_), f"{id_} was reported as done, and is not"
    check_densities(world, database, rows)
    return found


def state_of(world: World, row: dict[str, Any]) -> State:
    """What a record is.

    Raises:
        AssertionError: none of what it may be, or half of it.
    """
    id_ = row["id"]
    value = row["bulk_modulus"]
    assert value == row["shear_modulus"], f"{id_} has half of its properties"
    if row["source"] is None:
        assert row["payload_bytes"] is None, f"{id_} has no density, but a payload"
        return State("", value)
    for version in "ab":
        known = world.versions[id_, version].row
        if row["source_sha256"] == known["source_sha256"]:
            break
    else:
        raise AssertionError(f"{id_} is of a file that was not added")
    for name in known.keys() - {"row", "added", *(column.name for column in PROPERTIES)}:
        same = row[name] == known[name]
        if name.startswith("latent_") and isinstance(known[name], float):
            same = math.isclose(row[name], known[name], rel_tol=LATENT_ROUNDING, abs_tol=1e-3)
        assert same, f"{id_}: {name} is {row[name]}, not {known[name]}"
    return State(version, value)


def check_densities(world: World, database: Database, rows: Sequence[dict[str, Any]]) -> None:
    """Whether every density decodes to what went in, and predictions are of it."""
    dense = [row for row in rows if row["source"] is not None]
    ids = [row["id"] for row in dense]
    payloads, latents = database.decode(ids), database.decode(ids, source="latent")
    predicted = database.predicted(ids)
    for row, payload, latent in zip(dense, payloads, latents, strict=True):
        id_, stored = row["id"], row["payload_nmae"]
        source = world.versions[id_, state_of(world, row).version]
        error = compare(payload, source.density)
        assert stored <= TOLERANCE, f"{id_}: stored with {stored} %"
        assert error.nmae <= stored + ROUNDING, f"{id_}: decodes with {error.nmae} %, not {stored}"
        off = error.electron_error - row["payload_electron_error"]
        assert abs(off) <= ROUNDING * row["n_electrons"], f"{id_}: {off} electrons are missing"
        found, known = compare(latent, source.density).nmae, row["latent_nmae"]
        near = math.isclose(found, known, rel_tol=LATENT_ROUNDING)
        assert near, f"{id_}: its latent decodes with {found} %, not {known}"
        if id_ in predicted:
            value = predicted[id_]["bulk_modulus"]
            near = math.isclose(value, source.predicted, rel_tol=ROUNDING)
            assert near, f"{id_}: predicted {value}, not {source.predicted}"


def add_next(world: World, states: States) -> States:
    """Add one record more, or its other version."""
    version = "b" if NEXT in states and states[NEXT].version == "a" else "a"
    report = Database(world.store, device="cpu").add(
        world.file(version, NEXT), on_conflict="replace", refine_steps=0
    )
    assert len(report.added) == 1, f"the next add: {report.failed + report.skipped}"
    return states | {NEXT: State(version, None)}


def dirty(world: World, states: States) -> States:
    """Leave something for `compact`: parts, stale features, and rows that no record names."""
    database = Database(world.store, device="cpu")
    for id_ in world.ids[:2]:
        version = "b" if id_ in states and states[id_].version == "a" else "a"
        database.add(world.file(version, id_), on_conflict="replace", refine_steps=0)
        states = states | {id_: State(version, None)}
    return states


def verified(world: World, *, notes: bool) -> None:
    """Whether `verify` finds nothing, or nothing but notes."""
    for finding in Database(world.store).verify():
        assert notes, f"verify after compact: {finding}"
        assert finding.level == "note", f"verify: {finding}"


# ---------------------------------------------------------------------- all of it


@dataclass
class Tally:
    """What became of the kills of one operation."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def run(
    operation: str,
    seeds: Sequence[int],
    world: World,
    killer: Killer,
    *,
    commands: bool = True,
) -> Tally:
    """Kill one operation once for every seed; not its command line without `commands`."""
    tally = Tally()
    states = world.begin()
    measure = np.random.default_rng(0)
    hows: tuple[How, ...] = (*("step",) * 4, *("time",) * 5)
    measured: tuple[How, ...] = ("step", "command") if commands else ("step",)
    hows += measured[1:]
    for how in measured:
        states = dirty(world, states) if operation == "compact" else states
        planned = plan(operation, states, world, measure)
        killer.measure(planned, how)
        states = world.begin()
    for number, seed in enumerate(seeds, 1):
        random = np.random.default_rng(seed)
        how = hows[int(random.integers(len(hows)))]
        try:
            states = dirty(world, states) if operation == "compact" else states
            planned = plan(operation, states, world, random)
            kill = killer.run(planned, how, random)
            tally.counts.update(
                ["kills", how]
                + [name for name in ("in_work", "locked", "alone") if getattr(kill, name)]
            )
            assert not kill.outlived, f"a worker was alive {GONE:g} s after the kill"
            states = check(world, states, planned, kill)
            if number % VERIFY == 0:
                verified(world, notes=True)
                tally.counts["verify"] += 1
            unchanged = Plan("add", add_next(world, states), ids=[NEXT])
            states = check(world, states, unchanged, Kill(False, False, False, 1, False))
            if number % COMPACT == 0 or number == len(seeds):
                Database(world.store).compact()
                states = check(world, states, Plan("compact", states), kill)
                verified(world, notes=False)
                tally.counts["verify"] += 1
                states = world.begin()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is a failure)
            tally.failures.append(f"{operation}, seed {seed}, {how}: {error}")
            kept = world.folder.parent / f"chgdb-crash-{operation.split()[0]}-{seed}"
            shutil.copytree(world.store, kept, dirs_exist_ok=True)
            print(f"{tally.failures[-1]} (the store is kept in {kept})", flush=True)
            states = world.begin()
    return tally


def main() -> None:
    """Kill, check and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=300, help="of all operations together")
    parser.add_argument("--seed", type=int, default=0, help="of the first kill; then one more each")
    parser.add_argument("--only", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # what a killed process leaves of Python's own semaphores is no business of this script
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker:UserWarning"
    start = time.monotonic()
    tallies = {}
    with tempfile.TemporaryDirectory(prefix="chgdb-crashes-") as folder:
        world = World(Path(folder))
        world.build()
        killer = Killer(world)
        for which, operation in enumerate(arguments.only):
            seeds = range(
                arguments.seed + arguments.kills * which // len(arguments.only),
                arguments.seed + arguments.kills * (which + 1) // len(arguments.only),
            )
            if seeds:
                tallies[operation] = run(operation, seeds, world, killer)
                print(f"{operation}: seeds {seeds.start} to {seeds.stop - 1} done", flush=True)
    names = ["kills", "in_work", "locked", "step", "time", "command", "alone", "verify"]
    heading = ["operation", "kills", "in the work", "lock held", "by step", "by time"]
    heading += ["command line", "workers spared", "verified", "failures"]
    total = Tally(
        sum((tally.counts for tally in tallies.values()), Counter()),
        [failure for tally in tallies.values() for failure in tally.failures],
    )
    print(f"\n| {' | '.join(heading)} |\n|{' --- |' * len(heading)}")
    for operation, tally in {**tallies, "all": total}.items():
        numbers = [*(tally.counts[name] for name in names), len(tally.failures)]
        print(f"| {operation} | {' | '.join(map(str, numbers))} |")
    print(f"\n{time.monotonic() - start:.0f} s, load {os.getloadavg()[0]:.1f}")
    for failure in total.failures:
        print(f"FAILED {failure}")
    sys.exit(bool(total.failures))


if __name__ == "__main__":
    main()
