"""What each layer's fusion is worth: switched off, and alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing.forest import Estimate
from c2c_lightning.drawing.style import (
    CONTRAST,
    colour,
    draw_references,
    draw_series,
    new_figure,
    save,
    score_axis,
    styled,
)
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses.base import Analysis, differences, estimates
from c2c_lightning.evaluation.asking.clock import StageClock
from c2c_lightning.evaluation.asking.decoding import Prefill
from c2c_lightning.evaluation.asking.questions import Questions
from c2c_lightning.evaluation.methods import C2C, Method
from c2c_lightning.evaluation.report.formatting import with_interval
from c2c_lightning.evaluation.report.page import Section
from c2c_lightning.evaluation.report.results import BenchmarkResults
from c2c_lightning.fuser import Fusers
from c2c_lightning.models import Reading

TEXT = """\
Every fused layer is once left out (`without_layer_N`: its gates are closed, of keys and values and of all \
sharers) and once fused alone (`only_layer_N`: all other gates are closed). Without a layer that C2C needs, \
{measure} falls below C2C's; with only a layer that suffices, it rises above the receiver's. Differences are \
paired, with 95% intervals; no correction is made for the number of layers. Layers whose gates are closed \
anyway are looked at only if they were asked for."""


class LayerAblation(Analysis):
    """The mean score without each layer's fusion, and with no other.

    Costs two further evaluations of every benchmark for each layer.

    Args:
        layers: receiver layers to look at; None for all whose gate is open.
    """

    def __init__(self, layers: list[int] | None = None):
        self.layers = layers

    def methods(self, communicator: Communicator) -> list[Method]:
        return [method for pair in self.pairs(communicator) for method in pair]

    def pairs(self, communicator: Communicator) -> list[tuple[WithoutLayer, OnlyLayer]]:
        """For each layer that is looked at C2C without it, and with it only."""
        return [(WithoutLayer(layer), OnlyLayer(layer)) for layer in self.chosen_layers(communicator)]

    def chosen_layers(self, communicator: Communicator) -> list[int]:
        """The layers that are looked at.

        Raises:
            UserError: a layer that is not fused was asked for.
        """
        if self.layers is None:
            return sorted({g.receiver_layers[layer] for g in communicator.fusers.gates for _, layer in g.active()})
        fused = communicator.fusers.fused_layers
        strangers = sorted(set(self.layers) - set(fused))
        if strangers:
            raise UserError(f"layers of LayerAblation has {strangers}, but the fuser's receiver layers are {fused}.")
        return self.layers

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        pairs = self.pairs(communicator)
        if not pairs:
            return None
        measure = results.measure
        without, only = (estimates(results, [method.name for method in methods]) for methods in zip(*pairs))
        rows = []
        for without_it, only_it in pairs:
            rows.append(
                {
                    "layer": str(without_it.layer),
                    f"without: {measure}": with_interval(without[without_it.name], measure),
                }
                | differences(results, without_it.name, "c2c", "without: ")
                | {f"only: {measure}": with_interval(only[only_it.name], measure)}
                | differences(results, only_it.name, "receiver", "only: ")
            )
        figure = draw(
            [without_it.layer for without_it, _ in pairs],
            list(without.values()),
            list(only.values()),
            estimates(results, ["c2c", "receiver"]),
            measure,
        )
        caption = f"{measure.capitalize()} without and with only one layer"
        return Section(
            "Which layers matter",
            TEXT.format(measure=measure),
            {caption: pd.DataFrame(rows)},
            {caption: save(figure, folder, "layer_ablation")},
        )


class WithoutLayer(C2C):
    """C2C with one layer's gates closed.

    Args:
        layer: of the receiver.
    """

    def __init__(self, layer: int):
        self.layer = layer
        self.name, self.description = f"without_layer_{layer}", f"C2C without fusion in layer {layer}"

    def closed(self, fusers: Fusers) -> set[int]:
        """The layers that are not fused."""
        return {self.layer}

    def prefill(self, reading: Reading, fusers: Fusers, questions: Questions, clock: StageClock) -> Prefill:
        with closed_gates(fusers, self.closed(fusers)):
            return super().prefill(reading, fusers, questions, clock)


class OnlyLayer(WithoutLayer):
    """C2C with all gates closed but one layer's, which is as it was learned."""

    def __init__(self, layer: int):
        super().__init__(layer)
        self.name, self.description = f"only_layer_{layer}", f"C2C with fusion in layer {layer} only"

    def closed(self, fusers: Fusers) -> set[int]:
        return set(fusers.fused_layers) - {self.layer}


@contextmanager
def closed_gates(fusers: Fusers, layers: Collection[int]) -> Iterator[None]:
    """Within it, the gates of some receiver layers are closed, for every part, head and sharer."""
    kept = [gate.logit.detach().clone() for gate in fusers.gates]
    try:
        with torch.no_grad():
            for gate, logit_PLH in zip(fusers.gates, kept):
                stays_L = torch.tensor([layer not in layers for layer in gate.receiver_layers], device=logit_PLH.device)
                gate.logit.copy_(torch.where(stays_L[:, None], logit_PLH, -1.0))
        yield
    finally:
        with torch.no_grad():
            for gate, logit_PLH in zip(fusers.gates, kept):
                gate.logit.copy_(logit_PLH)


@styled
def draw(
    layers: list[int], without: list[Estimate], only: list[Estimate], references: dict[str, Estimate], measure: str
) -> Figure:
    """Both mean scores of every layer, beside those of C2C and the receiver."""
    figure = new_figure(4)
    axis = figure.subplots()
    draw_references(axis, references)
    draw_series(axis, [layer - 0.12 for layer in layers], without, "C2C without the layer", colour("c2c"), "o")
    draw_series(axis, [layer + 0.12 for layer in layers], only, "C2C with only the layer", CONTRAST, "s")
    axis.set_xlabel("receiver layer")
    axis.xaxis.get_major_locator().set_params(integer=True)
    score_axis(axis.yaxis, measure)
    axis.grid()
    figure.legend(loc="outside lower center", ncols=4)
    return figure
