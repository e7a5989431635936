"""C2C after T2T: both models read the sharer's message and the question, and then their caches are fused."""

from __future__ import annotations

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.clock import StageClock
from c2c_lightning.evaluation.decoding import Prefill
from c2c_lightning.evaluation.methods.base import of_receiver
from c2c_lightning.evaluation.methods.c2c import cache_bytes
from c2c_lightning.evaluation.methods.text_to_text import TextToText
from c2c_lightning.models import Message


class C2CAfterText(TextToText):
    """Takes the arguments of `TextToText`."""

    name = "c2c_after_text"
    description = "the sharer writes a message; then C2C on message and question"

    def read(self, communicator: Communicator, conversations: list[list[Message]], clock: StageClock) -> Prefill:
        with clock("text"):
            batch = communicator.collate(conversations)
        with clock("receiver prefill"):
            cache = communicator.receiver_cache(batch)
        with clock("sharer prefill"):
            stacks = communicator.sharer_stacks(batch)
        with clock("fusion"):
            communicator.fuse(cache, stacks, batch)
        return of_receiver(communicator, batch, cache, cache_bytes(communicator, batch, stacks))
