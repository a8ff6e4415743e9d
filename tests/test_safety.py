"""Attacks by name: what a stranger's store, model or file does to whoever opens it.

docs/safety.md tells of each way in, and names the test that holds it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, MakeFile, Run, state

from chgdb.arrays import LatentArrays
from chgdb.database import Database
from chgdb.errors import ChgdbError, InputError, ModelError, QueryError, StoreError
from chgdb.formats import read_density
from chgdb.parquet import Relation, all_rows
from chgdb.parquet import run as run_query
from chgdb.release import Finding, read_latent
from chgdb.schema import check_id
from chgdb.structure_files import read_structures

MODULES = sorted((ROOT / "chgdb").glob("*.py"))


# --- no code that runs code -----------------------------------------------------------------

FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
    *("yaml", "runpy", "code", "pty", "ctypes", "imp"),
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load"),
    *("pd.read_pickle", "torch.jit.load", "torch.hub.load", "importlib.import_module"),
    *("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output"),
    *("ase.io.read", "pd.eval", "keras.models.load_model"),
}
ARRAY_READERS = {"np.load", "npy.read_array", "numpy.load"}


def offences(source: str) -> Iterator[str]:
    """What a module does that could run code from a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = []
        yield from (name for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        if "ase.io.read" in names:
            yield "ase.io.read"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in FORBIDDEN_CALLS or keywords.get("shell", "False") != "False":
            yield called
        if called in ARRAY_READERS and keywords.get("allow_pickle") != "False":
            yield called
        if keywords.get("allow_pickle", "False") != "False":
            yield called
        if keywords.get("weights_only", "True") != "True":
            yield called


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_can_run_what_it_reads(path: Path) -> None:
    assert list(offences(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "def f():\n    import marshal",
        "eval('1')",
        "torch.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "os.system('true')",
        "Popen('true', shell=True)",
        "from ase.io import read",
        "reader(weights_only=False)",
    ],
)
def test_the_static_check_finds(source: str) -> None:
    assert list(offences(source))


class Bomb:
    """What unpickles to the making of a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


# --- Zarr -----------------------------------------------------------------------------------


def change_metadata(store: Path, name: str, change: dict[str, Any]) -> None:
    """Change what the group says of an array."""
    path = store / "latents.zarr" / "zarr.json"
    root = json.loads(path.read_text())
    arrays = root["consolidated_metadata"]["metadata"]
    arrays[name] = change if "zarr_format" in change else {**arrays[name], **change}
    del root["attributes"]["seal"]  # a stranger seals what he made
    path.write_text(json.dumps(root))


def test_pickle_as_a_codec_of_zarr_2(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numcodecs has a codec that unpickles; older releases use it unasked."""
    mark = tmp_path / "ran"
    n = len(Database(store))
    old = {
        "zarr_format": 2,
        "shape": [n],
        "chunks": [n],
        "dtype": "|O",
        "order": "C",
        "compressor": {"id": "pickle"},
        "filters": [{"id": "vlen-utf8"}],
        "fill_value": "",
        "attributes": {},
        "dimension_separator": ".",
    }
    change_metadata(store, "n_electrons", old)
    (store / "latents.zarr" / "n_electrons" / "0").write_bytes(pickle.dumps(Bomb(mark)))
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    with pytest.raises(StoreError, match="Zarr 3"):
        Database(store)["mp-1"].latent()
    assert not mark.exists()


@pytest.mark.parametrize(
    "codecs",
    [
        [{"name": "bytes"}, {"name": "numcodecs.zlib", "configuration": {"level": 1}}],
        [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}],
    ],
)
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_a_codec_that_is_not_ours(store: Path, codecs: list[dict[str, Any]]) -> None:
    change_metadata(store, "n_electrons", {"codecs": codecs})
    with pytest.raises(StoreError, match="unknown codec"):
        LatentArrays.open(store / "latents.zarr")


def test_ids_that_announce_billions_get_no_memory(store: Path) -> None:
    """numcodecs would make a list of 2^32 - 1 texts before it looks for the first."""
    import google_crc32c
    from numcodecs.zstd import Zstd

    (path,) = (store / "latents.zarr" / "material_id" / "c").iterdir()
    texts = Zstd().decode(path.read_bytes()[:-4])
    packed = Zstd().encode(b"\xff" * 4 + texts[4:])
    path.write_bytes(packed + google_crc32c.value(packed).to_bytes(4, "little"))
    with pytest.raises(StoreError, match=r"does not hold [0-9]+ ids"):
        Database(store)["mp-1"].latent()


