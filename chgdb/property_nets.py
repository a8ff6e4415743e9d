"""The convolutional networks that predict properties from latents, on tensors only.

After arXiv 2605.07227: a tower of residual convolutions with channel and spatial attention over the
latent, a dense branch over the composition, and a head over both. `chgdb.systems` knows what the
tensors mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PAPER_WIDTHS", "ChannelAttention", "PropertyNet", "SpatialAttention"]

PAPER_WIDTHS = (64, 128, 256)
"""Channels of the three stages in the paper."""


class ChannelAttention(nn.Module):
    """One weight in (0, 1) per channel, from the average and the maximum over space.

    Both go through the same two dense layers and are added before the sigmoid (S. Woo et al.,
    "CBAM", 2018).

    Args:
        channels: of the tensor.
        ratio: how many times narrower the layer between is; it keeps at least one channel.
    """

    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // ratio)
        self.first = nn.Linear(channels, hidden)
        self.second = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, a, b, c) -> weights (batch, channel, 1, 1, 1)."""
        pooled = torch.stack([x.mean((2, 3, 4)), x.amax((2, 3, 4))])
        weights = self.second(F.relu(self.first(pooled))).sum(0)
        return torch.sigmoid(weights)[:, :, None, None, None]


class SpatialAttention(nn.Module):
    """One weight in (0, 1) per point, from the average and the maximum over channels.

    Args:
        kernel: edge of both convolutions, 2 -> 2 -> 1 channels.
    """

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv3d(2, 2, kernel, padding=kernel // 2)
        self.second = nn.Conv3d(2, 1, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channel, a, b, c) -> weights (batch, 1, a, b, c)."""
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return torch.sigmoid(self.second(F.relu(self.first(pooled))))


class _DoubleConv(nn.Module):
    """swish(shortcut(x) + attention(BN(conv(swish(BN(conv(x)))))))."""

    def __init__(self, c_in: int, c_out: int, *, attention: bool) -> None:
        super().__init__()
        self.first = nn.Conv3d(c_in, c_out, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm3d(c_out)
        self.second = nn.Conv3d(c_out, c_out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm3d(c_out)
        self.channel = ChannelAttention(c_out) if attention else None
        self.spatial = SpatialAttention() if attention else None
        self.shortcut = nn.Conv3d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        if self.channel is not None and self.spatial is not None:
            y = y * self.channel(y)
            y = y * self.spatial(y)
        return F.silu(self.shortcut(x) + y)


def _branch(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Dense layers, each with batch normalisation, swish and dropout."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.SiLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def _head(widths: Sequence[int]) -> nn.Sequential:
    """Dense layers with swish between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class PropertyNet(nn.Module):
    """Properties from a latent and, where there is such a branch, the composition.

    A convolution and a pooling, then one stage per width: two double convolutions, each added to
    what came in, and a pooling between the stages; the average over what is left of space goes to
    the head.

    Args:
        channels: of the latent.
        widths: channels of each stage; `PAPER_WIDTHS` in the paper.
        attention: whether every double convolution weighs its channels and its points.
        composition: features of the composition; 0 for no such branch.
        dense: widths of the branch of the composition.
        head: widths of the dense layers before the output.
        targets: numbers that are predicted.
        dropout: share of the values that the branch of the composition drops in training.

    Raises:
        ValueError: a width is missing or not positive.
    """

    def __init__(
        self,
        *,
        channels: int = 16,
        widths: Sequence[int] = PAPER_WIDTHS,
        attention: bool = True,
        composition: int = 0,
        dense: Sequence[int] = (256, 128),
        head: Sequence[int] = (128,),
        targets: int = 6,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if not widths or min(channels, targets, *widths, *dense, *head) < 1 or composition < 0:
            raise ValueError("channels, widths and targets must be positive")
        self.stem = nn.Sequential(
            nn.Conv3d(channels, widths[0], 3, padding=1, bias=False),
            nn.BatchNorm3d(widths[0]),
            nn.SiLU(),
            nn.MaxPool3d(2),
        )
        stages: list[nn.Module] = []
        for c_in, c_out in pairwise([widths[0], *widths]):
            stages += [nn.MaxPool3d(2)] if stages else []
            stages += [
                _DoubleConv(c_in, c_out, attention=attention),
                _DoubleConv(c_out, c_out, attention=attention),
            ]
        self.stages = nn.Sequential(*stages)
        self.branch = _branch([composition, *dense], dropout) if composition else None
        width = widths[-1] + (dense[-1] if composition else 0)
        self.head = _head([width, *head, targets])

    def forward(self, latent: Tensor, composition: Tensor | None = None) -> Tensor:
        """Predict.

        Args:
            latent: (batch, channel, a, b, c); every edge at least 2**number of stages.
            composition: (batch, features); only where there is such a branch.

        Returns:
            (batch, targets).

        Raises:
            ValueError: the branch has no input, or there is an input and no branch.
        """
        if (composition is None) != (self.branch is None):
            raise ValueError("the composition goes with its branch")
        features = self.stages(self.stem(latent)).mean((2, 3, 4))
        if self.branch is not None:
            features = torch.cat([features, self.branch(composition)], 1)
        out: Tensor = self.head(features)
        return out
