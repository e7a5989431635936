"""How the figures of analyses look: as forest plots do, in colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from c2c_lightning.drawing.forest import ACCENT, DPI, FONTS, GRID, INK, NAMES_AS_THEY_ARE, PALE, WIDTH, Estimate

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
        "axes.labelcolor": INK,
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
