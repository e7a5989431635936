"""How a run trains mappers: in closed form before the first step, then by the receiver's reading of their slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track
from torch import Tensor

from c2c_lightning.errors import UserError
from c2c_lightning.fuser import Fusers
from c2c_lightning.mapper import Mapper, Prefix, RidgeMapper
from c2c_lightning.models import Batch, FrozenModels
from c2c_lightning.models.loading import is_sharded


@dataclass
class TextTraining:
    """What mappers are trained by.

    Attributes:
        answer: weight of the cross-entropy of the response.
        kl: weight of the divergence from the next-token distributions of the receiver that reads the text itself.
        entries: weight of the share of variance of that receiver's cache of the text that the slots do not have.
        prompt: the same of its cache of the prompt's tokens that follow the text, and are read on top of the slots.
        observed: training batches that the closed form is solved from; None for all of an epoch.
    """

    answer: float = 1.0
    kl: float = 1.0
    entries: float = 0.0
    prompt: float = 0.0
    observed: int | None = None

    def __post_init__(self) -> None:
        for name in self.losses:
            if not getattr(self, name) >= 0:
                raise UserError(f"model.texts.{name} is {getattr(self, name)}: it must not be negative.")
        if not sum(self.losses.values()) > 0:
            raise UserError("model.texts gives no loss a weight: set answer, kl, entries or prompt above 0.")
        if self.observed is not None and self.observed < 1:
            raise UserError(f"model.texts.observed is {self.observed}: give at least 1, or null for an epoch.")

    @property
    def losses(self) -> dict[str, float]:
        """Weights of the losses, by name; see `FrozenModels.text_loss`."""
        return {"answer": self.answer, "kl": self.kl, "entries": self.entries, "prompt": self.prompt}


def check_prefix(fusers: Fusers, texts: TextTraining) -> None:
    """Raises a UserError if a `Prefix` is configured with what needs a mapper that hands a text over."""
    if not isinstance(fusers.mapper, Prefix):
        return
    if len(fusers):
        raise UserError("model.mapper is a Prefix, with which the receiver reads alone: set model.fuser to null.")
    if texts.entries:
        raise UserError(
            f"model.texts.entries is {texts.entries}, and model.mapper is a Prefix, whose slots have no text: set it to 0."
        )


@torch.no_grad()
def begin_prefixes(trainer: L.Trainer, models: FrozenModels, mappers: Sequence[Mapper | None]) -> None:
    """Has every `Prefix` begin near what the receiver makes of a text from the training data."""
    prefixes = [mapper for mapper in mappers if isinstance(mapper, Prefix)]
    if not prefixes:
        return
    for batch in trainer.datamodule.train_dataloader():
        if batch.private is not None:
            words, _ = models.read(batch.to(models.receiver.device)).entries_itself()
            break
    else:
        raise UserError(
            "model.mapper is a Prefix, and the data have no texts that the sharer alone reads: set data.context to sharer, or "
            "give messages a private text."
        )
    for prefix in prefixes:
        prefix.begin_with(words)
        if trainer.world_size > 1:
            dist.broadcast(prefix.entries.data, 0)


@torch.no_grad()
def solve_mappers(
    trainer: L.Trainer, models: FrozenModels, mappers: Sequence[Mapper | None], observed: int | None
) -> None:
    """Solves those mappers that have a closed form, from training batches that the models read once for all of them.

    Raises:
        UserError: the data have no private texts, or no end.
    """
    mappers = [mapper for mapper in mappers if isinstance(mapper, RidgeMapper)]
    if not mappers:
        return
    loader = trainer.datamodule.train_dataloader()
    total = loader.num_batches if observed is None else observed
    if total is None:
        raise UserError(
            "data.streaming has no end: set model.texts.observed, the batches that mappers are solved from."
        )
    total = total if loader.num_batches is None else min(total, loader.num_batches)
    for mapper in mappers:
        mapper.begin()
    rank_zero_info(f"solving {len(mappers)} mapper(s) from {total} batches")
    shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
    for batch, _ in zip(track(loader, "solving mappers", total, disable=not shown), range(total)):
        check_told(trainer, models, batch)
        if batch.private is None:
            continue
        reading = models.read(batch.to(models.receiver.device))
        target, has_one = reading.entries_itself()
        text = reading.text_entries[:, :, has_one]
        if not batch.response_mask.any():  # of a rank that had no example, and reads as the others do
            continue
        for mapper in mappers:
            mapper.observe(text, target)
    for mapper in mappers:
        if trainer.world_size > 1:
            for summed in mapper.statistics.buffers():
                dist.all_reduce(summed)
        mapper.solve()


def check_told(trainer: L.Trainer, models: FrozenModels, batch: Batch) -> None:
    """Raises a UserError on every rank if of those that share their models some have texts to read and others none."""
    if not is_sharded(models):
        return
    told = torch.tensor(float(batch.private is not None), device=trainer.strategy.root_device)
    told = trainer.strategy.reduce(told, reduce_op="sum")
    if 0 < told < trainer.world_size:
        raise UserError(
            f"of {trainer.world_size} ranks that share their models (FSDP) {told:.0f} have texts that the sharer alone reads, "
            "and the others have none, so they cannot read together: give every conversation a text, or set "
            "trainer.strategy to ddp if the models fit on one device."
        )


def nothing_of(mapper: Mapper, device: torch.device) -> Tensor:
    """Zero, with a gradient of zero for all of a mapper: for batches without texts, while other ranks have some."""
    return 0 * mapper(mapper.blank(1, device)).sum()
