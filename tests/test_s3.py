"""A store in a bucket does what a store in a folder does, and asks for little."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import ROOT, MakeFile, Run, add_in_two_processes
from s3_server import Request, Server

from chgdb import lock, ranges
from chgdb.arrays import LatentArrays
from chgdb.database import Database
from chgdb.errors import MissingExtraError, StoreError, UnknownIdError
from chgdb.files import place
from chgdb.places import Place, RemotePath
from chgdb.schema import ARRAYS_FOLDER, ENCODER_FOLDER, TABLE_FOLDER
from chgdb.table import Table


@pytest.fixture
def local(store: Path) -> Database:
    """The store of five records in a folder."""
    return Database(store)


@pytest.fixture
def remote(local: Database, bucket: str, s3: Server) -> Database:
    """A copy of it in a bucket."""
    copy = local.copy(bucket)
    ranges._cache = ranges._Cache()
    s3.clear()
    return copy


def forgetful(url: str | Place) -> Database:
    """A store opened by another process, which has read nothing of it yet."""
    ranges._cache = ranges._Cache()
    return Database(url)


# --- the same as a folder -------------------------------------------------------------------


def test_reading(local: Database, remote: Database) -> None:
    assert str(remote.place).startswith("s3://")
    assert remote.info == local.info
    assert list(remote) == list(local)
    assert remote.select().values == local.select().values
    asked = {"where": "bulk_modulus > 50", "columns": "id,bulk_modulus", "sort": "bulk_modulus"}
    assert remote.select(**asked).values == local.select(**asked).values  # type: ignore[arg-type]
    for mine, theirs in zip(remote.get(list(remote)), local.get(list(local)), strict=True):
        assert mine.payload() == theirs.payload()
        np.testing.assert_array_equal(mine.latent().values, theirs.latent().values)
        np.testing.assert_array_equal(mine.density().values, theirs.density().values)
    summary = remote.summary()
    assert summary["records"] == 5
    assert summary["size on disk (MB)"] > 0.1
    with pytest.raises(UnknownIdError, match="nearest: mp-1"):
        remote["mp-11"]
    with pytest.raises(StoreError, match="is not a folder"):
        remote.path  # noqa: B018 (it raises)


def test_a_store_that_is_made_in_a_bucket(
    models: Path, bucket: str, make_file: MakeFile, s3: Server
) -> None:
    database = Database.create(bucket, encoder="tiny-16", attribution="made for tests")
    assert len(database) == 0
    puts = [request.key for request in s3.requests if request.method == "PUT"]
    assert puts[-1].endswith("chgdb.json"), "what makes it a store is put last"
    report = database.add([make_file("mp-1.npz"), make_file("mp-2.npz", species=("Si",))])
    assert [row["id"] for row in report.added] == ["mp-1", "mp-2"]
    assert not report.failed
    again = forgetful(bucket)
    assert list(again) == ["mp-1", "mp-2"]
    assert again["mp-2"].density().n_electrons == pytest.approx(16.0)
    assert len(again.add(make_file("mp-1.npz")).skipped) == 1
    with pytest.raises(StoreError, match="exists and is not empty"):
        Database.create(bucket, encoder="tiny-16")


def test_replacing_and_removing(remote: Database, make_file: MakeFile) -> None:
    report = remote.add(make_file("mp-2.npz", species=("Ge",)), on_conflict="replace")
    assert len(report.added) == 1
    found = forgetful(remote.place)
    assert found["mp-2"].row["formula"] == "Ge"
    assert found["mp-2"].density().structure.species == ("Ge",)
    assert not [path for path in remote.place.walk() if "replaces" in path.name]  # type: ignore[union-attr]
    gone = found["mp-4"]
    assert gone.payload()
    found.remove(["mp-4", "mp-1"])
    assert sorted(forgetful(remote.place)) == ["mp-2", "mp-3", "mp-5"]
    with pytest.raises(StoreError, match="holds nothing"):
        gone.payload()


def test_features_and_predictions(remote: Database, make_file: MakeFile) -> None:
    pytest.importorskip("lightgbm")
    report = remote.predict_all()
    assert (report.features, report.predicted, report.failed) == (5, 5, [])
    again = forgetful(remote.place)
    assert again.predict_all().current == 5
    assert again["mp-1"].predicted["model"]
    assert len(again.select(where="predicted_bulk_modulus > 0", columns="id")) == 5
    assert len(again.nearest("mp-1", 3)) == 3
    assert again.predict("mp-2")["features_from"].tolist() == ["density"]
    remote.add(make_file("mp-1.npz", species=("Ge",)), on_conflict="replace")
    assert forgetful(remote.place)["mp-1"].predicted == {}


def test_copies_from_and_to_a_bucket(
    local: Database, remote: Database, bucket: str, tmp_path: Path
) -> None:
    back = remote.copy(tmp_path / "back")
    assert back.select().values == local.select().values
    assert remote.export(f"{bucket}-some", elements="Ti") == 2
    some = Database(f"{bucket}-some")
    assert list(some) == ["mp-1", "mp-5"]
    assert some["mp-5"].payload() == local["mp-5"].payload()
    assert remote.export(tmp_path / "table.csv") == 5


def test_a_copy_that_fails_makes_no_store(
    local: Database, bucket: str, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.before = fail_at("PUT", "materials/")
    with pytest.raises(StoreError, match="cannot make a store here"):
        local.copy(bucket)
    with pytest.raises(StoreError, match="not a chgdb store"):
        Database(bucket)


def test_one_dataset(local: Database, remote: Database) -> None:
    with (
        xr.open_dataset(str(remote.place), engine="chgdb") as mine,
        xr.open_dataset(local.path, engine="chgdb") as theirs,
    ):
        xr.testing.assert_identical(mine.load(), theirs.load())


def test_the_command_line(remote: Database, run: Run, tmp_path: Path, make_file: MakeFile) -> None:
    store = ("--store", remote.place)
    assert str(remote.place) in run("info", *store).out
    assert run("search", "--elements", "Ti", "--format", "ids", *store).out.split() == [
        "mp-1",
        "mp-5",
    ]
    assert run("get", "mp-2", "--decode", "-o", tmp_path / "x.cube", *store).code == 0
    assert "added" in run("add", make_file("mp-9.npz"), *store).out
    assert "1 record removed" in run("remove", "mp-9", *store).out
    assert run("export", tmp_path / "new", *store).out.endswith("new: 5 records\n")
    assert "not empty" in run("init", remote.place, "--encoder", "tiny-16").err


def test_a_store_that_carries_its_own_encoder(
    local: Database, models: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(models / "tiny-16", local.path / ENCODER_FOLDER)
    remote = local.copy(bucket)
    monkeypatch.setenv("CHGDB_MODELS", str(tmp_path / "none"))
    mine, theirs = (store.decode("mp-1", source="latent")[0] for store in (remote, local))
    np.testing.assert_array_equal(mine.values, theirs.values)


def test_the_environment_may_name_it(remote: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHGDB_STORE", str(remote.place))
    assert len(Database()) == 5


# --- when something fails -------------------------------------------------------------------


def fail_at(method: str, part: str, after: int = 0) -> Callable[[str, str], None]:
    """A server that breaks off at requests for some keys, the first ones excepted."""
    seen = 0

    def before(asked: str, key: str) -> None:
        nonlocal seen
        if asked == method and part in key:
            seen += 1
            if seen > after:
                raise ConnectionError

    return before


@pytest.mark.parametrize(
    "part",
    ["latents.zarr/latent/c", "latents.zarr/payload/c", "latents.zarr/zarr.json", "materials/"],
)
def test_a_crash_while_adding_leaves_no_torn_record(
    remote: Database, make_file: MakeFile, s3: Server, part: str
) -> None:
    before = remote.select().values
    s3.before = fail_at("PUT", part)
    with pytest.raises(StoreError, match="does not answer"):
        remote.add(make_file("mp-9.npz", electrons=9.0))
    s3.before = lambda method, key: None
    again = forgetful(remote.place)
    assert again.select().values == before
    assert again["mp-5"].density().n_electrons == pytest.approx(12.0)
    other = again.add(make_file("mp-8.npz", electrons=8.5))
    assert [row["id"] for row in other.added] == ["mp-8"]
    again.add(make_file("mp-9.npz", electrons=9.0))
    found = forgetful(remote.place)
    for material_id, electrons in (("mp-8", 8.5), ("mp-9", 9.0), ("mp-5", 12.0)):
        assert found[material_id].density().n_electrons == pytest.approx(electrons)
        assert found[material_id].latent().n_electrons == pytest.approx(electrons)


@pytest.mark.parametrize("after", range(8))
def test_a_crash_while_replacing_or_removing(
    remote: Database, make_file: MakeFile, s3: Server, after: int
) -> None:
    """Wherever the writer stops, each record is there once, the old or the new."""
    path, old = make_file("mp-2.npz", species=("Ge",)), remote["mp-2"].row["formula"]
    changes = 0

    def before(method: str, key: str) -> None:
        nonlocal changes
        if method in ("PUT", "DELETE", "POST") and "/materials/" in f"/{key}":
            changes += 1
            if changes > after:
                raise ConnectionError

    s3.before = before
    crashed = False
    try:
        remote.add(path, on_conflict="replace")
        remote.remove(["mp-3"])
    except StoreError:
        crashed = True
    s3.before = lambda method, key: None
    found = forgetful(remote.place)
    assert {"mp-1", "mp-2", "mp-4", "mp-5"} <= set(found)
    assert len(list(found)) == len(set(found)) == len(found) in (4, 5)
    formula = found["mp-2"].row["formula"]
    assert formula in (old, "Ge")
    assert found["mp-2"].density().structure.formula == formula
    if not crashed:
        assert (formula, len(found)) == ("Ge", 4)
    found.add(path, on_conflict="replace")
    found.remove("mp-5")
    assert found["mp-2"].row["formula"] == "Ge"
    assert not [p for p in found.place.walk() if "replaces" in p.name]  # type: ignore[union-attr]


def test_a_part_with_its_mark_and_without(remote: Database, make_file: MakeFile) -> None:
    """What a reader sees between the two steps that stand for a rename."""
    folder = remote.place / TABLE_FOLDER
    table = Table(folder)
    (part,) = table.parts
    marked = folder / part.name.replace(".parquet", ".replaces.parquet")
    marked.write_bytes(part.read_bytes())
    assert table.count() == 5
    assert list(forgetful(remote.place)) == [f"mp-{i}" for i in range(1, 6)]
    table.recover()
    assert [path.name for path in table.parts] == [part.name]
    assert table.count() == 5


def test_two_processes_adding_the_same_ids_lose_and_double_nothing(
    models: Path, bucket: str, make_file: MakeFile, tmp_path: Path, s3: Server
) -> None:
    Database.create(bucket, encoder="tiny-16")
    for i in range(4):
        make_file(f"in/mp-{i}.npz", electrons=8.0 + i)
    assert add_in_two_processes(bucket, tmp_path / "in") == [4, 4, 0]
    found = Database(bucket)
    assert sorted(found) == [f"mp-{i}" for i in range(4)]
    for record in found.get(list(found)):
        assert record.latent().n_electrons == pytest.approx(8.0 + int(record.id[-1]))
        assert record.density().n_electrons == pytest.approx(8.0 + int(record.id[-1]))


def test_a_writer_that_lost_the_lock_adds_nothing(
    remote: Database, make_file: MakeFile, s3: Server
) -> None:
    """Another took the lock, as from a computer that slept: no record of the first is committed."""
    taken = False

    def before(method: str, key: str) -> None:
        nonlocal taken
        if method == "PUT" and key.endswith("latents.zarr/zarr.json") and not taken:
            taken = True
            (remote.place / ".lock").write_bytes(b'{"owner": "another"}')

    s3.before = before
    with pytest.raises(StoreError, match="taken over the lock"):
        remote.add(make_file("mp-9.npz"))
    assert "mp-9" not in forgetful(remote.place)


def test_a_writer_that_never_gave_the_lock_back(
    remote: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    (remote.place / ".lock").write_bytes(b'{"owner": "process 1 on elsewhere"}')
    monkeypatch.setattr("chgdb.database.LOCK_TIMEOUT", 0.1)
    with pytest.raises(StoreError, match=r"\(process 1 on elsewhere\) has been writing for 0\.1 s"):
        remote.add(make_file("mp-9.npz"))
    monkeypatch.setattr("chgdb.database.LOCK_TIMEOUT", 20.0)
    monkeypatch.setattr(lock, "LEASE", 1.0)
    assert len(remote.add(make_file("mp-9.npz")).added) == 1


def test_a_server_that_falls_silent(remote: Database, s3: Server) -> None:
    (record,) = remote.get("mp-1")
    s3.before = fail_at("GET", "payload/c")
    with pytest.raises(StoreError, match=r"mp-1: its payload .*does not answer"):
        record.payload()
    s3.before = fail_at("GET", ".parquet")
    with pytest.raises(StoreError, match=r"\.parquet: cannot be read \(http.* does not answer\)"):
        list(forgetful(remote.place))
    s3.before = fail_at("GET", "materials")
    with pytest.raises(StoreError, match=r"materials: cannot be read \(http.* does not answer\)"):
        list(remote)


@pytest.mark.parametrize(
    ("change", "url", "problem"),
    [
        ({}, "s3://no-such-bucket/x", "there is no bucket no-such-bucket"),
        ({}, "s3://densities/nothing-here", "not a chgdb store, it holds no chgdb.json"),
        ({}, "s3://X/y", "'X' is not the name of a bucket"),
        ({}, "gs://bucket/x", "a store is a folder, or s3://BUCKET/PREFIX"),
        ({"AWS_SECRET_ACCESS_KEY": "no"}, "s3://densities/x", "refuses the AWS_* credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://densities/x", "does not answer"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(
    s3: Server,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    url: str,
    problem: str,
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    for words in (("info",), ("search",), ("remove", "mp-1")):
        code, out, err = run(*words, "--store", url)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("chgdb: error: ")
        assert problem in err


def test_a_reader_may_not_write(
    remote: Database, s3: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment("reader").items():
        monkeypatch.setenv(name, value)
    assert run("get", "mp-1", "--store", remote.place).code == 0
    code, _, err = run("remove", "mp-1", "--store", remote.place)
    assert (code, err.count("\n")) == (1, 1)
    assert "cannot be written (the server refuses the AWS_* credentials (AccessDenied))" in err


def test_a_package_that_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'chgdb\[s3\]'"):
        place("s3://bucket/x")
    code, _, err = run("info", "--store", "s3://bucket/x")
    assert (code, err.count("\n")) == (1, 1)
    assert "chgdb[s3]" in err


# --- what goes over the wire ----------------------------------------------------------------


def enlarged(folder: Path, copies: int) -> Path:
    """The records with a density of the shipped store, and copies of them under other ids."""
    source = Database(ROOT / "store")
    records = source.get([id_ for (id_,) in source.select(source="dft", columns="id").values])
    source.copy(folder, [record.id for record in records])
    payloads = [record.payload() or b"" for record in records]
    table = Table(folder / TABLE_FOLDER)
    arrays = LatentArrays.open(folder / ARRAYS_FOLDER, writable=True)
    for copy in range(1, copies):
        rows = [{**record.row, "id": f"{record.id}-{copy}"} for record in records]
        start = table.next_row
        arrays.write(
            start,
            [row["id"] for row in rows],
            np.zeros((len(rows), *arrays.storage.shape), np.int8),
            [[row[f"grid_{axis}"] for axis in "abc"] for row in rows],
            [[row[f"work_grid_{axis}"] for axis in "abc"] for row in rows],
            [row["n_electrons"] for row in rows],
            payloads,
        )
        table.append(rows, start)
    return folder


@pytest.fixture
def counted(tmp_path: Path, bucket: str, s3: Server, run: Run) -> Callable[[int], list[Request]]:
    """What `get mp-149 --decode` asks of the shipped store, so many times enlarged."""
    from chgdb.database import _upload

    def count(copies: int) -> list[Request]:
        url = f"{bucket}-{copies}"
        _upload(enlarged(tmp_path / f"{copies}", copies), RemotePath.of(url))
        ranges._cache = ranges._Cache()
        s3.clear()
        output = tmp_path / f"{copies}.CHGCAR"
        assert run("get", "mp-149", "--decode", "-o", output, "--store", url).code == 0
        assert output.stat().st_size > 100_000
        return list(s3.requests)

    return count


def of_arrays(requests: list[Request]) -> list[Request]:
    return [request for request in requests if "latents.zarr/" in request.key]


def test_decoding_one_record_reads_one_range_of_one_shard(
    counted: Callable[[int], list[Request]],
) -> None:
    small, large = of_arrays(counted(1)), of_arrays(counted(4))
    for requests in (small, large):
        payload = [request for request in requests if "/payload/c/" in request.key]
        assert len({request.key for request in payload}) == 1
        assert [request.status for request in payload] == [206, 206], "the index, then a chunk"
        assert sum(request.received for request in payload) < 2**14 + 2000
        assert not [request for request in requests if "/latent/c/" in request.key]
    assert len(small) == len(large) == 6
    grown = sum(request.received for request in large) - sum(r.received for r in small)
    assert grown < 20_000, "a chunk of the small arrays holds 1024 rows; it fills up, and no more"
