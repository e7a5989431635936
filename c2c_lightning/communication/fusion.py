"""Sharers' stacks fused into receivers' caches: of one communicator, or of several on one reading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from c2c_lightning.communication.batch import Batch
from c2c_lightning.communication.cache import read_stack, write_stack
from c2c_lightning.communication.reading import Reading
from c2c_lightning.fuser.base import pick
from c2c_lightning.fuser.together import Fusion, fuse_together

if TYPE_CHECKING:
    from c2c_lightning.communication.communicator import Communicator


def prefill_together(communicators: Sequence[Communicator], batch: Batch, reading: Reading) -> list[DynamicCache]:
    """Each communicator's fused cache, where all have the same receiver and sharers.

    On a GPU fusers of the same sizes run as one. A communicator whose fusers draw random numbers draws them from the
    seed that torch was given last, as it would alone.
    """
    caches = [c.receiver_cache(batch, reading) for c in communicators]
    stacks = [c.sharer_stacks(batch, reading) for c in communicators]
    draw = [c.training and any(c.fusers[i].draws for i in stacks[k]) for k, c in enumerate(communicators)]
    merged = [k for k, draws in enumerate(draw) if not draws]
    seed = torch.initial_seed()
    for k, draws in enumerate(draw):
        if draws:
            torch.manual_seed(seed)
            communicators[k].fuse(caches[k], stacks[k], batch)
    fuse_caches(*([of[k] for k in merged] for of in (communicators, caches, stacks)), batch)
    return caches


def fuse_caches(
    communicators: Sequence[Communicator],
    caches: Sequence[DynamicCache],
    stacks: Sequence[dict[int, Tensor]],
    batch: Batch,
) -> None:
    """Fuses each communicator's sharer stacks into its cache, in place; see `Communicator.fuse`."""
    own = {k: read_stack(caches[k], c.fused_layers) for k, c in enumerate(communicators) if stacks[k]}
    fused = dict(own)
    for i in range(max((len(c.sharers) for c in communicators), default=0)):
        rows: dict[int, Tensor | None] = {}
        fusions = []
        aligned = batch.sharers[i].aligned
        for k, c in enumerate(communicators):
            if i in stacks[k]:
                mapped = list(c.layer_maps[i])
                places = [c.fused_layers.index(layer) for layer in mapped]
                rows[k] = None if mapped == c.fused_layers else torch.tensor(places, device=own[k].device)
                receiver, onto = (pick(stack[k], 1, rows[k]) for stack in (own, fused))
                fusions.append(Fusion(c.fusers[i], stacks[k][i], receiver, onto, aligned))
        for k, out in zip(rows, fuse_together(fusions)):
            fused[k] = out if rows[k] is None else fused[k].index_copy(1, rows[k], out)
    for k, stack in fused.items():
        write_stack(caches[k], communicators[k].fused_layers, stack)
