"""Controls: what part of C2C's gain needs no sharer, or not this question's cache.

Dimensions: L fused layers, B questions, H kv heads, N prompt tokens but the last, D head_dim, E tokens
counted from the prompt's end.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor, nn
from torchmetrics import Metric

from c2c_lightning.communicator import Communicator
from c2c_lightning.data.batch_maker import told_otherwise
from c2c_lightning.evaluation.asking.answers import Answer
from c2c_lightning.evaluation.asking.methods import C2C, Answers, Asking, Derived
from c2c_lightning.evaluation.asking.observing import Caches, Observer
from c2c_lightning.evaluation.asking.questions import Questions, shuffled_choices
from c2c_lightning.evaluation.benchmarks import Benchmark, Item
from c2c_lightning.mapper import Mapper
from c2c_lightning.models import FrozenModels, Reading
from c2c_lightning.models.private_text import reads

END = 256


class WrongQuestion(C2C):
    """The receiver reads its own question, the sharer another one of the same benchmark, and another question's text.

    Which one is drawn once, with the evaluation's seed, so that every question serves just one other.
    """

    name = "wrong_question"
    description = "C2C with the sharer's cache of another question of the same benchmark"
    control = generic = True
    needs_others = True

    def why_not(self, benchmark: Benchmark) -> str | None:
        texts = {item.context.strip() for item in benchmark.items()} - {""}
        if benchmark.context == "sharer" and len(texts) == 1:
            return "all questions are about one text"
        return super().why_not(benchmark)

    def heard(self, asking: Asking) -> Reading:
        questions, reading = asking.questions, asking.reading
        # Prompts have no private texts, which the slots below are for.
        prompts = map(reads, Questions(questions.benchmark, questions.partners, questions.items).messages())
        fused = reading.models.read(reading.models.collate([*prompts]))
        if reading.batch.private is not None:
            pairs = zip(questions.items, questions.partners)
            others = [questions.benchmark.messages(of_another_text(*pair, questions.benchmark)) for pair in pairs]
            told = [told_otherwise(own, other) or own for own, other in zip(questions.messages(), others)]
            reading = reading.models.read(reading.models.collate(told)).with_mapper(reading.mapper)
        return reading.with_sharers_of(fused)


def of_another_text(item: Item, partner: Item, benchmark: Benchmark) -> Item:
    """The question whose text an item gets: its partner, or the next of the benchmark's that is about another text."""
    if partner.context.strip() not in ("", item.context.strip()):
        return partner
    every = benchmark.items()
    start = every.index(partner)
    around = (*every[start:], *every[:start])
    return next(other for other in around if other.context.strip() not in ("", item.context.strip()))


class NothingSaid(C2C):
    """As many slots as C2C has, all of which say nothing: each has what a mean token of any text gets."""

    name = "nothing_said"
    description = "C2C with slots that say nothing, all alike, in place of the text's"
    control = generic = True
    needs_texts = True

    def heard(self, asking: Asking) -> Reading:
        return asking.reading.with_mapper(SaysNothing(asking.fusers.mapper))


class SaysNothing(nn.Module):
    """A mapper that gives every slot the same of any text; the mean of a text's own slots would say what it is."""

    def __init__(self, mapper: Mapper):
        super().__init__()
        self.mapper = mapper

    def forward(self, stack: Tensor) -> Tensor:
        shape = self.mapper.receiver
        nothing = self.mapper.says_nothing().view(2, shape.num_layers, 1, shape.num_kv_heads, shape.head_dim)
        return nothing.expand(-1, -1, stack.shape[2], -1, -1)


class RandomSharer(C2C):
    """The sharer's weights are drawn at random: what tokens and the mapper say without anything that it has learned."""

    name = "random_sharer"
    description = "C2C with a sharer of the same architecture whose weights are drawn at random"
    control = generic = True
    needs_texts = True

    def __init__(self) -> None:
        self._drawn: tuple[FrozenModels, FrozenModels] | None = None  # the models, and those with the sharer drawn

    def heard(self, asking: Asking) -> Reading:
        models, reading = asking.models, asking.reading
        if self._drawn is None or self._drawn[0] is not models:
            first, *others = models.sharers
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(asking.questions.seed)
                drawn = type(first)(copy.deepcopy(first.config)).to(first.device, first.dtype)
            self._drawn = models, FrozenModels(models.receiver, [drawn, *others], models.aligner)
        return self._drawn[1].read(reading.batch).with_mapper(reading.mapper)


