"""What every fuser is: KV stacks in, a fused receiver stack out.

A KV stack is one tensor (2, L, B, H, N, D): keys (after RoPE), then values, of all L mapped layers.
Dimensions: P parts that are fused (keys, values or both), L mapped layers, G groups = the open ones of
the P * L (part, layer) pairs, B batch, H kv heads, N tokens, D head_dim, F = H * D features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from c2c_lightning.fuser.gate import Gate


@dataclass(frozen=True)
class KVShape:
    """Shape of a model's KV cache: layers, kv heads, head_dim."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    @property
    def features(self) -> int:
        return self.num_kv_heads * self.head_dim


class Fuser(nn.Module, ABC):
    """Fuses a sharer's KV stack into the receiver's: receiver + gate * update.

    A subclass has one network per (part, layer) pair, stacked along the first axis of its parameters,
    and states its update in `update`. Its `__init__` takes (sharer, receiver, gate) and then its own
    sizes by keyword, and hands those sizes to `super().__init__` so that a saved fuser can name them.

    Args:
        sharer: shape of the sharer's cache (its num_layers is not used: L comes from the gate).
        receiver: shape of the receiver's cache.
        gate: the gates of the L mapped layers.
        **init_args: the subclass's own sizes.
    """

    def __init__(self, sharer: KVShape, receiver: KVShape, gate: Gate, **init_args: Any):
        super().__init__()
        self.sharer, self.receiver, self.gate, self.init_args = sharer, receiver, gate, init_args
        self.num_groups = len(gate.parts) * len(gate.receiver_layers)

    @abstractmethod
    def update(self, sharer_GTF: Tensor, receiver_GTF: Tensor, groups: Tensor | None) -> Tensor:
        """What an open gate adds to the receiver's cache.

        Args:
            sharer_GTF: sharer features, T = B * N tokens, a feature being head * head_dim + d.
            receiver_GTF: receiver features.
            groups: rows of the stacked parameters that the G groups are, None for all in order.

        Returns:
            (G, T, receiver features)
        """

    def forward(
        self, sharer: Tensor, receiver: Tensor, onto: Tensor | None = None, aligned: Tensor | None = None
    ) -> Tensor:
        """Fuses two KV stacks.

        Layers whose gate is closed are left as they are, to the bit, and cost nothing.

        Args:
            sharer: (2, L, B, Hs, N, Ds), gathered so that token n stands opposite the receiver's n.
            receiver: (2, L, B, Hr, N, Dr), what the fuser reads.
            onto: what the update is added to, if not `receiver`: with several sharers their updates
                add up while each fuser reads the receiver's own cache.
            aligned: (B, N) bool, False where a receiver token has no sharer token opposite.

        Returns:
            The fused stack, (2, L, B, Hr, N, Dr) in the dtype of `receiver`.
        """
        onto = receiver if onto is None else onto
        active = self.gate.active()
        if not active:
            return onto
        _, L, B, H, N, D = receiver.shape
        device = receiver.device
        every_pair = len(active) == 2 * L
        # The open pairs' rows in a stack, which has both parts, and in the parameters, which may have one.
        in_stack = torch.tensor([self.gate.parts[p] * L + layer for p, layer in active], device=device)
        in_parameters = torch.tensor([p * L + layer for p, layer in active], device=device)
        groups = None if len(active) == self.num_groups else in_parameters
        pick = (lambda x: x) if every_pair else (lambda x: x.index_select(0, in_stack))

        update = self.update(
            self._features(pick(sharer.flatten(0, 1))), self._features(pick(receiver.flatten(0, 1))), groups
        )
        update_GBHND = update.reshape(-1, B, N, H, D).transpose(2, 3)
        gate_GH = self.gate().flatten(0, 1)
        gate_GH = gate_GH if groups is None else gate_GH.index_select(0, groups)
        gated = gate_GH[:, None, :, None, None] * update_GBHND
        if aligned is not None:
            gated = gated * aligned[:, None, :, None]
        flat = onto.flatten(0, 1)
        fused = (pick(flat) + gated).to(onto.dtype)
        if not every_pair:
            fused = flat.index_copy(0, in_stack, fused)
        return fused.unflatten(0, (2, L))

    def _features(self, x_GBHND: Tensor) -> Tensor:
        """(G, T, F), in the parameters' dtype unless autocast chooses it."""
        x_GTF = x_GBHND.transpose(2, 3).flatten(3).flatten(1, 2)
        if torch.is_autocast_enabled(x_GTF.device.type):
            return x_GTF
        return x_GTF.to(next(self.parameters()).dtype)


FuserFactory = Callable[[KVShape, KVShape, Gate], Fuser]
