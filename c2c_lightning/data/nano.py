"""Questions of the built-in world: training people for the fuser, held-out people for validation."""

from __future__ import annotations

from collections.abc import Sequence

from c2c_lightning.data.datamodule import InstructionData
from c2c_lightning.data.records import Example
from c2c_lightning.models import Aligner
from c2c_lightning.models.private_text import PRIVATE
from c2c_lightning.nano import world


class NanoData(InstructionData):
    """Two-hop questions with one-word answers, compared word for word.

    Args:
        batch_size: questions per device and micro-batch.
        val_batch_size: the same for validation.
        told: ask about people whom neither model knows; the sharer reads a sentence about them that the receiver does not.
        seed: of the order; None for that of `seed_everything`.
        aligner: reads conversations for the models; comes from the model.
    """

    def __init__(
        self,
        batch_size: int = 64,
        val_batch_size: int = 100,
        told: bool = False,
        seed: int | None = None,
        aligner: Aligner | None = None,
    ):
        # All questions are about equally long, and those of like length are of one wording.
        sizes = {"batch_size": batch_size, "val_batch_size": val_batch_size}
        super().__init__(path=[], **sizes, bucket=False, exact_answers=True, seed=seed, aligner=aligner)
        self.told = told
        self._train, self._val = world.told_facts() if told else world.facts()

    def train_examples(self) -> Sequence[Example]:
        return [self._example(fact, question) for fact in self._train for question in fact.questions]

    def val_examples(self) -> Sequence[Example]:
        return [self._example(fact, fact.question) for fact in self._val]

    def _example(self, fact: world.Fact, question: str) -> Example:
        private = {PRIVATE: fact.plain_statement} if self.told else {}
        turns = [{"role": "user", "content": question, **private}, {"role": "assistant", "content": fact.answer}]
        return Example(turns, source=f"nano world: {fact.name}")
