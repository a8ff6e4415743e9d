"""A density in a lattice plane: which plane it is, its values, and the atoms near it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.fft import rfftn

from chgdb.density import Structure
from chgdb.errors import InputError
from chgdb.files import brief

__all__ = ["LatticePlane", "Miller", "PlaneAtom", "parse_miller"]

Miller = tuple[int, int, int]
"""Indices h, k, l of the planes h x + k y + l z = const, x, y, z fractional in the cell."""

_LARGEST_INDEX = 50
"""Indices beyond it name planes that nobody draws."""

_AXES: dict[str, Miller] = {"a": (1, 0, 0), "b": (0, 1, 0), "c": (0, 0, 1)}


@dataclass(frozen=True)
class PlaneAtom:
    """An atom near a plane.

    Attributes:
        symbol: of its element.
        s: fractional coordinate along `LatticePlane.u`, in [0, 1), of its foot in the plane.
        t: the same along `v`.
        distance: from the plane in A, positive on the side of the normal.
    """

    symbol: str
    s: float
    t: float
    distance: float


@dataclass(frozen=True, eq=False)
class LatticePlane:
    """One of the planes of a crystal with Miller indices of its cell.

    Attributes:
        structure: the crystal.
        miller: h, k, l without a common divisor.
        at: where the plane is, as a fraction of the spacing from the origin, in [0, 1): planes
            repeat with 1. Of (001) it is the fractional coordinate along c.

    Raises:
        InputError: the indices are all zero or larger than 50, or `at` is not finite.
    """

    structure: Structure
    miller: Miller
    at: float = 0.0

    def __post_init__(self) -> None:
        h, k, l = (int(index) for index in self.miller)
        if max(map(abs, (h, k, l))) > _LARGEST_INDEX or not any((h, k, l)):
            raise InputError(
                f"plane {h},{k},{l}: give three Miller indices up to {_LARGEST_INDEX}, not all "
                "zero, such as 1,1,0"
            )
        if not math.isfinite(self.at):
            raise InputError(f"position {self.at}: use a fraction of the spacing, such as 0.5")
        divisor = math.gcd(h, k, l)
        object.__setattr__(self, "at", self.at % 1.0)
        object.__setattr__(self, "miller", (h // divisor, k // divisor, l // divisor))

    @cached_property
    def basis(self) -> NDArray[np.int64]:
        """Shape (3, 3): rows u, v and w in units of a, b, c, a basis of the lattice.

        u and v are the shortest that span the plane, right-handed about its normal; w leads to
        the next plane.
        """
        u, v, w = _completed(self.miller)
        lattice = self.structure.lattice
        normal = np.cross(u @ lattice, v @ lattice)
        if normal @ (w @ lattice) < 0:
            v = -v
        return np.stack([*_reduced(u, v, lattice @ lattice.T), w])

    @cached_property
    def vectors(self) -> NDArray[np.float64]:
        """Shape (2, 2): the lattice vectors u, along x, and v in Cartesian coordinates, A."""
        u, v = self.basis[:2] @ self.structure.lattice
        length = float(np.linalg.norm(u))
        along = float(u @ v) / length
        return np.array([[length, 0.0], [along, math.sqrt(max(v @ v - along**2, 0.0))]])

    @property
    def spacing(self) -> float:
        """Distance of neighbouring planes, A."""
        return self.structure.volume / float(np.linalg.det(self.vectors))

    def shape(self, points: int) -> tuple[int, int]:
        """Points along u and v of a grid with about equal steps, `points` along the longer."""
        lengths = np.linalg.norm(self.vectors, axis=1)
        m1, m2 = np.maximum(np.rint(points * lengths / lengths.max()), 8).astype(int)
        return int(m1), int(m2)

    def values(self, density: NDArray[np.floating], shape: tuple[int, int]) -> NDArray[np.float64]:
        """The trigonometric interpolation of a density in the plane.

        With k = (k1, k2, k3) the waves of the grid, x = s u + t v + at w, and F the Fourier
        coefficients, rho(s, t) = sum_k F(k) exp(2 pi i k.x). At the points s = i/m1, t = j/m2 only
        the remainders of k.u and k.v by m1 and m2 count, so one FFT of that size is exact.

        Args:
            density: shape (n1, n2, n3), on the grid of the cell of the structure. Of float32 the
                waves are complex64.
            shape: (m1, m2), points along u and v.

        Returns:
            Shape (m1, m2), in the unit of the density.
        """
        coefficients = rfftn(density)
        waves = [np.fft.fftfreq(n, 1 / n).round().astype(np.int64) for n in density.shape[:2]]
        waves.append(np.arange(coefficients.shape[2]))
        # of the waves k and -k one is there, and only the real part of their sum is asked for
        twice = 2.0 - ((waves[2] == 0) | (2 * waves[2] == density.shape[2]))
        along_u, along_v, phases = (
            [k * int(x) for k, x in zip(waves, vector, strict=True)] for vector in self.basis
        )
        first, second, third = (np.exp(2j * np.pi * ((k * self.at) % 1)) for k in phases)
        others = second[:, None] * (third * twice)
        s = along_u[1][:, None] + along_u[2]
        t = along_v[1][:, None] + along_v[2]
        m1, m2 = shape
        folded = np.zeros(m1 * m2, dtype=np.complex128)
        for k, slab in enumerate(coefficients):
            terms = slab * (first[k] * others)
            target = ((s + along_u[0][k]) % m1 * m2 + (t + along_v[0][k]) % m2).ravel()
            folded.real += np.bincount(target, terms.real.ravel(), m1 * m2)
            folded.imag += np.bincount(target, terms.imag.ravel(), m1 * m2)
        plane: NDArray[np.float64] = np.fft.ifft2(folded.reshape(shape)).real
        return plane * (m1 * m2 / density.size)

    def atoms(self, within: float) -> Iterator[PlaneAtom]:
        """The atoms whose nearest image is at most so far from the plane, in A."""
        lattice, spacing = self.structure.lattice, self.spacing
        normal = np.linalg.solve(lattice, np.array(self.miller, dtype=np.float64)) * spacing
        heights = self.structure.frac_coords @ np.array(self.miller) - self.at
        distances = (heights - np.rint(heights)) * spacing
        feet = self.structure.frac_coords @ lattice - distances[:, None] * normal
        along = np.linalg.solve((self.basis @ lattice).T, feet.T).T[:, :2] % 1.0 % 1.0
        for symbol, (s, t), distance in zip(self.structure.species, along, distances, strict=True):
            if abs(distance) <= within:
                yield PlaneAtom(symbol, float(s), float(t), float(distance))


def parse_miller(text: str) -> Miller:
    """Miller indices from "1,1,0", "1 1 0" or "1-10"; "a", "b" and "c" are the planes they cut.

    Raises:
        InputError: it is none of these.
    """
    plain = text.strip()
    if plain.lower() in _AXES:
        return _AXES[plain.lower()]
    if re.fullmatch(r"(-?\d){3}", plain, re.ASCII):
        words = re.findall(r"-?\d", plain)
    else:
        words = re.split(r"[\s,]+", plain.strip("()"))
    if len(words) == 3 and all(re.fullmatch(r"[+-]?\d{1,4}", word, re.ASCII) for word in words):
        h, k, l = map(int, words)
        return h, k, l
    raise InputError(f"plane {brief(text)}: use Miller indices such as 1,1,0, or a, b or c")


def _completed(miller: Miller) -> NDArray[np.int64]:
    """Shape (3, 3), determinant 1 or -1: two vectors with h.x = 0, and one with h.x = 1."""
    h, k, l = miller
    if h == k == 0:
        return np.array([[1, 0, 0], [0, 1, 0], [0, 0, l]])
    g, p, q = _bezout(h, k)
    _, s, t = _bezout(g, l)
    return np.array([[-k // g, h // g, 0], [-l * p, -l * q, g], [s * p, s * q, t]])


def _bezout(a: int, b: int) -> tuple[int, int, int]:
    """The greatest common divisor g > 0 of a and b, and x, y with x a + y b = g (Euclid)."""
    rows = (a, 1, 0), (b, 0, 1)
    while rows[1][0]:
        times = rows[0][0] // rows[1][0]
        rows = (
            rows[1],
            (
                rows[0][0] - times * rows[1][0],
                rows[0][1] - times * rows[1][1],
                rows[0][2] - times * rows[1][2],
            ),
        )
    g, x, y = rows[0]
    return (g, x, y) if g > 0 else (-g, -x, -y)


def _reduced(
    u: NDArray[np.int64], v: NDArray[np.int64], metric: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The shortest two vectors of the net that u and v span, of the same orientation (Gauss)."""

    def squared(x: NDArray[np.int64]) -> float:
        return float(x @ metric @ x)

    for _ in range(1000):
        if squared(v) < squared(u) * (1 - 1e-9):
            u, v = v, -u
        times = float(u @ metric @ v) / squared(u)
        steps = round(times) if abs(times) > 0.5 + 1e-9 else 0
        if not steps:
            break
        v = v - steps * u
    return u, v
