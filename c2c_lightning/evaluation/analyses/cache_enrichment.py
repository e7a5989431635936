"""The oracle that motivates C2C: does reading exemplars enrich the question's own cache?

Dimensions: B questions, N few-shot prompt tokens, N0 direct prompt tokens, H kv heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from c2c_lightning.communication import Communicator, Message
from c2c_lightning.communication.cache import position_ids, prefill
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.analyses.base import Analysis
from c2c_lightning.evaluation.analyses.style import (
    colour,
    differences,
    draw_references,
    draw_series,
    estimates,
    margins,
    measure_of,
    new_figure,
    save,
    score_axis,
    with_interval,
)
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.clock import StageClock
from c2c_lightning.evaluation.decoding import Prefill
from c2c_lightning.evaluation.item import Item
from c2c_lightning.evaluation.methods import Answering, Method
from c2c_lightning.evaluation.methods.base import read_prompts
from c2c_lightning.evaluation.questions import Questions
from c2c_lightning.evaluation.results import BenchmarkResults
from c2c_lightning.evaluation.section import Section
from c2c_lightning.evaluation.statistics import Estimate

SHOTS = 5
TEXT = """\
No sharer here: the receiver alone reads {shots} exemplars before each question (`few_shot`). Then the \
exemplars' cache is taken away, and only the question's own tokens, which have read them, may be attended to \
(`enriched`). If that is better than reading the question alone (`receiver`), the question's cache can be \
made richer without being made longer, which is what C2C relies on. Positions stay as they were, and so does \
what precedes the first exemplar (a system prompt, a token that begins every text).{by_layer}

Source: the oracle experiment of the paper (arXiv 2510.03215): direct 58.4, few-shot 63.4, enriched 62.3%; \
enriching single layers helps with some and harms with others."""
BY_LAYER = """ \
`enriched_layer_N` takes the question's cache of layer N alone from the few-shot reading; the other layers \
come from a reading of the question alone at the same positions."""


class CacheEnrichment(Analysis):
    """Direct, few-shot, and few-shot with the exemplars' cache taken away, for all layers and for each.

    Costs a further evaluation with a longer prompt for `few_shot`, for `enriched`, and for every layer.

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

    def methods(self, communicator: Communicator) -> list[Method]:
        layers = range(communicator.fusers[0].receiver.num_layers) if self.by_layer else ()
        of_layers = [EnrichedLayer(layer, self.shots, self.seed) for layer in layers]
        return [FewShot(self.shots, self.seed), Enriched(self.shots, self.seed), *of_layers]

    def section(self, communicator: Communicator, results: BenchmarkResults, folder: Path) -> Section | None:
        methods = [m for m in self.methods(communicator) if m.name in results.answers]
        if not methods:
            return None
        names = {"receiver": "receiver"} | {type(m).kind: m.name for m in methods if not isinstance(m, EnrichedLayer)}
        whole = {kind: e for kind, name in names.items() for e in estimates(results, [name]).values()}
        layers = {m.layer: m.name for m in methods if isinstance(m, EnrichedLayer)}
        single = estimates(results, list(layers.values()))
        measure = measure_of(results, [*(names[kind] for kind in whole), *single])
        rows = [
            {"method": name, measure: with_interval(estimate, measure)} | differences(results, name, "receiver")
            for name, estimate in {**{names[kind]: e for kind, e in whole.items()}, **single}.items()
        ]
        caption = f"{measure.capitalize()} when the question's cache has read exemplars"
        figure = draw(whole, dict(zip(layers, single.values())), measure)
        shots = min(self.shots, len(results.benchmark.exemplar_items()))
        return Section(
            "Cache enrichment (oracle)",
            TEXT.format(shots=shots, by_layer=BY_LAYER if layers else ""),
            {caption: pd.DataFrame(rows)},
            {caption: save(figure, folder, "cache_enrichment")},
        )


class FewShot(Answering):
    """The receiver reads exemplars, as earlier turns of the conversation, and then the question.

    Args:
        shots: how many exemplars, the same ones for every question (of a subject).
        seed: of their choice.
    """

    kind: ClassVar[str] = "few_shot"

    def __init__(self, shots: int, seed: int):
        self.shots, self.seed = shots, seed
        self.name = name_of(self.kind, shots, seed)
        self.description = f"the receiver alone, after {shots} exemplars"

    def why_not(self, benchmark: Benchmark, communicator: Communicator) -> str | None:
        return None if benchmark.exemplar_items() else "the benchmark has no exemplars"

    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        aligner = communicator.aligner
        with clock("tokenization"):
            benchmark = questions.benchmark
            texts = []
            for item in questions.items:
                exemplars = choose(benchmark.exemplar_items(), item.subject, self.shots, self.seed)
                texts.append(aligner.render(aligner.receiver, conversation(benchmark, exemplars, item)))
        return read_prompts(communicator.receiver, aligner.receiver, texts, clock, "receiver prefill")


class Enriched(FewShot):
    """The same, but what the question's tokens do not stand in may no longer be attended to."""

    kind = "enriched"

    def __init__(self, shots: int, seed: int):
        super().__init__(shots, seed)
        self.description = f"the receiver on the question's own cache after {shots} exemplars, without theirs"

    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        start = super().prefill(communicator, questions, clock)
        own = Own.find(start, questions.batch(communicator).prompt_ids, questions.batch(communicator).prompt_mask)
        start.position_ids = position_ids(start.mask)
        start.mask = own.mask_BN
        return start


