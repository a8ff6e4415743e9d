"""Pictures of predictions: against the reference, their distribution, what they rest on.

Colours are those of M. Okabe and K. Ito, which colour-blind people can tell apart; what a colour
says, a line style, a hatch or a label says too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chgdb.errors import InputError, MissingExtraError
from chgdb.files import replacing, shown
from chgdb.scores import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["distribution_plot", "new_figure", "parity_plot", "save_figure", "shares_plot"]

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_BLACK = "#000000"
_GREY = "#999999"
_STYLES = ("-", "--", "-.", ":")
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
_BINS = 50
_TAIL = 0.5
"""Percent of all values that may lie outside the range of a histogram, on either side."""
_SHORTEST_LABEL = 0.06
"""Share of a bar that has room for its number."""


def new_figure(width: float, height: float, dpi: int = 150) -> Figure:
    """An empty figure of this size in inches, whose parts keep clear of each other.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing", "plot") from error
    return Figure(figsize=(width, height), layout="constrained", dpi=dpi)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format that the suffix names, all of it or nothing.

    Raises:
        InputError: the file cannot be written or has another suffix.
    """
    kind = Path(path).suffix[1:].lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{shown(path)}: no picture has this suffix; use .png, .svg or .pdf")
    with replacing(path) as partial:
        figure.savefig(partial, format=kind)


def parity_plot(
    path: str | Path,
    reference: ArrayLike,
    predicted: ArrayLike,
    *,
    title: str,
    unit: str,
    scores: Scores,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
) -> None:
    """Predicted against reference values, with the diagonal where they agree, on equal axes.

    Args:
        path: PNG, SVG or PDF to write.
        reference: shape (row,); rows where it is nan are left out.
        predicted: shape (row,).
        title: what is predicted, by what.
        unit: of the values, "" for none.
        scores: to be written into the picture.
        low: shape (row,), the lower ends of the intervals; drawn if `high` is given too.
        high: shape (row,), the upper ends.

    Raises:
        InputError: the columns do not fit, or there is nothing to draw, or the file cannot be
            written or has another suffix.
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(4.6, 4.8)
    axes = figure.add_subplot()
    if low is None or high is None:
        x, y = _columns(reference, predicted)
    else:
        x, y, bottom, top = _columns(reference, predicted, low, high)
        axes.vlines(x, bottom, top, colors=_GREY, alpha=0.35, linewidth=0.7, zorder=1)
    alpha = float(np.clip(30 / np.sqrt(len(x)), 0.15, 0.8))
    axes.scatter(x, y, s=11, color=_COLOURS[0], alpha=alpha, linewidths=0, zorder=2)
    ends_of_axes = _padded(float(min(x.min(), y.min())), float(max(x.max(), y.max())))
    axes.plot(ends_of_axes, ends_of_axes, color=_BLACK, linewidth=1.0, linestyle="--", zorder=3)
    axes.set_xlim(ends_of_axes)
    axes.set_ylim(ends_of_axes)
    axes.set_aspect("equal")
    axes.set_xlabel(_with_unit("reference", unit))
    axes.set_ylabel(_with_unit("predicted", unit))
    axes.set_title(_plain(title), fontsize=11)
    spaced = f" {unit}" if unit else ""
    axes.annotate(
        _plain(
            f"R² = {scores.r2:.3f}\nMAE = {scores.mae:.3g}{spaced}\n"
            f"RMSE = {scores.rmse:.3g}{spaced}\nn = {scores.n}"
        ),
        xy=(0.04, 0.96),
        xycoords="axes fraction",
        verticalalignment="top",
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": _GREY, "alpha": 0.85, "boxstyle": "round"},
        zorder=4,
    )
    _finish(axes)
    save_figure(figure, path)


def distribution_plot(path: str | Path, values: Mapping[str, ArrayLike], xlabel: str) -> None:
    """How several columns are distributed: histograms over the same bins, as shares of each column.

    The first is filled, the others are lines. The bins leave out a far tail, so that one outlier
    does not hide the rest; the legend says how many values are not shown.

    Args:
        path: PNG, SVG or PDF to write.
        values: label to a column, of any length; nan is left out.
        xlabel: what the values are, with their unit.

    Raises:
        InputError: there is nothing to draw, or more than can be told apart, or the file cannot be
            written or has another suffix.
        MissingExtraError: matplotlib is not installed.
    """
    columns = {label: _known(column) for label, column in values.items()}
    if not columns or not all(len(column) for column in columns.values()):
        raise InputError(f"{shown(path)}: nothing to draw")
    if len(columns) > len(_COLOURS):
        raise InputError(f"{shown(path)}: at most {len(_COLOURS)} distributions in one picture")
    edges = _edges(np.concatenate(list(columns.values())))
    figure = new_figure(5.6, 3.8)
    axes = figure.add_subplot()
    for number, (label, column) in enumerate(columns.items()):
        share = 100 * np.histogram(column, edges)[0] / len(column)
        outside = int(((column < edges[0]) | (column > edges[-1])).sum())
        told = f"{label} (n = {len(column)}" + (f", {outside} outside)" if outside else ")")
        colour = _COLOURS[number]
        if number == 0:
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.2)
        style = _STYLES[number % len(_STYLES)]
        axes.stairs(share, edges, color=colour, linestyle=style, linewidth=1.6, label=_plain(told))
    axes.set_xlim(float(edges[0]), float(edges[-1]))
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel(_plain(xlabel))
    axes.set_ylabel("share of the materials (%)")
    axes.legend(fontsize=9, framealpha=0.85)
    _finish(axes)
    save_figure(figure, path)


