"""Symmetry-unique Fourier coefficients: one per star of reciprocal lattice vectors.

A field that a space group leaves as it is, f(W x + w) = f(x), has F(hW) = F(h) exp(2 pi i h.w),
with F(h) the mean of f(x) exp(-2 pi i h.x) over the cell and h a row of integers. The vectors hW,
and -hW because the field is real, form the star of h; one coefficient stands for all of it.

What orders and selects the stars is integer arithmetic and single IEEE operations, so that every
machine finds the same ones in the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from chgdb.density import Grid, Structure

__all__ = [
    "Operations",
    "Stars",
    "closure",
    "generators",
    "reciprocal_metric",
    "wrapped",
]

_WHOLE = 0.005
"""How far from a whole number h.w may be, so as to bear coordinates of 6 decimals."""

_CUT = 0.00231847
"""Below 0, where translations begin again."""

_SAME_SHELL = 1e-9
"""Relative difference of |G|^2 below which two vectors are of one length."""

MAX_OPERATIONS = 6144
"""Operations of a group, at most: those of a 5 x 5 x 5 supercell of a cubic primitive cell."""


@dataclass(frozen=True, eq=False)
class Operations:
    """Space-group operations x -> W x + w on fractional coordinates, the identity first.

    Attributes:
        rotations: shape (n, 3, 3), W, whole numbers.
        translations: shape (n, 3), w, as `wrapped` gives them.
    """

    rotations: NDArray[np.int64]
    translations: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rotations)

    @classmethod
    def identity(cls) -> Operations:
        """The group P1."""
        return cls(np.eye(3, dtype=np.int64)[None], np.zeros((1, 3)))

    @cached_property
    def cosets(self) -> NDArray[np.intp]:
        """The first operation with each rotation; the others differ by a pure translation."""
        flat = self.rotations.reshape(len(self), 9)
        first: NDArray[np.intp] = np.unique(flat, axis=0, return_index=True)[1]
        return np.sort(first)

    @property
    def lattice_translations(self) -> NDArray[np.float64]:
        """Shape (n, 3): pure translations that are not zero; a primitive cell has none."""
        pure = (self.rotations == np.eye(3, dtype=np.int64)).all(axis=(1, 2))
        pure[0] = False
        shifts: NDArray[np.float64] = self.translations[pure]
        return shifts


def generators(operations: Operations) -> list[int]:
    """Indices of a few operations whose products are all the others."""
    chosen: list[int] = []
    reached = Operations.identity()
    # Operations of high order come first: their powers are reached for nothing.
    orders = [_order(rotation) for rotation in operations.rotations]
    for index in np.argsort(np.negative(orders), kind="stable"):
        if len(reached) >= len(operations):
            break
        if not _contains(reached, operations.rotations[index], operations.translations[index]):
            chosen.append(int(index))
            reached = closure(operations.rotations[chosen], operations.translations[chosen])
    return chosen


def closure(rotations: NDArray[np.int64], translations: NDArray[np.float64]) -> Operations:
    """The group that operations generate, the identity first.

    Raises:
        ValueError: it has more than `MAX_OPERATIONS` operations, so they are of no crystal.
    """
    group = [(np.eye(3, dtype=np.int64), np.zeros(3))]
    shifts = {group[0][0].tobytes(): np.zeros((1, 3))}
    for known_rotation, known_translation in group:  # grows while it is walked
        for rotation, translation in zip(rotations, translations, strict=True):
            product = rotation @ known_rotation
            shift = wrapped(rotation @ known_translation + translation)
            same = shifts.get(product.tobytes(), np.zeros((0, 3)))
            if _is_among(shift, same):
                continue
            if len(group) == MAX_OPERATIONS:
                raise ValueError("operations that are of no crystal")
            shifts[product.tobytes()] = np.concatenate([same, shift[None]])
            group.append((product, shift))
    return Operations(np.array([w for w, _ in group]), np.array([t for _, t in group]))


def wrapped(translations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Translations less whole numbers, in [-0.00231847, 0.99768153).

    The phase of a star depends on which of w and w + 1 is taken. So the cut lies where no
    translation of a crystal does: one of 0 that comes out as -1e-16 stays next to 0.
    """
    shifts: NDArray[np.float64] = translations - np.floor(translations + _CUT)
    return shifts


def _contains(
    operations: Operations, rotation: NDArray[np.int64], translation: NDArray[np.float64]
) -> bool:
    same = (operations.rotations == rotation).all(axis=(1, 2))
    return _is_among(translation, operations.translations[same])


