"""The command line: every command, and every way in which one fails."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, MakeFile, Run, start_adding

import chgdb
from chgdb import archive, cli
from chgdb import database as module
from chgdb.archive import Payload, Tolerance
from chgdb.database import Database
from chgdb.density import ChargeDensity
from chgdb.formats import read_density


def in_process(code: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own; `words` become sys.argv."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False)


COMMAND = "import sys; from chgdb.cli import main; main(sys.argv[1:])"


def assert_one_line(err: str) -> None:
    assert err.startswith("chgdb: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")


# --- reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["-h"], [], ["search", "-h"]])
def test_help_and_version(run: Run, words: Sequence[str]) -> None:
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert out.startswith(f"chgdb {chgdb.__version__}" if "--version" in words else "Usage: chgdb")


def test_info(run: Run, store: Path) -> None:
    code, out, _ = run("info", "--store", store)
    assert code == 0
    assert "records" in out
    content = json.loads(run("info", "--store", store, "--format", "json").out)
    assert content["records"] == 5


def test_search_as_a_table(run: Run, store: Path) -> None:
    code, out, err = run("search", "--store", store, "--elements", "Ti,O")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["id", "mp-1", "mp-5"]
    assert err == "2 records\n"
    assert run("search", "--store", store, "--formula", "Fe").err == "1 record\n"


def test_search_in_other_formats(run: Run, store: Path) -> None:
    words = ("search", "--store", store, "--sort=-band_gap", "--bulk-modulus", "20:")
    ids = run(*words, "--format", "ids").out.split()
    assert ids == ["mp-3", "mp-1", "mp-2", "mp-4"]
    rows = json.loads(run(*words, "--format", "json").out)
    assert [row["id"] for row in rows] == ids
    table = csv.DictReader(io.StringIO(run(*words, "--format", "csv").out))
    assert [row["id"] for row in table] == ids


def test_search_shows_what_is_asked_about(run: Run, store: Path) -> None:
    words = ("search", "--store", store, "--format", "csv")
    header = run(*words, "--volume", "1:", "--sort", "-n-electrons").out.splitlines()[0].split(",")
    assert header[-2:] == ["volume", "n_electrons"]
    assert len(set(header)) == len(header)
    assert run(*words, "--columns", "formula,band-gap").out.startswith("formula,band_gap\n")
    assert run(*words, "--columns", "formula", "--format", "ids").out.startswith("mp-1\n")
    assert run(*words, "--columns", "all").out.startswith("id,row,formula,")


def test_every_filter_reaches_the_search(run: Run, store: Path) -> None:
    record = Database(store)["mp-1"]
    for option, value in {
        "--formula": "O2Ti",
        "--elements": "Ti",
        "--exclude": "Sr,Si,Na,Fe",
        "--chemsys": "O-Ti",
        "--nelements": "2",
        "--spacegroup": record.row["spacegroup"],
        "--crystal-system": record.row["crystal_system"],
        "--bulk-modulus": "199:201",
        "--band-gap": "2.9:3.1",
        "--n-atoms": "3",
        "--volume": f"{record.row['volume'] - 1}:",
        "--where": "id = 'mp-1'",
        "--limit": 1,
    }.items():
        out = run("search", "--store", store, option, value, "--format", "ids").out
        assert out.split()[0] == "mp-1", option
    for option in ("shear-modulus", "youngs-modulus", "formation-energy", "cohesive-energy"):
        assert run("search", "--store", store, f"--{option}", ":5", "--format", "ids").out == ""
    out = run("search", "--store", store, "--debye-temperature", ":5", "--format", "ids").out
    assert out == ""


def test_a_long_table_is_cut_and_says_so(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_TABLE_LIMIT", 2)
    _, out, err = run("search", "--store", store)
    assert len(out.splitlines()) == 3
    assert err == "5 records, the first 2 shown: --limit 5 shows all\n"
    _, out, err = run("search", "--store", store, "--limit", 3)
    assert len(out.splitlines()) == 4
    assert err == "3 records\n"
    assert len(run("search", "--store", store, "--format", "ids").out.split()) == 5


def test_get_shows_records(run: Run, store: Path) -> None:
    out = run("get", "mp-1", "mp-2", "--store", store).out
    assert "bulk_modulus (GPa)" in out
    assert "TiO2" in out
    rows = json.loads(run("get", "mp-2", "--format", "json", "--store", store).out)
    assert rows[0]["species"] == ["Si", "Si"]
    assert rows[0]["row"] == 1


def test_get_decode_says_where_and_how_well(
    run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("get", "mp-1", "--decode", "--store", store)
    assert (code, err) == (0, "")
    row = Database(store)["mp-1"].row
    told = "mp-1: mp-1.CHGCAR.vasp (16 x 18 x 20 points, 8.0000 electrons; {}, NMAE {:.3g} % on"
    assert out.startswith(told.format("payload", row["payload_nmae"]))
    assert out.endswith(" the grid of its source)\n")
    density, kind = read_density(tmp_path / "mp-1.CHGCAR.vasp")
    assert kind == "chgcar"
    assert density.n_electrons == pytest.approx(8.0)
    out = run("get", "mp-1", "--decode", "--from", "latent", "--store", store).out
    assert out.startswith(told.format("latent of tiny-16", row["latent_nmae"]))
    other, _ = read_density(tmp_path / "mp-1.CHGCAR.vasp")
    assert not np.allclose(density.values, other.values, rtol=1e-3)


def test_get_shows_the_payload(run: Run, store: Path) -> None:
    words = run("get", "mp-1", "--store", store).out.split()
    assert words[words.index("payload_bytes") + 1] == str(
        len(Database(store)["mp-1"].payload() or b"")
    )
    assert "payload_nmae (%)" in " ".join(words)
    assert "payload NMAE, median (%)" in run("info", "--store", store).out


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--decode", "-o", "out.npz"], "out.npz"),
        (["--decode", "-o", "CHGCAR.gz"], "CHGCAR.gz"),
        (["--format", "npz"], "mp-1.npz"),
        (["--format", "cube", "-o", "folder"], "folder/mp-1.cube"),
        (["--format", "cif"], "mp-1.cif"),
        (["--format", "poscar", "-o", "POSCAR"], "POSCAR"),
    ],
)
def test_get_writes_where_it_is_told(
    run: Run,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: Sequence[str],
    name: str,
) -> None:
    (tmp_path / "here" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    code, out, _ = run("get", "mp-1", "--store", store, *words)
    assert code == 0
    assert out.startswith(f"mp-1: {name}")
    written = [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert written == [tmp_path / "here" / name]


def test_get_several_into_a_new_folder(run: Run, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    assert run("get", "mp-1", "mp-2", "--decode", "-o", out, "--store", store).code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "mp-1.CHGCAR.vasp",
        "mp-2.CHGCAR.vasp",
    ]


def test_get_on_another_grid(run: Run, store: Path, tmp_path: Path) -> None:
    words = ("get", "mp-1", "--format", "npz", "-o", tmp_path / "a.npz", "--store", store)
    assert "(8 x 10 x 12 points" in run(*words, "--grid", "8,10,12").out
    assert "(8 x 10 x 12 points" in run(*words, "--grid", "8x10x12").out
    assert read_density(tmp_path / "a.npz")[0].grid == (8, 10, 12)


def test_get_writes_the_magnetization(
    run: Run, store: Path, make_file: MakeFile, tmp_path: Path
) -> None:
    source = make_file("spin.CHGCAR", spin=1)
    run("add", source, "--store", store)
    words = ("get", "spin", "--decode", "-o", tmp_path / "CHGCAR", "--store", store)
    assert run(*words).err == ""
    density, expected = (read_density(path)[0] for path in (tmp_path / "CHGCAR", source))
    assert density.magnetization is not None
    assert expected.magnetization is not None
    error = np.abs(density.magnetization - expected.magnetization).sum()
    assert error <= 1.01e-3 * np.abs(expected.magnetization).sum()
    note = "the total density; a latent does not hold the magnetization"
    assert run(*words, "--from", "latent").err == f"chgdb: note: spin: {note}\n"
    assert read_density(tmp_path / "CHGCAR")[0].magnetization is None


def test_compare(run: Run, template: Path, store: Path) -> None:
    source = template / "files" / "mp-2.npz"
    row = Database(store)["mp-2"].row
    words = ("compare", "mp-2", source, "--store", store)
    assert f"NMAE {row['payload_nmae']:.4f} %" in run(*words).out
    assert f"NMAE {row['latent_nmae']:.4f} %" in run(*words, "--from", "latent").out
    assert "NMAE 0.0000 %" in run("compare", source, source).out


def test_plot(run: Run, template: Path, store: Path, tmp_path: Path) -> None:
    picture = tmp_path / "slice.png"
    source = template / "files" / "mp-2.npz"
    code, out, _ = run("plot", "mp-2", "-o", picture, "--reference", source, "--store", store)
    assert (code, out) == (0, f"{picture}\n")
    from_payload = picture.read_bytes()
    assert from_payload.startswith(b"\x89PNG")
    run("plot", "mp-2", "-o", picture, "--reference", source, "--store", store, "--from", "latent")
    assert picture.read_bytes() != from_payload


# --- writing --------------------------------------------------------------------------------


def test_the_life_of_a_store(run: Run, models: Path, make_file: MakeFile, tmp_path: Path) -> None:
    store = tmp_path / "mine"
    out = run("init", store, "--encoder", "tiny-16", "--attribution", "me").out
    assert out == f"{store}: empty store for latents of tiny-16\n"
    path = make_file("mp-7.CHGCAR")
    table = tmp_path / "table.csv"
    table.write_text("id,band_gap\nmp-7,1.25\n")
    code, out, _ = run("add", path, "--properties", table, "--store", store)
    assert code == 0
    row = Database(store)["mp-7"].row
    assert out == (
        "mp-7: added, TiO2, 18 x 20 x 24 points, 16.0000 electrons; payload "
        f"{row['payload_bytes']} bytes, NMAE {row['payload_nmae']:.3g} %; latent NMAE "
        f"{row['latent_nmae']:.3g} %\n"
    )
    out = run("search", "--band-gap", "1:2", "--format", "ids", "--store", store).out
    assert out == "mp-7\n"
    out = run("add", path, "--store", store).out
    assert out == f"{path}: skipped, stored already as mp-7\n"
    out = run("export", tmp_path / "out.csv", "--elements", "Ti", "--store", store).out
    assert out == f"{tmp_path / 'out.csv'}: 1 record\n"
    assert run("remove", "mp-7", "mp-7", "--store", store).out == "1 record removed\n"
    assert run("search", "--format", "ids", "--store", store).out == ""


def test_add_counts_and_names_what_failed(
    run: Run, empty: Database, make_file: MakeFile, tmp_path: Path
) -> None:
    for i in range(2):
        make_file(f"in/mp-{i}.npz", electrons=8.0 + i)
    (tmp_path / "in" / "CHGCAR").write_text("")
    code, out, err = run("add", tmp_path / "in", "--store", empty.path)
    assert code == 1
    assert out.splitlines()[-1] == "2 added, 0 skipped, 1 failed"
    errors = [line for line in err.splitlines() if "note:" not in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"chgdb: error: {tmp_path / 'in' / 'CHGCAR'}: ")
    assert list(empty) == ["mp-0", "mp-1"]


def test_add_takes_ids_species_and_conflicts(
    run: Run, empty: Database, make_file: MakeFile, tmp_path: Path
) -> None:
    lines = make_file("CHGCAR").read_text().splitlines(keepends=True)
    path = tmp_path / "CHGCAR.old"
    path.write_text("".join(lines[:5] + lines[6:]))
    words = ("add", path, "--id", "mine", "--store", empty.path)
    assert run(*words).code == 1
    assert run(*words, "--species", "Ti,O").code == 0
    assert empty["mine"].row["formula"] == "TiO2"
    other = make_file("other.npz", species=("Si",))
    words = ("add", other, "--id", "mine", "--store", empty.path)
    code, _, err = run(*words)
    assert code == 1
    assert_one_line(err)
    assert run(*words, "--on-conflict", "skip").out == f"{other}: skipped, id mine is taken\n"
    assert run(*words, "--on-conflict", "replace").code == 0
    assert empty["mine"].row["formula"] == "Si"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], Tolerance(0.1)),
        (["--tolerance", "1%"], Tolerance(1.0)),
        (["--tolerance", "1"], Tolerance(1.0)),
        (["--tolerance", " 0.05 % "], Tolerance(0.05)),
        (["--tolerance", "0%"], Tolerance(0.0)),
        (["--max-error", "1e-3"], Tolerance(None, 1e-3)),
        (["--tolerance", "0.1%", "--max-error", "0"], Tolerance(0.1, 0.0)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_add_takes_a_tolerance(
    run: Run,
    empty: Database,
    make_file: MakeFile,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    expected: Tolerance,
) -> None:
    asked: list[Tolerance | None] = []
    encode = archive.encode

    def noted(density: ChargeDensity, tolerance: Tolerance | None = None) -> Payload:
        asked.append(tolerance)
        return encode(density, tolerance)

    monkeypatch.setattr(archive, "encode", noted)
    assert run("add", make_file("mp-1.npz"), *words, "--store", empty.path).code == 0
    assert asked == [expected]
    row = empty["mp-1"].row
    assert expected.nmae is None or row["payload_nmae"] <= expected.nmae
    assert expected.max_error is None or row["payload_max_error"] <= expected.max_error


def test_a_store_of_version_1_is_read_and_says_what_to_do(
    run: Run, make_file: MakeFile, tmp_path: Path
) -> None:
    old = shutil.copytree(ROOT / "tests/data/store-v1", tmp_path / "old")
    out = run("get", "mp-1", "--decode", "-o", tmp_path / "CHGCAR", "--store", old).out
    assert "latent of periodic-16" in out
    for words in (["add", make_file("mp-1.npz")], ["remove", "mp-1"]):
        code, _, err = run(*words, "--store", old)
        assert code == 1
        assert_one_line(err)
        assert "of format version 1, which is only read" in err
        assert "chgdb export NEW" in err
    assert run("export", tmp_path / "new", "--store", old).code == 0
    assert run("remove", "mp-1", "--store", tmp_path / "new").code == 0


def test_add_warns_of_what_the_encoder_cannot_hold(
    run: Run, empty: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_POOR_NMAE", -1.0)
    code, _, err = run("add", make_file("AECCAR0"), "--store", empty.path)
    assert code == 0
    assert "the latent holds this density poorly (NMAE" in err


def test_train_and_evaluate_speak_to_training(
    run: Run, models: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", "evaluate", models / "tiny-16", template / "files", "--part")
    parts = [run(*words, part, "--format", "json") for part in ("train", "val", "test")]
    found = [row["id"] for _, out, _ in parts if out for row in json.loads(out)]
    assert sorted(found) == list(Database(template / "store"))
    code, _, err = run(*words, "nothing")
    assert code == 1
    assert_one_line(err)


# --- failing --------------------------------------------------------------------------------

FAILURES: list[tuple[list[str], str]] = [
    (["search", "--sort", "bulk_modulu"], "no column 'bulk_modulu'; did you mean bulk_modulus"),
    (["search", "--sort", "-foo"], "no column 'foo'; there are id,"),
    (["search", "--columns", "id,band_gab"], "no column 'band_gab'; did you mean band_gap"),
    (["search", "--where", "foo > 1"], 'no column "foo"'),
    (["search", "--where", "1; DROP TABLE records"], 'unexpected ";"'),
    (["search", "--where", "read_text('/etc/passwd') = 'x'"], "functions"),
    (["search", "--bulk-modulus", "high"], "not a range"),
    (["search", "--elements", "Tj"], "not an element"),
    (["search", "--crystal-system", "round"], "no crystal system"),
    (["get", "mp-11"], "no record 'mp-11'"),
    (["get", "mp-11", "--decode"], "nearest: mp-1"),
    (["get", "../../etc/passwd", "--decode"], "no record '../../etc/passwd'"),
    (["get", "mp-1", "mp-11", "--decode", "-o", "out"], "no record 'mp-11'"),
    (["get", "mp-1", "--decode", "--grid", "0,1,2"], "three positive numbers"),
    (["get", "mp-1", "--decode", "--grid", "1,2"], "give three numbers"),
    (["get", "mp-1", "--decode", "--grid", "1,2,x"], "give three numbers"),
    (["get", "mp-1", "--decode", "--grid", "4096,4096,4096"], "68719476736 points; at most"),
    (["get", "mp-1", "--grid", "8,8,8"], "add --decode"),
    (["get", "mp-1", "--from", "latent"], "--from is what a density is decoded from: add --decode"),
    (["get", "mp-1", "--decode", "--format", "cif"], "--decode writes"),
    (["get", "mp-1", "-o", "file"], "-o goes with"),
    (["get", "mp-1", "--decode", "-o", "absent/CHGCAR"], "cannot be written"),
    (["get", "mp-1", "mp-2", "--decode", "-o", "a-file"], "several ids need a folder"),
    (["get", "mp-1", "mp-2", "--decode", "-o", "a-file/below"], "cannot be made"),
    (["get", "mp-1", "--decode", "--from=latent", "--device=cuda:99"], "--device cuda:99"),
    (["add", "absent.npz"], "absent.npz: no such file"),
    (["add", "a-folder"], "no density files in a-folder"),
    (["add", "a-file"], "a-file: "),
    (["add", "a-file", "--id", "a", "--id", "b"], "2 ids for 1 files"),
    (["add", "a-file", "--id", "../x"], "cannot be a material id"),
    (["add", "a-file", "--properties", "a-file"], "needs a column material_id"),
    (["add", "a-file", "--device", "abacus"], "--device abacus"),
    (["add", "a-file", "--tolerance", "abc"], "--tolerance abc: give a percentage from 0 to 100"),
    (["add", "a-file", "--tolerance", "-0.1%"], "--tolerance -0.1%: give"),
    (["add", "a-file", "--tolerance", "101%"], "--tolerance 101%: give"),
    (["add", "a-file", "--tolerance", "nan"], "--tolerance nan: give"),
    (["add", "a-file", "--tolerance", "inf"], "--tolerance inf: give"),
    (["add", "a-file", "--tolerance", ""], "--tolerance : give"),
    (["add", "a-file", "--max-error", "-1"], "--max-error -1.0: give a number of 0 or more"),
    (["add", "a-file", "--max-error", "nan"], "--max-error nan: give"),
    (["add", "a-file", "--max-error", "inf"], "--max-error inf: give"),
    (["remove", "mp-1", "mp-9"], "no record 'mp-9'"),
    (["export", "out.xlsx"], "unknown suffix"),
    (["export", "a-file.csv"], "exists already"),
    (["export", "out.csv", "--sort", "foo"], "no column 'foo'"),
    (["export", "out.csv", "--columns", "foo"], "no column 'foo'"),
    (["export", "absent/out.csv"], "cannot be written"),
    (["compare", "mp-1", "nowhere"], "no file 'nowhere', and no record 'nowhere'"),
    (["plot", "mp-1", "-o", "a.png", "--normal", "z"], "plane 'z'"),
]


@pytest.mark.parametrize(("words", "problem"), FAILURES, ids=lambda value: " ".join(value)[:60])
def test_failures_are_one_line_and_change_nothing(
    run: Run,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    problem: str,
) -> None:
    here = tmp_path / "here"
    (here / "a-folder").mkdir(parents=True)
    for name in ("a-file", "a-file.csv"):
        (here / name).write_text("nothing")
    monkeypatch.chdir(here)
    shutil.move(store, here / "store")
    (here / "store" / module.LOCK_FILE).touch()
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()}
    code, out, err = run(*words)
    assert code == 1
    assert out == ""
    assert_one_line(err)
    assert problem in err
    after = {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()}
    after[here / "store" / module.LOCK_FILE] = before[here / "store" / module.LOCK_FILE]
    assert after == before
    assert sorted(path.name for path in here.iterdir()) == [
        *("a-file", "a-file.csv", "a-folder", "store"),
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["serch"], "No such command"),
        (["search", "--elemnts", "Ti"], "No such option"),
        (["search", "--format", "xml"], "Invalid value for '--format'"),
        (["get", "mp-1", "--decode", "--from", "file"], "Invalid value for '--from'"),
        (["add", "file", "--max-error", "small"], "Invalid value for '--max-error'"),
        (["search", "--limit", "0"], "Invalid value for '--limit'"),
        (["get"], "Missing argument"),
        (["info", "mp-1"], "unexpected extra argument"),
        (["train"], "Missing command"),
    ],
)
def test_mistakes_in_the_command_are_one_line(run: Run, words: list[str], problem: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert_one_line(err)
    assert problem in err
    assert "--help)" in err


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "not a chgdb store"), ("{", "damaged"), ("[]", "not the chgdb.json")],
)
def test_no_store(run: Run, tmp_path: Path, content: str | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "chgdb.json").write_text(content)
    for command in (["info"], ["search"], ["get", "a"], ["remove", "a"], ["export", "x.csv"]):
        code, _, err = run(*command, "--store", tmp_path)
        assert code == 1
        assert_one_line(err)
        assert problem in err


def test_damaged_arrays_and_tables(run: Run, store: Path, tmp_path: Path) -> None:
    words = ("get", "mp-1", "--decode", "-o", tmp_path / "CHGCAR", "--store", store)
    shard = store / "latents.zarr" / "payload" / "c" / "0"
    shard.write_bytes(shard.read_bytes()[:100])
    code, _, err = run(*words)
    assert code == 1
    assert_one_line(err)
    assert "mp-1: " in err
    assert err.endswith("--from latent may help\n")
    assert not (tmp_path / "CHGCAR").exists()
    assert run(*words, "--from", "latent").code == 0
    (tmp_path / "CHGCAR").unlink()
    shard = store / "latents.zarr" / "latent" / "c" / "0" / "0" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:100])
    code, _, err = run(*words, "--from", "latent")
    assert code == 1
    assert_one_line(err)
    assert not (tmp_path / "CHGCAR").exists()
    (part,) = (store / "materials").glob("*.parquet")
    part.write_bytes(b"PAR1")
    code, _, err = run("search", "--store", store)
    assert code == 1
    assert_one_line(err)
    assert part.name in err


def test_ids_of_a_hostile_store_lead_nowhere(
    run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    get = Database.get

    def hostile(self: Database, ids: Any) -> Any:
        (record,) = get(self, ["mp-1"])
        record.row["id"] = "../mp-1"
        return [record]

    monkeypatch.setattr(Database, "get", hostile)
    for form in ("chgcar", "cif"):
        code, _, err = run("get", "../mp-1", "--format", form, "--store", store)
        assert code == 1
        assert_one_line(err)
        assert "cannot be a material id" in err
    assert not list(tmp_path.glob("mp-1*"))


def test_debug_shows_the_traceback_from_anywhere(run: Run, store: Path) -> None:
    for words in (["--debug", "search", "--sort", "foo"], ["search", "--sort", "foo", "--debug"]):
        with pytest.raises(chgdb.ChgdbError, match="foo"):
            cli.main([*words, "--store", str(store)])


def test_the_unexpected_is_one_line_too(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(_: Database) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(Database, "summary", defect)
    code, _, err = run("info", "--store", store)
    assert code == 70
    assert_one_line(err)
    assert "unexpected ZeroDivisionError: division by zero" in err


def test_an_interrupt_is_one_line(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Database) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Database, "summary", interrupted)
    assert run("info", "--store", store) == (130, "", "chgdb: interrupted\n")


def test_an_interrupt_that_a_library_disguises_is_one_too(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disguised(_: Database) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("Query interrupted") from None  # as DuckDB does

    monkeypatch.setattr(Database, "summary", disguised)
    assert run("info", "--store", store) == (130, "", "chgdb: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_is_swallowed_stops_add_at_its_next_step(
    run: Run, empty: Database, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallowing(
        self: Database, *_: Any, progress: Callable[[int, int], None], **__: Any
    ) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        progress(1, 2)

    monkeypatch.setattr(Database, "add", swallowing)
    path = make_file("mp-1.npz")
    assert run("add", path, "--store", empty.path) == (130, "", "chgdb: interrupted\n")


# --- in processes of their own --------------------------------------------------------------


def test_ctrl_c_during_add_keeps_what_is_stored(
    empty: Database, make_file: MakeFile, tmp_path: Path
) -> None:
    for i in range(20):
        make_file(f"in/mp-{i}.npz", electrons=8.0 + i)
    process = start_adding(empty, tmp_path / "in")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert err.endswith("chgdb: interrupted\n")  # Python may say what a destructor swallowed
    stored = len(empty)
    assert 2 <= stored < 20
    report = empty.add(tmp_path / "in")
    assert [len(report.skipped), len(report.added)] == [stored, 20 - stored]
    for density in empty.decode(list(empty)):
        assert density.n_electrons == pytest.approx(8.0 + int(density.id[3:]))


LONG = f"""
import chgdb.cli, chgdb.output
chgdb.cli.show = lambda rows, *rest: chgdb.output.show(rows * 2000, *rest)
{COMMAND}
"""
"""Commands that print more than a pipe holds, so that the write that fails is not the last."""


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_a_reader_that_goes_away_is_no_error(
    store: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    process = subprocess.Popen(
        [sys.executable, "-c", LONG, "search", "--format", form, "--store", str(store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert err == b""


def test_a_reader_that_never_was_is_no_error(store: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-c", COMMAND, "search", "--format", "ids", "--store", str(store)],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_one_line(store: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        result = subprocess.run(
            [sys.executable, "-c", COMMAND, "search", "--format", "ids", "--store", str(store)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert_one_line(result.stderr)
    assert "No space left on device" in result.stderr


WITHOUT_TORCH = f"import sys; sys.modules['torch'] = None\n{COMMAND}"


@pytest.mark.parametrize(
    "words",
    [
        ["get", "mp-1", "--decode", "--from", "latent"],
        ["add", "FILE"],
        ["init", "new"],
        ["train", "evaluate", "model", "FILE"],
    ],
    ids=" ".join,
)
def test_without_torch_the_extra_is_named(
    store: Path, template: Path, tmp_path: Path, words: list[str]
) -> None:
    words = [word.replace("FILE", str(template / "files" / "mp-1.npz")) for word in words]
    words = [word.replace("new", str(tmp_path / "new")) for word in words]
    result = in_process(WITHOUT_TORCH, *words, CHGDB_STORE=str(store))
    assert result.returncode == 1
    assert_one_line(result.stderr)
    assert "pip install 'chgdb[ml]'" in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["info"],
        ["search", "--elements", "Ti"],
        ["get", "mp-1"],
        ["get", "mp-1", "--format", "json"],
        ["get", "mp-1", "--decode", "--grid", "8,9,10", "-o", "out.npz"],
        ["compare", "mp-1", "mp-1"],
        ["export", "out.csv"],
        ["export", "out"],
        ["remove", "mp-1"],
    ],
    ids=" ".join,
)
def test_without_torch_the_rest_works(store: Path, tmp_path: Path, words: list[str]) -> None:
    words = [str(tmp_path / word) if word.startswith("out") else word for word in words]
    result = in_process(WITHOUT_TORCH, *words, CHGDB_STORE=str(store))
    assert result.returncode == 0, result.stderr


def test_search_loads_nothing_heavy(store: Path) -> None:
    code = COMMAND.replace(
        "main(sys.argv[1:])",
        "import atexit; heavy = {'torch', 'pandas', 'zarr', 'ase', 'xarray', 'scipy', 'spglib'}; "
        "atexit.register(lambda: print(heavy & set(sys.modules), file=sys.stderr)); "
        "main(sys.argv[1:])",
    )
    for words in (["search", "--format", "ids"], ["info"], ["--help"]):
        result = in_process(code, *words, CHGDB_STORE=str(store))
        assert result.stderr == "set()\n"


def test_decoding_a_payload_loads_no_torch(store: Path, tmp_path: Path) -> None:
    code = COMMAND.replace(
        "main(sys.argv[1:])",
        "import atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); "
        "main(sys.argv[1:])",
    )
    words = ["get", "mp-1", "--decode", "-o", tmp_path / "CHGCAR"]
    assert in_process(code, *words, CHGDB_STORE=str(store)).stderr == "False\n"
    words += ["--from", "latent"]
    assert in_process(code, *words, CHGDB_STORE=str(store)).stderr == "True\n"


def test_search_is_instant(store: Path) -> None:
    """In processor time, which a busy machine does not change much."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert in_process(COMMAND, "search", CHGDB_STORE=str(store)).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(times) < 0.7


