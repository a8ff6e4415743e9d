"""A store is looked at byte by byte: nothing is found in a whole one, and every damage is named."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import zarr
from conftest import ROOT, MakeFile, Run, crash, gaussian_density
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chgdb.arrays import LatentArrays
from chgdb.database import Database
from chgdb.errors import InputError, StoreError
from chgdb.formats import write_density
from chgdb.seals import UNSEALED, seal, seal_holds
from chgdb.table import Table
from chgdb.verification import Finding, verify


@pytest.fixture(scope="module")
def whole(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with densities, one spin-polarised, a material without, features and predictions."""
    assert models
    folder = tmp_path_factory.mktemp("whole")
    for i, species in enumerate((("Ti", "O", "O"), ("Si", "Si"), ("Na", "Cl"))):
        density = gaussian_density(species, grid=(16, 18, 20), electrons=8.0 + i, spin=i % 2)
        write_density(folder / f"mp-{i}.npz", density, "npz")
    store = Database.create(folder / "store", encoder="tiny-16", attribution="made for tests")
    store.add(sorted(folder.glob("*.npz")))
    store.import_materials({"mp-9": {"formula": "CsCl", "band_gap": 5.0}})
    store.predict_all()
    (folder / "store" / ".lock").unlink(missing_ok=True)
    return folder / "store"


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def told(store: Path, **options: Any) -> list[str]:
    return [str(finding) for finding in verify(store, **options)]


def errors(store: Path, **options: Any) -> list[str]:
    return [text for text in told(store, **options) if text.startswith("error")]


def change(store: Path, sql: str, part: str = "materials") -> None:
    """Rewrite the only part of a table by a SELECT over `rows`, sealed, as a bad writer would."""
    (path,) = (store / part).glob("*.parquet")
    metadata = {
        "chgdb.format_version": "3",
        "chgdb.units": "{}",
        "chgdb.seal": UNSEALED,
    }
    pairs = ", ".join(f"\"{key}\": '{value}'" for key, value in metadata.items())
    target = path.with_suffix(".new")
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (WITH rows AS (SELECT * FROM '{path}') {sql}) TO '{target}' "
            f"(FORMAT parquet, KV_METADATA {{{pairs}}})"
        )
    seal(target)
    target.replace(path)


def joined(store: Path) -> Path:
    Database(store).compact()
    return store


# --- what is whole --------------------------------------------------------------------------


def test_nothing_is_found_in_a_whole_store(whole: Path) -> None:
    steps: list[tuple[int, int]] = []
    assert told(whole, deep=True, progress=lambda *step: steps.append(step)) == []
    assert steps == [(i, 4) for i in range(1, 5)]
    assert Database(whole).verify() == []


@pytest.mark.parametrize("version", [1, 2])
def test_nothing_is_found_in_older_versions(version: int) -> None:
    assert told(ROOT / f"tests/data/store-v{version}", deep=True) == []


def test_the_errors_are_those_of_the_sources(whole: Path, store: Path) -> None:
    assert told(whole, sources=whole.parent) == []
    change(joined(store), "SELECT * REPLACE (payload_nmae / 2 AS payload_nmae) FROM rows")
    found = errors(store, sources=whole.parent)
    assert len(found) == 3
    assert all("payload_nmae is" in text and "from its source" in text for text in found)


def test_nothing_is_found_after_writing(store: Path, make_file: MakeFile) -> None:
    database = Database(store)
    database.add(make_file("mp-7.npz", species=("Fe",), spin=3))
    database.add(make_file("mp-1.npz", electrons=3.0, species=("Si",)), on_conflict="replace")
    database.remove(["mp-0", "mp-9"])
    assert told(store) == []
    assert told(database.copy(store.with_name("copy")).path) == []


