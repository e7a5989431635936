"""How a run fits fusers that no optimizer trains."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.strategies import SingleDeviceStrategy

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.fuser.closed_form import ClosedFormFuser
from c2c_lightning.models import Batch
from c2c_lightning.training.calibration import fit_in_closed_form
from c2c_lightning.training.held_out import HeldOut


class ClosedForm:
    """Has a communicator's fusers with a closed form collect in training, and fits them at validation.

    Args:
        communicator: whose fusers are to begin.
    """

    def __init__(self, communicator: Communicator):
        self.communicator, self.held_out = communicator, HeldOut()
        self.fusers = [fuser for fuser in communicator.fusers if isinstance(fuser, ClosedFormFuser)]
        for fuser in self.fusers:
            fuser.begin()

    def __bool__(self) -> bool:
        """Whether there are such fusers."""
        return bool(self.fusers)

    @property
    def name(self) -> str:
        return type(self.fusers[0]).__name__

    def check(self, trainer: L.Trainer) -> None:
        """Called before a strategy takes the fusers over.

        Raises:
            UserError: the run could not fit them.
        """
        strategy = trainer.strategy
        if not isinstance(strategy, SingleDeviceStrategy):
            raise UserError(
                f"model.fuser is {self.name}, which one process on one device fits, and trainer.strategy is "
                f"{type(strategy).__name__} on {trainer.world_size}: set trainer.strategy to auto, "
                "trainer.devices to 1 and trainer.num_nodes to 1."
            )
        if not any(gate.active() for gate in self.communicator.gates):
            raise UserError(
                f"model.fuser is {self.name}, under which gates do not learn, and all of them are closed: "
                "set model.gate.kind to open, or model.gate.init above 0."
            )

    def check_validation(self, trainer: L.Trainer) -> None:
        """Called when it is known what there is to validate on.

        Raises:
            UserError: nothing, and so no time to fit.
        """
        if not any(trainer.num_val_batches):
            raise UserError(
                f"model.fuser is {self.name}, which is fitted at each validation, and there is none: "
                "give validation data, and trainer.limit_val_batches above 0."
            )

    def see(self, batch: Batch) -> None:
        """Says before a training batch whether fusers are to collect of it."""
        # Gradients at the receiver's own cache are the same in every epoch.
        collects = not self.held_out.takes(batch) and batch.epoch == 0
        for fuser in self.fusers:
            fuser.collects = collects

    def fit(self, trainer: L.Trainer) -> float:
        """Sets the fusers' weights from what they have collected so far; returns their update's scale."""
        batches = [batch.to(self.communicator.receiver.device) for batch in self.held_out]
        if not batches:
            raise UserError(
                f"model.fuser is {self.name}, which is fitted to some training batches and scaled on others, and "
                "there was one alone: train on more data, or set data.init_args.batch_size lower."
            )
        with trainer.precision_plugin.val_step_context():
            return fit_in_closed_form(self.communicator, batches)
