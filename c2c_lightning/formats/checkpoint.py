"""Checkpoints of runs: one file, or a folder into which every rank wrote its part; checked when read.

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
from c2c_lightning.files import checked
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
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},  # as Python 3.13 calls them
    "collections": {"OrderedDict"},
}


Count = Annotated[int, Field(strict=True, ge=0)]


class ParameterGroup(TypedDict):
    name: str
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    params: list[int]


class Moments(TypedDict):
    step: InstanceOf[Tensor]
    exp_avg: InstanceOf[Tensor]
    exp_avg_sq: InstanceOf[Tensor]


class OptimizerState(TypedDict):
    state: dict[int, Moments]
    param_groups: list[ParameterGroup]


class Scheduler(TypedDict):
    last_epoch: Count
    lr_lambdas: list[dict[str, Any] | None]


class Steps(TypedDict):
    ready: Count
    completed: Count


class Batches(Steps):
    started: Count
    processed: Count


class StepProgress(TypedDict):
    total: Steps
    current: Steps


class BatchProgress(TypedDict):
    total: Batches
    current: Batches
    is_last_batch: bool


class EpochProgress(TypedDict):
    total: Batches
    current: Batches


class OptimizerProgress(TypedDict):
    step: StepProgress
    zero_grad: StepProgress


class AllOptimizersProgress(TypedDict):
    optimizer: OptimizerProgress


class EpochState(TypedDict):
    _batches_that_stepped: Count


class Places(TypedDict):
    combined_loader: NotRequired[list[dict[str, Any]]]


# Lightning takes what is missing for the beginning of a run, and fails by a traceback at what has another shape.
FitLoop = TypedDict(
    "FitLoop",
    {
        "state_dict": Places,
        "epoch_progress": EpochProgress,
        "epoch_loop.batch_progress": BatchProgress,
        "epoch_loop.scheduler_progress": StepProgress,
        "epoch_loop.automatic_optimization.optim_progress": AllOptimizersProgress,
        "epoch_loop.state_dict": EpochState,
        "epoch_loop.val_loop.batch_progress": BatchProgress,
    },
)


class ValidateLoop(TypedDict):
    batch_progress: BatchProgress


class Loops(TypedDict):
    fit_loop: FitLoop
    validate_loop: ValidateLoop


class KeptCheckpoints(TypedDict):
    """What Lightning's ModelCheckpoint knows of those before."""

    best_model_path: str
    best_model_score: InstanceOf[Tensor] | None
    best_k_models: dict[str, InstanceOf[Tensor]]
    kth_best_model_path: str
    kth_value: InstanceOf[Tensor]
    last_model_path: str


class RunState(TypedDict):
    """What a run has of its own besides weights and optimizer, see `training.run`."""

    metrics: dict[str, float]
    gate_steps: list[Count]
    gate_history: list[list[InstanceOf[Tensor]]]


class HeldOut(TypedDict):
    """A batch of `training.closed_form`."""

    prompt_ids: InstanceOf[Tensor]
    prompt_mask: InstanceOf[Tensor]
    response_ids: InstanceOf[Tensor]
    response_mask: InstanceOf[Tensor]
    sharers: list[tuple[InstanceOf[Tensor], InstanceOf[Tensor], InstanceOf[Tensor]]]


# What a run needs to go on to the bit, of all that Lightning keeps; format 1 had no state of the run.
Meta = TypedDict(
    "Meta",
    {
        "c2c": dict[str, Any],
        "epoch": Count,
        "global_step": Count,
        "pytorch-lightning_version": str,
        "loops": Loops,
        "callbacks": dict[str, dict[str, Any]],
        SCHEDULERS: list[Scheduler],
        "run": NotRequired[RunState],
        "held_out": NotRequired[list[HeldOut]],
        "schedule": NotRequired[list[tuple[Count, Count]]],
        "answered_alone": NotRequired[dict[int, tuple[int, dict[str, list[bool]]]]],
    },
)


class Checkpoint(Meta):
    state_dict: Annotated[dict[str, InstanceOf[Tensor]], Field(min_length=1)]
    optimizer_states: list[OptimizerState]


REMEDY = "Take another checkpoint of the run."


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
    checkpoint = read_meta(path, where, Checkpoint)
    if len(checkpoint[OPTIMIZERS]) != len(checkpoint[SCHEDULERS]):
        raise UserError(f"{where} is damaged: it does not have a learning rate's schedule for each optimizer.")
    moments = [
        (f"{name} of parameter {parameter} in the optimizer", tensor)
        for optimizer in checkpoint[OPTIMIZERS]
        for parameter, state in optimizer["state"].items()
        for name, tensor in state.items()
    ]
    refuse_infinite([*checkpoint["state_dict"].items(), *moments], where)
    return checkpoint


def read_meta(path: Path, where: str, schema: type = Meta) -> dict[str, Any]:
    """What a checkpoint has of the run, checked; weights and optimizer of a sharded one are in other files."""
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise UserError(f"{where}: the file is damaged or no checkpoint ({type(error).__name__}).") from error
    if not isinstance(checkpoint, dict) or "c2c" not in checkpoint:
        raise UserError(f"{where}: it was not written by c2c_lightning.")
    checked(checkpoint, schema, where, REMEDY)
    for name, state in checkpoint["callbacks"].items():
        if name.startswith("ModelCheckpoint"):
            checked(state, KeptCheckpoints, f"{where}: callbacks.{name}", REMEDY)
    config = check_config(checkpoint["c2c"], where)
    if config["format"] == FORMAT and "run" not in checkpoint:
        raise UserError(f"{where} is damaged: run: Field required.")
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    if (done := progress["step"]["total"]["completed"]) != (step := checkpoint["global_step"]):
        raise UserError(f"{where} is damaged: global_step: {step}, but loops.fit_loop has made {done} steps. {REMEDY}")
    run = checkpoint.get("run", {"gate_steps": [], "gate_history": []})
    if (steps := len(run["gate_steps"])) != (columns := len(run["gate_history"])):
        raise UserError(
            f"{where} is damaged: run.gate_steps has {steps} steps, but run.gate_history {columns}. {REMEDY}"
        )
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