def shares_plot(path: str | Path, shares: Mapping[str, Mapping[str, float]]) -> None:
    """What each system's predictions rest on: one horizontal bar each, divided into the shares.

    Args:
        path: PNG, SVG or PDF to write.
        shares: system to kind of feature to its share, such as {"latent": 0.3, "composition": 0.7};
            they sum to 1. Bars are drawn from the top in this order.

    Raises:
        InputError: there is nothing to draw, or shares are negative or do not sum to 1, or there
            are more kinds than can be told apart, or the file cannot be written or has another
            suffix.
        MissingExtraError: matplotlib is not installed.
    """
    kinds = list(dict.fromkeys(kind for parts in shares.values() for kind in parts))
    if not kinds:
        raise InputError(f"{shown(path)}: nothing to draw")
    if len(kinds) > len(_COLOURS):
        raise InputError(f"{shown(path)}: at most {len(_COLOURS)} kinds of features in one picture")
    table = np.array([[parts.get(kind, 0.0) for kind in kinds] for parts in shares.values()])
    for system, row in zip(shares, table, strict=True):
        if not (row >= 0).all() or abs(row.sum() - 1) > 1e-6:
            raise InputError(f"the shares of {system} are not positive numbers that sum to 1")
    figure = new_figure(6.4, 1.3 + 0.45 * len(table))
    axes = figure.add_subplot()
    places = np.arange(len(table))
    begins = np.zeros(len(table))
    for number, kind in enumerate(kinds):
        axes.barh(
            places,
            100 * table[:, number],
            left=100 * begins,
            height=0.68,
            color=_COLOURS[number],
            edgecolor="white",
            hatch=_HATCHES[number],
            linewidth=0.8,
            label=_plain(kind),
        )
        for place, begin, share in zip(places, begins, table[:, number], strict=True):
            if share >= _SHORTEST_LABEL:
                axes.annotate(
                    f"{100 * share:.0f} %",
                    (100 * (begin + share / 2), float(place)),
                    horizontalalignment="center",
                    verticalalignment="center",
                    fontsize=9,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
                )
        begins = begins + table[:, number]
    axes.set_yticks(places, [_plain(system) for system in shares])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the mean absolute SHAP value (%)")
    columns = len(kinds) if len(kinds) <= 5 else 4
    figure.legend(loc="outside upper center", ncols=columns, fontsize=9, frameon=False)
    _finish(axes)
    axes.tick_params(axis="y", length=0)
    save_figure(figure, path)


def _columns(reference: ArrayLike, *others: ArrayLike) -> list[NDArray[np.float64]]:
    """The columns without the rows that lack a reference."""
    arrays = [np.asarray(values, dtype=np.float64) for values in (reference, *others)]
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1:
        raise InputError("columns of the same rows are needed to draw them against each other")
    kept = ~np.isnan(arrays[0])
    arrays = [array[kept] for array in arrays]
    if not kept.any() or not np.isfinite(arrays[:2]).all():
        raise InputError("to draw predictions, some rows with a reference and finite values")
    return arrays


def _known(column: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(column, dtype=np.float64).ravel()
    return values[np.isfinite(values)]


def _edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the bins: all values if they lie close, otherwise without the far tails."""
    least, first, last, greatest = np.percentile(values, [0, _TAIL, 100 - _TAIL, 100])
    room = 0.25 * (last - first)
    low, high = max(least, first - room), min(greatest, last + room)
    if high <= low:
        low, high = _padded(float(low), float(high))
    return np.linspace(low, high, _BINS + 1)


def _padded(low: float, high: float) -> tuple[float, float]:
    """A range with some room at both ends, also where the ends are one number."""
    room = 0.04 * (high - low) or 0.5 * max(abs(low), 1.0)
    return low - room, high + room


def _with_unit(name: str, unit: str) -> str:
    return _plain(f"{name} ({unit})" if unit else name)


def _plain(text: str) -> str:
    """Text that matplotlib takes as it is, not for a formula."""
    return text.replace("$", r"\$")


def _finish(axes: Axes) -> None:
    """What all three have in common."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
