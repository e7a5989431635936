"""A sharer alone."""

from __future__ import annotations

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.clock import StageClock
from c2c_lightning.evaluation.decoding import Prefill
from c2c_lightning.evaluation.methods.base import Answering, read_prompts, sharer_at
from c2c_lightning.evaluation.questions import Questions


class Sharer(Answering):
    """A sharer reads the question in its own template and tokens, and answers it.

    Args:
        index: which one, of several.
    """

    def __init__(self, index: int = 0):
        self.index = index
        self.name = "sharer" if index == 0 else f"sharer_{index}"
        self.description = "the sharer alone" if index == 0 else f"sharer {index} alone"

    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        model, tokenizer = sharer_at(communicator, self.index)
        with clock("tokenization"):
            texts = [
                communicator.aligner.render(tokenizer, questions.benchmark.messages(item)) for item in questions.items
            ]
        return read_prompts(model, tokenizer, texts, clock, "sharer prefill")
