"""Networks that map the tokens of one cache to those of another, and their training.

Dimensions: T tokens, G groups (a network each), F features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from c2c_lightning.fuser.stacked import StackedBlock, StackedLinear


class Mapping(nn.Module):
    """A network for each group, of the fuser's shape, trained to give the target's tokens for the source's.

    Args:
        source_TGF: the tokens of the training, which say how features are scaled.
        target_TGF: those opposite.
        hidden: width.
    """

    def __init__(self, source_TGF: Tensor, target_TGF: Tensor, hidden: int):
        super().__init__()
        _, groups, features = source_TGF.shape
        self.input = StackedLinear(groups, features, hidden)
        self.block = StackedBlock(groups, hidden, hidden, dropout=0.0)
        self.output = StackedLinear(groups, hidden, target_TGF.shape[2])
        self.register_buffer("source_mean_GF", source_TGF.mean(0))
        self.register_buffer("source_std_GF", source_TGF.std(0).clamp(min=1e-6))
        self.register_buffer("target_mean_GF", target_TGF.mean(0))
        # One scale for a whole group, so that the error is that of the cache itself.
        spread_G = (target_TGF - target_TGF.mean(0)).square().mean((0, 2)).sqrt()
        self.register_buffer("target_spread_G1", spread_G.clamp(min=1e-6)[:, None])

    def forward(self, source_TGF: Tensor) -> Tensor:
        x_GTF = ((source_TGF - self.source_mean_GF) / self.source_std_GF).transpose(0, 1)
        out_TGF = self.output(self.block(self.input(x_GTF))).transpose(0, 1)
        return self.target_mean_GF + self.target_spread_G1 * out_TGF


def train(source_TGF: Tensor, target_TGF: Tensor, hidden: int, epochs: int, seed: int) -> Mapping:
    """A mapping trained on tokens, on their device, whatever mode the caller is in."""
    with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
        # What came about in inference mode cannot be trained on; a copy can.
        tokens = TensorDataset(source_TGF.clone(), target_TGF.clone())
        torch.manual_seed(seed)
        mapping = Mapping(*tokens.tensors, hidden).to(source_TGF.device)
        order = RandomSampler(tokens, generator=torch.Generator().manual_seed(seed))
        loader = DataLoader(tokens, batch_size=None, sampler=BatchSampler(order, 256, drop_last=False))
        optimizer = torch.optim.AdamW(mapping.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
        for _ in range(epochs):
            for source, target in loader:
                optimizer.zero_grad()
                ((mapping(source) - target) / mapping.target_spread_G1).square().mean().backward()
                optimizer.step()
                schedule.step()
    return mapping.eval()


def unexplained(mapped_TGF: Tensor, target_TGF: Tensor) -> Tensor:
    """(G,) mean squared error relative to the variance of the target: 1 - R²."""
    error_G = F.mse_loss(mapped_TGF, target_TGF, reduction="none").mean((0, 2))
    variance_G = (target_TGF - target_TGF.mean(0)).square().mean((0, 2))
    return error_G / variance_G.clamp(min=1e-12)
