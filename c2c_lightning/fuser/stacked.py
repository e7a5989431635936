"""Layers of many small networks side by side: one batched matmul where a loop would run G small ones.

Dimensions: G groups (one small network each), T tokens, M hidden, I intermediate. Every module takes
`groups`, the rows of its parameters to use: None for all, or an index tensor (g,).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rows(parameter: Tensor, groups: Tensor | None) -> Tensor:
    return parameter if groups is None else parameter.index_select(0, groups)


EPS = 1e-6


class RMSNorm(torch.autograd.Function):
    """RMSNorm and its weight, for a CPU: torch composes them there of single steps, of which each is a pass over memory.

    Beside matmuls as small as a fuser's these passes were a third of the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x_GTM: Tensor, weight_G1M: Tensor) -> Tensor:
        exact = torch.promote_types(x_GTM.dtype, torch.float32)
        norm_GT1 = torch.linalg.vector_norm(x_GTM, dim=-1, keepdim=True, dtype=exact)
        scale_GT1 = norm_GT1.square_().div_(x_GTM.shape[-1]).add_(EPS).rsqrt_()
        normed_GTM = (x_GTM * scale_GT1).to(x_GTM.dtype)
        ctx.save_for_backward(normed_GTM, scale_GT1, weight_G1M)
        return normed_GTM * weight_G1M.to(x_GTM.dtype)

    @staticmethod
    def backward(ctx: Any, grad_GTM: Tensor) -> tuple[Tensor, Tensor]:
        normed_GTM, scale_GT1, weight_G1M = ctx.saved_tensors
        product_GTM = grad_GTM * normed_GTM
        grad_of_weight_G1M = product_GTM.sum(1, keepdim=True, dtype=weight_G1M.dtype)
        weight_G1M = weight_G1M.to(grad_GTM.dtype)
        along_GT1 = product_GTM.mul_(weight_G1M).mean(-1, keepdim=True, dtype=scale_GT1.dtype)
        # What follows the vector itself changes its length, which the norm takes away.
        torch.mul(normed_GTM, along_GT1, out=product_GTM)
        grad_of_x_GTM = (grad_GTM * weight_G1M).sub_(product_GTM).mul_(scale_GT1)
        return grad_of_x_GTM.to(normed_GTM.dtype), grad_of_weight_G1M


def rms_norm(x_GTM: Tensor, weight_G1M: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-6) * weight over the last dimension."""
    if x_GTM.device.type == "cpu":
        return RMSNorm.apply(x_GTM, weight_G1M)
    return F.rms_norm(x_GTM, x_GTM.shape[-1:], eps=EPS) * weight_G1M.to(x_GTM.dtype)


class StackedLinear(nn.Module):
    """G linear layers, each initialised as `nn.Linear` initialises one."""

    def __init__(self, num_groups: int, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(num_groups, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_groups, 1, out_features).uniform_(-bound, bound)) if bias else None

    def forward(self, x_GTF: Tensor, groups: Tensor | None = None) -> Tensor:
        weight_GFO = rows(self.weight, groups).mT
        if self.bias is None:
            return torch.bmm(x_GTF, weight_GFO)
        return torch.baddbmm(rows(self.bias, groups), x_GTF, weight_GFO)


class StackedBlock(nn.Module):
    """x + dropout(W2 gelu(W1 RMSNorm(x))), no biases (arXiv 2510.03215)."""

    def __init__(self, num_groups: int, hidden: int, intermediate: int, dropout: float):
        super().__init__()
        self.norm = nn.Parameter(torch.ones(num_groups, 1, hidden))
        self.w1 = StackedLinear(num_groups, hidden, intermediate, bias=False)
        self.w2 = StackedLinear(num_groups, intermediate, hidden, bias=False)
        self.dropout = dropout

    def forward(self, x_GTM: Tensor, groups: Tensor | None = None) -> Tensor:
        normed_GTM = rms_norm(x_GTM, rows(self.norm, groups))
        out = self.w2(F.gelu(self.w1(normed_GTM, groups)), groups)
        return x_GTM + F.dropout(out, self.dropout, self.training)
