"""A picture of a sweep's gates: which layers each trial opened, and what it scored."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure

from c2c_lightning.drawing import INK, PALE, new_figure
from c2c_lightning.sweep.labels import shown_scores, unit
from c2c_lightning.sweep.settings import Mode
from c2c_lightning.sweep.trials import Trial

MOST_NUMBERS = 64


class NothingToShow(Exception):
    """A figure would say nothing, and why."""


def colours(mode: Mode) -> Colormap:
    """The better the darker; never so pale as to be taken for the white of a closed gate."""
    shades = matplotlib.colormaps["plasma_r"](np.linspace(0.1, 0.95, 256))
    return ListedColormap(shades if mode == "max" else shades[::-1])


def draw_gates(trials: Sequence[Trial], metric: str, mode: Mode) -> Figure:
    """Receiver layers upwards, trials to the right, one panel for keys and one for values of each sharer.

    A head is its share of a layer, and a layer that is open in part is paler.

    Args:
        trials: that ended with a score, the best first.
        metric, mode: what they are judged and coloured by.

    Raises:
        NothingToShow: no trial maps a layer.
    """
    scores, shades = shown_scores(trials, metric), colours(mode)
    sharers = max(len(trial.progress[-1]["gates"]) for trial in trials)
    panels = [(sharer, part) for sharer in range(sharers) for part in ("keys", "values")]
    shares = {panel: _shares(trials, *panel) for panel in panels}
    shares = {panel: grid for panel, grid in shares.items() if grid[0]}
    if not shares:
        raise NothingToShow("no trial maps a layer")
    heights = [max(4, len(layers)) for layers, _ in shares.values()]
    figure = new_figure(1.9 + sum(0.13 * height + 0.35 for height in heights))
    axes = figure.subplots(len(shares), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    norm = Normalize(min(scores), max(scores))
    for axis, ((sharer, part), (layers, share_LT)) in zip(axes, shares.items()):
        axis.patch.set(facecolor="#f1f2f3", edgecolor="#c9cdd1", hatch="////", linewidth=0)
        colour_T3 = shades(norm(np.asarray(scores)))[:, :3]
        share_LT1 = np.nan_to_num(share_LT)[..., None]
        shown = np.concatenate([1 - share_LT1 * (1 - colour_T3), ~np.isnan(share_LT)[..., None]], axis=-1)
        axis.imshow(shown, aspect="auto", origin="lower", interpolation="none", extent=(0, len(trials), 0, len(layers)))
        axis.set_title(part if sharers == 1 else f"sharer {sharer}: {part}", fontsize=9.5, loc="left")
        every = max(1, -(-len(layers) // 14))
        axis.set_yticks(np.arange(len(layers))[::every] + 0.5, [str(layer) for layer in layers[::every]])
        axis.set_ylabel("receiver layer")
        axis.set_xticks(range(len(trials) + 1), minor=True)
        axis.set_yticks(range(len(layers) + 1), minor=True)
        axis.grid(which="minor", color="#e6e8ea", linewidth=0.4)
        axis.tick_params(which="both", length=0)
    _name_trials(axes[-1], trials)
    figure.suptitle(f"Open gates of {len(trials)} trials: coloured open, white closed, hatched not mapped", fontsize=11)
    figure.colorbar(ScalarMappable(norm, shades), ax=axes, label=unit(metric), aspect=40, pad=0.02)
    return figure


def _shares(trials: Sequence[Trial], sharer: int, part: str) -> tuple[list[int], np.ndarray]:
    """Layers that any trial maps, and the open share of each by trial, (L, T); NaN where it is not mapped."""
    gates = [trial.progress[-1]["gates"] for trial in trials]
    columns = [gate[sharer].get(part, {}) if sharer < len(gate) else {} for gate in gates]
    layers = sorted({int(layer) for column in columns for layer in column})
    return layers, np.array([[column.get(str(layer), np.nan) for column in columns] for layer in layers], dtype=float)


def _name_trials(axis: Axes, trials: Sequence[Trial]) -> None:
    """Numbers of trials below their columns, or ranks if there are too many."""
    stopped = [trial.state == "stopped" for trial in trials]
    if len(trials) > MOST_NUMBERS:
        early = f" (from {stopped.count(False)} on: stopped early)" if any(stopped) else ""
        axis.set_xlabel(f"trials by rank, the best first{early}")
        return
    fontsize, rotation = (8, 0) if len(trials) <= 32 else (6.5, 90)
    numbers = [str(trial.number) for trial in trials]
    axis.set_xticks(np.arange(len(trials)) + 0.5, numbers, fontsize=fontsize, rotation=rotation)
    for label, is_stopped in zip(axis.get_xticklabels(), stopped):
        label.set_color(PALE if is_stopped else INK)
    axis.set_xlabel(f"trial number, the best first{' (grey: stopped early)' if any(stopped) else ''}")
