"""Compacting gives space back and changes nothing that counts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import ROOT, MakeFile, Run, crash, gaussian_density

from chgdb.arrays import LatentArrays
from chgdb.collection import Collection
from chgdb.database import Database
from chgdb.errors import StoreError
from chgdb.files import replace_file
from chgdb.table import Table
from chgdb.verification import verify


def content(database: Database) -> tuple[object, ...]:
    """Everything that a store holds of its records."""
    records = database.get(list(database))
    return (
        [record.row for record in records],
        [record.payload() for record in records],
        [record.latent().values.tobytes() for record in records if record.row["work_grid_a"]],
        database.features().to_csv(),
        database.predicted(list(database)),
    )


@pytest.fixture
def littered(database: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A store with all that crashes leave in it."""
    database.predict_all()
    database.import_materials({"mp-50": {"formula": "CsCl"}})
    new, newer = make_file("mp-1.npz", electrons=3.0), make_file("mp-60.npz", electrons=5.0)
    crash(monkeypatch, LatentArrays, "erase", lambda: database.remove("mp-2"))
    crash(monkeypatch, LatentArrays, "erase_bytes", lambda: database.remove("mp-4"))
    with monkeypatch.context() as patch:
        patch.setattr(Collection, "drop", lambda *_: None)
        crash(
            monkeypatch,
            Table,
            "_finish_replacing",
            lambda: database.add(new, on_conflict="replace"),
        )
    crash(monkeypatch, LatentArrays, "_commit", lambda: database.add(newer))
    for name in (".a.partial", "materials/.a.partial", "latents.zarr/payload/c/.a.partial"):
        (database.path / name).write_bytes(b"?")
    (database.path / "latents.zarr/latent/c/9").write_bytes(b"?")
    return database


def test_a_row_that_was_erased_in_part_takes_no_bytes_of_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removal is killed before each of its writes to the arrays."""
    payloads = {record.id: record.payload() for record in database.get(list(database))}
    kept = shutil.copytree(database.path, database.path.with_name("kept"))
    write = zarr.Array.__setitem__
    for steps in range(100):
        shutil.rmtree(database.path)
        shutil.copytree(kept, database.path)
        some = Database(database.path)
        left = iter(range(steps))

        def stop(*arguments: Any, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            write(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(zarr.Array, "__setitem__", stop)
            try:
                some.remove(["mp-2", "mp-4"])
            except KeyboardInterrupt:
                pass
            else:
                break
        assert {finding.level for finding in verify(some.path)} == {"note"}
        some.compact()
        assert list(verify(some.path)) == []
        assert {record.id: record.payload() for record in some.get(list(some))} == {
            id_: payload for id_, payload in payloads.items() if id_ not in ("mp-2", "mp-4")
        }
    assert steps > 8


def test_an_extent_of_no_record_is_not_believed(database: Database) -> None:
    """As an erasure of older versions left it that was killed between two arrays."""
    payload = database["mp-1"].payload()
    row = database["mp-4"].row["row"]
    database.remove("mp-4")
    arrays = zarr.open_group(database.path / "latents.zarr")
    lengths = arrays["payload_length"]
    assert isinstance(lengths, zarr.Array)
    lengths[row] = 40  # its offset is 0, where the payload of mp-1 begins
    assert {finding.level for finding in verify(database.path)} == {"note"}
    database.compact()
    assert list(verify(database.path)) == []
    assert database["mp-1"].payload() == payload


def test_it_clears_what_crashes_left_and_changes_no_record(littered: Database) -> None:
    findings = list(verify(littered.path))
    assert len(findings) >= 6
    assert {finding.level for finding in findings} == {"note"}
    before = content(littered)
    sizes = littered.compact()
    assert sizes[1] < sizes[0]
    assert list(verify(littered.path)) == []
    assert content(littered) == before
    assert len(littered._table.parts) == 1
    assert littered._derived.stale() == {"features": [], "predictions": []}
    assert littered.compact() == (sizes[1], sizes[1])


def test_adding_goes_on_after_it(
    littered: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file("mp-61.npz", electrons=6.0)
    crash(monkeypatch, Table, "append", lambda: littered.add(path))  # the arrays are committed
    littered.compact()
    assert list(verify(littered.path)) == []
    littered.add(make_file("mp-60.npz", electrons=5.0))
    assert littered["mp-60"].density().n_electrons == pytest.approx(5.0)
    assert list(verify(littered.path)) == []


def test_readers_meanwhile_see_every_record(
    littered: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read before every single change of a file is what was there at first."""
    before = content(littered)
    reader = Database(littered.path)
    seen = 0

    def look(path: Path, data: bytes) -> None:
        nonlocal seen
        seen += 1
        assert content(reader) == before
        replace_file(path, data)
        assert content(Database(littered.path)) == before

    monkeypatch.setattr("chgdb.arrays.replace_file", look)
    littered.compact()
    assert seen >= 3
    assert content(reader) == before


