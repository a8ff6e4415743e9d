"""How good predictions are: scores, how sure they are, which of two is better, fair divisions.

Rows without a reference value (nan) are left out everywhere; a prediction that is missing where
there is a reference is an error, because a model must not choose the rows it is judged on.

Intervals are percentiles over resamples of the rows with replacement (B. Efron, Ann. Statist. 7, 1
(1979)). They say how much another draw of the same kind of materials could change a score, not how
another training would.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chgdb.errors import InputError

__all__ = [
    "Difference",
    "Interval",
    "Paired",
    "Scores",
    "bootstrap",
    "coverage",
    "folds",
    "grouped_folds",
    "paired",
    "paired_row",
    "score",
    "score_row",
]

_Array = NDArray[np.float64]

_RESAMPLES = 2000
_LEVEL = 0.95
_AT_ONCE = 1 << 22
"""Resampled rows in memory at a time."""


@dataclass(frozen=True)
class Scores:
    """Predictions against reference values.

    Attributes:
        n: rows with a reference.
        r2: coefficient of determination; nan where the references are all one number.
        mae: mean absolute error, in the unit of the values.
        rmse: root of the mean squared error, in the unit of the values.
    """

    n: int
    r2: float
    mae: float
    rmse: float


class Interval(NamedTuple):
    """Where a number lies with the probability that was asked for."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A score of the second predictions minus that of the first.

    Attributes:
        value: over all rows.
        interval: over the resamples.
        better: fraction of the resamples in which the second is strictly better.
    """

    value: float
    interval: Interval
    better: float


@dataclass(frozen=True)
class Paired:
    """Two predictions of the same rows, compared on the same resamples.

    Attributes:
        n: rows with a reference.
        mae: difference of the mean absolute errors; negative where the second is better.
        r2: difference of the coefficients of determination; positive where the second is better.
    """

    n: int
    mae: Difference
    r2: Difference


def score(reference: ArrayLike, predicted: ArrayLike) -> Scores:
    """The scores of predictions, all nan where no row has a reference.

    Args:
        reference: shape (row,), nan where unknown.
        predicted: shape (row,).

    Raises:
        InputError: the shapes differ, or a prediction is missing or infinite.
    """
    truth, guess = _rows(reference, predicted)
    n = len(truth)
    metrics = _metrics(_sums(truth, guess).sum(axis=0)[None], n)
    return Scores(n, **{name: float(values[0]) for name, values in metrics.items()})


def bootstrap(
    reference: ArrayLike,
    predicted: ArrayLike,
    seed: int,
    resamples: int = _RESAMPLES,
    level: float = _LEVEL,
) -> dict[str, Interval]:
    """The interval of each score, "r2", "mae" and "rmse".

    Args:
        reference: shape (row,), nan where unknown.
        predicted: shape (row,).
        seed: of the resamples; with the same rows, the same intervals.
        resamples: how many.
        level: probability that the interval holds.

    Raises:
        InputError: the shapes differ, or a prediction is missing or infinite, or the level or the
            number of resamples is impossible.
    """
    truth, guess = _rows(reference, predicted)
    sums = _resampled(_sums(truth, guess), seed, resamples)
    return {name: _interval(values, level) for name, values in _metrics(sums, len(truth)).items()}


def paired(
    reference: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    seed: int,
    resamples: int = _RESAMPLES,
    level: float = _LEVEL,
) -> Paired:
    """Whether the second predictions are better than the first, rows resampled together.

    Args:
        reference: shape (row,), nan where unknown.
        first: shape (row,).
        second: shape (row,).
        seed: of the resamples.
        resamples: how many.
        level: probability that the intervals hold.

    Raises:
        InputError: as for `bootstrap`.
    """
    truth, one, two = _rows(reference, first, second)
    n = len(truth)
    sums = np.concatenate([_sums(truth, one), _sums(truth, two)], axis=1)
    half = sums.shape[1] // 2
    whole = sums.sum(axis=0)[None]
    drawn = _resampled(sums, seed, resamples)
    differences = {}
    for name, sign in (("mae", -1), ("r2", 1)):
        values = [
            _metrics(some[:, half:], n)[name] - _metrics(some[:, :half], n)[name]
            for some in (whole, drawn)
        ]
        known = values[1][np.isfinite(values[1])]
        differences[name] = Difference(
            value=float(values[0][0]),
            interval=_interval(values[1], level),
            better=float((sign * known > 0).mean()) if len(known) else math.nan,
        )
    return Paired(n, **differences)


def score_row(reference: ArrayLike, predicted: ArrayLike, seed: int) -> dict[str, float | int]:
    """A row of a table: `n`, and each score with `_low` and `_high` of `bootstrap`.

    Raises:
        InputError: as for `bootstrap`.
    """
    found = score(reference, predicted)
    row: dict[str, float | int] = {"n": found.n}
    for name, interval in bootstrap(reference, predicted, seed).items():
        row[name] = getattr(found, name)
        row[f"{name}_low"], row[f"{name}_high"] = interval
    return row


def paired_row(
    reference: ArrayLike, first: ArrayLike, second: ArrayLike, seed: int
) -> dict[str, float | int]:
    """A row of a table: `n`, `mae_change` and `r2_change`, with `_low`, `_high` and `_better`.

    Raises:
        InputError: as for `bootstrap`.
    """
    found = paired(reference, first, second, seed)
    row: dict[str, float | int] = {"n": found.n}
    for name, change in (("mae_change", found.mae), ("r2_change", found.r2)):
        row[name] = change.value
        row[f"{name}_low"], row[f"{name}_high"] = change.interval
        row[f"{name}_better"] = change.better
    return row


def coverage(reference: ArrayLike, low: ArrayLike, high: ArrayLike) -> float:
    """The fraction of the rows whose reference lies between the bounds, bounds included.

    Args:
        reference: shape (row,), nan where unknown; nan is returned where no row has one.
        low: shape (row,), may be -inf.
        high: shape (row,), may be inf.

    Raises:
        InputError: the shapes differ, or a bound is missing.
    """
    truth, lower, upper = _rows(reference, low, high, finite=False)
    return float(((lower <= truth) & (truth <= upper)).mean()) if len(truth) else math.nan


def folds(n_rows: int, n: int, seed: int) -> NDArray[np.int64]:
    """The fold, 0 ... n - 1, of each row, at random; the sizes differ by one at most.

    Raises:
        InputError: there are fewer rows than folds, or no folds.
    """
    _check_folds(n_rows, n, "rows")
    assigned = np.empty(n_rows, dtype=np.int64)
    assigned[np.random.default_rng(seed).permutation(n_rows)] = np.arange(n_rows) % n
    return assigned


def grouped_folds(groups: Sequence[Any] | NDArray[Any], n: int, seed: int) -> NDArray[np.int64]:
    """The fold, 0 ... n - 1, of each row, with all rows of a group in one fold.

    Group after group, from the largest to the smallest and at random among equals, goes to the
    fold that has the fewest rows; so two folds differ by at most the rows of the largest group.
    The order of the rows has no influence.

    Args:
        groups: shape (row,), for instance the formulas: numbers or texts.
        n: how many folds.
        seed: of the order among groups of one size.

    Raises:
        InputError: there are fewer groups than folds, or no folds.
    """
    labels, group_of_row, sizes = np.unique(
        np.asarray(groups), return_inverse=True, return_counts=True
    )
    _check_folds(len(labels), n, "groups")
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    fold_of_group = np.empty(len(labels), dtype=np.int64)
    filled = [(0, fold) for fold in range(n)]
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        rows, fold = filled[0]
        fold_of_group[group] = fold
        heapq.heapreplace(filled, (rows + int(sizes[group]), fold))
    return fold_of_group[group_of_row]


def _check_folds(there: int, n: int, what: str) -> None:
    if n < 1 or there < n:
        raise InputError(f"{there} {what} cannot be divided into {n} folds")


def _rows(reference: ArrayLike, *others: ArrayLike, finite: bool = True) -> list[_Array]:
    """The columns without the rows that lack a reference."""
    arrays = [np.asarray(values, dtype=np.float64) for values in (reference, *others)]
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        told = ", ".join("x".join(map(str, shape)) or "a number" for shape in shapes)
        raise InputError(f"columns of the same rows are needed, not {told}")
    arrays = [array[~np.isnan(arrays[0])] for array in arrays]
    bad = sum((~np.isfinite(a) if finite else np.isnan(a)).astype(int) for a in arrays)
    if count := int(np.count_nonzero(bad)):
        raise InputError(
            f"{count} of {len(arrays[0])} rows with a reference have a prediction or a value "
            "that is missing or infinite"
        )
    return arrays


def _sums(truth: _Array, guess: _Array) -> _Array:
    """Shape (row, 4): what the scores are sums of: |error|, error^2, y and y^2, y from its mean."""
    error = guess - truth
    centred = truth - (truth.mean() if len(truth) else 0.0)
    return np.stack([np.abs(error), error**2, centred, centred**2], axis=1)


def _metrics(sums: _Array, n: int) -> dict[str, _Array]:
    """The scores, each of shape (resample,), from sums of shape (resample, 4) over n rows."""
    absolute, squared, first, second = sums.T
    if not n:
        nothing = np.full(len(sums), np.nan)
        return {"r2": nothing, "mae": nothing, "rmse": nothing}
    spread = second - first**2 / n
    # what is left of the squares of one repeated number, or of one row, is rounding
    spread = np.where(spread > 1e-12 * second, spread, np.nan)
    return {"r2": 1 - squared / spread, "mae": absolute / n, "rmse": np.sqrt(squared / n)}


def _resampled(columns: _Array, seed: int, resamples: int) -> _Array:
    """Shape (resample, column): sums of the columns over rows drawn with replacement."""
    if resamples < 1:
        raise InputError(f"{resamples} resamples: at least one is needed")
    if not len(columns):
        return np.zeros((resamples, columns.shape[1]))
    return np.concatenate([times @ columns for times in _draws(len(columns), seed, resamples)])


def _draws(n: int, seed: int, resamples: int) -> Iterator[_Array]:
    """How often each resample draws each row, shape (some resamples, n), till all are drawn."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // n)
    for first in range(0, resamples, at_once):
        m = min(at_once, resamples - first)
        drawn = generator.integers(0, n, size=(m, n)) + np.arange(m)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=m * n).reshape(m, n).astype(np.float64)


def _interval(values: _Array, level: float) -> Interval:
    """The central part of the values that are known; nan where none is."""
    if not 0 < level < 1:
        raise InputError(f"a level of {level}: between 0 and 1 is needed")
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(math.nan, math.nan)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
