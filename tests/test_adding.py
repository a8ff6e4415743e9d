"""Files become records: every circumstance of one file, batches, interrupts, several processes."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeDensity, MakeFile, Run, start_adding, state

from chgdb import adding
from chgdb.adding import Encoder, OnConflict
from chgdb.database import Database
from chgdb.density import ChargeDensity, Structure
from chgdb.errors import InputError
from chgdb.intake import Encoded, take_in


def test_adding_one_file(empty: Database, make_file: MakeFile) -> None:
    report = empty.add(make_file("mp-7.npz"))
    (row,) = report.added
    assert (row["id"], row["formula"], row["source_file"]) == ("mp-7", "TiO2", "mp-7.npz")
    assert list(empty) == ["mp-7"]
    assert empty["mp-7"].row == {**dict.fromkeys(empty["mp-7"].row), **row, "row": 0}


def test_adding_again_is_skipped_by_content(empty: Database, make_file: MakeFile) -> None:
    path = make_file("mp-7.npz")
    empty.add([path])
    before = state(empty.path)
    copy = path.with_name("other-name.npz")
    shutil.copy(path, copy)
    for again in (path, copy):
        report = empty.add([again])
        assert report.skipped == [(again, "stored already as mp-7")]
        assert not report.added
        assert not report.failed
    assert state(empty.path) == before


def test_a_file_may_be_stored_under_a_second_id(empty: Database, make_file: MakeFile) -> None:
    path = make_file("mp-7.npz")
    empty.add(path)
    assert len(empty.add([path], ids=["second"]).added) == 1
    assert len(empty.add([path], ids=["mp-7"]).skipped) == 1
    assert list(empty) == ["mp-7", "second"]


def test_bad_files_stop_no_good_ones(
    empty: Database, make_file: MakeFile, make_density: MakeDensity, tmp_path: Path
) -> None:
    vacuum = make_density()
    vacuum = ChargeDensity(vacuum.values * 0, vacuum.structure)
    make_file("in/mp-1.npz")
    make_file("in/mp-2.npz", vacuum)
    make_file("in/mp-3.CHGCAR", species=("Si",))
    for name, content in (("CHGCAR", b""), ("mp-4.npz", b"PK\x03\x04nonsense")):
        (tmp_path / "in" / name).write_bytes(content)
    report = empty.add([tmp_path / "in"])
    assert [row["id"] for row in report.added] == ["mp-1", "mp-3"]
    assert {path.name for path, _ in report.failed} == {"CHGCAR", "mp-2.npz", "mp-4.npz"}
    for path, why in report.failed:
        assert str(path) in why
        assert "\n" not in why
    assert list(empty) == ["mp-1", "mp-3"]


def test_only_bad_files_store_nothing(empty: Database, tmp_path: Path) -> None:
    path = tmp_path / "CHGCAR"
    path.write_text("not a CHGCAR")
    before = state(empty.path)
    assert len(empty.add([path]).failed) == 1
    assert state(empty.path) == before


@pytest.mark.parametrize("on_conflict", ["error", "skip", "replace"])
def test_an_id_that_is_taken(
    database: Database, make_file: MakeFile, on_conflict: OnConflict
) -> None:
    path = make_file("mp-2.npz", species=("C", "C"))
    before = state(database.path)
    report = database.add([path], on_conflict=on_conflict)
    assert len(database) == 5
    if on_conflict == "replace":
        assert [row["id"] for row in report.added] == ["mp-2"]
        assert database["mp-2"].structure.species == ("C", "C")
        assert database["mp-2"].density().structure.species == ("C", "C")
    else:
        assert state(database.path) == before
        assert database["mp-2"].structure.species == ("Si", "Si")
    if on_conflict == "skip":
        assert report.skipped == [(path, "id mp-2 is taken")]
    if on_conflict == "error":
        assert "mp-2 is taken by a record of Si, and this file of C" in report.failed[0][1]


def test_two_files_with_one_id_in_one_call(empty: Database, make_file: MakeFile) -> None:
    first = make_file("a/mp-1.npz", species=("Si",))
    second = make_file("b/mp-1.npz", species=("C",))
    report = empty.add([first, second], on_conflict="replace")
    assert [row["formula"] for row in report.added] == ["Si"]
    assert f"id mp-1 is also that of {first}" in report.failed[0][1]
    assert empty["mp-1"].row["formula"] == "Si"


def test_the_same_content_twice_in_one_call(empty: Database, make_file: MakeFile) -> None:
    first = make_file("a/mp-1.npz")
    second = first.with_name("mp-2.npz")
    shutil.copy(first, second)
    report = empty.add([first, second])
    assert report.skipped == [(second, f"the same content as {first}")]
    assert list(empty) == ["mp-1"]


def test_one_id_in_two_batches_of_one_call(
    empty: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "BATCH", 1)
    paths = [make_file(f"{i}/mp-1.npz", electrons=8.0 + i) for i in range(2)]
    report = empty.add(paths, on_conflict="replace")
    assert [len(report.added), len(report.failed)] == [1, 1]


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        (["one"], "1 ids for 2 files"),
        (["one", "../../two"], "cannot be a material id"),
        (["one", ""], "cannot be a material id"),
    ],
)
def test_ids_that_do_not_fit(
    empty: Database, make_file: MakeFile, ids: list[str], problem: str
) -> None:
    paths = [make_file("a.npz"), make_file("b.npz", species=("Si",))]
    with pytest.raises(InputError, match=problem):
        empty.add(paths, ids=ids)
    assert len(empty) == 0


def test_ids_that_fit(empty: Database, make_file: MakeFile) -> None:
    paths = [make_file("a.npz"), make_file("b.npz", species=("Si",))]
    empty.add(paths, ids=["first", "second"])
    assert list(empty) == ["first", "second"]


def test_nothing_to_add(empty: Database, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="no density files in"):
        empty.add([tmp_path / "nothing"])
    with pytest.raises(InputError, match="no such file"):
        empty.add([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="on_conflict 'ask'"):
        empty.add([Path(__file__)], on_conflict="ask")  # type: ignore[arg-type]


@pytest.mark.parametrize("spin", [1, 3])
def test_magnetic_files(empty: Database, make_file: MakeFile, spin: int) -> None:
    empty.add(make_file("mp-1.CHGCAR", spin=spin, electrons=12.0))
    moment = 4.0 if spin == 1 else 4.0 * 3**0.5
    record = empty["mp-1"]
    assert record.row["magnetization"] == pytest.approx(moment, rel=1e-6)
    assert record.density().magnetic_moment == pytest.approx(moment, rel=1e-2)
    assert record.density(grid=(20, 20, 24)).magnetic_moment == pytest.approx(moment, rel=1e-2)
    assert record.density(source="latent").magnetization is None
    assert 0 <= record.row["payload_magnetization_nmae"] <= 0.1


@pytest.mark.parametrize("name", ["CHGCAR.gz", "AECCAR0", "PARCHG.0001.ALLK", "CHG"])
def test_generic_names_get_ids_from_formula_and_content(
    empty: Database, make_file: MakeFile, name: str
) -> None:
    (row,) = empty.add(make_file(name)).added
    assert row["id"] == f"TiO2-{row['source_sha256'][:8]}"


def test_a_vasp_4_file_needs_species(empty: Database, make_file: MakeFile, tmp_path: Path) -> None:
    lines = make_file("CHGCAR").read_text().splitlines(keepends=True)
    path = tmp_path / "old.CHGCAR"
    path.write_text("".join(lines[:5] + lines[6:]))
    report = empty.add([path])
    assert "--species" in report.failed[0][1]
    assert len(empty.add([path], species=["Ti", "O"]).added) == 1
    assert empty["old"].row["formula"] == "TiO2"


def test_the_shared_vasp_files(empty: Database, shared: Path) -> None:
    report = empty.add([shared / "chgcar"])
    assert not report.failed
    assert len(report.added) == 4


def test_a_cell_longer_than_the_box_says_so(
    empty: Database, make_density: MakeDensity, make_file: MakeFile
) -> None:
    density = make_density(grid=(10, 10, 40))
    lattice = density.structure.lattice * np.array([[1.0], [1.0], [6.0]])
    long = Structure(lattice, density.structure.species, density.structure.frac_coords)
    (row,) = empty.add(make_file("long.npz", ChargeDensity(density.values, long))).added
    assert row["latent_coarse"]
    assert row["work_grid_c"] == 128


def test_a_network_that_fails_is_reported_per_file(
    empty: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [make_file(f"mp-{i}.npz", electrons=8.0 + i) for i in range(5)]
    encode = empty._codec.encode

    def fail(densities: list[ChargeDensity]) -> Any:
        if any(abs(density.n_electrons - 11.0) < 0.1 for density in densities):
            raise RuntimeError("out of\nmemory")
        return encode(densities)

    monkeypatch.setattr(empty._codec, "encode", fail)
    report = empty.add(paths)
    assert [row["id"] for row in report.added] == ["mp-0", "mp-1", "mp-2", "mp-4"]
    assert report.failed == [(paths[3], f"{paths[3]}: cannot be encoded: out of memory")]


def test_a_batch_gives_what_single_files_give(
    empty: Database, models: Path, make_file: MakeFile, tmp_path: Path
) -> None:
    paths = [make_file(f"mp-{i}.npz", electrons=8.0 + i) for i in range(3)]
    paths += [make_file("mp-9.npz", grid=(30, 14, 22), scale=1.3)]
    empty.add(paths)
    single = Database.create(tmp_path / "single", encoder="tiny-16")
    for path in paths:
        single.add(path)
    for one, other in zip(empty.get(list(empty)), single.get(list(single)), strict=True):
        assert one.id == other.id
        difference = np.abs(one.latent().values - other.latent().values)
        assert difference.max() <= 1.01 / 127
        assert one.row["latent_nmae"] == pytest.approx(other.row["latent_nmae"], rel=1e-2)


def test_an_interrupted_run_keeps_its_batches_and_is_resumed(
    empty: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(adding, "BATCH", 2)
    for i in range(5):
        make_file(f"in/mp-{i}.npz", electrons=8.0 + i)
    encode = adding.encode

    def interrupted(codec: Any, intakes: Any, storage: Any) -> Any:
        if any(intake.id == "mp-3" for intake in intakes):
            raise KeyboardInterrupt
        return encode(codec, intakes, storage)

    with monkeypatch.context() as patch:
        patch.setattr(adding, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            empty.add(tmp_path / "in")
    assert list(empty) == ["mp-0", "mp-1"]
    told: list[tuple[int, int]] = []
    report = empty.add(tmp_path / "in", progress=lambda *numbers: told.append(numbers))
    assert [len(report.skipped), len(report.added)] == [2, 3]
    assert told[-1] == (5, 5)
    assert told == sorted(told)
    assert list(empty) == [f"mp-{i}" for i in range(5)]
    assert empty["mp-4"].latent().n_electrons == pytest.approx(12.0)


def test_an_interrupt_while_writing_leaves_a_sound_store(
    empty: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file("mp-1.npz")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(empty._table, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            empty.add(path)
    assert len(empty) == 0
    assert len(empty.add(path).added) == 1
    for source in ("payload", "latent"):
        density = empty["mp-1"].density(source=source)
        assert density.n_electrons == pytest.approx(16.0)


def test_large_densities_make_small_batches(
    empty: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "BATCH_POINTS", 18 * 20 * 24 + 1)
    sizes: list[int] = []
    encode = adding.encode

    def counted(codec: Any, intakes: Any, storage: Any) -> Any:
        sizes.append(len(intakes))
        return encode(codec, intakes, storage)

    monkeypatch.setattr(adding, "encode", counted)
    empty.add([make_file(f"mp-{i}.npz", electrons=8.0 + i) for i in range(5)])
    assert sizes == [2, 2, 1]


def test_a_name_that_is_not_unicode_is_stored_readably(
    empty: Database, make_file: MakeFile, tmp_path: Path
) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.npz")
    make_file("mp-1.npz").rename(path)
    (row,) = empty.add([path]).added
    assert row["source_file"] == "caf\N{REPLACEMENT CHARACTER}.npz"


# --- in processes -----------------------------------------------------------------------------


def test_processes_that_encode_give_what_one_gives(
    empty: Database, make_file: MakeFile, tmp_path: Path, models: Path
) -> None:
    paths = [make_file(f"mp-{i}.npz", electrons=8.0 + i) for i in range(4)]
    paths.insert(2, tmp_path / "empty.npz")
    paths[2].write_bytes(b"")
    single = Database.create(tmp_path / "single", encoder="tiny-16")
    reports = [empty.add(paths, processes=2), single.add(paths)]
    assert [[path for path, _ in report.failed] for report in reports] == [[paths[2]]] * 2
    assert list(empty) == list(single)
    for one, other in zip(empty.get(list(empty)), single.get(list(single)), strict=True):
        assert one.payload() == other.payload()
        assert np.abs(one.latent().values - other.latent().values).max() <= 1.01 / 127
        assert one.row["latent_nmae"] == pytest.approx(other.row["latent_nmae"], rel=1e-2)


def test_files_that_were_read_are_encoded_where_they_are(
    empty: Database, make_file: MakeFile
) -> None:
    """An encoder that processes can be sent, and errors that stop no other file."""
    encoder = empty.info.encoder
    finish = Encoder(encoder.id, encoder.weights_sha256, None, empty.info.latent, "cpu")
    good, bad = take_in(make_file("mp-1.npz")), take_in(make_file("mp-2.npz", electrons=-4.0))
    one, other = finish([good, bad])
    assert isinstance(one, Encoded)
    assert (one.id, one.bulk.latent.dtype) == ("mp-1", np.int8)
    assert isinstance(other, InputError)
    assert "mp-2.npz: cannot be encoded" in str(other)


def test_what_waits_too_long_is_committed(
    empty: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "PATIENCE", 0.0)
    seen: list[int] = []
    paths = [make_file(f"mp-{i}.npz", electrons=8.0 + i) for i in range(3)]
    empty.add(paths, progress=lambda done, _: seen.append(len(empty)))
    assert seen == [1, 2, 3, 3]


def test_fewer_steps_of_refinement(empty: Database, make_file: MakeFile) -> None:
    with pytest.raises(InputError, match="-1 steps of refinement"):
        empty.add(make_file("mp-1.npz"), refine_steps=-1)
    (row,) = empty.add(make_file("mp-1.npz"), refine_steps=6).added
    (plain,) = empty.add(make_file("mp-2.npz", electrons=17.0)).added
    assert row["latent_nmae"] < plain["latent_nmae"]  # whose encoder has none


@pytest.mark.parametrize(
    ("sent", "processes"), [(signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGINT, 2)]
)
def test_a_run_that_is_killed_is_resumed(
    empty: Database, make_file: MakeFile, tmp_path: Path, sent: signal.Signals, processes: int
) -> None:
    count = 24
    for i in range(count):
        make_file(f"in/mp-{i}.npz", electrons=8.0 + i)
    process = start_adding(empty, tmp_path / "in", "--processes", str(processes))
    process.send_signal(sent)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(process.pid)  # nor any process that it started
    stored = len(empty)
    assert 2 <= stored < count
    report = empty.add(tmp_path / "in")
    assert [len(report.skipped), len(report.added)] == [stored, count - stored]
    assert sorted(empty) == sorted(f"mp-{i}" for i in range(count))
    for record in empty.get(list(empty)):
        for held in (record.latent(), record.density()):
            assert held.n_electrons == pytest.approx(8.0 + int(record.id[3:]))


def _alive(session: int) -> bool:
    """Whether a process of a session is there."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_is_not_there_is_told_at_the_end(
    run: Run, empty: Database, make_file: MakeFile, tmp_path: Path
) -> None:
    path = make_file("mp-1.npz")
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'absent.npz'}\n\n{path}\n")
    done = run("add", "--list", tmp_path / "list.txt", "--store", empty.place)
    assert done.code == 1
    assert "1 added, 0 skipped, 1 failed" in done.out
    assert "absent.npz: no such file" in done.err
    assert list(empty) == ["mp-1"]
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'absent.npz'}\n")
    assert "no such file" in run("add", "--list", tmp_path / "list.txt", "--store", empty.place).err
    assert run("add", "--list", tmp_path / "no-list", "--store", empty.place).code == 1
