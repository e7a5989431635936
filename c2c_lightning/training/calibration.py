"""Fits the fusers that have a closed form, after they have collected what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from scipy.optimize import minimize_scalar

from c2c_lightning.fuser.closed_form import ClosedFormFuser
from c2c_lightning.models.batch import Batch

if TYPE_CHECKING:
    from c2c_lightning.communicator import Communicator

SCALES = (-10.0, 4.0)  # log2 of an update's length by that of the receiver's cache


@torch.no_grad()
def fit_in_closed_form(communicator: Communicator, batches: Sequence[Batch]) -> float:
    """Solves for the weights of fusers with a closed form, and scales their update to where the loss is least.

    Args:
        communicator: in eval mode.
        batches: that say what the loss is.

    Returns:
        The update's length by that of the receiver's cache; 0 where any update does harm.

    Raises:
        UserError: there is no calibration data.
    """
    fusers = [fuser for fuser in communicator.fusers if isinstance(fuser, ClosedFormFuser)]
    for fuser in fusers:
        fuser.solve()
    solved = [fuser.weights().clone() for fuser in fusers]
    readings = [communicator.read(batch) for batch in batches]

    def rescale(scale: float) -> None:
        for fuser, weight in zip(fusers, solved):
            fuser.weights().copy_(weight * scale)

    def loss(scale: float) -> float:
        rescale(scale)
        return sum(communicator(reading)[0].item() for reading in readings)

    found = minimize_scalar(
        lambda log_scale: loss(2**log_scale), bounds=SCALES, method="bounded", options={"xatol": 0.1}
    )
    scale = 2**found.x if found.fun < loss(0.0) else 0.0
    rescale(scale)
    return scale
