"""The stronger variant of the C2C fuser, C2C-C (arXiv 2510.03215, table 9)."""

from __future__ import annotations

import itertools
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from c2c_lightning.fuser.base import KVShape
from c2c_lightning.fuser.c2c import C2CFuser
from c2c_lightning.fuser.gate import Gate
from c2c_lightning.fuser.stacked import StackedLinear


class C2CCFuser(C2CFuser):
    """A `C2CFuser` to which a 3-layer MLP first maps the sharer's cache, into the receiver's dimension.

    So both caches have as much room in what the routes of weight and update read, however small the sharer's is.

    Args:
        sharer: shape of the sharer's cache.
        receiver: shape of the receiver's cache.
        gate: the gates of the mapped layers.
        **sizes: see `C2CFuser`; the MLP is `hidden` wide.
    """

    def __init__(self, sharer: KVShape, receiver: KVShape, gate: Gate, **sizes: Any):
        super().__init__(receiver, receiver, gate, **sizes)
        self.sharer, hidden = sharer, self.init_args["hidden"]
        widths = [sharer.features, hidden, hidden, receiver.features]
        self.map = nn.ModuleList(StackedLinear(self.num_groups, *pair) for pair in itertools.pairwise(widths))

    def update(self, sharer_GTF: Tensor, receiver_GTF: Tensor, groups: Tensor | None) -> Tensor:
        first, second, third = self.map
        h_GTM = F.gelu(second(F.gelu(first(sharer_GTF, groups)), groups))
        return super().update(third(h_GTM, groups), receiver_GTF, groups)
