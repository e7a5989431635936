"""The numbers of an analysis's tables: scores with their intervals, and differences with their p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from c2c_lightning.drawing.style import shown
from c2c_lightning.evaluation.formatting import (
    NOT_SIGNIFICANT,
    NOTHING,
    p_value,
    points_with_interval,
    score,
    score_interval,
)
from c2c_lightning.evaluation.results import BenchmarkResults
from c2c_lightning.evaluation.statistics import Estimate, accuracy, compare


def estimates(results: BenchmarkResults, methods: Sequence[str]) -> dict[str, Estimate]:
    """Mean scores with their intervals, of those methods that were asked."""
    return {m: accuracy(results.scores(m), results.seed) for m in methods if m in results.answers}


def with_interval(estimate: Estimate, measure: str) -> str:
    """A mean score with its interval."""
    return f"{score(estimate.value, measure)} {score_interval(asdict(estimate), measure)}"


def differences(results: BenchmarkResults, method: str, reference: str, label: str = "") -> dict[str, str]:
    """Two cells of a table, how much better a method is than a reference and p; none if that was not asked."""
    if reference not in results.answers:
        return {}
    points, p = NOTHING, NOTHING
    if method != reference:
        compared = compare(results.scores(method), results.scores(reference), results.seed)
        points = points_with_interval(asdict(compared.difference))
        p = p_value(compared.p) + ("" if compared.significant else f", {NOT_SIGNIFICANT}")
    return {f"{label}less {shown(reference)}, points": points, f"{label}p": p}
