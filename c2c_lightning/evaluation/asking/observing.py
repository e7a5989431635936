"""What a whole benchmark's caches say, gathered before its questions are answered.

Dimensions: L fused layers, B questions, H kv heads, N prompt tokens but the last, D head_dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError, first_line
from c2c_lightning.evaluation.asking.methods import Asking
from c2c_lightning.evaluation.asking.questions import Questions
from c2c_lightning.models import Batch
from c2c_lightning.models.read_text import UNALIGNED


@dataclass
class Caches:
    """The caches of some questions before and after fusion, of no layers where there is no fuser."""

    asking: Asking
    questions: Questions
    batch: Batch  # the questions as token ids
    receiver: Tensor  # (2, L, B, H, N, D) the receiver's own stack of the fused layers
    sharers: dict[int, Tensor]  # of each sharer with an open gate, gathered opposite the receiver's tokens
    fused: Tensor  # (2, L, B, H, N, D) the receiver's stack after fusion
    weights: dict[int, Tensor]  # for each sharer (G, B, N, H), the fuser's weights, if it has any to show

    @cached_property
    def mask(self) -> Tensor:
        """(B, N) bool, False for padding."""
        return self.batch.prompt_mask[:, :-1].bool()

    def opposite(self, sharer: int) -> Tensor:
        """(B, N) bool, which of the receiver's tokens have one of the sharer's opposite."""
        return self.mask & (self.batch.sharers[sharer].positions != UNALIGNED)


class Observer(ABC):
    """Something that is measured on a benchmark's caches, over all ranks.

    Attributes:
        name: of the measurement; unique in an evaluation.
    """

    name: str
    needs_fusers: ClassVar[bool] = True  # it says nothing where nothing is fused

    @cached_property
    def measured(self) -> dict[str, dict[str, Tensor]]:
        """What came out, by benchmark; there once all of its caches have been read."""
        return {}

    @abstractmethod
    def metric(self, communicator: Communicator) -> Metric:
        """A fresh metric, whose `update` takes `Caches` and whose `compute` gives tensors by name."""


@torch.no_grad()
def read_caches(communicator: Communicator, questions: Questions) -> Caches:
    """The questions' caches before and after fusion, and the weights by which the fusers multiply their updates."""
    asking = Asking.of(communicator, questions)
    reading, fusers, batch = asking.reading, asking.fusers, asking.reading.batch
    if not len(fusers):
        none = batch.prompt_ids.new_zeros(2, 0)
        return Caches(asking, questions, batch, none, {}, none, {})
    asking.receiver_cache()
    stacks = asking.opposite_stacks()
    weights: dict[int, Tensor] = {}
    handles = []
    for i in stacks:
        head = getattr(fusers[i], "weight_head", None)
        if head is not None:
            # (G, T, H) before the sigmoid, of the T tokens with one of the sharer's opposite; the others have no weight.
            def keep(_: Any, __: Any, out: Tensor, i: int = i) -> None:
                aligned_BN = batch.sharers[i].positions != UNALIGNED
                weights[i] = out.new_zeros(len(out), *aligned_BN.shape, out.shape[-1])
                weights[i][:, aligned_BN] = out.sigmoid()

            handles.append(head.register_forward_hook(keep))
    try:
        fused = fusers.fused_stack(reading, stacks)
    finally:
        for handle in handles:
            handle.remove()
    receiver = reading.receiver_stack(fusers.fused_layers)
    return Caches(asking, questions, batch, receiver, stacks, fused, weights)


def load_measured(path: Path) -> dict[str, Tensor] | None:
    """What was measured before, None if nothing; a UserError if its file is damaged."""
    if not path.exists():
        return None
    try:
        measured = torch.load(path, weights_only=True)
        if not isinstance(measured, dict) or not all(isinstance(value, Tensor) for value in measured.values()):
            raise TypeError(f"a {type(measured).__name__}, and not tensors by name")
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise UserError(f"{path} is damaged ({first_line(error)}): remove it, and it is measured again.") from error
    return measured
