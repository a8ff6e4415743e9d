"""Functions about the atoms of a crystal that share its symmetry: what a density is made of.

A site carries radial functions times real spherical harmonics Y_lm. Of the 2l + 1 harmonics of an l
only the combinations count that the symmetry of the site leaves as they are, and the atoms of one
orbit carry the same ones, turned. In reciprocal space a function R(r) Y_lm at x is
(-i)^l R~(G) Y_lm(G/|G|) exp(-2 pi i h.x) / V.

Smooth radial functions are Gaussians, R~ = (sqrt(alpha) G)^l exp(-alpha G^2 / 2). About the nuclei
of a pseudo-density stands one more kind, (1 - r^2/rc^2)^k inside a sphere of radius rc and 0
outside, l = 0 only: codes make the inside smooth, and the seam is what remains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import jv

from chgdb.density import Grid, Structure
from chgdb.stars import Operations, Stars

__all__ = [
    "GAUSSIANS",
    "POWERS",
    "SphereFunctions",
    "Site",
    "angular",
    "n_images",
    "n_radial",
    "nearest_distances",
    "radial",
    "real_harmonics",
    "sites",
    "sphere_transform",
]

MAX_L = 6

GAUSSIANS: dict[int, tuple[float, ...]] = {
    0: tuple(0.008 * (3.0 / 0.008) ** (k / 15) for k in range(16)),
    **{l: tuple(0.015 * (1.0 / 0.015) ** (k / 7) for k in range(8)) for l in range(1, MAX_L + 1)},
}
"""alpha of the Gaussians for each l, A^2."""

POWERS = (3, 4, 5, 6)
"""k of the functions inside a sphere: three derivatives at the seam are continuous at least."""

_PIVOT = 0.4187
"""A column becomes the next basis vector if it keeps this part of the longest; no ratio that
symmetry makes equals it, so that rounding does not choose."""


@dataclass(frozen=True, eq=False)
class Site:
    """An orbit of symmetry-equivalent atoms.

    Attributes:
        element: symbol.
        atoms: indices of the atoms; the first is the reference.
        harmonics: for each l, shape (atom, function, 2l + 1): the invariant combinations of Y_lm on
            every atom of the orbit, orthonormal on each.
    """

    element: str
    atoms: tuple[int, ...]
    harmonics: dict[int, NDArray[np.float64]]


def sites(structure: Structure, operations: Operations, l_max: int) -> list[Site]:
    """The orbits of the atoms, in the order of their first atoms.

    Raises:
        ValueError: an operation maps an atom to where there is none.
    """
    coords, species = structure.frac_coords, np.array(structure.species)
    found, seen = [], np.zeros(len(species), dtype=bool)
    for first in range(len(species)):
        if seen[first]:
            continue
        images = operations.rotations @ coords[first] + operations.translations
        same = np.flatnonzero(species == species[first])
        candidates = np.concatenate([[first], same[same != first]])
        targets = candidates[_nearest(structure, images, coords[candidates])]
        atoms, via = np.unique(targets, return_index=True)
        order = np.argsort(atoms != first, kind="stable")
        atoms, via = atoms[order], via[order]
        seen[atoms] = True
        stabilizer = np.flatnonzero(targets == first)
        inside = _distinct(operations.rotations[stabilizer])
        turns = np.stack([_cartesian(structure, w) for w in inside])
        to_atoms = np.stack([_cartesian(structure, operations.rotations[i]) for i in via])
        harmonics = {}
        for l in range(l_max + 1):
            # f(r) = sum_m u_m Y_m(r) turned by R is f(R^-1 r), so u becomes D(R^-1)^T u.
            projector = _turned(l, turns).mean(axis=0)
            basis = _orthonormal_rows(projector.T)
            harmonics[l] = np.einsum("amn,fm->afn", _turned(l, to_atoms), basis)
        found.append(Site(str(species[first]), tuple(int(a) for a in atoms), harmonics))
    return found


def _nearest(
    structure: Structure, points: NDArray[np.float64], coords: NDArray[np.float64]
) -> NDArray[np.intp]:
    """For each point the nearest of the coordinates, which must be within 0.2 Angstrom."""
    apart = points[:, None] - coords[None]
    apart -= np.rint(apart)
    distance = np.linalg.norm(apart @ structure.lattice, axis=-1)
    nearest: NDArray[np.intp] = distance.argmin(axis=1)
    if distance.min(axis=1).max(initial=0.0) > 0.2:
        raise ValueError("the operations are not those of the structure")
    return nearest


def _distinct(rotations: NDArray[np.int64]) -> NDArray[np.int64]:
    flat = np.unique(rotations.reshape(-1, 9), axis=0)
    return flat.reshape(-1, 3, 3)


def _cartesian(structure: Structure, rotation: NDArray[np.int64]) -> NDArray[np.float64]:
    """The rotation R of Cartesian columns, from W on fractional coordinates."""
    lattice = structure.lattice
    return (np.linalg.inv(lattice) @ rotation.T @ lattice).T


def _turned(l: int, rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shape (rotation, 2l + 1, 2l + 1): what turns rows u of coefficients, from the right."""
    points = _sample_points()
    back = points @ rotations  # R^-1 r of row vectors r is r R
    turned = np.matmul(_inverse_harmonics(l), real_harmonics(l, back))
    return np.asarray(turned, dtype=np.float64).transpose(0, 2, 1)


