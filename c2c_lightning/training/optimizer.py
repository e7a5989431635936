"""AdamW for fusers, and the schedule of a run, also of one whose length was changed on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from c2c_lightning.errors import UserError


@dataclass
class OptimizerConfig:
    """AdamW with linear warm-up and decay.

    Attributes:
        lr: peak learning rate (published: 1e-4).
        gate_lr: the same for gate logits; None for `lr`.
        weight_decay: of everything but gate logits.
        warmup: share of the run's steps.
    """

    lr: float = 1e-4
    gate_lr: float | None = None
    weight_decay: float = 0.01
    warmup: float = 0.1

    def __post_init__(self) -> None:
        for key, rate in {"lr": self.lr, "gate_lr": self.gate_lr}.items():
            if rate is not None and not 0 < rate < math.inf:
                raise UserError(f"model.optimizer.{key} is {rate}: it must be positive.")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"model.optimizer.weight_decay is {self.weight_decay}: it must not be negative.")
        if not 0 <= self.warmup < 1:
            raise UserError(f"model.optimizer.warmup is {self.warmup}: give the share of the steps, in [0, 1).")

    def parameter_groups(self, fusers: nn.Module) -> list[dict[str, Any]]:
        """The fusers' parameters as an optimizer takes them: weights, and gate logits if they learn."""
        logits, weights = [], []
        for name, parameter in fusers.named_parameters():
            if parameter.requires_grad:
                (logits if name.endswith("gate.logit") else weights).append(parameter)
        groups = [{"name": "fuser", "params": weights, "lr": self.lr, "weight_decay": self.weight_decay}]
        if logits:
            gate_lr = self.lr if self.gate_lr is None else self.gate_lr
            groups.append({"name": "gates", "params": logits, "lr": gate_lr, "weight_decay": 0.0})
        return groups


@dataclass
class Schedule:
    """How many steps learning rates and temperatures are scheduled over.

    A run that is resumed with another number of steps spreads what is left of its schedule over the steps that are
    left: neither a learning rate nor a temperature jumps back up.

    Attributes:
        lengths: (first, last) optimizer step of every length that the run has had.
    """

    lengths: list[tuple[int, int]] = field(default_factory=list)

    def total_at(self, step: int) -> int | float:
        """The length of the run that would be as far in its schedule at this step as this one is."""
        begun = [length for length in self.lengths if length[0] <= step]
        if len(begun) == 1:
            return begun[0][1]
        done = 0.0
        for (first, last), (next_first, _) in pairwise(begun):
            done += (1 - done) * (next_first - first) / (last - first)
        first, last = begun[-1]
        return step / (done + (1 - done) * (step - first) / (last - first))


def adamw(
    groups: Sequence[dict[str, Any]], warmups: Sequence[float], total_at: Callable[[int], float], precision: str
) -> dict[str, Any]:
    """AdamW of parameter groups, each with its warm-up, as Lightning wants it; for `total_at` see `Schedule`."""
    # A fused step would unscale fp16's gradients only after they were clipped.
    optimizer = torch.optim.AdamW(groups, fused=precision != "16-mixed")
    schedule = LambdaLR(optimizer, [partial(share_of_rate, warmup, total_at) for warmup in warmups])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def share_of_rate(warmup: float, total_at: Callable[[int], float], step: int) -> float:
    """What of its peak the learning rate is at a step: it rises to all of it, then falls to 0, each in a line."""
    total = total_at(step)
    rising = warmup * total
    if isinstance(total, int):
        rising = round(rising)
    if step < rising:
        return step / rising
    return max(0.0, (total - step) / max(1, total - rising))
