"""The fuser of the C2C paper (arXiv 2510.03215)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from c2c_lightning.errors import UserError
from c2c_lightning.fuser.base import Fuser, KVShape
from c2c_lightning.fuser.gate import Gate
from c2c_lightning.fuser.stacked import StackedBlock, StackedLinear


class C2CFuser(Fuser):
    """fused = receiver + gate * weight * update, with weight and update read off one shared hidden state.

    Args:
        sharer: shape of the sharer's cache.
        receiver: shape of the receiver's cache.
        gate: the gates of the mapped layers.
        hidden: width M of the hidden state (published: 1024).
        intermediate: inner width of the blocks; None for the same as `hidden`.
        num_layers: depth of the update's route, at least 3.
        dropout: inside the blocks.

    Raises:
        UserError: a size that no network has.
    """

    def __init__(
        self,
        sharer: KVShape,
        receiver: KVShape,
        gate: Gate,
        hidden: int = 1024,
        intermediate: int | None = None,
        num_layers: int = 3,
        dropout: float = 0.1,
    ):
        super().__init__(
            sharer, receiver, gate, hidden=hidden, intermediate=intermediate, num_layers=num_layers, dropout=dropout
        )
        if num_layers < 3:
            raise UserError(f"fuser num_layers is {num_layers}: C2CFuser has at least 3.")
        if hidden < 1 or (intermediate is not None and intermediate < 1):
            raise UserError(f"fuser hidden is {hidden}, intermediate {intermediate}: both must be positive.")
        if not 0 <= dropout < 1:
            raise UserError(f"fuser dropout is {dropout}: it must lie in [0, 1).")
        groups = self.num_groups
        intermediate = intermediate or hidden
        self.input = StackedLinear(groups, sharer.features + receiver.features, hidden)
        self.trunk = StackedBlock(groups, hidden, intermediate, dropout)
        self.weight_block = StackedBlock(groups, hidden, hidden, dropout)
        self.weight_head = StackedLinear(groups, hidden, receiver.num_kv_heads)
        self.update_blocks = nn.ModuleList(
            StackedBlock(groups, hidden, intermediate, dropout) for _ in range(num_layers - 2)
        )
        self.update_head = StackedLinear(groups, hidden, receiver.features)

    @property
    def draws(self) -> bool:
        return self.init_args["dropout"] > 0

    def update(self, sharer_GTF: Tensor, receiver_GTF: Tensor, groups: Tensor | None) -> Tensor:
        h_GTM = self.trunk(self.input(torch.cat([sharer_GTF, receiver_GTF], dim=-1), groups), groups)
        weight_GTH = torch.sigmoid(self.weight_head(self.weight_block(h_GTM, groups), groups))
        for block in self.update_blocks:
            h_GTM = block(h_GTM, groups)
        update_GTHD = self.update_head(h_GTM, groups).unflatten(-1, (self.receiver.num_kv_heads, -1))
        return (weight_GTH[..., None] * update_GTHD).flatten(-2)
