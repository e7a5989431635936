"""Finding and checking the checkpoint that a run is to go on from."""

from __future__ import annotations

from pathlib import Path

import torch

from c2c_lightning.errors import UserError

FOLDER, LAST = "checkpoints", "last.ckpt"


def find_checkpoint(name: str, runs: list[Path]) -> Path:
    """The checkpoint that `--ckpt_path` names; `last` is the newest run's.

    Raises:
        UserError: there is none, it is damaged, or it is not ours.
    """
    if name != "last":
        path = Path(name)
        check(path)
        return path
    paths = [path for run in runs if (path := run / FOLDER / LAST).exists()]
    if not paths:
        where = ", ".join(str(run) for run in runs) or "runs"
        raise UserError(f"--ckpt_path last: no run in {where} has left a checkpoint.")
    path = max(paths, key=lambda path: path.stat().st_mtime)
    check(path)
    return path


def run_folder(path: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, if it lies where runs put theirs."""
    return path.parent.parent if path.parent.name == FOLDER else None


def check(path: Path) -> None:
    if not path.exists():
        raise UserError(f"--ckpt_path {path}: no such file.")
    if path.is_dir():
        return  # a sharded checkpoint, which its strategy reads
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # zipfile, pickle and torch each have their own
        reason = type(error).__name__
        raise UserError(f"--ckpt_path {path}: the file is damaged or no checkpoint ({reason}).") from error
    if not isinstance(checkpoint, dict) or "c2c" not in checkpoint:
        raise UserError(f"--ckpt_path {path}: it was not written by c2c_lightning.")
