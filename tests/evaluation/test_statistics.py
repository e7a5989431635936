"""Statistics of benchmark scores, against the formulas written out and independent resampling."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.report.statistics import accuracy, compare, question_specific_gain


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def coin(seed: int, n: int, p: float) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < p).astype(float)


def resampled_interval(values: np.ndarray, rng: np.random.Generator, resamples: int = 4000) -> np.ndarray:
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return np.percentile(means, [2.5, 97.5])


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (1, 1), (3, 10), (411, 1000), (5690, 5700)])
def test_accuracy_has_wilsons_interval(right, n):
    z, p = norm.ppf(0.975), right / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    estimate = accuracy([True] * right + [False] * (n - right))
    assert estimate.value == pytest.approx(p)
    assert (estimate.low, estimate.high) == pytest.approx((middle - half, middle + half), abs=1e-12)
    assert estimate.low <= estimate.value <= estimate.high


def test_accuracy_of_real_scores_has_a_bootstrap_interval():
    scores = np.random.default_rng(0).beta(0.5, 0.5, size=80)
    estimate = accuracy(scores)
    low, high = resampled_interval(scores, np.random.default_rng(1))
    assert estimate.value == pytest.approx(scores.mean())
    # Either end is known to about 2% of the width from that many resamples.
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.06 * (high - low))


@pytest.mark.parametrize("seed", range(6))
def test_right_and_wrong_answers_are_compared_by_mcnemar(seed):
    n = 30 + 40 * seed
    first, second = coin(seed, n, 0.6), coin(seed + 100, n, 0.5)
    comparison = compare(first, second)
    only_first = sum(a > b for a, b in zip(first, second))
    only_second = sum(a < b for a, b in zip(first, second))
    assert (comparison.only_c2c, comparison.only_other) == (only_first, only_second)
    assert comparison.difference.value == pytest.approx((only_first - only_second) / n)
    # Under no difference, every item on which they differ is a fair coin.
    assert comparison.p == pytest.approx(binomtest(only_first, only_first + only_second).pvalue)
    assert comparison.significant == (comparison.p < 0.05)
    assert "McNemar" in comparison.test


def test_the_interval_of_a_difference_resamples_items_with_both_their_scores():
    rng = np.random.default_rng(2)
    difficulty = rng.random(120)
    first, second = (rng.random(120) < 0.2 + 0.7 * difficulty), (rng.random(120) < 0.7 * difficulty)
    interval = compare(first, second).difference
    means = []
    for _ in range(4000):
        items = rng.integers(120, size=120)
        means.append(first[items].mean() - second[items].mean())
    low, high = np.percentile(means, [2.5, 97.5])
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.06 * (high - low))


def test_the_interval_covers_the_true_difference_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr("c2c_lightning.evaluation.report.statistics.RESAMPLES", 999)
    covered = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        ability = rng.random(100)
        first, second = rng.random(100) < 0.3 + 0.6 * ability, rng.random(100) < 0.6 * ability
        interval = compare(first, second, seed).difference
        covered.append(interval.low <= 0.3 <= interval.high)
    assert 0.90 <= np.mean(covered) <= 0.99


def test_real_scores_are_compared_by_flipping_signs():
    first, second = [0.9, 0.5, 0.7, 0.2, 1.0, 0.4], [0.4, 0.5, 0.8, 0.1, 0.3, 0.1]
    differences = np.subtract(first, second)
    sums = [np.dot(signs, differences) for signs in itertools.product((1, -1), repeat=6)]
    expected = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-12)
    comparison = compare(first, second)
    assert comparison.p == pytest.approx(expected)
    assert (comparison.only_c2c, comparison.only_other) == (4, 1)
    assert "sign-flip" in comparison.test


@pytest.mark.parametrize(("shift", "significant"), [(0.0, False), (0.3, True)])
def test_test_and_interval_of_real_scores_agree(shift, significant):
    rng = np.random.default_rng(3)
    second = rng.random(200) * 0.6
    comparison = compare(second + rng.random(200) * 0.2 - 0.1 + shift, second)
    assert comparison.significant is significant
    assert (comparison.difference.low > 0) is significant


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ([1, 0, 1], [1, 0, 1], 0.0),  # identical
        ([1, 1, 1], [0, 0, 0], 1.0),  # the same difference everywhere
        ([1], [0], 1.0),
        ([0.5], [0.25], 0.25),
        ([0.5, 0.5], [0.25, 0.25], 0.25),
        ([0.5, 0.25], [0.5, 0.25], 0.0),
    ],
)
def test_where_nothing_varies_the_interval_has_no_width_and_p_is_a_number(first, second, value):
    comparison = compare(first, second)
    interval = comparison.difference
    assert interval.low == interval.value == interval.high == value
    assert 0 <= comparison.p <= 1
    if value == 0 or len(first) == 1:
        assert comparison.p == 1.0
    assert accuracy([0.5] * 3).low == accuracy([0.5] * 3).high == 0.5
    assert accuracy([0.5]).value == 0.5


def test_exchanging_the_methods_turns_the_sign():
    first, second = coin(0, 200, 0.6), coin(1, 200, 0.5)
    forth, back = compare(first, second), compare(second, first)
    assert forth.p == back.p
    assert forth.difference.value == -back.difference.value
    assert (forth.only_c2c, forth.only_other) == (back.only_other, back.only_c2c)


def test_the_same_seed_gives_the_same_numbers():
    first, second = np.random.default_rng(0).random((2, 50))
    assert compare(first, second, seed=1) == compare(first, second, seed=1)
    assert accuracy(first, seed=1) == accuracy(first, seed=1)
    assert compare(first, second, seed=1).difference != compare(first, second, seed=2).difference


def test_the_question_specific_gain_is_over_the_best_control():
    c2c = coin(0, 400, 0.6)
    controls = {"receiver": coin(1, 400, 0.3), "wrong_question": coin(2, 400, 0.45), "mean_update": coin(3, 400, 0.4)}
    gain = question_specific_gain(c2c, controls)
    assert gain.over == max(controls, key=lambda name: controls[name].mean())
    assert gain.difference == compare(c2c, controls[gain.over]).difference
    assert gain.p == max(compare(c2c, scores).p for scores in controls.values())
    assert gain.significant


def test_of_equal_controls_the_first_is_named():
    worse, good = np.zeros(50), coin(1, 50, 0.5)
    assert question_specific_gain(coin(0, 50, 0.7), {"a": worse, "b": good, "c": good}).over == "b"


def test_no_gain_is_significant_unless_every_control_is_beaten():
    c2c, close, far = coin(0, 200, 0.6), coin(0, 200, 0.59), np.zeros(200)
    assert question_specific_gain(c2c, {"far": far}).significant
    gain = question_specific_gain(c2c, {"far": far, "close": close})
    assert not gain.significant
    assert gain.p > 0.05
    # Significantly worse is no gain either, whatever p says.
    behind = question_specific_gain(far, {"c2c": c2c})
    assert behind.p < 0.05
    assert not behind.significant


def test_what_cannot_be_compared_is_refused():
    for empty in (lambda: accuracy([]), lambda: compare([], []), lambda: question_specific_gain([], {"a": []})):
        with pytest.raises(UserError, match="no scores"):
            empty()
    with pytest.raises(UserError, match="there are none"):
        question_specific_gain([1, 0], {})
    with pytest.raises(ValueError, match="3 scores of one method and 2"):
        compare([1, 0, 1], [1, 0])


def test_a_whole_benchmark_has_the_interval_that_a_normal_mean_would():
    first, second = coin(0, 5700, 0.45), coin(1, 5700, 0.36)
    difference = compare(first, second).difference
    half = norm.ppf(0.975) * (first - second).std() / math.sqrt(5700)
    assert difference.value == pytest.approx((first - second).mean())
    expected = (difference.value - half, difference.value + half)
    assert (difference.low, difference.high) == pytest.approx(expected, abs=0.06 * 2 * half)
