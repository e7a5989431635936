"""A linear mapper in closed form: any text that both models read serves, with no labels.

Dimensions as in `base`, and H = 2 * Lh * Hr * Dr features of the Lh receiver layers that hear of the text. G groups of
them read the same K sharer layers: all in one group, or each layer by itself; R = 2 * K * Hs * Ds features that a group
reads, W = H / G that it is told.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from c2c_lightning.errors import UserError
from c2c_lightning.fuser.base import KVShape
from c2c_lightning.fuser.fusers import Layers
from c2c_lightning.fuser.ridge import STATISTICS
from c2c_lightning.mapper.base import Mapper, features

ROWS = 1024  # of a matrix of statistics, or columns of the weights, that are worked on at a time
# What the rounding of the fp32 products leaves of a penalty: below this it no longer decides between solutions.
LEAST_PENALTY = 1e-6


class RidgeMapper(Mapper):
    """y = mean_y + W (x - mean_x), with W from a ridge regression over paired tokens.

    `begin`, then `observe` for every batch of text that both models have read, then `solve`. A layer that is left out by
    `layers` gets mean_y in every slot, so it is told nothing.

    Memory: the statistics are fp64, 8 * (I² + I * H) bytes, and `solve` uses them up: beside them and the weights,
    4 * I * H bytes, it needs about 16 * `ROWS` * I bytes. For I = 9,216 and H = 11,520 that is 2.1 GB, and 2.3 GB were measured.

    Args:
        sharer: see `Mapper`.
        receiver: see `Mapper`.
        layers: see `Mapper`.
        reads: what each receiver layer reads: `all` sharer layers; `best:K`, the K of them whose keys and values by
            themselves explain most of its own (mean of the R² of its keys and its values on the observed text, by a
            ridge of its own); `one`, which is `best:1`.
        penalty: on W, relative to the mean variance of what is read.

    Raises:
        UserError: the penalty is not positive, or `reads` is none of these.
    """

    def __init__(
        self,
        sharer: KVShape,
        receiver: KVShape,
        layers: Layers = "all",
        reads: str = "all",
        penalty: float = 1e-3,
        **init_args: Any,
    ):
        super().__init__(sharer, receiver, layers, reads=reads, penalty=penalty, **init_args)
        if not 0 < penalty < math.inf:
            raise UserError(f"mapper penalty is {penalty}: it must be positive.")
        K = layers_read(reads, sharer.num_layers)
        G = 1 if sharer.num_layers == K else len(self.heard)
        inputs, outputs = 2 * sharer.num_layers * sharer.features, 2 * receiver.num_layers * receiver.features
        told = torch.arange(outputs).view(2, receiver.num_layers, -1)[:, self.heard].flatten()
        self.register_buffer("told", told, persistent=False)
        self.register_buffer("reads", torch.arange(K).repeat(G, 1))
        self.register_buffer("mean_x", torch.zeros(inputs))
        self.register_buffer("mean_y", torch.zeros(outputs))
        self.register_buffer("weight", torch.zeros(G, 2 * K * sharer.features, len(told) // G))

    def begin(self) -> None:
        """Makes room for what is to be observed. Checkpoints have it until `solve`, and no saved mapper has it."""
        statistics = Statistics(len(self.mean_x), len(self.mean_y), len(self.told))
        self.add_module(STATISTICS, statistics.to(self.mean_x.device))

    @property
    def statistics(self) -> Statistics:
        """What was observed since `begin`. Its `buffers()` are sums over tokens: to be added up over ranks."""
        return self.get_submodule(STATISTICS)

    @torch.no_grad()
    def observe(self, sharer_stack: Tensor, receiver_stack: Tensor) -> None:
        """Adds T tokens that both models have read.

        A call passes through all the statistics whatever T is, so several hundred tokens at a time are faster.

        Args:
            sharer_stack: (2, Ls, T, Hs, Ds), keys without rotation, then values.
            receiver_stack: (2, Lr, T, Hr, Dr), of the receiver's tokens that stand for the sharer's.

        Raises:
            UserError: a stack is of another model, or they differ in tokens.
        """
        x_TI = features(sharer_stack, self.sharer, "sharer")
        y_TO = features(receiver_stack, self.receiver, "receiver")
        if len(x_TI) != len(y_TO):
            raise UserError(f"the mapper got {len(x_TI)} tokens of the sharer beside {len(y_TO)} of the receiver.")
        self.statistics.add(x_TI, y_TO, self.told)

    @torch.no_grad()
    def solve(self) -> None:
        """Sets means and weights from all that was observed, and drops the statistics, which it works in.

        Raises:
            UserError: nothing was observed, or what is not finite, or too little for the penalty.
        """
        statistics, name, penalty = self.statistics, type(self).__name__, self.init_args["penalty"]
        count = int(statistics.count)
        if count == 0:
            raise UserError(
                f"{name} is solved from texts that the sharer alone reads, and saw none: set data.context to sharer, or give "
                "messages a private text."
            )
        if not all(buffer.sum().isfinite() for buffer in statistics.buffers()):
            raise UserError(
                f"{name} cannot be fitted: keys or values of a model overflow. Load both models in fp32 or bf16."
            )
        if count <= self.weight.shape[1] and penalty < LEAST_PENALTY:
            raise UserError(
                f"mapper penalty is {penalty}: that is too little for {count} tokens, with {self.weight.shape[1]} "
                f"numbers to read off each. Give it at least {LEAST_PENALTY}, or more text."
            )
        self.mean_x.copy_(statistics.sum_x / count)
        self.mean_y.copy_(statistics.sum_y / count)
        statistics.centre(self.told)
        G, K = self.reads.shape
        if self.sharer.num_layers > K:
            self.reads.copy_(self._best_layers())
        # A group's columns of xy are its layers' keys, then their values.
        xy_GIPLF = statistics.xy.unflatten(1, (2, G, len(self.heard) // G, -1)).movedim(2, 0)
        for reads, xy_IPLF, weight_RW in zip(self.reads.tolist(), xy_GIPLF, self.weight):
            self._ridge(*self._block(reads, xy_IPLF.flatten(1)), weight_RW)
        delattr(self, STATISTICS)

    def _block(self, layers: list[int], xy: Tensor) -> tuple[Tensor, Tensor]:
        """The rows and columns of xx, and the rows of xy, of these sharer layers; the whole is not copied."""
        xx, num_layers = self.statistics.xx, self.sharer.num_layers
        if len(layers) == num_layers:
            return xx, xy
        rows = torch.arange(len(xx), device=xx.device).view(2, num_layers, -1)[:, layers].flatten()
        return xx[rows[:, None], rows], xy[rows]

    def _ridge(self, xx_RR: Tensor, xy_RW: Tensor, weight_RW: Tensor) -> Tensor:
        """Writes the solution of (xx + penalty) weight = xy, and returns the penalty. Overwrites xx."""
        penalty = self.init_args["penalty"] * xx_RR.diagonal().mean()
        penalty = torch.where(penalty > 0, penalty, 1.0)  # nothing varies: there is nothing to tell
        xx_RR.diagonal().add_(penalty)
        # In place, for which LAPACK wants columns, so it gets the transpose. Of that it reads the lower triangle.
        lower, info = xx_RR.mT, torch.empty(0, dtype=torch.int32, device=xx_RR.device)
        torch.linalg.cholesky_ex(lower, out=(lower, info))
        if info:
            raise UserError(f"mapper penalty is {self.init_args['penalty']}: with one so small there is no solution.")
        # cholesky_solve would copy the factor at every call.
        for xy, weight in zip(xy_RW.split(ROWS, 1), weight_RW.split(ROWS, 1)):
            half = torch.linalg.solve_triangular(lower, xy, upper=False)
            weight.copy_(torch.linalg.solve_triangular(lower.mT, half, upper=True))
        return penalty

    def _best_layers(self) -> Tensor:
        """For each receiver layer that hears, the sharer layers (Lh, K) that explain most of it, ascending."""
        statistics, heard = self.statistics, len(self.heard)
        explained = []
        for layer in range(self.sharer.num_layers):
            xx, xy = self._block([layer], statistics.xy)
            weight = torch.empty_like(xy)
            penalty = self._ridge(xx, xy, weight)
            # 2 w xy - w xx w, where xx w = xy - penalty w
            explained.append((weight * (xy + penalty * weight)).sum(0).view(2, heard, -1).sum(-1))
        r_squared = torch.stack(explained) / statistics.yy.view(2, heard, -1).sum(-1)
        score = r_squared.nan_to_num().mean(1)  # of keys and values alike, though keys may be larger
        return score.topk(self.reads.shape[1], dim=0).indices.sort(dim=0).values.mT

    def map(self, x_TI: Tensor) -> Tensor:
        """See `Mapper.map`."""
        if not torch.is_autocast_enabled(x_TI.device.type):
            x_TI = x_TI.to(self.mean_x.dtype)
        # Means may be a hundred times what varies, so they are taken off and put on in fp32, outside the matmuls.
        deviation_TH = self.deviation(x_TI - self.mean_x)
        mean_TO = self.mean_y.expand(len(x_TI), -1)
        if len(self.heard) == self.receiver.num_layers:
            return mean_TO + deviation_TH
        return mean_TO.index_add(1, self.told, deviation_TH.to(mean_TO.dtype))

    def says_nothing(self) -> Tensor:
        """The features (O) of the slot of a mean token of the text that `solve` was given; see `Mapper.says_nothing`."""
        return self.map(self.mean_x[None])[0]

    def deviation(self, x_TI: Tensor) -> Tensor:
        """What the layers that hear get (T, H) beside their means, for features from which mean_x was taken off."""
        G, K = self.reads.shape
        x_GTR = x_TI[None]
        if self.sharer.num_layers > K:
            x_TPLF = x_TI.unflatten(1, (2, self.sharer.num_layers, -1))
            x_GTR = x_TPLF[:, :, self.reads].permute(2, 0, 1, 3, 4).flatten(2)
        y_GTW = torch.bmm(x_GTR, self.weight)
        return y_GTW.unflatten(2, (2, len(self.heard) // G, -1)).permute(1, 2, 0, 3, 4).flatten(1)

    @torch.no_grad()
    def r_squared(self, sharer_stack: Tensor, receiver_stack: Tensor) -> Tensor:
        """R² (2, Lr) on tokens by part and receiver layer, which is 0 at best for a layer that is told nothing.

        Args:
            sharer_stack: see `observe`.
            receiver_stack: see `observe`.
        """
        truth = receiver_stack.double()
        error = (self(sharer_stack) - truth).square().sum((2, 3, 4))
        return 1 - error / (truth - truth.mean(2, keepdim=True)).square().sum((2, 3, 4))


def layers_read(reads: str, num_sharer: int) -> int:
    """How many of its layers `reads` names."""
    if reads == "all":
        return num_sharer
    word, _, number = ("best:1" if reads == "one" else str(reads)).partition(":")
    if word != "best" or not number.isdigit() or not 1 <= int(number) <= num_sharer:
        raise UserError(
            f"mapper reads is {reads!r}: give all, one or best:K, where K is 1 to the sharer's {num_sharer} layers."
        )
    return int(number)


class Statistics(nn.Module):
    """Sums over tokens of 1, x, y, x xᵀ, x yᵀ and y², where x yᵀ and y² are of the H features that are told.

    Of xx the upper triangle is filled, in blocks of `ROWS` rows.
    """

    def __init__(self, inputs: int, outputs: int, told: int):
        super().__init__()
        shapes = {"count": (), "sum_x": inputs, "sum_y": outputs, "xx": (inputs, inputs), "xy": (inputs, told)}
        for name, shape in (shapes | {"yy": told}).items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def add(self, x_TI: Tensor, y_TO: Tensor, told: Tensor) -> None:
        count = len(x_TI)
        if count == 0:
            return
        # Products are fp32, twice as fast as fp64, of what varies within these tokens; what their means add is fp64, as
        # are the sums. On 1,024 correlated features (variances 1 / rank²) in 200 batches, R² is that of fp64
        # throughout within 3e-8. Without taking means off it was off by 7e-6 where they are 10 standard deviations, and
        # had no solution where they are 100; sums in fp32, with Kahan's correction or not, had none from 10 on.
        with torch.autocast(x_TI.device.type, enabled=False):
            mean_x, mean_y = x_TI.mean(0, dtype=torch.float64), y_TO.mean(0, dtype=torch.float64)
            mean_told = mean_y[told]
            x_TI, y_TH = x_TI.float() - mean_x.float(), y_TO.float()[:, told] - mean_told.float()
            self.count += count
            self.sum_x += count * mean_x
            self.sum_y += count * mean_y
            self.yy += y_TH.square().sum(0) + count * mean_told.square()
            for start in range(0, len(mean_x), ROWS):
                rows = slice(start, start + ROWS)
                for total, other, mean in (
                    (self.xx[rows, start:], x_TI[:, start:], mean_x[start:]),
                    (self.xy[rows], y_TH, mean_told),
                ):
                    total.add_(x_TI[:, rows].mT @ other).addr_(mean_x[rows], mean, alpha=count)

    def variance_x(self) -> Tensor:
        return (self.xx.diagonal() / self.count - (self.sum_x / self.count).square()).clamp(min=0)

    def centre(self, told: Tensor) -> None:
        """Makes xx, xy and yy, in place, those of x - mean_x and y - mean_y."""
        mean_x, sum_y = self.sum_x / self.count, self.sum_y[told]
        self.xx.addr_(self.sum_x, mean_x, alpha=-1)
        self.xy.addr_(mean_x, sum_y, alpha=-1)
        self.yy -= sum_y.square() / self.count
