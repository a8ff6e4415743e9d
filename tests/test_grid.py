"""Fourier resampling, origin shifts, padding and the choice of a grid, on fields known exactly."""

from __future__ import annotations

import numpy as np
import pytest
from analytic import SKEW, Wave, cosines
from hypothesis import given, settings
from hypothesis import strategies as st

from chgdb.density import Grid
from chgdb.errors import InputError
from chgdb.grid import (
    crop,
    fourier_resample,
    half_frequencies,
    half_waves,
    low_pass,
    points_per_angstrom,
    shift_origin,
    smooth,
    spacing_grid,
    vasp_grid,
    zero_pad,
)

ROUNDING = 1e-11
"""Absolute, of fields of size 1."""

grids = st.tuples(*[st.integers(1, 11)] * 3)
shifts = st.tuples(*[st.floats(-2, 2)] * 3)


def below_nyquist(grid: Grid) -> list[Wave]:
    """Waves that a grid, even or odd, holds without ambiguity, up to its highest."""
    a, b, c = ((n - 1) // 2 for n in grid)
    return [
        ((a, b, c), 0.4, 0.3),
        ((-a, b, 0), 0.3, -1.1),
        ((a, 0, -c), 0.2, 2.0),
        ((0, -min(1, b), min(1, c)), 0.25, 0.7),
    ]


def smallest(first: Grid, second: Grid) -> Grid:
    a, b, c = (min(pair) for pair in zip(first, second, strict=True))
    return a, b, c


@given(grids)
def test_half_waves_are_those_of_rfftn(grid: Grid) -> None:
    """A wave is one number of the half spectrum; where it is, its indices stand."""
    waves = half_waves(grid)
    assert waves.shape == (*np.fft.rfftn(np.zeros(grid)).shape, 3)
    a, b, c = half_frequencies(grid)
    place = len(a) // 2, len(b) // 3, len(c) - 1
    h = waves[place]
    np.testing.assert_array_equal(h, [a[place[0]], b[place[1]], c[place[2]]])
    points = np.moveaxis(np.indices(grid), 0, -1) / grid
    spectrum = np.abs(np.fft.rfftn(np.cos(2 * np.pi * points @ h)))
    assert spectrum[place] == pytest.approx(spectrum.max())
    assert spectrum[place] >= np.prod(grid) / 2 - ROUNDING


@settings(deadline=None, max_examples=80)
@given(grids, grids)
def test_resampling_is_exact_below_nyquist(old: Grid, new: Grid) -> None:
    waves = below_nyquist(smallest(old, new))
    values = cosines(old, waves, 1.3)
    before = values.copy()
    result = fourier_resample(values, new)
    np.testing.assert_array_equal(values, before)
    assert result.shape == new
    np.testing.assert_allclose(result, cosines(new, waves, 1.3), atol=ROUNDING)


@settings(deadline=None, max_examples=80)
@given(grids, grids, st.integers(0, 2**32 - 1))
def test_resampling_keeps_the_mean_of_anything(old: Grid, new: Grid, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.5, 1.0, size=old)
    assert fourier_resample(values, new).mean() == pytest.approx(values.mean(), abs=1e-13)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("new_points", [4, 5, 7, 9, 12])
def test_nyquist_is_dropped_where_the_axis_changes(axis: int, new_points: int) -> None:
    shape, new = [1, 1, 1], [1, 1, 1]
    shape[axis], new[axis] = 8, new_points
    values = np.where(np.arange(8) % 2 == 0, 4.0, 2.0).reshape(shape)
    np.testing.assert_allclose(fourier_resample(values, new), 3.0, atol=ROUNDING)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nyquist_stays_where_the_axis_stays(axis: int) -> None:
    grid, new = [6, 6, 6], [9, 9, 9]
    new[axis] = 6
    wave = [0, 0, 0]
    wave[axis] = 3
    waves: list[Wave] = [((wave[0], wave[1], wave[2]), 1.0, 0.0)]
    result = fourier_resample(cosines(grid, waves, 2.0), new)
    np.testing.assert_allclose(result, cosines(new, waves, 2.0), atol=ROUNDING)


def test_coarsening_does_not_alias() -> None:
    values = cosines((16, 16, 16), [((6, 0, 0), 1.0, 0.0), ((1, 2, 0), 0.5, 0.2)], 1.0)
    result = fourier_resample(values, (8, 8, 8))
    np.testing.assert_allclose(result, cosines((8, 8, 8), [((1, 2, 0), 0.5, 0.2)], 1.0), atol=1e-12)


def test_the_same_grid_is_a_copy() -> None:
    values = np.random.default_rng(0).normal(size=(4, 6, 5))
    result = fourier_resample(values, (4, 6, 5))
    np.testing.assert_array_equal(result, values)
    assert not np.shares_memory(result, values)


def test_single_precision_comes_out_double() -> None:
    values = np.ones((4, 4, 4), dtype=np.float32)
    assert fourier_resample(values, (6, 6, 6)).dtype == np.float64  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", [(0, 4, 4), (4, 4), (4, -1, 4), (10**5, 10**5, 10**5)])
def test_impossible_grids(grid: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="grid"):
        fourier_resample(np.ones((4, 4, 4)), grid)


@settings(deadline=None, max_examples=80)
@given(grids, shifts)
def test_shifting_moves_a_field(grid: Grid, shift: tuple[float, float, float]) -> None:
    waves = below_nyquist(grid)
    moved: list[Wave] = [
        (h, a, phase - 2 * np.pi * float(np.dot(h, shift))) for h, a, phase in waves
    ]
    values = cosines(grid, waves, 1.0)
    before = values.copy()
    np.testing.assert_allclose(shift_origin(values, shift), cosines(grid, moved, 1.0), atol=1e-10)
    np.testing.assert_array_equal(values, before)


@settings(deadline=None, max_examples=60)
@given(grids, st.tuples(*[st.integers(-12, 12)] * 3), st.integers(0, 1000))
def test_whole_shifts_roll(grid: Grid, steps: tuple[int, int, int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=grid)
    shift = [step / n for step, n in zip(steps, grid, strict=True)]
    rolled = np.roll(values, steps, axis=(0, 1, 2))
    np.testing.assert_allclose(shift_origin(values, shift), rolled, atol=1e-10)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifting_drops_what_has_no_phase(axis: int) -> None:
    shape = [1, 1, 1]
    shape[axis] = 8
    values = np.where(np.arange(8) % 2 == 0, 4.0, 2.0).reshape(shape)
    np.testing.assert_allclose(shift_origin(values, np.full(3, 0.3 / 8)), 3.0, atol=ROUNDING)


def test_padding_and_cropping() -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    box = zero_pad(values, (4, 5, 6))
    assert box.shape == (4, 5, 6)
    assert box.sum() == values.sum()
    np.testing.assert_array_equal(crop(box, values.shape), values)
    np.testing.assert_array_equal(zero_pad(values, values.shape), values)
    with pytest.raises(InputError, match="does not fit"):
        zero_pad(values, (2, 2, 4))


@settings(deadline=None)
@given(st.floats(0.5, 60), st.floats(0.5, 60), st.floats(0.5, 60), st.sampled_from([1, 4, 8, 16]))
def test_spacing_grid(a: float, b: float, c: float, multiple: int) -> None:
    grid = spacing_grid(np.diag([a, b, c]), 7.3, multiple=multiple)
    for n, length in zip(grid, (a, b, c), strict=True):
        assert n % multiple == 0
        assert n / length >= 7.3 - 1e-4
        assert (n - multiple) / length < 7.3
    limited = spacing_grid(np.diag([a, b, c]), 7.3, multiple=multiple, largest=128)
    assert limited == tuple(min(n, 128) for n in grid)


def test_spacing_counts_along_the_vectors_of_a_skew_cell() -> None:
    lengths = np.linalg.norm(SKEW, axis=1)
    grid = spacing_grid(SKEW, 10.0)
    assert grid == tuple(int(np.ceil(10 * x)) for x in lengths)
    assert points_per_angstrom(SKEW, grid) == pytest.approx(min(np.array(grid) / lengths))


@pytest.mark.parametrize(
    ("edge", "points"),
    [(3.0, 48), (4.05, 60), (5.43, 80), (10.0, 160), (0.1, 4)],
)
def test_vasp_grid(edge: float, points: int) -> None:
    """NGXF = 2 smooth_even(round(4 G_cut L / 2 pi)), which is round(7.293 L) for 500 eV."""
    assert vasp_grid(np.eye(3) * edge) == (points,) * 3


def test_vasp_grid_is_smooth_and_grows_with_the_cutoff() -> None:
    for edge in np.linspace(2, 20, 50):
        n = vasp_grid(np.eye(3) * edge)[0]
        assert n % 4 == 0
        for prime in (2, 3, 5, 7):
            while n % prime == 0:
                n //= prime
        assert n == 1
    assert vasp_grid(np.eye(3) * 5, 300) < vasp_grid(np.eye(3) * 5, 600)


@given(st.integers(1, 3), st.integers(0, 3), st.integers(0, 3))
def test_low_pass_keeps_waves_by_their_length(h: int, k: int, m: int) -> None:
    lattice = np.array([[4.0, 0.0, 0.0], [1.0, 3.0, 0.0], [0.5, 0.5, 5.0]])
    grid = (10, 12, 8)
    axes = np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij")
    wave = np.cos(2 * np.pi * sum(i * x for i, x in zip((h, k, m), axes, strict=True)))
    length = 2 * np.pi * float(np.linalg.norm(np.linalg.inv(lattice) @ [h, k, m]))
    kept = low_pass(1.5 + wave, lattice, length * 1.001)
    np.testing.assert_allclose(kept, 1.5 + wave, atol=1e-12)
    np.testing.assert_allclose(low_pass(1.5 + wave, lattice, length * 0.999), 1.5, atol=1e-12)


@given(st.integers(1, 500), st.sampled_from([1, 2, 4, 6, 12]))
def test_smooth_numbers(n: int, multiple: int) -> None:
    found = smooth(n, multiple)
    assert found >= n
    assert found % multiple == 0
    assert all(found % prime for prime in range(11, found + 1) if is_prime(prime))


def is_prime(n: int) -> bool:
    return all(n % k for k in range(2, int(n**0.5) + 1))
