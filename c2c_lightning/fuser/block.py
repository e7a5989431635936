"""The residual block of a fuser, forward and backward, with no pass over memory that can be spared.

Composed of torch's single operations a block keeps five intermediates and goes over memory a dozen times, which beside
matmuls as small as a fuser's takes longer than they do. This one keeps two, makes the others anew, and on a CPU works
on as many groups at a time as fit a core's cache.

Dimensions: G groups, T tokens, M hidden, I intermediate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from c2c_lightning.fuser.matmul import matmul_dtype, product

EPS = 1e-6
CACHED = 2**20  # elements of the widest intermediate of the groups that a CPU works on at a time; found by measurement


class Block(torch.autograd.Function):
    """x + dropout(W2 gelu(W1 RMSNorm(x))), with x (G, T, M), norm (G, 1, M), W1 (G, I, M) and W2 (G, M, I).

    Under autocast matmuls have its dtype; the norm is computed in fp32 or better.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, w1: Tensor, w2: Tensor, dropout: float) -> Tensor:
        dtype = matmul_dtype(x)
        exact = torch.promote_types(x.dtype, torch.float32)
        inner = x.new_empty(*x.shape[:2], w1.shape[1], dtype=dtype)
        scale = x.new_empty(*x.shape[:2], 1, dtype=exact)
        out = torch.empty_like(x, dtype=torch.promote_types(x.dtype, dtype))
        kept = torch.empty_like(x, dtype=torch.bool) if dropout else None
        with torch.autocast(x.device.type, enabled=False):
            for g in chunks(inner):
                x_g = x[g].to(exact)
                torch.linalg.vector_norm(x_g, dim=-1, keepdim=True, out=scale[g])
                scale[g].square_().div_(x.shape[-1]).add_(EPS).rsqrt_()
                normed = (x_g * scale[g]).mul_(norm[g].to(exact)).to(dtype)
                torch.bmm(normed, w1[g].to(dtype).mT, out=inner[g])
                update = torch.bmm(F.gelu(inner[g]), w2[g].to(dtype).mT)
                if dropout:
                    update, kept[g] = torch.native_dropout(update, dropout, True)
                torch.add(x[g], update, out=out[g])
        ctx.save_for_backward(x, scale, norm, w1, w2, inner, kept)
        ctx.dropout = dropout
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, scale, norm, w1, w2, inner, kept = ctx.saved_tensors
        dtype, exact = inner.dtype, scale.dtype
        grad_x, grad_norm, grad_w1, grad_w2 = (torch.empty_like(t) for t in (x, norm, w1, w2))
        with torch.autocast(x.device.type, enabled=False):
            for g in chunks(inner):
                grad_update = grad[g].to(dtype)
                if kept is not None:
                    grad_update = torch.ops.aten.native_dropout_backward(grad_update, kept[g], 1 / (1 - ctx.dropout))
                product(grad_update.mT, F.gelu(inner[g]), grad_w2[g])
                grad_inner = torch.ops.aten.gelu_backward(torch.bmm(grad_update, w2[g].to(dtype)), inner[g])
                # Mixed operands would be copied to one dtype anew for every operation.
                normed, weight = x[g].to(exact) * scale[g], norm[g].to(exact)
                product(grad_inner.mT, (normed * weight).to(dtype), grad_w1[g])
                grad_normed = torch.bmm(grad_inner, w1[g].to(dtype)).to(exact)
                along = grad_normed * normed
                grad_norm[g] = along.sum(1, keepdim=True)
                # What follows the vector itself changes its length, which the norm takes away.
                length = along.mul_(weight).mean(-1, keepdim=True)
                grad_x[g] = grad_normed.mul_(weight).addcmul_(normed, length, value=-1).mul_(scale[g])
                grad_x[g] += grad[g]
        return grad_x, grad_norm, grad_w1, grad_w2, None


def chunks(inner_GTI: Tensor) -> Iterator[slice]:
    """The groups, so many of them at a time."""
    step = at_once(*inner_GTI.shape, inner_GTI.device.type)
    for first in range(0, len(inner_GTI), step):
        yield slice(first, first + step)


def at_once(groups: int, tokens: int, width: int, device: str) -> int:
    """How many groups are worked on at a time: all of them on a GPU, and as many as a cache holds on a CPU."""
    return min(groups, max(1, CACHED // max(1, tokens * width))) if device == "cpu" else groups
