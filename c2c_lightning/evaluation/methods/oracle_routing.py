"""The upper bound of query routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from c2c_lightning.evaluation.answers import Answer
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.item import Item
from c2c_lightning.evaluation.methods.base import Derived
from c2c_lightning.evaluation.methods.routing import both_asked


class OracleRouting(Derived):
    """Each question goes to a model that is right, if there is one: no router can be better."""

    name = "oracle_routing"
    description = "for every question the better of the two models' answers: the upper bound of any routing"
    needs = ("receiver", "sharer")

    def derive(
        self, benchmark: Benchmark, items: Sequence[Item], answers: Mapping[str, Sequence[Answer]]
    ) -> list[Answer]:
        pairs = zip(*(answers[name] for name in self.needs))
        return [both_asked(receiver, sharer, sharer.score > receiver.score) for receiver, sharer in pairs]