def test_interrupted_it_is_repeated(littered: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(littered)
    for owner, name in (
        (Table, "compact"),
        (Collection, "compact"),
        (LatentArrays, "truncate"),
        (LatentArrays, "erase_rows"),
        (LatentArrays, "erase_bytes"),
    ):
        crash(monkeypatch, owner, name, littered.compact)
        assert content(littered) == before
        assert all(finding.level == "note" for finding in verify(littered.path))
    littered.compact()
    assert list(verify(littered.path)) == []
    assert content(littered) == before


def test_a_store_that_lacks_a_part_is_left_alone(database: Database, make_file: MakeFile) -> None:
    database.add(make_file("mp-60.npz"))
    database._table.parts[0].unlink()
    before = {path: path.read_bytes() for path in database.path.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=r"rows 0 to 4 are of no part.*restore it"):
        database.compact()
    assert {path: path.read_bytes() for path in before} == before


def test_an_old_store_is_not_written(tmp_path: Path) -> None:
    path = Path(shutil.copytree(ROOT / "tests/data/store-v2", tmp_path / "old"))
    with pytest.raises(StoreError, match=r"of format version 2.*chgdb export NEW"):
        Database(path).compact()


def test_the_shipped_store_gets_seals(tmp_path: Path) -> None:
    """Those of its files that were written before there were seals."""
    path = tmp_path / "store"
    Database(ROOT / "store").copy(path, ["mp-149", "mp-134"])
    content = (path / "chgdb.json").read_text(encoding="utf-8")
    head, _, _ = content.partition(',\n  "seal"')
    (path / "chgdb.json").write_text(head + "\n}\n", encoding="utf-8")
    (note,) = verify(path)
    assert "has no seal" in str(note)
    Database(path).compact()
    assert list(verify(path)) == []


def test_the_command(run: Run, store: Path) -> None:
    code, out, err = run("compact", "--store", store)
    assert (code, err) == (0, "")
    assert out.endswith(" MB after\n")


def test_a_removed_record_takes_no_place(database: Database, make_file: MakeFile) -> None:
    """But for its row of zeros in the small arrays, which compress to a bit."""
    sizes = []
    noise = np.random.default_rng(0)
    for i in range(3):
        density = gaussian_density(("Si",), grid=(16, 18, 20))
        values = density.values + noise.random(density.grid)
        noisy = type(density)(values, density.structure)
        database.compact()
        sizes.append(
            sum(
                p.stat().st_size for p in (database.path / "latents.zarr").rglob("*") if p.is_file()
            )
        )
        database.add(make_file(f"mp-8{i}.npz", noisy))
        database.remove(f"mp-8{i}")
    assert max(sizes) - min(sizes) < 100


@pytest.mark.parametrize("last", [True, False])
def test_a_missing_last_part_is_no_leftover(
    database: Database, make_file: MakeFile, last: bool
) -> None:
    """Whatever file of the table is lost, nothing erases its densities before it is back."""
    database.add(make_file("x-1.npz", species=("Si",), electrons=4.0))
    parts = [part for part in database._table.parts if isinstance(part, Path)]
    lost = parts[-1:] if last else parts
    contents = {part: part.read_bytes() for part in lost}
    for part in lost:
        part.unlink()
    assert "are of no part: a file is missing" in " ".join(map(str, database.verify()))
    more = make_file("x-2.npz", species=("Si",), electrons=5.0)
    for write in (database.compact, lambda: database.add(more)):
        with pytest.raises(StoreError, match="a file of the table is missing"):
            write()
    for part, content in contents.items():
        part.write_bytes(content)
    assert database.verify() == []
    assert database["x-1"].density().n_electrons == pytest.approx(4.0)
    assert len(database.add(more).added) == 1
