"""Feed chgdb damaged input and see that it refuses it in one line, or reads it rightly.

usage: python benchmarks/fuzz.py [--cases N] [--seed S] [--only NAME ...] [--processes P]

Runs N cases of every target in worker processes and prints a table; exits with 1 if a case failed.
A case fails if it raises anything but a ChgdbError of one line, if its target finds a wrong result,
if it takes longer than LIMIT, needs more than MEMORY above what its worker began with, or ends the
process. A failure is printed with its seed: `--only TARGET --seed SEED --cases 1` repeats it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from chgdb.errors import ChgdbError

Outcome = Literal["refused", "read"]

MODULES = ("fuzz_files", "fuzz_store", "fuzz_query")
"""Where targets are."""

LIMIT = 20.0
"""Seconds for a case, on a machine that does other things as well."""

PREPARE_LIMIT = 300.0
"""Seconds for a worker to start and to prepare what its cases share."""

MEMORY = 1 << 30
"""Bytes of address space above what a worker has when it begins with its first case."""

LONGEST_MESSAGE = 1000
"""Characters of the one line that refuses something."""

_ENOUGH = 20
"""Failures after which the rest of a worker's cases is left."""

_SPAWN = multiprocessing.get_context("spawn")


class Target(NamedTuple):
    """What is fuzzed.

    Attributes:
        name: by which `--only` finds it.
        prepare: called once per worker with an empty folder; makes what the cases share.
        case: one case, from a generator and from what `prepare` made; all it raises is a failure.
    """

    name: str
    prepare: Callable[[Path], Any]
    case: Callable[[np.random.Generator, Any], Outcome]


def outcome(call: Callable[[], object]) -> Outcome:
    """Do something that may be refused.

    Returns:
        "refused" after a ChgdbError, "read" otherwise.

    Raises:
        AssertionError: the refusal is not one printable line, or hides that memory ran out.
    """
    try:
        call()
    except ChgdbError as error:
        check_refusal(error)
        return "refused"
    return "read"


def check_refusal(error: ChgdbError) -> None:
    """Hold that an error is what a person can read.

    Raises:
        AssertionError: it is not one printable line, or hides that memory ran out.
    """
    message = str(error)
    assert message, "a refusal without a message"
    assert message.isprintable(), f"a refusal that is not one printable line: {message!r}"
    assert len(message) <= LONGEST_MESSAGE, f"a refusal of {len(message)} characters: {message}"
    cause: BaseException | None = error
    while cause is not None:
        assert not isinstance(cause, MemoryError), f"memory ran out: {message}"
        cause = cause.__cause__ or cause.__context__


def generator(seed: int, name: str) -> np.random.Generator:
    """The random numbers of one case of a target."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


# --- the worker -----------------------------------------------------------------------------


class _Report(NamedTuple):
    """What a worker tells of one case; with seed None, that it is ready."""

    seed: int | None
    refused: bool = False
    seconds: float = 0.0
    memory: float = 0.0
    """MB above the start, the most so far."""
    failure: str = ""


def _work(
    pipe: Connection, module: str, name: str, seeds: Sequence[int], folder: str, limit: int
) -> None:
    """Run cases of a target and report each."""
    os.setsid()  # so that its children end with it
    target = {target.name: target for target in import_module(module).TARGETS}[name]
    shared = target.prepare(Path(folder))
    for category in (RuntimeWarning, UserWarning):
        warnings.simplefilter("error", category)
    soft = _status("VmSize") * 1024 + limit
    resource.setrlimit(resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    start = _status("VmHWM")
    pipe.send(_Report(None))
    for seed in seeds:
        began = time.perf_counter()
        refused, failure = False, ""
        try:
            refused = target.case(generator(seed, name), shared) == "refused"
        except Exception as error:  # noqa: BLE001
            failure = _told(error)
        seconds = time.perf_counter() - began
        memory = (_status("VmHWM") - start) / 1024
        pipe.send(_Report(seed, refused, seconds, memory, failure))


def _status(key: str) -> int:
    """A size of this process in KiB, from /proc."""
    with Path("/proc/self/status").open(encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key + ":"))


def _told(error: Exception) -> str:
    """An error with the last places it came through."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
    return f"{type(error).__name__}: {str(error)[:600]!r} at {places}"


# --- the parent -----------------------------------------------------------------------------


@dataclass
class Result:
    """What became of the cases of a target."""

    name: str
    refused: int = 0
    read: int = 0
    slowest: float = 0.0
    memory: float = 0.0
    failures: list[tuple[int, str]] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """How many there were."""
        return self.refused + self.read + len(self.failures)


@dataclass
class _Job:
    """Cases of one target for one worker."""

    module: str
    result: Result
    seeds: list[int]
    failures: int = 0


@dataclass
class _Worker:
    """A process with its job; `deadline` is when its case, or its start, has taken too long."""

    job: _Job
    process: SpawnProcess
    pipe: Connection
    deadline: float
    limit: float
    ready: bool = False

    def end(self) -> None:
        """End the process, and what it began."""
        if self.process.pid is not None and self.process.is_alive():
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:  # not yet the leader of a group
                self.process.kill()
        self.process.join()
        self.pipe.close()


