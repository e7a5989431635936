"""Ways to answer: each model alone, routing, and C2C."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.asking.answers import Answer
from c2c_lightning.evaluation.asking.clock import StageClock
from c2c_lightning.evaluation.asking.decoding import Decoded, Prefill, decode
from c2c_lightning.evaluation.asking.questions import Questions
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.benchmarks.item import Item
from c2c_lightning.models import Batch
from c2c_lightning.models.cache import prefill


class Method(ABC):
    """A way to answer a benchmark's questions.

    Attributes:
        name: short, for files and metrics; unique among the methods of an evaluation.
        description: what it does, in one sentence that begins in lower case.
        control: whether it is there to keep C2C honest, and reported beside the other controls.
        generic: whether it is a control that knows nothing of the question from the sharer.
    """

    name: str
    description: str
    control: ClassVar[bool] = False
    generic: ClassVar[bool] = False

    def why_not(self, benchmark: Benchmark) -> str | None:
        """Why it says nothing about this benchmark; None if it does."""
        return None


class Answering(Method):
    """A method that asks the models. Subclasses state how the cache comes about."""

    @abstractmethod
    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        """Everything up to the response, in stages that `clock` times."""

    @torch.no_grad()
    def respond(self, communicator: Communicator, questions: Questions, clock: StageClock) -> tuple[Prefill, Decoded]:
        """The responses to some questions together, not graded yet: all that takes a model."""
        letters = max((item.letters for item in questions.items), key=len)
        by_letter = questions.benchmark.answer_mode == "logits"
        limits = [1 if by_letter else questions.benchmark.max_new_tokens_of(item) for item in questions.items]
        start = self.prefill(communicator, questions, clock)
        return start, decode(start, limits, clock, letters)

    def answer(self, communicator: Communicator, questions: Questions, clock: StageClock) -> list[Answer]:
        """Answers some questions together."""
        benchmark, items = questions.benchmark, questions.items
        by_letter = benchmark.answer_mode == "logits"
        start, decoded = self.respond(communicator, questions, clock)
        seconds = clock.seconds()
        seconds.pop("tokenization", None)  # it is done once for all methods that read the same prompts
        decode_seconds = seconds.pop("decode") / len(items)
        nothing = [0] * len(items)
        is_receiver = start.model is communicator.receiver
        answers = []
        for i, item in enumerate(items):
            scores = None if decoded.letters is None else decoded.letters[i, : len(item.letters)].tolist()
            response = item.letters[scores.index(max(scores))] if by_letter else decoded.responses[i]
            grade = benchmark.grade(item, response)
            on_the_way = (start.sharer_tokens or nothing)[i]
            answers.append(
                Answer(
                    id=item.id,
                    response=response,
                    extracted=grade.extracted,
                    score=grade.score,
                    confidence=decoded.confidence[i],
                    letters=scores,
                    truncated=decoded.truncated[i] and not by_letter,
                    prefill_seconds=sum(seconds.values()) / len(items),
                    decode_seconds=decode_seconds,
                    receiver_tokens=decoded.tokens[i] if is_receiver else 0,
                    sharer_tokens=on_the_way + (0 if is_receiver else decoded.tokens[i]),
                    handed_over=(start.handed_over or nothing)[i],
                    message=start.messages[i] if start.messages else "",
                )
            )
        return answers


class Derived(Method):
    """A method that is made of other methods' answers, and asks no model.

    Attributes:
        needs: names of those methods.
    """

    needs: tuple[str, ...]

    @abstractmethod
    def derive(
        self, benchmark: Benchmark, items: Sequence[Item], answers: Mapping[str, Sequence[Answer]]
    ) -> list[Answer]:
        """One answer for each item, from the `needs` methods' answers to the same items in the same order."""


def of_receiver(
    communicator: Communicator, batch: Batch, cache: DynamicCache, handed_over: Sequence[int] = ()
) -> Prefill:
    """The receiver's prefill of a batch; `handed_over` are bytes for each question."""
    tokenizer = communicator.aligner.receiver
    return Prefill(
        communicator.receiver, tokenizer, batch.prompt_ids, batch.prompt_mask, cache, handed_over=list(handed_over)
    )


def sharer_at(communicator: Communicator, index: int) -> tuple[PreTrainedModel, Tokenizer]:
    """A sharer and its tokenizer.

    Raises:
        UserError: there is none of this index.
    """
    number = len(communicator.sharers)
    if not 0 <= index < number:
        raise UserError(f"a method names sharer {index}, but the fuser has {number}: give 0 to {number - 1}.")
    return communicator.sharers[index], communicator.aligner.sharers[index]


def read_prompts(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    clock: StageClock,
    stage: str,
    tokenization: str = "tokenization",
) -> Prefill:
    """Prefills a model with prompts that it alone reads.

    Args:
        model: that reads them.
        tokenizer: its tokenizer.
        texts: the prompts, rendered by its chat template.
        clock: times it.
        stage: the name of the prefill.
        tokenization: the name of what precedes it.
    """
    with clock(tokenization):
        encoded = tokenizer(
            list(texts), add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
        ).to(model.device)
    ids, mask = encoded.input_ids, encoded.attention_mask
    with clock(stage):
        cache = prefill(model, ids[:, :-1], mask[:, :-1])
    return Prefill(model, tokenizer, ids, mask, cache)


