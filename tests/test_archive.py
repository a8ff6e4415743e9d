"""The archival codec: a tolerance is a promise, whatever the density, and damage is noticed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from analytic import SKEW, cosines, gaussians
from ase.build import bulk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chgdb.archive import Payload, Tolerance, check, decode, encode
from chgdb.density import ChargeDensity, Grid, Structure
from chgdb.errors import ChgdbError, InputError, StoreError
from chgdb.formats import read_density
from chgdb.grid import fourier_resample
from chgdb.stars import wrapped

ROOT = Path(__file__).parents[1]
FROZEN = ROOT / "tests" / "data" / "payloads-v1"
ELECTRONS = 1e-8
"""Relative error of the electrons, at most."""
MACHINES = 1e-9
"""How far a decoded value may be from that of the machine that wrote it, of the mean density."""
SMALL_SPIN = 1e-4
"""Part of the density below which a magnetization counts as this part."""

DIAMOND = Structure.from_ase(bulk("Si", a=5.43))
ROCKSALT = Structure.from_ase(bulk("NaCl", "rocksalt", a=5.64, cubic=True))
WURTZITE = Structure.from_ase(bulk("ZnO", "wurtzite", a=3.25, c=5.2))
SLAB = Structure(np.diag([4.0, 4.0, 20.0]), ("Al", "Al"), np.array([[0, 0, 0.1], [0.5, 0.5, 0.2]]))
NO_ATOMS = Structure(SKEW, (), np.zeros((0, 3)))
PLACES = np.array([[0.1, 0.2, 0.3], [0.6, 0.5, 0.4]])
UNKNOWN = Structure(SKEW, ("Xx", "Fe_pv/abc"), PLACES)
OVERLAPPING = Structure(SKEW, ("C", "C", "O"), PLACES[[0, 0, 1]] + [[0] * 3, [0] * 3, [0, 0, 1e-4]])


def many_atoms() -> Structure:
    places = np.random.default_rng(5).random((100, 3))
    return Structure(SKEW * 3.0, ("Fe", "O", "C", "H") * 25, places)


def noise(grid: Grid, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=grid)


def peaks(grid: Grid, height: float) -> NDArray[np.float64]:
    """As of an AECCAR: a few points far above a smooth rest."""
    values = gaussians(grid, ROCKSALT)
    values[0, 0, 0] += height
    values[grid[0] // 2, grid[1] // 2, grid[2] // 2] += 0.3 * height
    return values


def asymmetric(grid: Grid) -> NDArray[np.float64]:
    extra = Structure(DIAMOND.lattice, ("H",), np.array([[0.31, 0.12, 0.7]]))
    return gaussians(grid, DIAMOND, width=0.8) + 0.1 * gaussians(grid, extra, width=0.8)


KINDS: dict[str, Callable[[], tuple[NDArray[np.float64], Structure]]] = {
    "smooth": lambda: (gaussians((12, 12, 12), DIAMOND, width=0.7), DIAMOND),
    "odd grid": lambda: (gaussians((11, 9, 15), DIAMOND, width=0.8), DIAMOND),
    "prime grid": lambda: (gaussians((11, 13, 17), WURTZITE, width=0.7), WURTZITE),
    "asymmetric in a symmetric cell": lambda: (asymmetric((10, 10, 10)), DIAMOND),
    "noise": lambda: (noise((7, 8, 5)), DIAMOND),
    "constant and noise": lambda: (1 + 1e-3 * noise((6, 6, 6)), DIAMOND),
    "constant": lambda: (np.full((5, 6, 7), 0.3), ROCKSALT),
    "peaks of 1e5": lambda: (peaks((8, 8, 8), 1e5), ROCKSALT),
    "negative": lambda: (-gaussians((10, 10, 15), WURTZITE), WURTZITE),
    "of mean zero": lambda: (cosines((9, 9, 8), [((1, 0, 1), 1.0, 0.3)], 0.0), ROCKSALT),
    "1e-12": lambda: (1e-12 * gaussians((10, 10, 12), WURTZITE), WURTZITE),
    "1e12": lambda: (1e12 * gaussians((10, 10, 12), WURTZITE), WURTZITE),
    "1 x 1 x 1": lambda: (np.full((1, 1, 1), 3.25), DIAMOND),
    "1 x 1 x n": lambda: (np.abs(noise((1, 1, 17))), DIAMOND),
    "1 x n x 1": lambda: (np.abs(noise((1, 8, 1))), ROCKSALT),
    "2 x 2 x 2": lambda: (noise((2, 2, 2)), ROCKSALT),
    "vacuum": lambda: (gaussians((8, 8, 40), SLAB, width=0.8, background=0.0), SLAB),
    "without atoms": lambda: (cosines((6, 7, 9), [((1, 2, 0), 0.5, 0.1)], 1.0), NO_ATOMS),
    "unknown species": lambda: (gaussians((12, 12, 15), UNKNOWN, width=0.7), UNKNOWN),
    "overlapping atoms": lambda: (gaussians((12, 12, 15), UNKNOWN, width=0.7), OVERLAPPING),
    "primitive": lambda: of_cell((1, 1, 1), (8, 8, 8)),
    "supercell": lambda: of_cell((2, 1, 1), (16, 8, 8)),
}

TOLERANCES = [
    Tolerance(10.0),
    Tolerance(),
    Tolerance(1e-3),
    Tolerance(1e-6),
    Tolerance(0.0),
    Tolerance(None, 1e-3),
    Tolerance(1.0, 1e-5),
    Tolerance(1.0, 0.0),
]


def of_cell(repeat: Grid, grid: Grid) -> tuple[NDArray[np.float64], Structure]:
    structure = Structure.from_ase(bulk("Al", a=4.05).repeat(repeat))
    return gaussians(grid, structure, width=0.8), structure


def assert_kept(
    values: NDArray[np.float64], back: NDArray[np.float64], size: float, tolerance: Tolerance
) -> None:
    """The promise, measured without the help of the codec."""
    error = np.abs(back - values)
    if tolerance.nmae is not None:
        assert error.mean() <= tolerance.nmae / 100 * size * (1 + 1e-12)
    if tolerance.max_error is not None:
        assert error.max() <= tolerance.max_error
    if 0.0 in (tolerance.nmae, tolerance.max_error):
        assert back.tobytes() == values.tobytes()


def round_trip(density: ChargeDensity, tolerance: Tolerance) -> Payload:
    """Encode, and hold what it decodes to against the promise and the figures given."""
    values, structure = density.values, density.structure
    kept = values.tobytes()
    payload = encode(density, tolerance)
    assert density.values.tobytes() == kept
    back = decode(payload.data, structure)
    assert decode(payload.data, structure).values.tobytes() == back.values.tobytes()
    assert back.structure is structure
    assert back.grid == density.grid
    size = float(np.abs(values).mean())
    assert_kept(values, back.values, size, tolerance)
    assert abs(back.values.mean() - values.mean()) <= ELECTRONS * size
    error = np.abs(back.values - values)
    assert payload.error.nmae == pytest.approx(100 * error.mean() / size, rel=1e-9)
    assert payload.error.max_error == error.max()
    assert payload.error.electron_error == back.n_electrons - density.n_electrons
    assert set(payload.method.split("+")) <= {"crystal", "grid", "lossless"}
    if density.magnetization is None:
        assert back.magnetization is None
        assert payload.magnetization_nmae is None
    else:
        assert back.magnetization is not None
        assert payload.magnetization_nmae is not None
        for spin, other in zip(density.magnetization, back.magnetization, strict=True):
            of_spin = max(float(np.abs(spin).mean()), SMALL_SPIN * size)
            assert_kept(spin, other, of_spin, tolerance)
    return payload


# ---------------------------------------------------------------- tolerances


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        pytest.param(kind, tolerance, id=f"{kind}, {tolerance.nmae} %, {tolerance.max_error}")
        for i, kind in enumerate(KINDS)
        for j, tolerance in enumerate(TOLERANCES)
        if j == 1 or (i + j) % 5 == 0  # the default for all, each of the others for a fifth
    ],
)
def test_the_tolerance_is_kept(kind: str, tolerance: Tolerance) -> None:
    values, structure = KINDS[kind]()
    payload = round_trip(ChargeDensity(values, structure), tolerance)
    assert len(payload.data) <= 8 * values.size + 100


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([DIAMOND, WURTZITE, SLAB, NO_ATOMS, UNKNOWN]),
    st.tuples(*[st.integers(1, 6)] * 3),
    st.integers(0, 10**6),
    st.floats(-1, 5),
    st.floats(-1, 1),
    st.floats(-6, 1),
    st.none() | st.floats(-9, 3),
)
def test_any_field_at_any_tolerance(
    structure: Structure,
    grid: Grid,
    seed: int,
    exponent: float,
    constant: float,
    percent: float,
    largest: float | None,
) -> None:
    values = 10.0**exponent * (constant + noise(grid, seed))
    tolerance = Tolerance(10.0**percent, None if largest is None else 10.0**largest)
    round_trip(ChargeDensity(values, structure), tolerance)


@pytest.mark.parametrize("height", [1e30, 1e200, 1e-30, 1e-200])
def test_values_beyond_all_physics(height: float) -> None:
    """A file in the wrong unit is kept, or refused; not more."""
    values = height * gaussians((6, 6, 8), WURTZITE)
    with np.errstate(all="ignore"):
        round_trip(ChargeDensity(values, WURTZITE), Tolerance())


def test_a_hundred_atoms_without_symmetry_on_a_coarse_grid() -> None:
    """More functions than points."""
    structure = many_atoms()
    values = gaussians((6, 6, 8), structure, width=1.2)
    round_trip(ChargeDensity(values, structure), Tolerance())


def test_few_electrons_are_kept_as_well_as_many() -> None:
    """To a part of themselves, not to a part of one electron."""
    for electrons in (1e-9, 1e-3, 0.02, 0.3, 1.0, 50.0, 3e4, 1e7):
        values = gaussians((8, 8, 12), WURTZITE, width=0.9)
        values *= electrons / (values.mean() * WURTZITE.volume)
        for tolerance in (Tolerance(), Tolerance(None, 1e-3)):
            round_trip(ChargeDensity(values, WURTZITE), tolerance)


def test_electrons_of_the_real_densities() -> None:
    for name in ("mp-149.CHGCAR.gz", "MgO.CHGCAR.xz"):
        density, _ = read_density(ROOT / "examples" / name)
        for percent in (1.0, 0.1):
            payload = round_trip(density, Tolerance(percent))
            assert payload.method == "crystal"
            assert abs(payload.error.electron_error) <= ELECTRONS * density.n_electrons


def test_the_shared_vasp_files(shared: Path) -> None:
    """Without and with spin, noncollinear; written by VASP, so with its rounding."""
    for path in sorted((shared / "chgcar").glob("*CHGCAR*")):
        density, _ = read_density(path)
        if density.values.size < 200_000:
            payload = round_trip(density, Tolerance())
            assert len(payload.data) < density.values.size / 20 + 400


def test_a_finer_tolerance_takes_more_bytes() -> None:
    density = ChargeDensity(gaussians((14, 14, 20), WURTZITE), WURTZITE)
    sizes = [len(encode(density, Tolerance(p)).data) for p in (10, 1, 0.1, 1e-2, 1e-3, 0)]
    assert sizes == sorted(sizes)
    assert sizes[2] < 150


def test_lossless_keeps_the_sign_of_zero() -> None:
    values = np.array([[[0.0, -0.0, 1.5, -1e-310, 5e-324, 1.7e300]]])
    back = decode(encode(ChargeDensity(values, SLAB), Tolerance(0.0)).data, SLAB)
    assert back.values.tobytes() == values.tobytes()


def test_a_block_of_large_values_of_changing_sign() -> None:
    """Differences along three axes are eight times the values: they must not overflow."""
    sign = (-1.0) ** np.indices((4, 4, 4)).sum(axis=0)
    values = 1e-9 * noise((32, 32, 32))
    values[:4, :4, :4] = 3.0 * sign
    for nmae in (1e-10, 1e-11, 1e-12, 3e-13, 1e-13, 3e-14):
        round_trip(ChargeDensity(values, NO_ATOMS), Tolerance(nmae))


@pytest.mark.parametrize(
    ("nmae", "largest"),
    [
        (None, None),
        (-1.0, None),
        (0.1, -1e-9),
        (math.nan, None),
        (math.inf, None),
        (None, math.inf),
    ],
)
def test_a_tolerance_that_means_nothing_is_refused(
    nmae: float | None, largest: float | None
) -> None:
    with pytest.raises(InputError, match="tolerance"):
        Tolerance(nmae, largest)


def test_a_density_of_zero_is_refused() -> None:
    with pytest.raises(InputError, match="zero everywhere"):
        encode(ChargeDensity(np.zeros((4, 4, 4)), DIAMOND))


# ---------------------------------------------------------------- magnetization

SPINS: dict[str, list[float]] = {
    "collinear": [0.3],
    "small": [1e-3],
    "negligible": [1e-7],
    "zero": [0.0],
    "noncollinear": [0.3, -0.1, 0.02],
    "noncollinear along c": [0.0, 0.0, 0.4],
}


@pytest.mark.parametrize("percent", [0.1, 0.0])
@pytest.mark.parametrize("name", sorted(SPINS))
def test_magnetization_has_its_own_tolerance(name: str, percent: float) -> None:
    grid = (8, 8, 12)
    values = gaussians(grid, WURTZITE, width=0.9)
    one = Structure(WURTZITE.lattice, ("Zn",), WURTZITE.frac_coords[:1])
    spin = gaussians(grid, one, width=0.9, background=-0.01)
    magnetization = np.stack([share * spin for share in SPINS[name]])
    density = ChargeDensity(values, WURTZITE, magnetization)
    payload = round_trip(density, Tolerance(percent))
    alone = encode(ChargeDensity(values, WURTZITE), Tolerance(percent))
    assert len(payload.data) >= len(alone.data)
    assert payload.error == alone.error
    back = decode(payload.data, WURTZITE).magnetization
    assert back is not None
    if name in ("zero", "noncollinear along c"):
        assert not back[0].any()


def test_an_antiferromagnet_of_no_moment() -> None:
    """A magnetization of mean zero, whose symmetry is less than that of the density."""
    grid = (9, 9, 9)
    values = gaussians(grid, ROCKSALT, width=0.9)
    spin = cosines(grid, [((1, 1, 1), 0.4, 0.0), ((1, -1, 1), 0.1, 0.5)], 0.0)
    for percent in (1.0, 0.1):
        round_trip(ChargeDensity(values, ROCKSALT, spin[None]), Tolerance(percent))


def test_the_largest_error_holds_for_the_magnetization_too() -> None:
    grid = (10, 10, 14)
    values = gaussians(grid, WURTZITE, width=0.8)
    round_trip(ChargeDensity(values, WURTZITE, 0.2 * values[None]), Tolerance(None, 1e-4))


# ---------------------------------------------------------------- other grids


@pytest.mark.parametrize("kind", ["smooth", "noise"])
@pytest.mark.parametrize("grid", [(16, 15, 17), (5, 4, 3), (7, 8, 5)])
def test_other_grids_are_the_fourier_series(kind: str, grid: Grid) -> None:
    values, structure = KINDS[kind]()
    density = ChargeDensity(values, structure, np.stack([values, 2 * values, -values]))
    for tolerance in (Tolerance(), Tolerance(0.0)):
        data = encode(density, tolerance).data
        own, other = decode(data, structure), decode(data, structure, grid)
        assert other.grid == grid
        np.testing.assert_array_equal(other.values, fourier_resample(own.values, grid))
        assert own.magnetization is not None
        assert other.magnetization is not None
        for spin, resampled in zip(own.magnetization, other.magnetization, strict=True):
            np.testing.assert_array_equal(resampled, fourier_resample(spin, grid))
        assert other.n_electrons == pytest.approx(own.n_electrons, rel=1e-12)


@pytest.mark.parametrize("grid", [(0, 4, 4), (4, -1, 4), (10**5,) * 3])
def test_a_grid_that_cannot_be_is_refused(grid: Grid) -> None:
    data = encode(ChargeDensity(np.ones((2, 2, 2)), DIAMOND)).data
    with pytest.raises(InputError, match="grid"):
        decode(data, DIAMOND, grid)


# ---------------------------------------------------------------- damage


def payloads() -> dict[str, tuple[bytes, Structure]]:
    """One of each method, and one of several fields."""
    grid = (10, 10, 14)
    values = gaussians(grid, WURTZITE, width=0.8)
    rough = 1 + 0.1 * noise((5, 4, 4))
    found = {
        "crystal": encode(ChargeDensity(values, WURTZITE)),
        "grid": encode(ChargeDensity(rough, WURTZITE)),
        "lossless": encode(ChargeDensity(np.full((3, 3, 3), 0.1), WURTZITE), Tolerance(0.0)),
        "spin": encode(ChargeDensity(values, WURTZITE, 0.3 * values[None])),
    }
    for name, payload in found.items():
        assert payload.method == ("crystal" if name == "spin" else name)
    return {name: (payload.data, WURTZITE) for name, payload in found.items()}


@pytest.fixture(scope="module")
def written() -> dict[str, tuple[bytes, Structure]]:
    return payloads()


@pytest.mark.parametrize("name", ["crystal", "grid", "lossless", "spin"])
def test_every_damaged_byte_is_noticed(
    name: str, written: dict[str, tuple[bytes, Structure]]
) -> None:
    data, structure = written[name]
    rng = np.random.default_rng(0)
    for position in range(len(data)):
        for change in (1, 128, 255, int(rng.integers(2, 255))):
            damaged = bytearray(data)
            damaged[position] ^= change
            with pytest.raises(StoreError):
                decode(bytes(damaged), structure)


@pytest.mark.parametrize("name", ["crystal", "grid", "lossless", "spin"])
def test_what_is_cut_or_longer_is_noticed(
    name: str, written: dict[str, tuple[bytes, Structure]]
) -> None:
    data, structure = written[name]
    for length in range(len(data)):
        with pytest.raises(StoreError):
            decode(data[:length], structure)
    for more in (b"\0", b"\xff", data):
        with pytest.raises(StoreError):
            decode(data + more, structure)


def test_the_payload_of_other_species_is_noticed(
    written: dict[str, tuple[bytes, Structure]],
) -> None:
    data, structure = written["crystal"]
    names = structure.species
    for species in (("Zn", "Zn", "O", "S"), names[::-1], (*names[:-1], names[-1].lower())):
        other = Structure(structure.lattice, species, structure.frac_coords)
        with pytest.raises(StoreError, match="another structure"):
            decode(data, other)
    with pytest.raises(StoreError, match="another structure"):
        decode(data, DIAMOND)


def test_a_later_version_is_refused_with_advice(
    written: dict[str, tuple[bytes, Structure]],
) -> None:
    data, structure = written["crystal"]
    for version in (2, 255):
        with pytest.raises(StoreError, match=rf"version {version}.*pip install --upgrade chgdb"):
            decode(bytes([version]) + data[1:], structure)


def sealed(content: bytes, structure: Structure) -> bytes:
    """Content with a checksum that is right: damage on purpose."""
    checksum = zlib.crc32(content, zlib.crc32(" ".join(structure.species).encode()))
    return struct.pack("<BI", 1, checksum) + content


def assert_decodes_or_is_refused(data: bytes, structure: Structure) -> None:
    try:
        with np.errstate(all="ignore"):
            decode(data, structure)
    except ChgdbError:
        pass


@pytest.mark.parametrize("name", ["crystal", "grid", "lossless", "spin"])
def test_damage_on_purpose_raises_nothing_else(
    name: str, written: dict[str, tuple[bytes, Structure]]
) -> None:
    data, structure = written[name]
    content = data[5:]
    assert sealed(content, structure) == data
    rng = np.random.default_rng(1)
    for position in range(1, len(content), 3 if name == "spin" else 1):
        damaged = bytearray(content)
        damaged[position] ^= int(rng.integers(1, 256))
        if math.prod(damaged[:3]) < 1e5 and max(damaged[:3]) < 128:
            assert_decodes_or_is_refused(sealed(bytes(damaged), structure), structure)
    for length in range(len(content)):
        assert_decodes_or_is_refused(sealed(content[:length], structure), structure)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60), st.sampled_from([WURTZITE, NO_ATOMS, OVERLAPPING]))
def test_any_content_raises_nothing_else(body: bytes, structure: Structure) -> None:
    for head in (b"\x04\x03\x05\x01\x00", b"\x04\x03\x05\x01\x01", b"\x04\x03\x05\x01\x02", b""):
        assert_decodes_or_is_refused(sealed(head + body, structure), structure)
    assert_decodes_or_is_refused(body, structure)


def test_a_payload_that_claims_a_huge_grid_takes_no_memory() -> None:
    side = b"\xa0\x8d\x06"  # 100,000
    huge = b"\xff" * 9 + b"\x01"
    tracemalloc.start()
    try:
        for grid in (side * 3, huge * 3, side + b"\x01\x01", b"\0\1\1", side * 2 + b"\1"):
            for tag in (0, 1, 2):
                content = grid + bytes([1, tag]) + b"\x00" * 40
                if grid == side + b"\x01\x01" and tag != 0:
                    continue
                with pytest.raises(StoreError):
                    decode(sealed(content, DIAMOND), DIAMOND)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- the same bytes


def test_threads_write_the_same_bytes() -> None:
    densities = [
        ChargeDensity(*KINDS[kind]()) for kind in ("smooth", "odd grid", "constant", "noise")
    ] * 2
    alone = [encode(density).data for density in densities]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda density: encode(density).data, densities))
        assert together == alone
        values = pool.map(
            lambda pair: decode(pair[0], pair[1].structure), zip(alone, densities, strict=True)
        )
        for back, data, density in zip(values, alone, densities, strict=True):
            np.testing.assert_array_equal(back.values, decode(data, density.structure).values)


HASH_OF_BYTES = """
import hashlib, sys, pathlib
from chgdb.archive import encode, decode
from chgdb.formats import read_density
for name in sys.argv[1:]:
    density, _ = read_density(pathlib.Path(name))
    data = encode(density).data
    print(data.hex(), hashlib.sha256(decode(data, density.structure).values.tobytes()).hexdigest())
