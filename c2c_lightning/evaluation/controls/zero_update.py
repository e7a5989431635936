"""Control: nothing is added to the receiver's cache."""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache

from c2c_lightning.communication import Batch, Communicator
from c2c_lightning.evaluation.methods.c2c import C2C
from c2c_lightning.evaluation.questions import Questions


class ZeroUpdate(C2C):
    """All of C2C's way but the addition: it must answer as the receiver does, or the way itself changes answers."""

    name = "zero_update"
    description = "C2C with an update of zero"
    generic = True

    def fuse(
        self,
        communicator: Communicator,
        cache: DynamicCache,
        stacks: dict[int, Tensor],
        batch: Batch,
        questions: Questions,
    ) -> None:
        pass