class ZeroUpdate(C2C):
    """All of C2C's way but the addition: it must answer as the receiver does, or the way itself changes answers."""

    name = "zero_update"
    description = "C2C with an update of zero"
    control = generic = True
    needs_fusers = True

    def fused_stack(self, asking: Asking, stacks: dict[int, Tensor]) -> Tensor:
        stack = asking.reading.receiver_stack(asking.fusers.fused_layers)
        return stack + torch.zeros_like(stack)


class ZeroCache(C2C):
    """The fuser sees zeros in place of the sharer's cache: what it adds by itself."""

    name = "zero_cache"
    description = "C2C with zeros in place of the sharer's cache"
    control = generic = True
    needs_fusers = True

    def sharer_stacks(self, asking: Asking) -> dict[int, Tensor]:
        reading, fusers, stacks = asking.reading, asking.fusers, {}
        for i in fusers.open_sharers():
            shape, (rows, tokens) = fusers[i].sharer, reading.batch.sharers[i].positions.shape
            size = (2, len(fusers.layer_maps[i]), rows, shape.num_kv_heads, tokens, shape.head_dim)
            sharer = reading.models.sharers[i]
            stacks[i] = torch.zeros(size, dtype=sharer.dtype, device=reading.batch.prompt_ids.device)
        return stacks


class ShuffledChoices(C2C):
    """C2C on shuffled choices; answers are translated back, so what has changed since C2C is position bias.

    The response is kept as it was said, in the letters of the shuffled choices. Not a generic control: it knows
    as much of the question as C2C does.
    """

    name = "shuffled_choices"
    description = "C2C on the same choices in another order"
    control = True
    needs_choices = True

    def ask(self, asking: Asking) -> list[Answer]:
        questions = asking.questions
        items, orders = zip(*(shuffled_choices(item, questions.seed) for item in questions.items))
        shuffled = Questions(questions.benchmark, items, questions.partners, questions.seed)
        reading = shuffled.read(asking.models).with_mapper(asking.fusers.mapper)
        said = super().ask(replace(asking, questions=shuffled, reading=reading))
        return [replace(a, letters=[a.letters[i] for i in np.argsort(order)]) for a, order in zip(said, orders)]

    def graded(self, answer: Answer, benchmark: Benchmark, item: Item, seed: int) -> Answer:
        shuffled, order = shuffled_choices(item, seed)
        there = super().graded(answer, benchmark, shuffled, seed)
        said = there.extracted
        return replace(there, extracted=item.letters[order[item.letters.index(said)]] if said else None)


class CalibratedReceiver(Derived):
    """From each letter's log-probability its mean over the benchmark is taken away, and the highest letter wins.

    A weak model prefers some letters whatever the question; a fuser may do no more than cure that. No right
    answer is looked at (batch calibration, arXiv 2309.17249). It answers by probability in either answer mode.
    """

    name = "calibrated_receiver"
    description = "the receiver alone, each letter's log-probability less its mean over the benchmark"
    control = generic = True
    needs_choices = True
    needs = ("receiver",)

    def derive(self, benchmark: Benchmark, items: Sequence[Item], answers: Answers) -> list[Answer]:
        log_probs = [log_softmax(np.array(answer.letters)) for answer in answers["receiver"]]
        by_number = defaultdict(list)
        for row in log_probs:
            by_number[len(row)].append(row)
        # Of a question that is alone in its number of choices, the mean would be its own and leave nothing.
        prior = {number: np.mean(rows, axis=0) if len(rows) > 1 else 0.0 for number, rows in by_number.items()}
        derived = []
        for item, answer, row in zip(items, answers["receiver"], log_probs):
            letter = item.letters[int(np.argmax(row - prior[len(row)]))]
            grade = benchmark.grade(item, letter)
            derived.append(replace(answer, response=letter, extracted=grade.extracted, score=grade.score))
        return derived