"""


def test_the_number_of_threads_of_the_machine_does_not_matter() -> None:
    name = "examples/mp-149.CHGCAR.gz"
    lines = []
    for threads in ("1", "2"):
        threading = {f"{library}_NUM_THREADS": threads for library in ("OMP", "OPENBLAS", "MKL")}
        done = subprocess.run(
            [sys.executable, "-c", HASH_OF_BYTES, name],
            cwd=ROOT, env=os.environ | threading, capture_output=True, text=True, check=True,
        )  # fmt: skip
        lines.append(done.stdout)
    assert lines[0] == lines[1]
    data = bytes.fromhex(lines[0].split()[0])
    density, _ = read_density(ROOT / name)
    assert data == encode(density).data


# ---------------------------------------------------------------- payloads of released versions


@dataclass(frozen=True)
class Frozen:
    """A payload in tests/data with the density that it stands for."""

    data: bytes
    structure: Structure
    expected: dict[str, object]
    samples: dict[str, NDArray[np.float64]]


def read_frozen(path: Path) -> Frozen:
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    structure = Structure(
        np.array(expected["lattice"]),
        tuple(expected["species"]),
        np.array(expected["frac_coords"]).reshape(-1, 3),
    )
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as samples:
        return Frozen(path.read_bytes(), structure, expected, dict(samples))


@pytest.mark.parametrize(
    "path", sorted(FROZEN.glob("*.bin")) or [None], ids=lambda p: p.stem if p else "none"
)
def test_payloads_of_released_versions_are_read(path: Path | None) -> None:
    if path is None:
        pytest.skip("no version of the payload was released")
    frozen = read_frozen(path)
    back = decode(frozen.data, frozen.structure)
    assert list(back.grid) == frozen.expected["grid"]
    assert hashlib.sha256(frozen.data).hexdigest() == frozen.expected["sha256"]
    assert back.n_electrons == pytest.approx(frozen.expected["n_electrons"], rel=1e-9)
    tolerance = MACHINES * float(np.abs(frozen.samples["values"]).mean())
    np.testing.assert_allclose(back.values, frozen.samples["values"], rtol=0, atol=tolerance)
    if "magnetization" in frozen.samples:
        assert back.magnetization is not None
        np.testing.assert_allclose(
            back.magnetization, frozen.samples["magnetization"], rtol=0, atol=tolerance
        )
    else:
        assert back.magnetization is None


@pytest.mark.parametrize("path", sorted(FROZEN.glob("*.bin")), ids=lambda path: path.stem)
def test_rounding_of_translations_turns_no_phase(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A translation of 0 that comes out as -1e-16 is not 1 - 1e-16, which would flip signs."""
    known = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    structure = Structure(known["lattice"], tuple(known["species"]), known["frac_coords"])
    exact = decode(path.read_bytes(), structure).values
    noise = np.random.default_rng(0)

    def noisy(translations: NDArray[np.float64]) -> NDArray[np.float64]:
        return wrapped(translations + noise.uniform(-2e-16, 2e-16, translations.shape))

    monkeypatch.setattr("chgdb.stars.wrapped", noisy)
    monkeypatch.setattr("chgdb.groups.wrapped", noisy)
    again = decode(path.read_bytes(), structure).values
    np.testing.assert_allclose(again, exact, atol=1e-9 * np.abs(exact).max())