@lru_cache
def _inverse_harmonics(l: int) -> NDArray[np.float64]:
    """What gives the coefficients of a function from its values at the sample points."""
    return np.asarray(np.linalg.pinv(real_harmonics(l, _sample_points())), dtype=np.float64)


@lru_cache(maxsize=1)
def _sample_points() -> NDArray[np.float64]:
    """64 directions, evenly on a spiral over the sphere."""
    k = np.arange(64) + 0.5
    z = 1.0 - 2.0 * k / 64
    angle = k * math.pi * (3.0 - math.sqrt(5.0))
    rho = np.sqrt(1.0 - z * z)
    return np.stack([rho * np.cos(angle), rho * np.sin(angle), z], axis=1)


def _orthonormal_rows(projector: NDArray[np.float64]) -> NDArray[np.float64]:
    """An orthonormal basis of the range of a projector, the same on every machine to rounding."""
    rest = projector.copy()
    basis: list[NDArray[np.float64]] = []
    for _ in range(round(float(np.trace(projector)))):
        lengths = np.linalg.norm(rest, axis=0)
        column = rest[:, np.flatnonzero(lengths >= _PIVOT * lengths.max())[0]]
        unit = column / np.linalg.norm(column)
        basis.append(unit)
        rest = rest - np.outer(unit, unit @ rest)
    return np.array(basis).reshape(len(basis), len(projector))


