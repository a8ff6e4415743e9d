"""Valence densities predicted from the structure alone, by ChargE3Net.

ChargE3Net (Koker et al., npj Comput. Mater. 10, 161 (2024)) is an E(3)-equivariant network that
tells the density at a point from the atoms within 4 A of it. The weights are those that pydemi
comes with, fine-tuned on VASP densities (PAW_PBE, 500 eV, PREC = Accurate): what it predicts is the
CHGCAR of such a run. docs/charge3net.md has its errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chgdb.density import ChargeDensity, Grid, Structure
from chgdb.elements import SYMBOLS
from chgdb.errors import InputError, MissingExtraError
from chgdb.grid import low_pass, smooth, spacing_grid
from chgdb.stars import Operations
from chgdb.symmetry import find_operations
from chgdb.units import BOHR, RYDBERG

if TYPE_CHECKING:
    import torch

__all__ = [
    "G_MAX",
    "SOURCE",
    "Charge3Net",
    "PredictedDensity",
    "grid_operations",
    "symmetry_unique",
]

SOURCE = "charge3net"
"""What a store calls a density from here."""

G_MAX = 2 * math.sqrt(500.0 / RYDBERG) / BOHR
"""1/A; twice the cutoff of the training data, beyond which the network predicts its own noise."""

DENSITY = G_MAX / math.pi * (1 + 1e-9)
"""Points per Angstrom of `Charge3Net.work_grid`, at least: 7.3, which hold all waves to `G_MAX`."""

_POINTS = 2**14
"""Whose density is predicted together: what reaches them takes 11 kB each."""

_ROWS = 2048
"""Of a product of matrices; 6 kB each."""

_RADIAL = 1e-4
"""Radial functions weaker than this part of the strongest are left out: 57 of 100 stay."""

_DISTANCES = 4000
"""Between 0 and the cutoff, on which radial functions are compared."""

_SYMPREC = 1e-3
"""A; a density that is symmetrised wrongly by this is as exact as the network."""

_MULTIPLES = (2, 4, 6, 12)
"""Of the points along an axis, so that a grid holds the translations of screws and glides."""

_ON_GRID = 0.02
"""Points by which an operation may miss a grid point; 0.003 A."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PredictedDensity(ChargeDensity):
    """A predicted density, which holds exactly as many electrons as the pseudopotentials have.

    Attributes:
        raw_electrons: the integral of what the network predicted, by which it was divided.
    """

    raw_electrons: float


