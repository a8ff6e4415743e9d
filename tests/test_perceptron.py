from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chgdb.perceptron import KNOTS, Scaler, forward

RNG = np.random.default_rng(5)


def columns(rows: int = 400) -> NDArray[np.float64]:
    return np.column_stack(
        [
            RNG.normal(3, 2, rows),
            np.exp(3 * RNG.normal(size=rows)),
            RNG.integers(0, 2, rows).astype(float),
            np.full(rows, 7.0),
        ]
    )


def test_the_network_at_work_is_the_one_that_was_trained() -> None:
    torch = pytest.importorskip("torch")
    from chgdb.nets import TabularNet

    torch.manual_seed(1)
    net = TabularNet(6, 9, 4, width=32, embedding=5).eval()
    x = RNG.normal(size=(11, 6)).astype(np.float32)
    fractions = RNG.dirichlet(np.ones(9), 11).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.tensor(x), torch.tensor(fractions)).numpy()
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    made = forward(weights, x, fractions)
    assert made.shape == (11, 4)
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)
    one = forward(weights, x[3:4], fractions[3:4])
    np.testing.assert_allclose(one[0], made[3], rtol=1e-5, atol=1e-6)


def test_scaled_columns_are_of_order_one_whatever_their_tails() -> None:
    values = columns()
    scaled = Scaler.fit(values)(values)
    assert np.abs(scaled[:, :3]).max() < 5
    assert np.abs(scaled[:, :3].mean(axis=0)).max() < 0.6
    assert (scaled[:, 3] == 0).all()


def test_a_missing_value_is_the_median() -> None:
    values = columns()
    scaler = Scaler.fit(values)
    row = values[:1].copy()
    row[0, 0] = np.nan
    median = row.copy()
    median[0, 0] = scaler.knots[KNOTS // 2, 0]
    np.testing.assert_array_equal(scaler(row), scaler(median))
    gone = values.copy()
    gone[:, 1] = np.nan
    assert (Scaler.fit(gone)(values)[:, 1] == 0).all()


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
@settings(max_examples=60, deadline=None)
def test_scaling_keeps_the_order(first: float, second: float) -> None:
    values = columns()
    scaler = Scaler.fit(values)
    rows = np.tile(values[:1], (2, 1))
    rows[:, 0] = first, second
    low, high = scaler(rows)[:, 0]
    assert (first - second) * (low - high) >= 0
    assert np.isfinite([low, high]).all()


def test_the_input_is_not_changed() -> None:
    values = columns()
    values[0, 0] = np.nan
    before = values.copy()
    Scaler.fit(values)(values)
    np.testing.assert_array_equal(values, before)
