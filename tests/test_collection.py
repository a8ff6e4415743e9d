"""Numbered parts: the newest row of a key counts, whatever a crash leaves."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from chgdb import collection
from chgdb.collection import Collection
from chgdb.errors import InputError, StoreError
from chgdb.parquet import all_rows, read
from chgdb.schema import Column

COLUMNS = {
    column.name: column
    for column in (
        Column("id", "text", "", ""),
        Column("model", "text", "", ""),
        Column("value", "real", "GPa", "", nullable=True),
        Column("number", "integer", "", "", nullable=True),
        Column("flag", "boolean", "", "", nullable=True),
        Column("note", "text", "", "", nullable=True),
    )
}


def frame(ids: str, value: float = 0.0, **changes: Any) -> pd.DataFrame:
    """One row for each letter."""
    row = {"model": "m", "value": value, "number": 1, "flag": True, "note": "x", **changes}
    return pd.DataFrame([{"id": id_, **row} for id_ in ids])


def opened(folder: Path) -> Collection:
    return Collection(folder, ("id", "model"), lambda: COLUMNS)


@pytest.fixture
def empty(tmp_path: Path) -> Collection:
    return opened(tmp_path / "features")


def rows(of: Collection, query: str = "SELECT * FROM t ORDER BY id, model") -> list[Any]:
    relations = lambda: {"t": of.relation(COLUMNS.values())}  # noqa: E731
    return read(relations, query, (), all_rows, of.folder)


def values(of: Collection) -> dict[str, float]:
    return dict(rows(of, "SELECT id, value FROM t"))


def names(of: Collection) -> list[str]:
    return sorted(path.name for path in of.folder.iterdir())


# ---------------------------------------------------------------------- values


def test_a_folder_that_is_not_there_holds_nothing(empty: Collection) -> None:
    assert empty.parts == []
    assert rows(empty) == []
    empty.drop("id = ?", ["a"])
    empty.append(frame(""))
    assert not empty.folder.exists()


def test_round_trip_of_every_type_and_null(empty: Collection) -> None:
    table = pd.DataFrame(
        {
            "id": ["a", "b"],
            "model": ["m", "m"],
            "value": [0.1, None],
            "number": pd.array([2**62 + 1, None], dtype="Int64"),
            "flag": [None, False],
            "note": ["Ünï→日本", None],
        }
    )
    empty.append(table)
    first, second = rows(empty)
    assert first == ("a", "m", 0.1, 2**62 + 1, None, "Ünï→日本")
    assert second == ("b", "m", None, None, False, None)
    assert table["value"].isna().tolist() == [False, True], "what was given is as it was"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"value": "high"}, "a value of value is not real"),
        ({"value": math.inf}, "a value of value is not real"),
        ({"number": 1.5}, "a value of number is not integer"),
        ({"note": 7}, "a value of note is not text"),
        ({"flag": "maybe"}, "a value of flag is not boolean"),
        ({"model": None}, "model has no value in row 0"),
        ({"more": 1}, "the table has no column more"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    empty: Collection, changes: dict[str, Any], problem: str
) -> None:
    empty.append(frame("a"))
    with pytest.raises(InputError, match=problem):
        empty.append(frame("b", **changes))
    with pytest.raises(InputError, match="the table lacks the column note"):
        empty.append(frame("b").drop(columns="note"))
    with pytest.raises(InputError, match="b, m is there twice"):
        empty.append(frame("bb"))
    assert values(empty) == {"a": 0.0}
    assert names(empty) == ["000000000.parquet"]


def test_the_newest_row_of_a_key_counts(empty: Collection) -> None:
    empty.append(frame("abc", 1.0))
    empty.append(frame("b", 2.0))
    empty.append(frame("bd", 3.0))
    empty.append(frame("a", 4.0, model="other"))
    assert rows(empty, "SELECT id, model, value FROM t ORDER BY id, model") == [
        ("a", "m", 1.0),
        ("a", "other", 4.0),
        ("b", "m", 3.0),
        ("c", "m", 1.0),
        ("d", "m", 3.0),
    ]


def test_columns_a_part_lacks_or_has_in_addition(empty: Collection) -> None:
    empty.append(frame("a", 1.0))
    path = empty.folder / "000000007.parquet"
    duckdb.sql(f"COPY (SELECT 'b' AS id, 'm' AS model, 6 AS future) TO '{path}' (FORMAT parquet)")
    assert rows(empty, "SELECT id, flag FROM t ORDER BY id") == [("a", True), ("b", None)]
    empty.append(frame("c"))
    assert names(empty)[-1] == "000000008.parquet"


def test_other_files_are_ignored(empty: Collection) -> None:
    empty.append(frame("a"))
    for name in ("notes.txt", "1.parquet", "000000001.parquet.bak", ".x.partial"):
        (empty.folder / name).write_bytes(b"x")
    assert values(empty) == {"a": 0.0}
    empty.append(frame("b"))
    assert "000000001.parquet" in names(empty)
    assert ".x.partial" not in names(empty), "a writer takes away what was never finished"


def test_drop(empty: Collection) -> None:
    empty.append(frame("abc", 1.0))
    empty.append(frame("b", 2.0))
    empty.drop("list_contains(?, id)", [["b", "z"]])
    assert values(empty) == {"a": 1.0, "c": 1.0}, "the superseded row has gone too"
    assert names(empty) == ["000000000.parquet"], "an empty part goes"
    empty.drop("number > ?", [0])
    assert values(empty) == {}


def test_a_null_is_not_dropped(empty: Collection) -> None:
    empty.append(frame("a", number=None))
    empty.drop("number > ?", [0])
    assert values(empty) == {"a": 0.0}


def test_many_parts_are_joined_on_the_way(
    empty: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "_MANY_PARTS", 3)
    for i in range(9):
        empty.append(frame("ab"[i % 2], i))
    assert len(empty.parts) <= 4
    assert values(empty) == {"a": 8.0, "b": 7.0}


def test_what_is_large_is_not_rewritten_for_every_small_part(
    empty: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "_MANY_PARTS", 3)
    sizes = {"000000000.parquet": 1000}
    monkeypatch.setattr(collection, "size_of", lambda path: sizes.get(path.name, 1))
    empty.append(frame("ab", 1.0))
    (large,) = empty.parts
    before = large.read_bytes()
    for i in range(9):
        empty.append(frame("a", 2.0 + i))
    assert empty.parts[0] == large
    assert large.read_bytes() == before
    assert len(empty.parts) <= 4
    assert values(empty) == {"a": 10.0, "b": 1.0}


# ---------------------------------------------------------------------- damage and crashes


@pytest.mark.parametrize("content", [b"", b"PAR1 not Parquet at all PAR1", None])
def test_a_damaged_part_is_named_in_one_line(empty: Collection, content: bytes | None) -> None:
    empty.append(frame("a"))
    empty.append(frame("b"))
    path = empty.parts[0]
    path.write_bytes(path.read_bytes()[:-10] if content is None else content)
    for action in (partial(rows, empty), partial(empty.drop, "id = ?", ["a"]), empty.compact):
        with pytest.raises(StoreError, match=r"000000000\.parquet: damaged") as caught:
            action()
        assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/features"):
        opened(tmp_path / "file" / "features").append(frame("a"))


class CrashError(BaseException):
    """Stands for the end of the process."""


def run_until(action: Callable[[], None], steps: int) -> bool:
    """Run an action that ends at the rename or removal after some; whether it did."""
    done = 0

    def limited(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Path, *args: Any, **keywords: Any) -> Any:
            nonlocal done
            if done == steps:
                raise CrashError
            done += 1
            return step(self, *args, **keywords)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", limited(Path.replace))
        patch.setattr(Path, "unlink", limited(Path.unlink))
        try:
            action()
        except CrashError:
            return True
    return False


@pytest.fixture
def copy(empty: Collection, tmp_path: Path) -> Callable[[], Collection]:
    """Makes copies of a table of three parts."""
    for letters, value in (("abc", 1.0), ("bd", 2.0), ("be", 3.0)):
        empty.append(frame(letters, value))
    numbers = itertools.count()
    return lambda: opened(shutil.copytree(str(empty.folder), tmp_path / f"copy{next(numbers)}"))


BEFORE = {"a": 1.0, "b": 3.0, "c": 1.0, "d": 2.0, "e": 3.0}


def test_crash_during_append(copy: Callable[[], Collection]) -> None:
    some = copy()
    assert run_until(partial(some.append, frame("ax", 9.0)), 0)
    assert [name for name in names(some) if name.endswith(".partial")]
    assert values(some) == BEFORE
    some.append(frame("y", 9.0))
    assert values(some) == {**BEFORE, "y": 9.0}
    assert all(name.endswith(".parquet") for name in names(some))


def test_crash_anywhere_in_a_removal_brings_nothing_back(copy: Callable[[], Collection]) -> None:
    ends = set()
    for steps in itertools.count():
        some = copy()
        crashed = run_until(partial(some.drop, "list_contains(?, id)", [["b", "e"]]), steps)
        left = values(some)
        assert {key: left[key] for key in "acd"} == {"a": 1.0, "c": 1.0, "d": 2.0}
        assert left.get("b") in (3.0, None), "not a value that was superseded"
        ends.add("b" in left)
        some.drop("list_contains(?, id)", [["b", "e"]])
        assert values(some) == {"a": 1.0, "c": 1.0, "d": 2.0}
        if not crashed:
            break
    assert ends == {True, False}


def test_crash_anywhere_in_a_compaction(copy: Callable[[], Collection]) -> None:
    for steps in itertools.count():
        some = copy()
        crashed = run_until(some.compact, steps)
        assert values(some) == BEFORE
        some.append(frame("b", 9.0))
        assert values(some) == {**BEFORE, "b": 9.0}
        if not crashed:
            break
    assert steps == 4
    assert names(some) == ["000000003.parquet", "000000004.parquet"]
