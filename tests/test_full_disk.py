"""A disk that is full, and a store that is read-only: one line, and the store as it was.

What is committed before the disk is full stays: every record is wholly old or wholly new.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PROPERTIES, MakeFile, Outcome, Run, gaussian_density, state
from predictions import CheapModel, use_cheap_features, use_model

from chgdb.database import Database
from chgdb.formats import write_density

Words = Callable[[Path, Path], tuple[object, ...]]
"""A command, by the folder of the files and the one to write into."""

WRITING: dict[str, Words] = {
    "add": lambda files, _: ("add", files / "mp-8.npz", files / "mp-9.npz"),
    "bulk add": lambda files, _: ("add", files, "--processes", 2, "--on-conflict", "replace"),
    "replace": lambda files, _: ("add", files / "mp-1.npz", "--on-conflict", "replace"),
    "predict --all": lambda files, _: ("predict", "--all"),
    "remove": lambda files, _: ("remove", "mp-1", "mp-4"),
    "compact": lambda files, _: ("compact",),
    "import-table": lambda files, _: ("import-table", files / "table.csv"),
}
TARGETS: dict[str, Words] = {
    "get -o": lambda _, disk: ("get", "mp-2", "--decode", "-o", disk / "out.CHGCAR"),
    "get cube": lambda _, disk: ("get", "mp-2", "--decode", "-o", disk / "out.cube"),
    "get npz": lambda _, disk: ("get", "mp-2", "--decode", "-o", disk / "out.npz"),
    "export csv": lambda _, disk: ("export", disk / "out.csv"),
    "export json": lambda _, disk: ("export", disk / "out.json"),
    "export parquet": lambda _, disk: ("export", disk / "out.parquet"),
    "export extxyz": lambda _, disk: ("export", disk / "out.extxyz"),
    "export store": lambda _, disk: ("export", disk / "out"),
    "init": lambda _, disk: ("init", disk / "out", "--encoder", "tiny-16"),
    "plot": lambda _, disk: ("plot", "mp-2", "-o", disk / "out.png"),
}
READING: dict[str, Words] = {
    "info": lambda _, __: ("info",),
    "search": lambda _, __: ("search", "--elements", "Ti"),
    "get": lambda _, __: ("get", "mp-1"),
    "get --decode": lambda files, _: ("get", "mp-1", "--decode", "-o", files.parent / "out.npz"),
    "verify": lambda _, __: ("verify",),
    "predict ID": lambda _, __: ("predict", "mp-4"),
    "similar": lambda _, __: ("similar", "mp-1"),
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path) -> Path:
    """What the commands take: other densities of two materials, two more, and a table."""
    use_cheap_features(monkeypatch)
    use_model(monkeypatch, tmp_path, CheapModel())
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "files"
    folder.mkdir()
    for i, id_ in enumerate(("mp-1", "mp-4", "mp-8", "mp-9")):
        density = gaussian_density(("Fe",), electrons=9.5 + i, grid=(12, 12, 15))
        write_density(folder / f"{id_}.npz", density, "npz")
    (folder / "table.csv").write_text(PROPERTIES.replace("200", "201"))
    return folder


def fill(store: Path, make_file: MakeFile) -> None:
    """Features, predictions, and something for `compact` to do."""
    database = Database(store)
    database.predict_all()
    database.add(make_file("mp-7.npz", species=("Si",), electrons=4.0))
    database.remove("mp-3")


Said = dict[str, tuple[dict[str, object], bytes | None, object]]


def says(store: Path) -> Said:
    """Of every record its row, payload and prediction, however they lie; the store is whole."""
    database = Database(store)
    assert not [finding for finding in database.verify() if finding.level == "error"]
    predicted = database.predicted(list(database))
    unsaid = ("row", "added")
    return {
        record.id: (
            {name: value for name, value in record.row.items() if name not in unsaid},
            record.payload(),
            predicted.get(record.id),
        )
        for record in database.get(list(database))
    }


def assert_old_or_new(now: Said, before: Said, after: Said) -> None:
    """Every record is what it was, with its prediction, or what it was to become."""
    for id_ in {*now, *before, *after}:
        kept = now.get(id_) == before.get(id_)
        assert kept or now.get(id_, ())[:2] == after.get(id_, ())[:2], id_


def assert_refused(outcome: Outcome, *reasons: str) -> None:
    assert outcome.code == 1, outcome
    (line,) = [line for line in outcome.err.splitlines() if "error: " in line]
    assert any(reason in line for reason in reasons), line
    assert "unexpected" not in outcome.err
    assert "Traceback" not in outcome.err


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """No file of more bytes can be written, as where the disk ends there."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("most", [0, 300, 5000])
@pytest.mark.parametrize("name", [name for name in WRITING if name != "bulk add"])
def test_where_no_file_can_grow_the_store_stays_as_it_was(
    name: str, most: int, store: Path, files: Path, run: Run, make_file: MakeFile, tmp_path: Path
) -> None:
    fill(store, make_file)
    before = says(store)
    with small_files(most):
        outcome = run(*WRITING[name](files, tmp_path), "--store", store)
    if outcome.code:
        assert_refused(outcome, "File too large")
        assert says(store) == before
    else:
        assert most == 5000
    Database(store).add(make_file("mp-6.npz", species=("Ni",)))
    Database(store).compact()
    assert list(Database(store).verify()) == []


