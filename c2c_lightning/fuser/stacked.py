"""Layers of many small networks side by side: one batched matmul where a loop would run G small ones.

Dimensions: G groups (one small network each), T tokens, F features in, O out, M hidden, I intermediate. Every module
takes `groups`, the rows of its parameters to use: None for all, or an index tensor (g,). The compiler is given plain
operations, through which it finds a way of its own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2c_lightning.fuser.block import EPS, Block
from c2c_lightning.fuser.matmul import Linear


def rows(parameter: Tensor, groups: Tensor | None) -> Tensor:
    return parameter if groups is None else parameter.index_select(0, groups)


class StackedLinear(nn.Module):
    """G linear layers, each initialised as `nn.Linear` initialises one."""

    def __init__(self, num_groups: int, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(num_groups, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_groups, 1, out_features).uniform_(-bound, bound)) if bias else None

    def forward(self, x_GTF: Tensor, groups: Tensor | None = None) -> Tensor:
        weight_GOF = rows(self.weight, groups)
        bias_G1O = None if self.bias is None else rows(self.bias, groups)
        if not torch.compiler.is_compiling():
            return Linear.apply(x_GTF, weight_GOF, bias_G1O)
        if bias_G1O is None:
            return torch.bmm(x_GTF, weight_GOF.mT)
        return torch.baddbmm(bias_G1O, x_GTF, weight_GOF.mT)


class StackedBlock(nn.Module):
    """x + dropout(W2 gelu(W1 RMSNorm(x))), no biases (arXiv 2510.03215)."""

    def __init__(self, num_groups: int, hidden: int, intermediate: int, dropout: float):
        super().__init__()
        self.norm = nn.Parameter(torch.ones(num_groups, 1, hidden))
        self.w1 = StackedLinear(num_groups, hidden, intermediate, bias=False)
        self.w2 = StackedLinear(num_groups, intermediate, hidden, bias=False)
        self.dropout = dropout

    def forward(self, x_GTM: Tensor, groups: Tensor | None = None) -> Tensor:
        norm_G1M, w1_GIM, w2_GMI = (
            rows(parameter, groups) for parameter in (self.norm, self.w1.weight, self.w2.weight)
        )
        dropout = self.dropout if self.training else 0.0
        if not torch.compiler.is_compiling():
            return Block.apply(x_GTM, norm_G1M, w1_GIM, w2_GMI, dropout)
        normed_GTM = F.rms_norm(x_GTM, x_GTM.shape[-1:], eps=EPS) * norm_G1M.to(x_GTM.dtype)
        update_GTM = torch.bmm(F.gelu(torch.bmm(normed_GTM, w1_GIM.mT)), w2_GMI.mT)
        return x_GTM + F.dropout(update_GTM, dropout)
