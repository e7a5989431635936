"""Forest plots: values with their intervals, one row each, and the numbers beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

# What all figures of a report have in common.
ACCENT, INK, PALE = "#0072b2", "#2b3036", "#8a929b"
GRID = "#e6e8ea"
WIDTH, DPI = 8.5, 200  # inches, dots per inch
FONTS = {"font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK, "axes.labelcolor": INK}

# Names of models, subjects and folders may hold "$", which begins a formula otherwise, and a wrong formula is an error.
NAMES_AS_THEY_ARE = {"text.parse_math": False}


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval, all in the same unit."""

    value: float
    low: float
    high: float


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
