"""What part of the fusion matters: which layers, switched off and alone, and how much of the prompt."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from c2c_lightning import drawing
from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing import ACCENT, Estimate
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses.base import Analysis, draw_by_layer, estimates, score_cells
from c2c_lightning.evaluation.asking.decoding import Prefill
from c2c_lightning.evaluation.asking.methods import C2C, Asking, cache_bytes
from c2c_lightning.evaluation.report.findings import BenchmarkResults
from c2c_lightning.evaluation.report.page import Section, with_interval
from c2c_lightning.fuser import Fusers
from c2c_lightning.models import Batch
from c2c_lightning.models.batch import SharerPrompt
from c2c_lightning.models.read_text import UNALIGNED

End = Literal["front", "back"]
ENDS: tuple[End, ...] = ("front", "back")
COLOURS = {"front": ACCENT, "back": drawing.CONTRAST}
FRACTION_TEXT = """\
Only a part of each prompt is fused: the first tokens (`front_25` for the first 25%) or the last \
(`back_25`); the others keep the receiver's own cache, as a token does that has no sharer token opposite. \
Nothing fused is the receiver, everything C2C. The last prompt token is never fused and does not count."""
LAYERS_TEXT = """\
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

    def methods(self, communicator: Communicator) -> list[WithoutLayer]:
        return [make(layer) for layer in self.chosen_layers(communicator) for make in (WithoutLayer, OnlyLayer)]

    def chosen_layers(self, communicator: Communicator) -> list[int]:
        """The layers that are looked at; a UserError if one was asked for that is not fused."""
        if self.layers is None:
            return sorted({g.receiver_layers[layer] for g in communicator.fusers.gates for _, layer in g.active()})
        fused = communicator.fusers.fused_layers
        strangers = sorted(set(self.layers) - set(fused))
        if strangers:
            raise UserError(f"layers of LayerAblation has {strangers}, but the fuser's receiver layers are {fused}.")
        return self.layers

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        layers, measure = self.chosen_layers(communicator), results.measure
        if not layers:
            return None
        rows = [
            {"layer": str(layer)}
            | score_cells(results, WithoutLayer(layer).name, "c2c", "without: ")
            | score_cells(results, OnlyLayer(layer).name, "receiver", "only: ")
            for layer in layers
        ]
        found = list(estimates(results, [method.name for method in self.methods(communicator)]).values())
        series = [  # the methods are without a layer and with it only, by turns
            ([layer - 0.12 for layer in layers], found[::2], "C2C without the layer", drawing.colour("c2c"), "o"),
            ([layer + 0.12 for layer in layers], found[1::2], "C2C with only the layer", drawing.CONTRAST, "s"),
        ]
        figure = draw_by_layer(estimates(results, ["c2c", "receiver"]), series, measure)
        caption = f"{measure.capitalize()} without and with only one layer"
        figures = {caption: drawing.save(figure, folder, "layer_ablation")}
        text = LAYERS_TEXT.format(measure=measure)
        return Section("Which layers matter", text, {caption: pd.DataFrame(rows)}, figures)


class WithoutLayer(C2C):
    """C2C with one receiver layer's gates closed."""

    def __init__(self, layer: int):
        self.layer = layer
        self.name, self.description = f"without_layer_{layer}", f"C2C without fusion in layer {layer}"

    def closed(self, fusers: Fusers) -> set[int]:
        """The layers that are not fused."""
        return {self.layer}

    def prefill(self, asking: Asking) -> Prefill:
        with closed_gates(asking.fusers, self.closed(asking.fusers)):
            return super().prefill(asking)


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
    kept = [gate.logit.data for gate in fusers.gates]
    try:
        for gate, logit_PLH in zip(fusers.gates, kept):
            stays_L = torch.tensor([layer not in layers for layer in gate.receiver_layers], device=logit_PLH.device)
            gate.logit.data = torch.where(stays_L[:, None], logit_PLH, -1.0)
        yield
    finally:
        for gate, logit_PLH in zip(fusers.gates, kept):
            gate.logit.data = logit_PLH


