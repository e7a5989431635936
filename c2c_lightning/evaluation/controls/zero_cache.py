"""Control: a sharer that says nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.methods.c2c import C2C
from c2c_lightning.models import Batch


class ZeroCache(C2C):
    """The fuser sees zeros in place of the sharer's cache: what it adds by itself."""

    name = "zero_cache"
    description = "C2C with zeros in place of the sharer's cache"
    control = generic = True

    def sharer_stacks(self, communicator: Communicator, batch: Batch) -> dict[int, Tensor]:
        stacks = {}
        for i in communicator.open_sharers():
            shape, (rows, tokens) = communicator.fusers[i].sharer, batch.sharers[i].positions.shape
            size = (2, len(communicator.layer_maps[i]), rows, shape.num_kv_heads, tokens, shape.head_dim)
            stacks[i] = torch.zeros(size, dtype=communicator.sharers[i].dtype, device=batch.prompt_ids.device)
        return stacks
