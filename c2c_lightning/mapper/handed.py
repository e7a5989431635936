"""What a mapper made of a text, as it is handed over: of all tokens or some, in 32, 16, 8 or 4 bits a number.

Dimensions: L layers, S tokens of the text, K of them that are kept, H kv heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BITS = (32, 16, 8, 4)
PARTS = ("keys", "values")
# What each range of 8 or 4 bits goes over: of keys a feature's numbers, of values a token's (KIVI, arXiv 2402.02750).
OVER = {"keys": 1, "values": 3}


@dataclass(frozen=True)
class Handed:
    """What is handed over of a text.

    Attributes:
        entries: (2, L, K, H, D), keys without rotation, so that they may stand anywhere, then values.
        kept: (K,) which of the text's tokens they are of, ascending.
        num_tokens: of the text, S. What follows stands behind all of them, and each entry where its token stands.
        num_bytes: that are handed over.
    """

    entries: Tensor
    kept: Tensor
    num_tokens: int
    num_bytes: int

    @classmethod
    def of(cls, packed: dict[str, Tensor], bits: int, num_tokens: int) -> Handed:
        """What `pack` packed with so many bits; all of its tensors count as handed over."""
        entries = torch.stack([_unpacked(packed, part, bits) for part in PARTS])
        kept = packed.get("kept", torch.arange(entries.shape[2])).long()
        return cls(entries, kept, num_tokens, sum(tensor.nbytes for tensor in packed.values()))


def pack(entries: Tensor, bits: int, keep: int | None = None) -> dict[str, Tensor]:
    """Entries as tensors of so many bits a number.

    Args:
        entries: (2, L, S, H, D), keys without rotation, then values; of 32 bits, or of 16.
        bits: one of `BITS`; as many as `entries` has, or more, change nothing.
        keep: how many of the tokens to keep, those that matter most; None for all.

    Returns:
        `keys` and `values` (L, K, H, D), and `kept` (K,) if these are not all. With 8 or 4 bits they are whole numbers
        q for q * scale + low, with `.scale` and `.low` beside them; with 4 bits two of them stand in each byte.
    """
    packed = {}
    if keep is not None and keep < entries.shape[2]:
        kept = most_distinct(entries, keep)
        entries, packed["kept"] = entries[:, :, kept], kept.int()
    for part, numbers in zip(PARTS, entries):
        if bits >= 16:
            packed[part] = _in_16_bits(numbers) if bits == 16 else numbers.clone()
            continue
        least, most = numbers.float().aminmax(dim=OVER[part], keepdim=True)
        low, scale = _in_16_bits(least), _in_16_bits(((most - least) / (2**bits - 1)).clamp(min=1e-6))
        steps = ((numbers.float() - low.float()) / scale.float()).round().clamp(0, 2**bits - 1).byte()
        if bits == 4:
            steps = F.pad(steps, (0, steps.shape[-1] % 2))
            steps = steps[..., ::2] | steps[..., 1::2] << 4
        packed |= {part: steps, f"{part}.low": low, f"{part}.scale": scale}
    return packed


def most_distinct(entries: Tensor, keep: int) -> Tensor:
    """Places (K,), ascending, of the tokens whose keys and values (2, L, S, H, D) are farthest from their means.

    No question is needed for it: a token that is like all others neither draws attention nor changes what attention
    gives. A head's distances are divided by their mean and then averaged over all heads and layers, as a cache has the
    same slots in all layers. KeyDiff (arXiv 2504.15364) takes the angle of keys alone, and Knorm (arXiv 2406.11430)
    their norm; docs/transfer.md has what each gave.
    """
    distance = (entries.float() - entries.float().mean(2, keepdim=True)).norm(dim=-1)
    vote = distance / distance.mean(2, keepdim=True).clamp(min=1e-12)
    return vote.mean((0, 1, 3)).topk(keep).indices.sort().values


def _unpacked(packed: dict[str, Tensor], part: str, bits: int) -> Tensor:
    numbers = packed[part]
    if bits >= 16:
        return numbers
    if bits == 4:
        halves = torch.stack([numbers & 15, numbers >> 4], dim=-1).flatten(-2)
        numbers = halves[..., : packed["keys.low"].shape[-1]]  # head_dim may be odd
    return numbers.float() * packed[f"{part}.scale"].float() + packed[f"{part}.low"].float()


def _in_16_bits(numbers: Tensor) -> Tensor:
    """In fp16, which is the finer one, or in bf16 if a number is too large for it or is in bf16 already."""
    half = numbers.half()
    return half if numbers.dtype != torch.bfloat16 and half.isfinite().all() else numbers.bfloat16()
