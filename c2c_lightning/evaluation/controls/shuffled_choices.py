"""Control: the same choices in another order."""

from __future__ import annotations

from dataclasses import replace

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.answers import Answer
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.clock import StageClock
from c2c_lightning.evaluation.controls.applies import lacks_choices
from c2c_lightning.evaluation.methods.c2c import C2C
from c2c_lightning.evaluation.questions import Questions


class ShuffledChoices(C2C):
    """C2C on shuffled choices; answers are translated back, so what has changed since C2C is position bias.

    Not a generic control: it knows as much of the question as C2C does.
    """

    name = "shuffled_choices"
    description = "C2C on the same choices in another order"
    control = True

    def why_not(self, benchmark: Benchmark) -> str | None:
        return lacks_choices(benchmark)

    def answer(self, communicator: Communicator, questions: Questions, clock: StageClock) -> list[Answer]:
        shuffled, orders = questions.shuffled()
        answers = []
        for item, order, answer in zip(questions.items, orders, super().answer(communicator, shuffled, clock)):
            said = answer.extracted
            letters = [0.0] * len(order)
            for new, old in enumerate(order):
                letters[old] = answer.letters[new]
            back = item.letters[order[item.letters.index(said)]] if said else None
            answers.append(replace(answer, extracted=back, letters=letters))
        return answers
