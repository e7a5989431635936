"""Fusers that no optimizer trains."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from c2c_lightning.fuser.base import Fuser, KVShape
from c2c_lightning.fuser.gate import Gate

STATISTICS = "closed_form_statistics"  # what only a run that fits needs, and no saved fuser has


class ClosedFormFuser(Fuser):
    """In training it adds nothing and collects; `solve` makes its weights of what was collected.

    Gates are what they are at evaluation, and do not learn.

    Attributes:
        collects: whether it does now.
    """

    draws = False

    def __init__(self, sharer: KVShape, receiver: KVShape, gate: Gate, **init_args: Any):
        super().__init__(sharer, receiver, gate, **init_args)
        self.collects = True
        self.gate.logit.requires_grad_(False)
        self.train()

    @property
    def statistics(self) -> nn.Module:
        """What has been collected."""
        return self.get_submodule(STATISTICS)

    def train(self, mode: bool = True) -> ClosedFormFuser:
        super().train(mode)
        self.gate.eval()  # without noise, which would scale what is collected
        return self

    def begin(self) -> None:
        """Makes room for what is to be collected."""
        self.add_module(STATISTICS, self.empty_statistics())

    @abstractmethod
    def empty_statistics(self) -> nn.Module:
        """Buffers for what is collected, a part of a run's checkpoints."""

    @abstractmethod
    def solve(self) -> None:
        """Sets the weights from the statistics.

        Raises:
            UserError: nothing was collected, or there is no solution.
        """

    @abstractmethod
    def weights(self) -> Tensor:
        """What `solve` has set, and the update is proportional to."""
