"""A benchmark and answers that nobody gave, with the accuracies that a test wants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from c2c_lightning.evaluation.answers import Answer
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.benchmarks.prompt import Prompt
from c2c_lightning.evaluation.controls import CalibratedReceiver, MeanUpdate, ShuffledChoices, WrongQuestion, ZeroUpdate
from c2c_lightning.evaluation.item import Item
from c2c_lightning.evaluation.methods import C2C, Receiver, Routing, Sharer, TextToText
from c2c_lightning.evaluation.results import BenchmarkResults

METHODS = (Receiver, Sharer, TextToText, Routing, C2C)
CONTROLS = (WrongQuestion, ZeroUpdate, MeanUpdate, CalibratedReceiver, ShuffledChoices)
BY_NAME = {method.name: method for each in (*METHODS, *CONTROLS) for method in [each()]}
MESSAGE_TOKENS, BYTES_PER_TOKEN = 40, 12288


class Invented(Benchmark):
    """Questions that need no file."""

    def __init__(self, num_items: int, name: str = "invented", version: int = 2, has_choices: bool = True):
        self.name, self.answer_mode = name, "generate"
        self.prompt = Prompt("choices", version, "{question}", "{answer}")
        self.dropped = {"no right answer": 17}
        choices = ("Oslo", "Rome", "Lima", "Bern") if has_choices else ()
        self._items = [
            Item(f"{name}/{i}", f"Question {i}?", ("A",), choices, ("maths", "law")[i % 2]) for i in range(num_items)
        ]

    def to_item(self, record, source):
        raise NotImplementedError


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
