"""The networks of the property models at work: NumPy alone, so that predicting needs no torch.

`chgdb.nets.TabularNet` is the same network for training; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri

__all__ = ["KNOTS", "Scaler", "forward"]

KNOTS = 257
"""Quantiles of an input that a scaler keeps."""

_GRAIN = 1e-3
"""Step to which inputs are rounded, over the range that 98 % of the training rows lie in."""

_TAIL = 1e-3
_CLIP = 5.0
_EPSILON = 1e-5


@dataclass(frozen=True, eq=False)
class Scaler:
    """Inputs of any distribution to numbers of order one, fitted on training rows alone.

    The mean of the standardised value, cut at 5 deviations, and of the normal quantile of its rank:
    the first keeps distances, the second tames tails. A missing input becomes its median. Values
    are rounded first: many inputs are zero by symmetry, and there the rank of a rounding error
    would make much of it.

    Attributes:
        grain: shape (input,), the steps of the rounding; 0 for none.
        knots: shape (KNOTS, input), quantiles from the least to the greatest value.
        mean: shape (input,).
        deviation: shape (input,), 0 where an input does not vary: it is scaled to 0.
    """

    grain: NDArray[np.float64]
    knots: NDArray[np.float64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def fit(cls, values: NDArray[np.float64]) -> Scaler:
        """The scaler of the rows of values, shape (row, input); nan is missing.

        An input that is missing everywhere is scaled to 0.
        """
        empty = ~np.isfinite(values).any(axis=0)
        there = np.where(np.isfinite(values) & ~empty, values, np.nan)
        there[:, empty] = 0.0
        low, high = np.nanquantile(there, [0.01, 0.99], axis=0)
        grain = _GRAIN * (high - low)
        there = _rounded(there, grain)
        return cls(
            grain,
            np.nanquantile(there, np.linspace(0, 1, KNOTS), axis=0, method="nearest"),
            np.nanmean(there, axis=0),
            np.nanstd(there, axis=0),
        )

    def rounded(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values in steps of the grain, shape (row, input); nan stays."""
        return _rounded(values, self.grain)

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scaled values, shape (row, input)."""
        rounded = self.rounded(values)
        filled = np.where(np.isfinite(rounded), rounded, self.knots[KNOTS // 2])
        result = np.zeros(filled.shape)
        ranks = np.linspace(0, 1, KNOTS)
        for column in np.flatnonzero(self.deviation > 1e-12 * (1e-300 + np.abs(self.mean))):
            x, knots = filled[:, column], self.knots[:, column]
            standard = (x - self.mean[column]) / self.deviation[column]
            # a value that many rows share has many ranks: the middle one
            rank = (np.interp(x, knots, ranks) - np.interp(-x, -knots[::-1], ranks) + 1) / 2
            normal = ndtri(np.clip(rank, _TAIL, 1 - _TAIL))
            result[:, column] = (np.clip(standard, -_CLIP, _CLIP) + normal) / 2
        return result


def _rounded(values: NDArray[np.float64], grain: NDArray[np.float64]) -> NDArray[np.float64]:
    step = np.where(grain > 0, grain, 1.0)
    return np.where(grain > 0, np.round(values / step) * step, values)


def forward(
    weights: Mapping[str, NDArray[np.float32]],
    inputs: NDArray[np.float32],
    fractions: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The outputs of a network.

    Args:
        weights: the state of a `chgdb.nets.TabularNet`, by the names that torch gives them.
        inputs: shape (row, input), scaled.
        fractions: shape (row, element), the composition.

    Returns:
        Shape (row, output), standardised as the training targets were.
    """
    parts = [
        inputs,
        _linear(weights, "shares", fractions),
        _linear(weights, "roots", np.sqrt(fractions)),
    ]
    hidden = _linear(weights, "entry", np.concatenate(parts, axis=1))
    block = 0
    while f"blocks.{block}.norm.weight" in weights:
        name = f"blocks.{block}"
        inner = _linear(weights, f"{name}.rise", _normalised(weights, f"{name}.norm", hidden))
        hidden = hidden + _linear(weights, f"{name}.fall", inner * expit(inner))
        block += 1
    return _linear(weights, "exit", _normalised(weights, "norm", hidden)) + _linear(
        weights, "direct", fractions
    )


def _linear(
    weights: Mapping[str, NDArray[np.float32]], name: str, x: NDArray[np.float32]
) -> NDArray[np.float32]:
    result = x @ weights[f"{name}.weight"].T
    bias = weights.get(f"{name}.bias")
    return result if bias is None else result + bias


def _normalised(
    weights: Mapping[str, NDArray[np.float32]], name: str, x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Layer normalisation over the last axis."""
    centred = x - x.mean(axis=1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=1, keepdims=True) + np.float32(_EPSILON))
    result: NDArray[np.float32] = (
        centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    )
    return result
