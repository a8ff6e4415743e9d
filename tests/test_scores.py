"""Scores, their intervals and folds: against other formulas, known statistics, and by property."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from chgdb.errors import InputError
from chgdb.scores import bootstrap, coverage, folds, grouped_folds, paired, score

VALUES = st.integers(-(10**6), 10**6).map(lambda n: n / 1000)
PAIRS = st.integers(2, 40).flatmap(
    lambda n: st.tuples(*(hnp.arrays(np.float64, n, elements=VALUES) for _ in range(2)))
)


def sample(n: int, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.normal(100.0, 10.0, n)
    return truth, truth + generator.normal(0.0, noise, n)


# --- scores ---------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    result = score([1.0, 2.0, 3.0, math.nan], [1.0, 2.0, 5.0, math.nan])
    assert result.n == 3
    assert result.mae == pytest.approx(2 / 3)
    assert result.rmse == pytest.approx(math.sqrt(4 / 3))
    assert result.r2 == pytest.approx(1 - 4 / 2)


@settings(deadline=None)
@given(PAIRS)
def test_scores_are_those_of_exact_arithmetic(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, guess = ([Fraction(float(value)) for value in column] for column in pair)
    n = len(truth)
    errors = [b - a for a, b in zip(truth, guess, strict=True)]
    squares = sum(error**2 for error in errors)
    spread = sum((value - sum(truth) / n) ** 2 for value in truth)
    result = score(*pair)
    assert result.mae == pytest.approx(float(sum(map(abs, errors)) / n))
    assert result.rmse == pytest.approx(math.sqrt(squares / n))
    if spread:
        assert result.r2 == pytest.approx(float(1 - squares / spread), rel=1e-6, abs=1e-9)
    else:
        assert math.isnan(result.r2)


@settings(deadline=None)
@given(pair=PAIRS, data=st.data())
def test_rows_without_a_reference_have_no_say(
    pair: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    truth, guess = pair
    hidden = np.array(data.draw(st.lists(st.booleans(), min_size=len(truth), max_size=len(truth))))
    masked = np.where(hidden, np.nan, truth)
    wild = np.where(hidden, data.draw(st.sampled_from([math.nan, math.inf, 1e300])), guess)
    result, expected = score(masked, wild), score(truth[~hidden], guess[~hidden])
    np.testing.assert_equal(vars(result), vars(expected))
    assert result.n == (~hidden).sum()


def test_a_small_spread_about_a_large_mean() -> None:
    truth, guess = sample(200)
    result, shifted = score(truth, guess), score(truth + 2.0**30, guess + 2.0**30)
    assert shifted.r2 == pytest.approx(result.r2, rel=1e-6)


def test_too_few_rows() -> None:
    nothing = score([math.nan], [1.0])
    assert nothing.n == 0
    assert all(math.isnan(value) for value in (nothing.r2, nothing.mae, nothing.rmse))
    one = score([3.0], [1.0])
    assert (one.n, one.mae, one.rmse) == (1, 2.0, 2.0)
    assert math.isnan(one.r2)
    assert math.isnan(score([0.1] * 7, [0.1] * 7).r2)
    for interval in bootstrap([], [], 0).values():
        assert all(math.isnan(end) for end in interval)
    assert math.isnan(paired([math.nan], [1.0], [2.0], 0).mae.better)
    assert math.isnan(coverage([math.nan], [0.0], [1.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_model_does_not_choose_its_rows(bad: float) -> None:
    truth, guess = sample(10)
    guess[3] = bad
    for call in (
        lambda: score(truth, guess),
        lambda: bootstrap(truth, guess, 0),
        lambda: paired(truth, truth, guess, 0),
        lambda: score(guess if math.isinf(bad) else truth, guess),
    ):
        with pytest.raises(InputError, match="1 of 10 rows"):
            call()


def test_columns_that_do_not_fit() -> None:
    for other in ([1.0], 1.0, [[1.0, 2.0]], []):
        with pytest.raises(InputError, match="same rows"):
            score([1.0, 2.0], other)
    with pytest.raises(InputError, match="same rows"):
        score([[1.0]], [[1.0]])


# --- intervals ------------------------------------------------------------------------------


def test_an_interval_is_as_wide_as_theory_says() -> None:
    """Of a mean of 400 absolute errors of a normal law: +- 1.96 sqrt(1 - 2/pi) / 20."""
    truth, guess = sample(400, seed=3)
    low, high = bootstrap(truth, guess, seed=0, resamples=20_000)["mae"]
    error = np.abs(truth - guess)
    half = 1.96 * error.std() / math.sqrt(400)
    assert low == pytest.approx(error.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(error.mean() + half, abs=0.05 * half)
    narrow = bootstrap(truth, guess, seed=0, resamples=20_000, level=0.5)["mae"]
    assert narrow.high - narrow.low == pytest.approx(2 * half * 0.6745 / 1.96, rel=0.05)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """R2 of y = x + e is 1 - var(e) / var(y); 200 experiments, binomial error 2.1 %."""
    held = 0
    for seed in range(200):
        truth, guess = sample(150, seed=seed, noise=4.0)
        low, high = bootstrap(truth, guess, seed=seed, resamples=300, level=0.9)["r2"]
        held += low <= 1 - 0.16 <= high
    assert 0.82 < held / 200 < 0.96


def test_resampling_is_resampling() -> None:
    """Against the plain loop over rows drawn with the same generator."""
    truth, guess = sample(30, noise=5.0)
    truth[4] = np.nan
    kept, shown = truth[~np.isnan(truth)], guess[~np.isnan(truth)]
    drawn = np.random.default_rng(7).integers(0, 29, size=(500, 29))
    every = [score(kept[rows], shown[rows]) for rows in drawn]
    for name, interval in bootstrap(truth, guess, seed=7, resamples=500).items():
        values = [getattr(result, name) for result in every]
        assert interval == pytest.approx(np.quantile(values, [0.025, 0.975]), rel=1e-9)


def test_many_rows_are_worked_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, guess = sample(50)
    at_once = bootstrap(truth, guess, seed=1, resamples=100)
    monkeypatch.setattr("chgdb.scores._AT_ONCE", 70)
    in_pieces = bootstrap(truth, guess, seed=1, resamples=100)
    for name in at_once:
        assert in_pieces[name] == pytest.approx(at_once[name], rel=1e-12)


def test_the_seed_decides() -> None:
    truth, guess = sample(60)
    assert bootstrap(truth, guess, 5) == bootstrap(truth, guess, 5)
    assert bootstrap(truth, guess, 5) != bootstrap(truth, guess, 6)


def test_two_rows_have_intervals_where_there_is_an_answer() -> None:
    intervals = bootstrap([1.0, 2.0], [1.5, 2.0], 0)
    assert intervals["mae"] == (0.0, 0.5)
    assert intervals["r2"] == pytest.approx((0.5, 0.5))
    assert all(math.isnan(end) for end in bootstrap([5.0] * 9, [5.0] * 9, 0)["r2"])


@pytest.mark.parametrize("options", [{"level": 0}, {"level": 1}, {"level": 95}, {"resamples": 0}])
def test_impossible_options(options: dict[str, float]) -> None:
    truth, guess = sample(5)
    with pytest.raises(InputError, match=r"level|resamples"):
        bootstrap(truth, guess, 0, **options)  # type: ignore[arg-type]


# --- comparison -----------------------------------------------------------------------------


def test_the_better_predictions_win() -> None:
    truth, good = sample(300, noise=1.0)
    bad = sample(300, seed=9, noise=1.0)[1] - sample(300, seed=9, noise=1.0)[0]
    result = paired(truth, truth + 2 * bad, good, seed=0)
    assert result.n == 300
    assert result.mae.interval.high < 0 < result.r2.interval.low
    assert result.mae.better == result.r2.better == 1.0
    first, second = score(truth, truth + 2 * bad), score(truth, good)
    assert result.mae.value == pytest.approx(second.mae - first.mae)
    assert result.r2.value == pytest.approx(second.r2 - first.r2)
    back = paired(truth, good, truth + 2 * bad, seed=0)
    assert back.mae.interval == pytest.approx((-result.mae.interval.high, -result.mae.interval.low))
    assert back.mae.better == back.r2.better == 0.0


def test_rows_are_resampled_together() -> None:
    """A small constant gain is sure although each score alone is not."""
    truth, guess = sample(100, noise=8.0)
    error = guess - truth
    slightly = truth + error * 0.98
    alone = bootstrap(truth, guess, 0)["mae"]
    result = paired(truth, guess, slightly, 0)
    assert alone.low < score(truth, slightly).mae < alone.high
    assert result.mae.interval.high < 0
    assert result.mae.better == 1.0
    assert result.mae.value == pytest.approx(-0.02 * score(truth, guess).mae)


def test_equal_predictions_are_no_better() -> None:
    truth, guess = sample(40)
    result = paired(truth, guess, guess, 0)
    assert result.mae.value == result.r2.value == 0
    assert [*result.mae.interval, *result.r2.interval] == [0.0] * 4
    assert result.mae.better == result.r2.better == 0


def test_two_equally_good_predictions_are_told_apart_by_chance_only() -> None:
    truth, one = sample(500, seed=1)
    two = sample(500, seed=2)[1] - sample(500, seed=2)[0] + truth
    result = paired(truth, one, two, 0)
    assert result.mae.interval.low < 0 < result.mae.interval.high
    assert 0.02 < result.mae.better < 0.98


# --- coverage -------------------------------------------------------------------------------


def test_coverage() -> None:
    reference = [1.0, 2.0, 3.0, 4.0, math.nan]
    low = [1.0, 2.5, -math.inf, 9.0, math.nan]
    assert coverage(reference, low, [2.0, 3.0, math.inf, 1.0, 0.0]) == 0.5
    with pytest.raises(InputError, match="missing"):
        coverage([1.0], [math.nan], [2.0])


def test_coverage_of_a_normal_law() -> None:
    truth, guess = sample(20_000)
    half = 1.645
    assert coverage(truth, guess - half, guess + half) == pytest.approx(0.9, abs=0.01)


# --- folds ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(rows=st.integers(1, 300), data=st.data(), seed=st.integers(0, 2**32))
def test_folds_are_balanced(rows: int, data: st.DataObject, seed: int) -> None:
    n = data.draw(st.integers(1, min(rows, 12)))
    assigned = folds(rows, n, seed)
    sizes = np.bincount(assigned, minlength=n)
    assert len(assigned) == rows
    assert len(sizes) == n
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(assigned, folds(rows, n, seed))


@settings(deadline=None)
@given(
    groups=st.lists(st.integers(0, 30), min_size=1, max_size=200),
    data=st.data(),
    seed=st.integers(0, 2**32),
)
def test_grouped_folds_keep_groups_whole_and_sizes_even(
    groups: list[int], data: st.DataObject, seed: int
) -> None:
    n = data.draw(st.integers(1, len(set(groups))))
    names = [f"Si{number}" for number in groups]
    assigned = grouped_folds(names, n, seed)
    assert len(set(zip(names, assigned, strict=True))) == len(set(names))
    sizes = np.bincount(assigned, minlength=n)
    assert len(sizes) == n
    assert sizes.min() > 0
    assert sizes.max() - sizes.min() <= max(groups.count(group) for group in groups)
    order = data.draw(st.permutations(range(len(groups))))
    np.testing.assert_array_equal(
        grouped_folds([names[i] for i in order], n, seed), assigned[list(order)]
    )


def test_large_groups_are_placed_first() -> None:
    """Whatever the seed, the small ones then even the folds out."""
    groups = ["a"] * 40 + ["b"] * 30 + [f"single {i}" for i in range(50)]
    for seed in range(20):
        assert np.bincount(grouped_folds(groups, 3, seed)).tolist() == [40, 40, 40]


def test_folds_are_at_random() -> None:
    assert not np.array_equal(folds(100, 5, 0), folds(100, 5, 1))
    assert not np.array_equal(folds(100, 5, 0), np.sort(folds(100, 5, 0)))
    assert not np.array_equal(grouped_folds(range(100), 5, 0), grouped_folds(range(100), 5, 1))
    together = np.mean([folds(40, 4, s)[0] == folds(40, 4, s)[1] for s in range(2000)])
    assert together == pytest.approx(9 / 39, abs=0.03)


def test_folds_that_cannot_be() -> None:
    for n in (0, -1, 4):
        with pytest.raises(InputError, match="cannot be divided"):
            folds(3, n, 0)
        with pytest.raises(InputError, match="cannot be divided"):
            grouped_folds(["a", "a", "b", "c"], n, 0)
    with pytest.raises(InputError, match="0 groups"):
        grouped_folds([], 1, 0)
