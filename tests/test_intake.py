"""Reading files for the store, in one process or several, and tables of properties."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeFile

from chgdb import archive, intake
from chgdb.archive import Payload, Tolerance
from chgdb.density import ChargeDensity
from chgdb.errors import ChgdbError, InputError
from chgdb.formats import file_sha256, read_density
from chgdb.intake import Intake, Known, read_properties, take_in, take_in_all


def test_what_is_known_of_a_file(make_file: MakeFile) -> None:
    path = make_file("mp-1.CHGCAR.gz", species=("Si",), spin=1)
    result = take_in(path)
    assert isinstance(result, Intake)
    assert (result.id, result.path, result.format) == ("mp-1", path, "chgcar")
    assert result.sha256 == file_sha256(path)
    assert result.density.structure.species == ("Si",)
    assert result.symmetry is not None
    assert result.symmetry.number == 2


@pytest.mark.parametrize("processes", [1, 2])
def test_payloads_are_made_where_files_are_read(make_file: MakeFile, processes: int) -> None:
    paths = [make_file(f"mp-{i}.npz", electrons=8.0 + i, spin=i % 2) for i in range(3)]
    encode = partial(archive.encode, tolerance=Tolerance(0.5))
    results = [result for _, result in take_in_all(paths, encode=encode, processes=processes)]
    for result in results:
        assert isinstance(result, Intake)
        assert result.payload is not None
        assert result.payload.data == encode(result.density).data
        assert (result.payload.magnetization_nmae is None) == (result.density.magnetization is None)


def test_a_density_that_cannot_be_encoded_is_named(make_file: MakeFile) -> None:
    def refuse(density: ChargeDensity) -> Payload:
        raise InputError("the reference density is zero everywhere")

    path = make_file("mp-1.npz")
    with pytest.raises(InputError, match=r"mp-1\.npz: cannot be encoded: the reference density"):
        take_in(path, encode=refuse)


@pytest.mark.parametrize("ids", [None, ["mp-149"]])
def test_a_file_that_is_stored_is_not_parsed(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, ids: list[str] | None
) -> None:
    path = make_file("mp-1.npz")
    monkeypatch.setattr(intake, "read_density", None)
    known = {file_sha256(path): "mp-149"}
    assert list(take_in_all([path], ids=ids, known=lambda _: known)) == [
        (path, Known("mp-149", path))
    ]


def test_a_file_that_is_stored_under_another_id_is_parsed(make_file: MakeFile) -> None:
    path = make_file("mp-1.npz")
    known = {file_sha256(path): "mp-149"}
    ((_, result),) = take_in_all([path], ids=["mine"], known=lambda _: known)
    assert isinstance(result, Intake)
    assert result.id == "mine"


def test_the_store_is_asked_about_many_files_at_once(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_LOOKED_UP", 2)
    paths = [make_file(f"mp-{i}.npz", electrons=8.0 + i) for i in range(3)]
    asked: list[list[str]] = []

    def known(hashes: Sequence[str]) -> dict[str, str]:
        asked.append(list(hashes))
        return {}

    assert [path for path, _ in take_in_all(paths, known=known)] == paths
    assert asked == [[file_sha256(path) for path in paths[:2]], [file_sha256(paths[2])]]


@pytest.mark.parametrize("processes", [1, 2])
def test_files_come_in_order_and_bad_ones_as_errors(
    make_file: MakeFile, tmp_path: Path, processes: int
) -> None:
    paths = [make_file(f"mp-{i}.npz", electrons=8.0 + i) for i in range(4)]
    paths.insert(2, tmp_path / "absent.npz")
    paths[4].write_bytes(b"")
    known = {file_sha256(paths[0]): "stored"}
    results = list(take_in_all(paths, known=lambda _: known, processes=processes))
    assert [path for path, _ in results] == paths
    kinds = [type(result) for _, result in results]
    assert kinds == [Known, Intake, InputError, Intake, InputError]
    for path, result in results:
        if isinstance(result, ChgdbError):
            assert str(path) in str(result)
    single = take_in(paths[1])
    several = results[1][1]
    assert isinstance(single, Intake)
    assert isinstance(several, Intake)
    np.testing.assert_array_equal(single.density.values, several.density.values)


def test_ids_follow_their_files(make_file: MakeFile) -> None:
    paths = [make_file(f"mp-{i}.npz", electrons=8.0 + i) for i in range(3)]
    results = [result for _, result in take_in_all(paths, ids=["x", "y", "z"])]
    assert [result.id for result in results if isinstance(result, Intake)] == ["x", "y", "z"]


def test_a_defect_met_by_one_file_stops_no_other(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:

    def defective(path: Path, **options: object) -> object:
        if path.name == "mp-1.npz":
            raise ZeroDivisionError("oh\nno")
        if path.name == "mp-2.npz":
            raise MemoryError
        return read_density(path)

    monkeypatch.setattr(intake, "read_density", defective)
    paths = [make_file(f"mp-{i}.npz") for i in range(4)]
    results = [result for _, result in take_in_all(paths)]
    assert [type(result) for result in results] == [Intake, InputError, InputError, Intake]
    assert str(results[1]) == f"{paths[1]}: unexpected ZeroDivisionError: oh no"
    assert str(results[2]) == f"{paths[2]}: not enough memory for it"


def test_a_process_that_is_killed_is_one_clear_error(make_file: MakeFile, tmp_path: Path) -> None:
    bomb = _Bomb(make_file("mp-0.npz"))
    paths: list[Path] = [bomb, *(make_file(f"mp-{i}.npz") for i in range(1, 5))]
    with pytest.raises(InputError, match="was killed, perhaps for lack of memory"):
        list(take_in_all(paths, processes=2))


class _Bomb(type(Path())):  # type: ignore[misc]
    """A path that ends the process that receives it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (1,)


