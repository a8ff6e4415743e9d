"""The facade: open, search, add under every circumstance, decode, remove, copy."""

from __future__ import annotations

import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import filelock
import numpy as np
import pytest
import xarray as xr
from conftest import ROOT, MakeFile, Run, add_in_two_processes, state

from chgdb import adding, archive
from chgdb import database as module
from chgdb.adding import OnConflict
from chgdb.archive import Payload, Tolerance
from chgdb.arrays import LatentArrays
from chgdb.database import Database, Record, Source
from chgdb.density import ChargeDensity
from chgdb.errors import (
    FormatVersionError,
    InputError,
    ModelError,
    QueryError,
    StoreError,
    UnknownIdError,
)
from chgdb.files import PARTIAL_SUFFIX
from chgdb.filters import Conditions, condition_of
from chgdb.formats import read_density
from chgdb.query import Condition
from chgdb.schema import ARRAYS_FOLDER, FORMAT_VERSION
from chgdb.weights import load_config

# --- opening and reading --------------------------------------------------------------------


def test_a_store_behaves_as_a_collection(database: Database) -> None:
    assert len(database) == 5
    assert list(database) == ["mp-1", "mp-2", "mp-3", "mp-4", "mp-5"]
    assert "mp-1" in database
    assert "mp-99" not in database
    assert 7 not in database
    assert database["mp-4"].row["formula"] == "Fe"
    assert repr(database["mp-4"]) == "<Record mp-4: Fe>"
    assert [record.id for record in database.get(["mp-3", "mp-1", "mp-3"])] == [
        "mp-3",
        "mp-1",
        "mp-3",
    ]
    assert [record.id for record in database.get("mp-3,mp-1")] == ["mp-3", "mp-1"]
    assert database.get([]) == []


@pytest.mark.parametrize("material_id", ["mp-11", "", "../../etc/passwd", "mp-1' OR '1'='1"])
def test_unknown_ids_are_named_with_the_nearest(database: Database, material_id: str) -> None:
    with pytest.raises(UnknownIdError, match=r"no record") as caught:
        database[material_id]
    assert repr(material_id) in str(caught.value)
    assert ("nearest: mp-1" in str(caught.value)) == (material_id == "mp-11")


def test_a_record_knows_its_structure_and_properties(database: Database) -> None:
    record = database["mp-1"]
    assert record.structure.species == ("Ti", "O", "O")
    assert record.atoms.get_chemical_formula() == "O2Ti"
    assert record.grid == (16, 18, 20)
    assert record.properties == {
        "split": "train",
        "bulk_modulus": 200.0,
        "band_gap": 3.0,
        "is_metal": False,
    }
    assert record.latent().values.shape == (16, 16, 16, 16)
    assert database["mp-5"].properties == {"band_gap": 1.9}


def test_the_stored_error_is_that_of_what_is_decoded(template: Path, database: Database) -> None:
    for record in database.get(list(database)):
        source, _ = read_density(template / "files" / f"{record.id}.npz")
        for kind, origin in (("payload", "payload"), ("latent", "latent of tiny-16")):
            decoded = record.density(source=kind)  # type: ignore[arg-type]
            assert decoded.origin == origin
            error = np.abs(decoded.values - source.values)
            nmae = 100 * error.sum() / np.abs(source.values).sum()
            assert decoded.nmae == record.row[f"{kind}_nmae"] == pytest.approx(nmae, rel=1e-6)
            largest, electrons = (
                record.row[f"{kind}_{e}"] for e in ("max_error", "electron_error")
            )
            assert largest == pytest.approx(error.max(), rel=1e-6)
            assert electrons == pytest.approx(decoded.n_electrons - source.n_electrons, abs=1e-9)
            assert decoded.n_electrons == pytest.approx(source.n_electrons, rel=1e-8)
        assert record.row["payload_nmae"] <= 0.1
        assert record.row["payload_bytes"] == len(record.payload() or b"")
        assert record.row["payload_magnetization_nmae"] is None
        np.testing.assert_allclose(decoded.structure.lattice, source.structure.lattice)


@pytest.mark.parametrize("source", ["payload", "latent"])
def test_decoding_several_equals_decoding_one_by_one(
    database: Database, source: module.Source
) -> None:
    together = database.decode(list(database), source=source)
    assert [density.id for density in together] == list(database)
    for density in together:
        single = database[density.id].density(source=source)
        np.testing.assert_allclose(density.values, single.values, atol=1e-5)


