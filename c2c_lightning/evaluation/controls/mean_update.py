"""Control: the same update for every question, the mean over the benchmark.

Dimensions: L fused layers, B questions, H kv heads, N prompt tokens but the last, D head_dim, E tokens
counted from the prompt's end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from transformers import DynamicCache

from c2c_lightning.communication import Batch, Communicator
from c2c_lightning.communication.cache import read_stack, write_stack
from c2c_lightning.evaluation.methods.c2c import C2C
from c2c_lightning.evaluation.observing import Caches, Observer
from c2c_lightning.evaluation.questions import Questions

END = 256


class MeanUpdate(C2C, Observer):
    """What the fuser adds on average, added to every question's cache.

    Averages are taken at each distance from the prompt's end, where chat templates and the request for a
    letter stand; farther than END tokens, or where fewer than half of the prompts reach, over all tokens,
    so that no long question is given its own update back.
    """

    name = "mean_update"
    description = "C2C with the benchmark's mean update for every question"
    generic = True

    def __init__(self) -> None:
        self.measured: dict[str, Any] = {}

    def metric(self, communicator: Communicator) -> Metric:
        fuser = communicator.fusers[0]
        return UpdateMean(len(communicator.fused_layers), fuser.receiver.num_kv_heads, fuser.receiver.head_dim)

    def sharer_stacks(self, communicator: Communicator, batch: Batch) -> dict[int, Tensor]:
        return {}  # no sharer is needed

    def fuse(
        self,
        communicator: Communicator,
        cache: DynamicCache,
        stacks: dict[int, Tensor],
        batch: Batch,
        questions: Questions,
    ) -> None:
        measured = self.measured[questions.benchmark.name]
        stack = read_stack(cache, communicator.fused_layers)
        update = measured["overall"][:, :, :, None].to(stack).repeat(1, 1, 1, stack.shape[4], 1)
        near = min(END, stack.shape[4])
        update[:, :, :, -near:] = measured["from_end"][:, :, :, -near:].to(stack)
        write_stack(cache, communicator.fused_layers, stack + update[:, :, None])


class UpdateMean(Metric):
    """The mean of fused - receiver: over all tokens, (2, L, H, D), and by distance from the end, (2, L, H, E, D)."""

    full_state_update = False

    def __init__(self, num_layers: int, num_kv_heads: int, head_dim: int):
        super().__init__()
        # In double precision, so that the sum hardly depends on how questions are spread over batches and ranks.
        zeros = torch.zeros(2, num_layers, num_kv_heads, END, head_dim, dtype=torch.float64)
        self.add_state("from_end", zeros, dist_reduce_fx="sum")
        self.add_state("overall", torch.zeros_like(zeros[:, :, :, 0]), dist_reduce_fx="sum")
        self.add_state("reach", torch.zeros(END), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("prompts", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, caches: Caches) -> None:
        mask_BN = caches.mask
        update = (caches.fused - caches.receiver).double() * mask_BN[:, None, :, None]
        by_token = update.sum(2)
        near = min(END, mask_BN.shape[1])
        self.from_end[:, :, :, -near:] += by_token[:, :, :, -near:]
        self.overall += by_token.sum(3)
        self.reach[-near:] += mask_BN[:, -near:].sum(0)
        self.tokens += mask_BN.sum()
        self.prompts += len(mask_BN)

    def compute(self) -> dict[str, Tensor]:
        overall = self.overall / self.tokens
        common = (self.reach >= self.prompts / 2)[:, None]
        from_end = torch.where(common, self.from_end / self.reach.clamp(min=1)[:, None], overall[:, :, :, None])
        return {"overall": overall.float(), "from_end": from_end.float()}
