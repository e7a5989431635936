"""What every analysis is, a callback of the test loop that draws, and what several of them show alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from c2c_lightning import drawing
from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing import Estimate, shown
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.asking.methods import Method
from c2c_lightning.evaluation.report.findings import BenchmarkResults
from c2c_lightning.evaluation.report.page import NOTHING, Section, doubt, p_value, points_with_interval, with_interval
from c2c_lightning.evaluation.report.statistics import accuracy, compare


class Analysis(L.Callback, ABC):
    """Looks into what was communicated.

    An analysis may ask the benchmark's questions in further ways (`methods`), whose answers are kept and
    resumed like all others; if it is also an `Observer`, it sees the caches of the whole benchmark.
    """

    def methods(self, communicator: Communicator) -> Sequence[Method]:
        """The further ways to answer that it compares."""
        return []

    def check(self, communicator: Communicator, asked: Sequence[str]) -> None:
        """Raises UserError if it cannot be made of these models and methods; called before anything is written."""

    @abstractmethod
    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        """What it has to say about a benchmark, its figures saved in `folder`; None for nothing."""


class TextAnalysis(Analysis):
    """An analysis of what is handed over of texts that the sharer alone reads.

    Raises:
        UserError: there are no such texts, or the fuser has no mapper.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not any(benchmark.context == "sharer" for benchmark in trainer.datamodule.benchmarks):
            raise UserError(
                f"trainer.callbacks has {type(self).__name__}, but in no benchmark does the sharer alone read a text: give "
                "one context: sharer, or leave it out."
            )

    def check(self, communicator: Communicator, asked: Sequence[str]) -> None:
        if not communicator.hands_over:
            raise UserError(f"trainer.callbacks has {type(self).__name__}, but the fuser has no mapper: leave it out.")


def estimates(results: BenchmarkResults, methods: Sequence[str]) -> dict[str, Estimate]:
    """Mean scores with their intervals, of those methods that were asked."""
    return {m: accuracy(results.scores(m), results.seed) for m in methods if m in results.answers}


def score_cells(results: BenchmarkResults, method: str, reference: str, label: str = "") -> dict[str, str]:
    """Cells of a table: a method's mean score, and if the reference was asked, how much better it is and p."""
    cells = {f"{label}{results.measure}": with_interval(estimates(results, [method])[method], results.measure)}
    if reference not in results.answers:
        return cells
    points, p = NOTHING, NOTHING
    if method != reference:
        compared = compare(results.scores(method), results.scores(reference), results.seed)
        points = points_with_interval(compared.difference)
        p = p_value(compared.p) + doubt(compared)
    return cells | {f"{label}less {shown(reference)}, points": points, f"{label}p": p}


def layer_axis(axis: Axis) -> None:
    axis.set_label_text("receiver layer")
    axis.get_major_locator().set_params(integer=True)


@drawing.styled
def draw_by_layer(
    references: Mapping[str, Estimate],
    series: Sequence[tuple[Sequence[float], list[Estimate], str, str, str]],
    measure: str,
) -> Figure:
    """Mean scores by layer (of each series places, scores, label, colour, marker), beside those of whole methods."""
    figure = drawing.new_figure(4)
    axis = figure.subplots()
    drawing.draw_references(axis, references)
    for each in series:
        drawing.draw_series(axis, *each)
    layer_axis(axis.xaxis)
    drawing.score_axis(axis.yaxis, measure)
    axis.grid()
    figure.legend(loc="outside lower center", ncols=4)
    return figure