def test_the_installed_command_is_this_one() -> None:
    command = Path(sys.executable).with_name("chgdb")
    out = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    assert out == f"chgdb {chgdb.__version__}\n"


# --- documentation --------------------------------------------------------------------------


def test_docs_cli_is_up_to_date() -> None:
    script = ROOT / "scripts" / "make_cli_docs.py"
    result = subprocess.run(
        [sys.executable, script, "-"], capture_output=True, text=True, check=True
    )
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert text == result.stdout, "run: python scripts/make_cli_docs.py docs/cli.md"


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    reading = ("info", "search", "get", "compare", "plot", "predict", "similar")
    for command in (*reading, "init", "add", "remove", "export"):
        assert f"\n### chgdb {command}\n" in text
    for command in ("encoder", "evaluate"):
        assert f"\n### chgdb train {command}\n" in text
    for option in (
        "--on-conflict",
        "--bulk-modulus",
        "--grid",
        "--from",
        "--tolerance",
        "--max-error",
        "--version",
        "--debug",
    ):
        assert option in text


def test_the_examples_of_the_query_language_run(database: Database) -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = text.split("<!-- examples of --where -->")[1]
    examples = [line for line in section.split("```")[1].splitlines()[1:] if line.strip()]
    assert len(examples) >= 10
    for example in examples:
        database.search(where=example)


def test_grids_given_by_the_user_are_numbers() -> None:
    assert cli._parse_grid("8,9,10") == (8, 9, 10)
    assert cli._parse_grid(None) is None
    assert np.prod(cli._parse_grid(" 8 x 9 x 10 ") or ()) == 720
