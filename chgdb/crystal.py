"""One periodic field of a crystal as whole numbers: functions about the atoms, then plane waves.

Field = mean + atoms + waves. The atoms carry the library's mean functions and modes (`library`,
`multipoles`), whose amplitudes are fitted to this field; the waves are what remains, one
coefficient per star (`stars`). Amplitudes and coefficients are rounded to steps that put the same
error into the field, and range-coded (`entropy`) with the deviations that the library expects.

docs/codec.md has the mathematics and the order of the numbers.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from chgdb.density import Grid, Structure
from chgdb.entropy import Reader, Writer, bits
from chgdb.errors import StoreError
from chgdb.expansion import G_UNIT, WORTHWHILE, Expansion, Plan
from chgdb.grid import half_frequencies
from chgdb.groups import (
    LARGEST_ELEMENT,
    MOST_GENERATORS,
    describe,
    group_from,
    groups_of,
    n_targets,
)
from chgdb.library import LATEST, LIBRARY_L, load_library
from chgdb.stars import Stars, reciprocal_metric

__all__ = ["Limits", "NotReachedError", "decode_field", "encode_field"]

_STEPS_PER_OCTAVE = 8
_FIRST_STEP = 48
"""step = 2^(index / 8 - 48), e/A^3."""

_N_STEPS = 640

_N_G = 1024
_MODE_SCALES = tuple(2.0**k for k in range(-2, 6))
_FIRST_BAND = 16
_MEAN_BITS = 29
"""The mean is kept to 2^-29 of itself."""

_SMALL = 500_000
"""Points of a grid up to which more than one way is tried to the end."""

_MOST_WORK = 3e10
"""Coefficients times modes squared of a fit: 1 to 2 s; with more, fewer harmonics are fitted."""

_FINEST = 0.1
"""Smallest step over the rms error at which modes are fitted."""

_BAND_RANGE = range(-8, 16)
_BAND_DEVIATION = 1.0
_ROUNDING = (0.42, 0.36, 0.30)
"""What is added before rounding down a wave: the less, the fewer and the cheaper; tried in turn."""


_EXHAUSTED = 0.1
"""Error of the coefficients over the rms at the limit from which a smaller step is no use."""

_HOPELESS = 5.0
"""If all waves together leave more than this times the limit, spheres will not mend it."""


_LARGEST = 2.0**60
"""Steps, or electrons of a cell, beyond which a whole number is not written."""

_JITTER = 1e-11
"""Of the largest diagonal element of normal equations, added to all."""


class NotReachedError(Exception):
    """No step, however small, brings the error of a field within the tolerance."""


# ---------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class Limits:
    """What an error must not exceed, both e/A^3.

    Attributes:
        mean_error: mean absolute error.
        max_error: largest absolute error.
    """

    mean_error: float
    max_error: float

    def share(self, error: NDArray[np.float64]) -> float:
        """The largest error over its limit."""
        size = np.abs(error)
        return max(
            float(size.mean()) / self.mean_error if math.isfinite(self.mean_error) else 0.0,
            float(size.max()) / self.max_error if math.isfinite(self.max_error) else 0.0,
        )

    @property
    def rms(self) -> float:
        """About the root mean square of a normally distributed error at the limit."""
        return min(1.2 * self.mean_error, 0.25 * self.max_error)


@dataclass(frozen=True, eq=False)
class _Numbers:
    """What is written of a field, beside its plan and mean."""

    step_index: int
    mode_scale: int
    amplitudes: NDArray[np.int64]
    bands: NDArray[np.int64]
    waves: NDArray[np.int64]
    cost: float


def encode_field(
    values: NDArray[np.float64],
    structure: Structure,
    limits: Limits,
    *,
    generic: bool = False,
    symprec: float = 1e-2,
) -> bytes:
    """The shortest way found to write a field within the limits.

    Args:
        values: shape (n1, n2, n3).
        structure: the crystal.
        limits: of the error.
        generic: whether the elements' own entries are no use, as for a magnetization.
        symprec: how far an atom may be from its symmetric position, Angstrom.

    Raises:
        NotReachedError: the field has components that are not described here, such as noise at
            the Nyquist frequencies.
    """
    library = load_library(LATEST)
    grid = (values.shape[0], values.shape[1], values.shape[2])
    is_small = values.size <= _SMALL
    g_index = _g_index(values, structure, 0.4 * limits.rms)
    kinds = [(False, is_small), (False, False), (True, False)]
    kinds = [(other, sampled) for other, sampled in dict.fromkeys(kinds) if other or not generic]
    for operations in groups_of(values, structure, symprec, limits.rms):
        fits = []
        stars = Stars(structure, grid, operations, g_index * G_UNIT)
        waves = stars.field(stars.coefficients(values))
        if limits.share(values - values.mean() - waves) > _HOPELESS:
            continue
        for other, sampled in kinds:
            for l_max in (LIBRARY_L, 2, 0, -1):
                plan = Plan(grid, operations, g_index, l_max, other, sampled and l_max >= 0)
                model = Expansion(structure, plan, library, stars)
                modes = model.n_modes(_FINEST * limits.rms)
                if modes**2 * stars.n_coefficients < _MOST_WORK:
                    fits.append(_Fit(model, values, limits.rms))
                    break
        fits.sort(key=lambda fit: fit.start.cost)
        written = []
        for fit in fits[: 3 if is_small else 1]:
            with suppress(NotReachedError):
                written.append(fit.reach(values, limits))
        if written:
            return min(written, key=len)
    raise NotReachedError


class _Fit:
    """A model fitted to a field, for any step."""

    def __init__(self, model: Expansion, values: NDArray[np.float64], rms: float) -> None:
        self.model = model
        self._rms = rms
        self._target = model.stars.coefficients(values) - model.base
        self._mean, (self._whole, self._part) = _rounded_mean(float(values.mean()), model.volume)
        expected = model.expected_waves(self._mean, rms) * rms
        self._precision = 1.0 / (rms**2 / 6 + np.minimum(expected, 3 * rms) ** 2)
        self._prepare(_FINEST * rms)

    def _prepare(self, finest: float) -> None:
        """The normal equations of all modes that are worth their bits at the finest step."""
        self._finest = finest
        terms = list(self.model.terms(finest))
        self._sites = np.array([t.site for t in terms for _ in t.deviations], dtype=np.int64)
        self._deviations = np.concatenate([*(t.deviations for t in terms), np.zeros(0)])
        self._columns = self.model.columns(finest)
        weighted = self._columns * self._precision[:, None]
        self._gram = self._columns.T @ weighted
        self._moment = weighted.T @ self._target

    def _near(self, rms: float) -> _Numbers:
        """The numbers whose error on the stars is about an rms, by a search over the step."""
        low, high = 0, _N_STEPS - 1
        index = self._index(rms)
        for _ in range(12):
            error = self._error(index, 0.38)
            if error <= rms:
                low = index
            else:
                high = index
            if high - low <= 1:
                break
            jump = round(_STEPS_PER_OCTAVE * math.log2(max(rms, 1e-300) / max(error, 1e-300)))
            index = min(max(index + jump, low + 1), high - 1)
        return self._numbers(low, 0.38)

    @cached_property
    def start(self) -> _Numbers:
        """The numbers at about the limit."""
        return self._near(self._rms)

    def reach(self, values: NDArray[np.float64], limits: Limits) -> bytes:
        """The bytes within the limits, measured on what they decode to."""
        roundings = _ROUNDING if values.size <= _SMALL else _ROUNDING[:1]
        start = self.start.step_index
        best: bytes | None = None
        for rounding in roundings:
            index, fits = start, -1
            fails = _N_STEPS
            for _ in range(24):
                numbers = self._numbers(index, rounding)
                share = limits.share(self._decoded(numbers) - values)
                if share <= 1.0:
                    fits = max(fits, index)
                else:
                    fails = min(fails, index)
                    if self._error(index, rounding) < _EXHAUSTED * limits.rms:
                        break  # the stars are exact: what is wrong is not described by them
                if fails - fits <= 1 or index == 0:
                    break
                jump = round(_STEPS_PER_OCTAVE * math.log2(1.0 / max(share, 1e-6)))
                jump = max(-24, min(24, jump)) or (1 if share <= 1.0 else -1)
                index = min(max(index + jump, fits + 1, 0), fails - 1)
            if fits < 0:
                continue
            data = self._write(self._numbers(fits, rounding))
            if best is None or len(data) < len(best):
                best = data
            start = fits
        if best is None:
            raise NotReachedError
        return best

    def _index(self, step: float) -> int:
        index = round(_STEPS_PER_OCTAVE * (math.log2(step) + _FIRST_STEP))
        return min(max(index, 0), _N_STEPS - 1)

    def _solve(self, step: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rounded amplitudes, each fitted to what those before it leave; and what all leave."""
        if step < self._finest:
            self._prepare(_FINEST * step)
        share = np.array([self.model.amplitude_step(step, s) for s in range(len(self.model.sites))])
        unit = share[self._sites]
        kept = np.flatnonzero(self._deviations > WORTHWHILE * unit)
        if not len(kept):
            return np.zeros(0, dtype=np.int64), self._target
        # The largest are rounded first; those after them make up for their rounding.
        order = kept[np.argsort(self._deviations[kept] / unit[kept], kind="stable")]
        scale = self._deviations[order]
        gram = self._gram[np.ix_(order, order)] * np.outer(scale, scale)
        # The prior; and what keeps the factor real where rounding outweighs it, at tiny steps.
        gram[np.diag_indices_from(gram)] += 1.0 + _JITTER * gram.diagonal().max()
        upper = np.linalg.cholesky(gram).T
        moment = np.linalg.solve(upper.T, self._moment[order] * scale)
        step_of_scaled = unit[order] / scale
        settled = np.zeros(len(order))
        amplitudes = np.zeros(len(self._deviations))
        for k in range(len(order) - 1, -1, -1):
            best = (moment[k] - upper[k, k + 1 :] @ settled[k + 1 :]) / upper[k, k]
            steps = best / step_of_scaled[k]
            amplitudes[order[k]] = math.copysign(math.floor(abs(steps) + 0.46), steps)
            settled[k] = amplitudes[order[k]] * step_of_scaled[k]
        rest = self._target - self._columns @ (amplitudes * unit)
        _check_steps(amplitudes)
        return amplitudes[kept].astype(np.int64), rest

    def _rounded(
        self, index: int, rounding: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Amplitudes, waves and the error of the coefficients at a step."""
        step = _step_of(index)
        amplitudes, rest = self._solve(step)
        _check_steps(rest / step)
        waves = (np.sign(rest) * np.floor(np.abs(rest) / step + rounding)).astype(np.int64)
        return amplitudes, waves, rest - waves * step

    def _error(self, index: int, rounding: float) -> float:
        return float(np.linalg.norm(self._rounded(index, rounding)[2]))

    def _numbers(self, index: int, rounding: float) -> _Numbers:
        amplitudes, waves, _ = self._rounded(index, rounding)
        step = _step_of(index)
        deviations = self.model.deviations(step)
        costs = [bits(amplitudes, deviations * scale) for scale in _MODE_SCALES]
        mode_scale = int(np.argmin(costs))
        nonzero = np.flatnonzero(waves)
        waves = waves[: nonzero[-1] + 1 if len(nonzero) else 0]
        expected = self.model.expected_waves(self._mean, step)
        bands, wave_cost = [], 0.0
        for band in _bands(len(waves)):
            options = [bits(waves[band], expected[band] * 2.0**k) + abs(k) for k in _BAND_RANGE]
            bands.append(_BAND_RANGE[int(np.argmin(options))])
            wave_cost += min(options)
        cost = costs[mode_scale] + wave_cost
        return _Numbers(index, mode_scale, amplitudes, np.array(bands, np.int64), waves, cost)

    def _decoded(self, numbers: _Numbers) -> NDArray[np.float64]:
        step = _step_of(numbers.step_index)
        return self.model.field(self._mean, step, numbers.amplitudes, numbers.waves)

    def _write(self, numbers: _Numbers) -> bytes:
        model, writer = self.model, Writer()
        _write_plan(writer, model.structure, model.plan)
        writer.integer(self._whole)
        writer.integer(self._part)
        writer.uniform(numbers.step_index, _N_STEPS)
        step = _step_of(numbers.step_index)
        if len(numbers.amplitudes):
            writer.uniform(numbers.mode_scale, len(_MODE_SCALES))
        scale = _MODE_SCALES[numbers.mode_scale]
        writer.numbers(numbers.amplitudes, model.deviations(step) * scale)
        writer.natural(len(numbers.waves))
        writer.numbers(numbers.bands, np.full(len(numbers.bands), _BAND_DEVIATION))
        expected = model.expected_waves(self._mean, step)
        writer.numbers(numbers.waves, _wave_scales(expected, numbers.bands, len(numbers.waves)))
        return writer.getvalue()


# ---------------------------------------------------------------------- shared


def _step_of(index: int) -> float:
    """The step of waves, e/A^3."""
    return float(2.0 ** (index / _STEPS_PER_OCTAVE - _FIRST_STEP))


def _check_steps(steps: NDArray[np.float64]) -> None:
    """Refuse what is no whole number of 64 bits.

    Raises:
        NotReachedError: it is not.
    """
    if not np.abs(steps).max(initial=0.0) < _LARGEST:
        raise NotReachedError


def _bands(n: int) -> list[slice]:
    """The first 16 waves, the next 16, 32, 64 ..."""
    edges = [0]
    while edges[-1] < n:
        edges.append(max(_FIRST_BAND, 2 * edges[-1]))
    return [slice(a, min(b, n)) for a, b in pairwise(edges)]


def _wave_scales(
    expected: NDArray[np.float64], bands: NDArray[np.int64], n: int
) -> NDArray[np.float64]:
    """Expected sizes of n rounded waves, with the factors of their bands."""
    scales = expected[:n].copy()
    for band, exponent in zip(_bands(n), bands.tolist(), strict=True):
        scales[band] *= 2.0**exponent
    return scales


def _rounded_mean(mean: float, volume: float) -> tuple[float, tuple[int, int]]:
    """A mean as it is stored: its integral over the cell, as a whole number and a fraction.

    Raises:
        NotReachedError: it is too large.
    """
    total = mean * volume
    if not abs(total) < _LARGEST:
        raise NotReachedError
    whole = round(total)
    unit = _mean_unit(whole)
    part = round((total - whole) / unit)
    return _mean_from(whole, part, volume), (whole, part)


def _mean_from(whole: int, part: int, volume: float) -> float:
    return (whole + part * _mean_unit(whole)) / volume


def _mean_unit(whole: int) -> float:
    return 2.0 ** (abs(whole).bit_length() - _MEAN_BITS)


def _g_index(values: NDArray[np.float64], structure: Structure, rms: float) -> int:
    """The smallest sphere outside which the root mean square of a field is at most `rms`."""
    n3 = values.shape[2]
    power = np.abs(np.fft.rfftn(values) / values.size) ** 2
    power[:, :, 1 : (n3 + 1) // 2] *= 2
    metric = reciprocal_metric(structure.lattice)
    along_a, along_b, z = half_frequencies(values.shape)
    y = along_b[:, None]
    tail = np.zeros(_N_G + 1)
    for i, x in enumerate(along_a):
        square = x * x * metric[0][0] + y * y * metric[1][1] + z * z * metric[2][2]
        square = square + 2 * (x * y * metric[0][1] + x * z * metric[0][2] + y * z * metric[1][2])
        index = np.minimum(2 * np.pi * np.sqrt(square) / G_UNIT, _N_G - 1).astype(np.int64)
        tail += np.bincount(index.ravel(), power[i].ravel(), minlength=_N_G + 1)
    outside = tail[::-1].cumsum()[::-1]
    largest = int(np.flatnonzero(tail)[-1]) + 1 if tail.any() else 0
    enough = np.flatnonzero(outside <= rms * rms)
    return min(int(enough[0]) if len(enough) else largest, largest, _N_G - 1)


def _write_plan(writer: Writer, structure: Structure, plan: Plan) -> None:
    described = describe(structure, plan.operations)
    writer.uniform(len(described), MOST_GENERATORS + 1)
    for rotation, target in described:
        largest = int(np.abs(rotation).max())
        if largest > 1:
            writer.uniform(_n_rotations(1), _n_rotations(1) + 1)
        base = 2 * largest + 1
        number = sum(int(w + largest) * base**k for k, w in enumerate(rotation.ravel()))
        writer.uniform(number, _n_rotations(largest) + (largest == 1))
        writer.uniform(target, n_targets(structure))
    writer.uniform(plan.g_index, _N_G)
    writer.uniform(plan.l_max + 1, LIBRARY_L + 2)
    if plan.l_max >= 0:
        writer.uniform(int(plan.generic), 2)
        writer.uniform(int(plan.sampled), 2)


def _read_plan(reader: Reader, structure: Structure, grid: Grid) -> Plan:
    described = []
    for _ in range(reader.uniform(MOST_GENERATORS + 1)):
        largest, number = 1, reader.uniform(_n_rotations(1) + 1)
        if number == _n_rotations(1):
            largest, number = LARGEST_ELEMENT, reader.uniform(_n_rotations(LARGEST_ELEMENT))
        base = 2 * largest + 1
        digits = [number // base**k % base - largest for k in range(9)]
        rotation = np.array(digits, dtype=np.int64).reshape(3, 3)
        described.append((rotation, reader.uniform(n_targets(structure))))
    g_index = reader.uniform(_N_G)
    l_max = reader.uniform(LIBRARY_L + 2) - 1
    generic = l_max < 0 or bool(reader.uniform(2))
    sampled = l_max >= 0 and bool(reader.uniform(2))
    return Plan(grid, group_from(structure, described), g_index, l_max, generic, sampled)


def _n_rotations(largest: int) -> int:
    """How many matrices there are with whole elements up to `largest` in size."""
    return int((2 * largest + 1) ** 9)


# ---------------------------------------------------------------------- decoding


def decode_field(
    data: bytes, structure: Structure, grid: Grid, library: int
) -> NDArray[np.float64]:
    """The field that `encode_field` wrote, on its grid.

    Args:
        data: the bytes.
        structure: of the field that was encoded.
        grid: likewise.
        library: number of the atom library.

    Raises:
        StoreError: they are damaged, or of another structure.
    """
    try:
        reader = Reader(data)
        plan = _read_plan(reader, structure, grid)
        model = Expansion(structure, plan, load_library(library))
        whole, part = reader.integer(), reader.integer()
        mean = _mean_from(whole, part, model.volume)
        step = _step_of(reader.uniform(_N_STEPS))
        deviations = model.deviations(step)
        scale = _MODE_SCALES[reader.uniform(len(_MODE_SCALES))] if len(deviations) else 1.0
        amplitudes = reader.numbers(deviations * scale)
        n_waves = reader.natural()
        if n_waves > model.stars.n_coefficients:
            raise StoreError("a payload is damaged, or of another structure")
        bands = reader.numbers(np.full(len(_bands(n_waves)), _BAND_DEVIATION))
        if len(bands) and not (bands.min() in _BAND_RANGE and bands.max() in _BAND_RANGE):
            raise StoreError("a payload is damaged, or of another structure (bands)")
        expected = model.expected_waves(mean, step)
        waves = reader.numbers(_wave_scales(expected, bands, n_waves))
    except (ValueError, OverflowError, AssertionError, IndexError) as error:
        raise StoreError(f"a payload is damaged, or of another structure ({error})") from error
    return model.field(mean, step, amplitudes, waves)
