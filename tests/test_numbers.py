"""What docs/safety.md says of numbers: none overflows in silence, and they stay what they are."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, gaussian_density
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chgdb.archive import Tolerance, decode, encode
from chgdb.arrays import pack, unpack
from chgdb.density import ChargeDensity, Structure
from chgdb.errors import InputError, ModelError
from chgdb.formats import read_density, write_density
from chgdb.grid import zero_pad

GOLDEN = ROOT / "tests" / "data" / "golden.json"
MAKER = ROOT / "tests" / "data" / "make_golden.py"

LATENT_BOUND = 2e-6
"""Of a latent of the shipped networks, float32 against float64; 3.0e-7 was measured."""

DECODED_BOUND = 1e-4
"""NMAE in % of what they decode to, float32 against float64; 2.2e-5 was measured."""

PREDICTED_BOUND = 1e-4
"""Relative, of predictions: float32 against float64, and alone against with others."""


# --- the archival codec ---------------------------------------------------------------------


def check(density: ChargeDensity, tolerance: Tolerance) -> None:
    """Hold that the errors of a payload are within the tolerance, and those that are stated."""
    payload = encode(density, tolerance)
    back = decode(payload.data, density.structure)
    peak = float(np.abs(density.values).max())
    scaled, found = density.values / peak, back.values / peak
    nmae = 100 * np.abs(found - scaled).sum() / np.abs(scaled).sum()
    assert np.isfinite(payload.error.nmae)
    assert math.isclose(nmae, payload.error.nmae, rel_tol=1e-6, abs_tol=1e-12)
    if tolerance.nmae is not None:
        assert nmae <= tolerance.nmae * (1 + 1e-9)
    largest = float(np.abs(back.values - density.values).max())
    if tolerance.max_error is not None:
        assert largest <= tolerance.max_error * (1 + 1e-9)
    assert largest <= payload.error.max_error * (1 + 1e-9)
    electrons = abs(back.n_electrons - density.n_electrons)
    assert electrons <= 4e-9 * max(np.abs(density.values).mean() * density.structure.volume, 1e-300)


@pytest.mark.parametrize(
    "exponent", [-320, -300, -100, -31, -30, -10, 5, 10, 18, 22, 25, 30, 99, 250]
)
@pytest.mark.parametrize("tolerance", [Tolerance(), Tolerance(1e-12)], ids=["0.1%", "1e-12%"])
def test_densities_of_any_size(exponent: int, tolerance: Tolerance) -> None:
    density = gaussian_density(grid=(12, 14, 16))
    check(ChargeDensity(density.values * 10.0**exponent, density.structure), tolerance)


@pytest.mark.parametrize("peak", [1e5, 1e15, 1e30, 1e99, -1e30])
def test_a_peak(peak: float) -> None:
    density = gaussian_density(grid=(8, 9, 10))
    values = density.values.copy()
    values[3, 4, 5] = peak
    check(ChargeDensity(values, density.structure), Tolerance())
    check(ChargeDensity(values, density.structure), Tolerance(None, 1e-6))


@given(
    st.lists(st.floats(-1e290, 1e290, allow_subnormal=True), min_size=1, max_size=12).filter(any),
    st.sampled_from([Tolerance(), Tolerance(1e-9), Tolerance(None, 1e-3), Tolerance(None, 1e200)]),
)
@settings(max_examples=60, deadline=None)
def test_any_numbers(numbers: list[float], tolerance: Tolerance) -> None:
    structure = Structure(4.0 * np.eye(3), ("Si",), np.zeros((1, 3)))
    payload = encode(ChargeDensity(np.array(numbers)[None, None], structure), tolerance)
    back = decode(payload.data, structure).values.ravel()
    error = np.abs(back - numbers)
    if tolerance.max_error is not None:
        assert error.max() <= tolerance.max_error
    if tolerance.nmae is not None:
        assert error.sum() <= tolerance.nmae / 100 * np.abs(numbers).sum() * (1 + 1e-9)


@pytest.mark.parametrize(
    "lattice",
    [
        1e4 * np.eye(3),
        1e8 * np.eye(3),
        1e90 * np.eye(3),
        0.0101 * np.eye(3),
        np.array([[1, 0, 0], [1e8, 1, 0], [0, 0, 1.0]]),
        np.array([[1, 0, 0], [3e4, 1, 0], [3e4, 3e4, 1.0]]),
        np.diag([1e-5, 1e8, 1e3]),
    ],
    ids=["1e4", "1e8", "1e90", "0.01", "skew", "skewer", "thin"],
)
def test_cells_of_any_size_and_shape(lattice: NDArray[np.float64]) -> None:
    structure = Structure(lattice, ("H",), np.zeros((1, 3)))
    check(ChargeDensity(gaussian_density(grid=(8, 9, 10)).values, structure), Tolerance())


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 1, 7), (2, 1, 2), (1, 40, 1)])
def test_grids_of_a_point(grid: tuple[int, int, int]) -> None:
    structure = Structure(4.0 * np.eye(3), ("Si",), np.zeros((1, 3)))
    values = 1 + np.arange(math.prod(grid), dtype=float).reshape(grid)
    check(ChargeDensity(values, structure), Tolerance())


def test_one_denormal_is_not_zero() -> None:
    density = gaussian_density(grid=(4, 4, 4))
    values = np.zeros((4, 4, 4))
    values[0, 0, 0] = 5e-324
    back = decode(encode(ChargeDensity(values, density.structure)).data, density.structure)
    np.testing.assert_array_equal(back.values, values)


@pytest.mark.parametrize("where", ["density", "magnetization"])
def test_what_no_sum_can_hold_is_refused(where: str) -> None:
    density = gaussian_density(grid=(4, 4, 4))
    huge = density.values * 1e307
    made = (
        ChargeDensity(huge, density.structure)
        if where == "density"
        else ChargeDensity(density.values, density.structure, huge[None])
    )
    with pytest.raises(InputError, match="look at its units"):
        encode(made)


@pytest.mark.parametrize("size", [1e30, 1e-30, 1e-300])
def test_magnetizations_of_another_size(size: float) -> None:
    density = gaussian_density(grid=(8, 9, 10))
    spins = np.stack([density.values * size] * 3)
    payload = encode(ChargeDensity(density.values, density.structure, spins))
    assert payload.magnetization_nmae is not None
    assert payload.magnetization_nmae <= 0.1


# --- latents and files ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "scale", "most", "step"),
    [("int8", 1 / 127, 1.0, 1 / 254), ("float16", None, 65504.0, 16.0), ("float32", None, 3e38, 0)],
)
def test_packing_rounds_and_never_clips(
    dtype: str, scale: float | None, most: float, step: float
) -> None:
    values = np.linspace(-most, most, 1001, dtype=np.float32)
    error = np.abs(unpack(pack(values, dtype, scale), dtype, scale) - values.astype(np.float64))
    assert error.max() <= step * (1 + 1e-6)
    for bad in (most * 1.01, -most * 1.01, np.nan, np.inf):
        if dtype == "float32" and np.isfinite(bad):
            bad = 1e39 * np.sign(bad)
        with pytest.raises(ModelError):
            pack(np.array([0.0, bad]), dtype, scale)


def test_what_float32_cannot_hold_is_refused_by_encoders() -> None:
    """The paper's sees e/A^3; that of the other is relative to the mean."""
    pytest.importorskip("torch")
    from chgdb.codec import load_codec

    codec = load_codec(ROOT / "models" / "paper-16", "cpu")
    density = gaussian_density(grid=(8, 8, 8))
    with pytest.raises(InputError, match="float32"):
        codec.encode([ChargeDensity(density.values * 1e39, density.structure)])