class EnrichedLayer(FewShot):
    """One layer's cache of the question's tokens from the few-shot reading, the others' from a direct one.

    Args:
        layer: of the receiver.
        shots: how many exemplars.
        seed: of their choice.
    """

    def __init__(self, layer: int, shots: int, seed: int):
        super().__init__(shots, seed)
        self.layer, self.name = layer, name_of(f"enriched_layer_{layer}", shots, seed)
        self.description = f"the receiver with layer {layer} of the question's cache after {shots} exemplars"

    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        few_shot = super().prefill(communicator, questions, clock)
        batch = questions.batch(communicator)
        ids, mask = batch.prompt_ids, batch.prompt_mask
        own = Own.find(few_shot, ids, mask)
        with clock("receiver prefill"):
            cache = prefill(communicator.receiver, ids[:, :-1], mask[:, :-1], own.positions_BN0[:, :-1])
        direct, enriched = cache.layers[self.layer], few_shot.cache.layers[self.layer]
        # Both end with the question, of which the last token is in neither cache.
        width, is_question = ids.shape[1] - 1, own.is_question_BN0[:, None, :-1, None]
        direct.keys = torch.where(is_question, enriched.keys[:, :, -width:], direct.keys)
        direct.values = torch.where(is_question, enriched.values[:, :, -width:], direct.values)
        return Prefill(
            communicator.receiver, communicator.aligner.receiver, ids, mask, cache, position_ids=own.positions_BN0
        )


@dataclass
class Own:
    """Which tokens of few-shot prompts are of the direct prompts.

    Attributes:
        mask_BN: of the few-shot prompts, 1 for what the direct prompt has too: what both begin and end with.
        positions_BN0: where the direct prompts' tokens stand in the few-shot prompts.
        is_question_BN0: bool, which of the direct prompts' tokens both end with.
    """

    mask_BN: Tensor
    positions_BN0: Tensor
    is_question_BN0: Tensor

    @classmethod
    def find(cls, few_shot: Prefill, direct_ids: Tensor, direct_mask: Tensor) -> Own:
        own, positions = torch.zeros_like(few_shot.mask), position_ids(direct_mask)
        is_question = torch.zeros_like(direct_mask, dtype=torch.bool)
        for row in range(len(own)):
            long = few_shot.ids[row, few_shot.mask[row] == 1].tolist()
            short = direct_ids[row, direct_mask[row] == 1].tolist()
            ending = common(long[::-1], short[::-1])
            beginning = min(common(long, short), len(short) - ending)
            own[row, own.shape[1] - ending :] = 1
            first = own.shape[1] - len(long)
            own[row, first : first + beginning] = 1
            is_question[row, is_question.shape[1] - ending :] = True
            positions[row, positions.shape[1] - len(short) + beginning :] += len(long) - len(short)
        return cls(own, positions, is_question)


def name_of(kind: str, shots: int, seed: int) -> str:
    """A method's name: answers after other exemplars must not be taken for its own when a run goes on."""
    return kind + (f"_{shots}_shots" if shots != SHOTS else "") + (f"_seed_{seed}" if seed else "")


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


def choose(exemplars: Sequence[Item], subject: str, shots: int, seed: int) -> list[Item]:
    """Some exemplars in random order, of the subject if it has any; all if there are too few."""
    pool = [exemplar for exemplar in exemplars if exemplar.subject == subject] or exemplars
    order = np.random.default_rng(seed).permutation(len(pool))[:shots]
    return [pool[i] for i in order]


def conversation(benchmark: Benchmark, exemplars: Sequence[Item], item: Item) -> list[Message]:
    """The exemplars as earlier turns, each with its right answer, and then the question."""
    messages: list[Message] = []
    for exemplar in exemplars:
        turn = benchmark.messages(exemplar)
        messages += [*(turn if not messages else [m for m in turn if m["role"] != "system"])]
        messages.append({"role": "assistant", "content": benchmark.response(exemplar)})
    return [*messages, *(m for m in benchmark.messages(item) if not messages or m["role"] != "system")]


def draw(whole: dict[str, Estimate], single: dict[int, Estimate], measure: str) -> Figure:
    """Lines for direct, few-shot and enriched, and points for single layers; bars if there are no layers."""
    figure = new_figure(4 if single else 2.4)
    axis = figure.subplots()
    if single:
        draw_references(axis, whole)
        draw_series(axis, list(single), list(single.values()), "only this layer enriched", "#000000", "o")
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
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    return figure