@pytest.mark.parametrize("replaced", [False, True])
def test_what_a_crash_leaves_is_noted_and_gone_after_the_next_add(
    store: Path, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    path = make_file("mp-1.npz" if replaced else "mp-5.npz", electrons=5.0, species=("Si",))
    database = Database(store)
    crash(monkeypatch, Table, "append", lambda: database.add(path, on_conflict="replace"))
    note, of_bytes = told(store)
    assert "belong to no row and are not erased" in of_bytes
    assert note.startswith("note: latents.zarr, rows 4 to 4: hold what no record names")
    database.add(path, on_conflict="replace")
    assert told(store) == []
    crash(monkeypatch, LatentArrays, "erase", lambda: database.remove("mp-0"))
    note, of_bytes = told(store)
    assert "belong to no row and are not erased" in of_bytes
    assert note.startswith("note: latents.zarr, rows 0 to 0: hold what no record names")


def test_an_unfinished_replacement_is_noted(
    store: Path, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file("mp-1.npz", species=("Si",))
    crash(
        monkeypatch,
        Table,
        "_finish_replacing",
        lambda: Database(store).add(path, on_conflict="replace"),
    )
    notes = told(store)
    assert all(note.startswith("note: ") for note in notes)
    assert "000000004-000000005.replaces.parquet: an unfinished replacement" in " ".join(notes)
    assert "the table has 5 rows; the next writer corrects it" in " ".join(notes)


# --- what is damaged ------------------------------------------------------------------------


def files_of(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file() and path.stat().st_size)


@given(data=st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_changed_byte_of_any_file_is_found(whole: Path, data: st.DataObject) -> None:
    """But for white space in the JSON of Zarr, whose content stays the same."""
    path = data.draw(st.sampled_from(files_of(whole)))
    before = path.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    after = bytearray(before)
    after[place] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(after)
        found = told(whole)
    finally:
        path.write_bytes(before)
    if not found:
        assert path.name == "zarr.json"
        assert json.loads(after) == json.loads(before)


def test_a_damaged_or_missing_file_of_every_kind_is_named(store: Path) -> None:
    joined(store)
    for path in files_of(store):
        before = path.read_bytes()
        name = path.relative_to(store).as_posix()
        for content in (before[: len(before) // 2], b"", None):
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
            found = told(store)
            path.write_bytes(before)
            array = name.rpartition("/c/")[0]
            if content is None and name.startswith(("features/", "predictions/")):
                continue  # nothing else depends on them
            assert found, name
            named = [name, array or name, "record mp-1", "latents.zarr"]
            assert any(any(word in text for word in named) for text in found), (name, found)
    assert told(store) == []


Damage = Callable[[Path], object]


def edit_json(name: str, **changes: Any) -> Damage:
    def damage(store: Path) -> None:
        content = json.loads((store / name).read_text(encoding="utf-8"))
        content.pop("seal")  # as who changes a file by hand does
        (store / name).write_text(json.dumps({**content, **changes}), encoding="utf-8")

    return damage


def edit_array(name: str, row: Any, value: Any) -> Damage:
    def damage(store: Path) -> None:
        group = zarr.open_group(store / "latents.zarr", mode="r+", use_consolidated=False)
        group[name][row] = value

    return damage


def edit_rows(sql: str) -> Damage:
    return lambda store: change(joined(store), sql)


def replace(**values: str) -> Damage:
    """Set columns of mp-1 by SQL."""
    changes = ", ".join(
        f"CASE WHEN id = 'mp-1' THEN {value} ELSE {name} END AS {name}"
        for name, value in values.items()
    )
    return edit_rows(f"SELECT * REPLACE ({changes}) FROM rows")


BYTES = np.frombuffer(b"\x01\x02\x03", np.uint8)

DAMAGES: dict[str, tuple[Damage, str]] = {
    "another encoder": (
        edit_json("chgdb.json", encoder={"id": "no", "kind": "periodic", "weights_sha256": "0"}),
        "chgdb.json: its encoder cannot be used",
    ),
    "another attribution": (
        edit_json("chgdb.json", attribution="?"),
        "latents.zarr/zarr.json: its attributes",
    ),
    "another scale": (
        edit_json("chgdb.json", latent={"dtype": "int8", "scale_factor": 1.0, "shape": [16] * 4}),
        "latents.zarr/latent: latents are stored as",
    ),
    "a later version": (
        edit_json("chgdb.json", format_version=99),
        "chgdb.json: .*reads 1 to 3",
    ),
    "an earlier version": (
        edit_json("chgdb.json", format_version=1),
        "of format version 3 in a store of version 1",
    ),
    "another library": (
        lambda store: (store / "atoms-1.npz").write_bytes(b"?"),
        "atoms-1.npz: not the atom library",
    ),
    "another id": (edit_array("material_id", 1, "mp-2"), "record mp-1: material_id of its row 1"),
    "another grid": (edit_array("grid", 1, [1, 2, 3]), "record mp-1: grid of its row 1"),
    "another work grid": (edit_array("work_grid", 1, [8, 8, 8]), "record mp-1: work_grid of"),
    "other electrons": (edit_array("n_electrons", 1, 1.0), "record mp-1: n_electrons of its row"),
    "another length": (edit_array("payload_length", 1, 9), "record mp-1: payload_length of its"),
    "another offset": (
        edit_array("payload_offset", 1, 0),
        "record mp-1: its payload overlaps that of an earlier row",
    ),
    "an offset beyond": (
        edit_array("payload_offset", 1, 10**6),
        "record mp-1: its payload, bytes 1000000 to .* is not within",
    ),
    "no latent": (edit_array("latent", 1, 0), "record mp-1: its latent is missing"),
    "a latent beyond the cell": (
        edit_array("latent", (1, 0, 15, 15, 15), 1),
        "record mp-1: its latent is not zero beyond the cell",
    ),
    "other bytes": (
        edit_array("payload", slice(0, 3), BYTES),
        r"record mp-0: its payload is lost \(a payload is damaged, or of another structure",
    ),
    "a row of nothing": (
        edit_array("n_electrons", 3, 1.0),
        "record mp-9: n_electrons of its row 3 is 1.0, not 0.0",
    ),
    "an id twice": (replace(id="'mp-0'"), "record mp-0: the id is there 2 times"),
    "a row twice": (replace(row="0"), "materials: the row is there 2 times"),
    "a row that is not there": (replace(row="99"), "record mp-1: its row 99 is not of its part"),
    "a missing record": (
        edit_rows("SELECT * FROM rows WHERE id <> 'mp-1'"),
        "note: latents.zarr, rows 1 to 1: hold what no record names",
    ),
    "a value that is missing": (replace(formula="NULL"), "1 of 4 rows have no formula"),
    "a column that is missing": (
        edit_rows("SELECT * EXCLUDE (added) FROM rows"),
        "4 of 4 rows have no added",
    ),
    "a column of another type": (
        edit_rows("SELECT * REPLACE ('much' AS volume) FROM rows"),
        "volume is 'much', not real",
    ),
    "another formula": (replace(formula="'Ge'"), "record mp-1: reduced_formula is 'Si', not 'Ge'"),
    "no formula": (replace(formula="'?'"), "record mp-1: .* is not a chemical formula"),
    "other elements": (replace(elements="'Si,Ge'"), "record mp-1: elements is 'Si,Ge'"),
    "another volume": (replace(volume="volume * 1.01"), "record mp-1: volume is"),
    "no lattice": (replace(lattice="'[['"), "record mp-1: its structure is damaged"),
    "other species": (
        replace(species="""'["Si"]'"""),
        "record mp-1: its structure is damaged|n_atoms is 2",
    ),
    "part of a structure": (replace(lattice="NULL"), "record mp-1: of n_atoms, volume"),
    "another crystal system": (replace(crystal_system="'cubic'"), "crystal_system is cubic"),
    "no source": (replace(source="NULL"), "record mp-1: it has n_electrons, but no source"),
    "an unknown source": (replace(source="'x'"), "record mp-1: source is 'x'"),
    "a negative error": (replace(latent_nmae="-1.0"), "record mp-1: latent_nmae is -1"),
    "no date": (replace(added="'today'"), "record mp-1: added is 'today'"),
    "another electron error": (
        replace(payload_electron_error="1e-3"),
        "record mp-1: its payload holds 9.0000000.. electrons, not 9.00099",
    ),
    "no magnetization": (replace(magnetization="NULL"), "has a magnetization, otherwise"),
    "another grid in the table": (replace(grid_a="17"), r"is of the grid \(16, 18, 20\), not"),
    "other features": (
        lambda store: change(
            joined(store), "SELECT * REPLACE (m1 + 1 AS m1) FROM rows", "features"
        ),
        "features/000000000.parquet: the features of mp-0 are not those of their hash",
    ),
    "other predictions": (
        lambda store: change(
            joined(store), "SELECT * REPLACE (1e9 AS bulk_modulus) FROM rows", "predictions"
        ),
        "the prediction of mp-0 is not within its interval",
    ),
    "stale features": (
        lambda store: change(
            joined(store), "SELECT * REPLACE (record_row + 9 AS record_row) FROM rows", "features"
        ),
        "note: predictions: 3 rows are predicted from features that are not there",
    ),
    "an unfinished file": (
        lambda store: (store / "materials/.chgdb-1.partial").write_bytes(b""),
        "materials/.chgdb-1.partial: an unfinished file|^$",
    ),
    "an unfinished chunk": (
        lambda store: (store / "latents.zarr/grid/c/.chgdb-1.partial").write_bytes(b"?"),
        "note: latents.zarr/grid/c/.chgdb-1.partial: unfinished",
    ),
    "a chunk beyond": (
        lambda store: (store / "latents.zarr/payload/c/7").write_bytes(b"?"),
        "note: latents.zarr/payload/c/7: unfinished, or beyond the committed rows",
    ),
    "a missing part": (
        lambda store: next((store / "materials").glob("*0-*.parquet")).unlink(),
        "materials: rows 0 to 2 are of no part: a file is missing",
    ),
    "a superseded part": (
        lambda store: (
            shutil.copy(
                next((joined(store) / "materials").glob("*.parquet")),
                store / "materials/000000001-000000002.parquet",
            )
            and None
        ),
        "note: materials/000000001-000000002.parquet: a part that another has taken over",
    ),
    "parts that overlap": (
        lambda store: (
            shutil.copy(
                next((joined(store) / "materials").glob("*.parquet")),
                store / "materials/000000003-000000007.parquet",
            )
            and None
        ),
        "materials/000000003-000000007.parquet: overlaps the part that ends before row 4",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told_in_one_line_that_names_it(store: Path, name: str) -> None:
    damage, pattern = DAMAGES[name]
    damage(store)
    found = told(store)
    assert any(re.search(pattern, text) for text in found), found
    assert not any("\n" in text or str(store) in text for text in found)


@pytest.mark.parametrize("column", ["latent_nmae", "payload_nmae"])
def test_deep_holds_the_stored_errors_against_each_other(store: Path, column: str) -> None:
    change(joined(store), f"SELECT * REPLACE ({column} + 9000 AS {column}) FROM rows")
    assert errors(store) == []
    assert len(errors(store, deep=True)) == 3
    assert all("cannot both be true" in text for text in errors(store, deep=True))


def test_what_is_no_store_is_refused(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(StoreError, match=r"not a chgdb store"):
        verify(tmp_path)
    with pytest.raises(InputError):
        verify(whole, sources=tmp_path)


def test_without_torch_the_encoder_is_only_noted(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "chgdb.codec", None)
    (note,) = told(store, deep=True)
    assert note.startswith("note: chgdb.json: latents are not decoded")


# --- seals ----------------------------------------------------------------------------------


@given(head=st.binary(max_size=50), tail=st.binary(max_size=50), place=st.integers(0, 10**6))
def test_a_seal_tells_of_every_changed_byte(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, tail: bytes, place: int
) -> None:
    path = tmp_path_factory.mktemp("seal") / "file"
    path.write_bytes(head + UNSEALED.encode() + tail)
    seal(path)
    assert seal_holds(path) is True
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)
    assert not seal_holds(path)


def test_a_file_without_a_seal(tmp_path: Path) -> None:
    for content in (b"", b"nothing"):
        (tmp_path / "file").write_bytes(content)
        assert seal_holds(tmp_path / "file") is None
    with pytest.raises(ValueError, match="no place"):
        seal(tmp_path / "file")


# --- the command ----------------------------------------------------------------------------


def test_the_command(run: Run, store: Path) -> None:
    code, out, err = run("verify", "--store", store)
    assert (code, out, err) == (0, "", "0 errors, 0 notes\n")
    (store / "materials/.a.partial").write_bytes(b"")
    code, out, err = run("verify", "--store", store, "--format", "csv")
    assert (code, err) == (0, "0 errors, 1 note\n")
    assert out.startswith("level,where,what,advice\nnote,materials/.a.partial,")
    (store / "atoms-1.npz").write_bytes(b"")
    code, out, err = run("verify", "--store", store, "--format", "json", "--deep")
    assert (code, err) == (1, "1 error, 1 note\n")
    assert {finding["where"] for finding in json.loads(out)} == {
        "materials/.a.partial",
        "atoms-1.npz",
    }
    (store / "chgdb.json").write_text("{", encoding="utf-8")
    code, out, _ = run("verify", "--store", store)
    assert code == 1
    assert "error: chgdb.json: " in out
    assert str(Finding("note", "a", "b\nc", "d")) == "note: a: b c; d"
