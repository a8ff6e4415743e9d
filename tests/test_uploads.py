"""Files that the page was given: what is told of them, what reaches the disk and the store."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, MakeFile, Run

from chgdb.database import Database
from chgdb.errors import InputError, UnknownIdError
from chgdb.uploads import Upload, Uploads

MGO = ROOT / "examples" / "MgO.CHGCAR.xz"


@pytest.fixture
def database(tmp_path: Path) -> Database:
    path = tmp_path / "store"
    shutil.copytree(ROOT / "store", path, ignore=shutil.ignore_patterns(".lock*"))
    return Database(path, device="cpu")


@pytest.fixture
def uploads(database: Database) -> Iterator[Uploads]:
    made = Uploads(database)
    yield made
    made.close()


Send = Callable[[str, bytes], Upload]


@pytest.fixture
def send(uploads: Uploads) -> Send:
    def sent(name: str, content: bytes) -> Upload:
        upload = uploads.expect(name)
        upload.path.write_bytes(content)
        uploads.examine(upload)
        return upload

    return sent


def finished(upload: Upload) -> Upload:
    end = time.monotonic() + 120
    while upload.is_busy:
        assert time.monotonic() < end
        time.sleep(0.02)
    return upload


def test_a_file_is_examined_and_added(database: Database, uploads: Uploads, send: Send) -> None:
    upload = finished(send("run 1/MgO.CHGCAR.xz", MGO.read_bytes()))
    assert (upload.state, upload.error, upload.name) == ("done", None, "MgO.CHGCAR.xz")
    found = upload.examined
    assert found is not None
    row = found.record.row
    assert (found.suggested_id, found.stored_as, row["formula"]) == ("MgO", None, "MgO")
    assert row["payload_nmae"] < 0.1
    assert 0.1 < row["latent_nmae"] < 10
    assert upload.size == MGO.stat().st_size
    assert found.predicted_error is None
    assert found.similar_error is None
    assert found.predicted == pytest.approx(
        {name: database.predict(MGO)[name][0] for name in found.predicted or ()}
    )
    assert found.similar == database.nearest(MGO, 8).rows()
    assert "MgO" not in database

    uploads.add(upload, "my-1", "error")
    finished(upload)
    assert (upload.added, upload.add_error) == ("my-1", None)
    stored = Database(database.place)["my-1"].row
    same = ("payload_nmae", "payload_bytes", "latent_nmae", "source_sha256", "n_electrons")
    assert {name: stored[name] for name in same} == {name: row[name] for name in same}
    assert stored["source_file"] == "MgO.CHGCAR.xz"

    again = finished(send("b", MGO.read_bytes()))
    assert again.examined is not None
    assert again.examined.stored_as == "my-1"
    uploads.add(again, "mp-149", "error")
    finished(again)
    assert again.added is None
    assert "mp-149" in str(again.add_error)
    assert str(again.path) not in str(again.add_error)


@pytest.mark.parametrize("name", ["cut.CHGCAR", "../../cut.CHGCAR", "C:\\x\\cut.CHGCAR"])
def test_a_broken_file_fails_in_the_words_of_the_command_line(
    database: Database, send: Send, make_file: MakeFile, run: Run, name: str
) -> None:
    path = make_file("cut.CHGCAR")
    path.write_bytes(path.read_bytes()[:-400])
    upload = finished(send(name, path.read_bytes()))
    assert upload.state == "failed"
    outcome = run("add", path, "--store", database.path)
    assert outcome.code != 0
    assert upload.error is not None
    assert upload.error.startswith("cut.CHGCAR: ")
    assert upload.error in outcome.err.replace(str(path), "cut.CHGCAR")


@pytest.mark.parametrize("name", ["../../x", "a/../b", "..", "", "\0", "x" * 900, "a\nb", "é.gz"])
def test_a_name_leads_nowhere(uploads: Uploads, name: str) -> None:
    upload = uploads.expect(name)
    folder = Path(uploads._folder.name)
    assert upload.path.parent.parent == folder
    assert upload.path.name.isascii()
    assert len(upload.path.name) <= 100
    upload.path.write_bytes(b"")
    uploads.forget(upload)
    assert list(folder.iterdir()) == []


def test_the_oldest_goes(uploads: Uploads, send: Send) -> None:
    first = finished(send("a", b"nothing"))
    for name in "bcdefghi":
        finished(send(name, b"nothing"))
    with pytest.raises(UnknownIdError, match="drop it again"):
        uploads.get(first.id)
    assert not first.path.exists()


def test_there_are_only_so_many_at_once(uploads: Uploads) -> None:
    for name in "abcdefgh":
        uploads.expect(name)
    with pytest.raises(InputError, match="8 files are being read"):
        uploads.expect("i")


def test_a_file_that_is_forgotten_is_not_read(uploads: Uploads, send: Send) -> None:
    first, second = send("a", MGO.read_bytes()), send("b", MGO.read_bytes())
    uploads.forget(second)
    uploads.forget(first)
    finished(first)
    finished(second)
    assert second.state == "failed"
    assert second.examined is None
    assert not second.path.exists()
    assert not first.path.exists()


def test_what_is_not_examined_is_not_added(uploads: Uploads) -> None:
    with pytest.raises(InputError, match="not ready"):
        uploads.add(uploads.expect("a"), "a", "error")


def test_nothing_is_left(database: Database) -> None:
    uploads = Uploads(database)
    folder = Path(uploads._folder.name)
    upload = uploads.expect("a")
    upload.path.write_bytes(b"x")
    uploads.examine(upload)
    uploads.close()
    assert not folder.exists()
