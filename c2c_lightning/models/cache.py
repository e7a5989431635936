"""KV caches of transformers as KV stacks, and forward passes that spend nothing on unwanted logits.

Dimensions: L layers, B batch, H kv heads, N tokens, T tokens chosen of a batch or slots, D head_dim, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from c2c_lightning.fuser import PART_NAMES
from c2c_lightning.models.loading import is_compiled, is_sharded, kv_shape
from c2c_lightning.models.private_text import PrivateTexts


@contextmanager
def logits_at(model: PreTrainedModel, index: tuple[Tensor | slice, Tensor | slice]) -> Iterator[None]:
    """Within it, the model's forward returns logits (1, T, V) of the T tokens at an index into (B, N).

    The hidden states are picked just before the output embeddings, so the model is still entered
    through its root (as FSDP2 needs) and no other logits are ever computed.
    """
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: (args[0][index].flatten(0, -2).unsqueeze(0), *args[1:])
    )
    try:
        yield
    finally:
        handle.remove()


class LastLayerFilled(Exception):
    """Ends a prefill: what the last layer makes of its keys and values, nobody needs."""


class PrefillCache(DynamicCache):
    """A cache that ends the forward pass as soon as the last of the model's layers has keys and values."""

    def __init__(self, num_layers: int):
        super().__init__()
        self.num_layers = num_layers

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        all_of_them = super().update(keys, values, layer_idx, *args, **kwargs)
        if layer_idx == self.num_layers - 1:
            raise LastLayerFilled
        return all_of_them


@torch.no_grad()
def prefill(
    model: PreTrainedModel, ids_BN: Tensor, mask_BN: Tensor, positions_BN: Tensor | None = None
) -> DynamicCache:
    """The model's cache after reading left-padded prompts, without gradients; see `fill`."""
    return fill(model, ids_BN, mask_BN, positions_BN)


def fill(
    model: PreTrainedModel,
    ids_BN: Tensor,
    mask_BN: Tensor,
    positions_BN: Tensor | None = None,
    cache: DynamicCache | None = None,
) -> DynamicCache:
    """The model's cache after reading tokens; no vocabulary logits are computed.

    Nor is the last layer's attention and MLP, unless something waits for the end of the forward pass.
    Sliding-window layers keep every token here: fusion needs them, and the window is kept by the mask.

    Args:
        model: that reads.
        ids_BN: the tokens.
        mask_BN: 1 for real ones, those of `cache` included.
        positions_BN: of the tokens; None to count the real ones.
        cache: of what stands before them, which stays as it is; None for nothing.
    """
    filled = DynamicCache() if is_watched(model) else PrefillCache(kv_shape(model.config).num_layers)
    if cache is not None:
        filled.layers = branch(cache).layers
    if positions_BN is None:
        positions_BN = position_ids(mask_BN)[:, -ids_BN.shape[1] :]
    with logits_at(model, (slice(None), slice(0, 0))), suppress(LastLayerFilled):
        model(
            input_ids=ids_BN,
            attention_mask=mask_BN,
            position_ids=positions_BN,
            past_key_values=filled,
            use_cache=True,
        )
    cache = DynamicCache()  # that a response can go on with
    cache.layers = filled.layers
    return cache


def is_watched(model: PreTrainedModel) -> bool:
    """Whether a forward pass has to come to its end."""
    # FSDP frees after a module's forward what it gathered before; and a compiled module cannot be left in the middle.
    hooked = any(module._forward_hooks or hasattr(module, "_hf_hook") for module in model.modules())
    return hooked or is_compiled(model) or is_sharded(model)


def branch(cache: DynamicCache) -> DynamicCache:
    """A cache with the same entries, which can be written to and grow while the first one stays as it is."""
    twin = copy.copy(cache)
    # A layer puts new tensors in the place of the old ones, and never writes into them.
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def position_ids(mask_BN: Tensor) -> Tensor:
    """Positions that count real tokens only, (B, N)."""
    return (mask_BN.cumsum(-1) - 1).clamp(min=0)


def read_stack(cache: DynamicCache, layers: Sequence[int], positions: Tensor | None = None) -> Tensor:
    """KV stack (2, L, B, H, N, D) of some layers, gathered at (B, N) token positions if given.

    It lies in memory as (2, L, B, N, H, D), so that a fuser's features are a view of it.
    """
    tensors = [getattr(cache.layers[layer], part) for part in PART_NAMES for layer in layers]
    if positions is None:
        tokens = [t.transpose(1, 2) for t in tensors]
    else:
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        tokens = [t.transpose(1, 2)[rows, positions] for t in tensors]
    return torch.stack(tokens).unflatten(0, (2, len(layers))).transpose(3, 4)


