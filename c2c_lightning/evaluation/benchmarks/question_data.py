"""The questions of a benchmark with their right answers, to train a fuser for what is measured."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from itertools import compress

import numpy as np

from c2c_lightning.data import InstructionData
from c2c_lightning.data.records import Example
from c2c_lightning.data.stored import held_out
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.benchmarks.base import Benchmark
from c2c_lightning.models import Aligner

log = logging.getLogger(__name__)


class QuestionData(InstructionData):
    """Questions as a benchmark asks them, each with its right answer in the form that the benchmark expects.

    Where choices are ranked by their likelihood, the response is the right choice's text; otherwise it is what the
    benchmark's prompt asks for, such as a letter. Questions that validation has, and those about the same texts, are left
    out of training.

    Args:
        benchmark: the questions, of a training set.
        val_benchmark: questions for validation; None to hold out `val_fraction` of `benchmark`.
        val_fraction: share of the questions held out, at least one and not all of them; 0 for no validation.
        max_length: as for `InstructionData`.
        batch_size: questions per device and micro-batch.
        val_batch_size: the same for validation; None for `batch_size`.
        bucket: make batches of questions of like length, which saves padding.
        exact_answers: answers are short enough to compare word for word: validation generates too.
        seed: of the order; None for that of `seed_everything`.
        aligner: reads conversations for the models; comes from the model.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        val_benchmark: Benchmark | None = None,
        val_fraction: float = 0.05,
        max_length: int = 2048,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        bucket: bool = True,
        exact_answers: bool = False,
        seed: int | None = None,
        aligner: Aligner | None = None,
    ):
        super().__init__(
            path=[],
            val_fraction=val_fraction,
            max_length=max_length,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            bucket=bucket,
            exact_answers=exact_answers,
            seed=seed,
            aligner=aligner,
        )
        self.benchmark, self.val_benchmark = benchmark, val_benchmark

    @cached_property
    def _parts(self) -> tuple[Sequence[Example], Sequence[Example]]:
        examples = examples_of(self.benchmark)
        if self.val_benchmark is not None:
            validation = examples_of(self.val_benchmark)
            asked = {str(example.prompt) for example in validation}
            about = {item.context for item in self.val_benchmark.items() if item.context}
            kept = [
                example
                for example, item in zip(examples, self.benchmark.items())
                if str(example.prompt) not in asked and item.context not in about
            ]
            if len(kept) < len(examples):
                message = "%d questions of validation, or about its texts, are left out of training"
                log.warning(message, len(examples) - len(kept))
            if not kept:
                raise UserError(
                    f"data.benchmark {self.benchmark.path!r} has no question that data.val_benchmark "
                    f"{self.val_benchmark.path!r} has not: give the training set."
                )
            return kept, validation
        if not self.val_fraction:
            return examples, []
        if len(examples) == 1:
            raise UserError(
                f"data.benchmark {self.benchmark.path!r} has one question, of which data.val_fraction "
                f"{self.val_fraction} cannot be held out: give data.val_benchmark, or data.val_fraction 0."
            )
        first: dict[str, int] = {}
        texts = [first.setdefault(item.context or item.id, i) for i, item in enumerate(self.benchmark.items())]
        if len(first) == 1:
            raise UserError(
                f"data.benchmark {self.benchmark.path!r} has questions about one text, of which none can be held out: "
                "give data.val_benchmark, or data.val_fraction 0."
            )
        held = held_out(np.array(texts), self.val_fraction)
        return list(compress(examples, ~held)), list(compress(examples, held))


def examples_of(benchmark: Benchmark) -> list[Example]:
    """The questions with their answers, in the order of the benchmark."""
    return [
        Example(
            [*benchmark.messages(item), {"role": "assistant", "content": benchmark.response(item)}],
            source=f"{benchmark.name}: {item.id}",
        )
        for item in benchmark.items()
    ]
