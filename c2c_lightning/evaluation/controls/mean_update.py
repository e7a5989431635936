"""Control: the mean update of all other questions, for every question.

Dimensions: L fused layers, B questions, H kv heads, N prompt tokens but the last, D head_dim, E tokens
counted from the prompt's end.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from transformers import DynamicCache

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.evaluation.controls.applies import lacks_others
from c2c_lightning.evaluation.methods.c2c import C2C
from c2c_lightning.evaluation.observing import Caches, Observer
from c2c_lightning.evaluation.questions import Questions
from c2c_lightning.models import Batch
from c2c_lightning.models.cache import read_stack, write_stack

END = 256


class MeanUpdate(C2C, Observer):
    """What the fuser adds to the other questions' caches on average, added to each question's cache.

    Averages are taken at each distance from the prompt's end, where chat templates and the request for a
    letter stand; farther than END tokens, or where no other prompt reaches, over all tokens. A question's
    own update is taken out of the mean, so that of itself it is told nothing.
    """

    name = "mean_update"
    description = "C2C with the mean update of all other questions of the benchmark"
    control = generic = True

    def why_not(self, benchmark: Benchmark) -> str | None:
        return lacks_others(benchmark)

    def metric(self, communicator: Communicator) -> Metric:
        fuser = communicator.fusers[0]
        return UpdateSum(len(communicator.fused_layers), fuser.receiver.num_kv_heads, fuser.receiver.head_dim)

    def fuse(
        self,
        communicator: Communicator,
        cache: DynamicCache,
        stacks: dict[int, Tensor],
        batch: Batch,
        questions: Questions,
    ) -> None:
        stack = read_stack(cache, communicator.fused_layers)
        communicator.fuse(cache, stacks, batch)
        mask = batch.prompt_mask[:, :-1].bool()
        own = masked_update(read_stack(cache, communicator.fused_layers), stack, mask)
        measured = {name: value.to(own.device) for name, value in self.measured[questions.benchmark.name].items()}
        update = mean_of_others(measured, own, mask)
        write_stack(cache, communicator.fused_layers, stack + update.to(stack.dtype))


class UpdateSum(Metric):
    """The sum of fused - receiver, and how many tokens it is of: of all tokens, and by distance from the end.

    Computes `total` (2, L, H, D), `tokens`, `by_distance` (2, L, H, E, D) and `reach` (E).
    """

    full_state_update = False

    def __init__(self, num_layers: int, num_kv_heads: int, head_dim: int):
        super().__init__()
        # In double precision, so that the sum hardly depends on how questions are spread over batches and ranks.
        zeros = torch.zeros(2, num_layers, num_kv_heads, END, head_dim, dtype=torch.float64)
        self.add_state("by_distance", zeros, dist_reduce_fx="sum")
        self.add_state("total", torch.zeros_like(zeros[:, :, :, 0]), dist_reduce_fx="sum")
        self.add_state("reach", torch.zeros(END), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, caches: Caches) -> None:
        by_token = masked_update(caches.fused, caches.receiver, caches.mask).sum(2, dtype=torch.float64)
        near = min(END, caches.mask.shape[1])
        self.by_distance[:, :, :, -near:] += by_token[:, :, :, -near:]
        self.total += by_token.sum(3)
        self.reach[-near:] += caches.mask[:, -near:].sum(0)
        self.tokens += caches.mask.sum()

    def compute(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("total", "tokens", "by_distance", "reach")}


def masked_update(fused: Tensor, receiver: Tensor, mask_BN: Tensor) -> Tensor:
    """(2, L, B, H, N, D) in single precision: what fusion added to real tokens, 0 for padding."""
    return (fused.float() - receiver.float()) * mask_BN[:, None, :, None]


def mean_of_others(measured: dict[str, Tensor], own: Tensor, mask_BN: Tensor) -> Tensor:
    """For each of B questions the mean update of all others, (2, L, B, H, N, D).

    Args:
        measured: as `UpdateSum` computes it, on the device of `own`.
        own: (2, L, B, H, N, D) the questions' own updates.
        mask_BN: bool, False for padding.
    """
    near = min(END, mask_BN.shape[1])
    others = measured["tokens"] - mask_BN.sum(1)
    overall = (measured["total"].float()[:, :, None] - own.sum(4)) / others[:, None, None]
    update = overall[:, :, :, :, None].repeat(1, 1, 1, 1, mask_BN.shape[1], 1)
    reach_BE = (measured["reach"][-near:] - mask_BN[:, -near:].float())[:, None, :, None]
    by_distance = measured["by_distance"].float()[:, :, None, :, -near:] - own[..., -near:, :]
    update[..., -near:, :] = torch.where(reach_BE > 0, by_distance / reach_BE.clamp(min=1), update[..., -near:, :])
    return update
