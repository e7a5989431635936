"""Pictures of a finished sweep: what mattered, which values did well, what open layers buy, and which are open.

Each is drawn of the trials that ended with a score, the best first.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.visualization.matplotlib import plot_parallel_coordinate

from c2c_lightning.drawing import ACCENT, FONTS, INK, PALE, WIDTH, new_figure, save, styled
from c2c_lightning.sweep.labels import cut, plain_parameters, shown_scores, unit
from c2c_lightning.sweep.results import ranking
from c2c_lightning.sweep.settings import Mode
from c2c_lightning.sweep.space import is_number
from c2c_lightning.sweep.trials import DIRECTION, Trial

FEWEST_FOR_IMPORTANCE = 4
MOST_BARS, MOST_TICKS, MOST_NUMBERS = 16, 6, 64
SHARED_LABEL = 0.045  # of the figure: points that are nearer have one label together
DECADES_FOR_LOG = 2


class NothingToShow(Exception):
    """A figure would say nothing, and why."""


def draw_figures(
    trials: Sequence[Trial], metric: str, mode: Mode, folder: Path, say: Callable[[str], None] = print
) -> dict[str, Path]:
    """Draws what there is to see of a sweep's trials, accuracies in percent; returns by caption the PNG.

    `say` gets a line for each figure that would say nothing, with the reason; of one that cannot be drawn there is a
    warning.
    """
    ranked = ranking(trials, metric, mode)
    kinds = {
        "importance": ("Which keys the score depended on (fANOVA)", draw_importance),
        "values": ("Sampled values and score of every trial", draw_values),
        "open_layers": ("Score against open layers; the Pareto front marked, trials stopped early hollow", draw_front),
        "gates": ("Open gates of every trial, the best to the left", draw_gates),
    }
    figures = {}
    for name, (caption, draw) in kinds.items():
        try:
            if len(ranked) < 2:
                raise NothingToShow(f"{len(ranked)} trials have ended with a {metric}, and it takes 2")
            with drawing():
                file = save(draw(ranked, metric, mode), folder, name)
        except NothingToShow as reason:
            say(f"no figure {name}.png: {reason}")
        except Exception as error:  # a sweep of days is worth more than a picture of it
            warnings.warn(f"figure {name}.png could not be drawn: {error!r}", stacklevel=2)
        else:
            figures[caption] = file
    return figures


@styled
def draw_importance(trials: Sequence[Trial], metric: str, mode: Mode) -> Figure:
    """Optuna's importance of every parameter; of many layers that are in or out, each by itself."""
    scores = shown_scores(trials, metric)
    if len(set(scores)) < FEWEST_FOR_IMPORTANCE:
        raise NothingToShow(
            f"importance takes {FEWEST_FOR_IMPORTANCE} different scores, and there are {len(set(scores))}"
        )
    study = study_of(scores, mode, several(plain_parameters(trials, list_members=True)))
    # Optuna's default asks only what the best tenth has in common, which a sweep of dozens cannot answer.
    importances = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    shown = dict(list(importances.items())[:MOST_BARS])
    figure = new_figure(1.4 + 0.28 * len(shown))
    axis = figure.subplots()
    bars = axis.barh(list(shown), list(shown.values()), color=ACCENT)
    said = ["<0.01" if share < 0.01 else f"{share:.2f}" for share in shown.values()]
    axis.bar_label(bars, said, padding=4, fontsize=8.5)
    axis.invert_yaxis()
    axis.margins(x=0.08, y=0.01)
    title(axis, f"What {metric} depended on", trials)
    axis.set_xlabel("share of the variance that a key explains alone (fANOVA; all shares sum to 1)")
    axis.set_ylabel("key" if shown == importances else f"key (the first {len(shown)} of {len(importances)})")
    axis.grid(axis="x")
    axis.tick_params(length=0)
    return figure


def draw_values(trials: Sequence[Trial], metric: str, mode: Mode) -> Figure:
    """Optuna's parallel coordinates: a line for each trial through its score and its values."""
    parameters = several(plain_parameters(trials))
    scores = shown_scores(trials, metric)
    if len(set(scores)) == 1:
        raise NothingToShow(f"all trials have the same {metric}")
    # The best come last, and so on top.
    study = study_of(scores[::-1], mode, {name: values[::-1] for name, values in parameters.items()})
    axis = plot_parallel_coordinate(study, target_name=unit(metric))
    lines = axis.collections[0]
    lines.set(cmap=colours(mode), alpha=0.75, linewidth=1.3)
    title(axis, f"Sampled values and {metric}", trials)
    axis.set_xticks(axis.get_xticks(), [label.get_text() for label in axis.get_xticklabels()], rotation=-25, ha="left")
    room = max(9, 84 // len(parameters))
    for beside, name in zip(axis.figure.axes[2:], sorted(parameters)):  # after the scores' and the colour bar's
        values = sorted(set(parameters[name]))
        if isinstance(values[0], str):
            names = [wrapped(label.get_text(), room) for label in beside.get_yticklabels()]
            beside.set_yticks(beside.get_yticks(), names)
        elif len(values) <= MOST_TICKS:
            beside.set_yticks(values, [f"{value:g}" for value in values], minor=False)
        beside.tick_params(labelsize=8, colors=INK)
        for label in beside.get_yticklabels():
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8})
    axis.figure.set_size_inches(WIDTH, 5)
    return axis.figure


