"""A fuser of a few per cent of the size: keys and values of a layer through one narrow hidden state."""

from __future__ import annotations

import torch
from torch import Tensor

from c2c_lightning.errors import UserError
from c2c_lightning.fuser.base import Fuser, KVShape, scale_heads
from c2c_lightning.fuser.gate import Gate
from c2c_lightning.fuser.stacked import StackedBlock, StackedLinear


class LowRankFuser(Fuser):
    """fused = receiver + gate * weight * update, with one hidden state for a layer's keys and values.

    After the idea of Latent Cache Flow (arXiv 2605.22863), not its code: what a sharer has to say of a token is little
    beside the width of its keys and values, and the same for both. Only the sharer's cache is read. With the
    receiver's beside it a fuser of the same size learned less on the built-in pair (docs/fusers.md).

    Args:
        sharer: see `Fuser`.
        receiver: see `Fuser`.
        gate: see `Fuser`.
        rank: width R of the hidden state.
        dropout: inside its block.

    Raises:
        UserError: a size that no network has.
    """

    joint = True

    def __init__(self, sharer: KVShape, receiver: KVShape, gate: Gate, rank: int = 128, dropout: float = 0.1):
        super().__init__(sharer, receiver, gate, rank=rank, dropout=dropout)
        if rank < 1:
            raise UserError(f"fuser rank is {rank}: it must be positive.")
        self.draws = dropout > 0
        layers = len(gate.receiver_layers)
        self.down = StackedLinear(layers, 2 * sharer.features, rank)
        self.block = StackedBlock(layers, rank, rank, dropout)
        self.weight_head = StackedLinear(self.num_groups, rank, receiver.num_kv_heads)
        self.update_head = StackedLinear(self.num_groups, rank, receiver.features)

    def update(self, sharer_JTF: Tensor, receiver_JTF: Tensor, groups: Tensor | None) -> Tensor:
        """See `Fuser.update`; J rows, of layers or of pairs."""
        layers = None if groups is None else groups % len(self.gate.receiver_layers)
        h_GTR = self.block(self.down(sharer_JTF, layers), layers)
        if groups is None:
            h_GTR = h_GTR.repeat(len(self.gate.parts), 1, 1)
        weight_GTH = torch.sigmoid(self.weight_head(h_GTR, groups))
        return scale_heads(self.update_head(h_GTR, groups), weight_GTH)
