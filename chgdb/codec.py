"""Density <-> latent: two encoders behind one interface.

`periodic` (the default) resamples the density to about 7.3 points/A, divides it by its mean, takes
the signed square root and encodes it on the torus; `paper` follows arXiv 2605.07227: the density in
e/A^3 on VASP's grid in the corner of a 128^3 box of zeros.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from chgdb.density import ChargeDensity, Grid, Latent, Structure
from chgdb.errors import InputError, ModelError
from chgdb.grid import crop, fourier_resample, spacing_grid, vasp_grid, zero_pad
from chgdb.nets import Autoencoder, PaperNet, PeriodicNet
from chgdb.schema import LatentStorage
from chgdb.weights import EncoderConfig, load_config, load_tensors

__all__ = ["BOX", "Codec", "PaperCodec", "PeriodicCodec", "load_codec", "select_device"]

BOX = 128
"""Grid points along an axis that the latent array can hold."""


class Codec(ABC):
    """One encoder with its weights.

    Batches hold any mix of cells; a batch gives what its members give one by one.
    """

    storage: ClassVar[tuple[str, float | None]]
    """Stored dtype of the latent and its CF scale_factor."""

    def __init__(self, config: EncoderConfig, net: Autoencoder, device: str = "cpu") -> None:
        self.config = config
        self.device = device
        self.net = net.to(device).eval()

    @property
    def latent_storage(self) -> LatentStorage:
        """How a store keeps latents of this encoder."""
        return LatentStorage(*self.storage, self.config.latent_shape)

    @abstractmethod
    def work_grid(self, lattice: NDArray[np.float64]) -> Grid:
        """The grid on which a cell is encoded."""

    @abstractmethod
    def to_field(self, density: ChargeDensity) -> NDArray[np.float32]:
        """The network's input for a density, on `work_grid`."""

    @abstractmethod
    def from_field(self, field: NDArray[np.float64]) -> NDArray[np.float64]:
        """The density, up to a factor, of a network output."""

    @abstractmethod
    def box(self, work_grid: Grid) -> Grid:
        """The shape of the network's input for a work grid."""

    def is_coarse(self, lattice: NDArray[np.float64]) -> bool:
        """Whether the cell is too long for the box, so that it is encoded coarser than others."""
        return max(self.work_grid(lattice)) == BOX and self._full_grid(lattice) > BOX

    @abstractmethod
    def _full_grid(self, lattice: NDArray[np.float64]) -> int:
        """The longest axis of the work grid, were there no limit."""

    def encode(self, densities: Sequence[ChargeDensity]) -> list[Latent]:
        """Encode densities; cells of one grid share a forward pass.

        Raises:
            InputError: a density does not hold a positive number of electrons.
        """
        for density in densities:
            if not density.n_electrons > 0:
                raise InputError(
                    f"{density.structure.formula}: the density holds {density.n_electrons:g} "
                    "electrons; an encoder needs a positive number"
                )
        fields = [self.to_field(density) for density in densities]
        latents: list[Latent | None] = [None] * len(densities)
        for members in _same_shape(field.shape for field in fields):
            grid = self.work_grid(densities[members[0]].structure.lattice)
            batch = np.stack([zero_pad(fields[i], self.box(grid)) for i in members])
            with torch.inference_mode():
                x = torch.from_numpy(batch[:, None].astype(np.float32)).to(self.device)
                z = self.net.encode(x).cpu().numpy()
            for row, i in enumerate(members):
                values = np.zeros(self.config.latent_shape, dtype=np.float32)
                values[tuple(slice(n) for n in z[row].shape)] = z[row]
                latents[i] = Latent(values, grid, densities[i].n_electrons)
        return [latent for latent in latents if latent is not None]

    def decode(
        self,
        latents: Sequence[Latent],
        structures: Sequence[Structure],
        grids: Sequence[Grid | None] | None = None,
    ) -> list[ChargeDensity]:
        """Decode latents onto any grid of their cells (None: the work grid); electrons are kept.

        Raises:
            InputError: a latent of another shape than this encoder's.
        """
        grids = [None] * len(latents) if grids is None else grids
        decoded: list[ChargeDensity | None] = [None] * len(latents)
        for members in _same_shape(latent.work_grid for latent in latents):
            box = self.box(latents[members[0]].work_grid)
            corner = tuple(slice(n // self.net.factor) for n in box)
            for i in members:
                if latents[i].values.shape != self.config.latent_shape:
                    raise InputError(
                        f"a latent of {self.config.id} has shape {self.config.latent_shape}, "
                        f"not {latents[i].values.shape}"
                    )
            z = np.stack([latents[i].values[(slice(None), *corner)] for i in members])
            with torch.inference_mode():
                fields = self.net.decode(torch.from_numpy(z).to(self.device)).cpu().numpy()[:, 0]
            for field, i in zip(fields, members, strict=True):
                decoded[i] = self._finish(field, latents[i], structures[i], grids[i])
        return [density for density in decoded if density is not None]

    def _finish(
        self, field: NDArray[np.float32], latent: Latent, structure: Structure, grid: Grid | None
    ) -> ChargeDensity:
        values = self.from_field(crop(field.astype(np.float64), latent.work_grid))
        values = fourier_resample(values, grid or latent.work_grid)
        total = float(values.mean()) * structure.volume
        if not total > 0:
            raise ModelError(f"{self.config.id} decodes {structure.formula} to no electrons")
        return ChargeDensity(values * (latent.n_electrons / total), structure)


class PeriodicCodec(Codec):
    """The default: periodic means periodic, in the cell's own coordinates."""

    POINTS_PER_ANGSTROM: ClassVar[float] = 7.3
    storage = ("int8", 1 / 127)

    def work_grid(self, lattice: NDArray[np.float64]) -> Grid:
        return spacing_grid(
            lattice, self.POINTS_PER_ANGSTROM, multiple=self.net.factor, largest=BOX
        )

    def _full_grid(self, lattice: NDArray[np.float64]) -> int:
        return max(spacing_grid(lattice, self.POINTS_PER_ANGSTROM, multiple=self.net.factor))

    def box(self, work_grid: Grid) -> Grid:
        return work_grid

    def to_field(self, density: ChargeDensity) -> NDArray[np.float32]:
        values = fourier_resample(density.values, self.work_grid(density.structure.lattice))
        return signed_sqrt(values / values.mean()).astype(np.float32)

    def from_field(self, field: NDArray[np.float64]) -> NDArray[np.float64]:
        return signed_square(field)


class PaperCodec(Codec):
    """The published encoder: VASP's grid, e/A^3, zero-padded to 128^3."""

    storage = ("float16", None)

    def work_grid(self, lattice: NDArray[np.float64]) -> Grid:
        n1, n2, n3 = (min(n, BOX) for n in vasp_grid(lattice))
        return n1, n2, n3

    def _full_grid(self, lattice: NDArray[np.float64]) -> int:
        return max(vasp_grid(lattice))

    def box(self, work_grid: Grid) -> Grid:  # noqa: ARG002
        return (BOX, BOX, BOX)

    def to_field(self, density: ChargeDensity) -> NDArray[np.float32]:
        values = fourier_resample(density.values, self.work_grid(density.structure.lattice))
        return values.astype(np.float32)

    def from_field(self, field: NDArray[np.float64]) -> NDArray[np.float64]:
        return field


def signed_sqrt(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """sign(x) * sqrt(|x|): densities may be slightly negative."""
    return np.sign(values) * np.sqrt(np.abs(values))


def signed_square(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `signed_sqrt`: x * |x|."""
    return values * np.abs(values)


def _same_shape(shapes: Iterable[tuple[int, ...]]) -> list[list[int]]:
    """Indices grouped by equal shape."""
    ordered = sorted(enumerate(shapes), key=lambda pair: pair[1])
    groups = groupby(ordered, key=lambda pair: pair[1])
    return [[index for index, _ in members] for _, members in groups]


def select_device(name: str = "auto") -> str:
    """The device of a name; "auto" is CUDA where there is one.

    Raises:
        InputError: CUDA is asked for and not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this machine has no CUDA device; use --device cpu")
    return name


def build_net(config: EncoderConfig) -> Autoencoder:
    """The network of a configuration, with fresh weights."""
    net_class: type[Any] = {"periodic": PeriodicNet, "paper": PaperNet}[config.kind]
    net: Autoencoder = net_class(**config.net)
    return net


def build_codec(config: EncoderConfig, net: Autoencoder, device: str = "cpu") -> Codec:
    """The codec of a configuration around a network."""
    codec_class = {"periodic": PeriodicCodec, "paper": PaperCodec}[config.kind]
    return codec_class(config, net, device)


def load_codec(folder: str | Path, device: str = "auto") -> Codec:
    """The encoder of a model folder, ready to use.

    Raises:
        ModelError: the folder does not hold an encoder, or a damaged one.
        InputError: the device does not exist.
    """
    config = load_config(folder)
    tensors = load_tensors(folder, config)
    try:
        net = build_net(config)
        net.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{folder}: weights and configuration do not fit ({reason})") from error
    return build_codec(config, net, select_device(device))
