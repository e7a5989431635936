"""The receiver-fed control: what a fuser gives that no sharer tells anything."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from c2c_lightning.fuser.base import KVShape
from c2c_lightning.fuser.c2c import C2CFuser
from c2c_lightning.fuser.gate import Gate


class IdenticalFuser(C2CFuser):
    """A `C2CFuser` that reads the receiver's own cache in the sharer's place (arXiv 2510.03215, table 6).

    What it gains over the receiver is what training gives, and no communication. It fuses the same tokens, those that
    have a sharer token opposite.

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
