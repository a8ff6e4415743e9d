"""Adding and predicting by the workers of a real dask cluster, of which one may be killed."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, MakeFile

from chgdb import adding, cluster
from chgdb.cluster import connected
from chgdb.database import Database
from chgdb.errors import InputError, StoreError

distributed = pytest.importorskip("distributed")

COUNT = 12


@pytest.fixture(scope="module")
def workers(models: Path) -> Iterator[Any]:
    """A scheduler with two worker processes, each watched by a nanny that replaces it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as started:
            yield started


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What dask leaves behind in other threads is not what these tests are about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def files(make_file: MakeFile) -> list[Path]:
    return [make_file(f"in/mp-{i}.npz", electrons=8.0 + i) for i in range(COUNT)]


def check(database: Database) -> None:
    """Every record is there once and is the density of its file."""
    assert sorted(database) == sorted(f"mp-{i}" for i in range(COUNT))
    for record in database.get(list(database)):
        for held in (record.latent(), record.density()):
            assert held.n_electrons == pytest.approx(8.0 + int(record.id[3:]))


def test_workers_store_what_one_process_stores(
    empty: Database, models: Path, make_file: MakeFile, tmp_path: Path, workers: Any
) -> None:
    paths = files(make_file)
    broken = tmp_path / "in" / "broken.npz"
    broken.write_bytes(b"")
    told: list[tuple[int, int]] = []
    report = empty.add(
        [*paths[:5], broken, *paths[5:]],
        scheduler=workers.scheduler_address,
        progress=lambda *numbers: told.append(numbers),
    )
    assert len(report.added) == COUNT
    assert [path for path, _ in report.failed] == [broken]
    assert told[-1] == (COUNT + 1, COUNT + 1)
    check(empty)
    single = Database.create(tmp_path / "single", encoder="tiny-16")
    single.add(paths)
    for record in single.get(list(single)):
        other = empty[record.id]
        assert other.payload() == record.payload()
        difference = np.abs(other.latent().values - record.latent().values)
        assert difference.max() <= 1.01 / 127
    again = empty.add(paths, scheduler=workers.scheduler_address)
    assert [len(again.added), len(again.skipped)] == [0, COUNT]


def test_a_worker_that_is_killed_loses_and_doubles_nothing(
    empty: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, workers: Any
) -> None:
    paths = files(make_file)
    monkeypatch.setattr(adding, "BATCH", 5)
    killed: list[int] = []
    steps: list[int] = []

    def kill(done: int, _: int) -> None:
        steps.append(done)
        if len(steps) == 4:  # files are read that no commit has taken yet
            assert done == 0
            with distributed.Client(workers.scheduler_address, set_as_default=False) as client:
                pids = client.run(os.getpid)
            killed.append(min(pids.values()))
            os.kill(killed[0], signal.SIGKILL)

    report = empty.add(paths, scheduler=workers.scheduler_address, progress=kill)
    assert len(killed) == 1
    assert not report.failed
    assert len(report.added) == COUNT
    check(empty)
    assert sorted(row["id"] for row in report.added) == sorted(empty)


def test_predictions_by_workers_are_those_of_one_process(tmp_path: Path, workers: Any) -> None:
    pytest.importorskip("lightgbm")
    shipped = Database(ROOT / "store")
    ids = [row["id"] for row in shipped.select(source="dft", sort="n_atoms", limit=3)]
    stores = [shipped.copy(tmp_path / name, ids) for name in ("one", "several")]
    one = stores[0].predict_all(force=True)
    several = stores[1].predict_all(force=True, scheduler=workers.scheduler_address)
    assert (one.predicted, one.failed) == (several.predicted, several.failed) == (3, [])
    columns = ["id", "predicted_bulk_modulus", "predicted_shear_modulus"]
    assert stores[0].select(columns=columns).values == stores[1].select(columns=columns).values


def test_features_are_computed_by_workers(database: Database, tmp_path: Path, workers: Any) -> None:
    pytest.importorskip("lightgbm")
    here = database.copy(tmp_path / "here")
    assert here.predict_all().features == 5
    assert database.predict_all(scheduler=workers.scheduler_address).features == 5
    left, right = here.features().set_index("id"), database.features().set_index("id")
    assert left.drop(columns="formula").equals(right.loc[left.index].drop(columns="formula"))


@pytest.mark.parametrize("address", ["localhost", "local:0", "8786"])
def test_an_address_that_is_none(empty: Database, address: str) -> None:
    with pytest.raises(InputError, match=r"give tcp://HOST:PORT, local or local:N"):
        empty.predict_all(scheduler=address)


def test_a_scheduler_that_does_not_answer(
    empty: Database, monkeypatch: pytest.MonkeyPatch, make_file: MakeFile
) -> None:
    monkeypatch.setattr(cluster, "_TIMEOUT", 1.0)
    with pytest.raises(InputError, match=r"--scheduler tcp://127\.0\.0\.1:9: ") as told:
        empty.add(make_file("mp-1.npz"), scheduler="tcp://127.0.0.1:9")
    assert "\n" not in str(told.value)


def test_a_folder_that_workers_do_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Any
) -> None:
    monkeypatch.setattr(cluster, "_look", lambda _: (False, cluster._versions()))
    with (
        pytest.raises(StoreError, match="does not see this folder"),
        connected(workers.scheduler_address, tmp_path),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_workers_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Any
) -> None:
    monkeypatch.setattr(cluster, "_look", lambda _: (True, "chgdb 0.0.1, Python 3.11"))
    with (
        pytest.raises(InputError, match=r"runs chgdb 0\.0\.1.* install the same"),
        connected(workers.scheduler_address, tmp_path),
    ):
        pass
