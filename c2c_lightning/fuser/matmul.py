"""Many linear layers side by side, with gradients laid out in memory as parameters are.

torch's own gradient of a transposed matrix comes transposed, and is copied into place: where tokens are few that took
longer than the matmul.

Dimensions: G groups, T tokens, F features in, O features out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Linear(torch.autograd.Function):
    """x Wᵀ + b with x (G, T, F), W (G, O, F) and b (G, 1, O) or None; under autocast in its dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.dtype_of_x, dtype = x.dtype, matmul_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            x, weight_GFO = x.to(dtype), weight.to(dtype).mT
            out = torch.bmm(x, weight_GFO) if bias is None else torch.baddbmm(bias.to(dtype), x, weight_GFO)
        ctx.save_for_backward(x, weight, bias)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight, bias = ctx.saved_tensors
        grad_x = grad_bias = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                grad_x = torch.bmm(grad, weight.to(grad.dtype)).to(ctx.dtype_of_x)
            grad_weight = torch.empty_like(weight)
            product(grad.mT, x, grad_weight)
            if bias is not None:
                grad_bias = grad.sum(1, keepdim=True, dtype=bias.dtype)
        return grad_x, grad_weight, grad_bias


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which matmuls of a tensor are computed now."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Writes a @ b into `out`, whatever its dtype."""
    if out.dtype == a.dtype:
        torch.bmm(a, b, out=out)
    else:
        out.copy_(torch.bmm(a, b))
