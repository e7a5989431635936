"""How much of the prompt has to be fused, and whether its beginning or its end matters more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing.forest import ACCENT, Estimate
from c2c_lightning.drawing.style import CONTRAST, draw_series, new_figure, save, score_axis, styled
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses.base import Analysis, estimates
from c2c_lightning.evaluation.asking.clock import StageClock
from c2c_lightning.evaluation.asking.decoding import Prefill
from c2c_lightning.evaluation.asking.methods import cache_bytes
from c2c_lightning.evaluation.asking.questions import Questions
from c2c_lightning.evaluation.methods import C2C
from c2c_lightning.evaluation.report.formatting import with_interval
from c2c_lightning.evaluation.report.page import Section
from c2c_lightning.evaluation.report.results import BenchmarkResults
from c2c_lightning.fuser import Fusers
from c2c_lightning.models import Batch, Reading
from c2c_lightning.models.alignment import UNALIGNED
from c2c_lightning.models.batch import SharerPrompt

End = Literal["front", "back"]
ENDS: tuple[End, ...] = ("front", "back")
COLOURS = {"front": ACCENT, "back": CONTRAST}
TEXT = """\
Only a part of each prompt is fused: the first tokens (`front_25` for the first 25%) or the last \
(`back_25`); the others keep the receiver's own cache, as a token does that has no sharer token opposite. \
Nothing fused is the receiver, everything C2C. The last prompt token is never fused and does not count."""


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
        for end in ENDS:
            named = {0: "receiver", **{m.percentage: m.name for m in methods if m.end == end}, 100: "c2c"}
            series[end] = {percentage: found[name] for percentage, name in named.items() if name in found}
        measure = results.measure
        columns = {
            f"from the {end}: {measure}": [with_interval(e, measure) for e in series[end].values()] for end in ENDS
        }
        table = pd.DataFrame({"fused": [f"{p}%" for p in series["front"]], **columns})
        caption = f"{measure.capitalize()} against the share of the prompt that is fused"
        figure = draw(series, measure)
        return Section(
            "How much of the prompt is fused", TEXT, {caption: table}, {caption: save(figure, folder, "fused_fraction")}
        )


class PartlyFused(C2C):
    """C2C on the first or last tokens of every prompt; only what they hear counts as handed over.

    Args:
        end: where the fused tokens are.
        percentage: of the prompt's tokens, from 0 to 100.
    """

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

    def fused_stack(self, reading: Reading, fusers: Fusers, stacks: dict[int, Tensor], questions: Questions) -> Tensor:
        return fusers.fused_stack(reading.opposite_only(self.chosen(reading.batch)), stacks)

    def prefill(self, reading: Reading, fusers: Fusers, questions: Questions, clock: StageClock) -> Prefill:
        start = super().prefill(reading, fusers, questions, clock)
        partly = reading.opposite_only(self.chosen(reading.batch)).batch
        heard = replace(partly, sharers=[replace(sharer, mask=opposite(sharer)) for sharer in partly.sharers])
        start.handed_over = cache_bytes(reading.models.read(heard), fusers, fusers.open_sharers())
        return start


def opposite(sharer: SharerPrompt) -> Tensor:
    """(B, S) 1 for the sharer's tokens that some token of the receiver has opposite."""
    aligned_BN = (sharer.positions != UNALIGNED).to(sharer.mask.dtype)
    return torch.zeros_like(sharer.mask).scatter_add(1, sharer.positions.clamp(min=0), aligned_BN).clamp(max=1)


@styled
def draw(series: dict[End, dict[int, Estimate]], measure: str) -> Figure:
    """A line for each end."""
    figure = new_figure(3.8)
    axis = figure.subplots()
    for end, marker, shift, line in zip(ENDS, "os", (-0.6, 0.6), ("-", "--")):
        places = [p + shift * (0 < p < 100) for p in series[end]]
        draw_series(axis, places, list(series[end].values()), f"from the {end}", COLOURS[end], marker, line)
    axis.set_xlabel("fused share of the prompt's tokens")
    score_axis(axis.yaxis, measure)
    axis.set_xticks(list(series["front"]), [f"{p}%" for p in series["front"]])
    axis.grid()
    axis.legend()
    return figure
