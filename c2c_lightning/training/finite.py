"""Stops a run whose numbers are not finite any more, before it overwrites what was good."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from c2c_lightning.errors import UserError
from c2c_lightning.runs import CHECKPOINTS, LAST
from c2c_lightning.training.sharding import local


class FiniteSteps:
    """Remembers on the device the first optimizer step that went wrong, so that no step has to wait for the device."""

    def __init__(self) -> None:
        self._found: Tensor | None = None  # step (-1 for none), loss, norm of the gradient

    def see(self, step: int, loss: Tensor, gradient_norm: Tensor) -> None:
        """Looks at a step's loss and gradient before the step is made."""
        now = torch.stack([torch.full_like(loss, step), loss, gradient_norm.to(loss)])
        before = torch.full_like(now, -1) if self._found is None else self._found
        self._found = torch.where((before[0] < 0) & ~now.isfinite().all(), now, before)

    def check(self, folder: Path) -> None:
        """Waits for the device; raises a UserError if a step of the run in a folder went wrong."""
        step, loss, norm = (-1, 0, 0) if self._found is None else self._found.tolist()
        if step >= 0:
            found = f"train/loss is {loss:g} and the norm of its gradient {norm:g} at step {step:.0f}"
            raise not_finite(found, folder)


def check_weights(fusers: nn.Module, trainer: L.Trainer, where: str, folder: Path) -> None:
    """Raises a UserError, beginning with `where`, if a weight or a gate is not finite; all ranks have to ask for it."""
    tensors = dict([*fusers.named_parameters(), *fusers.named_buffers()])  # gates that do not learn are buffers
    wrong = torch.stack([(~local(tensor).isfinite()).any() for tensor in tensors.values()]).float()
    wrong = trainer.strategy.reduce(wrong, reduce_op="sum").tolist()
    names = [name for name, count in zip(tensors, wrong) if count]
    if names:
        found = f"{where} {len(names)} of {len(tensors)} tensors hold numbers that are not finite ({names[0]}, ...)"
        raise not_finite(found, folder)


def not_finite(found: str, folder: Path) -> UserError:
    """The error that says what is not finite in a run, which checkpoint is good, and what to do."""
    last = folder / CHECKPOINTS / LAST
    good = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint from before"
    return UserError(f"{found}; {good}. Begin again with a lower model.optimizer.lr.")
