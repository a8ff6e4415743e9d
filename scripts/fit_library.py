"""Learn the atom library of the archival codec from densities.

usage: python scripts/fit_library.py DENSITIES... --output chgdb/libraries/atoms-1.npz
       [--hold-out FILE|N | --fold K/N] [--processes N] [--source TEXT]

Per element: the radius of the spheres in which codes smooth the density, the mean radial function
of an atom, and modes, the ways it varies, by expectation maximisation. docs/codec.md ("How the
library was learned") has the mathematics. The same densities give the same library, however many
processes there are. Beside it stands a card, JSON of the same name, that says what it was made
from.

The columns of all densities lie in a temporary folder meanwhile (390 densities: 0.7 GB; set TMPDIR
to put it elsewhere).
"""

# ruff: noqa: E741 - l is the degree of a harmonic

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import scipy
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.linalg import qr, solve_triangular

import chgdb
from chgdb.density import ChargeDensity
from chgdb.errors import ChgdbError
from chgdb.expansion import RADIUS_SHARE
from chgdb.files import replacing
from chgdb.formats import default_id, find_densities, read_density
from chgdb.library import GENERIC, LIBRARY_L
from chgdb.multipoles import (
    POWERS,
    SphereFunctions,
    angular,
    n_radial,
    nearest_distances,
    radial,
    sites,
    sphere_transform,
)
from chgdb.stars import Stars
from chgdb.symmetry import find_operations

Task = TypeVar("Task")
Result = TypeVar("Result")

ATTRIBUTION = Path(__file__).with_name("attribution.txt")


@dataclass(frozen=True)
class Settings:
    """What the library depends on, beside the densities.

    Attributes:
        symprec: how far an atom may be from its symmetric position, Angstrom.
        default_radius: of spheres where the densities do not tell, Angstrom.
        least_radius: the least that is told apart from the default one, Angstrom.
        largest_ratio: squared error of a fit over that with the default radius, above which the
            densities do not tell the radius.
        room: part of an element's densities that may be too narrow for its spheres, which are
            smaller there.
        scanned: densities per element in which radii are tried.
        largest_scan: of these, points of the grid times elements over operations, at most.
        iterations: of expectation maximisation.
        prior_weight: sites that the covariance pooled over all elements counts for.
        first_deviation_0: of amplitudes of l = 0 before the first iteration, sqrt(e^2/A^3).
        first_deviation: likewise for other l.
        noise: root mean square over the mean density of what no mode should describe.
        noise_share: of its square that is assumed in all coefficients alike, in all iterations but
            the first.
        least_mode: deviation of a mode that is kept, over the smallest amplitude that gives a
            density a root mean square of its mean; the codec uses modes above 0.45 of its step.
        generic_scale: variances of the generic atom over those about zero of all elements.
    """

    symprec: float = 1e-3
    default_radius: float = 0.75
    least_radius: float = 0.80
    largest_ratio: float = 0.95
    room: float = 0.25
    scanned: int = 10
    largest_scan: float = 20_000
    iterations: int = 6
    prior_weight: float = 0.5
    first_deviation_0: float = math.sqrt(30.0)
    first_deviation: float = math.sqrt(0.3)
    noise: float = 4e-3
    noise_share: float = 0.3
    least_mode: float = 1.35e-4
    generic_scale: float = 4.0


SETTINGS = Settings()

RADII = np.round(SETTINGS.default_radius + 0.03 * np.arange(28), 2)
"""Radii that are tried, Angstrom, the default one first."""

N_BINS = 40
"""Bins of |G|, 1/Angstrom wide, of the spectrum that the atoms leave."""


