"""Writing a run's checkpoints, and finding and checking the one that a run is to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from c2c_lightning.errors import UserError
from c2c_lightning.formats.checkpoint import (
    check_sharded,
    is_sharded,
    must_be_consolidated,
    read_checkpoint,
    write_checkpoint,
)
from c2c_lightning.runs import CHECKPOINTS, begun, checkpoints, cut_off_early


class CheckpointWriter(TorchCheckpointIO):
    """Writes checkpoints beside where they belong and renames them.

    Lightning's own writer goes through TMPDIR, often another file system, where a rename is a copy that can be cut off;
    and it passes over a folder that may not be written to.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(Path(path), checkpoint)


def run_to_resume(name: str, runs: list[Path]) -> Path:
    """What `--ckpt_path` names: a checkpoint or a run's folder, `last` being the newest of some runs."""
    if name != "last":
        return Path(name).expanduser()
    newest = next(iter(begun(runs)), None)
    if newest is None:
        where = ", ".join(str(run) for run in runs) or "runs/"
        raise UserError(f"--ckpt_path last: there is no run in {where}.")
    return newest


def find_checkpoint(path: Path, sharded: bool = False) -> Path | None:
    """The checkpoint to go on from.

    Args:
        path: a checkpoint, or a run's folder for its newest whole one.
        sharded: whether one that is sharded can be read too.

    Returns:
        The checkpoint; None if the run was cut off before its first one.

    Raises:
        UserError: there is none, it is damaged, or it is not ours.
    """
    if cut_off_early(path):
        return None
    found, refusals = checkpoints(path) or [path], []
    for checkpoint in found:
        try:
            check(checkpoint, sharded)
        except UserError as error:
            refusals.append(error)
            continue
        for refusal in refusals:
            rank_zero_info(str(refusal))
        rank_zero_info(f"going on from {checkpoint}")
        return checkpoint
    raise refusals[0]


def run_folder(path: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, if it lies where runs put theirs."""
    return path.parent.parent if path.parent.name == CHECKPOINTS else None


def check(path: Path, sharded: bool) -> None:
    """Raises a UserError unless a run can go on from a checkpoint."""
    where = f"--ckpt_path {path}"
    if not path.exists():
        raise UserError(f"{where}: no such file.")
    if path.is_dir():
        if not is_sharded(path):
            raise UserError(f"{where}: the folder is neither a run with a checkpoint nor a sharded one.")
        if not sharded:
            raise UserError(f"{where} {must_be_consolidated(path)}, or resume it by FSDP2.")
        check_sharded(path, where)
        return
    try:
        read_checkpoint(path, where)
    except UserError as error:
        run = run_folder(path)
        others = [other for other in checkpoints(run) if other != path and is_whole(other)] if run else []
        hint = f" Go on from {others[0]}, which is whole." if others else ""
        raise UserError(f"{error}{hint}") from error


def is_whole(path: Path) -> bool:
    """Whether a checkpoint can be read."""
    try:
        check_sharded(path, "") if path.is_dir() else read_checkpoint(path, "")
    except UserError:
        return False
    return True
