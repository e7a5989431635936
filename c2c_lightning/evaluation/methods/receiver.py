"""The receiver alone."""

from __future__ import annotations

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.clock import StageClock
from c2c_lightning.evaluation.decoding import Prefill
from c2c_lightning.evaluation.methods.base import Answering, of_receiver
from c2c_lightning.evaluation.questions import Questions


class Receiver(Answering):
    """The receiver reads the question and answers it: what communication has to improve on."""

    name = "receiver"
    description = "the receiver alone"

    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        with clock("tokenization"):
            batch = questions.batch(communicator)
        with clock("receiver prefill"):
            cache = communicator.receiver_cache(batch)
        return of_receiver(communicator, batch, cache)
