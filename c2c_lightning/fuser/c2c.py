"""The fuser of the C2C paper (arXiv 2510.03215), and those that are the paper's but for one thing.

Its ablations, C2C-C, and the receiver-fed control. Without its gate the paper's fuser is a `C2CFuser` under
`gate.kind: open`.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2c_lightning.errors import UserError
from c2c_lightning.fuser.base import Fuser, KVShape, scale_heads
from c2c_lightning.fuser.gate import Gate
from c2c_lightning.fuser.stacked import EPS, StackedBlock, StackedLinear

Dtype = Literal["float32", "bfloat16", "float16"]


class C2CFuser(Fuser):
    """fused = receiver + gate * weight * update, with weight and update read off one shared hidden state.

    Args:
        sharer: see `Fuser`.
        receiver: see `Fuser`.
        gate: see `Fuser`.
        hidden: width M of the hidden state (published: 1024).
        intermediate: inner width of the blocks; None for the same as `hidden`.
        num_layers: depth of the update's route, at least 3.
        dropout: inside the blocks.
        evaluate_in: dtype in which networks are computed at evaluation, one layer after the other and rounded as the
            published code rounds; None for all at once, in the parameters' own.

    Raises:
        UserError: a size that no network has.
    """

    # What the ablations are without.
    reads_receiver: ClassVar[bool] = True
    weighted: ClassVar[bool] = True
    residual: ClassVar[bool] = True

    def __init__(
        self,
        sharer: KVShape,
        receiver: KVShape,
        gate: Gate,
        hidden: int = 1024,
        intermediate: int | None = None,
        num_layers: int = 3,
        dropout: float = 0.1,
        evaluate_in: Dtype | None = None,
    ):
        sizes = {"hidden": hidden, "intermediate": intermediate, "num_layers": num_layers, "dropout": dropout}
        # Said only where it is, so that a fuser without it is the same as one that was saved before.
        rounding = {} if evaluate_in is None else {"evaluate_in": evaluate_in}
        super().__init__(sharer, receiver, gate, **sizes, **rounding)
        if num_layers < 3:
            raise UserError(f"fuser num_layers is {num_layers}: C2CFuser has at least 3.")
        if hidden < 1 or (intermediate is not None and intermediate < 1):
            raise UserError(f"fuser hidden is {hidden}, intermediate {intermediate}: both must be positive.")
        if evaluate_in not in (None, *get_args(Dtype)):
            raise UserError(f"fuser evaluate_in is {evaluate_in!r}: give {', '.join(get_args(Dtype))}, or null.")
        if evaluate_in is not None and type(self) is not C2CFuser:
            raise UserError(
                f"fuser evaluate_in is {evaluate_in!r}: only C2CFuser has published rounding, not {type(self).__name__}."
            )
        self.evaluate_in, self.draws = evaluate_in, dropout > 0
        groups = self.num_groups
        intermediate = intermediate or hidden
        self.input = StackedLinear(groups, sharer.features + receiver.features * self.reads_receiver, hidden)
        self.trunk = StackedBlock(groups, hidden, intermediate, dropout)
        if self.weighted:
            self.weight_block = StackedBlock(groups, hidden, hidden, dropout)
            self.weight_head = StackedLinear(groups, hidden, receiver.num_kv_heads)
        self.update_blocks = nn.ModuleList(
            StackedBlock(groups, hidden, intermediate, dropout) for _ in range(num_layers - 2)
        )
        self.update_head = StackedLinear(groups, hidden, receiver.features)

    def update(self, sharer_GTF: Tensor, receiver_GTF: Tensor, groups: Tensor | None) -> Tensor:
        if self.evaluate_in is not None and not self.training:
            rows = range(len(sharer_GTF)) if groups is None else groups.tolist()
            with torch.autocast(sharer_GTF.device.type, enabled=False):
                return torch.stack(
                    [self.published_update(*pair, row) for *pair, row in zip(sharer_GTF, receiver_GTF, rows)]
                )
        read = [sharer_GTF, receiver_GTF] if self.reads_receiver else [sharer_GTF]
        h_GTM = trunk_GTM = self.trunk(self.input(torch.cat(read, dim=-1), groups), groups)
        for block in self.update_blocks:
            h_GTM = block(h_GTM, groups)
        update_GTF = self.update_head(h_GTM, groups)
        if self.weighted:
            weight_GTH = torch.sigmoid(self.weight_head(self.weight_block(trunk_GTM, groups), groups))
            update_GTF = scale_heads(update_GTF, weight_GTH)
        return update_GTF if self.residual else update_GTF - receiver_GTF

    def published_update(self, sharer_TF: Tensor, receiver_TF: Tensor, row: int) -> Tensor:
        """The update (T, F) of the pair at a row of the parameters, rounded as published: its product alone is in fp32."""
        dtype = getattr(torch, self.evaluate_in)

        def linear(layer: StackedLinear, x: Tensor) -> Tensor:
            # As (out, in) and contiguous: a matmul of the other layout is rounded otherwise on some processors.
            weight_OF = layer.weight[row].mT.to(dtype).contiguous()
            return F.linear(x, weight_OF, None if layer.bias is None else layer.bias[row, 0].to(dtype))

        def block(layer: StackedBlock, x: Tensor) -> Tensor:
            normed = F.rms_norm(x, x.shape[-1:], layer.norm[row, 0].to(dtype), EPS)
            return x + linear(layer.w2, F.gelu(linear(layer.w1, normed)))

        h_TM = block(self.trunk, linear(self.input, torch.cat([sharer_TF, receiver_TF], dim=-1).to(dtype)))
        weight_TH = torch.sigmoid(linear(self.weight_head, block(self.weight_block, h_TM)))
        for layer in self.update_blocks:
            h_TM = block(layer, h_TM)
        update_THD = linear(self.update_head, h_TM).unflatten(-1, (self.receiver.num_kv_heads, -1))
        return (weight_TH[..., None].float() * update_THD.float()).flatten(-2)


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
    The MLP is `hidden` wide; sizes are otherwise those of a `C2CFuser`.
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
    """

    for_one_sharer = True

    def __init__(self, sharer: KVShape, receiver: KVShape, gate: Gate, **sizes: Any):
        super().__init__(receiver, receiver, gate, **sizes)
        self.sharer = sharer

    def update(self, sharer_GTF: Tensor, receiver_GTF: Tensor, groups: Tensor | None) -> Tensor:
        return super().update(receiver_GTF, receiver_GTF, groups)
