"""The two autoencoder networks, on tensors only.

Both map a scaled density (batch, 1, n1, n2, n3) to a latent (batch, channel, n1/f, n2/f, n3/f) and
back, with f = 2**stages. `chgdb.codec` knows what the tensors mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Autoencoder", "PaperNet", "PeriodicNet", "TabularNet"]


class Autoencoder(nn.Module):
    """What every network offers: `encode`, `decode` and the edge factor between them."""

    factor: int
    """Grid points per latent point along one axis."""

    def encode(self, x: Tensor) -> Tensor:
        """(batch, 1, n1, n2, n3) -> (batch, channel, n1/f, n2/f, n3/f), f = `factor`.

        Every n is a multiple of f; the tensors are float32.
        """
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """(batch, channel, m1, m2, m3) -> (batch, 1, m1 f, m2 f, m3 f): back from `encode`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class PaperNet(Autoencoder):
    """The network of arXiv 2605.07227: zero-padded 3x3x3 convolutions, ReLU, max-pool, nearest up.

    Args:
        latent_channels: channels of the latent.
        widths: output channels of each convolution that a pooling follows; one per halving.
        decoder_only: whether there is no encoder, as where only the decoder's weights are known.
    """

    def __init__(
        self,
        latent_channels: int = 16,
        widths: Sequence[int] = (16, 32, 32),
        *,
        decoder_only: bool = False,
    ) -> None:
        super().__init__()
        self.factor = 2 ** len(widths)
        channels = [1, *widths]
        if not decoder_only:
            self.down = nn.ModuleList(
                nn.Conv3d(c_in, c_out, 3, padding=1) for c_in, c_out in pairwise(channels)
            )
            self.to_latent = nn.Conv3d(channels[-1], latent_channels, 3, padding=1)
        # 16 -> 32, 32 -> 32, 32 -> 16 for the published widths
        channels = [latent_channels, *reversed(widths)]
        self.up = nn.ModuleList(
            nn.Conv3d(c_in, c_out, 3, padding=1) for c_in, c_out in pairwise(channels)
        )
        self.to_density = nn.Conv3d(channels[-1], 1, 3, padding=1)

    def encode(self, x: Tensor) -> Tensor:
        for conv in self.down:
            x = F.max_pool3d(F.relu(conv(x)), 2)
        return F.relu(self.to_latent(x))

    def decode(self, z: Tensor) -> Tensor:
        for conv in self.up:
            z = F.interpolate(F.relu(conv(z)), scale_factor=2.0, mode="nearest")
        density: Tensor = self.to_density(z)
        return density


class _PeriodicConv(nn.Module):
    """3x3x3 convolution on a torus."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(c_in, c_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (1,) * 6, mode="circular"))
        return out


class _ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))); the second convolution starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _PeriodicConv(channels, channels)
        self.second = _PeriodicConv(channels, channels)
        nn.init.zeros_(self.second.conv.weight)
        nn.init.zeros_(_bias(self.second.conv))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.silu(self.first(F.silu(x))))
        return out


def _bias(conv: nn.Conv3d | nn.ConvTranspose3d) -> Tensor:
    return cast(Tensor, conv.bias)


class PeriodicNet(Autoencoder):
    """Residual autoencoder on a torus; its latent lies in (-1, 1).

    Every stage halves the edges by a 2x2x2 convolution of stride 2 (its mirror in the decoder is a
    transposed one) and refines with periodic residual blocks, so moving the density by `factor`
    grid points moves the latent by one.

    Args:
        latent_channels: channels of the latent.
        widths: channels of each stage, finest first; one per halving.
        encoder_blocks: residual blocks of each stage on the way down, finest first.
        decoder_blocks: residual blocks of each stage on the way up, finest first.

    Raises:
        ValueError: there are not as many numbers of blocks as widths.
    """

    def __init__(
        self,
        latent_channels: int = 16,
        widths: Sequence[int] = (32, 96, 192),
        encoder_blocks: Sequence[int] = (1, 1, 2),
        decoder_blocks: Sequence[int] = (2, 2, 3),
    ) -> None:
        super().__init__()
        self.factor = 2 ** len(widths)
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        stages = zip(pairwise([1, *widths]), encoder_blocks, decoder_blocks, strict=True)
        for (c_in, c_out), n_down, n_up in stages:
            down += [nn.Conv3d(c_in, c_out, 2, stride=2)]
            down += [_ResidualBlock(c_out) for _ in range(n_down)]
            up = [
                *[_ResidualBlock(c_out) for _ in range(n_up)],
                nn.ConvTranspose3d(c_out, c_in, 2, stride=2),
                *up,
            ]
        self.encoder = nn.Sequential(*down, nn.Conv3d(widths[-1], latent_channels, 1))
        self.decoder = nn.Sequential(nn.ConvTranspose3d(latent_channels, widths[-1], 1), *up)
        self._start_as_block_transform()

    def _start_as_block_transform(self) -> None:
        """Start from a linear transform of blocks of factor^3 points and its transpose.

        The residual blocks start at zero, so with orthogonal weights, scaled to keep a constant
        field as large as it was, the untrained network projects each block on `latent_channels`
        components instead of losing the signal.
        """
        encoder = [m for m in self.encoder if isinstance(m, nn.Conv3d)]
        decoder = [m for m in self.decoder if isinstance(m, nn.ConvTranspose3d)]
        for down, up in zip(encoder, reversed(decoder), strict=True):
            scale = math.sqrt(math.prod(down.kernel_size))
            nn.init.orthogonal_(down.weight, gain=1 / scale)
            with torch.no_grad():
                up.weight.copy_(down.weight * scale**2)
            nn.init.zeros_(_bias(down))
            nn.init.zeros_(_bias(up))

    def encode(self, x: Tensor) -> Tensor:
        return F.softsign(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        out: Tensor = self.decoder(z)
        return out


class _DenseBlock(nn.Module):
    """Two dense layers and a way around them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.rise = nn.Linear(width, 2 * width)
        self.fall = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.fall(self.dropout(F.silu(self.rise(self.norm(x)))))
        return result


class TabularNet(nn.Module):
    """Properties from numbers and a composition, whose elements are embedded.

    Args:
        inputs: numbers per material.
        elements: length of a composition.
        outputs: properties.
        width: of the hidden layers.
        embedding: numbers per element; one embedding of the shares and one of their roots.
        blocks: of two dense layers.
        dropout: share of the inputs and hidden numbers left out in training.
    """

    def __init__(
        self,
        inputs: int,
        elements: int,
        outputs: int,
        *,
        width: int = 256,
        embedding: int = 48,
        blocks: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.shares = nn.Linear(elements, embedding, bias=False)
        self.roots = nn.Linear(elements, embedding, bias=False)
        self.entry = nn.Linear(inputs + 2 * embedding, width)
        self.blocks = nn.ModuleList(_DenseBlock(width, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.exit = nn.Linear(width, outputs)
        self.direct = nn.Linear(elements, outputs, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, fractions: Tensor) -> Tensor:
        """Shapes (material, input) and (material, element) to (material, output)."""
        parts = [x, self.shares(fractions), self.roots(fractions.sqrt())]
        hidden = self.entry(self.dropout(torch.cat(parts, dim=1)))
        for block in self.blocks:
            hidden = block(hidden)
        result: Tensor = self.exit(self.norm(hidden)) + self.direct(fractions)
        return result
