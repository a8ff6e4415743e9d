"""55 numbers that describe a density, the same whichever cell of the crystal it is given in.

The descriptors are those of pydemi 0.2.0 (S. Maurya, IIT Kanpur), which has them for 6059 materials
from VASP densities. It takes the cell, the origin and the grid as they are given, and many of the
numbers depend on those. So a density is first brought into its standard cell:

1. The usual cell of the crystal (`symmetry.standard_lattices`), in which most of the densities
   behind the training data seem to have been; a primitive one where that would be large. The cell
   of the file where the density lacks the translations of the atoms.
2. Of the bases of the lattice with these lengths and angles, and of the atoms of the rarest element
   as origins, the pair for which a sum of low structure factors is largest. Pairs that the space
   group takes into each other give the same values, so it does not matter which of them is found.
3. The Fourier coefficients of the primitive lattice, which are exactly those of the given cell,
   damped towards a shell in reciprocal space, so that the series does not end in a step, and summed
   on a grid of fixed spacing.

What is left depends on the crystal and its density alone, to the accuracy of the file.
docs/properties.md has the measurements behind the numbers here.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chgdb.density import ChargeDensity, Grid, Structure
from chgdb.errors import InputError, MissingExtraError
from chgdb.grid import half_waves, spacing_grid
from chgdb.symmetry import reduced_lattice, standard_lattices

__all__ = [
    "CORE_BLIND",
    "DESCRIPTORS",
    "LARGEST_GRID",
    "POINTS_PER_ANGSTROM",
    "WITHIN_ELEMENTS",
    "describe",
    "standard_cell",
]

DESCRIPTORS: tuple[str, ...] = (
    *("zeta", "m1", "m2", "sigma_r2", "f_core", "f_bond", "f_int"),
    *("lnf", "lnf_charge_weighted", "lap_concentration_valence", "ellip_bond_bounded_avg"),
    *("f_NCI", "NCI_attractive", "sign_lambda2_rho_mean", "V_spread", "V_int_min"),
    *("rho_mid_mean", "rho_mid_std"),
    *("rho_perc_a", "rho_perc_b", "rho_perc_c", "perc_anisotropy"),
    *("n_max", "n_min", "n_NNM", "Q_NNM", "rho_min", "rho_min_ratio", "rho_int_mean"),
    *("T_eigenvalues_t1", "T_eigenvalues_t2", "T_eigenvalues_t3", "charge_FA"),
    *("shannon_entropy", "fisher_information", "disequilibrium", "LMC_complexity"),
    *("m1_site_std", "m1_site_range", "m1_site_max", "m1_site_min"),
    *("m1_within_element_var", "m1_between_element_var"),
    *("f_bond_site_std", "f_bond_site_range", "f_bond_site_max", "f_bond_site_min"),
    *("f_bond_within_element_var", "f_bond_between_element_var"),
    *("zeta_site_std", "zeta_site_range", "zeta_site_max", "zeta_site_min"),
    *("zeta_within_element_var", "zeta_between_element_var"),
)
"""Names, in the order of pydemi's data set; its `catalogue` has the formulas and the units."""

WITHIN_ELEMENTS: tuple[str, ...] = (
    *("m1_within_element_var", "f_bond_within_element_var", "zeta_within_element_var"),
)
"""Variances between the atoms of an element."""

CORE_BLIND: tuple[str, ...] = (
    *("rho_mid_mean", "rho_mid_std", "rho_int_mean"),
    *("rho_perc_a", "rho_perc_b", "rho_perc_c", "perc_anisotropy"),
    *WITHIN_ELEMENTS,
)
"""Those that are alike for pseudopotentials with and without semicore electrons."""

POINTS_PER_ANGSTROM = 8.0
"""Of the standard grid, along each vector of the cell at least."""

LARGEST_GRID = 800_000
"""Points of the standard grid at most: larger cells are sampled more coarsely."""

