"""How a run fits fusers that no optimizer trains: they collect from training batches and are solved at validation.

Every fifth batch of the first epoch, from the second on, is held out: fusers do not collect from it, and their update
is scaled to where the loss on the newest of these batches is least.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from scipy.optimize import minimize_scalar

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.fuser import RidgeFuser
from c2c_lightning.models import Batch
from c2c_lightning.models.batch import SharerPrompt
from c2c_lightning.models.private_text import PrivateTexts

HELD_OUT_EVERY, HELD_OUT_FIRST, HELD_OUT_MOST = 5, 1, 8
SCALES = (-10.0, 4.0)  # log2 of an update's length by that of the receiver's cache


def check_one_process(trainer: L.Trainer, reason: str) -> None:
    """Raises a UserError if several processes are to train."""
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise UserError(
            f"{reason}, and trainer.strategy is {type(trainer.strategy).__name__} on {trainer.world_size}: set "
            "trainer.strategy to auto, trainer.devices to 1 and trainer.num_nodes to 1."
        )


class ClosedForm:
    """A communicator's fusers that have a closed form, which begin to collect; false if there are none."""

    def __init__(self, communicator: Communicator):
        self.communicator = communicator
        self.held_out: deque[Batch] = deque(maxlen=HELD_OUT_MOST)
        self.fusers = [fuser for fuser in communicator.fusers if isinstance(fuser, RidgeFuser)]
        for fuser in self.fusers:
            fuser.begin()

    def __bool__(self) -> bool:
        return bool(self.fusers)

    @property
    def name(self) -> str:
        return type(self.fusers[0]).__name__

    def check(self, trainer: L.Trainer) -> None:
        """Raises a UserError if the run could not fit them; called before a strategy takes the fusers over."""
        check_one_process(trainer, f"model.fuser is {self.name}, which one process on one device fits")
        if not any(gate.active() for gate in self.communicator.fusers.gates):
            raise UserError(
                f"model.fuser is {self.name}, under which gates do not learn, and all of them are closed: "
                "set model.gate.kind to open, or model.gate.init above 0."
            )

    def check_validation(self, trainer: L.Trainer) -> None:
        """Raises a UserError if there is nothing to validate on, and so no time to fit."""
        if not any(trainer.num_val_batches):
            raise UserError(
                f"model.fuser is {self.name}, which is fitted at each validation, and there is none: "
                "give validation data, and trainer.limit_val_batches above 0."
            )

    def see(self, batch: Batch) -> None:
        """Says before a training batch whether fusers are to collect from it."""
        # Later epochs have the same records in another order, and gradients at the receiver's own cache are the same
        # in every epoch.
        first_epoch = batch.epoch == 0
        held_out = first_epoch and batch.index % HELD_OUT_EVERY == HELD_OUT_FIRST
        if held_out:
            self.held_out.append(batch)
        for fuser in self.fusers:
            fuser.collects = first_epoch and not held_out

    @torch.no_grad()
    def fit(self, trainer: L.Trainer) -> float:
        """Sets the fusers' weights from what they have collected so far; they must be in eval mode.

        Returns:
            The update's length by that of the receiver's cache; 0 where any update does harm.

        Raises:
            UserError: nothing was collected, or nothing held out.
        """
        if not self.held_out:
            raise UserError(
                f"model.fuser is {self.name}, which is fitted to some training batches and scaled on others, and "
                "there was one alone: train on more data, or set data.init_args.batch_size lower."
            )
        with trainer.precision_plugin.val_step_context():
            for fuser in self.fusers:
                fuser.solve()
            solved = [fuser.weight.clone() for fuser in self.fusers]
            device = trainer.strategy.root_device
            readings = [self.communicator.read(batch.to(device)) for batch in self.held_out]

            def rescale(scale: float) -> None:
                for fuser, weight in zip(self.fusers, solved):
                    fuser.weight.copy_(weight * scale)

            def loss(scale: float) -> float:
                rescale(scale)
                return sum(self.communicator(reading)[0].item() for reading in readings)

            found = minimize_scalar(
                lambda log_scale: loss(2**log_scale), bounds=SCALES, method="bounded", options={"xatol": 0.1}
            )
            scale = 2**found.x if found.fun < loss(0.0) else 0.0
            rescale(scale)
        return scale

    def state(self) -> list[dict[str, Any]]:
        """The batches held out, as a checkpoint has them, so that a resumed run is scaled on the same."""
        names = ("prompt_ids", "prompt_mask", "response_ids", "response_mask")
        return [
            {name: getattr(batch, name) for name in names}
            | {"sharers": [[sharer.ids, sharer.mask, sharer.positions] for sharer in batch.sharers]}
            | {"private": batch.private and vars(batch.private)}
            for batch in self.held_out
        ]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Takes over what `state` gave."""
        self.held_out.clear()
        for tensors in state:
            private = PrivateTexts(**tensors["private"]) if tensors.get("private") else None
            sharers = [SharerPrompt(*sharer) for sharer in tensors["sharers"]]
            self.held_out.append(Batch(**{**tensors, "sharers": sharers, "private": private}))
