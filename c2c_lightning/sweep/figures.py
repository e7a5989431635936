"""Pictures of a finished sweep: what mattered, which values did well, and what accuracy open layers buy."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.visualization.matplotlib import plot_parallel_coordinate

from c2c_lightning.drawing import ACCENT, FONTS, INK, WIDTH, new_figure, save, styled
from c2c_lightning.sweep.gate_figure import NothingToShow, colours, draw_gates
from c2c_lightning.sweep.labels import cut, plain_parameters, shown_scores, unit
from c2c_lightning.sweep.results import ranking
from c2c_lightning.sweep.settings import Mode
from c2c_lightning.sweep.space import is_number
from c2c_lightning.sweep.trials import DIRECTION, Trial

FEWEST_FOR_IMPORTANCE = 4
MOST_BARS, MOST_TICKS = 16, 6
SHARED_LABEL = 0.045  # of the figure: points that are nearer have one label together
DECADES_FOR_LOG = 2


def draw_figures(
    trials: Sequence[Trial], metric: str, mode: Mode, folder: Path, say: Callable[[str], None] = print
) -> dict[str, Path]:
    """Draws what there is to see of the trials that ended with a score, on time or early; accuracies in percent.

    Args:
        trials: of a sweep, in any state.
        metric, mode: what they are judged by.
        folder: for the figures; it is made.
        say: gets a line for each figure that would say nothing, with the reason.

    Returns:
        By caption the PNG; of one that cannot be drawn there is a warning.
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
