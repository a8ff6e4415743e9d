"""Density <-> latent: two encoders behind one interface.

`periodic` (the default) resamples the density to about 7.3 points/A, divides it by its mean, takes
the signed square root and encodes it on the torus; `paper` follows arXiv 2605.07227: the density in
e/A^3 on VASP's grid in the corner of a 128^3 box of zeros. An axis that would exceed 128 points
gets 128, so that the cell is encoded coarser than others (`Codec.is_coarse`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chgdb.arrays import pack, unpack
from chgdb.density import ChargeDensity, Grid, Latent, Structure
from chgdb.errors import InputError, ModelError
from chgdb.files import reason
from chgdb.grid import crop, fourier_resample, spacing_grid, vasp_grid, zero_pad
from chgdb.nets import Autoencoder, PaperNet, PeriodicNet
from chgdb.schema import LATENT_BOX, LatentStorage
from chgdb.weights import EncoderConfig, check_encodes, load_config, load_tensors

__all__ = [
    "BOX",
    "Codec",
    "PaperCodec",
    "PeriodicCodec",
    "boxed_vasp_grid",
    "build_codec",
    "build_net",
    "load_codec",
    "select_device",
    "signed_sqrt",
    "signed_square",
]

BOX = LATENT_BOX
"""Grid points along an axis that the latent array can hold."""

_REFINE_RATE = 0.006
"""First step size of Adam on a latent, which lies in (-1, 1)."""

_POINTS_PER_PASS = BOX**3
"""Grid points in one forward pass, beyond which a batch is split; bounds the memory."""


class Codec(ABC):
    """One encoder with its weights.

    Batches hold any mix of cells; a batch gives what its members give one by one.

    Args:
        config: what the network is.
        net: the network; moved to `device` and set to evaluation.
        device: name of a torch device.
    """

    storage: ClassVar[tuple[str, float | None]]
    """Stored dtype of the latent and its CF scale_factor."""

    def __init__(self, config: EncoderConfig, net: Autoencoder, device: str = "cpu") -> None:
        self.config = config
        self.device = device
        self.net = net.to(device).eval()

    def refining(self, steps: int | None) -> Codec:
        """This codec with another number of steps in `refined`; None for that of the encoder."""
        if steps is None or steps == self.config.refine_steps:
            return self
        return type(self)(replace(self.config, refine_steps=steps), self.net, self.device)

    @property
    def latent_storage(self) -> LatentStorage:
        """How a store keeps latents of this encoder."""
        return LatentStorage(*self.storage, self.config.latent_shape)

    def stored(self, latent: Latent, storage: LatentStorage | None = None) -> Latent:
        """The latent as it comes back from a store, rounded.

        Args:
            latent: of this encoder.
            storage: of the store, where that is not the `latent_storage` of this encoder.

        Raises:
            ModelError: a value that the stored dtype cannot hold.
        """
        storage = storage or self.latent_storage
        packing = storage.dtype, storage.scale_factor
        return replace(latent, values=unpack(pack(latent.values, *packing), *packing))

    @abstractmethod
    def work_grid(self, lattice: NDArray[np.float64]) -> Grid:
        """The grid on which a cell with this lattice, shape (3, 3) in A, is encoded."""

    @abstractmethod
    def to_field(self, density: ChargeDensity) -> NDArray[np.float32]:
        """The network's input for a density, shape `work_grid`."""

    @abstractmethod
    def from_field(self, field: NDArray[np.float64]) -> NDArray[np.float64]:
        """The density, up to a factor, of the network's output on `work_grid`."""

    @abstractmethod
    def box(self, work_grid: Grid) -> Grid:
        """The shape of the network's input for a work grid."""

    def is_coarse(self, lattice: NDArray[np.float64]) -> bool:
        """Whether the cell is too long for the box, so that it is encoded coarser than others."""
        return self._full_grid(lattice) > BOX

    @abstractmethod
    def _full_grid(self, lattice: NDArray[np.float64]) -> int:
        """The longest axis of the work grid, were there no limit."""

    def encode(self, densities: Sequence[ChargeDensity]) -> list[Latent]:
        """Encode densities; cells of one grid share a forward pass.

        Returns:
            One latent per density, float32 of the configuration's `latent_shape`.

        Raises:
            InputError: a density does not hold a positive number of electrons, or float32 cannot
                hold what the network would see of it.
            ModelError: only the weights of the decoder are known.
        """
        check_encodes(self.config)
        for density in densities:
            if not density.n_electrons > 0:
                raise InputError(
                    f"{density.structure.formula}: the density holds {density.n_electrons:g} "
                    "electrons; an encoder needs a positive number"
                )
        with np.errstate(over="ignore"):  # told below
            fields = [self.to_field(density) for density in densities]
        for density, field in zip(densities, fields, strict=True):
            if not np.isfinite(field).all():
                raise InputError(
                    f"{density.structure.formula}: the density is too large beside its mean, or at "
                    "all, for the float32 of an encoder"
                )
        latents: list[Latent | None] = [None] * len(densities)
        for box, members in _passes([self.box(_shape(field)) for field in fields]):
            batch = np.stack([zero_pad(fields[i], box).astype(np.float32) for i in members])
            x = torch.from_numpy(batch[:, None]).to(self.device)
            with torch.no_grad():
                z = self.net.encode(x)
            for code, i in zip(self.refined(x, z).cpu().numpy(), members, strict=True):
                values = np.zeros(self.config.latent_shape, dtype=np.float32)
                values[tuple(slice(n) for n in code.shape)] = code
                latents[i] = Latent(values, _shape(fields[i]), densities[i].n_electrons)
        return [latent for latent in latents if latent is not None]

    def refined(self, x: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002
        """Latents of the inputs x that decode better than those of the network, z."""
        return z

    def decode(
        self,
        latents: Sequence[Latent],
        structures: Sequence[Structure],
        grids: Sequence[Grid | None] | None = None,
    ) -> list[ChargeDensity]:
        """Decode latents onto any grid of their cells; electrons are kept.

        Args:
            latents: what `encode` gave, or what a store holds of it.
            structures: the crystal of each latent.
            grids: the grid of each density; None, for one or all, is the work grid.

        Raises:
            InputError: a latent of another shape or on another work grid than this encoder makes,
                or as many latents as structures and grids there are not.
            ModelError: the network makes nothing of a latent.
        """
        grids = [None] * len(latents) if grids is None else grids
        if not len(latents) == len(structures) == len(grids):
            raise InputError(
                f"{len(latents)} latents, {len(structures)} structures and {len(grids)} grids: "
                "there must be as many of each"
            )
        decoded: list[ChargeDensity | None] = [None] * len(latents)
        for i, field in self._decoded_boxes(latents):
            decoded[i] = self.density_from_box(field, latents[i], structures[i], grids[i])
        return [density for density in decoded if density is not None]

    def decode_box(self, latents: Sequence[Latent]) -> list[NDArray[np.float32]]:
        """The network's raw outputs, each of the shape `box`: not cropped, scaled or resampled.

        Raises:
            InputError: a latent of another shape or on another work grid than this encoder makes.
        """
        return [
            field for _, field in sorted(self._decoded_boxes(latents), key=lambda pair: pair[0])
        ]

    def _decoded_boxes(
        self, latents: Sequence[Latent]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The index of each latent and the network's output for it, pass by pass."""
        for latent in latents:
            self._check(latent)
        for box, members in _passes([self.box(latent.work_grid) for latent in latents]):
            corner = tuple(slice(n) for n in self.latent_storage.extent(box))
            z = np.stack([latents[i].values[(slice(None), *corner)] for i in members])
            with torch.inference_mode():
                fields = self.net.decode(torch.from_numpy(z).to(self.device)).cpu().numpy()[:, 0]
            yield from zip(members, fields, strict=True)

    def _check(self, latent: Latent) -> None:
        """Whether a latent can be one of this encoder.

        Raises:
            InputError: it cannot.
        """
        if latent.values.shape != self.config.latent_shape:
            raise InputError(
                f"a latent of {self.config.id} has shape {self.config.latent_shape}, "
                f"not {latent.values.shape}"
            )
        box = self.box(latent.work_grid)
        if not all(0 < n <= BOX for n in latent.work_grid) or any(n % self.net.factor for n in box):
            raise InputError(f"{self.config.id} does not encode on a grid of {latent.work_grid}")

    def density_from_box(
        self,
        field: NDArray[np.float32],
        latent: Latent,
        structure: Structure,
        grid: Grid | None = None,
    ) -> ChargeDensity:
        """The density, with the electrons of its latent, of one of the outputs of `decode_box`.

        Raises:
            ModelError: the output is no density with electrons.
        """
        values = self.from_field(crop(field.astype(np.float64), latent.work_grid))
        values = fourier_resample(values, grid or latent.work_grid)
        total = float(values.mean()) * structure.volume
        if not total > 0:
            raise ModelError(f"{self.config.id} decodes {structure.formula} to no electrons")
        return ChargeDensity(values * (latent.n_electrons / total), structure)


class PeriodicCodec(Codec):
    """The default: periodic means periodic, in the cell's own coordinates."""

    POINTS_PER_ANGSTROM: ClassVar[float] = 7.3
    _step_size: ClassVar[float] = 1 / 127
    storage = ("int8", _step_size)

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

    def refined(self, x: Tensor, z: Tensor) -> Tensor:
        """Lower the NMAE of what z, rounded as it is stored, decodes to.

        The network is a first guess that `refine_steps` steps of Adam through the decoder improve.
        Each sample keeps the best latent it came by, so none gets worse; samples do not see each
        other, and a shift by whole latent points commutes with all of it.
        """
        steps = self.config.refine_steps
        fast = _has_bfloat16(x.device.type)
        target = x * x.abs()
        axes = (1, 2, 3, 4)
        norm = target.abs().sum(axes)
        best, lowest = z, torch.full_like(norm, math.inf)
        z = z.clone().requires_grad_()
        optimizer = torch.optim.Adam([z], betas=(0.7, 0.9))
        for step in range(steps + 1 if steps else 0):
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=fast):
                y = self.net.decode(_rounded(z, self._step_size)).float()
            errors = (y * y.abs() - target).abs().sum(axes) / norm
            better = errors.detach() < lowest
            lowest = torch.where(better, errors.detach(), lowest)
            best = torch.where(better[:, None, None, None, None], z.detach(), best)
            if step == steps:
                break
            (z.grad,) = torch.autograd.grad(errors.sum(), z)
            optimizer.param_groups[0]["lr"] = _REFINE_RATE * (1 - step / steps)
            optimizer.step()
            with torch.no_grad():
                z.clamp_(-1.0, 1.0)
        return best


class PaperCodec(Codec):
    """The published encoder: VASP's grid, e/A^3, zero-padded to 128^3."""

    storage = ("float16", None)

    def work_grid(self, lattice: NDArray[np.float64]) -> Grid:
        return boxed_vasp_grid(lattice)

    def _full_grid(self, lattice: NDArray[np.float64]) -> int:
        return max(vasp_grid(lattice))

    def box(self, work_grid: Grid) -> Grid:  # noqa: ARG002
        return (BOX, BOX, BOX)

    def to_field(self, density: ChargeDensity) -> NDArray[np.float32]:
        values = fourier_resample(density.values, self.work_grid(density.structure.lattice))
        return values.astype(np.float32)

    def from_field(self, field: NDArray[np.float64]) -> NDArray[np.float64]:
        return field


def boxed_vasp_grid(lattice: NDArray[np.float64]) -> Grid:
    """VASP's grid for a lattice, shape (3, 3) in A; an axis that would exceed the box gets 128."""
    n1, n2, n3 = (min(n, BOX) for n in vasp_grid(lattice))
    return n1, n2, n3


def signed_sqrt(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """sign(x) * sqrt(|x|): densities may be slightly negative."""
    return np.sign(values) * np.sqrt(np.abs(values))


def signed_square(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `signed_sqrt`: x * |x|."""
    return values * np.abs(values)


def _has_bfloat16(device: str) -> bool:
    """Whether convolutions in bfloat16, of which gradients need no more, are fast there."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device == "cpu" and supported is not None and bool(supported())


def _rounded(z: Tensor, step_size: float) -> Tensor:
    """Latents as they are stored; the gradient takes the rounding for the identity."""
    return z + (torch.round(z / step_size) * step_size - z).detach()


def _passes(boxes: Sequence[Grid]) -> Iterator[tuple[Grid, list[int]]]:
    """Indices of equal boxes in batches that the memory bears, and their box."""
    groups: dict[Grid, list[int]] = {}
    for i, box in enumerate(boxes):
        groups.setdefault(box, []).append(i)
    for box, members in groups.items():
        size = max(1, _POINTS_PER_PASS // math.prod(box))
        for start in range(0, len(members), size):
            yield box, members[start : start + size]


def _shape(field: NDArray[np.float32]) -> Grid:
    n1, n2, n3 = field.shape
    return n1, n2, n3


def select_device(name: str = "auto") -> str:
    """The device of a name: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".

    Raises:
        InputError: another name, or CUDA is asked for and not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()) or name.endswith(":"):
        raise InputError(f"--device {name}: use auto, cpu, cuda or cuda:N")
    if int(number or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has no such device; use --device cpu")
    return name


def build_net(config: EncoderConfig) -> Autoencoder:
    """The network of a configuration, with fresh weights on torch's default device."""
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
        FormatVersionError: a newer chgdb wrote it.
        InputError: the device does not exist.
    """
    config = load_config(folder)
    tensors = load_tensors(folder, config)
    # On "meta" nothing is allocated: a network is never larger than the weights that are there.
    with torch.device("meta"):
        net = build_net(config)
    try:
        net.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ModelError(
            f"{folder}: weights and configuration do not fit ({reason(error)[:200]})"
        ) from error
    return build_codec(config, net, select_device(device))
