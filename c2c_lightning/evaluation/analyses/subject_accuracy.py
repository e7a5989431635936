"""Mean scores by subject."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing.forest import INK, Estimate
from c2c_lightning.drawing.style import colour, margins, new_figure, save, score_axis, shown, styled
from c2c_lightning.evaluation.analyses.base import Analysis
from c2c_lightning.evaluation.report.formatting import with_interval
from c2c_lightning.evaluation.report.page import Section
from c2c_lightning.evaluation.report.results import BenchmarkResults
from c2c_lightning.evaluation.report.statistics import accuracy

METHODS = ("receiver", "sharer", "text_to_text", "c2c")
MOST = 60
TEXT = """\
{measure} by subject, with 95% intervals (Wilson's where answers are right or wrong): subjects have few \
questions, so that most differences within one may be chance.{order}{cut}"""


class SubjectAccuracy(Analysis):
    """Mean scores of receiver, sharer, text-to-text and C2C in every subject of a benchmark that has subjects."""

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        methods = [method for method in METHODS if method in results.answers]
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
        table = pd.DataFrame(
            [
                {"subject": name, "questions": str(counts[name])}
                | {shown(method): with_interval(estimate, measure) for method, estimate in by_subject[name].items()}
                for name in names
            ]
        )
        figure = draw({name: by_subject[name] for name in names if name in drawn}, counts, measure)
        caption = f"{measure.capitalize()} by subject"
        return Section(
            caption,
            TEXT.format(measure=measure.capitalize(), order=order, cut=cut),
            {caption: table},
            {caption: save(figure, folder, "subjects")},
        )


@styled
def draw(by_subject: dict[str, dict[str, Estimate]], counts: dict[str, int], measure: str) -> Figure:
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
