"""What all figures have in common: colours that colour-blind readers can tell apart, fonts, axes, and forest plots.

It imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

ACCENT, INK, PALE = "#0072b2", "#2b3036", "#8a929b"
GRID = "#e6e8ea"
WIDTH, DPI = 8.5, 200  # inches, dots per inch
FONTS = {"font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK, "axes.labelcolor": INK}
# Names of models, subjects and folders may hold "$", which begins a formula otherwise, and a wrong formula is an error.
NAMES_AS_THEY_ARE = {"text.parse_math": False}

CONTRAST = "#d55e00"  # of the second of two series, beside ACCENT
# Okabe and Ito's hues, one for each method.
COLOURS = {
    "receiver": PALE,
    "sharer": "#e69f00",
    "text_to_text": "#cc79a7",
    "c2c": ACCENT,
    "c2c_after_text": "#009e73",
    "few_shot": CONTRAST,
    "enriched": "#56b4e9",
}
PART_COLOURS = {"keys": ACCENT, "values": CONTRAST}
LINES = {"receiver": ":", "c2c": "-", "few_shot": "--", "enriched": "-."}

# A decorator: what a function draws has this style.
styled = matplotlib.rc_context(
    {
        **FONTS,
        **NAMES_AS_THEY_ARE,
        "axes.edgecolor": PALE,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": GRID,
        "xtick.color": PALE,
        "xtick.labelcolor": INK,
        "ytick.color": PALE,
        "ytick.labelcolor": INK,
    }
)


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval, all in the same unit."""

    value: float
    low: float
    high: float


def shown(method: str) -> str:
    """A method's name as figures and reports spell it: C2C as sentences do, others as in files and metrics."""
    return "C2C" if method == "c2c" else method


def colour(method: str) -> str:
    """The colour that a method has in every figure."""
    return COLOURS.get(method, INK)


def new_figure(height: float) -> Figure:
    """A figure of the width that all have, `height` inches high."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


@styled  # some ticks are made only now
def save(figure: Figure, folder: Path, name: str) -> Path:
    """Saves a figure as `name`.png in `folder`, the same bytes for the same figure."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


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


def draw_references(axis: Axes, references: Mapping[str, Estimate]) -> None:
    """A line through the whole figure for every method; the intervals of receiver and C2C are shaded."""
    for method, estimate in references.items():
        if method in ("receiver", "c2c"):
            axis.axhspan(estimate.low, estimate.high, color=colour(method), alpha=0.12, linewidth=0)
        axis.axhline(estimate.value, color=colour(method), linestyle=LINES.get(method, "-"), label=shown(method))


@dataclass(frozen=True)
class Row:
    """One line of a forest plot."""

    label: str  # to the left
    estimate: Estimate  # shares, which are drawn times 100
    numbers: str  # to the right
    colour: str = INK  # of marker and words
    hollow: bool = False  # as the markers of controls are


def draw_forest(rows: Sequence[Row], xlabel: str, file: Path, reference: float | None, reference_label: str) -> Path:
    """Draws rows from top to bottom and saves them as PNG, the same bytes for the same rows.

    Args:
        rows: at least one.
        xlabel: what is drawn, with its unit.
        file: to write; its folder is made.
        reference: share at which a dotted line stands; None for no line.
        reference_label: what the line means.
    """
    with matplotlib.rc_context({**FONTS, **NAMES_AS_THEY_ARE}):
        figure = Figure(figsize=(WIDTH, 1.0 + 0.29 * len(rows)), layout="constrained")
        axis = figure.subplots()
        if reference is not None:
            axis.axvline(100 * reference, color=PALE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            top = axis.get_xaxis_transform()
            axis.text(
                100 * reference, 1.01, reference_label, transform=top, ha="center", va="bottom", color=PALE, fontsize=8
            )
        for place, row in enumerate(rows):
            value, low, high = (100 * end for end in (row.estimate.value, row.estimate.low, row.estimate.high))
            axis.hlines(place, low, high, color=row.colour, linewidth=1.6)
            face = "white" if row.hollow else row.colour
            axis.plot(value, place, "o", markersize=6, color=row.colour, markerfacecolor=face, markeredgewidth=1.6)
            beside = axis.get_yaxis_transform()
            axis.text(1.02, place, row.numbers, transform=beside, va="center", color=row.colour, fontsize=8.5)
        axis.set_yticks(range(len(rows)), [row.label for row in rows])
        for tick, row in zip(axis.get_yticklabels(), rows):
            tick.set_color(row.colour)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_xlabel(xlabel)
        axis.grid(axis="x", color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", color=PALE, labelcolor=INK)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.spines["bottom"].set_color(PALE)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=DPI, metadata={"Software": None})
    return file
