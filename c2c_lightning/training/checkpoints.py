"""A run's checkpoints: writing them, finding the one to go on from, making one file of one that is sharded."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.load import _METADATA_FILENAME, _load_distributed_checkpoint
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed.checkpoint import CheckpointException

from c2c_lightning.errors import UserError
from c2c_lightning.files import whole
from c2c_lightning.formats.checkpoint import (
    check_sharded,
    is_sharded,
    must_be_consolidated,
    read_checkpoint,
    read_meta,
    save,
)
from c2c_lightning.runs import CHECKPOINTS, LAST, begun, checkpoints, cut_off_early
from c2c_lightning.training.sharding import renamed

ASIDE = ".was-sharded"  # nobody names a folder so, and what is named so may be deleted


class CheckpointWriter(TorchCheckpointIO):
    """Writes checkpoints beside where they belong and renames them.

    Lightning's own writer goes through TMPDIR, often another file system, where a rename is a copy that can be cut off;
    and it passes over a folder that may not be written to.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with whole(Path(path)) as unfinished:
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            save(checkpoint, unfinished)


def save_last(trainer: L.Trainer) -> Path:
    """Saves `last.ckpt` here and now."""
    file = Path(trainer.default_root_dir) / CHECKPOINTS / LAST
    trainer.save_checkpoint(file, weights_only=False)
    return file


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
    """The checkpoint to go on from; None if the run was cut off before its first one.

    Args:
        path: a checkpoint, or a run's folder for its newest whole one.
        sharded: whether one that is sharded can be read too.

    Raises:
        UserError: there is none, it is damaged, or it is not ours.
    """
    if cut_off_early(path):
        return None
    found, refusals = newest_whole(checkpoints(path) or [path], sharded)
    if found is None:
        run = run_folder(path)
        other, _ = newest_whole(checkpoints(run) if run else [], sharded)
        raise UserError(f"{refusals[0]} Go on from {other}, which is whole.") if other else refusals[0]
    for said in (*refusals, f"going on from {found}"):
        rank_zero_info(str(said))
    return found


def newest_whole(candidates: list[Path], sharded: bool) -> tuple[Path | None, list[UserError]]:
    """The first checkpoint that a run can go on from, and what is wrong with those before it."""
    refusals = []
    for checkpoint in candidates:
        try:
            check(checkpoint, sharded)
            return checkpoint, refusals
        except UserError as error:
            refusals.append(error)
    return None, refusals


def check(path: Path, sharded: bool) -> None:
    """Raises a UserError unless a run can go on from a checkpoint."""
    where = f"--ckpt_path {path}"
    if not path.exists():
        raise UserError(f"{where}: no such file.")
    if not path.is_dir():
        read_checkpoint(path, where)
        return
    if not is_sharded(path):
        raise UserError(f"{where}: the folder is neither a run with a checkpoint nor a sharded one.")
    if not sharded:
        raise UserError(f"{where} {must_be_consolidated(path)}, or resume it by FSDP2.")
    check_sharded(path, where)
    read_meta(path / _METADATA_FILENAME, where)


def run_folder(path: Path) -> Path | None:
    """The folder of the run that wrote a checkpoint, if it lies where runs put theirs."""
    return path.parent.parent if path.parent.name == CHECKPOINTS else None


def consolidate(checkpoint: str) -> None:
    """Makes sharded checkpoints into single files, in place, which every strategy and command reads.

    Once more after it was cut off, it ends what it had begun.

    Args:
        checkpoint: a sharded checkpoint, or a run's folder for all that it has.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = Path(checkpoint).expanduser()
    inside = sorted((path / CHECKPOINTS).glob("*"))
    # One that was cut off may stand aside.
    places = dict.fromkeys(place.with_name(place.name.removesuffix(ASIDE)) for place in (path, *inside))
    found = [place for place in places if is_sharded(place) or aside(place).exists()]
    if not found and not path.exists():
        raise UserError(f"--checkpoint {checkpoint}: no such checkpoint.")
    if not found:
        raise UserError(f"--checkpoint {checkpoint}: there is no sharded checkpoint, so nothing is to be done.")
    for place in found:
        if not place.exists():
            aside(place).rename(place)
        if is_sharded(place):
            with whole(place) as unfinished:
                save(read_sharded(place), unfinished)
                place.rename(aside(place))  # a file cannot take a folder's place
        shutil.rmtree(aside(place))
        print(place)


def aside(folder: Path) -> Path:
    """Where a sharded checkpoint stands between the moment when it makes room for the file and its end."""
    return folder.with_name(folder.name + ASIDE)


def read_sharded(folder: Path) -> dict[str, Any]:
    """A sharded checkpoint as Lightning would have written it as one file."""
    check_sharded(folder, f"--checkpoint {folder}")
    try:
        checkpoint = _load_distributed_checkpoint(folder)
    except (Exception, CheckpointException) as error:  # which is not an Exception
        raise UserError(f"--checkpoint {folder}: a part is damaged or missing ({type(error).__name__}).") from error
    states = []
    while (key := f"optimizer_{len(states)}") in checkpoint:
        states.append(renamed(checkpoint.pop(key), count()))
    return {**checkpoint, "optimizer_states": states}
