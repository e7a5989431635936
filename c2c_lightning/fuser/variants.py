"""Fusers that are the paper's but for one thing (arXiv 2510.03215): its ablations, C2C-C, and the receiver-fed control.

Without its gate the paper's fuser is a `C2CFuser` under `gate.kind: open`.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from c2c_lightning.fuser.base import KVShape
from c2c_lightning.fuser.c2c import C2CFuser
from c2c_lightning.fuser.gate import Gate
from c2c_lightning.fuser.stacked import StackedLinear


class UnweightedFuser(C2CFuser):
    """fused = receiver + gate * update: every token and head gets all of it."""

    weighted = False


class ReplacingFuser(C2CFuser):
    """fused = receiver + gate * (weight * update - receiver): no residual; an open gate replaces the receiver's cache."""

    residual = False


class ProjectingFuser(C2CFuser):
    """fused = receiver + gate * (update - receiver), the update read off the sharer's cache alone.

    An open gate puts the sharer's cache, mapped to the receiver's dimension, in the place of the receiver's.
    """

    reads_receiver = weighted = residual = False


class C2CCFuser(C2CFuser):
    """C2C-C, the stronger variant (table 9): a 3-layer MLP first maps the sharer's cache to the receiver's dimension.

    Both caches then have as much room in what the routes of weight and update read, however small the sharer's is.

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


class IdenticalFuser(C2CFuser):
    """The receiver-fed control (table 6): a `C2CFuser` that reads the receiver's own cache in the sharer's place.

    What it gains over the receiver comes from training and not from communication. It fuses the same tokens as any
    other fuser, those that have a sharer token opposite.

    Args:
        sharer: shape of the sharer's cache, which is not read.
        receiver: shape of the receiver's cache.
        gate: the gates of the mapped layers.
        **sizes: see `C2CFuser`.
    """

    for_one_sharer = True

    def __init__(self, sharer: KVShape, receiver: KVShape, gate: Gate, **sizes: Any):
        super().__init__(receiver, receiver, gate, **sizes)
        self.sharer = sharer

    def update(self, sharer_GTF: Tensor, receiver_GTF: Tensor, groups: Tensor | None) -> Tensor:
        return super().update(receiver_GTF, receiver_GTF, groups)