def real_harmonics(l: int, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Real spherical harmonics of directions, m = -l ... l, orthonormal on the sphere.

    By the recursions of the solid harmonics (Helgaker, Jorgensen, Olsen, "Molecular
    Electronic-Structure Theory", section 6.4), without the Condon-Shortley phase.

    Args:
        l: degree.
        vectors: shape (..., 3), of any length; a zero vector gives 0 for l > 0.
    """
    length = np.linalg.norm(vectors, axis=-1)
    x, y, z = np.moveaxis(vectors / np.where(length == 0, 1.0, length)[..., None], -1, 0)
    norm2 = np.where(length == 0, 0.0, 1.0)
    result = np.empty((*vectors.shape[:-1], 2 * l + 1))
    cosine, sine = np.ones_like(z), np.zeros_like(z)
    sectoral = 1.0  # (2m - 1)!!
    for m in range(l + 1):
        # Legendre part P_l^m / sin^m as a polynomial in z, by upward recursion in the degree
        before, legendre = np.zeros_like(z), np.full_like(z, sectoral)
        for degree in range(m + 1, l + 1):
            after = ((2 * degree - 1) * z * legendre - (degree + m - 1) * before * norm2) / (
                degree - m
            )
            before, legendre = legendre, after
        scale = math.sqrt(
            (2 * l + 1) / (4 * math.pi) * math.factorial(l - m) / math.factorial(l + m)
        )
        if m == 0:
            result[..., l] = scale * legendre
        else:
            result[..., l + m] = math.sqrt(2) * scale * legendre * cosine
            result[..., l - m] = math.sqrt(2) * scale * legendre * sine
        cosine, sine = x * cosine - y * sine, x * sine + y * cosine
        sectoral *= 2 * m + 1
    return result


def n_radial(l: int) -> int:
    """Radial functions for an l: Gaussians, and for l = 0 those inside a sphere after them."""
    return len(GAUSSIANS[l]) + (len(POWERS) if l == 0 else 0)


def radial(l: int, g: NDArray[np.float64]) -> NDArray[np.float64]:
    """R~(G) of the Gaussians, shape (g, Gaussian).

    Args:
        l: degree.
        g: shape (n,), 1/Angstrom.
    """
    alpha = np.array(GAUSSIANS[l])
    scaled: NDArray[np.float64] = np.sqrt(alpha) * g[:, None]
    return scaled**l * np.exp(-0.5 * scaled**2)


def angular(structure: Structure, stars: Stars, site: Site, l: int) -> NDArray[np.complex128]:
    """F(h) of a site's harmonics of one l with R~ = 1, over its orbit: shape (star, function)."""
    vectors = 2 * np.pi * stars.h @ np.linalg.inv(structure.lattice).T
    harmonics = real_harmonics(l, vectors)
    coords = structure.frac_coords[list(site.atoms)]
    total = np.zeros((len(stars.h), site.harmonics[l].shape[1]), dtype=np.complex128)
    if not total.shape[1]:
        return total
    for x, combination in zip(coords, site.harmonics[l], strict=True):
        phase = np.exp(-2j * np.pi * (stars.h @ x))
        total += phase[:, None] * (harmonics @ combination.T)
    return total * ((-1j) ** l / structure.volume)


def n_images(structure: Structure) -> float:
    """Cells that `nearest_distances` looks into: 27, and many more where vectors are skew."""
    return float(np.prod(2.0 * np.floor(_reach(structure)) + 1.0))


def _reach(structure: Structure) -> NDArray[np.float64]:
    """Cells along a, b, c in which the nearest neighbour of an atom may be.

    None is farther than the shortest lattice vector; |n_i| <= |r| |b_i| for an image.
    """
    lattice = structure.lattice
    longest = np.linalg.norm(lattice, axis=1).min()
    return np.asarray(longest * np.linalg.norm(np.linalg.inv(lattice), axis=0) + 0.5)


def nearest_distances(structure: Structure) -> NDArray[np.float64]:
    """Shape (atom,): the distance of each atom to its nearest neighbour or image, Angstrom."""
    coords, lattice = structure.frac_coords, structure.lattice
    ranges = [np.arange(-int(n), int(n) + 1) for n in _reach(structure)]
    steps = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    shortest = np.full(len(coords), np.inf)
    for i, x in enumerate(coords):
        apart = coords - x
        apart -= np.rint(apart)
        vectors = (apart[:, None] + steps) @ lattice
        distance = np.sqrt((vectors**2).sum(axis=-1))
        shortest[i] = distance[distance > 1e-3].min(initial=np.inf)
    return shortest


def sphere_transform(g: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Shape (g, power): integrals of (1 - r^2/rc^2)^k exp(-iG.r) over a sphere, A^3.

    (2 pi)^(3/2) 2^k k! rc^3 J_{k+3/2}(x) / x^(k+3/2) with x = G rc (Sonine's first integral).

    Args:
        g: shape (n,), 1/Angstrom.
        radius: rc, Angstrom.
    """
    x = np.maximum(g * radius, 1e-3)
    columns = [
        (2 * math.pi) ** 1.5
        * 2**k
        * math.factorial(k)
        * radius**3
        * jv(k + 1.5, x)
        / x ** (k + 1.5)
        for k in POWERS
    ]
    return np.stack(columns, axis=1)


class SphereFunctions:
    """The functions (1 - r^2/rc^2)^k about the atoms of a site, on the points of a grid.

    Args:
        structure: the crystal.
        grid: points along a, b, c.
        site: whose atoms.
        radius: rc, Angstrom.
    """

    def __init__(self, structure: Structure, grid: Grid, site: Site, radius: float) -> None:
        self._grid = grid
        n = np.array(grid)
        reach = np.linalg.norm(np.linalg.inv(structure.lattice), axis=0) * radius
        indices, inside = [], []
        for x in structure.frac_coords[list(site.atoms)]:
            low, high = np.ceil((x - reach) * n), np.floor((x + reach) * n)
            axes = [np.arange(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)]
            points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
            r2 = (((points / n - x) @ structure.lattice) ** 2).sum(axis=1)
            near = r2 < radius * radius
            points = points[near] % n
            indices.append((points[:, 0] * n[1] + points[:, 1]) * n[2] + points[:, 2])
            inside.append(1.0 - r2[near] / (radius * radius))
        self._indices = np.concatenate(indices)
        self._inside = np.concatenate(inside)

    def field(self, amplitudes: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over the powers k, shape `grid`.

        Args:
            amplitudes: one per power in `POWERS`.
        """
        total = np.zeros(len(self._inside))
        for power, amplitude in zip(POWERS, amplitudes, strict=True):
            total += amplitude * self._inside**power
        size = math.prod(self._grid)
        field: NDArray[np.float64] = np.bincount(self._indices, total, minlength=size)  # type: ignore[assignment]
        return field.reshape(self._grid)