def test_processes_are_used_where_they_pay(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    path = make_file("mp-1.npz")
    assert intake.worthwhile_processes([path] * 100, encoding=False) == 1
    assert intake.worthwhile_processes([path] * 2000, encoding=False) == 6
    assert intake.worthwhile_processes([path] * 500, encoding=False) == 1
    assert intake.worthwhile_processes([path] * 500, encoding=True) == 6
    monkeypatch.setattr(intake, "_size", lambda _: 2**27)
    assert intake.worthwhile_processes([path] * 3, encoding=False) == 6


def test_few_large_files_are_read_ahead(
    make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_BYTES_AHEAD", 1)
    paths = [make_file(f"mp-{i}.npz", electrons=8.0 + i) for i in range(3)]
    results = [result for _, result in take_in_all(paths, processes=2)]
    assert [result.id for result in results if isinstance(result, Intake)] == [
        "mp-0",
        "mp-1",
        "mp-2",
    ]


# --- tables of properties -------------------------------------------------------------------


def table(tmp_path: Path, text: str, name: str = "table.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_a_table_of_properties(tmp_path: Path, name: str) -> None:
    text = (
        "\ufeffmaterial_id,formula,split,bulk_modulus,is_metal\r\n"
        "mp-1,TiO2,train,1.5e2,0.0\r\n"
        "mp-2,Si,, nan ,TRUE\r\n"
    )
    assert read_properties(table(tmp_path, text, name)) == {
        "mp-1": {"split": "train", "bulk_modulus": 150.0, "is_metal": False},
        "mp-2": {"is_metal": True},
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "needs a column material_id"),
        ("formula,band_gap\nSi,1\n", "needs a column material_id"),
        ("id,bandgap\na,1\n", "unknown property 'bandgap'; did you mean band_gap?"),
        ("id,xyzzy\na,1\n", "unknown property 'xyzzy'; docs/format.md"),
        ("id,band_gap\na,one\n", "line 2: band_gap is 'one', not a finite number"),
        ("id,band_gap\na,1\nb,inf\n", "line 3: band_gap is 'inf', not a finite number"),
        ("id,is_metal\na,2\n", "line 2: is_metal is '2', neither true nor false"),
        ("id,band_gap\na,1,2\n", "line 2: another number of columns"),
        ("id,band_gap,C11\na,1\n", "line 2: another number of columns"),
        ("id,band_gap\na,1\na,2\n", "line 3: a is there twice"),
        ("id,band_gap\n../a,1\n", "line 2: .* cannot be a material id"),
        ("id,band_gap\n,1\n", "line 2: .* cannot be a material id"),
    ],
)
def test_broken_tables_name_the_line(tmp_path: Path, text: str, problem: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(InputError, match=problem) as caught:
        read_properties(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"id,split\na,\xff\n"),
        ("a.csv.gz", b"\x1f\x8b not gzip"),
        ("a.csv.gz", gzip.compress(b"id,split\na,train\n")[:20]),
        ("a.csv", b"id,split\na," + b"x" * 200_000 + b"\n"),
    ],
    ids=["bytes", "no gzip", "cut", "long"],
)
def test_unreadable_tables(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    problem = "not a readable table of properties|cannot be read"
    with pytest.raises(InputError, match=problem) as caught:
        read_properties(path)
    assert "\n" not in str(caught.value)


def test_tables_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.csv"):
        with pytest.raises(InputError, match="cannot be read"):
            read_properties(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a device of Linux")
def test_a_table_without_an_end_takes_no_memory() -> None:
    with pytest.raises(InputError, match="not a regular file"):
        read_properties("/dev/zero")


def test_a_table_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chgdb.intake.LARGEST_TABLE", 1000)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"id,split\n" + b"\n" * 1000))
    with pytest.raises(InputError, match="holds more than 1000 bytes"):
        read_properties(path)


def test_the_table_of_the_paper(shared: Path) -> None:
    properties = read_properties(shared / "data" / "properties_6059.csv.gz")
    assert len(properties) == 6059
    assert properties["mp-149"]["bulk_modulus"] == pytest.approx(88.9, rel=0.1)
