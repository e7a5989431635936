"""What makes a train step faster or smaller and changes nothing else: compiling, and recomputing activations."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.fuser.closed_form import ClosedFormFuser

Compiled = Literal["none", "fusers", "all"]


def compile_parts(communicator: Communicator, parts: Compiled, backend: str = "inductor") -> None:
    """Has torch.compile fuse the small steps around the matmuls, in place; the first steps take long for it.

    Args:
        communicator: whole, not sharded yet.
        parts: `fusers`, or `all` for the layers of receiver and sharers too.
        backend: of torch.compile.

    Raises:
        UserError: `parts` is no such word.
    """
    if parts not in get_args(Compiled):
        raise UserError(f"model.compile is {parts!r}: give {', '.join(get_args(Compiled))}.")
    if parts == "none":
        return
    for fuser in communicator.fusers:
        if isinstance(fuser, ClosedFormFuser):
            continue  # its update is one matmul, and collects by a hook, which would be compiled away
        fuser.update = torch.compile(fuser.update, backend=backend)
    if parts == "all":
        layers = [module for module in communicator.modules() if isinstance(module, GradientCheckpointingLayer)]
        # Every layer is compiled by itself, though they share their code.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 + 4 * len(layers))
        for layer in layers:
            if layer._compiled_call_impl is None:  # of models that several trials share
                layer.compile(backend=backend)


def recompute_fusers(communicator: Communicator) -> None:
    """Has fusers keep nothing for the backward pass but their input, in place: a third more of their FLOPs.

    Their activations are most of what a step keeps: every prompt token has them in every open (part, layer) pair.
    """
    for fuser in communicator.fusers:
        fuser.recomputes = True
