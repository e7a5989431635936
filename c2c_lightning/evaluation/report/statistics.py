"""Intervals of accuracies, paired comparisons of two methods, and the question-specific gain.

The statistics are scipy's and statsmodels'; here they are named, combined, and kept from failing where
the data leave nothing to estimate. Scores are one number in [0, 1] for every item, in the same order of
items for every method; each of a list, a tuple or an array of numbers or booleans will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap, permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from c2c_lightning.drawing import Estimate
from c2c_lightning.errors import UserError

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # a difference is significant if its p is below
RESAMPLES = 9999
BATCH = 100  # resamples held at once: 5 MB for 5700 items, and faster than more, for they stay in the CPU's cache

Scores = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Comparison:
    """C2C less another method on the same items, or any method less another."""

    difference: Estimate  # of the mean scores; the interval is a paired bootstrap
    p: float  # two-sided, of the two being equally good; 1.0 if they score the same on every item
    significant: bool  # p is below ALPHA
    test: str  # that p comes from
    only_c2c: int  # items on which C2C, or the first, scored higher
    only_other: int  # items on which the other scored higher


@dataclass(frozen=True)
class Gain(Comparison):
    """C2C less the best control: p is the largest over all controls, and significant is what beats each of them."""

    over: str  # the best control, by its mean score


def accuracy(scores: Scores, seed: int = 0) -> Estimate:
    """The mean score.

    Its interval is Wilson's (1927) where scores are only 0 or 1, which stays within [0, 1] and holds its
    level for few items and extreme accuracies; otherwise the percentile bootstrap (Efron & Tibshirani 1993,
    chapter 13).

    Raises:
        UserError: there are no scores.
    """
    values = _array(scores)
    if not _binary(values):
        return _bootstrapped_mean(values, seed)
    mean = float(values.mean())
    low, high = proportion_confint(values.sum(), len(values), alpha=1 - LEVEL, method="wilson")
    # Where none or all are right, rounding would put an end beyond the mean, and plots refuse such bars.
    return Estimate(mean, min(float(low), mean), max(float(high), mean))


def compare(first: Scores, second: Scores, seed: int = 0) -> Comparison:
    """Compares two methods item by item.

    To resample items with both methods' scores is to resample the items' differences, so the paired
    bootstrap is that of their mean. The test is McNemar's (1947), exact, where all scores are 0 or 1;
    otherwise Fisher's (1935) sign-flip permutation test of the mean difference, which assumes no more
    than the bootstrap does.

    Raises:
        UserError: there are no scores.
        ValueError: the methods did not score the same number of items.
    """
    a, b = _array(first), _array(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores of one method and {len(b)} of the other: a comparison is item by item")
    only_a, only_b = int((a > b).sum()), int((a < b).sum())
    if _binary(a) and _binary(b):
        test = "exact McNemar"
        both, neither = int((a * b).sum()), int(((1 - a) * (1 - b)).sum())
        p = float(mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue)
    else:
        test = "sign-flip permutation"
        p = _sign_flip_p(a - b, seed)
    return Comparison(_bootstrapped_mean(a - b, seed), p, p < ALPHA, test, only_a, only_b)


def question_specific_gain(c2c: Scores, controls: dict[str, Scores], seed: int = 0) -> Gain:
    """The part of C2C's gain (arXiv 2510.03215) that no control has.

    It is C2C less the best control. That the best is chosen on the same items can only make the gain
    smaller, so its interval errs on the safe side. C2C must beat every control: the test is the
    intersection-union test (Berger 1982), whose p is the largest of all, and which needs no correction
    for their number.

    Args:
        c2c: scores of the receiver on the fused cache.
        controls: by name, scores that owe nothing to the sharer's knowledge of the question; of equally
            good ones the first is named.
        seed: of the resampling.

    Raises:
        UserError: there are no scores or no controls.
        ValueError: not all scored the same number of items.
    """
    if not controls:
        raise UserError("the question-specific gain is over controls, and there are none: evaluate one at least.")
    comparisons = {name: compare(c2c, scores, seed) for name, scores in controls.items()}
    best = min(comparisons, key=lambda name: comparisons[name].difference.value)
    p = max(comparison.p for comparison in comparisons.values())
    ahead = all(comparison.difference.value > 0 for comparison in comparisons.values())
    return Gain(**vars(comparisons[best]) | {"p": p, "significant": ahead and p < ALPHA, "over": best})


def retention(told: Scores, untold: Scores, reads: Scores, seed: int = 0) -> Estimate | None:
    """Which part of what reading a text gives is left when it is handed over: (told - untold) / (reads - untold).

    The interval is a bootstrap over questions, with all three scores of each.

    Args:
        told: scores of the receiver to which the text was handed over.
        untold: of the receiver alone.
        reads: of the receiver that reads the text itself.
        seed: of the resampling.

    Returns:
        1 for all of it; None where reading gives nothing on these questions.
    """
    scores = tuple(map(_array, (told, untold, reads)))

    def ratio(told: np.ndarray, untold: np.ndarray, reads: np.ndarray, axis: int = -1) -> np.ndarray:
        gained, possible = (told - untold).mean(axis), (reads - untold).mean(axis)
        return np.divide(gained, possible, out=np.zeros_like(gained), where=possible != 0)

    if scores[2].mean() <= scores[1].mean():
        return None
    value = float(ratio(*scores))
    if len(scores[0]) < 2:
        return Estimate(value, value, value)
    resampling = {"confidence_level": LEVEL, "method": "percentile", **_resampling(seed)}
    low, high = bootstrap(scores, ratio, paired=True, vectorized=True, **resampling).confidence_interval
    return Estimate(value, min(float(low), value), max(float(high), value))


def _array(scores: Scores) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    assert values.ndim == 1
    assert np.isfinite(values).all()
    if not len(values):
        raise UserError("there are no scores: not one item was evaluated.")
    return values


def _binary(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0, 1)).all())


def _bootstrapped_mean(values: np.ndarray, seed: int) -> Estimate:
    mean = float(values.mean())
    if (values == values[0]).all():  # a single item too, which scipy refuses
        return Estimate(mean, mean, mean)
    interval = bootstrap((values,), np.mean, confidence_level=LEVEL, method="percentile", **_resampling(seed))
    low, high = interval.confidence_interval
    return Estimate(mean, float(low), float(high))


def _sign_flip_p(differences: np.ndarray, seed: int) -> float:
    """Two-sided p of a mean difference of 0, if every item's difference might as well have the other sign."""
    changed = differences[differences != 0]  # the sign of the others means nothing
    if len(changed) < 2:  # both signs of one are as extreme; scipy refuses it
        return 1.0
    # scipy flips the signs of a single sample. It counts all flips if there are fewer than RESAMPLES.
    result = permutation_test((changed,), np.sum, permutation_type="samples", **_resampling(seed))
    return float(result.pvalue)


def _resampling(seed: int) -> dict[str, Any]:
    return {"n_resamples": RESAMPLES, "batch": BATCH, "rng": np.random.default_rng(seed)}
