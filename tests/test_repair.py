"""A damaged store is brought back to what its redundancy tells; what is lost is listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import ROOT, Run, gaussian_density, state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chgdb import parquet
from chgdb.database import Database
from chgdb.errors import InputError, StoreError
from chgdb.formats import write_density
from chgdb.repair import repair
from chgdb.seals import damaged_blocks
from chgdb.table import Table


@pytest.fixture(scope="module")
def whole(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with densities, a material without, and features, beside its sources."""
    assert models
    folder = tmp_path_factory.mktemp("whole")
    (folder / "files").mkdir()
    for i, species in enumerate((("Ti", "O", "O"), ("Si", "Si"), ("Na", "Cl"))):
        density = gaussian_density(species, grid=(16, 18, 20), electrons=8.0 + i, spin=i % 2)
        write_density(folder / "files" / f"mp-{i}.npz", density, "npz")
    store = Database.create(folder / "store", encoder="tiny-16", attribution="made for tests")
    store.add(sorted((folder / "files").glob("*.npz")))
    store.import_materials({"mp-9": {"formula": "CsCl", "band_gap": 5.0}})
    store.predict_all()
    store.compact()
    (folder / "store" / ".lock").unlink(missing_ok=True)
    return folder / "store"


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def rows(store: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in Database(store).select().rows()}


def part(store: Path, folder: str = "materials") -> Path:
    (path,) = (store / folder).glob("*.parquet")
    return path


