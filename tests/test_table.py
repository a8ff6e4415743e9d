"""The table: types and nulls, queries, appends, replacement and removal, crashes in between."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chgdb import parquet, table
from chgdb.errors import (
    DuplicateIdError,
    InputError,
    QueryError,
    StoreError,
    UnknownIdError,
)
from chgdb.schema import COLUMNS, PROPERTIES, Column
from chgdb.table import Table

ROOT = Path(__file__).parent.parent


def record(i: int, **changes: Any) -> dict[str, Any]:
    """A complete record without properties."""
    samples = {"text": f"text {i}", "integer": i, "real": i / 7, "boolean": i % 2 == 0}
    row = {c.name: samples[c.type] for c in COLUMNS.values() if c not in PROPERTIES}
    del row["row"]
    return {**row, "id": f"mp-{i}", **changes}


def records(start: int, n: int, **changes: Any) -> list[dict[str, Any]]:
    return [record(i, **changes) for i in range(start, start + n)]


@pytest.fixture
def empty(tmp_path: Path) -> Table:
    return Table.create(tmp_path / "store" / "materials")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of 3, 2 and 1 records, to be copied."""
    made = Table.create(tmp_path_factory.mktemp("template") / "materials")
    for start, n in ((0, 3), (3, 2), (5, 1)):
        made.append(records(start, n), start)
    return Path(str(made.folder))


@pytest.fixture
def copy(template: Path, tmp_path: Path) -> Callable[[], Table]:
    """Makes as many copies of the template as a test needs."""
    numbers = itertools.count()
    return lambda: Table(shutil.copytree(template, tmp_path / f"store{next(numbers)}/materials"))


@pytest.fixture
def filled(copy: Callable[[], Table]) -> Table:
    """A table with parts of 3, 2 and 1 records."""
    return copy()


def names(of: Table) -> list[str]:
    return sorted(path.name for path in of.folder.iterdir())


# ---------------------------------------------------------------------- values

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": st.text(max_size=8),
    "integer": st.integers(-(2**63), 2**63 - 1),
    "real": st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.booleans(),
}


def value(column: Column) -> st.SearchStrategy[Any]:
    values = VALUES[column.type]
    return st.none() | values if column.nullable else values


ROWS = st.lists(
    st.fixed_dictionaries(
        {c.name: value(c) for c in COLUMNS.values() if c.name not in ("id", "row")}
    ),
    max_size=4,
)


