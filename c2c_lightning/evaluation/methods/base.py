"""What every way of answering is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.answers import Answer
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.clock import StageClock
from c2c_lightning.evaluation.decoding import Decoded, Prefill, decode
from c2c_lightning.evaluation.item import Item
from c2c_lightning.evaluation.questions import Questions
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