def test_float32_in_npz_is_within_its_rounding(tmp_path: Path) -> None:
    density = gaussian_density(grid=(6, 6, 6))
    values = density.values * 10.0 ** np.linspace(-60, 35, 216).reshape(6, 6, 6)
    write_density(tmp_path / "a.npz", ChargeDensity(values, density.structure), "npz")
    back = read_density(tmp_path / "a.npz")[0].values
    assert (np.abs(back - values) <= 2.0**-24 * np.abs(values) + 2.0**-150).all()
    huge = ChargeDensity(values * 1e5, density.structure)
    with pytest.raises(InputError, match="too large for float32"):
        write_density(tmp_path / "b.npz", huge, "npz")


# --- float32 against float64 ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["periodic-16", "paper-16"])
def test_networks_in_float32_and_float64(name: str) -> None:
    """The latent, and what its rounded values decode to, of a cell without the box around it."""
    torch = pytest.importorskip("torch")
    from chgdb.codec import load_codec

    codec = load_codec(ROOT / "models" / name, "cpu")
    double = copy.deepcopy(codec.net).double()
    density = read_density(ROOT / "examples" / "mp-149.CHGCAR.gz")[0]
    field = codec.to_field(density)[:32, :32, :32]
    x = torch.from_numpy(zero_pad(field, [-(-n // 8) * 8 for n in field.shape])[None, None])
    with torch.no_grad():
        single, wide = codec.net.encode(x.float()), double.encode(x)
        stored = unpack(pack(single.numpy(), *codec.storage), *codec.storage)
        given = torch.from_numpy(stored)
        decoded, expected = (
            codec.from_field(net.decode(z).double().numpy())
            for net, z in ((codec.net, given), (double, given.double()))
        )
    assert np.abs(wide.numpy() - single.numpy()).max() < LATENT_BOUND
    nmae = 100 * np.abs(decoded - expected).sum() / np.abs(expected).sum()
    assert nmae < DECODED_BOUND


def test_property_networks_in_float32_and_float64() -> None:
    pytest.importorskip("lightgbm")
    from chgdb.perceptron import forward
    from chgdb.properties import PropertyModel

    members = PropertyModel.load(ROOT / "models" / "properties-1").members("full")
    network: Any = members._networks[0]
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20, network["entry.weight"].shape[1])).astype(np.float32)
    shares = network["shares.weight"]
    inputs = inputs[:, : inputs.shape[1] - 2 * len(shares)]
    fractions = rng.dirichlet(np.full(shares.shape[1], 0.05), size=20).astype(np.float32)
    single = forward(network, inputs, fractions)
    wide = {name: tensor.astype(np.float64) for name, tensor in network.items()}
    double = forward(wide, inputs.astype(np.float64), fractions.astype(np.float64))
    assert np.abs(single - double).max() < PREDICTED_BOUND * np.abs(double).max()


# --- batches, threads and time --------------------------------------------------------------


def test_latents_do_not_depend_on_the_batch() -> None:
    pytest.importorskip("torch")
    from chgdb.codec import load_codec

    codec = load_codec(ROOT / "models" / "periodic-16", "cpu").refining(2)
    densities = [gaussian_density(electrons=n, grid=(16, 16, 16)) for n in (4.0, 9.0, 30.0)]
    densities.append(gaussian_density(scale=1.4))
    structures = [density.structure for density in densities]
    alone = [codec.encode([density])[0] for density in densities]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0]):
        together = codec.encode([densities[i] for i in order])
        fields = codec.decode(together, [structures[i] for i in order])
        for i, latent, field in zip(order, together, fields, strict=True):
            np.testing.assert_allclose(
                codec.stored(latent).values, codec.stored(alone[i]).values, atol=1.01 / 127
            )
            (expected,) = codec.decode([latent], [structures[i]])
            peak = expected.values.max()
            np.testing.assert_allclose(field.values, expected.values, atol=1e-5 * peak)


