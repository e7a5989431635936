"""How the figures and numbers of analyses look: colours that colour-blind readers can tell apart, one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

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

WIDTH = 8.5  # inches, which a report shows some 1000 px wide
# Okabe and Ito's colours.
COLOURS = {
    "receiver": "#7f7f7f",
    "sharer": "#e69f00",
    "text_to_text": "#cc79a7",
    "c2c": "#0072b2",
    "c2c_after_text": "#009e73",
    "few_shot": "#d55e00",
    "enriched": "#56b4e9",
}
OTHER_COLOUR = "#000000"
PART_COLOURS = {"keys": "#0072b2", "values": "#d55e00"}
LINES = {"receiver": ":", "c2c": "-", "few_shot": "--", "enriched": "-."}


def colour(method: str) -> str:
    """The colour that a method has in every figure."""
    return COLOURS.get(method, OTHER_COLOUR)


def new_figure(height: float) -> Figure:
    """A figure of the width that all have, `height` inches high."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Saves a figure as `name`.png in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=150)
    return path


def measure_of(results: BenchmarkResults, methods: Sequence[str]) -> str:
    """`accuracy` where answers are right or wrong, otherwise `score`."""
    binary = all(np.isin(results.scores(method), (0, 1)).all() for method in methods)
    return "accuracy" if binary else "score"


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
    compared = compare(results.scores(method), results.scores(reference), results.seed)
    same = method == reference
    return {
        f"{label}less {reference}, points": NOTHING if same else points_with_interval(asdict(compared.difference)),
        f"{label}p": NOTHING
        if same
        else p_value(compared.p) + ("" if compared.significant else f", {NOT_SIGNIFICANT}"),
    }


def margins(values: Sequence[Estimate]) -> np.ndarray:
    """(2, n) how far intervals reach below and above, as matplotlib's error bars want it."""
    return np.array([[e.value - e.low for e in values], [e.high - e.value for e in values]])


def score_axis(axis: matplotlib.axis.Axis, measure: str) -> None:
    """Has an axis show scores: percent where they are accuracies, otherwise out of 100."""
    axis.set_major_formatter(PercentFormatter(1.0, symbol="%" if measure == "accuracy" else ""))
    axis.set_label_text(measure if measure == "accuracy" else "score (of 100)")


def draw_series(
    axis: Axes,
    places: Sequence[float],
    values: Sequence[Estimate],
    label: str,
    colour: str,
    marker: str,
    line: str = "",
) -> None:
    """Points with their intervals, joined if `line` is a line style."""
    axis.errorbar(
        places,
        [e.value for e in values],
        yerr=margins(values),
        label=label,
        color=colour,
        marker=marker,
        linestyle=line or "none",
        capsize=3,
    )


def draw_references(
    axis: Axes, references: Mapping[str, Estimate], shaded: Sequence[str] = ("receiver", "c2c")
) -> None:
    """A line through the whole figure for every method, the intervals of some shaded."""
    for method, estimate in references.items():
        if method in shaded:
            axis.axhspan(estimate.low, estimate.high, color=colour(method), alpha=0.12, linewidth=0)
        axis.axhline(estimate.value, color=colour(method), linestyle=LINES.get(method, "-"), label=method)