# ---------------------------------------------------------------------- radial functions


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal functions that span the radial functions of an l as far as these are distinct.

    Attributes:
        functions: shape (radial function, k), e of amplitude.
        samples: shape (|G|, k), orthonormal columns: the functions on a grid, so that
            `a.samples.T @ b.samples` are the overlaps of two bases.
    """

    functions: NDArray[np.float64]
    samples: NDArray[np.float64]

    def __len__(self) -> int:
        return int(self.functions.shape[1])


SAMPLED_G = np.arange(0.005, 80.0, 0.01)
"""|G| on which radial functions are integrated, 1/Angstrom."""

_DISTINCT = 1e-3
"""Singular values of normalised radial functions over the largest that count."""


@lru_cache(maxsize=256)
def basis(l: int, radius: float) -> Basis:
    """The basis of an l; the radius of the spheres matters for l = 0 only."""
    columns = radial(l, SAMPLED_G)
    if l == 0:
        # Harmonics are apart from the functions, but those in spheres are without Y_00.
        spheres = sphere_transform(SAMPLED_G, radius) * math.sqrt(4.0 * math.pi)
        columns = np.concatenate([columns, spheres], axis=1)
    # int f_i f_j d^3r = int R_i R_j G^2 dG / (2 pi)^3
    spacing = SAMPLED_G[1] - SAMPLED_G[0]
    columns = columns * (SAMPLED_G * math.sqrt(spacing / (2.0 * math.pi) ** 3))[:, None]
    norms = np.linalg.norm(columns, axis=0)
    samples, values, right = np.linalg.svd(columns / norms, full_matrices=False)
    kept = values > _DISTINCT * values[0]
    return Basis((right[kept].T / values[kept]) / norms[:, None], samples[:, kept])


def basis_of(l: int, radius: float) -> Basis:
    """The basis of an l about an atom with spheres of a radius."""
    return basis(l, radius if l == 0 else 0.0)


@lru_cache(maxsize=4096)
def overlap(l: int, first: float, second: float) -> NDArray[np.float64]:
    """Overlaps of the bases of two radii: what expresses the second's functions by the first's."""
    return basis_of(l, first).samples.T @ basis_of(l, second).samples


# ---------------------------------------------------------------------- densities


@dataclass(frozen=True)
class Source:
    """A density file, and what the choice of those that tell the radii needs to know of it.

    Attributes:
        id: of the material.
        path: of the file.
        cost: points of the grid times elements over operations.
        reach: for each element the largest radius that all its spheres can have, Angstrom.
    """

    id: str
    path: Path
    cost: float
    reach: dict[str, float]


class Crystal:
    """A density with its stars and sites, and the columns of functions about the sites."""

    def __init__(self, path: Path) -> None:
        density, _ = read_density(path)
        self.density: ChargeDensity = density
        structure = density.structure
        operations = find_operations(structure, SETTINGS.symprec)
        self.stars = Stars(structure, density.grid, operations)
        self.sites = sites(structure, operations, LIBRARY_L)
        self.target = self.stars.coefficients(density.values)
        nearest = nearest_distances(structure)
        self.reach = [RADIUS_SHARE * float(nearest[site.atoms[0]]) for site in self.sites]

    def smooth(self, site: int, l: int) -> NDArray[np.float64]:
        """Shape (coefficient, function, Gaussian)."""
        angle = angular(self.density.structure, self.stars, self.sites[site], l)
        return self.stars.from_complex(angle[:, :, None] * radial(l, self.stars.g)[:, None, :])

    def spheres(self, site: int, radius: float) -> NDArray[np.float64]:
        """Shape (coefficient, power): the functions inside spheres."""
        density, orbit = self.density, self.sites[site]
        functions = SphereFunctions(density.structure, density.grid, orbit, radius)
        units = np.eye(len(POWERS))
        columns = [self.stars.coefficients(functions.field(unit)) for unit in units]
        return np.stack(columns, axis=1)


def survey(path: Path) -> Source:
    """Read a density for what is to be known of it first."""
    density, _ = read_density(path)
    structure = density.structure
    operations = find_operations(structure, SETTINGS.symprec)
    cost = density.values.size * len(structure.elements) / len(operations)
    reach: dict[str, float] = {}
    for element, distance in zip(structure.species, nearest_distances(structure), strict=True):
        reach[element] = min(RADIUS_SHARE * float(distance), reach.get(element, math.inf))
    return Source(default_id(path, density.structure), path, cost, reach)


# ---------------------------------------------------------------------- radii of spheres

_ROUNDING = 1e-12
"""Squared error over the square of the density that is no error."""


def tasks_of_scan(sources: Sequence[Source]) -> list[tuple[Path, tuple[str, ...]]]:
    """Which elements to scan in which densities: the cheapest ones of each element."""
    wanted: dict[Path, list[str]] = defaultdict(list)
    cheap = sorted(sources, key=lambda source: (source.cost, source.id))
    cheap = [source for source in cheap if source.cost <= SETTINGS.largest_scan]
    for element in elements_of(sources):
        able = [source for source in cheap if element in source.reach]
        for source in able[: SETTINGS.scanned]:
            wanted[source.path].append(element)
    return [(path, tuple(elements)) for path, elements in sorted(wanted.items())]


def elements_of(sources: Iterable[Source]) -> list[str]:
    """All elements, in alphabetical order."""
    return sorted({element for source in sources for element in source.reach})


def scan(task: tuple[Path, tuple[str, ...]]) -> dict[str, NDArray[np.float64]]:
    """For each element and radius, the squared error of a fit over that with the default radius."""
    path, elements = task
    crystal = Crystal(path)
    n = crystal.stars.n_coefficients
    columns = np.concatenate(
        [
            crystal.smooth(site, l).reshape(n, -1)
            for site in range(len(crystal.sites))
            for l in range(LIBRARY_L + 1)
        ],
        axis=1,
    )
    norms = np.linalg.norm(columns, axis=0)
    columns = columns[:, norms > 1e-12 * norms.max()] / norms[norms > 1e-12 * norms.max()]
    left, values, _ = np.linalg.svd(columns, full_matrices=False)
    span = left[:, values > 1e-6 * values[0]]
    rest = crystal.target - span @ (span.T @ crystal.target)
    errors = {element: _errors(crystal, element, span, rest) for element in elements}
    return {element: error / error[0] for element, error in errors.items()}


def _errors(
    crystal: Crystal, element: str, span: NDArray[np.float64], rest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Shape (radius,): with spheres of at most this radius about all atoms of an element."""
    chosen = [i for i, site in enumerate(crystal.sites) if site.element == element]
    found: dict[tuple[float, ...], float] = {}
    errors, nothing = [], _ROUNDING * float(crystal.target @ crystal.target)
    for radius in RADII:
        radii = tuple(min(float(radius), crystal.reach[site]) for site in chosen)
        if radii not in found:
            pairs = zip(chosen, radii, strict=True)
            columns = np.concatenate([crystal.spheres(site, r) for site, r in pairs], axis=1)
            columns -= span @ (span.T @ columns)
            unit, _ = np.linalg.qr(columns)
            left = rest - unit @ (unit.T @ rest)
            found[radii] = float(left @ left) + nothing
        errors.append(found[radii])
    return np.array(errors)


