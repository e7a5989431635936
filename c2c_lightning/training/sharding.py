"""How models and fusers that are too large for one device are spread over several.

The blocks of every LM, what is left of it at its root, every fuser and the mapper are units, of which each device
keeps a part and gathers the whole only while it computes with it. Where there is a mapper, every device has its closed
form and the receiver whole. Gate logits are a handful of numbers, and read wherever somebody asks which gates are open:
every device has them whole. Checkpoints fit every strategy.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.strategies.fsdp import _move_torchmetrics_to_device, _setup_activation_checkpointing
from lightning.fabric.utilities.device_dtype_mixin import _update_properties
from lightning.fabric.utilities.load import _METADATA_FILENAME
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from transformers import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError, first_line
from c2c_lightning.formats.checkpoint import FUSERS
from c2c_lightning.fuser import Fuser
from c2c_lightning.mapper import Mapper
from c2c_lightning.models.loading import is_sharded

WRAPPED = "_fsdp_wrapped_module."  # what FSDP1 puts into the name of a parameter


class FSDP2(ModelParallelStrategy):
    """Shards frozen models and fusers over all devices of all nodes; see `shard`.

    Args:
        save_distributed_checkpoint: True for a folder with a file of each rank for every checkpoint, which
            only this strategy resumes, unless it is consolidated; False for one file. Fusers are small.
        **kwargs: see `ModelParallelStrategy`.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, **kwargs: Any):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint, **kwargs)

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        # Only now is it known; by itself Lightning would take all devices for tensor parallelism.
        self._data_parallel_size = self.world_size

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        # Beside where it belongs, for Lightning would write over the one that is there, or delete it first.
        path = Path(self.broadcast(filepath))
        unfinished, old = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.old")
        if self.is_global_zero:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.barrier()
        with self._failing_together(path):
            super().save_checkpoint(checkpoint, unfinished, storage_options)
        self.barrier()
        with self._failing_together(path):
            if self.is_global_zero:
                if path.is_dir() or unfinished.is_dir():  # neither of which can be replaced, or replace a file
                    if old.exists():  # of a run that was killed just here
                        self.remove_checkpoint(old)
                    if path.exists():
                        path.replace(old)
                unfinished.replace(path)
                if old.exists():
                    self.remove_checkpoint(old)

    @contextmanager
    def _failing_together(self, path: Path) -> Iterator[None]:
        """Raises on all ranks what rank 0 could not write, for which the others would wait."""
        failure = None
        try:
            yield
        except UserError as error:
            failure = str(error)
        except (OSError, RuntimeError) as error:
            failure = f"{path} cannot be written: {first_line(error)}."
        except CheckpointException as error:  # of all ranks together, and not an Exception
            reason, _ = next(iter(error.failures.values()))
            if not isinstance(reason, Exception):  # Ctrl-C
                raise reason from None
            failure = f"{path} cannot be written: {first_line(reason)}."
        failure = self.broadcast(failure) or failure
        if failure is not None:
            raise UserError(failure)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            self.lightning_module.on_load_checkpoint(torch.load(path / _METADATA_FILENAME, weights_only=weights_only))
            return super().load_checkpoint(path, weights_only)
        return load_whole(self, path, weights_only)

    def load_weights(self, state: dict[str, Tensor]) -> None:
        # A copy, for torch adds the frozen models' tensors to what it is given.
        set_model_state_dict(self.model, dict(state), options=StateDictOptions(full_state_dict=True, strict=False))


class FSDP1(FSDPStrategy):
    """The same by the older FSDP, which shards the LMs' blocks and the fusers.

    Everything is gathered in the precision it is kept in, and what is computed in bf16 is autocast's affair
    as it is on one device: FSDP1's own mixed precision would round the LMs' rotary frequencies too.

    Args:
        **kwargs: see `FSDPStrategy`.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(auto_wrap_policy=wrap_policy, use_orig_params=True, state_dict_type="full", **kwargs)

    @property
    def mixed_precision_config(self) -> Any:
        return self.mixed_precision

    def _setup_model(self, model: nn.Module) -> nn.Module:
        fusers = model.communicator.fusers
        for fuser in fusers:
            fuser.gate.to(self.root_device)  # which FSDP1 does not move, as it ignores them
        _update_properties(model, device=self.root_device)  # nor does it tell the module where it is
        model = FullyShardedDataParallel(
            model,
            cpu_offload=self.cpu_offload,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            device_id=self.root_device,
            ignored_states=share_gates(fusers),
            **self.kwargs,
        )
        _move_torchmetrics_to_device(model, self.root_device)
        _setup_activation_checkpointing(model, self._activation_checkpointing_kwargs)
        return model

    def lightning_module_state_dict(self) -> dict[str, Any]:
        # Asked for all of its state, FSDP1 gathers the frozen models too, and writes them.
        state = whole_state(self.lightning_module.communicator.fusers)
        return {f"{FUSERS}{name}": tensor for name, tensor in state.items()}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        optimizer = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = get_optimizer_state_dict(self.model, optimizer, options=gathered(self.root_device))
        return renamed(state, count()) if self.global_rank == 0 else {}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return load_whole(self, self.broadcast(checkpoint_path), weights_only)

    def load_weights(self, state: dict[str, Tensor]) -> None:
        with FullyShardedDataParallel.state_dict_type(self.model, StateDictType.FULL_STATE_DICT):
            self.model.load_state_dict(state, strict=False)


def load_whole(strategy: FSDP1 | FSDP2, path: str | Path, weights_only: bool | None) -> dict[str, Any]:
    """Loads a checkpoint of one file, which is checked before anything is taken from it."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only)
    strategy.lightning_module.on_load_checkpoint(checkpoint)
    strategy.load_weights(checkpoint["state_dict"])
    for optimizer, state in zip(strategy.optimizers, checkpoint.get("optimizer_states", [])):
        state = renamed(state, parameter_names(strategy.model, optimizer))
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(strategy.model, optimizer, optim_state_dict=state, options=options)
    return checkpoint


