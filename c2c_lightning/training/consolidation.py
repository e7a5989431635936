"""`consolidate`: turns checkpoints of which every rank wrote its part into ordinary files of the same names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.load import _load_distributed_checkpoint
from torch.distributed.checkpoint import CheckpointException

from c2c_lightning.errors import UserError
from c2c_lightning.files import whole
from c2c_lightning.formats.checkpoint import check_sharded, is_sharded, save
from c2c_lightning.runs import CHECKPOINTS
from c2c_lightning.training.sharding import renamed

ASIDE = ".was-sharded"  # nobody names a folder so, and what is named so may be deleted


def consolidate(checkpoint: str) -> None:
    """Makes sharded checkpoints into single files, in place, which every strategy and command reads.

    Once more after it was cut off, it ends what it had begun.

    Args:
        checkpoint: a sharded checkpoint, or a run's folder for all that it has.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = Path(checkpoint).expanduser()
    path = path.with_name(path.name.removesuffix(ASIDE))  # where one that was cut off stands, if that is named
    left_behind = [aside(path), *sorted((path / CHECKPOINTS).glob(f"*{ASIDE}"))]
    ended = [file for file in map(recover, left_behind) if file is not None]
    if not path.exists():
        raise UserError(f"--checkpoint {checkpoint}: no such checkpoint.")
    candidates = [path] if is_sharded(path) else sorted((path / CHECKPOINTS).glob("*"))
    sharded = [candidate for candidate in candidates if is_sharded(candidate)]
    if not sharded and not ended:
        raise UserError(f"--checkpoint {checkpoint}: there is no sharded checkpoint, so nothing is to be done.")
    for file in ended:
        print(file)
    for folder in sharded:
        with whole(folder) as unfinished:
            save(read_sharded(folder), unfinished)
            folder.rename(aside(folder))  # a file cannot take a folder's place
        shutil.rmtree(aside(folder))
        print(folder)


def aside(folder: Path) -> Path:
    """Where a sharded checkpoint stands between the moment when it makes room for the file and its end."""
    return folder.with_name(folder.name + ASIDE)


def recover(folder: Path) -> Path | None:
    """Sets right what a consolidation left that was cut off.

    Args:
        folder: that stands aside, if there is one. It is deleted if the file has its place, and else put back.

    Returns:
        The file; None if there is none.
    """
    file = folder.with_name(folder.name.removesuffix(ASIDE))
    if not folder.exists():
        return None
    if file.is_file():
        shutil.rmtree(folder)
        return file
    folder.rename(file)
    return None


def read_sharded(folder: Path) -> dict[str, Any]:
    """A sharded checkpoint as Lightning would have written it as one file."""
    check_sharded(folder, f"--checkpoint {folder}")
    try:
        checkpoint = _load_distributed_checkpoint(folder)
    except (Exception, CheckpointException) as error:  # which is not an Exception
        raise UserError(f"--checkpoint {folder}: a part is damaged or missing ({type(error).__name__}).") from error
    states = []
    while (key := f"optimizer_{len(states)}") in checkpoint:
        state = checkpoint.pop(key)
        states.append(renamed(state, range(sum(len(group["params"]) for group in state["param_groups"]))))
    return {**checkpoint, "optimizer_states": states}
