"""What the page draws: fields and planes of records, and of the files they came from."""

from __future__ import annotations

import base64
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from chgdb.database import Database, Record
from chgdb.decoded import DecodedDensity
from chgdb.errors import InputError, NotKnownError
from chgdb.formats import read_density
from chgdb.grid import fourier_resample
from chgdb.subjects import Subject, Subjects

SILICON = ROOT / "examples" / "mp-149.CHGCAR.gz"


@pytest.fixture(scope="module")
def silicon() -> Record:
    return Database(ROOT / "store")["mp-149"]


def test_sources_are_what_there_is(silicon: Record) -> None:
    assert Subject(silicon, None).sources == ["payload", "latent"]
    assert Subject(silicon, SILICON).sources == ["original", "payload", "latent"]
    database = Database(ROOT / "store")
    (bare,) = database.select(source="none", columns="id", limit=1).values[0]
    assert Subject(database[bare], None).sources == []


def test_errors_are_those_that_are_stored(silicon: Record) -> None:
    errors = Subject(silicon, SILICON).errors
    assert set(errors) == {"payload", "latent"}
    assert errors["payload"]["nmae"] == silicon.row["payload_nmae"]
    assert errors["payload"]["bytes"] == silicon.row["payload_bytes"]
    assert errors["latent"]["electron_error"] == silicon.row["latent_electron_error"]


def test_a_field_is_the_density_on_a_grid_for_drawing(silicon: Record) -> None:
    field = Subjects().field(Subject(silicon, None), "payload", 20)
    assert field.values.shape == (20, 20, 20)
    assert field.nmae == silicon.row["payload_nmae"]
    expected = fourier_resample(silicon.density().values, (20, 20, 20))
    np.testing.assert_allclose(field.values, expected, atol=1e-6)
    volume = silicon.structure.volume
    assert field.values.mean() * volume == pytest.approx(silicon.row["n_electrons"], rel=1e-6)


def test_steps_are_about_equal_along_all_axes() -> None:
    database = Database(ROOT / "store")
    found = database.select(columns="id", sort="volume", descending=True, source="dft", limit=1)
    record = database[found.values[0][0]]
    field = Subjects().field(Subject(record, None), "payload", 48)
    lengths = np.linalg.norm(record.structure.lattice, axis=1)
    assert max(field.values.shape) == 48
    np.testing.assert_allclose(field.values.shape / lengths, 48 / lengths.max(), rtol=0.05)


def test_a_plane_has_original_and_decoded(silicon: Record) -> None:
    subject = Subject(silicon, SILICON)
    told = Subjects().plane(subject, ["original", "payload"], (1, 1, 0), 0.0, 30)
    original, payload = (
        np.frombuffer(base64.b64decode(field["values"]), "<f4").reshape(told["shape"])
        for field in told["fields"]
    )
    assert [field["nmae"] for field in told["fields"]] == [None, silicon.row["payload_nmae"]]
    assert 0 < np.abs(original - payload).sum() / original.sum() < 0.01
    density, _ = read_density(SILICON)
    assert original.max() <= density.values.max() * 1.01
    assert told["miller"] == (1, 1, 0)
    assert set(told["atoms"][0]) == {"symbol", "s", "t", "distance"}


def test_a_density_is_decoded_once(silicon: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    decode = Record.density

    def counted(self: Record, **options: Any) -> DecodedDensity:
        asked.append(self.id)
        return decode(self, **options)

    monkeypatch.setattr(Record, "density", counted)
    subjects, subject = Subjects(), Subject(silicon, SILICON)
    for height in (0.0, 0.1, 0.2):
        subjects.plane(subject, ["payload"], (1, 0, 0), height, 16)
    subjects.field(subject, "payload", 16)
    assert len(asked) == 1
    monkeypatch.setattr("chgdb.subjects._CACHED_BYTES", 10)
    for _ in range(2):  # those of one subject stay, however large
        for source in ("original", "payload"):
            subjects.field(subject, source, 16)
    assert len(asked) == 1
    other = Subject(silicon, None)
    monkeypatch.setitem(other.record.row, "added", "later")
    subjects.field(other, "payload", 16)
    assert len(asked) == 2
    assert len(subjects._kept) == 1


def test_who_asks_at_once_waits_for_one_decoding(
    silicon: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    decode = Record.density

    def slow(self: Record, **options: Any) -> DecodedDensity:
        asked.append(self.id)
        time.sleep(0.05)
        return decode(self, **options)

    monkeypatch.setattr(Record, "density", slow)
    subjects, subject = Subjects(), Subject(silicon, None)
    with ThreadPoolExecutor(4) as pool:
        fields = list(pool.map(lambda n: subjects.field(subject, "payload", n), [12] * 8))
    assert len(asked) == 1
    for field in fields:
        np.testing.assert_array_equal(field.values, fields[0].values)


def test_a_record_without_a_density_says_so() -> None:
    database = Database(ROOT / "store")
    for where in ("n_atoms IS NULL", "n_atoms > 0"):
        found = database.select(source="none", where=where, columns="id", limit=1)
        subject = Subject(database[found.values[0][0]], None)
        with pytest.raises(NotKnownError, match="holds no density of it; add one with"):
            Subjects().field(subject, "payload", 16)


@pytest.mark.parametrize("points", [0, -5, 129, 10**9])
def test_a_field_has_a_largest_size(silicon: Record, points: int) -> None:
    with pytest.raises(InputError, match="give 4 to 128"):
        Subjects().field(Subject(silicon, None), "payload", points)
    with pytest.raises(InputError, match="give 8 to 512"):
        Subjects().plane(Subject(silicon, None), ["payload"], (1, 0, 0), 0.0, points * 5)


@pytest.mark.parametrize("source", ["original", "", "../../etc/passwd", "Payload"])
def test_a_source_that_is_not_there(silicon: Record, source: str) -> None:
    with pytest.raises(InputError, match=r"there is payload, latent$"):
        Subjects().field(Subject(silicon, None), source, 16)