def _is_among(shift: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Whether a translation is one of several, but for whole numbers."""
    apart = shift - others
    return bool((np.abs(apart - np.rint(apart)).max(axis=1, initial=0.0) < _WHOLE).any())


def _order(rotation: NDArray[np.int64]) -> int:
    """How often an operation must be repeated to leave directions as they are."""
    power = rotation
    for order in range(1, 7):
        if (power == np.eye(3, dtype=np.int64)).all():
            return order
        power = power @ rotation
    return 0


class Stars:
    """The stars of a grid within a sphere, and the way between fields and their coefficients.

    A star whose members do not all lie on the grid, the Nyquist components and h = 0 are left out.
    Coefficients are real and orthonormal: the sum of their squares is the mean square over the cell
    of the part of the field that they describe.

    Attributes:
        h: shape (star, 3), the representatives, by increasing length.
        g: shape (star,), their length |2 pi h|, 1/Angstrom.
        multiplicity: shape (star,), members.
        n_coefficients: real numbers that describe a field: one per star, two where its coefficient
            is free to be complex.
    """

    def __init__(
        self, structure: Structure, grid: Grid, operations: Operations, g_max: float = math.inf
    ) -> None:
        self.grid = grid
        self.operations = operations
        metric = reciprocal_metric(structure.lattice)
        h = _half_sphere(grid, metric, g_max)
        for shift in operations.lattice_translations:
            h = h[_is_whole_rows(h, shift)]
        limits = [(n - 1) // 2 for n in grid]
        kept = [operations.rotations[i] for i in operations.cosets]
        self._shifts = operations.translations[operations.cosets]
        self._rotations = kept
        # A vector stays if it is the first of its star, or of its star's negatives, in the order
        # of `_rank`, and every member is on the grid.
        keep = np.ones(len(h), dtype=bool)
        own = _rank(h, limits)
        for rotation in kept:
            member = _times(h, rotation)
            keep &= (np.abs(member) <= limits).all(axis=1)
            rank = _rank(member, limits)
            keep &= np.abs(rank) <= own
        h, own = h[keep], own[keep]
        allowed = np.ones(len(h), dtype=bool)
        members = np.zeros(len(h), dtype=np.int64)
        is_real = np.zeros(len(h), dtype=bool)
        phase = np.zeros(len(h))
        for rotation, shift in zip(kept, self._shifts, strict=True):
            rank = _rank(_times(h, rotation), limits)
            turns = h @ shift
            fixed, turned = rank == own, rank == -own
            allowed &= ~fixed | (np.abs(turns - np.rint(turns)) < _WHOLE)
            members += fixed
            new = turned & ~is_real
            phase[new] = -np.pi * turns[new]
            is_real |= turned
        order = np.lexsort((own, _shells(_square(h, metric))))
        order = order[allowed[order]]
        self.h = h[order]
        self.g = np.sqrt(_square(self.h, metric))
        self.is_real = is_real[order]
        distinct = len(kept) // members[order]
        self.multiplicity = np.where(self.is_real, distinct, 2 * distinct)
        self._phase = np.exp(1j * phase[order])
        self._weight = np.sqrt(self.multiplicity)
        self._columns = np.repeat(np.arange(len(self.h)), np.where(self.is_real, 1, 2))
        self._imaginary = np.zeros(len(self._columns), dtype=bool)
        self._imaginary[1:] = self._columns[1:] == self._columns[:-1]

    @property
    def n_coefficients(self) -> int:
        return len(self._columns)

    def per_coefficient(self, per_star: NDArray[np.float64]) -> NDArray[np.float64]:
        """What belongs to each star, repeated for each of its coefficients."""
        return per_star[self._columns]

    def coefficients(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of a field on the grid; of its symmetric part if it is not symmetric.

        Args:
            values: shape `grid`.
        """
        spectrum = np.fft.rfftn(values) / values.size
        total = np.zeros(len(self.h), dtype=np.complex128)
        for indices, mirrored, turn in self._members:
            found = spectrum[indices]
            total += np.where(mirrored, found.conj(), found) * turn.conj()
        return self.from_complex(total / len(self._rotations))

    def from_complex(self, f: NDArray[np.complex128]) -> NDArray[np.float64]:
        """Real coefficients from F(h) of the representatives, shape (star, ...)."""
        shape = (-1, *(1,) * (f.ndim - 1))
        turned = f * (self._weight * np.where(self.is_real, self._phase.conj(), 1.0)).reshape(shape)
        turned = turned[self._columns]
        real: NDArray[np.float64] = np.where(
            self._imaginary.reshape(shape), turned.imag, turned.real
        )
        return real

    def to_complex(self, coefficients: NDArray[np.float64]) -> NDArray[np.complex128]:
        """F(h) of the representatives: the inverse of `from_complex`."""
        f = np.zeros(len(self.h), dtype=np.complex128)
        f[self._columns[~self._imaginary]] = coefficients[~self._imaginary]
        f[self._columns[self._imaginary]] += 1j * coefficients[self._imaginary]
        return f * np.where(self.is_real, self._phase, 1.0) / self._weight

    def field(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """The field on the grid, of mean zero."""
        return self.field_from_complex(self.to_complex(coefficients))

    def field_from_complex(self, f: NDArray[np.complex128]) -> NDArray[np.float64]:
        """The field on the grid from F(h) of the representatives."""
        n1, n2, n3 = self.grid
        spectrum = np.zeros((n1, n2, n3 // 2 + 1), dtype=np.complex128)
        for indices, mirrored, turn in self._members:
            value = f * turn
            spectrum[indices] = np.where(mirrored, value.conj(), value)
        # irfftn wants both halves of the plane h3 = 0; `_members` names one of each pair there.
        plane = spectrum[:, :, 0]
        opposite = np.roll(plane[::-1, ::-1], 1, axis=(0, 1)).conj()
        spectrum[:, :, 0] = np.where(plane == 0, opposite, plane)
        values: NDArray[np.float64] = np.fft.irfftn(spectrum, s=self.grid, axes=(0, 1, 2))
        return values * math.prod(self.grid)

    @cached_property
    def _members(
        self,
    ) -> list[tuple[tuple[NDArray[np.int64], ...], NDArray[np.bool_], NDArray[np.complex128]]]:
        """Per rotation: where its member is in an rfftn, whether conjugate, and its phase."""
        members = []
        for rotation, shift in zip(self._rotations, self._shifts, strict=True):
            member = _times(self.h, rotation)
            mirrored = _is_negative(member[:, ::-1])
            member = np.where(mirrored[:, None], -member, member)
            indices = tuple(member[:, axis] % self.grid[axis] for axis in range(3))
            members.append((indices, mirrored, np.exp(2j * np.pi * (self.h @ shift))))
        return members


def reciprocal_metric(lattice: NDArray[np.float64]) -> list[list[float]]:
    """The inverse of the metric a_i.a_j, by cofactors in single IEEE operations, 1/A^2."""
    rows = lattice.tolist()
    m = [[a[0] * b[0] + a[1] * b[1] + a[2] * b[2] for b in rows] for a in rows]
    cofactors = [
        [
            m[(i + 1) % 3][(j + 1) % 3] * m[(i + 2) % 3][(j + 2) % 3]
            - m[(i + 1) % 3][(j + 2) % 3] * m[(i + 2) % 3][(j + 1) % 3]
            for j in range(3)
        ]
        for i in range(3)
    ]
    determinant = m[0][0] * cofactors[0][0] + m[0][1] * cofactors[0][1] + m[0][2] * cofactors[0][2]
    return [[x / determinant for x in row] for row in cofactors]


_FOUR_PI_SQUARED = 4.0 * math.pi * math.pi


def _square(h: NDArray[np.int64], metric: list[list[float]]) -> NDArray[np.float64]:
    """|G|^2 in 1/A^2, in single IEEE operations on each element."""
    x, y, z = (h[:, axis].astype(np.float64) for axis in range(3))
    diagonal = x * x * metric[0][0] + y * y * metric[1][1] + z * z * metric[2][2]
    mixed = x * y * metric[0][1] + x * z * metric[0][2] + y * z * metric[1][2]
    return (diagonal + 2.0 * mixed) * _FOUR_PI_SQUARED


def _shells(squares: NDArray[np.float64]) -> NDArray[np.int64]:
    """The number of the shell of each |G|^2, from the innermost; equal to rounding is equal."""
    order = np.argsort(squares, kind="stable")
    ordered = squares[order]
    shells = np.zeros(len(squares), dtype=np.int64)
    shells[order[1:]] = np.cumsum(np.diff(ordered) > _SAME_SHELL * ordered[1:])
    return shells


def _half_sphere(grid: Grid, metric: list[list[float]], g_max: float) -> NDArray[np.int64]:
    """One of every pair h, -h below the Nyquist frequencies and up to `g_max`, without h = 0.

    The one that is kept has its first nonzero component positive.
    """
    limits = [(n - 1) // 2 for n in grid]
    found = []
    second, third = np.meshgrid(
        *(np.arange(-limit, limit + 1) for limit in limits[1:]), indexing="ij"
    )
    plane = np.stack([np.zeros_like(second), second, third], axis=-1).reshape(-1, 3)
    for first in range(limits[0] + 1):
        plane[:, 0] = first
        inside = _square(plane, metric) <= g_max * g_max
        if first == 0:
            inside &= ~_is_negative(plane) & plane.any(axis=1)
        found.append(plane[inside])
    return np.concatenate(found)


def _is_negative(h: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the first nonzero component is negative."""
    x, y, z = h[:, 0], h[:, 1], h[:, 2]
    negative: NDArray[np.bool_] = (x < 0) | ((x == 0) & ((y < 0) | ((y == 0) & (z < 0))))
    return negative


def _rank(h: NDArray[np.int64], limits: list[int]) -> NDArray[np.int64]:
    """A number per vector, odd in h, positive for the half of the sphere that is kept."""
    base_z = 2 * limits[2] + 1
    base_y = (2 * limits[1] + 1) * base_z
    return h[:, 0] * base_y + h[:, 1] * base_z + h[:, 2]


def _times(h: NDArray[np.int64], rotation: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows h times W; in floating point, which is exact here and much faster than in integers."""
    return (h.astype(np.float64) @ rotation.astype(np.float64)).astype(np.int64)


def _is_whole_rows(h: NDArray[np.int64], shift: NDArray[np.float64]) -> NDArray[np.bool_]:
    turns = h @ shift
    return np.abs(turns - np.rint(turns)) < _WHOLE
