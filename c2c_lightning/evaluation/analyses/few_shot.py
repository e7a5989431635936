"""The receiver on questions that have read exemplars, which may then be taken away.

Dimensions: B questions, N few-shot prompt tokens, N0 direct prompt tokens, H kv heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from c2c_lightning.evaluation.asking.clock import StageClock
from c2c_lightning.evaluation.asking.decoding import Prefill
from c2c_lightning.evaluation.asking.methods import read_prompts
from c2c_lightning.evaluation.asking.questions import Questions
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.benchmarks.item import Item
from c2c_lightning.evaluation.methods import Answering
from c2c_lightning.fuser import Fusers
from c2c_lightning.models import Message, Reading
from c2c_lightning.models.cache import branch, position_ids, prefill

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

    def prefill(self, reading: Reading, fusers: Fusers, questions: Questions, clock: StageClock) -> Prefill:
        aligner, benchmark = reading.models.aligner, questions.benchmark

        def render() -> list[str]:
            texts = []
            for item in questions.items:
                exemplars = choose(benchmark.exemplar_items(), item.subject, self.shots, self.seed)
                texts.append(aligner.render(aligner.receiver, conversation(benchmark, exemplars, item)))
            return texts

        receiver, key = reading.models.receiver, ("few-shot", self.shots, self.seed)
        return read_prompts(receiver, aligner.receiver, render, questions, clock, "receiver prefill", key)

    def shared(self, few_shot: Prefill, reading: Reading, questions: Questions, clock: StageClock) -> SharedTokens:
        """Which tokens of the few-shot prompts are of the direct prompts."""
        find = partial(SharedTokens.find, few_shot, reading.batch.prompt_ids, reading.batch.prompt_mask)
        return questions.once(clock, "tokenization", ("shared", self.shots, self.seed), find)


class Enriched(FewShot):
    """The same cache with everything but the question's own tokens masked."""

    kind = "enriched"

    def __init__(self, shots: int, seed: int):
        super().__init__(shots, seed)
        self.description = "the same cache with everything but the question's own tokens masked"

    def prefill(self, reading: Reading, fusers: Fusers, questions: Questions, clock: StageClock) -> Prefill:
        start = super().prefill(reading, fusers, questions, clock)
        start.position_ids = position_ids(start.mask)
        start.mask = self.shared(start, reading, questions, clock).mask_BN
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
        self.layer = layer
        self.name = name_of(f"enriched_layer_{layer}", shots, seed)
        self.description = f"the receiver with layer {layer} of the question's cache after {shots} exemplars"

    def prefill(self, reading: Reading, fusers: Fusers, questions: Questions, clock: StageClock) -> Prefill:
        few_shot = super().prefill(reading, fusers, questions, clock)
        receiver, ids, mask = reading.models.receiver, reading.batch.prompt_ids, reading.batch.prompt_mask
        shared = self.shared(few_shot, reading, questions, clock)
        positions_BN0 = shared.positions_BN0
        # The question alone, at the positions that it has behind the exemplars.
        direct = partial(prefill, receiver, ids[:, :-1], mask[:, :-1], positions_BN0[:, :-1])
        cache = branch(questions.once(clock, "receiver prefill", ("moved", self.shots, self.seed), direct))
        # Both prompts end with the question; its last token is in neither cache.
        into, rich, width = cache.layers[self.layer], few_shot.cache.layers[self.layer], ids.shape[1] - 1
        is_question = shared.is_question_BN0[:, None, :-1, None]
        into.keys = torch.where(is_question, rich.keys[:, :, -width:], into.keys)
        into.values = torch.where(is_question, rich.values[:, :, -width:], into.values)
        return Prefill(receiver, few_shot.tokenizer, ids, mask, cache, position_ids=positions_BN0)


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
