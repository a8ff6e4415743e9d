"""One periodic field of a crystal as whole numbers: functions about the atoms, then plane waves.

Field = mean + atoms + waves. The atoms carry the library's mean functions and modes (`library`,
`multipoles`), whose amplitudes are fitted to this field; the waves are what remains, one
coefficient per star (`stars`). Amplitudes and coefficients are rounded to steps that put the same
error into the field, and range-coded (`entropy`) with the deviations that the library expects.

docs/codec.md has the mathematics and the order of the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from chgdb.density import Grid, Structure
from chgdb.entropy import Reader, Writer, bits
from chgdb.errors import StoreError
from chgdb.library import LATEST, LIBRARY_L, Atom, Library, load_library
from chgdb.multipoles import (
    GAUSSIANS,
    POWERS,
    SphereFunctions,
    angular,
    nearest_distances,
    radial,
    sites,
    sphere_transform,
)
from chgdb.stars import Operations, Stars, closure, find_operations, generators, reciprocal_metric

__all__ = ["Limits", "NotReachedError", "decode_field", "encode_field"]

_STEPS_PER_OCTAVE = 8
_FIRST_STEP = 48
"""step = 2^(index / 8 - 48), e/A^3."""

_N_STEPS = 640

_MODE_STEP = 1.5
"""Step of an amplitude over that of a wave, for equal mean square: the error of a mode is peaked
at a nucleus, so it weighs less in the mean absolute error."""

_WORTHWHILE = 0.3
"""A mode whose expected amplitude is less than this part of its step is left out."""

_RADIUS_SHARE = 0.49
"""Of the distance to the nearest neighbour, which spheres do not exceed."""

_G_UNIT = 0.25
"""Of the radius of the sphere of waves, 1/Angstrom."""

_N_G = 1024
_MODE_SCALES = tuple(2.0**k for k in range(-2, 6))
_FIRST_BAND = 16
_MEAN_BITS = 31
"""The mean is kept to 2^-31 of itself."""

_SMALL = 500_000
"""Points of a grid up to which more than one way is tried to the end."""

_MOST_WORK = 3e10
"""Coefficients times modes squared of a fit: 1 to 2 s; with more, fewer harmonics are fitted."""

_FINEST = 0.1
"""Smallest step over the rms error at which modes are fitted."""

_BAND_RANGE = range(-8, 16)
_BAND_DEVIATION = 1.0
_SIZE_IN_STEPS = 64.0
"""A field whose mean is small is taken to be of this size, to expect its waves."""

_ROUNDING = (0.42, 0.36, 0.30)
"""What is added before rounding down a wave: the less, the fewer and the cheaper; tried in turn."""


class NotReachedError(Exception):
    """No step, however small, brings the error of a field within the tolerance."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What decides how a field is written, beside its numbers.

    Attributes:
        grid: points along a, b, c.
        operations: under which the field is unchanged.
        g_index: waves up to |G| = index / 4 1/Angstrom; 0 for none.
        l_max: of the functions about atoms; -1 for none.
        generic: whether the generic atom stands for every element.
        sampled: whether functions inside spheres are taken on the points of the grid, as codes do
            on their own grid, not as integrals up to |G|, as on one that was interpolated.
    """

    grid: Grid
    operations: Operations
    g_index: int
    l_max: int
    generic: bool
    sampled: bool


@dataclass(frozen=True, eq=False)
class _Term:
    """A combination of harmonics of a site, with its modes: amplitudes that are told apart."""

    site: int
    l: int
    function: int
    atom: Atom
    modes: NDArray[np.float64]
    deviations: NDArray[np.float64]


class _Model:
    """The functions of a plan on the stars of its grid."""

    def __init__(self, structure: Structure, plan: Plan, library: Library) -> None:
        self.structure = structure
        self.plan = plan
        self.library = library
        self.volume = _volume(structure)
        self.stars = Stars(structure, plan.grid, plan.operations, plan.g_index * _G_UNIT)
        self.sites = sites(structure, plan.operations, plan.l_max) if plan.l_max >= 0 else []
        self.atoms = [library.atom(site.element, generic=plan.generic) for site in self.sites]

    def expected_waves(self, mean: float, step: float) -> NDArray[np.float64]:
        """Expected sizes of the rounded waves, before the factors of the bands."""
        size = max(abs(mean), _SIZE_IN_STEPS * step)
        return self._relative_waves * (size / step)

    @cached_property
    def _relative_waves(self) -> NDArray[np.float64]:
        g = self.stars.per_coefficient(self.stars.g)
        return np.sqrt(self.library.residual_at(g) / self.volume)

    def n_modes(self, step: float) -> int:
        """Modes that are worth their bits at a step."""
        return sum(len(term.deviations) for term in self.terms(step))

    def amplitude_step(self, step: float, site: int) -> float:
        """The step of amplitudes at a site, sqrt(e^2/A^3)."""
        return _MODE_STEP * step * math.sqrt(self.volume / len(self.sites[site].atoms))

    def terms(self, step: float) -> Iterator[_Term]:
        """The terms with the modes that are worth their bits at a step."""
        for index, (site, atom) in enumerate(zip(self.sites, self.atoms, strict=True)):
            least = _WORTHWHILE * self.amplitude_step(step, index)
            for l in range(self.plan.l_max + 1):
                kept = atom.deviations[l] > least
                for function in range(site.harmonics[l].shape[1]):
                    yield _Term(
                        index, l, function, atom, atom.modes[l][kept], atom.deviations[l][kept]
                    )

    def deviations(self, step: float) -> NDArray[np.float64]:
        """Expected sizes of the rounded amplitudes, in their order."""
        parts = [t.deviations / self.amplitude_step(step, t.site) for t in self.terms(step)]
        return np.concatenate([*parts, np.zeros(0)])

    def field(
        self, mean: float, step: float, amplitudes: NDArray[np.int64], waves: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """The field that the numbers stand for.

        Args:
            mean: of the field.
            step: of a wave.
            amplitudes: one per mode, in steps.
            waves: coefficients of the first stars, in steps.
        """
        coefficients = np.zeros(self.stars.n_coefficients)
        coefficients[: len(waves)] = waves * step
        total = self.stars.to_complex(coefficients)
        spheres = np.zeros(self.plan.grid)
        position = 0
        for term in self.terms(step):
            n = len(term.modes)
            steps = amplitudes[position : position + n]
            position += n
            weights = (steps * self.amplitude_step(step, term.site)) @ term.modes
            if term.l == 0:
                weights = weights + term.atom.mean
                inside = weights[len(GAUSSIANS[0]) :]
                if self.plan.sampled:
                    spheres += self._spheres[term.site].field(inside)
                else:
                    total += self._transforms[term.site] @ inside
            if weights.any():
                smooth = self._radial[term.l] @ weights[: len(GAUSSIANS[term.l])]
                total += self._angular[term.site, term.l][:, term.function] * smooth
        field = self.stars.field_from_complex(total) + spheres
        field += mean - field.mean()
        return field

    def columns(self, step: float) -> NDArray[np.float64]:
        """Shape (coefficient, mode): what a unit amplitude of each mode gives."""
        found = []
        for term in self.terms(step):
            n = len(GAUSSIANS[term.l])
            angle = self._angular[term.site, term.l][:, term.function]
            smooth = self._radial[term.l] @ term.modes[:, :n].T
            column = self.stars.from_complex(angle[:, None] * smooth)
            if term.l == 0:
                column = column + self._sphere_columns[term.site] @ term.modes[:, n:].T
            found.append(column)
        return np.concatenate([*found, np.zeros((self.stars.n_coefficients, 0))], axis=1)

    @cached_property
    def base(self) -> NDArray[np.float64]:
        """Coefficients of the mean atoms."""
        total = np.zeros(self.stars.n_coefficients)
        n = len(GAUSSIANS[0])
        for index, atom in enumerate(self.atoms):
            if atom.mean.any():
                angle = self._angular[index, 0][:, 0]
                total += self.stars.from_complex(angle * (self._radial[0] @ atom.mean[:n]))
                total += self._sphere_columns[index] @ atom.mean[n:]
        return total

    @cached_property
    def _radial(self) -> list[NDArray[np.float64]]:
        return [radial(l, self.stars.g) for l in range(self.plan.l_max + 1)]

    @cached_property
    def _angular(self) -> dict[tuple[int, int], NDArray[np.complex128]]:
        return {
            (index, l): angular(self.structure, self.stars, site, l)
            for index, site in enumerate(self.sites)
            for l in range(self.plan.l_max + 1)
        }

    @cached_property
    def _radii(self) -> list[float]:
        nearest = nearest_distances(self.structure)
        return [
            min(atom.radius, _RADIUS_SHARE * float(nearest[site.atoms[0]]))
            for site, atom in zip(self.sites, self.atoms, strict=True)
        ]

    @cached_property
    def _spheres(self) -> list[SphereFunctions]:
        return [
            SphereFunctions(self.structure, self.plan.grid, site, radius)
            for site, radius in zip(self.sites, self._radii, strict=True)
        ]

    @cached_property
    def _transforms(self) -> list[NDArray[np.complex128]]:
        """Per site, shape (star, power): F(h) of a unit amplitude inside the spheres."""
        found = []
        for site, radius in zip(self.sites, self._radii, strict=True):
            phase = np.zeros(len(self.stars.h), dtype=np.complex128)
            for atom in site.atoms:
                phase += np.exp(-2j * np.pi * (self.stars.h @ self.structure.frac_coords[atom]))
            found.append(phase[:, None] * sphere_transform(self.stars.g, radius) / self.volume)
        return found

    @cached_property
    def _sphere_columns(self) -> list[NDArray[np.float64]]:
        """Per site, shape (coefficient, power): what a unit amplitude inside the spheres gives."""
        if not self.plan.sampled:
            return [self.stars.from_complex(transform) for transform in self._transforms]
        units = np.eye(len(POWERS))
        return [
            np.stack([self.stars.coefficients(spheres.field(unit)) for unit in units], axis=1)
            for spheres in self._spheres
        ]


def _volume(structure: Structure) -> float:
    """Cell volume in single IEEE operations, A^3."""
    (a, b, c), (d, e, f), (g, h, i) = structure.lattice.tolist()
    return float(abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)))


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
    for operations in _groups(values, structure, symprec, limits.rms):
        fits = []
        for other, sampled in ((False, is_small), (False, False), (True, False)):
            if generic and not other:
                continue
            for l_max in (LIBRARY_L, 2, 0, -1):
                plan = Plan(grid, operations, g_index, l_max, other, sampled and l_max >= 0)
                model = _Model(structure, plan, library)
                modes = model.n_modes(_FINEST * limits.rms)
                if modes**2 * model.stars.n_coefficients < _MOST_WORK:
                    fits.append(_Fit(model, values, limits.rms))
                    break
        fits.sort(key=lambda fit: fit.near(limits.rms).cost)
        written = []
        for fit in fits[: 3 if is_small else 1]:
            with suppress(NotReachedError):
                written.append(fit.reach(values, limits))
        if written:
            return min(written, key=len)
    raise NotReachedError


class _Fit:
    """A model fitted to a field, for any step."""

    def __init__(self, model: _Model, values: NDArray[np.float64], rms: float) -> None:
        self.model = model
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

    def near(self, rms: float) -> _Numbers:
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

    def reach(self, values: NDArray[np.float64], limits: Limits) -> bytes:
        """The bytes within the limits, measured on what they decode to."""
        roundings = _ROUNDING if values.size <= _SMALL else _ROUNDING[:1]
        start = self.near(limits.rms).step_index
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
                if fails - fits <= 1 or index == 0:
                    break
                jump = round(_STEPS_PER_OCTAVE * math.log2(1.0 / max(share, 1e-6)))
                jump = max(-24, min(24, jump)) or (1 if share <= 1.0 else -1)
                index = min(max(index + jump, fits + 1, 0), fails - 1)
                if share > 1.5 and index < start - 60:
                    break  # the step has no say any more: something is not described
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
        kept = np.flatnonzero(self._deviations > _WORTHWHILE * unit)
        if not len(kept):
            return np.zeros(0, dtype=np.int64), self._target
        # The largest are rounded first; those after them make up for their rounding.
        order = kept[np.argsort(self._deviations[kept] / unit[kept], kind="stable")]
        scale = self._deviations[order]
        gram = self._gram[np.ix_(order, order)] * np.outer(scale, scale) + np.eye(len(order))
        upper = np.linalg.cholesky(gram).T
        moment = np.linalg.solve(upper.T, self._moment[order] * scale)
        unit_scaled = unit[order] / scale
        rounded = np.zeros(len(order))
        for k in range(len(order) - 1, -1, -1):
            value = (moment[k] - upper[k, k + 1 :] @ (rounded * unit_scaled)[k + 1 :]) / upper[k, k]
            steps = value / unit_scaled[k]
            rounded[k] = math.copysign(math.floor(abs(steps) + 0.46), steps)
        amplitudes = np.zeros(len(self._deviations))
        amplitudes[order] = rounded
        rest = self._target - self._columns[:, order] @ (rounded * unit[order])
        return amplitudes[kept].astype(np.int64), rest

    def _rounded(
        self, index: int, rounding: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Amplitudes, waves and the error of the coefficients at a step."""
        step = step_of(index)
        amplitudes, rest = self._solve(step)
        waves = (np.sign(rest) * np.floor(np.abs(rest) / step + rounding)).astype(np.int64)
        return amplitudes, waves, rest - waves * step

    def _error(self, index: int, rounding: float) -> float:
        return float(np.linalg.norm(self._rounded(index, rounding)[2]))

    def _numbers(self, index: int, rounding: float) -> _Numbers:
        amplitudes, waves, _ = self._rounded(index, rounding)
        step = step_of(index)
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
        step = step_of(numbers.step_index)
        return self.model.field(self._mean, step, numbers.amplitudes, numbers.waves)

    def _write(self, numbers: _Numbers) -> bytes:
        model, writer = self.model, Writer()
        _write_plan(writer, model.structure, model.plan)
        writer.integer(self._whole)
        writer.integer(self._part)
        writer.uniform(numbers.step_index, _N_STEPS)
        step = step_of(numbers.step_index)
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


