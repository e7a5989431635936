"""From all answers to one benchmark to the numbers that a report is made of, and what results.json holds of them.

Scores, differences and intervals are in [-1, 1]; only words and tables make points of them. Of results.json a page can
be made again, and runs be compared, without asking the models.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import StringConstraints

from c2c_lightning.drawing import Estimate
from c2c_lightning.evaluation.asking.answers import Answer
from c2c_lightning.evaluation.asking.decoding import ROUNDING
from c2c_lightning.evaluation.asking.methods import Derived, Method
from c2c_lightning.evaluation.benchmarks import Benchmark, Item
from c2c_lightning.evaluation.benchmarks.base import NAME
from c2c_lightning.evaluation.report.statistics import (
    Comparison,
    Gain,
    accuracy,
    compare,
    question_specific_gain,
    retention,
)
from c2c_lightning.files import json_digest

# What the words of a report know by name.
C2C, RECEIVER, SHARER, TEXT_TO_TEXT, WRONG_QUESTION = "c2c", "receiver", "sharer", "text_to_text", "wrong_question"
READS_IT, READS_IT_TRAINED = "reads_it", "reads_it_trained"
MAIN = (RECEIVER, READS_IT, READS_IT_TRAINED, SHARER, TEXT_TO_TEXT, C2C)
BenchmarkName = Annotated[str, StringConstraints(pattern=NAME)]


@dataclass
class BenchmarkResults:
    """What every method answered to one benchmark."""

    benchmark: Benchmark
    methods: dict[str, Method]  # by name, in the order in which they are reported
    answers: dict[str, list[Answer]]  # by method name, in the order of the benchmark's items
    left_out: dict[str, str] = field(default_factory=dict)  # methods that say nothing about it, with the reason
    seed: int = 0  # of what is drawn: whose cache the wrong question lends, orders of choices, resampling
    merged: int = 0  # questions whose turns were merged, because a chat template refused them as they are

    @cached_property
    def measure(self) -> str:
        """`accuracy` if every answer is right or wrong, otherwise `score`: one word for all parts of a report."""
        scores = (answer.score for answers in self.answers.values() for answer in answers)
        return "accuracy" if all(score in (0, 1) for score in scores) else "score"

    @property
    def items(self) -> list[Item]:
        return self.benchmark.items()

    def scores(self, method: str) -> np.ndarray:
        """(items,) in [0, 1]."""
        return np.array([answer.score for answer in self.answers[method]])


def collect(
    benchmark: Benchmark,
    methods: Sequence[Method],
    kept: dict[str, dict[str, Answer]],
    seed: int,
) -> BenchmarkResults:
    """Puts the kept answers, by method name and question id, in order, and adds those that are derived from them."""
    items = benchmark.items()
    left_out = {method.name: reason for method in methods if (reason := method.why_not(benchmark))}
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


@dataclass
class MethodFound:
    """How well a method does, and what an answer costs it on average."""

    description: str
    control: bool
    generic: bool
    accuracy: Estimate
    unread: float
    truncated: float
    prefill_ms: float
    decode_ms: float
    receiver_tokens: float
    sharer_tokens: float
    handed_over_bytes: float
    close: int = 0  # answers with a token that rounding may have decided
    metrics: dict[str, float] = field(default_factory=dict)  # means of the scores by name, where there are several


@dataclass
class PromptFound:
    """Which prompt asked."""

    name: str
    version: int


@dataclass
class Findings:
    """What an evaluation found out on one benchmark."""

    benchmark: BenchmarkName
    prompt: PromptFound
    answer_mode: str
    measure: str
    num_items: int
    items: str  # digest of the questions: the same where the same were asked
    dropped: dict[str, int]
    guessing: float | None  # accuracy of a guess; None where there is nothing to choose from
    seed: int
    methods: dict[str, MethodFound]
    left_out: dict[str, str]  # methods that were not asked, with the reason
    comparisons: dict[str, Comparison]  # of C2C with each other method
    raw_gain: Comparison | None
    question_specific_gain: Gain | None
    retention: Estimate | None = None  # of a text that the sharer alone reads; see `statistics.retention`
    retention_trained: Estimate | None = None  # the same of the receiver that reads it behind a trained prefix
    merged: int = 0  # questions whose turns were merged


@dataclass
class Results:
    """What results.json holds: the settings, and by benchmark what was found."""

    title: str
    facts: dict[str, str]
    benchmarks: dict[BenchmarkName, Findings]
    grader: str = ""  # version of what graded the responses


def findings(results: BenchmarkResults, reported: Collection[str] | None = None) -> Findings:
    """What an evaluation found out on one benchmark, of the methods and controls that are reported; None for all.

    The question-specific gain is C2C less the best of the generic controls. The receiver alone counts as
    one of them, for it knows nothing of the sharer either: otherwise controls that do harm would make the
    gain larger than what C2C has gained.
    """
    reported = {*results.methods, *results.left_out} if reported is None else reported
    scores = {name: results.scores(name) for name in results.answers if name in reported}
    generic = [name for name in scores if results.methods[name].generic]
    rivals = [name for name in scores if name != C2C] if C2C in scores else []
    comparisons = {name: compare(scores[C2C], scores[name], results.seed) for name in rivals}
    gain = None
    if rivals and generic:
        # The receiver first: of equally good ones the first is named, and zero_update should equal it.
        baselines = [*({RECEIVER} & scores.keys()), *generic]
        gain = question_specific_gain(scores[C2C], {name: scores[name] for name in baselines}, results.seed)
    benchmark = results.benchmark
    chances = [len(item.answers) / len(item.choices) for item in results.items if item.choices]
    return Findings(
        benchmark=benchmark.name,
        prompt=PromptFound(benchmark.prompt.name, benchmark.prompt.version),
        answer_mode=benchmark.answer_mode,
        measure=results.measure,
        num_items=len(results.items),
        items=json_digest([asdict(item) for item in benchmark.items()])[:16],
        dropped=dict(benchmark.dropped),
        guessing=float(np.mean(chances)) if benchmark.has_choices else None,
        seed=results.seed,
        methods={name: _method(results, name) for name in scores},
        left_out={name: reason for name, reason in results.left_out.items() if name in reported},
        comparisons=comparisons,
        raw_gain=comparisons.get(RECEIVER),
        question_specific_gain=gain,
        retention=_retention(scores, READS_IT, results.seed),
        retention_trained=_retention(scores, READS_IT_TRAINED, results.seed),
        merged=results.merged,
    )


def _retention(scores: dict[str, np.ndarray], skyline: str, seed: int) -> Estimate | None:
    if not {C2C, RECEIVER, skyline} <= scores.keys():
        return None
    return retention(scores[C2C], scores[RECEIVER], scores[skyline], seed)


def _method(results: BenchmarkResults, name: str) -> MethodFound:
    method, answers = results.methods[name], results.answers[name]
    named = [metric for metric in answers[0].metrics if all(metric in answer.metrics for answer in answers)]

    def mean(attribute: str) -> float:
        return float(np.mean([getattr(answer, attribute) for answer in answers]))

    return MethodFound(
        description=method.description,
        control=method.control,
        generic=method.generic,
        accuracy=accuracy(results.scores(name), results.seed),
        unread=float(np.mean([answer.extracted is None for answer in answers])),
        truncated=mean("truncated"),
        prefill_ms=1000 * mean("prefill_seconds"),
        decode_ms=1000 * mean("decode_seconds"),
        receiver_tokens=mean("receiver_tokens"),
        sharer_tokens=mean("sharer_tokens"),
        handed_over_bytes=mean("handed_over"),
        metrics={metric: float(np.mean([answer.metrics[metric] for answer in answers])) for metric in named},
        close=sum(answer.margin is not None and answer.margin < ROUNDING for answer in answers),
    )
