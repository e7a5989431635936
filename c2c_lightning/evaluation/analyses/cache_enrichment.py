"""The oracle that motivates C2C: does reading exemplars, which may then be taken away, enrich the question's own cache?

Dimensions: B questions, N few-shot prompt tokens, N0 direct prompt tokens, H kv heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from c2c_lightning import drawing
from c2c_lightning.communicator import Communicator
from c2c_lightning.drawing import INK, Estimate
from c2c_lightning.errors import check_at_least
from c2c_lightning.evaluation.analyses.base import Analysis, draw_by_layer, estimates, score_cells
from c2c_lightning.evaluation.asking.decoding import Prefill, common
from c2c_lightning.evaluation.asking.methods import Answering, Asking
from c2c_lightning.evaluation.benchmarks import Benchmark, Item
from c2c_lightning.evaluation.report.findings import BenchmarkResults
from c2c_lightning.evaluation.report.page import Section
from c2c_lightning.models import Message
from c2c_lightning.models.cache import branch, position_ids, prefill

SHOTS = 5
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
        check_at_least(1, "{} of CacheEnrichment", shots=shots)
        self.shots, self.by_layer, self.seed = shots, by_layer, seed

    def methods(self, communicator: Communicator) -> list[FewShot]:
        layers = range(communicator.models.receiver_shape.num_layers) if self.by_layer else ()
        of_layers = [EnrichedLayer(layer, self.shots, self.seed) for layer in layers]
        return [FewShot(self.shots, self.seed), Enriched(self.shots, self.seed), *of_layers]

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        methods = [method for method in self.methods(communicator) if method.name in results.answers]
        if not methods:
            return None
        found = estimates(results, ["receiver", *(method.name for method in methods)])
        single = {m.layer: found[m.name] for m in methods if isinstance(m, EnrichedLayer)}
        kinds = {"receiver": "receiver"} | {m.name: m.kind for m in methods if not isinstance(m, EnrichedLayer)}
        whole = {kind: found[name] for name, kind in kinds.items() if name in found}
        measure = results.measure
        rows = [{"method": name} | score_cells(results, name, "receiver") for name in found]
        shots = min(self.shots, len(results.benchmark.exemplar_items()))
        caption = f"{measure.capitalize()} when the question's cache has read exemplars"
        if single:
            series = [(list(single), list(single.values()), "only this layer enriched", INK, "o")]
            figure = draw_by_layer(whole, series, measure)
        else:
            figure = draw_bars(whole, measure)
        figures = {caption: drawing.save(figure, folder, "cache_enrichment")}
        text = TEXT.format(shots=shots, by_layer=BY_LAYER if single else "")
        return Section("Cache enrichment (oracle)", text, {caption: pd.DataFrame(rows)}, figures)


class FewShot(Answering):
    """The receiver reads exemplars, as earlier turns of the conversation, and then the question.

    The exemplars are the same ones for every question (of a subject), chosen by the seed.
    """

    kind, does = "few_shot", "the receiver alone, after {shots} exemplars"

    def __init__(self, shots: int, seed: int):
        self.shots, self.seed = shots, seed
        # Answers after other exemplars must not be taken for its own when a run goes on.
        self.name = self.kind + (f"_{shots}_shots" if shots != SHOTS else "") + (f"_seed_{seed}" if seed else "")
        self.description = self.does.format(shots=shots)

    def why_not(self, benchmark: Benchmark) -> str | None:
        return None if benchmark.exemplar_items() else "the benchmark has no exemplars"

    def prefill(self, asking: Asking) -> Prefill:
        questions, models = asking.questions, asking.reading.models

        def chats() -> list[list[Message]]:
            return [conversation(questions.benchmark, item, self.shots, self.seed) for item in questions.items]

        key = ("few-shot", self.shots, self.seed)
        return asking.read_prompts(models.receiver, models.aligner.receiver, chats, "receiver prefill", key)

    def shared(self, few_shot: Prefill, asking: Asking) -> SharedTokens:
        batch = asking.reading.batch
        find = partial(SharedTokens.find, few_shot, batch.prompt_ids, batch.prompt_mask)
        return asking.once("tokenization", ("shared", self.shots, self.seed), find)


class Enriched(FewShot):
    """The same cache with everything but the question's own tokens masked."""

    kind, does = "enriched", "the same cache with everything but the question's own tokens masked"

    def prefill(self, asking: Asking) -> Prefill:
        start = super().prefill(asking)
        start.position_ids = position_ids(start.mask)
        start.mask = self.shared(start, asking).mask_BN
        return start


