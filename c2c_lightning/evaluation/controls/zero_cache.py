"""Control: a sharer that says nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from c2c_lightning.communication import Batch, Communicator
from c2c_lightning.evaluation.methods.c2c import C2C


class ZeroCache(C2C):
    """The fuser sees zeros in place of the sharer's cache: what it adds by itself."""

    name = "zero_cache"
    description = "C2C with zeros in place of the sharer's cache"
    generic = True

    def sharer_stacks(self, communicator: Communicator, batch: Batch) -> dict[int, Tensor]:
        return {i: torch.zeros_like(stack) for i, stack in communicator.sharer_stacks(batch).items()}
