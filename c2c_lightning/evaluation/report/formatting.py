"""How reports print numbers, and names that come from outside."""

from __future__ import annotations

import re

from c2c_lightning.drawing import Estimate, shown
from c2c_lightning.evaluation.report.statistics import ALPHA, Comparison

NOTHING = "–"
NOT_SIGNIFICANT = "not significant"
MARKUP = re.compile(r"([\\`*<|]|\](?=\()|&(?=#?\w+;)|(?<!\w)_|_(?!\w))")
BYTES = ("B", "kB", "MB", "GB")


def plain(text: str) -> str:
    """Text that Markdown shows as it stands, in one line."""
    return MARKUP.sub(r"\\\1", " ".join(str(text).split()))


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def points(difference: float) -> str:
    """A difference of two scores in points, with its sign."""
    return f"{100 * difference:+z.1f}".replace("-", "−")


def points_with_interval(difference: Estimate) -> str:
    return f"{points(difference.value)} [{points(difference.low)}, {points(difference.high)}]"


def score(value: float, measure: str) -> str:
    """A mean score: percent where it is an accuracy, otherwise out of 100."""
    return percent(value) if measure == "accuracy" else f"{100 * value:.1f}"


def score_interval(estimate: Estimate, measure: str) -> str:
    return f"[{score(estimate.low, measure)}, {score(estimate.high, measure)}]"


def with_interval(estimate: Estimate, measure: str) -> str:
    """A mean score with its interval."""
    return f"{score(estimate.value, measure)} {score_interval(estimate, measure)}"


def p_value(p: float) -> str:
    """`< 0.001` or three decimals, four where three would hide on which side of ALPHA it lies."""
    if p < 0.001:
        return "< 0.001"
    return f"{p:.4f}" if round(p, 3) == ALPHA else f"{p:.3f}"


def p_in_words(p: float) -> str:
    """`p < 0.001` or `p = 0.320`, never broken over two lines."""
    return f"p {'' if p < 0.001 else '= '}{p_value(p)}".replace(" ", "\u00a0")


def verdict(comparison: Comparison, first: str, second: str) -> str:
    """Which of two methods is better, if it can be told."""
    if not comparison.significant:
        return NOT_SIGNIFICANT
    return f"{shown(first if comparison.difference.value > 0 else second)} better"


def compared(comparison: Comparison, first: str, second: str, only_first: str, only_second: str) -> dict[str, str]:
    """The cells of a comparison in a table; `only_first` and `only_second` are columns."""
    return {
        "difference in points [95% interval]": points_with_interval(comparison.difference),
        "p": p_value(comparison.p),
        "verdict": verdict(comparison, first, second),
        only_first: f"{comparison.only_c2c:,}",
        only_second: f"{comparison.only_other:,}",
        "test": comparison.test,
    }


def size(number: float) -> str:
    """Bytes in the unit that suits them."""
    unit = 0
    while number >= 999.5 and unit < len(BYTES) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {BYTES[unit]}"
