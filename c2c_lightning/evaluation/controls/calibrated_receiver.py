"""Control: the receiver without its liking for some letters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import log_softmax

from c2c_lightning.evaluation.answers import Answer
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.controls.applies import lacks_choices
from c2c_lightning.evaluation.item import Item
from c2c_lightning.evaluation.methods.base import Derived


class CalibratedReceiver(Derived):
    """From each letter's log-probability its mean over the benchmark is taken away, and the highest letter wins.

    A weak model prefers some letters whatever the question; a fuser may do no more than cure that. No right
    answer is looked at (batch calibration, arXiv 2309.17249). It answers by probability in either answer mode.
    """

    name = "calibrated_receiver"
    description = "the receiver alone, each letter's log-probability less its mean over the benchmark"
    control = generic = True
    needs = ("receiver",)

    def why_not(self, benchmark: Benchmark) -> str | None:
        return lacks_choices(benchmark)

    def derive(
        self, benchmark: Benchmark, items: Sequence[Item], answers: Mapping[str, Sequence[Answer]]
    ) -> list[Answer]:
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
