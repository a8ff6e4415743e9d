"""The authors' release in a store: it decodes as Keras decodes it, and refuses another encoder."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import KerasRelease, MakeFile, Run
from test_keras_weights import DECODER, ENCODER, FLOAT32_ROUNDING
from test_keras_weights import write as write_weights
from test_release import LATENT, SILICON

import chgdb.release_import
from chgdb.database import Database
from chgdb.errors import MissingExtraError, ModelError, StoreError
from chgdb.files import replace_file
from chgdb.release_import import STORAGE, ReleaseReport, import_release
from chgdb.schema import ENCODER_FOLDER, StoreInfo

MAGNESIA = {
    **SILICON,
    "material_id": "mp-1265",
    "formula_pretty": "MgO",
    "crystal_symbol": "Fm-3m",
    "space_group_number": "225",
    "formula_sp": "MgO_225",
    "debye_temperature": "",
    "formation_energy_per_atom": "-8946770.646",
}

ATOMS = {
    "cell": [[0, 2.7, 2.7], [2.7, 0, 2.7], [2.7, 2.7, 0]],
    "scaled_positions": [[0, 0, 0], [0.25, 0.25, 0.25]],
    "numbers": [14, 14],
}


def write_table(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(SILICON))
        writer.writeheader()
        writer.writerows(rows)
    return path


@dataclass(frozen=True)
class Release:
    """Two latents and their table in a folder of the test."""

    folder: Path
    table: Path
    store: Path

    def load(self, **options: Any) -> ReleaseReport:
        return import_release(self.folder, self.table, self.store, **options)

    @property
    def database(self) -> Database:
        return Database(self.store, device="cpu")


@pytest.fixture
def release(tmp_path: Path) -> Release:
    folder = tmp_path / "latents"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for key in ("Si_227", "MgO_225"):
        np.save(folder / f"{key}_latent.npy", rng.random(LATENT.shape, dtype=np.float32))
    table = write_table(tmp_path / "table.csv", SILICON, MAGNESIA)
    return Release(folder, table, tmp_path / "release")


@pytest.fixture
def halves(tmp_path: Path) -> dict[str, Path]:
    return {
        "decoder": write_weights(tmp_path / "decoder.h5", DECODER),
        "encoder": write_weights(tmp_path / "encoder.h5", ENCODER, legacy=False),
    }


# --- against Keras ----------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["decoder.h5", "both.weights.h5"])
def test_a_store_decodes_what_keras_decodes(
    keras_release: KerasRelease, tmp_path: Path, weights: str
) -> None:
    table = write_table(tmp_path / "table.csv", SILICON, MAGNESIA)
    decoder = keras_release.weights / weights
    report = import_release(
        keras_release.folder / "latents", table, tmp_path / "store", decoder=decoder
    )
    assert sorted(report.imported) == ["mp-1265", "mp-149"]
    database = Database(tmp_path / "store", device="cpu")
    keys = {"mp-149": "Si_227", "mp-1265": "MgO_225"}
    for (material_id, key), box in zip(keys.items(), database.decode_box(list(keys)), strict=True):
        stored = database[material_id].latent().values
        np.testing.assert_array_equal(stored, np.moveaxis(keras_release.latent(key), -1, 0))
        expected = keras_release.decoded(key)
        assert box.shape == (128, 128, 128)
        assert box.dtype == np.float32
        bound = FLOAT32_ROUNDING * np.abs(expected).max()
        np.testing.assert_allclose(box, expected, rtol=0, atol=bound)


# --- what is imported -------------------------------------------------------------------------


def test_records_of_a_release(release: Release) -> None:
    report = release.load()
    assert (report.rows, report.files, report.present, report.failed) == (2, 2, 0, 0)
    assert report.imported == ["mp-149", "mp-1265"]
    assert report.counts == {"no debye_temperature": 1, "implausible cohesive_energy": 1}
    database = release.database
    assert database.info.latent == STORAGE
    record = database["mp-1265"]
    assert record.source == "dft"
    assert record.properties == {
        "bulk_modulus": 88.916,
        "shear_modulus": 65.2,
        "youngs_modulus": 157.18,
        "poisson_ratio": 0.204,
    }
    assert record.row["spacegroup"] == 225
    assert record.row["source_file"] == "MgO_225_latent.npy"
    assert record.row["n_electrons"] is None
    assert record.payload() is None
    expected = np.load(release.folder / "MgO_225_latent.npy")
    np.testing.assert_array_equal(record.latent().values, np.moveaxis(expected, -1, 0))
    assert database.summary()["encoder"] == "release (weights not known)"


def test_bad_files_are_told_of_and_the_rest_is_imported(release: Release) -> None:
    bad: dict[str, Any] = {
        "NaN": np.full_like(LATENT, np.nan),
        "inf": np.full_like(LATENT, np.inf),
        "shape": LATENT[:8],
        "dtype": LATENT.astype(np.float64),
        "zero": np.zeros_like(LATENT),
    }
    rows = [SILICON, MAGNESIA, {**SILICON, "material_id": "gone", "formula_sp": "Si_1"}]
    rows[2]["space_group_number"] = "1"
    for number, (name, latent) in enumerate(bad.items(), start=2):
        key = f"Si_{number}"
        change = {"material_id": name, "formula_sp": key, "space_group_number": str(number)}
        rows.append({**SILICON, **change})
        np.save(release.folder / f"{key}_latent.npy", latent)
    np.save(release.folder / "Ge_227_latent.npy", LATENT)
    (release.folder / "Si_2_latent.npy").write_bytes(b"\x93NUMPY")
    write_table(release.table, *rows)
    report = release.load()
    assert report.imported == ["mp-149", "mp-1265"]
    assert (report.rows, report.files, report.failed) == (8, 7, 5)
    files = {(f.kind, f.subject) for f in report.findings if f.subject.endswith(".npy")}
    assert files == {
        ("unreadable file", "Si_2_latent.npy"),
        ("not finite", "Si_3_latent.npy"),
        ("wrong shape", "Si_4_latent.npy"),
        ("wrong dtype", "Si_5_latent.npy"),
        ("all zero", "Si_6_latent.npy"),
        ("extra file", "Ge_227_latent.npy"),
    }
    assert [f.subject for f in report.findings if f.kind == "missing latent"] == ["gone"]
    # a file that is mended is imported by repeating the import
    np.save(release.folder / "Si_4_latent.npy", LATENT)
    again = release.load()
    assert (again.imported, again.present, again.failed) == (["shape"], 2, 4)


def test_an_import_goes_on_where_it_was_interrupted(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chgdb.release_import, "_BATCH", 1)

    def interrupt(done: int, total: int) -> None:
        assert total == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        release.load(progress=interrupt)
    assert list(release.database) == ["mp-149"]
    steps: list[tuple[int, int]] = []
    report = release.load(progress=lambda *step: steps.append(step))
    assert (report.imported, report.present) == (["mp-1265"], 1)
    assert steps == [(1, 2), (2, 2)]
    assert release.load().imported == []


@pytest.mark.parametrize("file", ["weights.safetensors", "config.json"])
def test_weights_that_were_half_written_are_written_again(
    release: Release, keras_release: KerasRelease, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """A crash before one of the two files of the encoder is repaired by repeating the import."""
    weights = keras_release.weights / "decoder.h5"

    def crashing(path: Path, content: bytes) -> None:
        if path.name == file:
            raise KeyboardInterrupt
        replace_file(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("chgdb.database.replace_file", crashing)
        with pytest.raises(KeyboardInterrupt):
            release.load(decoder=weights)
    release.load(decoder=weights)
    (box,) = release.database.decode_box(["mp-149"])
    assert box.shape == (128, 128, 128)
    assert release.database.verify() == []


def test_structures_may_come_later(release: Release, tmp_path: Path) -> None:
    release.load()
    (tmp_path / "later.json").write_text(json.dumps([{**ATOMS, "id": "mp-149"}]))
    assert release.database["mp-149"].row["n_atoms"] is None
    report = release.load(structures=tmp_path / "later.json")
    assert report.imported == []
    assert release.database["mp-149"].structure.species == ("Si", "Si")


def test_verify_takes_it_for_sound(release: Release, keras_release: KerasRelease) -> None:
    release.load()
    (note,) = release.database.verify()
    assert note.level == "note"
    assert "the weights of its encoder, release, are not known" in note.what
    release.load(decoder=keras_release.weights / "decoder.h5")
    assert Database(release.database.place).verify(deep=True) == []


def test_a_record_without_a_density_gets_its_latent(release: Release) -> None:
    np.save(release.folder / "MgO_225_latent.npy", LATENT[:1])
    release.load()
    database = release.database
    database.import_materials({"mp-1265": {"formula": "MgO", "band_gap": 4.5}})
    np.save(release.folder / "MgO_225_latent.npy", LATENT)
    assert release.load().imported == ["mp-1265"]
    record = release.database["mp-1265"]
    assert record.properties["band_gap"] == 4.5
    assert record.properties["bulk_modulus"] == 88.916
    assert record.latent().values.any()


def test_a_record_of_another_material_is_left_alone(release: Release) -> None:
    np.save(release.folder / "MgO_225_latent.npy", LATENT[:1])
    release.load()
    release.database.import_materials({"mp-1265": {"formula": "NaCl"}})
    np.save(release.folder / "MgO_225_latent.npy", LATENT)
    report = release.load()
    assert (report.imported, report.failed) == ([], 1)
    (finding,) = [f for f in report.findings if f.kind == "refused"]
    assert "MgO, but the record of this id is NaCl" in finding.detail
    assert release.database["mp-1265"].row["formula"] == "NaCl"


def test_structures_that_fit_are_taken(release: Release, tmp_path: Path) -> None:
    items = [
        {**ATOMS, "id": "mp-149"},
        {**ATOMS, "id": "mp-1265", "numbers": [12, 8]},  # zincblende, not rock salt
        {"id": "bad"},
    ]
    (tmp_path / "structures.json").write_text(json.dumps(items))
    report = release.load(structures=tmp_path / "structures.json")
    assert len(report.imported) == 2
    assert ("bad structure", "structures.json") in {(f.kind, f.subject) for f in report.findings}
    (other,) = [f for f in report.findings if f.kind == "other structure"]
    assert (other.subject, other.detail) == ("mp-1265", "space group 216, not 225; not taken")
    database = release.database
    assert database["mp-149"].structure.species == ("Si", "Si")
    assert database["mp-149"].row["spacegroup_symbol"] == "Fd-3m"
    with pytest.raises(StoreError, match="structure is not known"):
        database["mp-1265"].structure  # noqa: B018


# --- weights ----------------------------------------------------------------------------------


def test_without_weights_one_line_says_what_brings_them(
    release: Release, make_file: MakeFile, run: Run
) -> None:
    release.load()
    commands = (
        ("get", "mp-149", "--decode", "--format", "npy"),
        ("add", make_file("a.npz"), "--device", "cpu"),
    )
    for words in commands:
        outcome = run(*words, "--store", release.store)
        assert outcome.code == 1
        assert "weights of release are not known" in outcome.err
        assert "import-release DIR --table CSV --decoder WEIGHTS.h5" in outcome.err
        assert outcome.err.count("\n") == 1


def test_weights_may_come_later_and_in_halves(
    release: Release, halves: dict[str, Path], make_file: MakeFile
) -> None:
    release.load()
    assert StoreInfo.load(release.store).encoder.weights_sha256 == ""
    report = release.load(decoder=halves["decoder"])
    assert (report.imported, report.present) == ([], 2)
    half = release.database
    (first,) = half.decode_box("mp-149")
    with pytest.raises(ModelError, match=r"weights of the encoder are not known.* --encoder"):
        half.add(make_file("a.npz"))
    release.load(encoder=halves["encoder"])
    whole = release.database
    assert whole.info.encoder.weights_sha256 not in ("", half.info.encoder.weights_sha256)
    np.testing.assert_array_equal(whole.decode_box("mp-149")[0], first)
    # again, with any part of them: nothing changes
    for options in ({}, halves, {"decoder": halves["decoder"]}):
        release.load(**options)
        assert release.database.info == whole.info


def test_a_complete_release_takes_densities_too(
    release: Release, halves: dict[str, Path], make_file: MakeFile
) -> None:
    with h5py.File(halves["decoder"], "r+") as file:
        for i, bias in enumerate((0, 0, 0, 1)):  # random weights may decode to no electrons
            name = f"conv3d_{i}" if i else "conv3d"
            file[f"{name}/{name}/kernel:0"][...] *= 0.01
            file[f"{name}/{name}/bias:0"][...] = bias
    release.load(**halves)
    added = release.database.add(make_file("mp-5.npz"))
    assert added.failed == []
    assert release.database.decode("mp-5", source="latent")[0].n_electrons == pytest.approx(16)
    # a density takes the place of a latent that came without one, and the properties stay
    added = release.database.add(make_file("mp-149.npz", species=("Si", "Si")), ids=["mp-149"])
    assert added.failed == []
    record = release.database["mp-149"]
    assert record.properties["bulk_modulus"] == 88.916
    assert record.density().origin == "payload"


def test_mixing_is_refused_by_name(
    release: Release, halves: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="of latents of tiny-16, and these are of release;"):
        import_release(release.folder, release.table, store)
    assert "mp-149" not in Database(store)
    release.load(**halves)
    with h5py.File(shutil.copy(halves["decoder"], tmp_path / "other.h5"), "r+") as file:
        file["conv3d/conv3d/bias:0"][3] += 1
    before = release.database.info
    sha = before.encoder.weights_sha256[:12]
    with pytest.raises(ModelError, match=rf"latents of release \({sha}\), not of release with th"):
        release.load(decoder=tmp_path / "other.h5")
    whole = write_weights(tmp_path / "whole.h5", ENCODER + DECODER)
    with h5py.File(halves["encoder"], "r+") as file:
        file["layers/conv3d/vars/1"][3] += 1
    with pytest.raises(ModelError, match=r"encoder\.h5: down\.0\.bias is not that of .*whole\.h5"):
        release.load(decoder=whole, encoder=halves["encoder"])
    assert release.database.info == before


@pytest.mark.parametrize(
    ("convolutions", "message"),
    [
        (ENCODER, "decoder are missing; give them with --decoder"),
        ([(16, 32), (32, 16), (16, 1)], "a layer is missing or too many.*32, 32, 32"),
        ([(8, 32), (32, 32), (32, 16), (16, 1)], r"a layer is missing or too many.*\(8, 16"),
    ],
)
def test_weights_of_another_network_make_no_store(
    release: Release, tmp_path: Path, convolutions: list[tuple[int, int]], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        release.load(decoder=write_weights(tmp_path / "a.h5", convolutions))
    assert not release.store.exists()


def test_an_encoder_in_the_store_is_checked(release: Release, halves: dict[str, Path]) -> None:
    release.load(decoder=halves["decoder"])
    config = release.store / ENCODER_FOLDER / "config.json"
    content = json.loads(config.read_text())
    del content["seal"]
    config.write_text(json.dumps({**content, "weights_sha256": "0" * 64}))
    with pytest.raises(ModelError, match=r"not the encoder that chgdb\.json names"):
        release.database.decode_box("mp-149")
    shutil.rmtree(config.parent)
    with pytest.raises(ModelError, match="no encoder release"):
        release.database.decode_box("mp-149")
    release.load(decoder=halves["decoder"])  # chgdb.json names these very weights
    assert len(release.database.decode_box("mp-149")) == 1


def test_a_copy_takes_its_encoder_along(
    release: Release, halves: dict[str, Path], tmp_path: Path
) -> None:
    release.load(decoder=halves["decoder"])
    copy = release.database.copy(tmp_path / "copy", ["mp-149"])
    assert copy.info == release.database.info
    np.testing.assert_array_equal(
        copy.decode_box("mp-149")[0], release.database.decode_box("mp-149")[0]
    )


def test_weights_need_h5py(
    release: Release, halves: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"chgdb\[release\]"):
        release.load(decoder=halves["decoder"])
    assert len(release.load().imported) == 2


# --- the command line -------------------------------------------------------------------------


def test_the_command(release: Release, halves: dict[str, Path], run: Run, tmp_path: Path) -> None:
    words = ("import-release", release.folder, "--table", release.table, "--store", release.store)
    (release.folder / "notes.txt").touch()
    outcome = run(*words, "--decoder", halves["decoder"], "--report", tmp_path / "report.json")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0] == "2 rows, 2 latents: 2 imported, 0 there already, 0 bad"
    assert lines[1].split() == ["1", "extra", "file"]
    assert "extra file: notes.txt: no row of the table takes it" in lines
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["imported"] == ["mp-149", "mp-1265"]
    assert report["counts"]["extra file"] == 1
    assert len(report["findings"]) == sum(report["counts"].values())

    target = tmp_path / "box.npy"
    outcome = run("get", "mp-149", "--decode", "--store", release.store, "-o", target)
    assert outcome.code == 0
    np.testing.assert_array_equal(np.load(target), release.database.decode_box("mp-149")[0])
    many = ("get", "mp-149", "mp-1265", "--decode", "--format", "npy", "--store", release.store)
    assert run(*many, "-o", tmp_path / "boxes").code == 0
    assert sorted(path.name for path in (tmp_path / "boxes").iterdir()) == [
        "mp-1265.npy",
        "mp-149.npy",
    ]
    outcome = run("get", "mp-149", "--decode", "--store", release.store, "-o", tmp_path / "CHGCAR")
    assert outcome.code == 1
    assert "mp-149: came as a latent" in outcome.err
    assert "--format npy" in outcome.err
    assert run(*many, "--grid", "8,8,8").code == 1
    assert run("info", "--store", release.store).code == 0
    assert run("search", "--store", release.store, "--source", "dft").out.count("mp-") == 2


def test_a_bad_latent_makes_the_command_fail(release: Release, run: Run) -> None:
    for name in ("Si_227", "MgO_225"):
        np.save(release.folder / f"{name}_latent.npy", LATENT[0])
    words = ("import-release", release.folder, "--table", release.table, "--store", release.store)
    outcome = run(*words, "--limit", 1)
    assert outcome.code == 1
    assert "0 imported, 0 there already, 2 bad" in outcome.out
    assert "wrong shape: and 1 more" in outcome.out


def test_a_bucket_is_refused(release: Release, run: Run) -> None:
    words = ("import-release", release.folder, "--table", release.table, "--store", "s3://b/x")
    outcome = run(*words)
    assert outcome.code == 1
    assert "chgdb export s3://b/x --store FOLDER" in outcome.err


def test_the_store_by_default(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHGDB_STORE", raising=False)
    import_release(release.folder, release.table)
    assert len(Database(tmp_path / "store")) == 2
    monkeypatch.setenv("CHGDB_STORE", str(tmp_path / "elsewhere"))
    import_release(release.folder, release.table)
    assert len(Database(tmp_path / "elsewhere")) == 2