class EnrichedLayer(FewShot):
    """One receiver layer's cache of the question's tokens from the few-shot reading, the others' from a direct one."""

    def __init__(self, layer: int, shots: int, seed: int):
        self.layer, self.kind = layer, f"enriched_layer_{layer}"
        self.does = f"the receiver with layer {layer} of the question's cache after {{shots}} exemplars"
        super().__init__(shots, seed)

    def prefill(self, asking: Asking) -> Prefill:
        few_shot, batch = super().prefill(asking), asking.reading.batch
        receiver, ids, mask = asking.reading.models.receiver, batch.prompt_ids, batch.prompt_mask
        shared = self.shared(few_shot, asking)
        positions_BN0 = shared.positions_BN0
        # The question alone, at the positions that it has behind the exemplars.
        direct = partial(prefill, receiver, ids[:, :-1], mask[:, :-1], positions_BN0[:, :-1])
        cache = branch(asking.once("receiver prefill", ("moved", self.shots, self.seed), direct))
        # Both prompts end with the question; its last token is in neither cache.
        into, rich, width = cache.layers[self.layer], few_shot.cache.layers[self.layer], ids.shape[1] - 1
        is_question = shared.is_question_BN0[:, None, :-1, None]
        into.keys = torch.where(is_question, rich.keys[:, :, -width:], into.keys)
        into.values = torch.where(is_question, rich.values[:, :, -width:], into.values)
        return Prefill(receiver, few_shot.tokenizer, ids, mask, cache, position_ids=positions_BN0)


@dataclass
class SharedTokens:
    """Which tokens of few-shot prompts are of the direct prompts."""

    mask_BN: Tensor  # of the few-shot prompts, 1 for what both prompts begin and end with
    positions_BN0: Tensor  # where the direct prompts' tokens stand in the few-shot prompts
    is_question_BN0: Tensor  # bool, which of the direct prompts' tokens both end with

    @classmethod
    def find(cls, few_shot: Prefill, direct_ids: Tensor, direct_mask: Tensor) -> SharedTokens:
        shared, positions = torch.zeros_like(few_shot.mask), position_ids(direct_mask)
        is_question = torch.zeros_like(direct_mask, dtype=torch.bool)
        for row in range(len(shared)):
            long = few_shot.ids[row, few_shot.mask[row] == 1].tolist()
            short = direct_ids[row, direct_mask[row] == 1].tolist()
            ending = common(long[::-1], short[::-1])
            beginning = min(common(long, short), len(short) - ending)
            shared[row, shared.shape[1] - ending :] = 1
            first = shared.shape[1] - len(long)
            shared[row, first : first + beginning] = 1
            is_question[row, is_question.shape[1] - ending :] = True
            positions[row, positions.shape[1] - len(short) + beginning :] += len(long) - len(short)
        return cls(shared, positions, is_question)


def conversation(benchmark: Benchmark, item: Item, shots: int, seed: int) -> list[Message]:
    """Exemplars as earlier turns, each with its right answer, and then the question.

    They are in random order, of the question's subject if it has any, and all if there are too few.
    """
    exemplars = benchmark.exemplar_items()
    pool = [exemplar for exemplar in exemplars if exemplar.subject == item.subject] or exemplars
    messages: list[Message] = []
    for place in np.random.default_rng(seed).permutation(len(pool))[:shots]:
        messages += benchmark.messages(pool[place])
        messages.append({"role": "assistant", "content": benchmark.response(pool[place])})
    messages += benchmark.messages(item)
    # Templates know one system prompt, which comes first.
    return [message for i, message in enumerate(messages) if i == 0 or message["role"] != "system"]


@drawing.styled
def draw_bars(whole: dict[str, Estimate], measure: str) -> Figure:
    figure = drawing.new_figure(2.4)
    axis = figure.subplots()
    values, colours = list(whole.values()), [drawing.colour(name) for name in whole]
    axis.barh(list(whole), [e.value for e in values], xerr=drawing.margins(values), color=colours, capsize=3)
    axis.invert_yaxis()
    drawing.score_axis(axis.xaxis, measure)
    axis.grid()
    return figure