def choose_radii(
    sources: Sequence[Source], scans: Iterable[dict[str, NDArray[np.float64]]]
) -> dict[str, float]:
    """The radius of each element's spheres, Angstrom."""
    curves: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for found in scans:
        for element, ratios in found.items():
            curves[element].append(ratios)
    radii = {}
    for element in elements_of(sources):
        reach = [source.reach[element] for source in sources if element in source.reach]
        radii[element] = _radius(curves[element], float(np.quantile(reach, SETTINGS.room)))
    return radii


def _radius(curves: Sequence[NDArray[np.float64]], largest: float) -> float:
    """The radius of the least geometric mean of errors, if that tells it."""
    able = RADII[: np.searchsorted(RADII, largest, side="right")]
    if not (curves and len(able)):
        return SETTINGS.default_radius
    mean = np.exp(np.mean(np.log(curves), axis=0))[: len(able)]
    best = int(mean.argmin())
    told = mean[best] <= SETTINGS.largest_ratio and able[best] >= SETTINGS.least_radius
    return float(able[best]) if told else SETTINGS.default_radius


# ---------------------------------------------------------------------- columns


class Block(NamedTuple):
    """The amplitudes of one combination of harmonics at a site.

    Attributes:
        element: symbol.
        l: degree.
        radius: of the element's spheres, Angstrom; it says which basis the amplitudes are of.
    """

    element: str
    l: int
    radius: float