_UNDAMPED = 0.625
"""Share of the radius of the kept sphere of waves within which they are not damped."""

_MULTIPLE = 4
"""Of points along each axis, so that halves and quarters of the cell lie on the grid."""

_OFFSET = np.array([-0.004, -0.02, -0.1])
"""Of the grid from the origin atom, in steps of it. Points of the grid then never lie as far from
one atom as from another by symmetry, where the last bit of a coordinate would assign them."""

_SYMPREC = 0.01
"""How far an atom may be from its place in the primitive cell, Angstrom."""

_SAME_PLACE = 0.1
"""Atoms closer than this, Angstrom, after a translation, are one atom of the primitive cell."""

_ASYMMETRY = 0.05
"""Root mean square of what breaks the translations, over the mean, up to which it is dropped."""

_WHOLE = 0.1
"""How far the given cell may be from whole multiples of the primitive vectors."""

_SAME_METRIC = 0.01
"""Relative difference of scalar products up to which two bases are alike: above what `_SYMPREC`
allows, so that a cell that is almost symmetric has all those that spglib may choose from."""

_COARSER = 0.97
"""Factor of the spacing by which a grid that is too large is thinned, again and again."""


def describe(density: ChargeDensity) -> NDArray[np.float64]:
    """The descriptors of the total density, of its standard cell.

    Args:
        density: in any cell of the crystal; the magnetization is not regarded.

    Returns:
        Shape (55,), in the order of `DESCRIPTORS`. The variances within elements are 0 where no
        element has two atoms in the cell, for which pydemi has nan: a larger cell has copies of an
        atom, which are alike.

    Raises:
        InputError: the density has no atoms or no electrons, or cannot be described.
        MissingExtraError: pydemi is not installed.
    """
    try:
        import pydemi
    except ImportError as error:
        raise MissingExtraError("describing a density", "ml") from error
    standard = standard_cell(density)
    lattice = pydemi.Lattice(standard.structure.lattice)
    atoms = pydemi.Structure(
        lattice, list(standard.structure.species), standard.structure.frac_coords
    )
    data = pydemi.VolumetricData(atoms, pydemi.Grid(standard.values, lattice))
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = pydemi.featurize(data)
    except (ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        raise InputError(f"the density cannot be described ({error})") from error
    for name in WITHIN_ELEMENTS:
        if math.isnan(found[name]):
            found[name] = 0.0
    values = np.array([found[name] for name in DESCRIPTORS], dtype=np.float64)
    if not np.isfinite(values).all():
        name = DESCRIPTORS[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise InputError(f"the density cannot be described ({name} is no finite number)")
    return values


def standard_cell(density: ChargeDensity) -> ChargeDensity:
    """The total density in the standard cell of its crystal, on the standard grid.

    The first lattice vector is along x and the second in the plane of x and y; an atom lies beside
    the origin. The mean is kept; waves shorter than 2 / `POINTS_PER_ANGSTROM` are dropped.

    Args:
        density: in any cell of the crystal.

    Raises:
        InputError: the density has no atoms or no electrons.
    """
    if not density.structure.species:
        raise InputError("a density without atoms cannot be described")
    with np.errstate(over="ignore"):
        electrons = density.n_electrons
    if not 0 < electrons < math.inf:
        raise InputError(f"a density with {electrons:g} electrons cannot be described")
    spectrum = np.fft.rfftn(density.values) / density.values.size
    primitive, tiles = _primitive(density.structure, spectrum, density.grid)
    cell = primitive.tiled(tiles)
    if math.prod(_grid(cell.lattice, POINTS_PER_ANGSTROM)) > LARGEST_GRID:
        cell = _compact(primitive)
    spacing = POINTS_PER_ANGSTROM
    while math.prod(_grid(cell.lattice, spacing)) > LARGEST_GRID:
        spacing *= _COARSER
    cell = _oriented(_right_handed(cell))
    grid = _grid(cell.lattice, spacing)
    cell = cell.moved(_OFFSET / grid)
    values = _series(spectrum, density.grid, cell, grid, spacing)
    upright = np.asarray(np.linalg.cholesky(cell.lattice @ cell.lattice.T), dtype=np.float64)
    return ChargeDensity(values, Structure(upright, cell.species, cell.coords % 1.0))


class _Cell(NamedTuple):
    """A cell of a crystal, beside the one in the file and a primitive one.

    The vectors of the file are `repeats` times the primitive ones, those of the cell `tiles` times
    the primitive ones.

    Attributes:
        repeats: shape (3, 3), whole numbers.
        tiles: shape (3, 3), whole numbers.
        lattice: shape (3, 3), rows in Angstrom.
        species: one element per atom.
        coords: shape (n_atoms, 3), fractional, from the origin of this cell.
        origin: its fractional coordinates in this cell, from the origin of the file.
    """

    repeats: NDArray[np.int64]
    tiles: NDArray[np.int64]
    lattice: NDArray[np.float64]
    species: tuple[str, ...]
    coords: NDArray[np.float64]
    origin: NDArray[np.float64]

    def based(self, turn: NDArray[np.int64]) -> _Cell:
        """The cell with the vectors `turn` @ `lattice`, `turn` of determinant 1 or -1."""
        back = _whole(np.linalg.inv(turn))
        return self._replace(
            tiles=turn @ self.tiles,
            lattice=turn @ self.lattice,
            coords=self.coords @ back,
            origin=self.origin @ back,
        )

    def moved(self, origin: NDArray[np.float64]) -> _Cell:
        """The cell with its origin at other fractional coordinates."""
        return self._replace(coords=self.coords - origin, origin=self.origin + origin)

    def tiled(self, tiles: NDArray[np.int64]) -> _Cell:
        """A cell of several primitive ones, of which this is one."""
        to_tiled, copies = np.linalg.inv(tiles), _volume(tiles)
        steps = np.array(list(itertools.product(range(copies), repeat=3)))
        shifts = np.unique(steps @ _whole(to_tiled * copies) % copies, axis=0) / copies
        coords = (self.coords @ to_tiled)[:, None] + shifts
        return self._replace(
            tiles=tiles @ self.tiles,
            lattice=tiles @ self.lattice,
            species=tuple(symbol for symbol in self.species for _ in shifts),
            coords=coords.reshape(-1, 3),
            origin=self.origin @ to_tiled,
        )


def _primitive(
    structure: Structure, spectrum: NDArray[np.complex128], grid: Grid
) -> tuple[_Cell, NDArray[np.int64]]:
    """A primitive cell, and how the usual one is tiled with it.

    The cell of the file, reduced, where the density has not the translations of the atoms.
    """
    one = np.eye(3, dtype=np.int64)
    found = standard_lattices(structure, _SYMPREC)
    if found is not None:
        exact = structure.lattice @ np.linalg.inv(found[0])
        repeats = _whole(exact)
        if np.abs(exact - repeats).max() < _WHOLE and _volume(repeats) > 0:
            atoms = _merged(structure, repeats)
            if atoms is not None and _asymmetry(spectrum, grid, repeats) <= _ASYMMETRY:
                lattice = np.linalg.inv(repeats) @ structure.lattice
                tiles = _whole(found[1] @ np.linalg.inv(found[0]))
                return _Cell(repeats, one, lattice, *atoms, np.zeros(3)), tiles
    atoms = structure.species, structure.frac_coords
    return _compact(_Cell(one, one, structure.lattice, *atoms, np.zeros(3))), one


def _merged(
    structure: Structure, repeats: NDArray[np.int64]
) -> tuple[tuple[str, ...], NDArray[np.float64]] | None:
    """The atoms of a primitive cell, each the mean of its copies; None where copies are missing."""
    copies = _volume(repeats)
    coords = structure.frac_coords @ repeats
    lattice = np.linalg.solve(repeats, structure.lattice)
    if copies == 1:
        return structure.species, coords
    names = np.array(structure.species)
    left = np.arange(len(names))
    species, found = [], []
    while len(left):
        apart = coords[left] - coords[left[0]]
        apart -= np.rint(apart)
        near = np.linalg.norm(apart @ lattice, axis=1) < _SAME_PLACE
        near &= names[left] == names[left[0]]
        if np.count_nonzero(near) != copies:
            return None
        species.append(str(names[left[0]]))
        found.append(coords[left[0]] + apart[near].mean(axis=0))
        left = left[~near]
    return tuple(species), np.array(found)


def _asymmetry(spectrum: NDArray[np.complex128], grid: Grid, repeats: NDArray[np.int64]) -> float:
    """Root mean square, over the mean, of the waves that a primitive lattice does not have."""
    copies = _volume(repeats)
    if copies == 1:
        return 0.0
    # A wave k of the file is h of the primitive lattice where k = repeats @ h.
    to_h = _whole(np.linalg.inv(repeats) * copies)
    k1, k2, k3 = np.ogrid[: grid[0], : grid[1], : spectrum.shape[2]]
    k1, k2 = (k - np.where(2 * k > n, n, 0) for k, n in ((k1, grid[0]), (k2, grid[1])))
    missing = np.zeros(spectrum.shape, dtype=bool)
    for row in to_h:
        missing |= (row[0] * k1 + row[1] * k2 + row[2] * k3) % copies != 0
    power = np.where(missing, np.abs(spectrum) ** 2, 0.0)
    # The half that is not stored is as strong as the half that is.
    total = 2 * power.sum() - power[:, :, 0].sum()
    return math.sqrt(total) / abs(float(spectrum[0, 0, 0].real))


def _compact(cell: _Cell) -> _Cell:
    """The cell with reduced vectors."""
    turn = _whole(reduced_lattice(cell.lattice) @ np.linalg.inv(cell.lattice))
    return cell.based(turn) if _volume(turn) == 1 else cell


def _right_handed(cell: _Cell) -> _Cell:
    mirrored = np.linalg.det(cell.lattice) < 0
    return cell.based(-np.eye(3, dtype=np.int64)) if mirrored else cell


def _oriented(cell: _Cell) -> _Cell:
    """The cell with the setting, of those alike, that a sum of structure factors prefers."""
    counts = {symbol: cell.species.count(symbol) for symbol in set(cell.species)}
    symbols = sorted(counts, key=lambda symbol: (counts[symbol], symbol))
    weights = np.array([math.sqrt(1 + symbols.index(symbol)) for symbol in cell.species])
    rarest = cell.coords[[symbol == symbols[0] for symbol in cell.species]]
    scale = float(np.trace(cell.lattice @ cell.lattice.T))
    best = -np.inf
    chosen, origin = np.eye(3, dtype=np.int64), rarest[0]
    for turn in _turns(cell.lattice):
        waves = _WAVES @ np.linalg.inv(turn).T
        factors = np.exp(2j * np.pi * (waves @ cell.coords.T)) @ weights
        # The real part of a complex weight hears sines too, so no mirror image is alike.
        sums = ((_WAVE_WEIGHTS * factors) @ np.exp(-2j * np.pi * (waves @ rarest.T))).real
        axes = turn @ cell.lattice
        sums = sums / len(weights) + np.sum(_METRIC_WEIGHTS * (axes @ axes.T)) / scale
        if sums.max() > best + 1e-6:
            best = sums.max()
            chosen, origin = turn, rarest[int(sums.argmax())]
    return cell.moved(origin).based(chosen)


_WAVES = np.array([h for h in itertools.product((-2, -1, 0, 1, 2), repeat=3) if h > (0, 0, 0)])
"""Low waves, one of each pair h and -h."""

_WAVE_WEIGHTS = np.exp(2j * np.pi * math.sqrt(2) * np.arange(len(_WAVES)) ** 2)
"""Phases without order, so that what is not alike does not give the same sum."""


_METRIC_WEIGHTS = np.array([[1.0, 3.1, 4.3], [3.1, 1.7, 5.9], [4.3, 5.9, 2.3]])
"""Of the scalar products of a basis, in the sum that chooses one."""


def _turns(lattice: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Proper changes of the basis that keep its scalar products."""
    metric = lattice @ lattice.T
    lengths = np.sqrt(np.diag(metric))
    allowed = _SAME_METRIC * np.outer(lengths, lengths)
    reach = lengths.max() * np.linalg.norm(np.linalg.inv(lattice), axis=0) * (1 + _SAME_METRIC)
    ranges = [range(-int(n), int(n) + 1) for n in reach]
    vectors = np.array(list(itertools.product(*ranges)))
    products = vectors @ metric
    squares = np.einsum("ij,ij->i", products, vectors)
    rows = [vectors[np.abs(squares - metric[i, i]) < allowed[i, i]] for i in range(3)]
    found = []
    for a in rows[0]:
        b_rows = rows[1][np.abs(rows[1] @ metric @ a - metric[0, 1]) < allowed[0, 1]]
        c_rows = rows[2][np.abs(rows[2] @ metric @ a - metric[0, 2]) < allowed[0, 2]]
        for b in b_rows:
            ends = c_rows[np.abs(c_rows @ metric @ b - metric[1, 2]) < allowed[1, 2]]
            found += [np.array([a, b, c]) for c in ends]
    return [turn for turn in found if round(float(np.linalg.det(turn))) == 1]


def _grid(lattice: NDArray[np.float64], points_per_angstrom: float) -> Grid:
    # A length that is a round number up to rounding must not fall on both sides of a step.
    return spacing_grid(lattice, points_per_angstrom * (1 - 1e-4), multiple=_MULTIPLE)


def _series(
    spectrum: NDArray[np.complex128],
    source: Grid,
    cell: _Cell,
    grid: Grid,
    points_per_angstrom: float,
) -> NDArray[np.float64]:
    """The damped Fourier series of a field in another cell of its crystal.

    Args:
        spectrum: of the field in the given cell, as `rfftn` gives it, over the number of points.
        source: points along a, b, c in the given cell.
        cell: the other cell.
        grid: points along its vectors.
        points_per_angstrom: of the grid, twice the wave number at which damping ends, 1/Angstrom.
    """
    waves = half_waves(grid)
    radius = 2 * np.linalg.norm(waves @ np.linalg.inv(cell.lattice).T, axis=-1)
    radius /= points_per_angstrom
    # A wave h of the primitive cell is tiles @ h in this one and repeats @ h in the file.
    tiles = _volume(cell.tiles)
    h = waves @ _whole(np.linalg.inv(cell.tiles) * tiles).T
    kept = (radius < 1) & (h % tiles == 0).all(axis=-1)
    k = (h[kept] // tiles).astype(np.int64) @ cell.repeats.T
    known = (2 * np.abs(k) < source).all(axis=1)
    kept[kept] = known
    k = k[known]
    conjugate = k[:, 2] < 0
    k = np.where(conjugate[:, None], -k, k)
    found = spectrum[k[:, 0] % source[0], k[:, 1] % source[1], k[:, 2]]
    found = np.where(conjugate, found.conj(), found)
    edge = np.clip((radius[kept] - _UNDAMPED) / (1 - _UNDAMPED), 0.0, 1.0)
    found *= np.cos(np.pi / 2 * edge) ** 2 * np.exp(2j * np.pi * (waves[kept] @ cell.origin))
    series = np.zeros(kept.shape, dtype=np.complex128)
    series[kept] = found
    return np.fft.irfftn(series, s=grid, axes=(0, 1, 2)) * math.prod(grid)


def _whole(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(values).astype(np.int64)


def _volume(turn: NDArray[np.int64]) -> int:
    """How many cells are in one."""
    return abs(round(float(np.linalg.det(turn))))