@pytest.mark.parametrize("version", ["store-v1", "store-v2"])
def test_our_own_codecs_of_every_version_are_read(version: str) -> None:
    database = Database(ROOT / "tests" / "data" / version)
    assert database["mp-1"].latent().values.any()


# --- arrays of NumPy ------------------------------------------------------------------------


def test_pickle_in_an_npz(make_file: MakeFile, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", make_file("a.npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["numbers"] = np.array([Bomb(mark)], dtype=object)
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="integers"):
        read_density(path)
    assert not mark.exists()


def test_pickle_in_a_latent_of_a_release(tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "a_latent.npy"
    np.save(path, np.array([Bomb(mark)], dtype=object))
    assert isinstance(read_latent(path), Finding)
    assert not mark.exists()


def test_members_of_an_archive_write_nothing(make_file: MakeFile, tmp_path: Path) -> None:
    import zipfile

    path = make_file("inner/a.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../escaped.npy", b"x")
    before = sorted(tmp_path.rglob("*"))
    read_density(path)
    assert sorted(tmp_path.rglob("*")) == before


# --- models ---------------------------------------------------------------------------------


def test_pickle_for_weights(models: Path, tmp_path: Path) -> None:
    """As `torch.save` writes it; the configuration names its hash."""
    from chgdb.codec import load_codec

    mark, folder = tmp_path / "ran", tmp_path / "model"
    shutil.copytree(models / "tiny-16", folder)
    content = pickle.dumps(Bomb(mark))
    (folder / "weights.safetensors").write_bytes(content)
    config = json.loads((folder / "config.json").read_text())
    config["weights_sha256"] = hashlib.sha256(content).hexdigest()
    del config["seal"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="damaged"):
        load_codec(folder, "cpu")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../../secret", "/etc", "a/b", "..", "C:x"])
def test_the_encoder_of_a_store_is_no_path(store: Path, name: str) -> None:
    info = json.loads((store / "chgdb.json").read_text())
    info["encoder"]["id"] = name
    del info["seal"]
    (store / "chgdb.json").write_text(json.dumps(info))
    with pytest.raises(ModelError, match="is not the id of an encoder"):
        Database(store).decode(["mp-1"], source="latent")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000])
def test_json_that_python_cannot_bear(store: Path, tmp_path: Path, text: str) -> None:
    from chgdb.properties import PropertyConfig
    from chgdb.resources import find_property_model
    from chgdb.weights import load_config

    for path in (store / "chgdb.json", tmp_path / "config.json"):
        path.write_text(text)
    with pytest.raises(StoreError):
        Database(store)
    with pytest.raises(ModelError):
        load_config(tmp_path)
    with pytest.raises(ModelError):
        PropertyConfig.parse(text)
    with pytest.raises(ModelError):
        find_property_model(tmp_path)
    (tmp_path / "list.json").write_text(f"[{{}},{text}")
    with pytest.raises(InputError):
        read_structures(tmp_path / "list.json")


def test_a_structure_that_is_none(store: Path) -> None:
    database = Database(store)
    row = database["mp-1"].row
    from chgdb.export import structure_of

    for name, text in (
        ("lattice", "[" * 100_000),
        ("lattice", "no JSON"),
        ("species", "[1, 2, 3]"),
        ("frac_coords", '{"a": 1}'),
    ):
        with pytest.raises(StoreError, match="structure is damaged"):
            structure_of({**row, name: text})