def flip(path: Path, place: int, change: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= change
    path.write_bytes(content)
    parquet._is_whole.cache_clear()  # the same file twice within a step of the clock


def clean(store: Path) -> bool:
    return not any(finding.level == "error" for finding in Database(store).verify())


def test_a_whole_store_is_not_touched(store: Path) -> None:
    before = state(store)
    report = repair(store)
    assert (report.done, report.lost, report.left) == ([], [], [])
    assert state(store) == before


@given(place=st.integers(0, 10**6), change=st.integers(1, 255))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_changed_byte_of_a_table_is_refused_and_restored(
    whole: Path, tmp_path: Path, place: int, change: int
) -> None:
    store = tmp_path / "flipped"
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(whole, store)
    before = part(store).read_bytes()
    flip(part(store), place, change)
    assert not clean(store)
    if damaged_blocks(part(store)):  # else it is of the seal itself, and no value can be another
        for read in (
            lambda: rows(store),
            lambda: Database(store)["mp-1"],
            lambda: len(Database(store)),
        ):
            with pytest.raises(StoreError, match=r"verify --repair"):
                read()
    assert not repair(store).lost
    assert part(store).read_bytes() == before
    (kept,) = (store / "damaged/materials").glob(f"{part(store).name}.*")
    assert kept.read_bytes() != before


@pytest.mark.parametrize("name", ["chgdb.json", "latents.zarr/zarr.json", "atoms-1.npz"])
def test_a_changed_byte_of_what_describes_the_store(store: Path, name: str) -> None:
    before = (store / name).read_bytes()
    for place in (0, 40, len(before) // 2, len(before) - 3):
        (store / name).write_bytes(before)
        flip(store / name, place)
        report = repair(store)
        assert not report.lost
        assert not report.left
        assert clean(store)


@pytest.mark.parametrize("name", ["chgdb.json", "latents.zarr/zarr.json"])
def test_what_describes_the_store_is_missing(store: Path, name: str) -> None:
    before = (rows(store), Database(store).decode(["mp-1"])[0].values)
    (store / name).unlink()
    assert repair(store).done
    assert clean(store)
    assert rows(store) == before[0]
    np.testing.assert_array_equal(Database(store).decode(["mp-1"])[0].values, before[1])


def tear(path: Path, column: str) -> None:
    """Overwrite some bytes of a column."""
    with duckdb_connection() as connection:
        (place,) = connection.execute(
            "SELECT data_page_offset FROM parquet_metadata(?) WHERE path_in_schema = ?",
            [str(path), column],
        ).fetchone()
    content = bytearray(path.read_bytes())
    content[place + 5 : place + 9] = b"\xff\x00\xff\x00"
    path.write_bytes(content)
    parquet._is_whole.cache_clear()


@pytest.mark.parametrize("column", ["latent_max_error", "grid_b", "work_grid_c", "n_electrons"])
def test_a_torn_column_costs_no_density(store: Path, column: str) -> None:
    """What follows from the arrays is taken from there; errors of latents are not needed."""
    before = rows(store)
    payloads = {id_: Database(store)[id_].payload() for id_ in before}
    tear(part(store), column)
    repair(store)
    assert clean(store)
    after = rows(store)
    for id_, row in before.items():
        assert Database(store)[id_].payload() == payloads[id_]
        assert (after[id_]["source"], after[id_]["payload_nmae"]) == (
            row["source"],
            row["payload_nmae"],
        )
        if column != "latent_max_error":
            assert after[id_][column] == row[column]
    assert not [f for f in Database(store).verify(deep=True) if f.level == "error"]


def test_records_of_a_torn_part_keep_the_columns_that_are_whole(store: Path) -> None:
    path = part(store)
    before = rows(store)
    tear(path, "band_gap")
    report = repair(store)
    assert clean(store)
    after = rows(store)
    assert any("record mp-9: band_gap" in line for line in report.lost)
    lost = {
        name for name in before["mp-1"] for id_ in before if before[id_][name] != after[id_][name]
    }
    assert "band_gap" in lost
    for id_ in before:
        assert {n: v for n, v in after[id_].items() if n not in lost} == {
            n: v for n, v in before[id_].items() if n not in lost
        }


def duckdb_connection() -> Any:
    import duckdb

    return duckdb.connect()


def test_a_missing_part_is_listed(store: Path) -> None:
    part(store).unlink()
    report = repair(store)
    assert clean(store)
    assert rows(store) == {}
    assert {line.split(":")[0] for line in report.lost} >= {f"record mp-{i}" for i in range(3)}


@pytest.mark.parametrize("array", ["grid", "work_grid", "n_electrons", "material_id"])
@pytest.mark.parametrize("missing", [False, True])
def test_small_arrays_are_made_from_the_table(store: Path, array: str, missing: bool) -> None:
    before = rows(store)
    (path,) = (file for file in (store / "latents.zarr" / array / "c").rglob("*") if file.is_file())
    if missing:
        path.unlink()
    else:
        flip(path, 9)
    report = repair(store)
    assert clean(store)
    assert not report.lost
    assert rows(store) == before


@pytest.mark.parametrize("array", ["payload_offset", "payload_length"])
def test_where_payloads_lie_is_found_again(store: Path, array: str) -> None:
    before = Database(store).decode(["mp-0", "mp-2"])
    (path,) = (file for file in (store / "latents.zarr" / array / "c").rglob("*") if file.is_file())
    flip(path, 9)
    assert not repair(store).lost
    assert clean(store)
    for old, new in zip(before, Database(store).decode(["mp-0", "mp-2"]), strict=True):
        np.testing.assert_array_equal(old.values, new.values)


def chunk(store: Path, array: str) -> Path:
    (path,) = (file for file in (store / "latents.zarr" / array / "c").rglob("*") if file.is_file())
    return path


def hurt(path: Path, place: int) -> None:
    """Change two bytes, so that no checksum tells which."""
    flip(path, place)
    flip(path, place + 1, 77)


@pytest.mark.parametrize("array", ["latent", "payload", "grid", "material_id", "payload_offset"])
def test_one_byte_of_the_arrays_is_restored(store: Path, array: str) -> None:
    before, file = rows(store), chunk(store, array)
    content = file.read_bytes()
    for place in (0, len(content) // 3, -1, -5):
        flip(file, place)
        report = repair(store)
        assert report.done == [
            f"{file.relative_to(store).as_posix()}: restored, one byte had changed"
        ]
        assert (report.lost, report.left) == ([], [])
        assert file.read_bytes() == content
    assert rows(store) == before


@pytest.mark.parametrize("place", [5, -5])
def test_a_latent_is_made_from_its_payload(store: Path, place: int) -> None:
    """Of one record, or of all of a shard whose index is damaged."""
    before = rows(store)
    payloads = {id_: Database(store)[id_].payload() for id_ in before}
    hurt(chunk(store, "latent"), place)
    report = repair(store)
    assert clean(store)
    assert not report.lost
    assert any("its latent is made from the payload" in line for line in report.done)
    for id_, row in rows(store).items():
        assert Database(store)[id_].payload() == payloads[id_]
        if row["latent_nmae"] is not None:
            assert row["latent_nmae"] == pytest.approx(before[id_]["latent_nmae"], rel=0.02)
    assert not [f for f in Database(store).verify(deep=True) if f.level == "error"]


@pytest.mark.parametrize("with_sources", [False, True])
def test_a_payload_is_lost_or_encoded_anew(whole: Path, store: Path, with_sources: bool) -> None:
    before = rows(store)
    hurt(chunk(store, "payload"), 5)
    report = repair(store, sources=whole.parent / "files" if with_sources else None)
    assert clean(store)
    after = rows(store)
    for id_ in ("mp-0", "mp-1", "mp-2"):
        assert f"record {id_}: its payload; the latent is left" in report.lost
        assert after[id_]["payload_bytes"] == (
            before[id_]["payload_bytes"] if with_sources else None
        )
        assert Database(store)[id_].latent().values.any()
    assert after["mp-9"] | {"row": 0} == before["mp-9"] | {"row": 0}


def test_features_are_dropped(store: Path) -> None:
    path = part(store, "features")
    path.write_bytes(path.read_bytes()[:1000])
    (line,) = [line for line in repair(store).lost if line.startswith("features/")]
    assert "predict --all" in line
    assert clean(store)


def test_a_repair_that_was_killed_is_repeated(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurt(chunk(store, "payload"), 5)
    part(store, "features").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(Table, "append", _stop)
        with pytest.raises(KeyboardInterrupt):
            repair(store)
    lost = repair(store).lost
    assert sum(line.startswith("features/") for line in lost) == 1
    for id_ in ("mp-0", "mp-1", "mp-2"):
        assert lost.count(f"record {id_}: its payload; the latent is left") == 1
    assert (store / "damaged/lost.txt").read_text().splitlines() == lost
    assert not (store / "damaged/unfinished.jsonl").exists()
    assert clean(store)
    assert set(rows(store)) == {"mp-0", "mp-1", "mp-2", "mp-9"}


def _stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_what_a_repair_dropped_is_told_although_nothing_is_wrong_any_more(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part(store).unlink()
    with monkeypatch.context() as patch:
        patch.setattr("chgdb.repair.erase_unnamed_bytes", _stop)
        with pytest.raises(KeyboardInterrupt):
            repair(store)
    lost = repair(store).lost
    for id_ in ("mp-0", "mp-1", "mp-2"):
        assert f"record {id_}: all of it; add its file again" in lost
    assert repair(store).lost == []


def test_a_wrong_offset_costs_no_other_record_its_payload(store: Path) -> None:
    arrays = zarr.open_group(store / "latents.zarr")
    offsets = arrays["payload_offset"]
    assert isinstance(offsets, zarr.Array)
    row = {id_: record["row"] for id_, record in rows(store).items()}
    payloads = {id_: Database(store)[id_].payload() for id_ in ("mp-0", "mp-1")}
    offsets[row["mp-2"]] = offsets[row["mp-0"]]
    shutil.copytree(store, store.with_name("compacted"))
    Database(store.with_name("compacted")).compact()
    repair(store)
    for path in (store, store.with_name("compacted")):
        for id_, payload in payloads.items():
            assert Database(path)[id_].payload() == payload
    assert clean(store)


def test_what_cannot_be_repaired(store: Path, tmp_path: Path) -> None:
    (store / "chgdb.json").unlink()
    (store / "latents.zarr/zarr.json").unlink()
    with pytest.raises(StoreError, match="restore it from a copy"):
        repair(store)
    old = tmp_path / "old"
    shutil.copytree(ROOT / "tests/data/store-v2", old)
    (old / "latents.zarr/grid/zarr.json").write_text("{}", encoding="utf-8")
    with pytest.raises(StoreError, match="only read"):
        repair(old)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="no density files"):
        repair(old, sources=tmp_path / "nothing")


def test_the_command(run: Run, store: Path) -> None:
    flip(part(store), 500)
    code, out, err = run("get", "mp-1", "--store", store)
    assert (code, out) == (1, "")
    assert "verify --repair" in err
    code, out, err = run("verify", "--repair", "--store", store)
    assert (code, out) == (0, "")
    assert "restored: materials/" in err
    assert err.endswith("0 errors, 0 notes\n")
    assert json.loads(run("get", "mp-1", "--format", "json", "--store", store).out)