def test_predictions_do_not_depend_on_their_company() -> None:
    pytest.importorskip("lightgbm")
    from chgdb.database import Database

    database = Database(ROOT / "store")
    ids = ["mp-149", "mp-134", "mp-2534", "mp-66"]
    ids = [material for material in ids if material in database]
    together = {row["id"]: row for row in database.predict(ids[::-1]).to_dict("records")}
    for material in ids:
        (alone,) = database.predict([material]).to_dict("records")
        for name in ("bulk_modulus", "shear_modulus", "cohesive_energy", "bulk_modulus_high"):
            a, b = float(alone[name]), float(together[material][name])
            assert math.isclose(a, b, rel_tol=PREDICTED_BOUND)


def made(threads: int, *words: str) -> dict[str, Any]:
    """What the maker of the golden file prints with so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **dict.fromkeys(names, str(threads))}
    done = subprocess.run(
        [sys.executable, MAKER, *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.fixture(scope="module")
def on_one_thread() -> dict[str, Any]:
    for name in ("torch", "lightgbm", "pydemi"):
        pytest.importorskip(name)
    return made(1, "--bytes")


def test_threads_change_no_byte_and_hardly_a_number(on_one_thread: dict[str, Any]) -> None:
    """Payloads are equal, densities decoded from them too; what torch computes is to rounding."""
    for material, two in made(2, "--bytes").items():
        one = on_one_thread[material]
        for name in ("payload", "decoded"):
            assert two["bytes"][name] == one["bytes"][name]
        np.testing.assert_allclose(two["bytes"]["plain"], one["bytes"]["plain"], atol=LATENT_BOUND)
        # a value between two steps may be rounded to either
        refined = np.array(two["bytes"]["refined"]) - one["bytes"]["refined"]
        assert np.abs(refined).max() <= 1
        assert np.count_nonzero(refined) <= 0.001 * refined.size
        check_golden(two, one, rounding=1e-12)


def check_golden(found: dict[str, Any], expected: dict[str, Any], rounding: float = 1e-9) -> None:
    """Hold numbers against others: those of float64 to rounding, those of float32 to its own."""
    for name, relative in (("payload", rounding), ("latent", 1e-5)):
        now, then = found[name], expected[name]
        np.testing.assert_allclose(now["electrons"], then["electrons"], rtol=1e-9)
        atol = relative * then["largest"]
        np.testing.assert_allclose(now["values"], then["values"], rtol=0, atol=atol)
        np.testing.assert_allclose(now["largest"], then["largest"], rtol=0, atol=atol)
    np.testing.assert_allclose(found["features"], expected["features"], rtol=1e-6, atol=1e-9)
    for name, value in expected["predicted"].items():
        np.testing.assert_allclose(found["predicted"][name], value, rtol=PREDICTED_BOUND)


def test_the_numbers_of_today_are_those_of_the_golden_file(on_one_thread: dict[str, Any]) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert sorted(golden) == sorted(on_one_thread)
    for material, expected in golden.items():
        check_golden(on_one_thread[material], expected)


@pytest.mark.parametrize("name", ["payload", "latent", "predicted", "features"])
def test_a_drift_is_seen(name: str) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["mp-149"]
    drifted = copy.deepcopy(golden)
    if name == "features":
        drifted[name][1] *= 1.001
    elif name == "predicted":
        drifted[name]["bulk_modulus"] *= 1.001
    else:
        drifted[name]["values"][2] *= 1.001
    with pytest.raises(AssertionError):
        check_golden(drifted, golden)
