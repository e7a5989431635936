"""Who solves what: mean scores by subject, and the overlap of the questions that receiver, sharer and C2C solve."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib_venn import venn2, venn3
from matplotlib_venn.layout.venn2 import DefaultLayoutAlgorithm as Layout2
from matplotlib_venn.layout.venn3 import DefaultLayoutAlgorithm as Layout3

from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing import INK, Estimate, colour, margins, new_figure, save, score_axis, shown, styled
from c2c_lightning.evaluation.analyses.base import Analysis
from c2c_lightning.evaluation.report.findings import MAIN, BenchmarkResults
from c2c_lightning.evaluation.report.page import Section, percent, with_interval
from c2c_lightning.evaluation.report.statistics import accuracy

IN_CIRCLES = ("receiver", "sharer", "c2c")
MOST = 60  # subjects in the figure
SUBJECTS_TEXT = """\
{measure} by subject, with 95% intervals (Wilson's where answers are right or wrong): subjects have few \
questions, so that most differences within one may be chance.{order}{cut}"""
VENN_TEXT = """\
Of {all} questions each circle holds those that a method solves (with a score of 1). What C2C solves and the \
receiver does not is what C2C gained over the receiver, whatever the reason; what the receiver solves and C2C \
does not is what C2C lost. Circles are drawn alike, for readability: their areas mean nothing."""


class SubjectAccuracy(Analysis):
    """Mean scores of receiver, sharer, text-to-text and C2C in every subject of a benchmark that has subjects."""

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        methods = [method for method in MAIN if method in results.answers]
        subjects = np.array([item.subject for item in results.items])
        names = sorted(set(subjects) - {""})
        if not names or not methods:
            return None
        scores = {method: results.scores(method) for method in methods}
        order = ""
        if {"receiver", "c2c"} <= set(methods):
            gain = scores["c2c"] - scores["receiver"]
            names.sort(key=lambda name: -gain[subjects == name].mean())
            order = " Subjects are in the order of C2C's gain over the receiver."
        found = {m: {name: accuracy(scores[m][subjects == name], results.seed) for name in names} for m in methods}
        counts = Counter(subjects)
        largest = sorted(names, key=lambda name: -counts[name])[:MOST]
        drawn = {name: f"{name} ({counts[name]})" for name in names if name in largest}
        cut = f" The figure has the {MOST} subjects with most questions." if len(names) > MOST else ""
        measure = results.measure
        table = pd.DataFrame({"subject": names, "questions": [str(counts[name]) for name in names]})
        for method, by_subject in found.items():
            table[shown(method)] = [with_interval(estimate, measure) for estimate in by_subject.values()]
        figure = draw_subjects(found, drawn, measure)
        caption = f"{measure.capitalize()} by subject"
        text = SUBJECTS_TEXT.format(measure=measure.capitalize(), order=order, cut=cut)
        return Section(caption, text, {caption: table}, {caption: save(figure, folder, "subjects")})


@styled
def draw_subjects(found: dict[str, dict[str, Estimate]], labels: dict[str, str], measure: str) -> Figure:
    """A group of bars for every subject that has a label, a bar for every method."""
    figure = new_figure(1.3 + len(labels) * (0.1 + 0.1 * len(found)))
    axis = figure.subplots()
    columns = {method: [by_subject[name] for name in labels] for method, by_subject in found.items()}
    means = pd.DataFrame({shown(m): [each.value for each in values] for m, values in columns.items()}, labels.values())
    means.plot.barh(
        ax=axis,
        width=0.8,
        xerr=np.array([margins(values) for values in columns.values()]),
        color=[colour(method) for method in found],
        error_kw={"elinewidth": 0.8, "ecolor": INK},
        legend=False,
    )
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    score_axis(axis.xaxis, measure)
    axis.grid(axis="x")
    figure.legend(loc="outside upper center", ncols=len(found))
    return figure


class SolvedVenn(Analysis):
    """A Venn diagram of the questions that receiver, sharer and C2C solve."""

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        methods = [method for method in IN_CIRCLES if method in results.answers]
        if len(methods) < 2:
            return None
        total = len(results.items)
        solved = pd.DataFrame({method: results.scores(method) == 1 for method in methods})
        regions = regions_of(solved)
        nobody, *others = regions.index
        rows = [
            {
                **{shown(method): "yes" if inside else "no" for method, inside in zip(methods, members)},
                "questions": str(regions[members]),
                "share": percent(regions[members] / total),
            }
            for members in (*others, nobody)
        ]
        tables = {"Questions by who solves them": pd.DataFrame(rows)}
        caption = f"Questions solved by {', '.join(methods[:-1])} and {shown(methods[-1])}"
        figure = save(draw_venn(solved, regions), folder, "solved_venn")
        return Section("Who solves what", VENN_TEXT.format(all=total), tables, {caption: figure})


def regions_of(solved: pd.DataFrame) -> pd.Series:
    """How many questions are solved by just these methods, for every combination, the first that of nobody."""
    # The order of matplotlib_venn's regions is that of binary numbers whose lowest bit is the first set.
    combinations = [bits[::-1] for bits in itertools.product((False, True), repeat=len(solved.columns))]
    return solved.value_counts().reindex(combinations, fill_value=0)


@styled
def draw_venn(solved: pd.DataFrame, regions: pd.Series) -> Figure:
    """Two or three equal circles with the number of questions in every region."""
    figure = new_figure(5)
    axis = figure.subplots()
    total, (nobody, *others) = len(solved), regions
    venn, layout = (venn3, Layout3) if len(solved.columns) == 3 else (venn2, Layout2)
    diagram = venn(
        others,
        set_labels=[f"{shown(method)}\n{by} ({percent(by / total)})" for method, by in solved.sum().items()],
        set_colors=[colour(method) for method in solved],
        alpha=0.45,
        layout_algorithm=layout(fixed_subset_sizes=(1,) * len(others)),
        subset_label_formatter=lambda number: f"{number}\n{percent(number / total)}",
        ax=axis,
    )
    for label in (*diagram.subset_labels, *diagram.set_labels):
        if label is not None:
            label.set_fontsize(11)
    figure.text(0.98, 0.03, f"none of them: {nobody} ({percent(nobody / total)})", ha="right", fontsize=11)
    return figure