# --- Keras ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["soft", "external", "storage", "virtual", "object"])
def test_a_keras_file_that_leads_elsewhere(tmp_path: Path, kind: str) -> None:
    h5py = pytest.importorskip("h5py")
    from chgdb.keras_weights import read_keras_weights

    path, secret = tmp_path / "w.h5", tmp_path / "secret"
    shape = (3, 3, 3, 1, 2)
    with h5py.File(secret, "w") as file:
        file["w"] = np.ones(shape, np.float32)
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/conv3d/vars")
        if kind == "soft":
            file["other"] = np.ones(shape, np.float32)
            group["0"] = h5py.SoftLink("/other")
        elif kind == "external":
            group["0"] = h5py.ExternalLink(str(secret), "/w")
        elif kind == "storage":
            group.create_dataset("0", shape, "f4", external=[(str(secret), 0, 8 * 216)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource(str(secret), "w", shape)
            group.create_virtual_dataset("0", layout)
        else:
            group.create_dataset("0", shape, h5py.special_dtype(vlen=str))
        group["1"] = np.ones(2, np.float32)
    with pytest.raises(ModelError, match=r"link|no array in this file|no weight"):
        read_keras_weights(path)


def test_a_keras_configuration_is_not_looked_at(keras_release: Any, tmp_path: Path) -> None:
    """A Lambda layer is code in it."""
    h5py = pytest.importorskip("h5py")
    from chgdb.keras_weights import read_keras_weights

    for source in sorted(keras_release.weights.glob("*.h5")):
        path = Path(shutil.copy(source, tmp_path))
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = '{"class_name": "Lambda", "config": "not even JSON'
        expected = read_keras_weights(source)
        found = read_keras_weights(path)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


# --- queries and DuckDB ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "read_text('/etc/passwd') = ''",
        "id IN (SELECT * FROM read_csv('/etc/passwd'))",
        "getenv('HOME') = ''",
        "1 = 1; COPY records TO 'x'",
        "id = '' OR 1 = 1 --",
        "id = ''; ATTACH 'x'",
        "id = (SELECT 1)",
        "\"id\" = '' UNION SELECT 1",
        "$1 = 1",
        "? = 1",
        "id::VARCHAR = 'x'",
        "install httpfs",
        "current_setting('home_directory') = ''",
        "/* */ id = ''",
    ],
)
def test_sql_in_a_query(database: Database, text: str) -> None:
    with pytest.raises(QueryError):
        database.select(where=text)


@pytest.mark.parametrize(
    "value",
    ["' OR '1'='1", "'; DROP TABLE records; --", '" OR ""="', "\\", "%", "$$", "\0", "Ω"],
)
def test_sql_in_a_value(database: Database, value: str) -> None:
    quoted = value.replace("'", "''")
    assert len(database.select(where=f"id = '{quoted}'")) == 0
    assert len(database.select(where=f"id != '{quoted}'")) == 5
    assert value not in database
    assert database.predicted([value]) == {}
    with pytest.raises(StoreError, match="no record"):
        database.get([value])


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM secret",
        "COPY (SELECT 1) TO '/tmp/chgdb-was-here'",
        "ATTACH '/tmp/chgdb-was-here' AS x",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET allowed_paths = ['/etc/passwd']",
        "SELECT 1; SELECT 2",
        "SELECT * FROM read_parquet('https://example.org/a.parquet')",
        "SELECT getenv('HOME')",
    ],
)
def test_what_the_database_itself_may_not(query: str) -> None:
    """Were there a way from a user's text to SQL, it would lead to nothing."""
    secret = Relation("SELECT 1")  # noqa: F841 (a name that a replacement scan would find)
    with pytest.raises(ChgdbError):
        run_query({"records": Relation("SELECT 1 AS id")}, query, (), all_rows)
    assert not Path("/tmp/chgdb-was-here").exists()


@pytest.mark.parametrize("name", ["id=evil", "formula=Xx", "row=7", "source=none", "n_atoms=0"])
def test_a_folder_that_looks_like_a_column(store: Path, tmp_path: Path, name: str) -> None:
    """DuckDB takes `key=value` in a path for a column, and for the truth."""
    moved = tmp_path / name / "store"
    moved.parent.mkdir()
    expected = Database(store).select().rows()
    store.rename(moved)
    assert Database(moved).select().rows() == expected
    Database(moved).remove("mp-1")
    assert Database(moved).select().rows() == expected[1:]


@pytest.mark.parametrize(
    "name",
    ["q'uote", 'dq"x', "per%20cent", "a[b]c", "a*b", "{a,b}", "back\\slash", "$x", "#", "é\n"],
)
def test_a_folder_with_signs(store: Path, tmp_path: Path, name: str) -> None:
    moved = tmp_path / name
    store.rename(moved)
    assert "mp-1" in Database(moved)
    assert len(Database(moved)) == 5


