"""How models and fusers that are too large for one device are spread over several: plain torch, and all of it.

The blocks of every LM, what is left of it at its root, and every fuser are units, of which each device
keeps a part and gathers the whole only while it computes with it. Gate logits are a handful of numbers,
and read wherever somebody asks which gates are open: every device has them whole.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from transformers import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from c2c_lightning.communicator import Communicator
from c2c_lightning.fuser import Fuser
from c2c_lightning.models.loading import is_sharded

WRAPPED = "_fsdp_wrapped_module."  # what FSDP1 puts into the name of a parameter


def wrap_policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """What FSDP1 gathers together, for its `auto_wrap_policy`: a block of an LM, or a fuser.

    What is left of the LMs belongs to the module that Lightning runs. As a unit of their own their roots
    could not `generate`, which calls the model inside FSDP1's wrapper.
    """
    return recurse or isinstance(module, (GradientCheckpointingLayer, Fuser))


def shard(communicator: Communicator, mesh: DeviceMesh) -> None:
    """Shards a communicator by FSDP2, in place.

    Args:
        communicator: whole, and the same on every device.
        mesh: one-dimensional, of all devices.
    """
    # Nobody writes into a fused cache in place, of which FSDP2 warns.
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    logits = share_gates(communicator.fusers)
    for module in reversed(list(communicator.modules())):  # a block before the root that it is in
        # A root has `generate`. The model inside it is none: input and output embeddings, which are
        # often one parameter, have to be gathered as one.
        if isinstance(module, (GradientCheckpointingLayer, GenerationMixin, Fuser)):
            # By itself FSDP2 would keep a root gathered for good, and every LM here is one.
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=logits)


def share_gates(fusers: nn.ModuleList) -> set[nn.Parameter]:
    """Sees to it that gate logits, which are to be left whole, learn from all devices alike.

    Returns:
        The logits that learn.
    """
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
    # FSDP1 frees what it has offloaded to the CPU, also if it had been there already.
    offload = fusers[0].gate.logit.device.type != "cpu"
    return get_model_state_dict(fusers, options=StateDictOptions(full_state_dict=True, cpu_offload=offload))


def clip_gradients(fusers: nn.ModuleList, max_norm: float = math.inf, max_value: float = math.inf) -> Tensor:
    """Clips the gradients of fusers, sharded or not, in place.

    Args:
        fusers: with gradients.
        max_norm: of all their gradients together.
        max_value: of any of them.

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
        squares = squared_norm(shards).to(fusers[0].gate.logit.device)  # a rank may have no part of anything
        dist.all_reduce(squares)
        norm = (squares + squared_norm(whole).to(squares)).sqrt()
    else:
        norm = get_total_norm(gradients)
    for gradient in gradients:
        if max_norm < math.inf:
            gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        if max_value < math.inf:
            gradient.clamp_(-max_value, max_value)
    return norm


def squared_norm(tensors: list[Tensor]) -> Tensor:
    """The squares of all elements, summed: what may be added up over ranks, as norms may not."""
    return get_total_norm(tensors).square()


def local(tensor: Tensor) -> Tensor:
    """A view of the part of a tensor that this rank has: all of it, if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of an optimizer's parameters in its own order, whatever they are wrapped in."""
    names = {parameter: name.replace(WRAPPED, "") for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def renamed(state: dict[str, Any], names: Sequence[str | int]) -> dict[str, Any]:
    """An optimizer's saved state with its parameters called otherwise.

    Args:
        state: in which parameters are called by name, by their place in the optimizer or in the model. Whoever
            saved it, groups and the parameters in them are in the optimizer's order.
        names: what they are to be called, in that order.
    """
    keys = [key for group in state["param_groups"] for key in group["params"]]
    called = dict(zip(keys, names, strict=True))
    groups = [{**group, "params": [called[key] for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {called[key]: value for key, value in state["state"].items()}, "param_groups": groups}