@given(ROWS)
@settings(max_examples=8, deadline=None)
def test_round_trip_of_every_type(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    """Text, whole numbers, every bit of reals, booleans and nulls come back as they were."""
    some = Table.create(tmp_path_factory.mktemp("table") / "materials")
    given_rows = [{"id": f"m{i}", **row} for i, row in enumerate(rows)]
    some.append(given_rows, 0)
    assert some.select().rows() == [{**row, "row": i} for i, row in enumerate(given_rows)]


def test_any_reader_gets_plain_types(filled: Table) -> None:
    """pandas and DuckDB alone read text as text, and absent values as null."""
    filled.append([record(6, formula="Ünï→日本", is_metal=True, band_gap=1.5)], 6)
    frame = pd.read_parquet(str(filled.parts[-1]))
    assert list(frame.columns) == list(COLUMNS)
    assert frame.formula.tolist() == ["Ünï→日本"]
    assert frame.is_metal.tolist() == [True]
    with duckdb.connect() as connection:
        parts = f"'{filled.folder}/*.parquet'"
        types = connection.execute(f"SELECT typeof(COLUMNS(*)) FROM {parts} LIMIT 1").fetchall()
        assert types == [tuple(filled.columns.values())]
        found = connection.execute(f"SELECT formula FROM {parts} WHERE band_gap = 1.5")
        assert found.fetchall() == [("Ünï→日本",)]


@pytest.mark.parametrize("absent", [None, math.nan, pd.NA, "missing"])
def test_absent_values_are_null(empty: Table, absent: Any) -> None:
    row = record(0, bulk_modulus=absent)
    if isinstance(absent, str):
        del row["bulk_modulus"]
    empty.append([row, record(1, bulk_modulus=2.0)], 0)
    assert [row["bulk_modulus"] for row in empty.select()] == [None, 2.0]
    assert empty.select("bulk_modulus IS NULL", columns=["id"]).values == [("mp-0",)]


@pytest.mark.parametrize(
    "changes",
    [
        {"formula": None},
        {"volume": math.inf},
        {"volume": "1.0"},
        {"n_atoms": 1.5},
        {"formula": 3},
        {"formula": "\ud800"},
        {"latent_coarse": "yes"},
        {"is_metal": 2},
        {"nonsense": 1},
        {"id": "../x"},
        {"id": None},
    ],
)
def test_bad_values_are_named_and_nothing_is_written(empty: Table, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        empty.append([record(0), record(1, **changes)], 0)
    assert "\n" not in str(caught.value)
    if "id" not in changes:
        assert "mp-1" in str(caught.value)
        assert next(iter(changes)) in str(caught.value)
    assert names(empty) == []


# ---------------------------------------------------------------------- reading


def test_empty_table(empty: Table) -> None:
    assert empty.select().rows() == []
    assert empty.select().columns == tuple(COLUMNS)
    assert list(empty.select(columns=["id", "volume"]).frame.columns) == ["id", "volume"]
    assert empty.select("volume > ?", [1.0]).rows() == []
    assert (empty.count(), empty.ids(), empty.parts, empty.next_row) == (0, [], [], 0)
    assert list(empty.columns) == list(COLUMNS)


def test_select(filled: Table) -> None:
    assert filled.ids() == [f"mp-{i}" for i in range(6)]
    assert filled.count() == 6
    assert filled.next_row == 6
    found = filled.select("volume > ? AND latent_coarse", [0.2], columns=["id", "volume"])
    assert found.rows() == [{"id": "mp-2", "volume": 2 / 7}, {"id": "mp-4", "volume": 4 / 7}]
    last = filled.select(columns=["id"], order_by="volume", descending=True, limit=2)
    assert last.values == [("mp-5",), ("mp-4",)]
    assert len(filled.select(limit=0)) == 0


def test_nulls_sort_last_and_ties_by_row(empty: Table) -> None:
    gaps = [None, 1.0, 0.0, 1.0]
    empty.append([record(i, band_gap=gap) for i, gap in enumerate(gaps)], 0)
    up = empty.select(columns=["row"], order_by="band_gap").values
    down = empty.select(columns=["row"], order_by="band_gap", descending=True).values
    assert up == [(2,), (1,), (3,), (0,)]
    assert down == [(1,), (3,), (2,), (0,)]


def test_frame_types_do_not_depend_on_the_values(filled: Table) -> None:
    full, none = filled.select().frame, filled.select("false").frame
    assert full.dtypes.equals(none.dtypes)
    dtypes = {name: str(full[name].dtype) for name in ("id", "row", "volume", "is_metal")}
    assert dtypes == {"id": "str", "row": "Int64", "volume": "float64", "is_metal": "boolean"}
    assert full.bulk_modulus.isna().all()


def test_get(filled: Table) -> None:
    assert [row["id"] for row in filled.get(["mp-4", "mp-0"])] == ["mp-4", "mp-0"]
    assert filled.get([]) == []
    with pytest.raises(UnknownIdError, match="no record 'mp-9, Ω'"):
        filled.get(["mp-1", "mp-9", "Ω"])


def test_unknown_columns_are_named(filled: Table) -> None:
    with pytest.raises(QueryError, match="unknown column: nope"):
        filled.select(columns=["id", "nope"])
    with pytest.raises(QueryError, match="unknown column: nope"):
        filled.select(order_by="nope")


@pytest.mark.parametrize(
    "where",
    [
        "nope = 1",
        "formula > 1 AND volume = 'x'",
        "volume >",
        "true) ; SELECT (1",
        "true); COPY (SELECT 1) TO '{folder}/out.csv'; SELECT (1",
    ],
)
def test_conditions_that_cannot_be_evaluated(filled: Table, where: str) -> None:
    before = names(filled)
    with pytest.raises(QueryError) as caught:
        filled.select(where.format(folder=filled.folder))
    assert "\n" not in str(caught.value)
    assert names(filled) == before


@pytest.mark.parametrize(
    "source",
    ["read_text('{secret}')", "read_csv('{secret}')", "'{secret}'", "glob('{folder}/*')", "frame"],
)
def test_no_condition_reaches_other_files(filled: Table, tmp_path: Path, source: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    frame = pd.DataFrame({"a": [1]})
    assert len(frame) == 1
    text = source.format(secret=secret, folder=filled.folder)
    with pytest.raises((QueryError, StoreError)):
        filled.select(f"EXISTS (SELECT * FROM {text})")


def test_folders_with_odd_names(tmp_path: Path) -> None:
    for name in ("it's", "ü ñ", "a[1]", "a{1,2}", "%20", '"'):
        some = Table.create(tmp_path / name / "materials")
        some.append(records(0, 1), 0)
        assert some.ids() == ["mp-0"]


def test_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    some = Table.create("materials")
    some.append(records(0, 1), 0)
    assert Table("materials").ids() == ["mp-0"]


def test_foreign_files_are_ignored(filled: Table) -> None:
    for name in ("notes.txt", "1-2.parquet", "000000000-000000009.parquet.bak", ".x.partial"):
        (filled.folder / name).write_bytes(b"x")
    assert filled.count() == 6
    assert filled.next_row == 6


def test_columns_a_part_lacks_or_has_in_addition(filled: Table) -> None:
    """Readers take an absent column for null and ignore one they do not know."""
    path = filled.folder / "000000006-000000007.parquet"
    duckdb.sql(f"COPY (SELECT 'new' AS id, 6 AS row, 1 AS future) TO '{path}' (FORMAT parquet)")
    (row,) = filled.get(["new"])
    assert list(row) == list(COLUMNS)
    assert row["volume"] is None


def test_search_imports_little() -> None:
    code = (
        "import sys, tempfile, chgdb.table as t\n"
        "t.Table(tempfile.mkdtemp()).select()\n"
        "heavy = ('pandas', 'zarr', 'xarray', 'fastparquet', 'ase', 'torch')\n"
        "sys.exit(','.join(m for m in heavy if m in sys.modules) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------- writing


def test_part_names_and_rows(filled: Table) -> None:
    assert names(filled) == [
        "000000000-000000003.parquet",
        "000000003-000000005.parquet",
        "000000005-000000006.parquet",
    ]
    assert [row["row"] for row in filled.select()] == list(range(6))
    filled.append([], 6)
    filled.append(records(6, 1), 9)
    assert (filled.count(), filled.next_row) == (7, 10)
    assert filled.get(["mp-6"])[0]["row"] == 9


def test_rows_are_never_used_twice(filled: Table) -> None:
    filled.remove(["mp-5"])
    assert filled.next_row == 6
    assert names(filled)[-1] == "000000005-000000006.parquet"
    with pytest.raises(StoreError, match="row 5 has been used before"):
        filled.append(records(5, 1), 5)


def test_duplicates_are_refused(filled: Table) -> None:
    with pytest.raises(DuplicateIdError, match=r"mp-2 is in .*store0 already"):
        filled.append([record(7), record(2)], 6)
    with pytest.raises(DuplicateIdError, match="mp-7 is there twice"):
        filled.append([record(7), record(7)], 6, replaces=True)
    assert filled.next_row == 6


def test_remove(filled: Table) -> None:
    filled.remove(["mp-1", "mp-3", "mp-4"])
    assert filled.ids() == ["mp-0", "mp-2", "mp-5"]
    assert filled.select().rows() == [record(i, row=i) | nulls() for i in (0, 2, 5)]
    filled.append(records(1, 1), 6)
    assert filled.ids() == ["mp-0", "mp-2", "mp-5", "mp-1"]


def nulls() -> dict[str, None]:
    return {c.name: None for c in PROPERTIES}


def test_remove_of_an_unknown_id_removes_nothing(filled: Table) -> None:
    with pytest.raises(UnknownIdError, match="mp-9"):
        filled.remove(["mp-1", "mp-9"])
    assert filled.count() == 6


def test_replace(filled: Table) -> None:
    filled.append([record(1, formula="new"), record(9)], 6, replaces=True)
    assert filled.ids() == ["mp-0", "mp-2", "mp-3", "mp-4", "mp-5", "mp-1", "mp-9"]
    assert filled.get(["mp-1"])[0]["formula"] == "new"
    assert not [name for name in names(filled) if "replaces" in name]


def test_update_sets_columns_and_nothing_else(filled: Table) -> None:
    before = {row["id"]: row for row in filled.select()}
    filled.update({"mp-1": {"bulk_modulus": 3.0, "split": "val"}, "mp-4": {"split": None}})
    filled.update({"mp-4": {"is_metal": True}, "unknown": {"is_metal": True}})
    after = {row["id"]: row for row in filled.select()}
    before["mp-1"] |= {"bulk_modulus": 3.0, "split": "val"}
    before["mp-4"] |= {"is_metal": True}
    assert after == before
    assert [name for name in names(filled) if not name.endswith(".parquet")] == []


@pytest.mark.parametrize("changes", [{"bulk_modulus": "hard"}, {"nonsense": 1}])
def test_update_refuses_what_is_no_value(filled: Table, changes: dict[str, Any]) -> None:
    before = filled.select().values
    with pytest.raises(InputError, match=next(iter(changes))):
        filled.update({"mp-1": changes})
    assert filled.select().values == before


def test_parts_are_joined_in_tiers(empty: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many records are added one by one, there are few parts, and each id is found."""
    monkeypatch.setattr(table, "_MANY_PARTS", 2)
    monkeypatch.setattr(table, "_TIERS", (4, 16, 64))
    for i in range(70):
        empty.append([record(i)], i)
        assert len(empty.parts) <= 2 * 3 + 2
    assert empty.ids() == [f"mp-{i}" for i in range(70)]
    assert [row["row"] for row in empty.get(["mp-69", "mp-0", "mp-33"])] == [69, 0, 33]
    assert max(int(name[10:19]) - int(name[:9]) for name in names(empty)) > 16


def test_no_join_hides_that_a_part_is_missing(
    empty: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_MANY_PARTS", 3)
    empty.append(records(0, 1), 0)
    empty.append(records(1, 2), 1)
    lost = empty.parts[1]
    content = lost.read_bytes()
    lost.unlink()
    for i in range(3, 12):
        empty.append(records(i, 1), i)
    empty.compact()
    assert empty.gaps() == [(1, 3)]
    lost.write_bytes(content)
    assert empty.ids() == [f"mp-{i}" for i in range(12)]


def test_summary_and_near(filled: Table) -> None:
    assert filled.summary({"n": "count(*)", "most": "max(volume)"}) == {"n": 6, "most": 5 / 7}
    assert filled.near("mp-3", 2) == ["mp-3", "mp-0"]


def test_compaction_changes_no_record(filled: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.remove(["mp-2", "mp-5"])
    before = filled.select().values
    monkeypatch.setattr(table, "_TIERS", (5,))
    filled.compact()
    assert filled.select().values == before
    assert names(filled) == ["000000000-000000005.parquet", "000000005-000000006.parquet"]
    assert filled.next_row == 6


def test_many_small_parts_are_joined_on_the_way(
    empty: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_MANY_PARTS", 3)
    for i in range(9):
        empty.append(records(i, 1), i)
    assert len(empty.parts) <= 4
    assert empty.ids() == [f"mp-{i}" for i in range(9)]


# ---------------------------------------------------------------------- damage and crashes


@pytest.mark.parametrize("content", [b"", b"PAR1 not Parquet at all PAR1", None])
def test_damaged_part_is_named(filled: Table, content: bytes | None) -> None:
    path = filled.parts[1]
    path.write_bytes(path.read_bytes()[:-10] if content is None else content)
    for read in (filled.count, filled.ids, filled.select):
        with pytest.raises(StoreError, match=r"000000003-000000005\.parquet: damaged") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is missing"):
        Table(tmp_path / "materials").count()


class CrashError(BaseException):
    """Stands for the end of the process."""


def crash(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The process ends at the rename or removal of a file that follows `steps` others."""
    done = 0

    def limited(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Path, *args: Any, **keywords: Any) -> Any:
            nonlocal done
            if done == steps:
                raise CrashError
            done += 1
            return step(self, *args, **keywords)

        return run

    monkeypatch.setattr(Path, "replace", limited(Path.replace))
    monkeypatch.setattr(Path, "unlink", limited(Path.unlink))


def run_until(action: Callable[[], None], steps: int) -> bool:
    """Run an action that may crash after some steps; whether it did."""
    with pytest.MonkeyPatch.context() as patch:
        crash(patch, steps)
        try:
            action()
        except CrashError:
            return True
    return False


def test_crash_during_append(filled: Table) -> None:
    assert run_until(lambda: filled.append(records(6, 2), 6), 0)
    assert [name for name in names(filled) if name.endswith(".partial")]
    assert filled.ids() == [f"mp-{i}" for i in range(6)]
    filled.append(records(6, 1), 6)
    assert filled.ids() == [f"mp-{i}" for i in range(7)]
    assert all(name.endswith(".parquet") for name in names(filled))


def test_crash_anywhere_in_a_replacement(copy: Callable[[], Table]) -> None:
    """Each id is found once at every step: the old record before, the new one after."""
    new = [record(i, formula="new") for i in (1, 3, 8)]
    seen, crashed = set(), True
    for steps in itertools.count():
        some = copy()
        crashed = run_until(partial(some.append, new, 6, replaces=True), steps)
        marked = "000000006-000000009.replaces.parquet" in names(some)
        happened = some.next_row == 9
        seen.add((happened, marked))
        expected = {f"mp-{i}": f"text {i}" for i in range(6)}
        if happened:
            expected |= {"mp-1": "new", "mp-3": "new", "mp-8": "new"}
        assert {row["id"]: row["formula"] for row in some.select()} == expected
        assert some.count() == len(expected)
        old = some.select("id = 'mp-1' AND formula <> 'new'", columns=["id"]).values
        assert old == ([] if happened else [("mp-1",)])
        some.recover()
        assert {row["id"]: row["formula"] for row in some.select()} == expected
        assert not [name for name in names(some) if "replaces" in name or "partial" in name]
        assert len(pd.concat(pd.read_parquet(str(part)) for part in some.parts)) == len(expected)
        if not crashed:
            break
    assert seen == {(False, False), (True, True), (True, False)}


def test_next_writer_finishes_a_replacement(filled: Table) -> None:
    assert run_until(partial(filled.append, [record(1)], 6, replaces=True), 1)
    assert "replaces" in names(filled)[-1]
    filled.append(records(7, 1), 7)
    assert names(filled)[-2:] == ["000000006-000000007.parquet", "000000007-000000008.parquet"]
    assert filled.get(["mp-1"])[0]["row"] == 6


def test_crash_anywhere_in_a_removal(copy: Callable[[], Table]) -> None:
    for steps in range(3):
        some = copy()
        assert run_until(partial(some.remove, ["mp-1", "mp-4"]), steps) is (steps < 2)
        left = set(some.ids())
        assert {"mp-0", "mp-2", "mp-3", "mp-5"} <= left
        some.recover()
        assert set(some.ids()) == left
    assert left == {"mp-0", "mp-2", "mp-3", "mp-5"}


def test_crash_anywhere_in_a_compaction(copy: Callable[[], Table]) -> None:
    for steps in range(5):
        some = copy()
        before = some.select().values
        assert run_until(some.compact, steps) is (steps < 4)
        assert some.select().values == before
        some.recover()
        assert some.select().values == before
        assert len(names(some)) == (3 if steps == 0 else 1)


def test_reader_repeats_a_query_that_a_writer_crossed(
    filled: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replacement between the listing and the reading of the parts goes unnoticed."""
    run = parquet.run
    writer = Table(filled.folder)

    def crossed(*args: Any) -> Any:
        monkeypatch.setattr(parquet, "run", run)
        writer.append([record(1, formula="new")], 6, replaces=True)
        return run(*args)

    monkeypatch.setattr(parquet, "run", crossed)
    assert sorted(filled.ids()) == [f"mp-{i}" for i in range(6)]
    assert parquet.run is run
