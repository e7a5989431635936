"""A mapper that trains: the closed form and a small network beside it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from c2c_lightning.errors import UserError
from c2c_lightning.fuser.base import KVShape
from c2c_lightning.fuser.fusers import Layers
from c2c_lightning.mapper.ridge import RidgeMapper

LEAST_VARIANCE = 1e-6  # of a feature, relative to the mean of all, below which it is not scaled up any further


class NetworkMapper(RidgeMapper):
    """y = mean_y + W (x - mean_x) + W2 gelu(W1 (x - mean_x) / std_x + b1) + b2.

    W, means and standard deviations come from `solve`, and are buffers; W1, b1, W2 and b2 train. W2 and b2 are zero at
    first, so that training starts at the closed form. The network reads all sharer layers, whatever `reads` says.

    Args:
        sharer: see `Mapper`.
        receiver: see `Mapper`.
        layers: see `Mapper`.
        reads: see `RidgeMapper`.
        penalty: see `RidgeMapper`.
        width: of the network's hidden state.

    Raises:
        UserError: see `RidgeMapper`, or a width that no network has.
    """

    def __init__(
        self,
        sharer: KVShape,
        receiver: KVShape,
        layers: Layers = "all",
        reads: str = "all",
        penalty: float = 1e-3,
        width: int = 512,
    ):
        super().__init__(sharer, receiver, layers, reads=reads, penalty=penalty, width=width)
        if width < 1:
            raise UserError(f"mapper width is {width}: it must be positive.")
        self.register_buffer("std_x", torch.ones_like(self.mean_x))
        self.w1 = nn.Linear(len(self.mean_x), width)
        self.w2 = nn.Linear(width, len(self.told))
        nn.init.zeros_(self.w2.weight)
        nn.init.zeros_(self.w2.bias)

    @torch.no_grad()
    def solve(self) -> None:
        """See `RidgeMapper.solve`."""
        variance = self.statistics.variance_x()  # which solving overwrites
        super().solve()
        least = (LEAST_VARIANCE * variance.mean()).clamp(min=torch.finfo(torch.float32).tiny)
        self.std_x.copy_(variance.clamp(min=least).sqrt())

    def deviation(self, x_TI: Tensor) -> Tensor:
        """See `RidgeMapper.deviation`."""
        return super().deviation(x_TI) + self.w2(F.gelu(self.w1(x_TI / self.std_x)))