def gathered(device: torch.device) -> StateDictOptions:
    """Whole tensors, on the CPU of the first rank."""
    # What is on the CPU already FSDP1 would free when it offloads it, or put both moments into the same memory.
    return StateDictOptions(full_state_dict=True, cpu_offload=device.type != "cpu")


def wrap_policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """What FSDP1 gathers together, for its `auto_wrap_policy`: a block of an LM, or a fuser.

    What is left of the LMs belongs to the module that Lightning runs. As a unit of their own their roots
    could not `generate`, which calls the model inside FSDP1's wrapper.
    """
    return recurse or isinstance(module, (GradientCheckpointingLayer, Fuser))


def shard(communicator: Communicator, mesh: DeviceMesh) -> None:
    """Shards a communicator that is whole on every device by FSDP2, in place; the mesh is one-dimensional.

    With a mapper the receiver stays whole.
    """
    # Nobody writes into a fused cache in place, of which FSDP2 warns.
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    logits = share_gates(communicator.fusers)
    # A mapper's gradient passes through what the receiver writes into its cache. FSDP2 gathers weights again when
    # gradients of modules' outputs come, so it would miss those.
    whole = set(communicator.models.receiver.modules()) if communicator.fusers.mapper else set()
    for module in reversed(list(communicator.modules())):  # a block before the root that it is in
        if module in whole:
            continue
        # A root has `generate`. The model inside it is none: input and output embeddings, which are
        # often one parameter, have to be gathered as one.
        if isinstance(module, (GradientCheckpointingLayer, GenerationMixin, Fuser, Mapper)):
            # By itself FSDP2 would keep a root gathered for good, and every LM here is one.
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=logits)


def share_gates(fusers: nn.ModuleList) -> set[nn.Parameter]:
    """The gate logits that learn, which are to be left whole; from now on they learn from all devices alike."""
    logits = {fuser.gate.logit for fuser in fusers if fuser.gate.learns}
    for logit in logits:
        logit.register_hook(mean_over_ranks)
    return logits


def mean_over_ranks(gradient: Tensor) -> Tensor:
    """A gradient as all ranks together have it; all of them have to ask for it. What is given is left as it is."""
    mean = gradient.clone()
    dist.all_reduce(mean)  # and not its AVG, which gloo lacks
    return mean / dist.get_world_size()


def whole_state(fusers: nn.ModuleList) -> dict[str, Tensor]:
    """The fusers' state with whole tensors, on the first rank; all ranks have to ask for it."""
    if not is_sharded(fusers):
        return fusers.state_dict()
    return get_model_state_dict(fusers, options=gathered(local(next(fusers.parameters())).device))


def clip_gradients(fusers: nn.ModuleList, max_norm: float = math.inf, max_value: float = math.inf) -> Tensor:
    """Clips the gradients of fusers, sharded or not, in place.

    Returns:
        The norm that all gradients together had, the same on every rank.
    """
    parameters = [parameter for parameter in fusers.parameters() if parameter.grad is not None]
    # Views of what this rank has, as tensors of both kinds cannot stand in one computation.
    gradients = [local(parameter.grad) for parameter in parameters]
    if is_sharded(fusers):
        logits = {fuser.gate.logit for fuser in fusers}
        shards = [gradient for gradient, p in zip(gradients, parameters) if p not in logits]
        whole = [gradient for gradient, p in zip(gradients, parameters) if p in logits]
        # Squares may be added up over ranks, as norms may not. A rank may have no part of anything.
        squares = get_total_norm(shards).square().to(local(parameters[0]).device)
        dist.all_reduce(squares)
        norm = (squares + get_total_norm(whole).square().to(squares)).sqrt()
    else:
        norm = get_total_norm(gradients)
    for gradient in gradients:
        if max_norm < math.inf:
            gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        if max_value < math.inf:
            gradient.clamp_(-max_value, max_value)
    return norm


def local(tensor: Tensor) -> Tensor:
    """A view of the part of a tensor that this rank has: all of it, if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of an optimizer's parameters in its own order, whatever they are wrapped in."""
    names = {parameter: name.replace(WRAPPED, "") for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def renamed(state: dict[str, Any], names: Iterable[str | int]) -> dict[str, Any]:
    """An optimizer's saved state with its parameters called otherwise.

    Args:
        state: in which parameters are called by name, by their place in the optimizer or in the model. Whoever
            saved it, groups and the parameters in them are in the optimizer's order.
        names: what they are to be called, in that order; `count()` for their places.
    """
    called = dict(zip((key for group in state["param_groups"] for key in group["params"]), names))
    groups = [{**group, "params": [called[key] for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {called[key]: value for key, value in state["state"].items()}, "param_groups": groups}