@dataclass(frozen=True, eq=False)
class Columns:
    """A density and the columns that its coefficients are fitted with.

    Attributes:
        target: shape (coefficient,), e/A^3.
        columns: shape (coefficient, amplitude), float32: what unit amplitudes of orthonormal
            functions give.
        blocks: which amplitudes these are, in their order.
        bins: shape (coefficient,), of |G|.
        size: mean absolute density, e/A^3.
        volume: of the cell, A^3.
        units: for each element its smallest size * sqrt(volume / atoms of a site): the amplitude
            that gives a field of the root mean square of the density.
    """

    target: NDArray[np.float64]
    columns: NDArray[np.float32]
    blocks: list[Block]
    bins: NDArray[np.int64]
    size: float
    volume: float
    units: dict[str, float]

    def save(self, path: Path) -> None:
        arrays = {"target": self.target, "columns": self.columns, "bins": self.bins}
        rest = [self.blocks, self.size, self.volume, self.units]
        np.savez(path, rest=np.array(json.dumps(rest)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Columns:
        with np.load(path, allow_pickle=False) as file:
            blocks, size, volume, units = json.loads(str(file["rest"]))
            return cls(
                target=file["target"],
                columns=file["columns"],
                blocks=[Block(*block) for block in blocks],
                bins=file["bins"],
                size=size,
                volume=volume,
                units=units,
            )


def columns_of(crystal: Crystal, radii: dict[str, float]) -> Columns:
    """The columns of a density, for spheres of known radii."""
    columns, blocks, units = [], [], dict[str, float]()
    density, n = crystal.density, crystal.stars.n_coefficients
    size, volume = float(np.abs(density.values).mean()), density.structure.volume
    for index, site in enumerate(crystal.sites):
        radius = radii[site.element]
        unit = size * math.sqrt(volume / len(site.atoms))
        units[site.element] = min(unit, units.get(site.element, math.inf))
        for l in range(LIBRARY_L + 1):
            found = crystal.smooth(index, l)
            if l == 0:
                inside = crystal.spheres(index, min(radius, crystal.reach[index]))
                found = np.concatenate([found, inside[:, None]], axis=2)
            blocks += [Block(site.element, l, radius)] * found.shape[1]
            columns.append((found @ basis_of(l, radius).functions).reshape(n, -1))
    return Columns(
        target=crystal.target,
        columns=np.concatenate(columns, axis=1).astype(np.float32),
        blocks=blocks,
        bins=np.minimum(crystal.stars.per_coefficient(crystal.stars.g), N_BINS - 1).astype(int),
        size=size,
        volume=volume,
        units=units,
    )


def write_columns(task: tuple[Path, Path, dict[str, float]]) -> Path:
    """Compute the columns of a density and write them to a file."""
    path, target, radii = task
    columns_of(Crystal(path), radii).save(target)
    return target


# ---------------------------------------------------------------------- expectation


@dataclass(frozen=True, eq=False)
class Prior:
    """The normal distribution of a block's amplitudes.

    Attributes:
        mean: shape (k,).
        covariance: shape (k, k).
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @property
    def half(self) -> NDArray[np.float64]:
        """A matrix H with H H^T = covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        root: NDArray[np.float64] = vectors * np.sqrt(np.maximum(values, 0.0))
        return root


@dataclass(frozen=True, eq=False)
class Estimate:
    """All that expectation maximisation improves.

    Attributes:
        priors: of each block.
        residual: shape (bin,), as in `chgdb.library.Library`.
        floor: variance that all coefficients have beside it, over the squared noise of the settings
            shared among them.
    """

    priors: dict[Block, Prior]
    residual: NDArray[np.float64]
    floor: float

    def variance(self, data: Columns) -> NDArray[np.float64]:
        """Shape (coefficient,): of what the atoms leave."""
        evenly = (SETTINGS.noise * data.size) ** 2 / len(data.target)
        return self.residual[data.bins] * data.size**2 / data.volume + self.floor * evenly


@dataclass(eq=False)
class Moments:
    """Sums over sites of the amplitudes of a block, less the mean of the prior.

    Attributes:
        n: sites.
        first: shape (k,), sum of the expected amplitudes.
        second: shape (k, k), sum of their expected products.
    """

    n: int
    first: NDArray[np.float64]
    second: NDArray[np.float64]

    @classmethod
    def none(cls, k: int) -> Moments:
        return cls(0, np.zeros(k), np.zeros((k, k)))

    def add(self, other: Moments) -> None:
        self.n += other.n
        self.first += other.first
        self.second += other.second

    def scatter(self, l: int) -> tuple[NDArray[np.float64], int]:
        """The products about the mean, and the degrees of freedom; for l > 0 the mean is zero."""
        if l > 0 or not self.n:
            return self.second, self.n
        return self.second - np.outer(self.first, self.first) / self.n, self.n - 1


@dataclass(frozen=True, eq=False)
class Expectation:
    """What one density says of the next estimate.

    Attributes:
        moments: of its blocks.
        power: shape (bin,), sum of what the atoms leave, in the units of `Estimate.residual`.
        count: shape (bin,), coefficients.
        left: root mean square of what the expected atoms leave, over the mean density.
    """

    moments: dict[Block, Moments]
    power: NDArray[np.float64]
    count: NDArray[np.int64]
    left: float


def expect(task: tuple[Path, Estimate]) -> Expectation:
    """The posterior distribution of the amplitudes in one density.

    With whitened columns W = N^-1/2 A H, amplitudes are m + H u, where u is normal with precision
    W^T W + 1. Its Cholesky factor is the R of the QR decomposition of (W; 1); the product W^T W
    would lose half of the digits.
    """
    path, estimate = task
    data = Columns.load(path)
    deviation = np.sqrt(estimate.variance(data))
    priors = [estimate.priors[block] for block in data.blocks]
    parts = _slices([len(prior.mean) for prior in priors])
    halves = [prior.half for prior in priors]
    columns = data.columns.astype(np.float64)
    rest = data.target - columns @ np.concatenate([prior.mean for prior in priors])
    p = columns.shape[1]
    stacked = np.zeros((len(rest) + p, p + 1))
    for part, half in zip(parts, halves, strict=True):
        stacked[: len(rest), part] = columns[:, part] @ half / deviation[:, None]
    stacked[: len(rest), p] = rest / deviation
    stacked[len(rest) + np.arange(p), np.arange(p)] = 1.0
    white = stacked[: len(rest), :p].copy()
    factor = qr(stacked, mode="r", overwrite_a=True, check_finite=False)[0]
    inverse = solve_triangular(factor[:p, :p], np.eye(p), check_finite=False)
    mean = inverse @ factor[:p, p]
    left = rest - deviation * (white @ mean)
    variance = deviation**2 * ((white @ inverse) ** 2).sum(axis=1)
    moments: dict[Block, Moments] = {}
    for block, part, half in zip(data.blocks, parts, halves, strict=True):
        amplitude = half @ mean[part]
        spread = half @ inverse[part]
        second = np.outer(amplitude, amplitude) + spread @ spread.T
        moments.setdefault(block, Moments.none(len(half))).add(Moments(1, amplitude, second))
    power = (left**2 + variance) * (data.volume / data.size**2)
    return Expectation(
        moments=moments,
        power=np.bincount(data.bins, power, minlength=N_BINS).astype(np.float64),
        count=np.bincount(data.bins, minlength=N_BINS),
        left=float(np.linalg.norm(left)) / data.size,
    )


def _slices(lengths: Sequence[int]) -> list[slice]:
    ends = np.cumsum(lengths).tolist()
    return [slice(end - n, end) for n, end in zip(lengths, ends, strict=True)]


# ---------------------------------------------------------------------- maximisation


def first_estimate(radii: dict[str, float]) -> Estimate:
    """Wide distributions about zero."""
    priors = {}
    for block in all_blocks(radii):
        k = len(basis_of(block.l, block.radius))
        wide = SETTINGS.first_deviation if block.l else SETTINGS.first_deviation_0
        priors[block] = Prior(np.zeros(k), np.eye(k) * wide**2)
    return Estimate(priors, np.zeros(N_BINS), 1.0 + SETTINGS.noise_share)


def all_blocks(radii: dict[str, float]) -> list[Block]:
    """The blocks of all elements, whether a density has them or not."""
    return [
        Block(element, l, radius)
        for element, radius in sorted(radii.items())
        for l in range(LIBRARY_L + 1)
    ]


def maximise(estimate: Estimate, found: Sequence[Expectation]) -> Estimate:
    """The estimate that makes what was found most likely, drawn to the mean of the elements."""
    moments = {block: Moments.none(len(prior.mean)) for block, prior in estimate.priors.items()}
    for expectation in found:
        for block, part in expectation.moments.items():
            moments[block].add(part)
    priors = {}
    pooled = _Pool(moments)
    for block, total in moments.items():
        mean = estimate.priors[block].mean
        if block.l == 0:
            mean = mean + total.first / max(total.n, 1)
        weight = SETTINGS.prior_weight
        scatter, _ = total.scatter(block.l)
        covariance = (scatter + weight * pooled.covariance(block)) / (total.n + weight)
        priors[block] = Prior(mean, covariance)
    return Estimate(priors, _spectrum(found), SETTINGS.noise_share)


class _Pool:
    """Covariances of all elements together, on any one's basis.

    Radial functions of l = 0 differ between elements whose spheres do. So covariances are added as
    operators on functions, projected onto the basis that they are asked for on.
    """

    def __init__(self, moments: dict[Block, Moments]) -> None:
        self._scatter: dict[int, dict[float, NDArray[np.float64]]] = defaultdict(dict)
        self._freedom: Counter[int] = Counter()
        for block, total in moments.items():
            scatter, freedom = total.scatter(block.l)
            by_radius = self._scatter[block.l]
            by_radius[block.radius] = by_radius.get(block.radius, 0.0) + scatter
            self._freedom[block.l] += max(freedom, 0)

    def covariance(self, block: Block) -> NDArray[np.float64]:
        """The mean of all elements on a block's basis."""
        total = project_sum(self._scatter[block.l], block.l, block.radius)
        return total / max(self._freedom[block.l], 1)


def project_sum(
    operators: dict[float, NDArray[np.float64]], l: int, radius: float
) -> NDArray[np.float64]:
    """The sum of operators, each on the basis of its radius, projected onto that of one radius."""
    k = len(basis_of(l, radius))
    total = np.zeros((k, k))
    for other, operator in operators.items():
        onto = overlap(l, radius, other)
        total += onto @ operator @ onto.T
    return total


def _spectrum(found: Sequence[Expectation]) -> NDArray[np.float64]:
    """Mean power in each bin; beyond the last bin with coefficients, that of the last."""
    power = np.sum([expectation.power for expectation in found], axis=0)
    count = np.sum([expectation.count for expectation in found], axis=0)
    last = int(np.flatnonzero(count)[-1])
    spectrum: NDArray[np.float64] = power / np.maximum(count, 1)
    spectrum[last + 1 :] = spectrum[last]
    return spectrum


# ---------------------------------------------------------------------- the library


def library_arrays(
    estimate: Estimate, radii: dict[str, float], units: dict[str, float]
) -> dict[str, NDArray[Any]]:
    """The arrays of a library, as `chgdb.library` reads them.

    Args:
        estimate: the last one.
        radii: of each element's spheres, Angstrom.
        units: for each element the smallest amplitude that gives a field the size of a density.
    """
    elements = sorted(radii)
    entries = [
        [
            _modes(
                estimate.priors[Block(element, l, radii[element])].covariance,
                l,
                radii[element],
                units[element],
            )
            for l in range(LIBRARY_L + 1)
        ]
        for element in elements
    ]
    means = [
        basis_of(0, radii[element]).functions
        @ estimate.priors[Block(element, 0, radii[element])].mean
        for element in elements
    ]
    default = SETTINGS.default_radius
    entries.append(
        [
            _modes(generic_covariance(estimate, l), l, default, min(units.values()))
            for l in range(LIBRARY_L + 1)
        ]
    )
    arrays: dict[str, NDArray[Any]] = {
        "elements": np.array([*elements, GENERIC]),
        "radius": np.array([*(radii[element] for element in elements), default], np.float32),
        "mean": np.array([*means, np.zeros(n_radial(0))], np.float32),
        "residual": estimate.residual.astype(np.float32),
    }
    for l in range(LIBRARY_L + 1):
        n = max(len(entry[l][1]) for entry in entries)
        modes = np.zeros((len(entries), n, n_radial(l)), np.float32)
        deviations = np.zeros((len(entries), n), np.float32)
        for index, entry in enumerate(entries):
            found, sizes = entry[l]
            modes[index, : len(sizes)], deviations[index, : len(sizes)] = found, sizes
        arrays[f"modes_{l}"], arrays[f"deviations_{l}"] = modes, deviations
    return arrays


def generic_covariance(estimate: Estimate, l: int) -> NDArray[np.float64]:
    """Of an atom of no known element: products about zero, each element counting the same."""
    operators: dict[float, NDArray[np.float64]] = {}
    blocks = [block for block in estimate.priors if block.l == l]
    for block in blocks:
        prior = estimate.priors[block]
        products = prior.covariance + np.outer(prior.mean, prior.mean)
        operators[block.radius] = operators.get(block.radius, 0.0) + products
    total = project_sum(operators, l, SETTINGS.default_radius)
    return total * (SETTINGS.generic_scale / len(blocks))


def _modes(
    covariance: NDArray[np.float64], l: int, radius: float, unit: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shape (mode, radial function), and deviations: the modes that are worth their bits."""
    variances, vectors = np.linalg.eigh(covariance)
    order = np.argsort(-variances, kind="stable")
    deviations = np.sqrt(np.maximum(variances[order], 0.0))
    kept = deviations > SETTINGS.least_mode * unit
    modes = (basis_of(l, radius).functions @ vectors[:, order[kept]]).T
    largest = np.abs(modes).argmax(axis=1)[:, None]
    return modes * np.sign(np.take_along_axis(modes, largest, axis=1)), deviations[kept]


# ---------------------------------------------------------------------- what is left out


def by_hash(ids: Iterable[str]) -> list[str]:
    """Ids in an order that has nothing to do with the materials and never changes."""
    return sorted(ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def held_out(ids: Sequence[str], hold_out: str | None, fold: str | None) -> list[str]:
    """The ids that must not be learned from, sorted.

    Raises:
        SystemExit: an option is not understood, or names what is not there.
    """
    if fold is not None:
        try:
            part, parts = (int(number) for number in fold.split("/"))
        except ValueError:
            part, parts = 0, 0
        if not 1 <= part <= parts <= len(ids):
            raise SystemExit(f"--fold {fold}: give K/N with 1 <= K <= N, such as 1/5")
        return sorted(by_hash(ids)[part - 1 :: parts])
    if hold_out is None:
        return []
    if hold_out.isdecimal():
        return sorted(by_hash(ids)[: int(hold_out)])
    try:
        named = Path(hold_out).read_text(encoding="utf-8").split()
    except OSError as error:
        raise SystemExit(f"--hold-out {hold_out}: {error.strerror}") from error
    if missing := sorted(set(named) - set(ids)):
        raise SystemExit(f"--hold-out {hold_out}: no density of {missing[0]}")
    return sorted(set(named))


# ---------------------------------------------------------------------- the stages


class Processes:
    """A pool that works through lists of tasks, keeps their order and shows how far it is."""

    def __init__(self, n: int) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # faster, and the same sums for any n
        deaf = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process; it ends the others
        self._pool = get_context("spawn").Pool(n, signal.signal, deaf)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()

    def __call__(
        self, function: Callable[[Task], Result], tasks: Sequence[Task], heading: str
    ) -> list[Result]:
        """The result of each task."""
        begun = time.monotonic()
        results = self._pool.imap(function, tasks)
        console = Console(stderr=True)
        shown = track(
            results, heading, len(tasks), console=console, disable=not console.is_terminal
        )
        done = list(shown)
        print(f"{heading}: {len(tasks)} in {time.monotonic() - begun:.0f} s", flush=True)
        return done


def fit(
    sources: Sequence[Source], run: Processes, folder: Path
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """A library, and what its card says of how it came about.

    Args:
        sources: the densities to learn from.
        run: what works through a list of tasks.
        folder: for temporary files.
    """
    scans = run(scan, tasks_of_scan(sources), "radii")
    radii = choose_radii(sources, scans)
    told = {element: r for element, r in radii.items() if r != SETTINGS.default_radius}
    print("radii:", ", ".join(f"{element} {r:.2f}" for element, r in told.items()) or "none")
    paths = run(
        write_columns,
        [(source.path, folder / f"{i}.npz", radii) for i, source in enumerate(sources)],
        "columns",
    )
    estimate = first_estimate(radii)
    for iteration in range(1, SETTINGS.iterations + 1):
        tasks = [(path, estimate) for path in paths]
        found = run(expect, tasks, f"iteration {iteration} of {SETTINGS.iterations}")
        estimate = maximise(estimate, found)
        left = np.array([expectation.left for expectation in found])
        print(f"the atoms leave {np.median(left):.2e} of the mean density (median of densities)")
    arrays = library_arrays(estimate, radii, _units(paths))
    counts = Counter(element for source in sources for element in source.reach)
    modes = {f"l={l}": int((arrays[f"deviations_{l}"] > 0).sum()) for l in range(LIBRARY_L + 1)}
    return arrays, {"densities_per_element": dict(sorted(counts.items())), "modes": modes}


def _units(paths: Iterable[Path]) -> dict[str, float]:
    """For each element the smallest unit of its amplitudes in any density."""
    units: dict[str, float] = {}
    for path in paths:
        for element, unit in Columns.load(path).units.items():
            units[element] = min(unit, units.get(element, math.inf))
    return units


def write_library(
    path: Path, arrays: dict[str, NDArray[Any]], about: dict[str, Any]
) -> dict[str, Any]:
    """Write a library and its card; the card."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    card = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **about}
    with replacing(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return card


def by_id(sources: Iterable[Source]) -> list[Source]:
    """Sources in the order of their ids.

    Raises:
        SystemExit: two have the same id.
    """
    found: dict[str, Source] = {}
    for source in sources:
        if source.id in found:
            raise SystemExit(f"{source.path} and {found[source.id].path} are both {source.id}")
        found[source.id] = source
    return [found[name] for name in sorted(found)]


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    made.add_argument("densities", type=Path, nargs="+", metavar="DENSITIES")
    made.add_argument("--output", type=Path, required=True, metavar="FILE", help="atoms-N.npz")
    left_out = made.add_mutually_exclusive_group()
    left_out.add_argument(
        "--hold-out", metavar="FILE|N", help="ids not to learn from, or how many (by hash)"
    )
    left_out.add_argument("--fold", metavar="K/N", help="hold out the K-th of N parts (by hash)")
    made.add_argument("--processes", type=int, default=1, metavar="N")
    made.add_argument(
        "--source", metavar="TEXT", help="origin and licence of the densities, for the card"
    )
    return made


def main() -> None:
    """Fit, write, and say what was written."""
    arguments = parser().parse_args()
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="chgdb-library-") as folder,
        Processes(arguments.processes) as run,
    ):
        sources = by_id(run(survey, find_densities(arguments.densities), "densities"))
        left_out = held_out([s.id for s in sources], arguments.hold_out, arguments.fold)
        used = [s for s in sources if s.id not in set(left_out)]
        if not used:
            raise SystemExit("no densities to learn from")
        arrays, learned = fit(used, run, Path(folder))
    about = {
        "chgdb": chgdb.__version__,
        "command": shlex.join(["python", *sys.argv]),
        "source": arguments.source or ATTRIBUTION.read_text(encoding="utf-8").strip(),
        "densities": len(used),
        "held_out": left_out,
        **learned,
        "settings": asdict(SETTINGS),
        "versions": {"numpy": np.__version__, "scipy": scipy.__version__},
    }
    write_library(arguments.output, arrays, about)
    size = arguments.output.stat().st_size
    print(
        f"{arguments.output}: {size} bytes, {len(used)} densities, "
        f"{time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    try:
        main()
    except ChgdbError as error:
        raise SystemExit(str(error)) from error
