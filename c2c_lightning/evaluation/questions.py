"""Some questions of a benchmark, tokenized once for all the methods that answer them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.item import Item
from c2c_lightning.models import Batch


class Questions:
    """Items that are answered together.

    Args:
        benchmark: that they are of.
        items: the questions.
        partners: for each of them another question of the benchmark, whose cache the control fuses.
        seed: of the order in which choices are shuffled.
    """

    def __init__(self, benchmark: Benchmark, items: Sequence[Item], partners: Sequence[Item], seed: int = 0):
        self.benchmark, self.items, self.partners, self.seed = benchmark, list(items), list(partners), seed
        self._batches: dict[str, Batch] = {}

    def __len__(self) -> int:
        return len(self.items)

    def without(self, done: set[str]) -> Questions:
        """The questions whose ids are not among `done`; itself if there are none to leave out."""
        left = [i for i, item in enumerate(self.items) if item.id not in done]
        if len(left) == len(self.items):
            return self
        items, partners = [self.items[i] for i in left], [self.partners[i] for i in left]
        return Questions(self.benchmark, items, partners, self.seed)

    def batch(self, communicator: Communicator) -> Batch:
        """The prompts as all models read them."""
        return self._collate("own", self.items, communicator)

    def partner_batch(self, communicator: Communicator) -> Batch:
        """The partners' prompts as all models read them."""
        return self._collate("partners", self.partners, communicator)

    def shuffled(self) -> tuple[Questions, list[np.ndarray]]:
        """The same questions with their choices in another order.

        Returns:
            The questions, and for each of them the old place of the choice at each new place.
        """
        items, orders = [], []
        for item in self.items:
            # Seeded by the question itself, so that the order does not depend on who is asked along with it.
            rng = np.random.default_rng([self.seed, *item.id.encode()])
            order = other_order(len(item.choices), rng)
            old_places = [item.letters.index(letter) for letter in item.answers]
            answers = tuple(item.letters[int(np.flatnonzero(order == place)[0])] for place in old_places)
            items.append(replace(item, choices=tuple(item.choices[i] for i in order), answers=answers))
            orders.append(order)
        return Questions(self.benchmark, items, self.partners, self.seed), orders

    def _collate(self, name: str, items: Sequence[Item], communicator: Communicator) -> Batch:
        if name not in self._batches:
            self._batches[name] = communicator.collate([self.benchmark.messages(item) for item in items])
        return self._batches[name]


def other_order(number: int, rng: np.random.Generator) -> np.ndarray:
    """An order of `number` things that is not the one they have, where there is another."""
    order = rng.permutation(number)
    while number > 1 and (order == np.arange(number)).all():
        order = rng.permutation(number)
    return order


def derangement(number: int, seed: int) -> np.ndarray:
    """For each of `number` things another one, every one being somebody's: one random cycle through all."""
    cycle = np.random.default_rng(seed).permutation(number)
    other = np.empty(number, dtype=np.int64)
    other[cycle] = np.roll(cycle, -1)
    return other