class Receiver(Answering):
    """The receiver reads the question and answers it: what communication has to improve on."""

    name = "receiver"
    description = "the receiver alone"

    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        with clock("tokenization"):
            batch = questions.batch(communicator)
        with clock("receiver prefill"):
            cache = communicator.receiver_cache(batch)
        return of_receiver(communicator, batch, cache)


class Sharer(Answering):
    """A sharer reads the question in its own template and tokens, and answers it.

    Args:
        index: which one, of several.
    """

    def __init__(self, index: int = 0):
        self.index = index
        self.name = "sharer" if index == 0 else f"sharer_{index}"
        self.description = "the sharer alone" if index == 0 else f"sharer {index} alone"

    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        model, tokenizer = sharer_at(communicator, self.index)
        with clock("tokenization"):
            texts = [
                communicator.aligner.render(tokenizer, questions.benchmark.messages(item)) for item in questions.items
            ]
        return read_prompts(model, tokenizer, texts, clock, "sharer prefill")


class C2C(Answering):
    """What the fuser was made for. Controls differ from it in one of its three steps."""

    name = "c2c"
    description = "the receiver on its cache, fused with the sharer's"

    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        with clock("tokenization"):
            batch = self.prompts(communicator, questions)
        with clock("receiver prefill"):
            cache = communicator.receiver_cache(batch)
        with clock("sharer prefill"):
            stacks = self.sharer_stacks(communicator, batch)
        with clock("fusion"):
            self.fuse(communicator, cache, stacks, batch, questions)
        return of_receiver(communicator, batch, cache, cache_bytes(communicator, batch, stacks))

    def prompts(self, communicator: Communicator, questions: Questions) -> Batch:
        """The receiver's prompts, each with what the sharers read."""
        return questions.batch(communicator)

    def sharer_stacks(self, communicator: Communicator, batch: Batch) -> dict[int, Tensor]:
        """The sharers' stacks that the fusers see."""
        return communicator.sharer_stacks(batch)

    def fuse(
        self,
        communicator: Communicator,
        cache: DynamicCache,
        stacks: dict[int, Tensor],
        batch: Batch,
        questions: Questions,
    ) -> None:
        """Fuses `stacks` into `cache`, in place."""
        communicator.fuse(cache, stacks, batch)


def cache_bytes(communicator: Communicator, batch: Batch, sharers: Iterable[int]) -> list[int]:
    """For each question the bytes of these sharers' caches that cross over: open layers, all of a sharer's tokens."""
    total = [0] * len(batch)
    for i in sharers:
        fuser, sharer = communicator.fusers[i], communicator.sharers[i]
        per_token = len(fuser.gate.active()) * fuser.sharer.features * sharer.dtype.itemsize
        total = [t + n * per_token for t, n in zip(total, batch.sharers[i].mask.sum(1).tolist())]
    return total


class Routing(Derived):
    """The sharer answers the share of the questions on which it is most confident beyond the receiver.

    Confidence is the mean log-probability of a model's own response, so both are asked everything; a
    cheaper router can only know less. The published baseline gives the strong model half of the questions.

    Args:
        budget: share of the questions that the sharer answers.
    """

    name = "routing"
    needs = ("receiver", "sharer")

    def __init__(self, budget: float = 0.5):
        if not 0 <= budget <= 1:
            raise UserError(f"budget of Routing is {budget}: give the share of the questions, in [0, 1].")
        self.budget = budget
        self.description = f"the sharer answers the {budget:.0%} on which it is most confident beyond the receiver"

    def derive(
        self, benchmark: Benchmark, items: Sequence[Item], answers: Mapping[str, Sequence[Answer]]
    ) -> list[Answer]:
        receiver, sharer = (answers[name] for name in self.needs)
        lead = np.array([s.confidence - r.confidence for r, s in zip(receiver, sharer)])
        chosen = set(np.argsort(-lead, kind="stable")[: round(self.budget * len(items))].tolist())
        return [both_asked(receiver[i], sharer[i], i in chosen) for i in range(len(items))]


def both_asked(receiver: Answer, sharer: Answer, by_sharer: bool) -> Answer:
    """One of two answers, at the cost of both: confidence is only known once a model has answered."""
    return replace(
        sharer if by_sharer else receiver,
        prefill_seconds=receiver.prefill_seconds + sharer.prefill_seconds,
        decode_seconds=receiver.decode_seconds + sharer.decode_seconds,
        receiver_tokens=receiver.receiver_tokens,
        sharer_tokens=sharer.sharer_tokens,
    )


class OracleRouting(Derived):
    """Each question goes to a model that is right, if there is one: no router can be better."""

    name = "oracle_routing"
    description = "for every question the better of the two models' answers: the upper bound of any routing"
    needs = ("receiver", "sharer")

    def derive(
        self, benchmark: Benchmark, items: Sequence[Item], answers: Mapping[str, Sequence[Answer]]
    ) -> list[Answer]:
        pairs = zip(*(answers[name] for name in self.needs))
        return [both_asked(receiver, sharer, sharer.score > receiver.score) for receiver, sharer in pairs]