@styled
def draw_front(trials: Sequence[Trial], metric: str, mode: Mode) -> Figure:
    """Score against open layers; on the front are finished trials that none beats in both."""
    opened, scores = [trial.num_open for trial in trials], shown_scores(trials, metric)
    if len(set(opened)) == 1:
        raise NothingToShow(f"every trial has {opened[0]:g} open layers")
    finished = [trial for trial in trials if trial.state == "finished"]
    front = pareto_front(finished or trials, metric, mode)
    figure = new_figure(5.2)
    axis = figure.subplots()
    for state, label, face in (("finished", "finished", INK), ("stopped", "stopped early", "white")):
        at = [(num, score) for num, score, trial in zip(opened, scores, trials) if trial.state == state]
        if at:
            axis.scatter(*zip(*at), s=30, facecolor=face, edgecolor=INK, linewidth=1, alpha=0.75, label=label, zorder=2)
    corners = {trial.num_open: score for trial, score in zip(front, shown_scores(front, metric))}
    axis.plot(corners.keys(), corners.values(), drawstyle="steps-post", color=ACCENT, linewidth=1.6, zorder=3)
    label = "Pareto front of the finished, by number" if finished else "Pareto front, by number"
    axis.scatter(corners.keys(), corners.values(), s=46, color=ACCENT, label=label, zorder=4)
    near_x, near_y = (SHARED_LABEL * ((max(of) - min(of)) or 1) for of in (opened, scores))
    above, vertical = (5, "bottom") if mode == "max" else (-5, "top")
    labels: dict[tuple[float, float], list[str]] = {}
    for trial in front:
        at = trial.num_open, corners[trial.num_open]
        last = next(reversed(labels), at)
        # Two labels on one another could not be read.
        is_near = abs(at[0] - last[0]) < near_x and abs(at[1] - last[1]) < near_y
        labels.setdefault(last if is_near else at, []).append(str(trial.number))
    for at, numbers in labels.items():
        text = cut(", ".join(numbers), 14)
        axis.annotate(text, at, (-5, above), textcoords="offset points", ha="right", va=vertical, color=ACCENT)
    title(axis, f"What open layers buy in {metric}", trials)
    axis.set_xlabel("open layers (of keys and of values, over all sharers)")
    axis.set_ylabel(unit(metric))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.margins(0.06)
    axis.grid()
    axis.tick_params(length=0)
    axis.legend(frameon=False, loc="best", fontsize=8.5)
    return figure


def draw_gates(trials: Sequence[Trial], metric: str, mode: Mode) -> Figure:
    """Receiver layers upwards, trials to the right, one panel for keys and one for values of each sharer.

    A head is its share of a layer, and a layer that is open in part is paler.
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


def colours(mode: Mode) -> Colormap:
    """The better the darker; never so pale as to be taken for the white of a closed gate."""
    shades = matplotlib.colormaps["plasma_r"](np.linspace(0.1, 0.95, 256))
    return ListedColormap(shades if mode == "max" else shades[::-1])


def title(axis: Axes, text: str, trials: Sequence[Trial]) -> None:
    """Says above an axis what it shows and of how many trials."""
    stopped = sum(trial.state == "stopped" for trial in trials)
    early = f", {stopped} of them stopped early" if stopped else ""
    axis.set_title(f"{text}: {len(trials)} trials{early}", fontsize=11, pad=10)


def wrapped(text: str, width: int) -> str:
    """A text on several lines, none of which breaks a word or a number."""
    return textwrap.fill(text.replace("=", "= "), width, break_long_words=False).replace("= ", "=")


def pareto_front(trials: Sequence[Trial], metric: str, mode: Mode) -> list[Trial]:
    """Trials that no other beats in the metric without more open layers, or the other way round, by open layers."""
    study = optuna.create_study(directions=[DIRECTION[mode], "minimize"])
    for trial in trials:
        study.add_trial(optuna.create_trial(values=[trial.score(metric), trial.num_open]))
    return sorted((trials[best.number] for best in study.best_trials), key=lambda t: (t.num_open, t.number))


def several(parameters: dict) -> dict:
    """Parameters of which one is compared with another."""
    if len(parameters) < 2:
        raise NothingToShow(f"only {', '.join(parameters) or 'nothing'} differs between trials, and it takes 2 keys")
    return parameters


@contextmanager
def drawing() -> Iterator[None]:
    """Optuna's figures without a display, in this project's fonts, and without its style for whoever draws next."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = matplotlib.get_backend()
    plt.switch_backend("agg")
    try:
        with matplotlib.rc_context({**FONTS, "figure.constrained_layout.use": True}), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        plt.close("all")
        plt.switch_backend(backend)


def study_of(scores: Sequence[float], mode: Mode, parameters: dict[str, list[Any]]) -> optuna.Study:
    """A study in memory whose trials, with values from `plain_parameters`, are complete, also those stopped early."""
    study = optuna.create_study(direction=DIRECTION[mode])
    distributions = {name: distribution(values) for name, values in parameters.items()}
    for place, score in enumerate(scores):
        point = {name: values[place] for name, values in parameters.items()}
        study.add_trial(optuna.create_trial(params=point, distributions=distributions, value=score))
    return study


def distribution(values: Sequence[Any]) -> BaseDistribution:
    """What a parameter with these values may have been sampled from; logarithmic if they are decades apart."""
    if not all(map(is_number, values)):
        return CategoricalDistribution(list(dict.fromkeys(values)))
    low, high = min(values), max(values)
    is_log = low > 0 and high / low > 10**DECADES_FOR_LOG
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high, log=is_log)
    return FloatDistribution(low, high, log=is_log)
