"""Networks that map the tokens of one cache to those of another, and their training.

Dimensions: T tokens, G groups (a network each), F features.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from c2c_lightning.fuser.stacked import StackedBlock, StackedLinear


class Mapping(L.LightningModule):
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

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        source_TGF, target_TGF = batch
        return ((self(source_TGF) - target_TGF) / self.target_spread_G1).square().mean()

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=1e-2)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(source_TGF: Tensor, target_TGF: Tensor, hidden: int, epochs: int, seed: int) -> Mapping:
    """A mapping trained on tokens, on their device, whatever mode the caller is in."""
    device = source_TGF.device
    with quiet_lightning(), torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
        # What came about in inference mode cannot be trained on; a copy can.
        source_TGF, target_TGF = source_TGF.clone(), target_TGF.clone()
        torch.manual_seed(seed)
        mapping = Mapping(source_TGF, target_TGF, hidden)
        order = RandomSampler(source_TGF, generator=torch.Generator().manual_seed(seed))
        loader = DataLoader(
            TensorDataset(source_TGF, target_TGF), batch_size=None, sampler=BatchSampler(order, 256, drop_last=False)
        )
        trainer = L.Trainer(
            accelerator="cpu" if device.type == "cpu" else "gpu",
            devices=1 if device.index is None else [device.index],
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(mapping, loader)
    return mapping.to(device).eval()


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Within it a trainer does not introduce itself."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def unexplained(mapped_TGF: Tensor, target_TGF: Tensor) -> Tensor:
    """(G,) mean squared error relative to the variance of the target: 1 - R²."""
    error_G = F.mse_loss(mapped_TGF, target_TGF, reduction="none").mean((0, 2))
    variance_G = (target_TGF - target_TGF.mean(0)).square().mean((0, 2))
    return error_G / variance_G.clamp(min=1e-12)