class FusedFraction(Analysis):
    """The mean score against the share of the prompt that is fused, from its front and from its back.

    Args:
        percentages: of the prompt's tokens, each more than 0 (the receiver) and less than 100 (C2C).

    Raises:
        UserError: no percentage, or one out of range.
    """

    def __init__(self, percentages: tuple[int, ...] = (25, 50, 75)):
        if not percentages or any(not 0 < p < 100 for p in percentages):
            raise UserError(
                f"percentages of FusedFraction are {list(percentages)}: give some between 1 and 99; "
                "0 is the receiver and 100 is c2c."
            )
        self.percentages = sorted(set(percentages))

    def methods(self, communicator: Communicator) -> list[PartlyFused]:
        return [PartlyFused(end, percentage) for end in ENDS for percentage in self.percentages]

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        methods = self.methods(communicator)
        found = estimates(results, ["receiver", "c2c", *(method.name for method in methods)])
        series: dict[End, dict[int, Estimate]] = {}
        measure, cells = results.measure, {}
        for end in ENDS:
            named = {0: "receiver", **{m.percentage: m.name for m in methods if m.end == end}, 100: "c2c"}
            series[end] = {percentage: found[name] for percentage, name in named.items() if name in found}
            cells[f"from the {end}: {measure}"] = [with_interval(each, measure) for each in series[end].values()]
        table = pd.DataFrame({"fused": [f"{p}%" for p in series["front"]], **cells})
        caption = f"{measure.capitalize()} against the share of the prompt that is fused"
        figure = drawing.save(draw_fraction(series, measure), folder, "fused_fraction")
        return Section("How much of the prompt is fused", FRACTION_TEXT, {caption: table}, {caption: figure})


class PartlyFused(C2C):
    """C2C on the first or last tokens of every prompt; only what they hear counts as handed over."""

    def __init__(self, end: End, percentage: int):
        self.end, self.percentage = end, percentage
        self.name = f"{end}_{percentage}"
        self.description = f"C2C on the {'first' if end == 'front' else 'last'} {percentage}% of each prompt"

    def chosen(self, batch: Batch) -> Tensor:
        """(B, N) bool, the receiver's tokens that are fused."""
        real_BN = batch.prompt_mask[:, :-1].bool()
        length_B1 = real_BN.sum(1, keepdim=True)
        fused_B1 = (length_B1 * self.percentage + 50) // 100
        place_BN = real_BN.cumsum(1) - 1  # of a real token among the real ones
        return place_BN < fused_B1 if self.end == "front" else place_BN >= length_B1 - fused_B1

    def fused_stack(self, asking: Asking, stacks: dict[int, Tensor]) -> Tensor:
        reading = asking.reading
        return asking.fusers.fused_stack(reading.opposite_only(self.chosen(reading.batch)), stacks)

    def prefill(self, asking: Asking) -> Prefill:
        start, reading, fusers = super().prefill(asking), asking.reading, asking.fusers
        partly = reading.opposite_only(self.chosen(reading.batch)).batch
        heard = replace(partly, sharers=[replace(sharer, mask=opposite(sharer)) for sharer in partly.sharers])
        start.handed_over = cache_bytes(reading.models.read(heard), fusers, fusers.open_sharers())
        return start


def opposite(sharer: SharerPrompt) -> Tensor:
    """(B, S) 1 for the sharer's tokens that some token of the receiver has opposite."""
    aligned_BN = (sharer.positions != UNALIGNED).to(sharer.mask.dtype)
    return torch.zeros_like(sharer.mask).scatter_add(1, sharer.positions.clamp(min=0), aligned_BN).clamp(max=1)


@drawing.styled
def draw_fraction(series: dict[End, dict[int, Estimate]], measure: str) -> Figure:
    """A line for each end."""
    figure = drawing.new_figure(3.8)
    axis = figure.subplots()
    for end, marker, shift, line in zip(ENDS, "os", (-0.6, 0.6), ("-", "--")):
        places = [p + shift * (0 < p < 100) for p in series[end]]
        drawing.draw_series(axis, places, list(series[end].values()), f"from the {end}", COLOURS[end], marker, line)
    axis.set_xlabel("fused share of the prompt's tokens")
    drawing.score_axis(axis.yaxis, measure)
    axis.set_xticks(list(series["front"]), [f"{p}%" for p in series["front"]])
    axis.grid()
    axis.legend()
    return figure
