"""Pictures of predictions: what they show, and that nothing is left when drawing fails."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch

from chgdb.errors import InputError, MissingExtraError
from chgdb.figures import distribution_plot, parity_plot, shares_plot
from chgdb.scores import score

TRUTH = np.array([10.0, 20.0, 35.0, np.nan, 60.0])
GUESS = np.array([12.0, 18.0, 35.0, np.nan, 90.0])
SHARES = {
    "LightGBM": {"latent": 0.3, "composition": 0.7},
    "default": {"composition": 0.45, "geometry": 0.5, "symmetry": 0.05},
}


def parity(path: Path, **options: Any) -> None:
    given = {"title": "bulk modulus", "unit": "GPa", "scores": score(TRUTH, GUESS), **options}
    parity_plot(path, TRUTH, GUESS, **given)


DRAWINGS: dict[str, Callable[[Path], None]] = {
    "parity": parity,
    "distribution": lambda path: distribution_plot(path, {"reference": TRUTH}, "K (GPa)"),
    "shares": lambda path: shares_plot(path, SHARES),
}


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_the_suffix_decides_the_format(
    tmp_path: Path, name: str, suffix: str, magic: bytes
) -> None:
    path = tmp_path / f"figure.{suffix}"
    DRAWINGS[name](path)
    assert path.read_bytes().startswith(magic)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", DRAWINGS)
def test_what_cannot_be_written(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="suffix"):
        DRAWINGS[name](tmp_path / "a.xyz")
    with pytest.raises(InputError, match="cannot be written"):
        DRAWINGS[name](tmp_path / "no" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"chgdb\[plot\]"):
        DRAWINGS[name](tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


# --- parity ---------------------------------------------------------------------------------


def test_parity_shows_the_rows_with_a_reference(tmp_path: Path, figures: list[Figure]) -> None:
    parity(tmp_path / "a.png", title="$K$ of mp_1")
    (axes,) = figures[0].axes
    (points,) = axes.collections
    np.testing.assert_array_equal(
        np.asarray(points.get_offsets()), [[10, 12], [20, 18], [35, 35], [60, 90]]
    )
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[0] < 10
    assert axes.get_xlim()[1] > 90
    (diagonal,) = axes.lines
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert axes.get_xlabel() == "reference (GPa)"
    assert axes.get_ylabel() == "predicted (GPa)"
    assert axes.get_title() == r"\$K\$ of mp_1"
    (box,) = axes.texts
    assert box.get_text().splitlines() == [
        *("R² = 0.360", "MAE = 8.5 GPa", "RMSE = 15.1 GPa", "n = 4"),
    ]


def test_intervals_are_drawn_where_both_ends_are_given(
    tmp_path: Path, figures: list[Figure]
) -> None:
    parity(tmp_path / "a.png", low=GUESS - 3, high=GUESS + 5)
    parity(tmp_path / "b.png", low=GUESS - 3)
    lines, points = figures[0].axes[0].collections
    segments = np.array(lines.get_segments())  # type: ignore[attr-defined]
    np.testing.assert_array_equal(segments[:, 0], [[10, 9], [20, 15], [35, 32], [60, 87]])
    np.testing.assert_array_equal(segments[:, 1], [[10, 17], [20, 23], [35, 40], [60, 95]])
    assert lines.get_zorder() < points.get_zorder()
    assert len(figures[1].axes[0].collections) == 1


def test_parity_without_a_unit_and_of_one_row(tmp_path: Path, figures: list[Figure]) -> None:
    parity_plot(tmp_path / "a.png", [0.0], [0.0], title="", unit="", scores=score([0.0], [0.0]))
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "reference"
    assert axes.get_xlim()[0] < 0 < axes.get_xlim()[1]


@pytest.mark.parametrize(
    ("truth", "guess"),
    [
        *(([], []), ([math.nan], [1.0]), ([1.0], [math.nan]), ([1.0, 2.0], [1.0])),
        *(([math.inf], [1.0]), ([[1.0]], [[1.0]])),
    ],
)
def test_parity_of_nothing(tmp_path: Path, truth: Any, guess: Any) -> None:
    with pytest.raises(InputError, match="draw"):
        parity_plot(tmp_path / "a.png", truth, guess, title="", unit="", scores=score([1.0], [1.0]))
    assert list(tmp_path.iterdir()) == []


# --- distributions --------------------------------------------------------------------------


def test_distributions_are_shares_over_the_same_bins(tmp_path: Path, figures: list[Figure]) -> None:
    generator = np.random.default_rng(0)
    columns = {
        "reference": generator.normal(100, 20, 400),
        "predicted": generator.normal(90, 9, 99),
    }
    columns["reference"][:3] = np.nan
    distribution_plot(tmp_path / "a.png", columns, "K (GPa)")
    (axes,) = figures[0].axes
    filled, first, second = (p for p in axes.patches if isinstance(p, StepPatch))
    for patch in (filled, first, second):
        assert np.sum(patch.get_data()[0]) == pytest.approx(100)
    np.testing.assert_array_equal(first.get_data()[1], second.get_data()[1])
    assert first.get_linestyle() != second.get_linestyle()
    assert to_hex(first.get_edgecolor()) != to_hex(second.get_edgecolor())
    legend = axes.get_legend()
    assert legend is not None
    told = [text.get_text() for text in legend.get_texts()]
    assert told == ["reference (n = 397)", "predicted (n = 99)"]
    assert axes.get_xlabel() == "K (GPa)"


def test_an_outlier_is_told_and_does_not_hide_the_rest(
    tmp_path: Path, figures: list[Figure]
) -> None:
    values = np.append(np.random.default_rng(0).normal(-1.0, 1.0, 999), -8.9e6)
    distribution_plot(tmp_path / "a.png", {"reference": values}, "E (eV/atom)")
    (axes,) = figures[0].axes
    assert axes.get_xlim()[0] > -10
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_texts()[0].get_text() == "reference (n = 1000, 1 outside)"


def test_one_value_is_a_distribution(tmp_path: Path, figures: list[Figure]) -> None:
    distribution_plot(tmp_path / "a.png", {"a": [7.0], "b": [7.0, 7.0]}, "x")
    for patch in figures[0].axes[0].patches:
        assert isinstance(patch, StepPatch)
        assert np.sum(patch.get_data()[0]) == pytest.approx(100)


@pytest.mark.parametrize(
    "values",
    [{}, {"a": []}, {"a": [1.0], "b": [math.nan]}, {str(i): [1.0] for i in range(8)}],
    ids=["none", "empty", "nan", "many"],
)
def test_no_distribution(tmp_path: Path, values: dict[str, list[float]]) -> None:
    with pytest.raises(InputError, match=r"nothing to draw|at most 7"):
        distribution_plot(tmp_path / "a.png", values, "x")
    assert list(tmp_path.iterdir()) == []


# --- shares ---------------------------------------------------------------------------------


def test_bars_are_stacked_from_the_top(tmp_path: Path, figures: list[Figure]) -> None:
    shares_plot(tmp_path / "a.png", SHARES)
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(SHARES)
    assert axes.yaxis_inverted()
    bars = {
        (kind.get_label(), row): (bar.get_x(), bar.get_width())
        for kind in axes.containers
        for row, bar in enumerate(kind.patches)  # type: ignore[attr-defined]
        if isinstance(bar, Rectangle) and bar.get_width()
    }
    expected = {
        ("latent", 0): (0, 30),
        ("composition", 0): (30, 70),
        ("composition", 1): (0, 45),
        ("geometry", 1): (45, 50),
        ("symmetry", 1): (95, 5),
    }
    assert bars.keys() == expected.keys()
    for key, place in expected.items():
        assert bars[key] == pytest.approx(place), key
    assert [text.get_text() for text in axes.texts] == ["30 %", "70 %", "45 %", "50 %"]
    (legend,) = figures[0].legends
    kinds = ["latent", "composition", "geometry", "symmetry"]
    assert [text.get_text() for text in legend.get_texts()] == kinds
    looks = {
        (to_hex(container.patches[0].get_facecolor()), container.patches[0].get_hatch())  # type: ignore[attr-defined]
        for container in axes.containers
    }
    assert len({colour for colour, _ in looks}) == len({hatch for _, hatch in looks}) == 4


@pytest.mark.parametrize(
    "shares",
    [
        *({}, {"a": {}}, {"a": {"x": 0.5}}, {"a": {"x": 1.5, "y": -0.5}}, {"a": {"x": math.nan}}),
        {"a": {str(i): 1 / 8 for i in range(8)}},
    ],
    ids=str,
)
def test_no_shares(tmp_path: Path, shares: dict[str, dict[str, float]]) -> None:
    with pytest.raises(InputError, match=r"nothing to draw|sum to 1|at most 7"):
        shares_plot(tmp_path / "a.png", shares)
    assert list(tmp_path.iterdir()) == []