def write_stack(cache: DynamicCache, layers: Sequence[int], stack: Tensor) -> None:
    """Puts a KV stack in the place of the cache's own entries of these layers."""
    # Taken apart in one go: the gradient of an entry picked by its index would be a whole stack of zeros around it.
    keys, values = (part.unbind() for part in stack.unbind())
    for i, layer in enumerate(layers):
        cache.layers[layer].keys, cache.layers[layer].values = keys[i], values[i]


def tokens_of(cache: DynamicCache, layers: Sequence[int], places: Tensor) -> Tensor:
    """The entries (2, L, T, H, D) of some layers of a cache at places among its B * N."""
    return read_stack(cache, layers).transpose(3, 4).flatten(2, 3).index_select(2, places)


def cache_with_slots(
    model: PreTrainedModel, ids_BN: Tensor, mask_BN: Tensor, texts: PrivateTexts, slots: Tensor, pad_id: int
) -> DynamicCache:
    """A model's cache of left-padded prompts with other entries in their slots; gradients pass to these entries.

    Three pieces are put together: what stands before the slots, the slots, and what follows, read on top of both.
    While a piece is read, all that stands before it is in one piece, with no padding within: sliding windows, which
    count the entries of a cache and not positions, are then what they would be for each prompt alone.

    Args:
        model: the receiver.
        ids_BN: of the prompts; those in slots are not looked at.
        mask_BN: 1 for real tokens and slots.
        texts: where the slots are.
        slots: (2, L, T, H, D), keys turned to their positions.
        pad_id: of the model.
    """
    B, N = ids_BN.shape
    device, layers = ids_BN.device, range(slots.shape[1])
    lengths = mask_BN.sum(1)
    heads, before = texts.heads, texts.heads + texts.numbers
    # Of every column the place in its prompt, counted from the first real token.
    place_BN = torch.arange(N, device=device) - (N - lengths)[:, None]
    is_head, is_rest = (place_BN >= 0) & (place_BN < heads[:, None]), place_BN >= before[:, None]
    H, P, R = int(heads.max()), int(before.max()), int((lengths - before).max())
    head_columns, prefix_columns = left_padded(heads, H), left_padded(before, P)
    rest_columns = torch.arange(R, device=device) < (lengths - before)[:, None]

    entries = slots.new_zeros(2, slots.shape[1], B * P, *slots.shape[3:])
    in_prefix = torch.arange(P, device=device) - (P - before)[:, None]
    if H:
        head_ids = torch.full((B, H), pad_id, device=device).masked_scatter(head_columns, ids_BN[is_head])
        with torch.no_grad():
            head_cache = fill(model, head_ids, head_columns.long())
        head = tokens_of(head_cache, layers, places(head_columns))
        at = places((in_prefix >= 0) & (in_prefix < heads[:, None]))
        entries = entries.index_copy(2, at, head)
    entries = entries.index_copy(2, places(in_prefix >= heads[:, None]), slots)
    cache = DynamicCache()
    for i, (keys, values) in enumerate(zip(*entries.unflatten(2, (B, P)).transpose(3, 4).unbind())):
        cache.update(keys, values, i)
    if R:
        rest_ids = torch.full((B, R), pad_id, device=device).masked_scatter(rest_columns, ids_BN[is_rest])
        positions = (before + texts.skipped)[:, None] + torch.arange(R, device=device)
        cache = fill(model, rest_ids, torch.cat([prefix_columns, rest_columns], dim=1).long(), positions, cache)
    columns = torch.cat([prefix_columns, rest_columns], dim=1)
    if columns.shape[1] == N and bool((columns == mask_BN.bool()).all()):
        return cache
    stack = read_stack(cache, layers)
    there = stack.new_zeros(2, len(layers), B * N, *slots.shape[3:])
    there = there.index_copy(2, places(mask_BN.bool()), tokens_of(cache, layers, places(columns)))
    write_stack(cache, layers, there.unflatten(2, (B, N)).transpose(3, 4))
    return cache


def left_padded(lengths: Tensor, width: int) -> Tensor:
    """(B, width), true in the last `lengths` columns of each row."""
    return torch.arange(width, device=lengths.device) >= width - lengths[:, None]


def places(chosen: Tensor) -> Tensor:
    """Where a mask (B, N) is true, among the B * N."""
    return chosen.flatten().nonzero()[:, 0]
