"""A benchmark and answers that nobody gave, with the accuracies that a test wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from c2c_lightning.evaluation.asking.answers import Answer
from c2c_lightning.evaluation.asking.controls import (
    CalibratedReceiver,
    MeanUpdate,
    ShuffledChoices,
    WrongQuestion,
    ZeroUpdate,
)
from c2c_lightning.evaluation.asking.methods import C2C, Receiver, Routing, Sharer
from c2c_lightning.evaluation.asking.text_to_text import TextToText
from c2c_lightning.evaluation.benchmarks import Benchmark, Item
from c2c_lightning.evaluation.benchmarks.base import Row
from c2c_lightning.evaluation.report.findings import BenchmarkResults

METHODS = (Receiver, Sharer, TextToText, Routing, C2C)
CONTROLS = (WrongQuestion, ZeroUpdate, MeanUpdate, CalibratedReceiver, ShuffledChoices)
BY_NAME = {method.name: method for each in (*METHODS, *CONTROLS) for method in [each()]}
MESSAGE_TOKENS, BYTES_PER_TOKEN = 40, 12288


class Invented(Benchmark):
    """Questions that need no file; 17 records more have no right answer, and are left out."""

    def __init__(
        self,
        num_items: int,
        name: str = "invented",
        version: int = 2,
        choices: Sequence[str] = ("Oslo", "Rome", "Lima", "Bern"),
        subjects: Sequence[str] = ("maths", "law"),
    ):
        super().__init__([], "", name)
        self.prompt = replace(self.prompt, version=version)
        self.num_items, self.choices, self.subjects = num_items, tuple(choices), subjects

    def rows(self) -> Iterator[Row]:
        for number in range(self.num_items + 17):
            yield Row(self.name, number, f"{self.name}:{number}", {"number": number})

    def to_item(self, record: dict[str, Any], source: str) -> Item | None:
        number = record["number"]
        if number >= self.num_items:
            self.drop("no right answer", source)
            return None
        subject = self.subjects[number % len(self.subjects)] if self.subjects else ""
        return Item("", f"Question {number}?", ("A",), self.choices, subject)


def results(scores: dict[str, Sequence[float]], benchmark: Benchmark | None = None, seed: int = 0) -> BenchmarkResults:
    """The results of methods that scored so."""
    number = len(next(iter(scores.values())))
    benchmark = benchmark or Invented(number)
    answers = {name: answers_of(name, benchmark, values) for name, values in scores.items()}
    return BenchmarkResults(benchmark, {name: BY_NAME[name] for name in scores}, answers, {}, seed)


def answers_of(name: str, benchmark: Benchmark, scores: Sequence[float]) -> list[Answer]:
    """One answer for every score; every tenth was cut off and could not be read."""
    tells, fuses = name == "text_to_text", name not in ("receiver", "sharer", "text_to_text", "routing")
    return [
        Answer(
            id=item.id,
            response="A" if score == 1 else "B",
            extracted=None if i % 10 == 9 else "A",
            score=float(score),
            confidence=-0.1,
            letters=None,
            truncated=i % 10 == 9,
            prefill_seconds=0.9 if tells else 0.05,
            decode_seconds=0.2,
            receiver_tokens=0 if name == "sharer" else 3,
            sharer_tokens=MESSAGE_TOKENS if tells else 0,
            handed_over=160 if tells else 100 * BYTES_PER_TOKEN * fuses,
        )
        for i, (item, score) in enumerate(zip(benchmark.items(), scores))
    ]


def right(number: int, num_items: int) -> np.ndarray:
    """`number` right answers, spread over the items."""
    scores = np.zeros(num_items)
    scores[np.random.default_rng(number).permutation(num_items)[:number]] = 1
    return scores
