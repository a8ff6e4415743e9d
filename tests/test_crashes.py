"""benchmarks/crashes.py and benchmarks/concurrency.py, on a small scale."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def crashes() -> Iterator[ModuleType]:
    """The script, found by the processes that it starts, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield import_module("crashes")


@pytest.fixture(scope="module")
def world(crashes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two versions of a few small densities; the encoder is found while these tests run."""
    world = crashes.World(tmp_path_factory.mktemp("crashes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHGDB_MODELS", str(world.folder / "models"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
        world.build()
        yield world


# seeds of kills by step and by time
@pytest.mark.parametrize(
    ("operation", "seeds"),
    [
        *(("add", [3]), ("replace", [4]), ("bulk add", [4]), ("predict --all", [3])),
        *(("remove", [3]), ("compact", [3]), ("import-table", [3])),
    ],
)
def test_nothing_is_lost_when_a_command_is_killed(
    crashes: ModuleType, world: Any, operation: str, seeds: list[int]
) -> None:
    tally = crashes.run(operation, seeds, world, crashes.Killer(world), commands=False)
    assert tally.failures == []
    assert tally.counts["kills"] == len(seeds)


def test_writers_and_readers_at_once(crashes: ModuleType, world: Any) -> None:
    concurrency = import_module("concurrency")
    world.begin()
    counts, failures = concurrency.run(world, 4.0, writers=2, readers=2)
    assert failures == []
    assert sum(counts["writer"].values()) > 0
    assert sum(counts["reader"].values()) > 0


def test_a_lost_record_is_noticed(crashes: ModuleType, world: Any) -> None:
    states = world.begin()
    plan = crashes.Plan("add", states)
    kill = crashes.Kill(False, False, False, 0, False)
    assert crashes.check(world, states, plan, kill) == states
    crashes.Database(world.store).remove(world.ids[0])
    with pytest.raises(AssertionError, match=f"{world.ids[0]} is None, was"):
        crashes.check(world, states, plan, kill)


def test_half_a_record_and_another_density_are_noticed(crashes: ModuleType, world: Any) -> None:
    row = {**world.versions[world.ids[0], "a"].row}
    assert crashes.state_of(world, row).version == "a"
    for changed in ({"n_electrons": 1.0}, {"bulk_modulus": 1.0}, {"source_sha256": "0"}):
        with pytest.raises(AssertionError):
            crashes.state_of(world, {**row, **changed})
