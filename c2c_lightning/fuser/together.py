"""Several fusers in one batched matmul: what trains side by side costs one call instead of many small ones.

A fuser's parameters are stacked by (part, layer) pair along their first axis, and every pair is a network of
its own. So fusers of the same sizes can be laid end to end, even where they fuse different layers or parts:
the rows of all their open pairs make the parameters of one longer fuser. G groups are its rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from c2c_lightning.fuser.base import Fuser, OpenPairs
from c2c_lightning.fuser.fusers import Fusers, Reading
from c2c_lightning.fuser.stacked import pick

GATE = "gate."


def fuse_all(runs: Sequence[Fusers], reading: Reading) -> list[Any]:
    """The fused cache of each of several runs, all on one reading.

    Fusers that draw random numbers draw them from the seed that torch was given last, as they would alone.
    """
    seed = torch.initial_seed()
    readings = [reading.with_mapper(fusers.mapper) for fusers in runs]
    stacks = [fusers.sharer_stacks(reading) for fusers in runs]
    fused: dict[int, Tensor] = {}
    rest = []
    for k, fusers in enumerate(runs):
        if fusers.training and any(fusers[i].draws for i in stacks[k]):
            torch.manual_seed(seed)
            fused[k] = fusers.fused_stack(readings[k], stacks[k])
        elif len(fusers):
            rest.append(k)
    receivers = {k: readings[k].receiver_stack(runs[k].fused_layers) for k in rest}
    fused |= receivers
    for i in sorted({i for k in rest for i in stacks[k]}):
        with_sharer = {k: runs[k].rows(i, receivers[k].device) for k in rest if i in stacks[k]}
        fusions = [
            Fusion(runs[k][i], stacks[k][i], pick(receivers[k], 1, rows), pick(fused[k], 1, rows), reading.aligned(i))
            for k, rows in with_sharer.items()
        ]
        for (k, rows), out in zip(with_sharer.items(), fuse_together(fusions)):
            fused[k] = out if rows is None else fused[k].index_copy(1, rows, out)
    return [
        readings[k].cache_with(fusers.fused_layers, fused[k]) if k in fused else readings[k].receiver_cache()
        for k, fusers in enumerate(runs)
    ]


class Fusion(NamedTuple):
    """What a fuser's `forward` is called with, see there."""

    fuser: Fuser
    sharer: Tensor
    receiver: Tensor
    onto: Tensor
    aligned: Tensor | None


def fuse_together(fusions: Sequence[Fusion], merge: bool | None = None) -> list[Tensor]:
    """The fused stack of each; where fusers are merged, by one call of `update` for all of the same class and sizes.

    Fusers that draw random numbers must be called one by one, for each has draws of its own.

    Args:
        fusions: what to do, all on one device.
        merge: True to merge fusers; False for one call for each, which gives to the bit what each gives in a call by
            itself; None to merge on a GPU, which many small matmuls leave idle.
    """
    # On a CPU many small matmuls cost what one large one does, and are rounded as they are in calls of their own: over
    # some hundred steps another rounding grows into another fuser.
    if merge is None:
        merge = any(fusion.receiver.device.type != "cpu" for fusion in fusions)
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for i, fusion in enumerate(fusions):
        kind = likeness(fusion.fuser) if merge else None
        alike[i if kind is None else kind].append(i)
    fused: dict[int, Tensor] = {}
    for members in alike.values():
        several = [fusions[i] for i in members]
        if len(several) == 1:
            # Through its own call, whose hooks may have to gather its parameters.
            fuser, *inputs = several[0]
            fused[members[0]] = fuser(*inputs)
            continue
        opened = [f.fuser.open_pairs(f.sharer, f.receiver, f.aligned) for f in several]
        updates = merged_update([f.fuser for f in several], opened)
        for i, f, pairs, update_GTF in zip(members, several, opened, updates):
            fused[i] = f.fuser.add(f.onto, update_GTF, pairs)
    return [fused[i] for i in range(len(fusions))]


def likeness(fuser: Fuser) -> Hashable | None:
    """The same for fusers whose networks can be laid end to end; None for one that must be called by itself."""
    own_way = type(fuser).forward is not Fuser.forward or fuser.joint
    keeps_more = any(not name.startswith(GATE) for name, _ in fuser.named_buffers())
    is_compiled = "update" in vars(fuser)  # with parameters of its own
    if own_way or keeps_more or is_compiled or fuser.recomputes or not fuser.gate.active():
        return None
    weight = next(fuser.parameters())
    shapes = [(s.num_kv_heads, s.head_dim) for s in (fuser.sharer, fuser.receiver)]
    return type(fuser), repr(sorted(fuser.init_args.items())), *shapes, weight.dtype, weight.device, fuser.training


def merged_update(fusers: Sequence[Fuser], opened: Sequence[OpenPairs]) -> list[Tensor]:
    """Each fuser's update (G, T, F), of fusers that are alike and stacks of one batch."""
    parameters = {
        f"fuser.{name}": torch.cat([pick(f.get_parameter(name), 0, pairs.groups) for f, pairs in zip(fusers, opened)])
        for name, _ in fusers[0].named_parameters()
        if not name.startswith(GATE)
    }
    sharer_GTF = torch.cat([pairs.sharer_GTF for pairs in opened])
    receiver_GTF = torch.cat([pairs.receiver_GTF for pairs in opened])
    update_GTF = functional_call(Update(fusers[0]), parameters, (sharer_GTF, receiver_GTF, None))
    return list(update_GTF.split([len(pairs.sharer_GTF) for pairs in opened]))


class Update(nn.Module):
    """A fuser's `update` as a forward."""

    def __init__(self, fuser: Fuser):
        super().__init__()
        self.fuser = fuser

    def forward(self, sharer_GTF: Tensor, receiver_GTF: Tensor, groups: Tensor | None) -> Tensor:
        return self.fuser.update(sharer_GTF, receiver_GTF, groups)
