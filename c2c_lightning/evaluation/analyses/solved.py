"""Who solves what: mean scores by subject, and the overlap of the questions that receiver, sharer and C2C solve."""

from __future__ import annotations

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
from c2c_lightning.evaluation.report.findings import BenchmarkResults
from c2c_lightning.evaluation.report.formatting import percent, with_interval
from c2c_lightning.evaluation.report.page import Section
from c2c_lightning.evaluation.report.statistics import accuracy

BY_SUBJECT = ("receiver", "sharer", "text_to_text", "c2c")
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
        methods = [method for method in BY_SUBJECT if method in results.answers]
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
        by_subject = {
            name: {method: accuracy(scores[method][subjects == name], results.seed) for method in methods}
            for name in names
        }
        counts = {name: int((subjects == name).sum()) for name in names}
        drawn = set(sorted(names, key=lambda name: -counts[name])[:MOST])
        cut = f" The figure has the {MOST} subjects with most questions." if len(names) > MOST else ""
        measure = results.measure
        table = pd.DataFrame({"subject": names, "questions": [str(counts[name]) for name in names]})
        for method in methods:
            table[shown(method)] = [with_interval(by_subject[name][method], measure) for name in names]
        figure = draw_subjects({name: by_subject[name] for name in names if name in drawn}, counts, measure)
        caption = f"{measure.capitalize()} by subject"
        text = SUBJECTS_TEXT.format(measure=measure.capitalize(), order=order, cut=cut)
        return Section(caption, text, {caption: table}, {caption: save(figure, folder, "subjects")})


@styled
def draw_subjects(by_subject: dict[str, dict[str, Estimate]], counts: dict[str, int], measure: str) -> Figure:
    """A group of bars for every subject, a bar for every method."""
    methods = list(next(iter(by_subject.values())))
    figure = new_figure(1.3 + len(by_subject) * (0.1 + 0.1 * len(methods)))
    axis = figure.subplots()
    height = 0.8 / len(methods)
    places = np.arange(len(by_subject))
    for k, method in enumerate(methods):
        values = [by_method[method] for by_method in by_subject.values()]
        axis.barh(
            places + (k - (len(methods) - 1) / 2) * height,
            [estimate.value for estimate in values],
            height,
            xerr=margins(values),
            color=colour(method),
            error_kw={"elinewidth": 0.8, "ecolor": INK},
            label=shown(method),
        )
    axis.set_yticks(places, [f"{name} ({counts[name]})" for name in by_subject])
    axis.set_ylim(len(by_subject) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    score_axis(axis.xaxis, measure)
    axis.grid(axis="x")
    figure.legend(loc="outside upper center", ncols=len(methods))
    return figure


class SolvedVenn(Analysis):
    """A Venn diagram of the questions that receiver, sharer and C2C solve."""

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        methods = [method for method in IN_CIRCLES if method in results.answers]
        if len(methods) < 2:
            return None
        total = len(results.items)
        solved = {m: {i for i, score in enumerate(results.scores(m)) if score == 1} for m in methods}
        regions = regions_of(solved)
        rows = [
            {
                **{shown(method): "yes" if inside else "no" for method, inside in zip(methods, members)},
                "questions": str(number),
                "share": percent(number / total),
            }
            for members, number in {**regions, (False,) * len(methods): total - sum(regions.values())}.items()
        ]
        tables = {"Questions by who solves them": pd.DataFrame(rows)}
        caption = f"Questions solved by {', '.join(methods[:-1])} and {shown(methods[-1])}"
        figure = save(draw_venn(solved, regions, total), folder, "solved_venn")
        return Section("Who solves what", VENN_TEXT.format(all=total), tables, {caption: figure})


def regions_of(solved: dict[str, set[int]]) -> dict[tuple[bool, ...], int]:
    """How many questions are solved by just these methods, for every combination but nobody."""
    everything = set().union(*solved.values())
    members = [tuple(question in by for by in solved.values()) for question in everything]
    combinations = [tuple(bool(code >> bit & 1) for bit in range(len(solved))) for code in range(1, 2 ** len(solved))]
    return {combination: members.count(combination) for combination in combinations}


@styled
def draw_venn(solved: dict[str, set[int]], regions: dict[tuple[bool, ...], int], total: int) -> Figure:
    """Two or three equal circles with the number of questions in every region."""
    figure = new_figure(5)
    axis = figure.subplots()
    venn, layout = (venn3, Layout3) if len(solved) == 3 else (venn2, Layout2)
    # The order of matplotlib_venn's regions is that of binary numbers whose lowest bit is the first set.
    diagram = venn(
        tuple(regions.values()),
        set_labels=[f"{shown(method)}\n{len(by)} ({percent(len(by) / total)})" for method, by in solved.items()],
        set_colors=[colour(method) for method in solved],
        alpha=0.45,
        layout_algorithm=layout(fixed_subset_sizes=(1,) * len(regions)),
        subset_label_formatter=lambda number: f"{number}\n{percent(number / total)}",
        ax=axis,
    )
    for label in (*diagram.subset_labels, *diagram.set_labels):
        if label is not None:
            label.set_fontsize(11)
    nobody = total - sum(regions.values())
    figure.text(0.98, 0.03, f"none of them: {nobody} ({percent(nobody / total)})", ha="right", fontsize=11)
    return figure