class MeanUpdate(C2C, Observer):
    """What the fuser adds to the other questions' caches on average, added to each question's cache.

    Averages are taken at each distance from the prompt's end, where chat templates and the request for a
    letter stand; farther than END tokens, or where no other prompt reaches, over all tokens. A question's
    own update is taken out of the mean, so that of itself it is told nothing.
    """

    name = "mean_update"
    description = "C2C with the mean update of all other questions of the benchmark"
    control = generic = True
    needs_others = needs_fusers = True

    def metric(self, communicator: Communicator) -> Metric:
        fusers = communicator.fusers
        return UpdateSum(len(fusers.fused_layers), fusers[0].receiver.num_kv_heads, fusers[0].receiver.head_dim)

    def fused_stack(self, asking: Asking, stacks: dict[int, Tensor]) -> Tensor:
        reading, fusers = asking.reading, asking.fusers
        stack, mask = reading.receiver_stack(fusers.fused_layers), reading.batch.prompt_mask[:, :-1].bool()
        own = masked_update(fusers.fused_stack(reading, stacks), stack, mask)
        of_all = self.measured[asking.questions.benchmark.name]
        measured = {name: value.to(own.device) for name, value in of_all.items()}
        return stack + mean_of_others(measured, own, mask).to(stack.dtype)


class UpdateSum(Metric):
    """The sum of fused - receiver, and how many tokens it is of: of all tokens, and by distance from the end.

    Computes `total` (2, L, H, D), `tokens`, `by_distance` (2, L, H, E, D) and `reach` (E).
    """

    full_state_update = False

    def __init__(self, num_layers: int, num_kv_heads: int, head_dim: int):
        super().__init__()
        # In double precision, so that the sum hardly depends on how questions are spread over batches and ranks.
        zeros = torch.zeros(2, num_layers, num_kv_heads, END, head_dim, dtype=torch.float64)
        self.add_state("by_distance", zeros, dist_reduce_fx="sum")
        self.add_state("total", torch.zeros_like(zeros[:, :, :, 0]), dist_reduce_fx="sum")
        self.add_state("reach", torch.zeros(END), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, caches: Caches) -> None:
        by_token = masked_update(caches.fused, caches.receiver, caches.mask).sum(2, dtype=torch.float64)
        near = min(END, caches.mask.shape[1])
        self.by_distance[:, :, :, -near:] += by_token[:, :, :, -near:]
        self.total += by_token.sum(3)
        self.reach[-near:] += caches.mask[:, -near:].sum(0)
        self.tokens += caches.mask.sum()

    def compute(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("total", "tokens", "by_distance", "reach")}


def masked_update(fused: Tensor, receiver: Tensor, mask_BN: Tensor) -> Tensor:
    """(2, L, B, H, N, D) in single precision: what fusion added to real tokens, 0 for padding."""
    return (fused.float() - receiver.float()) * mask_BN[:, None, :, None]


def mean_of_others(measured: dict[str, Tensor], own: Tensor, mask_BN: Tensor) -> Tensor:
    """For each of B questions the mean update of all others, like `own`, its own update, (2, L, B, H, N, D).

    `measured` is as `UpdateSum` computes it; `mask_BN` is False for padding.
    """
    near = min(END, mask_BN.shape[1])
    others = measured["tokens"] - mask_BN.sum(1)
    overall = (measured["total"].float()[:, :, None] - own.sum(4)) / others[:, None, None]
    update = overall[:, :, :, :, None].repeat(1, 1, 1, 1, mask_BN.shape[1], 1)
    reach_BE = (measured["reach"][-near:] - mask_BN[:, -near:].float())[:, None, :, None]
    by_distance = measured["by_distance"].float()[:, :, None, :, -near:] - own[..., -near:, :]
    update[..., -near:, :] = torch.where(reach_BE > 0, by_distance / reach_BE.clamp(min=1), update[..., -near:, :])
    return update


CONTROLS = (
    WrongQuestion,
    NothingSaid,
    RandomSharer,
    ZeroUpdate,
    ZeroCache,
    MeanUpdate,
    CalibratedReceiver,
    ShuffledChoices,
)
