"""`consolidate`: turns checkpoints of which every rank wrote its part into ordinary files of the same names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint
from torch.distributed.checkpoint import CheckpointException

from c2c_lightning.communication.fuser_folder import is_sharded_checkpoint
from c2c_lightning.errors import UserError
from c2c_lightning.runs import CHECKPOINTS
from c2c_lightning.training.sharding import renamed


def consolidate(checkpoint: str) -> None:
    """Makes sharded checkpoints into single files, in place, which every strategy and command reads.

    Args:
        checkpoint: a sharded checkpoint, or a run's folder for all that it has.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = Path(checkpoint).expanduser()
    if not path.exists():
        raise UserError(f"--checkpoint {checkpoint}: no such checkpoint.")
    candidates = [path] if is_sharded_checkpoint(path) else sorted((path / CHECKPOINTS).glob("*"))
    sharded = [candidate for candidate in candidates if is_sharded_checkpoint(candidate)]
    if not sharded:
        raise UserError(f"--checkpoint {checkpoint}: there is no sharded checkpoint, so nothing is to be done.")
    for folder in sharded:
        unfinished, old = (folder.with_name(folder.name + suffix) for suffix in (".part", ".sharded"))
        torch.save(read_sharded(folder), unfinished)
        folder.rename(old)  # a file cannot take a folder's place
        unfinished.rename(folder)
        shutil.rmtree(old)
        print(folder)


def read_sharded(folder: Path) -> dict[str, Any]:
    """A sharded checkpoint as Lightning would have written it as one file."""
    try:
        checkpoint = _load_distributed_checkpoint(folder)
    except (Exception, CheckpointException) as error:  # which is not an Exception
        raise UserError(f"--checkpoint {folder}: a part is damaged or missing ({type(error).__name__}).") from error
    states = []
    while (key := f"optimizer_{len(states)}") in checkpoint:
        state = checkpoint.pop(key)
        states.append(renamed(state, range(sum(len(group["params"]) for group in state["param_groups"]))))
    return {**checkpoint, "optimizer_states": states}