def test_a_limit_above_the_density_is_kept_all_the_same() -> None:
    density, _ = read_density(ROOT / "examples" / "mp-149.CHGCAR.gz")
    payload = encode(density, Tolerance(None, 1e9))
    assert payload.error.max_error <= density.values.max()


def test_a_negligible_magnetization_is_measured_against_the_density() -> None:
    """As the tolerance counts it, so that what was stored within it is found within it."""
    density, _ = read_density(ROOT / "examples" / "mp-149.CHGCAR.gz")
    spin = 1e-7 * (density.values - density.values.mean())[None]
    payload = encode(ChargeDensity(density.values, density.structure, spin))
    assert payload.magnetization_nmae is not None
    assert payload.magnetization_nmae <= 0.1


def test_the_largest_error_is_that_of_the_magnetization_too() -> None:
    density, _ = read_density(ROOT / "examples" / "mp-149.CHGCAR.gz")
    spin = 10.0 * density.values[None]
    payload = encode(ChargeDensity(density.values, density.structure, spin), Tolerance(1.0))
    back = decode(payload.data, density.structure)
    assert back.magnetization is not None
    assert payload.error.max_error == np.abs(back.magnetization - spin).max()
    assert payload.error.max_error > np.abs(back.values - density.values).max()


def test_zero_bytes_are_damage_and_need_no_upgrade() -> None:
    """What an erased or missing shard reads as."""
    with pytest.raises(StoreError, match="damaged"):
        check(bytes(60), DIAMOND)
    with pytest.raises(StoreError, match="damaged"):
        decode(bytes(60), DIAMOND)