class Charge3Net:
    """The network with the weights that come with pydemi.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        MissingExtraError: pydemi, torch, e3nn or ASE is not installed.
    """

    def __init__(self, device: str = "auto") -> None:
        try:
            from pydemi import ml
        except ImportError as error:
            raise MissingExtraError("a density from a structure", "ml-density") from error
        if ml.missing():
            raise MissingExtraError("a density from a structure", "ml-density")
        self._valence: dict[str, float] = ml.ZVAL
        self._device = device

    @cached_property
    def _model(self) -> Any:
        """The network, as pydemi loads it.

        Raises:
            InputError: the device does not exist.
        """
        from pydemi import ml

        from chgdb.codec import select_device

        return ml.load(device=select_device(self._device))

    @property
    def name(self) -> str:
        """What the weights are called."""
        return str(self._model.info["name"])

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the file of the weights."""
        return str(self._model.sha256)

    @property
    def nmae(self) -> float:
        """The error against VASP on the validation part of its data, as the file states it, %."""
        return float(self._model.info["best_val_nmape"])

    def valence_electrons(self, structure: Structure) -> float:
        """Electrons in the cell with the pseudopotentials of the training data.

        Raises:
            InputError: there is an element that was not in the training data.
        """
        unknown = [symbol for symbol in structure.elements if symbol not in self._valence]
        if unknown:
            raise InputError(
                f"{', '.join(unknown)}: not among the {len(self._valence)} elements that "
                "ChargE3Net knows; add a density from DFT instead"
            )
        return sum(self._valence[symbol] for symbol in structure.species)

    def work_grid(self, structure: Structure) -> Grid:
        """The grid on which a density is predicted: as fine as a payload needs, no finer.

        Of the grids with the density `DENSITY` the one with the fewest symmetry-unique points.
        """
        operations = find_operations(structure, _SYMPREC)
        grids: list[Grid] = []
        for multiple in _MULTIPLES:
            grid = spacing_grid(structure.lattice, DENSITY, multiple=multiple)
            n1, n2, n3 = (smooth(n, multiple) for n in grid)
            grids.append((n1, n2, n3))
        return min(grids, key=lambda g: math.prod(g) / len(grid_operations(operations, g)[0]))

    def predict(
        self,
        structure: Structure,
        grid: Grid | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> PredictedDensity:
        """The density of a structure, of waves up to `G_MAX` as in the training data.

        Args:
            structure: a crystal.
            grid: points along a, b, c; `work_grid` by default.
            progress: called with the number of points done and of all.

        Raises:
            InputError: there is an element that the network does not know, or it predicts no
                electrons.
        """
        electrons = self.valence_electrons(structure)
        grid = self.work_grid(structure) if grid is None else grid
        operations = find_operations(structure, _SYMPREC)
        points, inverse = symmetry_unique(operations, grid)
        unique = self._at(structure, points / np.array(grid), progress)
        values = low_pass(unique[inverse].reshape(grid), structure.lattice, G_MAX)
        raw = float(values.mean()) * structure.volume
        if not raw > 0.5 * electrons:
            raise InputError(f"ChargE3Net predicts {raw:.3g} electrons instead of {electrons:g}")
        return PredictedDensity(values * (electrons / raw), structure, raw_electrons=raw)

    def _at(
        self,
        structure: Structure,
        points: NDArray[np.float64],
        progress: Callable[[int, int], None] | None,
    ) -> NDArray[np.float64]:
        """What the network predicts at points, shape (n, 3) in fractional coordinates, e/A^3."""
        import torch
        from pydemi.io.base import Lattice
        from pydemi.io.base import Structure as PydemiStructure
        from pydemi.ml.graph import Replicas, atom_edges, probe_edges

        model, device = self._model, self._model.device
        crystal = PydemiStructure(
            Lattice(np.array(structure.lattice)), list(structure.species), structure.frac_coords
        )
        images = Replicas.build(crystal, model.cutoff)
        cartesian = points @ structure.lattice
        numbers = [SYMBOLS.index(symbol) + 1 for symbol in structure.species]
        density = np.empty(len(points))
        with torch.inference_mode():
            source, target, vector = atom_edges(images, crystal, model.cutoff)
            features = model.net.atom_model(
                torch.tensor(numbers, device=device),
                torch.as_tensor(source, device=device),
                torch.as_tensor(target, device=device),
                torch.as_tensor(vector, dtype=torch.float32, device=device),
            )
            layers = _Layers(model.net.probe_model, features)
            for start in range(0, len(points), _POINTS):
                chunk = cartesian[start : start + _POINTS]
                edges = _Edges(*probe_edges(images, chunk, model.cutoff))
                found = layers.density(edges, len(chunk), len(numbers))
                density[start : start + _POINTS] = found.cpu().numpy()
                if progress:
                    progress(start + len(chunk), len(points))
        return density


class _Edges(NamedTuple):
    """Pairs of an image of an atom and a point, by atom and point."""

    atom: NDArray[np.int64]
    point: NDArray[np.int64]
    vector: NDArray[np.float64]


class _Layers:
    """What pydemi's `E3ProbeMessageModel` computes, in another order.

    In a layer an atom sends to a point at the distance r in the direction n what is linear in R(r),
    radial functions that all atoms share, and in Y(n), spherical harmonics. So the sum over the
    images of an atom is that of R Y, times one matrix per atom. That takes a fifth to a tenth of
    the time of one message per image.

    Args:
        probe_model: the network.
        features: of the atoms, after each layer of theirs.
    """

    def __init__(self, probe_model: Any, features: Sequence[torch.Tensor]) -> None:
        import torch

        self._model = probe_model
        self._features = features
        distances = torch.linspace(0, probe_model.cutoff, _DISTANCES + 1)[1:]
        basis = probe_model.basis(distances.to(features[0].device))
        self._radial, self._weights = [], []
        for layer in probe_model.convolutions:
            hidden, last = layer.fc
            _, size, functions = torch.linalg.svd(hidden(basis).double(), full_matrices=False)
            functions = functions[size > _RADIAL * size[0]].float()
            self._radial.append(functions.T)
            self._weights.append(last(functions)[:, _channels(layer.tp)])

    def density(self, edges: _Edges, n_points: int, n_atoms: int) -> torch.Tensor:
        """The density at the points, e/A^3."""
        import torch

        net = self._model
        one = self._features[0].new_ones(n_points, 1)
        sums = [
            one.new_zeros(n_points, layer.lin2.irreps_out.dim + 1) for layer in net.convolutions
        ]
        order = np.lexsort((edges.point, edges.atom))
        bounds = np.searchsorted(edges.atom[order], np.arange(n_atoms + 1))
        for atom in range(n_atoms):
            own = order[bounds[atom] : bounds[atom + 1]]
            if len(own):
                self._send(atom, edges.point[own], edges.vector[own], sums)
        points = torch.zeros_like(one)
        for layer, gate, total in zip(net.convolutions, net.gates, sums, strict=True):
            # as in pydemi.ml.model.ConvolutionOneWay.forward
            angle = 0.1 * total[:, -1:]
            mask = layer.sc.output_mask
            sine = (1 - mask) + angle.sin() * mask
            points = gate(angle.cos() * layer.sc(points, one) + sine * total[:, :-1])
        density: torch.Tensor = net.readout(points)[:, 0]
        return density

    def _send(
        self,
        atom: int,
        point: NDArray[np.int64],
        vector: NDArray[np.float64],
        sums: Sequence[torch.Tensor],
    ) -> None:
        """Add what the images of one atom send to points, which are in ascending order."""
        import torch
        from e3nn import o3

        net, device = self._model, sums[0].device
        vectors = torch.as_tensor(vector, dtype=torch.float32, device=device)
        angular = o3.spherical_harmonics(
            range(net.lmax + 1), vectors, normalize=True, normalization="component"
        )
        basis = net.basis(vectors.norm(dim=1))
        met, first, count = np.unique(point, return_index=True, return_counts=True)
        rows = np.repeat(np.arange(len(met)), count)
        slots = np.arange(len(point)) - np.repeat(first, count)
        shape = (len(met), int(count.max()))

        def by_point(values: torch.Tensor) -> torch.Tensor:
            """Shape (point, image, ...), zero where a point has fewer images near it."""
            padded = values.new_zeros(*shape, values.shape[1])
            padded[rows, slots] = values
            return padded

        angular, index = by_point(angular), torch.as_tensor(met, device=device)
        for number, total in enumerate(sums):
            hidden = net.convolutions[number].fc[0](basis)
            radial = by_point(hidden @ self._radial[number])
            table = self._table(number, atom)
            for start in range(0, len(met), _ROWS):
                part = slice(start, start + _ROWS)
                products = torch.bmm(radial[part].transpose(1, 2), angular[part])
                total.index_add_(0, index[part], products.flatten(1) @ table)

    def _table(self, number: int, atom: int) -> torch.Tensor:
        """What an atom sends by radial function and harmonic, shape (radial * harmonic, out)."""
        import torch

        layer, features = self._model.convolutions[number], self._features[number]
        own = features[atom : atom + 1]
        sent = layer.lin1(own, own.new_ones(1, 1))
        harmonics = torch.eye(layer.tp.irreps_in2.dim, device=own.device)
        angular = layer.tp(
            sent.expand(len(harmonics), -1),
            harmonics,
            own.new_ones(len(harmonics), layer.tp.weight_numel),
        )
        channels = (self._weights[number][:, None] * angular).flatten(0, 1)
        one = own.new_ones(len(channels), 1)
        out = torch.cat([layer.lin2(channels, one), layer.lin3(channels, one)], dim=1)
        table: torch.Tensor = out * float(layer.num_neighbors) ** -0.5
        return table


def _channels(product: Any) -> torch.Tensor:
    """Which weight of an e3nn TensorProduct multiplies each component of its result."""
    import torch

    weight = torch.empty(product.irreps_out.dim, dtype=torch.long)
    start = 0
    for instruction in product.instructions:
        n, irrep = product.irreps_out[instruction.i_out]
        own = start + torch.arange(n)
        weight[product.irreps_out.slices()[instruction.i_out]] = own.repeat_interleave(irrep.dim)
        start += n
    return weight


def grid_operations(operations: Operations, grid: Grid) -> tuple[NDArray[np.int64], ...]:
    """The operations that map a grid onto itself, on whole numbers of its points.

    They are a group: products and inverses of such operations are such operations.

    Returns:
        Rotations, shape (n, 3, 3), and translations, shape (n, 3), m -> W m + w modulo the grid.
    """
    n = np.array(grid)
    rotations = operations.rotations * n[:, None] / n
    shifts = operations.translations * n
    whole = (rotations == np.rint(rotations)).all(axis=(1, 2))
    fits = whole & (np.abs(shifts - np.rint(shifts)) <= _ON_GRID).all(axis=1)
    return np.rint(rotations[fits]).astype(np.int64), np.rint(shifts[fits]).astype(np.int64)


def symmetry_unique(
    operations: Operations, grid: Grid
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One point of each set of points that symmetry makes alike.

    Args:
        operations: of the space group; those that the grid does not hold are left out.
        grid: points along a, b, c.

    Returns:
        The points as whole numbers of steps, shape (n, 3), and for every point of the grid, in C
        order, which of them it is like, shape (n1 * n2 * n3,).
    """
    points = np.stack(np.unravel_index(np.arange(math.prod(grid)), grid), axis=1)
    first = np.arange(len(points))
    for rotation, shift in zip(*grid_operations(operations, grid), strict=True):
        image = (points @ rotation.T + shift) % grid
        np.minimum(first, np.ravel_multi_index(tuple(image.T), grid), out=first)
    unique, inverse = np.unique(first, return_inverse=True)
    return points[unique], inverse