@pytest.mark.parametrize("source", ["payload", "latent"])
def test_decoding_on_another_grid(database: Database, source: module.Source) -> None:
    density = database["mp-2"].density(grid=(8, 10, 12), source=source)
    assert density.grid == (8, 10, 12)
    assert density.n_electrons == pytest.approx(database["mp-2"].row["n_electrons"])


def test_a_source_that_there_is_not(database: Database) -> None:
    with pytest.raises(InputError, match="source 'chgcar': use payload or latent"):
        database.decode("mp-1", source="chgcar")  # type: ignore[arg-type]


def test_payloads_need_no_encoder(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "_codec", None)
    assert database["mp-1"].density().n_electrons == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("grid", "problem"),
    [
        ((0, 1, 2), "three positive numbers"),
        ((8, 8), "three positive numbers"),
        ((10_000, 10_000, 10_000), "1000000000000 points; at most"),
    ],
)
def test_impossible_grids_are_refused_first(
    database: Database, grid: tuple[int, int, int], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "_codec", None)
    with pytest.raises(InputError, match=problem):
        database.decode(["mp-1"], grid=grid)


def test_a_store_of_a_newer_format_is_named(store: Path) -> None:
    path = store / "chgdb.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["seal"]  # as who changes a file by hand does
    path.write_text(json.dumps({**content, "format_version": 99}), encoding="utf-8")
    with pytest.raises(FormatVersionError, match="99"):
        Database(store)


def test_the_path_stays_valid_when_the_folder_changes(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.parent)
    database = Database("store")
    monkeypatch.chdir("/")
    assert database["mp-1"].latent().n_electrons == pytest.approx(8.0)


def test_summary(database: Database, empty: Database) -> None:
    summary = database.summary()
    assert summary["records"] == 5
    assert summary["attribution"] == "made for tests"
    assert summary["encoder"].startswith("tiny-16 (")
    assert 0 < summary["latent NMAE, median (%)"] <= summary["latent NMAE, largest (%)"]
    assert summary["size on disk (MB)"] > 0.001
    assert summary["format version"] == FORMAT_VERSION
    assert summary["payloads"] == 5
    assert 0 <= summary["payload NMAE, median (%)"] <= summary["payload NMAE, largest (%)"] <= 0.1
    sizes = [len(record.payload() or b"") for record in database.get(list(database))]
    assert summary["payload, mean (bytes)"] == pytest.approx(sum(sizes) / 5)
    assert empty.summary()["latent NMAE, median (%)"] is None
    assert empty.summary()["payload, mean (bytes)"] is None


# --- search ---------------------------------------------------------------------------------

FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["mp-1", "mp-2", "mp-3", "mp-4", "mp-5"]),
    ({"formula": "O2Ti"}, ["mp-1"]),
    ({"formula": "Ti2O4"}, ["mp-1"]),
    ({"elements": ["Ti", "O"]}, ["mp-1", "mp-5"]),
    ({"elements": "Ti, O", "exclude": "Sr"}, ["mp-1"]),
    ({"chemsys": "Cl-Na"}, ["mp-3"]),
    ({"nelements": 1}, ["mp-2", "mp-4"]),
    ({"nelements": "2:"}, ["mp-1", "mp-3", "mp-5"]),
    ({"nelements": (2, 2)}, ["mp-1", "mp-3"]),
    ({"ranges": {"bulk_modulus": "90:180"}}, ["mp-2", "mp-4"]),
    ({"ranges": {"bulk_modulus": (None, 90)}}, ["mp-2", "mp-3"]),
    ({"ranges": {"bulk-modulus": "100:", "band_gap": "1:"}}, ["mp-1"]),
    ({"ranges": {"bulk_modulus": None}}, ["mp-1", "mp-2", "mp-3", "mp-4", "mp-5"]),
    ({"where": "bulk_modulus > 100 AND NOT is_metal"}, ["mp-1"]),
    ({"where": "bulk_modulus IS UNKNOWN"}, ["mp-5"]),
    ({"sort": "band_gap", "descending": True}, ["mp-3", "mp-1", "mp-5", "mp-2", "mp-4"]),
    ({"sort": "C11"}, ["mp-1", "mp-2", "mp-3", "mp-4", "mp-5"]),
    ({"sort": "Band-Gap", "limit": 2}, ["mp-4", "mp-2"]),
    ({"limit": 0}, []),
    ({"offset": 3}, ["mp-4", "mp-5"]),
    ({"sort": "band_gap", "descending": True, "offset": 1, "limit": 2}, ["mp-1", "mp-5"]),
    ({"offset": 10**30}, []),
    ({"also": Condition("bulk_modulus > ?", (100,)), "where": "NOT is_metal"}, ["mp-1"]),
]


