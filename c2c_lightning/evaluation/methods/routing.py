"""Query routing: each question goes to one of the two models, and no cache changes hands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.answers import Answer
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.item import Item
from c2c_lightning.evaluation.methods.base import Derived


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
