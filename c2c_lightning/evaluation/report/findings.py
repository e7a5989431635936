"""From all answers to one benchmark to the numbers that a report is made of.

They are JSON-able, so that a page can be made again, and runs be compared, without asking the models.
Scores, differences and intervals are in [-1, 1]; only words and tables make points of them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.report.results import BenchmarkResults
from c2c_lightning.evaluation.report.statistics import Comparison, Gain, accuracy, compare, question_specific_gain

# What the words of a report know by name.
C2C, RECEIVER, SHARER, TEXT_TO_TEXT, WRONG_QUESTION = "c2c", "receiver", "sharer", "text_to_text", "wrong_question"

Findings = dict[str, Any]
FINDINGS = frozenset(
    [
        "benchmark",
        "prompt",
        "answer_mode",
        "measure",
        "num_items",
        "items",
        "dropped",
        "guessing",
        "seed",
        "methods",
        "left_out",
        "comparisons",
        "raw_gain",
        "question_specific_gain",
    ]
)


def findings(results: BenchmarkResults) -> Findings:
    """What an evaluation found out on one benchmark.

    The question-specific gain is C2C less the best of the generic controls. The receiver alone counts as
    one of them, for it knows nothing of the sharer either: otherwise controls that do harm would make the
    gain larger than what C2C has gained.

    Args:
        results: of the methods and controls that are to be reported.
    """
    scores = {name: results.scores(name) for name in results.answers}
    rivals = [name for name in scores if name != C2C] if C2C in scores else []
    comparisons = {name: _comparison(compare(scores[C2C], scores[name], results.seed)) for name in rivals}
    gain = None
    if rivals and results.generic:
        # The receiver first: of equally good ones the first is named, and zero_update should equal it.
        baselines = [*({RECEIVER} & scores.keys()), *results.generic]
        gain = _gain(question_specific_gain(scores[C2C], {name: scores[name] for name in baselines}, results.seed))
    benchmark = results.benchmark
    return {
        "benchmark": benchmark.name,
        "prompt": {"name": benchmark.prompt.name, "version": benchmark.prompt.version},
        "answer_mode": benchmark.answer_mode,
        "measure": results.measure,
        "num_items": len(results.items),
        "items": _fingerprint(benchmark),
        "dropped": dict(benchmark.dropped),
        "guessing": _guessing(benchmark),
        "seed": results.seed,
        "methods": {name: _method(results, name) for name in scores},
        "left_out": dict(results.left_out),
        "comparisons": comparisons,
        "raw_gain": comparisons.get(RECEIVER),
        "question_specific_gain": gain,
    }


def _method(results: BenchmarkResults, name: str) -> dict[str, Any]:
    method, answers = results.methods[name], results.answers[name]

    def mean(attribute: str) -> float:
        return float(np.mean([getattr(answer, attribute) for answer in answers]))

    return {
        "description": method.description,
        "control": method.control,
        "generic": method.generic,
        "accuracy": asdict(accuracy(results.scores(name), results.seed)),
        "unread": float(np.mean([answer.extracted is None for answer in answers])),
        "truncated": mean("truncated"),
        "prefill_ms": 1000 * mean("prefill_seconds"),
        "decode_ms": 1000 * mean("decode_seconds"),
        "receiver_tokens": mean("receiver_tokens"),
        "sharer_tokens": mean("sharer_tokens"),
        "handed_over_bytes": mean("handed_over"),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "difference": asdict(comparison.difference),
        "p": comparison.p,
        "significant": comparison.significant,
        "test": comparison.test,
        "only_c2c": comparison.only_first,
        "only_other": comparison.only_second,
    }


def _gain(gain: Gain) -> dict[str, Any]:
    return _comparison(gain.comparison) | {"over": gain.over, "p": gain.p, "significant": gain.significant}


def _fingerprint(benchmark: Benchmark) -> str:
    """Tells whether two evaluations asked the same items."""
    text = json.dumps([asdict(item) for item in benchmark.items()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _guessing(benchmark: Benchmark) -> float | None:
    """The accuracy of a guess; None where there is nothing to choose from."""
    if not benchmark.has_choices:
        return None
    return float(np.mean([len(item.answers) / len(item.choices) for item in benchmark.items()]))
