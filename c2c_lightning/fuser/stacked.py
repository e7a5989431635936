"""Layers of many small networks side by side: one batched matmul where a loop would run G small ones.

Dimensions: G groups (one small network each), T tokens, F features in, O out, M hidden, I intermediate. Every module
takes `groups`, the rows of its parameters to use: None for all, or an index tensor (g,).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2c_lightning.errors import UserError

EPS = 1e-6


def pick(x: Tensor, dim: int, index: Tensor | None) -> Tensor:
    return x if index is None else x.index_select(dim, index)


class StackedLinear(nn.Module):
    """G linear layers, each initialised as `nn.Linear` initialises one."""

    def __init__(self, num_groups: int, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        drawn_GOF = torch.empty(num_groups, out_features, in_features).uniform_(-bound, bound)
        # As (G, F, O), so that its gradient comes laid out as it is. The gradient of a transposed matrix would be
        # copied into place, which takes longer than the matmul where tokens are few.
        self.weight = nn.Parameter(drawn_GOF.mT.contiguous())
        self.bias = nn.Parameter(torch.empty(num_groups, 1, out_features).uniform_(-bound, bound)) if bias else None

    def forward(self, x_GTF: Tensor, groups: Tensor | None = None) -> Tensor:
        weight_GFO = pick(self.weight, 0, groups)
        if self.bias is None:
            return torch.bmm(x_GTF, weight_GFO)
        return torch.baddbmm(pick(self.bias, 0, groups), x_GTF, weight_GFO)


class StackedBlock(nn.Module):
    """x + dropout(W2 gelu(W1 RMSNorm(x))), no biases (arXiv 2510.03215).

    Raises:
        UserError: `dropout` does not lie in [0, 1).
    """

    def __init__(self, num_groups: int, hidden: int, intermediate: int, dropout: float):
        super().__init__()
        if not 0 <= dropout < 1:
            raise UserError(f"fuser dropout is {dropout}: it must lie in [0, 1).")
        self.norm = nn.Parameter(torch.ones(num_groups, 1, hidden))
        self.w1 = StackedLinear(num_groups, hidden, intermediate, bias=False)
        self.w2 = StackedLinear(num_groups, intermediate, hidden, bias=False)
        self.dropout = dropout

    def forward(self, x_GTM: Tensor, groups: Tensor | None = None) -> Tensor:
        # The norm's weight differs by group, which F.rms_norm cannot take.
        normed_GTM = F.rms_norm(x_GTM, x_GTM.shape[-1:], eps=EPS) * pick(self.norm, 0, groups).to(x_GTM.dtype)
        update_GTM = self.w2(F.gelu(self.w1(normed_GTM, groups)), groups)
        return x_GTM + F.dropout(update_GTM, self.dropout, self.training)


def matrices(fusers: nn.Module) -> set[str]:
    """The parameters that are stacks of matrices (G, F, O), by name."""
    return {f"{name}.weight" for name, module in fusers.named_modules() if isinstance(module, StackedLinear)}


def transposed(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """A state with some of its stacks of matrices transposed: format 1 of saved fusers has them as (G, O, F)."""
    turned = {name: state[name].mT.contiguous() for name in names if name in state and state[name].ndim == 3}
    return {**state, **turned}
