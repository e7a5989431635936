"""Cache-to-Cache: the receiver answers on its cache, fused with the sharers'."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from transformers import DynamicCache

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.clock import StageClock
from c2c_lightning.evaluation.decoding import Prefill
from c2c_lightning.evaluation.methods.base import Answering, of_receiver
from c2c_lightning.evaluation.questions import Questions
from c2c_lightning.models import Batch


class C2C(Answering):
    """What the fuser was made for. Controls differ from it in one of its three steps."""

    name = "c2c"
    description = "the receiver on its cache, fused with the sharer's"

    def prefill(self, communicator: Communicator, questions: Questions, clock: StageClock) -> Prefill:
        with clock("tokenization"):
            batch = self.prompts(communicator, questions)
        with clock("receiver prefill"):
            cache = communicator.receiver_cache(batch)
        with clock("sharer prefill"):
            stacks = self.sharer_stacks(communicator, batch)
        with clock("fusion"):
            self.fuse(communicator, cache, stacks, batch, questions)
        return of_receiver(communicator, batch, cache, cache_bytes(communicator, batch, stacks))

    def prompts(self, communicator: Communicator, questions: Questions) -> Batch:
        """The receiver's prompts, each with what the sharers read."""
        return questions.batch(communicator)

    def sharer_stacks(self, communicator: Communicator, batch: Batch) -> dict[int, Tensor]:
        """The sharers' stacks that the fusers see."""
        return communicator.sharer_stacks(batch)

    def fuse(
        self,
        communicator: Communicator,
        cache: DynamicCache,
        stacks: dict[int, Tensor],
        batch: Batch,
        questions: Questions,
    ) -> None:
        """Fuses `stacks` into `cache`, in place."""
        communicator.fuse(cache, stacks, batch)


def cache_bytes(communicator: Communicator, batch: Batch, sharers: Iterable[int]) -> list[int]:
    """For each question the bytes of these sharers' caches that cross over: open layers, all of a sharer's tokens."""
    total = [0] * len(batch)
    for i in sharers:
        fuser, sharer = communicator.fusers[i], communicator.sharers[i]
        per_token = len(fuser.gate.active()) * fuser.sharer.features * sharer.dtype.itemsize
        total = [t + n * per_token for t, n in zip(total, batch.sharers[i].mask.sum(1).tolist())]
    return total