def run(
    targets: Sequence[tuple[str, str]],
    *,
    cases: int,
    seed: int = 0,
    processes: int = 2,
    limit: float = LIMIT,
    memory: int = MEMORY,
) -> list[Result]:
    """Run cases of targets in worker processes.

    Args:
        targets: (module, name) of each; the module has them as `TARGETS`.
        cases: of each target.
        seed: of the first case of each; the next has one more.
        processes: at a time.
        limit: seconds for a case.
        memory: bytes for a case.
    """
    jobs: deque[_Job] = deque()
    results = []
    for module, name in targets:
        results.append(Result(name))
        share = max(-(-cases // processes), 1)
        for first in range(0, cases, share):
            seeds = range(seed + first, seed + min(first + share, cases))
            jobs.append(_Job(module, results[-1], list(seeds)))
    workers: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="chgdb-fuzz-") as folder:
        try:
            while jobs or workers:
                while jobs and len(workers) < processes:
                    workers.append(_started(jobs.popleft(), folder, limit, memory))
                soonest = min(worker.deadline for worker in workers) - time.monotonic()
                heard = wait([worker.pipe for worker in workers], max(soonest, 0.0))
                for worker in list(workers):
                    if worker.pipe in heard:
                        ended = not _heard(worker)
                    else:
                        ended = time.monotonic() > worker.deadline and not worker.pipe.poll()
                        if ended:
                            _fail(worker, f"no end after {worker.limit:g} s")
                    if ended:
                        worker.end()
                        workers.remove(worker)
                        if worker.job.seeds and worker.job.failures < _ENOUGH:
                            jobs.appendleft(worker.job)
        finally:
            for worker in workers:
                worker.end()
    return results


def _started(job: _Job, folder: str, limit: float, memory: int) -> _Worker:
    ours, theirs = _SPAWN.Pipe(duplex=False)
    own = tempfile.mkdtemp(dir=folder)
    arguments = (theirs, job.module, job.result.name, tuple(job.seeds), own, memory)
    process = _SPAWN.Process(target=_work, args=arguments)
    process.start()
    theirs.close()
    return _Worker(job, process, ours, time.monotonic() + PREPARE_LIMIT, limit)


def _heard(worker: _Worker) -> bool:
    """Take what a worker sent; whether there is more to come."""
    try:
        report: _Report = worker.pipe.recv()
    except EOFError:
        worker.process.join(5)
        if worker.job.seeds:
            _fail(worker, f"the process ended with code {worker.process.exitcode}")
        return False
    job, result = worker.job, worker.job.result
    worker.deadline = time.monotonic() + worker.limit
    worker.ready = True
    if report.seed is None:
        return True
    job.seeds.pop(0)
    result.slowest = max(result.slowest, report.seconds)
    result.memory = max(result.memory, report.memory)
    if report.failure:
        job.failures += 1
        result.failures.append((report.seed, report.failure))
    elif report.refused:
        result.refused += 1
    else:
        result.read += 1
    return bool(job.seeds) and job.failures < _ENOUGH


def _fail(worker: _Worker, problem: str) -> None:
    """Note that the case a worker is at ended it; one that never began is not tried again."""
    job = worker.job
    seed = job.seeds.pop(0)
    job.failures += 1
    if not worker.ready:
        problem = f"{problem}, before the first case"
        job.seeds.clear()
    job.result.failures.append((seed, problem))


# --- the command ----------------------------------------------------------------------------


def known() -> dict[str, str]:
    """Module of every target by its name."""
    found = {}
    for module in MODULES:
        if find_spec(module) is not None:
            found.update({target.name: module for target in import_module(module).TARGETS})
    return found


def table(results: Sequence[Result]) -> str:
    """The results in Markdown."""
    lines = [
        "| target | cases | refused | read | slowest case (s) | memory (MB) | failures |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        lines.append(
            f"| {r.name} | {r.cases} | {r.refused} | {r.read} | {r.slowest:.2f} | {r.memory:.0f} "
            f"| {len(r.failures)} |"
        )
    total = (sum(r.cases for r in results), sum(r.refused for r in results))
    rest = (sum(r.read for r in results), sum(len(r.failures) for r in results))
    lines.append(f"| all | {total[0]} | {total[1]} | {rest[0]} | | | {rest[1]} |")
    return "\n".join(lines)


def main() -> None:
    """Run the targets and print what became of them."""
    targets = known()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=1000, metavar="N", help="of every target")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first case")
    parser.add_argument(
        "--only", nargs="+", choices=targets, metavar="NAME", help=", ".join(targets)
    )
    parser.add_argument("--processes", type=int, default=2, metavar="P", help="at a time")
    arguments = parser.parse_args()
    chosen = [(targets[name], name) for name in arguments.only or targets]
    began = time.perf_counter()
    results = run(chosen, cases=arguments.cases, seed=arguments.seed, processes=arguments.processes)
    print(f"{arguments.cases} cases of each target, seed {arguments.seed}, ", end="")
    print(f"{time.perf_counter() - began:.0f} s, Python {platform.python_version()}, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}\n")
    print(table(results))
    for result in results:
        for seed, failure in result.failures:
            print(f"\nFAILED --only {result.name} --seed {seed} --cases 1\n  {failure}")
    sys.exit(any(result.failures for result in results))


if __name__ == "__main__":
    main()