def step_of(index: int) -> float:
    """The step of waves, e/A^3."""
    return float(2.0 ** (index / _STEPS_PER_OCTAVE - _FIRST_STEP))


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
    """A mean as it is stored: its integral over the cell, a whole number and 2^-31 parts of it."""
    total = mean * volume
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
    n1, n2, n3 = values.shape
    power = np.abs(np.fft.rfftn(values) / values.size) ** 2
    power[:, :, 1 : (n3 + 1) // 2] *= 2
    metric = reciprocal_metric(structure.lattice)
    frequencies = [np.fft.fftfreq(n1, 1 / n1), np.fft.fftfreq(n2, 1 / n2), np.arange(n3 // 2 + 1)]
    tail = np.zeros(_N_G + 1)
    z = frequencies[2]
    for i, x in enumerate(frequencies[0]):
        y = frequencies[1][:, None]
        square = x * x * metric[0][0] + y * y * metric[1][1] + z * z * metric[2][2]
        square = square + 2 * (x * y * metric[0][1] + x * z * metric[0][2] + y * z * metric[1][2])
        index = np.minimum(2 * np.pi * np.sqrt(square) / _G_UNIT, _N_G - 1).astype(np.int64)
        tail += np.bincount(index.ravel(), power[i].ravel(), minlength=_N_G + 1)
    outside = tail[::-1].cumsum()[::-1]
    largest = int(np.flatnonzero(tail)[-1]) + 1 if tail.any() else 0
    enough = np.flatnonzero(outside <= rms * rms)
    return min(int(enough[0]) if len(enough) else largest, largest, _N_G - 1)


# ---------------------------------------------------------------------- symmetry


def _groups(
    values: NDArray[np.float64], structure: Structure, symprec: float, rms: float
) -> Iterator[Operations]:
    """Groups to try: that of the structure as far as the field has it, then P1."""
    found = find_operations(structure, symprec)
    if len(found) > 1:
        holds = _held(values, found, rms)
        if not holds.all():
            # Operations that hold form a group; spglib's list is closed, so a product is in it.
            chosen = np.flatnonzero(holds)
            found = Operations(found.rotations[chosen], found.translations[chosen])
        with suppress(ValueError):
            group = _as_written(structure, found)
            if 1 < len(group) <= len(found):
                yield group
    yield Operations.identity()


def _held(values: NDArray[np.float64], operations: Operations, rms: float) -> NDArray[np.bool_]:
    """Which operations leave the strongest coefficients of a field as they are."""
    grid = (values.shape[0], values.shape[1], values.shape[2])
    spectrum = np.fft.rfftn(values) / values.size
    strongest = np.argsort(-np.abs(spectrum), axis=None, kind="stable")[:_STRONGEST]
    h = np.stack(np.unravel_index(strongest, spectrum.shape), axis=1)
    h = h - np.where(h > np.array(grid) // 2, grid, 0)
    limits = [(n - 1) // 2 for n in grid]
    h = h[(np.abs(h) <= limits).all(axis=1)]

    def at(vectors: NDArray[np.int64]) -> NDArray[np.complex128]:
        mirrored = vectors[:, 2] < 0
        index = np.where(mirrored[:, None], -vectors, vectors)
        found: NDArray[np.complex128] = spectrum[
            index[:, 0] % grid[0], index[:, 1] % grid[1], index[:, 2]
        ]
        return np.where(mirrored, found.conj(), found)

    own = at(h)
    holds = []
    for rotation, shift in zip(operations.rotations, operations.translations, strict=True):
        member = h @ rotation
        inside = (np.abs(member) <= limits).all(axis=1)
        turned = own[inside] * np.exp(2j * np.pi * (h[inside] @ shift))
        holds.append(np.linalg.norm(at(member[inside]) - turned) <= 0.5 * rms)
    return np.array(holds)


def _reference(structure: Structure) -> tuple[int, list[int]]:
    """The atom that says where operations lead, and those it may lead to: of the rarest element."""
    counts = structure.composition
    element = min(counts, key=lambda symbol: (counts[symbol], structure.species.index(symbol)))
    atoms = [i for i, symbol in enumerate(structure.species) if symbol == element]
    return atoms[0], atoms


def _as_written(structure: Structure, operations: Operations) -> Operations:
    """A group with the translations that its generators have after they were written and read.

    Raises:
        ValueError: it cannot be written.
    """
    return _group(structure, _described(structure, operations))


def _described(structure: Structure, operations: Operations) -> list[tuple[int, int]]:
    """Generators as the number of the rotation and the position of the atom they lead to.

    The number is sum of (element of W + 1) 3^k over the elements, row by row.
    """
    first, candidates = _reference(structure)
    coords = structure.frac_coords
    described = []
    for index in generators(operations):
        rotation, shift = operations.rotations[index], operations.translations[index]
        if np.abs(rotation).max() > 1:
            raise ValueError("a rotation that is not written")
        apart = rotation @ coords[first] + shift - coords[candidates]
        apart -= np.rint(apart)
        target = int(np.linalg.norm(apart @ structure.lattice, axis=1).argmin())
        digits = (rotation.ravel() + 1).tolist()
        described.append((sum(d * 3**k for k, d in enumerate(digits)), target))
    if len(described) > _MOST_GENERATORS:
        raise ValueError("too many generators")
    return described


def _group(structure: Structure, described: list[tuple[int, int]]) -> Operations:
    """The group of described generators.

    Raises:
        ValueError: they are of no crystal.
    """
    if not described:
        return Operations.identity()
    first, candidates = _reference(structure)
    coords = structure.frac_coords
    rotations, shifts = [], []
    for number, target in described:
        rotation = np.array([number // 3**k % 3 - 1 for k in range(9)]).reshape(3, 3)
        if abs(round(float(np.linalg.det(rotation)))) != 1:
            raise ValueError("not a rotation")
        rotations.append(rotation)
        shifts.append((coords[candidates[target]] - rotation @ coords[first]) % 1.0)
    return closure(np.array(rotations), np.array(shifts))


_STRONGEST = 2048
"""Coefficients on which operations are tried."""

_MOST_GENERATORS = 7
_N_ROTATIONS = 3**9


def _write_plan(writer: Writer, structure: Structure, plan: Plan) -> None:
    described = _described(structure, plan.operations)
    writer.uniform(len(described), _MOST_GENERATORS + 1)
    for number, target in described:
        writer.uniform(number, _N_ROTATIONS)
        writer.uniform(target, len(_reference(structure)[1]))
    writer.uniform(plan.g_index, _N_G)
    writer.uniform(plan.l_max + 1, LIBRARY_L + 2)
    if plan.l_max >= 0:
        writer.uniform(int(plan.generic), 2)
        writer.uniform(int(plan.sampled), 2)


def _read_plan(reader: Reader, structure: Structure, grid: Grid) -> Plan:
    described = []
    for _ in range(reader.uniform(_MOST_GENERATORS + 1)):
        number = reader.uniform(_N_ROTATIONS)
        described.append((number, reader.uniform(len(_reference(structure)[1]))))
    g_index = reader.uniform(_N_G)
    l_max = reader.uniform(LIBRARY_L + 2) - 1
    generic = l_max < 0 or bool(reader.uniform(2))
    sampled = l_max >= 0 and bool(reader.uniform(2))
    return Plan(grid, _group(structure, described), g_index, l_max, generic, sampled)


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
        model = _Model(structure, plan, load_library(library))
        whole, part = reader.integer(), reader.integer()
        mean = _mean_from(whole, part, model.volume)
        step = step_of(reader.uniform(_N_STEPS))
        deviations = model.deviations(step)
        scale = _MODE_SCALES[reader.uniform(len(_MODE_SCALES))] if len(deviations) else 1.0
        amplitudes = reader.numbers(deviations * scale)
        n_waves = reader.natural()
        if n_waves > model.stars.n_coefficients:
            raise StoreError("a payload is damaged, or of another structure")
        bands = reader.numbers(np.full(len(_bands(n_waves)), _BAND_DEVIATION))
        expected = model.expected_waves(mean, step)
        waves = reader.numbers(_wave_scales(expected, bands, n_waves))
    except (ValueError, OverflowError, AssertionError, IndexError) as error:
        raise StoreError(f"a payload is damaged, or of another structure ({error})") from error
    return model.field(mean, step, amplitudes, waves)
