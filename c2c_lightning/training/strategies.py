"""Lightning's strategies for models that do not fit on one device, with checkpoints that fit every strategy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.strategies.fsdp import _move_torchmetrics_to_device, _setup_activation_checkpointing
from lightning.fabric.utilities.device_dtype_mixin import _update_properties
from lightning.fabric.utilities.load import _METADATA_FILENAME
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    OptimStateKeyType,
    StateDictType,
)

from c2c_lightning.formats.checkpoint import FUSERS
from c2c_lightning.training.sharding import (
    parameter_names,
    renamed,
    share_gates,
    whole_state,
    wrap_policy,
)


class FSDP2(ModelParallelStrategy):
    """Shards frozen models and fusers over all devices of all nodes; see `sharding.shard`.

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

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            self.lightning_module.on_load_checkpoint(torch.load(path / _METADATA_FILENAME, weights_only=weights_only))
            return super().load_checkpoint(path, weights_only)
        checkpoint = read_whole(self, path, weights_only)
        options = StateDictOptions(full_state_dict=True, strict=False)
        # A copy, for torch adds the frozen models' tensors to what it is given.
        set_model_state_dict(self.model, dict(checkpoint["state_dict"]), options=options)
        for optimizer, state in optimizer_states(self, checkpoint):
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=state, options=options)
        return checkpoint


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
        # Lightning always offloads, which on the CPU leaves both moments in the same memory.
        optimizer = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        with self._whole(rank0_only=True):
            state = FullyShardedDataParallel.optim_state_dict(self.model, optimizer)
        if self.global_rank > 0:
            return state  # which is empty
        return FullyShardedDataParallel.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_ID, self.model)

    def _whole(self, rank0_only: bool) -> AbstractContextManager:
        """Within it, states are gathered and taken whole."""
        offload = self.root_device.type != "cpu"
        return FullyShardedDataParallel.state_dict_type(
            self.model,
            StateDictType.FULL_STATE_DICT,
            FullStateDictConfig(offload_to_cpu=offload, rank0_only=rank0_only),
            FullOptimStateDictConfig(offload_to_cpu=offload, rank0_only=rank0_only),
        )

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = read_whole(self, checkpoint_path, weights_only)
        with self._whole(rank0_only=False):
            self.model.load_state_dict(checkpoint["state_dict"], strict=False)
            for optimizer, state in optimizer_states(self, checkpoint):
                state = FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, state)
                optimizer.load_state_dict(state)
        return checkpoint


def read_whole(strategy: FSDP1 | FSDP2, path: str | Path, weights_only: bool | None) -> dict[str, Any]:
    """A checkpoint of one file, checked before anything is taken from it."""
    checkpoint = torch.load(strategy.broadcast(path), map_location="cpu", weights_only=weights_only)
    strategy.lightning_module.on_load_checkpoint(checkpoint)
    return checkpoint


def optimizer_states(
    strategy: FSDP1 | FSDP2, checkpoint: dict[str, Any]
) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any]]]:
    """The optimizers, and of each what a checkpoint has, by parameter name."""
    for optimizer, state in zip(strategy.optimizers, checkpoint.get("optimizer_states", [])):
        yield optimizer, renamed(state, parameter_names(strategy.model, optimizer))