@pytest.mark.parametrize(("filters", "expected"), FILTERS)
def test_filters(database: Database, filters: dict[str, Any], expected: list[str]) -> None:
    assert database.search(**filters)["id"].tolist() == expected


def test_space_groups_by_number_and_symbol(database: Database) -> None:
    number, symbol = database["mp-4"].row["spacegroup"], database["mp-4"].row["spacegroup_symbol"]
    for asked in (number, str(number), f"{number}:{number}", symbol, symbol.upper()):
        assert "mp-4" in database.search(spacegroup=asked)["id"].tolist()
    assert database.search(spacegroup=230).empty
    system = database["mp-4"].row["crystal_system"]
    assert "mp-4" in database.search(crystal_system=system.upper())["id"].tolist()


def test_underscores_in_symbols_do_not_matter(database: Database) -> None:
    row = {**database["mp-4"].row, "id": "hcp", "spacegroup_symbol": "P6_3/mmc"}
    database._table.append([row], database._table.next_row)
    for asked in ("P63/mmc", "P6_3/mmc", "p 63/mmc"):
        assert database.search(spacegroup=asked)["id"].tolist() == ["hcp"]


@pytest.mark.parametrize(
    ("filters", "problem"),
    [
        ({"sort": "bulk_modulu"}, "no column 'bulk_modulu'; did you mean bulk_modulus"),
        ({"sort": "xyzzy"}, "no column 'xyzzy'; there are id, row"),
        ({"columns": "id,sher-modulus"}, "no column 'sher-modulus'; did you mean shear_modulus"),
        ({"columns": []}, "no columns"),
        ({"ranges": {"foo": "1:2"}}, "no column 'foo'"),
        ({"ranges": {"formula": "1:2"}}, "formula is text"),
        ({"ranges": {"is_metal": "1:2"}}, "is_metal is boolean"),
        ({"ranges": {"band_gap": "a:b"}}, "band_gap.*not a range"),
        ({"nelements": "three"}, "n_elements.*not a range"),
        ({"where": "foo > 1"}, 'no column "foo"'),
        ({"crystal_system": "cubical"}, "no crystal system 'cubical'"),
        ({"elements": ["Xx"]}, "not an element"),
        ({"formula": ""}, "not a chemical formula"),
        ({"limit": -1}, "limit -1"),
        ({"offset": -1}, "offset -1"),
    ],
)
def test_filters_that_cannot_be_understood(
    database: Database, filters: dict[str, Any], problem: str
) -> None:
    with pytest.raises(QueryError, match=problem):
        database.search(**filters)


def test_an_unknown_filter_is_a_type_error(database: Database) -> None:
    with pytest.raises(TypeError, match="elemnts"):
        database.search(elemnts=["Ti"])  # type: ignore[call-arg]


def test_the_filters_of_search_are_the_arguments_of_select() -> None:
    of_answers = Database.select.__annotations__.keys() - {"return", "conditions"}
    of_records = condition_of.__annotations__.keys() - {"return"}
    assert set(Conditions.__annotations__) == of_records
    assert set(module.Filters.__annotations__) == of_answers | of_records


# --- payloads -------------------------------------------------------------------------------


def inexact(monkeypatch: pytest.MonkeyPatch) -> list[Tolerance]:
    """Payloads that are just as bad as they may be; what was asked of each."""
    asked: list[Tolerance] = []
    encode = archive.encode

    def worst(density: ChargeDensity, tolerance: Tolerance | None = None) -> Payload:
        assert tolerance is not None
        asked.append(tolerance)
        payload = encode(density, tolerance)
        error = replace(payload.error, nmae=tolerance.nmae or 0.0)
        spin = None if density.magnetization is None else tolerance.nmae
        return replace(payload, error=error, magnetization_nmae=spin)

    monkeypatch.setattr(archive, "encode", worst)
    return asked