@pytest.mark.parametrize("most", [0, 300])
@pytest.mark.parametrize("name", TARGETS)
def test_where_no_file_can_grow_nothing_is_left_of_what_was_asked_for(
    name: str,
    most: int,
    store: Path,
    files: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHGDB_STORE", str(store))
    (tmp_path / "disk").mkdir()
    before = state(store)
    with small_files(most):
        outcome = run(*TARGETS[name](files, tmp_path / "disk"))
    assert_refused(outcome, "File too large")
    assert list((tmp_path / "disk").iterdir()) == []
    assert state(store) == before


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    """A small disk, where this process may mount one."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "chgdb-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("this process may not mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", 4) as folder:
        yield folder


def leave(disk: Path, free: int) -> Path:
    """Fill a disk but for some bytes."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    room = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - free)))
    return filler


@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk_leaves_the_store_as_it_was(
    name: str,
    disk: Path,
    store: Path,
    files: Path,
    run: Run,
    make_file: MakeFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(store, make_file)
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    before = says(store)
    shutil.copytree(store, tmp_path / "done")
    assert run(*WRITING[name](files, disk), "--store", tmp_path / "done").code == 0
    after = says(tmp_path / "done")
    refused = 0
    for kilobytes in (0, 4, 12, 24, 48, 96, 2000):
        shutil.rmtree(disk / "store", ignore_errors=True)
        (disk / "filler").unlink(missing_ok=True)
        shutil.copytree(store, disk / "store")
        filler = leave(disk, kilobytes * 1024)
        outcome = run(*WRITING[name](files, disk), "--store", disk / "store")
        filler.unlink()
        if outcome.code == 0:
            break
        refused += 1
        assert_refused(outcome, "No space left on device")
        now = says(disk / "store")
        if name in ("bulk add", "remove", "import-table"):  # of several commits, some may be made
            assert_old_or_new(now, before, after)
        else:
            assert now == before
        Database(disk / "store").compact()
        assert list(Database(disk / "store").verify()) == []
    assert refused
    assert outcome.code == 0


@pytest.mark.parametrize("name", TARGETS)
def test_a_full_disk_gets_nothing_of_what_was_asked_for(
    name: str,
    disk: Path,
    store: Path,
    files: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHGDB_STORE", str(store))
    before = state(store)
    for kilobytes in (0, 4, 16):
        filler = leave(disk, kilobytes * 1024)
        outcome = run(*TARGETS[name](files, disk))
        if outcome.code == 0:
            break
        assert_refused(outcome, "No space left on device", "problem writing element")  # NumPy
        assert list(disk.iterdir()) == [filler]
    assert kilobytes
    assert state(store) == before


@pytest.fixture
def read_only(store: Path, tmp_path: Path, make_file: MakeFile, files: Path) -> Iterator[Path]:
    """A store that nobody can write: on a disk mounted so, or in folders that are not its own."""
    fill(store, make_file)
    if os.geteuid():
        folders = [store, *(path for path in store.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o500)
        (store / ".lock").chmod(0o400)
        yield store
        for folder in folders:
            folder.chmod(0o700)
        return
    with mounted(tmp_path / "disk", 4) as disk:
        shutil.copytree(store, disk / "store")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        yield disk / "store"


@pytest.mark.parametrize("name", WRITING)
def test_a_read_only_store_refuses_in_one_line(
    name: str, read_only: Path, files: Path, run: Run, tmp_path: Path
) -> None:
    before = state(read_only)
    outcome = run(*WRITING[name](files, tmp_path), "--store", read_only)
    assert_refused(outcome, "Read-only file system", "Permission denied")
    assert state(read_only) == before


@pytest.mark.parametrize("name", READING)
def test_a_read_only_store_is_read(name: str, read_only: Path, files: Path, run: Run) -> None:
    outcome = run(*READING[name](files, files), "--store", read_only)
    assert outcome.code == 0, outcome.err
    assert outcome.out or name == "verify"


def test_a_read_only_store_is_a_dataset(read_only: Path) -> None:
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(read_only, engine="chgdb") as dataset:
        assert float(dataset["density"][0].sum()) > 0
