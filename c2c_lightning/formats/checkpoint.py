"""Checkpoints of runs: one file, or a folder into which every rank wrote its part; written whole, checked when read.

Nothing in a checkpoint is executed. One file is read by torch's own restricted unpickler. Of a sharded one torch unpickles
`.metadata` and every value that is no tensor without restriction, so `check_sharded` looks at both before torch does.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from pydantic import Field, InstanceOf
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from c2c_lightning.errors import UserError
from c2c_lightning.files import checked, whole
from c2c_lightning.formats.config import FORMAT, check_config

FUSERS = "communicator.fusers."  # begins the names of a fuser's tensors among a run's
METADATA = ".metadata"
OPTIMIZERS, SCHEDULERS = "optimizer_states", "lr_schedulers"
# What torch.distributed.checkpoint pickles to say which tensor lies where; a dtype is added by its name.
METADATA_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
        *("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}


class ParameterGroup(TypedDict):
    name: str
    lr: float
    params: list[int]


class OptimizerState(TypedDict):
    state: dict[int, dict[str, InstanceOf[Tensor]]]
    param_groups: list[ParameterGroup]


class Scheduler(TypedDict):
    last_epoch: int
    lr_lambdas: list[Any]


class Loops(TypedDict):
    fit_loop: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]


class RunState(TypedDict):
    """What a run has of its own besides weights and optimizer, see `training.run`."""

    metrics: dict[str, float]
    gate_steps: list[int]
    gate_history: list[list[InstanceOf[Tensor]]]


# What a run needs to go on to the bit; format 1 had no state of the run.
Checkpoint = TypedDict(
    "Checkpoint",
    {
        "c2c": dict[str, Any],
        "state_dict": Annotated[dict[str, InstanceOf[Tensor]], Field(min_length=1)],
        "epoch": int,
        "global_step": int,
        "pytorch-lightning_version": str,
        "loops": Loops,
        "callbacks": dict[str, dict[str, Any]],
        OPTIMIZERS: list[OptimizerState],
        SCHEDULERS: list[Scheduler],
        "run": NotRequired[RunState],
        "schedule": NotRequired[list[tuple[int, int]]],
        "answered_alone": NotRequired[dict[Any, Any]],
    },
)


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes a checkpoint that is there as a whole or not at all; raises a UserError if the disk is full."""
    with whole(path) as unfinished:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(checkpoint, unfinished)


def save(value: Any, path: Path) -> None:
    """What `torch.save` does, but a full disk is an OSError."""
    try:
        with path.open("wb") as file:
            torch.save(value, file)
    except RuntimeError as error:
        # torch calls a full disk a broken zip file; what the disk said stands behind it.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def read_checkpoint(path: Path, where: str) -> dict[str, Any]:
    """A run's checkpoint of one file, checked; tensors are read when they are used.

    Raises:
        UserError: it is damaged, not of ours, or has a tensor that is not finite; the message begins with `where`.
    """
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise UserError(f"{where}: the file is damaged or no checkpoint ({type(error).__name__}).") from error
    if not isinstance(checkpoint, dict) or "c2c" not in checkpoint:
        raise UserError(f"{where}: it was not written by c2c_lightning.")
    checked(checkpoint, Checkpoint, where)
    if len(checkpoint[OPTIMIZERS]) != len(checkpoint[SCHEDULERS]):
        raise UserError(f"{where} is damaged: it does not have a learning rate's schedule for each optimizer.")
    moments = [
        (f"{name} of parameter {parameter} in the optimizer", tensor)
        for optimizer in checkpoint[OPTIMIZERS]
        for parameter, state in optimizer["state"].items()
        for name, tensor in state.items()
    ]
    refuse_infinite([*checkpoint["state_dict"].items(), *moments], where)
    config = check_config(checkpoint["c2c"], where)
    if config["format"] == FORMAT and "run" not in checkpoint:
        raise UserError(f"{where} is damaged: run: Field required.")
    return {**checkpoint, "c2c": config}


def refuse_infinite(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Raises a UserError that names the first tensor with a value that is not finite."""
    for name, tensor in tensors:
        if not tensor.isfinite().all():
            raise UserError(f"{where}: {name} has values that are not finite, so it cannot be used.")


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint is a folder into which every rank wrote its part."""
    return (path / METADATA).exists()


def must_be_consolidated(path: Path) -> str:
    return f"is sharded: make it one file by python -m c2c_lightning consolidate --checkpoint {path}"


class MetadataUnpickler(pickle.Unpickler):
    """Makes nothing but what torch.distributed.checkpoint says about tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name not in METADATA_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)


def check_sharded(folder: Path, where: str) -> None:
    """Raises a UserError, beginning with `where`, for a damaged sharded checkpoint, or one with code in it."""
    try:
        with (folder / METADATA).open("rb") as file:
            metadata = MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise pickle.UnpicklingError(f"its {METADATA} is none")
        for index, place in metadata.storage_data.items():
            if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata):
                if place.transform_descriptors:
                    raise ValueError("it is compressed, and no run of ours compresses")
                with (folder / place.relative_path).open("rb") as file:
                    file.seek(place.offset)
                    torch.load(io.BytesIO(file.read(place.length)), weights_only=True)
    except Exception as error:  # a pickle may fail with any
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"
        raise UserError(f"{where}: a part is damaged or missing, or no checkpoint's ({reason}).") from error
