"""Control: the cache of another question."""

from __future__ import annotations

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.controls.applies import lacks_others
from c2c_lightning.evaluation.methods.c2c import C2C
from c2c_lightning.evaluation.questions import Questions
from c2c_lightning.models import Batch, exchange_questions


class WrongQuestion(C2C):
    """The receiver reads its own question, the sharer another one of the same benchmark.

    Which one is drawn once, with the evaluation's seed, so that every question serves just one other.
    """

    name = "wrong_question"
    description = "C2C with the sharer's cache of another question of the same benchmark"
    control = generic = True

    def why_not(self, benchmark: Benchmark) -> str | None:
        return lacks_others(benchmark)

    def prompts(self, communicator: Communicator, questions: Questions) -> Batch:
        return exchange_questions(questions.batch(communicator), questions.partner_batch(communicator))
