"""Who solves what: the overlap of the questions that receiver, sharer and C2C answer rightly."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib_venn import venn2, venn3
from matplotlib_venn.layout.venn2 import DefaultLayoutAlgorithm as Layout2
from matplotlib_venn.layout.venn3 import DefaultLayoutAlgorithm as Layout3

from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing.style import colour, new_figure, save, shown, styled
from c2c_lightning.evaluation.analyses.base import Analysis
from c2c_lightning.evaluation.report.formatting import percent
from c2c_lightning.evaluation.report.page import Section
from c2c_lightning.evaluation.report.results import BenchmarkResults

METHODS = ("receiver", "sharer", "c2c")
TEXT = """\
Of {all} questions each circle holds those that a method solves (with a score of 1). What C2C solves and the \
receiver does not is what C2C gained over the receiver, whatever the reason; what the receiver solves and C2C \
does not is what C2C lost. Circles are drawn alike, for readability: their areas mean nothing."""


class SolvedVenn(Analysis):
    """A Venn diagram of the questions that receiver, sharer and C2C solve."""

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        methods = [method for method in METHODS if method in results.answers]
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
        caption = f"Questions solved by {', '.join(methods[:-1])} and {shown(methods[-1])}"
        return Section(
            "Who solves what",
            TEXT.format(all=total),
            {"Questions by who solves them": pd.DataFrame(rows)},
            {caption: save(draw(solved, regions, total), folder, "solved_venn")},
        )


def regions_of(solved: dict[str, set[int]]) -> dict[tuple[bool, ...], int]:
    """How many questions are solved by just these methods, for every combination but nobody."""
    everything = set().union(*solved.values())
    members = [tuple(question in by for by in solved.values()) for question in everything]
    combinations = [tuple(bool(code >> bit & 1) for bit in range(len(solved))) for code in range(1, 2 ** len(solved))]
    return {combination: members.count(combination) for combination in combinations}


@styled
def draw(solved: dict[str, set[int]], regions: dict[tuple[bool, ...], int], total: int) -> Figure:
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