@pytest.mark.parametrize("name", ["a?b", "a[bx]b", "a*b", "{axb,c}"])
def test_a_folder_that_is_a_pattern_is_never_another(
    store: Path, tmp_path: Path, name: str
) -> None:
    """DuckDB reads what the pattern matches, if that is not what it is allowed to read."""
    moved, other = tmp_path / name, tmp_path / "axb"
    shutil.copytree(store, other)
    Database(other).remove("mp-1")
    store.rename(moved)
    with suppress(StoreError):
        assert len(Database(moved)) == 5


# --- paths ----------------------------------------------------------------------------------

ESCAPES = (
    *("../x", "../../x", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "C:x", "C:\\x", ".hidden"),
    *("a\0b", "a\nb", "-rf", "~", "$HOME", "x" * 65, "é", "a b", "a%2fb", "\u202ea", "\uff0a"),
)


@pytest.mark.parametrize("name", ESCAPES)
def test_an_id_is_no_path(name: str) -> None:
    with pytest.raises(InputError, match="cannot be a material id"):
        check_id(name)


@pytest.mark.parametrize("name", ["../x", "/x", "C:x"])
def test_add_refuses_an_id_that_is_a_path(
    database: Database, make_file: MakeFile, name: str
) -> None:
    before = state(database.path)
    with pytest.raises(InputError, match="cannot be a material id"):
        database.add(make_file("a.npz"), ids=[name])
    assert state(database.path) == before


def rename_record(store: Path, old: str, new: str) -> None:
    """Give a record an id that chgdb would not give."""
    import duckdb

    (part,) = (store / "materials").glob("*.parquet")
    made = part.with_name("made")
    duckdb.sql(
        f"COPY (SELECT * REPLACE (replace(id, '{old}', '{new}') AS id) "
        f"FROM read_parquet('{part}')) TO '{made}' (FORMAT parquet)"
    )
    made.replace(part)


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/chgdb-escaped"])
def test_get_writes_no_file_elsewhere(store: Path, tmp_path: Path, run: Run, name: str) -> None:
    rename_record(store, "mp-1", name)
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for words in (["--format", "cif"], ["--decode"], ["--decode", "--format", "npy"]):
        done = run("get", name, "mp-2", "-o", folder, "--store", store, *words)
        assert done.code == 1
        assert "cannot be a material id" in done.err or "holds mp-1" in done.err
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/chgdb-escaped.cif").exists()


