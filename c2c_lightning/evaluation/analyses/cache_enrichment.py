"""The oracle that motivates C2C: does reading exemplars enrich the question's own cache?"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing.forest import INK, Estimate
from c2c_lightning.drawing.style import (
    colour,
    draw_references,
    draw_series,
    margins,
    new_figure,
    save,
    score_axis,
    styled,
)
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses.base import Analysis, differences, estimates
from c2c_lightning.evaluation.analyses.few_shot import SHOTS, Enriched, EnrichedLayer, FewShot
from c2c_lightning.evaluation.report.formatting import with_interval
from c2c_lightning.evaluation.report.page import Section
from c2c_lightning.evaluation.report.results import BenchmarkResults

TEXT = """\
No sharer here: the receiver alone reads {shots} exemplars before each question (`few_shot`). Then it answers on \
the same cache with everything but the question's own tokens masked, which have read the exemplars \
(`enriched`). If that is better than reading the question alone (`receiver`), the question's cache can be \
made richer without being made longer, which is what C2C relies on. Positions stay as they were, and so does \
what precedes the first exemplar (a system prompt, a token that begins every text).{by_layer}

Source: the oracle experiment of the paper (arXiv 2510.03215): direct 58.4%, few-shot 63.4%, enriched 62.3%; \
enriching single layers helps with some and harms with others."""
BY_LAYER = """ \
`enriched_layer_N` takes the question's cache of layer N alone from the few-shot reading; the other layers \
come from a reading of the question alone at the same positions."""


class CacheEnrichment(Analysis):
    """Direct, few-shot, and few-shot with the exemplars' cache taken away, for all layers and for each.

    Costs a further evaluation with a longer prompt for `few_shot` and for `enriched`, and a further
    evaluation for every layer, whose prompts are read once for all layers together.

    Args:
        shots: exemplars before each question.
        by_layer: whether to enrich single layers too.
        seed: of the choice of exemplars.

    Raises:
        UserError: less than one exemplar.
    """

    def __init__(self, shots: int = SHOTS, by_layer: bool = True, seed: int = 0):
        if shots < 1:
            raise UserError(f"shots of CacheEnrichment is {shots}: give at least 1.")
        self.shots, self.by_layer, self.seed = shots, by_layer, seed

    def methods(self, communicator: Communicator) -> list[FewShot]:
        layers = range(communicator.fusers[0].receiver.num_layers) if self.by_layer else ()
        of_layers = [EnrichedLayer(layer, self.shots, self.seed) for layer in layers]
        return [FewShot(self.shots, self.seed), Enriched(self.shots, self.seed), *of_layers]

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        methods = [method for method in self.methods(communicator) if method.name in results.answers]
        if not methods:
            return None
        found = estimates(results, ["receiver", *(method.name for method in methods)])
        whole = {m.kind: found[m.name] for m in methods if not isinstance(m, EnrichedLayer)}
        if "receiver" in found:
            whole = {"receiver": found["receiver"]} | whole
        single = {m.layer: found[m.name] for m in methods if isinstance(m, EnrichedLayer)}
        measure = results.measure
        rows = [
            {"method": name, measure: with_interval(estimate, measure)} | differences(results, name, "receiver")
            for name, estimate in found.items()
        ]
        shots = min(self.shots, len(results.benchmark.exemplar_items()))
        caption = f"{measure.capitalize()} when the question's cache has read exemplars"
        return Section(
            "Cache enrichment (oracle)",
            TEXT.format(shots=shots, by_layer=BY_LAYER if single else ""),
            {caption: pd.DataFrame(rows)},
            {caption: save(draw(whole, single, measure), folder, "cache_enrichment")},
        )


@styled
def draw(whole: dict[str, Estimate], single: dict[int, Estimate], measure: str) -> Figure:
    """Lines for direct, few-shot and enriched, and points for single layers; bars if there are no layers."""
    figure = new_figure(4 if single else 2.4)
    axis = figure.subplots()
    if single:
        draw_references(axis, whole)
        draw_series(axis, list(single), list(single.values()), "only this layer enriched", INK, "o")
        axis.set_xlabel("receiver layer")
        axis.xaxis.get_major_locator().set_params(integer=True)
        score_axis(axis.yaxis, measure)
        figure.legend(loc="outside lower center", ncols=4)
    else:
        values = list(whole.values())
        colours = [colour(name) for name in whole]
        axis.barh(list(whole), [e.value for e in values], xerr=margins(values), color=colours, capsize=3)
        axis.invert_yaxis()
        score_axis(axis.xaxis, measure)
    axis.grid()
    return figure
