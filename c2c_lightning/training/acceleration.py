"""What makes a train step faster or smaller and changes nothing else: compiling, keeping freed memory."""

from __future__ import annotations

import ctypes
import sys
from typing import Literal, get_args

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.fuser import RidgeFuser

Compiled = Literal["none", "fusers", "all"]
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of <malloc.h>


def compile_parts(communicator: Communicator, parts: Compiled, backend: str = "inductor") -> None:
    """Has torch.compile fuse the small steps around the matmuls, in place; the first steps take long for it.

    Args:
        communicator: whole, not sharded yet.
        parts: `fusers`, or `all` for the layers of receiver and sharers too; a UserError for any other word.
        backend: of torch.compile.
    """
    if parts not in get_args(Compiled):
        raise UserError(f"model.compile is {parts!r}: give {', '.join(get_args(Compiled))}.")
    if parts == "none":
        return
    for fuser in communicator.fusers:
        if isinstance(fuser, RidgeFuser):
            continue  # its update is one matmul, and collects by a hook, which would be compiled away
        fuser.update = torch.compile(fuser.update, backend=backend)
    if parts == "all":
        layers = [module for module in communicator.modules() if isinstance(module, GradientCheckpointingLayer)]
        # Every layer is compiled by itself, though they share their code.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 + 4 * len(layers))
        for layer in layers:
            if layer._compiled_call_impl is None:  # of models that several trials share
                layer.compile(backend=backend)


def keep_freed_memory() -> bool:
    """Has glibc keep freed memory for the next time, instead of giving it back to the system; whether it can.

    By default each large tensor is a piece of memory that the system clears page by page when it is first written to,
    and takes back when the tensor is freed. Of a wide fuser's gradients alone that is gigabytes in every step: at few
    tokens half of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
    return mallopt is not None and all(mallopt(*setting) for setting in settings.items())
