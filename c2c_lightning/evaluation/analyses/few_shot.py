"""The receiver on questions that have read exemplars, which may then be taken away.

Dimensions: B questions, N few-shot prompt tokens, N0 direct prompt tokens, H kv heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.asking.clock import StageClock
from c2c_lightning.evaluation.asking.decoding import Prefill
from c2c_lightning.evaluation.asking.methods import read_prompts
from c2c_lightning.evaluation.asking.questions import Questions
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.benchmarks.item import Item
from c2c_lightning.evaluation.methods import Answering
from c2c_lightning.models import Message
from c2c_lightning.models.cache import position_ids, prefill

SHOTS = 5


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

    def why_not(self, benchmark: Benchmark) -> str | None:
        return None if benchmark.exemplar_items() else "the benchmark has no exemplars"

    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        aligner, benchmark = communicator.aligner, questions.benchmark
        with clock("tokenization"):
            texts = []
            for item in questions.items:
                exemplars = choose(benchmark.exemplar_items(), item.subject, self.shots, self.seed)
                texts.append(aligner.render(aligner.receiver, conversation(benchmark, exemplars, item)))
        return read_prompts(communicator.receiver, aligner.receiver, texts, clock, "receiver prefill")


class Enriched(FewShot):
    """The same cache with everything but the question's own tokens masked."""

    kind = "enriched"

    def __init__(self, shots: int, seed: int):
        super().__init__(shots, seed)
        self.description = "the same cache with everything but the question's own tokens masked"

    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        start = super().prefill(communicator, questions, clock)
        batch = questions.batch(communicator)
        start.position_ids = position_ids(start.mask)
        start.mask = SharedTokens.find(start, batch.prompt_ids, batch.prompt_mask).mask_BN
        return start


class EnrichedLayer(FewShot):
    """One layer's cache of the question's tokens from the few-shot reading, the others' from a direct one.

    Args:
        layer: of the receiver.
        shots: how many exemplars.
        seed: of their choice.
        readings: what methods for other layers have read; weak in its keys, so that nothing is kept for long.
    """

    def __init__(self, layer: int, shots: int, seed: int, readings: MutableMapping[Questions, Readings]):
        super().__init__(shots, seed)
        self.layer, self.readings = layer, readings
        self.name = name_of(f"enriched_layer_{layer}", shots, seed)
        self.description = f"the receiver with layer {layer} of the question's cache after {shots} exemplars"

    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        if questions not in self.readings:
            self.readings[questions] = self.read(communicator, questions, clock)
        readings, batch = self.readings[questions], questions.batch(communicator)
        return Prefill(
            communicator.receiver,
            communicator.aligner.receiver,
            batch.prompt_ids,
            batch.prompt_mask,
            readings.enriched(self.layer),
            position_ids=readings.positions_BN0,
        )

    def read(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Readings:
        """Reads questions after exemplars, and alone at the same positions."""
        few_shot = super().prefill(communicator, questions, clock)
        batch = questions.batch(communicator)
        ids, mask = batch.prompt_ids, batch.prompt_mask
        shared = SharedTokens.find(few_shot, ids, mask)
        with clock("receiver prefill"):
            direct = prefill(communicator.receiver, ids[:, :-1], mask[:, :-1], shared.positions_BN0[:, :-1])
        # Both prompts end with the question; its last token is in neither cache.
        width = ids.shape[1] - 1
        own = [
            (layer.keys[:, :, -width:].clone(), layer.values[:, :, -width:].clone()) for layer in few_shot.cache.layers
        ]
        return Readings(direct, own, shared.positions_BN0, shared.is_question_BN0)


@dataclass
class Readings:
    """The same questions' tokens in the cache, read alone and after exemplars.

    Attributes:
        direct: the cache of the direct prompts' tokens but the last.
        few_shot: for each layer keys and values (B, H, N0 - 1, D), what the few-shot cache ends with.
        positions_BN0: where the direct prompts' tokens stand in the few-shot prompts.
        is_question_BN0: bool, which of them are the question's.
    """

    direct: DynamicCache
    few_shot: list[tuple[Tensor, Tensor]]
    positions_BN0: Tensor
    is_question_BN0: Tensor

    def enriched(self, layer: int) -> DynamicCache:
        """A direct cache of its own, to be used up, with one layer of the question's tokens from the other."""
        cache = deepcopy(self.direct)
        into, (keys, values) = cache.layers[layer], self.few_shot[layer]
        is_question = self.is_question_BN0[:, None, :-1, None]
        into.keys = torch.where(is_question, keys, into.keys)
        into.values = torch.where(is_question, values, into.values)
        return cache


@dataclass
class SharedTokens:
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
        messages += benchmark.messages(exemplar)
        messages.append({"role": "assistant", "content": benchmark.response(exemplar)})
    messages += benchmark.messages(item)
    # Templates know one system prompt, which comes first.
    return [message for i, message in enumerate(messages) if i == 0 or message["role"] != "system"]
