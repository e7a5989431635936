"""Finding and checking the checkpoint that a run is to go on from."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info

from c2c_lightning.errors import UserError
from c2c_lightning.formats.fuser_folder import is_sharded_checkpoint, must_be_consolidated
from c2c_lightning.runs import CHECKPOINTS, CONFIG_FILE, LAST


def find_checkpoint(name: str, runs: list[Path], sharded: bool = False) -> Path:
    """The checkpoint that `--ckpt_path` names: a file, a run's folder, or `last` for the newest run's.

    Args:
        name: what was given.
        runs: the runs to look for `last` in.
        sharded: whether one that is sharded can be read too.

    Raises:
        UserError: there is none, it is damaged, or it is not ours.
    """
    path = Path(name)
    if name == "last":
        begun = [run for run in runs if (run / CONFIG_FILE).exists()]
        if not begun:
            where = ", ".join(str(run) for run in runs) or "runs/"
            raise UserError(f"--ckpt_path last: there is no run in {where}.")
        path = max(begun, key=lambda run: (run / CONFIG_FILE).stat().st_mtime)
        if not (path / CHECKPOINTS / LAST).exists():
            raise UserError(
                f"--ckpt_path last: the newest run, {path}, was cut off before its first checkpoint. "
                "Start it again, or name the run to go on with."
            )
    if (path / CHECKPOINTS / LAST).exists():
        path = path / CHECKPOINTS / LAST
    check(path, sharded)
    rank_zero_info(f"going on from {path}")
    return path


def run_folder(path: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, if it lies where runs put theirs."""
    return path.parent.parent if path.parent.name == CHECKPOINTS else None


def check(path: Path, sharded: bool) -> None:
    if not path.exists():
        raise UserError(f"--ckpt_path {path}: no such file.")
    if path.is_dir():
        if not is_sharded_checkpoint(path):
            raise UserError(f"--ckpt_path {path}: the folder is neither a run with a checkpoint nor a sharded one.")
        if not sharded:
            raise UserError(f"--ckpt_path {path} {must_be_consolidated(path)}, or resume it by FSDP2.")
        return
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # zipfile, pickle and torch each have their own
        reason = type(error).__name__
        raise UserError(f"--ckpt_path {path}: the file is damaged or no checkpoint ({reason}).") from error
    if not isinstance(checkpoint, dict) or "c2c" not in checkpoint:
        raise UserError(f"--ckpt_path {path}: it was not written by c2c_lightning.")