def test_a_model_names_no_file_outside(tmp_path: Path) -> None:
    from chgdb.properties import PropertyModel

    folder = Path(shutil.copytree(ROOT / "models" / "properties-1", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["files"]["../secret"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="is no file of the model"):
        PropertyModel.load(folder)


def property_model(folder: Path, change: dict[str, Any]) -> Path:
    """The shipped model with arrays of some files changed, and hashes that fit."""
    pytest.importorskip("lightgbm")
    from safetensors.numpy import load_file, save_file

    shutil.copytree(ROOT / "models" / "properties-1", folder)
    config = json.loads((folder / "config.json").read_text())
    for name, (tensor, values) in change.items():
        save_file({**load_file(folder / name), tensor: values}, folder / name)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        config["files"][name] = digest
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("file", "tensor", "shape"),
    [
        ("full-network-0.safetensors", "entry.weight", (3, 4)),
        ("full-network-0.safetensors", "direct.weight", (4, 1)),
        ("full-scaler.safetensors", "mean", (2,)),
        ("full-scaler.safetensors", "knots", (1,)),
        ("space.safetensors", "points", (7, 3)),
        ("space.safetensors", "elements", (3,)),
    ],
)
def test_a_model_whose_parts_do_not_fit(
    tmp_path: Path, file: str, tensor: str, shape: tuple[int, ...]
) -> None:
    from chgdb.properties import PropertyModel

    folder = property_model(tmp_path / "m", {file: (tensor, np.zeros(shape, np.float32))})
    with pytest.raises(ModelError, match=r"do not fit|not a network"):
        PropertyModel.load(folder).members("full")


# --- links in a store -----------------------------------------------------------------------

needs_links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder with a file that a stranger would like to have changed."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    (folder / ".x.partial").write_text("mine")
    (folder / "000000000-000000005.parquet").write_text("mine")
    return folder


LINKS = (
    *("chgdb.json", "atoms-1.npz", ".lock", "materials", "features", "predictions", "encoder"),
    *("latents.zarr/zarr.json", "latents.zarr/latent/c/999999", "latents.zarr/latent/c/0"),
    *("latents.zarr/payload", "latents.zarr/grid/zarr.json", "materials/.old.partial"),
)


@needs_links
@pytest.mark.parametrize("name", LINKS)
def test_writing_follows_no_link(
    store: Path, victim: Path, make_file: MakeFile, name: str, run: Run
) -> None:
    """`add` and `compact` drop what a crash left: with a link to a home, all that is in it."""
    path = store / name
    is_file = path.is_file() or path.suffix in (".json", ".npz", ".lock", ".partial")
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(victim / "precious" if is_file or name == ".lock" else victim)
    before = state(victim)
    density = make_file("new.npz", species=("Mg", "O"))
    for words in (["add", density], ["compact"], ["remove", "mp-1"]):
        done = run(*words, "--store", store)
        assert done.code == 1
        assert "Traceback" not in done.err
    assert state(victim) == before


@needs_links
def test_a_link_to_nowhere_makes_no_file(store: Path, tmp_path: Path, make_file: MakeFile) -> None:
    (store / "atoms-1.npz").unlink()
    (store / "atoms-1.npz").symlink_to(tmp_path / "planted")
    with pytest.raises(StoreError, match="is a link"):
        Database(store).add(make_file("new.npz", species=("Mg", "O")))
    assert not (tmp_path / "planted").exists()


@needs_links
def test_a_store_that_is_itself_behind_a_link_is_written(
    store: Path, tmp_path: Path, make_file: MakeFile
) -> None:
    link = tmp_path / "link"
    link.symlink_to(store)
    report = Database(link).add(make_file("new.npz", species=("Mg", "O")))
    assert len(report.added) == 1


@needs_links
def test_a_copy_takes_no_secret_along(store: Path, models: Path, tmp_path: Path) -> None:
    """Who passes a copy on must not pass on what a link in a stranger's store led to."""
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    shutil.copytree(models / "tiny-16", store / "encoder")
    (store / "encoder" / "notes").symlink_to(secret)
    Database(store).copy(tmp_path / "copy")
    assert sorted(p.name for p in (tmp_path / "copy" / "encoder").iterdir()) == [
        "config.json",
        "weights.safetensors",
    ]
    assert Database(tmp_path / "copy").decode(["mp-1"], source="latent")


# --- terminals ------------------------------------------------------------------------------

EVIL = "a\x1b[2J\x9b31m\u202etxt\x07\r\nb"


def plain(text: str) -> bool:
    """Whether a terminal only shows it."""
    return all(line.isprintable() for line in text.split("\n"))


def make_evil(store: Path) -> None:
    """Put what terminals obey into every column of text that people are shown."""
    import duckdb

    (part,) = (store / "materials").glob("*.parquet")
    made = part.with_name("made")
    names = ("formula", "source_file", "spacegroup_symbol", "chgdb_version", "reduced_formula")
    evil = "'" + EVIL + "'"
    changed = ", ".join(f"{evil} AS {name}" for name in names)
    changed += f", CASE id WHEN 'mp-5' THEN {evil} ELSE id END AS id"
    duckdb.sql(
        f"COPY (SELECT * REPLACE ({changed}) "
        f"FROM read_parquet('{part}')) TO '{made}' (FORMAT parquet)"
    )
    made.replace(part)
    info = json.loads((store / "chgdb.json").read_text())
    info |= {"attribution": EVIL, "created_by": EVIL}
    del info["seal"]
    (store / "chgdb.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    "words",
    [
        ["info"],
        ["info", "--format", "json"],
        ["search", "--columns", "all"],
        ["search", "--columns", "all", "--format", "json"],
        ["search", "--format", "ids"],
        ["get", "mp-1"],
        ["get", "mp-1", "--format", "json"],
        ["get", "mp-11"],
        ["get", "a[2J31mtxtb"],
        ["verify"],
        ["verify", "--format", "json"],
        ["search", "--where", f"'{EVIL}"],
        ["search", "--sort", EVIL],
        ["get", EVIL],
    ],
    ids=lambda words: " ".join(words).encode("ascii", "ignore").decode().replace("\x1b", ""),
)
def test_a_terminal_obeys_nobody(store: Path, run: Run, words: list[str]) -> None:
    make_evil(store)
    done = run(*words, "--store", store)
    assert plain(done.out), repr(done.out)
    assert plain(done.err), repr(done.err)


def test_json_keeps_what_it_escapes(store: Path, run: Run) -> None:
    make_evil(store)
    done = run("search", "--columns", "formula", "--format", "json", "--store", store)
    assert json.loads(done.out)[0] == {"formula": EVIL}


def test_csv_on_a_terminal_and_in_a_file(
    store: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file gets the truth; a terminal what it can show."""
    make_evil(store)
    words = ("search", "--columns", "formula", "--format", "csv", "--store", store)
    assert EVIL in run(*words).out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert plain(run(*words).out)


def test_names_of_files_do_not_reach_the_terminal(
    store: Path, run: Run, make_file: MakeFile
) -> None:
    path = make_file("a\x1b[2J.npz", species=("Mg", "O"))
    for _ in range(2):
        done = run("add", path, "--store", store)
        assert plain(done.out)
        assert plain(done.err)
    bad = path.with_name("b\x1b[2J.npz")
    bad.write_text("nothing")
    assert plain(run("add", bad, "--store", store).err)


# --- ASE ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.cif@0:3", "db.db@id=1", "postgresql:__x.cif", "x@y.cif"])
def test_names_mean_nothing_to_ase(tmp_path: Path, name: str) -> None:
    """ASE takes `@` for a choice of images, and some names for databases; chgdb reads the bytes."""
    (tmp_path / name).write_text(
        "data_x\n_cell_length_a 4\n_cell_length_b 4\n_cell_length_c 4\n_cell_angle_alpha 90\n"
        "_cell_angle_beta 90\n_cell_angle_gamma 90\nloop_\n_atom_site_label\n_atom_site_fract_x\n"
        "_atom_site_fract_y\n_atom_site_fract_z\nNa 0 0 0\n"
    )
    (entry,) = read_structures(tmp_path / name)
    assert not isinstance(entry, InputError)
    assert entry.structure.species == ("Na",)


@pytest.mark.parametrize("folder", ["dir@1", "a:b"])
def test_names_of_targets_mean_nothing_to_ase(
    store: Path, tmp_path: Path, run: Run, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    for words in (["--format", "cif"], ["--format", "poscar"], ["--decode", "--format", "cube"]):
        done = run("get", "mp-1", "-o", tmp_path / folder, "--store", store, *words)
        assert done.code == 0, done.err
    assert len(list((tmp_path / folder).iterdir())) == 3


@pytest.mark.parametrize(
    "operation", ["__import__('os').mkdir('ran')", "x,y,(1/0)", "exec", "9**9**9"]
)
def test_symmetry_operations_of_a_cif_are_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.cif").write_text(
        "data_x\n_cell_length_a 4\n_cell_length_b 4\n_cell_length_c 4\n_cell_angle_alpha 90\n"
        "_cell_angle_beta 90\n_cell_angle_gamma 90\n_space_group_name_H-M_alt 'P 1'\n"
        f'loop_\n_space_group_symop_operation_xyz\n"x,y,z"\n"{operation},y,z"\n'
        "loop_\n_atom_site_label\n_atom_site_fract_x\n"
        "_atom_site_fract_y\n_atom_site_fract_z\nNa 0 0 0\n"
    )
    with suppress(InputError):
        read_structures("a.cif")
    assert not Path("ran").exists()


# --- what is about -------------------------------------------------------------------------


def test_a_working_folder_is_not_imported_from(store: Path, tmp_path: Path) -> None:
    """Modules beside the files of a stranger are not those that chgdb imports."""
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("numpy", "duckdb", "rich", "json", "typer"):
        (hostile / f"{name}.py").write_text("open('ran', 'w').close()")
    script = Path(sys.executable).with_name("chgdb")
    if not script.exists():
        pytest.skip("chgdb is not installed as a command")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [script, "search", "--store", store], cwd=hostile, capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert not (hostile / "ran").exists()
