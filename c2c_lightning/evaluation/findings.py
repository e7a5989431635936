"""From all answers to one benchmark to the numbers that a report is made of.

They are JSON-able, so that a page can be made again, and runs be compared, without asking the models.
Scores, differences and intervals are in [-1, 1]; only words and tables make points of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from c2c_lightning.evaluation.controls import ShuffledChoices
from c2c_lightning.evaluation.item import Item
from c2c_lightning.evaluation.results import BenchmarkResults
from c2c_lightning.evaluation.statistics import Comparison, Gain, accuracy, compare, question_specific_gain

C2C, RECEIVER, TEXT_TO_TEXT = "c2c", "receiver", "text_to_text"  # what the words of a report know by name

Findings = dict[str, Any]


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
        baselines = [*results.generic, *(name for name in (RECEIVER,) if name in scores)]
        gain = _gain(question_specific_gain(scores[C2C], {name: scores[name] for name in baselines}, results.seed))
    benchmark, items = results.benchmark, results.items
    is_binary = all(np.isin(values, (0, 1)).all() for values in scores.values())
    return {
        "benchmark": benchmark.name,
        "prompt": {"name": benchmark.prompt.name, "version": benchmark.prompt.version},
        "answer_mode": benchmark.answer_mode,
        "measure": "accuracy" if is_binary else "score",
        "num_items": len(items),
        "items": _fingerprint(items),
        "dropped": dict(benchmark.dropped),
        "guessing": _guessing(items),
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
        "control": method.generic or isinstance(method, ShuffledChoices),
        "generic": method.generic,
        "num_items": len(answers),
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
        "num_items": comparison.num_items,
    }


def _gain(gain: Gain) -> dict[str, Any]:
    return _comparison(gain.comparison) | {"over": gain.over, "p": gain.p, "significant": gain.significant}


def _fingerprint(items: Sequence[Item]) -> str:
    """Tells whether two evaluations asked the same items."""
    text = json.dumps([asdict(item) for item in items], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _guessing(items: Sequence[Item]) -> float | None:
    """The accuracy of a guess; None where there is nothing to choose from."""
    if not all(item.choices for item in items):
        return None
    return float(np.mean([len(item.answers) / len(item.choices) for item in items]))
