"""Control: nothing is added to the receiver's cache."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.methods.c2c import C2C
from c2c_lightning.evaluation.questions import Questions
from c2c_lightning.models import Batch
from c2c_lightning.models.cache import read_stack, write_stack


class ZeroUpdate(C2C):
    """All of C2C's way but the addition: it must answer as the receiver does, or the way itself changes answers."""

    name = "zero_update"
    description = "C2C with an update of zero"
    control = generic = True

    def fuse(
        self,
        communicator: Communicator,
        cache: DynamicCache,
        stacks: dict[int, Tensor],
        batch: Batch,
        questions: Questions,
    ) -> None:
        stack = read_stack(cache, communicator.fused_layers)
        write_stack(cache, communicator.fused_layers, stack + torch.zeros_like(stack))