def test_the_tolerance_reaches_the_codec(
    empty: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = inexact(monkeypatch)
    empty.add(make_file("mp-1.npz"))
    empty.add(make_file("mp-2.npz", electrons=9.0), tolerance=Tolerance(None, 1e-3))
    assert asked == [Tolerance(0.1), Tolerance(None, 1e-3)]


@pytest.mark.parametrize("tolerance", [Tolerance(0.05), Tolerance(None, 0.0), Tolerance(0.1, 1e-9)])
@pytest.mark.parametrize("on_conflict", ["error", "skip", "replace"])
def test_a_file_that_is_stored_less_exactly_than_asked(
    empty: Database,
    make_file: MakeFile,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    on_conflict: OnConflict,
    tolerance: Tolerance,
) -> None:
    (tmp_path / "p.csv").write_text("id,band_gap\nmp-1,1.5\n")
    path = make_file("mp-1.npz")
    encode = archive.encode

    def coarse(density: ChargeDensity, tolerance: Tolerance | None = None) -> Payload:
        payload = encode(density, tolerance)
        return replace(payload, error=replace(payload.error, nmae=0.09, max_error=2e-3))

    with monkeypatch.context() as patch:
        patch.setattr(archive, "encode", coarse)
        empty.add(path, properties=tmp_path / "p.csv")
    before = state(empty.path)
    assert empty.add(path, tolerance=Tolerance(0.09, 2e-3)).skipped  # as good as asked for
    report = empty.add(path, tolerance=tolerance, on_conflict=on_conflict)
    told = "stored already as mp-1, which is less exact than asked for"
    if on_conflict == "replace":
        assert [row["id"] for row in report.added] == ["mp-1"]
        assert len(empty) == 1
        assert empty["mp-1"].row["payload_nmae"] <= 0.05
        assert empty["mp-1"].row["band_gap"] == 1.5, "the properties are still those of the file"
        assert empty["mp-1"].density().n_electrons == pytest.approx(16.0)
    elif on_conflict == "skip":
        assert report.skipped == [(path, told)]
    else:
        hint = "--on-conflict replace makes it anew"
        assert report.failed == [(path, f"{path}: {told}; {hint}")]
    assert (state(empty.path) == before) == (on_conflict != "replace")


def test_properties_of_another_file_are_not_taken_over(
    database: Database, make_file: MakeFile
) -> None:
    database.add(make_file("mp-1.npz", electrons=9.0), on_conflict="replace")
    assert database["mp-1"].properties == {}


def test_a_density_that_the_codec_refuses_stops_no_other(
    empty: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [make_file(f"mp-{i}.npz", electrons=8.0 + i) for i in range(3)]
    encode = archive.encode

    def fail(density: ChargeDensity, tolerance: Tolerance | None = None) -> Payload:
        if abs(density.n_electrons - 9.0) < 0.1:
            raise InputError("no such luck")
        return encode(density, tolerance)

    monkeypatch.setattr(archive, "encode", fail)
    report = empty.add(paths)
    assert list(empty) == ["mp-0", "mp-2"]
    assert report.failed == [(paths[1], f"{paths[1]}: cannot be encoded: no such luck")]


def test_several_processes_make_the_same_payloads(
    empty: Database, template: Path, database: Database
) -> None:
    empty.add(template / "files", processes=2)
    for material_id in database:
        assert empty[material_id].payload() == database[material_id].payload()


def test_a_damaged_payload_is_one_line_and_the_latent_still_there(database: Database) -> None:
    shard = database.path / ARRAYS_FOLDER / "payload/c/0"
    content = bytearray(shard.read_bytes())
    content[20] ^= 0x10
    shard.write_bytes(content)
    with pytest.raises(StoreError, match=r"mp-1: its payload cannot be decoded .*checksum") as told:
        database.decode("mp-1")
    assert str(told.value).endswith("--from latent may help")
    assert "\n" not in str(told.value)
    with pytest.raises(StoreError, match=r"mp-1: its payload cannot be read .*checksum"):
        database["mp-1"].payload()
    assert database["mp-1"].density(source="latent").n_electrons == pytest.approx(8.0)


def test_bytes_that_are_no_payload(database: Database) -> None:
    group = LatentArrays.open(database.path / ARRAYS_FOLDER, writable=True)
    payloads = group._group["payload"]
    payloads[:50] = 255  # type: ignore[index]
    with pytest.raises(StoreError, match="mp-1: its payload cannot be decoded") as told:
        database.decode("mp-1")
    assert str(told.value).endswith("--from latent may help")


# --- a store of version 1 -------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Database:
    """A frozen store of format version 1; see tests/data/README.md."""
    return Database(shutil.copytree(ROOT / "tests/data/store-v1", tmp_path / "old"))


def test_version_1_is_read(old: Database) -> None:
    assert list(old) == ["mp-1", "mp-3"]
    summary = old.summary()
    assert (summary["format version"], summary["records"], summary["payloads"]) == (1, 2, 0)
    assert summary["payload NMAE, median (%)"] is None
    assert old.search(elements="Ti")["payload_bytes"].isna().all()
    record = old["mp-3"]
    assert record.properties == {"band_gap": 0.0}
    assert record.payload() is None
    assert record.row["payload_nmae"] is None
    assert record.latent().n_electrons == pytest.approx(8.0)
    density = record.density()
    assert (density.origin, density.magnetization) == ("latent of periodic-16", None)
    assert density.nmae == record.row["latent_nmae"]
    assert density.n_electrons == pytest.approx(8.0)


def test_version_1_is_not_written(old: Database, make_file: MakeFile) -> None:
    before = state(old.path)
    for write in (lambda: old.add(make_file("a.npz")), lambda: old.remove("mp-1")):
        with pytest.raises(StoreError, match=r"of format version 1.*chgdb export NEW") as told:
            write()
        assert "\n" not in str(told.value)
    assert state(old.path) == before


def test_a_copy_of_version_1_has_the_newest_and_can_be_filled(
    old: Database, make_file: MakeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = old.copy(tmp_path / "new")
    assert copy.info.format_version == FORMAT_VERSION
    for record in old.get(list(old)):
        assert {**record.row, "row": 0} == {**copy[record.id].row, "row": 0}
        np.testing.assert_array_equal(record.latent().values, copy[record.id].latent().values)
        assert copy[record.id].payload() is None
    path = make_file("mp-3.npz", species=("Fe",), electrons=8.0, spin=1)
    sha256 = copy["mp-3"].row["source_sha256"]  # of the same numbers, perhaps packed otherwise
    monkeypatch.setattr("chgdb.intake.file_sha256", lambda _: sha256)
    report = copy.add(path)
    assert "stored already as mp-3, which has no payload; --on-conf" in report.failed[0][1]
    copy.add(path, on_conflict="replace")
    origins = [density.origin for density in copy.decode(["mp-3", "mp-1", "mp-3"])]
    assert origins == ["payload", "latent of periodic-16", "payload"]
    assert copy["mp-3"].properties == {"band_gap": 0.0}
    assert copy["mp-3"].density().magnetization is not None
    copy.remove("mp-1")
    assert list(copy) == ["mp-3"]


@pytest.mark.parametrize("version", [1, 2])
def test_older_versions_are_searched_decoded_and_exported(
    run: Run, tmp_path: Path, version: int
) -> None:
    path = shutil.copytree(ROOT / f"tests/data/store-v{version}", tmp_path / "old")
    at, before = ("--store", path), state(path)
    assert run("search", "--elements", "Ti", "--format", "ids", *at).out == "mp-1\n"
    assert run("get", "mp-1", "--decode", "-o", tmp_path / "a.npz", *at).code == 0
    assert (
        run("get", "mp-1", "--decode", "--from", "latent", "-o", tmp_path / "b.npz", *at).code == 0
    )
    assert run("verify", "--deep", *at).err == "0 errors, 0 notes\n"
    assert run("compact", *at).code == 1
    assert run("export", tmp_path / "new", *at).code == 0
    assert state(path) == before
    old, new = Database(path), Database(tmp_path / "new")
    assert new.info.format_version == FORMAT_VERSION
    assert new.verify(deep=True) == []
    for record in old.get(list(old)):
        assert {**record.row, "row": 0} == {**new[record.id].row, "row": 0}
        assert record.payload() == new[record.id].payload()
        assert record.predicted == new[record.id].predicted
    assert new.features()["id"].tolist() == old.features()["id"].tolist()


# --- encoders -------------------------------------------------------------------------------


def test_a_store_of_other_weights_is_refused_by_name(store: Path, make_file: MakeFile) -> None:
    path = store / "chgdb.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["encoder"]["weights_sha256"] = "0" * 64
    del content["seal"]
    path.write_text(json.dumps(content), encoding="utf-8")
    before = state(store)
    with pytest.raises(ModelError, match=r"no encoder tiny-16 with the weights 000000000000"):
        Database(store).add(make_file("mp-9.npz"))
    with pytest.raises(ModelError, match="tiny-16"):
        Database(store)["mp-1"].density(source="latent")
    assert state(store) == before


def test_an_encoder_that_is_not_there(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no encoder absent-16"):
        Database.create(tmp_path / "new", encoder="absent-16")
    with pytest.raises(ModelError, match="is not the id of an encoder"):
        Database.create(tmp_path / "new", encoder="../models")
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there(store: Path) -> None:
    for device in ("cuda:99", "abacus"):
        with pytest.raises(InputError, match=f"--device {device}"):
            Database(store, device=device)["mp-1"].density(source="latent")


# --- writing safely -------------------------------------------------------------------------


def test_a_lock_that_another_writer_holds(
    database: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_TIMEOUT", 0.05)
    before = state(database.path)
    with filelock.FileLock(database.path / module.LOCK_FILE):
        for write in (
            lambda: database.add(make_file("mp-9.npz")),
            lambda: database.remove(["mp-1"]),
        ):
            with pytest.raises(StoreError, match=r"another process has been writing for 0\.05 s"):
                write()
    assert state(database.path) == before


@pytest.mark.parametrize("source", ["payload", "latent"])
def test_a_record_that_is_replaced_while_it_is_read_is_read_again(
    database: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, source: Source
) -> None:
    path = make_file("new/mp-1.npz", electrons=11.0, grid=(16, 18, 20))
    original = Database.get

    def then_replaced(self: Database, ids: str | list[str]) -> list[Record]:
        records = original(self, ids)
        monkeypatch.setattr(Database, "get", original)
        Database(database.path).add(path, on_conflict="replace")
        return records

    monkeypatch.setattr(Database, "get", then_replaced)
    (density,) = database.decode(["mp-1"], source=source)
    assert density.n_electrons == pytest.approx(11.0)


def test_a_record_that_is_removed_while_it_is_read_is_no_longer_there(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Database.get

    def then_removed(self: Database, ids: str | list[str]) -> list[Record]:
        records = original(self, ids)
        monkeypatch.setattr(Database, "get", original)
        Database(database.path).remove("mp-1")
        return records

    monkeypatch.setattr(Database, "get", then_removed)
    with pytest.raises(UnknownIdError, match="no record 'mp-1'"):
        database.decode(["mp-2", "mp-1"])


def test_a_store_that_cannot_be_written_is_told_from_first(
    database: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    (database.path / module.LOCK_FILE).unlink(missing_ok=True)
    (database.path / module.LOCK_FILE).mkdir()
    monkeypatch.setattr(adding, "encode", None)
    with pytest.raises(StoreError, match="cannot be written"):
        database.add(make_file("mp-9.npz"))


def test_a_read_only_store_can_be_read(database: Database, make_file: MakeFile) -> None:
    (database.path / module.LOCK_FILE).unlink(missing_ok=True)
    path = make_file("mp-9.npz")
    database.path.chmod(0o500)
    try:
        if os.access(database.path, os.W_OK):
            pytest.skip("root may write everywhere")
        assert len(database.search(elements="Ti")) == 2
        with pytest.raises(StoreError, match="cannot be written"):
            database.add(path)
    finally:
        database.path.chmod(0o700)


def test_the_store_inside_the_package_is_read_only(
    database: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chgdb.resources._SHIPPED", (database.path.parent, Path("nowhere")))
    before = state(database.path)
    for write in (lambda: database.add(make_file("a.npz")), lambda: database.remove("mp-1")):
        with pytest.raises(StoreError, match=r"read-only; make your own with: chgdb init"):
            write()
    assert state(database.path) == before


def test_two_processes_adding_the_same_ids_lose_and_double_nothing(
    empty: Database, make_file: MakeFile, tmp_path: Path
) -> None:
    for i in range(4):
        make_file(f"in/mp-{i}.npz", electrons=8.0 + i)
    assert add_in_two_processes(empty.path, tmp_path / "in") == [4, 4, 0]
    assert sorted(empty) == [f"mp-{i}" for i in range(4)]
    for record in empty.get(list(empty)):
        assert record.latent().n_electrons == pytest.approx(8.0 + int(record.id[-1]))
        assert record.density().n_electrons == pytest.approx(8.0 + int(record.id[-1]))


def test_an_id_that_is_taken_while_a_batch_is_encoded(
    empty: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Database(empty.path)
    mine, theirs = make_file("a/mp-1.npz"), make_file("b/mp-1.npz", species=("Si",))
    encode = adding.encode

    def overtaken(codec: Any, intakes: Any, storage: Any) -> Any:
        monkeypatch.setattr(adding, "encode", encode)
        other.add(theirs)
        return encode(codec, intakes, storage)

    monkeypatch.setattr(adding, "encode", overtaken)
    report = empty.add(mine)
    assert "mp-1 is taken" in report.failed[0][1]
    assert empty["mp-1"].row["formula"] == "Si"


def test_readers_see_whole_records_while_one_writes(empty: Database, make_file: MakeFile) -> None:
    paths = [make_file(f"mp-{i}.npz", electrons=8.0 + i) for i in range(4)]
    empty.add(paths[0])
    reader = Database(empty.path)
    reader["mp-0"].latent()  # opens the arrays, which then hold one row
    problems: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                for record in reader.get(list(reader)):
                    for held in (record.latent(), record.density()):
                        assert held.n_electrons == pytest.approx(8.0 + int(record.id[-1]))
        except BaseException as error:  # noqa: BLE001 (told by the other thread)
            problems.append(error)

    stop = threading.Event()
    thread = threading.Thread(target=read)
    thread.start()
    try:
        for path in paths[1:]:
            empty.add(path)
    finally:
        stop.set()
        thread.join()
    assert not problems


# --- removing and copying -------------------------------------------------------------------


def test_remove(database: Database) -> None:
    record = database["mp-2"]
    gone = record.payload()
    assert gone
    database.remove(["mp-2", "mp-4", "mp-2"])
    assert list(database) == ["mp-1", "mp-3", "mp-5"]
    assert database["mp-5"].latent().n_electrons == pytest.approx(12.0)
    assert database["mp-5"].density().n_electrons == pytest.approx(12.0)
    with xr.open_zarr(database.path / ARRAYS_FOLDER) as arrays:
        assert gone not in arrays.payload.values.tobytes()
    with pytest.raises(StoreError, match=r"mp-2: its payload cannot be read .*holds nothing"):
        record.payload()


def test_remove_all_or_none(database: Database) -> None:
    before = state(database.path)
    with pytest.raises(UnknownIdError, match="mp-6"):
        database.remove(["mp-1", "mp-6"])
    assert state(database.path) == before


def test_copy_is_exact(database: Database, tmp_path: Path) -> None:
    copy = database.copy(tmp_path / "sub" / "copy", ["mp-4", "mp-1"])
    assert list(copy) == ["mp-4", "mp-1"]
    assert copy.info == database.info
    for material_id in copy:
        old, new = database[material_id], copy[material_id]
        assert {**old.row, "row": 0} == {**new.row, "row": 0}
        np.testing.assert_array_equal(old.latent().values, new.latent().values)
        assert old.payload() == new.payload()
        np.testing.assert_array_equal(old.density().values, new.density().values)
    assert list(database.copy(tmp_path / "all")) == list(database)


def test_a_copy_that_fails_leaves_nothing(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new" / "copy"

    def interrupted(_: Record) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Record, "latent", interrupted)
    with pytest.raises(KeyboardInterrupt):
        database.copy(target)
    assert not list(target.parent.iterdir())


def test_a_store_whose_payloads_are_gone_is_not_copied(database: Database, tmp_path: Path) -> None:
    """Absent shards read as zeros, which are no payload: half a store was copied, perhaps."""
    shutil.rmtree(database.path / ARRAYS_FOLDER / "payload" / "c")
    with pytest.raises(StoreError, match=r"mp-1: a payload is damaged"):
        database.copy(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_latent_that_is_gone_is_refused(database: Database) -> None:
    shutil.rmtree(database.path / ARRAYS_FOLDER / "latent" / "c")
    with pytest.raises(StoreError, match="the latent of mp-1 is missing"):
        database.decode("mp-1", source="latent")
    assert database["mp-1"].density().n_electrons == pytest.approx(8.0)


def test_a_grid_that_is_one_number(database: Database) -> None:
    with pytest.raises(InputError, match="three positive numbers"):
        database.decode("mp-1", grid=5)  # type: ignore[arg-type]


def test_a_new_store_needs_a_folder_of_its_own(models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    Database.create(tmp_path / "empty", encoder="tiny-16")
    for occupied in (tmp_path / "file", tmp_path / "empty", tmp_path):
        with pytest.raises(StoreError, match="exists and is not empty"):
            Database.create(occupied, encoder="tiny-16")
    with pytest.raises(StoreError, match="cannot make a store here"):
        Database.create(tmp_path / "file" / "below", encoder="tiny-16")
    assert not list(tmp_path.glob(f".*{PARTIAL_SUFFIX}"))


def test_a_space_group_that_there_is_not(database: Database) -> None:
    for number in ("0", "231", "999"):
        with pytest.raises(QueryError, match="1 to 230"):
            database.select(spacegroup=number)
    assert len(database.select(spacegroup="1:230")) == len(database)


# --- the shipped store ----------------------------------------------------------------------------


def test_the_shipped_store_is_what_this_code_makes() -> None:
    database = Database(ROOT / "store")
    config = load_config(ROOT / "models" / database.info.encoder.id)
    assert config.weights_sha256 == database.info.encoder.weights_sha256
    assert len(database) == 6065
    records = database.get(database.search(source="dft")["id"].tolist())
    assert len(records) == 390
    for record in records:
        assert record.row["formula"] == record.structure.formula
        assert record.row["latent_coarse"] is False
        assert abs(record.row["latent_electron_error"]) < 1e-9 * record.row["n_electrons"]


def test_the_shipped_store_keeps_the_promised_error() -> None:
    found = Database(ROOT / "store").select(
        source="dft", where="split = 'test'", columns=["latent_nmae"]
    )
    errors = [error for (error,) in found.values]
    assert len(errors) > 40
    assert median(errors) < 1.5
    assert max(errors) < 6.0


def test_the_rows_of_the_shipped_arrays_belong_to_its_records() -> None:
    database = Database(ROOT / "store")
    ids = database.search(source="dft")["id"].tolist()
    for record in database.get([ids[0], ids[len(ids) // 2], ids[-1]]):
        latent = record.latent()
        assert latent.n_electrons == record.row["n_electrons"]
        assert float(np.abs(latent.values).max()) <= 1.0


def test_counting_regards_the_filters_and_nothing_else(database: Database) -> None:
    for filters in ({}, {"elements": "O"}, {"where": "predicted_bulk_modulus > 0"}):
        expected = len(database.select(**filters))  # type: ignore[arg-type]
        answer = {"columns": "formula", "sort": "formula", "descending": True, "limit": 1}
        assert database.count(**filters, **answer) == expected  # type: ignore[arg-type]


def test_a_sibling_encodes_as_the_store_does(
    database: Database, make_file: MakeFile, tmp_path: Path
) -> None:
    path = make_file("a.npz")
    sibling = database.sibling(tmp_path / "sibling")
    sibling.add(path, ids=["a"])
    database.add(path, ids=["a"])
    assert list(sibling) == ["a"]
    names = ("latent_nmae", "payload_nmae", "payload_bytes", "n_electrons")
    assert [sibling["a"].row[n] for n in names] == [database["a"].row[n] for n in names]
    np.testing.assert_array_equal(sibling["a"].latent().values, database["a"].latent().values)
    assert sibling._codec is database._codec
    with pytest.raises(StoreError, match="not empty"):
        database.sibling(tmp_path / "sibling")


def test_a_record_as_a_dict(database: Database) -> None:
    record = database["mp-1"]
    told = record.to_dict()
    assert told["lattice"] == record.structure.lattice.tolist()
    assert told["species"] == list(record.structure.species)
    assert "predicted" not in told
    shipped = Database(ROOT / "store")["mp-149"]
    assert shipped.to_dict()["predicted"] == shipped.predicted


def test_whether_a_store_can_be_written(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [database.is_writable]
    with monkeypatch.context() as patch:
        patch.setattr("chgdb.database.is_shipped", lambda place: place == database.place)
        told.append(database.is_writable)
    monkeypatch.setattr("os.access", lambda *_: False)
    told.append(database.is_writable)
    assert told == [True, False, False]
