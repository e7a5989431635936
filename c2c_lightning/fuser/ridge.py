"""A linear fuser that no optimizer trains: it is fitted in closed form to the gradients of the loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from c2c_lightning.errors import UserError
from c2c_lightning.fuser.base import Fuser, KVShape
from c2c_lightning.fuser.gate import Gate
from c2c_lightning.fuser.stacked import pick

STATISTICS = "closed_form_statistics"  # what only a run that fits needs, and no saved fuser has


class RidgeFuser(Fuser):
    """fused = receiver + gate * W [sharer, receiver, 1], with W from a ridge regression.

    In training it adds nothing and collects how the loss falls when something is added to the receiver's cache: its
    gradient, token by token. W is the linear map of both caches that comes closest to the negative gradient; `solve`
    makes the update as long as the receiver's cache, and whoever calls it finds its scale by the loss. That is one step
    of steepest descent among linear fusers. Gates are what they are at evaluation, and do not learn.

    Args:
        sharer: see `Fuser`.
        receiver: see `Fuser`.
        gate: see `Fuser`.
        penalty: on W, relative to the mean square of what it reads.

    Attributes:
        collects: whether it does now.

    Raises:
        UserError: the penalty is not positive.
    """

    draws = False

    def __init__(self, sharer: KVShape, receiver: KVShape, gate: Gate, penalty: float = 1e-4):
        super().__init__(sharer, receiver, gate, penalty=penalty)
        if not 0 < penalty < math.inf:
            raise UserError(f"fuser penalty is {penalty}: it must be positive.")
        features = sharer.features + receiver.features + 1
        self.weight = nn.Parameter(torch.zeros(self.num_groups, features, receiver.features), requires_grad=False)
        self.collects = True
        self.gate.logit.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> RidgeFuser:
        super().train(mode)
        self.gate.eval()  # without noise, which would scale what is collected
        return self

    def begin(self) -> None:
        """Makes room for what is to be collected, which a run's checkpoints have."""
        self.add_module(STATISTICS, Statistics(*self.weight.shape))

    @property
    def statistics(self) -> Statistics:
        return self.get_submodule(STATISTICS)

    def update(self, sharer_GTF: Tensor, receiver_GTF: Tensor, groups: Tensor | None) -> Tensor:
        x_GTF = torch.cat([sharer_GTF, receiver_GTF, torch.ones_like(receiver_GTF[..., :1])], dim=-1)
        if not self.training:
            return torch.bmm(x_GTF, pick(self.weight, 0, groups).to(x_GTF.dtype))
        update_GTF = torch.zeros_like(receiver_GTF, requires_grad=torch.is_grad_enabled())
        if update_GTF.requires_grad and self.collects:
            update_GTF.register_hook(lambda grad: self.statistics.add(x_GTF, grad, groups))
        return update_GTF

    @torch.no_grad()
    def solve(self) -> None:
        """Sets W from all that was collected; all layers' updates together are as long as the receiver's cache.

        Raises:
            UserError: nothing was collected, or there is no solution.
        """
        xx, xg = self.statistics.xx, self.statistics.xg
        if not xx.any():
            raise UserError(
                f"{type(self).__name__} has no calibration data: it is fitted to the training batches of the first "
                "epoch, and saw none with a token that is fused."
            )
        square_G = xx.diagonal(dim1=1, dim2=2).mean(-1)
        penalty = self.init_args["penalty"]
        # A pair that is closed for good has seen nothing; its W is 0.
        penalty_G = torch.where(square_G > 0, penalty * square_G, 1.0)
        identity = torch.eye(xx.shape[1], dtype=xx.dtype, device=xx.device)
        try:
            factor = torch.linalg.cholesky(xx + penalty_G[:, None, None] * identity)
        except torch.linalg.LinAlgError as error:
            raise UserError(f"fuser penalty is {penalty}: with one so small there is no solution. Raise it.") from error
        weight = -torch.cholesky_solve(xg, factor)
        of_receiver = xx.diagonal(dim1=1, dim2=2)[:, self.sharer.features : -1].sum()
        of_update = (weight * (xx @ weight)).sum()
        self.weight.copy_(weight * (of_receiver / of_update).sqrt() if of_update > 0 else weight)


class Statistics(nn.Module):
    """Sums over tokens of x xᵀ and x gᵀ, for G pairs; in fp64, as a regression squares what is lost to rounding."""

    def __init__(self, groups: int, features: int, receiver_features: int):
        super().__init__()
        self.register_buffer("xx", torch.zeros(groups, features, features, dtype=torch.float64))
        self.register_buffer("xg", torch.zeros(groups, features, receiver_features, dtype=torch.float64))

    def add(self, x_GTF: Tensor, grad_GTF: Tensor, groups: Tensor | None) -> None:
        x_GTF = x_GTF.double()
        for total, other_GTF in ((self.xx, x_GTF), (self.xg, grad_GTF.double())):
            product = x_GTF.mT @ other_GTF
            total.add_(product) if groups is None else total.index_add_(0, groups, product)
