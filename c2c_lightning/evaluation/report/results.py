"""All answers of an evaluation, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from c2c_lightning.evaluation.asking.answers import Answer
from c2c_lightning.evaluation.asking.methods import Derived, Method
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.benchmarks.item import Item


@dataclass
class BenchmarkResults:
    """What every method answered to one benchmark."""

    benchmark: Benchmark
    methods: dict[str, Method]  # by name, in the order in which they are reported
    answers: dict[str, list[Answer]]  # by method name, in the order of the benchmark's items
    left_out: dict[str, str] = field(default_factory=dict)  # methods that say nothing about it, with the reason
    seed: int = 0  # of what is drawn: whose cache the wrong question lends, orders of choices, resampling
    # `accuracy` if every answer is right or wrong, otherwise `score`. Decided once over all answers, so that every part
    # of a report uses the same word.
    measure: str = ""

    def __post_init__(self) -> None:
        if not self.measure:
            scores = (answer.score for answers in self.answers.values() for answer in answers)
            self.measure = "accuracy" if all(score in (0, 1) for score in scores) else "score"

    @property
    def items(self) -> list[Item]:
        return self.benchmark.items()

    def scores(self, method: str) -> np.ndarray:
        """(items,) in [0, 1]."""
        return np.array([answer.score for answer in self.answers[method]])

    def only(self, names: Sequence[str]) -> BenchmarkResults:
        """The results of some of the methods; what they measure stays what all of them do."""
        return replace(
            self,
            methods={name: self.methods[name] for name in names},
            answers={name: self.answers[name] for name in names if name in self.answers},
            left_out={name: reason for name, reason in self.left_out.items() if name in names},
        )

    @property
    def generic(self) -> list[str]:
        """The generic controls that were answered."""
        return [name for name, method in self.methods.items() if method.generic and name in self.answers]


def collect(
    benchmark: Benchmark,
    methods: Sequence[Method],
    kept: dict[str, dict[str, Answer]],
    left_out: dict[str, str],
    seed: int,
) -> BenchmarkResults:
    """Puts the kept answers, by method name and question id, in order, and adds those that are derived from them.

    Methods that do not apply are `left_out`, with the reason.
    """
    items = benchmark.items()
    answers = {name: [by_id[item.id] for item in items] for name, by_id in kept.items()}
    for method in methods:
        if isinstance(method, Derived) and method.name not in left_out:
            lacking = [name for name in method.needs if name not in answers]
            if lacking:
                left_out[method.name] = f"it is made of the answers of {lacking[0]}, which was not asked"
            else:
                answers[method.name] = method.derive(benchmark, items, answers)
    ordered = {method.name: method for method in methods}
    return BenchmarkResults(benchmark, ordered, {n: answers[n] for n in ordered if n in answers}, left_out, seed)
