"""The functions that a field of a crystal is made of: those about its atoms and plane waves.

Field = mean + atoms + waves. The atoms carry the mean functions and the modes of a library
(`library`, `multipoles`); the waves are one coefficient per star (`stars`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from chgdb.density import Grid, Structure
from chgdb.library import Atom, Library
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
from chgdb.stars import Operations, Stars

__all__ = ["G_UNIT", "RADIUS_SHARE", "WORTHWHILE", "Expansion", "Plan"]

G_UNIT = 0.25
"""Of the radius of the sphere of waves, 1/Angstrom."""

_MODE_STEP = 1.5
"""Step of an amplitude over that of a wave, for equal mean square: the error of a mode is peaked
at a nucleus, so it weighs less in the mean absolute error."""

WORTHWHILE = 0.3
"""A mode whose expected amplitude is less than this part of its step is left out."""

RADIUS_SHARE = 0.49
"""Of the distance to the nearest neighbour, which spheres do not exceed."""

_SIZE_IN_STEPS = 64.0
"""A field whose mean is small is taken to be of this size, to expect its waves."""


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


class Expansion:
    """The functions of a plan on the stars of its grid."""

    def __init__(
        self, structure: Structure, plan: Plan, library: Library, stars: Stars | None = None
    ) -> None:
        self.structure = structure
        self.plan = plan
        self.library = library
        self.volume = _volume(structure)
        self.stars = stars or Stars(structure, plan.grid, plan.operations, plan.g_index * G_UNIT)
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
            least = WORTHWHILE * self.amplitude_step(step, index)
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
            min(atom.radius, RADIUS_SHARE * float(nearest[site.atoms[0]]))
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
